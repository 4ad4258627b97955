//! The commands that read and mend, run as their users run them: the binary, its output, its exit code.

use crate::support::{TestDatabase, database};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use uuid::Uuid;

/// The binary with nothing but this database in its environment.
fn paypoll(database: &TestDatabase, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paypoll"));
    command.env_clear().env("DATABASE_URL", &database.url).args(arguments);
    command
}

/// Runs it to its end.
async fn run(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

async fn execute(database: &TestDatabase, sql: &str) {
    for statement in sql.split(";\n").filter(|statement| !statement.trim().is_empty()) {
        sqlx::query(AssertSqlSafe(statement.to_owned()))
            .execute(&database.pool)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

async fn insert(database: &TestDatabase, columns: &str, values: &str) -> Uuid {
    let sql = format!("insert into paypoll.transactions ({columns}) values ({values}) returning id");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&database.pool).await.unwrap()
}

/// A living replica that serves khalti/default.
const REPLICA: &str = "
    insert into paypoll.replicas (lease, complied, accounts) values ('15 s', 0, '[[\"khalti\", \"default\"]]');
    insert into paypoll.accounts (provider, account) values ('khalti', 'default')";

#[tokio::test]
async fn status_counts_as_due_what_nobody_is_about_to_poll() {
    let database = database().await;
    execute(&database, REPLICA).await;
    // Reference, owner, and how many seconds ago the row says that a poll is due. Replica 1 lives, replica 7 does not.
    for (reference, owner, ago) in [
        ("free", "null", 90),
        ("not yet", "null", -60),
        ("held, polled since", "1", 5),
        ("held, and nothing happens", "1", 20),
        ("its owner died", "7", 5),
        ("taken away", "0", 5),
    ] {
        insert(&database, "provider, reference", &format!("'khalti', '{reference}'")).await;
        execute(
            &database,
            &format!(
                "update paypoll.transactions set fence = fence + 1, owner = {owner}, next_poll_at = now() - interval '{ago} s'
                  where reference = '{reference}'"
            ),
        )
        .await;
    }
    insert(&database, "provider, account, reference", "'dapi', 'nobody''s', 'R1'").await;
    let (code, out, _) = run(paypoll(&database, &["status", "--json"])).await;
    let mut status: Value = serde_json::from_str(&out).unwrap();
    let oldest = status["providers"][1]["oldest_due_s"].take();
    assert!(oldest.as_f64().is_some_and(|oldest| (90.0..600.0).contains(&oldest)), "{oldest}");
    assert!(status["providers"][0]["oldest_due_s"].take().is_number());
    let account = |provider: &str, account: &str, pending: u32, due: u32, overdue: u32| {
        json!({"provider": provider, "account": account, "pending": pending, "due": due, "overdue": overdue, "oldest_due_s": null,
               "action_required": 0, "unresolved": 0, "invalid": 0, "circuit": "closed"})
    };
    let expected = json!({
        "providers": [account("dapi", "nobody's", 1, 1, 0), account("khalti", "default", 6, 4, 1)],
        "unroutable": [{"provider": "dapi", "account": "nobody's", "count": 1}],
    });
    assert_eq!((code, status), (0, expected));
}

#[tokio::test]
async fn status_tells_people_what_is_wrong() {
    let database = database().await;
    execute(&database, REPLICA).await;
    execute(
        &database,
        "update paypoll.accounts set circuit_since = now(), circuit_reason = '20 polls in a row failed', probe_at = now()",
    )
    .await;
    insert(&database, "provider, account, reference", "'dapi', 'old', 'R1'").await;
    for reference in ["R2", "R3"] {
        insert(&database, "provider, reference", &format!("'khalti', '{reference}'")).await;
    }
    execute(&database, "update paypoll.transactions set state = 'unresolved', reason = 'gave_up' where provider = 'khalti'").await;
    let (code, out, _) = run(paypoll(&database, &["status"])).await;
    assert_eq!(code, 0);
    assert!(out.contains("the circuit of khalti/default has been open for "), "{out}");
    assert!(out.contains("s, only probes are sent: 20 polls in a row failed"), "{out}");
    assert!(out.contains("1 of dapi/old wait: no running daemon serves this account"), "{out}");
    assert!(out.contains("2 of khalti/default unresolved: gave_up; the last one "), "{out}");
    assert!(!out.contains('\x1b'), "no terminal, no colours: {out:?}");
}

#[tokio::test]
async fn status_watched_through_a_pipe_is_plain_and_ends_when_asked_to() {
    let database = database().await;
    execute(&database, REPLICA).await;
    let mut child = paypoll(&database, &["status", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let code = tokio::task::spawn_blocking(move || {
        let lines: Vec<String> = BufReader::new(child.stdout.take().unwrap()).lines().take(4).map(Result::unwrap).collect();
        assert!(lines[0].starts_with("PROVIDER") && lines[2] == lines[0] && !lines.concat().contains('\x1b'), "{lines:?}");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap().code()
    });
    assert_eq!(code.await.unwrap(), Some(0));
}

#[tokio::test]
async fn show_tells_one_transactions_life_without_its_secrets() {
    let database = database().await;
    let id = insert(
        &database,
        "provider, reference, amount, currency, params",
        r#"'dropayment', 'INV-1', 10.10, 'EUR', '{"endpointId": "7", "session": {"token": "canary-token"}}'"#,
    )
    .await;
    execute(
        &database,
        &format!(
            "insert into paypoll.polls values
                ('{id}', 'dropayment', 'default', now() + interval '4 s', now() + interval '4.002 s', 12, 200, 'pending', null),
                ('{id}', 'dropayment', 'default', now() + interval '8 s', now() + interval '8.001 s', null, null, 'timeout', 'no complete answer');
             update paypoll.transactions set fence = fence + 1, attempts = 2, failures = 1, state = 'action_required', provider_state = 'REDIRECT_REQUEST',
                    action = '{{\"kind\": \"redirect\", \"url\": \"https://bank.example/pay\"}}', next_poll_at = now() + interval '1 hour';
             insert into paypoll.transitions (transaction_id, from_state, to_state, source, evidence, at)
             values ('{id}', 'pending', 'action_required', 'poll', '{{\"http_status\": 200, \"body\": {{\"state\": \"REDIRECT_REQUEST\"}}}}', now() + interval '5 s')"
        ),
    )
    .await;
    let (code, out, _) = run(paypoll(&database, &["show", "INV-1"])).await;
    assert_eq!(code, 0);
    for part in [
        "dropayment/default  INV-1",
        "action_required",
        "expects    10.10 EUR",
        r#"params     {"endpointId":"7","session":"[redacted]"}"#,
        "https://bank.example/pay",
        "poll 1, 2ms late: HTTP 200 after 12 ms, pending",
        "pending → action_required by the provider's answer",
        r#"evidence: HTTP 200, {"state":"REDIRECT_REQUEST"}"#,
        "poll 2, 1ms late: no answer, timeout",
        "no complete answer",
        "waits for a daemon: none that runs serves the account dropayment/default",
    ] {
        assert!(out.contains(part), "{part:?} is missing:\n{out}");
    }
    let order = ["poll 1", "→ action_required", "poll 2"].map(|part| out.find(part).unwrap());
    assert!(order.is_sorted(), "{out}");
    assert!(!out.contains("canary"), "{out}");
    let (_, out, _) = run(paypoll(&database, &["show", "--json", &id.to_string()])).await;
    let life: Value = serde_json::from_str(&out).unwrap();
    assert!(out.contains(r#""amount":10.10,"#) && !out.contains("canary"), "{out}");
    assert_eq!(life.as_object().unwrap().keys().collect::<Vec<_>>(), ["polls", "transaction", "transitions"]);
    assert_eq!(life["polls"].as_array().map(Vec::len), Some(2));
    assert_eq!(life["transitions"][0]["evidence"]["http_status"], 200);
    assert_eq!(life["transaction"]["id"], id.to_string());
}

#[tokio::test]
async fn show_finds_a_reference_in_every_account_also_where_all_is_final() {
    let database = database().await;
    for account in ["a", "b", "c"] {
        insert(&database, "provider, account, reference", &format!("'khalti', '{account}', 'SHARED'")).await;
    }
    insert(&database, "provider, account, reference", "'dapi', 'a', 'other'").await;
    execute(&database, "update paypoll.transactions set state = 'succeeded'").await;
    let (code, out, _) = run(paypoll(&database, &["show", "SHARED", "--json"])).await;
    let lives: Value = serde_json::from_str(&out).unwrap();
    let accounts: Vec<&str> =
        lives.as_array().unwrap().iter().map(|life| life["transaction"]["account"].as_str().unwrap()).collect();
    assert_eq!((code, accounts), (0, vec!["a", "b", "c"]));
    let (code, out, error) = run(paypoll(&database, &["show", "nothing"])).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(error, "no transaction has the id or reference \"nothing\"\n");
}

#[tokio::test]
async fn retry_opens_a_new_window_with_one_transition_and_keeps_what_was_sent() {
    let database = database().await;
    let id = insert(&database, "provider, reference", "'dropayment', 'R1'").await;
    // Parked by another writer while its owner had polls that only the journal knows.
    execute(
        &database,
        &format!(
            "insert into paypoll.polls select '{id}', 'dropayment', 'default', at, at, 1, 200, 'pending', null
               from (values (now() - interval '60 s'), (now() - interval '9 s'), (now() - interval '5 s')) as x (at);
             update paypoll.transactions set fence = fence + 1, owner = 3, attempts = 2, failures = 4, not_found = 2, phase = 1, gaps = 9,
                    last_polled_at = (select min(sent_at) from paypoll.polls), opened_at = now() - interval '70 s', phase_since = now(),
                    action_at = now();
             update paypoll.transactions set state = 'unresolved', reason = 'window_over'"
        ),
    )
    .await;
    let fence: i64 = sqlx::query_scalar("select fence from paypoll.transactions").fetch_one(&database.pool).await.unwrap();
    let (code, out, _) = run(paypoll(&database, &["retry", "--dry-run", &id.to_string()])).await;
    assert_eq!(code, 0);
    assert!(out.contains("would be reopened") && out.contains("was unresolved, window_over"), "{out}");
    let (code, out, _) = run(paypoll(&database, &["retry", &id.to_string(), &id.to_string()])).await;
    assert_eq!((code, out.lines().last()), (0, Some("1 reopened")), "{out}");
    let row = sqlx::query(
        "select state, fence, owner, attempts, failures + not_found + phase + gaps as counts,
                coalesce(opened_at, phase_since, action_at, finalized_at) is null and reason is null and action is null as clean,
                reopened_at > now() - interval '1 minute' and next_poll_at <= now() as opened,
                last_polled_at = (select max(sent_at) from paypoll.polls) as counted
           from paypoll.transactions",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(row.get::<String, _>("state"), "pending");
    assert_eq!(row.get::<i64, _>("fence"), fence + 1, "once, although asked for twice, and not by the dry run");
    assert_eq!(row.get::<Option<i64>, _>("owner"), Some(3), "its owner's until that one lets go, or is found dead");
    assert_eq!((row.get::<i32, _>("attempts"), row.get::<i32, _>("counts")), (4, 0));
    assert!(row.get("clean") && row.get("opened") && row.get("counted"));
    let transitions: Vec<(String, String, String)> =
        sqlx::query_as("select from_state, to_state, source from paypoll.transitions order by id")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(transitions.len(), 2);
    assert_eq!(transitions[1], ("unresolved".into(), "pending".into(), "operator".into()));
}

#[tokio::test]
async fn retry_says_what_it_cannot_reopen_and_reopens_the_rest() {
    let database = database().await;
    let good = insert(&database, "provider, reference", "'khalti', 'good'").await;
    let paid = insert(&database, "provider, reference", "'khalti', 'paid'").await;
    let future = insert(&database, "provider, reference, initiated_at", "'khalti', 'future', now() + interval '1 day'").await;
    let unknown = Uuid::nil();
    execute(
        &database,
        "update paypoll.transactions set state = 'unresolved' where reference = 'good';
         update paypoll.transactions set state = 'succeeded' where reference = 'paid'",
    )
    .await;
    let ids = [good, paid, future, unknown].map(|id| id.to_string());
    let (code, out, error) = run(paypoll(&database, &["retry", &ids[0], &ids[1], &ids[2], &ids[3]])).await;
    assert_eq!((code, error.as_str()), (1, "3 of 4 transactions cannot be reopened\n"), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("reopened") && lines[0].contains("khalti/default good"), "{out}");
    assert!(lines[1].contains("it is succeeded: only unresolved and invalid"), "{out}");
    assert!(lines[2].contains("its initiated_at is") && lines[2].contains("correct that first"), "{out}");
    assert!(lines[3].contains("there is no such transaction"), "{out}");
    execute(&database, "update paypoll.transactions set initiated_at = now() where reference = 'future'").await;
    assert_eq!(run(paypoll(&database, &["retry", &ids[2]])).await.0, 0, "corrected, then reopened");
}

#[tokio::test]
async fn retry_by_description_reopens_those_and_no_others() {
    let database = database().await;
    for (provider, reference, reason) in
        [("khalti", "R1", "gave_up"), ("khalti", "R2", "not_found"), ("dapi", "R3", "gave_up"), ("khalti", "R4", "gave_up")]
    {
        insert(&database, "provider, reference", &format!("'{provider}', '{reference}'")).await;
        execute(
            &database,
            &format!("update paypoll.transactions set state = 'unresolved', reason = '{reason}' where reference = '{reference}'"),
        )
        .await;
    }
    execute(&database, "update paypoll.transactions set updated_at = now() - interval '2 days' where reference = 'R4'").await;
    let arguments = ["retry", "--provider", "khalti", "--reason", "gave_up", "--since", "24h"];
    let (code, out, _) = run(paypoll(&database, &[&arguments[..], &["--dry-run"]].concat())).await;
    assert!(code == 0 && out.ends_with("1 would be reopened: nothing was changed\n"), "{out}");
    let (code, out, _) = run(paypoll(&database, &arguments)).await;
    assert!(code == 0 && out.ends_with("1 reopened\n"), "{out}");
    let pending: Vec<String> = sqlx::query_scalar("select reference from paypoll.transactions where state = 'pending'")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    assert_eq!(pending, ["R1"]);
    assert_eq!(run(paypoll(&database, &arguments)).await.0, 0, "nothing is like that any more");
}

/// Khalti at this address, its token in the environment.
fn with_khalti(mut command: Command, address: &str) -> Command {
    command
        .env("PAYPOLL__PROVIDERS__KHALTI__ENABLED", "true")
        .env("PAYPOLL__PROVIDERS__KHALTI__BASE_URL", format!("http://{address}"))
        .env("PAYPOLL__PROVIDERS__KHALTI__ACCOUNTS__SHOP__TOKEN", "canary-token");
    command
}

#[tokio::test]
async fn check_prints_the_rules_in_force_and_no_secret() {
    let database = database().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (code, out, error) = run(with_khalti(paypoll(&database, &["check"]), &address)).await;
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    for part in [
        "reached, PostgreSQL",
        "clock",
        &format!("khalti        http://{address}"),
        "accounts      shop",
        "first poll after 5m, then every 5m; gives up at 72h",
        "nothing sent",
    ] {
        assert!(out.contains(part), "{part:?} is missing:\n{out}");
    }
    assert!(!out.contains("canary") && !out.contains(&database.url), "{out}");
    drop(listener);
    let (code, out, error) = run(with_khalti(paypoll(&database, &["check"]), &address)).await;
    assert_eq!(code, 1);
    assert!(out.contains("not reachable") && error.starts_with("khalti cannot be reached: 127.0.0.1:"), "{out}{error}");
}

#[tokio::test]
async fn check_tells_a_wrong_configuration_from_a_wrong_database() {
    let database = database().await;
    let (code, _, error) = run(paypoll(&database, &["check"])).await;
    assert!(code == 1 && error.contains("no provider is enabled"), "{error}");
    let mut wrong = paypoll(&database, &["check"]);
    wrong.env("PAYPOLL__WORKER__LEASE", "soon");
    let (code, _, error) = run(wrong).await;
    assert!(code == 2 && error.contains("worker.lease"), "{error}");
    let mut none = paypoll(&database, &["check"]);
    none.env_remove("DATABASE_URL");
    assert_eq!(run(none).await.0, 2);
    execute(&database, "drop schema paypoll cascade").await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (code, out, error) = run(with_khalti(paypoll(&database, &["check"]), &address)).await;
    assert!(code == 1 && error.contains("run `paypoll migrate`") && out.contains("accounts      shop"), "{out}{error}");
}

/// Two Dropayment and two DusuPay transactions, polled by the book and settled; initiated 90 minutes ago.
const CLEAN: &str = "
    select paypoll.make_journal((now() at time zone 'UTC')::date - 2, (now() at time zone 'UTC')::date);
    insert into paypoll.transactions (provider, reference, initiated_at)
    select p, p || n, now() - interval '90 minutes' from unnest(array['dropayment', 'dusupay']) p, generate_series(1, 2) n;
    update paypoll.transactions set created_at = initiated_at;
    insert into paypoll.polls
    select id, provider, account, at, at, 20, 200, 'pending', null from (
        select *, initiated_at + case provider when 'dropayment' then interval '4 s' + k * interval '4 s'
                                               else interval '121 s' + k * interval '300.2 s' end as at
          from paypoll.transactions, generate_series(0, 12) k) x;
    update paypoll.transactions t set state = 'succeeded', finalized_at = (select max(sent_at) from paypoll.polls p where p.transaction_id = t.id)";

async fn audit(database: &TestDatabase, arguments: &[&str]) -> (i32, Value) {
    let (code, out, error) = run(paypoll(database, &[&["audit", "--json"], arguments].concat())).await;
    (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}")))
}

fn line(provider: &str, polls: u32, [early, interval, rate, outside_window, windows_missed]: [u32; 5]) -> Value {
    json!({"provider": provider, "polls": polls, "early": early, "interval": interval, "rate": rate,
           "outside_window": outside_window, "windows_missed": windows_missed})
}

#[tokio::test]
async fn an_audit_of_polls_by_the_book_is_clean() {
    let database = database().await;
    assert_eq!(audit(&database, &[]).await, (0, json!({"providers": [], "breaches": 0})));
    execute(&database, CLEAN).await;
    let clean = json!({"providers": [line("dropayment", 26, [0; 5]), line("dusupay", 26, [0; 5])], "breaches": 0});
    assert_eq!(audit(&database, &[]).await, (0, clean));
}

#[tokio::test]
async fn a_journal_doctored_in_six_ways_is_found_out_in_each() {
    let nth = |provider: &str, n: u32| {
        format!(
            "(transaction_id, sent_at) = (select transaction_id, sent_at from paypoll.polls where transaction_id = (select id from paypoll.transactions where reference = '{provider}1')
                      order by sent_at offset {n} limit 1)"
        )
    };
    let moved = |provider: &str, n: u32, by: &str| {
        format!("update paypoll.polls set sent_at = sent_at + interval '{by}' where {}", nth(provider, n))
    };
    let doctored = [
        ("early", moved("dusupay", 0, "-2 s"), "dusupay", 26, [1, 0, 0, 0, 0], "before its documented first poll"),
        (
            "called early",
            format!("update paypoll.polls set outcome = 'too_early' where {}", nth("dusupay", 0)),
            "dusupay",
            26,
            [1, 0, 0, 0, 0],
            "the provider said that it was too early",
        ),
        ("interval", moved("dropayment", 5, "-1.5 s"), "dropayment", 26, [0, 1, 0, 0, 0], "500ms sooner") ,
        (
            "window",
            "insert into paypoll.polls select transaction_id, provider, account, due_at, sent_at + n * interval '200 s', 1, 200, 'pending', null
               from paypoll.polls, generate_series(1, 2) n where transaction_id = (select id from paypoll.transactions where reference = 'dropayment1')
              order by sent_at desc limit 2"
                .into(),
            "dropayment",
            28,
            [0, 0, 0, 1, 1],
            "after the end of its documented window",
        ),
        (
            "rate",
            "insert into paypoll.polls select gen_random_uuid(), 'dusupay', 'default', at, at, 1, 200, 'pending', null
               from (select now() - interval '30 minutes' + n * interval '30 ms' as at from generate_series(1, 21) n) x"
                .into(),
            "dusupay",
            47,
            [0, 0, 1, 0, 0],
            "more polls within a second",
        ),
        ("missing", format!("delete from paypoll.polls where {}", nth("dusupay", 6)), "dusupay", 25, [0, 0, 0, 0, 1], "a poll was due"),
    ];
    for (name, sql, provider, polls, counts, named) in doctored {
        let database = database().await;
        execute(&database, CLEAN).await;
        execute(&database, &sql).await;
        let (code, report) = audit(&database, &[]).await;
        let breaches: u32 = counts[..4].iter().sum();
        let found = report["providers"].as_array().unwrap().iter().find(|line| line["provider"] == provider).unwrap();
        assert_eq!(*found, line(provider, polls, counts), "{name}");
        assert_eq!((code, &report["breaches"]), (i32::from(breaches > 0), &json!(breaches)), "{name}");
        let (_, text, _) = run(paypoll(&database, &["audit"])).await;
        assert!(text.contains(named), "{name}: {text}");
    }
}

#[tokio::test]
async fn an_audit_of_a_stretch_of_time_looks_back_but_judges_only_that_stretch() {
    let database = database().await;
    execute(&database, CLEAN).await;
    // The eleventh poll of a DusuPay transaction comes 10 s too soon: 38 minutes ago. The one after it keeps its distance.
    execute(
        &database,
        "update paypoll.polls set sent_at = sent_at - interval '10 s' where transaction_id = (select id from paypoll.transactions where reference = 'dusupay1')
            and sent_at = (select initiated_at + interval '121 s' + 10 * interval '300.2 s' from paypoll.transactions where reference = 'dusupay1')",
    )
    .await;
    let interval =
        |report: &Value| report["providers"].as_array().unwrap().iter().map(|line| line["interval"].as_u64().unwrap()).sum::<u64>();
    let (code, report) = audit(&database, &["--since", "40m"]).await;
    assert_eq!((code, interval(&report)), (1, 1), "the poll before it lies outside of the stretch: {report}");
    let (code, report) = audit(&database, &["--since", "37m"]).await;
    assert_eq!((code, interval(&report)), (0, 0), "{report}");
    assert!(report["providers"][0]["polls"].as_u64().is_some_and(|polls| polls < 26), "{report}");
}

#[tokio::test]
async fn rows_that_should_have_been_polled_and_never_were_are_reported_and_no_breach() {
    let database = database().await;
    insert(&database, "provider, reference", "'dusupay', 'R1'").await;
    insert(&database, "provider, reference", "'dusupay', 'fresh'").await;
    execute(
        &database,
        "select paypoll.make_journal((now() at time zone 'UTC')::date - 2, (now() at time zone 'UTC')::date);
         update paypoll.transactions set created_at = now() - interval '1 hour', initiated_at = now() - interval '1 hour' where reference = 'R1'",
    )
    .await;
    let report = json!({"providers": [line("dusupay", 0, [0, 0, 0, 0, 1])], "breaches": 0});
    assert_eq!(audit(&database, &[]).await, (0, report));
}

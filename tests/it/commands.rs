//! The commands that read and repair, run as their users run them: the binary, its output, its exit
//! code.

use crate::support::{TestDatabase, database};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Row};
use std::io::{BufRead as _, BufReader, Write as _};
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
async fn status_counts_by_the_due_time_alone_what_no_living_owner_can_have_polled() {
    let database = database().await;
    execute(&database, REPLICA).await;
    // Reference, owner, and how many seconds ago the row says that a poll is due. Replica 1 lives, replica 7 does not.
    for (reference, owner, ago) in [
        ("free", "null", 90),
        ("not yet", "null", -600),
        ("held, polled since", "1", 5),
        ("held, and its row may lag", "1", 60),
        ("held, and nothing happens", "1", 80),
        ("its owner died", "7", 7),
        ("taken away", "0", 2),
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
    assert!(status["providers"][1]["clears_in_s"].take().is_number());
    assert!(status["as_of"].take().is_string());
    let replicas = status["replicas"].take();
    assert_eq!(replicas[0]["accounts"], json!(["khalti/default"]), "{replicas}");
    for key in ["id", "host", "started_at", "heartbeat_at"] {
        assert!(!replicas[0][key].is_null(), "{key} is missing in {replicas}");
    }
    let account = |provider: &str, account: &str, [pending, due, overdue, late]: [u32; 4]| {
        json!({"provider": provider, "account": account, "pending": pending, "due": due, "overdue": overdue, "late": late,
               "oldest_due_s": null, "clears_in_s": null, "action_required": 0, "unresolved": 0, "invalid": 0, "circuit": "closed",
               "circuit_since": null, "circuit_reason": null, "next_probe_at": null, "held_until": null,
               "paused_since": null, "paused_until": null, "paused_because": null, "paused_by": null})
    };
    let dapi_late = status["providers"][0]["late"].as_u64().map_or(9, |late| late as u32);
    assert!(dapi_late <= 1, "as late as this machine is slow");
    status["providers"][0]["clears_in_s"].take();
    let expected = json!({
        "as_of": null,
        "providers": [account("dapi", "nobody's", [1, 1, 0, dapi_late]), account("khalti", "default", [7, 4, 2, 3])],
        "unroutable": [{"provider": "dapi", "account": "nobody's", "count": 1}],
        "parked": [],
        "replicas": null,
        "errors": [],
        "events": status["events"],
    });
    assert_eq!((code, status), (0, expected));
}

#[tokio::test]
async fn status_begins_with_the_worst_that_is_true() {
    let database = database().await;
    let (_, out, _) = run(paypoll(&database, &["status"])).await;
    assert!(out.starts_with("no daemon runs; nothing waits for one\nas of "), "{out}");
    execute(&database, REPLICA).await;
    let (_, out, _) = run(paypoll(&database, &["status"])).await;
    assert!(out.starts_with("all is well: 0 payments are polled, none is late, none is parked"), "{out}");
    assert!(out.contains("1 idle account: khalti/default"), "{out}");
    execute(
        &database,
        "update paypoll.accounts set circuit_since = now(), circuit_reason = '20 polls in a row failed', probe_at = now()",
    )
    .await;
    insert(&database, "provider, account, reference", "'dapi', 'old', 'R1'").await;
    for reference in ["R2", "R3", "R4"] {
        insert(&database, "provider, reference", &format!("'khalti', '{reference}'")).await;
    }
    execute(
        &database,
        "update paypoll.transactions set state = 'unresolved', reason = 'no_usable_answer' where reference in ('R2', 'R3');
         insert into paypoll.polls select id, provider, account, now(), now(), 3, 403, 'request_failed', 'HTTP 403: an HTML page'
           from paypoll.transactions where reference = 'R3' or reference = 'R2'",
    )
    .await;
    let (code, out, _) = run(paypoll(&database, &["status"])).await;
    assert_eq!(code, 0);
    let lines: Vec<&str> = out.lines().collect();
    assert!(
        lines[0].starts_with("khalti/default is not asked: circuit open for ") && out.contains("(20 polls in a row failed)"),
        "{out}"
    );
    assert!(
        out.contains("dapi/old: 1 payment waits, the oldest due for ") && out.contains("; no running daemon serves this account"),
        "{out}"
    );
    assert!(
        out.contains("khalti/default: 2 payments are unresolved, no_usable_answer; last error: HTTP 403: an HTML page"),
        "{out}"
    );
    assert!(out.contains("2 × khalti/default request_failed: HTTP 403: an HTML page"), "{out}");
    assert!(out.contains("circuit_opened khalti/default: 20 polls in a row failed"), "{out}");
    assert!(!out.contains('\x1b'), "no terminal, no colours: {out:?}");
    let (_, out, _) = run(paypoll(&database, &["status", "--provider", "dapi", "--problems"])).await;
    assert!(out.contains("dapi/old") && !out.contains("khalti/"), "{out}");
    let (code, _, error) = run(paypoll(&database, &["status", "--provider", "paypal"])).await;
    assert!(code == 2 && error.contains("\"paypal\" is no provider that is known here: there are ayoconnect, dapi"), "{error}");
}

#[tokio::test]
async fn parked_transactions_are_counted_exactly_or_at_least() {
    let database = database().await;
    execute(&database, REPLICA).await;
    execute(
        &database,
        "insert into paypoll.transactions (provider, reference) select 'khalti', 'R' || n from generate_series(1, 10001) n;
         update paypoll.transactions set state = 'unresolved', reason = case when reference > 'R9' then 'not_found' else 'gave_up' end;
         insert into paypoll.transactions (provider, reference) values ('khalti', 'none');
         update paypoll.transactions set state = 'unresolved' where reference = 'none'",
    )
    .await;
    let (_, out, _) = run(paypoll(&database, &["status", "--json"])).await;
    let status: Value = serde_json::from_str(&out).unwrap();
    let found: Vec<(Value, i64, Value)> = status["parked"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["reason"].clone(), row["count"].as_i64().unwrap(), row["at_least"].clone()))
        .collect();
    let nines = 1111 - 1;
    assert_eq!(
        found,
        [(json!("gave_up"), 10_001 - nines, json!(null)), (json!("not_found"), nines, json!(null)), (json!(null), 1, json!(null))],
    );
    execute(
        &database,
        "insert into paypoll.transactions (provider, reference) select 'khalti', 'S' || n from generate_series(1, 2000) n;
         update paypoll.transactions set state = 'unresolved', reason = 'gave_up' where reference like 'S%'",
    )
    .await;
    let (_, out, _) = run(paypoll(&database, &["status", "--json"])).await;
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&status["parked"][0]["count"], &status["parked"][0]["at_least"]), (&json!(10_000), &json!(true)));
    let (_, out, _) = run(paypoll(&database, &["status"])).await;
    assert!(out.contains("at least 10,000 payments are unresolved, gave_up"), "{out}");
}

#[tokio::test]
async fn status_watched_through_a_pipe_is_plain_and_ends_when_asked_to() {
    let database = database().await;
    execute(&database, REPLICA).await;
    let mut child = paypoll(&database, &["status", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let code = tokio::task::spawn_blocking(move || {
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let firsts: Vec<String> = lines.filter(|line| line.starts_with("all is well") || line.contains('\x1b')).take(2).collect();
        assert!(firsts.iter().all(|line| line.starts_with("all is well")), "{firsts:?}");
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
        "pending → action_required by the provider's answer, ",
        r#"evidence: HTTP 200, {"state":"REDIRECT_REQUEST"}"#,
        "poll 2, 1ms late: no answer, timeout",
        "no complete answer",
        "no running daemon serves dropayment/default",
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
    assert!(error.starts_with("no transaction has the id or reference \"nothing\": `paypoll list"), "{error}");
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
    let arguments = ["retry", &id.to_string(), "R1", "--as", "alice@desk", "--because", "the provider is back"];
    let (code, out, _) = run(paypoll(&database, &arguments)).await;
    assert_eq!((code, out.lines().last()), (0, Some("1 reopened by alice@desk: the provider is back")), "{out}");
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
    let transitions: Vec<(String, String, String, Option<String>, String)> =
        sqlx::query_as("select from_state, to_state, source, reason, actor from paypoll.transitions order by id")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(transitions.len(), 2);
    let (from, to, source, reason, actor) = &transitions[1];
    assert_eq!((from.as_str(), to.as_str(), source.as_str()), ("unresolved", "pending", "operator"));
    assert_eq!(reason.as_deref(), Some("the provider is back"));
    assert!(actor.ends_with(" (as alice@desk)"), "{actor}");
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
    assert!(lines[0].starts_with("khalti/default: 2 transactions, about 1 s of its whole budget"), "{out}");
    assert!(lines[1].starts_with("reopened") && lines[1].contains("khalti/default good"), "{out}");
    assert!(lines[2].contains("it is succeeded: only unresolved and invalid"), "{out}");
    assert!(lines[3].contains("its initiated_at is") && lines[3].contains("correct that first"), "{out}");
    assert!(lines[4].contains("there is no such transaction"), "{out}");
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
    assert!(code == 0 && out.contains("1 reopened by "), "{out}");
    let pending: Vec<String> = sqlx::query_scalar("select reference from paypoll.transactions where state = 'pending'")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    assert_eq!(pending, ["R1"]);
    assert_eq!(run(paypoll(&database, &arguments)).await.0, 0, "nothing is like that any more");
}

/// Runs it on a terminal at which this is typed.
async fn run_at_terminal(database: &TestDatabase, arguments: &str, typed: &'static [u8]) -> (i32, String) {
    let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_paypoll"));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    command.env("DATABASE_URL", &database.url).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn()?;
        child.stdin.take().map(|mut stdin| stdin.write_all(typed)).transpose()?;
        child.wait_with_output()
    });
    let output = output.await.unwrap().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn retry_of_more_than_a_hundred_asks_whoever_types_it_and_takes_only_a_yes() {
    let database = database().await;
    execute(
        &database,
        "insert into paypoll.transactions (provider, reference) select 'khalti', 'R' || n from generate_series(1, 101) n;
update paypoll.transactions set state = 'unresolved', reason = 'gave_up'",
    )
    .await;
    let pending = "select count(*) from paypoll.transactions where state = 'pending'";
    let pending = async || sqlx::query_scalar::<_, i64>(pending).fetch_one(&database.pool).await.unwrap();
    let question = "Reopen 101 transactions? [y/N]";
    for no in [&b"n\n"[..], b"\n", b"Y?\n"] {
        let (code, out) = run_at_terminal(&database, "retry --provider khalti", no).await;
        assert!(code == 1 && out.contains(question) && out.contains("nothing was changed"), "{code} {out}");
        assert_eq!(pending().await, 0);
    }
    let (code, out) = run_at_terminal(&database, "retry --provider khalti --limit 100", b"").await;
    assert!(code == 0 && !out.contains("[y/N]") && out.contains("100 reopened"), "{code} {out}");
    execute(&database, "update paypoll.transactions set state = 'unresolved', reason = 'gave_up' where state = 'pending'").await;
    let (code, out) = run_at_terminal(&database, "retry --provider khalti", b"y\n").await;
    assert!(code == 0 && out.contains(question) && out.contains("101 reopened"), "{code} {out}");
    assert_eq!(pending().await, 101);
    execute(&database, "update paypoll.transactions set state = 'unresolved', reason = 'gave_up'").await;
    let (code, out) = run_at_terminal(&database, "retry --provider khalti --yes", b"").await;
    assert!(code == 0 && !out.contains("[y/N]"), "{code} {out}");
    assert_eq!(pending().await, 101);
}

#[tokio::test]
async fn retry_takes_references_and_says_how_long_it_takes_and_what_would_come_again() {
    let database = database().await;
    for number in 0..30 {
        insert(&database, "provider, reference", &format!("'khalti', 'R{number}'")).await;
    }
    insert(&database, "provider, account, reference", "'khalti', 'other', 'R1'").await;
    execute(
        &database,
        "update paypoll.transactions set state = 'unresolved', reason = 'no_usable_answer';
         insert into paypoll.polls select id, provider, account, now(), now(), 3, 403, 'request_failed', 'HTTP 403: an HTML page'
           from paypoll.transactions",
    )
    .await;
    let (code, out, error) = run(paypoll(&database, &["retry", "R2", "nobody's"])).await;
    assert_eq!((code, error.as_str()), (1, "1 of 2 transactions cannot be reopened\n"), "{out}");
    assert!(out.contains("not reopened    nobody's: there is no such transaction") && out.contains("khalti/default R2"), "{out}");
    let (code, _, error) = run(paypoll(&database, &["retry", "R1"])).await;
    assert!(code == 1 && error.contains("the reference of several parked transactions: name the id, of"), "{error}");
    let arguments = ["retry", "--provider", "khalti", "--account", "default", "--limit", "20"];
    let (code, out, _) = run(paypoll(&database, &arguments)).await;
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("khalti/default: 20 transactions, about 2 s of its whole budget (10 a second)"), "{out}");
    let warning = "warning: khalti/default: 20 were parked with no_usable_answer (last error: HTTP 403: an HTML page): mend";
    assert!(out.contains(warning) && out.contains("20 reopened by "), "{out}");
    let left: i64 = sqlx::query_scalar("select count(*) from paypoll.transactions where state = 'unresolved'")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!(left, 10, "one was reopened before, of 31");
    let (_, status, _) = run(paypoll(&database, &["status"])).await;
    assert!(status.contains("operator by ") && status.contains("21 × unresolved → pending"), "{status}");
}

#[tokio::test]
async fn a_filter_that_names_nothing_that_exists_is_misuse() {
    let database = database().await;
    insert(&database, "provider, account, reference", "'khalti', 'shop', 'R1'").await;
    execute(&database, "update paypoll.transactions set state = 'unresolved', reason = 'lost by hand'").await;
    for (arguments, told) in [
        (&["--provider", "paypal"][..], "\"paypal\" is no provider that is known here"),
        (&["--account", "shp"], "\"shp\" is no account that is known here: there are khalti/shop"),
        (&["--provider", "dapi", "--account", "shop"], "\"shop\" is no account that is known here: there are none yet"),
        (&["--reason", "windw_over"], "no transaction is parked with it; parked are \"lost by hand\" (1)"),
    ] {
        for command in ["retry", "list"] {
            let (code, out, error) = run(paypoll(&database, &[&[command], arguments].concat())).await;
            assert!(code == 2 && error.contains(told), "{command} {arguments:?}: {code} {out}{error}");
        }
    }
    assert_eq!(run(paypoll(&database, &["retry", "--reason", "window_over"])).await.0, 0, "it may well be that none is");
    let (code, out, _) = run(paypoll(&database, &["retry", "--reason", "lost by hand"])).await;
    assert!(code == 0 && out.contains("1 reopened"), "{out}");
}

/// Of each transaction of a list, what stands under a name.
fn column(list: &Value, name: &str) -> Vec<String> {
    list["transactions"].as_array().unwrap().iter().map(|row| row[name].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn a_list_has_what_is_polled_by_due_time_then_what_has_ended_latest_first() {
    let database = database().await;
    execute(
        &database,
        "insert into paypoll.transactions (provider, account, reference)
         select 'khalti', case when n % 2 = 0 then 'even' else 'odd' end, 'P' || n from generate_series(1, 6) n;
         insert into paypoll.transactions (provider, reference) select 'dapi', 'E' || n from generate_series(1, 6) n;
         update paypoll.transactions set fence = fence + 1, next_poll_at = now() - interval '1 minute' * right(reference, 1)::int
          where provider = 'khalti';
         update paypoll.transactions set state = (array['succeeded', 'failed', 'unresolved'])[1 + right(reference, 1)::int % 3],
                reason = case when right(reference, 1)::int % 3 > 0 then 'because ' || right(reference, 1)::int % 3 end
          where provider = 'dapi';
         update paypoll.transactions set updated_at = now() - interval '1 hour' * right(reference, 1)::int where provider = 'dapi'",
    )
    .await;
    let list = async |arguments: &[&str]| -> Value {
        let (code, out, error) = run(paypoll(&database, &[&["list", "--json"], arguments].concat())).await;
        assert_eq!(code, 0, "{arguments:?}: {error}");
        serde_json::from_str(&out).unwrap()
    };
    let all = ["P6", "P5", "P4", "P3", "P2", "P1", "E1", "E2", "E3", "E4", "E5", "E6"];
    assert_eq!(column(&list(&[]).await, "reference"), all);
    let (mut pages, mut after) = (Vec::new(), None::<String>);
    loop {
        let place = after.clone().map_or_else(Vec::new, |after| vec!["--after".to_owned(), after]);
        let arguments: Vec<&str> = ["--limit", "5"].into_iter().chain(place.iter().map(String::as_str)).collect();
        let page = list(&arguments).await;
        pages.extend(column(&page, "reference"));
        after = page["next"].as_str().map(str::to_owned);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, all, "page by page");
    assert_eq!(column(&list(&["--state", "failed"]).await, "reference"), ["E1", "E4"]);
    assert_eq!(column(&list(&["--state", "failed", "--state", "unresolved"]).await, "reference"), ["E1", "E2", "E4", "E5"]);
    assert_eq!(column(&list(&["--state", "failed", "--reason", "because 1"]).await, "reference"), ["E1", "E4"]);
    assert_eq!(column(&list(&["--reason", "because 2"]).await, "reference"), ["E2", "E5"]);
    assert_eq!(column(&list(&["--provider", "khalti", "--account", "odd"]).await, "reference"), ["P5", "P3", "P1"]);
    assert_eq!(column(&list(&["--account", "odd"]).await, "reference"), ["P5", "P3", "P1"]);
    assert_eq!(column(&list(&["--provider", "dapi", "--older", "210m"]).await, "reference"), ["E4", "E5", "E6"]);
    assert_eq!(column(&list(&["--provider", "dapi", "--since", "150m"]).await, "reference"), ["E1", "E2"]);
    assert_eq!(column(&list(&["--provider", "khalti", "--older", "1h"]).await, "reference"), [""; 0]);
    assert_eq!(column(&list(&["--reference", "E"]).await, "reference"), ["E1", "E2", "E3", "E4", "E5", "E6"]);
    assert_eq!(column(&list(&["--reference", "E", "--state", "succeeded"]).await, "reference"), ["E3", "E6"]);
    let page = list(&["--reference", "P", "--limit", "4"]).await;
    assert_eq!(column(&page, "reference"), ["P2", "P4", "P6", "P1"], "account by account");
    let rest = list(&["--reference", "P", "--after", page["next"].as_str().unwrap()]).await;
    assert_eq!(column(&rest, "reference"), ["P3", "P5"]);
    let near = list(&["--reference", "E4x"]).await;
    assert!(column(&near, "reference").is_empty() && near["near"].to_string().contains("E4"), "{near}");
    let (_, text, _) = run(paypoll(&database, &["list", "--limit", "2"])).await;
    assert!(
        text.contains("REFERENCE") && text.contains("due for 6 min") && text.contains("there are more: add --after 'p~"),
        "{text}"
    );
    let (_, csv, _) = run(paypoll(&database, &["list", "--csv", "--limit", "1000"])).await;
    assert_eq!((csv.lines().count(), csv.matches("id,provider").count()), (13, 1), "{csv}");
}

#[tokio::test]
async fn a_list_never_reads_the_whole_table() {
    let database = database().await;
    execute(
        &database,
        "insert into paypoll.transactions (provider, account, reference)
         select 'khalti', 'a' || n % 5, 'R' || lpad(n::text, 6, '0') from generate_series(1, 30000) n;
         update paypoll.transactions set state = case when reference < 'R020000' then 'succeeded' else 'failed' end,
                reason = case when reference >= 'R020000' then 'why ' || right(reference, 1) end where reference < 'R025000';
         analyze paypoll.transactions;
         set enable_seqscan = on",
    )
    .await;
    // What was read row by row without an index, told by the server itself once a session has reported it.
    let scanned = async || -> (i64, i64) {
        sqlx::query("select pg_stat_force_next_flush()").execute(&database.pool).await.unwrap();
        let sql = "select coalesce(seq_tup_read, 0), coalesce(idx_tup_fetch, 0) from pg_stat_user_tables where schemaname = 'paypoll' and relname = 'transactions'";
        sqlx::query_as(sql).fetch_one(&database.pool).await.unwrap()
    };
    let before = scanned().await;
    for arguments in [
        &[][..],
        &["--state", "succeeded"],
        &["--state", "failed", "--reason", "why 7"],
        &["--account", "a3", "--state", "pending"],
        &["--reference", "R0123"],
        &["--reference", "nothing"],
        &["--provider", "khalti", "--state", "succeeded", "--since", "1h"],
    ] {
        let (code, _, error) = run(paypoll(&database, &[&["list", "--json"], arguments].concat())).await;
        assert_eq!((code, error.as_str()), (0, ""), "{arguments:?}");
    }
    let (code, _, error) = run(paypoll(&database, &["status"])).await;
    assert_eq!((code, error.as_str()), (0, ""));
    let after = scanned().await;
    assert_eq!(after.0 - before.0, 0, "rows read without an index");
    assert!(after.1 - before.1 < 25_000, "rows fetched by an index: {} of 30000", after.1 - before.1);
}

#[tokio::test]
async fn accounts_are_paused_and_resumed_with_who_why_and_until_when() {
    let database = database().await;
    execute(&database, REPLICA).await;
    insert(&database, "provider, account, reference", "'khalti', 'shop', 'R1'").await;
    let arguments = ["pause", "khalti/default", "--because", "maintenance", "--for", "1h", "--as", "alice@desk"];
    let (code, out, error) = run(paypoll(&database, &arguments)).await;
    assert!(
        code == 0 && out.contains("khalti/default is paused until 20") && out.contains(", for 1 h, by alice@desk: maintenance"),
        "{out}{error}"
    );
    let (_, out, _) = run(paypoll(&database, &["status", "--json"])).await;
    let status: Value = serde_json::from_str(&out).unwrap();
    let account = &status["providers"][0];
    assert_eq!((&account["circuit"], &account["paused_because"]), (&json!("paused"), &json!("maintenance")), "{account}");
    assert!(
        account["paused_until"].is_string() && account["paused_by"].as_str().unwrap().ends_with(" (as alice@desk)"),
        "{account}"
    );
    let (_, out, _) = run(paypoll(&database, &["status"])).await;
    assert!(out.contains("khalti/default is not asked: paused for ") && out.contains("account_paused khalti/default by "), "{out}");
    let (code, out, _) = run(paypoll(&database, &["pause", "khalti", "--because", "all of it"])).await;
    assert!(
        code == 0 && out.contains("khalti/default is paused until `paypoll resume`") && out.contains("khalti/shop is paused"),
        "{out}"
    );
    let (code, out, _) = run(paypoll(&database, &["resume", "khalti"])).await;
    assert!(code == 0 && out.contains("khalti/default is asked again") && out.contains("khalti/shop is asked again"), "{out}");
    let (code, out, _) = run(paypoll(&database, &["resume", "khalti/shop"])).await;
    assert!(code == 0 && out.contains("khalti/shop was not paused"), "{out}");
    for arguments in [
        &["pause", "khalti/nobody", "--because", "x"][..],
        &["pause", "paypal", "--because", "x"],
        &["pause", "khalti", "--because", " "],
    ] {
        assert_eq!(run(paypoll(&database, arguments)).await.0, 2, "{arguments:?}");
    }
    assert_eq!(run(paypoll(&database, &["pause", "dapi", "--because", "x"])).await.0, 1, "no account of it is known");
}

#[tokio::test]
async fn a_probe_is_sent_on_demand_where_a_circuit_is_open_and_says_why_not_where_none_would_be() {
    let database = database().await;
    execute(&database, REPLICA).await;
    let (code, out, _) = run(paypoll(&database, &["probe", "khalti/default"])).await;
    assert!(code == 0 && out.contains("its circuit is closed"), "{out}");
    execute(
        &database,
        "update paypoll.accounts set circuit_since = now(), circuit_reason = 'it is down', probe_at = now() + interval '1 hour'",
    )
    .await;
    let (code, out, _) = run(paypoll(&database, &["probe", "khalti/default"])).await;
    assert!(code == 0 && out.contains("the next probe is sent now") && out.contains("it is down"), "{out}");
    let due: bool = sqlx::query_scalar("select probe_at <= now() from paypoll.accounts").fetch_one(&database.pool).await.unwrap();
    assert!(due);
    run(paypoll(&database, &["pause", "khalti/default", "--because", "x"])).await;
    let (code, _, error) = run(paypoll(&database, &["probe", "khalti/default"])).await;
    assert!(code == 1 && error.contains("paused by an operator"), "{error}");
    assert_eq!(run(paypoll(&database, &["probe", "khalti"])).await.0, 2);
}

#[tokio::test]
async fn show_says_who_changed_a_payment_when_it_gives_up_and_where_it_stands_in_the_queue() {
    let database = database().await;
    execute(&database, REPLICA).await;
    execute(
        &database,
        "insert into paypoll.transactions (provider, reference) select 'khalti', 'R' || n from generate_series(1, 50) n;
         update paypoll.transactions set fence = fence + 1, next_poll_at = now() - interval '100 s' + interval '1 s' * substr(reference, 2)::int",
    )
    .await;
    let (code, out, _) = run(paypoll(&database, &["show", "R41"])).await;
    assert_eq!(code, 0);
    assert!(out.contains("more is due than the budget allows, position about 41 of 50, in about 5 s"), "{out}");
    assert!(!out.contains("action     "), "there is none: {out}");
    assert!(out.contains("gives up   ") && out.contains("then unresolved with reason gave_up"), "{out}");
    let mut session = sqlx::PgConnection::connect(&database.url).await.unwrap();
    sqlx::query("set paypoll.actor = 'bob@desk'").execute(&mut session).await.unwrap();
    sqlx::query("update paypoll.transactions set state = 'failed', reason = 'by phone' where reference = 'R41'")
        .execute(&mut session)
        .await
        .unwrap();
    let (_, out, _) = run(paypoll(&database, &["show", "R41"])).await;
    assert!(out.contains("pending → failed by another writer, ") && out.contains(" (as bob@desk): by phone"), "{out}");
    assert!(out.contains("failed is final: nothing more is asked."), "{out}");
    let (_, out, _) = run(paypoll(&database, &["show", "R41", "--json"])).await;
    let life: Value = serde_json::from_str(&out).unwrap();
    assert!(life["transitions"][0]["actor"].as_str().unwrap().ends_with(" (as bob@desk)"), "{life}");
}

#[tokio::test]
async fn commands_that_ask_no_provider_need_no_secret() {
    let database = database().await;
    execute(&database, REPLICA).await;
    let without = |arguments: &[&str]| {
        let mut command = paypoll(&database, arguments);
        command
            .env("PAYPOLL__PROVIDERS__KHALTI__ENABLED", "true")
            .env("PAYPOLL__PROVIDERS__KHALTI__ACCOUNTS__DEFAULT__TOKEN_FILE", "/no/such/secret")
            .env("PAYPOLL__PROVIDERS__AYOCONNECT__ENABLED", "true")
            .env("PAYPOLL__PROVIDERS__AYOCONNECT__ACCOUNTS__DEFAULT__CLIENT_ID", "x");
        command
    };
    insert(&database, "provider, reference", "'khalti', 'R1'").await;
    for arguments in [
        &["status"][..],
        &["show", "R1"],
        &["list"],
        &["audit"],
        &["migrate"],
        &["retry", "--reason", "gave_up"],
        &["pause", "khalti/default", "--because", "x"],
        &["resume", "khalti/default"],
        &["config"],
    ] {
        let (code, out, error) = run(without(arguments)).await;
        assert_eq!((code, error.as_str()), (0, ""), "{arguments:?}: {out}");
    }
    for arguments in [&["check"][..], &["run"]] {
        let (code, _, error) = run(without(arguments)).await;
        assert_eq!(code, 2, "{arguments:?}: {error}");
        for part in ["token_file = /no/such/secret", "merchant_id is missing", "channel_id is missing", "client_secret is missing"]
        {
            assert!(error.contains(part), "{part:?} is missing in one go: {error}");
        }
    }
}

#[tokio::test]
async fn config_shows_where_each_setting_comes_from_and_no_secret() {
    let database = database().await;
    let mut command = with_khalti(paypoll(&database, &["config"]), "127.0.0.1:9500");
    command.env("PAYPOLL__LOG__FORMAT", "text");
    let (code, out, error) = run(command).await;
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(out.contains("log.format = \"text\"") && out.contains("# the environment: PAYPOLL__LOG__FORMAT"), "{out}");
    assert!(out.contains("worker.lease = \"15s\"") && out.contains("# the defaults"), "{out}");
    assert!(!out.contains("canary") && !out.contains(&database.url), "{out}");
    let mut misspelt = paypoll(&database, &["status"]);
    misspelt.env("PAYPOLL_LOG_FORMAT", "text");
    let (code, _, error) = run(misspelt).await;
    assert!(code == 2 && error.contains("PAYPOLL_LOG_FORMAT is not read") && error.contains("PAYPOLL__LOG__FORMAT?"), "{error}");
    let mut kubernetes = paypoll(&database, &["status"]);
    kubernetes.env("PAYPOLL_SERVICE_HOST", "10.0.0.1").env("PAYPOLL_PORT_9464_TCP_PORT", "9464");
    assert_eq!(run(kubernetes).await.0, 0, "variables that an orchestrator makes are not ours");
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_is_named_by_host_and_port() {
    let database = database().await;
    let mut command = paypoll(&database, &["status"]);
    command.env("DATABASE_URL", "postgres://nobody:canary@127.0.0.1:1/payments");
    let (code, _, error) = run(command).await;
    assert!(code == 1 && error.contains("127.0.0.1:1, database payments,") && !error.contains("canary"), "{error}");
}

#[tokio::test]
async fn migrate_lists_its_steps() {
    let url = crate::support::empty_database().await;
    let migrate = async || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paypoll"));
        command.env_clear().env("DATABASE_URL", &url).arg("migrate");
        run(command).await
    };
    // At once: an index that is made concurrently must not wait for a process that waits for its
    // turn.
    let (first, second, third) = tokio::join!(migrate(), migrate(), migrate());
    for (code, out, error) in [&first, &second, &third] {
        assert_eq!((*code, error.as_str()), (0, ""), "{out}");
    }
    let outs = [first.1, second.1, third.1].concat();
    assert_eq!(outs.matches("applied 0001 transactions").count(), 1, "{outs}");
    assert_eq!((outs.matches("nothing to do").count(), outs.matches("applied 0013 finished").count()), (2, 1), "{outs}");
    let lacking = "select count(*) from pg_inherits i where i.inhparent = 'paypoll.polls'::regclass
                      and not exists (select from pg_index x join pg_inherits h on h.inhrelid = x.indexrelid
                                       where x.indrelid = i.inhrelid and h.inhparent = 'paypoll.polls_errors'::regclass and x.indisvalid)";
    let mut session = sqlx::PgConnection::connect(&url).await.unwrap();
    let lacking: i64 = sqlx::query_scalar(lacking).fetch_one(&mut session).await.unwrap();
    assert_eq!(lacking, 0, "every day of the journal has the index of errors");
    let (_, out, _) = migrate().await;
    assert!(out.starts_with("nothing to do\nthe schema paypoll is at version "), "{out}");
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

/// The report without its findings.
async fn audit(database: &TestDatabase, arguments: &[&str]) -> (i32, Value) {
    let (code, out, error) = run(paypoll(database, &[&["audit", "--json"], arguments].concat())).await;
    let mut report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}"));
    let findings = report.as_object_mut().unwrap().remove("findings").unwrap();
    for finding in findings.as_array().unwrap() {
        assert!(finding["kind"].is_string() && finding["at"].is_string() && finding["detail"].is_string(), "{finding}");
    }
    (code, report)
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

/// Where the journal is distributed over other machines. `PAYPOLL_TEST_CITUS` is the address of a database with the extension Citus, as
/// its owner; its schema `paypoll` is dropped.
#[tokio::test]
async fn an_audit_says_the_same_of_a_journal_that_citus_distributes() {
    let Ok(url) = std::env::var("PAYPOLL_TEST_CITUS") else {
        // Past the harness, which keeps to itself what a test prints.
        let skipped =
            "SKIPPED: PAYPOLL_TEST_CITUS names no database with Citus: the audit was not tried on a distributed journal\n";
        std::io::Write::write_all(&mut std::io::stderr(), skipped.as_bytes()).unwrap();
        return;
    };
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    let (distributed, local) = (TestDatabase { url, pool }, database().await);
    execute(&distributed, "drop schema if exists paypoll cascade").await;
    paypoll::store::migrate(&distributed.url).await.unwrap();
    for database in [&distributed, &local] {
        execute(database, CLEAN).await;
        execute(database, DOCTORED).await;
    }
    execute(&distributed, "select create_distributed_table('paypoll.polls', 'transaction_id')").await;
    for arguments in [&[][..], &["--since", "40m"]] {
        let (code, report) = audit(&distributed, arguments).await;
        assert_eq!((code, &report), (1, &audit(&local, arguments).await.1));
        assert!(report["breaches"].as_u64().unwrap() > 0, "{report}");
    }
    execute(&distributed, "drop schema paypoll cascade").await;
}

/// A poll that two transactions miss, one that comes too early, a transaction that was never polled, and one whose row is gone.
const DOCTORED: &str = "
    update paypoll.polls set sent_at = sent_at - interval '1.5 s'
     where (transaction_id, sent_at) = (select p.transaction_id, p.sent_at from paypoll.polls p join paypoll.transactions t on t.id = p.transaction_id
                                         where t.reference = 'dropayment1' order by p.sent_at offset 5 limit 1);
    delete from paypoll.polls
     where sent_at = (select p.sent_at from paypoll.polls p join paypoll.transactions t on t.id = p.transaction_id
                       where t.reference = 'dusupay1' order by p.sent_at offset 9 limit 1);
    insert into paypoll.transactions (provider, reference, initiated_at) values ('dusupay', 'never', now() - interval '90 minutes');
    update paypoll.transactions set created_at = initiated_at where reference = 'never';
    insert into paypoll.polls select gen_random_uuid(), 'dusupay', 'default', at, at, 1, 200, 'pending', null
      from (select now() - interval '30 minutes' + n * interval '30 ms' as at from generate_series(1, 21) n) x";

/// What stays here and what may be elsewhere is put together piece by piece.
#[tokio::test]
async fn an_audit_finds_transactions_without_polls_and_polls_without_a_transaction() {
    let database = database().await;
    execute(&database, CLEAN).await;
    execute(&database, DOCTORED).await;
    let all = json!({"providers": [line("dropayment", 26, [0, 1, 0, 0, 0]), line("dusupay", 45, [0, 0, 1, 0, 3])], "breaches": 2});
    assert_eq!(audit(&database, &[]).await, (1, all));
    let late = audit(&database, &["--since", "40m"]).await;
    assert_eq!((late.0, &late.1["breaches"]), (1, &1.into()), "{late:?}");
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
        let (_, out, _) = run(paypoll(&database, &["audit", "--json"])).await;
        let report: Value = serde_json::from_str(&out).unwrap();
        let findings = report["findings"].as_array().unwrap();
        assert_eq!(findings.len() as u32, counts.iter().sum::<u32>(), "{name}: {report}");
        assert!(findings.iter().any(|finding| finding["detail"].as_str().unwrap().contains(named)), "{name}: {report}");
        assert!(findings.iter().all(|finding| finding["transaction_id"].is_string() || finding["kind"] == "rate"), "{report}");
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

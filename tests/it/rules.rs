//! The rules that the database itself enforces for every writer: what a row may hold, who may
//! change what, who signs a change.

use crate::support::{TestDatabase, database};
use paypoll::providers;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use uuid::Uuid;

async fn connect(database: &TestDatabase) -> PgConnection {
    PgConnection::connect(&database.url).await.unwrap()
}

/// Runs the statements, which succeed.
async fn execute(connection: &mut PgConnection, statements: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(connection).await;
    done.unwrap_or_else(|error| panic!("{statements}: {error}"));
}

/// The error of the statement: its code and its sentence.
async fn refusal(connection: &mut PgConnection, statement: &str) -> (String, String) {
    let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(connection).await;
    let Err(error) = done else { panic!("this was not refused: {statement}") };
    let error = error.into_database_error().unwrap();
    (error.code().unwrap_or_default().into_owned(), error.message().to_owned())
}

/// The one value of the query, as text.
async fn text(connection: &mut PgConnection, query: &str) -> String {
    let row = sqlx::query(AssertSqlSafe(format!("select ({query})::text"))).fetch_one(connection).await.unwrap();
    row.get::<Option<String>, _>(0).unwrap_or_else(|| "null".into())
}

async fn insert(connection: &mut PgConnection, reference: &str) -> Uuid {
    sqlx::query_scalar("insert into paypoll.transactions (provider, reference) values ('khalti', $1) returning id")
        .bind(reference)
        .fetch_one(connection)
        .await
        .unwrap()
}

#[tokio::test]
async fn the_database_knows_every_compiled_provider_and_no_other() {
    let database = database().await;
    let mut connection = connect(&database).await;
    let names = "select string_agg(name, ' ' order by registered_at, ctid) from paypoll.providers where sha256 is null";
    assert_eq!(text(&mut connection, names).await, providers::REGISTRY.map(|descriptor| descriptor.name).join(" "));
    assert_eq!(
        refusal(&mut connection, "insert into paypoll.transactions (provider, reference) values ('paystack', 'R1')").await,
        (
            "23514".into(),
            "provider 'paystack' is not known to paypoll: it is one of dropayment, dusupay, ayoconnect, khalti, dapi".into()
        )
    );
}

#[tokio::test]
async fn a_declared_provider_can_be_named_once_it_is_registered_and_its_secrets_are_kept_as_such() {
    let database = database().await;
    let mut connection = connect(&database).await;
    let hash = "0".repeat(64);
    let register =
        |name: &str, keys: &str, hash: &str| format!("select paypoll.register_provider('{name}', '{keys}', '{hash}', 1)");
    execute(&mut connection, &register("paystack", "{}", &hash)).await;
    execute(&mut connection, &register("paystack", "{pin}", &hash)).await;
    execute(&mut connection, &register("paystack", "{}", &hash)).await;
    execute(&mut connection, &register("paystack", "{otp}", &"1".repeat(64))).await;
    execute(
        &mut connection,
        r#"insert into paypoll.transactions (provider, reference, params) values ('paystack', 'R1', '{"pin": "1", "otp": "2", "id": 3}')"#,
    )
    .await;
    let shown = "select paypoll.shown_params(id) from paypoll.transactions";
    assert_eq!(text(&mut connection, shown).await, r#"{"id": 3, "otp": "[redacted]", "pin": "[redacted]"}"#);
    execute(&mut connection, "select paypoll.settle('paystack', 'default', 'R1', 'failed')").await;
    assert_eq!(text(&mut connection, "select params from paypoll.transactions").await, r#"{"id": 3}"#);
    let (code, words) = refusal(&mut connection, &register("dapi", "{}", &hash)).await;
    assert_eq!((&*code, &*words), ("23505", "provider 'dapi' is compiled into paypoll: a declaration needs a name of its own"));
}

#[tokio::test]
async fn params_of_a_provider_that_is_no_longer_registered_may_all_be_secret() {
    let database = database().await;
    let mut connection = connect(&database).await;
    execute(&mut connection, "select paypoll.register_provider('paystack', '{}', repeat('0', 64), 1)").await;
    let row = r#"insert into paypoll.transactions (provider, reference, params) values ('paystack', 'R1', '{"x": "canary"}')"#;
    execute(&mut connection, row).await;
    execute(&mut connection, "delete from paypoll.providers where name = 'paystack'").await;
    let shown = text(&mut connection, "select paypoll.shown_params(id) from paypoll.transactions").await;
    assert_eq!(shown, r#"{"x": "[redacted]"}"#);
    execute(&mut connection, "update paypoll.transactions set state = 'failed'").await;
    assert_eq!(text(&mut connection, "select params from paypoll.transactions").await, "{}");
}

#[tokio::test]
async fn every_change_of_a_state_is_signed_with_the_login_and_the_name_that_the_session_gives() {
    let database = database().await;
    let mut connection = connect(&database).await;
    let id = insert(&mut connection, "R1").await;
    execute(&mut connection, "update paypoll.transactions set state = 'unresolved'").await;
    execute(&mut connection, "set paypoll.actor = 'alice@desk'").await;
    execute(&mut connection, "select paypoll.settle('khalti', 'default', 'R1', 'failed')").await;
    execute(&mut connection, &format!("select paypoll.override_state('{id}', 'succeeded', 'paid in cash')")).await;
    execute(
        &mut connection,
        &format!(
            "set paypoll.actor = ''; insert into paypoll.transitions (transaction_id, from_state, to_state, source, actor)
             values ('{id}', 'pending', 'failed', 'operator', 'somebody else'), ('{id}', 'pending', 'failed', 'operator', null)"
        ),
    )
    .await;
    let login = text(&mut connection, "select session_user").await;
    let signed = text(&mut connection, "select string_agg(actor, ', ' order by id) from paypoll.transitions").await;
    assert_eq!(signed, format!("{login}, {login} (as alice@desk), {login} (as alice@desk), {login}, {login}"));
    let agree = "select paypoll.actor() = session_user";
    assert_eq!(text(&mut connection, agree).await, "true");
}

#[tokio::test]
async fn a_paused_account_says_who_paused_it_why_and_until_when() {
    let database = database().await;
    let mut connection = connect(&database).await;
    execute(&mut connection, "set paypoll.actor = 'alice@desk'").await;
    let login = text(&mut connection, "select session_user").await;
    let pause = "select paypoll.pause('khalti', 'shop', 'their maintenance', now() + interval '2 hours')";
    execute(&mut connection, pause).await;
    let row =
        "select concat_ws('|', paused_because, paused_by, paused_until - now() > interval '1 hour', paused_at <= clock_timestamp())
                 from paypoll.accounts where provider = 'khalti' and account = 'shop'";
    assert_eq!(text(&mut connection, row).await, format!("their maintenance|{login} (as alice@desk)|t|t"));
    execute(&mut connection, "select paypoll.pause('khalti', 'shop', 'until they say so')").await;
    let open_ended = "select paused_because || (paused_until is null) from paypoll.accounts";
    assert_eq!(text(&mut connection, open_ended).await, "until they say sotrue");
    let resume = "select paypoll.resume('khalti', 'shop')";
    assert_eq!(text(&mut connection, resume).await, "true");
    assert_eq!(text(&mut connection, resume).await, "false");
    let row = "select num_nulls(paused_at, paused_until, paused_because, paused_by) from paypoll.accounts";
    assert_eq!(text(&mut connection, row).await, "4");
}

#[tokio::test]
async fn a_pause_without_a_reason_or_for_nobody_is_refused() {
    let database = database().await;
    let mut connection = connect(&database).await;
    for (arguments, words) in [
        ("'khalti', 'default', ''", "a pause needs a reason"),
        ("'khalti', 'default', null", "a pause needs a reason"),
        ("'khalti', 'default', repeat('x', 2001)", "the reason has 2001 characters: at most 2000 are allowed"),
        ("'khalti', '', 'x'", "account has 0 characters: it must have 1 to 128"),
        ("'nobody', 'default', 'x'", "provider 'nobody' is not known to paypoll"),
        ("null, 'default', 'x'", "provider null is not known to paypoll"),
        ("'khalti', 'default', 'x', timestamptz '2020-01-01'", "a pause cannot last until 2020-01-01"),
        ("'khalti', 'default', 'x', 'infinity'", "a pause cannot last until infinity"),
    ] {
        let (code, said) = refusal(&mut connection, &format!("select paypoll.pause({arguments})")).await;
        assert!(code == "23514" && said.starts_with(words), "{arguments}: {code} {said}");
    }
    let (_, said) = refusal(&mut connection, "select paypoll.resume('nobody', 'default')").await;
    assert!(said.starts_with("provider 'nobody' is not known to paypoll"), "{said}");
}

/// A correction that no row may have, and how its error begins.
const IMPOSSIBLE: &[(&str, &str)] = &[
    ("provider = 'dapi'", "transaction "),
    ("reference = ''", "reference has 0 characters"),
    ("reference = repeat('x', 513)", "reference has 513 characters: it must have 1 to 512"),
    ("reference = null", "reference is null"),
    ("account = ''", "account has 0 characters"),
    ("account = repeat('x', 129)", "account has 129 characters: it must have 1 to 128"),
    ("account = null", "account is null"),
    // It would be a hundredth of that when it is compressed.
    ("params = jsonb_build_object('x', repeat('x', 65536))", "params has 65545 bytes: at most 65536 are allowed"),
    ("params = null", "params is null"),
    ("amount = -0.01", "amount -0.01 is below zero"),
    ("amount = 'NaN'", "amount is NaN: it must be a number"),
    ("amount = 'Infinity'", "amount is Infinity: it must be a number"),
    ("amount = 1e18", "amount has 19 digits before the point: at most 18 are allowed"),
    ("amount = 0.12345678901", "amount has 11 digits behind the point: at most 10 are allowed"),
    ("currency = 'US'", "currency 'US' has 2 characters: it must be three letters"),
    ("currency = 'EURO'", "currency 'EURO' has 4 characters"),
    ("currency = E'US\\n'", "currency 'US\n' has 3 characters"),
    ("currency = 'ÜSD'", "currency 'ÜSD' has 3 characters"),
    ("currency = repeat('x', 150000000)", "currency 'xxxxxxxxxxxxxxxxxxxx' has 150000000 characters"),
];

#[tokio::test]
async fn every_update_is_checked_like_an_insert_whatever_else_it_changes() {
    let database = database().await;
    let mut connection = connect(&database).await;
    insert(&mut connection, "R1").await;
    let times = [
        ("initiated_at = now() + interval '10 years'", "initiated_at "),
        ("initiated_at = 'infinity'", "initiated_at infinity lies"),
        ("initiated_at = '1999-12-31'", "initiated_at 1999-12-31"),
        ("initiated_at = null", "initiated_at null lies"),
    ];
    for (correction, words) in IMPOSSIBLE.iter().chain(&times) {
        for beside in
            ["", ", state = 'failed'", ", state = 'succeeded', reason = 'paid'", ", next_poll_at = now()", ", fence = fence + 1"]
        {
            let update = format!("update paypoll.transactions set {correction}{beside}");
            let (code, said) = refusal(&mut connection, &update).await;
            assert!(["23514", "23001"].contains(&&*code) && said.starts_with(words), "{update}: {code} {said}");
        }
    }
    assert_eq!(text(&mut connection, "select state || fence from paypoll.transactions").await, "pending0");
}

#[tokio::test]
async fn an_insert_with_a_value_out_of_bounds_is_refused_with_its_name_its_size_and_the_bound() {
    let database = database().await;
    let mut connection = connect(&database).await;
    for (assignment, words) in IMPOSSIBLE.iter().skip(1) {
        let (column, value) = assignment.split_once(" = ").unwrap();
        let reference = if column == "reference" { "" } else { ", reference" };
        let beside = if column == "reference" { "" } else { ", 'R1'" };
        let insert = format!("insert into paypoll.transactions (provider{reference}, {column}) select 'khalti'{beside}, {value}");
        let (code, said) = refusal(&mut connection, &insert).await;
        assert!(code == "23514" && said.starts_with(words), "{insert}: {code} {said}");
    }
    for column in ["id", "initiated_at", "state", "provider"] {
        let named = if column == "provider" { "provider, reference" } else { "reference, provider" };
        let (first, second) = if column == "provider" { ("null", "'R1'") } else { ("'R1'", "'khalti'") };
        let more = if column == "provider" { String::new() } else { format!(", {column}") };
        let value = if column == "provider" { "" } else { ", null" };
        let insert = format!("insert into paypoll.transactions ({named}{more}) values ({first}, {second}{value})");
        let (code, said) = refusal(&mut connection, &insert).await;
        assert!(code == "23514" && said.contains("null"), "{insert}: {code} {said}");
    }
    assert_eq!(text(&mut connection, "select count(*) from paypoll.transactions").await, "0");
}

#[tokio::test]
async fn values_at_their_bounds_are_taken_and_a_currency_is_kept_in_capitals() {
    let database = database().await;
    let mut connection = connect(&database).await;
    execute(
        &mut connection,
        "insert into paypoll.transactions (provider, account, reference, params, amount, currency)
         values ('khalti', repeat('a', 128), repeat('r', 512), jsonb_build_object('x', repeat('x', 65527)),
                 999999999999999999.9999999999, 'npr'),
                ('khalti', 'a', 'r', '{}', 10.50, null), ('khalti', 'a', 's', '{}', '1.5000000000000000'::numeric(38, 18), 'Usd');
         update paypoll.transactions set account = 'b', currency = 'eur' where reference = 'r'",
    )
    .await;
    let rows = "select string_agg(concat_ws(' ', amount, currency), ', ' order by length(account) desc, account, reference) from paypoll.transactions";
    assert_eq!(text(&mut connection, rows).await, "999999999999999999.9999999999 NPR, 1.5 USD, 10.50 EUR");
}

#[tokio::test]
async fn what_is_said_with_a_verdict_has_bounds_too() {
    let database = database().await;
    let mut connection = connect(&database).await;
    insert(&mut connection, "R1").await;
    let settle = |rest: &str| format!("select paypoll.settle('khalti', 'default', 'R1', 'failed', {rest})");
    for (statement, words) in [
        (settle("repeat('x', 257)"), "provider_state has 257 characters: at most 256 are allowed"),
        (settle("null, repeat('x', 2001)"), "reason has 2001 characters: at most 2000 are allowed"),
        (settle("null, null, to_jsonb(repeat('x', 65536))"), "evidence has 65538 bytes: at most 65536 are allowed"),
        ("update paypoll.transactions set state = 'failed', reason = repeat('x', 2001)".into(), "reason has 2001 characters"),
        ("update paypoll.transactions set provider_state = repeat('x', 257)".into(), "provider_state has 257 characters"),
        (
            "select paypoll.override_state(id, 'failed', repeat('x', 2001)) from paypoll.transactions".into(),
            "reason has 2001 characters",
        ),
    ] {
        let (code, said) = refusal(&mut connection, &statement).await;
        assert!(code == "23514" && said.starts_with(words), "{statement}: {code} {said}");
    }
    execute(&mut connection, &settle("repeat('x', 256), repeat('x', 2000), to_jsonb(repeat('x', 65534))")).await;
}

#[tokio::test]
async fn a_hand_that_corrects_a_row_cannot_hide_it_meanwhile() {
    let database = database().await;
    let mut connection = connect(&database).await;
    insert(&mut connection, "R1").await;
    execute(&mut connection, "update paypoll.transactions set amount = 5, next_poll_at = '9000-01-01'").await;
    assert_eq!(text(&mut connection, "select next_poll_at <= now() from paypoll.transactions").await, "true");
    execute(&mut connection, "update paypoll.transactions set amount = 6, next_poll_at = null").await;
    assert_eq!(text(&mut connection, "select next_poll_at <= now() from paypoll.transactions").await, "true");
}

/// Writes the row `old` back as a whole, with some of its columns changed, as many an ORM does.
async fn write_back(connection: &mut PgConnection, old: &str, changes: &str) -> Result<(), (String, String)> {
    let columns = text(
        connection,
        "select string_agg(attname, ', ') from pg_attribute
          where attrelid = 'paypoll.transactions'::regclass and attnum > 0 and not attisdropped",
    )
    .await;
    let statement = format!(
        "update paypoll.transactions t set ({columns}) = (select {columns} from jsonb_populate_record(null::paypoll.transactions,
            {} || '{changes}')) where reference = 'R1'",
        format_args!("'{}'::jsonb", old.replace('\'', "''"))
    );
    match sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let error = error.into_database_error().unwrap();
            Err((error.code().unwrap_or_default().into_owned(), error.message().to_owned()))
        }
    }
}

#[tokio::test]
async fn a_row_that_is_written_back_as_a_whole_is_taken_where_nothing_happened_meanwhile_and_refused_where_something_did() {
    let database = database().await;
    let mut connection = connect(&database).await;
    let id = insert(&mut connection, "R1").await;
    let read = "select to_jsonb(t) from paypoll.transactions t";
    let fresh = text(&mut connection, read).await;
    write_back(&mut connection, &fresh, r#"{"currency": "npr"}"#).await.unwrap();
    assert_eq!(text(&mut connection, "select currency || fence from paypoll.transactions").await, "NPR1");

    let before_the_claim = text(&mut connection, read).await;
    execute(&mut connection, "update paypoll.transactions set fence = fence + 1, owner = 7, failures = 2").await;
    let (code, said) = write_back(&mut connection, &before_the_claim, r#"{"currency": "USD"}"#).await.unwrap_err();
    assert_eq!(code, "23001");
    assert!(said.starts_with(&format!("transaction {id}: only the daemon writes fence, ")), "{said}");
    assert!(said.contains("failures; where a whole row was written back, it has changed since it was read"), "{said}");

    let pending = text(&mut connection, read).await;
    let succeed = "update paypoll.transactions set fence = fence + 1, owner = null, state = 'succeeded', next_poll_at = null";
    execute(&mut connection, succeed).await;
    assert_eq!(write_back(&mut connection, &pending, r#"{"currency": "USD"}"#).await.unwrap_err().0, "23001");
    for fence in 0..9 {
        let failed = format!("update paypoll.transactions set state = 'failed', fence = {fence}");
        assert_eq!(refusal(&mut connection, &failed).await.0, "23001", "{failed}");
    }
    assert_eq!(text(&mut connection, "select state from paypoll.transactions").await, "succeeded");
}

#[tokio::test]
async fn what_was_asked_about_cannot_be_corrected_once_it_is_final() {
    let database = database().await;
    let mut connection = connect(&database).await;
    insert(&mut connection, "R1").await;
    execute(&mut connection, "select paypoll.settle('khalti', 'default', 'R1', 'succeeded')").await;
    for correction in
        ["account = 'b'", "reference = 'R2'", "params = '{\"x\": 1}'", "amount = 9", "currency = 'EUR'", "initiated_at = now()"]
    {
        for beside in ["", ", fence = fence + 1", ", state = 'failed'"] {
            let (code, said) = refusal(&mut connection, &format!("update paypoll.transactions set {correction}{beside}")).await;
            assert!(code == "23001" && said.contains("is already succeeded"), "{correction}{beside}: {code} {said}");
        }
    }
    // The reason is none of it.
    execute(&mut connection, "update paypoll.transactions set reason = 'see ticket 77'").await;
}

#[tokio::test]
async fn a_final_state_changes_through_an_override_and_through_nothing_else() {
    let database = database().await;
    let mut connection = connect(&database).await;
    let id = insert(&mut connection, "R1").await;
    execute(&mut connection, "select paypoll.settle('khalti', 'default', 'R1', 'succeeded')").await;
    execute(&mut connection, include_str!("../../deploy/roles.sql")).await;
    let change = "update paypoll.transactions set state = 'failed', fence = fence + 1";
    for (role, beside) in [("none", ""), ("paypoll_daemon", ""), ("paypoll_daemon", "set paypoll.override = 'ID'; ")] {
        let beside = beside.replace("ID", &id.to_string());
        let (code, said) = refusal(&mut connection, &format!("set role {role}; {beside}{change}")).await;
        assert!(code == "23001" && said.contains("only through paypoll.override_state"), "{role}: {code} {said}");
    }
    execute(&mut connection, "reset role; reset paypoll.override").await;
    execute(&mut connection, &format!("select paypoll.override_state('{id}', 'failed', 'the bank says so')")).await;
    assert_eq!(refusal(&mut connection, change.replace("failed", "refunded").as_str()).await.0, "23001", "once is once");
    execute(&mut connection, &format!("select paypoll.override_state('{id}', 'unresolved', 'who knows')")).await;
    let history = "select string_agg(to_state || ' ' || source, ', ' order by id) from paypoll.transitions";
    assert_eq!(text(&mut connection, history).await, "succeeded external, failed operator, unresolved operator");
}

#[tokio::test]
async fn an_action_outlives_the_window_and_not_the_answer() {
    let database = database().await;
    let mut connection = connect(&database).await;
    insert(&mut connection, "R1").await;
    let ask = r#"update paypoll.transactions set fence = fence + 1, state = 'action_required', action = '{"url": "https://x"}'"#;
    let action = "select action from paypoll.transactions";
    for park in [
        "update paypoll.transactions set fence = fence + 1, state = 'unresolved', reason = 'gave_up', next_poll_at = null",
        "update paypoll.transactions set state = 'unresolved', reason = 'an operator'",
        "select paypoll.settle('khalti', 'default', 'R1', 'unresolved')",
    ] {
        execute(&mut connection, ask).await;
        execute(&mut connection, park).await;
        assert_eq!(text(&mut connection, action).await, r#"{"url": "https://x"}"#, "{park}");
        execute(&mut connection, "update paypoll.transactions set fence = fence + 1, state = 'pending'").await;
        assert_eq!(text(&mut connection, action).await, "null");
    }
    execute(&mut connection, ask).await;
    execute(&mut connection, "update paypoll.transactions set state = 'failed'").await;
    assert_eq!(text(&mut connection, action).await, "null");
}

#[tokio::test]
async fn a_row_from_before_the_bounds_can_be_corrected_and_settled() {
    let database = database().await;
    let mut connection = connect(&database).await;
    execute(
        &mut connection,
        "alter table paypoll.transactions disable trigger user;
         insert into paypoll.transactions (provider, account, reference, params, amount, currency, reason, provider_state, next_poll_at)
         select 'khalti', repeat('a', 5000), 'R' || n, jsonb_build_object('x', repeat('x', 200000)), -1e30, 'rupees',
                repeat('r', 5000), repeat('s', 5000), now() from generate_series(1, 3) n;
         alter table paypoll.transactions enable trigger user;
         update paypoll.transactions set reference = 'R4' where reference = 'R3';
         update paypoll.transactions set fence = fence + 1, owner = 7;
         update paypoll.transactions set fence = fence + 1, owner = null, state = 'succeeded', next_poll_at = null where reference = 'R1';
         update paypoll.transactions set state = 'failed' where reference = 'R2';
         select paypoll.settle('khalti', repeat('a', 5000), 'R4', 'failed')",
    )
    .await;
    let states = "select string_agg(state, ' ' order by reference) from paypoll.transactions";
    assert_eq!(text(&mut connection, states).await, "succeeded failed failed");
}

/// Everything that the server sends about the error of the statement.
async fn whole_error(connection: &mut PgConnection, statement: &str) -> String {
    let error = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(connection).await.expect_err(statement);
    let error = error.into_database_error().unwrap();
    let error = error.downcast_ref::<sqlx::postgres::PgDatabaseError>();
    format!("{} | {:?} | {:?} | {:?}", error.message(), error.detail(), error.hint(), error.r#where())
}

#[tokio::test]
async fn no_error_of_the_schemas_own_shows_the_params_of_a_row() {
    let database = database().await;
    let mut connection = connect(&database).await;
    execute(
        &mut connection,
        r#"insert into paypoll.transactions (provider, reference, params) values ('dapi', 'R1', '{"accessToken": "canary"}');
           alter table paypoll.transactions add constraint house_rule check (state not in ('failed', 'refunded'));
           alter table paypoll.transitions add constraint other_rule check (to_state <> 'cancelled')"#,
    )
    .await;
    let settle = |state: &str| format!("select paypoll.settle('dapi', 'default', 'R1', '{state}', null, null, '\"canary\"')");
    let overridden = |state: &str| format!("select paypoll.override_state(id, '{state}', 'x') from paypoll.transactions");
    for (statement, rule) in [
        (settle("failed"), "house_rule"),
        (settle("cancelled"), "other_rule"),
        (overridden("failed"), "house_rule"),
        (overridden("cancelled"), "other_rule"),
    ] {
        let said = whole_error(&mut connection, &statement).await;
        assert!(said.contains(rule) && !said.contains("canary"), "{statement}: {said}");
    }
    for assignment in ["state = null", "reference = null", "account = null", "params = null", "initiated_at = null", "id = null"]
        .into_iter()
        .chain(["attempts = null", "attempts = -1", "failures = -1", "fence = null", "fence = -1", "phase = null", "gaps = -1"])
        .chain(["last_polled_at = 'infinity'", "created_at = '-infinity'", "created_at = null", "finalized_at = 'infinity'"])
        .chain([
            "state = 'failed ', finalized_at = 'infinity'",
            "updated_at = null, reason = 'x', next_poll_at = 'infinity', owner = 0, state = 'x'",
        ])
    {
        let said = whole_error(&mut connection, &format!("update paypoll.transactions set {assignment}")).await;
        assert!(!said.contains("canary"), "{assignment}: {said}");
    }
    execute(
        &mut connection,
        "update paypoll.transactions set updated_at = 'infinity'; update paypoll.transactions set updated_at = null",
    )
    .await;
    for column in ["provider", "account", "reference", "params", "initiated_at", "id", "state", "created_at"] {
        let row = r#"jsonb_build_object('provider', 'dapi', 'account', 'a', 'reference', 'R2', 'initiated_at', now(), 'id', gen_random_uuid(),
                                        'state', 'pending', 'attempts', 0, 'created_at', now(), 'params', '{"accessToken": "canary"}'::jsonb)"#;
        let insert = format!(
            "insert into paypoll.transactions (provider, account, reference, params, initiated_at, id, state, created_at)
             select provider, account, reference, params, initiated_at, id, state, created_at
               from jsonb_populate_record(null::paypoll.transactions, {row} || '{{\"{column}\": null}}')"
        );
        if column == "created_at" {
            execute(&mut connection, &insert).await;
        } else {
            let said = whole_error(&mut connection, &insert).await;
            assert!(!said.contains("canary"), "{column}: {said}");
        }
    }
}

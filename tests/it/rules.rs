//! What the database itself holds to, whoever writes: which providers there are, who signs a change, what a pause needs.

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

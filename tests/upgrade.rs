//! From one version to the next: the migrations that are out stay as they are, what they hold keeps
//! its meaning under those that follow, and a daemon of the version before goes on working
//! meanwhile.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

#[expect(dead_code, reason = "shared with the integration tests, which use all of it")]
#[path = "it/support.rs"]
mod support;

use aws_lc_rs::digest::{SHA256, digest};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row, SqlSafeStr};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use support::{database, empty_database, eventually};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The migrations that have been released, each with its checksum. A change needs a new one.
const FROZEN: &[(i64, &str, &str, &str)] = &[
    (
        1,
        "transactions",
        include_str!("../migrations/0001_transactions.sql"),
        "125c8d67af0a104aed7145a49d0853485a79d9dad580059ed5b6ca678a99f33a",
    ),
    (
        2,
        "transitions",
        include_str!("../migrations/0002_transitions.sql"),
        "127248a093b6631c8d42efa231fffeef947f201c7c845c1846cfd241c8e1df02",
    ),
    (
        3,
        "writers",
        include_str!("../migrations/0003_writers.sql"),
        "0ef643923817f4286eb535b6f6d8e64b29f144aa95d004c2ac566d24b2900140",
    ),
    (4, "polls", include_str!("../migrations/0004_polls.sql"), "a640425537f3766cde0cebd0dc7ebd504c641c3e8c65016340266fe5ed2cc9d2"),
    (
        5,
        "replicas",
        include_str!("../migrations/0005_replicas.sql"),
        "b81002527cfd348f0d1dce840f570554dbc933977f4af19157b4df2f100bbfb3",
    ),
    (
        6,
        "rights",
        include_str!("../migrations/0006_rights.sql"),
        "c0b6a07d716553101a28dc11f2d163e8d4261a39394e9cd76b83c1e503d31732",
    ),
];

/// The statements of 0.1.0, each below its name.
const STATEMENTS: &str = include_str!("fixtures/upgrade/0.1.0.sql");

#[test]
fn what_is_released_stays_as_it_is() {
    for (version, name, text, sum) in FROZEN {
        let found = digest(&SHA256, text.as_bytes()).as_ref().iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
        assert_eq!(found, *sum, "migrations/{version:04}_{name}.sql is released: write a new migration instead");
    }
}

#[test]
fn migrations_are_plain_ascii_so_that_no_databases_encoding_refuses_them() {
    for file in std::fs::read_dir("migrations").unwrap() {
        let path = file.unwrap().path();
        let released = FROZEN.iter().any(|(version, ..)| path.to_string_lossy().contains(&format!("{version:04}_")));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(released || text.is_ascii(), "{}", path.display());
    }
}

/// A database as 0.1.0 migrated it.
async fn database_of_0_1_0() -> String {
    let url = empty_database().await;
    let migration = |(version, name, text, _): &(i64, &'static str, &'static str, &str)| {
        Migration::new(*version, (*name).into(), MigrationType::Simple, text.into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(FROZEN.iter().map(migration).collect());
    migrator.create_schema("paypoll");
    migrator.dangerous_set_table_name("paypoll.migrations");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    migrator.run(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    url
}

/// A replica of 0.1.0, as the database sees it.
struct Old {
    connection: PgConnection,
    replica: i64,
}

/// What it writes about a transaction.
#[derive(Clone, Copy)]
struct Written<'a> {
    from: &'a str,
    to: &'a str,
    word: Option<&'a str>,
    reason: Option<&'a str>,
    source: &'a str,
    action: Option<&'a str>,
    hold: bool,
}

impl<'a> Written<'a> {
    const fn new(to: &'a str, word: &'a str) -> Self {
        Self { from: "pending", to, word: Some(word), reason: None, source: "poll", action: None, hold: false }
    }
}

fn statement(name: &str) -> &'static str {
    let (_, after) = STATEMENTS.split_once(&format!("-- @ {name}\n")).unwrap_or_else(|| panic!("no statement {name}"));
    after.split("-- @ ").next().unwrap().trim()
}

fn query(name: &str) -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments> {
    sqlx::query(statement(name))
}

const PROVIDER: &str = "khalti";

impl Old {
    async fn start(url: &str) -> Self {
        let mut connection = PgConnection::connect(url).await.unwrap();
        for setting in ["enable_hashjoin = off", "enable_mergejoin = off", "timezone = 'UTC'"] {
            connection.execute(AssertSqlSafe(format!("set {setting}"))).await.unwrap();
        }
        query("accounts.make").bind([PROVIDER]).bind(["default"]).execute(&mut connection).await.unwrap();
        let mut tx = connection.begin().await.unwrap();
        query("replicas.lock").execute(&mut *tx).await.unwrap();
        let accounts = json!([[PROVIDER, "default"]]);
        let row = query("replicas.register").bind(3600.0).bind(accounts).bind("old").fetch_one(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        let mut old = Self { connection, replica: row.get("id") };
        assert!(old.beat().await.contains(&old.replica));
        old
    }

    /// The living.
    async fn beat(&mut self) -> Vec<i64> {
        let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut self.connection).await.unwrap();
        let beat = query("replicas.beat").bind(self.replica).bind(self.replica).bind(Some(now));
        let rows = beat.fetch_all(&mut self.connection).await.unwrap();
        assert!(rows.iter().all(|row| row.get("alive")));
        rows.iter().map(|row| row.get("id")).collect()
    }

    /// Everything due and free that has one of these references, claimed: reference, id, fence.
    async fn claim(&mut self, wanted: &[&str]) -> BTreeMap<String, (Uuid, i64)> {
        let living = self.beat().await;
        let mut tx = self.connection.begin().await.unwrap();
        let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *tx).await.unwrap();
        let rows: Vec<PgRow> = query("claim.select")
            .bind([PROVIDER])
            .bind(["default"])
            .bind([DateTime::<Utc>::UNIX_EPOCH])
            .bind([1000_i64])
            .bind(living.iter().max())
            .bind(&living)
            .bind(now + TimeDelta::hours(1))
            .fetch_all(&mut *tx)
            .await
            .unwrap();
        let rows: Vec<&PgRow> = rows.iter().filter(|row| wanted.contains(&row.get::<&str, _>("reference"))).collect();
        let ids: Vec<Uuid> = rows.iter().map(|row| row.get("id")).collect();
        let dates = || rows.iter().map(|row| row.get::<Option<DateTime<Utc>>, _>("last_polled_at")).collect::<Vec<_>>();
        let counts = |column: &str| rows.iter().map(|row| row.get::<i32, _>(column)).collect::<Vec<_>>();
        query("claim.update")
            .bind(&ids)
            .bind(vec![Some(self.replica); ids.len()])
            .bind(vec![now; ids.len()])
            .bind(counts("attempts"))
            .bind(counts("failures"))
            .bind(counts("not_found"))
            .bind(dates())
            .bind(vec![Some(now); ids.len()])
            .bind(vec![0_i16; ids.len()])
            .bind(vec![None::<DateTime<Utc>>; ids.len()])
            .bind(counts("gaps"))
            .bind(vec![None::<DateTime<Utc>>; ids.len()])
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        rows.iter().map(|row| (row.get("reference"), (row.get("id"), row.get::<i64, _>("fence") + 1))).collect()
    }

    /// Records a poll and its outcome. False when another writer has changed the transaction
    /// meanwhile.
    async fn record(&mut self, id: Uuid, fence: i64, written: Written<'_>) -> bool {
        let mut tx = self.connection.begin().await.unwrap();
        let lease = query("record.lease").bind(self.replica).bind("250ms").fetch_one(&mut *tx).await.unwrap();
        assert!(lease.get::<bool, _>("held"));
        let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *tx).await.unwrap();
        query("journal.append")
            .bind([id])
            .bind([PROVIDER])
            .bind(["default"])
            .bind([now])
            .bind([now])
            .bind([Some(12)])
            .bind([Some(200_i16)])
            .bind([written.to])
            .bind([None::<&str>])
            .execute(&mut *tx)
            .await
            .unwrap();
        let changes = written.from != written.to;
        let waits = matches!(written.to, "pending" | "action_required");
        let rows = query("record.entries")
            .bind([id])
            .bind([fence])
            .bind([written.hold.then_some(self.replica)])
            .bind([written.to])
            .bind([written.word])
            .bind([written.reason])
            .bind([written.reason.is_some()])
            .bind([written.action])
            .bind([Some(r#"{"answer": "as it came"}"#)])
            .bind([changes.then_some(written.source)])
            .bind([1])
            .bind([0])
            .bind([0])
            .bind([Some(now)])
            .bind([waits.then_some(now + TimeDelta::minutes(5))])
            .bind([(written.to == "action_required").then_some(now)])
            .bind([Some(now)])
            .bind([0_i16])
            .bind([None::<DateTime<Utc>>])
            .bind([0])
            .bind([changes.then_some(written.from)])
            .bind([changes.then_some(r#"{"http_status": 200}"#)])
            .fetch_all(&mut *tx)
            .await
            .unwrap();
        if rows.is_empty() {
            query("record.lock").bind([id]).execute(&mut *tx).await.unwrap();
            query("record.late").bind([id]).bind([id]).bind([now]).bind(self.replica).execute(&mut *tx).await.unwrap();
        }
        tx.commit().await.unwrap();
        !rows.is_empty()
    }

    async fn tell(&mut self, statements: &'static str) {
        sqlx::raw_sql(statements).execute(&mut self.connection).await.unwrap();
    }

    async fn one<T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin>(
        &mut self,
        sql: &'static str,
    ) -> T {
        sqlx::query_scalar(sql).fetch_one(&mut self.connection).await.unwrap()
    }
}

/// Transactions that a replica has recorded, by their references: each ends in the state that its
/// reference says.
const ENDS: [(&str, Written<'static>); 8] = [
    ("succeeded", Written::new("succeeded", "Success")),
    ("failed", Written::new("failed", "Failed")),
    ("cancelled", Written::new("cancelled", "Cancelled")),
    ("refunded", Written::new("refunded", "Refunded")),
    ("action_required", Written { action: Some(r#"{"redirect": "https://pay"}"#), ..Written::new("action_required", "OTP") }),
    ("unresolved", Written { reason: Some("window_over"), source: "deadline", ..Written::new("unresolved", "Queued") }),
    ("invalid", Written { reason: Some("params.x is missing"), word: None, ..Written::new("invalid", "") }),
    ("held", Written { hold: true, ..Written::new("pending", "Queued") }),
];

/// Rows in every state, each come there in its way.
const ROWS: &str = "
    insert into paypoll.transactions (provider, reference, amount, currency)
    select 'khalti', unnest(array['succeeded', 'failed', 'cancelled', 'refunded', 'action_required', 'unresolved', 'invalid', 'held',
                                  'flying', 'overtaken', 'given back', 'called back', 'told', 'contradicted', 'retried', 'parked twice']),
           100.50, 'NPR';
    insert into paypoll.transactions (provider, reference, initiated_at) values ('khalti', 'from the future', now() + interval '1 day');
    insert into paypoll.transactions (provider, account, reference, params) values
        ('dapi', 'a', 'fresh', '{\"accessToken\": \"t\", \"userSecret\": \"u\"}'), ('dropayment', 'b', 'fresh', '{\"session\": {}}');";

/// What 0.1.0 let in and a later version does not.
const UNTIDY: &str = "
    insert into paypoll.transactions (provider, reference, amount, currency) values
        ('khalti', 'negative', -5, 'NPR'), ('khalti', 'lower', 5, 'npr'), ('khalti', 'words', 5, 'rupees, mostly'),
        ('khalti', 'params', 5, 'NPR'), ('khalti', 'account', 5, 'NPR'), ('khalti', 'long account', 5, 'NPR'),
        ('khalti', 'reference', 5, 'NPR'), ('khalti', 'initiated', 5, 'NPR');
    update paypoll.transactions set params = jsonb_build_object('x', repeat(md5('x'), 40000)) where reference = 'params';
    update paypoll.transactions set account = '' where reference = 'account';
    update paypoll.transactions set account = repeat('a', 5000) where reference = 'long account';
    update paypoll.transactions set state = 'unresolved', reference = '' where reference = 'reference';
    update paypoll.transactions set state = 'unresolved', initiated_at = now() + interval '10 years', reason = repeat('r', 9000)
     where reference = 'initiated';";

/// Every row of the tables of 0.1.0, as it stands, in the columns of 0.1.0.
async fn snapshot(connection: &mut PgConnection, columns: &BTreeMap<String, Vec<String>>) -> BTreeMap<String, Vec<Value>> {
    let mut all = BTreeMap::new();
    for (table, columns) in columns {
        let sql = format!("select to_jsonb(x) from (select {} from paypoll.{table}) x order by 1", columns.join(", "));
        all.insert(table.clone(), sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut *connection).await.unwrap());
    }
    all
}

async fn columns(connection: &mut PgConnection) -> BTreeMap<String, Vec<String>> {
    let sql = "select c.relname::text, array_agg(a.attname::text order by a.attnum) from pg_class c
                 join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                where c.relnamespace = 'paypoll'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
                  and c.relname <> 'migrations' group by 1";
    sqlx::query_as(sql).fetch_all(connection).await.unwrap().into_iter().collect()
}

/// Brings transactions to where their references say.
async fn play(old: &mut Old) {
    old.tell(ROWS).await;
    let names: Vec<&str> = ENDS.iter().map(|(name, _)| *name).collect();
    let claimed = old.claim(&[&names[..], &["flying", "overtaken", "given back", "parked twice", "retried"]].concat()).await;
    assert_eq!(claimed.len(), names.len() + 5);
    for (name, written) in ENDS {
        let (id, fence) = claimed[name];
        assert!(old.record(id, fence, written).await, "{name}");
    }
    for name in ["retried", "parked twice"] {
        let (id, fence) = claimed[name];
        assert!(old.record(id, fence, ENDS[5].1).await);
        let reopened = query("reopen.reopen").bind([id]).fetch_one(&mut old.connection).await.unwrap();
        assert_eq!(reopened.get::<Option<String>, _>("obstacle"), None);
    }
    let again = old.claim(&["parked twice"]).await["parked twice"];
    assert!(old.record(again.0, again.1, ENDS[5].1).await);
    query("claim.release").bind([claimed["given back"].0]).bind(old.replica).execute(&mut old.connection).await.unwrap();
    old.tell(
        "update paypoll.transactions set state = 'failed', provider_state = 'Failed', reason = 'by callback'
          where reference in ('overtaken', 'called back');
         select paypoll.settle('khalti', 'default', 'told', 'succeeded', 'Success', null, '{\"callback\": 7}');
         select paypoll.settle('khalti', 'default', 'contradicted', 'succeeded');
         select paypoll.override_state(id, 'refunded', 'seen in the ledger') from paypoll.transactions where reference = 'contradicted'",
    )
    .await;
    // What was in flight when another writer closed it.
    let (id, fence) = claimed["overtaken"];
    assert!(!old.record(id, fence, ENDS[0].1).await);
    for (name, binds) in [("accounts.open_circuit", true), ("accounts.take_probe", false), ("accounts.slow_down", false)] {
        let query = query(name).bind(PROVIDER).bind("default");
        let query = if binds { query.bind("five refusals") } else { query };
        let query = query.bind(30.0);
        let query = if name == "accounts.slow_down" { query.bind(20.0).bind(32.0) } else { query };
        query.execute(&mut old.connection).await.unwrap();
    }
}

/// Queries that anybody may run on the rows afterwards, with their results.
async fn assert_meaning(old: &mut Old) {
    let rows = sqlx::query_as(
        "select reference, state, attempts from paypoll.transactions where provider = 'khalti' and account = 'default'",
    );
    let rows: Vec<(String, String, i32)> = rows.fetch_all(&mut old.connection).await.unwrap();
    let states: BTreeMap<&str, (&str, i32)> =
        rows.iter().map(|(name, state, polls)| (name.as_str(), (state.as_str(), *polls))).collect();
    for (name, written) in ENDS {
        assert_eq!(states[name], (written.to, 1), "{name}");
    }
    for (name, expected) in [
        ("flying", ("pending", 0)),
        ("overtaken", ("failed", 1)),
        ("given back", ("pending", 0)),
        ("called back", ("failed", 0)),
        ("told", ("succeeded", 0)),
        ("contradicted", ("refunded", 0)),
        ("retried", ("pending", 1)),
        ("parked twice", ("unresolved", 2)),
        ("from the future", ("invalid", 0)),
    ] {
        assert_eq!(states[name], expected, "{name}");
    }
    let final_ones = "select count(*) from paypoll.transactions where finalized_at is not null and next_poll_at is null";
    assert_eq!(old.one::<i64>(final_ones).await, 8);
    let refused = "update paypoll.transactions set state = 'failed' where reference = 'succeeded'";
    let error = old.connection.execute(refused).await.unwrap_err();
    assert!(error.to_string().contains("a final state changes only through paypoll.override_state"), "{error}");
}

/// The changes of state, as a reader of the feed sees them.
async fn feed(connection: &mut PgConnection) -> Vec<(i64, String, String, String)> {
    let sql = "select id, from_state, to_state, source from paypoll.transitions_since(0)";
    sqlx::query_as(sql).fetch_all(connection).await.unwrap()
}

#[tokio::test]
async fn an_upgrade_changes_no_row_and_no_rows_meaning_while_the_daemon_before_it_runs() {
    let url = database_of_0_1_0().await;
    let mut old = Old::start(&url).await;
    play(&mut old).await;
    assert_meaning(&mut old).await;
    let flying: (Uuid, i64) = sqlx::query_as("select id, fence from paypoll.transactions where reference = 'flying'")
        .fetch_one(&mut old.connection)
        .await
        .unwrap();
    old.tell(UNTIDY).await;
    let columns = columns(&mut old.connection).await;
    let (before, told) = (snapshot(&mut old.connection, &columns).await, feed(&mut old.connection).await);

    paypoll::store::migrate(&url).await.unwrap();

    let after = snapshot(&mut old.connection, &columns).await;
    for (table, rows) in before {
        assert_eq!(rows, after[&table], "{table}");
    }
    assert_eq!(told, feed(&mut old.connection).await);
    assert_meaning(&mut old).await;
    // What it had in flight is recorded by the old statements, and it goes on.
    assert!(old.record(flying.0, flying.1, ENDS[0].1).await);
    for (name, (id, fence)) in old.claim(&["given back", "negative", "lower", "words", "params"]).await {
        assert!(old.record(id, fence, ENDS[0].1).await, "{name}");
    }
    let unsettled = "select count(*) from paypoll.transactions where state <> 'succeeded'
                        and reference in ('flying', 'given back', 'negative', 'lower', 'words', 'params')";
    assert_eq!(old.one::<i64>(unsettled).await, 0);
}

#[tokio::test]
async fn what_0_1_0_asks_the_database_does_its_work_on_the_newest_schema() {
    let database = database().await;
    let mut old = Old::start(&database.url).await;
    play(&mut old).await;
    assert_meaning(&mut old).await;
    let verdicts = query("replicas.verdicts").bind(0_i64).fetch_all(&mut old.connection).await.unwrap();
    // Two reported, one of them overridden later, two by hand, two reopened.
    assert_eq!(verdicts.len(), 7);
    let today: chrono::NaiveDate = old.one("select (now() at time zone 'UTC')::date").await;
    query("journal.make").bind(today).bind(today + TimeDelta::days(9)).execute(&mut old.connection).await.unwrap();
    query("journal.prune").bind(today - TimeDelta::days(3)).execute(&mut old.connection).await.unwrap();
    query("accounts.close_circuit").bind(PROVIDER).bind("default").execute(&mut old.connection).await.unwrap();
    // Those that only read: that they are understood.
    let names = STATEMENTS.lines().filter_map(|line| line.strip_prefix("-- @ "));
    for name in names {
        old.connection
            .prepare(AssertSqlSafe(statement(name)).into_sql_str())
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    query("replicas.deregister").bind(old.replica).execute(&mut old.connection).await.unwrap();
    assert_eq!(old.one::<i64>("select count(*) from paypoll.replicas").await, 0);
}

/// How many transactions a large database has; `PAYPOLL_UPGRADE_ROWS=1000000` for a real one.
fn rows() -> i64 {
    std::env::var("PAYPOLL_UPGRADE_ROWS").map_or(50_000, |rows| rows.parse().unwrap())
}

/// Rows in every state, with what stands beside them: a transition of each that has ended, and a
/// poll of each over ten days. One in a hundred is polled in two days.
const LARGE: &str = "
    select paypoll.make_journal((now() at time zone 'UTC')::date - 10, (now() at time zone 'UTC')::date + 2);
    set session_replication_role = replica;
    insert into paypoll.transactions (provider, reference, state, provider_state, details, attempts, fence, created_at, updated_at,
                                      last_polled_at, next_poll_at, finalized_at)
    select 'khalti', state || g, state, 'Word', jsonb_build_object('answer', g), 1, 3, at, at, at,
           case when state in ('pending', 'action_required') then now() + interval '2 days' end,
           case when state in ('succeeded', 'failed', 'cancelled', 'refunded') then at end
      from (select g, now() - interval '10 days' * random() as at, case when g % 100 > 6 then 'succeeded' else
                   (array['pending', 'action_required', 'failed', 'cancelled', 'refunded', 'unresolved', 'invalid'])[g % 100 + 1] end as state
              from generate_series(1, ROWS) g) x;
    insert into paypoll.transitions (transaction_id, from_state, to_state, source, evidence, at)
    select id, 'pending', state, 'poll', details, updated_at from paypoll.transactions where next_poll_at is null;
    insert into paypoll.polls (transaction_id, provider, account, due_at, sent_at, outcome, error)
    select id, provider, account, last_polled_at, last_polled_at, 'pending', case when random() < 0.03 then 'HTTP 502' end
      from paypoll.transactions;
    set session_replication_role = origin;
    analyze;
    insert into paypoll.transactions (provider, reference, initiated_at)
    select 'khalti', 'work' || g, now() - interval '1 hour' from generate_series(1, WORK) g;";

/// How many of them the old replica polls meanwhile: enough that it is not done before the
/// migrations are.
fn to_work() -> i64 {
    rows() / 200 + 250
}

/// A longer wait for a lock fails.
const LOCK_TIMEOUT: &str = "set lock_timeout = '1s'";

/// A replica of 0.1.0 that polls everything named `work…`, ten at a time; returns how many there were.
async fn work(url: String, done: Arc<AtomicI64>) -> i64 {
    let mut old = Old::start(&url).await;
    old.tell(LOCK_TIMEOUT).await;
    for first in (1..=to_work()).step_by(10) {
        let names: Vec<String> = (first..first + 10).map(|number| format!("work{number}")).collect();
        for (id, fence) in old.claim(&names.iter().map(String::as_str).collect::<Vec<_>>()).await.into_values() {
            assert!(old.record(id, fence, ENDS[0].1).await);
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    done.load(Ordering::Relaxed)
}

/// An application that inserts, settles and reads until it is stopped; returns how many it inserted
/// and settled.
async fn feed_and_settle(url: String, stop: CancellationToken) -> i64 {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute(LOCK_TIMEOUT).await.unwrap();
    let mut number = 0;
    while !stop.is_cancelled() {
        number += 1;
        let reference = format!("fed{number}");
        let insert = sqlx::query("insert into paypoll.transactions (provider, reference) values ('khalti', $1)").bind(&reference);
        insert.execute(&mut connection).await.unwrap();
        let settle = sqlx::query("select paypoll.settle('khalti', 'default', $1, 'succeeded')").bind(&reference);
        settle.execute(&mut connection).await.unwrap();
        let read = sqlx::query_scalar(
            "select state from paypoll.transactions where provider = 'khalti' and account = 'default' and reference = $1",
        );
        let state: String = read.bind(&reference).fetch_one(&mut connection).await.unwrap();
        assert_eq!(state, "succeeded");
        tokio::task::yield_now().await;
    }
    number
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_database_is_upgraded_while_an_old_replica_and_an_application_work_and_neither_waits_a_second() {
    let url = database_of_0_1_0().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(LARGE.replace("ROWS", &rows().to_string()).replace("WORK", &to_work().to_string())))
        .execute(&mut connection)
        .await
        .unwrap();
    let count = async |connection: &mut PgConnection, sql: &'static str| -> i64 {
        sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
    };
    let before = count(&mut connection, "select count(*) from paypoll.transitions").await;

    let (done, stop) = (Arc::new(AtomicI64::new(0)), CancellationToken::new());
    let worker = tokio::spawn(work(url.clone(), done.clone()));
    let application = tokio::spawn(feed_and_settle(url.clone(), stop.clone()));
    eventually("the old replica polls", || async { (done.load(Ordering::Relaxed) >= 20).then_some(()) }).await;
    paypoll::store::migrate(&url).await.unwrap();
    let during = done.load(Ordering::Relaxed);
    let (worked, fed) = (worker.await.unwrap(), {
        stop.cancel();
        application.await.unwrap()
    });

    println!("{} rows: {during} of {worked} polls were recorded by the end of the migration, and {fed} transactions fed", rows());
    assert_eq!(worked, to_work());
    let polled = "select count(*) from paypoll.transactions t where reference like 'work%' and state = 'succeeded' and attempts = 1
                     and (select count(*) from paypoll.polls p where p.transaction_id = t.id) = 1
                     and (select count(*) from paypoll.transitions x where x.transaction_id = t.id and x.source = 'poll') = 1";
    assert_eq!(count(&mut connection, polled).await, worked, "each polled once, counted once, told once");
    let settled = "select count(*) from paypoll.transactions t where reference like 'fed%' and state = 'succeeded' and attempts = 0
                      and (select count(*) from paypoll.transitions x where x.transaction_id = t.id and x.source = 'external') = 1";
    assert_eq!(count(&mut connection, settled).await, fed, "each settled once");
    assert_eq!(count(&mut connection, "select count(*) from paypoll.transactions").await, rows() + worked + fed, "none is lost");
    assert_eq!(count(&mut connection, "select count(*) from paypoll.transitions").await, before + worked + fed);
    let event = |level: &str, event: &str| (level.to_owned(), event.to_owned());
    assert_eq!(started(&url).await, [event("info", "daemon_started")]);
}

fn paypoll(command: &str, url: &str) -> Command {
    let mut paypoll = Command::new(env!("CARGO_BIN_EXE_paypoll"));
    paypoll.args([command]).env_clear().env("DATABASE_URL", url).stdin(Stdio::null());
    let settings = [
        ("OPS__LISTEN", ""),
        ("LOG__FORMAT", "json"),
        ("PROVIDERS__KHALTI__ENABLED", "true"),
        ("PROVIDERS__KHALTI__BASE_URL", "http://127.0.0.1:9"),
        ("PROVIDERS__KHALTI__ACCOUNTS__DEFAULT__TOKEN", "t"),
    ];
    paypoll.envs(settings.map(|(key, value)| (format!("PAYPOLL__{key}"), value)));
    paypoll
}

async fn output(command: &str, url: &str) -> (i32, String) {
    let mut paypoll = paypoll(command, url);
    let Output { status, stdout, stderr } = tokio::task::spawn_blocking(move || paypoll.output().unwrap()).await.unwrap();
    (status.code().unwrap(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// Ends with the test, however that ends.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The events of a daemon until it has started, each with its level.
async fn started(url: &str) -> Vec<(String, String)> {
    let mut daemon = Daemon(paypoll("run", url).stdout(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(daemon.0.stdout.take().unwrap()).lines();
    let read = move || {
        let mut events = Vec::new();
        for line in lines.map_while(Result::ok) {
            let line: Value = serde_json::from_str(&line).unwrap();
            let word = |key: &str| line[key].as_str().unwrap().to_owned();
            events.push((word("level").to_lowercase(), word("event")));
            if events.last().unwrap().1 == "daemon_started" {
                break;
            }
        }
        events
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_works_on_the_schema_of_the_next_version_and_says_so_once() {
    let database = database().await;
    let event = |level: &str, event: &str| (level.to_owned(), event.to_owned());
    assert_eq!(started(&database.url).await, [event("info", "daemon_started")]);
    let newer = "insert into paypoll.migrations (version, description, success, checksum, execution_time)
                 values (9999, 'of the next version', true, '\\x00', 0)";
    database.pool.execute(newer).await.unwrap();
    let events = started(&database.url).await;
    assert_eq!(events, [event("warn", "schema_newer"), event("info", "daemon_started")]);
    // What rolls back to it brings its own step that migrates.
    let (code, text) = output("migrate", &database.url).await;
    assert!(code == 0 && text.contains("at version 9999") && text.contains("nothing was changed"), "{code}: {text}");
    assert_eq!(output("status", &database.url).await.0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_refuses_a_schema_that_lacks_a_migration_or_has_another_one_under_its_name() {
    let url = database_of_0_1_0().await;
    let (code, text) = output("run", &url).await;
    assert!(code == 1 && text.contains("0007_feed") && text.contains("run `paypoll migrate`"), "{code}: {text}");
    assert_eq!(output("migrate", &url).await.0, 0);

    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute("update paypoll.migrations set checksum = '\\x00' where version = 4").await.unwrap();
    for command in ["run", "migrate", "check"] {
        let (code, text) = output(command, &url).await;
        assert!(code == 1 && text.contains("0004_polls"), "{command}: {code}: {text}");
    }
}

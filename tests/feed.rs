//! The feed under contention: whatever the order in which writers and readers take their steps,
//! nothing is passed by.
//!
//! Two ways. The functions are stepped through, statement by statement, in every order in which two
//! writers and a reader can take turns. And for some time several writers and readers do as fast as
//! they can, which meets what no step of ours divides: 20 s, or until `PAYPOLL_FEED_TRANSITIONS`
//! transitions were written:
//!
//! ```text
//! PAYPOLL_FEED_TRANSITIONS=10000000 cargo test --release --test feed contention -- --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a helper that panics fails its test; the figures are printed")]

#[expect(dead_code, reason = "shared with the integration tests, which use all of it")]
#[path = "it/support.rs"]
mod support;

use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{TestDatabase, database, empty_database};
use tokio::sync::mpsc;

/// The schema as it was before the feed was fixed.
const SIX: [&str; 6] = [
    include_str!("../migrations/0001_transactions.sql"),
    include_str!("../migrations/0002_transitions.sql"),
    include_str!("../migrations/0003_writers.sql"),
    include_str!("../migrations/0004_polls.sql"),
    include_str!("../migrations/0005_replicas.sql"),
    include_str!("../migrations/0006_rights.sql"),
];
const SEVENTH: &str = include_str!("../migrations/0007_feed.sql");

/// A database with the schema that those statements make, under another name if need be.
async fn made_by(statements: &[&str], schema: &str, url: String) -> TestDatabase {
    let pool = PgPoolOptions::new().max_connections(8).connect(&url).await.unwrap();
    apply(&pool, &format!("create schema {schema}")).await;
    for text in statements {
        apply(&pool, &text.replace("paypoll.", &format!("{schema}."))).await;
    }
    TestDatabase { url, pool }
}

async fn apply(pool: &PgPool, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(pool).await.unwrap();
}

/// What a reader with that cursor is given.
async fn read(pool: &PgPool, cursor: i64) -> Vec<i64> {
    sqlx::query_scalar("select id from paypoll.transitions_since($1, 100000)").bind(cursor).fetch_all(pool).await.unwrap()
}

async fn committed(pool: &PgPool) -> Vec<i64> {
    sqlx::query_scalar("select id from paypoll.transitions order by id").fetch_all(pool).await.unwrap()
}

/// The highest id that was given out becomes this one.
async fn forward_to(pool: &PgPool, id: i64) {
    sqlx::query("select setval('paypoll.transitions_id_seq', $1)").bind(id).execute(pool).await.unwrap();
}

/// What writes one transition about a transaction of its own.
fn settle() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let reference = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(
        "insert into paypoll.transactions (provider, reference) values ('khalti', '{reference}');
         select paypoll.settle('khalti', 'default', '{reference}', 'succeeded')"
    )
}

/// A transaction that has written a transition and not committed yet.
async fn under_way(pool: &PgPool) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut tx = pool.begin().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(settle())).execute(&mut *tx).await.unwrap();
    tx
}

/// The gates in front of statements: an actor waits there until it is let through. Two of them take
/// turns, so that an actor that is let through one stands before the other until that one is shut
/// again.
const GATES: &str = "
    create schema gate;
    create function gate.wait() returns void language plpgsql as $$
    declare
        gate integer := nullif(current_setting('gate.next', true), '');
    begin
        if gate is not null then
            perform set_config('gate.next', (gate # 1)::text, false);
            perform pg_advisory_lock_shared(1000, gate);
            perform pg_advisory_unlock_shared(1000, gate);
        end if;
    end
    $$";

/// Puts a gate before each statement of a function that begins with one of these words, but for the first.
async fn put_gates(pool: &PgPool, function: &str, before: &[&str]) -> usize {
    let definition: String =
        sqlx::query_scalar("select pg_get_functiondef(to_regproc($1)::oid)").bind(function).fetch_one(pool).await.unwrap();
    let (mut gated, mut begins, mut gates) = (String::new(), false, 0);
    for line in definition.lines() {
        let words = line.trim_start();
        if begins && before.iter().any(|word| words.starts_with(word)) {
            gated += "perform gate.wait();\n";
            gates += 1;
        }
        gated += &format!("{line}\n");
        if !words.starts_with("--") {
            begins = words == "begin" || [";", "then", "else"].iter().any(|end| words.ends_with(end));
        }
    }
    apply(pool, &gated).await;
    gates
}

/// An actor with a connection of its own, which goes from gate to gate.
struct Actor {
    backend: i32,
    statements: mpsc::UnboundedSender<String>,
    answers: mpsc::UnboundedReceiver<Vec<i64>>,
    waits_at: Option<i32>,
}

impl Actor {
    async fn new(url: &str, number: i32) -> Self {
        let mut connection = PgConnection::connect(url).await.unwrap();
        connection.execute(AssertSqlSafe(format!("set gate.next = '{}'", 2 * number))).await.unwrap();
        let backend = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
        let (statements, mut received) = mpsc::unbounded_channel::<String>();
        let (answered, answers) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(statement) = received.recv().await {
                let rows = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_all(&mut connection).await.unwrap();
                answered.send(rows.iter().filter_map(|row| sqlx::Row::try_get(row, "id").ok()).collect()).unwrap();
            }
        });
        Self { backend, statements, answers, waits_at: None }
    }

    /// Goes to the next gate or to the end of the statement; what it answered, if it ended.
    async fn step(&mut self, keeper: &mut PgConnection, statement: impl FnOnce() -> String) -> Option<Vec<i64>> {
        match self.waits_at.take() {
            // A waiting actor is let through as it is unlocked; locking it again waits until it is.
            Some(gate) => {
                for function in ["pg_advisory_unlock", "pg_advisory_lock"] {
                    keeper.execute(AssertSqlSafe(format!("select {function}(1000, {gate})"))).await.unwrap();
                }
            }
            None => self.statements.send(statement()).unwrap(),
        }
        let waits_at = "select objid::integer from pg_locks where classid = 1000 and pid = $1 and not granted";
        loop {
            if let Ok(answer) = self.answers.try_recv() {
                return Some(answer);
            }
            self.waits_at = sqlx::query_scalar(waits_at).bind(self.backend).fetch_optional(&mut *keeper).await.unwrap();
            if self.waits_at.is_some() {
                return None;
            }
        }
    }
}

/// Every order of this many steps of each.
fn orders(steps: [usize; 3]) -> Vec<Vec<usize>> {
    if steps == [0; 3] {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for actor in 0..3 {
        if steps[actor] > 0 {
            let mut left = steps;
            left[actor] -= 1;
            all.extend(orders(left).into_iter().map(|mut order| {
                order.push(actor);
                order
            }));
        }
    }
    all
}

/// Lets one reader and two writers take their steps in every order; says how many transitions the
/// reader never saw.
///
/// The first writer stands still between announcing itself and taking its id, and before it
/// commits; the second one does it all at once.
async fn step_through(database: &TestDatabase, reader_gates: usize) -> usize {
    assert_eq!(put_gates(&database.pool, "paypoll.announce_writer", &["return null"]).await, 1);
    let mut keeper = PgConnection::connect(&database.url).await.unwrap();
    keeper.execute("select pg_advisory_lock(1000, number) from generate_series(2, 7) number").await.unwrap();
    let (mut reader, mut first) = (Actor::new(&database.url, 1).await, Actor::new(&database.url, 2).await);
    let mut second = Actor::new(&database.url, 3).await;
    second.step(&mut keeper, || "set gate.next = ''".to_owned()).await;
    let (mut cursor, mut seen) = (0, 0);
    for order in orders([reader_gates + 1, 3, 1]) {
        let [mut reads, mut firsts] = [0; 2];
        for actor in &order {
            match actor {
                0 => {
                    let select = || format!("select id from paypoll.transitions_since({cursor}, 1000)");
                    let answer = reader.step(&mut keeper, select).await;
                    reads += 1;
                    assert_eq!(answer.is_some(), reads == reader_gates + 1, "{order:?}");
                    if let Some(answer) = answer {
                        seen += answer.len();
                        cursor = answer.last().copied().unwrap_or(cursor);
                    }
                }
                1 => {
                    let write = if firsts < 2 { format!("begin; {}", settle()) } else { "commit".to_owned() };
                    let answer = first.step(&mut keeper, || write).await;
                    firsts += 1;
                    assert_eq!(answer.is_some(), firsts > 1, "{order:?}");
                }
                _ => assert!(second.step(&mut keeper, settle).await.is_some(), "{order:?}"),
            }
        }
        let rest = read(&database.pool, cursor).await;
        seen += rest.len();
        cursor = rest.last().copied().unwrap_or(cursor);
    }
    committed(&database.pool).await.len() - seen
}

#[tokio::test(flavor = "multi_thread")]
async fn in_whatever_order_writers_and_readers_take_their_steps_the_feed_passes_nothing_by() {
    let database = database().await;
    apply(&database.pool, GATES).await;
    // Its second statement, and the rows.
    assert_eq!(put_gates(&database.pool, "paypoll.safe_id", &["select min"]).await, 1);
    assert_eq!(put_gates(&database.pool, "paypoll.transitions_since", &["return query"]).await, 1);
    assert_eq!(step_through(&database, 2).await, 0);
}

/// That the steps above find what they are there for.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_steps_find_the_gap_that_the_first_feed_had() {
    let database = made_by(&SIX, "paypoll", empty_database().await).await;
    apply(&database.pool, GATES).await;
    assert_eq!(put_gates(&database.pool, "paypoll.transitions_since", &["return query"]).await, 1);
    let lost = step_through(&database, 1).await;
    assert!(lost > 0, "no order was found that loses a transition");
}

#[tokio::test]
async fn a_writer_that_announced_itself_before_the_migration_is_waited_for_after_it() {
    let database = made_by(&SIX, "paypoll", empty_database().await).await;
    let before = under_way(&database.pool).await;
    apply(&database.pool, SEVENTH).await;
    apply(&database.pool, &settle()).await;
    assert_eq!(read(&database.pool, 0).await, [0; 0], "the earlier one may still come");
    // It goes on writing under the new function.
    let mut before = before;
    sqlx::raw_sql(AssertSqlSafe(settle())).execute(&mut *before).await.unwrap();
    before.commit().await.unwrap();
    assert_eq!(read(&database.pool, 0).await, [1, 2, 3]);
}

#[tokio::test]
async fn ids_may_be_as_large_as_they_like() {
    let database = database().await;
    let bounds = [32, 40, 47, 48, 49, 62].map(|bits| 1_i64 << bits);
    for at in bounds.iter().flat_map(|bound| [bound - 9, bound - 1, bound + 9]).chain([i64::MAX - 100]) {
        forward_to(&database.pool, at).await;
        let slow = under_way(&database.pool).await;
        apply(&database.pool, &settle()).await;
        assert_eq!(read(&database.pool, at).await, [0; 0], "after {at}: the earlier one may still come");
        slow.commit().await.unwrap();
        assert_eq!(read(&database.pool, at).await, [at + 1, at + 2]);
        let (rolled_back, next) = (under_way(&database.pool).await, under_way(&database.pool).await);
        rolled_back.rollback().await.unwrap();
        assert_eq!(read(&database.pool, at + 2).await, [0; 0], "after {at}: the next one may still come");
        next.commit().await.unwrap();
        assert_eq!(read(&database.pool, at + 2).await, [at + 4]);
    }
}

/// Takes ids, and asks before each of them for the highest so far: how often that was not below it.
const TOO_HIGH: &str = "
    do $$
    declare
        last bigint;
        too_high integer := 0;
    begin
        for turn in 1..100000 loop
            last := ASKED;
            if last >= nextval('paypoll.transitions_id_seq') then
                too_high := too_high + 1;
            end if;
        end loop;
        perform set_config('test.too_high', too_high::text, false);
    end
    $$";

/// How often several who take ids at once find the highest so far too high, when they ask for it like that.
async fn too_high(url: &str, asked: &str) -> i64 {
    let sessions = (0..4).map(|_| {
        let (url, asks) = (url.to_owned(), TOO_HIGH.replace("ASKED", asked));
        tokio::spawn(async move {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            sqlx::raw_sql(AssertSqlSafe(asks)).execute(&mut connection).await.unwrap();
            let found = sqlx::query_scalar("select current_setting('test.too_high')::bigint");
            found.fetch_one(&mut connection).await.unwrap()
        })
    });
    let sessions: Vec<tokio::task::JoinHandle<i64>> = sessions.collect();
    let mut all = 0;
    for session in sessions {
        all += session.await.unwrap();
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_highest_id_is_never_told_too_high_while_others_take_theirs() {
    let database = database().await;
    assert_eq!(too_high(&database.url, "paypoll.last_id()").await, 0);
    // A sequence that was set and gave nothing out since.
    apply(&database.pool, "select setval('paypoll.transitions_id_seq', 1000000, false)").await;
    assert_eq!(sqlx::query_scalar::<_, i64>("select paypoll.last_id()").fetch_one(&database.pool).await.unwrap(), 999_999);
}

#[tokio::test]
async fn two_schemas_of_one_database_do_not_hold_each_other_up() {
    let database = database().await;
    let statements: Vec<_> = SIX.into_iter().chain([SEVENTH]).collect();
    let other = made_by(&statements, "other", database.url.clone()).await;
    let mut slow = other.pool.begin().await.unwrap();
    let settle_there = || settle().replace("paypoll.", "other.");
    sqlx::raw_sql(AssertSqlSafe(settle_there())).execute(&mut *slow).await.unwrap();
    apply(&database.pool, &settle()).await;
    assert_eq!(read(&database.pool, 0).await, [1]);
    apply(&other.pool, &settle_there()).await;
    let there = "select id from other.transitions_since(0)";
    assert_eq!(sqlx::query_scalar::<_, i64>(there).fetch_all(&other.pool).await.unwrap(), [0; 0], "its own are waited for");
    slow.commit().await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, i64>(there).fetch_all(&other.pool).await.unwrap(), [1, 2]);
}

#[tokio::test]
async fn a_writer_holds_one_lock_however_much_it_writes_and_a_savepoint_takes_none_of_it_away() {
    let database = database().await;
    let mut tx = database.pool.begin().await.unwrap();
    let locks = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()";
    for turn in 0..50 {
        let (end, written) = if turn % 2 == 0 { ("release s", 1) } else { ("rollback to s", turn + 1) };
        let work = format!("savepoint s; {}; {end}", settle());
        sqlx::raw_sql(AssertSqlSafe(work)).execute(&mut *tx).await.unwrap();
        let held: i64 = sqlx::query_scalar(locks).fetch_one(&mut *tx).await.unwrap();
        assert_eq!(held, 1, "after {written}");
    }
    apply(&database.pool, &settle()).await;
    assert_eq!(read(&database.pool, 0).await, [0; 0]);
    tx.commit().await.unwrap();
    assert_eq!(read(&database.pool, 0).await, committed(&database.pool).await);

    // What announced itself only within a savepoint that is rolled back announces itself again.
    let mut tx = database.pool.begin().await.unwrap();
    let work = format!("savepoint s; {}; rollback to s; {}", settle(), settle());
    sqlx::raw_sql(AssertSqlSafe(work)).execute(&mut *tx).await.unwrap();
    let cursor = committed(&database.pool).await.last().copied().unwrap();
    apply(&database.pool, &settle()).await;
    assert_eq!(read(&database.pool, cursor).await, [0; 0]);
    tx.commit().await.unwrap();
    assert_eq!(read(&database.pool, cursor).await.len(), 2);
}

#[tokio::test]
async fn the_feed_refuses_a_snapshot_that_is_older_than_its_look() {
    let database = database().await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    for level in ["repeatable read", "serializable"] {
        let mut tx = connection.begin_with(AssertSqlSafe(format!("begin isolation level {level}"))).await.unwrap();
        let error = sqlx::query("select paypoll.transitions_since(0)").execute(&mut *tx).await.unwrap_err();
        assert!(error.to_string().contains("needs isolation level read committed"), "{error}");
    }
}

/// How long the contention lasts by default.
const CONTENTION: Duration = Duration::from_secs(20);
/// The longest of them all.
const TRANSITIONS: &str = "PAYPOLL_FEED_TRANSITIONS";
/// Writers of each kind.
const WRITERS: usize = 4;
const READERS: usize = 2;
/// The tide of large writes: they come in the first second of so many. Only between them the
/// readers come up with the writers, and only there is anything to be passed by.
const TIDE_S: u64 = 5;

/// When the writers stop.
struct Load {
    begun: Instant,
    target: Option<i64>,
    written: AtomicI64,
    over: AtomicBool,
}

impl Load {
    fn goes_on(&self, more: i64) -> bool {
        let written = self.written.fetch_add(more, Ordering::Relaxed) + more;
        self.target.map_or_else(|| self.begun.elapsed() < CONTENTION, |target| written < target)
    }
}

/// Verdicts one by one, each in a transaction of its own or a few in one, some of them given up.
async fn write_small(url: String, load: Arc<Load>, number: usize) {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    for turn in 0_usize.. {
        let count = 1 + (turn + number) % 3;
        let end = if turn % 7 == 6 { "rollback" } else { "commit" };
        let work: Vec<String> = (0..count).map(|_| settle()).collect();
        connection.execute(AssertSqlSafe(format!("begin; {}; {end}", work.join(";")))).await.unwrap();
        if !load.goes_on(if end == "commit" { count as i64 } else { 0 }) {
            break;
        }
    }
}

/// As a replica records them: a few at once, and at high tide some thousand in a transaction.
async fn write_batches(url: String, load: Arc<Load>, number: usize) {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    for turn in 0_usize.. {
        let high = load.begun.elapsed().as_secs().is_multiple_of(TIDE_S);
        let (statements, rows) = (1 + (turn + number) % 4, if high { 2000 } else { 1 + turn % 10 });
        let end = if turn % 11 == 10 { "rollback" } else { "commit" };
        let insert = format!(
            "insert into paypoll.transitions (transaction_id, from_state, to_state, source)
             select '00000000-0000-0000-0000-000000000000', 'pending', 'action_required', 'poll' from generate_series(1, {rows})"
        );
        let work = vec![insert; statements].join(";");
        connection.execute(AssertSqlSafe(format!("begin; {work}; {end}"))).await.unwrap();
        if !load.goes_on(if end == "commit" { (statements * rows) as i64 } else { 0 }) {
            break;
        }
    }
}

/// Reads the feed until the writers have ended and nothing is left; says how many there were.
async fn read_all(url: String, load: Arc<Load>) -> i64 {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let (mut cursor, mut count) = (0, 0);
    loop {
        let over = load.over.load(Ordering::SeqCst);
        let ids: Vec<i64> = sqlx::query_scalar("select id from paypoll.transitions_since($1, 5000)")
            .bind(cursor)
            .fetch_all(&mut connection)
            .await
            .unwrap();
        for id in &ids {
            assert!(*id > cursor, "{id} after {cursor}");
            cursor = *id;
        }
        count += ids.len() as i64;
        if over && ids.is_empty() {
            return count;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_contention_every_reader_sees_every_transition_once() {
    let database = database().await;
    let target = std::env::var(TRANSITIONS).ok().map(|target| target.parse().unwrap());
    let load = Arc::new(Load { begun: Instant::now(), target, written: AtomicI64::new(0), over: AtomicBool::new(false) });
    let readers: Vec<_> = (0..READERS).map(|_| tokio::spawn(read_all(database.url.clone(), load.clone()))).collect();
    let small = (0..WRITERS).map(|number| tokio::spawn(write_small(database.url.clone(), load.clone(), number)));
    let many = (0..WRITERS).map(|number| tokio::spawn(write_batches(database.url.clone(), load.clone(), number)));
    let writers: Vec<_> = small.chain(many).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    load.over.store(true, Ordering::SeqCst);
    let all: i64 = sqlx::query_scalar("select count(*) from paypoll.transitions").fetch_one(&database.pool).await.unwrap();
    for reader in readers {
        let read = reader.await.unwrap();
        println!("feed: {read} of {all} transitions read, {} lost, in {:.0} s", all - read, load.begun.elapsed().as_secs_f64());
        assert_eq!(read, all, "transitions that the reader never saw");
    }
}

//! The store against a real PostgreSQL: claims, records, the writer rules, the feed, budgets.

use crate::support::{TestDatabase, database, eventually};
use chrono::{DateTime, Utc};
use paypoll::config::{Config, Database};
use paypoll::domain::{Progress, Source, State};
use paypoll::scheduler::{self, admission::Placer};
use paypoll::store::{
    Attempt, Batch, Candidate, Claim, ClaimOrder, Draw, Entry, LaneRoom, Membership, Override, Placement, Poll, Recorded,
    ReplicaId, Store, StoreError, Transition, Writer,
};
use sqlx::Row;
use sqlx::postgres::PgListener;
use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use uuid::Uuid;

const LEASE: Duration = Duration::from_secs(15);
/// A replica that may expire others, whose reckoning of the time is not behind the database's
/// clock.
const JUDGE: Option<DateTime<Utc>> = DateTime::from_timestamp(4_102_444_800, 0);

fn open(database: &TestDatabase) -> Store {
    Store::open_for_polling(&Database {
        url: Some(database.url.clone().into()),
        max_connections: 4,
        connect_timeout: Duration::from_secs(5),
    })
    .unwrap()
}

async fn insert(database: &TestDatabase, reference: &str) -> Uuid {
    sqlx::query_scalar("insert into paypoll.transactions (provider, reference) values ('khalti', $1) returning id")
        .bind(reference)
        .fetch_one(&database.pool)
        .await
        .unwrap()
}

async fn state(database: &TestDatabase, id: Uuid) -> String {
    sqlx::query_scalar("select state from paypoll.transactions where id = $1").bind(id).fetch_one(&database.pool).await.unwrap()
}

/// A registered replica and what it knows of the others.
async fn register(store: &Store) -> (ReplicaId, Membership) {
    let accounts = [("khalti", "default".into())];
    store.make_accounts(&accounts).await.unwrap();
    let replica = store.register(PROCESS, LEASE, &accounts, "test").await.unwrap();
    (replica, store.beat(replica, PROCESS, 0, 0, None).await.unwrap().members)
}

/// The process that all replicas of a test seem to be.
const PROCESS: Uuid = Uuid::from_u128(4711);

/// Rises with every batch and every claim.
fn number() -> i64 {
    static LAST: AtomicI64 = AtomicI64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// Who writes the next batch.
fn writer(replica: ReplicaId) -> Writer {
    Writer { replica, process: PROCESS, number: number(), acknowledged: 0 }
}

/// A claim of this many Khalti transactions that are due.
async fn order(store: &Store, replica: ReplicaId, members: &Membership, room: usize) -> ClaimOrder {
    let horizon = now(store).await + Duration::from_secs(1);
    let lanes = vec![LaneRoom::new("khalti", "default".into(), room)];
    let (members, avoid, abandoned) = (members.clone(), Vec::new(), Vec::new());
    ClaimOrder { replica, process: PROCESS, number: number(), members, lanes, horizon, avoid, abandoned }
}

async fn claim_as(store: &Store, replica: ReplicaId, members: &Membership, room: usize) -> Claim {
    let mut hold = |candidate: &mut Candidate| Placement::Hold(candidate.due);
    store.claim(&order(store, replica, members, room).await, &mut hold, &mut Vec::new()).await.unwrap()
}

async fn now(store: &Store) -> DateTime<Utc> {
    sqlx::query_scalar("select clock_timestamp()").fetch_one(store.pool()).await.unwrap()
}

/// What the daemon writes when a poll, sent now, got a final word.
async fn success(store: &Store, id: Uuid, fence: i64) -> Batch {
    let sent = now(store).await;
    Batch {
        polls: vec![poll(id, sent)],
        entries: vec![Entry {
            id,
            fence,
            hold: false,
            state: State::Succeeded,
            transition: Some(Transition {
                from: State::Pending,
                source: Source::Poll,
                evidence: Some(serde_json::json!({"http_status": 200})),
            }),
            provider_state: Some("Success".into()),
            reason: Some(None),
            action: None,
            details: Some(r#"{"state": "Success"}"#.into()),
            polls: 1,
            failures: 0,
            not_found: 0,
            last_polled_at: Some(sent),
            next: None,
            action_at: None,
            progress: Progress::default(),
        }],
        ..Batch::default()
    }
}

fn poll(id: Uuid, sent_at: DateTime<Utc>) -> Poll {
    Poll {
        transaction_id: id,
        provider: "khalti",
        account: "default".into(),
        due_at: sent_at,
        sent_at,
        latency_ms: Some(12),
        http_status: Some(200),
        outcome: "succeeded",
        error: None,
        declaration: None,
    }
}

async fn transitions(database: &TestDatabase, id: Uuid) -> Vec<(String, String, String)> {
    sqlx::query("select from_state, to_state, source from paypoll.transitions where transaction_id = $1 order by id")
        .bind(id)
        .fetch_all(&database.pool)
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect()
}

#[tokio::test]
async fn a_due_transaction_is_claimed_once_however_many_replicas_ask() {
    let database = database().await;
    let store = open(&database);
    for number in 0..200 {
        insert(&database, &format!("R{number}")).await;
    }
    let (first, _) = register(&store).await;
    let (second, members) = register(&store).await;
    let (a, b) = tokio::join!(claim_as(&store, first, &members, 150), claim_as(&store, second, &members, 150));
    let mut ids: Vec<Uuid> = a.held.iter().chain(&b.held).map(|claimed| claimed.transaction.id).collect();
    let found = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), found, "nothing is claimed twice");
    let rest = claim_as(&store, first, &members, 1000).await.held.len();
    assert_eq!(found + rest, 200, "and nothing is left behind");
}

#[tokio::test]
async fn a_change_of_state_is_announced_with_what_the_integration_page_says() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let mut bell = PgListener::connect(&database.url).await.unwrap();
    bell.listen("paypoll_transitions").await.unwrap();
    let (replica, members) = register(&store).await;
    let claimed = claim_as(&store, replica, &members, 10).await.held.remove(0);
    let batch = success(&store, id, claimed.fence).await;
    store.record(writer(replica), &batch, &mut Attempt::default()).await.unwrap();
    let heard = tokio::time::timeout(Duration::from_secs(30), bell.recv()).await.expect("a notification").unwrap();
    let transition: i64 = sqlx::query_scalar("select id from paypoll.transitions").fetch_one(&database.pool).await.unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(heard.payload()).unwrap(),
        serde_json::json!({"id": transition, "transaction_id": id, "provider": "khalti", "from": "pending", "to": "succeeded"})
    );
}

#[tokio::test]
async fn a_decision_is_written_once_with_its_transition_and_its_journal_row() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let (replica, members) = register(&store).await;
    let claimed = claim_as(&store, replica, &members, 10).await.held.remove(0);
    let batch = success(&store, id, claimed.fence).await;
    let recorded = store.record(writer(replica), &batch, &mut Attempt::default()).await.unwrap();
    assert!(recorded.refused.is_empty() && !recorded.lease_lost);
    assert_eq!(state(&database, id).await, "succeeded");
    assert_eq!(transitions(&database, id).await, [("pending".into(), "succeeded".into(), "poll".into())]);
    let signed: bool = sqlx::query_scalar("select actor = session_user || ' (as replica ' || $1 || ')' from paypoll.transitions")
        .bind(replica.0.to_string())
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert!(signed, "by the daemon's login and its replica");
    let again = store.record(writer(replica), &batch, &mut Attempt::default()).await.unwrap();
    assert!(again.refused.contains(&id), "the fence has moved on");
    assert_eq!(transitions(&database, id).await.len(), 1);
}

#[tokio::test]
async fn a_batch_whose_commit_was_answered_by_silence_is_not_written_twice() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let (replica, members) = register(&store).await;
    let claimed = claim_as(&store, replica, &members, 10).await.held.remove(0);
    let batch = success(&store, id, claimed.fence).await;
    let mut attempt = Attempt::default();
    let writer = writer(replica);
    store.record(writer, &batch, &mut attempt).await.unwrap();
    let again = store.record(writer, &batch, &mut attempt).await.unwrap();
    assert!(again.refused.is_empty(), "it was committed, and the second try says so");
    let polls: i64 = sqlx::query_scalar("select count(*) from paypoll.polls").fetch_one(&database.pool).await.unwrap();
    assert_eq!(polls, 1);
}

#[tokio::test]
async fn a_batch_whose_commit_answer_got_lost_is_not_written_twice_without_a_lease_either() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let polls = vec![poll(id, now(&store).await)];
    let batch = Batch { polls, ..Batch::default() };
    let mut attempt = Attempt::default();
    let writer = writer(ReplicaId(4711));
    for _ in 0..2 {
        assert!(store.record(writer, &batch, &mut attempt).await.unwrap().lease_lost);
    }
    let polls: i64 = sqlx::query_scalar("select count(*) from paypoll.polls").fetch_one(&database.pool).await.unwrap();
    assert_eq!(polls, 1);
}

/// A transaction's polls as its row counts them, and its owner.
async fn counted(database: &TestDatabase, id: Uuid) -> (i32, Option<i64>) {
    sqlx::query_as("select attempts, owner from paypoll.transactions where id = $1")
        .bind(id)
        .fetch_one(&database.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_claim_whose_answer_got_lost_is_released_by_the_next_one() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let (replica, members) = register(&store).await;
    let lost = claim_as(&store, replica, &members, 10).await;
    assert!(claim_as(&store, replica, &members, 10).await.held.is_empty(), "it has an owner");
    let mut hold = |candidate: &mut Candidate| Placement::Hold(candidate.due);
    let mut unsure = vec![id];
    let order = order(&store, replica, &members, 10).await;
    let claim = store.claim(&order, &mut hold, &mut unsure).await.unwrap();
    assert!(claim.held[0].fence > lost.held[0].fence && unsure.is_empty());
    assert!(claim.clock.is_some_and(|clock| clock < order.horizon));
}

#[tokio::test]
async fn a_corrected_transaction_stays_with_its_owner_until_he_lets_go_and_his_polls_are_counted() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let (replica, members) = register(&store).await;
    let claimed = claim_as(&store, replica, &members, 10).await.held.remove(0);
    sqlx::query("update paypoll.transactions set amount = 5 where id = $1").bind(id).execute(&database.pool).await.unwrap();
    let (other, members) = register(&store).await;
    assert!(claim_as(&store, other, &members, 10).await.held.is_empty(), "its owner may have a poll under way");
    let recorded = store.record(writer(replica), &success(&store, id, claimed.fence).await, &mut Attempt::default()).await.unwrap();
    assert!(recorded.refused.contains(&id));
    assert_eq!(counted(&database, id).await, (0, Some(0)), "the journal knows more");
    let taken = claim_as(&store, other, &members, 10).await.held.remove(0);
    assert_eq!(taken.transaction.attempts, 1);
    assert_eq!(counted(&database, id).await, (1, Some(other.0)));
}

#[tokio::test]
async fn polls_that_only_the_journal_knows_are_counted_when_somebody_else_settles_the_transaction() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let (replica, members) = register(&store).await;
    claim_as(&store, replica, &members, 10).await;
    let sent = now(&store).await;
    let polls = vec![poll(id, sent), poll(id, sent + Duration::from_millis(1))];
    store.record(writer(replica), &Batch { polls, ..Batch::default() }, &mut Attempt::default()).await.unwrap();
    sqlx::query("update paypoll.transactions set state = 'failed' where id = $1").bind(id).execute(&database.pool).await.unwrap();
    assert_eq!(counted(&database, id).await, (2, Some(replica.0)));
    // One that was under way, older than the last one that is counted.
    let late = Batch { polls: vec![poll(id, sent + Duration::from_micros(10))], dropped: vec![id], ..Batch::default() };
    store.record(writer(replica), &late, &mut Attempt::default()).await.unwrap();
    assert_eq!(counted(&database, id).await, (3, None));
}

#[tokio::test]
async fn nobody_dies_because_the_databases_clock_was_set_forward() {
    let database = database().await;
    let store = open(&database);
    let (judge, _) = register(&store).await;
    let (other, _) = register(&store).await;
    let before_the_step = now(&store).await;
    sqlx::query("update paypoll.replicas set heartbeat_at = heartbeat_at - interval '300 seconds' where id = $1")
        .bind(other.0)
        .execute(&database.pool)
        .await
        .unwrap();
    let step = Duration::from_secs(300);
    assert_eq!(store.beat(judge, PROCESS, 0, 0, Some(before_the_step - step)).await.unwrap().members.living, [judge.0, other.0]);
    assert_eq!(store.beat(judge, PROCESS, 0, 0, JUDGE).await.unwrap().members.living, [judge.0]);
}

#[tokio::test]
async fn whatever_others_change_of_a_held_row_is_told_to_its_owner_until_it_lets_go() {
    let changes = [
        "update paypoll.transactions set state = 'failed'",
        "update paypoll.transactions set amount = 7",
        "update paypoll.transactions set next_poll_at = now()",
        "update paypoll.transactions set account = 'default', reference = 'other'",
    ];
    for change in changes {
        let database = database().await;
        let store = open(&database);
        let id = insert(&database, "R1").await;
        let (replica, members) = register(&store).await;
        let claimed = claim_as(&store, replica, &members, 10).await.held.remove(0);
        assert_eq!(store.overrides(replica).await.unwrap(), []);
        sqlx::query(change).execute(&database.pool).await.unwrap();
        for _ in 0..2 {
            assert_eq!(store.overrides(replica).await.unwrap(), [Override { id, fence: claimed.fence + 1 }], "{change}");
        }
        let dropped = Batch { dropped: vec![id], ..Batch::default() };
        store.record(writer(replica), &dropped, &mut Attempt::default()).await.unwrap();
        assert_eq!(store.overrides(replica).await.unwrap(), [], "{change}");
    }
}

#[tokio::test]
async fn an_external_final_state_wins_over_a_poll_in_flight_and_the_poll_is_counted() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let (replica, members) = register(&store).await;
    let claimed = claim_as(&store, replica, &members, 10).await.held.remove(0);
    sqlx::query("update paypoll.transactions set state = 'failed' where id = $1").bind(id).execute(&database.pool).await.unwrap();
    let overrides = store.overrides(replica).await.unwrap();
    assert_eq!(overrides.len(), 1);
    assert!(overrides[0].id == id && overrides[0].fence > claimed.fence);
    let recorded = store.record(writer(replica), &success(&store, id, claimed.fence).await, &mut Attempt::default()).await.unwrap();
    assert!(recorded.refused.contains(&id));
    assert_eq!(state(&database, id).await, "failed");
    assert_eq!(transitions(&database, id).await, [("pending".into(), "failed".into(), "external".into())]);
    let (attempts, owner): (i32, Option<i64>) = sqlx::query_as("select attempts, owner from paypoll.transactions where id = $1")
        .bind(id)
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!((attempts, owner), (1, None));
}

#[tokio::test]
async fn a_row_that_somebody_keeps_locked_is_left_out_of_its_batch_and_holds_up_no_other() {
    let database = database().await;
    let store = open(&database);
    let (locked, free, deleted) = (insert(&database, "R1").await, insert(&database, "R2").await, insert(&database, "R3").await);
    let (replica, members) = register(&store).await;
    let mut batch = Batch::default();
    for claimed in claim_as(&store, replica, &members, 10).await.held {
        let Batch { polls, entries, .. } = success(&store, claimed.transaction.id, claimed.fence).await;
        batch.polls.extend(polls);
        batch.entries.extend(entries);
    }
    sqlx::query("delete from paypoll.transactions where id = $1").bind(deleted).execute(&database.pool).await.unwrap();
    let mut console = database.pool.begin().await.unwrap();
    sqlx::query("select from paypoll.transactions where id = $1 for share").bind(locked).execute(&mut *console).await.unwrap();
    let recorded = store.record(writer(replica), &batch, &mut Attempt::default()).await.unwrap();
    assert_eq!(recorded.locked, HashSet::from([locked]));
    assert_eq!(recorded.refused, HashSet::from([deleted]), "it is gone, not locked");
    assert_eq!((state(&database, locked).await, state(&database, free).await), ("pending".into(), "succeeded".into()));
    let mut rest = batch.split_off(|id| id == locked);
    rest.skip_locked = true;
    let recorded = store.record(writer(replica), &rest, &mut Attempt::default()).await.unwrap();
    assert_eq!(recorded.locked, HashSet::from([locked]));
    console.rollback().await.unwrap();
    let recorded = store.record(writer(replica), &rest, &mut Attempt::default()).await.unwrap();
    assert_eq!(recorded, Recorded::default());
    assert_eq!(state(&database, locked).await, "succeeded");
    assert_eq!(transitions(&database, locked).await, [("pending".into(), "succeeded".into(), "poll".into())]);
    let polls: i64 = sqlx::query_scalar("select count(*) from paypoll.polls").fetch_one(&database.pool).await.unwrap();
    assert_eq!(polls, 3, "each poll was journaled once");
}

#[tokio::test]
async fn a_long_read_of_the_journal_keeps_nobody_from_writing_to_it() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let (replica, _) = register(&store).await;
    let long_ago = now(&store).await - Duration::from_secs(40 * 24 * 3600);
    store.make_journal(Some(long_ago)).await.unwrap();
    let mut reader = database.pool.begin().await.unwrap();
    sqlx::query("select count(*) from paypoll.polls").execute(&mut *reader).await.unwrap();
    store.make_journal(Some(long_ago - Duration::from_secs(24 * 3600))).await.unwrap();
    let refused = store.prune_journal(Duration::from_secs(30 * 24 * 3600)).await.unwrap_err();
    assert!(refused.to_string().contains("lock timeout"), "{refused}");
    let polls = vec![poll(id, long_ago - Duration::from_secs(24 * 3600))];
    store.record(writer(replica), &Batch { polls, ..Batch::default() }, &mut Attempt::default()).await.unwrap();
    reader.rollback().await.unwrap();
    assert!(store.prune_journal(Duration::from_secs(30 * 24 * 3600)).await.unwrap() > 0);
}

#[tokio::test]
async fn a_replica_that_lost_its_lease_writes_nothing_but_the_journal() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let (replica, members) = register(&store).await;
    let claimed = claim_as(&store, replica, &members, 10).await.held.remove(0);
    store.deregister(replica, PROCESS).await.unwrap();
    let recorded = store.record(writer(replica), &success(&store, id, claimed.fence).await, &mut Attempt::default()).await.unwrap();
    assert!(recorded.lease_lost);
    assert_eq!(state(&database, id).await, "pending");
    let (successor, members) = register(&store).await;
    let taken = claim_as(&store, successor, &members, 10).await.held.remove(0);
    assert_eq!(taken.transaction.attempts, 1, "the poll that was sent counts as sent");
    assert!(taken.fence > claimed.fence);
}

#[tokio::test]
async fn polls_of_a_lost_lease_are_counted_where_somebody_else_has_settled_the_transaction() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let (replica, members) = register(&store).await;
    let claimed = claim_as(&store, replica, &members, 10).await.held.remove(0);
    let Batch { polls, entries, .. } = success(&store, id, claimed.fence).await;
    sqlx::query("update paypoll.transactions set state = 'failed' where id = $1").bind(id).execute(&database.pool).await.unwrap();
    // The poll first, as for a transaction that stays held; its row when the lease is lost.
    store.record(writer(replica), &Batch { polls, ..Batch::default() }, &mut Attempt::default()).await.unwrap();
    store.deregister(replica, PROCESS).await.unwrap();
    let recorded = store.record(writer(replica), &Batch { entries, ..Batch::default() }, &mut Attempt::default()).await.unwrap();
    assert!(recorded.lease_lost);
    assert_eq!((state(&database, id).await, counted(&database, id).await.0), ("failed".into(), 1));
}

#[tokio::test]
async fn a_dead_replica_is_found_by_its_lease_and_its_transactions_are_taken_over_with_their_journal() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let (dead, members) = register(&store).await;
    claim_as(&store, dead, &members, 10).await;
    // Two polls that are in the journal and not yet in the row.
    let sent = now(&store).await;
    let polls = vec![poll(id, sent), poll(id, sent + Duration::from_secs(1))];
    store.record(writer(dead), &Batch { polls, ..Batch::default() }, &mut Attempt::default()).await.unwrap();
    let (successor, _) = register(&store).await;
    let alive = store.beat(successor, PROCESS, 0, 0, JUDGE).await.unwrap().members;
    assert!(claim_as(&store, successor, &alive, 10).await.held.is_empty(), "its owner lives");
    sqlx::query("update paypoll.replicas set heartbeat_at = heartbeat_at - interval '16 seconds' where id = $1")
        .bind(dead.0)
        .execute(&database.pool)
        .await
        .unwrap();
    let after = store.beat(successor, PROCESS, 0, 0, JUDGE).await.unwrap().members;
    assert_eq!(after.living, [successor.0]);
    let taken = claim_as(&store, successor, &after, 10).await.held.remove(0);
    assert_eq!(taken.transaction.attempts, 2);
    assert!(!store.beat(dead, PROCESS, 0, 0, None).await.unwrap().alive);
}

#[tokio::test]
async fn a_late_poll_is_counted_also_when_somebody_claims_its_transaction_at_that_moment() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let (dead, members) = register(&store).await;
    claim_as(&store, dead, &members, 10).await;
    store.deregister(dead, PROCESS).await.unwrap();
    let (claimant, _) = register(&store).await;
    // A claim that has read the journal and is not committed yet.
    let mut claim = database.pool.begin().await.unwrap();
    sqlx::query("update paypoll.transactions set owner = $2, fence = fence + 1 where id = $1")
        .bind(id)
        .bind(claimant.0)
        .execute(&mut *claim)
        .await
        .unwrap();
    let batch = Batch { polls: vec![poll(id, now(&store).await)], ..Batch::default() };
    let late = tokio::spawn({
        let store = store.clone();
        async move { store.record(writer(dead), &batch, &mut Attempt::default()).await.unwrap() }
    });
    eventually("the late record waits for the claim", || async {
        let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        (sqlx::query_scalar::<_, i64>(waits).fetch_one(&database.pool).await.unwrap() == 1).then_some(())
    })
    .await;
    claim.commit().await.unwrap();
    assert!(late.await.unwrap().lease_lost);
    assert_eq!(counted(&database, id).await.0, 1, "the claimant could not know of it");
    assert_eq!(counted(&database, id).await.1, Some(claimant.0));
}

#[tokio::test]
async fn a_replica_in_the_middle_of_a_record_delays_no_heartbeat_of_others() {
    let database = database().await;
    let store = open(&database);
    let (stopped, _) = register(&store).await;
    let (other, _) = register(&store).await;
    // It stopped between two statements, holding its lease, and sent no heartbeat since.
    let mut record = database.pool.begin().await.unwrap();
    sqlx::query("select id from paypoll.replicas where id = $1 for key share")
        .bind(stopped.0)
        .fetch_one(&mut *record)
        .await
        .unwrap();
    sqlx::query("update paypoll.replicas set heartbeat_at = heartbeat_at - interval '1 hour' where id = $1")
        .bind(stopped.0)
        .execute(&database.pool)
        .await
        .unwrap();
    let beat = tokio::time::timeout(Duration::from_secs(5), store.beat(other, PROCESS, 0, 0, JUDGE))
        .await
        .expect("it is not kept waiting")
        .unwrap();
    assert_eq!(beat.members.living, [stopped.0, other.0], "a record under way is under its lease");
    record.rollback().await.unwrap();
    assert_eq!(store.beat(other, PROCESS, 0, 0, JUDGE).await.unwrap().members.living, [other.0]);
}

#[tokio::test]
async fn a_final_state_changes_by_override_only_and_every_change_leaves_one_transition() {
    let database = database().await;
    let id = insert(&database, "R1").await;
    let set = |state: &'static str| {
        let pool = database.pool.clone();
        async move { sqlx::query("update paypoll.transactions set state = $2 where id = $1").bind(id).bind(state).execute(&pool).await }
    };
    assert!(set("action_required").await.is_err(), "only the daemon says so");
    set("unresolved").await.unwrap();
    set("succeeded").await.unwrap();
    let refused = set("failed").await.unwrap_err().to_string();
    assert!(refused.contains("override_state"), "{refused}");
    assert!(set("pending").await.is_err());
    sqlx::query("select paypoll.override_state($1, 'failed', 'the bank recalled it')")
        .bind(id)
        .execute(&database.pool)
        .await
        .unwrap();
    let sources: Vec<String> = transitions(&database, id).await.into_iter().map(|(.., source)| source).collect();
    assert_eq!(sources, ["external", "external", "operator"]);
    let consistent: bool = sqlx::query_scalar(
        "select finalized_at is not null and next_poll_at is null and action is null from paypoll.transactions where id = $1",
    )
    .bind(id)
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert!(consistent);
}

#[tokio::test]
async fn a_callback_settles_once_however_often_it_is_delivered() {
    let database = database().await;
    let id = insert(&database, "R1").await;
    let settle = |state: &'static str| {
        let pool = database.pool.clone();
        async move {
            sqlx::query_scalar::<_, bool>(
                "select paypoll.settle('khalti', 'default', 'R1', $1, 'Success', null, '{\"callback\": 1}')",
            )
            .bind(state)
            .fetch_one(&pool)
            .await
        }
    };
    assert!(settle("succeeded").await.unwrap());
    assert!(!settle("succeeded").await.unwrap());
    assert!(settle("failed").await.is_err());
    assert_eq!(transitions(&database, id).await, [("pending".into(), "succeeded".into(), "external".into())]);
}

#[tokio::test]
async fn rows_that_make_no_sense_are_refused_with_the_mistake_in_words() {
    let database = database().await;
    let refuse = |sql: &'static str| {
        let pool = database.pool.clone();
        async move { sqlx::query(sql).execute(&pool).await.unwrap_err().to_string() }
    };
    insert(&database, "R1").await;
    let provider = refuse("insert into paypoll.transactions (provider, reference) values ('paypal', 'R2')").await;
    assert!(provider.contains("'paypal' is not known"), "{provider}");
    let empty = refuse("insert into paypoll.transactions (provider, reference) values ('khalti', '')").await;
    assert!(empty.contains("reference has 0 characters"), "{empty}");
    let long = refuse("insert into paypoll.transactions (provider, reference) values ('khalti', repeat('x', 10240))").await;
    assert!(long.contains("reference has 10240 characters"), "{long}");
    let twice = refuse("insert into paypoll.transactions (provider, reference) values ('khalti', 'R1')").await;
    assert!(twice.contains("transactions_provider_account_reference_key"), "{twice}");
    let state = refuse("insert into paypoll.transactions (provider, reference, state) values ('khalti', 'R3', 'succeeded')").await;
    assert!(state.contains("begins as pending"), "{state}");
    let history = refuse("delete from paypoll.transitions").await;
    assert!(history.contains("append-only"), "{history}");
}

#[tokio::test]
async fn an_initiation_in_the_future_makes_the_row_invalid_and_infinity_does_no_harm() {
    let database = database().await;
    for (reference, initiated_at) in [("R1", "now() + interval '1 hour'"), ("R2", "'infinity'"), ("R3", "'-infinity'")] {
        let sql = format!(
            "insert into paypoll.transactions (provider, reference, initiated_at) values ('khalti', '{reference}', {initiated_at})"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&database.pool).await.unwrap();
    }
    let rows = sqlx::query("select state, reason, initiated_at, next_poll_at from paypoll.transactions")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    for row in rows {
        assert_eq!(row.get::<String, _>("state"), "invalid");
        assert!(row.get::<String, _>("reason").contains("initiated_at"));
        assert!(row.get::<DateTime<Utc>, _>("initiated_at") < Utc.with_year(10_000));
        assert_eq!(row.get::<Option<DateTime<Utc>>, _>("next_poll_at"), None);
    }
}

trait Year {
    fn with_year(self, year: i32) -> DateTime<Utc>;
}
impl Year for Utc {
    fn with_year(self, year: i32) -> DateTime<Utc> {
        chrono::NaiveDate::from_ymd_opt(year, 1, 1).unwrap().and_hms_opt(0, 0, 0).unwrap().and_utc()
    }
}

#[tokio::test]
async fn secrets_that_came_with_a_row_are_erased_when_it_is_final() {
    let database = database().await;
    let id: Uuid = sqlx::query_scalar(
        "insert into paypoll.transactions (provider, reference, params)
         values ('dropayment', 'R1', '{\"endpointId\": \"1\", \"session\": {\"token\": \"canary\"}}') returning id",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    sqlx::query("update paypoll.transactions set state = 'succeeded' where id = $1")
        .bind(id)
        .execute(&database.pool)
        .await
        .unwrap();
    let params: String = sqlx::query_scalar("select params::text from paypoll.transactions where id = $1")
        .bind(id)
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!(params, "{\"endpointId\": \"1\"}");
}

#[tokio::test]
async fn the_feed_never_passes_a_transition_that_is_not_committed_yet() {
    let database = database().await;
    let (slow, fast) = (insert(&database, "slow").await, insert(&database, "fast").await);
    let settle = "update paypoll.transactions set state = 'succeeded' where id = $1";
    let read = |cursor: i64| {
        let pool = database.pool.clone();
        async move {
            let rows = sqlx::query("select id, transaction_id from paypoll.transitions_since($1, 100)")
                .bind(cursor)
                .fetch_all(&pool)
                .await
                .unwrap();
            rows.iter().map(|row| (row.get::<i64, _>(0), row.get::<Uuid, _>(1))).collect::<Vec<_>>()
        }
    };
    let mut open = database.pool.begin().await.unwrap();
    sqlx::query(settle).bind(slow).execute(&mut *open).await.unwrap();
    sqlx::query(settle).bind(fast).execute(&database.pool).await.unwrap();
    assert_eq!(read(0).await, [], "the earlier one may still come");
    open.commit().await.unwrap();
    let all = read(0).await;
    assert_eq!(all.iter().map(|(_, id)| *id).collect::<Vec<_>>(), [slow, fast]);
    assert_eq!(read(all[1].0).await, []);
}

/// Slots at 10 a second with a burst of 10.
fn wish(wanted: u32) -> Draw {
    let (gap, tolerance) = (Duration::from_millis(100), Duration::from_millis(900));
    Draw { provider: "khalti", account: "default".into(), wanted, gap, tolerance }
}

#[tokio::test]
async fn replicas_together_draw_no_more_slots_than_the_accounts_budget() {
    let database = database().await;
    let (one, two) = (open(&database), open(&database));
    register(&one).await;
    let draw = wish(1000);
    let (a, b) = tokio::join!(one.draw(std::slice::from_ref(&draw)), two.draw(std::slice::from_ref(&draw)));
    let slots: u32 = a.unwrap().iter().chain(&b.unwrap()).map(|drawn| drawn.slots).sum();
    // Ten at once, and what falls due in the 300 ms ahead.
    assert!((13..=14).contains(&slots), "{slots}");
    one.slow_down("khalti", "default", Duration::from_secs(60)).await.unwrap();
    assert_eq!(two.draw(&[draw]).await.unwrap()[0].slots, 0, "a pause holds for all");
}

#[tokio::test]
async fn an_account_that_was_slowed_down_regains_its_pace_gradually_and_keeps_it_for_good() {
    let database = database().await;
    let store = open(&database);
    register(&store).await;
    let draw = wish(1);
    let gap_after = async |seconds: i64| {
        let since = "update paypoll.accounts set slowed_at = clock_timestamp() - make_interval(secs => $1), held_until = slowed_at";
        sqlx::query(since).bind(seconds as f64).execute(&database.pool).await.unwrap();
        store.draw(std::slice::from_ref(&draw)).await.unwrap()[0].gap
    };
    store.slow_down("khalti", "default", Duration::ZERO).await.unwrap();
    for (seconds, gap) in [(0, 0.2), (10, 0.1414), (20, 0.1), (86_400, 0.1), (1_000_000_000, 0.1)] {
        let drawn = gap_after(seconds).await;
        assert!((drawn / gap - 1.0).abs() < 0.02, "{seconds} s later: {drawn} s between two requests");
    }
    store.slow_down("khalti", "default", Duration::ZERO).await.unwrap();
    assert!((gap_after(0).await / 0.2 - 1.0).abs() < 0.02, "as if it were the first time");
}

#[tokio::test]
async fn a_budget_that_was_booked_by_a_clock_that_was_set_back_is_not_sat_out() {
    let database = database().await;
    let store = open(&database);
    register(&store).await;
    let draw = wish(1);
    sqlx::query("update paypoll.accounts set arrival_at = now() + interval '3 years'").execute(&database.pool).await.unwrap();
    let drawn = store.draw(std::slice::from_ref(&draw)).await.unwrap()[0];
    assert_eq!(drawn.slots, 0, "not at once: so much may have been sent");
    eventually("a slot", || async { (store.draw(std::slice::from_ref(&draw)).await.unwrap()[0].slots > 0).then_some(()) }).await;
}

#[tokio::test]
async fn what_no_daemon_could_read_is_refused_whoever_writes_it() {
    let database = database().await;
    insert(&database, "R").await;
    register(&open(&database)).await;
    let refused = async |update: String| {
        let refusal = sqlx::raw_sql(sqlx::AssertSqlSafe(update.clone())).execute(&database.pool).await.expect_err(&update);
        refusal.as_database_error().and_then(sqlx::error::DatabaseError::code).unwrap_or_default().into_owned()
    };
    assert_eq!(refused("update paypoll.transactions set owner = 99999".into()).await, "23001");
    let times =
        ["last_polled_at", "opened_at", "phase_since", "not_before", "reopened_at", "action_at", "finalized_at", "created_at"];
    let times = times.into_iter().flat_map(|column| ["'infinity'", "'-infinity'", "'294000-01-01'"].map(|value| (column, value)));
    let counts = [("gaps", "-1"), ("phase", "-1"), ("not_found", "-1"), ("attempts", "-1")];
    for (column, value) in times.chain(counts) {
        let anybody = format!("update paypoll.transactions set {column} = {value}");
        assert_eq!(refused(anybody).await, "23001", "{column} = {value}");
        let daemon = format!("update paypoll.transactions set fence = fence + 1, {column} = {value}");
        assert_eq!(refused(daemon).await, "23514", "{column} = {value}");
    }
    assert_eq!(refused("update paypoll.transactions set fence = 9223372036854775807".into()).await, "23001");
    for (column, value) in [("held_until", "'infinity'"), ("probe_at", "'infinity'"), ("slowdown", "'NaN'")] {
        assert_eq!(refused(format!("update paypoll.accounts set {column} = {value}")).await, "23514", "{column} = {value}");
    }
}

#[tokio::test]
async fn rows_in_a_state_of_a_newer_version_are_left_to_it_and_stop_none_of_the_others() {
    let database = database().await;
    for number in 0..5 {
        insert(&database, &format!("newer-{number}")).await;
    }
    // A newer schema: one more state, which is polled.
    let newer = "
        alter table paypoll.transactions disable trigger guard_state, drop constraint transactions_state_check;
        update paypoll.transactions set state = 'disputed', fence = fence + 1";
    sqlx::raw_sql(newer).execute(&database.pool).await.unwrap();
    let known = insert(&database, "known").await;
    let store = open(&database);
    let (replica, members) = register(&store).await;
    let held = claim_as(&store, replica, &members, 2).await.held;
    assert_eq!(held.iter().map(|held| held.transaction.id).collect::<Vec<_>>(), [known]);
}

#[tokio::test]
async fn work_that_panics_fails_like_any_other() {
    let store = open(&database().await);
    let broken = store.within(LEASE, async { panic!("an unreadable row") });
    let result: Result<(), StoreError> = broken.await;
    assert!(result.is_err_and(|error| error.to_string().contains("cannot be read")));
}

#[tokio::test]
async fn a_circuit_opens_once_and_one_replica_probes() {
    let database = database().await;
    let (one, two) = (open(&database), open(&database));
    register(&one).await;
    let hour = Duration::from_secs(3600);
    assert!(one.open_circuit("khalti", "default", "down", Duration::ZERO).await.unwrap());
    assert!(!two.open_circuit("khalti", "default", "down", Duration::ZERO).await.unwrap());
    let (a, b) = tokio::join!(one.take_probe("khalti", "default", hour), two.take_probe("khalti", "default", hour));
    assert!(a.unwrap() ^ b.unwrap());
    assert_eq!(one.account_states().await.unwrap().len(), 1);
    assert!(two.close_circuit("khalti", "default").await.unwrap());
    assert!(!one.close_circuit("khalti", "default").await.unwrap());
}

/// Claims as the daemon does, under Khalti's default rules.
async fn claim_by_rules(store: &Store, replica: ReplicaId, members: &Membership) -> Claim {
    let settings = [("ENABLED", "true"), ("ACCOUNTS__DEFAULT__TOKEN", "token")];
    let settings = settings.map(|(key, value)| (format!("PAYPOLL__PROVIDERS__KHALTI__{key}"), value.to_owned()));
    let config = Config::load(&[], settings.into_iter(), 1.0).unwrap();
    let now = now(store).await;
    let order = order(store, replica, members, 10).await;
    let mut placer = Placer::new(vec![(scheduler::lanes(&config)[0].clone(), 10)], 10, now, order.horizon, 1);
    let mut place = |candidate: &mut Candidate| placer.place(candidate);
    store.claim(&order, &mut place, &mut Vec::new()).await.unwrap()
}

#[tokio::test]
async fn a_poll_that_a_dead_owner_may_have_sent_is_reckoned_with_even_when_a_hand_calls_for_one_at_once() {
    let database = database().await;
    let store = open(&database);
    sqlx::query(
        "insert into paypoll.transactions (provider, reference, initiated_at) values ('khalti', 'A', now() - interval '1 hour')",
    )
    .execute(&database.pool)
    .await
    .unwrap();
    let (dead, members) = register(&store).await;
    assert_eq!(claim_by_rules(&store, dead, &members).await.held.len(), 1);
    store.deregister(dead, PROCESS).await.unwrap();

    let (replica, members) = register(&store).await;
    assert!(claim_by_rules(&store, replica, &members).await.held.is_empty(), "whatever it sent counts as sent");
    sqlx::query("update paypoll.transactions set next_poll_at = now()").execute(&database.pool).await.unwrap();
    let claim = claim_by_rules(&store, replica, &members).await;
    assert_eq!((claim.held.len(), claim.found[0].backlog), (0, 1), "found, and not asked about");
    let waits: bool = sqlx::query_scalar("select next_poll_at > now() + interval '4 minutes' from paypoll.transactions")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert!(waits, "its documented interval");
}

#[tokio::test]
async fn a_hand_takes_no_transaction_from_a_living_owner_and_none_from_the_journal() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let (replica, members) = register(&store).await;
    let claimed = claim_as(&store, replica, &members, 10).await.held.remove(0);
    for owner in ["null", "0"] {
        execute(&database, &format!("update paypoll.transactions set owner = {owner}")).await;
        assert_eq!(counted(&database, id).await.1, Some(replica.0), "it may have a poll under way");
    }
    let recorded = store.record(writer(replica), &success(&store, id, claimed.fence).await, &mut Attempt::default()).await.unwrap();
    assert!(recorded.refused.is_empty(), "and nothing has changed for it");

    let id = insert(&database, "R2").await;
    claim_as(&store, replica, &members, 10).await;
    store.deregister(replica, PROCESS).await.unwrap();
    execute(&database, "update paypoll.transactions set owner = null where reference = 'R2'").await;
    assert_eq!(counted(&database, id).await.1, Some(0), "what the dead one has sent is looked up");
}

#[tokio::test]
async fn a_transaction_that_was_reopened_while_it_was_held_is_let_go_of() {
    let database = database().await;
    let store = open(&database);
    let id = insert(&database, "R1").await;
    let (replica, members) = register(&store).await;
    let claimed = claim_as(&store, replica, &members, 10).await.held.remove(0);
    execute(&database, "update paypoll.transactions set state = 'unresolved'").await;
    assert_eq!(store.reopen(&[id], None, "a test").await.unwrap()[0].obstacle, None);
    assert!(claim_as(&store, replica, &members, 10).await.held.is_empty(), "its owner may have a poll under way");
    let recorded = store.record(writer(replica), &success(&store, id, claimed.fence).await, &mut Attempt::default()).await.unwrap();
    assert!(recorded.refused.contains(&id));
    assert_eq!(counted(&database, id).await.1, Some(0));
    assert_eq!(claim_as(&store, replica, &members, 10).await.held.len(), 1);
}

#[tokio::test]
async fn a_transaction_that_was_settled_or_overridden_while_it_was_held_is_let_go_of() {
    for settle in [
        "select paypoll.settle('khalti', 'default', 'R1', 'unresolved')".to_owned(),
        "select paypoll.override_state(id, 'unresolved', 'x') from paypoll.transactions".to_owned(),
    ] {
        let database = database().await;
        let store = open(&database);
        let id = insert(&database, "R1").await;
        let (replica, members) = register(&store).await;
        let claimed = claim_as(&store, replica, &members, 10).await.held.remove(0);
        execute(&database, &settle).await;
        let recorded =
            store.record(writer(replica), &success(&store, id, claimed.fence).await, &mut Attempt::default()).await.unwrap();
        assert!(recorded.refused.contains(&id));
        assert_eq!(counted(&database, id).await, (1, None), "{settle}");
    }
}

#[tokio::test]
async fn a_fence_at_the_end_of_its_range_stops_no_claim_and_is_no_end_of_its_transaction() {
    let database = database().await;
    let store = open(&database);
    let ids = [insert(&database, "R1").await, insert(&database, "R2").await];
    execute(
        &database,
        "alter table paypoll.transactions disable trigger user;
         update paypoll.transactions set fence = (1::bigint << 62) - 1 where reference = 'R1';
         alter table paypoll.transactions enable trigger user",
    )
    .await;
    let (replica, members) = register(&store).await;
    let held = claim_as(&store, replica, &members, 10).await.held;
    assert_eq!(held.len(), 2);
    for claimed in held {
        store
            .record(writer(replica), &success(&store, claimed.transaction.id, claimed.fence).await, &mut Attempt::default())
            .await
            .unwrap();
    }
    assert_eq!(state(&database, ids[1]).await, "succeeded");
    let again = claim_as(&store, replica, &members, 10).await.held.remove(0);
    store
        .record(writer(replica), &success(&store, again.transaction.id, again.fence).await, &mut Attempt::default())
        .await
        .unwrap();
    assert_eq!(state(&database, ids[0]).await, "succeeded");
}

async fn execute(database: &TestDatabase, statements: &str) {
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(statements.to_owned())).execute(&database.pool).await;
    done.unwrap_or_else(|error| panic!("{statements}: {error}"));
}

/// Until when the transaction with that reference may not be polled because of its last poll: by
/// Khalti's rules.
async fn last_polled(database: &TestDatabase, reference: &str) -> Option<DateTime<Utc>> {
    sqlx::query_scalar("select last_polled_at from paypoll.transactions where reference = $1")
        .bind(reference)
        .fetch_one(&database.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn two_transactions_that_exchange_their_references_ask_about_neither_early() {
    let database = database().await;
    let store = open(&database);
    let rows = "insert into paypoll.transactions (provider, reference, initiated_at)
                select 'khalti', unnest(array['A', 'B']), now() - interval '1 hour'";
    execute(&database, rows).await;
    let (replica, members) = register(&store).await;
    let held = claim_by_rules(&store, replica, &members).await.held;
    assert_eq!(held.len(), 2);
    // A was polled just now, B long ago; no replica owns them any more.
    let moment = now(&store).await;
    let sent = |of: &str| if of == "A" { moment } else { moment - Duration::from_secs(1800) };
    let mut batch = Batch::default();
    for claimed in &held {
        let transaction = &claimed.transaction;
        let mut one = success(&store, transaction.id, claimed.fence).await;
        let at = sent(&transaction.reference);
        one.polls[0].sent_at = at;
        let entry = &mut one.entries[0];
        (entry.state, entry.transition, entry.next, entry.last_polled_at) = (State::Pending, None, Some(moment), Some(at));
        entry.progress.opened_at = Some(at);
        batch.polls.extend(one.polls);
        batch.entries.extend(one.entries);
    }
    store.record(writer(replica), &batch, &mut Attempt::default()).await.unwrap();
    execute(
        &database,
        "update paypoll.transactions set reference = 'C' where reference = 'A';
         update paypoll.transactions set reference = 'A' where reference = 'B';
         update paypoll.transactions set reference = 'B' where reference = 'C'",
    )
    .await;
    assert_eq!(last_polled(&database, "A").await, Some(moment), "whose reference it is now");
    execute(&database, "update paypoll.transactions set next_poll_at = now()").await;
    assert!(claim_by_rules(&store, replica, &members).await.held.is_empty(), "A for A's poll, B for its own");
}

#[tokio::test]
async fn a_reference_that_was_given_up_while_its_row_was_held_is_not_free_before_its_owner_has_noticed() {
    for give_up in ["update paypoll.transactions set reference = 'B' where reference = 'A'", "delete from paypoll.transactions"] {
        let database = database().await;
        let store = open(&database);
        insert(&database, "A").await;
        let (replica, members) = register(&store).await;
        assert_eq!(claim_as(&store, replica, &members, 10).await.held.len(), 1);
        let before = now(&store).await;
        execute(&database, give_up).await;
        insert(&database, "A").await;
        let polled = last_polled(&database, "A").await.unwrap();
        assert!(polled >= before + LEASE && polled <= now(&store).await + LEASE, "{give_up}: {before} {polled}");
        assert_eq!(claim_by_rules(&store, replica, &members).await.held.len(), 0);
    }
}

#[tokio::test]
async fn a_reference_that_was_never_asked_about_is_free_at_once() {
    let database = database().await;
    insert(&database, "A").await;
    execute(&database, "update paypoll.transactions set reference = 'B'").await;
    insert(&database, "A").await;
    assert_eq!((last_polled(&database, "A").await, last_polled(&database, "B").await), (None, None));
}

#[tokio::test]
async fn a_reference_that_is_being_given_up_at_this_moment_keeps_its_floor_too() {
    let database = database().await;
    let store = open(&database);
    insert(&database, "A").await;
    let (replica, members) = register(&store).await;
    assert_eq!(claim_as(&store, replica, &members, 10).await.held.len(), 1);
    let mut correction = database.pool.begin().await.unwrap();
    sqlx::query("update paypoll.transactions set reference = 'B'").execute(&mut *correction).await.unwrap();
    let inserted = tokio::spawn({
        let pool = database.pool.clone();
        async move { sqlx::query("insert into paypoll.transactions (provider, reference) values ('khalti', 'A')").execute(&pool).await }
    });
    eventually("the insert waits for the correction", || async {
        let waiting =
            "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and query like 'insert into paypoll.tr%')";
        sqlx::query_scalar::<_, bool>(waiting).fetch_one(&database.pool).await.unwrap().then_some(())
    })
    .await;
    correction.commit().await.unwrap();
    inserted.await.unwrap().unwrap();
    assert!(last_polled(&database, "A").await.is_some());
}

#[tokio::test]
async fn what_was_given_up_long_ago_is_forgotten() {
    let database = database().await;
    execute(
        &database,
        "insert into paypoll.vacated select 'khalti', 'default', 'old' || n, now() - interval '3 days' from generate_series(1, 15) n;
         insert into paypoll.transactions (provider, reference) values ('khalti', 'A'), ('khalti', 'B');
         update paypoll.transactions set reference = reference || '1'",
    )
    .await;
    let left: i64 = sqlx::query_scalar("select count(*) from paypoll.vacated").fetch_one(&database.pool).await.unwrap();
    assert_eq!(left, 0);
}

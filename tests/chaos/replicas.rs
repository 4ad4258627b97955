//! Trouble with replicas: killed, paused, joined by others.

use crate::network::Proxy;
use crate::stage::{Inserted, Replica, Stage};
use crate::support::{self, eventually};
use crate::tally::{Journal, Trouble, in_span, now};
use paypoll::simulator::Budget;
use rustix::process::Signal;
use std::time::{Duration, Instant};

const REPLICAS: &str = "select count(*) from paypoll.replicas";
const NEWEST: &str = "select max(id) from paypoll.replicas";

#[tokio::test]
async fn a_replica_that_is_killed_twenty_times_loses_and_doubles_nothing() {
    let stage = Stage::new().await;
    let mut replica = stage.replica();
    let mut inserted = stage.insert(40, 12).await;
    stage.steady(&inserted).await;
    let mut trouble = Trouble::begins();
    for round in 1..=20 {
        let registered = stage.count(NEWEST).await;
        replica.kill();
        // What the dead one owned is not polled for a lease; this is due at once.
        inserted.extend(stage.insert(4, 8).await);
        replica = stage.replica();
        if round % 5 == 0 {
            stage.asked(2).await;
        } else {
            eventually("it is registered", || async { (stage.count(NEWEST).await > registered).then_some(()) }).await;
        }
    }
    trouble.is_over();
    stage.settle("a replica killed -9 and restarted 20 times", &inserted, Journal::Inexact, trouble).await;
}

#[tokio::test]
async fn a_replica_that_is_paused_beyond_its_lease_neither_sends_nor_writes_on_its_old_claims() {
    let mut stage = Stage::new().await;
    let way = stage.provider_proxy();
    let paused = stage.replica();
    let inserted = stage.insert(60, 16).await;
    stage.steady(&inserted).await;
    stage.ask_at(stage.provider.address);
    let other = stage.replica();
    replicas(&stage, 2).await;
    let held = inserted_ids(&inserted);
    let mut trouble = Trouble::begins();
    paused.signal(Signal::STOP);
    eventually("the other one has declared it dead", || async { (stage.count(REPLICAS).await == 1).then_some(()) }).await;
    eventually("the other one holds everything", || async {
        let owners = "select count(*) from paypoll.transactions t join paypoll.replicas r on r.id = t.owner where t.id = any ($1)";
        let owned: i64 = sqlx::query_scalar(owners).bind(&held).fetch_one(&stage.pool).await.unwrap();
        (owned == held.len() as i64).then_some(())
    })
    .await;
    let (sent, told) = (way.carried(), paused.told("transition").len());
    paused.signal(Signal::CONT);
    trouble.is_over();
    paused.tells("database_lost").await;
    paused.tells("database_back").await;
    // A request whose connection was just being made when the process stood still counts as sent,
    // although it never arrived.
    stage.settle("a replica paused (SIGSTOP) beyond its lease", &inserted, Journal::Inexact, trouble).await;
    assert_eq!(paused.told("transition").len(), told, "it wrote nothing that was not its own");
    // All sixty were overdue for it. What it had handed to the network before it stood still goes out when it goes on: no process can take
    // that back, and it counts as sent.
    let late = way.carried() - sent;
    assert!(late <= 10, "{late} pieces were sent on old claims");
    assert_eq!((paused.told("database_lost").len(), paused.told("database_back").len()), (1, 1), "told once");
    assert!(other.told("database_lost").is_empty(), "the other one lost nothing");
    assert_sends_again(&stage, &way, other).await;
}

/// Alone, with transactions of its own, a replica that had been paused works like any other.
async fn assert_sends_again(stage: &Stage, way: &Proxy, other: Replica) {
    let sent = way.carried();
    other.kill();
    stage.insert(2, 8).await;
    eventually("it sends again", || async { (way.carried() > sent).then_some(()) }).await;
}

fn inserted_ids(inserted: &[Inserted]) -> Vec<uuid::Uuid> {
    inserted.iter().map(|transaction| transaction.id).collect()
}

async fn replicas(stage: &Stage, count: i64) {
    eventually("so many replicas are registered", || async { (stage.count(REPLICAS).await == count).then_some(()) }).await;
}

#[tokio::test]
async fn three_replicas_stay_within_one_budget_while_one_is_killed_one_is_paused_and_one_joins() {
    const BUDGET: Budget = Budget { per_second: 20, burst: 5 };
    let stage = Stage::with_budget(support::database().await, BUDGET);
    let [killed, paused, _survivor] = [(); 3].map(|()| stage.replica());
    replicas(&stage, 3).await;
    // DusuPay and Dapi have a budget each; more is due than it allows.
    let inserted = stage.insert(52, 12).await;
    stage.asked(40).await;
    let from = now();
    stage.asked(150).await;
    let steady = now() - from;
    let mut trouble = Trouble::begins();
    killed.kill();
    paused.signal(Signal::STOP);
    eventually("both are declared dead", || async { (stage.count(REPLICAS).await == 1).then_some(()) }).await;
    let _joined = stage.replica();
    paused.signal(Signal::CONT);
    replicas(&stage, 3).await;
    trouble.is_over();
    stage.settle("3 replicas, 20/s: kill, pause, join", &inserted, Journal::Inexact, trouble).await;
    let times = stage.times().await;
    let report = stage.provider.simulator.report();
    let worst = report.providers.values().map(|provider| provider.worst_second).max().unwrap();
    let pace = in_span(&times, from, steady) as f64 / steady / 2.0;
    println!(
        "  worst sliding second {worst} (allowed 25), steady state {pace:.1}/s an account = {:.0} % of the budget",
        pace * 5.0
    );
    assert!(worst <= 25, "{worst} requests within a second");
    assert!(pace >= 0.7 * 20.0, "{pace} polls a second");
}

#[tokio::test]
async fn five_hundred_requests_in_flight_are_taken_over_within_the_lease_and_two_seconds() {
    let mut stage = Stage::new().await;
    stage.set_of_all("TIMEOUT", "3s");
    stage.set("WORKER__LEASE", "6s");
    let lease = Duration::from_secs(6);
    let killed = stage.replica();
    replicas(&stage, 1).await;
    let inserted = stage.insert_scripts(500, &["slow30-ok"]).await;
    stage.asked(500).await;
    let survivor = stage.replica();
    replicas(&stage, 2).await;
    let in_flight =
        stage.count("select count(*) from paypoll.transactions where owner = (select min(id) from paypoll.replicas)").await;
    let mut trouble = Trouble::begins();
    killed.kill();
    trouble.is_over();
    let since = Instant::now();
    let owned = "select count(*) from paypoll.transactions t join paypoll.replicas r on r.id = t.owner
                  where r.id = (select max(id) from paypoll.replicas) or t.next_poll_at is null";
    eventually("all are owned by the survivor", || async { (stage.count(owned).await == 500).then_some(()) }).await;
    let owned_after = since.elapsed();
    stage.settle("killed -9 with 500 in flight", &inserted, Journal::Inexact, trouble).await;
    println!("  {in_flight} in flight, all owned again after {:.2} s (lease 6 s)", owned_after.as_secs_f64());
    assert_eq!(in_flight, 500);
    assert!(owned_after <= lease + Duration::from_secs(2), "owned after {owned_after:?}");
    assert!(survivor.told("database_lost").is_empty());
}

#[tokio::test]
async fn a_replica_that_is_started_after_a_kill_sends_within_a_second() {
    let stage = Stage::new().await;
    let mut replica = stage.replica();
    let mut fastest = f64::INFINITY;
    for _ in 0..3 {
        replicas(&stage, 1).await;
        replica.kill();
        stage.insert(1, 8).await;
        let started = now();
        let before = stage.requests();
        replica = stage.replica();
        eventually("it sends", || std::future::ready((stage.requests() > before).then_some(()))).await;
        let times = stage.times().await;
        let first = times.iter().find(|time| **time >= started).unwrap();
        fastest = fastest.min(first - started);
    }
    println!("  SIGKILL, restart, first poll: {fastest:.2} s after the start of the process");
    assert!(fastest < 1.0, "{fastest} s");
}

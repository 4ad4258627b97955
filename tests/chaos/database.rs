//! Trouble with PostgreSQL.

use crate::network::Weather;
use crate::stage::{LEASE, Replica, Stage, server};
use crate::support::eventually;
use crate::tally::{Journal, Trouble, lasts};
use paypoll::postgres::PrivatePostgres;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use std::fs;
use std::str::FromStr;
use std::time::Duration;

/// Enough for a pace.
const TRANSACTIONS: usize = 60;
/// Some before the trouble, some after it.
const POLLS: u32 = 13;

/// One outage is reported once, and so is its end.
fn assert_told_once(replica: &Replica) {
    let (lost, back) = (replica.told("database_lost"), replica.told("database_back"));
    assert!(lost.len() == 1 && back.len() == 1, "{lost:#?} {back:#?}");
}

#[tokio::test]
async fn a_fast_restart_of_postgresql_costs_nothing_but_time() {
    let (mut postgres, database) = server(&[]).await;
    let stage = Stage::over(database);
    let replica = stage.replica();
    let inserted = stage.insert(TRANSACTIONS, POLLS).await;
    stage.steady(&inserted).await;
    let mut trouble = Trouble::begins();
    let pid_file = postgres.folder().join("data/postmaster.pid");
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().lines().next().unwrap().parse().unwrap();
    // What `pg_ctl restart` does by default: running statements are ended, then the server stops in order.
    kill_process(Pid::from_raw(pid).unwrap(), Signal::INT).unwrap();
    eventually("the server has stopped", || std::future::ready((!pid_file.exists()).then_some(()))).await;
    replica.tells("database_lost").await;
    postgres = restarted(postgres).await;
    trouble.is_over();
    stage.settle("PostgreSQL restarts (fast)", &inserted, Journal::Exact, trouble).await;
    assert_told_once(&replica);
    stage.pool.close().await;
    drop((replica, postgres));
}

#[tokio::test]
async fn an_immediate_restart_of_postgresql_costs_nothing_but_time() {
    let (mut postgres, database) = server(&[]).await;
    let stage = Stage::over(database);
    let replica = stage.replica();
    let inserted = stage.insert(TRANSACTIONS, POLLS).await;
    stage.steady(&inserted).await;
    let mut trouble = Trouble::begins();
    postgres = restarted(postgres).await;
    trouble.is_over();
    stage.settle("PostgreSQL restarts (immediate)", &inserted, Journal::Exact, trouble).await;
    assert_told_once(&replica);
    stage.pool.close().await;
    drop((replica, postgres));
}

/// Ends the server, if it runs, and starts it again.
async fn restarted(mut postgres: PrivatePostgres) -> PrivatePostgres {
    tokio::task::spawn_blocking(move || postgres.crash().and_then(|()| postgres.recover()).map(|()| postgres))
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn backends_that_are_killed_again_and_again_lose_and_double_nothing() {
    const ROUNDS: usize = 15;
    let stage = Stage::new().await;
    let replica = stage.replica();
    let inserted = stage.insert(TRANSACTIONS, POLLS + 5).await;
    stage.steady(&inserted).await;
    let mut trouble = Trouble::begins();
    let mut killed = 0;
    for _ in 0..ROUNDS {
        killed += stage.kill_backends().await;
        // It works again: there is something new to kill.
        stage.asked(TRANSACTIONS as u64 / 4).await;
    }
    trouble.is_over();
    assert!(killed >= ROUNDS as i64, "{killed} backends were killed");
    stage.settle("backends killed 15 times", &inserted, Journal::Exact, trouble).await;
    let (lost, back) = (replica.told("database_lost").len(), replica.told("database_back").len());
    assert!(lost == back && (1..=ROUNDS).contains(&lost), "lost {lost} times, back {back} times");
}

#[tokio::test]
async fn connection_slots_that_others_use_up_stop_the_work_for_as_long_as_they_do() {
    let (postgres, database) = server(&[("max_connections", "25")]).await;
    let url = database.url.clone();
    let stage = Stage::over(database);
    let replica = stage.replica();
    let inserted = stage.insert(TRANSACTIONS, POLLS).await;
    stage.steady(&inserted).await;
    let mut trouble = Trouble::begins();
    let mut others = Vec::new();
    take_every_slot(&url, &mut others).await;
    // The replica's own connections break, and others are faster at last.
    while stage.kill_backends().await > 0 {
        take_every_slot(&url, &mut others).await;
    }
    lasts(Duration::from_secs(2)).await;
    let (lost, back) = (replica.told("database_lost").len(), replica.told("database_back").len());
    assert!(lost == back + 1, "there is no slot to be had: lost {lost} times, back {back} times");
    for other in others {
        other.close().await.unwrap();
    }
    trouble.is_over();
    stage.settle("connection slots used up by others", &inserted, Journal::Exact, trouble).await;
    assert_eq!((replica.told("database_lost").len(), replica.told("database_back").len()), (lost, lost), "told once");
    stage.pool.close().await;
    drop((replica, postgres));
}

/// Connects until the server refuses.
async fn take_every_slot(url: &str, others: &mut Vec<PgConnection>) {
    let options = PgConnectOptions::from_str(url).unwrap();
    while let Ok(other) = options.connect().await {
        others.push(other);
    }
}

#[tokio::test]
async fn a_database_that_turns_read_only_and_back_costs_nothing_but_time() {
    let (postgres, database) = server(&[]).await;
    let stage = Stage::over(database);
    let replica = stage.replica();
    let inserted = stage.insert(TRANSACTIONS, POLLS).await;
    stage.steady(&inserted).await;
    let mut trouble = Trouble::begins();
    stage.tell("alter system set default_transaction_read_only = on".into()).await;
    stage.tell("select pg_reload_conf()".into()).await;
    replica.tells("database_lost").await;
    // Longer than the lease: it cannot be renewed.
    lasts(LEASE + Duration::from_secs(1)).await;
    assert!(replica.told("database_back").is_empty(), "nothing can be written");
    stage.tell("alter system reset default_transaction_read_only".into()).await;
    stage.tell("select pg_reload_conf()".into()).await;
    trouble.is_over();
    stage.settle("PostgreSQL turns read-only", &inserted, Journal::Exact, trouble).await;
    assert_told_once(&replica);
    stage.pool.close().await;
    drop((replica, postgres));
}

#[tokio::test]
async fn a_replica_cut_off_beyond_its_lease_leaves_its_work_to_another_and_comes_back() {
    let mut stage = Stage::new().await;
    let network = stage.database_proxy();
    let cut_off = stage.replica();
    let inserted = stage.insert(TRANSACTIONS, POLLS + 2).await;
    stage.steady(&inserted).await;
    stage.database_direct();
    let other = stage.replica();
    other.tells("daemon_started").await;
    eventually("both are registered", || async { (stage.count("select count(*) from paypoll.replicas").await == 2).then_some(()) })
        .await;
    let mut trouble = Trouble::begins();
    network.turn(Weather::Stalls);
    cut_off.tells("database_lost").await;
    eventually("the other one has declared it dead", || async {
        (stage.count("select count(*) from paypoll.replicas").await == 1).then_some(())
    })
    .await;
    // What it sent before arrives now, too late.
    network.turn(Weather::Fair);
    trouble.is_over();
    cut_off.tells("database_back").await;
    stage.settle("a replica cut off beyond its lease", &inserted, Journal::Exact, trouble).await;
    assert_told_once(&cut_off);
    assert!(other.told("database_lost").is_empty(), "the other one lost nothing");
}

#[tokio::test]
async fn connections_that_died_without_a_word_are_given_up_and_made_anew() {
    let mut stage = Stage::new().await;
    let network = stage.database_proxy();
    let replica = stage.replica();
    let inserted = stage.insert(TRANSACTIONS, POLLS).await;
    stage.steady(&inserted).await;
    let mut trouble = Trouble::begins();
    network.turn(Weather::Severs);
    replica.tells("database_lost").await;
    // New connections work, the old ones never again.
    network.turn(Weather::Fair);
    trouble.is_over();
    stage.settle("connections that died without a word", &inserted, Journal::Exact, trouble).await;
    assert_told_once(&replica);
}

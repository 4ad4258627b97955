//! A database that comes back with another history: a standby that is promoted, a crash that lost
//! commits, a backup that is restored.
//!
//! The replica reaches the database through a proxy that leads to the server that takes writes, or
//! names both hosts in its connection string. A commit that was acknowledged may be gone then, and
//! one whose answer got lost may be there or not. Whatever the surviving history is: every
//! transaction that is open in it is polled until it is settled, none is recorded twice, none is
//! polled too early.

use crate::network::{Proxy, Weather};
use crate::stage::{Inserted, Replica, Stage, server};
use crate::support::eventually;
use crate::tally::{Trouble, time};
use paypoll::postgres::PrivatePostgres;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::sync::Once;
use std::time::{Duration, Instant};

/// Enough for some in every situation.
const TRANSACTIONS: usize = 40;
/// Some before the trouble, some after it.
const POLLS: u32 = 13;
/// Every open transaction must be polled again within this time.
const BOUND: Duration = Duration::from_secs(30);
/// Where both hosts are named, polls are recorded again within this time of the promotion.
const FOUND_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What takes over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Other {
    /// A standby, which has followed the primary until it was stopped.
    Standby,
    /// A backup of the moment when it was taken.
    Backup,
}

/// What is left of the commits that were acknowledged to the replica.
#[derive(Clone, Copy, PartialEq, Eq)]
enum History {
    /// Everything.
    Whole,
    /// Not everything.
    Cut,
    /// Perhaps not all that was committed just before the answer got lost.
    PerhapsCut,
}

/// A primary, the server that takes over from it, and a replica that works on it through a proxy.
struct Cluster {
    servers: Vec<PrivatePostgres>,
    network: Proxy,
    stage: Stage,
    replica: Replica,
    inserted: Vec<Inserted>,
    trouble: Trouble,
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn crashed(mut postgres: PrivatePostgres) -> PrivatePostgres {
    blocking(move || postgres.crash().map(|()| postgres)).await.unwrap()
}

async fn started(mut postgres: PrivatePostgres) -> PrivatePostgres {
    blocking(move || postgres.recover().map(|()| postgres)).await.unwrap()
}

/// A copy of the first server as it is now.
async fn copy(servers: &mut Vec<PrivatePostgres>, standby: bool) -> PrivatePostgres {
    let primary = servers.remove(0);
    let (primary, copy) = blocking(move || {
        let copy = primary.backup(standby);
        (primary, copy)
    })
    .await;
    servers.insert(0, primary);
    copy.unwrap()
}

impl Cluster {
    /// A primary with work in full swing, and what follows it.
    async fn start(settings: &[(&str, &str)], standbys: usize) -> Self {
        Self::with_polls(settings, standbys, POLLS).await
    }

    async fn with_polls(settings: &[(&str, &str)], standbys: usize, polls: u32) -> Self {
        let (primary, database) = server(settings).await;
        let mut servers = vec![primary];
        for _ in 0..standbys {
            let standby = copy(&mut servers, true).await;
            servers.push(started(standby).await);
        }
        let mut stage = Stage::over(database);
        let network = stage.database_proxy();
        Self::work(servers, stage, network, polls).await
    }

    /// A primary and its standby, which comes first in the connection string; no proxy stands between.
    async fn named() -> Self {
        let (primary, database) = server(&[]).await;
        let mut servers = vec![primary];
        let standby = copy(&mut servers, true).await;
        servers.push(started(standby).await);
        let mut stage = Stage::over(database);
        let network = stage.database_proxy();
        stage.database_hosts(&[&servers[1], &servers[0]]);
        Self::work(servers, stage, network, POLLS).await
    }

    async fn work(servers: Vec<PrivatePostgres>, stage: Stage, network: Proxy, polls: u32) -> Self {
        let replica = stage.replica();
        let inserted = stage.insert(TRANSACTIONS, polls).await;
        stage.asked(TRANSACTIONS as u64 * 2).await;
        Self { servers, network, stage, replica, inserted, trouble: Trouble::begins() }
    }

    /// The primary is alone from now on: the standby is stopped as it is.
    async fn part(&mut self) {
        let standby = self.servers.remove(1);
        self.servers.push(crashed(standby).await);
    }

    /// The standby has all that the primary has committed.
    async fn caught_up(&self) {
        let behind = "select count(*) from pg_stat_replication where replay_lsn >= pg_current_wal_lsn()";
        eventually("the standby has caught up", || async { (self.stage.count(behind).await == 1).then_some(()) }).await;
    }

    /// The primary is gone for good, and the other one takes over.
    async fn fail_over(&mut self, other: Other) {
        let number = "select pg_current_xact_id()::text::bigint";
        let last = self.stage.count(number).await;
        self.trouble = Trouble::begins();
        let primary = crashed(self.servers.remove(0)).await;
        self.network.turn(Weather::Resets);
        let successor = started(self.servers.remove(0)).await;
        self.stage.move_to(&successor, &self.network).await;
        if other == Other::Standby {
            self.stage.tell("select pg_promote(true, 60)".into()).await;
        }
        // Others have been at work before the replica is back: under the numbers of the old
        // primary's last transactions there are theirs.
        while self.stage.count(number).await < last + 50 {}
        self.servers = vec![successor, primary];
        self.is_over();
    }

    /// The standby is promoted; prints after how long polls are recorded there.
    async fn promote(&mut self, case: &str) {
        self.stage.move_to(&self.servers[1], &self.network).await;
        self.stage.tell("select pg_promote(true, 60)".into()).await;
        self.trouble.is_over();
        let (promoted, polls) = (Instant::now(), "select count(*) from paypoll.polls");
        let before = self.stage.count(polls).await;
        eventually("polls are recorded on the other host", || async { (self.stage.count(polls).await > before).then_some(()) })
            .await;
        let found = promoted.elapsed();
        println!("{case}: recorded again {:.2} s after the promotion", found.as_secs_f64());
        assert!(found < FOUND_WITHIN, "{case}: {found:?}");
    }

    fn is_over(&mut self) {
        self.network.turn(Weather::Fair);
        self.trouble.is_over();
    }

    /// Waits until every transaction that is open in the surviving history was polled again and has
    /// come to its end; counts, prints the case's line, and fails where anything is not as it must
    /// be.
    async fn settle(self, case: &str, history: History) {
        let Self { servers, network, stage, replica, inserted, trouble } = self;
        let sql = "select reference from paypoll.transactions where state in ('pending', 'action_required')";
        let open: Vec<String> = sqlx::query_scalar(sql).fetch_all(&stage.pool).await.unwrap();
        assert!(open.len() > TRANSACTIONS / 2, "{case}: {} are open", open.len());
        let (deadline, mut again) = (Instant::now() + BOUND, HashMap::new());
        while open.iter().any(|reference| !again.contains_key(reference)) && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
            again = asked_since(&stage, trouble).await;
        }
        let silent = open.iter().filter(|reference| !again.contains_key(*reference)).count();
        let deadline = Instant::now() + 2 * BOUND;
        while silent == 0 && !stage.is_ended().await && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let lost = stage.lost(&inserted).await;
        // A poll that was in flight when the history was cut is in the journal; whether its row
        // counts it depends on whether the row was taken up anew before.
        let counts = match history {
            History::Whole => |attempts, journaled| attempts == journaled,
            History::Cut | History::PerhapsCut => |attempts, journaled| attempts <= journaled,
        };
        let doubled = stage.doubled(&inserted, counts).await;
        let early = stage.early().await;
        let slowest = open.iter().filter_map(|reference| again.get(reference)).copied().fold(0.0, f64::max);
        let slowest = if silent == 0 { format!("{slowest:.2}") } else { format!("never: {silent}") };
        // What has not come to its end is lost, and not doubled.
        let doubled = if silent == 0 { doubled } else { Vec::new() };
        print(case, inserted.len(), open.len(), lost.len(), doubled.len(), early.len(), &slowest);
        assert!(silent == 0, "{case}: {silent} open transactions were not asked about within {} s", BOUND.as_secs());
        assert!(lost.is_empty(), "{case}: lost: {lost:#?}");
        assert!(doubled.is_empty(), "{case}: doubled: {doubled:#?}");
        assert!(early.is_empty(), "{case}: early: {early:#?}");
        let told = replica.told("commits_lost").len();
        assert!(history != History::Cut || told > 0, "{case}: nobody was told that commits are lost");
        assert!(history != History::Whole || told == 0, "{case}: commits are said to be lost that were not");
        stage.pool.close().await;
        drop((replica, network, servers));
    }
}

/// How many seconds after the trouble was over each reference was first polled.
async fn asked_since(stage: &Stage, trouble: Trouble) -> HashMap<String, f64> {
    let mut first = HashMap::new();
    for entry in stage.provider.log().await {
        let (after, reference) = (time(&entry) - trouble.over, entry["reference"].as_str().unwrap_or_default());
        if after >= 0.0 {
            let since: &mut f64 = first.entry(reference.to_owned()).or_insert(after);
            *since = after.min(*since);
        }
    }
    first
}

fn print(case: &str, payments: usize, open: usize, lost: usize, doubled: usize, early: usize, slowest: &str) {
    static HEAD: Once = Once::new();
    HEAD.call_once(|| println!("\n{:<52} | payments | open after | lost | doubled | early | polled again s", "failover"));
    println!("{case:<52} | {payments:>8} | {open:>10} | {lost:>4} | {doubled:>7} | {early:>5} | {slowest:>14}");
}

#[tokio::test]
async fn commits_that_a_lagging_standby_never_got_are_made_up_for_after_its_promotion() {
    let mut cluster = Cluster::start(&[], 1).await;
    cluster.part().await;
    cluster.stage.steady(&cluster.inserted).await;
    cluster.fail_over(Other::Standby).await;
    cluster.settle("acknowledged commits lost, standby promoted", History::Cut).await;
}

#[tokio::test]
async fn commits_that_a_crash_took_because_none_waits_for_the_disk_are_made_up_for() {
    let mut cluster = Cluster::start(&[("synchronous_commit", "off"), ("wal_writer_delay", "10s")], 0).await;
    cluster.stage.tell("checkpoint".into()).await;
    // Stops the processes that write commits to the disk.
    let writer = cluster.stage.count("select pid::bigint from pg_stat_activity where backend_type = 'walwriter'").await;
    kill_process(Pid::from_raw(writer as i32).unwrap(), Signal::STOP).unwrap();
    cluster.stage.steady(&cluster.inserted).await;
    let polls = "select count(*) from paypoll.polls";
    let before = cluster.stage.count(polls).await;
    cluster.trouble = Trouble::begins();
    let postgres = started(crashed(cluster.servers.remove(0)).await).await;
    cluster.network.turn(Weather::Resets);
    cluster.stage.move_to(&postgres, &cluster.network).await;
    let after = cluster.stage.count(polls).await;
    assert!(after < before, "{after} of {before} polls survived: nothing was lost");
    cluster.servers.push(postgres);
    cluster.is_over();
    cluster.settle("synchronous_commit = off, crash and restart", History::Cut).await;
}

#[tokio::test]
async fn a_backup_that_is_restored_under_a_running_daemon_is_polled_on() {
    // It takes its time to copy it.
    let mut cluster = Cluster::with_polls(&[], 0, 3 * POLLS).await;
    let backup = copy(&mut cluster.servers, false).await;
    cluster.servers.push(backup);
    cluster.stage.steady(&cluster.inserted).await;
    cluster.fail_over(Other::Backup).await;
    cluster.settle("backup of an earlier moment restored", History::Cut).await;
}

/// Lets the work go on until the answer to a commit of polls has got lost, and stand still then.
async fn lose_an_answer(cluster: &Cluster) {
    let polls = "select count(*) from paypoll.polls";
    let before = cluster.stage.count(polls).await;
    cluster.network.turn(Weather::SwallowsCommits);
    eventually("polls are recorded, and nobody hears of it", || async {
        (cluster.stage.count(polls).await > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_commit_that_was_kept_though_its_answer_got_lost_is_not_made_twice_after_a_promotion() {
    let mut cluster = Cluster::start(&[], 1).await;
    lose_an_answer(&cluster).await;
    cluster.caught_up().await;
    cluster.fail_over(Other::Standby).await;
    cluster.settle("commit kept, its answer lost, standby promoted", History::Whole).await;
}

#[tokio::test]
async fn a_commit_that_got_lost_with_its_answer_is_made_again_after_a_promotion() {
    let mut cluster = Cluster::start(&[], 1).await;
    cluster.caught_up().await;
    cluster.part().await;
    lose_an_answer(&cluster).await;
    cluster.fail_over(Other::Standby).await;
    cluster.settle("commit and answer lost, standby promoted", History::PerhapsCut).await;
}

#[tokio::test]
async fn of_two_hosts_in_the_address_the_one_that_is_promoted_is_found_without_a_proxy() {
    let case = "two hosts, the primary is gone";
    let mut cluster = Cluster::named().await;
    cluster.caught_up().await;
    cluster.trouble = Trouble::begins();
    let primary = crashed(cluster.servers.remove(0)).await;
    cluster.servers.insert(0, primary);
    cluster.promote(case).await;
    cluster.settle(case, History::PerhapsCut).await;
}

#[tokio::test]
async fn a_primary_that_is_demoted_but_still_answers_is_left_for_the_other_host() {
    let case = "two hosts, the primary is demoted and answers";
    let mut cluster = Cluster::named().await;
    cluster.trouble = Trouble::begins();
    cluster.stage.tell("alter system set default_transaction_read_only = on".into()).await;
    cluster.stage.tell("select pg_reload_conf()".into()).await;
    cluster.replica.tells("database_lost").await;
    cluster.caught_up().await;
    cluster.promote(case).await;
    cluster.settle(case, History::Whole).await;
}

//! Counting what a scenario cost, and the line of the table.

use crate::stage::{Inserted, Stage};
use crate::support::eventually;
use chrono::{DateTime, Utc};
use serde_json::Value;
use std::sync::Once;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// Throughput is back when a second has this share of the polls that a second had before.
const BACK: f64 = 0.98;
/// And it must be back within this time.
const RECOVERED_WITHIN: f64 = 30.0;
/// The pace before the trouble is measured over this time.
const BEFORE_S: f64 = 2.0;

/// From when to when there was trouble, in seconds of the wall clock.
#[derive(Clone, Copy)]
pub(crate) struct Trouble {
    began: f64,
    pub(crate) over: f64,
}

impl Trouble {
    pub(crate) fn begins() -> Self {
        Self { began: now(), over: f64::INFINITY }
    }

    pub(crate) fn is_over(&mut self) {
        self.over = now();
    }
}

pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Whether every request that the simulator saw must be in the journal, and no other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Journal {
    /// Nobody died, and no request was lost on its way.
    Exact,
    /// A replica was killed between sending and writing down, or requests did not arrive.
    Inexact,
}

impl Stage {
    /// Waits until every transaction has come to its end, counts, prints the scenario's line, and
    /// fails where anything was lost, doubled or early, or did not recover in time.
    pub(crate) async fn settle(&self, scenario: &str, inserted: &[Inserted], journal: Journal, trouble: Trouble) {
        self.ended().await;
        let lost = self.lost(inserted).await;
        let doubled = self.doubled(inserted, |attempts, journaled| attempts == journaled).await;
        let early = self.early().await;
        let times = self.times().await;
        let recovery = recovery(&times, trouble);
        let journaled = self.count("select count(*) from paypoll.polls").await;
        print(scenario, inserted.len(), times.len(), lost.len(), doubled.len(), early.len(), recovery);
        assert!(lost.is_empty(), "{scenario}: lost: {lost:#?}");
        assert!(doubled.is_empty(), "{scenario}: doubled: {doubled:#?}");
        assert!(early.is_empty(), "{scenario}: early: {early:#?}");
        // Everything has come to its end. Where little was left to do after the trouble, no second
        // was as full as those before.
        assert!(recovery.is_none_or(|seconds| seconds <= RECOVERED_WITHIN), "{scenario}: recovered after {recovery:?} s");
        if journal == Journal::Exact {
            assert_eq!(journaled, times.len() as i64, "{scenario}: every poll is journaled once");
        }
    }

    /// Waits until nothing is to be polled or written any more.
    async fn ended(&self) {
        eventually("every transaction comes to its end", || async { self.is_ended().await.then_some(()) }).await;
    }

    pub(crate) async fn is_ended(&self) -> bool {
        self.count("select count(*) from paypoll.transactions where next_poll_at is not null or owner is not null").await == 0
    }

    /// What is not in the state that its script leads to.
    pub(crate) async fn lost(&self, inserted: &[Inserted]) -> Vec<String> {
        let mut lost = Vec::new();
        for transaction in inserted {
            let state: String = sqlx::query_scalar("select state from paypoll.transactions where id = $1")
                .bind(transaction.id)
                .fetch_one(&self.pool)
                .await
                .unwrap();
            if state != transaction.expected {
                lost.push(format!("{} {} is {state}", transaction.provider, transaction.reference));
            }
        }
        lost
    }

    /// What has not exactly one transition for each change and one counted poll for each in the journal.
    pub(crate) async fn doubled(&self, inserted: &[Inserted], counts: fn(i64, i64) -> bool) -> Vec<String> {
        let mut doubled = Vec::new();
        for transaction in inserted {
            let changes: Vec<(String, String)> =
                sqlx::query_as("select from_state, to_state from paypoll.transitions where transaction_id = $1 order by id")
                    .bind(transaction.id)
                    .fetch_all(&self.pool)
                    .await
                    .unwrap();
            let (attempts, journaled) = self.polls(transaction.id).await;
            if !is_chain(&changes, transaction.expected) || !counts(i64::from(attempts), journaled) {
                let Inserted { provider, reference, .. } = transaction;
                doubled.push(format!("{provider} {reference}: {changes:?}, {attempts} attempts, {journaled} journaled"));
            }
        }
        doubled
    }

    async fn polls(&self, id: Uuid) -> (i32, i64) {
        let polls = "select attempts, (select count(*) from paypoll.polls where transaction_id = $1) from paypoll.transactions where id = $1";
        sqlx::query_as(polls).bind(id).fetch_one(&self.pool).await.unwrap()
    }

    /// What the simulator and the audit complain of.
    pub(crate) async fn early(&self) -> Vec<String> {
        let report = self.provider.simulator.report();
        let mut early: Vec<String> = report.violations.iter().map(|violation| format!("{violation:?}")).collect();
        let audit = self.audit().await;
        if !audit.status.success() {
            early.push(format!("audit: {}{}", String::from_utf8_lossy(&audit.stdout), String::from_utf8_lossy(&audit.stderr)));
        }
        early
    }

    /// When each request about a transaction came, rising.
    pub(crate) async fn times(&self) -> Vec<f64> {
        let mut times: Vec<f64> = self.provider.log().await.iter().map(time).collect();
        times.sort_by(f64::total_cmp);
        times
    }
}

pub(crate) fn time(entry: &Value) -> f64 {
    let at: DateTime<Utc> = entry["at"].as_str().unwrap().parse().unwrap();
    at.timestamp_micros() as f64 / 1e6
}

/// Each change begins where the one before ended, and the last one is the only one that ends there.
fn is_chain(changes: &[(String, String)], end: &str) -> bool {
    let mut state = "pending";
    for (from, to) in changes {
        if from != state || to == state || state == end {
            return false;
        }
        state = to;
    }
    state == end
}

/// The seconds from the end of the trouble to the first full second; `None` when there was none any more.
fn recovery(times: &[f64], trouble: Trouble) -> Option<f64> {
    let before = in_span(times, trouble.began - BEFORE_S, BEFORE_S) as f64 / BEFORE_S;
    let after = &times[times.partition_point(|time| *time < trouble.over)..];
    let back = after.iter().find(|time| in_span(times, **time, 1.0) as f64 >= BACK * before)?;
    Some(back - trouble.over)
}

/// How many requests came in `[from, from + length)`.
pub(crate) fn in_span(times: &[f64], from: f64, length: f64) -> usize {
    times.partition_point(|time| *time < from + length) - times.partition_point(|time| *time < from)
}

fn print(scenario: &str, transactions: usize, polls: usize, lost: usize, doubled: usize, early: usize, recovery: Option<f64>) {
    static HEAD: Once = Once::new();
    HEAD.call_once(|| println!("\n{:<44} | transactions | polls | lost | doubled | early | recovery s", "scenario"));
    let recovery = recovery.map_or("never".to_owned(), |seconds| format!("{seconds:.2}"));
    println!("{scenario:<44} | {transactions:>12} | {polls:>5} | {lost:>4} | {doubled:>7} | {early:>5} | {recovery:>10}");
}

/// Keeps a trouble up that is nothing but time.
pub(crate) async fn lasts(trouble: Duration) {
    tokio::time::sleep(trouble).await;
}

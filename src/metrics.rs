//! Counters of this process, for `/metrics` and the summary line. Cheap to write: the hot path adds
//! to atomics.

use crate::domain::{Outcome, State};
use crate::store::Unroutable;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The upper bounds of the histograms' buckets, in seconds.
pub const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// A histogram with [`BUCKETS`].
#[derive(Default)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Adds an observation.
    pub fn observe(&self, value: Duration) {
        let seconds = value.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(u64::try_from(value.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// How many observations each bucket has, the last one without a bound; and their sum in seconds.
    #[must_use]
    pub fn read(&self) -> (Vec<u64>, f64) {
        (self.counts.iter().map(|count| count.load(Relaxed)).collect(), self.sum_us.load(Relaxed) as f64 / 1e6)
    }
}

/// One account's counters.
pub struct AccountMetrics {
    /// The provider.
    pub provider: &'static str,
    /// The account.
    pub account: String,
    /// Polls by outcome, in the order of [`Outcome::NAMES`].
    pub polls: [AtomicU64; Outcome::NAMES.len()],
    /// Transitions by new state, in the order of [`State::ALL`].
    pub transitions: [AtomicU64; State::ALL.len()],
    /// Sent minus due.
    pub lateness: Histogram,
    /// How long answers took.
    pub latency: Histogram,
    /// Requests in flight.
    pub in_flight: AtomicU64,
    /// Whether the circuit is open.
    pub circuit_open: AtomicBool,
    /// Whether a pause lasts that the provider requested.
    pub paused: AtomicBool,
    /// How long the held transaction has been due that has waited longest, in microseconds.
    pub oldest_due_us: AtomicU64,
}

impl AccountMetrics {
    /// Counters at zero.
    #[must_use]
    pub fn new(provider: &'static str, account: &str) -> Self {
        Self {
            provider,
            account: account.to_owned(),
            polls: Default::default(),
            transitions: Default::default(),
            lateness: Histogram::default(),
            latency: Histogram::default(),
            in_flight: AtomicU64::new(0),
            circuit_open: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            oldest_due_us: AtomicU64::new(0),
        }
    }

    /// Counts a poll.
    pub fn poll(&self, outcome: &str, lateness: Duration, latency: Option<Duration>) {
        if let Some(at) = Outcome::NAMES.iter().position(|name| *name == outcome) {
            self.polls[at].fetch_add(1, Relaxed);
        }
        self.lateness.observe(lateness);
        if let Some(latency) = latency {
            self.latency.observe(latency);
        }
    }

    /// Counts a transition.
    pub fn transition(&self, to: State) {
        if let Some(at) = State::ALL.iter().position(|state| *state == to) {
            self.transitions[at].fetch_add(1, Relaxed);
        }
    }
}

/// What the process knows of itself.
pub struct Metrics {
    /// By account, in the order of the lanes.
    pub accounts: Vec<AccountMetrics>,
    /// Whether the database is there and this replica holds its lease.
    pub ready: AtomicBool,
    /// Whether the log has reported the database as unavailable, and not yet as back.
    pub outage: AtomicBool,
    /// How often the configuration was read anew and applied, and how often refused.
    pub reloads: [AtomicU64; 2],
    began: Instant,
    /// When the loop last turned, in milliseconds since `began`.
    turned_ms: AtomicU64,
    unroutable: Mutex<Vec<Unroutable>>,
    /// For how many days the journal has partitions; [`UNKNOWN`] while that is unknown.
    journal_days_ahead: AtomicI64,
}

const UNKNOWN: i64 = i64::MIN;

impl Metrics {
    /// Counters at zero for these accounts.
    #[must_use]
    pub fn new<'a>(accounts: impl Iterator<Item = (&'static str, &'a str)>) -> Self {
        Self {
            accounts: accounts.map(|(provider, account)| AccountMetrics::new(provider, account)).collect(),
            ready: AtomicBool::new(false),
            outage: AtomicBool::new(false),
            reloads: Default::default(),
            began: Instant::now(),
            turned_ms: AtomicU64::new(0),
            unroutable: Mutex::default(),
            journal_days_ahead: AtomicI64::new(UNKNOWN),
        }
    }

    /// Goes on from the counters of the time before a reload, which are no longer written.
    pub fn go_on_from(&self, before: &Self) {
        let add = |to: &[AtomicU64], from: &[AtomicU64]| {
            to.iter().zip(from).for_each(|(to, from)| _ = to.fetch_add(from.load(Relaxed), Relaxed));
        };
        for account in &self.accounts {
            let same = |old: &&AccountMetrics| old.provider == account.provider && old.account == account.account;
            let Some(old) = before.accounts.iter().find(same) else { continue };
            add(&account.polls, &old.polls);
            add(&account.transitions, &old.transitions);
            for (to, from) in [(&account.lateness, &old.lateness), (&account.latency, &old.latency)] {
                add(&to.counts, &from.counts);
                to.sum_us.fetch_add(from.sum_us.load(Relaxed), Relaxed);
            }
        }
        add(&self.reloads, &before.reloads);
        self.outage.store(before.outage.load(Relaxed), Relaxed);
        self.set_unroutable(before.unroutable());
        self.set_journal_days_ahead(before.journal_days_ahead());
        self.turn(Instant::now());
    }

    /// The configuration was read anew: whether it was applied.
    pub fn reload(&self, applied: bool) {
        self.reloads[usize::from(!applied)].fetch_add(1, Relaxed);
    }

    /// The loop turned.
    pub fn turn(&self, now: Instant) {
        let passed = now.saturating_duration_since(self.began).as_millis();
        self.turned_ms.store(u64::try_from(passed).unwrap_or(u64::MAX), Relaxed);
    }

    /// How long ago the loop turned last. It turns at least once a second, whatever happens: a
    /// longer time means that it hangs.
    #[must_use]
    pub fn since_turn(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began + Duration::from_millis(self.turned_ms.load(Relaxed)))
    }

    /// What was last found to wait for an account that no replica serves.
    #[must_use]
    pub fn unroutable(&self) -> Vec<Unroutable> {
        self.unroutable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For how many days after today the journal has partitions, as far as it is known.
    #[must_use]
    pub fn journal_days_ahead(&self) -> Option<i64> {
        Some(self.journal_days_ahead.load(Relaxed)).filter(|days| *days != UNKNOWN)
    }

    /// Remembers for how many days after today the journal has partitions.
    pub fn set_journal_days_ahead(&self, days: Option<i64>) {
        self.journal_days_ahead.store(days.unwrap_or(UNKNOWN), Relaxed);
    }

    /// Remembers what was found to wait for an account that no replica serves.
    pub fn set_unroutable(&self, found: Vec<Unroutable>) {
        *self.unroutable.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_an_account_go_on_after_a_reload_and_those_of_a_new_one_begin() {
        let before = Metrics::new([("khalti", "a"), ("khalti", "gone")].into_iter());
        before.accounts[0].poll("pending", Duration::from_millis(3), None);
        before.reload(false);
        before.outage.store(true, Relaxed);
        let after = Metrics::new([("khalti", "new"), ("khalti", "a")].into_iter());
        after.go_on_from(&before);
        after.reload(true);
        let polls = |at: usize| -> u64 { after.accounts[at].polls.iter().map(|count| count.load(Relaxed)).sum() };
        assert_eq!((polls(0), polls(1)), (0, 1));
        assert_eq!(after.accounts[1].lateness.read(), before.accounts[0].lateness.read());
        assert_eq!([after.reloads[0].load(Relaxed), after.reloads[1].load(Relaxed)], [1, 1]);
        assert!(after.outage.load(Relaxed));
    }
}

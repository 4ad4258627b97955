//! Turns the engine's notices into log lines and metrics.

use super::engine::Engine;
use super::lane::LaneSpec;
use super::notice::Notice;
use super::poller::Poller;
use crate::domain::State;
use crate::metrics::Metrics;
use crate::telemetry::{self, event};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tracing::{debug, error, info, warn};

/// Writes log lines and counts.
pub(super) struct Reporter {
    lanes: Vec<Arc<LaneSpec>>,
    metrics: Arc<Metrics>,
    /// Undocumented statuses that were reported already.
    statuses: HashSet<(usize, String)>,
    since: Instant,
    next_summary: Instant,
    next_ages: Instant,
    polls: u64,
    transitions: u64,
    lateness: Vec<Duration>,
    failures: BTreeMap<&'static str, u64>,
    /// Lines of the log that were dropped, as far as reported.
    dropped: u64,
    outage: Outage,
}

/// How often a summary is written while there is work.
const BUSY: Duration = Duration::from_secs(10);
/// And how often while there is none.
const IDLE: Duration = Duration::from_secs(60);
/// How often the waits of due transactions are measured, which goes through all of them.
const AGES_EVERY: Duration = Duration::from_millis(250);
/// The lateness of at most this many polls is kept for a summary.
const MOST_SAMPLES: usize = 100_000;
/// At most this many unknown statuses are remembered.
const MOST_STATUSES: usize = 1000;

impl Reporter {
    /// A reporter whose first summary comes after [`BUSY`].
    #[must_use]
    pub(super) fn new(lanes: Vec<Arc<LaneSpec>>, metrics: Arc<Metrics>, now: Instant) -> Self {
        // What another reporter counted before a reload.
        let told = metrics.outage.load(Relaxed);
        let outage = Outage { told, back_since: told.then_some(now), ..Outage::default() };
        Self {
            lanes,
            metrics,
            statuses: HashSet::new(),
            since: now,
            next_summary: now + BUSY,
            next_ages: now,
            polls: 0,
            transitions: 0,
            lateness: Vec::new(),
            failures: BTreeMap::new(),
            dropped: 0,
            outage,
        }
    }

    /// Reports one notice.
    pub(super) fn report(&mut self, notice: Notice) {
        match notice {
            Notice::Poll { .. } => self.report_poll(notice),
            Notice::Transition { .. } => self.report_transition(notice),
            Notice::RateLimited { lane, wait } => {
                let spec = &self.lanes[lane];
                warn!(
                    event = event::RATE_LIMITED,
                    provider = spec.provider,
                    account = &*spec.account,
                    pause_s = wait.as_secs(),
                    "{}/{} asks too often: the whole account pauses for {} s, then comes back slowly",
                    spec.provider,
                    spec.account,
                    wait.as_secs()
                );
            }
            Notice::Suspended { lane, because } => {
                let (provider, account) = (self.lanes[lane].provider, &*self.lanes[lane].account);
                match because {
                    Some(reason) => info!(
                        event = event::ACCOUNT_PAUSED,
                        provider,
                        account,
                        reason,
                        "{provider}/{account} is paused by an operator, nothing of it is asked: {reason}"
                    ),
                    None => info!(event = event::ACCOUNT_RESUMED, provider, account, "{provider}/{account} is resumed"),
                }
            }
            Notice::DatabaseLost(why) => {
                if self.outage.is_lost(Instant::now()) {
                    error!(
                        event = event::DATABASE_LOST,
                        error = why,
                        "the database is lost: nothing is sent that could not be recorded"
                    );
                }
            }
            Notice::DatabaseBack => self.outage.is_back(Instant::now()),
            Notice::CommitsLost(what) => {
                error!(
                    event = event::COMMITS_LOST,
                    error = what,
                    "the database has lost commits, by a failover or a restore: {what}. All that is not settled there is taken up again"
                );
            }
            Notice::RecordRefused { id, why } => {
                error!(
                    event = event::RECORD_REFUSED,
                    transaction_id = %id,
                    error = why,
                    "the database refuses what is to be recorded of transaction {id}; it is tried again, and others go on: {why}"
                );
            }
            Notice::RowRefused { id, why } => {
                error!(
                    event = event::RECORD_REFUSED,
                    transaction_id = %id,
                    error = why,
                    "transaction {id} cannot be taken up; it is tried again, and others go on: {why}"
                );
            }
            Notice::Recovered(count) => debug!(count, "rows that this replica owned without knowing are taken up again"),
            Notice::Locked(count) => {
                warn!(
                    event = event::POLL_FAILED,
                    count,
                    "another session keeps {count} row(s) locked: what came of their polls cannot be written, and they are not asked \
                     about, until it lets go"
                );
            }
        }
    }

    fn report_poll(&mut self, notice: Notice) {
        let Notice::Poll { lane, id, reference, attempt, outcome, status, latency, lateness, error, provider_state } = notice
        else {
            return;
        };
        let spec = &self.lanes[lane];
        self.metrics.accounts[lane].poll(outcome, lateness, latency);
        self.polls += 1;
        // A poll that an open circuit delays is late by its provider's fault, and the circuit's
        // metrics show it.
        let asked = !self.metrics.accounts[lane].circuit_open.load(Relaxed);
        if asked && self.lateness.len() < MOST_SAMPLES {
            self.lateness.push(lateness);
        }
        let latency_ms = latency.map(|latency| u64::try_from(latency.as_millis()).unwrap_or(u64::MAX));
        let lateness_ms = u64::try_from(lateness.as_millis()).unwrap_or(u64::MAX);
        let new_status =
            provider_state.is_some_and(|state| self.statuses.len() < MOST_STATUSES && self.statuses.insert((lane, state)));
        match error {
            Some(error) => {
                *self.failures.entry(spec.provider).or_default() += 1;
                // An unknown status is reported once for each account; every other failure is
                // reported when it happens.
                if outcome == "unknown_word" && !new_status {
                    return;
                }
                warn!(
                    event = event::POLL_FAILED,
                    transaction_id = %id,
                    provider = spec.provider,
                    account = &*spec.account,
                    reference = &*reference,
                    attempt,
                    outcome,
                    http_status = status,
                    latency_ms,
                    lateness_ms,
                    error,
                    "{} {reference}: no usable answer ({outcome})",
                    spec.provider,
                );
            }
            None => debug!(
                event = event::POLL,
                transaction_id = %id,
                provider = spec.provider,
                account = &*spec.account,
                reference = &*reference,
                attempt,
                outcome,
                http_status = status,
                latency_ms,
                lateness_ms,
                "{} {reference}: {outcome}",
                spec.provider,
            ),
        }
    }

    fn report_transition(&mut self, notice: Notice) {
        let Notice::Transition { lane, id, reference, from, to, provider_state, reason, attempt } = notice else { return };
        let spec = &self.lanes[lane];
        self.metrics.accounts[lane].transition(to);
        self.transitions += 1;
        if to == State::Invalid {
            warn!(
                event = event::ROW_INVALID,
                transaction_id = %id,
                provider = spec.provider,
                account = &*spec.account,
                reference = &*reference,
                reason,
                "{} {reference} cannot be asked about: {}",
                spec.provider,
                reason.as_deref().unwrap_or("the row is not complete"),
            );
        }
        info!(
            event = event::TRANSITION,
            transaction_id = %id,
            provider = spec.provider,
            account = &*spec.account,
            reference = &*reference,
            from = from.as_str(),
            to = to.as_str(),
            provider_state = provider_state.as_deref(),
            reason,
            attempt,
            "{} {reference}: {from} → {to}",
            spec.provider,
        );
    }

    /// Updates the gauges, and writes the summary when it is due.
    pub(super) fn advance(&mut self, engine: &Engine, pollers: &[Arc<Poller>], now: Instant) {
        self.metrics.turn(now);
        self.metrics.ready.store(engine.has_database(), Relaxed);
        self.metrics.outage.store(self.outage.told, Relaxed);
        for (lane, metrics) in engine.lanes().iter().zip(&self.metrics.accounts) {
            metrics.in_flight.store(u64::from(lane.in_flight()), Relaxed);
            metrics.circuit_open.store(lane.circuit().is_open(), Relaxed);
            metrics.paused.store(lane.is_paused(now), Relaxed);
        }
        if now >= self.next_ages {
            self.next_ages = now + AGES_EVERY;
            for ((lane, poller), metrics) in engine.lanes().iter().zip(pollers).zip(&self.metrics.accounts) {
                // A transaction that waits for a token is in flight or is tried again later, and is
                // late all the same.
                let tokenless = poller.waits_for_token_since().filter(|_| lane.in_flight() > 0 || lane.idle() > 0);
                let tokenless = tokenless.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
                let waited = lane.oldest_due(now).max(tokenless);
                metrics.oldest_due_us.store(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX), Relaxed);
            }
        }
        self.tell_dropped_lines();
        if self.outage.is_over(now) {
            info!(event = event::DATABASE_BACK, "the database is back");
        }
        let due: usize = engine.lanes().iter().map(super::lane::Lane::ready).sum();
        let busy = self.polls > 0 || due > 0 || engine.in_flight() > 0;
        if now >= self.next_summary && (busy || now >= self.since + IDLE) {
            self.summary(due, engine, now);
        }
    }

    /// Reports how many lines of the log are missing, as soon as there is room for that line.
    fn tell_dropped_lines(&mut self) {
        let count = telemetry::lines_dropped() - self.dropped;
        if count > 0 && telemetry::flows() {
            self.dropped += count;
            warn!(event = event::LOG_LINES_DROPPED, count, "{count} lines of the log are missing: nobody read it fast enough");
        }
    }

    /// When [`Reporter::advance`] has something to do.
    #[must_use]
    pub(super) fn next_look(&self) -> Instant {
        self.next_summary
    }

    fn summary(&mut self, due: usize, engine: &Engine, now: Instant) {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64().max(0.001);
        self.lateness.sort_unstable();
        let at = |share: f64| {
            self.lateness.get((self.lateness.len() as f64 * share) as usize).map(|late| (late.as_secs_f64() * 1e5).round() / 1e2)
        };
        let (p50, p99) = (at(0.5), at(0.99));
        let failures: Vec<String> = self.failures.iter().map(|(provider, count)| format!("{provider} {count}")).collect();
        let held: usize = engine.lanes().iter().map(super::lane::Lane::idle).sum();
        info!(
            event = event::SUMMARY,
            due,
            held,
            in_flight = engine.in_flight(),
            polls = self.polls,
            polls_per_s = (self.polls as f64 / seconds * 10.0).round() / 10.0,
            transitions = self.transitions,
            lateness_p50_ms = p50,
            lateness_p99_ms = p99,
            failures = failures.join(", "),
            "{} polls and {} transitions in {seconds:.0} s, {due} due, {} in flight",
            self.polls,
            self.transitions,
            engine.in_flight(),
        );
        (self.polls, self.transitions) = (0, 0);
        self.lateness.clear();
        self.failures.clear();
        self.since = now;
        self.next_summary = now + BUSY;
    }
}

/// Reports a database that comes and goes ten times a second as unavailable, once.
#[derive(Default)]
struct Outage {
    /// Its loss was reported, and its return was not.
    told: bool,
    /// Since when it has been back.
    back_since: Option<Instant>,
    /// When its return was last reported.
    over_at: Option<Instant>,
    /// How often it was lost again soon after that.
    relapses: u32,
}

/// The first time, the database counts as back after being available for this long.
const STEADY: Duration = Duration::from_secs(1);
/// Each time it is lost again within a minute, it has to be available twice as long, up to this.
const LONGEST_STEADY: Duration = Duration::from_secs(60);

impl Outage {
    fn steady(&self) -> Duration {
        (STEADY * 2_u32.saturating_pow(self.relapses.min(16))).min(LONGEST_STEADY)
    }

    /// It is lost. True when that is to be reported.
    fn is_lost(&mut self, now: Instant) -> bool {
        self.back_since = None;
        if self.told {
            return false;
        }
        let soon = self.over_at.is_some_and(|at| now.saturating_duration_since(at) < LONGEST_STEADY);
        self.relapses = if soon { self.relapses.saturating_add(1) } else { 0 };
        self.told = true;
        true
    }

    /// It answers again.
    fn is_back(&mut self, now: Instant) {
        self.back_since = Some(now);
    }

    /// Whether its return is to be reported now.
    fn is_over(&mut self, now: Instant) -> bool {
        let steady = self.steady();
        let over = self.told && self.back_since.is_some_and(|since| now.saturating_duration_since(since) >= steady);
        if over {
            (self.told, self.back_since, self.over_at) = (false, None, Some(now));
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENTH: Duration = Duration::from_millis(100);

    #[test]
    fn a_database_that_comes_and_goes_is_lost_once_and_back_once() {
        let begun = Instant::now();
        let mut outage = Outage::default();
        let (mut lost, mut back) = (0, 0);
        for tenth in 0..600 {
            let now = begun + TENTH * tenth;
            lost += u32::from(outage.is_lost(now));
            outage.is_back(now + TENTH / 2);
            back += u32::from(outage.is_over(now + TENTH / 2));
        }
        assert_eq!((lost, back), (1, 0), "a minute of it");
        assert!(outage.is_over(begun + TENTH * 600 + STEADY) && !outage.is_over(begun + TENTH * 700), "back, once");
    }

    #[test]
    fn the_oftener_it_is_lost_the_longer_it_must_stay_to_be_back() {
        let mut now = Instant::now();
        let mut outage = Outage::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(outage.is_lost(now));
            outage.is_back(now);
            let since = now;
            while !outage.is_over(now) {
                now += TENTH;
            }
            waits.push((now - since).as_secs());
            now += TENTH;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        now += 2 * LONGEST_STEADY;
        assert!(outage.is_lost(now));
        assert_eq!(outage.steady(), STEADY, "a calm minute and it is as at first");
    }
}

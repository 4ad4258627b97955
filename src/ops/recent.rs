//! How the last minute went: the counters of now against those of then.

use super::Ops;
use crate::metrics::{BUCKETS, Histogram, Metrics};
use std::collections::VecDeque;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How often the counters are noted.
const EVERY: Duration = Duration::from_secs(5);
/// How many notes are kept: a minute of them.
const KEPT: usize = 12;

/// The counters at some moments, oldest first; never empty.
pub(super) struct Recent(VecDeque<(Instant, Vec<Counters>)>);

#[derive(Clone)]
struct Counters {
    polls: u64,
    lateness: Vec<u64>,
    latency: Vec<u64>,
}

/// How an account's last minute went.
pub(super) struct Minute {
    /// Polls per second.
    pub(super) rate: f64,
    /// Half of the polls were sent no later than this; `None` without polls.
    pub(super) lateness_p50: Option<Within>,
    /// All but one in a hundred.
    pub(super) lateness_p99: Option<Within>,
    /// Half of the answers came within this.
    pub(super) latency_p50: Option<Within>,
}

/// A histogram knows only between which bounds a value lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Within {
    /// No more than so many seconds.
    Up(f64),
    /// More than the last bound.
    Beyond(f64),
}

impl Recent {
    pub(super) fn new(metrics: &Metrics, now: Instant) -> Self {
        Self(VecDeque::from([(now, read(metrics))]))
    }

    fn note(&mut self, metrics: &Metrics, now: Instant) {
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back((now, read(metrics)));
    }

    /// How the last minute went, or the time since the start, by account.
    pub(super) fn minute(&self, metrics: &Metrics, now: Instant) -> Vec<Minute> {
        let Some((then, before)) = self.0.front() else { return Vec::new() };
        let seconds = now.saturating_duration_since(*then).as_secs_f64().max(1.0);
        read(metrics).iter().zip(before).map(|(now, before)| now.since(before, seconds)).collect()
    }
}

impl Counters {
    fn since(&self, before: &Self, seconds: f64) -> Minute {
        let passed =
            |now: &[u64], then: &[u64]| -> Vec<u64> { now.iter().zip(then).map(|(now, then)| now.saturating_sub(*then)).collect() };
        let lateness = passed(&self.lateness, &before.lateness);
        Minute {
            rate: self.polls.saturating_sub(before.polls) as f64 / seconds,
            lateness_p50: quantile(&lateness, 0.5),
            lateness_p99: quantile(&lateness, 0.99),
            latency_p50: quantile(&passed(&self.latency, &before.latency), 0.5),
        }
    }
}

fn read(metrics: &Metrics) -> Vec<Counters> {
    let counts = |histogram: &Histogram| histogram.read().0;
    let polls = |counters: &[std::sync::atomic::AtomicU64]| counters.iter().map(|count| count.load(Relaxed)).sum();
    let accounts = metrics.accounts.iter();
    accounts.map(|a| Counters { polls: polls(&a.polls), lateness: counts(&a.lateness), latency: counts(&a.latency) }).collect()
}

/// The bound below which that share of the observations lies.
fn quantile(counts: &[u64], share: f64) -> Option<Within> {
    let all: u64 = counts.iter().sum();
    let wanted = (all as f64 * share).ceil() as u64;
    let mut seen = 0;
    let bucket = counts.iter().position(|count| {
        seen += count;
        *count > 0 && seen >= wanted
    })?;
    Some(BUCKETS.get(bucket).map_or(Within::Beyond(BUCKETS[BUCKETS.len() - 1]), |bound| Within::Up(*bound)))
}

/// Notes the counters for as long as the port is served.
pub(super) async fn watch(ops: &Ops) {
    loop {
        tokio::time::sleep(EVERY).await;
        ops.recent.lock().unwrap_or_else(PoisonError::into_inner).note(&ops.metrics, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_what_happened_since_the_oldest_note_and_no_longer() {
        let metrics = Metrics::new([("khalti", "default")].into_iter());
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let poll = |late_ms| metrics.accounts[0].poll("pending", Duration::from_millis(late_ms), None);
        let mut recent = Recent::new(&metrics, begun);
        (0..99).for_each(|_| poll(2));
        poll(90_000);
        let minute = &recent.minute(&metrics, at(10))[0];
        assert_eq!((minute.rate, minute.latency_p50), (10.0, None));
        assert_eq!((minute.lateness_p50, minute.lateness_p99), (Some(Within::Up(0.0025)), Some(Within::Up(0.0025))));
        poll(90_000);
        assert_eq!(recent.minute(&metrics, at(10))[0].lateness_p99, Some(Within::Beyond(60.0)));
        for note in 1..=12 {
            recent.note(&metrics, at(note * 5));
        }
        let minute = &recent.minute(&metrics, at(60))[0];
        assert_eq!((minute.rate, minute.lateness_p50), (0.0, None), "all of it lies before the first note that is kept");
    }
}

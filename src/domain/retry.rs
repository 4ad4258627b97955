//! The back-off curve after polls that got no usable answer.

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use std::time::Duration;

/// How long to wait after the n-th poll in a row without a usable answer: `initial`, then
/// `multiplier` times as long each time, at most `max`.
///
/// The curve is the `backoff` crate's, laid out once as a table: its own jitter is off because ours
/// is injected.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    waits: Vec<Duration>,
}

/// A curve that grows so slowly that it has not reached `max` after this many steps stays at the last one.
const STEPS: usize = 200;

impl Backoff {
    /// The curve.
    #[must_use]
    pub fn new(initial: Duration, max: Duration, multiplier: f64) -> Self {
        let mut curve = ExponentialBackoff {
            current_interval: initial,
            initial_interval: initial,
            randomization_factor: 0.0,
            multiplier,
            max_interval: max,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        let mut waits = Vec::new();
        while waits.len() < STEPS && waits.last() != Some(&max) {
            let Some(wait) = curve.next_backoff() else { break };
            waits.push(wait.min(max));
        }
        Self { waits }
    }

    /// The wait after `failures` polls in a row without a usable answer; zero after a usable one.
    ///
    /// `jitter` in 0..1 adds up to a tenth, `max` permitting, so that transactions that failed
    /// together do not come back together.
    #[must_use]
    pub fn wait(&self, failures: u32, jitter: f64) -> Duration {
        if failures == 0 {
            return Duration::ZERO;
        }
        let step = usize::try_from(failures - 1).unwrap_or(usize::MAX).min(self.waits.len().saturating_sub(1));
        let wait = self.waits.get(step).copied().unwrap_or_default();
        let max = self.waits.last().copied().unwrap_or_default();
        (wait + wait.mul_f64(jitter.clamp(0.0, 1.0) / 10.0)).min(max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_doubles_up_to_its_maximum() {
        let curve = Backoff::new(Duration::from_secs(5), Duration::from_secs(300), 2.0);
        let waits: Vec<u64> = (0..=8).map(|n| curve.wait(n, 0.0).as_secs()).collect();
        assert_eq!(waits, [0, 5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(curve.wait(u32::MAX, 0.0).as_secs(), 300);
    }

    #[test]
    fn a_draw_adds_a_tenth_at_most_and_never_passes_the_maximum() {
        let curve = Backoff::new(Duration::from_secs(10), Duration::from_secs(21), 2.0);
        assert_eq!(curve.wait(1, 1.0), Duration::from_secs(11));
        assert_eq!(curve.wait(2, 1.0), Duration::from_secs(21));
    }
}

//! The database's clock, as far as this process knows it.

use chrono::{DateTime, TimeDelta, Utc};
use std::time::{Duration, Instant};

/// Maps the database's clock to the process's monotonic one. The database's clock decides what is
/// due; waiting is monotonic, so a step of the host's clock changes nothing.
///
/// A reading was made at some moment while its statement was under way, so two bounds are kept. Due
/// times are compared with the lower one ([`DatabaseClock::at`]): what is due by it is due. Polls
/// are recorded with the upper one ([`DatabaseClock::latest`]): a wait counted from there is long
/// enough.
#[derive(Clone, Copy, Debug)]
pub struct DatabaseClock {
    read_at: Instant,
    earliest: DateTime<Utc>,
    latest: DateTime<Utc>,
}

/// How fast the two clocks may drift apart, in parts of elapsed time.
const DRIFT: f64 = 2e-4;
/// Longer waits are split: after this long the wait is computed again.
const FARTHEST: Duration = Duration::from_secs(7 * 24 * 3600);

impl DatabaseClock {
    /// A clock from one reading: the database said `said` at some moment between `issued_at` and
    /// `received`.
    #[must_use]
    pub fn new(issued_at: Instant, received: Instant, said: DateTime<Utc>) -> Self {
        Self { read_at: received, earliest: said, latest: said + delta(received.saturating_duration_since(issued_at)) }
    }

    /// Takes another reading. Narrows the bounds, or replaces them when it shows that the clock was
    /// set.
    pub fn read(&mut self, issued_at: Instant, received: Instant, said: DateTime<Utc>) {
        let new = Self::new(issued_at, received, said);
        let drift = delta(received.saturating_duration_since(self.read_at).mul_f64(DRIFT));
        let (earliest, latest) = (self.at(received) - drift, self.latest(received) + drift);
        *self = if new.earliest > latest || new.latest < earliest {
            new
        } else {
            Self { earliest: new.earliest.max(earliest), latest: new.latest.min(latest), ..new }
        };
    }

    /// What the database's clock shows at `instant`, or a little less.
    #[must_use]
    pub fn at(&self, instant: Instant) -> DateTime<Utc> {
        match instant.checked_duration_since(self.read_at) {
            Some(elapsed) => self.earliest + delta(elapsed),
            None => self.earliest - delta(self.read_at - instant),
        }
    }

    /// What the database's clock shows at `instant`, or a little more.
    #[must_use]
    pub fn latest(&self, instant: Instant) -> DateTime<Utc> {
        self.at(instant) + (self.latest - self.earliest)
    }

    /// How far the bounds lie apart.
    #[must_use]
    pub fn slack(&self) -> Duration {
        (self.latest - self.earliest).to_std().unwrap_or_default()
    }

    /// The moment at which the database's clock shows `time`, or a little later.
    #[must_use]
    pub fn instant(&self, time: DateTime<Utc>) -> Instant {
        match (time - self.earliest).to_std() {
            Ok(ahead) => self.read_at + ahead.min(FARTHEST),
            Err(_) => {
                let behind = (self.earliest - time).to_std().unwrap_or_default().min(FARTHEST);
                self.read_at.checked_sub(behind).unwrap_or(self.read_at)
            }
        }
    }
}

fn delta(span: Duration) -> TimeDelta {
    TimeDelta::from_std(span).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tighter_reading_narrows_the_bounds_and_a_looser_one_does_not() {
        let start = Instant::now();
        let epoch = DateTime::<Utc>::UNIX_EPOCH;
        let (second, milli) = (Duration::from_secs(1), Duration::from_millis(1));
        // True time is epoch + elapsed. This reading was issued 0.1 s before the database made it,
        // and received 0.5 s after.
        let mut clock = DatabaseClock::new(start + 400 * milli, start + second, epoch + 500 * milli);
        assert_eq!(clock.slack(), 600 * milli);
        clock.read(start + 1980 * milli, start + 2 * second, epoch + 1990 * milli);
        assert_eq!(clock.at(start + 3 * second), epoch + 2990 * milli);
        assert_eq!(clock.latest(start + 3 * second), epoch + 3010 * milli);
        assert_eq!(clock.instant(epoch + 5 * second), start + second * 5 + 10 * milli);
        clock.read(start + 2 * second, start + 3 * second, epoch + 2100 * milli);
        assert!(clock.slack() < 21 * milli, "a slow statement teaches nothing");
    }

    #[test]
    fn a_clock_that_was_set_is_followed() {
        let start = Instant::now();
        let epoch = DateTime::<Utc>::UNIX_EPOCH;
        let later = start + Duration::from_millis(1);
        for said in [epoch, epoch + Duration::from_secs(600)] {
            let mut clock = DatabaseClock::new(start, start, epoch + Duration::from_secs(300));
            clock.read(start, later, said);
            assert_eq!(clock.at(later), said);
        }
    }
}

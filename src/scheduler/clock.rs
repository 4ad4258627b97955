//! The database's clock, as far as this process knows it.

use chrono::{DateTime, TimeDelta, Utc};
use std::time::{Duration, Instant};

/// Maps the database's clock to the process's monotonic one. The database's clock decides what is due; waiting is monotonic, so a
/// step of the host's clock changes nothing.
///
/// The estimate never runs ahead of the database: what is due by it is due. It lags by at most the fastest statement's round trip.
#[derive(Clone, Copy, Debug)]
pub struct DatabaseClock {
    read_at: Instant,
    said: DateTime<Utc>,
}

/// How fast the two clocks may drift apart, in parts of elapsed time.
const DRIFT: f64 = 2e-4;
/// No wait is longer than this: waits that are, are looked at again.
const FARTHEST: Duration = Duration::from_secs(7 * 24 * 3600);

impl DatabaseClock {
    /// A clock from one reading: the database said `said` at some moment between `asked` and `received`.
    #[must_use]
    pub fn new(received: Instant, said: DateTime<Utc>) -> Self {
        Self { read_at: received, said }
    }

    /// Another reading. Taken over when it brings the estimate closer, or when it shows that the clock was set.
    pub fn read(&mut self, asked: Instant, received: Instant, said: DateTime<Utc>) {
        let drift = TimeDelta::from_std(received.saturating_duration_since(self.read_at).mul_f64(DRIFT)).unwrap_or_default();
        let latest = said + TimeDelta::from_std(received.saturating_duration_since(asked)).unwrap_or_default();
        if said >= self.at(received) - drift || latest < self.at(received) {
            *self = Self::new(received, said);
        }
    }

    /// What the database's clock shows at `instant`, or a little less.
    #[must_use]
    pub fn at(&self, instant: Instant) -> DateTime<Utc> {
        match instant.checked_duration_since(self.read_at) {
            Some(elapsed) => self.said + TimeDelta::from_std(elapsed).unwrap_or_default(),
            None => self.said - TimeDelta::from_std(self.read_at - instant).unwrap_or_default(),
        }
    }

    /// The moment at which the database's clock shows `time`, or a little later.
    #[must_use]
    pub fn instant(&self, time: DateTime<Utc>) -> Instant {
        match (time - self.said).to_std() {
            Ok(ahead) => self.read_at + ahead.min(FARTHEST),
            Err(_) => {
                let behind = (self.said - time).to_std().unwrap_or_default().min(FARTHEST);
                self.read_at.checked_sub(behind).unwrap_or(self.read_at)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tighter_reading_replaces_a_looser_one_and_a_looser_one_does_not() {
        let start = Instant::now();
        let epoch = DateTime::<Utc>::UNIX_EPOCH;
        let second = Duration::from_secs(1);
        // True time is epoch + elapsed. This reading was received 0.5 s after the database made it.
        let mut clock = DatabaseClock::new(start + second, epoch + Duration::from_millis(500));
        clock.read(start + second, start + 2 * second, epoch + Duration::from_millis(1990));
        assert_eq!(clock.at(start + 3 * second), epoch + Duration::from_millis(2990));
        clock.read(start + 2 * second, start + 3 * second, epoch + Duration::from_millis(2100));
        assert_eq!(clock.at(start + 3 * second), epoch + Duration::from_millis(2990), "a slow statement teaches nothing");
        assert_eq!(clock.instant(epoch + 5 * second), start + second * 5 + Duration::from_millis(10));
    }

    #[test]
    fn a_clock_that_was_set_back_is_followed() {
        let start = Instant::now();
        let epoch = DateTime::<Utc>::UNIX_EPOCH;
        let mut clock = DatabaseClock::new(start, epoch + Duration::from_secs(300));
        clock.read(start, start + Duration::from_millis(1), epoch);
        assert_eq!(clock.at(start + Duration::from_millis(1)), epoch);
    }
}

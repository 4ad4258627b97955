//! When each reference was last polled, by this process's own memory.
//!
//! The plan and the row say when the next poll is due. This is a second guard: whatever the
//! database says after a restore, a failover or a jump of its clock, and even when references are
//! exchanged between rows, a running process never polls a reference again before the documented
//! floor.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::{Duration, Instant};

/// The references of one account that were polled less than the floor ago. Where the provider
/// documents none, nothing is kept.
pub(super) struct Floor {
    floor: Duration,
    hashing: BuildHasherDefault<DefaultHasher>,
    last: HashMap<u64, Instant>,
    /// In the order of sending, to be forgotten.
    order: VecDeque<(Instant, u64)>,
}

impl Floor {
    pub(super) fn new(floor: Duration) -> Self {
        Self { floor, hashing: BuildHasherDefault::default(), last: HashMap::new(), order: VecDeque::new() }
    }

    /// A request was under way until `now`.
    pub(super) fn on_sent(&mut self, now: Instant, reference: &str) {
        if self.floor.is_zero() {
            return;
        }
        self.forget(now);
        // A hash collision makes a reference wait longer than it must, never shorter.
        let key = self.hashing.hash_one(reference);
        self.last.insert(key, now);
        self.order.push_back((now, key));
    }

    /// Not to be polled before that; `None`: now.
    pub(super) fn not_before(&mut self, now: Instant, reference: &str) -> Option<Instant> {
        if self.last.is_empty() {
            return None;
        }
        self.forget(now);
        let last = self.last.get(&self.hashing.hash_one(reference))?;
        Some(*last + self.floor).filter(|at| *at > now)
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, key)) = self.order.front().copied().filter(|(at, _)| *at + self.floor <= now) {
            self.order.pop_front();
            if self.last.get(&key) == Some(&at) {
                self.last.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_not_asked_about_before_its_floor_and_is_forgotten_after_it() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut floor = Floor::new(3 * second);
        floor.on_sent(now, "A");
        floor.on_sent(now + second, "B");
        assert_eq!(floor.not_before(now + second, "A"), Some(now + 3 * second));
        assert_eq!(floor.not_before(now + second, "C"), None);
        floor.on_sent(now + 2 * second, "A");
        assert_eq!(floor.not_before(now + 4 * second, "A"), Some(now + 5 * second));
        assert_eq!(floor.not_before(now + 4 * second, "B"), None);
        assert_eq!(floor.not_before(now + 5 * second, "A"), None);
        assert!(floor.last.is_empty() && floor.order.is_empty());
    }
}

//! Transactions in memory whose time has not come.

use crate::scheduler::held::Held;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Transactions by due time. The loop needs at every turn how many fall due soon, so they are
/// counted as they come and go.
pub struct Waiting {
    by_due: BTreeMap<(Instant, u64), Box<Held>>,
    /// How many fall due in which tick after `base`.
    counts: BTreeMap<u128, usize>,
    base: Instant,
}

/// Short enough that the transactions of one are soon counted one by one.
const TICK: Duration = Duration::from_millis(20);

impl Waiting {
    /// Empty. What falls due before `base` counts as falling due then.
    #[must_use]
    pub fn new(base: Instant) -> Self {
        Self { by_due: BTreeMap::new(), counts: BTreeMap::new(), base }
    }

    /// Waits until `due`. Of those that fall due at the same moment the lower `sequence` comes
    /// first; the pair is unique.
    pub fn insert(&mut self, due: Instant, sequence: u64, held: Box<Held>) {
        *self.counts.entry(self.tick(due)).or_default() += 1;
        self.by_due.insert((due, sequence), held);
    }

    /// When the first one falls due.
    #[must_use]
    pub fn first(&self) -> Option<Instant> {
        self.by_due.keys().next().map(|(due, _)| *due)
    }

    /// The first one, if it has fallen due by `now`; with its due time and sequence.
    pub fn pop_due(&mut self, now: Instant) -> Option<(Instant, u64, Box<Held>)> {
        let (due, sequence) = *self.by_due.keys().next().filter(|(due, _)| *due <= now)?;
        self.remove((due, sequence)).map(|held| (due, sequence, held))
    }

    /// All of them, in the order in which they fall due.
    pub fn take(&mut self) -> impl Iterator<Item = Box<Held>> + use<> {
        self.counts.clear();
        std::mem::take(&mut self.by_due).into_values()
    }

    /// How many fall due until `soon`.
    #[must_use]
    pub fn due_until(&self, soon: Instant) -> usize {
        let last = self.tick(soon);
        let whole: usize = self.counts.range(..last).map(|(_, count)| count).sum();
        let part = self.by_due.range(..=(soon, u64::MAX)).rev().take_while(|((due, _), _)| self.tick(*due) == last);
        whole + part.count()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_due.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_due.is_empty()
    }

    /// Takes out the one that waits under this key.
    pub fn remove(&mut self, key: (Instant, u64)) -> Option<Box<Held>> {
        let held = self.by_due.remove(&key)?;
        let tick = self.tick(key.0);
        if let Some(count) = self.counts.get_mut(&tick) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&tick);
            }
        }
        Some(held)
    }

    fn tick(&self, at: Instant) -> u128 {
        at.saturating_duration_since(self.base).as_nanos() / TICK.as_nanos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::held::tests::held;

    #[test]
    fn what_falls_due_soon_is_counted_as_if_one_by_one_while_transactions_come_and_go() {
        let base = Instant::now() + Duration::from_secs(3600);
        let at = |millis: u64| base - Duration::from_millis(50) + Duration::from_millis(millis);
        let mut waiting = Waiting::new(base);
        let mut dues = Vec::new();
        for number in 0..500 {
            let due = number * 7919 % 1009;
            waiting.insert(at(due), number, held(number.into()));
            dues.push(due);
        }
        for gone in (0..500_u64).step_by(3) {
            let due = gone * 7919 % 1009;
            assert!(waiting.remove((at(due), gone)).is_some());
            dues.remove(dues.iter().position(|other| *other == due).expect("it is there"));
        }
        dues.sort_unstable();
        for first in dues.clone() {
            assert_eq!(waiting.first(), Some(at(first)));
            for soon in [0, first, first + 1, first + 19, first + 300, 2_000] {
                let expected = dues.iter().filter(|due| **due <= soon).count();
                assert_eq!(waiting.due_until(at(soon)), expected, "until {soon} with the first at {first}");
            }
            if first > 0 {
                assert!(waiting.pop_due(at(first - 1)).is_none());
            }
            assert_eq!(waiting.pop_due(at(first)).map(|(due, ..)| due), Some(at(first)));
            dues.remove(0);
        }
        assert!(waiting.is_empty() && waiting.due_until(at(5_000)) == 0);
    }
}

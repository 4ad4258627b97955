//! Transactions whose time has come, in the order in which they are polled.

use super::BACKLOG_SHARE;
use crate::scheduler::held::Held;
use std::collections::BTreeMap;
use std::time::Instant;

/// When a window closes; open-ended plans come after all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// The window closes then.
    By(Instant),
    /// There is no window, or its end is not known.
    Open,
}

/// The place of a transaction in the queue: those whose window closes first, first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadyKey {
    /// It belongs to the backlog.
    pub backlog: bool,
    /// When its window closes.
    pub urgency: Urgency,
    /// When it fell due.
    pub due: Instant,
    /// Makes the key unique.
    pub sequence: u64,
}

/// The queue: what is new or has been polled all along, and beside it the backlog of what was
/// reopened or inserted long after its initiation. While both have entries, the backlog has one
/// turn in [`BACKLOG_SHARE`], so that no bulk retry delays new transactions.
#[derive(Default)]
pub(super) struct Ready {
    ordinary: BTreeMap<ReadyKey, Box<Held>>,
    backlog: BTreeMap<ReadyKey, Box<Held>>,
    /// Turns since the backlog had one.
    since_backlog: usize,
}

impl Ready {
    pub(super) fn insert(&mut self, key: ReadyKey, held: Box<Held>) {
        if key.backlog { &mut self.backlog } else { &mut self.ordinary }.insert(key, held);
    }

    pub(super) fn remove(&mut self, key: &ReadyKey) -> Option<Box<Held>> {
        if key.backlog { &mut self.backlog } else { &mut self.ordinary }.remove(key)
    }

    /// The next one that is free to be started.
    pub(super) fn next(&self, free: impl Fn(&Held) -> bool) -> Option<ReadyKey> {
        let first = |of: &BTreeMap<ReadyKey, Box<Held>>| of.iter().find(|(_, held)| free(held)).map(|(key, _)| *key);
        if self.since_backlog + 1 >= BACKLOG_SHARE {
            first(&self.backlog).or_else(|| first(&self.ordinary))
        } else {
            first(&self.ordinary).or_else(|| first(&self.backlog))
        }
    }

    /// Takes out what [`Ready::next`] named.
    pub(super) fn start(&mut self, key: &ReadyKey) -> Option<Box<Held>> {
        self.since_backlog = if key.backlog { 0 } else { (self.since_backlog + 1).min(BACKLOG_SHARE) };
        self.remove(key)
    }

    pub(super) fn first_urgency(&self) -> Option<Urgency> {
        let keys = self.ordinary.keys().next().into_iter().chain(self.backlog.keys().next());
        keys.map(|key| key.urgency).min()
    }

    pub(super) fn dues(&self) -> impl Iterator<Item = Instant> {
        self.ordinary.keys().chain(self.backlog.keys()).map(|key| key.due)
    }

    /// Takes out all.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Box<Held>> + use<> {
        std::mem::take(&mut self.ordinary).into_values().chain(std::mem::take(&mut self.backlog).into_values())
    }

    pub(super) fn len(&self) -> usize {
        self.ordinary.len() + self.backlog.len()
    }

    /// How many of them belong to the backlog.
    pub(super) fn backlog(&self) -> usize {
        self.backlog.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::held::tests::held;
    use std::time::Duration;

    #[test]
    fn a_backlog_has_one_turn_in_five_beside_what_is_new_and_all_turns_alone() {
        let now = Instant::now();
        let mut ready = Ready::default();
        for number in 0..20 {
            let key = |backlog| ReadyKey {
                backlog,
                urgency: Urgency::Open,
                // The backlog fell due long before.
                due: now + Duration::from_secs(if backlog { 0 } else { 60 }),
                sequence: number,
            };
            ready.insert(key(true), held(u128::from(number)));
            ready.insert(key(false), held(u128::from(100 + number)));
        }
        let mut order = String::new();
        while let Some(key) = ready.next(|_| true) {
            order.push(if key.backlog { 'b' } else { 'n' });
            assert!(ready.start(&key).is_some());
        }
        assert_eq!(order, format!("{}{}", "nnnnb".repeat(5), "b".repeat(15)));
    }
}

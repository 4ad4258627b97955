//! After a failover or a restore: what this replica believes it owns is compared with the database.

use super::protocol::{Command, StoreFailure};
use crate::store::ReplicaId;
use uuid::Uuid;

/// At most this many transactions are compared at once.
const AT_ONCE: usize = 10_000;

/// Transactions that are to be compared with their rows. Nothing is sent before that is done.
#[derive(Default)]
pub(super) struct Comparison {
    /// Raised with every cut: what was claimed or compared before that is to be compared.
    generation: u64,
    waiting: Vec<Uuid>,
    under_way: bool,
}

impl Comparison {
    /// What was claimed or compared before this changed is to be compared.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether anything is still to be compared.
    pub(super) fn is_pending(&self) -> bool {
        self.under_way || !self.waiting.is_empty()
    }

    /// The history may have been cut back. `held` are the transactions at hand; those in flight are
    /// compared when they are back.
    pub(super) fn begin(&mut self, held: impl Iterator<Item = Uuid>) {
        self.generation += 1;
        self.waiting = held.collect();
    }

    /// Adds one that was in flight meanwhile.
    pub(super) fn add(&mut self, id: Uuid) {
        self.waiting.push(id);
    }

    /// The registration is void, and so is everything that was claimed under it.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// The next comparison, if there is one to make and none under way.
    pub(super) fn next(&mut self, replica: Option<ReplicaId>) -> Option<Command> {
        let replica = replica.filter(|_| !self.under_way && !self.waiting.is_empty())?;
        self.under_way = true;
        let ids = self.waiting.split_off(self.waiting.len().saturating_sub(AT_ONCE));
        Some(Command::Compare { replica, ids })
    }

    /// A comparison has come back. A failed one is repeated.
    pub(super) fn returned<T>(&mut self, ids: &[Uuid], result: &Result<T, StoreFailure>) {
        self.under_way = false;
        if result.is_err() {
            self.waiting.extend_from_slice(ids);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_compared_once_and_what_failed_again() {
        let mut comparison = Comparison::default();
        comparison.begin((0..15_000).map(Uuid::from_u128));
        let mut seen = 0;
        let mut fails = true;
        while let Some(Command::Compare { ids, .. }) = comparison.next(Some(ReplicaId(1))) {
            assert!(comparison.is_pending() && comparison.next(Some(ReplicaId(1))).is_none(), "one at a time");
            let result = if fails { Err(StoreFailure::Conflict(String::new())) } else { Ok(()) };
            seen += if fails { 0 } else { ids.len() };
            fails = false;
            comparison.returned(&ids, &result);
        }
        assert_eq!((seen, comparison.is_pending()), (15_000, false));
    }
}

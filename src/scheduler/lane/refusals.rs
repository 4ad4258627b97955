//! Refusals of credentials that came with rows: when they concern the whole account.

use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// Five different rows that are refused one after another indicate a fault of the account. A row
/// that was refused while others were answered is itself to blame, however often it is refused
/// again: so bad rows do not disturb the good ones beside them.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Refused since the last usable answer, each for the first time.
    fresh: HashSet<Uuid>,
    /// Refused while others got usable answers.
    known: HashSet<Uuid>,
    /// Usable answers so far.
    usable: u64,
    /// How many of them there were when a request that is in flight was sent.
    sent: HashMap<Uuid, u64>,
}

/// This many different rows.
pub(super) const DIFFERENT: usize = 5;
/// Bounds the memory. What is forgotten counts once more.
const MOST_KNOWN: usize = 10_000;

impl Refusals {
    /// A request about this row was sent.
    pub(super) fn on_sent(&mut self, id: Uuid) {
        // Some come back without a result.
        if self.sent.len() > MOST_KNOWN {
            self.sent.clear();
        }
        self.sent.insert(id, self.usable);
    }

    /// It came back with any other result.
    pub(super) fn on_other(&mut self, id: Uuid) {
        self.sent.remove(&id);
    }

    /// It got a usable answer.
    pub(super) fn on_usable(&mut self, id: Uuid) {
        self.sent.remove(&id);
        self.usable += 1;
        if self.known.len() + self.fresh.len() > MOST_KNOWN {
            self.known.clear();
        }
        self.known.extend(self.fresh.drain());
        self.known.remove(&id);
    }

    /// The account is polled again: refusals so far are forgotten, except for rows that are known
    /// to be bad themselves.
    pub(super) fn begin_anew(&mut self) {
        self.fresh.clear();
    }

    /// It was refused. True when enough were, one after another, that the account is to blame.
    pub(super) fn on_refused(&mut self, id: Uuid) -> bool {
        // Rows answered since it was sent were answered by the same account.
        let alone = self.sent.remove(&id).is_some_and(|usable| usable < self.usable);
        if alone {
            self.fresh.remove(&id);
            self.known.insert(id);
        } else if !self.known.contains(&id) {
            self.fresh.insert(id);
        }
        self.fresh.len() >= DIFFERENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn refuse(refusals: &mut Refusals, number: u128) -> bool {
        refusals.on_sent(row(number));
        refusals.on_refused(row(number))
    }

    fn answer(refusals: &mut Refusals, number: u128) {
        refusals.on_sent(row(number));
        refusals.on_usable(row(number));
    }

    #[test]
    fn five_different_rows_one_after_another_concern_the_account() {
        let mut refusals = Refusals::default();
        for number in 1..5 {
            assert!(!refuse(&mut refusals, number) && !refuse(&mut refusals, number), "the same row again");
        }
        assert!(refuse(&mut refusals, 5));
    }

    #[test]
    fn a_usable_answer_between_them_begins_the_count_anew_and_a_bad_row_counts_but_once() {
        let mut refusals = Refusals::default();
        for round in 0..100 {
            for number in 1..5 {
                assert!(!refuse(&mut refusals, number), "round {round}");
            }
            answer(&mut refusals, 100);
        }
        // Ten of them in a row by now: all are known to be bad themselves.
        for number in 5..9 {
            assert!(!refuse(&mut refusals, number));
        }
        answer(&mut refusals, 100);
        assert!(!(1..9).any(|number| refuse(&mut refusals, number)));
        // Others count.
        assert!((21..26).any(|number| refuse(&mut refusals, number)));
    }

    #[test]
    fn rows_that_were_in_flight_while_another_was_answered_tell_of_themselves_alone() {
        let mut refusals = Refusals::default();
        (1..=10).for_each(|number| refusals.on_sent(row(number)));
        answer(&mut refusals, 100);
        assert!(!(1..=10).any(|number| refusals.on_refused(row(number))));
        // By their own back-off they come back without the others.
        assert!(!(1..=10).any(|number| refuse(&mut refusals, number)));
    }

    #[test]
    fn a_row_that_is_answered_again_may_tell_of_the_account_again() {
        let mut refusals = Refusals::default();
        assert!((1..5).all(|number| !refuse(&mut refusals, number)));
        (1..=5).for_each(|number| answer(&mut refusals, number));
        assert!((1..=5).any(|number| refuse(&mut refusals, number)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut refusals = Refusals::default();
        for number in 0..50_000 {
            refuse(&mut refusals, number);
            answer(&mut refusals, 1_000_000);
        }
        assert!(refusals.known.len() <= MOST_KNOWN + 1 && refusals.sent.is_empty());
    }
}

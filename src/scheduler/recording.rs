//! A batch on its way into the database, and the transactions that wait for it.

use super::held::Held;
use super::notice::Notice;
use crate::store::{Attempt, Batch, ReplicaId};
use std::collections::BTreeSet;
use std::time::Instant;
use uuid::Uuid;

/// A batch on its way into the database, and the transactions that wait for it.
#[derive(Default)]
pub struct Recording {
    /// What is written.
    pub batch: Batch,
    /// Under which replica.
    pub replica: Option<ReplicaId>,
    /// Proves whether it was committed. The same for every attempt to write it.
    pub number: i64,
    /// The last batch that was known to be committed when this one was first sent.
    pub acknowledged: i64,
    /// How often the database had lost commits by then.
    pub(super) cuts: u64,
    /// What must be remembered between attempts.
    pub attempt: Attempt,
    /// Transactions that go on when it is written.
    pub(super) carried: Vec<Carried>,
    /// Transactions that leave this replica when it is written, with the fence of their claim.
    pub(super) leaving: Vec<(Uuid, i64)>,
    /// Notices to report when it is written.
    pub(super) notices: Vec<(Uuid, Notice)>,
    /// When its first part came in.
    pub(super) since: Option<Instant>,
    /// How often it took too long.
    pub(super) timeouts: u32,
    /// The provider's texts were taken out of it, because they could not be stored.
    pub(super) stripped: bool,
}

/// A transaction that waits for its poll to be written.
pub(super) struct Carried {
    pub(super) held: Box<Held>,
    pub(super) due: Instant,
    /// Its row is written, which raises its fence.
    pub(super) written: bool,
}

impl Recording {
    pub(super) fn is_empty(&self) -> bool {
        self.batch.polls.is_empty() && self.batch.entries.is_empty() && self.batch.dropped.is_empty()
    }

    /// How many rows it writes into the table that has most of them.
    pub(super) fn len(&self) -> usize {
        self.batch.polls.len().max(self.batch.entries.len())
    }

    /// Its transactions, in order.
    pub(super) fn ids(&self) -> BTreeSet<Uuid> {
        (self.batch.entries.iter().map(|entry| entry.id))
            .chain(self.batch.polls.iter().map(|poll| poll.transaction_id))
            .chain(self.batch.dropped.iter().copied())
            .collect()
    }

    /// Splits off everything about the transactions that `of` selects.
    pub(super) fn split_off(&mut self, of: impl Fn(Uuid) -> bool) -> Self {
        Self {
            batch: self.batch.split_off(&of),
            carried: self.carried.extract_if(.., |carried| of(carried.held.transaction.id)).collect(),
            leaving: self.leaving.extract_if(.., |(id, _)| of(*id)).collect(),
            notices: self.notices.extract_if(.., |(id, _)| of(*id)).collect(),
            ..self.empty()
        }
    }

    /// An empty one under the same replica, never tried.
    fn empty(&self) -> Self {
        Self { replica: self.replica, since: self.since, stripped: self.stripped, ..Self::default() }
    }

    /// Merges another one under the same replica; neither was ever tried.
    pub(super) fn absorb(&mut self, mut other: Self) {
        self.batch.polls.append(&mut other.batch.polls);
        self.batch.entries.append(&mut other.batch.entries);
        self.batch.dropped.append(&mut other.batch.dropped);
        self.carried.append(&mut other.carried);
        self.leaving.append(&mut other.leaving);
        self.notices.append(&mut other.notices);
    }

    /// Whether both can be written as one.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.replica == other.replica && self.stripped == other.stripped
    }

    /// Parts of a recording that the database refuses, in the order in which to try them: its
    /// halves; of a single transaction first the polls alone, because they must be recorded
    /// whatever happens to the rest, then all of it without the provider's texts. A single part
    /// means that nothing is left to split.
    pub(super) fn take_apart(mut self) -> Vec<Self> {
        self.forget_attempts();
        let ids = self.ids();
        if ids.len() > 1 {
            let half: BTreeSet<Uuid> = ids.iter().copied().take(ids.len() / 2).collect();
            return vec![self.split_off(|id| half.contains(&id)), self];
        }
        let rest = !self.batch.entries.is_empty() || !self.batch.dropped.is_empty();
        if !self.batch.polls.is_empty() && rest {
            let polls = Batch { polls: std::mem::take(&mut self.batch.polls), ..Batch::default() };
            return vec![Self { batch: polls, ..self.empty() }, self];
        }
        self.strip();
        vec![self]
    }

    /// Whether nothing is left to split.
    pub(super) fn is_atom(&self) -> bool {
        let rest = self.batch.entries.len() + self.batch.dropped.len();
        self.stripped && (self.batch.polls.is_empty() || rest == 0) && self.ids().len() <= 1
    }

    /// Drops its row changes, which are based on rows that the database has lost. The polls are
    /// kept.
    pub(super) fn keep_polls_alone(&mut self) {
        self.batch.entries.clear();
        self.batch.dropped = self.batch.polls.iter().map(|poll| poll.transaction_id).collect();
        self.carried.clear();
        self.leaving.clear();
        self.notices.clear();
    }

    /// It is certainly not written: the next attempt is another batch.
    pub(super) fn forget_attempts(&mut self) {
        (self.number, self.timeouts, self.attempt) = (0, 0, Attempt::default());
    }

    /// Takes out the provider's texts: all else is this program's own.
    fn strip(&mut self) {
        self.stripped = true;
        for poll in &mut self.batch.polls {
            poll.error = poll.error.take().map(|_| "not storable".to_owned());
        }
        for entry in &mut self.batch.entries {
            (entry.details, entry.action, entry.provider_state) = (None, None, None);
            entry.reason = entry.reason.take().map(|reason| reason.map(|_| "not storable".to_owned()));
            if let Some(transition) = &mut entry.transition {
                transition.evidence = None;
            }
        }
    }
}

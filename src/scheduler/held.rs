//! A transaction in this replica's memory.

use crate::domain::{Decision, State, Transaction};
use crate::providers::Ask;
use crate::store::{Claimed, Entry, Transition};
use chrono::{DateTime, Utc};
use serde_json::Value;
use std::time::Instant;

/// A claimed transaction and its changes that are not yet written. It is in one place at a time:
/// waiting, ready, in flight, being recorded.
#[derive(Debug)]
pub struct Held {
    /// The transaction.
    pub transaction: Transaction,
    /// The account's lane.
    pub lane: usize,
    /// The fence of the claim.
    pub fence: i64,
    /// The registration under which it was claimed.
    pub epoch: u64,
    /// When its next poll is due, by the database's clock.
    pub due: DateTime<Utc>,
    /// Why no request can be made of the row.
    pub flaw: Option<String>,
    /// Reopened, or inserted long after its initiation.
    pub backlog: bool,
    /// Which of this process's claims brought it. After a failover its fence may be issued again;
    /// this number is not.
    pub claim: i64,
    /// The epoch of the database's history in which it was claimed or compared with its row.
    pub generation: u64,
    /// Changes that are not in the row yet.
    pub unsaved: Unsaved,
}

/// What happened since the row was last written. The journal has the polls themselves.
#[derive(Debug, Default)]
pub struct Unsaved {
    /// Since when.
    pub since: Option<Instant>,
    /// Polls sent.
    pub polls: u32,
    /// The provider's status.
    pub provider_state: Option<String>,
    /// The explanation.
    pub reason: Option<Option<String>>,
    /// What payer or merchant must do.
    pub action: Option<Value>,
    /// The last meaningful answer, redacted. As text: this takes most of the memory.
    pub details: Option<Box<str>>,
}

impl Held {
    /// A claimed transaction with no changes.
    #[must_use]
    pub fn new(claimed: Claimed, lane: usize, epoch: u64, claim: i64) -> Box<Self> {
        Box::new(Self {
            transaction: claimed.transaction,
            lane,
            fence: claimed.fence,
            epoch,
            due: claimed.due,
            flaw: claimed.flaw,
            backlog: claimed.backlog,
            claim,
            generation: 0,
            unsaved: Unsaved::default(),
        })
    }

    /// What a provider needs for the request, apart from the time and the token.
    #[must_use]
    pub fn ask(&self) -> Ask<'_> {
        let Transaction { reference, params, amount, .. } = &self.transaction;
        Ask { reference, params, now: DateTime::UNIX_EPOCH, token: None, amount: *amount }
    }

    /// Applies what was decided about a poll that was sent at `sent`.
    pub fn apply(&mut self, decision: &mut Decision, sent: DateTime<Utc>, now: Instant) {
        let transaction = &mut self.transaction;
        transaction.attempts = transaction.attempts.saturating_add(1);
        transaction.failures = decision.failures;
        transaction.not_found = decision.not_found;
        transaction.last_polled_at = Some(sent);
        transaction.progress = decision.progress;
        self.unsaved.since.get_or_insert(now);
        self.unsaved.polls += 1;
        if let Some(change) = &decision.change {
            if transaction.state == State::ActionRequired || change.to == State::ActionRequired {
                transaction.action_at = Some(sent);
            }
            transaction.state = change.to;
        }
        if decision.provider_state.is_some() || decision.change.is_some() {
            self.unsaved.reason = Some(decision.reason.take());
        }
        if let Some(provider_state) = decision.provider_state.take() {
            // Most answers repeat the status: nothing to write then.
            if transaction.provider_state.as_deref() != Some(&provider_state) {
                transaction.provider_state = Some(provider_state.clone().into());
                self.unsaved.provider_state = Some(provider_state);
            }
        }
        self.unsaved.action = decision.action.take().or(self.unsaved.action.take());
    }

    /// The row as it is to be written now, with all changes.
    pub fn entry(&mut self, hold: bool, next: Option<DateTime<Utc>>, transition: Option<Transition>) -> Entry {
        let unsaved = std::mem::take(&mut self.unsaved);
        let transaction = &self.transaction;
        Entry {
            id: transaction.id,
            fence: self.fence,
            hold,
            state: transaction.state,
            transition,
            provider_state: unsaved.provider_state,
            reason: unsaved.reason,
            action: unsaved.action,
            details: unsaved.details,
            polls: unsaved.polls,
            failures: transaction.failures,
            not_found: transaction.not_found,
            last_polled_at: transaction.last_polled_at,
            next,
            action_at: transaction.action_at,
            progress: transaction.progress,
        }
    }
}

#[cfg(test)]
pub(in crate::scheduler) mod tests {
    use super::*;
    use uuid::Uuid;

    /// A transaction for tests.
    pub(in crate::scheduler) fn held(number: u128) -> Box<Held> {
        let transaction = Transaction::new(Uuid::from_u128(number), "any", "default".into(), "R", DateTime::UNIX_EPOCH);
        let due = DateTime::UNIX_EPOCH;
        Held::new(Claimed { lane: 0, transaction, fence: 1, due, flaw: None, backlog: false }, 0, 1, 1)
    }
}

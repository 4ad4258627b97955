//! What follows from an outcome: the one place where a transaction's state is decided.

use super::outcome::{Amount, Health, Outcome, Reported, Status};
use super::plan::{Ending, Floors, Next, Plan, Progress, Sent};
use super::retry::Backoff;
use super::transaction::{State, Transaction};
use super::{outcome, since};
use chrono::{DateTime, Utc};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// All rules under which one provider's transactions are polled.
#[derive(Clone, Debug)]
pub struct Rules {
    /// When to poll, and what ends it.
    pub plan: Plan,
    /// The curve after polls without a usable answer.
    pub retry: Backoff,
    /// When "not found" is believed.
    pub not_found: NotFoundRule,
    /// What the provider's documentation forbids to go below.
    pub floors: Floors,
}

/// When a transaction that the provider does not find is parked: both must be passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFoundRule {
    /// This many answers in a row.
    pub limit: u32,
    /// This age since initiation, after `retry` since the reopening.
    pub min_age: Duration,
}

/// Who or what changed a state. The names are the values of `transitions.source`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A provider's answer.
    Poll,
    /// The end of a window.
    Deadline,
    /// An operator.
    Operator,
}

impl Source {
    /// The public name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Deadline => "deadline",
            Self::Operator => "operator",
        }
    }
}

/// A change of state.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The new state.
    pub to: State,
    /// Why, in the provider's text or one of ours.
    pub reason: Option<String>,
    /// Who or what changed it.
    pub source: Source,
}

/// What to record after a poll, and when the transaction is due again.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// A change of state, if there is one.
    pub change: Option<Change>,
    /// When it is due again; `None` exactly when the transaction is final or parked.
    pub next: Option<DateTime<Utc>>,
    /// The provider's own status, if this answer had one. With it the row's `reason` is set to
    /// [`Decision::reason`]; without one (and without a change) it stays.
    pub provider_state: Option<String>,
    /// The provider's explanation, or why polling ended.
    pub reason: Option<String>,
    /// What payer or merchant must do, while [`State::ActionRequired`].
    pub action: Option<Value>,
    /// The answer to keep in `details`, if it was meaningful.
    pub details: Option<Arc<Value>>,
    /// Polls in a row without a usable answer, after this one.
    pub failures: u32,
    /// Answers in a row that said "not found", after this one.
    pub not_found: u32,
    /// How far the plan has come.
    pub progress: Progress,
}

/// What to do with a transaction whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Poll the provider.
    Poll,
    /// Its window is over: park it, for this reason.
    Park(&'static str),
}

/// The reason when a window, or an age, ends without one usable answer in it: polling again in the
/// same way will fail in the same way.
pub const NO_USABLE_ANSWER: &str = "no_usable_answer";
/// The reason when the provider does not find a transaction.
pub const NOT_FOUND: &str = "not_found";
/// The reason when a success is about another amount.
pub const AMOUNT_MISMATCH: &str = "amount_mismatch";
/// The reason when a success is about another currency.
pub const CURRENCY_MISMATCH: &str = "currency_mismatch";
/// The reason when polling again with refused credentials would do harm.
pub const CREDENTIALS_REJECTED: &str = "credentials_rejected";

impl Rules {
    /// The shortest gap since its last poll that the plan and the documentation allow.
    #[must_use]
    pub fn floor_since(&self, transaction: &Transaction) -> Duration {
        self.plan.shortest_gap(&transaction.progress, transaction.provider_state.as_deref()).max(self.floors.every)
    }

    /// What to do with a transaction whose time has come.
    #[must_use]
    pub fn due(&self, transaction: &Transaction) -> Due {
        let provider_state = transaction.provider_state.as_deref();
        match self.plan.is_over(&transaction.progress, transaction.anchors(), provider_state, transaction.last_polled_at) {
            Some(ending) => {
                let counts = (transaction.attempts, transaction.failures);
                Due::Park(ending_reason(transaction, &transaction.progress, counts, ending))
            }
            None => Due::Poll,
        }
    }

    /// When a transaction that was not polled in this window is first due. May lie in the past:
    /// then at once.
    #[must_use]
    pub fn first_look(&self, transaction: &Transaction, jitter: f64) -> DateTime<Utc> {
        self.plan.first_look(transaction.initiated_at, transaction.last_polled_at, jitter)
    }

    /// When the window closes, as far as that is known.
    #[must_use]
    pub fn deadline(&self, transaction: &Transaction) -> Option<DateTime<Utc>> {
        let provider_state = transaction.provider_state.as_deref();
        self.plan.ending(&transaction.progress, transaction.anchors(), provider_state).map(|ending| ending.at)
    }

    /// What follows from the outcome of a poll that was sent at `sent`. `jitter` in 0..1 places the
    /// next poll within its range.
    #[must_use]
    pub fn decide(&self, transaction: &Transaction, outcome: &Outcome, sent: DateTime<Utc>, jitter: f64) -> Decision {
        let (failures, not_found) = outcome::count(outcome.name(), transaction.failures, transaction.not_found);
        let mut change = verdict(transaction, outcome);
        if change.is_none() && self.is_lost(transaction, outcome, not_found, sent) {
            change = Some(Change::park(NOT_FOUND, Source::Poll));
        }
        let provider_state = provider_state(outcome);
        let poll = Sent {
            at: sent,
            before: transaction.provider_state.as_deref(),
            provider_state: provider_state.or(transaction.provider_state.as_deref()),
            acted: change.as_ref().is_some_and(|change| change.to.is_polled()),
        };
        let mut anchors = transaction.anchors();
        if poll.acted {
            anchors.action = Some(sent);
        }
        let mut progress = transaction.progress;
        progress.answered |= outcome.health() == Health::Usable;
        let wait = match outcome {
            // The provider's own words: "Try again after 2 minutes", its floor from initiation to
            // the first poll.
            Outcome::TooEarly => self.floors.first,
            _ if failures > transaction.failures => self.retry.wait(failures, jitter),
            _ => Duration::ZERO,
        };
        let next = match self.plan.after_poll(&mut progress, anchors, poll, wait.max(self.floors.every), jitter) {
            _ if change.as_ref().is_some_and(|change| !change.to.is_polled()) => None,
            Next::Look(at) => Some(at),
            Next::Over(ending) => {
                let reason = ending_reason(transaction, &progress, (transaction.attempts.saturating_add(1), failures), ending);
                change = Some(Change::park(reason, Source::Deadline));
                None
            }
        };
        let reason = match (&change, outcome) {
            (Some(change), _) => change.reason.clone(),
            (None, Outcome::Status(status)) => status.reason.clone(),
            (None, Outcome::UnknownStatus { .. }) => outcome.error(),
            _ => None,
        };
        let (action, details) = match outcome {
            Outcome::Status(status) => (status.action(), Some(status.details.clone())),
            _ => (None, None),
        };
        Decision {
            change,
            next,
            provider_state: provider_state.map(str::to_owned),
            reason,
            action,
            details,
            failures,
            not_found,
            progress,
        }
    }

    /// Not found so often, and so long after the initiation, that it is believed.
    fn is_lost(&self, transaction: &Transaction, outcome: &Outcome, not_found: u32, sent: DateTime<Utc>) -> bool {
        matches!(outcome, Outcome::NotFound { .. })
            && not_found >= self.not_found.limit
            && since(transaction.anchors().start, sent) >= self.not_found.min_age
    }
}

impl Change {
    /// Polling ends without a final status.
    #[must_use]
    pub fn park(reason: &str, source: Source) -> Self {
        Self { to: State::Unresolved, reason: Some(reason.to_owned()), source }
    }
}

/// Why polling ends: the ending's own reason, or that nothing usable was ever answered. A
/// transaction that was polled by a daemon that did not yet count this had a usable answer wherever
/// failures are fewer than polls.
fn ending_reason(transaction: &Transaction, progress: &Progress, (polls, failures): (u32, u32), ending: Ending) -> &'static str {
    let failed_throughout = failures > 0 && (transaction.reopened_at.is_some() || failures >= polls);
    if !progress.answered && failed_throughout { NO_USABLE_ANSWER } else { ending.reason }
}

fn provider_state(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Status(status) => Some(&status.word),
        Outcome::UnknownStatus { status: word } => Some(word),
        _ => None,
    }
}

/// The change of state that the answer itself implies. Only a documented status, or a refusal that
/// forbids to poll again, makes one.
fn verdict(transaction: &Transaction, outcome: &Outcome) -> Option<Change> {
    let status = match outcome {
        Outcome::Status(status) => status,
        Outcome::CredentialsRejected { park: true, .. } => return Some(Change::park(CREDENTIALS_REJECTED, Source::Poll)),
        _ => return None,
    };
    let to = match &status.reported {
        Reported::Pending => State::Pending,
        Reported::ActionRequired(_) => State::ActionRequired,
        Reported::Succeeded => match mismatch(transaction, status) {
            Some(reason) => return Some(Change::park(reason, Source::Poll)),
            None => State::Succeeded,
        },
        Reported::Failed => State::Failed,
        Reported::Cancelled => State::Cancelled,
        Reported::Refunded => State::Refunded,
    };
    (to != transaction.state).then(|| Change { to, reason: status.reason.clone(), source: Source::Poll })
}

/// A success is believed only about the amount and the currency that the feeder expects, where both
/// sides name them. An amount that is there and cannot be read is not the expected one.
fn mismatch(transaction: &Transaction, status: &Status) -> Option<&'static str> {
    match (transaction.amount, status.amount) {
        (Some(ours), Amount::Told(theirs)) if ours == theirs => {}
        (Some(_), Amount::Told(_) | Amount::Unreadable) => return Some(AMOUNT_MISMATCH),
        (Some(_), Amount::Untold) | (None, _) => {}
    }
    if let (Some(ours), Some(theirs)) = (&transaction.currency, &status.currency)
        && !ours.trim().eq_ignore_ascii_case(theirs.trim())
    {
        return Some(CURRENCY_MISMATCH);
    }
    None
}

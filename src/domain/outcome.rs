//! What one poll brought back, whatever came back: an answer, nonsense or silence.

use rust_decimal::Decimal;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// The result of one poll. Every response has one: provider misbehaviour is data, not an error.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A well-formed answer about our own transaction, with a documented status.
    Status(Box<Status>),
    /// A well-formed answer about our own transaction, with an undocumented status.
    UnknownStatus {
        /// The provider's status.
        status: String,
    },
    /// The provider does not know the transaction: not logged yet, or archived. Never a failure of
    /// the payment.
    NotFound {
        /// What the provider said.
        message: String,
    },
    /// The provider says that it is too early to poll. A snooze: no failure, no alarm.
    TooEarly,
    /// HTTP 429: the account is polled too often.
    RateLimited {
        /// The provider's `Retry-After`.
        wait: Option<Duration>,
    },
    /// The credentials were refused.
    CredentialsRejected {
        /// Whose credentials they were.
        whose: Whose,
        /// Polling again would do harm: park the transaction at once.
        park: bool,
        /// What the provider said.
        message: String,
    },
    /// HTTP 5xx.
    ServerError {
        /// The HTTP status.
        status: u16,
        /// The provider's `Retry-After` (HTTP 503).
        wait: Option<Duration>,
    },
    /// The provider refused or failed this request in a documented way that says nothing about the payment.
    RequestFailed {
        /// What the provider said.
        message: String,
    },
    /// Not an answer about our transaction: garbage, a cut body, another transaction's identifier,
    /// a redirect.
    Unusable {
        /// What is wrong with it.
        why: String,
    },
    /// Nothing came back.
    NoAnswer(NoAnswer),
}

/// A documented status of our transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// What the provider's status means.
    pub reported: Reported,
    /// The provider's own status.
    pub word: String,
    /// The provider's explanation.
    pub reason: Option<String>,
    /// The amount in major units.
    pub amount: Amount,
    /// The currency, where the answer has one.
    pub currency: Option<String>,
    /// The answer itself, to keep in `transactions.details`.
    pub details: Arc<Value>,
}

impl Status {
    /// What payer or merchant must do.
    #[must_use]
    pub fn action(&self) -> Option<Value> {
        match &self.reported {
            Reported::ActionRequired(action) => Some(action.clone()),
            _ => None,
        }
    }
}

/// What an answer says of the amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Amount {
    /// Nothing.
    #[default]
    Untold,
    /// This, in major units.
    Told(Decimal),
    /// Something that is no amount: whatever was paid, it cannot be compared with what is expected.
    Unreadable,
}

/// What a documented status means.
#[derive(Clone, Debug, PartialEq)]
pub enum Reported {
    /// Not decided yet.
    Pending,
    /// The payer or the merchant has to act; says what.
    ActionRequired(Value),
    /// The payment happened.
    Succeeded,
    /// The payment did not happen.
    Failed,
    /// The payment was cancelled.
    Cancelled,
    /// The payment was paid back.
    Refunded,
}

/// To whom refused credentials belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The merchant account: none of its transactions can be polled.
    Account,
    /// They came with the row: only this transaction is concerned.
    Row,
}

/// Why nothing came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// No complete answer within the provider's time-out.
    Timeout,
    /// The connection could not be made or broke, TLS included. Says how.
    Connection(String),
    /// The daemon stopped before the answer came.
    Stopped,
}

/// What an outcome says about the provider rather than about the transaction: the circuit's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// A usable answer.
    Usable,
    /// Time-out, broken connection, 5xx.
    Down,
    /// The account's credentials were refused.
    AccountRefused,
    /// Credentials that came with the row were refused.
    RowRefused,
    /// Says nothing either way.
    Neutral,
}

impl Outcome {
    /// The name in `polls.outcome`, in the log and in the metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Status(status) => match status.reported {
                Reported::Pending => "pending",
                Reported::ActionRequired(_) => "action_required",
                Reported::Succeeded => "succeeded",
                Reported::Failed => "failed",
                Reported::Cancelled => "cancelled",
                Reported::Refunded => "refunded",
            },
            Self::UnknownStatus { .. } => "unknown_word",
            Self::NotFound { .. } => NOT_FOUND,
            Self::TooEarly => TOO_EARLY,
            Self::RateLimited { .. } => "rate_limited",
            Self::CredentialsRejected { .. } => "credentials_rejected",
            Self::ServerError { .. } => "server_error",
            Self::RequestFailed { .. } => "request_failed",
            Self::Unusable { .. } => "unusable",
            Self::NoAnswer(NoAnswer::Timeout) => "timeout",
            Self::NoAnswer(NoAnswer::Connection(_)) => "connection_failed",
            Self::NoAnswer(NoAnswer::Stopped) => "stopped",
        }
    }

    /// Every name that [`Outcome::name`] gives, for documentation and metrics.
    pub const NAMES: [&'static str; 17] = [
        "pending",
        "action_required",
        "succeeded",
        "failed",
        "cancelled",
        "refunded",
        "unknown_word",
        NOT_FOUND,
        TOO_EARLY,
        "rate_limited",
        "credentials_rejected",
        "server_error",
        "request_failed",
        "unusable",
        "timeout",
        "connection_failed",
        "stopped",
    ];

    /// What went wrong, for `polls.error` and the log; `None` for a documented status and for "too early".
    #[must_use]
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Status(_) | Self::TooEarly => None,
            Self::UnknownStatus { status: word } => Some(format!("the provider's word {word:?} is not documented")),
            Self::NotFound { message } | Self::CredentialsRejected { message, .. } | Self::RequestFailed { message } => {
                Some(message.clone())
            }
            Self::RateLimited { wait: Some(wait) } => Some(format!("asked too often; Retry-After {} s", wait.as_secs())),
            Self::RateLimited { wait: None } => Some("asked too often".into()),
            Self::ServerError { status, .. } => Some(format!("HTTP {status}")),
            Self::Unusable { why } => Some(why.clone()),
            Self::NoAnswer(NoAnswer::Timeout) => Some("no complete answer within the time-out".into()),
            Self::NoAnswer(NoAnswer::Connection(how)) => Some(how.clone()),
            Self::NoAnswer(NoAnswer::Stopped) => Some("the daemon stopped before the answer came".into()),
        }
    }

    /// The same outcome with the provider's text passed through `clean`: scrubbed of secrets and
    /// cut before it is stored.
    #[must_use]
    pub fn cleaned(mut self, clean: impl Fn(&str) -> String) -> Self {
        match &mut self {
            Self::Status(status) => {
                status.word = clean(&status.word);
                status.reason = status.reason.as_deref().map(clean);
            }
            Self::UnknownStatus { status: text }
            | Self::NotFound { message: text }
            | Self::CredentialsRejected { message: text, .. }
            | Self::RequestFailed { message: text }
            | Self::Unusable { why: text }
            | Self::NoAnswer(NoAnswer::Connection(text)) => *text = clean(text),
            Self::TooEarly
            | Self::RateLimited { .. }
            | Self::ServerError { .. }
            | Self::NoAnswer(NoAnswer::Timeout | NoAnswer::Stopped) => {}
        }
        self
    }

    /// `Retry-After`, a floor for the whole account.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { wait } | Self::ServerError { wait, .. } => *wait,
            _ => None,
        }
    }

    /// What it says about the provider.
    #[must_use]
    pub fn health(&self) -> Health {
        match self {
            Self::Status(_) | Self::TooEarly => Health::Usable,
            Self::ServerError { .. } | Self::NoAnswer(NoAnswer::Timeout | NoAnswer::Connection(_)) => Health::Down,
            Self::CredentialsRejected { whose: Whose::Account, .. } => Health::AccountRefused,
            Self::CredentialsRejected { whose: Whose::Row, .. } => Health::RowRefused,
            Self::UnknownStatus { .. }
            | Self::NotFound { .. }
            | Self::RateLimited { .. }
            | Self::RequestFailed { .. }
            | Self::Unusable { .. }
            | Self::NoAnswer(NoAnswer::Stopped) => Health::Neutral,
        }
    }
}

const NOT_FOUND: &str = "not_found";
const TOO_EARLY: &str = "too_early";

/// Whether an outcome of that name was a usable answer.
#[must_use]
pub fn is_usable(outcome: &str) -> bool {
    matches!(outcome, "pending" | "action_required" | "succeeded" | "failed" | "cancelled" | "refunded" | TOO_EARLY)
}

/// The two counters of a transaction, moved by one journal row: how a successor rebuilds them from
/// `polls.outcome`.
///
/// A usable answer sets both to zero, "too early" moves neither, anything else is a failure.
#[must_use]
pub fn count(outcome: &str, failures: u32, not_found: u32) -> (u32, u32) {
    match outcome {
        "pending" | "action_required" | "succeeded" | "failed" | "cancelled" | "refunded" => (0, 0),
        TOO_EARLY => (failures, not_found),
        NOT_FOUND => (failures.saturating_add(1), not_found.saturating_add(1)),
        _ => (failures.saturating_add(1), not_found),
    }
}

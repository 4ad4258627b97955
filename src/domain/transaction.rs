//! A payment transaction as the daemon holds it while it is polled.

use super::plan::{Anchors, Progress};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde_json::Value;
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// Where a transaction stands. The names are public: they are the values of `transactions.state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Polled by its plan.
    Pending,
    /// The provider waits for the payer or the merchant; polled on.
    ActionRequired,
    /// Final: the provider said that the payment happened.
    Succeeded,
    /// Final: the provider said that the payment did not happen.
    Failed,
    /// Final: the provider said that the payment was cancelled.
    Cancelled,
    /// Final: the provider said that the payment was paid back.
    Refunded,
    /// Parked: polling ended without a final status. The outcome is unknown, never to be read as
    /// failed.
    Unresolved,
    /// Parked: the row cannot be polled until it is fixed.
    Invalid,
}

impl State {
    /// Every state, in the order of the documentation.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::ActionRequired,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Refunded,
        Self::Unresolved,
        Self::Invalid,
    ];

    /// The public name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::ActionRequired => "action_required",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Refunded => "refunded",
            Self::Unresolved => "unresolved",
            Self::Invalid => "invalid",
        }
    }

    /// The state of that public name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether the daemon polls a transaction in this state.
    #[must_use]
    pub fn is_polled(self) -> bool {
        matches!(self, Self::Pending | Self::ActionRequired)
    }

    /// Whether the state is final by the provider's word.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Refunded)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One transaction, with everything that polling and deciding need.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// `transactions.id`.
    pub id: Uuid,
    /// The provider's name.
    pub provider: &'static str,
    /// Which of the configured merchant accounts polls it.
    pub account: Arc<str>,
    /// The key that the provider looks up.
    pub reference: Box<str>,
    /// What the lookup needs beside the reference, under the provider's own field names. May hold secrets.
    pub params: Value,
    /// The amount that the feeder expects, in major units.
    pub amount: Option<Decimal>,
    /// The currency that the feeder expects.
    pub currency: Option<Box<str>>,
    /// When the payment was initiated, by the feeder's clock.
    pub initiated_at: DateTime<Utc>,
    /// When an operator last opened a new polling window (`paypoll retry`).
    pub reopened_at: Option<DateTime<Utc>>,
    /// When the transaction last came into `action_required` or left it.
    pub action_at: Option<DateTime<Utc>>,
    /// Where it stands.
    pub state: State,
    /// The provider's last status.
    pub provider_state: Option<Box<str>>,
    /// Polls sent.
    pub attempts: u32,
    /// Polls in a row without a usable answer.
    pub failures: u32,
    /// Answers in a row that said "not found".
    pub not_found: u32,
    /// When the last poll was sent, by the database's clock.
    pub last_polled_at: Option<DateTime<Utc>>,
    /// How far the plan has come.
    pub progress: Progress,
}

impl Transaction {
    /// A transaction as it is inserted with nothing but what is required: pending and never polled.
    #[must_use]
    pub fn new(id: Uuid, provider: &'static str, account: Arc<str>, reference: &str, initiated_at: DateTime<Utc>) -> Self {
        Self {
            id,
            provider,
            account,
            reference: reference.into(),
            params: Value::Object(serde_json::Map::new()),
            amount: None,
            currency: None,
            initiated_at,
            reopened_at: None,
            action_at: None,
            state: State::Pending,
            provider_state: None,
            attempts: 0,
            failures: 0,
            not_found: 0,
            last_polled_at: None,
            progress: Progress::default(),
        }
    }

    /// Where its ages and windows count from.
    #[must_use]
    pub fn anchors(&self) -> Anchors {
        Anchors { start: self.reopened_at.unwrap_or(self.initiated_at), action: self.action_at }
    }
}

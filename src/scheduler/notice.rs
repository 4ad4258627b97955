//! What is reported to the log and the metrics.

use crate::domain::State;
use std::time::Duration;
use uuid::Uuid;

/// Something that happened and is worth a line or a count.
#[derive(Debug)]
pub enum Notice {
    /// A poll was answered, or not.
    Poll {
        /// The account's lane.
        lane: usize,
        /// The transaction.
        id: Uuid,
        /// The key that the provider looks up.
        reference: Box<str>,
        /// Which poll of the transaction it was.
        attempt: u32,
        /// [`crate::domain::Outcome::name`].
        outcome: &'static str,
        /// The answer's status.
        status: Option<u16>,
        /// How long it took.
        latency: Option<Duration>,
        /// Sent minus due.
        lateness: Duration,
        /// What went wrong, scrubbed.
        error: Option<String>,
        /// The provider's status is not documented.
        provider_state: Option<String>,
    },
    /// A transaction changed its state, and it is written.
    Transition {
        /// The account's lane.
        lane: usize,
        /// The transaction.
        id: Uuid,
        /// The key that the provider looks up.
        reference: Box<str>,
        /// The state before.
        from: State,
        /// The state now.
        to: State,
        /// The provider's status.
        provider_state: Option<Box<str>>,
        /// Why.
        reason: Option<String>,
        /// Polls sent so far.
        attempt: u32,
    },
    /// The provider asked for fewer requests to the account.
    RateLimited {
        /// The account's lane.
        lane: usize,
        /// For how long.
        wait: Duration,
    },
    /// An operator paused the account, for this reason, or resumed it.
    Suspended {
        /// The account's lane.
        lane: usize,
        /// Why; `None`: it is resumed.
        because: Option<String>,
    },
    /// The database became unavailable.
    DatabaseLost(String),
    /// The database is available again.
    DatabaseBack,
    /// Commits that the database had acknowledged are gone: a failover, or a restore.
    CommitsLost(String),
    /// The database refuses one transaction's record; it is tried again.
    RecordRefused {
        /// The transaction.
        id: Uuid,
        /// The server's words.
        why: String,
    },
    /// A row cannot be read or claimed; all others go on.
    RowRefused {
        /// The transaction.
        id: Uuid,
        /// What is wrong with it.
        why: String,
    },
    /// Another session keeps the rows of this many transactions locked.
    Locked(usize),
    /// Rows that this replica owned without having them in memory are claimed again.
    Recovered(usize),
}

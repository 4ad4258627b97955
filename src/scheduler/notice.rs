//! What the log and the metrics are told.

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
        /// The provider's word is not documented.
        word: Option<String>,
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
        /// The provider's word.
        word: Option<Box<str>>,
        /// Why.
        reason: Option<String>,
        /// Polls sent so far.
        attempt: u32,
    },
    /// The account was asked to come slower.
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
    /// The database was lost.
    DatabaseLost(String),
    /// It is back.
    DatabaseBack,
    /// What the database had acknowledged is not there any more: a failover, or a restore.
    CommitsLost(String),
    /// The database refuses what one transaction's record says; it is tried again.
    RecordRefused {
        /// The transaction.
        id: Uuid,
        /// The server's words.
        why: String,
    },
    /// The database holds a row that cannot be read or claimed; all others go on.
    RowRefused {
        /// The transaction.
        id: Uuid,
        /// What is wrong with it.
        why: String,
    },
    /// Another session keeps the rows of so many transactions locked.
    Locked(usize),
    /// Rows that this replica owned without knowing were taken up again.
    Recovered(usize),
}

//! Messages between the engine and its driver: plain data.
//!
//! A transaction in memory travels inside commands and events, so it is in one place at a time and
//! has one poll in flight at most.

use super::admission::Placer;
use super::held::Held;
use super::lane::{CircuitChange, LaneSpec, Room};
use super::recording::Recording;
use crate::domain::Outcome;
use crate::store::{AccountState, Beat, Claim, ClaimOrder, Draw, Drawn, Override, Recorded, ReplicaId};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// What the engine needs to know once.
pub struct Setup {
    /// The accounts.
    pub lanes: Vec<Arc<LaneSpec>>,
    /// Identifies this process for as long as it runs: its commits are known by this id and a
    /// number, whatever history the database has.
    pub process: Uuid,
    /// How long this replica's claims outlive its last heartbeat.
    pub lease: Duration,
    /// Requests in flight, over all accounts.
    pub max_in_flight: u32,
    /// Transactions in memory.
    pub max_held: usize,
    /// Where the jitter comes from.
    pub seed: u64,
}

/// Something for the driver to do. Each is answered by the event that it names.
pub enum Command {
    /// Register this replica, create the accounts' rows: [`Event::Registered`].
    Register,
    /// Renew the lease: [`Event::Beaten`].
    Beat {
        /// This replica.
        replica: ReplicaId,
        /// The newest replica that it leaves room for.
        complied: i64,
        /// The database's time as this replica reckons it, if it may expire others: see
        /// [`crate::store::Store::beat`].
        judge: Option<DateTime<Utc>>,
        /// How many transactions this replica has in memory.
        held: i64,
    },
    /// Take due transactions: [`Event::Claimed`].
    Claim {
        /// Which ones.
        order: Box<ClaimOrder>,
        /// Decides what to do with each.
        placer: Placer,
        /// Returned with the event.
        cycle: ClaimCycle,
    },
    /// Reserve send slots: [`Event::Drawn`].
    Draw {
        /// The requests for slots, one for each lane.
        draws: Vec<Draw>,
        /// Their lanes.
        lanes: Vec<usize>,
    },
    /// Poll the provider, unless it is later than `before` by then: [`Event::Polled`].
    Poll {
        /// The transaction.
        held: Box<Held>,
        /// Not to be sent any more from then on.
        before: Instant,
    },
    /// Write: [`Event::Recorded`].
    Record(Box<Recording>),
    /// Read other writers' changes and the accounts' state: [`Event::Watched`].
    Watch {
        /// This replica.
        replica: ReplicaId,
    },
    /// After a failover: which of these does this replica own, and under which fence: [`Event::Compared`].
    Compare {
        /// This replica.
        replica: ReplicaId,
        /// The transactions.
        ids: Vec<Uuid>,
    },
    /// The provider asked for a pause: [`Event::AccountNoticeSent`].
    SlowDown {
        /// The account's lane.
        lane: usize,
        /// Until when; whatever is left of it is sent when the database can be reached.
        until: Instant,
    },
    /// Notify all replicas that a circuit opened or closed, and log it if this replica was first:
    /// [`Event::AccountNoticeSent`].
    Circuit {
        /// The account's lane.
        lane: usize,
        /// What happened.
        change: CircuitChange,
    },
    /// Request the right to send a probe: [`Event::Probe`].
    Probe {
        /// The account's lane.
        lane: usize,
    },
    /// Everything is written and released, or cannot be: deregister and end. The last command.
    Finish {
        /// This replica, if it ever was one.
        replica: Option<ReplicaId>,
        /// What could not be written, and why; `None` when all is written.
        unwritten: Option<String>,
        /// Whether everything was released. Else other replicas take it over when the registration
        /// or the lease is gone.
        given_back: bool,
    },
}

/// A claim cycle under way, as the engine must remember it.
pub struct ClaimCycle {
    /// The lanes to claim for, and how many transactions of each.
    pub lanes: Vec<(usize, Room)>,
    /// See [`crate::store::Store::claim`].
    pub unsure: Vec<Uuid>,
    /// The registration under which it was issued.
    pub(super) epoch: u64,
    /// The database's clock then.
    pub(super) now: DateTime<Utc>,
    /// When it was issued.
    pub(super) issued_at: Instant,
    /// It is a full scan: everything due, however long ago.
    pub(super) sweep: bool,
}

/// Something that happened.
pub enum Event {
    /// Nothing but the passing of time.
    Tick,
    /// Answers [`Command::Register`].
    Registered(Result<(ReplicaId, Beat), StoreFailure>, Instant),
    /// Answers [`Command::Beat`]; with the replica for which, and the moment at which, it was
    /// issued.
    Beaten(ReplicaId, Result<Beat, StoreFailure>, Instant),
    /// Answers [`Command::Claim`].
    Claimed(Result<Claim, StoreFailure>, ClaimCycle),
    /// Answers [`Command::Draw`]; with the moment at which it was issued.
    Drawn(Result<Vec<Drawn>, StoreFailure>, Vec<usize>, Instant),
    /// Answers [`Command::Poll`].
    Polled(Box<Held>, PollResult),
    /// Answers [`Command::Record`].
    Recorded(Box<Recording>, Result<Recorded, StoreFailure>),
    /// Answers [`Command::Watch`].
    Watched(Result<Watch, StoreFailure>),
    /// Answers [`Command::Compare`], for these: those that are owned, each with its fence.
    Compared(Vec<Uuid>, Result<Vec<(Uuid, i64)>, StoreFailure>),
    /// Answers [`Command::SlowDown`] and [`Command::Circuit`].
    AccountNoticeSent(AccountNotice, Result<(), StoreFailure>),
    /// Answers [`Command::Probe`].
    Probe {
        /// The account's lane.
        lane: usize,
        /// Whether this replica may send it.
        granted: Result<bool, StoreFailure>,
    },
    /// The process stood still for a while: its knowledge may be stale.
    Woken,
    /// Stop: release what is not in flight, wait for what is.
    Stop,
}

/// Something about an account that all replicas must know. It is repeated until it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountNotice {
    /// A pause until then.
    SlowDown {
        /// The account's lane.
        lane: usize,
        /// Until when.
        until: Instant,
    },
    /// A circuit opened or closed.
    Circuit {
        /// The account's lane.
        lane: usize,
        /// What happened.
        change: CircuitChange,
    },
}

impl AccountNotice {
    pub(super) fn command(self) -> Command {
        match self {
            Self::SlowDown { lane, until } => Command::SlowDown { lane, until },
            Self::Circuit { lane, change } => Command::Circuit { lane, change },
        }
    }
}

/// Changes by other writers.
#[derive(Debug)]
pub struct Watch {
    /// For which replica.
    pub replica: ReplicaId,
    /// Its transactions that others changed since it claimed them: closed, reopened, corrected,
    /// expedited.
    pub overrides: Vec<Override>,
    /// Every account that is paused or whose circuit is open.
    pub accounts: Vec<AccountState>,
}

/// A statement failed. See [`crate::store::Trouble`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreFailure {
    /// It cannot be reached, or not written to.
    Unavailable(String),
    /// A conflict with another session: the same again.
    Conflict(String),
    /// It took longer than it may.
    TimedOut(String),
    /// It refuses the content of what was to be written.
    Refused(String),
}

impl StoreFailure {
    /// The server's words, or the library's.
    #[must_use]
    pub fn words(&self) -> &str {
        let (Self::Unavailable(words) | Self::Conflict(words) | Self::TimedOut(words) | Self::Refused(words)) = self;
        words
    }
}

/// The result of a poll.
pub enum PollResult {
    /// No request was sent: it was too late, or there is no token; with the reason.
    NotSent(Option<Outcome>),
    /// No request was sent, and none is to be before this time has passed. Says nothing about the provider.
    Later(Duration),
    /// No request can be made of the row.
    Impossible(String),
    /// A request was sent.
    Sent {
        /// When.
        at: Instant,
        /// How long the answer took; `None` when nothing came back.
        latency: Option<Duration>,
        /// The answer's status.
        status: Option<u16>,
        /// The answer's body.
        body: Bytes,
        /// What it means.
        outcome: Outcome,
    },
}

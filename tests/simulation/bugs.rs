//! Bugs that are planted to test the checker: each must be caught. None of them is in the engine
//! itself: they sit in the rules that it is given, in the store, and in what carries out its
//! commands.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A write does not check the fence of the claim.
    NoFencing,
    /// A write does not check whether the replica still has its lease.
    LeaseIgnored,
    /// A batch is acknowledged and never written.
    AckBeforeWork,
    /// A batch whose answer got lost is written again.
    LostAnswerWrittenTwice,
    /// Every process has the account's whole rate for itself.
    LimiterPerProcess,
    /// Every process has the account's requests in flight for itself.
    InFlightPerProcess,
    /// The host's wall clock stands in for the database's.
    LocalClock,
    /// A restarted replica goes by the name that it had before.
    LeaseByName,
    /// A claim takes what a living replica holds.
    ClaimFromTheLiving,
    /// A claim whose answer got lost is forgotten.
    LostClaimForgotten,
    /// A successor does not read what the dead owner journaled.
    JournalNotConsulted,
    /// A successor does not reckon with a poll that was sent and not recorded.
    InFlightForgotten,
    /// A poll that comes back after the transaction was lost is not counted.
    LatePollNotCounted,
    /// A change of state is journaled twice.
    TransitionWrittenTwice,
    /// A change of state is not journaled.
    TransitionNotWritten,
    /// A callback handler's verdict leaves the fence as it is.
    VerdictUnfenced,
    /// Callback handlers' verdicts are not looked for.
    VerdictsUnwatched,
    /// A verdict frees the row before its owner has let go of it.
    VerdictFreesTheRow,
    /// Only the replica that got `Retry-After` keeps to it.
    RetryAfterNotShared,
    /// While a circuit is open, every replica probes.
    ProbeByEveryReplica,
    /// Intervals are drawn from below the floor.
    JitterBelowFloor,
    /// The first poll does not wait for the documented floor.
    FirstFloorIgnored,
    /// Polling goes on when the window is over.
    WindowIgnored,
    /// What is held is not given back at the end.
    GiveBackDropped,
    /// What is planned for later is forgotten.
    PlannedForgotten,
    /// "Not found" is read as a failed payment.
    NotFoundIsFailed,
    /// Silence is read as a failed payment.
    SilenceIsFailed,
    /// The answer about one transaction is taken for another's.
    AnswersMixedUp,
    /// A transaction that another writer has changed is polled on.
    RefusedPolledOn,
    /// What cannot be written while another session keeps its row locked is forgotten.
    LockedForgotten,
    /// A request that was decided in time is sent however late it is.
    SentAfterLease,
    /// Replicas are declared dead because the database's clock was set forward.
    JudgedByALeap,
    /// A process that stood still with its clock goes on as if nothing had been.
    SleepUnnoticed,
    /// No replica compares what was acknowledged with what the database has.
    LostCommitsUnnoticed,
    /// No replica looks for rows that it owns without having them in memory.
    OwnRowsUnsurveyed,
    /// Another server is taken for the old one.
    FailoverUnnoticed,
    /// An exclusive key that is not given back is never free again.
    KeyNeverExpires,
    /// One row that cannot be taken makes every claim fail.
    OneRefusedRowStopsTheClaim,
    /// A record that the database refuses counts as a database that is away.
    RefusedIsAway,
    /// A record that the database refuses is forgotten.
    RefusedForgotten,
    /// Every process has the exclusive keys for itself.
    KeyPerProcess,
    /// A notice that could not be sent to the other replicas is not repeated.
    ToldOnce,
}

/// Of a hundred mishaps: a failover, a database that is slow, lost messages, the database's clock
/// set, a callback handler's verdict.
pub(crate) const FAILOVER: u8 = 4;
pub(crate) const SLOWNESS: u8 = 6;
pub(crate) const LOSS: u8 = 11;
pub(crate) const CLOCK: u8 = 42;
pub(crate) const VERDICT: u8 = 56;

impl Bug {
    /// The mishaps without which it hardly shows.
    pub(crate) fn mishaps(self) -> &'static [u8] {
        match self {
            Self::LostCommitsUnnoticed | Self::FailoverUnnoticed => &[FAILOVER],
            Self::JudgedByALeap => &[CLOCK],
            Self::ToldOnce => &[LOSS],
            Self::RefusedPolledOn => &[VERDICT],
            _ => &[],
        }
    }

    /// All of them.
    pub(crate) const ALL: [Self; 42] = [
        Self::NoFencing,
        Self::LeaseIgnored,
        Self::AckBeforeWork,
        Self::LostAnswerWrittenTwice,
        Self::LimiterPerProcess,
        Self::InFlightPerProcess,
        Self::LocalClock,
        Self::LeaseByName,
        Self::ClaimFromTheLiving,
        Self::LostClaimForgotten,
        Self::JournalNotConsulted,
        Self::InFlightForgotten,
        Self::LatePollNotCounted,
        Self::TransitionWrittenTwice,
        Self::TransitionNotWritten,
        Self::VerdictUnfenced,
        Self::VerdictsUnwatched,
        Self::VerdictFreesTheRow,
        Self::RetryAfterNotShared,
        Self::ProbeByEveryReplica,
        Self::JitterBelowFloor,
        Self::FirstFloorIgnored,
        Self::WindowIgnored,
        Self::GiveBackDropped,
        Self::PlannedForgotten,
        Self::NotFoundIsFailed,
        Self::SilenceIsFailed,
        Self::AnswersMixedUp,
        Self::RefusedPolledOn,
        Self::LockedForgotten,
        Self::SentAfterLease,
        Self::JudgedByALeap,
        Self::SleepUnnoticed,
        Self::LostCommitsUnnoticed,
        Self::OwnRowsUnsurveyed,
        Self::FailoverUnnoticed,
        Self::KeyNeverExpires,
        Self::OneRefusedRowStopsTheClaim,
        Self::RefusedIsAway,
        Self::RefusedForgotten,
        Self::KeyPerProcess,
        Self::ToldOnce,
    ];
}

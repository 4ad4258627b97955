//! This replica among the others: its registration, its lease, what it knows of the database's
//! clock, and whether the database is there.

use super::clock::DatabaseClock;
use super::protocol::{Command, StoreFailure};
use crate::domain::after;
use crate::store::{Beat, Membership, ReplicaId};
use chrono::{DateTime, Utc};
use std::time::{Duration, Instant};

/// How often the lease is renewed.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// A replica that has just started expires no other replica for this long.
const JOIN_GRACE: Duration = Duration::from_secs(3);
/// When the database's clock is found ahead by more than this, it was set.
pub(super) const CLOCK_STEP: Duration = Duration::from_secs(1);
/// How long after a database failure the next try comes; doubled each time up to [`BEAT_EVERY`].
pub(super) const RETRY: Duration = Duration::from_millis(100);

/// This replica's registration, and what it knows of the others.
pub(super) struct Member {
    lease: Duration,
    registration: Registration,
    /// Rises with every registration; what was claimed under an earlier one is no longer owned.
    epoch: u64,
    clock: Option<DatabaseClock>,
    database: Database,
    beating: bool,
    next_beat: Instant,
    /// The last records and claims known to be committed when the heartbeat under way was issued.
    acknowledged: (i64, i64),
    /// When the process last noticed that it had stood still: statements issued before that say
    /// nothing about now.
    doubted: Option<Instant>,
    /// Since when the database has been available without a break; `None`: there was no
    /// registration yet.
    steady_since: Option<Instant>,
    cut: Option<Cut>,
    /// The database's clock was set forward: waiting transactions are due sooner.
    leapt: bool,
}

/// The server is another one or was restarted: its history may have been cut back, and polls sent
/// just before that may be recorded nowhere.
#[derive(Clone, Copy)]
struct Cut {
    /// When the cut was noticed, by the database's clock.
    at: DateTime<Utc>,
    /// From when on no living replica polls what it claimed in the history that is gone; `None`:
    /// one may still do so.
    known_at: Option<DateTime<Utc>>,
}

enum Registration {
    No,
    Asked,
    Yes(Registered),
}

/// A replica whose registration was lost too is not waited for: its next statement fails.
const UNREGISTERED_FOR: Duration = Duration::from_secs(1);

struct Registered {
    replica: ReplicaId,
    members: Membership,
    /// The moment before the last heartbeat that succeeded.
    heard: Instant,
    /// The same, or earlier where the process has stood still since: the lease certainly holds
    /// until this plus its length.
    beaten: Instant,
    /// The newest replica for which room was left so far. It stays while room is made for a newer
    /// one, so that the others' shares are safe.
    complied: i64,
}

#[derive(Clone, Copy)]
enum Database {
    There,
    Lost { retry_at: Instant, wait: Duration },
}

/// What a heartbeat or a registration changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeaseChange {
    /// The database is back after it was lost.
    pub(super) back: bool,
    /// A new registration.
    pub(super) registered: bool,
    /// The lease is lost: nothing in memory is owned any more.
    pub(super) lost: bool,
    /// Another replica is gone: its transactions fell due long ago.
    pub(super) died: bool,
    /// The other replicas may have changed: shares are to be rebalanced.
    pub(super) members: bool,
    /// The heartbeat succeeded.
    pub(super) beaten: bool,
    /// The server was restarted or is another one: the history may have been cut back.
    pub(super) cut: bool,
    /// Acknowledged commits were lost; these are the last records and claims that the database has.
    pub(super) commits_lost: Option<(i64, i64)>,
}

impl Member {
    pub(super) fn new(lease: Duration, now: Instant) -> Self {
        Self {
            lease,
            registration: Registration::No,
            epoch: 0,
            clock: None,
            database: Database::There,
            beating: false,
            next_beat: now,
            acknowledged: (0, 0),
            doubted: None,
            steady_since: None,
            cut: None,
            leapt: false,
        }
    }

    /// Until then a replica may have polled in a history of the database that is gone: no claim
    /// allows a poll before the floor since that.
    pub(super) fn cut_at(&self) -> Option<DateTime<Utc>> {
        self.cut.and_then(|cut| cut.known_at)
    }

    /// Whether rows that are free in the database may be claimed: no replica still polls them
    /// because of what it knew before a failover.
    pub(super) fn may_claim(&self) -> bool {
        self.cut.is_none_or(|cut| cut.known_at.is_some())
    }

    /// Whether the database's clock was set forward since the last call.
    pub(super) fn take_leap(&mut self) -> bool {
        std::mem::take(&mut self.leapt)
    }

    /// This replica, while it is registered.
    pub(super) fn replica(&self) -> Option<ReplicaId> {
        self.registered().map(|registered| registered.replica)
    }

    /// What was claimed under an earlier one is no longer ours.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn is_registered(&self) -> bool {
        self.registered().is_some()
    }

    /// Whether a registration is under way.
    pub(super) fn is_registering(&self) -> bool {
        matches!(self.registration, Registration::Asked)
    }

    /// The living, as of the last heartbeat.
    pub(super) fn members(&self) -> Option<&Membership> {
        self.registered().map(|registered| &registered.members)
    }

    /// Whether the database is there.
    pub(super) fn has_database(&self) -> bool {
        matches!(self.database, Database::There)
    }

    /// The database's clock, once it has been read.
    pub(super) fn clock(&self) -> Option<&DatabaseClock> {
        self.clock.as_ref()
    }

    /// Until when the lease certainly holds.
    pub(super) fn lease_end(&self) -> Option<Instant> {
        self.registered().map(|registered| registered.beaten + self.lease)
    }

    /// Whether a statement issued at that moment was issued before the process stood still: it says
    /// nothing about now.
    pub(super) fn is_stale(&self, issued_at: Instant) -> bool {
        self.doubted.is_some_and(|doubted| issued_at <= doubted)
    }

    fn registered(&self) -> Option<&Registered> {
        match &self.registration {
            Registration::Yes(registered) => Some(registered),
            _ => None,
        }
    }

    /// When there is something to do, if nothing happens before.
    pub(super) fn next_wakeup(&self) -> Option<Instant> {
        if let Database::Lost { retry_at, .. } = self.database {
            return Some(retry_at);
        }
        let registered = self.registered()?;
        // A statement under way needs no timer: its event wakes the engine. Only the end of the
        // lease does.
        Some(if self.beating { registered.heard + self.lease } else { self.next_beat })
    }
}

/// Events.
impl Member {
    /// The answer to a registration.
    pub(super) fn on_registered(&mut self, now: Instant, result: (ReplicaId, Beat), issued_at: Instant) -> LeaseChange {
        let (replica, beat) = result;
        let back = self.mark_available();
        self.read_clock(issued_at, now, beat.clock);
        self.note_cut(&beat);
        self.epoch += 1;
        // A new replica cannot tell whether the database's clock was set a moment ago, so it waits
        // for a heartbeat of all others first.
        self.steady_since = self.steady_since.or(now.checked_sub(self.lease).map(|since| since + JOIN_GRACE));
        self.registration =
            Registration::Yes(Registered { replica, members: beat.members, heard: issued_at, beaten: issued_at, complied: 0 });
        self.next_beat = now + BEAT_EVERY;
        if self.is_stale(issued_at) {
            self.suspect_lease(now);
        }
        LeaseChange { back, registered: true, members: true, ..LeaseChange::default() }
    }

    /// A registration that failed.
    pub(super) fn on_not_registered(&mut self) {
        self.registration = Registration::No;
    }

    /// The answer to a heartbeat of `replica`.
    pub(super) fn on_beaten(&mut self, now: Instant, replica: ReplicaId, beat: Beat, issued_at: Instant) -> LeaseChange {
        let mut change = LeaseChange { beaten: true, ..LeaseChange::default() };
        let doubtful = self.is_stale(issued_at);
        // Without a lease, the database counts as available once there is a new one.
        let holds = beat.alive || self.replica() != Some(replica);
        if holds && !doubtful && self.mark_available() {
            change.back = true;
            self.steady_since = Some(now);
        }
        self.read_clock(issued_at, now, beat.clock);
        change.cut = self.note_cut(&beat);
        self.next_beat = now + BEAT_EVERY;
        let (recorded, claimed) = self.acknowledged;
        if beat.recorded < recorded || beat.claimed < claimed {
            change.commits_lost = Some((beat.recorded, beat.claimed));
        }
        if doubtful {
            // It was answered before the process stood still, for an unknown time: the next
            // heartbeat shows whether the lease holds.
            self.next_beat = now;
            return change;
        }
        match &mut self.registration {
            // An answer about an earlier registration says nothing about this one.
            Registration::Yes(registered) if registered.replica != replica => {}
            Registration::Yes(registered) if beat.alive => {
                change.died = registered.members.living.iter().any(|id| !beat.members.living.contains(id));
                registered.members = beat.members;
                (registered.heard, registered.beaten) = (issued_at, issued_at);
                change.members = true;
            }
            Registration::Yes(_) => change.lost = true,
            _ => {}
        }
        change
    }

    /// Handles a cut in the history that a heartbeat reports. True when that is new.
    fn note_cut(&mut self, beat: &Beat) -> bool {
        let new = self.cut.map(|cut| cut.at) != beat.cut_at;
        if new {
            self.cut = beat.cut_at.map(|at| Cut { at, known_at: None });
        }
        let lease = self.lease;
        if let Some(cut) = self.cut.as_mut().filter(|cut| cut.known_at.is_none()) {
            // A replica that has not heard of the cut sends nothing after the end of its lease.
            let latest = after(cut.at, lease);
            let heard = after(beat.clock, UNREGISTERED_FOR);
            cut.known_at = (!beat.unaware || beat.clock >= latest).then(|| heard.min(latest));
        }
        new
    }

    /// A heartbeat has come back, successful or not.
    pub(super) fn beat_returned(&mut self) {
        self.beating = false;
    }

    /// Takes another reading of the database's clock.
    pub(super) fn read_clock(&mut self, issued_at: Instant, now: Instant, said: DateTime<Utc>) {
        match &mut self.clock {
            Some(clock) => {
                if crate::domain::since(clock.at(now), said) > CLOCK_STEP {
                    // Every heartbeat looks old now: no replica is expired before all had the time
                    // for another one.
                    self.steady_since = Some(now);
                    self.leapt = true;
                }
                clock.read(issued_at, now, said);
            }
            None => self.clock = Some(DatabaseClock::new(issued_at, now, said)),
        }
    }

    /// The database cannot be reached. True when that is new.
    pub(super) fn mark_unavailable(&mut self, now: Instant) -> bool {
        let new = self.has_database();
        if new {
            self.database = Database::Lost { retry_at: now + RETRY, wait: RETRY };
        }
        new
    }

    /// True when it was unavailable before.
    fn mark_available(&mut self) -> bool {
        let lost = !self.has_database();
        self.database = Database::There;
        lost
    }

    /// The lost commits are known: the heartbeat under way need not report them again.
    pub(super) fn forget_acknowledged(&mut self) {
        self.acknowledged = (0, 0);
    }

    /// The registration is void. A new one is requested at once.
    pub(super) fn lose_lease(&mut self, now: Instant) {
        self.registration = Registration::No;
        self.epoch += 1;
        self.steady_since = Some(now);
        if let Database::Lost { retry_at, .. } = &mut self.database {
            *retry_at = now;
        }
    }

    /// The process stood still: nothing is sent until a heartbeat has shown that the lease still holds.
    pub(super) fn suspect_lease(&mut self, now: Instant) {
        self.next_beat = now;
        self.doubted = Some(now);
        self.steady_since = Some(now);
        let lease = self.lease;
        if let Registration::Yes(registered) = &mut self.registration {
            registered.beaten = now.checked_sub(lease).unwrap_or(registered.beaten);
        }
    }
}

/// What to do next.
impl Member {
    /// The lease of the last heartbeat that succeeded has run out while the next one is waited for.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        self.beating && self.registered().is_some_and(|registered| registered.heard + self.lease <= now)
    }

    /// Requests a registration where there is none.
    pub(super) fn register(&mut self, out: &mut Vec<Command>) {
        if let Registration::No = self.registration {
            self.registration = Registration::Asked;
            out.push(Command::Register);
        }
    }

    /// Whether a heartbeat is to be sent.
    pub(super) fn is_beat_due(&self, now: Instant) -> bool {
        self.is_registered() && !self.beating && self.next_beat <= now
    }

    /// Whether to try the database again now; the heartbeat or the registration is the attempt.
    pub(super) fn is_retry_due(&mut self, now: Instant) -> bool {
        match &mut self.database {
            Database::Lost { retry_at, wait } if *retry_at <= now => {
                *retry_at = now + *wait;
                *wait = (*wait * 2).min(BEAT_EVERY);
                true
            }
            _ => false,
        }
    }

    /// Sends a heartbeat, unless one is under way. `has_room`: no account has more in flight than
    /// its share. `acknowledged`: the last batches that are known to be committed.
    pub(super) fn beat(&mut self, now: Instant, has_room: bool, held: i64, acknowledged: (i64, i64), out: &mut Vec<Command>) {
        let (lease, clock, steady_since) = (self.lease, self.clock, self.steady_since);
        let Registration::Yes(registered) = &mut self.registration else { return };
        if self.beating {
            return;
        }
        self.beating = true;
        self.acknowledged = acknowledged;
        if has_room {
            registered.complied = registered.members.newest;
        }
        // Without a heartbeat for a full lease we cannot rule out a step of the database's clock.
        let fresh = now.saturating_duration_since(registered.heard) < lease;
        let steady = fresh && steady_since.is_none_or(|since| now.saturating_duration_since(since) >= lease);
        let judge = clock.filter(|_| steady).map(|clock| clock.at(now));
        out.push(Command::Beat { replica: registered.replica, complied: registered.complied, judge, held });
    }

    /// This replica's share of an account's requests in flight.
    ///
    /// Each living replica that serves an account has an equal share, the first ones one more. A
    /// new replica has none until all others have heard of it and leave it room. A dead one cannot,
    /// until its lease expires; so that work goes on at once where a replica was killed and started
    /// again, one request is reserved for a new replica, as long as there is only one.
    pub(super) fn share(&self, provider: &str, account: &str, most: u32) -> u32 {
        let Some(registered) = self.registered() else { return 0 };
        let members = &registered.members;
        let serving: Vec<i64> = members.serving(provider, account).collect();
        let count = u32::try_from(serving.len().max(1)).unwrap_or(u32::MAX);
        let newcomers = u32::from(most >= RESERVED_FROM);
        let shared = most - newcomers;
        if members.complied >= registered.replica.0 {
            let rank = serving.iter().position(|id| *id == registered.replica.0).unwrap_or(0);
            shared / count + u32::from((rank as u64) < u64::from(shared % count))
        } else if members.settled && members.newest == registered.replica.0 && count <= shared {
            newcomers
        } else {
            0
        }
    }

    /// Whether a replica with this many transactions has clearly more than the average of the
    /// others that serve its accounts.
    pub(super) fn exceeds_share(&self, held: usize) -> bool {
        let peers = self.registered().map_or(&[][..], |registered| &registered.members.peers);
        let others: i64 = peers.iter().sum();
        let mean = (others.unsigned_abs() as usize + held) / (peers.len() + 1);
        !peers.is_empty() && held > mean + mean / 10 + SHARE_SLACK
    }

    /// The name of a database failure in the log.
    pub(super) fn silence() -> StoreFailure {
        StoreFailure::Unavailable("no heartbeat was answered for as long as the lease".into())
    }
}

/// Differences of at most this many transactions in memory are not evened out.
const SHARE_SLACK: usize = 50;

/// From this many requests in flight on, one is reserved for a new replica; with fewer none can be
/// spared.
const RESERVED_FROM: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn beat(living: &[(i64, i64)], own: i64, recorded: i64) -> Beat {
        Beat {
            alive: true,
            members: Membership::new(own, living),
            clock: DateTime::UNIX_EPOCH,
            recorded,
            claimed: 0,
            cut_at: None,
            unaware: false,
        }
    }

    fn registered(now: Instant, own: i64, living: &[(i64, i64)]) -> Member {
        let mut member = Member::new(LEASE, now);
        let mut out = Vec::new();
        member.register(&mut out);
        assert!(matches!(out[..], [Command::Register]) && member.is_registering());
        let change = member.on_registered(now, (ReplicaId(own), beat(living, own, 0)), now);
        assert!(change.registered && member.is_registered());
        member
    }

    #[test]
    fn a_number_below_the_acknowledged_one_reveals_lost_commits_and_none_that_was_acknowledged_later_does() {
        let now = Instant::now();
        let mut member = registered(now, 1, &[(1, 0)]);
        let mut out = Vec::new();
        member.beat(now, true, 0, (7, 0), &mut out);
        member.beat_returned();
        let change = member.on_beaten(now, ReplicaId(1), beat(&[(1, 1)], 1, 7), now);
        assert_eq!(change.commits_lost, None);
        member.beat(now, true, 0, (9, 0), &mut out);
        member.beat_returned();
        let change = member.on_beaten(now, ReplicaId(1), beat(&[(1, 1)], 1, 8), now);
        assert_eq!(change.commits_lost, Some((8, 0)));
    }

    #[test]
    fn shares_are_equal_and_a_newcomer_has_the_reserve_alone_until_it_was_heard_of() {
        let now = Instant::now();
        let share = |own, living: &[(i64, i64)], most| registered(now, own, living).share("khalti", "default", most);
        assert_eq!(share(1, &[(1, 0)], 64), 63);
        assert_eq!((share(1, &[(1, 2), (2, 2)], 64), share(2, &[(1, 2), (2, 2)], 64)), (32, 31));
        assert_eq!(share(2, &[(1, 1), (2, 0)], 64), 1, "not heard of yet");
        assert_eq!(share(2, &[(1, 1), (2, 0)], 3), 0, "none can be spared");
    }

    #[test]
    fn a_process_that_stood_still_trusts_its_lease_only_after_another_heartbeat() {
        let now = Instant::now() + 2 * LEASE;
        let mut member = registered(now, 1, &[(1, 0)]);
        assert_eq!(member.lease_end(), Some(now + LEASE));
        member.suspect_lease(now);
        assert_eq!(member.lease_end(), Some(now));
        let mut out = Vec::new();
        member.beat(now, true, 0, (0, 0), &mut out);
        member.beat_returned();
        member.on_beaten(now, ReplicaId(1), beat(&[(1, 1)], 1, 0), now);
        assert_eq!(member.lease_end(), Some(now), "asked before");
        let later = now + Duration::from_millis(1);
        member.on_beaten(later, ReplicaId(1), beat(&[(1, 1)], 1, 0), later);
        assert_eq!(member.lease_end(), Some(later + LEASE));
    }
}

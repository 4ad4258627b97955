//! When to claim transactions from the table, and how far each account has been read.

use super::admission::Placer;
use super::lane::{Lane, Room};
use super::membership::Member;
use super::protocol::{ClaimCycle, Command};
use super::workset::WorkSet;
use crate::store::{Claim, ClaimOrder, LaneRoom};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How often new and newly due transactions are claimed.
const CLAIM_EVERY: Duration = Duration::from_millis(100);
/// Transactions are claimed this long before they fall due, so that each is sent at its moment and
/// not at the next claim cycle.
pub(super) const LOOK_AHEAD: Duration = Duration::from_secs(1);
/// Rows that commit late may lie this far behind what was claimed before, so claims overlap by this
/// much. Rows that commit later still wait for the next full scan.
const OVERLAP: TimeDelta = TimeDelta::milliseconds(500);
/// A full scan reads everything due, however long ago: scans take at most this share of the time.
const SCAN_SHARE: u32 = 50;
/// The longest time between full scans: released rows are found again at the latest after this.
const RAREST_SCAN: Duration = Duration::from_secs(5);
/// How many transactions a claim may plan for later at once.
const PLAN_BATCH: usize = 1000;
/// At most this many refused rows are left alone at a time.
const MOST_AVOIDED: usize = 10_000;
/// How long a refused row is left alone; doubled each time up to [`LONGEST_AVOIDED`].
const AVOIDED_FOR: Duration = Duration::from_secs(5);
const LONGEST_AVOIDED: Duration = Duration::from_secs(600);

/// The claim cycle.
pub(super) struct Claims {
    claiming: bool,
    next: Instant,
    next_scan: Instant,
    /// How far each lane was read.
    cursors: Vec<Cursor>,
    /// How many claim cycles there were.
    cycles: usize,
    /// Raised with every claim; and the last one that is known to be committed.
    number: i64,
    acknowledged: i64,
    /// What a claim whose answer got lost may have taken: it is released before the next one.
    maybe_claimed: Vec<Uuid>,
    /// What this replica owns in the database without having it in memory.
    abandoned: Vec<Uuid>,
    /// Rows that were refused: until when they are left alone, and for how long the next time.
    avoided: HashMap<Uuid, (Instant, Duration)>,
}

/// How far a lane was read.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    /// Everything that fell due before this was claimed by an earlier cycle.
    since: DateTime<Utc>,
    /// The same for the backlog.
    backlog_since: DateTime<Utc>,
    /// The last cycle may have left something behind.
    more: bool,
    /// How many transactions the last cycle only planned for later.
    planned_away: Room,
    /// From where the next full scan surveys what this replica owns.
    survey: DateTime<Utc>,
}

impl Claims {
    pub(super) fn new(lanes: usize, now: Instant) -> Self {
        let epoch = DateTime::UNIX_EPOCH;
        let cursor = Cursor { since: epoch, backlog_since: epoch, more: true, planned_away: Room::default(), survey: epoch };
        Self {
            claiming: false,
            next: now,
            next_scan: now,
            cursors: vec![cursor; lanes],
            cycles: 0,
            number: 0,
            acknowledged: 0,
            maybe_claimed: Vec::new(),
            abandoned: Vec::new(),
            avoided: HashMap::new(),
        }
    }

    /// Whether a claim is under way.
    pub(super) fn is_claiming(&self) -> bool {
        self.claiming
    }

    /// The last claim that was issued.
    pub(super) fn number(&self) -> i64 {
        self.number
    }

    /// The last claim that is known to be committed.
    pub(super) fn acknowledged(&self) -> i64 {
        self.acknowledged
    }

    /// When the next cycle is, unless one is under way.
    pub(super) fn next_wakeup(&self) -> Option<Instant> {
        (!self.claiming).then_some(self.next)
    }

    /// Whether rows that may be owned by this replica are still to be released.
    pub(super) fn has_unfreed(&self) -> bool {
        !self.maybe_claimed.is_empty()
    }

    /// A new registration, or a replica that is gone: the next cycle is a full scan.
    pub(super) fn scan_now(&mut self, now: Instant) {
        self.next_scan = now;
    }

    /// A new registration: at once.
    pub(super) fn restart(&mut self, now: Instant) {
        (self.next, self.next_scan) = (now, now);
    }

    /// Rows claimed under an earlier registration are no longer owned.
    pub(super) fn lose_all(&mut self) {
        self.maybe_claimed.clear();
        self.abandoned.clear();
    }

    /// The database has lost commits; `last` is the last claim that it knows. What this replica
    /// owns there is surveyed at once.
    pub(super) fn on_commits_lost(&mut self, now: Instant, last: i64) {
        self.acknowledged = last;
        self.cursors.iter_mut().for_each(|cursor| cursor.survey = DateTime::UNIX_EPOCH);
        self.restart(now);
    }
}

/// A cycle begins.
impl Claims {
    /// The next claim, if it is time for one. Without room it only surveys and releases.
    #[expect(clippy::too_many_arguments, reason = "what the engine knows of the moment")]
    pub(super) fn next_claim(
        &mut self,
        now: Instant,
        stopping: bool,
        may_take: bool,
        member: &Member,
        work: &WorkSet,
        process: Uuid,
        max_held: usize,
        hold_span: Duration,
        jitter: u64,
    ) -> Option<Command> {
        let (replica, members, clock) = (member.replica()?, member.members()?, member.clock()?);
        if self.claiming {
            return None;
        }
        let free = max_held.saturating_sub(work.idle());
        let soon = now + LOOK_AHEAD;
        let urgent =
            || free > 0 && self.cursors.iter().zip(work.lanes()).any(|(at, lane)| at.more && lane.is_running_low(now, soon));
        if self.next > now && !stopping && !urgent() {
            return None;
        }
        let scan = self.next_scan <= now;
        let database_now = clock.at(now);
        let (mut rooms, mut lanes, mut specs) = (Vec::new(), Vec::new(), Vec::new());
        self.cycles = self.cycles.wrapping_add(1);
        for number in 0..self.cursors.len() {
            // Accounts take turns in coming first: where memory is short, the last ones get none.
            let number = (number + self.cycles) % self.cursors.len();
            let lane = work.lane(number);
            let room = if may_take { lane.room(now, soon).at_most(free) } else { Room::default() };
            let Some((wanted, order)) = self.order(number, lane, room, scan && !stopping) else { continue };
            lanes.push((number, wanted));
            specs.push((lane.spec().clone(), room.ordinary + room.backlog));
            rooms.push(order);
        }
        self.next = now + CLAIM_EVERY;
        if rooms.is_empty() && self.maybe_claimed.is_empty() && self.abandoned.is_empty() {
            return None;
        }
        self.claiming = true;
        self.number += 1;
        self.avoided.retain(|_, (until, wait)| *until + *wait > now);
        let avoid = self.avoided.iter().filter(|(_, (until, _))| *until > now).map(|(id, _)| *id).collect();
        let order = ClaimOrder {
            replica,
            process,
            number: self.number,
            members: members.clone(),
            lanes: rooms,
            horizon: crate::domain::after(database_now, LOOK_AHEAD),
            avoid,
            abandoned: std::mem::take(&mut self.abandoned),
        };
        let hold_until = crate::domain::after(database_now, hold_span);
        let unsure = std::mem::take(&mut self.maybe_claimed);
        Some(Command::Claim {
            placer: Placer { cut_at: member.cut_at(), ..Placer::new(specs, free, database_now, hold_until, jitter) },
            cycle: ClaimCycle { lanes, unsure, epoch: member.epoch(), now: database_now, issued_at: now, sweep: scan },
            order: Box::new(order),
        })
    }

    /// What to claim for a lane that has this much room.
    fn order(&self, number: usize, lane: &Lane, room: Room, scan: bool) -> Option<(Room, LaneRoom)> {
        let cursor = &self.cursors[number];
        if room == Room::default() && !scan {
            return None;
        }
        // Transactions that are only planned for later need no room in memory.
        let batch = |room: usize, planned: usize| if room > 0 && planned > 0 { room.max(PLAN_BATCH) } else { room };
        let planned = cursor.planned_away;
        let wanted = Room { ordinary: batch(room.ordinary, planned.ordinary), backlog: batch(room.backlog, planned.backlog) };
        let epoch = DateTime::UNIX_EPOCH;
        let order = LaneRoom {
            provider: lane.spec().provider,
            account: lane.spec().account.clone(),
            since: if scan { epoch } else { cursor.since },
            room: wanted.ordinary,
            backlog_since: if scan { epoch } else { cursor.backlog_since },
            backlog_room: wanted.backlog,
            survey: scan.then_some(cursor.survey),
        };
        Some((wanted, order))
    }
}

/// Results of a cycle.
impl Claims {
    /// The claim failed or timed out.
    pub(super) fn on_failed(&mut self, now: Instant, cycle: &mut ClaimCycle, epoch: u64) {
        self.returned(now, cycle, epoch);
    }

    /// The claim has come back: how far the lanes were read, and what this replica owns without
    /// having it in memory.
    pub(super) fn on_claimed(&mut self, now: Instant, cycle: &mut ClaimCycle, claim: &Claim, epoch: u64, work: &WorkSet) -> usize {
        self.returned(now, cycle, epoch);
        self.acknowledged = self.acknowledged.max(if claim.held.is_empty() { 0 } else { self.number });
        if cycle.sweep {
            let took = now.saturating_duration_since(cycle.issued_at);
            self.next_scan = now + (took * SCAN_SHARE).clamp(Duration::from_secs(1), RAREST_SCAN);
        }
        for ((number, room), found) in cycle.lanes.iter().zip(&claim.found) {
            let cursor = &mut self.cursors[*number];
            let behind = cycle.now - OVERLAP;
            if room.ordinary > 0 {
                cursor.more = found.ordinary >= room.ordinary;
                cursor.since = found.last.filter(|_| cursor.more).map_or(behind, |last| (last - OVERLAP).min(behind));
                cursor.planned_away.ordinary = found.ordinary;
            }
            if room.backlog > 0 {
                let more = found.backlog >= room.backlog;
                cursor.planned_away.backlog = found.backlog;
                cursor.backlog_since = found.backlog_last.filter(|_| more).map_or(behind, |last| (last - OVERLAP).min(behind));
            }
            if cycle.sweep {
                cursor.survey = found.survey.unwrap_or(DateTime::UNIX_EPOCH);
                if found.survey.is_some() && !claim.own.is_empty() {
                    // It owns more than one survey reads.
                    self.next_scan = self.next_scan.min(now + Duration::from_secs(1));
                }
            }
        }
        if cycle.epoch != epoch {
            return 0;
        }
        self.abandoned.extend(claim.own.iter().map(|(id, _)| *id).filter(|id| !work.contains(*id)));
        if !self.abandoned.is_empty() {
            self.restart(now);
        }
        self.abandoned.len()
    }

    fn returned(&mut self, now: Instant, cycle: &mut ClaimCycle, epoch: u64) {
        self.claiming = false;
        self.next = now + CLAIM_EVERY;
        if cycle.epoch == epoch {
            self.maybe_claimed = std::mem::take(&mut cycle.unsure);
        }
    }

    /// One of the surveyed rows is in memory now.
    pub(super) fn took(&mut self, lane: usize, backlog: bool) {
        let planned = &mut self.cursors[lane].planned_away;
        let planned = if backlog { &mut planned.backlog } else { &mut planned.ordinary };
        *planned = planned.saturating_sub(1);
    }

    /// The row could not be claimed: it is left alone for a while. True when that is new.
    pub(super) fn avoid(&mut self, now: Instant, id: Uuid) -> bool {
        let before = self.avoided.get(&id).map(|(_, wait)| *wait);
        let wait = before.map_or(AVOIDED_FOR, |wait| (wait * 2).min(LONGEST_AVOIDED));
        if self.avoided.len() < MOST_AVOIDED || before.is_some() {
            self.avoided.insert(id, (now + wait, wait));
        }
        before.is_none()
    }
}

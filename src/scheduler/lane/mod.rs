//! One provider account's queue and budget: how many requests may be in flight, at what pace, and
//! whether the account is polled at all.
//!
//! A lane is given the time and what happened; it never reads a clock and never sends anything.

mod budget;
mod circuit;
mod floor;
mod ready;
mod refusals;
mod waiting;

pub use circuit::{Circuit, CircuitChange};
pub use ready::{ReadyKey, Urgency};
pub use waiting::Waiting;

use super::held::Held;
use crate::config::{Circuit as CircuitRule, Rate};
use crate::declarations::Permit;
use crate::domain::Rules;
use crate::providers::Provider;
use budget::{Grant, MIN_SEND_WINDOW, Pace, Slots};
use floor::Floor;
use ready::Ready;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// What does not change while the daemon runs.
pub struct LaneSpec {
    /// The provider's name.
    pub provider: &'static str,
    /// The account's name.
    pub account: Arc<str>,
    /// Builds requests and reads answers.
    pub asks: Arc<dyn Provider>,
    /// When to poll, and what follows from an answer.
    pub rules: Rules,
    /// An answer that takes longer counts as none.
    pub timeout: Duration,
    /// Requests in flight, over all replicas.
    pub max_in_flight: u32,
    /// Requests per second, over all replicas.
    pub rate: Rate,
    /// When to stop polling.
    pub circuit: CircuitRule,
    /// Whether it may be polled at all.
    pub permit: Permit,
}

/// One account's queue and budget in this process.
pub struct Lane {
    spec: Arc<LaneSpec>,
    /// Transactions whose time has not come.
    waiting: Waiting,
    /// Transactions whose time has come.
    ready: Ready,
    /// Requests in flight: the transaction, and when it was due.
    in_flight: HashMap<Uuid, Instant>,
    /// This replica's share of the account's requests in flight.
    share: u32,
    /// Whether the account is polled at all.
    circuit: Circuit,
    /// A request for slots is under way.
    drawing: bool,
    /// No slots are available before that.
    next_draw: Instant,
    /// Polls sent since slots were last requested.
    sent_since_draw: u32,
    /// When it last sent, by count of all polls: the lane that waited longest comes first.
    last_turn: u64,
    /// Keys of which at most one request may be in flight.
    busy: HashSet<Box<str>>,
    slots: Slots,
    pace: Pace,
    floor: Floor,
    /// The provider asked this process for a pause until then.
    paused_until: Option<Instant>,
    /// The provider asked another process for a pause, as last read from the database.
    told_until: Option<Instant>,
    /// An operator wants nothing sent, as last read from the database.
    suspended: bool,
}

/// Transactions kept ready for each request that may be in flight: enough to work on while the next
/// claim is under way, which takes the database some 20 ms for 500 of them.
const READY: usize = 16;
/// How soon a lane that may not be polled checks whether it may again.
const WITHHELD: Duration = Duration::from_secs(1);
/// While anything else is due, the backlog takes one in this many of the transactions that are kept
/// ready.
pub const BACKLOG_SHARE: usize = 5;

/// How many more transactions a lane has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// New ones, and those that have been polled all along.
    pub ordinary: usize,
    /// Reopened and back-filled ones.
    pub backlog: usize,
}

impl Room {
    /// At most this many of each.
    #[must_use]
    pub fn at_most(self, most: usize) -> Self {
        Self { ordinary: self.ordinary.min(most), backlog: self.backlog.min(most) }
    }
}

/// What is in it.
impl Lane {
    /// A lane with nothing in it and a closed circuit.
    #[must_use]
    pub fn new(spec: Arc<LaneSpec>, now: Instant) -> Self {
        Self {
            waiting: Waiting::new(now),
            ready: Ready::default(),
            in_flight: HashMap::new(),
            share: 0,
            circuit: Circuit::new(spec.circuit.failures),
            drawing: false,
            next_draw: now,
            sent_since_draw: 0,
            last_turn: 0,
            busy: HashSet::new(),
            slots: Slots::new(spec.rate),
            pace: Pace::new(spec.rate, now),
            floor: Floor::new(spec.rules.floors.every),
            paused_until: None,
            told_until: None,
            suspended: false,
            spec,
        }
    }

    /// What does not change.
    #[must_use]
    pub fn spec(&self) -> &Arc<LaneSpec> {
        &self.spec
    }

    /// Transactions whose time has not come.
    #[must_use]
    pub fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// Transactions whose time has not come, to change.
    pub(super) fn waiting_mut(&mut self) -> &mut Waiting {
        &mut self.waiting
    }

    /// How many could be polled now, but for the budget.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Its time has come.
    pub(super) fn make_ready(&mut self, key: ReadyKey, held: Box<Held>) {
        self.ready.insert(key, held);
    }

    /// Takes out one that was ready.
    pub(super) fn remove_ready(&mut self, key: ReadyKey) -> Option<Box<Held>> {
        self.ready.remove(&key)
    }

    /// Takes out everything that is not in flight.
    #[expect(clippy::vec_box, reason = "they travel boxed")]
    pub(super) fn drain(&mut self) -> Vec<Box<Held>> {
        self.waiting.take().chain(self.ready.take()).collect()
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        u32::try_from(self.in_flight.len()).unwrap_or(u32::MAX)
    }

    /// Whether the transaction is in flight.
    #[must_use]
    pub fn is_in_flight(&self, id: Uuid) -> bool {
        self.in_flight.contains_key(&id)
    }

    /// Transactions in memory that are not in flight.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.waiting.len() + self.ready.len()
    }

    /// The longest wait of a transaction here. One in flight counts when it takes longer than its
    /// time-out: it waits for a token.
    #[must_use]
    pub fn oldest_due(&self, now: Instant) -> Duration {
        let ready = self.ready.dues().map(|due| now.saturating_duration_since(due));
        let out = self.in_flight.values().map(|due| now.saturating_duration_since(*due)).filter(|out| *out > 2 * self.spec.timeout);
        ready.chain(out).max().unwrap_or_default()
    }

    /// This replica's share of the account's requests in flight.
    #[must_use]
    pub fn share(&self) -> u32 {
        self.share
    }

    /// Whether it has more in flight than its share.
    #[must_use]
    pub fn exceeds_share(&self) -> bool {
        self.in_flight() > self.share
    }

    pub(super) fn set_share(&mut self, share: u32) {
        self.share = share;
    }

    /// Whether the account is polled at all.
    #[must_use]
    pub fn circuit(&self) -> &Circuit {
        &self.circuit
    }

    pub(super) fn circuit_mut(&mut self) -> &mut Circuit {
        &mut self.circuit
    }
}

/// How much it should have.
impl Lane {
    /// How many transactions this replica should keep ready for the account: no more than can start
    /// soon, so that the rest stays free for other replicas.
    fn target(&self) -> usize {
        let by_rate = (self.spec.rate.per_second * 2.0).ceil().min(1e9) as usize + 1;
        (self.share as usize * READY).min(by_rate.max(2))
    }

    /// How many more transactions it has room for: none while the account is not polled, except for
    /// a probe.
    #[must_use]
    pub fn room(&self, now: Instant, soon: Instant) -> Room {
        if self.spec.permit.is_withheld() {
            return Room::default();
        }
        if self.circuit.is_open() || self.is_paused(now) {
            let probe = usize::from(self.circuit.is_open() && !self.suspended && self.idle() == 0 && self.share > 0);
            return Room { ordinary: probe, backlog: probe };
        }
        let target = self.target();
        // What is in memory falls due again and again. Re-polls may use at most half of the room so
        // that new work is not kept out; overdue work may use all.
        let repolls = self.waiting.due_until(soon).min(target / 2);
        let backlog = self.ready.backlog();
        Room {
            ordinary: target.saturating_sub(self.ready.len() - backlog + repolls),
            backlog: (target / BACKLOG_SHARE).max(1).saturating_sub(backlog),
        }
    }

    /// Whether more than a quarter of what it should keep is missing. A larger share might never be
    /// missing, because re-polls may take up to half of the room.
    #[must_use]
    pub fn is_running_low(&self, now: Instant, soon: Instant) -> bool {
        self.room(now, soon).ordinary * 4 > self.target()
    }

    /// How many send slots it should request: as many as are ready or fall due until `soon`, or as
    /// many as it used lately.
    #[must_use]
    pub fn wants_slots(&self, now: Instant, soon: Instant) -> u32 {
        if self.drawing || self.next_draw > now || self.is_paused(now) || self.share == 0 {
            return 0;
        }
        let most = self.target().max(1);
        let need = u32::try_from((self.ready.len() + self.waiting.due_until(soon)).min(most)).unwrap_or(u32::MAX);
        if need == 0 || self.slots.left(now) >= need {
            return 0;
        }
        need.max(self.sent_since_draw)
    }

    /// When it will request slots for what is ready now.
    #[must_use]
    pub fn awaits_draw(&self) -> Option<Instant> {
        let waits = !self.drawing && !self.suspended && self.ready.len() > 0 && self.share > 0 && self.slots.is_empty();
        waits.then(|| self.paused_until.max(self.told_until).map_or(self.next_draw, |until| until.max(self.next_draw)))
    }

    /// Starts a request for slots: how far requests may run ahead of the pace in the shared budget,
    /// and the pace's gap.
    pub(super) fn start_draw(&mut self) -> (Duration, Duration) {
        self.drawing = true;
        (self.slots.tolerance, self.slots.gap)
    }

    /// The answer to [`Lane::start_draw`] has come, whatever it was.
    pub(super) fn end_draw(&mut self) {
        self.drawing = false;
    }

    /// Whether a request for slots is under way.
    #[must_use]
    pub fn is_drawing(&self) -> bool {
        self.drawing
    }

    /// No slots are available before that.
    pub(super) fn draw_after(&mut self, at: Instant) {
        self.next_draw = at;
    }

    /// Adds slots that were granted at `base`, or up to `slack` before.
    pub fn add_slots(&mut self, base: Instant, slack: Duration, ahead: f64, gap: f64, count: u32) {
        self.sent_since_draw = 0;
        self.slots.add(Grant { base, slack, ahead, gap, used: 0, count });
    }

    /// The moments of the slots are no longer known: drops them.
    pub fn void_slots(&mut self) {
        self.slots.clear();
    }
}

/// What it sends.
impl Lane {
    /// Whose turn it is among accounts: first lanes with nothing in flight, then those whose window
    /// closes first, then those that waited longest.
    #[must_use]
    pub fn turn(&self) -> (bool, Option<Urgency>, u64) {
        (!self.in_flight.is_empty(), self.ready.first_urgency(), self.last_turn)
    }

    /// The first ready transaction that may be polled beside those in flight.
    fn startable(&self) -> Option<ReadyKey> {
        self.ready.next(|held| self.spec.asks.exclusive_key(held.ask()).is_none_or(|key| !self.busy.contains(key)))
    }

    /// Whether there is a transaction, a slot and a place for a request now: all but the right to send it.
    #[must_use]
    pub fn could_start(&mut self, now: Instant) -> bool {
        !self.is_paused(now) && self.in_flight() < self.share && self.slots.ready(now).is_ok() && self.startable().is_some()
    }

    /// Takes out a transaction to be polled now, and says until when its request must be sent;
    /// `Err` says when to try again, where that is known. `turn` counts all polls.
    pub(super) fn start(&mut self, now: Instant, turn: u64) -> Result<(Box<Held>, Instant), Option<Instant>> {
        let key = self.startable().filter(|_| self.circuit.may_send()).ok_or(None)?;
        if self.spec.permit.is_withheld() {
            return Err(Some(now + WITHHELD));
        }
        if self.suspended {
            return Err(None);
        }
        if let Some(until) = self.paused_until.max(self.told_until).filter(|until| *until > now) {
            return Err(Some(until));
        }
        if self.in_flight() >= self.share {
            return Err(None);
        }
        let void_at = self.slots.ready(now).map_err(|at| at.or(Some(self.next_draw).filter(|at| *at > now)))?;
        self.pace.check(now).map_err(Some)?;
        self.slots.take();
        self.sent_since_draw += 1;
        self.last_turn = turn;
        let held = self.ready.start(&key).ok_or(None)?;
        self.circuit.on_sent(held.transaction.id);
        if let Some(exclusive) = self.spec.asks.exclusive_key(held.ask()) {
            self.busy.insert(exclusive.into());
        }
        self.in_flight.insert(held.transaction.id, key.due);
        // However old its slot is, a request has a moment to get on its way.
        Ok((held, void_at.max(now + MIN_SEND_WINDOW)))
    }

    /// A transaction comes back from [`Lane::start`].
    pub(super) fn returned(&mut self, held: &Held) {
        self.in_flight.remove(&held.transaction.id);
        if let Some(key) = self.spec.asks.exclusive_key(held.ask()) {
            self.busy.remove(key);
        }
    }

    /// A request about this reference was under way until now.
    pub(super) fn was_sent(&mut self, now: Instant, reference: &str) {
        self.floor.on_sent(now, reference);
    }

    /// By this process's own memory, when this reference may be polled again, whatever the database
    /// says.
    pub(super) fn not_before(&mut self, now: Instant, reference: &str) -> Option<Instant> {
        self.floor.not_before(now, reference)
    }
}

/// What keeps it from sending.
impl Lane {
    /// The provider asked for a pause.
    pub fn pause(&mut self, until: Instant) {
        self.paused_until = self.paused_until.max(Some(until));
        self.slots.clear();
    }

    /// The pause in the database. Replaces the earlier reading: when the database's clock is
    /// corrected, the pause is too.
    pub fn pause_as_told(&mut self, now: Instant, until: Option<Instant>) {
        // With each correction of the clock, the end of a past pause moves, and the pause is over
        // all the same.
        let until = until.filter(|until| *until > now);
        if until > self.told_until {
            self.slots.clear();
        }
        self.told_until = until;
    }

    /// Whether an operator wants nothing sent. True when that is new.
    pub(super) fn suspend(&mut self, suspended: bool) -> bool {
        if suspended && !self.suspended {
            self.slots.clear();
        }
        std::mem::replace(&mut self.suspended, suspended) != suspended
    }

    /// Whether an operator wants nothing sent.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }

    /// Whether a pause lasts, the provider's or an operator's.
    #[must_use]
    pub fn is_paused(&self, now: Instant) -> bool {
        self.suspended || self.paused_until.max(self.told_until).is_some_and(|until| until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_pause_that_is_over_takes_no_slots_away_however_the_clock_is_corrected() {
        let now = Instant::now() + 3600 * SECOND;
        let settings = [
            ("DATABASE_URL", "postgres://127.0.0.1/none"),
            ("PAYPOLL__PROVIDERS__DROPAYMENT__ENABLED", "true"),
            ("PAYPOLL__PROVIDERS__DROPAYMENT__BASE_URL", "http://127.0.0.1:1"),
        ];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = Config::load(&[], settings.into_iter(), 1.0).expect("a configuration");
        let mut lane = Lane::new(crate::scheduler::lanes(&config)[0].clone(), now);
        lane.add_slots(now, Duration::ZERO, 0.0, 0.1, 3);
        for micros in 0..5 {
            lane.pause_as_told(now, Some(now - SECOND + Duration::from_micros(micros)));
            assert_eq!(lane.slots.left(now), 3);
        }
        lane.pause_as_told(now, Some(now + SECOND));
        assert_eq!(lane.slots.left(now), 0, "one that lasts does");
    }
}

//! One provider account's budget: how many requests may be in flight, at what pace, and whether the account is asked at all.
//!
//! A lane is told the time and what happened; it never looks at a clock and never sends anything.

use super::held::Held;
use super::waiting::Waiting;
use crate::config::{Circuit as CircuitRule, Rate};
use crate::declarations::Permit;
use crate::domain::{Health, Rules};
use crate::providers::{Ask, Provider};
use chrono::{DateTime, Utc};
use governor::clock::{Clock as _, FakeRelativeClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// What does not change while the daemon runs.
pub struct LaneSpec {
    /// The provider's name.
    pub provider: &'static str,
    /// The account's name.
    pub account: Arc<str>,
    /// Asks and reads.
    pub asks: Arc<dyn Provider>,
    /// When to ask, and what follows from an answer.
    pub rules: Rules,
    /// No answer after this long is no answer.
    pub timeout: Duration,
    /// Requests in flight, over all replicas.
    pub max_in_flight: u32,
    /// Requests per second, over all replicas.
    pub rate: Rate,
    /// When to stop asking.
    pub circuit: CircuitRule,
    /// Whether it may be asked at all.
    pub permit: Permit,
}

/// One account's queue and budget in this process.
pub struct Lane {
    /// What does not change.
    pub spec: Arc<LaneSpec>,
    /// Held transactions whose time has not come.
    pub waiting: Waiting,
    /// Held transactions whose time has come: those whose window closes first, first.
    pub ready: BTreeMap<(Urgency, Instant, u64), Box<Held>>,
    /// Requests in flight.
    pub in_flight: u32,
    /// This replica's share of the account's requests in flight.
    pub share: u32,
    /// Whether the account is asked at all.
    pub circuit: Circuit,
    /// Everything that fell due before this was claimed by an earlier look.
    pub since: DateTime<Utc>,
    /// The last look may have left something behind.
    pub more: bool,
    /// How many transactions the last look only planned for later.
    pub planned_away: usize,
    /// A request for slots is under way.
    pub drawing: bool,
    /// Before that no slots are to be had.
    pub next_draw: Instant,
    /// Polls sent since slots were last drawn.
    pub sent_since_draw: u32,
    /// When it last sent, by count of all polls: who waited longest comes first.
    pub last_turn: u64,
    /// Keys of which at most one request may be in flight.
    pub busy: HashSet<Box<str>>,
    slots: Slots,
    pace: Pace,
    /// The provider asked this process for a pause until then.
    held_until: Option<Instant>,
    /// It asked another process, as the database said last.
    told_until: Option<Instant>,
}

/// Transactions held ready for each request that may be in flight: enough to go on with while the next claim is under way, which takes
/// the database some 20 ms for 500 of them.
const READY: usize = 16;

/// When a window closes; open-ended plans come after all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// The window closes then.
    By(Instant),
    /// There is no window, or its end is not known.
    Open,
}

/// How soon a lane that may not be asked looks whether it may again.
const WITHHELD: Duration = Duration::from_secs(1);

impl Lane {
    /// A lane with nothing in it and a closed circuit.
    #[must_use]
    pub fn new(spec: Arc<LaneSpec>, now: Instant) -> Self {
        Self {
            waiting: Waiting::new(now),
            ready: BTreeMap::new(),
            in_flight: 0,
            share: 0,
            circuit: Circuit::new(spec.circuit.failures),
            since: DateTime::<Utc>::UNIX_EPOCH,
            more: true,
            planned_away: 0,
            drawing: false,
            next_draw: now,
            sent_since_draw: 0,
            last_turn: 0,
            busy: HashSet::new(),
            slots: Slots::new(spec.rate),
            pace: Pace::new(spec.rate, now),
            held_until: None,
            told_until: None,
            spec,
        }
    }

    /// How many transactions this replica should hold ready for the account: no more than can start soon, so that what it cannot
    /// serve stays free for others.
    fn target(&self) -> usize {
        let by_rate = (self.spec.rate.per_second * 2.0).ceil().min(1e9) as usize + 1;
        (self.share as usize * READY).min(by_rate.max(2))
    }

    /// How many more transactions it has room for: none while the account is not asked, but for a probe.
    #[must_use]
    pub fn room(&self, now: Instant, soon: Instant) -> usize {
        if self.spec.permit.is_withheld() {
            return 0;
        }
        let target = match (self.circuit.is_open(), self.is_held(now)) {
            (true, _) => usize::from(self.held() == 0 && self.share > 0),
            (false, true) => 0,
            (false, false) => self.target(),
        };
        // What is held falls due again and again. It takes half of the room at most, lest it keep out what is new; what is late, all.
        target.saturating_sub(self.ready.len() + self.waiting.due_until(soon).min(target / 2))
    }

    /// Whether more than a quarter of what it should hold is missing. As half of it may be taken by what falls due again, a larger share
    /// might never be.
    #[must_use]
    pub fn is_running_low(&self, now: Instant, soon: Instant) -> bool {
        self.room(now, soon) * 4 > self.target()
    }

    /// Whose turn it is among accounts: first whoever has nothing in flight, then whose window closes first, then who waited longest.
    #[must_use]
    pub fn turn(&self) -> (bool, Option<Urgency>, u64) {
        (self.in_flight > 0, self.ready.keys().next().map(|(urgency, ..)| *urgency), self.last_turn)
    }

    /// The first ready transaction that may be asked about beside those in flight.
    #[must_use]
    pub fn startable(&self) -> Option<(Urgency, Instant, u64)> {
        let free = |held: &Held| {
            let ask = Ask {
                reference: &held.transaction.reference,
                params: &held.transaction.params,
                now: DateTime::UNIX_EPOCH,
                token: None,
                amount: None,
            };
            self.spec.asks.exclusive_key(ask).is_none_or(|key| !self.busy.contains(key))
        };
        self.ready.iter().find(|(_, held)| free(held)).map(|(key, _)| *key)
    }

    /// How many send slots it should draw: what is ready or falls due until `soon`, or as many as it used lately.
    #[must_use]
    pub fn wants_slots(&self, now: Instant, soon: Instant) -> u32 {
        if self.drawing || self.next_draw > now || self.is_held(now) || self.share == 0 {
            return 0;
        }
        let most = self.target().max(1);
        let need = u32::try_from((self.ready.len() + self.waiting.due_until(soon)).min(most)).unwrap_or(u32::MAX);
        if need == 0 || self.slots.left(now) >= need {
            return 0;
        }
        need.max(self.sent_since_draw)
    }

    /// When it will draw for what is ready now.
    #[must_use]
    pub fn awaits_draw(&self) -> Option<Instant> {
        let waits = !self.drawing && !self.ready.is_empty() && self.share > 0 && self.slots.is_empty();
        waits.then(|| self.held_until.max(self.told_until).map_or(self.next_draw, |until| until.max(self.next_draw)))
    }

    /// Takes over slots that were drawn at `base`, or up to `slack` before.
    pub fn add_slots(&mut self, base: Instant, slack: Duration, ahead: f64, gap: f64, count: u32) {
        self.sent_since_draw = 0;
        self.slots.add(Grant { base, slack, ahead, gap, used: 0, count });
    }

    /// How far requests may run ahead of the pace in the shared budget, and the pace's gap.
    #[must_use]
    pub fn shape(&self) -> (Duration, Duration) {
        (self.slots.tolerance, self.slots.gap)
    }

    /// Whether a request may be sent now; `Err` says when to ask again, where that is known.
    ///
    /// Takes the slot when it may, and says until when the request must be on its way.
    pub fn try_start(&mut self, now: Instant) -> Result<Instant, Option<Instant>> {
        if self.spec.permit.is_withheld() {
            return Err(Some(now + WITHHELD));
        }
        if let Some(until) = self.held_until.max(self.told_until).filter(|until| *until > now) {
            return Err(Some(until));
        }
        if self.in_flight >= self.share {
            return Err(None);
        }
        let void_at = self.slots.ready(now).map_err(|at| at.or(Some(self.next_draw).filter(|at| *at > now)))?;
        self.pace.check(now).map_err(Some)?;
        self.slots.take();
        self.sent_since_draw += 1;
        Ok(void_at.max(now + HASTE))
    }

    /// Nobody knows any more of when the slots are.
    pub fn void_slots(&mut self) {
        self.slots.clear();
    }

    /// Whether there is a transaction, a slot and a place for a request now: all but the right to send it.
    #[must_use]
    pub fn could_start(&mut self, now: Instant) -> bool {
        !self.is_held(now) && self.in_flight < self.share && self.slots.ready(now).is_ok() && self.startable().is_some()
    }

    /// The provider asked for a pause.
    pub fn hold(&mut self, until: Instant) {
        self.held_until = self.held_until.max(Some(until));
        self.slots.clear();
    }

    /// What the database knows of a pause. Replaces what it said before: when its clock is corrected, the pause is too.
    pub fn hold_as_told(&mut self, now: Instant, until: Option<Instant>) {
        // One that is over comes to lie at another moment with each correction of the clock, and is over all the same.
        let until = until.filter(|until| *until > now);
        if until > self.told_until {
            self.slots.clear();
        }
        self.told_until = until;
    }

    /// Whether the provider's pause lasts.
    #[must_use]
    pub fn is_held(&self, now: Instant) -> bool {
        self.held_until.max(self.told_until).is_some_and(|until| until > now)
    }

    /// Transactions that this lane holds and that are not in flight.
    #[must_use]
    pub fn held(&self) -> usize {
        self.waiting.len() + self.ready.len()
    }
}

/// Send slots that this process has drawn from the account's shared budget.
struct Slots {
    grants: VecDeque<Grant>,
    /// How late a slot may be used. Later it is void: unused slots must not pile up into a burst that the budget does not know.
    grace: Duration,
    /// The burst, less the grace.
    tolerance: Duration,
    gap: Duration,
}

struct Grant {
    base: Instant,
    /// How much later than at its true moment a slot may be thought to be.
    slack: Duration,
    ahead: f64,
    gap: f64,
    used: u32,
    count: u32,
}

/// However old its slot is, a request has this long to get on its way.
const HASTE: Duration = Duration::from_millis(20);
/// The longest time by which a slot may be used late.
const GRACE: Duration = Duration::from_millis(250);

impl Slots {
    fn new(rate: Rate) -> Self {
        let gap = 1.0 / rate.per_second;
        let grace = GRACE.as_secs_f64().min(f64::from(rate.burst) * gap / 2.0);
        let tolerance = (f64::from(rate.burst.saturating_sub(1)) * gap - grace).max(0.0);
        Self {
            grants: VecDeque::new(),
            grace: Duration::from_secs_f64(grace),
            tolerance: Duration::from_secs_f64(tolerance),
            gap: Duration::from_secs_f64(gap),
        }
    }

    fn add(&mut self, grant: Grant) {
        if grant.count > 0 {
            self.grants.push_back(grant);
        }
    }

    fn is_empty(&self) -> bool {
        self.grants.is_empty()
    }

    fn clear(&mut self) {
        self.grants.clear();
    }

    /// Slots that are not void yet.
    fn left(&self, now: Instant) -> u32 {
        self.grants.iter().map(|grant| grant.count - grant.first_valid(now, self.grace).min(grant.count)).sum()
    }

    /// `Ok` when the next slot may be used, until then; else when it may, or `None` when there is none.
    fn ready(&mut self, now: Instant) -> Result<Instant, Option<Instant>> {
        while let Some(grant) = self.grants.front_mut() {
            grant.used = grant.first_valid(now, self.grace);
            if grant.used >= grant.count {
                self.grants.pop_front();
                continue;
            }
            let at = grant.slot(grant.used);
            return if at <= now { Ok(at + self.grace) } else { Err(Some(at)) };
        }
        Err(None)
    }

    fn take(&mut self) {
        if let Some(grant) = self.grants.front_mut() {
            grant.used += 1;
        }
    }
}

impl Grant {
    fn slot(&self, number: u32) -> Instant {
        self.base + Duration::from_secs_f64((self.ahead + f64::from(number) * self.gap).clamp(0.0, 3600.0))
    }

    /// The first slot, used ones left out, that is not void.
    fn first_valid(&self, now: Instant, grace: Duration) -> u32 {
        let late = (now + self.slack).saturating_duration_since(self.base).as_secs_f64() - grace.as_secs_f64();
        if late <= 0.0 {
            return self.used;
        }
        // Slots before the base count as at the base; those at or after `late` are still good.
        let void = ((late - self.ahead) / self.gap).ceil().clamp(0.0, f64::from(self.count));
        self.used.max(void as u32)
    }
}

/// `governor` with a clock that is told the time: this process alone never goes faster than the account's rate either.
struct Pace {
    limiter: RateLimiter<NotKeyed, InMemoryState, FakeRelativeClock, NoOpMiddleware<Nanos>>,
    clock: FakeRelativeClock,
    now: Instant,
}

impl Pace {
    fn new(rate: Rate, now: Instant) -> Self {
        let gap = Duration::from_secs_f64((1.0 / rate.per_second).max(1e-9));
        let burst = NonZeroU32::new(rate.burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(gap).unwrap_or(Quota::per_second(NonZeroU32::MIN)).allow_burst(burst);
        let clock = FakeRelativeClock::default();
        Self { limiter: RateLimiter::direct_with_clock(quota, clock.clone()), clock, now }
    }

    fn check(&mut self, now: Instant) -> Result<(), Instant> {
        self.clock.advance(now.saturating_duration_since(self.now));
        self.now = self.now.max(now);
        self.limiter.check().map_err(|not_until| now + not_until.wait_time_from(self.clock.now()))
    }
}

/// Whether the account is asked at all.
#[derive(Debug)]
pub struct Circuit {
    limit: u32,
    failures: u32,
    failed: HashSet<Uuid>,
    refused: HashSet<Uuid>,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    probe_at: Instant,
    probe: Probe,
    /// The transaction that was last asked about since it opened.
    probing: Option<Uuid>,
    /// When the database was asked for the probe.
    asked_at: Instant,
    /// The database knows it too.
    confirmed: bool,
}

/// How far the next probe has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    /// Nobody has asked for it.
    Idle,
    /// The database is asked whether this replica may send it.
    Asked,
    /// This replica may send it.
    Granted,
}

/// A change that all replicas must know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CircuitChange {
    /// Stop asking, for this reason.
    Open(String),
    /// Ask again.
    Close,
}

/// So many different transactions must have failed: one bad row is not a bad provider.
const DIFFERENT: usize = 5;

impl Circuit {
    fn new(limit: u32) -> Self {
        Self { limit, failures: 0, failed: HashSet::new(), refused: HashSet::new(), open: None }
    }

    /// Counts an outcome. An open circuit is closed by the answer to a probe alone: what was sent before it opened says nothing new.
    pub fn on_outcome(&mut self, id: Uuid, health: Health) -> Option<CircuitChange> {
        let opens = match health {
            Health::Usable => {
                self.reset();
                None
            }
            Health::Neutral => None,
            Health::AccountRefused => Some("the account's credentials were refused".to_owned()),
            Health::RowRefused => {
                self.refused.insert(id);
                (self.refused.len() >= DIFFERENT)
                    .then(|| format!("the credentials of {DIFFERENT} transactions in a row were refused"))
            }
            Health::Down => {
                self.failures = self.failures.saturating_add(1);
                if self.failed.len() < DIFFERENT {
                    self.failed.insert(id);
                }
                (self.failures >= self.limit && self.failed.len() >= DIFFERENT)
                    .then(|| format!("{} polls in a row failed", self.failures))
            }
        };
        match (opens, self.open) {
            (Some(reason), None) => Some(CircuitChange::Open(reason)),
            (None, Some(open)) if open.probing == Some(id) && matches!(health, Health::Usable | Health::Neutral) => {
                Some(CircuitChange::Close)
            }
            _ => None,
        }
    }

    fn reset(&mut self) {
        self.failures = 0;
        self.failed.clear();
        self.refused.clear();
    }

    /// Nothing is sent but probes, from `probe_at` on. `confirmed`: the database says so.
    pub fn set_open(&mut self, probe_at: Instant, confirmed: bool) {
        let open = self.open.get_or_insert(Open { probe_at, probe: Probe::Idle, probing: None, asked_at: probe_at, confirmed });
        open.confirmed |= confirmed;
        if open.probe == Probe::Idle {
            open.probe_at = probe_at;
        }
    }

    /// The database does not know of an open circuit. One that was opened here a moment ago stays: it is on its way there.
    pub fn is_unknown(&mut self) {
        if self.open.is_some_and(|open| open.confirmed) {
            self.set_closed();
        }
    }

    /// Everything is sent again.
    pub fn set_closed(&mut self) {
        self.open = None;
        self.reset();
    }

    /// Whether nothing but probes is sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether to ask the database for the right to probe; if so, notes that it is asked.
    pub fn asks_for_probe(&mut self, now: Instant) -> bool {
        match &mut self.open {
            Some(open) if open.probe == Probe::Idle && open.probe_at <= now => {
                open.probe = Probe::Asked;
                open.asked_at = now;
                true
            }
            _ => false,
        }
    }

    /// Whether the time for a probe has come, and nobody was asked for it yet.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.open.is_some_and(|open| open.probe == Probe::Idle && open.probe_at <= now)
    }

    /// A probe that was granted and could not be sent is given up after half an interval: the next one's turn may be near.
    pub fn expire(&mut self, now: Instant, interval: Duration) {
        if let Some(open) = &mut self.open
            && open.probe == Probe::Granted
            && now.saturating_duration_since(open.asked_at) > interval / 2
        {
            open.probe = Probe::Idle;
        }
    }

    /// Asks again at `next`.
    pub fn set_idle(&mut self, next: Instant) {
        if let Some(open) = &mut self.open {
            (open.probe, open.probe_at) = (Probe::Idle, next);
        }
    }

    /// When the next probe is due.
    #[must_use]
    pub fn probe_at(&self) -> Option<Instant> {
        self.open.filter(|open| open.probe == Probe::Idle).map(|open| open.probe_at)
    }

    /// The database's answer; `next` is when to ask again. A circuit that the database does not know, although there was time to tell
    /// it, is closed: nobody would ever close it otherwise.
    pub fn on_probe_asked(&mut self, granted: bool, next: Instant) {
        if !granted && self.open.is_some_and(|open| !open.confirmed) {
            return self.set_closed();
        }
        if let Some(open) = &mut self.open {
            open.probe = if granted { Probe::Granted } else { Probe::Idle };
            open.probe_at = next;
        }
    }

    /// Takes the right to send: always while closed, once per granted probe while open.
    pub fn may_send(&self) -> bool {
        self.open.is_none_or(|open| open.probe == Probe::Granted)
    }

    /// A request about this transaction was sent.
    pub fn on_sent(&mut self, id: Uuid) {
        if let Some(open) = &mut self.open {
            open.probe = Probe::Idle;
            open.probing = Some(id);
        }
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
            lane.hold_as_told(now, Some(now - SECOND + Duration::from_micros(micros)));
            assert_eq!(lane.slots.left(now), 3);
        }
        lane.hold_as_told(now, Some(now + SECOND));
        assert_eq!(lane.slots.left(now), 0, "one that lasts does");
    }

    #[test]
    fn an_answer_to_what_was_sent_before_a_circuit_opened_does_not_close_it() {
        let now = Instant::now();
        let [refused, under_way, probe] = [1, 2, 3].map(Uuid::from_u128);
        let mut circuit = Circuit::new(20);
        circuit.on_sent(under_way);
        assert!(matches!(circuit.on_outcome(refused, Health::AccountRefused), Some(CircuitChange::Open(_))));
        circuit.set_open(now, false);
        assert_eq!(circuit.on_outcome(under_way, Health::Usable), None);
        assert!(circuit.asks_for_probe(now) && !circuit.may_send());
        circuit.on_probe_asked(true, now + SECOND);
        assert!(circuit.may_send());
        circuit.on_sent(probe);
        assert!(!circuit.may_send(), "one probe");
        assert_eq!(circuit.on_outcome(probe, Health::Down), None);
        assert_eq!(circuit.on_outcome(probe, Health::Usable), Some(CircuitChange::Close));
    }
}

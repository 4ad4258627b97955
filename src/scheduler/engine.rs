//! The loop as a state machine: given the time and what happened, it returns what to do next.
//!
//! It sends nothing, waits for nothing and reads no clock: a driver carries out its [`Command`]s
//! and hands it [`Event`]s, the daemon's with sockets and a database, the simulation's with
//! neither. It is made of parts that know nothing of each other: membership, the claim cycle, the
//! transactions in memory, the outbox. The engine routes events to them and passes their results
//! on.

use super::claims::{Claims, LOOK_AHEAD};
use super::clock::DatabaseClock;
use super::held::Held;
use super::history::Comparison;
use super::lane::{CircuitChange, Lane};
use super::membership::{LeaseChange, Member};
use super::notice::Notice;
use super::outbox::Outbox;
use super::protocol::{AccountNotice, ClaimCycle, Command, Event, PollResult, Setup, StoreFailure, Watch};
use super::recording::{Carried, Recording};
use super::results::{self, Answer, redaction};
use super::workset::{Superseded, Woken, WorkSet};
use crate::domain::{NoAnswer, Outcome, Source, State};
use crate::store::{AccountState, Batch, Claim, Draw, Drawn, Poll, ROW_LAG, Recorded, ReplicaId, Transition};
use crate::wire::{Kept, Redaction};
use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A transaction whose next poll comes within this time stays in memory until then. One that waits
/// longer, mostly for minutes, is given back to the table.
const HELD_FOR: Duration = Duration::from_secs(61);
/// How often other writers' changes are read.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// Between a request's last moment to be sent and the end of the lease there is its time-out and this.
const LEASE_MARGIN: Duration = Duration::from_secs(1);
/// A request for send slots that brought none is repeated after this.
const EMPTY_DRAW_BACKOFF: Duration = Duration::from_millis(20);
/// However far ahead the budget is booked, slots are requested this often: the database's clock may
/// have been set.
const FARTHEST_DRAW_S: f64 = 1.0;
/// A notice that could not be sent to the other replicas is repeated after this.
const NOTICE_RETRY: Duration = Duration::from_secs(1);
/// A stop with nothing to record waits this long for an unavailable database, to release its
/// transactions.
const STOP_DATABASE_WAIT: Duration = Duration::from_secs(1);

/// The state machine.
pub struct Engine {
    setup: Setup,
    /// What is reported to the log and the metrics.
    pub notices: Vec<Notice>,
    random: StdRng,
    member: Member,
    claims: Claims,
    work: WorkSet,
    outbox: Outbox,
    watching: bool,
    next_watch: Instant,
    /// How far other writers' changes were read. What is to be compared with its row after a
    /// failover.
    comparison: Comparison,
    /// Batches from before lost commits are still under way.
    settling: bool,
    /// Pauses and open circuits were read since the database came back: before that nothing is
    /// sent.
    accounts_known: bool,
    next_start: Option<Instant>,
    /// Polls of transactions that were superseded or lost, and the registration under which they
    /// were sent.
    strays: Vec<(u64, Poll)>,
    /// Notices that could not be sent to the other replicas yet, and when each is tried again.
    unsent_notices: Vec<(AccountNotice, Instant)>,
    stopping: Option<Instant>,
    finished: bool,
}

impl Engine {
    /// An engine that starts by registering.
    #[must_use]
    pub fn new(setup: Setup, now: Instant) -> Self {
        Self {
            random: StdRng::seed_from_u64(setup.seed),
            notices: Vec::new(),
            member: Member::new(setup.lease, now),
            claims: Claims::new(setup.lanes.len(), now),
            work: WorkSet::new(&setup.lanes, setup.max_in_flight, now),
            outbox: Outbox::default(),
            watching: false,
            next_watch: now,
            comparison: Comparison::default(),
            settling: false,
            accounts_known: false,
            next_start: None,
            strays: Vec::new(),
            unsent_notices: Vec::new(),
            stopping: None,
            finished: false,
            setup,
        }
    }

    /// Handles an event and returns what to do.
    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Command>) {
        self.on(now, event, out);
        self.advance(now, out);
    }

    /// Handles an event. [`Engine::advance`] then decides what to do next, once for all events.
    pub fn on(&mut self, now: Instant, event: Event, out: &mut Vec<Command>) {
        match event {
            Event::Tick => {}
            Event::Registered(result, issued_at) => match result {
                Ok(result) => {
                    let change = self.member.on_registered(now, result, issued_at);
                    self.on_lease(now, change);
                }
                Err(failure) => {
                    self.member.on_not_registered();
                    self.lose_database(now, failure);
                }
            },
            Event::Beaten(replica, result, issued_at) => {
                self.member.beat_returned();
                match result {
                    Ok(beat) => {
                        let change = self.member.on_beaten(now, replica, beat, issued_at);
                        self.on_lease(now, change);
                    }
                    Err(failure) => self.lose_database(now, failure),
                }
            }
            Event::Claimed(result, cycle) => self.on_claimed(now, result, cycle),
            Event::Drawn(result, lanes, issued_at) => self.on_drawn(now, result, &lanes, issued_at),
            Event::Polled(held, result) => self.on_polled(now, held, result, out),
            Event::Recorded(recording, result) => self.on_recorded(now, recording, result),
            Event::Watched(result) => self.on_watched(now, result),
            Event::Compared(ids, result) => self.on_compared(now, &ids, result),
            Event::AccountNoticeSent(notice, result) => self.on_notice_sent(now, notice, result.is_ok()),
            Event::Probe { lane, granted } => self.on_probe(now, lane, granted),
            Event::Woken => {
                self.member.suspect_lease(now);
                self.work.lanes_mut().iter_mut().for_each(Lane::void_slots);
            }
            Event::Stop => {
                self.stopping = Some(now);
                self.outbox.retry_refused(now);
            }
        }
    }

    /// When to call [`Engine::handle`] next, if nothing happens before.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Instant> {
        if self.finished {
            return None;
        }
        let stop = self.stopping.map(|since| since + STOP_DATABASE_WAIT);
        if !self.member.has_database() || !self.member.is_registered() {
            return self.member.next_wakeup().into_iter().chain(stop).min();
        }
        let going = self.stopping.is_none();
        let moments = [
            self.member.next_wakeup(),
            Some(self.next_watch).filter(|_| going && !self.watching),
            self.claims.next_wakeup().filter(|_| going),
            self.outbox.due(),
            self.next_start.filter(|_| going),
            self.unsent_notices.iter().map(|(_, at)| *at).min(),
        ];
        // Nothing is started any more while stopping.
        let starting = self.work.lanes().iter().filter(|_| going);
        let waits = starting.flat_map(|lane| lane.waiting().first().into_iter().chain(lane.awaits_draw()));
        moments.into_iter().flatten().chain(waits).min()
    }

    /// This replica, while it is registered.
    #[must_use]
    pub fn replica(&self) -> Option<ReplicaId> {
        self.member.replica()
    }

    /// Whether the database is there.
    #[must_use]
    pub fn has_database(&self) -> bool {
        self.member.has_database() && self.member.is_registered()
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.work.in_flight()
    }

    /// The accounts.
    #[must_use]
    pub fn lanes(&self) -> &[Lane] {
        self.work.lanes()
    }
}

/// What the database's answers bring.
impl Engine {
    fn on_lease(&mut self, now: Instant, change: LeaseChange) {
        if change.back {
            (self.accounts_known, self.next_watch) = (false, now);
            self.notices.push(Notice::DatabaseBack);
        }
        if change.beaten {
            self.outbox.retry();
        }
        if let Some((recorded, claimed)) = change.commits_lost {
            self.on_commits_lost(now, recorded, claimed);
        } else if change.cut {
            self.comparison.begin(self.work.at_hand());
        }
        if change.registered {
            self.claims.restart(now);
            (self.accounts_known, self.next_watch) = (false, now);
        }
        if change.died {
            self.claims.scan_now(now);
        }
        if change.members {
            self.rebalance();
        }
        if change.lost {
            self.lose_lease(now);
        }
    }

    /// The database has lost commits that it had acknowledged; these are the last batches that it
    /// knows. Memory is built on lost rows: all of it is claimed anew from the database.
    fn on_commits_lost(&mut self, now: Instant, recorded: i64, claimed: i64) {
        // Claims may have gone on where only records are lost, and the other way round.
        let gone = ((self.outbox.acknowledged() - recorded).max(0), (self.claims.acknowledged() - claimed).max(0));
        let what = format!("{} batches of records and {} claims that it had acknowledged are gone", gone.0, gone.1);
        self.notices.push(Notice::CommitsLost(what));
        let replica = self.replica();
        self.outbox.on_commits_lost(recorded, replica);
        self.claims.on_commits_lost(now, claimed);
        self.member.forget_acknowledged();
        drop(self.work.lose_all());
        self.comparison.clear();
        // Statements under way were issued before that: until they are back, nothing may be claimed
        // that they could write.
        self.settling = true;
    }

    fn on_claimed(&mut self, now: Instant, result: Result<Claim, StoreFailure>, mut cycle: ClaimCycle) {
        let epoch = self.member.epoch();
        let claim = match result {
            Ok(claim) => claim,
            Err(failure) => {
                self.claims.on_failed(now, &mut cycle, epoch);
                return self.lose_database(now, failure);
            }
        };
        if let Some(clock) = claim.clock {
            self.member.read_clock(cycle.issued_at, now, clock);
        }
        let recovered = self.claims.on_claimed(now, &mut cycle, &claim, epoch, &self.work);
        if recovered > 0 {
            self.notices.push(Notice::Recovered(recovered));
        }
        for (id, why) in claim.refused {
            if self.claims.avoid(now, id) {
                self.notices.push(Notice::RowRefused { id, why });
            }
        }
        for ((number, room), found) in cycle.lanes.iter().zip(&claim.found) {
            let any = found.ordinary + found.backlog > 0 || self.work.lane(*number).idle() > 0;
            let wanted = room.ordinary + room.backlog > 0;
            if (any || wanted) && self.work.lane_mut(*number).circuit_mut().note_probe_candidates(now, any) {
                self.unsent_notices.push((AccountNotice::Circuit { lane: *number, change: CircuitChange::Abandon }, now));
            }
        }
        for claimed in claim.held {
            let Some((number, _)) = cycle.lanes.get(claimed.lane).copied() else { continue };
            if claimed.due <= crate::domain::after(cycle.now, LOOK_AHEAD) {
                self.claims.took(number, claimed.backlog);
            }
            // Under an earlier registration the claim is void: the rows belong to a replica that is
            // gone.
            if cycle.epoch == epoch && self.member.is_registered() {
                let mut held = Held::new(claimed, number, epoch, self.claims.number());
                held.generation = self.comparison.generation();
                self.take_in(now, held);
            }
        }
        self.work.forget_unclaimed();
    }

    /// A transaction comes into memory.
    fn take_in(&mut self, now: Instant, mut held: Box<Held>) {
        if let Some(reason) = self.invalid_reason(&held) {
            return self.park(now, held, State::Invalid, reason, Source::Poll);
        }
        let due = self.member.clock().map_or(now, |clock| clock.instant(held.due));
        if due > now + self.hold_span() + LOOK_AHEAD {
            // The database's clock was set back meanwhile: it is not due for long.
            let next = held.due;
            self.write(now, &mut held, false, Some(next), None);
            return;
        }
        self.requeue(now, held, due);
    }

    /// Why no request can be made of the row. Finding out takes neither a send slot nor a probe.
    fn invalid_reason(&self, held: &Held) -> Option<String> {
        if let Some(flaw) = &held.flaw {
            return Some(flaw.clone());
        }
        if held.transaction.reference.chars().any(char::is_control) {
            return Some("reference has control characters".into());
        }
        results::request_refused(self.work.lane(held.lane).spec(), held)
    }

    fn on_drawn(&mut self, now: Instant, result: Result<Vec<Drawn>, StoreFailure>, lanes: &[usize], issued_at: Instant) {
        for number in lanes {
            self.work.lane_mut(*number).end_draw();
        }
        let drawn = match result {
            Ok(drawn) => drawn,
            Err(failure) => return self.lose_database(now, failure),
        };
        if self.member.is_stale(issued_at) {
            return;
        }
        for draw in drawn {
            self.member.read_clock(issued_at, now, draw.clock);
            let (Some(number), Some(clock)) = (lanes.get(draw.lane), self.member.clock()) else { continue };
            // Slots count from the moment at which the database granted them, not from the arrival
            // of its answer: an answer that was long under way brings void slots, because other
            // replicas have had the budget since.
            let (base, slack) = (clock.instant(draw.clock), clock.slack());
            let lane = self.work.lane_mut(*number);
            lane.add_slots(base, slack, draw.ahead, draw.gap, draw.slots);
            // No slots are available before that, so none are requested.
            let next = draw.ahead + f64::from(draw.slots) * draw.gap - crate::store::AHEAD.as_secs_f64();
            let least = if draw.slots == 0 { EMPTY_DRAW_BACKOFF } else { Duration::ZERO };
            lane.draw_after(base.max(now) + Duration::from_secs_f64(next.clamp(0.0, FARTHEST_DRAW_S)).max(least));
        }
    }

    fn on_recorded(&mut self, now: Instant, mut recording: Box<Recording>, result: Result<Recorded, StoreFailure>) {
        self.outbox.returned();
        match result {
            Ok(recorded) => {
                self.outbox.written(&recording);
                if let Some(last) = recorded.history_cut.filter(|_| self.outbox.is_news(&recording)) {
                    // This batch itself is there again.
                    self.on_commits_lost(now, last, self.claims.acknowledged());
                    self.outbox.written(&recording);
                }
                if recorded.lease_lost && recording.replica.is_some() && recording.replica == self.replica() {
                    self.lose_lease(now);
                }
                if !recorded.locked.is_empty() {
                    if !recording.batch.skip_locked {
                        self.notices.push(Notice::Locked(recorded.locked.len()));
                    }
                    self.outbox.set_aside(&mut recording, &recorded.locked);
                }
                for (id, notice) in recording.notices.drain(..) {
                    if !recorded.is_journal_only() && !recorded.refused.contains(&id) {
                        self.notices.push(notice);
                    }
                }
                if recording.replica == self.replica() {
                    recording.leaving.drain(..).for_each(|(id, fence)| self.work.forget(id, fence));
                }
                for Carried { mut held, due, written } in recording.carried.drain(..) {
                    if recorded.is_journal_only() || recorded.refused.contains(&held.transaction.id) {
                        self.let_go(&held);
                        continue;
                    }
                    if held.epoch == self.member.epoch() && !self.work.is_current(&held) {
                        // The transaction was dropped when commits were lost, while its poll was
                        // being recorded.
                        self.recount(now, held.transaction.id, Vec::new());
                        continue;
                    }
                    held.fence += i64::from(written);
                    self.requeue(now, held, due);
                }
            }
            Err(StoreFailure::Unavailable(why)) => {
                self.outbox.again(now, recording);
                self.lose_database(now, StoreFailure::Unavailable(why));
            }
            Err(StoreFailure::Conflict(_)) => self.outbox.again(now, recording),
            Err(StoreFailure::TimedOut(why)) => match self.outbox.timed_out(recording) {
                Some(recording) => self.take_apart(now, recording, why),
                None => self.lose_database(now, StoreFailure::TimedOut(why)),
            },
            Err(StoreFailure::Refused(why)) => self.take_apart(now, recording, why),
        }
    }

    fn take_apart(&mut self, now: Instant, recording: Box<Recording>, why: String) {
        if let Some(id) = self.outbox.take_apart(now, recording, &why) {
            self.notices.push(Notice::RecordRefused { id, why });
        }
    }

    fn on_watched(&mut self, now: Instant, result: Result<Watch, StoreFailure>) {
        self.watching = false;
        self.next_watch = now + WATCH_EVERY;
        let watch = match result {
            Ok(watch) => watch,
            Err(failure) => return self.lose_database(now, failure),
        };
        if self.replica() == Some(watch.replica) {
            for change in watch.overrides {
                match self.work.supersede(change.id, change.fence, self.claims.is_claiming()) {
                    Superseded::AtHand(held) => self.drop_superseded(now, &held),
                    // Owned, changed, and not in memory: no other replica would release it.
                    Superseded::Unknown => self.outbox.let_go(now, change.id, change.fence),
                    Superseded::Away => {}
                }
            }
        }
        self.take_over_accounts(now, &watch.accounts);
        self.accounts_known = true;
    }

    fn take_over_accounts(&mut self, now: Instant, states: &[AccountState]) {
        let Some(clock) = self.member.clock().copied() else { return };
        for (number, lane) in self.work.lanes_mut().iter_mut().enumerate() {
            let spec = lane.spec();
            let state = states.iter().find(|state| state.provider == spec.provider && *state.account == *spec.account);
            lane.pause_as_told(now, state.and_then(|state| state.held_until).map(|until| clock.instant(until)));
            match state.and_then(|state| state.probe_at) {
                Some(probe_at) => lane.circuit_mut().set_open(clock.instant(probe_at), true),
                None => lane.circuit_mut().is_unknown(),
            }
            let paused = state.and_then(|state| state.paused.clone());
            if lane.suspend(paused.is_some()) {
                self.notices.push(Notice::Suspended { lane: number, because: paused });
            }
        }
    }

    /// What this replica believes it owns was compared with the rows.
    fn on_compared(&mut self, now: Instant, ids: &[Uuid], result: Result<Vec<(Uuid, i64)>, StoreFailure>) {
        self.comparison.returned(ids, &result);
        match result {
            Ok(owned) => {
                let fences: HashMap<Uuid, i64> = owned.into_iter().collect();
                ids.iter().for_each(|id| self.work.compare(*id, fences.get(id).copied()));
            }
            Err(failure) => self.lose_database(now, failure),
        }
    }

    /// A notice that could not be sent is repeated, as long as it is true.
    fn on_notice_sent(&mut self, now: Instant, notice: AccountNotice, told: bool) {
        let holds = match &notice {
            AccountNotice::SlowDown { until, .. } => *until > now,
            AccountNotice::Circuit { lane, change } => {
                matches!(change, CircuitChange::Open(_)) == self.work.lane(*lane).circuit().is_open()
            }
        };
        if !told && holds {
            self.unsent_notices.push((notice, now + NOTICE_RETRY));
        }
    }

    fn on_probe(&mut self, now: Instant, number: usize, granted: Result<bool, StoreFailure>) {
        let lane = self.work.lane_mut(number);
        let interval = lane.spec().circuit.probe_after;
        match granted {
            Ok(granted) => lane.circuit_mut().on_probe_asked(granted, if granted { now + interval } else { now + WATCH_EVERY }),
            Err(failure) => {
                lane.circuit_mut().set_idle(now + super::membership::RETRY);
                self.lose_database(now, failure);
            }
        }
    }
}

/// What a provider's answer brings.
impl Engine {
    fn on_polled(&mut self, now: Instant, held: Box<Held>, result: PollResult, out: &mut Vec<Command>) {
        let number = held.lane;
        self.work.returned(&held);
        match result {
            // After a failover it was claimed anew while this was away.
            PollResult::NotSent(_) | PollResult::Later(_) if held.epoch == self.member.epoch() && !self.work.is_current(&held) => {}
            PollResult::NotSent(why) => {
                let mut due = now;
                if let Some(outcome) = why {
                    let spec = self.work.lane(number).spec().clone();
                    let redaction = redaction(&spec, &held);
                    let outcome = outcome.cleaned(|text| redaction.line(text));
                    self.note_health(now, &held, &outcome, out);
                    due += spec.rules.retry.wait(1, self.random.random());
                }
                self.requeue(now, held, due);
            }
            PollResult::Later(wait) => self.requeue(now, held, now + wait),
            PollResult::Impossible(reason) => {
                if held.epoch == self.member.epoch() && self.work.is_current(&held) {
                    self.park(now, held, State::Invalid, reason, Source::Poll);
                } else {
                    self.leave(now, &held);
                }
            }
            PollResult::Sent { at, latency, status, body, outcome } => {
                self.work.lane_mut(number).was_sent(now, &held.transaction.reference);
                let spec = self.work.lane(number).spec();
                let redaction = redaction(spec, &held);
                let outcome = outcome.cleaned(|text| redaction.line(text));
                drop(redaction);
                self.on_answer(now, held, Answer { at, latency, status, body, outcome }, out);
            }
        }
    }

    fn on_answer(&mut self, now: Instant, mut held: Box<Held>, answer: Answer, out: &mut Vec<Command>) {
        let clock = self.member.clock().copied().unwrap_or(DatabaseClock::new(now, now, DateTime::UNIX_EPOCH));
        let journaled = results::journaled(&held, self.work.lane(held.lane).spec(), &answer, &clock);
        // After a failover it may have been claimed anew meanwhile; to the new claim, this poll
        // comes from an earlier lease.
        let lost = held.epoch != self.member.epoch() || !self.work.is_current(&held);
        if lost {
            self.strays.push((held.epoch, journaled.poll));
        } else {
            self.outbox.poll(now, journaled.poll);
        }
        self.note_health(now, &held, &answer.outcome, out);
        self.notices.push(journaled.notice);
        if lost {
            return;
        }
        if self.work.is_superseded(&held) {
            return self.drop_superseded(now, &held);
        }
        let from = held.transaction.state;
        let jitter = self.random.random();
        let spec = self.work.lane(held.lane).spec().clone();
        let followed = results::follow(&mut held, &spec, answer, journaled.sent, now, jitter);
        if followed.transition.is_some() {
            self.outbox.tell(held.transaction.id, results::transition_notice(&held, from, followed.reason));
        }
        let Some(due) = followed.due else {
            return self.close(now, held, followed.transition);
        };
        let hold = self.stopping.is_none() && due.saturating_duration_since(now) <= self.hold_span();
        // The row may lag behind the journal by a minute, and the next answer may take as long as
        // its time-out.
        let stale = held.unsaved.since.is_some_and(|since| due + spec.timeout >= since + ROW_LAG);
        let written = followed.transition.is_some() || !hold || stale;
        if written {
            let next = held.due;
            self.write(now, &mut held, hold, Some(next), followed.transition);
        }
        if hold {
            self.outbox.carry(Carried { held, due, written });
        }
    }

    /// Polling has ended.
    fn close(&mut self, now: Instant, mut held: Box<Held>, transition: Option<Transition>) {
        self.write(now, &mut held, false, None, transition);
    }

    /// Parks a transaction without a poll.
    fn park(&mut self, now: Instant, mut held: Box<Held>, to: State, reason: String, source: Source) {
        let from = std::mem::replace(&mut held.transaction.state, to);
        let reason = redaction(self.work.lane(held.lane).spec(), &held).line(&reason);
        held.unsaved.reason = Some(Some(reason.clone()));
        self.outbox.tell(held.transaction.id, results::transition_notice(&held, from, Some(reason)));
        self.close(now, held, Some(Transition { from, source, evidence: None }));
    }

    /// Puts a transaction's row into the batch, the answer scrubbed. A transaction that is no
    /// longer kept leaves memory.
    fn write(&mut self, now: Instant, held: &mut Held, hold: bool, next: Option<DateTime<Utc>>, transition: Option<Transition>) {
        let mut entry = held.entry(hold, next, transition);
        // A redirect URL stands here as it came: the payer needs all of it.
        entry.action = entry.action.map(|action| Redaction::new(Vec::new(), Kept::EVERYTHING).json(action));
        self.outbox.entry(now, entry);
        if !hold {
            self.work.leave(held);
            self.outbox.leave(held);
        }
    }

    /// Applies what an outcome says about the provider: pauses and circuits, for all replicas.
    fn note_health(&mut self, now: Instant, held: &Held, outcome: &Outcome, out: &mut Vec<Command>) {
        if matches!(outcome, Outcome::NoAnswer(NoAnswer::Stopped)) {
            // The answer was not waited for: it says nothing about the provider.
            return;
        }
        let number = held.lane;
        let lane = self.work.lane_mut(number);
        let wait = outcome.retry_after();
        if wait.is_some() || matches!(outcome, Outcome::RateLimited { .. }) {
            let wait = wait.unwrap_or_default();
            lane.pause(now + wait);
            self.notices.push(Notice::RateLimited { lane: number, wait });
            out.push(AccountNotice::SlowDown { lane: number, until: now + wait }.command());
        }
        let probe_after = lane.spec().circuit.probe_after;
        if let Some(mut change) = lane.circuit_mut().on_outcome(held.transaction.id, outcome.health()) {
            match &mut change {
                CircuitChange::Open(reason) => {
                    // An operator on call needs to know how it failed, too.
                    if let Some(last) = outcome.error() {
                        *reason = format!("{reason}; the last one: {last}");
                    }
                    lane.circuit_mut().set_open(now + probe_after, false);
                }
                CircuitChange::Close | CircuitChange::Abandon => lane.circuit_mut().set_closed(),
            }
            // An earlier notice about this account is no longer true.
            self.unsent_notices.retain(|(notice, _)| !matches!(notice, AccountNotice::Circuit { lane, .. } if *lane == number));
            out.push(AccountNotice::Circuit { lane: number, change }.command());
        }
    }
}

/// What to do next.
impl Engine {
    /// Decides what to do next, once for all events.
    pub fn advance(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.finished {
            return;
        }
        self.record_strays(now);
        if self.member.is_silent(now) {
            self.lose_database(now, Member::silence());
        }
        if !self.member.has_database() {
            if self.member.is_retry_due(now) {
                self.member.register(out);
                self.beat(now, out);
            }
            if self.stopping.is_some_and(|since| since + STOP_DATABASE_WAIT <= now)
                && self.in_flight() == 0
                && !self.outbox.has_facts()
            {
                // Nothing is left to record, and owned rows are free when the lease expires.
                self.finish(None, false, out);
            }
            return;
        }
        if self.stopping.is_none() {
            self.member.register(out);
        }
        if self.member.is_beat_due(now) {
            self.beat(now, out);
        }
        if self.member.take_leap()
            && let Some(clock) = self.member.clock()
        {
            self.work.replan(clock);
        }
        self.wake(now);
        self.tell(now, out);
        if self.stopping.is_some() {
            self.release_all(now, |_| true);
            if self.claims.has_unfreed() {
                self.claim(now, out);
            }
        } else if self.member.is_registered() {
            // There are more replicas than requests may be in flight: what this one may not poll is
            // left to others.
            self.release_all(now, |lane| lane.share() == 0);
            self.draw(now, out);
            self.dispatch(now, out);
            self.claim(now, out);
            self.watch(now, out);
            out.extend(self.comparison.next(self.member.replica()));
        }
        let replica = self.replica();
        out.extend(self.outbox.next(now, replica, self.stopping.is_some()).map(Command::Record));
        let Some(since) = self.stopping else { return };
        // Statements to a database that does not answer are not waited for when nothing depends on
        // them.
        let waits = self.claims.has_unfreed() || self.claims.is_claiming() || self.member.is_registering();
        if self.in_flight() == 0 && self.outbox.is_done() && (!waits || since + STOP_DATABASE_WAIT <= now) {
            let unwritten = self.outbox.unwritten();
            let given_back = !waits && unwritten.is_none();
            self.finish(unwritten, given_back, out);
        }
    }

    fn finish(&mut self, unwritten: Option<String>, given_back: bool, out: &mut Vec<Command>) {
        self.finished = true;
        out.push(Command::Finish { replica: self.replica(), unwritten, given_back });
    }

    fn beat(&mut self, now: Instant, out: &mut Vec<Command>) {
        let has_room = !self.work.lanes().iter().any(Lane::exceeds_share);
        let held = i64::try_from(self.work.idle()).unwrap_or(i64::MAX);
        self.member.beat(now, has_room, held, (self.outbox.acknowledged(), self.claims.acknowledged()), out);
    }

    /// Moves what has fallen due from waiting to ready, or parks it when its window is over.
    fn wake(&mut self, now: Instant) {
        for number in 0..self.work.lanes().len() {
            while let Some(woken) = self.work.wake(now, number, self.member.clock()) {
                if let Woken::Over(held, reason) = woken {
                    self.park(now, held, State::Unresolved, reason.to_owned(), Source::Deadline);
                }
            }
        }
    }

    /// Repeats notices that could not be sent to the other replicas.
    fn tell(&mut self, now: Instant, out: &mut Vec<Command>) {
        for (notice, _) in self.unsent_notices.extract_if(.., |(_, at)| *at <= now) {
            out.push(notice.command());
        }
    }

    fn draw(&mut self, now: Instant, out: &mut Vec<Command>) {
        let soon = now + crate::store::AHEAD;
        let (mut draws, mut lanes) = (Vec::new(), Vec::new());
        for (number, lane) in self.work.lanes_mut().iter_mut().enumerate() {
            let wanted = lane.wants_slots(now, soon);
            if wanted > 0 {
                let (tolerance, gap) = lane.start_draw();
                let spec = lane.spec();
                draws.push(Draw { provider: spec.provider, account: spec.account.clone(), wanted, gap, tolerance });
                lanes.push(number);
            }
        }
        if !draws.is_empty() {
            out.push(Command::Draw { draws, lanes });
        }
    }

    /// Starts the polls that may be sent now.
    fn dispatch(&mut self, now: Instant, out: &mut Vec<Command>) {
        self.next_start = None;
        let Some(lease_end) = self.member.lease_end().filter(|_| self.accounts_known && !self.comparison.is_pending()) else {
            return;
        };
        let mut open = self.work.busy();
        self.ask_for_probes(now, &open, out);
        // A request that has to wait for its token keeps no slot: all of them would start at once
        // when the token comes.
        let until = |lane: &Lane| lease_end.checked_sub(lane.spec().timeout + LEASE_MARGIN).unwrap_or(now);
        while !self.outbox.is_full() {
            let Some((held, before)) = self.work.start(now, &mut open, until, &mut self.next_start) else { break };
            out.push(Command::Poll { held, before });
        }
    }

    fn ask_for_probes(&mut self, now: Instant, lanes: &[usize], out: &mut Vec<Command>) {
        for number in lanes {
            let lane = self.work.lane_mut(*number);
            let probe_after = lane.spec().circuit.probe_after;
            lane.circuit_mut().expire(now, probe_after);
            if lane.circuit().is_due(now) && !lane.could_start(now) {
                // A slot is on its way; until it comes, the right to probe would only expire.
                continue;
            }
            if lane.circuit_mut().asks_for_probe(now) {
                out.push(Command::Probe { lane: *number });
            } else if let Some(at) = lane.circuit().probe_at() {
                self.next_start = Some(self.next_start.map_or(at, |next| next.min(at)));
            }
        }
    }

    fn claim(&mut self, now: Instant, out: &mut Vec<Command>) {
        self.settling &= !self.outbox.is_settled();
        if self.settling {
            return;
        }
        let (stopping, span) = (self.stopping.is_some(), self.hold_span());
        let (process, max_held, jitter) = (self.setup.process, self.setup.max_held, self.random.random());
        let may_take = !stopping && self.member.may_claim();
        let claim = self.claims.next_claim(now, stopping, may_take, &self.member, &self.work, process, max_held, span, jitter);
        out.extend(claim);
    }

    /// Records polls of transactions that were superseded or lost. A transaction that was claimed
    /// anew has them counted beside its new owner, which may be this replica. One that was dropped
    /// when commits were lost is released, if this replica owns its row: the next claim reads all
    /// of its polls in the journal. A claim under way may still decide which of the two it is, and
    /// the next claim waits until this is written.
    fn record_strays(&mut self, now: Instant) {
        if self.claims.is_claiming() && self.stopping.is_none() {
            return;
        }
        for (epoch, poll) in std::mem::take(&mut self.strays) {
            if epoch == self.member.epoch() && !self.work.contains(poll.transaction_id) {
                self.recount(now, poll.transaction_id, vec![poll]);
            } else {
                self.outbox.bygone(now, Batch { polls: vec![poll], ..Batch::default() });
            }
        }
    }

    /// Releases a transaction that was dropped from memory, with polls that the journal does not
    /// have yet.
    fn recount(&mut self, now: Instant, id: Uuid, polls: Vec<Poll>) {
        self.outbox.adrift(now, self.replica(), Batch { polls, dropped: vec![id], ..Batch::default() });
        self.settling = true;
    }

    fn watch(&mut self, now: Instant, out: &mut Vec<Command>) {
        if let Some(replica) = self.replica().filter(|_| self.next_watch <= now && !self.watching) {
            self.watching = true;
            out.push(Command::Watch { replica });
        }
    }

    /// Releases everything of these lanes that is not in flight, for other replicas to claim.
    fn release_all(&mut self, now: Instant, of: impl Fn(&Lane) -> bool) {
        for number in 0..self.work.lanes().len() {
            if of(self.work.lane(number)) {
                for mut held in self.work.drain(number) {
                    let due = held.due;
                    self.write(now, &mut held, false, Some(due), None);
                }
            }
        }
    }
}

/// Keeping and releasing.
impl Engine {
    /// A transaction stays in memory while its next poll comes within this time: less when memory
    /// is short, or when this replica has more than its share, so that others take over what it has
    /// polled.
    fn hold_span(&self) -> Duration {
        let idle = self.work.idle();
        if idle * 5 > self.setup.max_held * 4 {
            LOOK_AHEAD
        } else if self.member.exceeds_share(idle) {
            self.setup.lease / 2
        } else {
            HELD_FOR
        }
    }

    fn rebalance(&mut self) {
        for lane in self.work.lanes_mut() {
            let spec = lane.spec().clone();
            lane.set_share(self.member.share(spec.provider, &spec.account, spec.max_in_flight));
        }
    }

    /// A statement failed.
    fn lose_database(&mut self, now: Instant, failure: StoreFailure) {
        // A conflict with another session, in a statement that is sent again anyway.
        if !matches!(failure, StoreFailure::Conflict(_)) && self.member.mark_unavailable(now) {
            self.notices.push(Notice::DatabaseLost(failure.words().to_owned()));
        }
    }

    /// Nothing in memory is owned any more. Polls in flight find out when they come back.
    fn lose_lease(&mut self, now: Instant) {
        let replica = self.replica();
        for held in self.work.lose_all().into_iter().filter(|held| held.unsaved.polls > 0) {
            // A transaction that another writer has closed meanwhile is never claimed again: its
            // polls are counted now.
            self.outbox.dropped(now, held.transaction.id);
        }
        self.work.lanes_mut().iter_mut().for_each(|lane| lane.set_share(0));
        self.outbox.seal(replica);
        self.claims.lose_all();
        self.comparison.clear();
        self.lose_database(now, StoreFailure::Unavailable("the lease ran out: what was held is left to others".into()));
        self.member.lose_lease(now);
    }

    /// Waits for its next poll, unless it was superseded.
    fn requeue(&mut self, now: Instant, mut held: Box<Held>, due: Instant) {
        if held.epoch != self.member.epoch() {
            return self.leave(now, &held);
        }
        if held.generation != self.comparison.generation() {
            held.generation = self.comparison.generation();
            self.comparison.add(held.transaction.id);
        }
        if self.work.is_superseded(&held) {
            return self.drop_superseded(now, &held);
        }
        self.work.wait(held, due);
    }

    /// Another writer has changed it: its polls so far are counted in its row.
    fn drop_superseded(&mut self, now: Instant, held: &Held) {
        self.outbox.dropped(now, held.transaction.id);
        self.work.leave(held);
        self.outbox.leave(held);
    }

    /// Its lease is lost. The replica that claims it next reads its polls in the journal; if
    /// another writer has closed it, no replica does.
    fn leave(&mut self, now: Instant, held: &Held) {
        if held.unsaved.polls > 0 {
            self.outbox.bygone(now, Batch { dropped: vec![held.transaction.id], ..Batch::default() });
        }
    }

    /// It was changed by another writer, or belongs to a lease that is lost.
    fn let_go(&mut self, held: &Held) {
        if held.epoch == self.member.epoch() {
            self.work.forget(held.transaction.id, held.fence);
        }
    }
}

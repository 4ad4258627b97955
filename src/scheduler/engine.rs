//! The loop as a state machine: told the time and what happened, it says what to do next.
//!
//! The engine owns every held transaction and every lane. It sends nothing, waits for nothing and asks no clock: a driver carries
//! out its [`Command`]s and hands it [`Event`]s, the daemon's with sockets and a database, the simulation's with neither. A held
//! transaction travels inside commands and events, so it is in one place at a time and has one poll in flight at most.

use super::clock::DatabaseClock;
use super::held::Held;
use super::lane::{CircuitChange, Lane, LaneSpec, Urgency};
use super::outbox::{Carried, Outbox, Recording};
use super::placement::Placer;
use super::watch::Watch;
use crate::domain::{Change, Decision, Due, NoAnswer, Outcome, Source, State, Transaction};
use crate::providers::Ask;
use crate::store::{AccountState, Batch, Beat, Claim, Draw, Drawn, LaneRoom, Membership, Poll, Recorded, ReplicaId, Transition};
use crate::wire::{Kept, Redaction};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// What the engine needs to know once.
pub struct Setup {
    /// The accounts.
    pub lanes: Vec<Arc<LaneSpec>>,
    /// How long this replica's claims outlive its last heartbeat.
    pub lease: Duration,
    /// Requests in flight, over all accounts.
    pub max_in_flight: u32,
    /// Transactions held.
    pub max_held: usize,
    /// Where the draws come from.
    pub seed: u64,
}

/// Something to be done by the driver. Each is answered by the event that it names.
#[expect(clippy::large_enum_variant, reason = "carried out at once; few are ever under way")]
pub enum Command {
    /// Register this replica, make the accounts' rows: [`Event::Registered`].
    Register,
    /// Renew the lease: [`Event::Beaten`].
    Beat {
        /// This replica.
        replica: ReplicaId,
        /// The newest replica that it leaves room for.
        complied: i64,
        /// What time it is by the database's clock, if this replica may declare others dead: see [`crate::store::Store::beat`].
        judge: Option<DateTime<Utc>>,
    },
    /// Take due transactions: [`Event::Claimed`].
    Claim {
        /// This replica.
        replica: ReplicaId,
        /// The living.
        members: Membership,
        /// How many of which account.
        rooms: Vec<LaneRoom>,
        /// Due until then.
        horizon: DateTime<Utc>,
        /// What to do with each.
        placer: Placer,
        /// To be handed back.
        look: Look,
    },
    /// Draw send slots: [`Event::Drawn`].
    Draw {
        /// The wishes.
        draws: Vec<Draw>,
        /// Their lanes.
        lanes: Vec<usize>,
    },
    /// Ask the provider, unless it is later than `before` by then: [`Event::Asked`].
    Ask {
        /// The transaction.
        held: Box<Held>,
        /// Not to be sent any more from then on.
        before: Instant,
    },
    /// Write: [`Event::Recorded`].
    Record(Box<Recording>),
    /// Look for others' verdicts and for the accounts' state: [`Event::Watched`].
    Watch {
        /// The transition up to which all verdicts are known.
        after: i64,
    },
    /// The provider asked for a pause. No answer.
    SlowDown {
        /// The account's lane.
        lane: usize,
        /// How long.
        wait: Duration,
    },
    /// Tell all replicas that a circuit opened or closed, and the log if this one was first. No answer.
    Circuit {
        /// The account's lane.
        lane: usize,
        /// What happened.
        change: CircuitChange,
    },
    /// Ask for the right to send a probe: [`Event::Probe`].
    Probe {
        /// The account's lane.
        lane: usize,
    },
    /// Everything is written and given back: deregister and end. The last command.
    Finish {
        /// This replica, if it ever was one.
        replica: Option<ReplicaId>,
    },
}

/// What the engine must remember of a claim while it is under way.
pub struct Look {
    /// The lanes asked for, and how many transactions of each.
    pub lanes: Vec<(usize, usize)>,
    /// See [`crate::store::Store::claim`].
    pub unsure: Vec<Uuid>,
    /// The registration under which it was asked.
    epoch: u64,
    /// The database's clock then.
    now: DateTime<Utc>,
    /// It looked at everything due, however long ago.
    sweep: bool,
}

/// Something that happened.
pub enum Event {
    /// Nothing but the passing of time.
    Tick,
    /// Answers [`Command::Register`].
    Registered(Result<(ReplicaId, Beat, i64), Failed>, Instant),
    /// Answers [`Command::Beat`]; with the replica for which and the moment at which it was asked.
    Beaten(ReplicaId, Result<Beat, Failed>, Instant),
    /// Answers [`Command::Claim`].
    Claimed(Result<Claim, Failed>, Look),
    /// Answers [`Command::Draw`]; with the moment at which it was asked.
    Drawn(Result<Vec<Drawn>, Failed>, Vec<usize>, Instant),
    /// Answers [`Command::Ask`].
    Asked(Box<Held>, Asked),
    /// Answers [`Command::Record`].
    Recorded(Box<Recording>, Result<Recorded, Failed>),
    /// Answers [`Command::Watch`].
    Watched(Result<Watch, Failed>),
    /// Answers [`Command::Probe`].
    Probe {
        /// The account's lane.
        lane: usize,
        /// Whether this replica may send it.
        granted: Result<bool, Failed>,
    },
    /// The process stood still for a while: what it knows may be stale.
    Woken,
    /// Stop: give back what is not in flight, wait for what is.
    Stop,
}

/// The database did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// It cannot be reached, or not written to.
    Lost(String),
    /// It refuses what was to be written: not for want of a connection, but for what it says.
    Refused(String),
}

/// What came of asking.
pub enum Asked {
    /// No request was sent: it was too late, or there is no token, and this is why.
    NotSent(Option<Outcome>),
    /// No request was sent, and none is to be before this time has passed. Says nothing about the provider.
    Later(Duration),
    /// The row cannot be asked about.
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

/// How often the lease is renewed.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// How often new and newly due transactions are looked for.
const CLAIM_EVERY: Duration = Duration::from_millis(100);
/// How often others' verdicts are looked for.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// Transactions are claimed so long before they fall due, so that each is sent at its moment and not at the next look.
const LOOK_AHEAD: Duration = Duration::from_secs(1);
/// What commits late may lie so far behind what was claimed before: looks overlap by this, and read past all that is held of it. What
/// commits later still waits for the next look at everything.
const OVERLAP: Duration = Duration::from_millis(500);
/// A look at everything due, however long ago, costs time: it takes at most this share of it.
const SWEEP_SHARE: u32 = 50;
/// However slow the database once was, what was given back is not overlooked for longer than this.
const RAREST_SWEEP: Duration = Duration::from_secs(5);
/// Between a request's last moment to be sent and the end of the lease there is its time-out and this.
const LEASE_MARGIN: Duration = Duration::from_secs(1);
/// A draw that brought nothing is not repeated at once.
const IN_VAIN: Duration = Duration::from_millis(20);
/// However far ahead the budget is booked, a draw is tried this often: the database's clock may have been set.
const FARTHEST_DRAW_S: f64 = 1.0;
/// A replica that has just started judges nobody for so long.
const NEWCOMER: Duration = Duration::from_secs(3);
/// Of so many requests in flight one is kept for a newcomer; of fewer none can be spared.
const RESERVED_FROM: u32 = 4;
/// When the database's clock is found ahead by more than this, it was set.
const LEAP: Duration = Duration::from_secs(1);
/// How long after a database failure the next try comes; doubled each time up to a second.
const RETRY: Duration = Duration::from_millis(100);

/// The state machine.
pub struct Engine {
    setup: Setup,
    /// The accounts.
    pub lanes: Vec<Lane>,
    /// What the log and the metrics are told.
    pub news: Vec<News>,
    random: StdRng,
    clock: Option<DatabaseClock>,
    registration: Registration,
    /// Rises with every registration; what was claimed under an earlier one is no longer ours.
    epoch: u64,
    database: Database,
    claiming: bool,
    watching: bool,
    beating: bool,
    next_beat: Instant,
    next_claim: Instant,
    next_watch: Instant,
    next_sweep: Instant,
    claim_asked: Instant,
    /// How often transactions were looked for.
    looks: usize,
    next_start: Option<Instant>,
    last_verdict: i64,
    /// Which accounts pause and which circuits are open was heard since the database was found: before that nothing is sent.
    accounts_known: bool,
    /// Others' writes about transactions that were in flight or being recorded, or are not held at all: the fence, and when it was
    /// heard of.
    overruled: HashMap<Uuid, (i64, Instant)>,
    /// What a claim whose answer got lost may have taken: it is released before the next one.
    unsure: Vec<Uuid>,
    /// When the process last noticed that it had stood still: what was asked before says nothing of now.
    doubted: Option<Instant>,
    in_flight: u32,
    sequence: u64,
    outbox: Outbox,
    /// Since when the database has been there without a break; `None`: there was no registration yet.
    steady_since: Option<Instant>,
    stopping: bool,
    finished: bool,
}

enum Registration {
    No,
    Asked,
    Yes(Registered),
}

struct Registered {
    replica: ReplicaId,
    members: Membership,
    /// The moment before the last heartbeat that succeeded.
    heard: Instant,
    /// The same, or earlier where the process stood still since: so long the lease is sure to hold.
    beaten: Instant,
    /// The newest replica for which room was left so far. It stays while room is made for a newer one: the others' shares are safe.
    complied: i64,
}

#[derive(Clone, Copy)]
enum Database {
    There,
    Lost { retry_at: Instant, wait: Duration },
}

/// What the log and the metrics are told.
#[derive(Debug)]
pub enum News {
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
        /// [`Outcome::name`].
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
    /// The database was lost.
    DatabaseLost(String),
    /// It is back.
    DatabaseBack,
    /// The database refuses a poll's record, whatever is left out of it; it is tried again.
    Unrecorded(String),
    /// Another session keeps the rows of so many transactions locked.
    Locked(usize),
}

impl Engine {
    /// An engine that begins by registering.
    #[must_use]
    pub fn new(setup: Setup, now: Instant) -> Self {
        let lanes = setup.lanes.iter().map(|spec| Lane::new(spec.clone(), now)).collect();
        Self {
            random: StdRng::seed_from_u64(setup.seed),
            lanes,
            setup,
            news: Vec::new(),
            clock: None,
            registration: Registration::No,
            epoch: 0,
            database: Database::There,
            claiming: false,
            watching: false,
            beating: false,
            next_beat: now,
            next_claim: now,
            next_watch: now,
            next_sweep: now,
            claim_asked: now,
            looks: 0,
            next_start: None,
            last_verdict: 0,
            accounts_known: false,
            overruled: HashMap::new(),
            unsure: Vec::new(),
            doubted: None,
            in_flight: 0,
            sequence: 0,
            outbox: Outbox::default(),
            steady_since: None,
            stopping: false,
            finished: false,
        }
    }

    /// Takes in what happened and says what to do.
    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Command>) {
        match event {
            Event::Tick => {}
            Event::Registered(result, asked) => self.on_registered(now, result, asked),
            Event::Beaten(replica, result, asked) => self.on_beaten(now, replica, result, asked),
            Event::Claimed(result, look) => self.on_claimed(now, result, look),
            Event::Drawn(result, lanes, asked) => self.on_drawn(now, result, &lanes, asked),
            Event::Asked(held, asked) => self.on_asked(now, held, asked, out),
            Event::Recorded(recording, result) => self.on_recorded(now, recording, result),
            Event::Watched(result) => self.on_watched(now, result),
            Event::Probe { lane, granted } => self.on_probe(now, lane, granted),
            Event::Woken => self.doubt_lease(now),
            Event::Stop => self.stopping = true,
        }
        self.proceed(now, out);
    }

    /// When to call [`Engine::handle`] next, if nothing happens before.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Instant> {
        if self.finished {
            return None;
        }
        if let Database::Lost { retry_at, .. } = self.database {
            return Some(retry_at);
        }
        if !self.is_registered() {
            return None;
        }
        // What is under way is not waited for here: its event wakes the engine.
        let due = |at: Instant, under_way: bool| (!under_way).then_some(at);
        let moments = [
            due(self.next_beat, self.beating),
            due(self.next_watch, self.watching || self.stopping),
            due(self.next_claim, self.claiming || self.stopping),
            self.outbox.due(),
            self.next_start.and_then(|at| due(at, self.stopping)),
            self.last_lease_end(),
        ];
        // Nothing is started any more while stopping.
        let starting = self.lanes.iter().filter(|_| !self.stopping);
        let waits = starting.flat_map(|lane| lane.waiting.first().into_iter().chain(lane.awaits_draw()));
        moments.into_iter().flatten().chain(waits).min()
    }
}

/// What the events bring.
impl Engine {
    fn on_registered(&mut self, now: Instant, result: Result<(ReplicaId, Beat, i64), Failed>, asked: Instant) {
        self.registration = Registration::No;
        match result {
            Err(failed) => self.lose_database(now, failed),
            Ok((replica, beat, last_verdict)) => {
                self.find_database(now);
                self.read_clock(asked, now, beat.clock);
                self.last_verdict = self.last_verdict.max(last_verdict);
                self.epoch += 1;
                // A newcomer cannot tell whether the database's clock was set a moment ago: all others show a sign of life first.
                self.steady_since = self.steady_since.or(now.checked_sub(self.setup.lease).map(|since| since + NEWCOMER));
                self.registration =
                    Registration::Yes(Registered { replica, members: beat.members, heard: asked, beaten: asked, complied: 0 });
                self.share_out();
                self.next_beat = now + BEAT_EVERY;
                self.next_claim = now;
                self.next_sweep = now;
                self.next_watch = now;
                self.accounts_known = false;
                if self.doubted.is_some_and(|doubted| asked <= doubted) {
                    self.doubt_lease(now);
                }
            }
        }
    }

    fn on_beaten(&mut self, now: Instant, replica: ReplicaId, result: Result<Beat, Failed>, asked: Instant) {
        self.beating = false;
        match result {
            Err(failed) => self.lose_database(now, failed),
            Ok(beat) => {
                let doubtful = self.doubted.is_some_and(|doubted| asked <= doubted);
                // Without a lease it is back when there is a new one.
                let holds = beat.alive || self.replica() != Some(replica);
                if holds && !doubtful && self.find_database(now) {
                    self.steady_since = Some(now);
                }
                self.read_clock(asked, now, beat.clock);
                self.next_beat = now + BEAT_EVERY;
                self.outbox.retry();
                if doubtful {
                    // It was answered before the process stood still, nobody knows how long: the next one tells.
                    self.next_beat = now;
                    return;
                }
                match &mut self.registration {
                    // What is said of an earlier registration says nothing of this one.
                    Registration::Yes(registered) if registered.replica != replica => {}
                    Registration::Yes(registered) if beat.alive => {
                        if registered.members.living.iter().any(|id| !beat.members.living.contains(id)) {
                            // What the dead one held fell due long ago.
                            self.next_sweep = now;
                        }
                        registered.members = beat.members;
                        (registered.heard, registered.beaten) = (asked, asked);
                        self.share_out();
                    }
                    Registration::Yes(_) => self.lose_lease(now),
                    _ => {}
                }
            }
        }
    }

    fn on_claimed(&mut self, now: Instant, result: Result<Claim, Failed>, mut look: Look) {
        self.claiming = false;
        if look.epoch == self.epoch {
            self.unsure = std::mem::take(&mut look.unsure);
        }
        self.next_claim = now + CLAIM_EVERY;
        let claim = match result {
            Ok(claim) => claim,
            Err(failed) => return self.lose_database(now, failed),
        };
        if let Some(clock) = claim.clock {
            self.read_clock(self.claim_asked, now, clock);
        }
        if look.sweep {
            let took = now.saturating_duration_since(self.claim_asked);
            self.next_sweep = now + (took * SWEEP_SHARE).clamp(Duration::from_secs(1), RAREST_SWEEP);
        }
        let overlap = chrono::TimeDelta::from_std(OVERLAP).unwrap_or_default();
        for ((number, room), (found, last)) in look.lanes.iter().zip(claim.found) {
            let lane = &mut self.lanes[*number];
            lane.more = found >= *room;
            match last {
                Some(last) if lane.more => lane.since = (last - overlap).min(look.now - overlap),
                _ => lane.since = look.now - overlap,
            }
            lane.planned_away = found;
        }
        for claimed in claim.held {
            let Some((number, _)) = look.lanes.get(claimed.lane) else { continue };
            let lane = &mut self.lanes[*number];
            lane.planned_away = lane.planned_away.saturating_sub(1);
            // Under an older registration the claim is void: the rows belong to a replica that is gone.
            if look.epoch == self.epoch && self.is_registered() {
                let mut held = Held::new(claimed, *number, self.epoch);
                let due = self.clock.map_or(now, |clock| clock.instant(held.due));
                if due > now + self.hold_span() + LOOK_AHEAD {
                    // The database's clock was set back meanwhile: it is not due for long.
                    let next = held.due;
                    self.write(now, &mut held, false, Some(next), None);
                } else {
                    self.go_on(now, held, due);
                }
            }
        }
    }

    fn on_drawn(&mut self, now: Instant, result: Result<Vec<Drawn>, Failed>, lanes: &[usize], asked: Instant) {
        for number in lanes {
            self.lanes[*number].drawing = false;
        }
        match result {
            Err(failed) => self.lose_database(now, failed),
            Ok(drawn) => {
                if self.doubted.is_some_and(|doubted| asked <= doubted) {
                    return;
                }
                for draw in drawn {
                    self.read_clock(asked, now, draw.clock);
                    let (Some(number), Some(clock)) = (lanes.get(draw.lane), self.clock) else { continue };
                    // The slots count from the moment of the draw by the database's clock, not from that of its answer: an answer that
                    // was long under way brings slots that are void, because others have had the budget since.
                    let base = clock.instant(draw.clock);
                    let lane = &mut self.lanes[*number];
                    lane.add_slots(base, clock.slack(), draw.ahead, draw.gap, draw.slots);
                    // Before that there is none to be had: nobody asks in vain.
                    let next = draw.ahead + f64::from(draw.slots) * draw.gap - crate::store::AHEAD.as_secs_f64();
                    let least = if draw.slots == 0 { IN_VAIN } else { Duration::ZERO };
                    lane.next_draw = base.max(now) + Duration::from_secs_f64(next.clamp(0.0, FARTHEST_DRAW_S)).max(least);
                }
            }
        }
    }

    fn on_asked(&mut self, now: Instant, mut held: Box<Held>, asked: Asked, out: &mut Vec<Command>) {
        let number = held.lane;
        self.in_flight -= 1;
        self.lanes[number].in_flight -= 1;
        self.free_key(&held);
        match asked {
            Asked::NotSent(why) => {
                let mut due = now;
                if let Some(outcome) = why {
                    let redaction = self.redaction(&held);
                    let outcome = outcome.cleaned(|text| redaction.line(text));
                    self.note_health(now, &held, &outcome, out);
                    due += self.lanes[number].spec.rules.retry.wait(1, self.random.random());
                }
                self.go_on(now, held, due);
            }
            Asked::Later(wait) => self.go_on(now, held, now + wait),
            Asked::Impossible(reason) => {
                if held.epoch == self.epoch {
                    self.park(now, held, State::Invalid, reason, Source::Poll);
                } else {
                    self.leave(now, &held);
                }
            }
            Asked::Sent { at, latency, status, body, outcome } => {
                let clock = self.clock.unwrap_or(DatabaseClock::new(now, now, DateTime::UNIX_EPOCH));
                // Whoever waits from here, with whatever clock, waits long enough. Should the clock be known better by now than when the
                // poll fell due: it was not sent before that, and the journal does not say so either.
                let early = crate::domain::since(clock.latest(at), held.due);
                let sent = crate::domain::after(clock.latest(at), if early < LEAP { early } else { Duration::ZERO });
                let redaction = self.redaction(&held);
                let outcome = outcome.cleaned(|text| redaction.line(text));
                let error = outcome.error();
                let poll = Poll {
                    transaction_id: held.transaction.id,
                    provider: held.transaction.provider,
                    account: held.transaction.account.clone(),
                    due_at: held.due,
                    sent_at: sent,
                    latency_ms: latency.map(|latency| u32::try_from(latency.as_millis()).unwrap_or(u32::MAX)),
                    http_status: status,
                    outcome: outcome.name(),
                    error: error.clone(),
                    declaration: self.lanes[number].spec.asks.declaration(),
                };
                let lost = held.epoch != self.epoch;
                if lost {
                    self.outbox.bygone(now, Batch { polls: vec![poll], ..Batch::default() });
                } else {
                    self.outbox.poll(now, poll);
                }
                self.note_health(now, &held, &outcome, out);
                let known = held.transaction.provider_state.as_deref();
                let word = match &outcome {
                    Outcome::UnknownWord { word } if known != Some(word) => Some(word.clone()),
                    _ => None,
                };
                self.news.push(News::Poll {
                    lane: number,
                    id: held.transaction.id,
                    reference: held.transaction.reference.clone(),
                    attempt: held.transaction.attempts.saturating_add(1),
                    outcome: outcome.name(),
                    status,
                    latency,
                    lateness: crate::domain::since(held.due, sent),
                    error,
                    word,
                });
                if lost {
                    return;
                }
                if self.is_overruled(&held) {
                    return self.outbox.dropped(now, held.transaction.id);
                }
                let draw = self.random.random();
                let mut decision = self.lanes[number].spec.rules.decide(&held.transaction, &outcome, sent, draw);
                let evidence = decision.change.as_ref().map(|_| {
                    let answered = latency.map(|latency| crate::domain::after(sent, latency));
                    self.evidence(&held, status, &body, sent, answered)
                });
                // Its copy of the details would make the next line copy all of them.
                drop(outcome);
                if let Some(details) = decision.details.take() {
                    let details = self.redaction(&held).json(Arc::unwrap_or_clone(details));
                    held.unsaved.details = Some(details.to_string().into());
                }
                let from = held.transaction.state;
                let change = decision.change.clone();
                held.apply(&mut decision, sent, now);
                self.follow(now, held, decision, from, change, evidence, at, sent);
            }
        }
    }

    fn on_recorded(&mut self, now: Instant, mut recording: Box<Recording>, result: Result<Recorded, Failed>) {
        self.outbox.returned();
        match result {
            Ok(recorded) => {
                if recorded.lease_lost && recording.replica.is_some() && recording.replica == self.replica() {
                    self.lose_lease(now);
                }
                if !recorded.locked.is_empty() {
                    if !recording.batch.skip_locked {
                        self.news.push(News::Locked(recorded.locked.len()));
                    }
                    self.outbox.set_aside(&mut recording, &recorded.locked);
                }
                for (id, news) in recording.news.drain(..) {
                    if !recorded.lease_lost && !recorded.refused.contains(&id) {
                        self.news.push(news);
                    }
                }
                for Carried { mut held, due, written } in recording.carried.drain(..) {
                    if recorded.lease_lost || recorded.refused.contains(&held.transaction.id) {
                        continue;
                    }
                    held.fence += i64::from(written);
                    self.go_on(now, held, due);
                }
            }
            Err(Failed::Lost(why)) => {
                self.outbox.again(recording);
                self.lose_database(now, Failed::Lost(why));
            }
            Err(Failed::Refused(why)) => {
                if !self.outbox.take_apart(recording) {
                    self.news.push(News::Unrecorded(why));
                }
            }
        }
    }

    fn on_watched(&mut self, now: Instant, result: Result<Watch, Failed>) {
        self.watching = false;
        self.next_watch = now + WATCH_EVERY;
        let watch = match result {
            Ok(watch) => watch,
            Err(failed) => return self.lose_database(now, failed),
        };
        // Nothing is in flight for as long as a lease, but what came back from there may wait much longer to be written. (Where that is
        // for a locked row, its fence is looked at when it is.)
        let unwritten_since = self.outbox.unwritten_since().unwrap_or(now);
        let lease = self.setup.lease;
        self.overruled.retain(|_, (_, heard)| *heard + lease > unwritten_since);
        self.last_verdict = self.last_verdict.max(watch.heard);
        for (_, id, fence) in watch.verdicts {
            self.let_go(now, id, fence);
        }
        self.take_over_accounts(now, &watch.accounts);
        self.accounts_known = true;
    }

    fn on_probe(&mut self, now: Instant, number: usize, granted: Result<bool, Failed>) {
        let lane = &mut self.lanes[number];
        let interval = lane.spec.circuit.probe_after;
        match granted {
            Ok(granted) => lane.circuit.on_probe_asked(granted, if granted { now + interval } else { now + WATCH_EVERY }),
            Err(failed) => {
                lane.circuit.set_idle(now + RETRY);
                self.lose_database(now, failed);
            }
        }
    }
}

/// What follows from an answer.
impl Engine {
    /// Writes a decision down, now or with a later poll, and says when the transaction goes on.
    #[expect(clippy::too_many_arguments, reason = "one poll's facts, used once")]
    fn follow(
        &mut self,
        now: Instant,
        mut held: Box<Held>,
        decision: Decision,
        from: State,
        change: Option<Change>,
        evidence: Option<Value>,
        at: Instant,
        sent: DateTime<Utc>,
    ) {
        let Some(next) = decision.next else {
            let change = change.unwrap_or(Change { to: held.transaction.state, reason: None, source: Source::Poll });
            let transition = Transition { from, source: change.source, evidence };
            self.tell_transition(&held, from, change.reason);
            self.write(now, &mut held, false, None, Some(transition));
            return;
        };
        // Where the provider measures, the request arrived at some moment until now: the documented gap counts from now on.
        let floor = self.lanes[held.lane].spec.rules.floors.every;
        let due = (at + (next - sent).to_std().unwrap_or_default()).max(now + floor);
        let next = crate::domain::after(sent, due.saturating_duration_since(at));
        held.due = next;
        let hold = !self.stopping && due.saturating_duration_since(now) <= self.hold_span();
        let transition = change.map(|change| {
            self.tell_transition(&held, from, change.reason);
            Transition { from, source: change.source, evidence }
        });
        // The row may lag behind the journal by a lease, and the next answer may take as long as its time-out. Sooner than that, because
        // the write is also what notices that the row was corrected.
        let timeout = self.lanes[held.lane].spec.timeout;
        let lease = self.setup.lease;
        let stale = held.unsaved.since.is_some_and(|since| now >= since + lease / 3 || due + timeout >= since + lease);
        let written = transition.is_some() || !hold || stale;
        if written {
            self.write(now, &mut held, hold, Some(next), transition);
        }
        if hold {
            self.outbox.carry(Carried { held, due, written });
        }
    }

    /// Parks a transaction without a poll.
    fn park(&mut self, now: Instant, mut held: Box<Held>, to: State, reason: String, source: Source) {
        let from = std::mem::replace(&mut held.transaction.state, to);
        let reason = self.redaction(&held).line(&reason);
        held.unsaved.reason = Some(Some(reason.clone()));
        self.tell_transition(&held, from, Some(reason));
        self.write(now, &mut held, false, None, Some(Transition { from, source, evidence: None }));
    }

    /// Puts a transaction's row into the batch, the answer scrubbed.
    fn write(&mut self, now: Instant, held: &mut Held, hold: bool, next: Option<DateTime<Utc>>, transition: Option<Transition>) {
        let mut entry = held.entry(hold, next, transition);
        // A redirect URL stands here as it came: the payer needs all of it.
        entry.action = entry.action.map(|action| Redaction::new(Vec::new(), Kept::EVERYTHING).json(action));
        self.outbox.entry(now, entry);
    }

    fn tell_transition(&mut self, held: &Held, from: State, reason: Option<String>) {
        let transaction = &held.transaction;
        let news = News::Transition {
            lane: held.lane,
            id: transaction.id,
            reference: transaction.reference.clone(),
            from,
            to: transaction.state,
            word: transaction.provider_state.clone(),
            reason,
            attempt: transaction.attempts,
        };
        self.outbox.tell(transaction.id, news);
    }

    fn redaction<'a>(&'a self, held: &'a Held) -> Redaction<'a> {
        let asks = &self.lanes[held.lane].spec.asks;
        Redaction::new(asks.secrets(ask(held)), asks.kept(ask(held)))
    }

    fn evidence(
        &self,
        held: &Held,
        status: Option<u16>,
        body: &[u8],
        asked: DateTime<Utc>,
        answered: Option<DateTime<Utc>>,
    ) -> Value {
        json!({
            "http_status": status,
            "body": self.redaction(held).body(body),
            "asked_at": asked.to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
            "answered_at": answered.map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)),
        })
    }

    /// What an outcome says about the provider: pauses and circuits, for all replicas.
    fn note_health(&mut self, now: Instant, held: &Held, outcome: &Outcome, out: &mut Vec<Command>) {
        if matches!(outcome, Outcome::NoAnswer(NoAnswer::Stopped)) {
            // We did not wait for what the provider would have said.
            return;
        }
        let number = held.lane;
        let lane = &mut self.lanes[number];
        let wait = outcome.retry_after();
        if wait.is_some() || matches!(outcome, Outcome::RateLimited { .. }) {
            let wait = wait.unwrap_or_default();
            lane.hold(now + wait);
            self.news.push(News::RateLimited { lane: number, wait });
            out.push(Command::SlowDown { lane: number, wait });
        }
        let lane = &mut self.lanes[number];
        if let Some(mut change) = lane.circuit.on_outcome(held.transaction.id, outcome.health()) {
            match &mut change {
                CircuitChange::Open(reason) => {
                    // Whoever is called at night wants to know how, too.
                    if let Some(last) = outcome.error() {
                        *reason = format!("{reason}; the last one: {last}");
                    }
                    lane.circuit.set_open(now + lane.spec.circuit.probe_after, false);
                }
                CircuitChange::Close => lane.circuit.set_closed(),
            }
            out.push(Command::Circuit { lane: number, change });
        }
    }
}

/// What to do next.
impl Engine {
    fn proceed(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.finished {
            return;
        }
        if self.last_lease_end().is_some_and(|end| end <= now) {
            self.lose_database(now, Failed::Lost("no heartbeat was answered for as long as the lease".into()));
        }
        if let Database::Lost { retry_at, .. } = self.database {
            if retry_at <= now {
                self.ask_for_database(now, out);
            }
            return;
        }
        match self.registration {
            Registration::No if !self.stopping => {
                self.registration = Registration::Asked;
                out.push(Command::Register);
            }
            Registration::Yes(_) if self.next_beat <= now && !self.beating => self.beat(now, out),
            _ => {}
        }
        self.wake(now);
        if self.stopping {
            self.give_back(now, |_| true);
            if !self.unsure.is_empty() {
                self.claim(now, out);
            }
        } else if self.is_registered() {
            // More replicas than requests may be in flight: what this one may not ask about is for others.
            self.give_back(now, |lane| lane.share == 0);
            self.draw(now, out);
            self.dispatch(now, out);
            self.claim(now, out);
            self.watch(now, out);
        }
        self.flush(now, out);
        self.finish(out);
    }

    /// While the database is lost, the heartbeat is what looks for it.
    fn ask_for_database(&mut self, now: Instant, out: &mut Vec<Command>) {
        if let Database::Lost { retry_at, wait } = &mut self.database {
            *retry_at = now + *wait;
            *wait = (*wait * 2).min(BEAT_EVERY);
        }
        match self.registration {
            Registration::No => {
                self.registration = Registration::Asked;
                out.push(Command::Register);
            }
            Registration::Yes(_) if !self.beating => self.beat(now, out),
            _ => {}
        }
    }

    fn beat(&mut self, now: Instant, out: &mut Vec<Command>) {
        let Registration::Yes(registered) = &mut self.registration else { return };
        self.beating = true;
        if self.lanes.iter().all(|lane| lane.in_flight <= lane.share) {
            registered.complied = registered.members.newest;
        }
        let complied = registered.complied;
        // Whoever has heard nothing for a lease does not know whether the database's clock was set meanwhile.
        let fresh = now.saturating_duration_since(registered.heard) < self.setup.lease;
        let steady = fresh && self.steady_since.is_none_or(|since| now.saturating_duration_since(since) >= self.setup.lease);
        let judge = self.clock.filter(|_| steady).map(|clock| clock.at(now));
        out.push(Command::Beat { replica: registered.replica, complied, judge });
    }

    /// Moves what has fallen due from waiting to ready, or parks it when its window is over.
    fn wake(&mut self, now: Instant) {
        for number in 0..self.lanes.len() {
            while let Some((due, sequence, held)) = self.lanes[number].waiting.pop_due(now) {
                // The clock is known better than when the last poll was written down: its floor holds by the journal too.
                let ahead = self.clock.map_or(Duration::ZERO, |clock| crate::domain::since(clock.latest(now), held.due));
                if !ahead.is_zero() && ahead < LEAP {
                    self.lanes[number].waiting.insert(now + ahead, sequence, held);
                    continue;
                }
                let rules = &self.lanes[number].spec.rules;
                match rules.due(&held.transaction) {
                    Due::Park(reason) => self.park(now, held, State::Unresolved, reason.to_owned(), Source::Deadline),
                    Due::Poll => {
                        let urgency = match (rules.deadline(&held.transaction), self.clock) {
                            (Some(deadline), Some(clock)) if !rules.plan.is_open() => Urgency::By(clock.instant(deadline)),
                            _ => Urgency::Open,
                        };
                        self.lanes[number].ready.insert((urgency, due, sequence), held);
                    }
                }
            }
        }
    }

    fn draw(&mut self, now: Instant, out: &mut Vec<Command>) {
        let soon = now + crate::store::AHEAD;
        let (mut draws, mut lanes) = (Vec::new(), Vec::new());
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            let wanted = lane.wants_slots(now, soon);
            if wanted > 0 {
                lane.drawing = true;
                let (tolerance, gap) = lane.shape();
                draws.push(Draw { provider: lane.spec.provider, account: lane.spec.account.clone(), wanted, gap, tolerance });
                lanes.push(number);
            }
        }
        if !draws.is_empty() {
            out.push(Command::Draw { draws, lanes });
        }
    }

    /// Starts what may be started: first whoever has nothing in flight, then whose window closes first, then who waited longest.
    fn dispatch(&mut self, now: Instant, out: &mut Vec<Command>) {
        self.next_start = None;
        let Registration::Yes(registered) = &self.registration else { return };
        if !self.accounts_known {
            return;
        }
        let lease_end = registered.beaten + self.setup.lease;
        let mut open: Vec<usize> = (0..self.lanes.len()).filter(|number| !self.lanes[*number].ready.is_empty()).collect();
        self.ask_for_probes(now, &open, out);
        while self.in_flight < self.setup.max_in_flight && !self.outbox.is_full() {
            let Some((at, number)) = open.iter().copied().enumerate().min_by_key(|(_, number)| self.lanes[*number].turn()) else {
                break;
            };
            let lane = &mut self.lanes[number];
            let before = lease_end.checked_sub(lane.spec.timeout + LEASE_MARGIN).unwrap_or(now);
            let Some(key) = lane.startable().filter(|_| now < before && lane.circuit.may_send()) else {
                open.swap_remove(at);
                continue;
            };
            // A slot is not kept for a request that has to wait for its token: when that comes, all of them would start at once.
            let before = match lane.try_start(now) {
                Ok(void_at) => before.min(void_at),
                Err(when) => {
                    self.next_start = match (self.next_start, when) {
                        (Some(next), Some(when)) => Some(next.min(when)),
                        (next, when) => next.or(when),
                    };
                    open.swap_remove(at);
                    continue;
                }
            };
            let Some(held) = lane.ready.remove(&key) else { break };
            lane.circuit.on_sent(held.transaction.id);
            if let Some(key) = lane.spec.asks.exclusive_key(ask(&held)) {
                lane.busy.insert(key.into());
            }
            lane.in_flight += 1;
            self.in_flight += 1;
            self.sequence += 1;
            lane.last_turn = self.sequence;
            if lane.ready.is_empty() {
                open.swap_remove(at);
            }
            out.push(Command::Ask { held, before });
        }
    }

    fn ask_for_probes(&mut self, now: Instant, lanes: &[usize], out: &mut Vec<Command>) {
        for number in lanes {
            let lane = &mut self.lanes[*number];
            lane.circuit.expire(now, lane.spec.circuit.probe_after);
            if lane.circuit.is_due(now) && !lane.could_start(now) {
                // A slot is on its way; the right to probe would only grow old.
                continue;
            }
            if lane.circuit.asks_for_probe(now) {
                out.push(Command::Probe { lane: *number });
            } else if let Some(at) = lane.circuit.probe_at() {
                self.next_start = Some(self.next_start.map_or(at, |next| next.min(at)));
            }
        }
    }

    fn claim(&mut self, now: Instant, out: &mut Vec<Command>) {
        let (Registration::Yes(registered), Some(clock)) = (&self.registration, &self.clock) else { return };
        if self.claiming {
            return;
        }
        let held: usize = self.lanes.iter().map(Lane::held).sum();
        let free = self.setup.max_held.saturating_sub(held);
        let urgent = free > 0 && self.lanes.iter().any(|lane| lane.more && lane.is_running_low(now, now + LOOK_AHEAD));
        if self.next_claim > now && !urgent && !self.stopping {
            return;
        }
        let sweep = self.next_sweep <= now;
        let database_now = clock.at(now);
        let (mut rooms, mut lanes, mut specs) = (Vec::new(), Vec::new(), Vec::new());
        self.looks = self.looks.wrapping_add(1);
        for number in 0..self.lanes.len() {
            // Each time another account comes first: where memory is short, the last ones would get none.
            let number = (number + self.looks) % self.lanes.len();
            let lane = &self.lanes[number];
            let room = if self.stopping { 0 } else { lane.room(now, now + LOOK_AHEAD).min(free) };
            if room == 0 {
                continue;
            }
            // What is only planned for later needs no room in memory.
            let asked = if lane.planned_away > 0 { room.max(PLAN_BATCH) } else { room };
            let since = if sweep { DateTime::UNIX_EPOCH } else { lane.since };
            rooms.push(LaneRoom { provider: lane.spec.provider, account: lane.spec.account.clone(), since, room: asked });
            lanes.push((number, asked));
            specs.push((lane.spec.clone(), room));
        }
        self.next_claim = now + CLAIM_EVERY;
        if rooms.is_empty() && self.unsure.is_empty() {
            return;
        }
        self.claiming = true;
        self.claim_asked = now;
        let hold_until = crate::domain::after(database_now, self.hold_span());
        out.push(Command::Claim {
            replica: registered.replica,
            members: registered.members.clone(),
            rooms,
            horizon: crate::domain::after(database_now, LOOK_AHEAD),
            placer: Placer::new(specs, free, database_now, hold_until, self.random.random()),
            look: Look { lanes, unsure: std::mem::take(&mut self.unsure), epoch: self.epoch, now: database_now, sweep },
        });
    }

    fn watch(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.next_watch <= now && !self.watching {
            self.watching = true;
            out.push(Command::Watch { after: self.last_verdict });
        }
    }

    /// Sends a batch on its way when one has gathered.
    fn flush(&mut self, now: Instant, out: &mut Vec<Command>) {
        let replica = self.replica();
        out.extend(self.outbox.next(now, replica, self.stopping).map(Command::Record));
    }

    /// Writes everything back of these lanes that is not in flight, for others to take.
    fn give_back(&mut self, now: Instant, of: impl Fn(&Lane) -> bool) {
        for number in 0..self.lanes.len() {
            let lane = &mut self.lanes[number];
            if !of(lane) {
                continue;
            }
            let waiting = lane.waiting.take();
            let ready = std::mem::take(&mut lane.ready).into_values();
            for mut held in waiting.chain(ready).collect::<Vec<_>>() {
                let due = held.due;
                self.write(now, &mut held, false, Some(due), None);
            }
        }
    }

    fn finish(&mut self, out: &mut Vec<Command>) {
        let idle = self.unsure.is_empty() && self.in_flight == 0 && self.outbox.is_empty();
        if self.stopping && idle && !self.claiming && !matches!(self.registration, Registration::Asked) {
            self.finished = true;
            out.push(Command::Finish { replica: self.replica() });
        }
    }
}

/// What the engine knows.
impl Engine {
    /// This replica, while it is registered.
    #[must_use]
    pub fn replica(&self) -> Option<ReplicaId> {
        match &self.registration {
            Registration::Yes(registered) => Some(registered.replica),
            _ => None,
        }
    }

    /// Whether the database is there.
    #[must_use]
    pub fn has_database(&self) -> bool {
        matches!(self.database, Database::There) && self.is_registered()
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    fn is_registered(&self) -> bool {
        matches!(self.registration, Registration::Yes(_))
    }

    /// A transaction is held while its next poll comes within half the lease, less when memory is short: a successor waits out the
    /// lease, so by then no interval can be broken.
    fn hold_span(&self) -> Duration {
        let held: usize = self.lanes.iter().map(Lane::held).sum();
        if held * 5 > self.setup.max_held * 4 { LOOK_AHEAD } else { self.setup.lease / 2 }
    }

    fn wait(&mut self, held: Box<Held>, due: Instant) {
        self.sequence += 1;
        self.lanes[held.lane].waiting.insert(due, self.sequence, held);
    }

    fn free_key(&mut self, held: &Held) {
        let lane = &mut self.lanes[held.lane];
        if let Some(key) = lane.spec.asks.exclusive_key(ask(held)) {
            lane.busy.remove(key);
        }
    }

    fn read_clock(&mut self, asked: Instant, now: Instant, said: DateTime<Utc>) {
        match &mut self.clock {
            Some(clock) => {
                if crate::domain::since(clock.at(now), said) > LEAP {
                    // Every heartbeat looks old now: nobody is judged before all had the time for another one.
                    self.steady_since = Some(now);
                }
                clock.read(asked, now, said);
            }
            None => self.clock = Some(DatabaseClock::new(asked, now, said)),
        }
    }

    /// Each living replica that serves an account has an equal share of its requests in flight, the first ones one more. A new replica
    /// has none until all others have heard of it and leave it room. One that died cannot, until its lease is over; so that the work
    /// goes on at once where a replica was killed and started again, one request is nobody's but the newcomer's, as long as he is the
    /// only one.
    fn share_out(&mut self) {
        let Registration::Yes(registered) = &self.registration else { return };
        let members = &registered.members;
        let heard = members.complied >= registered.replica.0;
        let only_newcomer = members.settled && members.newest == registered.replica.0;
        for lane in &mut self.lanes {
            let serving: Vec<i64> = members.serving(lane.spec.provider, &lane.spec.account).collect();
            let count = u32::try_from(serving.len().max(1)).unwrap_or(u32::MAX);
            let rank = serving.iter().position(|id| *id == registered.replica.0).unwrap_or(0);
            let most = lane.spec.max_in_flight;
            let newcomers = u32::from(most >= RESERVED_FROM);
            let shared = most - newcomers;
            let share = shared / count + u32::from((rank as u64) < u64::from(shared % count));
            let first = if only_newcomer && count <= shared { newcomers } else { 0 };
            lane.share = if heard { share } else { first };
        }
    }

    /// When the lease of the last heartbeat that succeeded ends; `None` while none is waited for.
    fn last_lease_end(&self) -> Option<Instant> {
        match &self.registration {
            Registration::Yes(registered) if self.beating => Some(registered.heard + self.setup.lease),
            _ => None,
        }
    }

    fn lose_database(&mut self, now: Instant, failed: Failed) {
        let (Failed::Lost(why) | Failed::Refused(why)) = failed;
        if let Database::There = self.database {
            self.database = Database::Lost { retry_at: now + RETRY, wait: RETRY };
            self.news.push(News::DatabaseLost(why));
        }
    }

    /// True when it was lost.
    fn find_database(&mut self, now: Instant) -> bool {
        let lost = !matches!(self.database, Database::There);
        if lost {
            (self.accounts_known, self.next_watch) = (false, now);
            self.database = Database::There;
            self.news.push(News::DatabaseBack);
        }
        lost
    }

    /// Nothing that is held is ours any more. What is in flight is told when it comes back.
    fn lose_lease(&mut self, now: Instant) {
        let replica = self.replica();
        for lane in &mut self.lanes {
            let held = lane.waiting.take().chain(std::mem::take(&mut lane.ready).into_values());
            // Where somebody else has settled one meanwhile, nobody claims it any more: its polls are counted now.
            for held in held.filter(|held| held.unsaved.polls > 0) {
                self.outbox.dropped(now, held.transaction.id);
            }
            lane.share = 0;
        }
        self.outbox.seal(replica);
        self.registration = Registration::No;
        self.epoch += 1;
        self.unsure.clear();
        self.steady_since = Some(now);
        self.lose_database(now, Failed::Lost("the lease ran out: what was held is left to others".into()));
        if let Database::Lost { retry_at, .. } = &mut self.database {
            *retry_at = now;
        }
    }

    /// The process stood still: nothing is sent until a heartbeat has shown that the lease still holds.
    fn doubt_lease(&mut self, now: Instant) {
        self.next_beat = now;
        self.doubted = Some(now);
        self.steady_since = Some(now);
        for lane in &mut self.lanes {
            lane.void_slots();
        }
        if let Registration::Yes(registered) = &mut self.registration {
            registered.beaten = now.checked_sub(self.setup.lease).unwrap_or(registered.beaten);
        }
    }

    /// Somebody else has written the transaction: it is not polled any more, and its polls so far are counted.
    fn let_go(&mut self, now: Instant, id: Uuid, fence: i64) {
        let overruled = |held: &Held| held.transaction.id == id && held.fence < fence;
        for lane in &mut self.lanes {
            let ready = lane.ready.iter().find(|(_, held)| overruled(held)).map(|(key, _)| *key);
            let found = ready.and_then(|key| lane.ready.remove(&key)).or_else(|| lane.waiting.remove_where(overruled));
            if found.is_some() {
                self.drop_held(now, id);
                return;
            }
        }
        self.overruled.insert(id, (fence, now));
    }

    /// Somebody else has written the transaction while it was out of sight.
    fn is_overruled(&self, held: &Held) -> bool {
        self.overruled.get(&held.transaction.id).is_some_and(|(fence, _)| held.fence < *fence)
    }

    /// Its polls so far are counted in its row.
    fn drop_held(&mut self, now: Instant, id: Uuid) {
        self.outbox.dropped(now, id);
    }

    /// Its lease is lost. Whoever claims it reads its polls in the journal; where somebody else has settled it, nobody does.
    fn leave(&mut self, now: Instant, held: &Held) {
        if held.unsaved.polls > 0 {
            self.outbox.bygone(now, Batch { dropped: vec![held.transaction.id], ..Batch::default() });
        }
    }

    /// Waits for its next poll, unless it is not ours any more.
    fn go_on(&mut self, now: Instant, held: Box<Held>, due: Instant) {
        if held.epoch != self.epoch {
            return self.leave(now, &held);
        }
        if self.is_overruled(&held) {
            return self.drop_held(now, held.transaction.id);
        }
        self.wait(held, due);
    }

    fn take_over_accounts(&mut self, now: Instant, states: &[AccountState]) {
        let Some(clock) = self.clock else { return };
        for lane in &mut self.lanes {
            let state = states.iter().find(|state| state.provider == lane.spec.provider && *state.account == *lane.spec.account);
            lane.hold_as_told(now, state.and_then(|state| state.held_until).map(|until| clock.instant(until)));
            match state.and_then(|state| state.probe_at) {
                Some(probe_at) => lane.circuit.set_open(clock.instant(probe_at), true),
                None => lane.circuit.is_unknown(),
            }
        }
    }
}

/// What a provider needs to know of a held transaction, apart from the time and the token.
fn ask(held: &Held) -> Ask<'_> {
    let Transaction { reference, params, amount, .. } = &held.transaction;
    Ask { reference, params, now: DateTime::UNIX_EPOCH, token: None, amount: *amount }
}

/// How many transactions a look may plan for later at once.
const PLAN_BATCH: usize = 1000;

//! How much one replica can poll, in virtual time: of more than that, Dropayment's windows of 3
//! minutes come before Khalti's open-ended plan; of less, all of it is polled.
//!
//! ```text
//! cargo test --test simulation overload -- --nocapture
//! ```

use crate::database::Database;
use crate::{Micros, provider};
use chrono::{DateTime, TimeDelta, Utc};
use paypoll::config::Config;
use paypoll::domain::{State, Transaction};
use paypoll::scheduler::engine::Engine;
use paypoll::scheduler::lane::LaneSpec;
use paypoll::scheduler::protocol::{Command, Event, PollResult, Setup, Watch};
use paypoll::store::{Candidate, ReplicaId, Writer};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

const SECOND: Micros = 1_000_000;
/// Every answer takes 200 ms and 50 requests may be in flight, so 250 polls a second is all there
/// is. Khalti needs 200 of them, and then Dropayment for another 250.
const OVERLOAD: Shape = Shape { in_flight: 50, answer: 200_000, khalti: 200, dropayment: 1_000, stall: 0..0, end: 375 * SECOND };
/// Every answer takes 1 ms and 8 requests may be in flight, so 8,000 polls a second are possible,
/// and 1,000 are needed.
const FAST: Shape = Shape { in_flight: 8, answer: 1_000, khalti: 1_000, dropayment: 0, stall: 0..0, end: 30 * SECOND };
/// As before, but 1,000 new ones arrive in each of the first five seconds, while those before them
/// fall due again.
const NEWCOMERS: Shape = Shape { khalti: 5_000, end: 20 * SECOND, ..FAST };
/// Records, and nothing else, are held up for longer than a lease.
const HELD_UP: Shape = Shape { khalti: 10, stall: 4 * SECOND..25 * SECOND, ..FAST };
/// Every answer takes 3 s.
const SLOW: Shape = Shape { khalti: 4, answer: 3 * SECOND, end: 60 * SECOND, ..FAST };
/// How long a message to or from the database takes.
const LEG: Micros = 1_000;
/// When Dropayment's transactions begin to arrive, 20 in a second.
const FLOOD: Micros = 60 * SECOND;
/// What is compared: before the flood, while all windows are open, and after the last one is over.
const SPANS: [(&str, Micros, Micros); 3] =
    [("before", 10 * SECOND, FLOOD), ("in the flood", 115 * SECOND, 240 * SECOND), ("after", 315 * SECOND, OVERLOAD.end)];
/// "for 2-3 minutes with interval of 3-5 seconds": 36 polls at the slowest. This many are enough
/// for a window.
const MIN_POLLS: u32 = 30;

struct Shape {
    in_flight: u32,
    /// How long an answer takes.
    answer: Micros,
    /// Khalti's transactions, each due every second.
    khalti: u128,
    /// Dropayment's transactions, each due every 3 to 5 seconds for 3 minutes.
    dropayment: u128,
    /// Whatever is to be recorded then is recorded at its end.
    stall: Range<Micros>,
    end: Micros,
}

enum Action {
    Wake,
    Execute(Box<Command>, Instant),
    Deliver(Box<Event>),
    Arrive(u128),
    Settle(Uuid),
    /// Takes the first replica for dead.
    Bury,
}

struct World {
    shape: Shape,
    now: Micros,
    base: Instant,
    queue: BTreeMap<(Micros, u64), Action>,
    sequence: u64,
    wakeup: Option<(Micros, u64)>,
    engine: Engine,
    lanes: Vec<Arc<LaneSpec>>,
    database: Database,
    /// Polls of each transaction.
    polls: HashMap<Uuid, u32>,
    /// When each was last polled.
    asked: HashMap<Uuid, Micros>,
    /// The shortest time between two polls of one transaction.
    least_gap: Micros,
    /// How late Khalti's polls were, in each span.
    waits: [Vec<Duration>; 3],
    in_flight: u32,
}

fn lanes(in_flight: u32) -> Vec<Arc<LaneSpec>> {
    let in_flight = in_flight.to_string();
    let settings = [
        ("DROPAYMENT__ENABLED", "true"),
        ("DROPAYMENT__BASE_URL", "http://127.0.0.1:1"),
        ("DROPAYMENT__MAX_IN_FLIGHT", &in_flight),
        ("DROPAYMENT__RATE_LIMIT", "{ per_second = 10000, burst = 10000 }"),
        ("KHALTI__ENABLED", "true"),
        ("KHALTI__BASE_URL", "http://127.0.0.1:1"),
        ("KHALTI__ACCOUNTS__DEFAULT__TOKEN", "token"),
        ("KHALTI__SCHEDULE", r#"{ first = "1s", phases = [{ every = "1s" }], give_up_after = "72h" }"#),
        ("KHALTI__MAX_IN_FLIGHT", &in_flight),
        ("KHALTI__RATE_LIMIT", "{ per_second = 10000, burst = 10000 }"),
    ];
    let database = ("DATABASE_URL".to_owned(), "postgres://127.0.0.1/none".to_owned());
    let settings = settings.into_iter().map(|(key, value)| (format!("PAYPOLL__PROVIDERS__{key}"), value.to_owned()));
    let config = Config::load(&[], settings.chain([database]), 1.0).expect("the defaults with credentials");
    paypoll::scheduler::lanes(&config)
}

impl World {
    fn new(shape: Shape) -> Self {
        let lanes = lanes(shape.in_flight);
        let base = Instant::now() + Duration::from_secs(86_400);
        let (max_in_flight, max_held) = (shape.in_flight, 50_000);
        let (lease, process) = (Duration::from_secs(15), Uuid::nil());
        let setup = Setup { lanes: lanes.clone(), process, lease, max_in_flight, max_held, seed: 1 };
        let mut world = Self {
            shape,
            now: 0,
            base,
            queue: BTreeMap::new(),
            sequence: 0,
            wakeup: None,
            engine: Engine::new(setup, base),
            lanes,
            database: Database::new(None, DateTime::UNIX_EPOCH),
            polls: HashMap::new(),
            asked: HashMap::new(),
            least_gap: Micros::MAX,
            waits: Default::default(),
            in_flight: 0,
        };
        world.set_clock();
        // Both arrive spread over time, as payments do.
        let Shape { khalti, dropayment, .. } = world.shape;
        for number in 0..khalti {
            world.at(SECOND * 5 * number as Micros / khalti as Micros, Action::Arrive(number));
        }
        for number in 0..dropayment {
            world.at(FLOOD + SECOND * number as Micros / 20, Action::Arrive(khalti + number));
        }
        world.at(0, Action::Wake);
        world
    }

    fn at(&mut self, at: Micros, action: Action) -> (Micros, u64) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), action);
        (at, self.sequence)
    }

    fn set_clock(&mut self) {
        self.database.clock = DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::microseconds(self.now);
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now.unsigned_abs())
    }

    fn run(mut self) -> Self {
        while let Some(((at, _), action)) = self.queue.pop_first().filter(|((at, _), _)| *at <= self.shape.end) {
            self.now = at;
            self.set_clock();
            match action {
                Action::Wake => self.drive(Event::Tick),
                Action::Execute(command, issued_at) => self.execute(*command, issued_at),
                Action::Deliver(event) => {
                    self.in_flight -= u32::from(matches!(*event, Event::Polled(..)));
                    self.drive(*event);
                }
                Action::Arrive(number) => self.insert(number),
                Action::Bury => self.database.deregister(ReplicaId(1), Uuid::nil()),
                Action::Settle(id) => assert!(self.database.settle(id, State::Succeeded)),
            }
            self.database.facts.clear();
        }
        self
    }

    fn insert(&mut self, number: u128) {
        let spec =
            self.lanes.iter().find(|spec| (spec.provider == "khalti") == (number < self.shape.khalti)).expect("both are enabled");
        let (id, reference) = (Uuid::from_u128(number), format!("R{number}"));
        let mut transaction = Transaction::new(id, spec.provider, spec.account.clone(), &reference, self.database.clock);
        // Without these no request can be made of a Dropayment row.
        transaction.params = json!({ "endpointId": "E1", "session": { "token": "T1", "accessToken": "A1" } });
        self.database.insert(transaction);
    }

    fn drive(&mut self, event: Event) {
        let now = self.instant();
        let mut commands = Vec::new();
        self.engine.handle(now, event, &mut commands);
        self.engine.notices.clear();
        for command in commands {
            match command {
                Command::Poll { held, .. } => {
                    self.in_flight += 1;
                    assert!(self.in_flight <= self.shape.in_flight, "{} in flight", self.in_flight);
                    self.note(held.transaction.id, held.transaction.provider, held.due);
                    let latency = Some(Duration::from_micros(self.shape.answer.unsigned_abs()));
                    let outcome = provider::status(State::Pending);
                    let result = PollResult::Sent { at: now, latency, status: Some(200), body: bytes::Bytes::new(), outcome };
                    self.at(self.now + self.shape.answer, Action::Deliver(Box::new(Event::Polled(held, result))));
                }
                command => {
                    let stalled = matches!(command, Command::Record(_)) && self.shape.stall.contains(&self.now);
                    let at = if stalled { self.shape.stall.end } else { self.now + LEG };
                    self.at(at, Action::Execute(Box::new(command), now));
                }
            }
        }
        let wait = self.engine.next_wakeup().map_or(Duration::from_secs(1), |at| at.saturating_duration_since(now));
        let at = self.now + i64::try_from(wait.as_nanos().div_ceil(1_000)).unwrap_or(SECOND).clamp(100, SECOND);
        if self.wakeup.is_none_or(|(planned, _)| planned > at || planned <= self.now) {
            if let Some(key) = self.wakeup.take() {
                self.queue.remove(&key);
            }
            self.wakeup = Some(self.at(at, Action::Wake));
        }
    }

    fn note(&mut self, id: Uuid, provider: &str, due: DateTime<Utc>) {
        *self.polls.entry(id).or_default() += 1;
        if let Some(last) = self.asked.insert(id, self.now) {
            self.least_gap = self.least_gap.min(self.now - last);
        }
        if provider == "khalti" {
            let waited = (self.database.clock - due).to_std().unwrap_or_default();
            if let Some(span) = SPANS.iter().position(|(_, from, until)| (*from..*until).contains(&self.now)) {
                self.waits[span].push(waited);
            }
        }
    }

    fn execute(&mut self, command: Command, issued_at: Instant) {
        let (database, process) = (&mut self.database, Uuid::nil());
        let event = match command {
            Command::Register => {
                let names = self.lanes.iter().map(|spec| (spec.provider.to_owned(), spec.account.to_string()));
                database.make_accounts(names);
                let replica = database.register(process, Duration::from_secs(15), 1);
                Event::Registered(Ok((replica, database.beat(replica, process, 0, 0, None))), issued_at)
            }
            Command::Beat { replica, complied, judge, held } => {
                Event::Beaten(replica, Ok(database.beat(replica, process, complied, held, judge)), issued_at)
            }
            Command::Claim { order, mut placer, mut cycle } => {
                let mut place = |candidate: &mut Candidate| placer.place(candidate);
                let claim = database.claim(&order, &mut place, &mut cycle.unsure).expect("no row is refused");
                cycle.unsure.clear();
                Event::Claimed(Ok(claim), cycle)
            }
            Command::Draw { draws, lanes } => Event::Drawn(Ok(database.draw(&draws)), lanes, issued_at),
            Command::Record(mut recording) => {
                let replica = recording.replica.unwrap_or(ReplicaId(0));
                let writer = Writer { replica, process, number: recording.number, acknowledged: recording.acknowledged };
                let recorded = database.record(writer, &recording.batch, &mut recording.attempt).expect("nothing goes wrong");
                Event::Recorded(recording, Ok(recorded))
            }
            Command::Watch { replica } => {
                let overrides = database.overrides(replica);
                Event::Watched(Ok(Watch { replica, overrides, accounts: database.account_states() }))
            }
            Command::Compare { .. }
            | Command::SlowDown { .. }
            | Command::Circuit { .. }
            | Command::Probe { .. }
            | Command::Poll { .. }
            | Command::Finish { .. } => unreachable!("nobody goes wrong or stops here"),
        };
        self.at(self.now + LEG, Action::Deliver(Box::new(event)));
    }
}

#[test]
fn under_overload_closing_windows_are_served_before_open_plans() {
    let mut world = World::new(OVERLOAD).run();
    let windows = world.polls.iter().filter(|(id, _)| id.as_u128() >= OVERLOAD.khalti);
    let mut polls: Vec<u32> = windows.map(|(_, polls)| *polls).collect();
    polls.sort_unstable();
    let served = polls.iter().filter(|polls| **polls >= MIN_POLLS).count();
    let mean = f64::from(polls.iter().sum::<u32>()) / polls.len() as f64;
    println!("dropayment: {served} of {} windows with {MIN_POLLS} polls or more; least {}, mean {mean:.1}", polls.len(), polls[0]);
    println!("khalti            polls/s   p50 wait   p99 wait");
    let mut medians = Vec::new();
    for (waits, (name, from, until)) in world.waits.iter_mut().zip(SPANS) {
        waits.sort_unstable();
        let at = |share: f64| waits[(waits.len() as f64 * share) as usize].as_secs_f64();
        let rate = waits.len() as f64 / ((until - from) / SECOND) as f64;
        println!("{name:<16} {rate:>8.1} {:>8.3} s {:>8.3} s", at(0.5), at(0.99));
        medians.push(at(0.5));
    }
    assert_eq!(polls.len(), OVERLOAD.dropayment as usize, "every window was opened");
    assert!(served * 100 >= polls.len() * 99, "{served} of {} windows", polls.len());
    assert!(!world.waits[1].is_empty(), "no account starves");
    assert!(medians[1] > 1.0 && medians[0] < 0.01, "open plans wait meanwhile, and only then: {medians:?}");
    assert!(medians[2] < 0.01, "nor afterwards: {medians:?}");
}

/// All are polled, and from the tenth second on none waits.
fn assert_punctual(shape: Shape) {
    let all = shape.khalti as usize;
    let mut world = World::new(shape).run();
    let waits = &mut world.waits[0];
    waits.sort_unstable();
    let p99 = waits[waits.len() * 99 / 100];
    println!("khalti: {} of {all} asked about, {} polls, p99 wait {p99:?}", world.polls.len(), waits.len());
    assert_eq!(world.polls.len(), all, "every transaction was asked about");
    assert!(p99 < Duration::from_millis(50), "and punctually: {p99:?}");
}

#[test]
fn a_fast_provider_is_asked_about_all_that_is_due_however_few_requests_may_be_in_flight() {
    assert_punctual(FAST);
}

#[test]
fn new_transactions_are_claimed_as_fast_as_they_fall_due_beside_what_falls_due_again() {
    assert_punctual(NEWCOMERS);
}

#[test]
fn a_verdict_is_not_forgotten_while_the_last_poll_waits_to_be_recorded() {
    let (settled, other) = (Uuid::from_u128(3), Uuid::from_u128(4));
    let mut world = World::new(HELD_UP);
    world.at(6 * SECOND, Action::Settle(settled));
    let world = world.run();
    assert!(world.asked[&settled] < 6 * SECOND, "asked at {}", world.asked[&settled]);
    assert!(world.asked[&other] > HELD_UP.stall.end, "all others go on");
}

#[test]
fn a_replica_that_was_taken_for_dead_holds_nothing_twice_when_it_is_back() {
    let mut world = World::new(SLOW);
    // All four are in flight, and are claimed anew before they are answered.
    world.at(10 * SECOND, Action::Bury);
    let world = world.run();
    assert!(world.asked.values().all(|at| *at > 50 * SECOND), "all go on");
    assert!(world.least_gap >= SECOND, "two polls {} us apart", world.least_gap);
}

//! A simulated year: transactions of all five providers under their default rules, from the first
//! poll to the end, through plan and decision alone. Providers answer at random and have outages;
//! the daemon is down at times, and dies with polls under way.
//!
//! The rules are written down here a second time, from the documents and `config/default.toml`, and
//! every poll is held to them.
//!
//! ```text
//! PAYPOLL_YEAR=1000000 cargo test --release --test simulation year -- --nocapture
//! ```

use crate::provider::status;
use crate::setting;
use chrono::{DateTime, TimeDelta, Utc};
use paypoll::config::Config;
use paypoll::domain::{Decision, Due, Floors, NoAnswer, Outcome, Plan, Progress, State, Transaction, Until, Whose};
use paypoll::scheduler::admission::Placer;
use paypoll::scheduler::lane::LaneSpec;
use paypoll::store::{Candidate, Placement};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;
/// How long a dead daemon's transactions wait for their next owner.
const LEASE: i64 = 15 * SECOND;

/// What a provider's rules are, by the documents and `config/default.toml`. All in microseconds.
struct Known {
    name: &'static str,
    /// The shortest wait from initiation to the first poll.
    first: i64,
    /// Until so long after the first poll, the shortest gap.
    gaps: &'static [(i64, i64)],
    /// The longest window from the first poll.
    window: Option<i64>,
    /// The age at which polling gives up.
    age: Option<i64>,
}

const KNOWN: [Known; 5] = [
    Known { name: "dropayment", first: 3 * SECOND, gaps: &[(i64::MAX, 3 * SECOND)], window: Some(3 * MINUTE), age: None },
    Known { name: "dusupay", first: 2 * MINUTE, gaps: &[(i64::MAX, 5 * MINUTE)], window: None, age: Some(72 * HOUR) },
    Known {
        name: "ayoconnect",
        first: 10 * SECOND,
        gaps: &[(MINUTE, 10 * SECOND), (11 * MINUTE, 30 * SECOND), (i64::MAX, 5 * MINUTE)],
        window: None,
        age: Some(72 * HOUR),
    },
    Known { name: "khalti", first: 5 * MINUTE, gaps: &[(i64::MAX, 5 * MINUTE)], window: None, age: Some(72 * HOUR) },
    Known {
        name: "dapi",
        first: 5 * SECOND,
        gaps: &[(2 * MINUTE, 10 * SECOND), (32 * MINUTE, MINUTE), (i64::MAX, 10 * MINUTE)],
        window: None,
        age: Some(72 * HOUR),
    },
];

/// The five accounts as a daemon with default settings has them.
fn lanes() -> Vec<Arc<LaneSpec>> {
    let set = |(key, value): (&str, &str)| (format!("PAYPOLL__PROVIDERS__{key}"), value.to_owned());
    let mut settings: Vec<(String, String)> = vec![("DATABASE_URL".into(), "postgres://127.0.0.1/none".into())];
    for name in KNOWN.map(|known| known.name.to_uppercase()) {
        settings.push(set((&format!("{name}__ENABLED"), "true")));
        settings.push(set((&format!("{name}__BASE_URL"), "http://127.0.0.1:1")));
    }
    let accounts = [
        ("DUSUPAY__ACCOUNTS__DEFAULT__PUBLIC_KEY", "key"),
        ("AYOCONNECT__ACCOUNTS__DEFAULT__MERCHANT_ID", "SIMMER"),
        ("AYOCONNECT__ACCOUNTS__DEFAULT__CLIENT_ID", "simclient00000000000000000000001"),
        ("AYOCONNECT__ACCOUNTS__DEFAULT__CLIENT_SECRET", "secret"),
        ("AYOCONNECT__ACCOUNTS__DEFAULT__CHANNEL_ID", "12345"),
        ("AYOCONNECT__ACCOUNTS__DEFAULT__ACCESS_TOKEN", "token"),
        ("KHALTI__ACCOUNTS__DEFAULT__TOKEN", "token"),
        ("DAPI__ACCOUNTS__DEFAULT__APP_SECRET", "secret"),
    ];
    settings.extend(accounts.into_iter().map(set));
    let config = Config::load(&[], settings.into_iter(), 1.0).expect("the defaults with credentials");
    let lanes = paypoll::scheduler::lanes(&config);
    assert_eq!(lanes.len(), KNOWN.len());
    lanes
}

/// What the year was like: when the daemon was down, when a provider was, both as (from, until).
struct Weather {
    daemon: Vec<(i64, i64)>,
    providers: Vec<Vec<(i64, i64)>>,
}

impl Weather {
    fn new(random: &mut SmallRng) -> Self {
        let mut spells = |every: i64, longest: i64| {
            let mut spells = Vec::new();
            let mut at = 0;
            while at < YEAR + 10 * DAY {
                at += random.random_range(1..2 * every);
                let until = at + random.random_range(SECOND..longest);
                spells.push((at, until));
                at = until;
            }
            spells
        };
        Self { daemon: spells(DAY, 20 * MINUTE), providers: KNOWN.iter().map(|_| spells(3 * DAY, 6 * HOUR)).collect() }
    }
}

/// The spell at `at`, or the next one.
fn spell(spells: &[(i64, i64)], at: i64) -> (i64, i64) {
    spells.get(spells.partition_point(|(_, until)| *until <= at)).copied().unwrap_or((i64::MAX, i64::MAX))
}

/// One transaction's life, and what the provider saw of it.
struct Life<'a> {
    known: &'static Known,
    spec: &'a Arc<LaneSpec>,
    weather: &'a Weather,
    provider: usize,
    transaction: Transaction,
    /// Every request of this window: when, and whether it was recorded.
    sent: Vec<(i64, bool)>,
    /// The last request before this window.
    before: Option<i64>,
    /// Where this window's age counts from.
    start: i64,
    polls: u64,
}

fn stamp(at: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::microseconds(at)
}

fn micros(at: DateTime<Utc>) -> i64 {
    (at - stamp(0)).num_microseconds().unwrap_or(i64::MAX)
}

impl Life<'_> {
    /// Lives from its arrival to the end of its polling.
    fn live(&mut self, random: &mut SmallRng, arrival: i64) -> Result<(), String> {
        let mut due = self.place(random, arrival, stamp(arrival), true, false);
        let mut reopened = false;
        loop {
            // Due, and some time later when there is much to do; never while the daemon is down.
            let latest = if random.random_bool(0.02) { 5 * MINUTE } else { SECOND };
            let mut now = micros(due) + random.random_range(0..latest);
            let (down, up) = spell(&self.weather.daemon, now);
            if down <= now {
                now = up + random.random_range(0..2 * MINUTE);
            }
            let rules = &self.spec.rules;
            let decision = match rules.due(&self.transaction) {
                Due::Park(reason) => {
                    self.check_end(now, reason)?;
                    self.transaction.state = State::Unresolved;
                    None
                }
                Due::Poll => {
                    self.check(now)?;
                    self.polls += 1;
                    let (down, up) = spell(&self.weather.daemon, now);
                    // A daemon that goes down may have a poll under way, of which no record is
                    // left.
                    if random.random_bool(0.002) || down < now + 2 * SECOND {
                        self.sent.push((now, false));
                        let back = if down < now + 2 * SECOND { up } else { now } + LEASE;
                        due = self.place(random, back, due, false, true);
                        continue;
                    }
                    self.sent.push((now, true));
                    let outcome = self.answer(random, now);
                    let decision = rules.decide(&self.transaction, &outcome, stamp(now), random.random());
                    self.write(&decision, stamp(now));
                    let pause = outcome.retry_after().unwrap_or_default();
                    decision.next.map(|next| next.max(stamp(now) + pause))
                }
            };
            match decision {
                Some(next) => due = next,
                None if self.transaction.state == State::Unresolved && !reopened && random.random_bool(0.2) => {
                    reopened = true;
                    let at = now + random.random_range(SECOND..DAY);
                    self.reopen(at);
                    due = self.place(random, at, stamp(at), false, false);
                }
                None => return Ok(()),
            }
        }
    }

    /// When the replica that finds the row checks it.
    fn place(&self, random: &mut SmallRng, now: i64, due: DateTime<Utc>, fresh: bool, orphan: bool) -> DateTime<Utc> {
        let mut placer = Placer::new(vec![(self.spec.clone(), 1)], 1, stamp(now), DateTime::<Utc>::MAX_UTC, random.random());
        let mut candidate = Candidate {
            transaction: self.transaction.clone(),
            lane: 0,
            due,
            fresh,
            orphan,
            not_before: None,
            unplanned: Vec::new(),
            flaw: None,
            backlog: false,
            fence: 0,
        };
        match placer.place(&mut candidate) {
            Placement::Hold(due) | Placement::Later(due) => due.max(stamp(now)),
            Placement::Leave => stamp(now),
        }
    }

    fn reopen(&mut self, at: i64) {
        let transaction = &mut self.transaction;
        transaction.state = State::Pending;
        transaction.reopened_at = Some(stamp(at));
        (transaction.failures, transaction.not_found, transaction.progress) = (0, 0, Progress::default());
        self.before = self.sent.last().map(|(at, _)| *at).or(self.before);
        self.sent.clear();
        self.start = at;
    }

    fn write(&mut self, decision: &Decision, sent: DateTime<Utc>) {
        let transaction = &mut self.transaction;
        if let Some(change) = &decision.change {
            if transaction.state == State::ActionRequired || change.to == State::ActionRequired {
                transaction.action_at = Some(sent);
            }
            transaction.state = change.to;
        }
        if let Some(word) = &decision.provider_state {
            transaction.provider_state = Some(word.as_str().into());
        }
        transaction.attempts += 1;
        (transaction.failures, transaction.not_found) = (decision.failures, decision.not_found);
        transaction.last_polled_at = Some(sent);
        transaction.progress = decision.progress;
    }

    fn answer(&self, random: &mut SmallRng, now: i64) -> Outcome {
        let wait = random.random_bool(0.5).then(|| Duration::from_secs(random.random_range(0..600)));
        if spell(&self.weather.providers[self.provider], now).0 <= now {
            return if random.random_bool(0.7) {
                Outcome::NoAnswer(NoAnswer::Timeout)
            } else {
                Outcome::ServerError { status: 503, wait }
            };
        }
        match random.random_range(0..100) {
            0..70 => status(State::Pending),
            70..76 => status(State::ActionRequired),
            76..86 => status([State::Succeeded, State::Failed, State::Cancelled, State::Refunded][random.random_range(0..4)]),
            86..90 => Outcome::NotFound { message: "unknown".into() },
            90..92 => Outcome::UnknownStatus { status: "LIMBO".into() },
            92..94 => Outcome::Unusable { why: "cut".into() },
            94..95 => Outcome::RateLimited { wait },
            95..96 => Outcome::TooEarly,
            96..97 => Outcome::CredentialsRejected { whose: Whose::Row, park: false, message: "who".into() },
            _ => Outcome::NoAnswer(NoAnswer::Timeout),
        }
    }

    /// When the window closes, as far as its rules say.
    fn end(&self) -> Option<i64> {
        let opened = self.sent.iter().find(|(_, recorded)| *recorded).map(|(at, _)| *at);
        let window = self.known.window.and_then(|window| Some(opened? + window));
        window.or(self.known.age.map(|age| self.start + age))
    }

    /// A poll is about to be sent.
    fn check(&self, now: i64) -> Result<(), String> {
        let named = || format!("{} {}", self.known.name, self.transaction.reference);
        let initiated = micros(self.transaction.initiated_at);
        if now - initiated < self.known.first {
            return Err(format!("first: {} was asked about {} us after its initiation", named(), now - initiated));
        }
        let opened = self.sent.iter().find(|(_, recorded)| *recorded).map_or(now, |(at, _)| *at);
        let recorded = self.sent.iter().rev().find(|(_, recorded)| *recorded).map_or(now, |(at, _)| *at);
        // The replica that took the transaction over knows the recorded polls: the phase that they
        // have reached sets the gap.
        let gap = self.known.gaps.iter().find(|(until, _)| recorded - opened < *until).map_or(0, |(_, gap)| *gap);
        if let Some(last) = self.sent.last().map(|(at, _)| *at).or(self.before)
            && now - last < gap
        {
            return Err(format!("floor: {} was asked about {} us after the last poll, not {gap}", named(), now - last));
        }
        if let Some(end) = self.end()
            && now > end
        {
            let polls: Vec<i64> = self.sent.iter().filter(|(_, recorded)| *recorded).map(|(at, _)| *at).collect();
            if polls.last().is_some_and(|last| *last + gap > end) {
                return Err(format!("window: {} was asked about {} us after its window", named(), now - end));
            }
        }
        Ok(())
    }

    /// Polling is given up.
    fn check_end(&self, now: i64, reason: &str) -> Result<(), String> {
        match self.end() {
            Some(end) if now < end => Err(format!("window: {} was parked early, {reason}", self.transaction.reference)),
            None => Err(format!("window: {} was parked without a window, {reason}", self.transaction.reference)),
            _ if self.sent.is_empty() => Err(format!("window: {} was never asked about", self.transaction.reference)),
            Some(_) => Ok(()),
        }
    }
}

fn transaction(spec: &LaneSpec, number: u64, initiated: i64) -> Transaction {
    Transaction::new(Uuid::from_u128(number.into()), spec.provider, spec.account.clone(), &format!("R{number}"), stamp(initiated))
}

/// One transaction of the year; returns how often it was polled.
fn one(number: u64, lanes: &[Arc<LaneSpec>], weather: &Weather) -> Result<u64, String> {
    let mut random = SmallRng::seed_from_u64(number);
    let provider = (number % KNOWN.len() as u64) as usize;
    let known = &KNOWN[provider];
    let spec = lanes.iter().find(|lane| lane.provider == known.name).expect("all five are enabled");
    let initiated = random.random_range(0..YEAR);
    // Most are inserted at once, some late, a few when their time is over.
    let arrival = initiated
        + match random.random_range(0..20) {
            0 => random.random_range(0..5 * DAY),
            1..3 => random.random_range(0..HOUR),
            _ => 0,
        };
    let mut life = Life {
        known,
        spec,
        weather,
        provider,
        transaction: transaction(spec, number, initiated),
        sent: Vec::new(),
        before: None,
        start: initiated,
        polls: 0,
    };
    life.live(&mut random, arrival)?;
    Ok(life.polls)
}

/// The accounts, with a mistake in every plan.
fn wrong_lanes(mistake: impl Fn(&mut Plan)) -> Vec<Arc<LaneSpec>> {
    let wrong = |lane: Arc<LaneSpec>| {
        let mut lane = Arc::into_inner(lane).expect("nobody else has it");
        mistake(&mut lane.rules.plan);
        lane.rules.floors = Floors::default();
        Arc::new(lane)
    };
    lanes().into_iter().map(wrong).collect()
}

#[test]
fn a_year_under_wrong_rules_is_noticed() {
    let weather = Weather::new(&mut SmallRng::seed_from_u64(1));
    let breach = |lanes: &[Arc<LaneSpec>]| (0..2_000).find_map(|number| one(number, lanes, &weather).err()).unwrap_or_default();
    let hasty = wrong_lanes(|plan| plan.phases.iter_mut().for_each(|phase| phase.every.min = phase.every.min.mul_f64(0.9)));
    assert!(breach(&hasty).starts_with("floor: "), "{}", breach(&hasty));
    let early = wrong_lanes(|plan| (plan.first.min, plan.margin) = (plan.first.min.mul_f64(0.5), Duration::ZERO));
    assert!(breach(&early).starts_with("first: "), "{}", breach(&early));
    let endless = wrong_lanes(|plan| {
        plan.give_up_after = plan.give_up_after.map(|age| age * 2);
        plan.phases.iter_mut().for_each(|phase| phase.until = Until::Open);
    });
    assert!(breach(&endless).starts_with("window: "), "{}", breach(&endless));
    let short = wrong_lanes(|plan| plan.give_up_after = Some(Duration::from_secs(60)));
    assert!(breach(&short).starts_with("window: "), "{}", breach(&short));
}

#[test]
fn a_simulated_year_breaks_no_rule() {
    let transactions = setting("PAYPOLL_YEAR").unwrap_or(100_000);
    let lanes = lanes();
    let weather = Weather::new(&mut SmallRng::seed_from_u64(transactions));
    let started = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let work =
        |core: u64| -> Result<u64, String> { (core..transactions).step_by(cores as usize).map(|n| one(n, &lanes, &weather)).sum() };
    let polls: Result<Vec<u64>, String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|core| scope.spawn(move || work(core))).collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
    });
    let polls: u64 = polls.expect("no breach").iter().sum();
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "a year, {transactions} transactions, {polls} polls, 0 breaches in {seconds:.1} s: {:.4} years a second, {:.0} polls a second",
        1.0 / seconds,
        polls as f64 / seconds
    );
    assert!(polls > transactions, "every transaction is polled at least once");
}

//! One run: a queue of things to happen in virtual time, and what happens.

use crate::Micros;
use crate::accounts::{self, ACCOUNTS, LEASE, TIMEOUT};
use crate::bugs::{Bug, CLOCK, FAILOVER, SLOWNESS};
use crate::checker::{Checker, Request, name};
use crate::database::{Database, Refusal};
use crate::provider::{self, Answer, Provider};
use chrono::{DateTime, TimeDelta, Utc};
use paypoll::domain::{Health, NoAnswer, Outcome, State, Transaction};
use paypoll::scheduler::engine::Engine;
use paypoll::scheduler::held::Held;
use paypoll::scheduler::lane::CircuitChange;
use paypoll::scheduler::notice::Notice;
use paypoll::scheduler::protocol::{AccountNotice, Command, Event, PollResult, Setup, StoreFailure, Watch};
use paypoll::store::{Candidate, Recorded, ReplicaId, Writer};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A broken invariant.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) seed: u64,
    pub(crate) at: Micros,
    pub(crate) what: String,
}

/// A process, and what is around it.
struct Host {
    engine: Option<Engine>,
    /// Rises with every start: what was meant for an earlier life is lost.
    life: u64,
    /// The names of its lives.
    processes: Vec<Uuid>,
    /// The process stands still until then.
    paused_until: Micros,
    /// How long its machine slept, in all: its monotonic clock stood still meanwhile.
    slept: Micros,
    /// What came while it stood still.
    inbox: Vec<Event>,
    wakeup: Option<(Micros, u64)>,
    /// Its wall clock, less the true time.
    wall: Micros,
    /// The server that its connections lead to.
    server: u64,
    /// Statements of this host do not get through until then.
    cut_off_until: Micros,
    /// It fetches an access token until then.
    fetching_until: Micros,
    /// Requests that are decided and not sent.
    sending: u32,
    stopping: bool,
}

/// Something that is going to happen.
enum Action {
    /// The engine wanted to be woken.
    Wake { host: usize, life: u64 },
    /// A statement reaches the database.
    Execute { host: usize, life: u64, command: Box<Command>, issued_at: Instant, server: u64 },
    /// Something reaches a process.
    Deliver { host: usize, life: u64, event: Box<Event> },
    /// A request is about to be sent.
    Send { host: usize, life: u64, held: Box<Held>, before: Instant, replica: i64 },
    /// A process starts.
    Start { host: usize },
    /// A process goes on.
    Resume { host: usize, life: u64, woken: bool },
    /// A process is stopped.
    Stop { host: usize, life: u64 },
    /// It is visible again which batches were committed.
    Reveal,
    /// A row is not locked any more.
    Unlock(Uuid),
    /// No trigger refuses a row any more.
    Accept(Uuid),
    /// A standby receives what there is.
    Replicate,
    /// A pause that a process notified the others of is over.
    PauseOver { host: usize, life: u64, account: usize, until: Micros },
    /// The next mishap.
    Mishap,
}

/// One run.
pub(crate) struct World {
    seed: u64,
    bug: Option<Bug>,
    random: SmallRng,
    now: Micros,
    base: Instant,
    queue: BTreeMap<(Micros, u64), Action>,
    sequence: u64,
    hosts: Vec<Host>,
    database: Database,
    /// The database's clock, less the true time.
    offset: Micros,
    /// The most that this ever was.
    farthest: Micros,
    provider: Provider,
    checker: Checker,
    notice: bool,
    calm: bool,
    down_until: Micros,
    slow_until: Micros,
    lossy_until: Micros,
    transactions: u128,
    last_outcome: Option<Outcome>,
    /// Mishaps that come again and again.
    favourites: &'static [u8],
    /// The last batch of each process that it knows to be committed.
    acknowledged: HashMap<Uuid, i64>,
    /// Acknowledged commits of these lives are lost: each must say so.
    to_report: HashSet<(usize, u64)>,
    /// Pauses that a process wants the others to keep, and that are not written yet: its life, the
    /// account, until when.
    unwritten_pauses: HashSet<(usize, u64, usize, Micros)>,
}

const SECOND: Micros = 1_000_000;
/// How many processes.
const HOSTS: usize = 3;
/// How long things go wrong.
const STORM: Micros = 30 * SECOND;
/// How long everything must then be fine. After a failover that took a registration with it, a lease, the time to tell that its replica is
/// dead and the longest floor add up.
const QUIET: Micros = 34 * SECOND;
/// Transactions at the start.
const TRANSACTIONS: usize = 18;
/// At least this much of a pause must be left, without any trouble, for the others to be notified
/// of it.
const TOLD_WITHIN: Micros = 2_500_000;
/// More steps than this in one run means that a process spins.
const MOST_STEPS: u64 = 400_000;

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>) -> Self {
        Self::amid(seed, bug, bug.map(Bug::mishaps))
    }

    /// A run with these mishaps again and again; `None`: the seed says which.
    pub(crate) fn amid(seed: u64, bug: Option<Bug>, mishaps: Option<&'static [u8]>) -> Self {
        let mut world = Self {
            seed,
            bug,
            random: SmallRng::seed_from_u64(seed),
            now: 0,
            // Far enough from the machine's start for every subtraction.
            base: Instant::now() + Duration::from_secs(86_400),
            queue: BTreeMap::new(),
            sequence: 0,
            hosts: Vec::new(),
            database: Database::new(bug, DateTime::UNIX_EPOCH),
            offset: 0,
            farthest: 0,
            provider: Provider::default(),
            checker: Checker::new(),
            notice: false,
            calm: false,
            down_until: 0,
            slow_until: 0,
            lossy_until: 0,
            transactions: 0,
            last_outcome: None,
            favourites: &[],
            acknowledged: HashMap::new(),
            to_report: HashSet::new(),
            unwritten_pauses: HashSet::new(),
        };
        world.favourites = match world.random.random_range(0..20) {
            0..3 => &[FAILOVER],
            3 => &[FAILOVER, SLOWNESS],
            4..6 => &[CLOCK],
            _ => &[],
        };
        world.favourites = mishaps.unwrap_or(world.favourites);
        world.set_clock();
        for host in 0..HOSTS {
            let wall = world.random.random_range(-300 * SECOND..300 * SECOND);
            world.hosts.push(Host {
                engine: None,
                life: 0,
                processes: vec![Uuid::nil()],
                paused_until: 0,
                slept: 0,
                inbox: Vec::new(),
                wakeup: None,
                wall,
                server: 0,
                cut_off_until: 0,
                fetching_until: 0,
                sending: 0,
                stopping: false,
            });
            let at = world.random.random_range(0..3 * SECOND);
            world.at(at, Action::Start { host });
        }
        for _ in 0..TRANSACTIONS {
            world.insert();
        }
        world.at(SECOND, Action::Mishap);
        world.at(SECOND / 2, Action::Replicate);
        world
    }

    /// Prints every step.
    pub(crate) fn tell(&mut self) {
        self.notice = true;
    }

    /// Runs to the end or to the first broken invariant.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let seed = self.seed;
        self.play().map_err(|what| Failure { seed, at: self.now, what })
    }

    fn play(&mut self) -> Result<(), String> {
        let mut steps = 0;
        let mut end = STORM;
        loop {
            while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
                let ((at, _), action) = entry.remove_entry();
                self.now = at;
                self.set_clock();
                self.act(action)?;
                self.checker.step(self.now, &mut self.database, &self.provider)?;
                steps += 1;
                if steps > MOST_STEPS {
                    return Err("spinning: too many steps".into());
                }
            }
            self.now = end;
            if self.calm {
                self.describe();
                if let Some((host, _)) = self.to_report.iter().find(|(host, life)| self.lives(*host, *life)) {
                    return Err(format!("lost commits: host {host} never said that any are"));
                }
                return self.checker.finish(self.now, &self.database);
            }
            self.calm_down();
            end = STORM + QUIET;
        }
    }

    /// Where every process stands.
    fn describe(&self) {
        for (number, host) in self.hosts.iter().enumerate() {
            let Some(engine) = &host.engine else { continue };
            for (lane, state) in engine.lanes().iter().enumerate() {
                self.say(|| {
                    format!(
                        "host {number} account {lane}: waiting {}, ready {}, in flight {} of {}, drawing {}, paused {}, {:?}",
                        state.waiting().len(),
                        state.ready(),
                        state.in_flight(),
                        state.share(),
                        state.is_drawing(),
                        state.is_paused(self.instant(number)),
                        state.circuit()
                    )
                });
            }
        }
        self.say(|| format!("{:?}\n{:?}", self.database.replicas, self.database.accounts));
    }

    /// All faults are removed.
    fn calm_down(&mut self) {
        self.calm = true;
        self.provider.calm = true;
        self.provider.down_until.clear();
        (self.down_until, self.slow_until, self.lossy_until) = (0, 0, 0);
        self.database.reveal_commits();
        self.database.locked.clear();
        // A trigger that refuses a row may well do so for ever: all others go on.
        self.database.refusing.clear();
        if self.random.random_bool(0.1) {
            self.database.refusing.insert(Uuid::from_u128(self.random.random_range(1..=self.transactions)));
        }
        // A clock that was set back makes everything wait that was planned before. That wait is too
        // long for a run.
        if self.offset < self.farthest {
            self.step_clock(self.farthest - self.offset);
        }
        for host in 0..HOSTS {
            self.hosts[host].cut_off_until = 0;
        }
        self.trouble_until(self.now);
        self.say(|| "--- from here on nothing goes wrong".into());
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.notice {
            println!("{:>11.6} {}", self.now as f64 / 1e6, what());
        }
    }

    /// Until then not every replica may have heard everything.
    fn trouble_until(&mut self, at: Micros) {
        self.checker.fine_since = self.checker.fine_since.max(at);
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn at(&mut self, at: Micros, action: Action) -> (Micros, u64) {
        self.sequence += 1;
        let key = (at.max(self.now), self.sequence);
        self.queue.insert(key, action);
        key
    }

    fn true_time(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::microseconds(self.now)
    }

    fn set_clock(&mut self) {
        self.database.clock = self.true_time() + TimeDelta::microseconds(self.offset);
    }

    fn step_clock(&mut self, by: Micros) {
        self.offset += by;
        self.farthest = self.farthest.max(self.offset);
        self.set_clock();
        self.checker.clock_was_set(self.now, by);
    }

    /// What the host's monotonic clock shows.
    fn instant(&self, host: usize) -> Instant {
        self.base + Duration::from_micros((self.now - self.hosts[host].slept).unsigned_abs())
    }

    fn insert(&mut self) {
        self.transactions += 1;
        let id = Uuid::from_u128(self.transactions);
        let account = self.random.random_range(0..ACCOUNTS);
        // Most are new, some arrive late, a few when their time is almost or wholly over.
        let age = match self.random.random_range(0..10) {
            0..6 => 0,
            6..9 => self.random.random_range(0..10 * SECOND),
            _ => self.random.random_range(0..80 * SECOND),
        };
        let initiated_at = self.database.clock - TimeDelta::microseconds(age);
        let (provider, name) = accounts::NAMES[account];
        self.database.insert(Transaction::new(id, provider, name.into(), &format!("R{}", id.as_u128()), initiated_at));
        self.checker.born(id, account, self.now - age, initiated_at);
    }

    fn act(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Wake { host, life } => {
                if self.lives(host, life) {
                    self.hosts[host].wakeup = None;
                    self.drive(host, Event::Tick)?;
                }
            }
            Action::Execute { host, life, command, issued_at, server } => self.execute(host, life, *command, issued_at, server)?,
            Action::Deliver { host, life, event } => {
                if let Event::Polled(held, PollResult::Sent { .. }) = &*event
                    && let Some(key) = accounts::key_name(&held.transaction.account, &held.transaction.reference)
                    && self.lives(host, life)
                    && self.now >= self.down_until
                {
                    self.database.give_key_back(&key, self.process(host, life));
                }
                if self.lives(host, life) {
                    if let Event::Recorded(recording, Ok(_)) = &*event {
                        self.acknowledged.insert(self.process(host, life), recording.number);
                    }
                    self.drive(host, *event)?;
                }
            }
            Action::Send { host, life, held, before, replica } => self.send(host, life, held, before, replica)?,
            Action::Start { host } => self.start(host)?,
            Action::Resume { host, life, woken } => {
                if self.lives(host, life) {
                    self.resume(host, woken)?;
                }
            }
            Action::Stop { host, life } => {
                if self.lives(host, life) && !self.hosts[host].stopping {
                    self.stop(host)?;
                }
            }
            Action::Reveal => self.database.reveal_commits(),
            Action::Unlock(id) => _ = self.database.locked.remove(&id),
            // What is refused when everything else is fine stays refused.
            Action::Accept(id) if !self.calm => _ = self.database.refusing.remove(&id),
            Action::Accept(_) => {}
            Action::PauseOver { host, life, account, until } => {
                let unwritten = self.unwritten_pauses.remove(&(host, life, account, until));
                let fine = self.checker.fine_since.max(self.lossy_until).max(self.slow_until) <= until - TOLD_WITHIN;
                if unwritten && fine && self.lives(host, life) && !self.hosts[host].stopping {
                    return Err(format!("pause: host {host} never told the others of one of account {account}"));
                }
            }
            Action::Replicate => {
                if !self.calm {
                    self.database.remember(self.now);
                    let pause = self.random.random_range(50_000..SECOND);
                    self.at(self.now + pause, Action::Replicate);
                }
            }
            Action::Mishap => {
                if !self.calm {
                    self.mishap()?;
                    let pause = self.random.random_range(100_000..2 * SECOND);
                    self.at(self.now + pause, Action::Mishap);
                }
            }
        }
        Ok(())
    }

    fn process(&self, host: usize, life: u64) -> Uuid {
        self.hosts[host].processes[usize::try_from(life).expect("few")]
    }

    fn lives(&self, host: usize, life: u64) -> bool {
        self.hosts[host].life == life && self.hosts[host].engine.is_some()
    }
}

/// Processes.
impl World {
    fn start(&mut self, host: usize) -> Result<(), String> {
        let now = self.instant(host);
        let process = Uuid::from_u128(self.random.random());
        let setup = Setup {
            lanes: accounts::lanes(self.bug),
            process,
            lease: LEASE,
            max_in_flight: 8,
            max_held: if self.random.random_bool(0.2) { 6 } else { 100 },
            seed: self.random.random(),
        };
        let state = &mut self.hosts[host];
        state.engine = Some(Engine::new(setup, now));
        state.processes.push(process);
        state.life += 1;
        (state.inbox, state.stopping, state.sending, state.paused_until) = (Vec::new(), false, 0, 0);
        self.say(|| format!("host {host} starts"));
        self.drive(host, Event::Tick)
    }

    /// The process is gone, without a word.
    fn crash(&mut self, host: usize) {
        let state = &mut self.hosts[host];
        state.engine = None;
        self.checker.dead.insert((host, state.life));
        if let Some(key) = state.wakeup.take() {
            self.queue.remove(&key);
        }
    }

    fn stop(&mut self, host: usize) -> Result<(), String> {
        self.say(|| format!("host {host} is told to stop"));
        self.hosts[host].stopping = true;
        self.drive(host, Event::Stop)
    }

    /// The process is stopped for a while, wherever it is.
    fn stand_still(&mut self, host: usize) {
        let long = self.random.random_range(SECOND / 5..12 * SECOND);
        self.say(|| format!("host {host} stands still for {long} us"));
        let life = self.hosts[host].life;
        self.hosts[host].paused_until = self.now + long;
        self.trouble_until(self.now + long + SECOND);
        self.at(self.now + long, Action::Resume { host, life, woken: false });
    }

    fn resume(&mut self, host: usize, woken: bool) -> Result<(), String> {
        self.say(|| format!("host {host} goes on"));
        if woken && !self.has(Bug::SleepUnnoticed) {
            self.drive(host, Event::Woken)?;
        }
        for event in std::mem::take(&mut self.hosts[host].inbox) {
            self.drive(host, event)?;
        }
        self.drive(host, Event::Tick)
    }

    /// Hands the engine an event and carries out what it says.
    fn drive(&mut self, host: usize, event: Event) -> Result<(), String> {
        let now = self.instant(host);
        let state = &mut self.hosts[host];
        if state.paused_until > self.now {
            if !matches!(event, Event::Tick) {
                state.inbox.push(event);
            }
            return Ok(());
        }
        let Some(engine) = &mut state.engine else { return Ok(()) };
        let mut commands = Vec::new();
        engine.handle(now, event, &mut commands);
        let notice = std::mem::take(&mut engine.notices);
        if notice.iter().any(|notice| matches!(notice, Notice::CommitsLost(_))) {
            self.to_report.remove(&(host, state.life));
            self.acknowledged.remove(&state.processes[usize::try_from(state.life).expect("few")]);
        }
        if self.notice {
            for notice in notice {
                self.say(|| format!("host {host} says {notice:?}"));
            }
        }
        for command in commands {
            self.carry_out(host, command)?;
        }
        let state = &mut self.hosts[host];
        let Some(engine) = &state.engine else { return Ok(()) };
        let wakeup = engine.next_wakeup().unwrap_or(now + Duration::from_secs(1));
        let wait = i64::try_from(wakeup.saturating_duration_since(now).as_nanos().div_ceil(1_000)).unwrap_or(i64::MAX / 2);
        let at = self.now + wait.clamp(100, 10 * SECOND);
        if state.wakeup.is_some_and(|(planned, _)| planned <= at && planned > self.now) {
            return Ok(());
        }
        let life = state.life;
        if let Some(key) = state.wakeup.take() {
            self.queue.remove(&key);
        }
        let key = self.at(at, Action::Wake { host, life });
        self.hosts[host].wakeup = Some(key);
        Ok(())
    }

    fn carry_out(&mut self, host: usize, command: Command) -> Result<(), String> {
        let life = self.hosts[host].life;
        let issued_at = self.instant(host);
        match command {
            Command::Poll { held, before } => {
                let replica = self.hosts[host].engine.as_ref().and_then(Engine::replica).map_or(0, |replica| replica.0);
                // Usually at once; sometimes a token is fetched first, and all wait for it.
                if self.random.random_bool(0.02) {
                    let long = self.random.random_range(0..2 * SECOND);
                    self.hosts[host].fetching_until = self.now + long;
                }
                let wait = (self.hosts[host].fetching_until - self.now).max(0) + self.random.random_range(0..500);
                if !self.calm && self.random.random_bool(0.005) {
                    self.stand_still(host);
                }
                self.hosts[host].sending += 1;
                self.at(self.now + wait, Action::Send { host, life, held, before, replica });
            }
            Command::Finish { replica, unwritten, given_back } => {
                self.say(|| format!("host {host} ends in order: {unwritten:?}"));
                let away = self.now < self.down_until || self.now < self.hosts[host].cut_off_until;
                if let Some(replica) = replica.filter(|_| !away) {
                    self.database.deregister(replica, self.process(host, life));
                    if given_back {
                        self.checker.ended(replica.0, &self.database)?;
                    }
                }
                if unwritten.is_some() || away {
                    // What it could not write is lost with it.
                    self.checker.dead.insert((host, life));
                }
                self.hosts[host].engine = None;
                if let Some(key) = self.hosts[host].wakeup.take() {
                    self.queue.remove(&key);
                }
                let wait = self.random.random_range(0..4 * SECOND);
                self.at(self.now + wait, Action::Start { host });
            }
            command => {
                if let Command::SlowDown { lane, until } = &command {
                    let left = until.saturating_duration_since(issued_at).as_micros();
                    let until = self.now + i64::try_from(left).unwrap_or(i64::MAX / 2);
                    if until - self.now >= TOLD_WITHIN {
                        self.unwritten_pauses.insert((host, life, *lane, until));
                        self.at(until, Action::PauseOver { host, life, account: *lane, until });
                    }
                }
                let leg = self.leg();
                let server = self.hosts[host].server;
                self.at(self.now + leg, Action::Execute { host, life, command: Box::new(command), issued_at, server });
            }
        }
        Ok(())
    }

    /// How long a message to or from the database takes.
    fn leg(&mut self) -> Micros {
        if self.now < self.slow_until {
            self.trouble_until(self.now + 3 * SECOND);
            self.random.random_range(50_000..2_500_000)
        } else {
            self.random.random_range(200..4_000)
        }
    }
}

/// The database, as the processes meet it.
impl World {
    fn execute(&mut self, host: usize, life: u64, mut command: Command, issued_at: Instant, server: u64) -> Result<(), String> {
        if self.hosts[host].paused_until > self.now && self.random.random_bool(0.5) {
            // It had not left the process yet.
            let at = self.hosts[host].paused_until + self.leg();
            self.at(at, Action::Execute { host, life, command: Box::new(command), issued_at, server });
            return Ok(());
        }
        if !self.lives(host, life) && self.random.random_bool(0.5) {
            return Ok(());
        }
        let lossy = self.now < self.lossy_until;
        // Connections do not move to another server: what is sent on one breaks it, and then all
        // are made anew.
        let moved = server != self.database.server;
        self.hosts[host].server = self.database.server;
        let away = self.now < self.down_until || self.now < self.hosts[host].cut_off_until;
        if moved || away || (lossy && self.random.random_bool(0.1)) {
            // Refused at once, or waited for until a time-out.
            let wait = if self.random.random_bool(0.8) { 5_000 } else { self.random.random_range(SECOND..8 * SECOND) };
            self.trouble_until(self.now + wait);
            let lost =
                lost(command, issued_at).filter(|event| !matches!(event, Event::AccountNoticeSent(..)) || !self.has(Bug::ToldOnce));
            self.answer(host, life, wait, lost);
            return Ok(());
        }
        if self.has(Bug::AckBeforeWork)
            && let Command::Record(recording) = command
        {
            let leg = self.leg();
            self.answer(host, life, leg, Some(Event::Recorded(recording, Ok(Recorded::default()))));
            return Ok(());
        }
        if let Command::Record(recording) = &mut command
            && self.has(Bug::GiveBackDropped)
            && self.hosts[host].stopping
        {
            recording.batch.entries.retain(|entry| entry.hold || entry.transition.is_some());
        }
        let process = self.process(host, life);
        let event = self.executed(host, life, command, issued_at);
        if lossy && self.random.random_bool(0.1) {
            let wait = if self.random.random_bool(0.8) { 5_000 } else { self.random.random_range(SECOND..8 * SECOND) };
            self.trouble_until(self.now + wait);
            let lost = event.and_then(unanswered);
            if matches!(lost, Some(Event::Claimed(..))) && !self.calm && self.random.random_bool(0.3) {
                // A stop does not make it forget what it may have claimed.
                self.at(self.now + wait + 1_000, Action::Stop { host, life });
            }
            if let Some(Event::Recorded(recording, _)) = &lost
                && self.random.random_bool(0.3)
            {
                self.database.hide_commit(process, recording.number);
                let wait = self.random.random_range(0..5 * SECOND);
                self.at(self.now + wait, Action::Reveal);
            }
            self.answer(host, life, wait, lost);
            return Ok(());
        }
        let event = event.map(|event| match event {
            Event::Claimed(result, mut cycle) => {
                cycle.unsure.clear();
                Event::Claimed(result, cycle)
            }
            event => event,
        });
        let leg = self.leg();
        self.answer(host, life, leg, event);
        Ok(())
    }

    fn answer(&mut self, host: usize, life: u64, wait: Micros, event: Option<Event>) {
        if let Some(event) = event {
            self.at(self.now + wait, Action::Deliver { host, life, event: Box::new(event) });
        }
    }

    /// Carries a statement out.
    fn executed(&mut self, host: usize, life: u64, command: Command, issued_at: Instant) -> Option<Event> {
        let specs = accounts::NAMES;
        let process = self.process(host, life);
        let database = &mut self.database;
        match command {
            Command::Register => {
                database.make_accounts(specs.iter().map(|(provider, account)| ((*provider).into(), (*account).into())));
                let replica = database.register(process, LEASE, host as i64 + 1);
                let mut beat = database.beat(replica, process, 0, 0, None);
                beat.clock = self.local_clock(host).unwrap_or(beat.clock);
                self.say(|| format!("host {host} is replica {}", replica.0));
                Some(Event::Registered(Ok((replica, beat)), issued_at))
            }
            Command::Beat { replica, complied, judge, held } => {
                let before = database.replicas.len();
                let mut beat = database.beat(replica, process, complied, held, judge);
                if database.replicas.len() < before {
                    self.say(|| format!("host {host} finds the dead as of {judge:?}: {:?}", beat.members));
                }
                beat.clock = self.local_clock(host).unwrap_or(beat.clock);
                Some(Event::Beaten(replica, Ok(beat), issued_at))
            }
            Command::Claim { order, mut placer, mut cycle } => {
                let mut place = |candidate: &mut Candidate| placer.place(candidate);
                let unsure = cycle.unsure.clone();
                let Ok(mut claim) = database.claim(&order, &mut place, &mut cycle.unsure) else {
                    cycle.unsure = unsure;
                    return Some(Event::Claimed(Err(StoreFailure::Refused("a row".into())), cycle));
                };
                claim.clock = self.local_clock(host).or(claim.clock);
                cycle.unsure = claim.held.iter().map(|held| held.transaction.id).collect();
                for held in &claim.held {
                    self.say(|| format!("host {host} claims {} due {}", name(held.transaction.id), held.due));
                }
                Some(Event::Claimed(Ok(claim), cycle))
            }
            Command::Draw { draws, lanes } => {
                let mut drawn = database.draw(&draws);
                for (drawn, lane) in drawn.iter().zip(&lanes) {
                    self.say(|| format!("host {host} draws {} for account {lane} from {:.3} s", drawn.slots, drawn.ahead));
                }
                if let Some(clock) = self.local_clock(host) {
                    drawn.iter_mut().for_each(|drawn| drawn.clock = clock);
                }
                Some(Event::Drawn(Ok(drawn), lanes, issued_at))
            }
            Command::Record(mut recording) => {
                let replica = recording.replica.unwrap_or(ReplicaId(0));
                let writer = Writer { replica, process, number: recording.number, acknowledged: recording.acknowledged };
                let result = match (database.record(writer, &recording.batch, &mut recording.attempt), self.bug) {
                    (Ok(recorded), _) => Ok(recorded),
                    (Err(Refusal::InDoubt), _) => Err(StoreFailure::TimedOut("the last batch is still in progress".into())),
                    (Err(Refusal::Row), Some(Bug::RefusedIsAway)) => Err(StoreFailure::Unavailable("P0001".into())),
                    (Err(Refusal::Row), Some(Bug::RefusedForgotten)) => Ok(Recorded::default()),
                    (Err(Refusal::Row), _) => Err(StoreFailure::Refused("P0001".into())),
                };
                self.say(|| {
                    let polls: Vec<_> = recording.batch.polls.iter().map(|poll| name(poll.transaction_id)).collect();
                    let entry = |entry: &paypoll::store::Entry| {
                        format!("{} {}{}", name(entry.id), entry.state, if entry.hold { " held" } else { "" })
                    };
                    let entries: Vec<_> = recording.batch.entries.iter().map(entry).collect();
                    format!("host {host} records polls {polls:?}, rows {entries:?}: {result:?}")
                });
                let mut result = result;
                if let (Ok(recorded), true) = (&mut result, self.bug == Some(Bug::RefusedPolledOn)) {
                    recorded.refused.clear();
                }
                if let (Ok(recorded), true) = (&mut result, self.bug == Some(Bug::LockedForgotten)) {
                    recorded.locked.clear();
                }
                Some(Event::Recorded(recording, result))
            }
            Command::Watch { replica } => {
                let overrides = database.overrides(replica);
                let watch = Watch { replica, overrides, accounts: database.account_states() };
                for change in &watch.overrides {
                    self.say(|| format!("host {host} hears that {} has fence {}", name(change.id), change.fence));
                }
                Some(Event::Watched(Ok(watch)))
            }
            Command::Compare { replica, ids } => {
                let owned = database.owned(replica, &ids);
                Some(Event::Compared(ids, Ok(owned)))
            }
            Command::SlowDown { lane, until } => {
                let wait = until.saturating_duration_since(self.instant(host));
                self.checker.paused(lane, self.now, wait);
                self.unwritten_pauses.retain(|(by, _, account, _)| (*by, *account) != (host, lane));
                if self.bug != Some(Bug::RetryAfterNotShared) {
                    self.database.slow_down(specs[lane], wait);
                }
                Some(Event::AccountNoticeSent(AccountNotice::SlowDown { lane, until }, Ok(())))
            }
            Command::Circuit { lane, change } => {
                match change {
                    CircuitChange::Open(_) => database.open_circuit(specs[lane], accounts::PROBE_AFTER),
                    CircuitChange::Close => database.close_circuit(specs[lane]),
                    CircuitChange::Abandon => database.abandon_circuit(specs[lane]),
                }
                Some(Event::AccountNoticeSent(AccountNotice::Circuit { lane, change }, Ok(())))
            }
            Command::Probe { lane } => {
                let granted = database.take_probe(specs[lane], accounts::PROBE_AFTER);
                self.say(|| format!("host {host} may probe account {lane}: {granted}"));
                Some(Event::Probe { lane, granted: Ok(granted) })
            }
            Command::Poll { .. } | Command::Finish { .. } => None,
        }
    }

    fn local_clock(&self, host: usize) -> Option<DateTime<Utc>> {
        (self.bug == Some(Bug::LocalClock)).then(|| self.true_time() + TimeDelta::microseconds(self.hosts[host].wall))
    }
}

/// The event of a process whose statement did not reach the database.
fn lost(command: Command, issued_at: Instant) -> Option<Event> {
    let failed = || StoreFailure::Unavailable("no connection".into());
    Some(match command {
        Command::Register => Event::Registered(Err(failed()), issued_at),
        Command::Beat { replica, .. } => Event::Beaten(replica, Err(failed()), issued_at),
        Command::Claim { cycle, .. } => Event::Claimed(Err(failed()), cycle),
        Command::Draw { lanes, .. } => Event::Drawn(Err(failed()), lanes, issued_at),
        Command::Record(recording) => Event::Recorded(recording, Err(failed())),
        Command::Watch { .. } => Event::Watched(Err(failed())),
        Command::Probe { lane } => Event::Probe { lane, granted: Err(failed()) },
        Command::Compare { ids, .. } => Event::Compared(ids, Err(failed())),
        Command::SlowDown { lane, until } => Event::AccountNoticeSent(AccountNotice::SlowDown { lane, until }, Err(failed())),
        Command::Circuit { lane, change } => Event::AccountNoticeSent(AccountNotice::Circuit { lane, change }, Err(failed())),
        Command::Poll { .. } | Command::Finish { .. } => return None,
    })
}

/// The event of a process whose statement's answer got lost.
fn unanswered(event: Event) -> Option<Event> {
    let failed = || StoreFailure::Unavailable("the connection broke".into());
    Some(match event {
        Event::Registered(_, issued_at) => Event::Registered(Err(failed()), issued_at),
        Event::Beaten(replica, _, issued_at) => Event::Beaten(replica, Err(failed()), issued_at),
        Event::Claimed(_, cycle) => Event::Claimed(Err(failed()), cycle),
        Event::Drawn(_, lanes, issued_at) => Event::Drawn(Err(failed()), lanes, issued_at),
        Event::Recorded(recording, _) => Event::Recorded(recording, Err(failed())),
        Event::Watched(_) => Event::Watched(Err(failed())),
        Event::Probe { lane, .. } => Event::Probe { lane, granted: Err(failed()) },
        Event::Compared(ids, _) => Event::Compared(ids, Err(failed())),
        Event::AccountNoticeSent(notice, _) => Event::AccountNoticeSent(notice, Err(failed())),
        _ => return None,
    })
}

/// The providers, as the processes meet them.
impl World {
    fn send(&mut self, host: usize, life: u64, held: Box<Held>, before: Instant, replica: i64) -> Result<(), String> {
        if !self.lives(host, life) {
            return Ok(());
        }
        if self.hosts[host].paused_until > self.now {
            let at = self.hosts[host].paused_until + 1;
            self.at(at, Action::Send { host, life, held, before, replica });
            return Ok(());
        }
        self.hosts[host].sending -= 1;
        let now = self.instant(host);
        if now >= before && !self.has(Bug::SentAfterLease) {
            self.say(|| format!("host {host} is too late to ask about {}", name(held.transaction.id)));
            return self.drive(host, Event::Polled(held, PollResult::NotSent(None)));
        }
        if !self.calm && self.random.random_bool(0.01) {
            let outcome = Outcome::ServerError { status: 500, wait: None };
            return self.drive(host, Event::Polled(held, PollResult::NotSent(Some(outcome))));
        }
        let id = held.transaction.id;
        let key = accounts::key_name(&held.transaction.account, &held.transaction.reference);
        if let Some(key) = &key {
            let away = self.now < self.down_until || self.now < self.hosts[host].cut_off_until;
            let process = self.process(host, life);
            if away || !self.database.take_key(key, process, TIMEOUT + Duration::from_secs(1)) {
                return self.drive(host, Event::Polled(held, PollResult::Later(Duration::from_millis(300))));
            }
        }
        let account = accounts::number(held.transaction.provider, &held.transaction.account);
        let Answer { outcome, status, latency } = self.provider.ask(&mut self.random, self.now, account, id);
        let heals = matches!(outcome.health(), Health::Usable | Health::Neutral);
        let broken = matches!(outcome, Outcome::NoAnswer(NoAnswer::Connection(_)));
        let wait = latency.unwrap_or(if broken { Duration::from_millis(20) } else { TIMEOUT }).min(TIMEOUT);
        let until = self.now + i64::try_from(wait.as_micros()).expect("short");
        self.say(|| format!("host {host} asks about {}: {} after {wait:?}", name(id), outcome.name()));
        let request = Request { id, account, at: self.now, until, sender: (host, life), replica, heals, key };
        self.checker.asked(request, &self.database)?;
        let outcome = self.bent(outcome);
        let result = PollResult::Sent { at: now, latency, status, body: bytes::Bytes::new(), outcome };
        self.at(until, Action::Deliver { host, life, event: Box::new(Event::Polled(held, result)) });
        Ok(())
    }

    /// The outcome, unless a bug is planted in its reading.
    fn bent(&mut self, outcome: Outcome) -> Outcome {
        match (self.bug, &outcome) {
            (Some(Bug::NotFoundIsFailed), Outcome::NotFound { .. }) => provider::status(State::Failed),
            (Some(Bug::SilenceIsFailed), Outcome::NoAnswer(_)) => provider::status(State::Failed),
            (Some(Bug::AnswersMixedUp), _) => self.last_outcome.replace(outcome.clone()).unwrap_or(outcome),
            _ => outcome,
        }
    }
}

/// What goes wrong.
impl World {
    /// The primary is gone, and a standby that lags is promoted.
    fn fail_over(&mut self, long: Micros) {
        let remembered = self.database.remembered();
        if remembered == 0 {
            return;
        }
        let which = self.random.random_range(0..remembered);
        // What was under way there is over.
        self.down_until = self.now + long;
        self.trouble_until(self.now + long);
        if let Some(at) = self.database.fail_over(which) {
            self.say(|| format!("the database fails over to what it was at {:.6}, and is back in {long} us", at as f64 / 1e6));
            self.checker.history_was_cut(self.now, self.now + long, &self.database);
            for host in 0..HOSTS {
                let life = self.hosts[host].life;
                let process = self.process(host, life);
                let lost = self.acknowledged.get(&process).is_some_and(|number| self.database.last_record(process) < *number);
                if lost && self.lives(host, life) {
                    self.to_report.insert((host, life));
                }
            }
            self.unwritten_pauses.clear();
        }
    }

    fn mishap(&mut self) -> Result<(), String> {
        let host = self.random.random_range(0..HOSTS);
        let account = self.random.random_range(0..ACCOUNTS);
        let id = Uuid::from_u128(self.random.random_range(1..=self.transactions));
        let long = self.random.random_range(SECOND / 10..5 * SECOND);
        let kind = self.random.random_range(0..100);
        let often = !self.favourites.is_empty() && self.random.random_bool(0.3);
        let kind = if often { self.favourites[self.random.random_range(0..self.favourites.len())] } else { kind };
        // A promotion takes a moment.
        let long = if kind == FAILOVER { long / 20 } else { long };
        let (life, alive) = (self.hosts[host].life, self.hosts[host].engine.is_some());
        let busy = self.hosts[host].paused_until > self.now || !alive;
        if kind < 48 {
            self.trouble_until(self.now);
        }
        match kind {
            0..4 => {
                self.say(|| format!("the database is gone for {long} us"));
                self.down_until = self.now + long;
                self.trouble_until(self.now + long);
            }
            4..6 => self.fail_over(long),
            6..11 => {
                self.say(|| format!("the database is slow for {long} us"));
                self.slow_until = self.now + long;
            }
            11..17 => {
                self.say(|| format!("the network loses messages for {long} us"));
                self.lossy_until = self.now + long;
            }
            17..20 => {
                self.say(|| format!("host {host} does not reach the database for {long} us"));
                self.hosts[host].cut_off_until = self.now + long;
                self.trouble_until(self.now + long);
            }
            20..27 if !busy => {
                self.say(|| format!("host {host} is killed"));
                self.crash(host);
                self.at(self.now + long, Action::Start { host });
            }
            27..33 if !busy => {
                self.stand_still(host);
            }
            // Not while a request is decided and not sent: its process cannot know that it slept in
            // between, whatever it does.
            33..37 if !busy && self.hosts[host].sending == 0 => {
                let long = SECOND + long * 2;
                self.say(|| format!("the machine of host {host} sleeps for {long} us"));
                self.hosts[host].paused_until = self.now + long;
                self.hosts[host].slept += long;
                self.trouble_until(self.now + long + SECOND);
                self.at(self.now + long, Action::Resume { host, life, woken: true });
            }
            37..42 if !busy => {
                self.stop(host)?;
            }
            42..45 => {
                let by = self.random.random_range(-300 * SECOND..300 * SECOND);
                self.say(|| format!("the database's clock is set by {by} us"));
                self.step_clock(by);
            }
            45..48 => {
                let by = self.random.random_range(-300 * SECOND..300 * SECOND);
                self.say(|| format!("the clock of host {host} is set by {by} us"));
                self.hosts[host].wall += by;
                if by > SECOND && alive {
                    self.drive(host, Event::Woken)?;
                }
            }
            48..56 => {
                self.say(|| format!("account {account} is down for {long} us"));
                self.provider.down_until.insert(account, self.now + 2 * long);
            }
            // A write to a locked row waits, and a trigger refuses every write.
            56..86 if self.database.locked.contains(&id) || self.database.refusing.contains(&id) => {}
            56..68 => {
                let states = [State::Succeeded, State::Failed, State::Cancelled, State::Refunded, State::Unresolved];
                let state = states[self.random.random_range(0..states.len())];
                if self.database.settle(id, state) {
                    self.say(|| format!("a callback handler sets {} to {state}", name(id)));
                }
            }
            68..80 => {
                if self.database.reopen(id) {
                    self.say(|| format!("an operator reopens {}", name(id)));
                }
            }
            80..84 => {
                self.say(|| format!("somebody corrects {}", name(id)));
                self.database.correct(id);
            }
            84..86 => self.database.hurry(id),
            86..88 => {
                self.say(|| format!("a trigger refuses {} for {} us", name(id), 2 * long));
                self.database.refusing.insert(id);
                self.at(self.now + 2 * long, Action::Accept(id));
            }
            88..91 => {
                self.say(|| format!("somebody at a console locks {} for {} us", name(id), 2 * long));
                self.database.locked.insert(id);
                self.at(self.now + 2 * long, Action::Unlock(id));
            }
            _ => {
                self.insert();
                self.say(|| format!("t{} arrives", self.transactions));
            }
        }
        Ok(())
    }
}

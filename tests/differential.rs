//! The simulation believes in a database that it keeps in memory. Here the same commands are given
//! to that one and to PostgreSQL, and whatever one answers otherwise than the other, or holds
//! otherwise afterwards, fails.
//!
//! PostgreSQL's clock is the simulation's: its functions that return the time are replaced, in a
//! cluster of the test's own.
//!
//! `PAYPOLL_SEEDS` says how many sequences are played, `PAYPOLL_SEED` plays one of them and prints
//! every step.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a helper that panics fails its test; a failing sequence is printed")]

#[allow(dead_code, reason = "shared with the simulation, which uses all of it")]
#[path = "simulation/bugs.rs"]
mod bugs;
#[allow(dead_code, reason = "shared with the simulation, which uses all of it")]
#[path = "simulation/database.rs"]
mod database;

use bugs::Bug;
use chrono::{DateTime, Duration as Days, TimeDelta, Timelike, Utc};
use database::Database;
use paypoll::config;
use paypoll::domain::{Progress, Source, State, Transaction};
use paypoll::postgres::{Options, PrivatePostgres};
use paypoll::store::{
    Attempt, Batch, Candidate, ClaimOrder, Draw, Drawn, Entry, LaneRoom, Membership, Placement, Poll, Recorded, ReplicaId, Store,
    Transition, Writer,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::Row;
use sqlx::postgres::{PgPool, PgPoolOptions, PgRow};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use uuid::Uuid;

/// The simulation's unit of time.
pub(crate) type Micros = i64;

/// How many sequences are played by default.
const SEEDS: u64 = 200;
/// Commands in one of them.
const STEPS: usize = 30;
const LEASE: Duration = Duration::from_secs(15);
const PROVIDER: &str = "khalti";
const ACCOUNTS: [&str; 2] = ["default", "other"];
const PROCESSES: usize = 3;

/// Faults of the database that a sequence must find, and in how many sequences.
const PLANTED: [Bug; 5] =
    [Bug::NoFencing, Bug::LatePollNotCounted, Bug::TransitionWrittenTwice, Bug::VerdictUnfenced, Bug::LimiterPerProcess];
const FOUND_WITHIN: u64 = 60;

/// The clock of the test: `now()` and `clock_timestamp()` return what a table says.
const CLOCK: &str = "
    create table public.test_clock (at timestamptz not null);
    insert into public.test_clock values (now());
    alter function pg_catalog.clock_timestamp() rename to real_clock_timestamp;
    alter function pg_catalog.now() rename to real_now;
    create function pg_catalog.clock_timestamp() returns timestamptz language sql volatile as 'select at from public.test_clock';
    create function pg_catalog.now() returns timestamptz language sql stable as 'select at from public.test_clock'";

/// Everything that a sequence wrote is gone, and numbers begin anew.
const CLEAN: &str = "
    set session_replication_role = replica;
    truncate paypoll.transactions, paypoll.transitions, paypoll.polls, paypoll.replicas, paypoll.accounts, paypoll.commits,
             paypoll.vacated restart identity;
    update paypoll.server set cut_at = null;
    reset session_replication_role";

/// A daemon's process, as far as its commands go.
struct Process {
    id: Uuid,
    replica: Option<ReplicaId>,
    members: Membership,
    claims: i64,
    records: i64,
    held: BTreeMap<Uuid, (i64, Transaction)>,
    /// What was recorded last, to be recorded once more.
    last: Option<(Writer, Batch, Option<Recorded>)>,
}

/// Both databases, and who uses them.
struct Pair {
    store: Store,
    pool: PgPool,
    memory: Database,
    random: StdRng,
    processes: Vec<Process>,
    rows: Vec<Uuid>,
    told: String,
    telling: bool,
    /// The first difference, with all that led to it.
    differs: Option<String>,
}

fn micros(at: DateTime<Utc>) -> DateTime<Utc> {
    at.with_nanosecond(at.nanosecond() / 1_000 * 1_000).unwrap()
}

fn row_id(number: usize) -> Uuid {
    Uuid::from_u128(number as u128 + 1)
}

impl Pair {
    async fn new(postgres: &Postgres, seed: u64, bug: Option<Bug>, telling: bool) -> Self {
        let Postgres { store, pool, .. } = postgres;
        let mut random = StdRng::seed_from_u64(seed);
        sqlx::raw_sql(CLEAN).execute(pool).await.unwrap();
        let clock = micros(DateTime::<Utc>::from(SystemTime::now())) - Days::hours(1);
        let memory = Database::new(bug, clock);
        let processes = (0..PROCESSES).map(|_| Process {
            id: Uuid::from_u128(random.random()),
            replica: None,
            members: Membership::default(),
            claims: 0,
            records: 0,
            held: BTreeMap::new(),
            last: None,
        });
        let processes = processes.collect();
        let mut pair = Self {
            store: store.clone(),
            pool: pool.clone(),
            memory,
            random,
            processes,
            rows: Vec::new(),
            told: String::new(),
            telling,
            differs: None,
        };
        let accounts = ACCOUNTS.map(|account| (PROVIDER, Arc::from(account)));
        pair.store.make_accounts(&accounts).await.unwrap();
        pair.memory.make_accounts(ACCOUNTS.iter().map(|account| (PROVIDER.to_owned(), (*account).to_owned())));
        pair
    }

    fn clock(&self) -> DateTime<Utc> {
        self.memory.clock
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        let line = what();
        if self.telling {
            println!("{line}");
        }
        writeln!(self.told, "{line}").unwrap();
    }

    /// Both say the same.
    fn same<T: PartialEq + Debug>(&mut self, what: &str, postgres: &T, memory: &T) {
        if postgres != memory && self.differs.is_none() {
            self.differs = Some(format!("{}\n{what}\n  PostgreSQL: {postgres:#?}\n  memory:     {memory:#?}", self.told));
        }
    }

    async fn pass(&mut self, time: TimeDelta) {
        self.memory.clock += time;
        sqlx::query("update public.test_clock set at = $1").bind(self.memory.clock).execute(&self.pool).await.unwrap();
    }

    async fn step(&mut self, number: usize) {
        let most = if self.random.random_ratio(1, 12) { 20_000_000 } else { 1_500_000 };
        let time = TimeDelta::microseconds(self.random.random_range(1_000..most));
        self.pass(time).await;
        let process = self.random.random_range(0..PROCESSES);
        match self.random.random_range(0..100) {
            0..10 => self.insert().await,
            10..16 => self.register(process).await,
            16..28 => self.beat(process).await,
            28..50 => self.claim(process, number).await,
            50..70 => self.record(process).await,
            70..74 => self.record_again(process).await,
            74..79 => self.settle().await,
            79..83 => self.reopen().await,
            83..87 => self.correct().await,
            87..89 => self.hurry().await,
            89..93 => self.draw().await,
            93..95 => self.slow_down().await,
            95..98 => self.circuit().await,
            98 => self.overrides().await,
            _ => self.deregister(process).await,
        }
        // Not after each step, for it takes as long as three; where one sequence is looked into, it may.
        if self.telling || number.is_multiple_of(3) || number + 1 == STEPS {
            self.compare().await;
        }
    }

    async fn insert(&mut self) {
        let (id, account) = (row_id(self.rows.len()), ACCOUNTS[self.random.random_range(0..2)]);
        let age = TimeDelta::seconds(if self.random.random_ratio(1, 5) { 1200 } else { self.random.random_range(0..500) });
        let initiated = self.clock() - age;
        self.tell(|| format!("insert {id} for {account}, initiated {age} ago"));
        self.rows.push(id);
        let reference = format!("R{}", self.rows.len());
        let insert =
            "insert into paypoll.transactions (id, provider, account, reference, initiated_at) values ($1, $2, $3, $4, $5)";
        let insert = sqlx::query(insert).bind(id).bind(PROVIDER).bind(account).bind(&reference).bind(initiated);
        insert.execute(&self.pool).await.unwrap();
        self.memory.insert(Transaction::new(id, PROVIDER, account.into(), &reference, initiated));
    }

    async fn register(&mut self, process: usize) {
        let id = self.processes[process].id;
        let accounts = ACCOUNTS.map(|account| (PROVIDER, Arc::from(account)));
        let replica = self.store.register(id, LEASE, &accounts, "host").await.unwrap();
        let memory = self.memory.register(id, LEASE, 0);
        self.tell(|| format!("process {process} registers as {replica:?}"));
        self.same("register", &replica, &memory);
        let process = &mut self.processes[process];
        (process.replica, process.held) = (Some(replica), BTreeMap::new());
    }

    async fn beat(&mut self, process: usize) {
        let Some(replica) = self.processes[process].replica else { return self.register(process).await };
        let (id, complied) = (self.processes[process].id, self.random.random_range(0..4));
        let held = complied * 10;
        let judge = self.random.random_bool(0.7).then(|| self.clock() - TimeDelta::seconds(self.random.random_range(0..3)));
        self.tell(|| format!("{replica:?} beats, leaves room up to {complied}, judges by {judge:?}"));
        let postgres = self.store.beat(replica, id, complied, held, judge).await.unwrap();
        let memory = self.memory.beat(replica, id, complied, held, judge);
        let of = |beat: &paypoll::store::Beat| {
            let members = (beat.members.living.clone(), beat.members.newest, beat.members.complied, beat.members.settled);
            (beat.alive, members, beat.clock, beat.recorded, beat.claimed)
        };
        self.same("beat", &of(&postgres), &of(&memory));
        let process = &mut self.processes[process];
        process.members = postgres.members;
        if !postgres.alive {
            process.replica = None;
        }
    }

    async fn claim(&mut self, process: usize, step: usize) {
        let Some(replica) = self.processes[process].replica else { return self.register(process).await };
        let clock = self.clock();
        let rooms = ACCOUNTS.map(|account| {
            let survey = self.random.random_bool(0.3).then_some(DateTime::UNIX_EPOCH);
            let mut room = LaneRoom::new(PROVIDER, account.into(), self.random.random_range(0..4));
            room.survey = survey;
            room
        });
        let known: Vec<Uuid> = self.rows.clone();
        let mut some = |likely: f64| known.iter().copied().filter(|_| self.random.random_bool(likely)).collect::<Vec<_>>();
        let (avoid, abandoned, unsure) = (some(0.05), some(0.05), some(0.05));
        let this = &mut self.processes[process];
        this.claims += 1;
        let order = ClaimOrder {
            replica,
            process: this.id,
            number: this.claims,
            members: this.members.clone(),
            lanes: rooms.to_vec(),
            horizon: clock + TimeDelta::seconds(1),
            avoid,
            abandoned,
        };
        self.tell(|| format!("{replica:?} claims: {order:?}, free first: {unsure:?}"));
        let place = |id: Uuid| match (id.as_u128() as usize).wrapping_mul(7).wrapping_add(step) % 5 {
            0 => Placement::Leave,
            1 => Placement::Later(clock + TimeDelta::microseconds(20_000_000 + id.as_u128() as i64)),
            _ => Placement::Hold(clock + TimeDelta::microseconds(500_000 + id.as_u128() as i64)),
        };
        let (mut seen, mut seen_in_memory) = (BTreeMap::new(), BTreeMap::new());
        let (mut of_postgres, mut of_memory) = (unsure.clone(), unsure);
        let mut look = |candidate: &mut Candidate| {
            seen.insert(candidate.transaction.id, facts(candidate));
            place(candidate.transaction.id)
        };
        let postgres = self.store.claim(&order, &mut look, &mut of_postgres).await.unwrap();
        let mut look = |candidate: &mut Candidate| {
            seen_in_memory.insert(candidate.transaction.id, facts(candidate));
            place(candidate.transaction.id)
        };
        let memory = self.memory.claim(&order, &mut look, &mut of_memory).unwrap();
        self.same("candidates", &seen, &seen_in_memory);
        let of = |claim: &paypoll::store::Claim| {
            let held = claim.held.iter().map(|held| (held.transaction.id, held.fence, held.due, held.lane, held.backlog));
            let found = claim.found.iter().map(|found| (found.ordinary, found.last, found.backlog, found.backlog_last));
            let own: BTreeSet<_> = claim.own.iter().copied().collect();
            (held.collect::<BTreeSet<_>>(), found.collect::<Vec<_>>(), own)
        };
        self.same("claim", &of(&postgres), &of(&memory));
        for held in postgres.held {
            self.processes[process].held.insert(held.transaction.id, (held.fence, held.transaction));
        }
    }

    async fn record(&mut self, process: usize) {
        let clock = self.clock();
        let held = self.processes[process].held.clone();
        let mut batch = Batch::default();
        for (turn, (id, (fence, transaction))) in held.into_iter().enumerate() {
            let sent_at = clock - TimeDelta::microseconds(1 + turn as i64 * 7 + self.random.random_range(0..5) * 100);
            let poll = Poll {
                transaction_id: id,
                provider: PROVIDER,
                account: transaction.account.clone(),
                due_at: clock,
                sent_at,
                latency_ms: Some(3),
                http_status: Some(200),
                outcome: ["pending", "not_found", "unreachable"][self.random.random_range(0..3)],
                error: None,
                declaration: None,
            };
            match self.random.random_range(0..6) {
                0 => {}
                1 => batch.polls.push(poll),
                // It releases only what another writer has changed.
                2 if self.memory.rows[&id].fence != fence => {
                    batch.dropped.push(id);
                    self.processes[process].held.remove(&id);
                }
                _ => {
                    let entry = self.entry(id, fence, &transaction, sent_at);
                    let hold = entry.hold;
                    batch.polls.extend((entry.polls > 0).then_some(poll));
                    let kept = Transaction { state: entry.state, action_at: entry.action_at, ..transaction };
                    batch.entries.push(entry);
                    let held = &mut self.processes[process].held;
                    held.remove(&id);
                    if hold {
                        held.insert(id, (fence + 1, kept));
                    }
                }
            }
        }
        let this = &mut self.processes[process];
        this.records += 1;
        let replica = this.replica.unwrap_or(ReplicaId(0));
        let writer = Writer { replica, process: this.id, number: this.records, acknowledged: this.records - 1 };
        this.last = Some((writer, batch, None));
        self.record_last(process).await;
    }

    fn entry(&mut self, id: Uuid, fence: i64, transaction: &Transaction, sent_at: DateTime<Utc>) -> Entry {
        let clock = self.clock();
        let states = [State::Pending, State::Pending, State::ActionRequired, State::Succeeded, State::Failed, State::Unresolved];
        let state = states[self.random.random_range(0..states.len())];
        let polls = self.random.random_range(0..2);
        let changes = state != transaction.state;
        let transition = || Transition { from: transaction.state, source: Source::Poll, evidence: None };
        let next = clock + TimeDelta::microseconds(self.random.random_range(100_000..3_000_000));
        Entry {
            id,
            fence,
            hold: state.is_polled() && self.random.random_bool(0.6),
            state,
            transition: changes.then(transition),
            provider_state: Some(format!("{state}")),
            reason: None,
            action: None,
            details: None,
            polls,
            failures: self.random.random_range(0..3),
            not_found: self.random.random_range(0..3),
            last_polled_at: (polls > 0).then_some(sent_at),
            next: state.is_polled().then_some(next),
            action_at: if changes { Some(clock) } else { transaction.action_at },
            progress: Progress {
                opened_at: Some(transaction.progress.opened_at.unwrap_or(sent_at)),
                phase: self.random.random_range(0..3),
                phase_since: None,
                gaps: self.random.random_range(0..9),
                answered: self.random.random_bool(0.5),
            },
        }
    }

    async fn record_again(&mut self, process: usize) {
        self.record_last(process).await;
    }

    /// Records the last batch of the process, for the first time or once more: then nothing happens.
    async fn record_last(&mut self, process: usize) {
        let Some((writer, batch, before)) = self.processes[process].last.take() else { return };
        self.tell(|| format!("{writer:?} records {batch:?}"));
        let postgres = self.store.record(writer, &batch, &mut Attempt(before.clone())).await.unwrap();
        let memory = self.memory.record(writer, &batch, &mut Attempt(before)).unwrap();
        self.same("record", &postgres, &memory);
        if postgres.lease_lost {
            self.processes[process].held.clear();
        }
        self.processes[process].last = Some((writer, batch, Some(postgres)));
    }

    fn some_row(&mut self) -> Option<Uuid> {
        (!self.rows.is_empty()).then(|| self.rows[self.random.random_range(0..self.rows.len())])
    }

    async fn settle(&mut self) {
        let Some(id) = self.some_row() else { return };
        let state = [State::Succeeded, State::Failed, State::Unresolved][self.random.random_range(0..3)];
        self.tell(|| format!("somebody settles {id} as {state}"));
        let settle = "select paypoll.settle(t.provider, t.account, t.reference, $2) from paypoll.transactions t where t.id = $1";
        // Refused where a final state says otherwise.
        let settled = sqlx::query_scalar(settle).bind(id).bind(state.as_str()).fetch_one(&self.pool).await.unwrap_or(false);
        let memory = self.memory.settle(id, state);
        self.same("settle", &settled, &memory);
    }

    async fn reopen(&mut self) {
        let Some(id) = self.some_row() else { return };
        self.tell(|| format!("somebody reopens {id}"));
        let reopened = self.store.reopen(&[id], None, "somebody").await.unwrap().remove(0).obstacle.is_none();
        let memory = self.memory.reopen(id);
        self.same("reopen", &reopened, &memory);
    }

    async fn correct(&mut self) {
        let Some(id) = self.some_row() else { return };
        let amount = self.random.random_range(1..1_000_000);
        let correct = sqlx::query("update paypoll.transactions set amount = $2 where id = $1").bind(id).bind(amount);
        // A final row cannot be corrected.
        if self.memory.rows[&id].transaction.state.is_final() {
            correct.execute(&self.pool).await.unwrap_err();
        } else {
            self.tell(|| format!("somebody corrects {id}"));
            correct.execute(&self.pool).await.unwrap();
            self.memory.correct(id);
        }
    }

    async fn hurry(&mut self) {
        let Some(id) = self.some_row() else { return };
        self.tell(|| format!("somebody hurries {id}"));
        let hurry = "update paypoll.transactions set next_poll_at = now() where id = $1 and next_poll_at is not null";
        sqlx::query(hurry).bind(id).execute(&self.pool).await.unwrap();
        self.memory.hurry(id);
    }

    async fn draw(&mut self) {
        let draws: Vec<Draw> = (ACCOUNTS.iter())
            .map(|account| {
                let wanted = self.random.random_range(0..20);
                Draw {
                    provider: PROVIDER,
                    account: (*account).into(),
                    wanted,
                    gap: Duration::from_millis(100),
                    tolerance: Duration::from_millis(900),
                }
            })
            .collect();
        self.tell(|| format!("draws {draws:?}"));
        let mut postgres = self.store.draw(&draws).await.unwrap();
        let mut memory = self.memory.draw(&draws);
        let of = |drawn: &mut Vec<Drawn>| {
            drawn.sort_by_key(|drawn| drawn.lane);
            drawn.iter().map(|d| (d.lane, d.clock, d.slots, (d.ahead * 1e3).round(), (d.gap * 1e4).round())).collect::<Vec<_>>()
        };
        self.same("draw", &of(&mut postgres), &of(&mut memory));
    }

    async fn slow_down(&mut self) {
        let (account, wait) = (ACCOUNTS[self.random.random_range(0..2)], Duration::from_millis(self.random.random_range(0..4000)));
        self.tell(|| format!("{account} is slowed down for {wait:?}"));
        self.store.slow_down(PROVIDER, account, wait).await.unwrap();
        self.memory.slow_down((PROVIDER, account), wait);
    }

    async fn circuit(&mut self) {
        let (account, after) = (ACCOUNTS[self.random.random_range(0..2)], Duration::from_secs(2));
        match self.random.random_range(0..4) {
            0 => {
                self.tell(|| format!("the circuit of {account} opens"));
                self.store.open_circuit(PROVIDER, account, "open", after).await.unwrap();
                self.memory.open_circuit((PROVIDER, account), after);
            }
            1 => {
                self.tell(|| format!("the circuit of {account} closes"));
                self.store.close_circuit(PROVIDER, account).await.unwrap();
                self.memory.close_circuit((PROVIDER, account));
            }
            _ => {
                self.tell(|| format!("somebody wants to probe {account}"));
                let postgres = self.store.take_probe(PROVIDER, account, after).await.unwrap();
                let memory = self.memory.take_probe((PROVIDER, account), after);
                self.same("take_probe", &postgres, &memory);
            }
        }
    }

    async fn overrides(&mut self) {
        let replica = ReplicaId(self.random.random_range(1..5));
        let postgres = self.store.overrides(replica).await.unwrap();
        let memory = self.memory.overrides(replica);
        self.same("overrides", &postgres, &memory);
    }

    async fn deregister(&mut self, process: usize) {
        let Some(replica) = self.processes[process].replica.take() else { return };
        self.tell(|| format!("{replica:?} deregisters"));
        self.store.deregister(replica, self.processes[process].id).await.unwrap();
        self.memory.deregister(replica, self.processes[process].id);
    }

    /// Both hold the same.
    async fn compare(&mut self) {
        let sql =
            "select id, fence, owner, state, next_poll_at, attempts, failures, not_found, last_polled_at, opened_at, phase, gaps,
                          answered, reopened_at, provider_state from paypoll.transactions order by id";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await.unwrap();
        let postgres: Vec<String> = rows
            .iter()
            .map(|row| {
                let time = |column: &str| row.get::<Option<DateTime<Utc>>, _>(column);
                let (owner, word): (Option<i64>, Option<String>) = (row.get("owner"), row.get("provider_state"));
                let counts = ["attempts", "failures", "not_found"].map(|column| row.get::<i32, _>(column));
                let progress =
                    (time("opened_at"), row.get::<i16, _>("phase"), row.get::<i32, _>("gaps"), row.get::<bool, _>("answered"));
                let head = (row.get::<Uuid, _>("id"), row.get::<i64, _>("fence"), owner, row.get::<String, _>("state"), word);
                let times = [time("next_poll_at"), time("last_polled_at"), time("reopened_at")];
                format!("{head:?} {counts:?} {times:?} {progress:?}")
            })
            .collect();
        let memory: Vec<String> = (self.memory.rows.values())
            .map(|row| {
                let t = &row.transaction;
                let p = &t.progress;
                let (word, times) = (t.provider_state.as_deref(), [row.next, t.last_polled_at, t.reopened_at]);
                let head = (t.id, row.fence, row.owner, t.state.as_str(), word);
                format!(
                    "{head:?} {:?} {times:?} {:?}",
                    [t.attempts, t.failures, t.not_found],
                    (p.opened_at, p.phase, p.gaps, p.answered)
                )
            })
            .collect();
        self.same("rows", &postgres, &memory);
        // Those that are written together may come in any order.
        let sql = "select transaction_id, from_state, to_state, source from paypoll.transitions order by transaction_id, id";
        let postgres: Vec<(Uuid, String, String, String)> = sqlx::query_as(sql).fetch_all(&self.pool).await.unwrap();
        let mut changes: Vec<_> = self.memory.transitions.iter().collect();
        changes.sort_by_key(|change| change.transaction);
        let memory: Vec<_> =
            changes.iter().map(|t| (t.transaction, t.from.to_string(), t.to.to_string(), t.source.to_owned())).collect();
        self.same("transitions", &postgres, &memory);
        let sql = "select id, process, heartbeat_at from paypoll.replicas order by id";
        let postgres: Vec<(i64, Uuid, DateTime<Utc>)> = sqlx::query_as(sql).fetch_all(&self.pool).await.unwrap();
        let memory: Vec<_> = self.memory.replicas.iter().map(|(id, row)| (*id, row.process, row.heartbeat)).collect();
        self.same("replicas", &postgres, &memory);
        let sql = "select account, held_until, circuit_since from paypoll.accounts order by account";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await.unwrap();
        let time = |row: &PgRow, column: &str| row.get::<Option<DateTime<Utc>>, _>(column);
        let account = |row: &PgRow| (row.get::<String, _>("account"), time(row, "held_until"), time(row, "circuit_since"));
        let postgres: Vec<_> = rows.iter().map(account).collect();
        let memory: Vec<_> = self
            .memory
            .accounts
            .iter()
            .map(|(name, account)| (name.1.clone(), account.held_until, account.circuit_since))
            .collect();
        self.same("accounts", &postgres, &memory);
        let polls: i64 = sqlx::query_scalar("select count(*) from paypoll.polls").fetch_one(&self.pool).await.unwrap();
        self.same("polls", &polls, &(self.memory.polls.values().map(Vec::len).sum::<usize>() as i64));
    }
}

/// What a claim gets to know of a candidate.
fn facts(candidate: &Candidate) -> String {
    let Candidate { transaction: t, lane, due, fresh, orphan, not_before, unplanned, backlog, fence, .. } = candidate;
    let counts = [t.attempts, t.failures, t.not_found];
    format!(
        "{lane} {due} {fresh} {orphan} {not_before:?} {unplanned:?} {backlog} {fence} {} {counts:?} {:?} {:?} {:?} {}",
        t.state, t.last_polled_at, t.progress, t.reopened_at, t.reference
    )
}

/// A cluster whose clock can be set.
struct Postgres {
    store: Store,
    pool: PgPool,
    _cluster: PrivatePostgres,
}

impl Postgres {
    async fn start() -> Self {
        let settings = vec![("allow_system_table_mods".to_owned(), "on".to_owned())];
        let start = || PrivatePostgres::start_with(&Options { settings, ..Options::default() });
        let cluster = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
        let admin = PgPoolOptions::new().connect(&cluster.admin_url()).await.unwrap();
        sqlx::raw_sql("create database differential").execute(&admin).await.unwrap();
        admin.close().await;
        let url = cluster.url("differential");
        let pool = PgPoolOptions::new().max_connections(2).connect(&url).await.unwrap();
        sqlx::raw_sql(CLOCK).execute(&pool).await.unwrap();
        paypoll::store::migrate(&url).await.unwrap();
        let settings = [("PAYPOLL__DATABASE__URL".to_owned(), url)];
        let config = config::Config::load(&[], settings.into_iter(), 1.0).unwrap();
        let store = Store::open_for_polling(&config.database).unwrap();
        Self { store, pool, _cluster: cluster }
    }

    /// Plays a sequence; what differs, if anything does.
    async fn play(&self, seed: u64, bug: Option<Bug>, telling: bool) -> Option<String> {
        let mut pair = Pair::new(self, seed, bug, telling).await;
        pair.tell(|| format!("\nPAYPOLL_SEED={seed}"));
        for step in 0..STEPS {
            pair.step(step).await;
            if pair.differs.is_some() {
                break;
            }
        }
        pair.differs
    }

    async fn stop(self) {
        self.store.close().await;
        self.pool.close().await;
    }
}

#[tokio::test]
async fn the_simulations_database_and_postgresql_do_the_same() {
    let postgres = Postgres::start().await;
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let one = number("PAYPOLL_SEED");
    let seeds = one.map_or(0..number("PAYPOLL_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let begun = Instant::now();
    for seed in seeds.clone() {
        let differs = postgres.play(seed, None, one.is_some()).await;
        assert!(differs.is_none(), "{}", differs.unwrap_or_default());
    }
    println!("{} sequences of {STEPS} commands in {:.0} s", seeds.count(), begun.elapsed().as_secs_f64());
    postgres.stop().await;
}

/// That the sequences find what they are there for.
#[tokio::test]
async fn what_is_planted_in_the_simulations_database_is_found_beside_postgresql() {
    let postgres = Postgres::start().await;
    for bug in PLANTED {
        let mut found = false;
        for seed in 0..FOUND_WITHIN {
            found = postgres.play(seed, Some(bug), false).await.is_some();
            if found {
                println!("{bug:?} is found by seed {seed}");
                break;
            }
        }
        assert!(found, "{bug:?} is not found");
    }
    postgres.stop().await;
}

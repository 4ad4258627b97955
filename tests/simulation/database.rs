//! The database in memory: what `src/store` and the migrations do, statement by statement, without SQL.

use crate::Micros;
use crate::bugs::Bug;
use chrono::{DateTime, TimeDelta, Timelike, Utc};
use paypoll::domain::{Progress, Source, State, Transaction, outcome};
use paypoll::store::{
    AHEAD, AccountState, Attempt, Batch, Beat, Candidate, Claim, ClaimOrder, Claimed, Draw, Drawn, Entry, LaneFound, Membership,
    Override, Placement, Poll, Recorded, ReplicaId, Writer,
};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::{Deref, DerefMut};
use std::time::Duration;
use uuid::Uuid;

/// A row of `paypoll.transactions`.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) transaction: Transaction,
    pub(crate) fence: i64,
    pub(crate) owner: Option<i64>,
    pub(crate) next: Option<DateTime<Utc>>,
    /// The fence that the last change by another writer raised it to.
    superseded: Option<i64>,
    not_before: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
}

impl Row {
    /// Another writer than its owner changes it.
    fn change(&mut self, fenced: bool) {
        self.fence += i64::from(fenced);
        self.superseded = Some(self.fence);
    }

    /// Reopened, or inserted long after its initiation.
    fn is_backlog(&self) -> bool {
        self.transaction.reopened_at.is_some() || self.created_at - self.transaction.initiated_at >= TimeDelta::minutes(10)
    }
}

/// A row of `paypoll.transitions`.
#[derive(Clone, Debug)]
pub(crate) struct Transition {
    pub(crate) transaction: Uuid,
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) source: &'static str,
}

/// A row of `paypoll.replicas`.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) process: Uuid,
    pub(crate) lease: Duration,
    pub(crate) heartbeat: DateTime<Utc>,
    complied: i64,
    held: Option<i64>,
}

/// A row of `paypoll.accounts`.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    arrival: DateTime<Utc>,
    pub(crate) held_until: Option<DateTime<Utc>>,
    pub(crate) slowdown: f64,
    slowed_at: Option<DateTime<Utc>>,
    pub(crate) circuit_since: Option<DateTime<Utc>>,
    probe_at: Option<DateTime<Utc>>,
}

impl Account {
    fn new() -> Self {
        Self {
            arrival: DateTime::UNIX_EPOCH,
            held_until: None,
            slowdown: 1.0,
            slowed_at: None,
            circuit_since: None,
            probe_at: None,
        }
    }
}

/// What was done to a row, for the checker.
#[derive(Clone, Debug)]
pub(crate) enum Fact {
    /// A replica took it.
    Claimed { id: Uuid, owner_lives: bool },
    /// A replica wrote it.
    Written {
        id: Uuid,
        claim_fence: i64,
        row_fence: i64,
        row_owner: Option<i64>,
        writer: i64,
        registered: bool,
        from: State,
        to: State,
        source: Option<Source>,
    },
    /// Another writer changed it.
    Overruled { id: Uuid, to: State, at: DateTime<Utc> },
    /// A poll was journaled.
    Journaled { id: Uuid, sent_at: DateTime<Utc>, in_time: bool },
}

/// What a statement comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// An earlier attempt's outcome is not known yet.
    InDoubt,
    /// A trigger or a check refuses a row.
    Row,
}

/// The database.
pub(crate) struct Database {
    bug: Option<Bug>,
    /// What its clock shows.
    pub(crate) clock: DateTime<Utc>,
    /// When a replica noticed that another server carries the history on.
    cut_at: Option<DateTime<Utc>>,
    /// No replica has noticed yet.
    another: bool,
    /// Which server it is: rises with every failover.
    pub(crate) server: u64,
    /// What a failover can lose.
    kept: Kept,
    /// Earlier states of it, the youngest last: what a standby that lags may be promoted with.
    earlier: VecDeque<(Micros, Kept)>,
    /// Committed, but not yet visible as such: process and number.
    undecided: HashSet<(Uuid, i64)>,
    /// Rows that a console keeps locked.
    pub(crate) locked: HashSet<Uuid>,
    /// Rows whose writes a trigger refuses.
    pub(crate) refusing: HashSet<Uuid>,
    /// Keys of which one request may be in flight: who has them, and until when.
    keys: HashMap<String, (Uuid, DateTime<Utc>)>,
    pub(crate) facts: Vec<Fact>,
}

/// The history: all that a backup or a standby has.
#[derive(Clone, Default)]
pub(crate) struct Kept {
    pub(crate) rows: BTreeMap<Uuid, Row>,
    pub(crate) polls: HashMap<Uuid, Vec<Poll>>,
    pub(crate) transitions: Vec<Transition>,
    pub(crate) replicas: BTreeMap<i64, Replica>,
    pub(crate) accounts: BTreeMap<(String, String), Account>,
    last_replica: i64,
    /// The last number of each process: its records, its claims.
    commits: HashMap<Uuid, (i64, i64)>,
}

impl Deref for Database {
    type Target = Kept;

    fn deref(&self) -> &Kept {
        &self.kept
    }
}

impl DerefMut for Database {
    fn deref_mut(&mut self) -> &mut Kept {
        &mut self.kept
    }
}

/// A standby lags behind by no more than this.
const LAG: Micros = 2_000_000;

/// PostgreSQL keeps microseconds.
fn stored(at: DateTime<Utc>) -> DateTime<Utc> {
    at.with_nanosecond(at.nanosecond() / 1_000 * 1_000).unwrap_or(at)
}

fn span(seconds: f64) -> TimeDelta {
    TimeDelta::microseconds((seconds * 1e6).round() as i64)
}

fn seconds(span: TimeDelta) -> f64 {
    span.num_microseconds().unwrap_or(i64::MAX) as f64 / 1e6
}

const RECOVERY_S: f64 = 20.0;
const SLOWEST: f64 = 32.0;

impl Database {
    pub(crate) fn new(bug: Option<Bug>, clock: DateTime<Utc>) -> Self {
        Self {
            bug,
            clock,
            cut_at: None,
            another: false,
            server: 0,
            kept: Kept::default(),
            earlier: VecDeque::new(),
            undecided: HashSet::new(),
            locked: HashSet::new(),
            refusing: HashSet::new(),
            keys: HashMap::new(),
            facts: Vec::new(),
        }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Remembers what there is now, for a failover later.
    pub(crate) fn remember(&mut self, now: Micros) {
        self.earlier.push_back((now, self.kept.clone()));
        while self.earlier.front().is_some_and(|(at, _)| *at < now - LAG) {
            self.earlier.pop_front();
        }
    }

    /// Another server takes over, with what it had at one of the moments that are remembered: `which`.
    pub(crate) fn fail_over(&mut self, which: usize) -> Option<Micros> {
        let (at, kept) = self.earlier.drain(..).nth(which)?;
        self.kept = kept;
        self.another = true;
        self.server += 1;
        self.undecided.clear();
        self.keys.clear();
        Some(at)
    }

    /// The number of the last batch that a process has written.
    pub(crate) fn last_record(&self, process: Uuid) -> i64 {
        self.commits.get(&process).map_or(0, |(records, _)| *records)
    }

    /// How many moments are remembered.
    pub(crate) fn remembered(&self) -> usize {
        self.earlier.len()
    }

    fn journal(&mut self, transaction: Uuid, from: State, to: State, source: &'static str) {
        self.transitions.push(Transition { transaction, from, to, source });
    }
}

/// The daemon's statements.
impl Database {
    pub(crate) fn make_accounts(&mut self, names: impl Iterator<Item = (String, String)>) {
        for name in names {
            self.accounts.entry(name).or_insert_with(Account::new);
        }
    }

    /// `name`: the number that a replica would use again if it went by its name.
    pub(crate) fn register(&mut self, process: Uuid, lease: Duration, name: i64) -> ReplicaId {
        self.last_replica += 1;
        let id = if self.has(Bug::LeaseByName) { name } else { self.last_replica };
        let heartbeat = self.clock;
        self.replicas.insert(id, Replica { process, lease, heartbeat, complied: 0, held: None });
        ReplicaId(id)
    }

    pub(crate) fn beat(
        &mut self,
        replica: ReplicaId,
        process: Uuid,
        complied: i64,
        held: i64,
        judge: Option<DateTime<Utc>>,
    ) -> Beat {
        let clock = self.clock;
        if let Some(judge) = judge {
            let now = if self.has(Bug::JudgedByALeap) { clock } else { clock.min(judge) };
            self.replicas
                .retain(|id, row| *id == replica.0 || row.heartbeat >= now - TimeDelta::from_std(row.lease).expect("short"));
        }
        let by_name = self.has(Bug::LeaseByName);
        let own = self.replicas.get_mut(&replica.0).filter(|row| row.process == process || by_name);
        let alive = own.map(|row| (row.heartbeat, row.complied, row.held) = (clock, complied, Some(held))).is_some();
        let living: Vec<(i64, i64)> = self.replicas.iter().map(|(id, row)| (*id, row.complied)).collect();
        let peers = self.replicas.iter().filter(|(id, _)| **id != replica.0).filter_map(|(_, row)| row.held).collect();
        let members = Membership { peers, ..Membership::new(replica.0, &living) };
        let (mut recorded, mut claimed) = self.commits.get(&process).copied().unwrap_or_default();
        if self.has(Bug::LostCommitsUnnoticed) {
            (recorded, claimed) = (i64::MAX, i64::MAX);
        }
        if std::mem::take(&mut self.another) {
            self.cut_at = Some(clock);
        }
        let cut_at = self.cut_at.filter(|_| !self.has(Bug::FailoverUnnoticed));
        let unaware = self.replicas.iter().any(|(id, row)| *id != replica.0 && cut_at.is_some_and(|at| row.heartbeat < at));
        Beat { alive, members, clock, recorded, claimed, cut_at, unaware }
    }

    pub(crate) fn deregister(&mut self, replica: ReplicaId, process: Uuid) {
        if self.replicas.get(&replica.0).is_some_and(|row| row.process == process) {
            self.replicas.remove(&replica.0);
        }
    }

    pub(crate) fn claim(
        &mut self,
        order: &ClaimOrder,
        place: &mut dyn FnMut(&mut Candidate) -> Placement,
        unsure: &mut Vec<Uuid>,
    ) -> Result<Claim, Refusal> {
        let replica = order.replica;
        for id in unsure.drain(..).filter(|_| !self.has(Bug::LostClaimForgotten)).collect::<Vec<_>>() {
            self.set_free(replica, id, None);
        }
        for id in &order.abandoned {
            self.set_free(replica, *id, Some(0));
        }
        let mut claim = Claim { clock: Some(self.clock), ..Claim::default() };
        for room in &order.lanes {
            let due = |row: &Row, since| row.next.filter(|next| *next >= since && *next <= self.clock);
            let surveyed = self.rows.values().filter(|row| {
                row.transaction.provider == room.provider
                    && row.transaction.account == room.account
                    && room.survey.is_some_and(|since| due(row, since).is_some())
            });
            if !self.has(Bug::OwnRowsUnsurveyed) {
                claim.own.extend(surveyed.filter(|row| row.owner == Some(replica.0)).map(|row| (row.transaction.id, row.fence)));
            }
        }
        for (lane, room) in order.lanes.iter().enumerate() {
            let free = |row: &Row| match row.owner {
                Some(owner) => {
                    let dead = owner <= order.members.newest && !order.members.living.contains(&owner);
                    self.has(Bug::ClaimFromTheLiving) || (dead && !self.replicas.contains_key(&owner))
                }
                None => true,
            };
            let found = |backlog: bool, since: DateTime<Utc>, most: usize| {
                let mut due: Vec<(DateTime<Utc>, Uuid)> = (self.rows.values())
                    .filter(|row| row.transaction.provider == room.provider && row.transaction.account == room.account)
                    .filter(|row| !self.locked.contains(&row.transaction.id) && !order.avoid.contains(&row.transaction.id))
                    .filter(|row| row.is_backlog() == backlog)
                    .filter_map(|row| {
                        row.next.filter(|next| *next >= since && *next <= order.horizon && free(row)).map(|next| (next, row))
                    })
                    .map(|(next, row)| (next, row.transaction.id))
                    .collect();
                due.sort_unstable();
                due.truncate(most);
                due
            };
            let ordinary = found(false, room.since, room.room);
            let backlog = found(true, room.backlog_since, room.backlog_room);
            claim.found.push(LaneFound {
                ordinary: ordinary.len(),
                last: ordinary.last().map(|(at, _)| *at),
                backlog: backlog.len(),
                backlog_last: backlog.last().map(|(at, _)| *at),
                survey: None,
            });
            let mut due: Vec<_> = ordinary.into_iter().chain(backlog).collect();
            due.sort_unstable();
            for (due, id) in due {
                let mut candidate = self.candidate(id, lane, due);
                let placement = place(&mut candidate);
                if placement != Placement::Leave && self.refusing.contains(&id) {
                    if self.has(Bug::OneRefusedRowStopsTheClaim) {
                        return Err(Refusal::Row);
                    }
                    claim.refused.push((id, "no".into()));
                    continue;
                }
                if placement != Placement::Leave {
                    self.commits.entry(order.process).or_default().1 = order.number;
                }
                claim.held.extend(self.take(replica, candidate, placement));
            }
        }
        Ok(claim)
    }

    pub(crate) fn owned(&self, replica: ReplicaId, ids: &[Uuid]) -> Vec<(Uuid, i64)> {
        let own = |row: &&Row| row.owner == Some(replica.0) && row.next.is_some();
        ids.iter().filter_map(|id| self.rows.get(id)).filter(own).map(|row| (row.transaction.id, row.fence)).collect()
    }

    fn set_free(&mut self, replica: ReplicaId, id: Uuid, owner: Option<i64>) {
        // A failover may have lost the row itself.
        let Some(row) = self.rows.get_mut(&id).filter(|row| row.owner == Some(replica.0)) else { return };
        row.owner = owner;
        row.fence += 1;
    }

    fn candidate(&self, id: Uuid, lane: usize, due: DateTime<Utc>) -> Candidate {
        let row = &self.rows[&id];
        let mut transaction = row.transaction.clone();
        let mut unplanned = Vec::new();
        if row.owner.is_some() && !self.has(Bug::JournalNotConsulted) {
            let polled = transaction.last_polled_at.unwrap_or(transaction.initiated_at - TimeDelta::days(1));
            let mut polls: Vec<&Poll> = self.polls.get(&id).into_iter().flatten().filter(|poll| poll.sent_at > polled).collect();
            polls.sort_by_key(|poll| poll.sent_at);
            for poll in polls {
                transaction.attempts += 1;
                transaction.last_polled_at = Some(poll.sent_at);
                (transaction.failures, transaction.not_found) =
                    outcome::count(poll.outcome, transaction.failures, transaction.not_found);
                transaction.progress.answered |= outcome::is_usable(poll.outcome);
                unplanned.push(poll.sent_at);
            }
        }
        Candidate {
            transaction,
            lane,
            due,
            fresh: row.fence == 0,
            orphan: row.owner.is_some() && !self.has(Bug::InFlightForgotten),
            not_before: row.not_before,
            unplanned,
            flaw: None,
            backlog: row.is_backlog(),
            fence: row.fence,
        }
    }

    fn take(&mut self, replica: ReplicaId, candidate: Candidate, placement: Placement) -> Option<Claimed> {
        let (owner, due) = match placement {
            Placement::Hold(due) => (Some(replica.0), due),
            Placement::Later(due) => (None, due),
            Placement::Leave => return None,
        };
        let forgotten = owner.is_none() && self.has(Bug::PlannedForgotten);
        let id = candidate.transaction.id;
        let Kept { rows, replicas, .. } = &mut self.kept;
        let row = rows.get_mut(&id).expect("it was found");
        let owner_lives = row.owner.is_some_and(|owner| replicas.contains_key(&owner));
        self.facts.push(Fact::Claimed { id, owner_lives });
        row.fence += 1;
        row.owner = owner;
        row.next = (!forgotten).then_some(stored(due));
        row.not_before = candidate.not_before;
        row.transaction = candidate.transaction.clone();
        owner.map(|_| Claimed {
            lane: candidate.lane,
            transaction: candidate.transaction,
            fence: row.fence,
            due,
            flaw: candidate.flaw,
            backlog: candidate.backlog,
        })
    }

    pub(crate) fn record(&mut self, writer: Writer, batch: &Batch, attempt: &mut Attempt) -> Result<Recorded, Refusal> {
        let Writer { replica, process, number, acknowledged } = writer;
        if self.undecided.contains(&(process, number)) {
            return Err(Refusal::InDoubt);
        }
        let committed = self.commits.get(&process).is_some_and(|(records, _)| *records >= number);
        if committed && !self.has(Bug::LostAnswerWrittenTwice) {
            return Ok(attempt.0.clone().expect("a number is used once"));
        }
        attempt.0 = None;
        let by_name = self.has(Bug::LeaseByName);
        let registered = self.replicas.get(&replica.0).is_some_and(|row| row.process == process || by_name);
        let before = self.commits.get(&process).map_or(0, |(records, _)| *records);
        let history_cut = (before < acknowledged && !self.has(Bug::LostCommitsUnnoticed)).then_some(before);
        let lease_lost = !registered && !self.has(Bug::LeaseIgnored);
        let mut recorded = Recorded { lease_lost, history_cut, ..Recorded::default() };
        let journal_only = recorded.is_journal_only();
        let replica = if recorded.lease_lost { ReplicaId(0) } else { replica };
        let entries = batch.entries.iter().map(|entry| entry.id).chain(batch.dropped.iter().copied());
        let polls = batch.polls.iter().map(|poll| poll.transaction_id).filter(|_| journal_only);
        recorded.locked = entries.chain(polls).filter(|id| self.locked.contains(id)).collect();
        let mut batch = batch.clone();
        drop(batch.split_off(|id| recorded.locked.contains(&id)));
        if !journal_only && batch.entries.iter().any(|entry| self.refusing.contains(&entry.id)) {
            return Err(Refusal::Row);
        }
        for poll in &batch.polls {
            let sent_at = stored(poll.sent_at);
            self.polls.entry(poll.transaction_id).or_default().push(Poll { sent_at, ..poll.clone() });
            self.facts.push(Fact::Journaled { id: poll.transaction_id, sent_at, in_time: registered });
        }
        if !journal_only {
            for entry in &batch.entries {
                if !self.write(replica, entry) {
                    recorded.refused.insert(entry.id);
                }
            }
        }
        let mut late: HashSet<Uuid> = batch.dropped.iter().chain(&recorded.refused).copied().collect();
        if journal_only {
            late.extend(batch.polls.iter().map(|poll| poll.transaction_id));
            late.extend(batch.entries.iter().filter(|entry| entry.polls > 0).map(|entry| entry.id));
        }
        for id in late {
            self.count_late(replica, id, &batch.polls);
        }
        self.commits.entry(process).or_default().0 = number;
        attempt.0 = Some(recorded.clone());
        Ok(recorded)
    }

    /// The commit of that attempt has happened, and is not visible yet.
    pub(crate) fn hide_commit(&mut self, process: Uuid, number: i64) {
        self.undecided.insert((process, number));
    }

    /// Every commit is visible again.
    pub(crate) fn reveal_commits(&mut self) {
        self.undecided.clear();
    }

    fn write(&mut self, replica: ReplicaId, entry: &Entry) -> bool {
        let bug = self.bug;
        let registered = self.replicas.contains_key(&replica.0);
        let Some(row) = self.kept.rows.get_mut(&entry.id) else { return false };
        if (row.fence != entry.fence || row.owner != Some(replica.0)) && bug != Some(Bug::NoFencing) {
            return false;
        }
        let source = entry.transition.as_ref().map(|transition| transition.source);
        let transaction = &mut row.transaction;
        self.facts.push(Fact::Written {
            id: entry.id,
            claim_fence: entry.fence,
            row_fence: row.fence,
            row_owner: row.owner,
            writer: replica.0,
            registered,
            from: transaction.state,
            to: entry.state,
            source,
        });
        row.fence += 1;
        row.owner = entry.hold.then_some(replica.0);
        row.next = entry.next.map(stored).filter(|_| entry.state.is_polled());
        transaction.state = entry.state;
        transaction.provider_state = entry.provider_state.clone().map(Into::into).or(transaction.provider_state.take());
        transaction.attempts += entry.polls;
        transaction.failures = entry.failures;
        transaction.not_found = entry.not_found;
        transaction.last_polled_at = transaction.last_polled_at.max(entry.last_polled_at.map(stored));
        transaction.action_at = entry.action_at.map(stored);
        transaction.progress = kept(entry.progress);
        if let Some(transition) = entry.transition.as_ref().filter(|_| bug != Some(Bug::TransitionNotWritten)) {
            let source = transition.source.as_str();
            self.journal(entry.id, transition.from, entry.state, source);
            if bug == Some(Bug::TransitionWrittenTwice) {
                self.journal(entry.id, transition.from, entry.state, source);
            }
        }
        true
    }

    fn count_late(&mut self, replica: ReplicaId, id: Uuid, batch: &[Poll]) {
        let polls: Vec<DateTime<Utc>> = self.polls.get(&id).into_iter().flatten().map(|poll| poll.sent_at).collect();
        let Kept { rows, replicas, .. } = &mut self.kept;
        let Some(row) = rows.get_mut(&id) else { return };
        let lives = row.owner.is_some_and(|owner| replicas.contains_key(&owner));
        let held = lives && row.owner != Some(replica.0);
        let transaction = &mut row.transaction;
        let mine: Vec<DateTime<Utc>> =
            batch.iter().filter(|poll| poll.transaction_id == id).map(|poll| stored(poll.sent_at)).collect();
        let since = transaction.last_polled_at;
        let unknown: Vec<DateTime<Utc>> = polls.into_iter().filter(|at| since.is_none_or(|since| *at > since)).collect();
        let known = |at: &DateTime<Utc>| held || since.is_some_and(|since| *at <= since);
        let mut counted: Vec<DateTime<Utc>> = mine.into_iter().filter(known).collect();
        let settled = row.next.is_none();
        counted.extend(unknown.into_iter().filter(|_| settled && !held));
        if self.bug != Some(Bug::LatePollNotCounted) {
            transaction.attempts += counted.len() as u32;
        }
        transaction.last_polled_at = counted.into_iter().chain(since).max();
        if !held {
            let other = row.owner.filter(|owner| *owner != replica.0);
            row.owner = if settled { None } else { Some(other.unwrap_or(0)) };
        }
    }

    pub(crate) fn draw(&mut self, draws: &[Draw]) -> Vec<Drawn> {
        let clock = self.clock;
        let mut drawn = Vec::new();
        for (lane, draw) in draws.iter().enumerate() {
            if self.has(Bug::LimiterPerProcess) {
                drawn.push(Drawn { lane, clock, ahead: 0.0, gap: draw.gap.as_secs_f64(), slots: draw.wanted });
                continue;
            }
            let account = self.account((draw.provider, &draw.account));
            let tolerance = draw.tolerance.as_secs_f64();
            let recovered = account.slowed_at.map_or(0.0, |at| seconds(clock - at).max(0.0) / RECOVERY_S);
            let gap = draw.gap.as_secs_f64() * (account.slowdown * 0.5_f64.powf(recovered)).max(1.0);
            let farthest = AHEAD.as_secs_f64() + tolerance + (1.0 + SLOWEST) * draw.gap.as_secs_f64();
            let lead = seconds(account.arrival - clock).clamp(0.0, farthest);
            let slots = if account.held_until.is_some_and(|until| until > clock) {
                0
            } else {
                let most = ((AHEAD.as_secs_f64() + tolerance - lead) / gap).floor() + 1.0;
                f64::from(draw.wanted).min(most.max(0.0)) as u32
            };
            if slots > 0 || lead >= farthest {
                account.arrival = clock + span(lead + f64::from(slots) * gap);
            }
            drawn.push(Drawn { lane, clock, ahead: lead - tolerance, gap, slots });
        }
        drawn
    }

    pub(crate) fn slow_down(&mut self, name: (&str, &str), wait: Duration) {
        let clock = self.clock;
        let account = self.account(name);
        let until = clock + span(wait.as_secs_f64());
        account.held_until = account.held_until.max(Some(until));
        if account.slowed_at.is_none_or(|at| at <= clock - TimeDelta::seconds(1)) {
            let since = account.slowed_at.map_or(0.0, |at| seconds(clock - at) / RECOVERY_S);
            account.slowdown = (2.0 * (account.slowdown * 0.5_f64.powf(since)).max(1.0)).min(SLOWEST);
        }
        account.slowed_at = account.slowed_at.max(Some(until));
    }

    pub(crate) fn open_circuit(&mut self, name: (&str, &str), probe_after: Duration) {
        let clock = self.clock;
        let account = self.account(name);
        if account.circuit_since.is_none() {
            account.circuit_since = Some(clock);
            account.probe_at = Some(clock + span(probe_after.as_secs_f64()));
        }
    }

    pub(crate) fn close_circuit(&mut self, name: (&str, &str)) {
        let account = self.account(name);
        (account.circuit_since, account.probe_at) = (None, None);
    }

    pub(crate) fn take_probe(&mut self, name: (&str, &str), probe_after: Duration) -> bool {
        let (clock, every) = (self.clock, self.has(Bug::ProbeByEveryReplica));
        let account = self.account(name);
        let may = account.circuit_since.is_some() && (every || account.probe_at.is_some_and(|at| at <= clock));
        if may {
            account.probe_at = Some(clock + span(probe_after.as_secs_f64()));
        }
        may
    }

    fn account(&mut self, (provider, account): (&str, &str)) -> &mut Account {
        // A failover may have lost it.
        self.accounts.entry((provider.to_owned(), account.to_owned())).or_insert_with(Account::new)
    }

    pub(crate) fn account_states(&self) -> Vec<AccountState> {
        let clock = self.clock;
        let told = |(name, account): (&(String, String), &Account)| AccountState {
            provider: name.0.clone(),
            account: name.1.clone(),
            held_until: account.held_until.filter(|_| !self.has(Bug::RetryAfterNotShared)),
            probe_at: account.probe_at,
            reason: account.probe_at.map(|_| "open".to_owned()),
            paused: None,
        };
        let notice = |account: &Account| account.circuit_since.is_some() || account.held_until.is_some_and(|until| until > clock);
        self.accounts.iter().filter(|(_, account)| notice(account)).map(told).collect()
    }

    pub(crate) fn overrides(&self, replica: ReplicaId) -> Vec<Override> {
        if self.has(Bug::VerdictsUnwatched) {
            return Vec::new();
        }
        let changed = self.rows.values().filter(|row| row.owner == Some(replica.0) && row.superseded == Some(row.fence));
        changed.map(|row| Override { id: row.transaction.id, fence: row.fence }).collect()
    }

    /// Takes a key of which one request may be in flight.
    pub(crate) fn take_key(&mut self, key: &str, process: Uuid, longest: Duration) -> bool {
        let (clock, every) = (self.clock, self.has(Bug::KeyPerProcess));
        let longest = if self.has(Bug::KeyNeverExpires) { Duration::from_secs(86_400) } else { longest };
        let free = self.keys.get(key).is_none_or(|(owner, until)| *owner == process || *until < clock || every);
        if free {
            self.keys.insert(key.to_owned(), (process, clock + span(longest.as_secs_f64())));
        }
        free
    }

    pub(crate) fn give_key_back(&mut self, key: &str, process: Uuid) {
        if self.keys.get(key).is_some_and(|(owner, _)| *owner == process) {
            self.keys.remove(key);
        }
    }

    pub(crate) fn abandon_circuit(&mut self, name: (&str, &str)) {
        let clock = self.clock;
        let any = self
            .rows
            .values()
            .any(|row| row.next.is_some() && row.transaction.provider == name.0 && *row.transaction.account == *name.1);
        let account = self.account(name);
        if !any && account.circuit_since.is_some_and(|since| since < clock - TimeDelta::minutes(10)) {
            (account.circuit_since, account.probe_at) = (None, None);
        }
    }
}

/// The times of a progress as the row keeps them.
fn kept(progress: Progress) -> Progress {
    Progress { opened_at: progress.opened_at.map(stored), phase_since: progress.phase_since.map(stored), ..progress }
}

/// What others do.
impl Database {
    pub(crate) fn insert(&mut self, transaction: Transaction) {
        let created_at = self.clock;
        let row =
            Row { fence: 0, owner: None, next: Some(created_at), superseded: None, not_before: None, created_at, transaction };
        self.rows.insert(row.transaction.id, row);
    }

    /// A callback handler's verdict. Refused where a final state says otherwise.
    pub(crate) fn settle(&mut self, id: Uuid, state: State) -> bool {
        let unfenced = self.has(Bug::VerdictUnfenced);
        self.count_unsaved(id);
        let Some(row) = self.rows.get_mut(&id) else { return false };
        let from = row.transaction.state;
        if from.is_final() || from == state {
            return false;
        }
        row.transaction.state = state;
        row.next = None;
        row.change(!unfenced);
        self.free(id);
        self.journal(id, from, state, "external");
        self.facts.push(Fact::Overruled { id, to: state, at: self.clock });
        true
    }

    /// An operator reopens a parked transaction: `paypoll retry`.
    pub(crate) fn reopen(&mut self, id: Uuid) -> bool {
        let clock = self.clock;
        let Some(row) = self.rows.get_mut(&id) else { return false };
        let from = row.transaction.state;
        if !matches!(from, State::Unresolved | State::Invalid) {
            return false;
        }
        let transaction = &mut row.transaction;
        transaction.state = State::Pending;
        transaction.reopened_at = Some(clock);
        (transaction.failures, transaction.not_found) = (0, 0);
        transaction.progress = Progress::default();
        row.next = Some(clock);
        row.change(true);
        self.count_unsaved(id);
        self.free(id);
        self.journal(id, from, State::Pending, "operator");
        self.facts.push(Fact::Overruled { id, to: State::Pending, at: clock });
        true
    }

    /// A correction of the row: of the amount, say.
    pub(crate) fn correct(&mut self, id: Uuid) {
        let Some(row) = self.rows.get_mut(&id) else { return };
        row.change(true);
        self.free(id);
    }

    /// Counts what the owner has journaled since the row was last written.
    fn count_unsaved(&mut self, id: Uuid) {
        let polls: Vec<DateTime<Utc>> = self.polls.get(&id).into_iter().flatten().map(|poll| poll.sent_at).collect();
        let Some(row) = self.rows.get_mut(&id).filter(|row| row.owner.is_some()) else { return };
        let since = row.transaction.last_polled_at;
        for at in polls.into_iter().filter(|at| since.is_none_or(|since| *at > since)) {
            row.transaction.attempts += 1;
            row.transaction.last_polled_at = row.transaction.last_polled_at.max(Some(at));
        }
    }

    fn free(&mut self, id: Uuid) {
        if self.has(Bug::VerdictFreesTheRow) {
            self.rows.get_mut(&id).expect("a known transaction").owner = None;
        }
    }

    /// An early poll is requested.
    pub(crate) fn hurry(&mut self, id: Uuid) {
        let clock = self.clock;
        let Some(row) = self.rows.get_mut(&id) else { return };
        let next = row.next.map(|_| clock);
        if next != row.next && row.owner.is_some_and(|owner| owner != 0) {
            row.change(true);
        }
        row.next = next;
    }
}

/// Microseconds between two moments.
pub(crate) fn micros(from: DateTime<Utc>, to: DateTime<Utc>) -> Micros {
    (to - from).num_microseconds().unwrap_or(i64::MAX)
}

//! The nine invariants, checked after every step from what the providers saw and what the database
//! holds. The checker knows the published rules; it knows nothing of the engine.

use crate::Micros;
use crate::accounts::{self, ACCOUNTS, LEASE, PROBE_AFTER, TIMEOUT};
use crate::database::{Database, Fact, micros};
use crate::provider::Provider;
use chrono::{DateTime, Utc};
use paypoll::domain::{Rules, State};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;
use uuid::Uuid;

/// A request as the provider saw it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) id: Uuid,
    pub(crate) account: usize,
    pub(crate) at: Micros,
    /// Until then it is in flight.
    pub(crate) until: Micros,
    /// Which life of which process sent it.
    pub(crate) sender: (usize, u64),
    /// Its registration, when the request was decided.
    pub(crate) replica: i64,
    /// The answer closes an open circuit.
    pub(crate) heals: bool,
    /// One request at a time may be in flight with it.
    pub(crate) key: Option<String>,
}

/// What is known of one transaction.
struct Life {
    account: usize,
    /// When it came into being at the provider.
    initiated: Micros,
    requests: Vec<Request>,
    /// When the polls of the journal were sent, and whether they were recorded under a lease.
    journaled: Vec<(DateTime<Utc>, bool)>,
    /// When it was last put beyond polling.
    settled: Option<Micros>,
    /// Another writer did.
    overruled: bool,
    /// When this window was opened, by the database's clock: at the initiation or by an operator.
    anchor: DateTime<Utc>,
    /// Its first poll, as far as it was recorded in time.
    opened: Option<DateTime<Utc>>,
    /// A failover may have lost something of it.
    cut: bool,
}

/// Checks.
pub(crate) struct Checker {
    rules: Vec<Rules>,
    lives: HashMap<Uuid, Life>,
    requests: Vec<VecDeque<Request>>,
    /// When the database's clock was set forward, and by how much.
    leaps: Vec<(Micros, Micros)>,
    /// The clock was set back at some time: times in the journal are no order any more.
    went_back: bool,
    /// When the database's history was cut back, and when it could be reached again.
    cuts: Vec<(Micros, Micros)>,
    /// Since when nothing was wrong with the world.
    pub(crate) fine_since: Micros,
    /// Processes that ended without a word.
    pub(crate) dead: HashSet<(usize, u64)>,
    /// Since when a circuit is open.
    open_since: Vec<Option<Micros>>,
    /// The provider's pauses that were written to the database: from when, until when.
    pauses: Vec<(usize, Micros, Micros)>,
    seen_transitions: usize,
    state: HashMap<Uuid, State>,
}

/// How long a verdict or a pause may take to reach every process while nothing is wrong.
const NEWS: Micros = 1_500_000;
/// A process may send for this long after it last read the database's clock.
const UNNOTICED: Micros = 3_000_000;
/// This many requests of an account are remembered: more than fit into the seconds that are
/// checked.
const REMEMBERED: usize = 200;

fn long(span: Duration) -> Micros {
    i64::try_from(span.as_micros()).expect("short")
}

impl Checker {
    pub(crate) fn new() -> Self {
        Self {
            rules: (0..ACCOUNTS).map(accounts::rules).collect(),
            lives: HashMap::new(),
            requests: vec![VecDeque::new(); ACCOUNTS],
            leaps: Vec::new(),
            went_back: false,
            cuts: Vec::new(),
            fine_since: 0,
            dead: HashSet::new(),
            open_since: vec![None; ACCOUNTS],
            pauses: Vec::new(),
            seen_transitions: 0,
            state: HashMap::new(),
        }
    }

    pub(crate) fn born(&mut self, id: Uuid, account: usize, initiated: Micros, anchor: DateTime<Utc>) {
        let life = Life {
            account,
            initiated,
            requests: Vec::new(),
            journaled: Vec::new(),
            settled: None,
            overruled: false,
            anchor,
            opened: None,
            cut: false,
        };
        self.lives.insert(id, life);
        self.state.insert(id, State::Pending);
    }

    /// A process wrote to the database that the provider wants a pause.
    pub(crate) fn paused(&mut self, account: usize, now: Micros, wait: Duration) {
        self.pauses.push((account, now, now + long(wait)));
    }

    pub(crate) fn clock_was_set(&mut self, now: Micros, by: Micros) {
        if by > 0 {
            self.leaps.push((now, by));
        } else {
            self.went_back = true;
        }
    }

    /// The database went on with an earlier state of itself. What was written since is gone, which
    /// is no fault. What must hold all the same: no transaction is polled too early, and every
    /// transaction goes on.
    pub(crate) fn history_was_cut(&mut self, now: Micros, back: Micros, database: &Database) {
        self.cuts.push((now, back));
        self.pauses.clear();
        self.lives.retain(|id, _| database.rows.contains_key(id));
        for (id, life) in &mut self.lives {
            let row = &database.rows[id];
            life.cut = true;
            life.opened = None;
            life.settled = (!row.transaction.state.is_polled()).then_some(back);
            life.anchor = row.transaction.anchors().start;
            let polls = database.polls.get(id);
            life.journaled = polls.into_iter().flatten().map(|poll| (poll.sent_at, true)).collect();
        }
        self.state = database.rows.iter().map(|(id, row)| (*id, row.transaction.state)).collect();
        self.seen_transitions = database.transitions.len();
    }

    /// Whether the history was cut back since then, with this long to hear of it.
    fn was_cut(&self, since: Micros, hearing: Micros) -> bool {
        self.cuts.iter().any(|(_, back)| back + hearing > since)
    }

    /// By how much the database's clock, which decides what is due, was set forward since then. A
    /// wait that it was set over is so much shorter, and no process could know. A sender has read
    /// the clock not long ago, but may not know of a step yet.
    fn leapt(&self, since: Micros) -> Micros {
        self.leaps.iter().filter(|(at, _)| *at >= since - UNNOTICED).map(|(_, by)| by).sum()
    }

    /// A request reaches a provider.
    pub(crate) fn asked(&mut self, request: Request, database: &Database) -> Result<(), String> {
        // A failover may have lost it while a replica still had it.
        let Some(life) = self.lives.get(&request.id) else { return Ok(()) };
        let rules = &self.rules[life.account];
        // What a failover lost, the plan cannot count on; the documented floor holds by what the
        // processes remember, if they still live.
        let cut = life.requests.last().is_some_and(|last| self.was_cut(last.at, 0));
        let forgotten = cut && life.requests.last().is_some_and(|last| self.dead.contains(&last.sender));
        let plan = rules.plan.phases.iter().map(|phase| phase.every.min).min().unwrap_or_default();
        let floor = if cut { rules.floors.every } else { plan.max(rules.floors.every) };
        if let Some(last) = life.requests.last().filter(|_| !forgotten) {
            let gap = request.at - last.at;
            if gap + self.leapt(last.at) < long(floor) {
                return Err(format!("floor: {} asked {gap} us after the last request by {:?}", name(request.id), last.sender));
            }
            // Right after a leap a replica that starts may take another one for dead.
            if last.until > request.at && self.leapt(last.at) == 0 && !cut {
                return Err(format!("two polls in flight: {} asked before {:?} had its answer", name(request.id), last.sender));
            }
        }
        let age = request.at - life.initiated;
        if age + self.leapt(life.initiated) < long(rules.floors.first) {
            return Err(format!("first floor: {} asked {age} us after its initiation", name(request.id)));
        }
        self.check_lease(&request, database)?;
        self.check_budget(&request)?;
        self.check_news(&request)?;
        let seen = &mut self.requests[request.account];
        seen.push_back(request.clone());
        if seen.len() > REMEMBERED {
            seen.pop_front();
        }
        self.lives.get_mut(&request.id).expect("born").requests.push(request);
        Ok(())
    }

    fn check_lease(&self, request: &Request, database: &Database) -> Result<(), String> {
        let lease = long(LEASE);
        match database.replicas.get(&request.replica) {
            Some(row) if micros(row.heartbeat, database.clock) <= lease + self.leapt(request.at - lease) => Ok(()),
            None if self.leapt(request.at - 2 * lease) > 0 => Ok(()),
            // Until its next heartbeat it cannot know what was lost.
            _ if self.was_cut(request.at, UNNOTICED) => Ok(()),
            _ => Err(format!("lease: {:?} asked about {} after the end of its lease", request.sender, name(request.id))),
        }
    }

    fn check_budget(&self, request: &Request) -> Result<(), String> {
        let (rate, max_in_flight) = accounts::budget(request.account);
        let seen = &self.requests[request.account];
        let second = request.at - 1_000_000;
        // Slots that were drawn before the clock was set are used by what it showed then.
        let leaps = self.leaps.iter().filter(|(at, _)| *at > second - SLOTS).count() as u32;
        // So are those that a failover forgot.
        let leaps = leaps + self.cuts.iter().filter(|(_, back)| *back > second - SLOTS).count() as u32;
        let allowed = rate.per_second.ceil() as usize + (rate.burst * (1 + leaps)) as usize;
        let sent = 1 + seen.iter().filter(|other| other.at > second).count();
        if sent > allowed {
            return Err(format!("budget: {sent} requests of account {} in a second, {allowed} allowed", request.account));
        }
        let cut = self.was_cut(request.at, long(LEASE) + UNNOTICED);
        if let Some(key) = &request.key
            && !cut
            && seen
                .iter()
                .filter(|other| other.until > request.at && other.key.as_ref() == Some(key))
                // A leap of the clock may end the key before its request.
                .any(|other| !self.dead.contains(&other.sender) && self.leapt(other.at) == 0)
        {
            return Err(format!("exclusive: two requests with the key {key} in flight"));
        }
        let in_flight = 1 + seen.iter().filter(|other| other.until > request.at).count();
        if in_flight > max_in_flight as usize && !cut {
            return Err(format!("budget: {in_flight} requests of account {} in flight, {max_in_flight} allowed", request.account));
        }
        Ok(())
    }

    /// What every replica must have heard by now: other writers' changes, pauses, open circuits.
    fn check_news(&self, request: &Request) -> Result<(), String> {
        let heard = request.at - NEWS;
        if self.fine_since > heard || self.leapt(heard) > 0 || self.was_cut(heard, 0) {
            return Ok(());
        }
        let life = &self.lives[&request.id];
        if life.settled.is_some_and(|at| at < heard) {
            return Err(format!("settled: {} asked long after it was settled", name(request.id)));
        }
        let paused = |(account, from, until): &(usize, Micros, Micros)| {
            *account == request.account && *from < heard && *until > request.at + 50_000 + self.leapt(*from)
        };
        if self.pauses.iter().any(paused) {
            return Err(format!("pause: account {} asked although the provider wants a pause", request.account));
        }
        if let Some(since) = self.open_since[request.account]
            && since < heard
        {
            let seen = &self.requests[request.account];
            // A replica that has just had a good answer polls on, while the database is still being
            // notified.
            let healed = seen.iter().any(|other| other.heals && other.until <= request.at && other.until > heard);
            let from = (request.at - long(PROBE_AFTER) / 2).max(since + NEWS);
            if !healed && seen.iter().any(|other| other.at > from) {
                return Err(format!("circuit: account {} probed twice in one interval", request.account));
            }
        }
        Ok(())
    }

    /// After every step: what was done to the database, and what it holds.
    pub(crate) fn step(&mut self, now: Micros, database: &mut Database, provider: &Provider) -> Result<(), String> {
        self.note_accounts(now, database);
        let facts = std::mem::take(&mut database.facts);
        if facts.is_empty() {
            return Ok(());
        }
        for fact in &facts {
            self.check_fact(now, fact, provider)?;
        }
        self.check_transitions(database)?;
        if database.rows.len() != self.lives.len() {
            return Err("a row was lost".into());
        }
        self.check_rows(database)
    }

    fn note_accounts(&mut self, now: Micros, database: &Database) {
        for (number, (provider, account)) in accounts::NAMES.iter().enumerate() {
            let row = database.accounts.get(&((*provider).to_owned(), (*account).to_owned()));
            match row.and_then(|row| row.circuit_since) {
                Some(_) => _ = self.open_since[number].get_or_insert(now),
                None => self.open_since[number] = None,
            }
        }
    }

    fn check_fact(&mut self, now: Micros, fact: &Fact, provider: &Provider) -> Result<(), String> {
        match *fact {
            Fact::Claimed { id, owner_lives: true } => Err(format!("claim: {} was taken from a living replica", name(id))),
            Fact::Claimed { .. } => Ok(()),
            Fact::Written { id, claim_fence, row_fence, row_owner, writer, registered, from, to, source } => {
                if row_owner != Some(writer) {
                    return Err(format!("owner: {} was written by {writer}, it belongs to {row_owner:?}", name(id)));
                }
                if claim_fence != row_fence {
                    return Err(format!("fence: {} was written with fence {claim_fence}, it is {row_fence}", name(id)));
                }
                if !registered {
                    return Err(format!("lease: {} was written by a replica that has lost its lease", name(id)));
                }
                if from.is_final() && to != from {
                    return Err(format!("final: {} was {from} and is {to}", name(id)));
                }
                if to.is_final() && !provider.said.contains(&(id, to)) {
                    return Err(format!("evidence: {} is {to} and nobody said so ({source:?})", name(id)));
                }
                if !to.is_polled() {
                    self.lives.get_mut(&id).expect("born").settled = Some(now);
                }
                Ok(())
            }
            Fact::Overruled { id, to, at } => {
                let life = self.lives.get_mut(&id).expect("born");
                life.settled = (!to.is_polled()).then_some(now);
                life.overruled = true;
                if to.is_polled() {
                    (life.anchor, life.opened) = (at, None);
                }
                Ok(())
            }
            Fact::Journaled { id, sent_at, in_time } => self.check_journal(id, sent_at, in_time),
        }
    }

    fn check_journal(&mut self, id: Uuid, sent_at: DateTime<Utc>, in_time: bool) -> Result<(), String> {
        // The journal of a transaction that a failover lost is kept all the same.
        let Some(life) = self.lives.get_mut(&id) else { return Ok(()) };
        life.journaled.push((sent_at, in_time));
        if in_time && sent_at >= life.anchor {
            // What was recorded late opens no window: the replica that owns the transaction then
            // does not know of it.
            life.opened = Some(life.opened.map_or(sent_at, |opened| opened.min(sent_at)));
        }
        if life.journaled.len() > life.requests.len() {
            return Err(format!("journal: {} has more polls in the journal than were sent", name(id)));
        }
        if self.went_back || life.cut {
            return Ok(());
        }
        let plan = &self.rules[life.account].plan;
        let Some(opened) = life.opened else { return Ok(()) };
        let end = match (self.rules[life.account].floors.window, plan.give_up_after) {
            (Some(window), _) => opened + window,
            (None, Some(age)) => life.anchor + age,
            (None, None) => return Ok(()),
        };
        // Nor does it close one.
        let beyond = life.journaled.iter().filter(|(at, in_time)| *in_time && *at > end && *at >= life.anchor).count();
        if beyond > 1 {
            return Err(format!("window: {} was polled {beyond} times after its window", name(id)));
        }
        Ok(())
    }

    fn check_transitions(&mut self, database: &Database) -> Result<(), String> {
        for transition in &database.transitions[self.seen_transitions..] {
            let state = self.state.get_mut(&transition.transaction).expect("born");
            if *state != transition.from || transition.from == transition.to {
                let (id, from, to, source) = (name(transition.transaction), transition.from, transition.to, transition.source);
                return Err(format!("journal: {id} was {state}, its transition says {from} to {to} ({source})"));
            }
            *state = transition.to;
        }
        self.seen_transitions = database.transitions.len();
        Ok(())
    }

    fn check_rows(&self, database: &Database) -> Result<(), String> {
        for (id, row) in &database.rows {
            let state = row.transaction.state;
            if self.state[id] != state {
                return Err(format!("journal: {} is {state} without a transition from {}", name(*id), self.state[id]));
            }
            if state.is_polled() != row.next.is_some() {
                return Err(format!("scheduled: {} is {state} and its next look is {:?}", name(*id), row.next));
            }
        }
        Ok(())
    }

    /// A process ended in order: it has given everything back.
    pub(crate) fn ended(&self, replica: i64, database: &Database) -> Result<(), String> {
        // After a failover it may be stopped before it could find out what it owns again. Then
        // others take it over at once.
        if !self.cuts.is_empty() {
            return Ok(());
        }
        match database.rows.iter().find(|(_, row)| row.owner == Some(replica) && row.transaction.state.is_polled()) {
            Some((id, _)) => Err(format!("given back: {} still belongs to a replica that ended", name(*id))),
            None => Ok(()),
        }
    }

    /// At the end of a quiet time: everything went on, and everything is counted.
    pub(crate) fn finish(&self, now: Micros, database: &Database) -> Result<(), String> {
        for (id, row) in &database.rows {
            // What cannot be written cannot be counted.
            if database.refusing.contains(id) {
                continue;
            }
            let life = &self.lives[id];
            let asked = life.requests.last().map_or(life.initiated, |request| request.at);
            let account = &database.accounts[&(row.transaction.provider.to_owned(), row.transaction.account.to_string())];
            // The provider wanted a pause not long ago, or so many that the account's pace is a
            // fraction of what it was.
            let paused =
                account.held_until.is_some_and(|until| micros(until, database.clock) < MAX_STALL) || account.slowdown >= 8.0;
            if row.transaction.state.is_polled() && now - asked > MAX_STALL && !paused {
                return Err(format!("stuck: {} was not asked about for {} s ({row:?})", name(*id), (now - asked) / 1_000_000));
            }
            if now - asked < 2 * long(TIMEOUT) {
                continue;
            }
            let survived = life.requests.iter().filter(|request| !self.dead.contains(&request.sender)).count();
            if life.journaled.len() < survived && !life.cut {
                return Err(format!("journal: {} polls of {} are missing", survived - life.journaled.len(), name(*id)));
            }
            // An owner that dies between recording a poll and hearing of a verdict leaves it
            // uncounted; so does a failover between the two, and one that takes what was made up
            // for after the one before.
            let lost = life.overruled && (survived < life.requests.len() || life.cut) || self.cuts.len() > 1;
            let attempts = row.transaction.attempts as usize;
            if !row.transaction.state.is_polled() && attempts != life.journaled.len() && !self.went_back && !lost {
                return Err(format!("attempts: {} says {attempts}, the journal {}", name(*id), life.journaled.len()));
            }
        }
        Ok(())
    }
}

/// A slot is drawn up to 300 ms ahead, and used up to 250 ms late.
const SLOTS: Micros = 550_000;

/// In a quiet time a transaction is polled at least this often.
const MAX_STALL: Micros = 18_000_000;

/// A short name for a transaction.
pub(crate) fn name(id: Uuid) -> String {
    format!("t{}", id.as_u128())
}

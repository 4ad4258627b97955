//! Every transaction in this replica's memory: by account, and by id.

use super::clock::DatabaseClock;
use super::held::Held;
use super::lane::{Lane, LaneSpec, ReadyKey, Urgency};
use super::membership::CLOCK_STEP;
use crate::domain::{Due, since};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long to wait for a request that is still in flight from an earlier registration, before
/// checking again.
const STILL_OUT: Duration = Duration::from_millis(100);

/// The transactions in memory.
pub(super) struct WorkSet {
    lanes: Vec<Lane>,
    /// Which lanes belong to one provider.
    providers: Vec<Vec<usize>>,
    /// Each lane's provider.
    provider_of: Vec<usize>,
    /// The place of each transaction that was claimed under the present registration.
    index: HashMap<Uuid, Slot>,
    /// Fences of other writers' changes to transactions that were in flight or just being claimed.
    superseded: HashMap<Uuid, i64>,
    /// Makes keys unique, and counts turns.
    sequence: u64,
    in_flight: u32,
    /// Over all accounts.
    max_in_flight: u32,
}

/// Where a transaction is, and its claim with the fence.
#[derive(Clone, Copy, Debug)]
struct Slot {
    claim: i64,
    fence: i64,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Waiting {
        lane: usize,
        due: Instant,
        sequence: u64,
    },
    Ready {
        lane: usize,
        key: ReadyKey,
    },
    /// In flight, or being recorded.
    Away,
}

/// Where a transaction was found that another writer has changed.
pub(super) enum Superseded {
    /// It was waiting or ready, and was taken out.
    AtHand(Box<Held>),
    /// In flight, being claimed or being recorded: handled when it is back.
    Away,
    /// This replica owns it in the database, but does not have it in memory.
    Unknown,
}

/// What became of a transaction whose time has come.
pub(super) enum Woken {
    /// It can be polled.
    Ready,
    /// Its window is over, for this reason.
    Over(Box<Held>, &'static str),
}

impl WorkSet {
    pub(super) fn new(specs: &[Arc<LaneSpec>], max_in_flight: u32, now: Instant) -> Self {
        let mut names: Vec<&'static str> = Vec::new();
        let mut providers: Vec<Vec<usize>> = Vec::new();
        let mut provider_of = Vec::with_capacity(specs.len());
        for (lane, spec) in specs.iter().enumerate() {
            let provider = names.iter().position(|name| *name == spec.provider).unwrap_or_else(|| {
                names.push(spec.provider);
                providers.push(Vec::new());
                names.len() - 1
            });
            providers[provider].push(lane);
            provider_of.push(provider);
        }
        Self {
            lanes: specs.iter().map(|spec| Lane::new(spec.clone(), now)).collect(),
            providers,
            provider_of,
            index: HashMap::new(),
            superseded: HashMap::new(),
            sequence: 0,
            in_flight: 0,
            max_in_flight,
        }
    }

    pub(super) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    pub(super) fn lane(&self, number: usize) -> &Lane {
        &self.lanes[number]
    }

    pub(super) fn lane_mut(&mut self, number: usize) -> &mut Lane {
        &mut self.lanes[number]
    }

    pub(super) fn lanes_mut(&mut self) -> &mut [Lane] {
        &mut self.lanes
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Transactions in memory that are not in flight.
    pub(super) fn idle(&self) -> usize {
        self.lanes.iter().map(Lane::idle).sum()
    }

    /// Whether it was claimed under the present registration and is still owned.
    pub(super) fn contains(&self, id: Uuid) -> bool {
        self.index.contains_key(&id)
    }
}

/// Coming and going.
impl WorkSet {
    /// Waits for its next poll.
    pub(super) fn wait(&mut self, held: Box<Held>, due: Instant) {
        self.sequence += 1;
        let (lane, sequence) = (held.lane, self.sequence);
        // After a failover that lost the claim, it may have been claimed anew: the earlier copy is
        // void.
        drop(self.evict(held.transaction.id));
        self.put(&held, Place::Waiting { lane, due, sequence });
        self.lanes[lane].waiting_mut().insert(due, sequence, held);
    }

    /// The database's clock was set forward: due times count by the new time. Documented floors
    /// hold by this process's own memory.
    pub(super) fn replan(&mut self, clock: &DatabaseClock) {
        for lane in 0..self.lanes.len() {
            for held in self.lanes[lane].waiting_mut().take().collect::<Vec<_>>() {
                let due = clock.instant(held.due);
                self.wait(held, due);
            }
        }
    }

    fn put(&mut self, held: &Held, place: Place) {
        self.index.insert(held.transaction.id, Slot { claim: held.claim, fence: held.fence, place });
    }

    /// Takes it out of the queues, if it is there.
    fn evict(&mut self, id: Uuid) -> Option<Box<Held>> {
        match self.index.get(&id)?.place {
            Place::Waiting { lane, due, sequence } => self.lanes[lane].waiting_mut().remove((due, sequence)),
            Place::Ready { lane, key } => self.lanes[lane].remove_ready(key),
            Place::Away => None,
        }
    }

    /// Whether this is the current copy of the transaction. After a failover it may have been
    /// claimed anew while this one was in flight.
    pub(super) fn is_current(&self, held: &Held) -> bool {
        self.index.get(&held.transaction.id).is_some_and(|slot| (slot.claim, slot.fence) == (held.claim, held.fence))
    }

    /// The transactions at hand.
    pub(super) fn at_hand(&self) -> impl Iterator<Item = Uuid> {
        self.index.iter().filter(|(_, slot)| !matches!(slot.place, Place::Away)).map(|(id, _)| *id)
    }

    /// By its row it is not ours, or not as it was claimed: it is taken out unless its fence is this one.
    pub(super) fn compare(&mut self, id: Uuid, fence: Option<i64>) {
        if self.index.get(&id).is_some_and(|slot| Some(slot.fence) != fence) && self.evict(id).is_some() {
            self.index.remove(&id);
        }
    }

    /// Takes one that waits, if any has fallen due: it is ready now, waits on, or its window is over.
    pub(super) fn wake(&mut self, now: Instant, lane: usize, clock: Option<&DatabaseClock>) -> Option<Woken> {
        loop {
            let (due, sequence, held) = self.lanes[lane].waiting_mut().pop_due(now)?;
            // The clock is known better than when the last poll was written down: its floor holds
            // by the journal too.
            let ahead = clock.map_or(Duration::ZERO, |clock| since(clock.latest(now), held.due));
            let later = (!ahead.is_zero() && ahead < CLOCK_STEP).then(|| now + ahead);
            // From an earlier registration it may still be in flight.
            let out = self.lanes[lane].is_in_flight(held.transaction.id).then(|| now + STILL_OUT);
            if let Some(at) = later.max(out).max(self.lanes[lane].not_before(now, &held.transaction.reference)) {
                self.put(&held, Place::Waiting { lane, due: at, sequence });
                self.lanes[lane].waiting_mut().insert(at, sequence, held);
                continue;
            }
            let rules = &self.lanes[lane].spec().rules;
            return Some(match rules.due(&held.transaction) {
                Due::Park(reason) => {
                    self.put(&held, Place::Away);
                    Woken::Over(held, reason)
                }
                Due::Poll => {
                    let urgency = match (rules.deadline(&held.transaction), clock) {
                        (Some(deadline), Some(clock)) if !rules.plan.is_open() => Urgency::By(clock.instant(deadline)),
                        _ => Urgency::Open,
                    };
                    let key = ReadyKey { backlog: held.backlog, urgency, due, sequence };
                    self.put(&held, Place::Ready { lane, key });
                    self.lanes[lane].make_ready(key, held);
                    Woken::Ready
                }
            });
        }
    }

    /// It comes back from its poll.
    pub(super) fn returned(&mut self, held: &Held) {
        self.in_flight -= 1;
        self.lanes[held.lane].returned(held);
    }

    /// It leaves memory, and the row goes on being ours until that is written: then it is to be forgotten.
    pub(super) fn leave(&mut self, held: &Held) {
        self.put(held, Place::Away);
    }

    /// What was known of it under this fence is written: it is not ours any more. By now it may
    /// have been claimed anew.
    pub(super) fn forget(&mut self, id: Uuid, fence: i64) {
        if self.index.get(&id).is_some_and(|slot| slot.fence == fence && matches!(slot.place, Place::Away)) {
            self.index.remove(&id);
            self.superseded.remove(&id);
        }
    }

    /// Takes out everything of a lane that is not in flight.
    #[expect(clippy::vec_box, reason = "they travel boxed")]
    pub(super) fn drain(&mut self, lane: usize) -> Vec<Box<Held>> {
        let drained = self.lanes[lane].drain();
        drained.iter().for_each(|held| self.leave(held));
        drained
    }

    /// Every copy here is void. Those in flight are not current when they come back. Takes out the
    /// rest.
    #[expect(clippy::vec_box, reason = "they travel boxed")]
    pub(super) fn lose_all(&mut self) -> Vec<Box<Held>> {
        self.index.clear();
        self.superseded.clear();
        self.lanes.iter_mut().flat_map(Lane::drain).collect()
    }
}

/// Changes by other writers.
impl WorkSet {
    /// Another writer has changed the transaction: this copy is not polled any more. Takes it out
    /// where it is at hand; where it is in flight, or just being claimed, that is remembered.
    pub(super) fn supersede(&mut self, id: Uuid, fence: i64, claiming: bool) -> Superseded {
        match self.index.get(&id) {
            Some(slot) if slot.fence >= fence => return Superseded::Away,
            None if !claiming => {
                // Until that is written.
                self.index.insert(id, Slot { claim: 0, fence, place: Place::Away });
                return Superseded::Unknown;
            }
            Some(Slot { place: Place::Away, .. }) | None => {
                self.superseded.insert(id, fence);
                return Superseded::Away;
            }
            Some(_) => {}
        }
        let Some(held) = self.evict(id) else { return Superseded::Away };
        self.leave(&held);
        Superseded::AtHand(held)
    }

    /// Another writer has changed the transaction while it was in flight or being claimed.
    pub(super) fn is_superseded(&self, held: &Held) -> bool {
        self.superseded.get(&held.transaction.id).is_some_and(|fence| held.fence < *fence)
    }

    /// A claim has come back: changes remembered for transactions that it might have brought are no
    /// longer needed.
    pub(super) fn forget_unclaimed(&mut self) {
        let index = &self.index;
        self.superseded.retain(|id, _| index.contains_key(id));
    }
}

/// What is polled next.
impl WorkSet {
    /// Lanes with something ready.
    pub(super) fn busy(&self) -> Vec<usize> {
        (0..self.lanes.len()).filter(|number| self.lanes[*number].ready() > 0).collect()
    }

    /// Starts one of `open`'s lanes' transactions: first the lanes with nothing in flight, then
    /// those whose window closes first, then those that waited longest. A lane that can start
    /// nothing now is taken out of `open`, and when it can is noted in `next`. `until` says up to
    /// when a lane's requests may be sent.
    pub(super) fn start(
        &mut self,
        now: Instant,
        open: &mut Vec<usize>,
        until: impl Fn(&Lane) -> Instant,
        next: &mut Option<Instant>,
    ) -> Option<(Box<Held>, Instant)> {
        while self.in_flight < self.max_in_flight {
            let turn = open.iter().copied().enumerate().min_by_key(|(_, number)| self.lanes[*number].turn());
            let (at, number) = turn?;
            if !self.has_place(number) {
                open.swap_remove(at);
                continue;
            }
            let lane = &mut self.lanes[number];
            let before = until(lane);
            self.sequence += 1;
            let started = if now < before { lane.start(now, self.sequence) } else { Err(None) };
            match started {
                Ok((held, void_at)) => {
                    if lane.ready() == 0 {
                        open.swap_remove(at);
                    }
                    self.in_flight += 1;
                    self.put(&held, Place::Away);
                    return Some((held, before.min(void_at)));
                }
                Err(when) => {
                    *next = next.map_or(when, |next| Some(when.map_or(next, |when| next.min(when))));
                    open.swap_remove(at);
                }
            }
        }
        None
    }

    /// Whether a place in flight is free that is not another provider's reserve: one provider with
    /// many slow accounts must not take them all.
    fn has_place(&self, lane: usize) -> bool {
        let own = self.provider_of[lane];
        let used = |provider: usize| self.providers[provider].iter().map(|lane| self.lanes[*lane].in_flight()).sum::<u32>();
        let reserve = self.max_in_flight / (4 * u32::try_from(self.providers.len()).unwrap_or(u32::MAX));
        let kept: u32 =
            (0..self.providers.len()).filter(|other| *other != own).map(|other| reserve.saturating_sub(used(other))).sum();
        self.in_flight + kept < self.max_in_flight
    }
}

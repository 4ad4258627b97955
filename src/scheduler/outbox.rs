//! What is to be written and is not yet: batches, one under way at a time, and the transactions that wait for them.

use super::engine::News;
use super::held::Held;
use crate::store::{Attempt, Batch, Entry, Poll, ReplicaId};
use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A batch on its way into the database, and the transactions that wait for it.
#[derive(Default)]
pub struct Recording {
    /// What is written.
    pub batch: Batch,
    /// Under which replica.
    pub replica: Option<ReplicaId>,
    /// What must be remembered between attempts.
    pub attempt: Attempt,
    /// Transactions that go on when it is written.
    pub(super) carried: Vec<Carried>,
    /// What to tell when it is written.
    pub(super) news: Vec<(Uuid, News)>,
    /// When its first part came in.
    since: Option<Instant>,
    /// What could not be stored was taken out of it.
    stripped: bool,
}

/// A transaction that waits for its poll to be written.
pub(super) struct Carried {
    pub(super) held: Box<Held>,
    pub(super) due: Instant,
    /// Its row is written, which raises its fence.
    pub(super) written: bool,
}

/// The most rows in a batch.
const BATCH: usize = 1000;
/// A batch waits so long for company, and until the one before it is written: the longer a commit takes, the more it gathers.
const GATHER: Duration = Duration::from_millis(5);

/// Everything that is not written yet.
#[expect(clippy::vec_box, reason = "they travel boxed")]
#[derive(Default)]
pub(super) struct Outbox {
    /// The next batch.
    gathering: Recording,
    /// Tried before, or to be written by itself.
    stuck: Vec<Box<Recording>>,
    /// Refused with nothing left to take out: tried again with every heartbeat, so that nothing is lost whatever the reason.
    refused: Vec<Box<Recording>>,
    /// Everything about transactions whose rows another session keeps locked: tried again with every heartbeat.
    locked: Vec<Box<Recording>>,
    /// Since when the batch that is under way was gathered.
    under_way: Option<Instant>,
}

/// What comes in.
impl Outbox {
    /// A row of the journal.
    pub(super) fn poll(&mut self, now: Instant, poll: Poll) {
        self.gathering.batch.polls.push(poll);
        self.gathering.since.get_or_insert(now);
    }

    /// A transaction's row.
    pub(super) fn entry(&mut self, now: Instant, entry: Entry) {
        self.gathering.batch.entries.push(entry);
        self.gathering.since.get_or_insert(now);
    }

    /// A transaction that somebody else has written: its polls so far are counted.
    pub(super) fn dropped(&mut self, now: Instant, id: Uuid) {
        self.gathering.batch.dropped.push(id);
        self.gathering.since.get_or_insert(now);
    }

    /// A transaction that goes on when what came in before is written.
    pub(super) fn carry(&mut self, carried: Carried) {
        self.gathering.carried.push(carried);
    }

    /// What to tell when it is written.
    pub(super) fn tell(&mut self, id: Uuid, news: News) {
        self.gathering.news.push((id, news));
    }

    /// Polls from before the lease was lost. They must not be recorded as this replica's: under its new registration it may hold the
    /// transaction anew, and would seem to let go of it.
    pub(super) fn bygone(&mut self, now: Instant, batch: Batch) {
        self.stuck.push(Box::new(Recording { batch, since: Some(now), ..Recording::default() }));
    }

    /// The lease is lost: what was gathered under it must not be written under the next one.
    pub(super) fn seal(&mut self, replica: Option<ReplicaId>) {
        if !self.gathering.is_empty() {
            let recording = self.take(replica);
            self.stuck.push(recording);
        }
    }
}

/// What goes out.
impl Outbox {
    /// The next batch, if one has gathered and none is under way; `at_once`: however little has gathered.
    pub(super) fn next(&mut self, now: Instant, replica: Option<ReplicaId>, at_once: bool) -> Option<Box<Recording>> {
        if self.under_way.is_some() {
            return None;
        }
        let gathered = self.gathering.since.is_some_and(|since| since + GATHER <= now || at_once) || self.gathering.len() >= BATCH;
        let mut recording = match self.stuck.pop() {
            Some(stuck) => stuck,
            None if gathered && !self.gathering.is_empty() => self.take(replica),
            None => return None,
        };
        // While somebody keeps rows locked, more of them are to be expected: they are not waited for any more.
        recording.batch.skip_locked |= !self.locked.is_empty();
        self.under_way = recording.since.or(Some(now));
        Some(recording)
    }

    /// When to call [`Self::next`], if the one under way does not come back before.
    pub(super) fn due(&self) -> Option<Instant> {
        self.gathering.since.map(|since| since + GATHER).filter(|_| self.under_way.is_none())
    }

    /// Whether so much has gathered that nothing should be added by asking.
    pub(super) fn is_full(&self) -> bool {
        self.gathering.len() >= 4 * BATCH
    }

    /// Whether everything is written that can be.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_none() && self.gathering.is_empty() && self.stuck.is_empty() && self.locked.is_empty()
    }

    /// Since when the oldest part waits to be written. What waits for a locked row is left out.
    pub(super) fn unwritten_since(&self) -> Option<Instant> {
        let waiting = self.stuck.iter().chain(&self.refused).map(|recording| recording.since);
        waiting.chain([self.under_way, self.gathering.since]).flatten().min()
    }

    fn take(&mut self, replica: Option<ReplicaId>) -> Box<Recording> {
        Box::new(Recording { replica, ..std::mem::take(&mut self.gathering) })
    }
}

/// What comes back.
impl Outbox {
    /// The batch that was under way has come back.
    pub(super) fn returned(&mut self) {
        self.under_way = None;
    }

    /// It could not be written: again.
    pub(super) fn again(&mut self, recording: Box<Recording>) {
        self.stuck.push(recording);
    }

    /// What was given up for a while is tried again.
    pub(super) fn retry(&mut self) {
        self.stuck.append(&mut self.refused);
        self.stuck.append(&mut self.locked);
    }

    /// What of the recording cannot be written as long as another session keeps the rows locked. One that is set aside already takes it
    /// in: otherwise there would soon be many, each with a database transaction of its own.
    pub(super) fn set_aside(&mut self, recording: &mut Recording, locked: &HashSet<Uuid>) {
        let mut aside = recording.split_off(|id| locked.contains(&id));
        aside.batch.skip_locked = true;
        match self.locked.last_mut().filter(|last| last.replica == aside.replica && last.stripped == aside.stripped) {
            Some(last) => last.absorb(aside),
            None => self.locked.push(Box::new(aside)),
        }
    }

    /// The database refuses what a batch says: each transaction gets a batch of its own, so that one cannot hold up the others; one
    /// that is alone is written without the provider's text, which is all of it that is not ours. False when even that was refused.
    pub(super) fn take_apart(&mut self, mut recording: Box<Recording>) -> bool {
        let ids: BTreeSet<Uuid> = (recording.batch.entries.iter().map(|entry| entry.id))
            .chain(recording.batch.polls.iter().map(|poll| poll.transaction_id))
            .chain(recording.batch.dropped.iter().copied())
            .collect();
        if ids.len() > 1 {
            for id in ids {
                self.stuck.push(Box::new(recording.split_off(|of| of == id)));
            }
        } else if recording.stripped {
            self.refused.push(recording);
            return false;
        } else {
            recording.strip();
            self.stuck.push(recording);
        }
        true
    }
}

impl Recording {
    fn is_empty(&self) -> bool {
        self.batch.polls.is_empty() && self.batch.entries.is_empty() && self.batch.dropped.is_empty()
    }

    fn len(&self) -> usize {
        self.batch.polls.len().max(self.batch.entries.len())
    }

    /// Takes out everything about the transactions that `of` names.
    fn split_off(&mut self, of: impl Fn(Uuid) -> bool) -> Self {
        Self {
            batch: self.batch.split_off(&of),
            replica: self.replica,
            attempt: Attempt::default(),
            carried: self.carried.extract_if(.., |carried| of(carried.held.transaction.id)).collect(),
            news: self.news.extract_if(.., |(id, _)| of(*id)).collect(),
            since: self.since,
            stripped: self.stripped,
        }
    }

    /// Takes in another one under the same replica; neither was ever written.
    fn absorb(&mut self, mut other: Self) {
        self.batch.polls.append(&mut other.batch.polls);
        self.batch.entries.append(&mut other.batch.entries);
        self.batch.dropped.append(&mut other.batch.dropped);
        self.carried.append(&mut other.carried);
        self.news.append(&mut other.news);
    }

    /// Takes out what the provider said.
    fn strip(&mut self) {
        self.stripped = true;
        for poll in &mut self.batch.polls {
            poll.error = poll.error.take().map(|_| "not storable".to_owned());
        }
        for entry in &mut self.batch.entries {
            (entry.details, entry.action, entry.word) = (None, None, None);
            entry.reason = entry.reason.take().map(|reason| reason.map(|_| "not storable".to_owned()));
            if let Some(transition) = &mut entry.transition {
                transition.evidence = None;
            }
        }
    }
}

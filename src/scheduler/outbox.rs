//! What is still to be recorded: batches, one under way at a time, and the transactions that wait
//! for them.

use super::held::Held;
use super::notice::Notice;
use super::recording::{Carried, Recording};
use crate::store::{Batch, Entry, Poll, ReplicaId};
use std::collections::HashSet;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The most rows in a batch.
const BATCH: usize = 1000;
/// A batch gathers for this long, and until the one before it is written: the longer a commit
/// takes, the larger the next batch.
const GATHER: Duration = Duration::from_millis(5);
/// The wait before a refused record is tried again; doubled each time up to [`LONGEST_REFUSED`].
const REFUSED_FOR: Duration = Duration::from_secs(1);
const LONGEST_REFUSED: Duration = Duration::from_secs(60);
/// With this many refused records the fault is not in single rows, and no new poll is started.
const MOST_REFUSED: usize = 1000;
/// A batch that took too long this often is split: a statement hangs on one of its rows.
const MOST_TIMEOUTS: u32 = 2;

/// Everything that is not written yet.
#[expect(clippy::vec_box, reason = "they travel boxed")]
#[derive(Default)]
pub(super) struct Outbox {
    /// The next batch.
    gathering: Recording,
    /// Tried, and it is not known whether it was committed. No other batch is written before that
    /// is known: the number would prove nothing.
    in_doubt: Option<Box<Recording>>,
    /// To be written one by one.
    stuck: Vec<Box<Recording>>,
    /// Each about one transaction, refused with nothing left to take out: retried for ever, so that
    /// nothing is lost whatever the reason.
    refused: Vec<Refused>,
    /// Everything about transactions whose rows another session keeps locked: tried again with
    /// every heartbeat.
    locked: Vec<Box<Recording>>,
    /// Since when the batch that is under way was gathered.
    under_way: Option<Instant>,
    /// The batch under way was refused before: the cause that was reported, and how long it waited.
    retrying: Option<(String, Duration)>,
    /// How often the database has lost commits.
    cuts: u64,
    /// Raised with every batch; and the last one that is known to be committed.
    number: i64,
    acknowledged: i64,
}

struct Refused {
    recording: Box<Recording>,
    retry_at: Instant,
    wait: Duration,
    why: String,
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

    /// A transaction that another writer has changed: its polls so far are counted.
    pub(super) fn dropped(&mut self, now: Instant, id: Uuid) {
        self.gathering.batch.dropped.push(id);
        self.gathering.since.get_or_insert(now);
    }

    /// The same for a transaction that is not in memory, under this fence.
    pub(super) fn let_go(&mut self, now: Instant, id: Uuid, fence: i64) {
        self.dropped(now, id);
        self.gathering.leaving.push((id, fence));
    }

    /// A transaction that goes on when everything gathered so far is written.
    pub(super) fn carry(&mut self, carried: Carried) {
        self.gathering.carried.push(carried);
    }

    /// A transaction that leaves this replica when everything gathered so far is written.
    pub(super) fn leave(&mut self, held: &Held) {
        self.gathering.leaving.push((held.transaction.id, held.fence));
    }

    /// A notice to report when everything gathered so far is written.
    pub(super) fn tell(&mut self, id: Uuid, notice: Notice) {
        self.gathering.notices.push((id, notice));
    }

    /// Polls from an earlier lease. They must not be recorded under the new registration: it may
    /// have claimed the transaction anew, and would seem to release it.
    pub(super) fn bygone(&mut self, now: Instant, batch: Batch) {
        self.adrift(now, None, batch);
    }

    /// Polls of a transaction that was dropped from memory when commits were lost. Its row, if this
    /// replica owns it, is released: the next claim reads all of its polls in the journal.
    pub(super) fn adrift(&mut self, now: Instant, replica: Option<ReplicaId>, batch: Batch) {
        self.stuck.push(Box::new(Recording { batch, replica, since: Some(now), ..Recording::default() }));
    }

    /// The lease is lost: rows gathered under it must not be written under the next one.
    pub(super) fn seal(&mut self, replica: Option<ReplicaId>) {
        if !self.gathering.is_empty() {
            let recording = self.take(replica);
            self.stuck.push(recording);
        }
    }

    /// The last batch that is known to be committed.
    pub(super) fn acknowledged(&self) -> i64 {
        self.acknowledged
    }

    /// The database has lost commits; `last` is the last batch that it knows.
    ///
    /// Row changes that wait to be written are based on lost rows and are dropped: `replica`'s rows
    /// are released, and the next claim reads all of their polls in the journal. The number of the
    /// batch in doubt shows whether it was committed.
    pub(super) fn on_commits_lost(&mut self, last: i64, replica: Option<ReplicaId>) {
        self.acknowledged = last;
        self.cuts += 1;
        let refused = self.refused.iter_mut().map(|refused| &mut *refused.recording);
        let waiting = self.stuck.iter_mut().chain(&mut self.locked).map(|recording| &mut **recording);
        waiting.chain(refused).chain([&mut self.gathering]).for_each(Recording::keep_polls_alone);
        if !self.gathering.is_empty() {
            let gathered = self.take(replica);
            self.stuck.push(gathered);
        }
        self.stuck.append(&mut self.locked);
        self.stuck.extend(self.refused.drain(..).map(|refused| refused.recording));
        self.stuck.retain(|recording| !recording.is_empty());
    }

    /// Whether a batch is the first to report the lost commits that it met.
    pub(super) fn is_news(&self, recording: &Recording) -> bool {
        recording.cuts == self.cuts
    }

    /// Whether every batch that was under way when commits were lost has come back.
    pub(super) fn is_settled(&self) -> bool {
        self.under_way.is_none() && self.in_doubt.is_none() && self.stuck.is_empty()
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
        self.retrying = None;
        let mut recording = if let Some(doubted) = self.in_doubt.take() {
            doubted
        } else if let Some(stuck) = self.stuck.pop() {
            stuck
        } else if gathered && !self.gathering.is_empty() {
            self.take(replica)
        } else {
            let at = self.refused.iter().position(|refused| refused.retry_at <= now)?;
            let refused = self.refused.swap_remove(at);
            self.retrying = Some((refused.why, refused.wait));
            refused.recording
        };
        if recording.number == 0 {
            self.number += 1;
            recording.number = self.number;
            recording.acknowledged = self.acknowledged;
            recording.cuts = self.cuts;
        }
        // While another session keeps rows locked, more of them are to be expected: they are not
        // waited for any more.
        recording.batch.skip_locked |= !self.locked.is_empty();
        self.under_way = recording.since.or(Some(now));
        Some(recording)
    }

    /// When to call [`Self::next`], if the one under way does not come back before.
    pub(super) fn due(&self) -> Option<Instant> {
        let gathered = self.gathering.since.map(|since| since + GATHER);
        let refused = self.refused.iter().map(|refused| refused.retry_at).min();
        gathered.into_iter().chain(refused).min().filter(|_| self.under_way.is_none())
    }

    /// Whether so much has gathered that no new poll should be started.
    pub(super) fn is_full(&self) -> bool {
        self.gathering.len() >= 4 * BATCH || self.refused.len() >= MOST_REFUSED
    }

    /// Whether everything that can be is written. Refused records have been tried again since the
    /// stop.
    pub(super) fn is_done(&self) -> bool {
        self.is_idle() && self.locked.is_empty()
    }

    /// Whether only refused or locked records are left.
    fn is_idle(&self) -> bool {
        self.under_way.is_none() && self.gathering.is_empty() && self.stuck.is_empty() && self.in_doubt.is_none()
    }

    /// Whether a poll or a change of state would be lost by ending now. Rows that are only released
    /// would not: their owner is gone then, and the replica that takes over reads the journal.
    pub(super) fn has_facts(&self) -> bool {
        let is_fact = |recording: &Recording| {
            let batch = &recording.batch;
            !batch.polls.is_empty() || batch.entries.iter().any(|entry| entry.transition.is_some())
        };
        let stuck = self.stuck.iter().chain(&self.locked).chain(&self.in_doubt).map(|recording| &**recording);
        self.under_way.is_some() || !self.refused.is_empty() || stuck.chain([&self.gathering]).any(is_fact)
    }

    /// What the database refuses, for the message at the end of the process.
    pub(super) fn unwritten(&self) -> Option<String> {
        let first = self.refused.first()?;
        Some(format!("the database refuses the records of {} transaction(s): {}", self.refused.len(), first.why))
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

    /// It was written.
    pub(super) fn written(&mut self, recording: &Recording) {
        self.acknowledged = recording.number;
    }

    /// It may or may not have been written: the same batch again, before any other.
    pub(super) fn again(&mut self, now: Instant, recording: Box<Recording>) {
        match self.retrying.take() {
            // Tried, and certainly not written: others come first.
            Some((why, wait)) if recording.attempt.0.is_none() => self.refuse(now, recording, why, wait),
            _ => self.in_doubt = Some(recording),
        }
    }

    /// It took too long. True when it is split now.
    pub(super) fn timed_out(&mut self, mut recording: Box<Recording>) -> Option<Box<Recording>> {
        recording.timeouts += 1;
        if recording.timeouts >= MOST_TIMEOUTS && recording.attempt.0.is_none() {
            return Some(recording);
        }
        self.in_doubt = Some(recording);
        None
    }

    /// Records left out because of another session's locks are tried again.
    pub(super) fn retry(&mut self) {
        self.stuck.append(&mut self.locked);
    }

    /// Refused records have one more try, before the process ends.
    pub(super) fn retry_refused(&mut self, now: Instant) {
        self.refused.iter_mut().for_each(|refused| refused.retry_at = now);
    }

    /// Sets aside the part of a recording whose rows another session keeps locked. It joins one
    /// that was set aside before: otherwise there would soon be many, each with a database
    /// transaction of its own.
    pub(super) fn set_aside(&mut self, recording: &mut Recording, locked: &HashSet<Uuid>) {
        let mut aside = recording.split_off(|id| locked.contains(&id));
        aside.batch.skip_locked = true;
        match self.locked.last_mut().filter(|last| last.is_like(&aside)) {
            Some(last) => last.absorb(aside),
            None => self.locked.push(Box::new(aside)),
        }
    }

    /// The database refuses a batch: it is halved until the transaction to blame stands alone, and
    /// that one waits. `Some`: to be reported, because it was not yet.
    pub(super) fn take_apart(&mut self, now: Instant, recording: Box<Recording>, why: &str) -> Option<Uuid> {
        let before = self.retrying.take();
        if !recording.is_atom() {
            self.stuck.extend(recording.take_apart().into_iter().rev().map(Box::new));
            return None;
        }
        let told = before.as_ref().is_some_and(|(cause, _)| cause == why);
        let wait = before.map_or(REFUSED_FOR, |(_, wait)| (wait * 2).min(LONGEST_REFUSED));
        let id = recording.ids().first().copied();
        self.refuse(now, recording, why.to_owned(), wait);
        id.filter(|_| !told)
    }

    fn refuse(&mut self, now: Instant, mut recording: Box<Recording>, why: String, wait: Duration) {
        recording.forget_attempts();
        self.refused.push(Refused { recording, retry_at: now + wait, wait, why });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Recorded;
    use chrono::DateTime;

    fn poll(number: u128) -> Poll {
        Poll {
            transaction_id: Uuid::from_u128(number),
            provider: "khalti",
            account: "default".into(),
            due_at: DateTime::UNIX_EPOCH,
            sent_at: DateTime::UNIX_EPOCH,
            latency_ms: None,
            http_status: None,
            outcome: "timeout",
            error: None,
            declaration: None,
        }
    }

    /// Writes everything; the database refuses the transaction `bad`. Returns which transactions
    /// were written, and which were reported.
    fn write(outbox: &mut Outbox, now: Instant, bad: u128) -> (Vec<u128>, Vec<u128>) {
        let (mut written, mut told) = (Vec::new(), Vec::new());
        while let Some(recording) = outbox.next(now, None, true) {
            outbox.returned();
            let ids = recording.ids();
            if ids.contains(&Uuid::from_u128(bad)) {
                told.extend(outbox.take_apart(now, recording, "no").map(|id| id.as_u128()));
            } else {
                written.extend(ids.into_iter().map(|id| id.as_u128()));
                outbox.written(&recording);
            }
        }
        written.sort_unstable();
        (written, told)
    }

    #[test]
    fn one_refused_transaction_is_told_once_backs_off_and_is_in_nobodys_way() {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        (0..50).for_each(|number| outbox.poll(now, poll(number)));
        let (written, told) = write(&mut outbox, now, 7);
        assert_eq!((written.len(), told), (49, vec![7]));
        assert!(outbox.is_done() && outbox.has_facts() && outbox.unwritten().is_some());
        // Others go on, and the refused one is not tried before its time.
        outbox.poll(now, poll(100));
        assert_eq!(write(&mut outbox, now, 7), (vec![100], vec![]));
        assert_eq!(outbox.due(), Some(now + REFUSED_FOR));
        assert_eq!(write(&mut outbox, now + REFUSED_FOR, 7), (vec![], vec![]));
        assert_eq!(outbox.due(), Some(now + REFUSED_FOR + 2 * REFUSED_FOR));
        assert_eq!(write(&mut outbox, now + 4 * REFUSED_FOR, 0), (vec![7], vec![]));
        assert!(!outbox.has_facts());
    }

    #[test]
    fn no_batch_is_written_while_an_earlier_one_is_in_doubt() {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        outbox.poll(now, poll(1));
        let mut first = outbox.next(now, None, true).expect("gathered");
        let number = first.number;
        first.attempt.0 = Some(Recorded::default());
        outbox.returned();
        outbox.again(now, first);
        outbox.bygone(now, Batch { polls: vec![poll(2)], ..Batch::default() });
        outbox.poll(now, poll(3));
        let again = outbox.next(now, None, true).expect("in doubt");
        assert_eq!((again.number, again.ids().len()), (number, 1));
        outbox.returned();
        outbox.written(&again);
        assert_eq!(outbox.acknowledged(), number);
        assert_eq!(outbox.next(now, None, true).map(|next| next.number), Some(number + 1));
    }
}

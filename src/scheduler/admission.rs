//! What to do with a transaction that was just found due in the table: keep it in memory, plan it
//! for later, or leave it.

use super::claims::LOOK_AHEAD;
use super::lane::LaneSpec;
use crate::domain::{Sent, after};
use crate::store::{Candidate, Placement};
use chrono::{DateTime, Utc};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::time::Duration;

/// Decides about candidates. Made by the engine for one claim cycle, used while their rows are
/// locked.
pub struct Placer {
    /// For each lane of the claim cycle: its rules, and how many of its transactions may be in
    /// memory.
    pub lanes: Vec<(Arc<LaneSpec>, usize)>,
    /// How many may be in memory over all lanes.
    pub free: usize,
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// What falls due until then is kept in memory, the rest is left in the table.
    pub hold_until: DateTime<Utc>,
    /// When the database's history may have been cut back: polls sent just before that may be
    /// recorded nowhere.
    pub cut_at: Option<DateTime<Utc>>,
    /// Where the jitter comes from.
    pub random: SmallRng,
}

impl Placer {
    /// A placer with its own source of jitter.
    #[must_use]
    pub fn new(lanes: Vec<(Arc<LaneSpec>, usize)>, free: usize, now: DateTime<Utc>, hold_until: DateTime<Utc>, seed: u64) -> Self {
        Self { lanes, free, now, hold_until, cut_at: None, random: SmallRng::seed_from_u64(seed) }
    }

    /// What to do with a candidate of that lane.
    pub fn place(&mut self, candidate: &mut Candidate) -> Placement {
        let jitter = self.random.random();
        let Some((spec, room)) = self.lanes.get_mut(candidate.lane) else { return Placement::Leave };
        let mut due = due(spec, candidate, self.now, jitter);
        if let Some(cut_at) = self.cut_at.filter(|at| *at > candidate.transaction.initiated_at) {
            due = due.max(after(cut_at, spec.rules.floors.every));
        }
        if due > self.hold_until {
            return Placement::Later(due);
        }
        // A transaction that waits for long takes no place among those that are polled soon.
        let waits = due > after(self.now, LOOK_AHEAD);
        if self.free == 0 || *room == 0 && !waits {
            return if waits { Placement::Later(due) } else { Placement::Leave };
        }
        *room -= usize::from(!waits);
        self.free -= 1;
        Placement::Hold(due)
    }
}

/// When the candidate's next poll may be sent: at the row's due time, but never before the floor
/// since its last poll.
fn due(spec: &LaneSpec, candidate: &mut Candidate, now: DateTime<Utc>, jitter: f64) -> DateTime<Utc> {
    let rules = &spec.rules;
    let transaction = &mut candidate.transaction;
    let anchors = transaction.anchors();
    let provider_state = transaction.provider_state.as_deref();
    for at in candidate.unplanned.drain(..) {
        let poll = Sent { at, before: provider_state, provider_state, acted: false };
        rules.plan.after_poll(&mut transaction.progress, anchors, poll, Duration::ZERO, 0.0);
    }
    let floor = rules.floor_since(transaction);
    let earliest = match (transaction.progress.opened_at, transaction.last_polled_at) {
        (Some(_), Some(last)) => after(last, floor),
        _ => rules.first_look(transaction, 0.0),
    };
    // A row that was inserted late is due at its insertion.
    let due = candidate.due.max(if candidate.fresh { rules.first_look(transaction, jitter) } else { earliest });
    if candidate.orphan && due <= now {
        // A dead owner may have sent the poll that was due and died before recording it: it counts
        // as sent now. The next replica to claim the row must know that too, even if the due time
        // was changed meanwhile.
        candidate.not_before = Some(after(now, floor));
    }
    candidate.not_before.map_or(due, |at| due.max(at))
}

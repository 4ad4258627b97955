//! When to stop polling an account, and how to find out that it answers again.

use super::refusals::{DIFFERENT, Refusals};
use crate::domain::Health;
use std::collections::HashSet;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Whether the account is polled at all.
#[derive(Debug)]
pub struct Circuit {
    limit: u32,
    failures: u32,
    failed: HashSet<Uuid>,
    refusals: Refusals,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    probe_at: Instant,
    probe: Probe,
    /// The transaction that was last polled since it opened.
    probing: Option<Uuid>,
    /// When the probe was requested from the database.
    asked_at: Instant,
    /// The database knows it too.
    confirmed: bool,
    /// Since when no transaction was found that a probe could use.
    idle_since: Option<Instant>,
}

/// The progress of the next probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    /// It was not requested.
    Idle,
    /// It is requested from the database.
    Asked,
    /// This replica may send it.
    Granted,
}

/// A change that all replicas must know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CircuitChange {
    /// Stop polling, for this reason.
    Open(String),
    /// Poll again.
    Close,
    /// Poll again, because there was nothing to probe with for long.
    Abandon,
}

/// An open circuit of an account with nothing to probe with is closed after this long.
const ABANDONED_AFTER: Duration = Duration::from_secs(600);

impl Circuit {
    pub(super) fn new(limit: u32) -> Self {
        Self { limit, failures: 0, failed: HashSet::new(), refusals: Refusals::default(), open: None }
    }

    /// Counts an outcome. An open circuit is closed by the answer to a probe alone: requests sent
    /// before it opened say nothing new.
    pub fn on_outcome(&mut self, id: Uuid, health: Health) -> Option<CircuitChange> {
        match health {
            Health::Usable => self.refusals.on_usable(id),
            Health::RowRefused => {}
            _ => self.refusals.on_other(id),
        }
        let opens = match health {
            Health::Usable => {
                self.reset();
                None
            }
            Health::Neutral => None,
            Health::AccountRefused => Some("the account's credentials were refused".to_owned()),
            Health::RowRefused => {
                self.refusals.on_refused(id).then(|| format!("the credentials of {DIFFERENT} transactions in a row were refused"))
            }
            Health::Down => {
                self.failures = self.failures.saturating_add(1);
                if self.failed.len() < DIFFERENT {
                    self.failed.insert(id);
                }
                (self.failures >= self.limit && self.failed.len() >= DIFFERENT)
                    .then(|| format!("{} polls in a row failed", self.failures))
            }
        };
        match (opens, self.open) {
            (Some(reason), None) => Some(CircuitChange::Open(reason)),
            (None, Some(open)) if open.probing == Some(id) && matches!(health, Health::Usable | Health::Neutral) => {
                Some(CircuitChange::Close)
            }
            _ => None,
        }
    }

    fn reset(&mut self) {
        self.failures = 0;
        self.failed.clear();
        self.refusals.begin_anew();
    }

    /// Nothing is sent but probes, from `probe_at` on. `confirmed`: the database says so.
    pub fn set_open(&mut self, probe_at: Instant, confirmed: bool) {
        let open = self.open.get_or_insert(Open {
            probe_at,
            probe: Probe::Idle,
            probing: None,
            asked_at: probe_at,
            confirmed,
            idle_since: None,
        });
        open.confirmed |= confirmed;
        if open.probe == Probe::Idle {
            open.probe_at = probe_at;
        }
    }

    /// The database knows no open circuit. One that was opened here a moment ago stays open: the
    /// notice is under way.
    pub fn is_unknown(&mut self) {
        if self.open.is_some_and(|open| open.confirmed) {
            self.set_closed();
        }
    }

    /// Everything is sent again.
    pub fn set_closed(&mut self) {
        self.open = None;
        self.reset();
    }

    /// Whether there is a transaction to probe with, as was just found out. True when there has
    /// been none for long: an alarm that nothing can end teaches people to ignore it.
    pub fn note_probe_candidates(&mut self, now: Instant, any: bool) -> bool {
        let Some(open) = &mut self.open else { return false };
        open.idle_since = if any { None } else { open.idle_since.or(Some(now)) };
        let abandoned = open.idle_since.is_some_and(|since| now.saturating_duration_since(since) >= ABANDONED_AFTER);
        if abandoned {
            open.idle_since = Some(now);
        }
        abandoned
    }

    /// Whether nothing but probes is sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether to request the right to probe from the database; if so, notes the request.
    pub fn asks_for_probe(&mut self, now: Instant) -> bool {
        match &mut self.open {
            Some(open) if open.probe == Probe::Idle && open.probe_at <= now => {
                open.probe = Probe::Asked;
                open.asked_at = now;
                true
            }
            _ => false,
        }
    }

    /// Whether a probe is due that was not requested yet.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.open.is_some_and(|open| open.probe == Probe::Idle && open.probe_at <= now)
    }

    /// A granted probe that could not be sent is given up after half an interval: the next one may
    /// be near.
    pub fn expire(&mut self, now: Instant, interval: Duration) {
        if let Some(open) = &mut self.open
            && open.probe == Probe::Granted
            && now.saturating_duration_since(open.asked_at) > interval / 2
        {
            open.probe = Probe::Idle;
        }
    }

    /// Requests it again at `next`.
    pub fn set_idle(&mut self, next: Instant) {
        if let Some(open) = &mut self.open {
            (open.probe, open.probe_at) = (Probe::Idle, next);
        }
    }

    /// When the next probe is due.
    #[must_use]
    pub fn probe_at(&self) -> Option<Instant> {
        self.open.filter(|open| open.probe == Probe::Idle).map(|open| open.probe_at)
    }

    /// The database's answer; `next` is when to request again. A circuit that the database still
    /// does not know, although there was time to report it, is closed: nothing else would ever
    /// close it.
    pub fn on_probe_asked(&mut self, granted: bool, next: Instant) {
        if !granted && self.open.is_some_and(|open| !open.confirmed) {
            return self.set_closed();
        }
        if let Some(open) = &mut self.open {
            open.probe = if granted { Probe::Granted } else { Probe::Idle };
            open.probe_at = next;
        }
    }

    /// Takes the right to send: always while closed, once per granted probe while open.
    pub fn may_send(&self) -> bool {
        self.open.is_none_or(|open| open.probe == Probe::Granted)
    }

    /// A request about this transaction was sent.
    pub fn on_sent(&mut self, id: Uuid) {
        self.refusals.on_sent(id);
        if let Some(open) = &mut self.open {
            open.probe = Probe::Idle;
            open.probing = Some(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_answer_to_what_was_sent_before_a_circuit_opened_does_not_close_it() {
        let now = Instant::now();
        let [refused, under_way, probe] = [1, 2, 3].map(Uuid::from_u128);
        let mut circuit = Circuit::new(20);
        circuit.on_sent(under_way);
        assert!(matches!(circuit.on_outcome(refused, Health::AccountRefused), Some(CircuitChange::Open(_))));
        circuit.set_open(now, false);
        assert_eq!(circuit.on_outcome(under_way, Health::Usable), None);
        assert!(circuit.asks_for_probe(now) && !circuit.may_send());
        circuit.on_probe_asked(true, now + SECOND);
        assert!(circuit.may_send());
        circuit.on_sent(probe);
        assert!(!circuit.may_send(), "one probe");
        assert_eq!(circuit.on_outcome(probe, Health::Down), None);
        assert_eq!(circuit.on_outcome(probe, Health::Usable), Some(CircuitChange::Close));
    }
    #[test]
    fn a_circuit_with_nothing_left_to_probe_with_is_abandoned_after_ten_minutes() {
        let now = Instant::now();
        let mut circuit = Circuit::new(20);
        assert!(!circuit.note_probe_candidates(now, false), "it is closed");
        circuit.set_open(now, true);
        assert!(!circuit.note_probe_candidates(now, false));
        assert!(!circuit.note_probe_candidates(now + 599 * SECOND, false));
        assert!(!circuit.note_probe_candidates(now + 599 * SECOND, true), "there was one");
        assert!(!circuit.note_probe_candidates(now + 600 * SECOND, false));
        assert!(circuit.note_probe_candidates(now + 1200 * SECOND, false));
    }
}

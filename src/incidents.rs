//! Recent incidents of the log, kept for the page and counted for `/metrics`: a circuit that has
//! closed again leaves no trace in the tables.
//!
//! The log is the one place where everything that happens passes. What concerns one transaction,
//! and regular lines, are not kept.

use crate::telemetry::event;
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// At most this many are kept.
const KEPT: usize = 200;
/// Events that come regularly, or for single transactions.
const REGULAR: [&str; 5] = [event::TRANSITION, event::POLL, event::POLL_FAILED, event::ROW_INVALID, event::SUMMARY];

/// Something that was logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// When, by this machine's clock.
    pub at: DateTime<Utc>,
    /// The event's name.
    pub event: String,
    /// The line's own words.
    pub message: String,
}

#[derive(Default)]
struct Noted {
    counts: BTreeMap<String, u64>,
    last: VecDeque<Incident>,
}

/// One for the process, as the log is.
static NOTED: Mutex<Noted> = Mutex::new(Noted { counts: BTreeMap::new(), last: VecDeque::new() });

fn noted() -> MutexGuard<'static, Noted> {
    NOTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often each event was logged at `warn` and above, or is kept, since the process began.
#[must_use]
pub fn counts() -> BTreeMap<String, u64> {
    noted().counts.clone()
}

/// What was logged since then, the latest first.
#[must_use]
pub fn since(begin: DateTime<Utc>) -> Vec<Incident> {
    noted().last.iter().rev().filter(|incident| incident.at >= begin).cloned().collect()
}

/// The part of the log that notes.
pub struct Noting;

impl<S: Subscriber> Layer<S> for Noting {
    fn on_event(&self, line: &Event<'_>, _context: Context<'_, S>) {
        let metadata = line.metadata();
        // By far the most lines are about a transaction that goes its way: they are not even read.
        if *metadata.level() > Level::WARN && metadata.fields().field("transaction_id").is_some() {
            return;
        }
        let mut read = Read::default();
        line.record(&mut read);
        if read.event.is_empty() {
            return;
        }
        let mut noted = noted();
        *noted.counts.entry(read.event.clone()).or_default() += 1;
        if !REGULAR.contains(&read.event.as_str()) {
            if noted.last.len() >= KEPT {
                noted.last.pop_front();
            }
            noted.last.push_back(Incident { at: SystemTime::now().into(), event: read.event, message: read.message });
        }
    }
}

#[derive(Default)]
struct Read {
    event: String,
    message: String,
}

impl Visit for Read {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "event" {
            value.clone_into(&mut self.event);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}").chars().take(400).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn what_concerns_a_whole_account_is_kept_and_counted_and_what_passes_all_the_time_is_not() {
        let name = |event: &str| format!("{event}_of_a_test");
        let (opened, routine) = (name("circuit_opened"), name("transition"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Noting), || {
            tracing::error!(event = opened.as_str(), provider = "khalti", "the circuit of {} is open", "khalti/default");
            tracing::info!(event = routine.as_str(), transaction_id = "x", "pending → succeeded");
            tracing::info!("a line without an event");
        });
        assert_eq!(counts().get(&opened), Some(&1));
        assert_eq!(counts().get(&routine), None);
        let kept = since(DateTime::UNIX_EPOCH);
        let kept: Vec<&str> = kept.iter().filter(|one| one.event == opened).map(|one| one.message.as_str()).collect();
        assert_eq!(kept, ["the circuit of khalti/default is open"]);
        assert!(!since(DateTime::UNIX_EPOCH).iter().any(|one| one.event == routine));
    }
}

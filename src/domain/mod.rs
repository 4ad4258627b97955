//! The core: what a transaction is, what an answer means for it, and when to poll again.
//!
//! Nothing here reads a clock, a socket, a database or a source of randomness: times and jitter are
//! arguments. So hours of provider time are tested in microseconds, and the same code runs in the
//! daemon, in `paypoll plan` and in the simulation.

pub mod audit;
pub mod decision;
pub mod outcome;
pub mod plan;
pub mod retry;
pub mod transaction;

pub use decision::{Change, Decision, Due, NotFoundRule, Rules, Source};
pub use outcome::{Amount, Health, NoAnswer, Outcome, Reported, Status, Whose};
pub use plan::{Anchors, Ending, Floors, Next, Origin, Phase, Plan, Progress, Range, Sent, Until};
pub use retry::Backoff;
pub use transaction::{State, Transaction};

use chrono::{DateTime, TimeDelta, Utc};
use std::time::Duration;

/// `at + wait`, held at the end of the calendar instead of overflowing.
#[must_use]
pub fn after(at: DateTime<Utc>, wait: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(wait).ok().and_then(|wait| at.checked_add_signed(wait)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// How long after `from` is `to`; zero when it is not after.
#[must_use]
pub fn since(from: DateTime<Utc>, to: DateTime<Utc>) -> Duration {
    (to - from).to_std().unwrap_or(Duration::ZERO)
}

//! What one poll's answer means for its transaction: journal row, decision, evidence. Pure: nothing
//! here reads a clock or a queue.

use super::clock::DatabaseClock;
use super::held::Held;
use super::lane::LaneSpec;
use super::membership::CLOCK_STEP;
use super::notice::Notice;
use crate::domain::{Change, Outcome, Source, after, since};
use crate::providers::Ask;
use crate::store::{Poll, Transition};
use crate::wire::Redaction;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An answer, or its absence, as it came.
pub(super) struct Answer {
    /// When the request was sent.
    pub(super) at: Instant,
    /// How long the answer took; `None` when nothing came back.
    pub(super) latency: Option<Duration>,
    /// The answer's status.
    pub(super) status: Option<u16>,
    /// The answer's body.
    pub(super) body: Bytes,
    /// Its outcome, scrubbed.
    pub(super) outcome: Outcome,
}

/// A poll for the journal and the log.
pub(super) struct Journaled {
    /// When it was sent, by the database's clock, or a little later.
    pub(super) sent: DateTime<Utc>,
    pub(super) poll: Poll,
    pub(super) notice: Notice,
}

/// What follows for the transaction.
pub(super) struct Followed {
    /// When it is due again; `None`: it is final or parked.
    pub(super) due: Option<Instant>,
    /// The change of state, if there is one.
    pub(super) transition: Option<Transition>,
    /// Why.
    pub(super) reason: Option<String>,
}

/// The redaction of answers about this transaction.
pub(super) fn redaction<'a>(spec: &'a LaneSpec, held: &'a Held) -> Redaction<'a> {
    let ask = held.ask();
    Redaction::new(spec.asks.secrets(ask), spec.asks.kept(ask))
}

/// Why no request can be made of the row; `None`: one can. Time and token are left to the poller.
pub(super) fn request_refused(spec: &LaneSpec, held: &Held) -> Option<String> {
    let ask = Ask { token: Some("-"), ..held.ask() };
    // No panic is known in here; should a row cause one, that row is to blame.
    let request = catch_unwind(AssertUnwindSafe(|| spec.asks.request(ask).map(drop)));
    request.unwrap_or_else(|_| Err("paypoll failed to make the request".into())).err()
}

/// When it was sent, by the upper bound of the database's clock: a wait counted from here is long
/// enough by any clock. It is never before the due time, even when the clock is known better by
/// now.
fn sent_at(held: &Held, at: Instant, clock: &DatabaseClock) -> DateTime<Utc> {
    let early = since(clock.latest(at), held.due);
    after(clock.latest(at), if early < CLOCK_STEP { early } else { Duration::ZERO })
}

/// The journal's row, and the notice for the log.
pub(super) fn journaled(held: &Held, spec: &LaneSpec, answer: &Answer, clock: &DatabaseClock) -> Journaled {
    let declaration = spec.asks.declaration();
    let transaction = &held.transaction;
    let sent = sent_at(held, answer.at, clock);
    let outcome = &answer.outcome;
    let error = outcome.error();
    let known = transaction.provider_state.as_deref();
    let provider_state = match outcome {
        Outcome::UnknownStatus { status: word } if known != Some(word) => Some(word.clone()),
        _ => None,
    };
    let notice = Notice::Poll {
        lane: held.lane,
        id: transaction.id,
        reference: transaction.reference.clone(),
        attempt: transaction.attempts.saturating_add(1),
        outcome: outcome.name(),
        status: answer.status,
        latency: answer.latency,
        lateness: since(held.due, sent),
        error: error.clone(),
        provider_state,
    };
    let poll = Poll {
        transaction_id: transaction.id,
        provider: transaction.provider,
        account: transaction.account.clone(),
        due_at: held.due,
        sent_at: sent,
        latency_ms: answer.latency.map(|latency| u32::try_from(latency.as_millis()).unwrap_or(u32::MAX)),
        http_status: answer.status,
        outcome: outcome.name(),
        error,
        declaration,
    };
    Journaled { sent, poll, notice }
}

/// Decides, and writes the decision into the transaction in memory. `jitter` in 0..1 places the
/// next poll within its range.
pub(super) fn follow(held: &mut Held, spec: &LaneSpec, answer: Answer, sent: DateTime<Utc>, now: Instant, jitter: f64) -> Followed {
    let mut decision = spec.rules.decide(&held.transaction, &answer.outcome, sent, jitter);
    let evidence = decision.change.as_ref().map(|_| evidence(spec, held, &answer, sent));
    // Its copy of the details would force the next line to copy all of them.
    drop(answer.outcome);
    if let Some(details) = decision.details.take() {
        let details = redaction(spec, held).json(Arc::unwrap_or_clone(details));
        held.unsaved.details = Some(details.to_string().into());
    }
    let from = held.transaction.state;
    let change = decision.change.clone();
    held.apply(&mut decision, sent, now);
    let Some(next) = decision.next else {
        let change = change.unwrap_or(Change { to: held.transaction.state, reason: None, source: Source::Poll });
        let transition = Transition { from, source: change.source, evidence };
        return Followed { due: None, transition: Some(transition), reason: change.reason };
    };
    // Where the provider measures, the request arrived at some moment until now: the documented gap
    // counts from now on.
    let due = (answer.at + (next - sent).to_std().unwrap_or_default()).max(now + spec.rules.floors.every);
    held.due = after(sent, due.saturating_duration_since(answer.at));
    let reason = change.as_ref().and_then(|change| change.reason.clone());
    let transition = change.map(|change| Transition { from, source: change.source, evidence });
    Followed { due: Some(due), transition, reason }
}

fn evidence(spec: &LaneSpec, held: &Held, answer: &Answer, sent: DateTime<Utc>) -> Value {
    let text = |at: DateTime<Utc>| at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    json!({
        "http_status": answer.status,
        "body": redaction(spec, held).body(&answer.body),
        "asked_at": text(sent),
        "answered_at": answer.latency.map(|latency| text(after(sent, latency))),
    })
}

/// The change of state, as a notice for the log.
pub(super) fn transition_notice(held: &Held, from: crate::domain::State, reason: Option<String>) -> Notice {
    let transaction = &held.transaction;
    Notice::Transition {
        lane: held.lane,
        id: transaction.id,
        reference: transaction.reference.clone(),
        from,
        to: transaction.state,
        provider_state: transaction.provider_state.clone(),
        reason,
        attempt: transaction.attempts,
    }
}

//! One payment's life.

use super::table::{account, badge, banner};
use super::{no_answer, page, patiently};
use crate::explain::{self, Rules, Tone};
use crate::ops::Ops;
use crate::ops::html::{Html, element, text};
use crate::store::{Extent, Life, LifePoll, LifeTransition};
use crate::text::{between, moment};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde_json::Value;
use std::sync::Arc;
use uuid::Uuid;

/// `GET /transactions/{id}`.
pub(super) async fn show(State(ops): State<Arc<Ops>>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<Uuid>() else {
        return page(StatusCode::NOT_FOUND, "paypoll", &id, element("p", &[], text("That is no transaction's id.")), false);
    };
    let life = {
        let _turn = ops.turn.lock().await;
        patiently(ops.store.life(id, Extent::PAGE)).await
    };
    match life {
        None => page(StatusCode::SERVICE_UNAVAILABLE, "paypoll", "", no_answer(), false),
        Some(None) => page(StatusCode::NOT_FOUND, "paypoll", "", element("p", &[], text("There is no such transaction.")), false),
        Some(Some(life)) => {
            let is_live = life.transaction.next_poll_at.is_some();
            let body = element("div", &[("id", "live")], life_of(&life, &ops.rules));
            page(StatusCode::OK, &format!("paypoll: {}", life.transaction.reference), "", body, is_live)
        }
    }
}

fn life_of(life: &Life, rules: &Rules) -> Html {
    let row = &life.transaction;
    let shown = |value: Option<&str>, none: &str| element("bdi", &[], text(value.unwrap_or(none)));
    let mut facts = vec![
        ("Account", account(&row.provider, &row.account)),
        ("State", badge(&row.state)),
        ("Provider's word", shown(row.provider_state.as_deref(), "none yet")),
        ("Reason", shown(row.reason.as_deref(), "–")),
        ("Expected amount", shown(amount(life).as_deref(), "none given")),
        ("Polls", text(polls_sent(life))),
    ];
    if row.action.is_some() {
        // It may hold a redirect URL, which is for the payer alone.
        facts.push(("Action", text("asked of payer or merchant: `paypoll show` has it")));
    }
    if let Some(next) = row.next_poll_at {
        facts.push(("Next poll", text(format_args!("{} UTC", moment(next)))));
    }
    if let Some(ends) = explain::gives_up(life, rules) {
        facts.push(("Gives up", text(ends)));
    }
    facts.push(("Id", element("code", &[], text(row.id))));
    let facts = facts.into_iter().map(|(name, value)| element("dt", &[], text(name)).with(element("dd", &[], value)));
    let why = explain::why(life, rules);
    element("h2", &[], element("bdi", &[], text(&row.reference)))
        .with(banner(tone(&row.state), why.trim_end_matches('.')))
        .with(element("dl", &[], facts.collect()))
        .with(element("h2", &[], text("Timeline")))
        .with(element("ol", &[], timeline(life)))
}

fn tone(state: &str) -> Tone {
    match state {
        "unresolved" | "invalid" => Tone::Warning,
        _ => Tone::Calm,
    }
}

fn amount(life: &Life) -> Option<String> {
    let amount = life.transaction.amount.as_ref()?;
    let amount = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
    Some(format!("{amount} {}", life.transaction.currency.as_deref().unwrap_or_default()))
}

fn polls_sent(life: &Life) -> String {
    match life.transaction.failures {
        0 => life.transaction.attempts.to_string(),
        failures => format!("{}; without a usable answer in a row: {failures}", life.transaction.attempts),
    }
}

/// Everything that happened, in its order.
fn timeline(life: &Life) -> Html {
    let row = &life.transaction;
    let mut events: Vec<(DateTime<Utc>, Html)> =
        vec![(row.initiated_at, text("initiated, by the feeder's clock")), (row.created_at, text("inserted"))];
    events.extend(life.polls.iter().map(|poll| (poll.sent_at, show_poll(poll))));
    events.extend(life.transitions.iter().map(|change| (change.at, show_change(change))));
    events.sort_by_key(|(at, _)| *at);
    let more = if i64::try_from(life.polls.len()).is_ok_and(|polls| polls >= Extent::PAGE.events) {
        let words = format!("Only the last {} polls are shown; `paypoll show {}` has all.", Extent::PAGE.events, row.id);
        element("li", &[], text(words))
    } else {
        Html::default()
    };
    let next = row.next_poll_at.map(|at| {
        let holder = life.surroundings.owner.map_or(String::new(), |owner| format!(", held by replica {owner}"));
        entry(at, text(format_args!("next poll due{holder}")))
    });
    more.with(events.into_iter().map(|(at, what)| entry(at, what)).collect()).with(next.unwrap_or_default())
}

fn entry(at: DateTime<Utc>, what: Html) -> Html {
    element("li", &[], element("time", &[("datetime", &at.to_rfc3339())], text(moment(at))).with(element("div", &[], what)))
}

fn show_poll(poll: &LifePoll) -> Html {
    let status = poll.http_status.map_or("no answer".to_owned(), |status| format!("HTTP {status}"));
    let latency = poll.latency_ms.map_or(String::new(), |ms| format!(" in {ms} ms"));
    let late = if poll.sent_at > poll.due_at {
        format!(", {} after it was due", between(poll.due_at, poll.sent_at))
    } else {
        String::new()
    };
    let outcome = element("span", &[("class", if poll.error.is_some() { "warn" } else { "" })], text(&poll.outcome));
    let error = poll.error.as_deref().map(|error| text(" — ").with(element("bdi", &[], text(error))));
    text(format_args!("asked{late}: {status}{latency}, ")).with(outcome).with(error.unwrap_or_default())
}

fn show_change(change: &LifeTransition) -> Html {
    let word = change.provider_state.as_deref().map(|word| text(", the provider's word: ").with(element("bdi", &[], text(word))));
    let reason = change.reason.as_deref().map(|reason| text(", ").with(element("bdi", &[], text(reason))));
    let evidence = change.evidence.as_ref().map(evidence);
    badge(&change.from_state)
        .with(text(" → "))
        .with(element("strong", &[], badge(&change.to_state)))
        .with(text(format_args!(", by {}", explain::by(change))))
        .with(word.unwrap_or_default())
        .with(reason.unwrap_or_default())
        .with(evidence.unwrap_or_default())
}

fn evidence(evidence: &Value) -> Html {
    let json = serde_json::to_string_pretty(evidence).unwrap_or_default();
    element("details", &[], element("summary", &[], text("evidence")).with(element("pre", &[], text(json))))
}

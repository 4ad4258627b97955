//! `paypoll show`: one transaction's life, for people as a timeline: initiated, polled, answered,
//! decided, next.

use super::text::{Paint, distance};
use crate::cli;
use crate::config::Config;
use crate::explain::{self, Rules};
use crate::store::{Extent, Life, LifePoll, LifeRow, LifeTransition};
use crate::text::{cut, json, moment, plain};
use crate::wire::REDACTED;
use anyhow::bail;
use chrono::{DateTime, Utc};
use serde_json::Value;
use std::io::{self, Write};

/// What came with a row to authenticate its lookup: never shown.
const SECRETS: [&str; 3] = ["session", "accessToken", "userSecret"];
/// A longer body of an answer is cut in the timeline; JSON has all of it.
const LONGEST_BODY: usize = 160;
/// A longer explanation is cut in the timeline.
const LONGEST_TEXT: usize = 400;

/// Prints the life of the transaction with that id or reference; of all of them where accounts
/// share the reference.
pub async fn run(config: &Config, args: &cli::Show, out: &mut impl Write) -> anyhow::Result<()> {
    let store = super::open_store(config).await?;
    let mut lives = store.lives(&args.transaction, Extent::ALL).await?;
    store.close().await;
    for life in &mut lives {
        let params = std::mem::take(&mut life.transaction.params);
        life.transaction.params = without_secrets(params);
    }
    match lives.as_slice() {
        [] => bail!(
            "no transaction has the id or reference {:?}: `paypoll list --reference PREFIX` finds what begins like it",
            args.transaction
        ),
        [life] if args.json => writeln!(out, "{}", json(life)?)?,
        several if args.json => writeln!(out, "{}", json(&several)?)?,
        several => {
            let (paint, rules) = (Paint::of_stdout(), Rules::of(config));
            for (number, life) in several.iter().enumerate() {
                if number > 0 {
                    writeln!(out)?;
                }
                write_life(out, life, &rules, paint)?;
            }
        }
    }
    Ok(())
}

/// The same under every name that a provider knows; what is no object is malformed and might hold anything.
fn without_secrets(params: Value) -> Value {
    match params {
        Value::Object(map) => {
            let hidden = |(key, value)| {
                let value = if SECRETS.contains(&String::as_str(&key)) { Value::String(REDACTED.into()) } else { value };
                (key, value)
            };
            Value::Object(map.into_iter().map(hidden).collect())
        }
        Value::Null => Value::Null,
        _ => Value::String(REDACTED.into()),
    }
}

fn write_life(out: &mut impl Write, life: &Life, rules: &Rules, paint: Paint) -> io::Result<()> {
    let row = &life.transaction;
    let name = format!("{}/{}  {}", row.provider, row.account, row.reference);
    writeln!(out, "{}", paint.strong(&plain(&name)))?;
    writeln!(out, "  {}", explain::why(life, rules))?;
    write_head(out, life, rules, paint)?;
    writeln!(out, "\n  {:<23}  {:>12}  {:>11}  event", "time (UTC)", "age", "gap")?;
    write_line(out, row.initiated_at, "", "", "initiated")?;
    let mut last = None;
    for event in timeline(life) {
        match event {
            Event::Poll(number, poll) => {
                write_poll(out, row, number, poll, last, paint)?;
                last = Some(poll.sent_at);
            }
            Event::Transition(change) => write_transition(out, row, change, paint)?,
        }
    }
    let unknown = pruned(life);
    if unknown > 0 {
        writeln!(out, "  {unknown} earlier polls are no longer in the journal")?;
    }
    Ok(())
}

fn write_head(out: &mut impl Write, life: &Life, rules: &Rules, paint: Paint) -> io::Result<()> {
    let row = &life.transaction;
    let mut field = |name: &str, value: &str| writeln!(out, "  {name:<10} {}", cut(value, LONGEST_TEXT));
    field("id", &row.id.to_string())?;
    let state = row.reason.as_ref().map_or_else(|| row.state.clone(), |reason| format!("{}: {reason}", row.state));
    field("state", &state)?;
    if let Some(word) = &row.provider_state {
        field("provider", &format!("says {word}"))?;
    }
    if row.amount.is_some() || row.currency.is_some() {
        let amount = row.amount.as_ref().map_or_else(|| "any amount".into(), json_text);
        field("expects", &format!("{amount} {}", row.currency.as_deref().unwrap_or("")))?;
    }
    if row.params.as_object().is_none_or(|params| !params.is_empty()) {
        field("params", &row.params.to_string())?;
    }
    if let Some(action) = &row.action {
        field("action", &action.to_string())?;
    }
    if let Some(next) = row.next_poll_at {
        field("next poll", &format!("{} UTC", moment(next)))?;
    }
    if let Some(ends) = explain::gives_up(life, rules) {
        field("gives up", &ends)?;
    }
    let failures = if row.failures > 0 { format!(", the last {} without a usable answer", row.failures) } else { String::new() };
    let polls = format!("  {:<10} {} sent{failures}", "polls", pruned(life) + life.polls.len());
    writeln!(out, "{}", if row.failures > 0 { paint.warning(&polls) } else { polls })
}

/// A JSON string without its quotes, anything else as it is.
fn json_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// How many polls the row counts and the journal no longer has. While a daemon holds the
/// transaction, the row counts too few.
fn pruned(life: &Life) -> usize {
    usize::try_from(life.transaction.attempts).unwrap_or(0).saturating_sub(life.polls.len())
}

enum Event<'a> {
    Poll(usize, &'a LifePoll),
    Transition(&'a LifeTransition),
}

/// Polls and transitions in the order of time; what follows from a poll comes after it.
fn timeline(life: &Life) -> Vec<Event<'_>> {
    let first = pruned(life);
    let polls = life.polls.iter().enumerate().map(|(n, poll)| (poll.sent_at, Event::Poll(first + n + 1, poll)));
    let transitions = life.transitions.iter().map(|change| (change.at, Event::Transition(change)));
    let mut events: Vec<_> = polls.chain(transitions).collect();
    events.sort_by_key(|(at, _)| *at);
    events.into_iter().map(|(_, event)| event).collect()
}

fn write_line(out: &mut impl Write, at: DateTime<Utc>, age: &str, gap: &str, event: &str) -> io::Result<()> {
    writeln!(out, "  {}  {age:>12}  {gap:>11}  {event}", moment(at))
}

/// A further line under an event.
fn write_more(out: &mut impl Write, text: &str) -> io::Result<()> {
    writeln!(out, "  {:<23}  {:>12}  {:>11}    {text}", "", "", "")
}

fn write_poll(
    out: &mut impl Write,
    row: &LifeRow,
    number: usize,
    poll: &LifePoll,
    last: Option<DateTime<Utc>>,
    paint: Paint,
) -> io::Result<()> {
    let answer = match (poll.http_status, poll.latency_ms) {
        (Some(status), Some(latency)) => format!("HTTP {status} after {latency} ms"),
        _ => "no answer".into(),
    };
    let late = distance(poll.due_at, poll.sent_at);
    let gap = last.map_or_else(String::new, |last| distance(last, poll.sent_at));
    let event = format!("poll {number}, {late} late: {answer}, {}", plain(&poll.outcome));
    write_line(out, poll.sent_at, &distance(row.initiated_at, poll.sent_at), &gap, &event)?;
    match &poll.error {
        Some(error) => write_more(out, &paint.warning(&cut(error, LONGEST_TEXT))),
        None => Ok(()),
    }
}

fn write_transition(out: &mut impl Write, row: &LifeRow, change: &LifeTransition, paint: Paint) -> io::Result<()> {
    let event = paint.strong(&plain(&format!("{} → {}", change.from_state, change.to_state)));
    let why = change.reason.as_ref().map_or_else(String::new, |reason| format!(": {}", cut(reason, LONGEST_TEXT)));
    let event = format!("{event} by {}{why}", explain::by(change));
    write_line(out, change.at, &distance(row.initiated_at, change.at), "", &event)?;
    match change.evidence.as_ref().map(evidence) {
        Some(evidence) => write_more(out, &evidence),
        None => Ok(()),
    }
}

fn evidence(evidence: &Value) -> String {
    let status = evidence.get("http_status").filter(|status| !status.is_null());
    let body = evidence.get("body").map_or_else(|| evidence.to_string(), json_text);
    let status = status.map_or_else(String::new, |status| format!("HTTP {status}, "));
    format!("evidence: {status}{}", cut(&body, LONGEST_BODY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_that_came_with_the_row_are_never_shown() {
        let params = json!({"endpointId": "1", "session": {"token": "canary"}, "accessToken": "canary", "userSecret": "canary"});
        let shown = without_secrets(params);
        assert_eq!(shown["endpointId"], "1");
        assert!(!shown.to_string().contains("canary"), "{shown}");
        assert!(!without_secrets(json!("canary")).to_string().contains("canary"));
        assert!(!without_secrets(json!([{"session": "canary"}])).to_string().contains("canary"));
    }
}

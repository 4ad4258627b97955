//! How everything stands: the worst that is true, then what is wrong, then the accounts, then what happened.

use super::list;
use super::table::{Column, account, address, badge, banner, class, link, list_of, table, toned};
use super::{no_answer, page};
use crate::explain::{self, Sentence, Tone};
use crate::incidents::{self, Incident};
use crate::ops::html::{Html, element, text};
use crate::ops::recent::Within;
use crate::ops::{LATENESS_FOR, Ops, metrics};
use crate::store::{AccountOverview, MOST, Overdue, RecentEvent, Situation, Unclaimed};
use crate::text::{about, between, clock, count, counted, seconds, some};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

#[derive(Deserialize)]
pub(super) struct Asked {
    /// A reference or an id, or how one begins.
    q: Option<String>,
    /// `off`: the page stays as it is.
    live: Option<String>,
}

/// How many lines show what is wrong, and what happened.
const MOST_TOLD: usize = 50;

/// `GET /`, and `GET /?q=…`.
pub(super) async fn show(State(ops): State<Arc<Ops>>, Query(asked): Query<Asked>) -> Response {
    if let Some(wanted) = asked.q.as_deref().map(str::trim).filter(|wanted| !wanted.is_empty()) {
        return list::search(&ops, wanted).await;
    }
    let readiness = ops.readiness().await;
    let unclaimed = ops.unclaimed(LATENESS_FOR).await;
    // A database that does not answer is not queried three times: the page is needed most just
    // then.
    let (situation, overdue) = match &unclaimed {
        Some(_) => (ops.situation().await, ops.overdue().await.unwrap_or_default()),
        None => (None, Vec::new()),
    };
    let lanes = lanes(&ops, unclaimed.as_deref());
    let is_live = asked.live.as_deref() != Some("off");
    let mut parts = match &situation {
        Some(situation) => told(situation, &overdue, &readiness),
        None => vec![unknown(&readiness), no_answer()],
    };
    parts.push(heading("Lanes of this replica"));
    parts.push(lanes);
    if let Some(situation) = &situation {
        parts.push(heading("Replicas"));
        parts.push(replicas(situation));
    }
    let pause = if is_live { ("/?live=off", "Stop the refresh") } else { ("/", "Refresh every few seconds") };
    let body = element("div", &[("id", "live")], parts.into_iter().collect()).with(element("p", &[], link(pause.0, pause.1)));
    page(StatusCode::OK, "paypoll", "", body, is_live)
}

fn heading(words: &str) -> Html {
    element("h2", &[], text(words))
}

fn unknown(readiness: &Result<(), String>) -> Html {
    match readiness {
        Err(why) => banner(Tone::Bad, &format!("Not ready: {why}")),
        Ok(()) => banner(Tone::Warning, "This replica is ready, but how everything stands is not known yet"),
    }
}

/// Everything that the database reports.
fn told(situation: &Situation, overdue: &[Overdue], readiness: &Result<(), String>) -> Vec<Html> {
    let mut headlines = explain::headlines(situation);
    // Lateness is shown better by the headlines; anything else is this replica's own trouble, and
    // worse.
    if let Err(why) = readiness
        && !why.starts_with("a transaction of")
    {
        headlines.retain(|sentence| sentence.tone != Tone::Good);
        headlines.insert(0, Sentence { tone: Tone::Bad, text: format!("this replica is not ready: {why}"), account: None });
    }
    let first = explain::first_line(&headlines);
    let mut parts = vec![banner(first.tone, &capitalized(&first.text)), as_of(situation)];
    let rest: Vec<&Sentence> = headlines.iter().skip(1).filter(|one| one.tone <= Tone::Warning).collect();
    if !rest.is_empty() {
        parts.push(heading("What else is wrong"));
        parts.push(element("ul", &[], rest.iter().take(MOST_TOLD).map(|sentence| problem(sentence)).collect()));
        if rest.len() > MOST_TOLD {
            parts.push(element("p", &[], text(format_args!("… and {} more.", rest.len() - MOST_TOLD))));
        }
    }
    parts.push(heading("Accounts"));
    parts.push(accounts(situation, &headlines));
    if !situation.parked.is_empty() {
        parts.push(heading("Parked, by reason"));
        parts.push(parked(situation));
    }
    if !overdue.is_empty() {
        parts.push(heading("Overdue"));
        parts.push(show_overdue(situation, overdue));
    }
    if !situation.errors.is_empty() {
        parts.push(heading("Errors of the last hour"));
        parts.push(errors(situation));
    }
    let incidents = incidents::since(situation.as_of - TimeDelta::hours(1));
    if !situation.events.is_empty() || !incidents.is_empty() {
        parts.push(heading("In the last hour"));
        parts.push(events(situation, &incidents));
    }
    parts
}

fn capitalized(sentence: &str) -> String {
    // An account's name stays as it is.
    let is_name = sentence.split(' ').next().is_some_and(|word| word.contains('/'));
    let mut letters = sentence.chars();
    match letters.next() {
        Some(first) if !is_name => first.to_uppercase().chain(letters).collect(),
        _ => sentence.to_owned(),
    }
}

fn as_of(situation: &Situation) -> Html {
    let replicas = match situation.replicas.len() {
        0 => "no replica lives".to_owned(),
        number => some(i64::try_from(number).unwrap_or(i64::MAX), i64::MAX, "replica lives", "replicas live"),
    };
    let at = situation.as_of.format("%Y-%m-%d %H:%M:%S");
    element("p", &[("class", "soft")], text(format_args!("As of {at} UTC; {replicas}.")))
}

fn problem(sentence: &Sentence) -> Html {
    let words = toned(sentence.tone, &sentence.text);
    let to = sentence.account.as_ref().map(|(provider, account)| text(" ").with(link(&list_of(provider, account, ""), "payments")));
    element("li", &[], words.with(to.unwrap_or_default()))
}

/// What is wrong first, then what is busy; what is idle folds.
fn accounts(situation: &Situation, headlines: &[Sentence]) -> Html {
    let wrong: Vec<&(String, String)> =
        headlines.iter().filter(|one| one.tone <= Tone::Warning).filter_map(|one| one.account.as_ref()).collect();
    let place = |row: &AccountOverview| {
        wrong.iter().position(|(provider, account)| (provider, account) == (&row.provider, &row.account)).unwrap_or(usize::MAX)
    };
    let mut shown: Vec<&AccountOverview> = situation.accounts.iter().collect();
    shown.sort_by_key(|row| (place(row), -(row.pending + row.action_required)));
    let (idle, shown): (Vec<_>, Vec<_>) = shown.into_iter().partition(|row| place(row) == usize::MAX && row.is_idle());
    let rows = shown.iter().map(|row| account_row(row, situation.as_of));
    let columns: [Column; 8] = [
        ("Account", false),
        ("Circuit", false),
        ("Pending", true),
        ("Late", true),
        ("Oldest due", true),
        ("Clears in", true),
        ("Action required", true),
        ("Parked", true),
    ];
    let caption = "Over all replicas. Late: due for more than five seconds. Clears in: at the account's budget.";
    let busy = if shown.is_empty() { Html::default() } else { table(caption, &columns, rows) };
    if idle.is_empty() {
        return busy;
    }
    let names = idle.iter().map(|row| element("li", &[], account(&row.provider, &row.account))).collect();
    let summary = some(i64::try_from(idle.len()).unwrap_or(i64::MAX), i64::MAX, "idle account", "idle accounts");
    busy.with(element("details", &[], element("summary", &[], text(summary)).with(element("ul", &[], names))))
}

fn account_row(row: &AccountOverview, now: DateTime<Utc>) -> Vec<Html> {
    let late = if row.overdue > 0 { Tone::Bad } else { Tone::Warning };
    let clears = match row.clears_in_s {
        Some(clears) => format!("about {}", about(clears)),
        None if row.late > 0 => "not at this budget".into(),
        None => "–".into(),
    };
    let parked = row.unresolved.saturating_add(row.invalid);
    let number = |value: i64, tone| if value > 0 { toned(tone, counted(value, MOST)) } else { text("0") };
    vec![
        account(&row.provider, &row.account),
        circuit(row, now),
        text(counted(row.pending, MOST)),
        number(row.late, late),
        text(row.oldest_due_s.map_or_else(|| "none due".into(), seconds)),
        text(clears),
        number(row.action_required, Tone::Calm),
        if parked > 0 {
            let states = "&state=unresolved&state=invalid";
            link(&list_of(&row.provider, &row.account, states), counted(parked, MOST))
        } else {
            text("0")
        },
    ]
}

fn circuit(row: &AccountOverview, now: DateTime<Utc>) -> Html {
    let since = |at: Option<DateTime<Utc>>| at.map_or_else(String::new, |at| format!(" for {}", between(at, now)));
    match &*row.circuit {
        "paused" => toned(Tone::Warning, format_args!("paused{}", since(row.paused_since))),
        "open" => toned(Tone::Bad, format_args!("open{}", since(row.circuit_since))),
        _ if row.held_until.is_some() => toned(Tone::Warning, "held by the provider"),
        other => text(other),
    }
}

fn parked(situation: &Situation) -> Html {
    let rows = situation.parked.iter().take(MOST_TOLD).map(|row| {
        let reason = row.reason.as_deref().unwrap_or_default();
        let number = if row.at_least { format!("at least {}", count(row.count)) } else { count(row.count) };
        let all = format!("&state={}&reason={}", row.state, super::table::encoded(reason));
        let means = explain::reason(reason).map(|known| text(format_args!(": {}", known.means)));
        let error = row
            .last_error
            .as_deref()
            .filter(|_| reason == explain::NO_USABLE_ANSWER)
            .map(|error| text(". Last error: ").with(element("bdi", &[], text(error))));
        vec![
            account(&row.provider, &row.account),
            badge(&row.state),
            element("bdi", &[], text(if reason.is_empty() { "–" } else { reason }))
                .with(means.unwrap_or_default())
                .with(error.unwrap_or_default()),
            if reason.is_empty() { text(number) } else { link(&list_of(&row.provider, &row.account, &all), number) },
            text(format_args!("{} ago", between(row.latest_at, situation.as_of))),
            link(&address(row.example), "the last one"),
        ]
    });
    let columns = [("Account", false), ("State", false), ("Reason", false), ("How many", true), ("Last", true), ("Example", false)];
    table("Not polled until somebody acts (paypoll retry).", &columns, rows)
}

fn show_overdue(situation: &Situation, overdue: &[Overdue]) -> Html {
    let rows = overdue.iter().map(|row| {
        let of = situation.accounts.iter().find(|account| (&account.provider, &account.account) == (&row.provider, &row.account));
        let why = match of {
            Some(of) if of.is_paused() => "an operator has paused its account",
            Some(of) if of.is_open() => "its account's circuit is open",
            Some(of) if of.held_until.is_some() => "the provider asked its account to pause",
            _ => "more is due than the account's budget or this installation can carry",
        };
        vec![link(&address(row.id), &row.reference), account(&row.provider, &row.account), text(seconds(row.due_s)), text(why)]
    });
    let columns = [("Reference", false), ("Account", false), ("Due for", true), ("Why", false)];
    table("The first of each account.", &columns, rows)
}

fn errors(situation: &Situation) -> Html {
    let rows = situation.errors.iter().map(|row| {
        vec![
            account(&row.provider, &row.account),
            text(count(row.count)),
            text(&row.outcome),
            element("bdi", &[], text(&row.error)),
            text(format_args!("{} ago", between(row.latest_at, situation.as_of))),
            link(&address(row.example), "the last one"),
        ]
    });
    let columns = [("Account", false), ("Polls", true), ("Outcome", false), ("Error", false), ("Last", true), ("Example", false)];
    table("The three most frequent ones of each account.", &columns, rows)
}

/// What the tables know, and what this replica has logged, the latest first.
fn events(situation: &Situation, incidents: &[Incident]) -> Html {
    let of_tables = situation.events.iter().map(|event| (event.at, event_line(event)));
    // What the tables show as well is shown once.
    let is_known = |incident: &Incident| {
        let near = |event: &RecentEvent| (event.at - incident.at).abs() < TimeDelta::seconds(5);
        situation.events.iter().any(|event| event.kind == incident.event && near(event))
    };
    let logged = incidents.iter().filter(|incident| !is_known(incident)).map(|incident| {
        let words = text(format_args!("{}: ", incident.event)).with(element("bdi", &[], text(&incident.message)));
        (incident.at, words.with(text(" (this replica's log)")))
    });
    let mut all: Vec<(DateTime<Utc>, Html)> = of_tables.chain(logged).collect();
    all.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    let entry = |(at, what): (DateTime<Utc>, Html)| {
        let time = element("time", &[("datetime", &at.to_rfc3339())], text(clock(at, situation.as_of)));
        element("li", &[], time.with(element("div", &[], what)))
    };
    element("ol", &[("class", "events")], all.into_iter().take(MOST_TOLD).map(entry).collect())
}

fn event_line(event: &RecentEvent) -> Html {
    let subject = event.subject.as_deref().map(|subject| text(" ").with(element("bdi", &[], text(subject))));
    let who = event.who.as_deref().map(|who| text(" by ").with(element("bdi", &[], text(who))));
    text(&event.kind).with(subject.unwrap_or_default()).with(who.unwrap_or_default()).with(text(": ")).with(element(
        "bdi",
        &[],
        text(&event.what),
    ))
}

fn lanes(ops: &Ops, unclaimed: Option<&[Unclaimed]>) -> Html {
    let minutes = ops.recent.lock().unwrap_or_else(PoisonError::into_inner).minute(&ops.metrics, Instant::now());
    let lanes = ops.metrics.accounts.iter().zip(metrics::held(&ops.metrics)).zip(&ops.budgets).zip(minutes);
    let rows = lanes.map(|(((lane, held), (rate, most)), minute)| {
        let rest = unclaimed.and_then(|all| all.iter().find(|rest| rest.provider == lane.provider && rest.account == lane.account));
        let oldest = rest.and_then(|rest| rest.oldest_s).unwrap_or(0.0).max(held.oldest_s);
        let late = if held.asked && oldest > ops.max_overdue.as_secs_f64() { Tone::Bad } else { Tone::Calm };
        vec![
            account(lane.provider, &lane.account),
            text(format_args!("{:.1} of {rate}", minute.rate)),
            text(within(minute.lateness_p50)),
            text(within(minute.lateness_p99)),
            text(within(minute.latency_p50)),
            text(format_args!("{} of {most}", lane.in_flight.load(Relaxed))),
            element("span", &[("class", class(late))], text(if oldest > 0.0 { seconds(oldest) } else { "none due".into() })),
        ]
    });
    let columns = [
        ("Account", false),
        ("Polls/s of its budget", true),
        ("Late, half", true),
        ("Late, 99 %", true),
        ("Answers, half", true),
        ("In flight", true),
        ("Oldest due", true),
    ];
    table("The last minute. Budgets and requests in flight are shared with the other replicas.", &columns, rows)
}

fn within(value: Option<Within>) -> String {
    match value {
        None => "–".into(),
        Some(Within::Up(bound)) => format!("≤ {}", seconds(bound)),
        Some(Within::Beyond(bound)) => format!("> {}", seconds(bound)),
    }
}

fn replicas(situation: &Situation) -> Html {
    if situation.replicas.is_empty() {
        return element("p", &[("class", "bad")], text("None lives."));
    }
    let rows = situation.replicas.iter().map(|replica| {
        let host = if replica.host.is_empty() { "–" } else { &replica.host };
        vec![
            text(replica.id),
            element("bdi", &[], text(host)),
            text(between(replica.started_at, situation.as_of)),
            text(format_args!("{} ago", between(replica.heartbeat_at, situation.as_of))),
            text(replica.accounts.len()),
        ]
    });
    let columns = [("Replica", false), ("Host", false), ("Up for", true), ("Heartbeat", true), ("Accounts", true)];
    table("All that live on this database.", &columns, rows)
}

//! The page for people: how the work goes, what is stuck and why, and one payment's life.
//!
//! Rendered here, complete without scripts and without anything from elsewhere. It shows nothing secret, but it does show payments:
//! whoever opens the port to others shows them too.

use super::html::{Html, element, literal, tag, text};
use super::recent::Within;
use super::{LATENESS_FOR, Ops, metrics, patiently};
use crate::domain;
use crate::store::Unroutable;
use crate::store::page::{Counts, ENOUGH, EVENTS, Found, Life, LifeChange, LifePoll, Stuck, Unheld};
use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Instant;
use uuid::Uuid;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// A browser that is told nothing else may load nothing, send nothing, and be framed by nobody.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The page's addresses.
pub(super) fn routes(ops: &Arc<Ops>) -> Router<Arc<Ops>> {
    Router::new()
        .route("/", get(overview))
        .route("/transactions/{id}", get(transaction))
        .layer(middleware::from_fn_with_state(ops.clone(), guard))
}

/// Adds what every answer carries, and refuses requests that a page from elsewhere could have made: a name that its owner points
/// at this machine reaches a port that listens on this machine only, and the browser would let that page read the answer.
async fn guard(State(ops): State<Arc<Ops>>, request: Request, next: Next) -> Response {
    let mut response = if ops.local && !is_local(request.headers()) {
        (StatusCode::MISDIRECTED_REQUEST, "this page is served as localhost or by an IP address only\n").into_response()
    } else {
        next.run(request).await
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether the request names this machine, or an address instead of a name.
fn is_local(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(authority) = host.and_then(|host| host.parse::<axum::http::uri::Authority>().ok()) else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[derive(Deserialize)]
struct Asked {
    /// A reference or an id.
    q: Option<String>,
    /// `off`: the page stays as it is.
    live: Option<String>,
}

/// `GET /`, and `GET /?q=…`.
async fn overview(State(ops): State<Arc<Ops>>, Query(asked): Query<Asked>) -> Response {
    if let Some(wanted) = asked.q.as_deref().map(str::trim).filter(|wanted| !wanted.is_empty()) {
        return search(&ops, wanted).await;
    }
    let readiness = ops.readiness().await;
    let unheld = ops.unheld(LATENESS_FOR).await;
    // A database that does not answer is not asked three times: the page is needed most just then.
    let (counts, stuck) = if unheld.is_some() { (ops.counts().await, ops.stuck().await) } else { (None, None) };
    let lanes = lanes(&ops, unheld.as_deref());
    let is_live = asked.live.as_deref() != Some("off");
    let live = [
        element("h2", &[], text("Now")),
        state(&readiness),
        element("h2", &[], text("Lanes of this replica")),
        lanes,
        element("h2", &[], text("What is stuck, and why")),
        stuck.as_ref().map_or_else(no_answer, |stuck| show_stuck(stuck, &ops.metrics.unroutable())),
        element("h2", &[], text("Not final yet")),
        counts.as_deref().map_or_else(no_answer, show_counts),
        element("h2", &[], text("Replicas")),
        stuck.as_ref().map_or_else(no_answer, replicas),
    ];
    let pause = if is_live { ("/?live=off", "Stop the refresh") } else { ("/", "Refresh every few seconds") };
    let body = element("div", &[("id", "live")], live.into_iter().collect()).with(element(
        "p",
        &[],
        element("a", &[("href", pause.0)], text(pause.1)),
    ));
    page(StatusCode::OK, "paypoll", "", body, is_live)
}

async fn search(ops: &Ops, wanted: &str) -> Response {
    let found = {
        let _turn = ops.turn.lock().await;
        match wanted.parse::<Uuid>() {
            Ok(id) => patiently(ops.store.life(id)).await.map(|life| life.into_iter().map(|life| life.found).collect()),
            Err(_) => patiently(ops.store.by_reference(wanted)).await,
        }
    };
    let heading = element("h2", &[], text("Search"));
    match found.as_deref() {
        None => page(StatusCode::SERVICE_UNAVAILABLE, "paypoll: search", wanted, heading.with(no_answer()), false),
        Some([one]) => Redirect::to(&address(one.id)).into_response(),
        Some([]) => {
            let none = text("No transaction has the reference or the id ").with(element("bdi", &[], text(wanted))).with(text("."));
            page(StatusCode::NOT_FOUND, "paypoll: search", wanted, heading.with(element("p", &[], none)), false)
        }
        Some(several) => page(StatusCode::OK, "paypoll: search", wanted, heading.with(hits(several)), false),
    }
}

/// `GET /transactions/{id}`.
async fn transaction(State(ops): State<Arc<Ops>>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<Uuid>() else {
        return page(StatusCode::NOT_FOUND, "paypoll", &id, element("p", &[], text("That is no transaction's id.")), false);
    };
    let life = {
        let _turn = ops.turn.lock().await;
        patiently(ops.store.life(id)).await
    };
    match life {
        None => page(StatusCode::SERVICE_UNAVAILABLE, "paypoll", "", no_answer(), false),
        Some(None) => page(StatusCode::NOT_FOUND, "paypoll", "", element("p", &[], text("There is no such transaction.")), false),
        Some(Some(life)) => {
            let is_live = life.next_poll_at.is_some();
            let body = element("div", &[("id", "live")], show_life(&life));
            page(StatusCode::OK, &format!("paypoll: {}", life.found.reference), "", body, is_live)
        }
    }
}

fn address(id: Uuid) -> String {
    format!("/transactions/{id}")
}

/// A complete document.
fn page(status: StatusCode, title: &str, wanted: &str, body: Html, is_live: bool) -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let reload = element("noscript", &[], tag("meta", &[("http-equiv", "refresh"), ("content", "10")]));
    let head = tag("meta", &[("charset", "utf-8")])
        .with(tag("meta", &[("name", "viewport"), ("content", "width=device-width, initial-scale=1")]))
        .with(element("title", &[], text(title)))
        .with(if is_live { reload } else { Html::default() })
        .with(element("style", &[("nonce", &nonce)], literal(STYLE)));
    let label = "Reference or id";
    let field = [("id", "q"), ("name", "q"), ("type", "search"), ("value", wanted), ("placeholder", label), ("maxlength", "512")];
    let form = element("label", &[("for", "q")], text(label)).with(tag("input", &field)).with(element("button", &[], text("Find")));
    let header = element("h1", &[], element("a", &[("href", "/")], text("paypoll"))).with(element(
        "form",
        &[("action", "/"), ("role", "search")],
        form,
    ));
    let version = concat!("paypoll ", env!("CARGO_PKG_VERSION"), ". Read-only; times are UTC. ");
    let machines = element("a", &[("href", "/readyz")], text("readyz")).with(text(" ")).with(element(
        "a",
        &[("href", "/metrics")],
        text("metrics"),
    ));
    let note = element("p", &[("id", "note"), ("role", "status"), ("class", "bad")], Html::default());
    let script = if is_live { element("script", &[("nonce", &nonce)], literal(SCRIPT)) } else { Html::default() };
    let body = element("header", &[], header)
        .with(element("main", &[], note.with(body)))
        .with(element("footer", &[], text(version).with(machines)))
        .with(script);
    let document = literal("<!doctype html>").with(element(
        "html",
        &[("lang", "en")],
        element("head", &[], head).with(element("body", &[], body)),
    ));
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'"
    );
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()), (header::CONTENT_SECURITY_POLICY, policy)];
    (status, headers, document.into_string()).into_response()
}

fn no_answer() -> Html {
    element("p", &[("class", "bad")], text("The database does not answer."))
}

fn state(readiness: &Result<(), String>) -> Html {
    let (class, words) = match readiness {
        Ok(()) => ("state good", "Ready: the database is there, and no transaction waits for longer than it should.".to_owned()),
        Err(why) => ("state bad", format!("Not ready: {why}")),
    };
    element("p", &[("class", class)], text(words))
}

/// A column: its heading, and whether it holds numbers.
type Column = (&'static str, bool);

/// A table. On a narrow screen each row becomes a card, whose cells say what they are; the roles keep it a table for screen readers.
fn table(caption: &str, columns: &[Column], rows: impl IntoIterator<Item = Vec<Html>>) -> Html {
    let class = |is_number| if is_number { "n" } else { "t" };
    let heads = columns
        .iter()
        .map(|(name, number)| element("th", &[("scope", "col"), ("role", "columnheader"), ("class", class(*number))], text(name)));
    let head = element("thead", &[("role", "rowgroup")], element("tr", &[("role", "row")], heads.collect()));
    let row = |cells: Vec<Html>| {
        let cells = cells.into_iter().zip(columns).enumerate().map(|(at, (cell, (name, number)))| {
            let cell = element("span", &[], cell);
            match at {
                0 => element("th", &[("scope", "row"), ("role", "rowheader"), ("data-label", name)], cell),
                _ => element("td", &[("role", "cell"), ("data-label", name), ("class", class(*number))], cell),
            }
        });
        element("tr", &[("role", "row")], cells.collect())
    };
    let body = element("tbody", &[("role", "rowgroup")], rows.into_iter().map(row).collect());
    element("table", &[("role", "table")], element("caption", &[], text(caption)).with(head).with(body))
}

fn account(provider: &str, account: &str) -> Html {
    element("bdi", &[], text(format_args!("{provider}/{account}")))
}

fn lanes(ops: &Ops, unheld: Option<&[Unheld]>) -> Html {
    let minutes = ops.recent.lock().unwrap_or_else(PoisonError::into_inner).minute(&ops.metrics, Instant::now());
    let lanes = ops.metrics.accounts.iter().zip(metrics::held(&ops.metrics)).zip(&ops.budgets).zip(minutes);
    let rows = lanes.map(|(((lane, held), (rate, most)), minute)| {
        let rest = unheld.and_then(|all| all.iter().find(|rest| rest.provider == lane.provider && rest.account == lane.account));
        let oldest = rest.and_then(|rest| rest.oldest_s).unwrap_or(0.0).max(held.oldest_s);
        let late = if held.asked && oldest > ops.max_overdue.as_secs_f64() { "bad" } else { "" };
        vec![
            account(lane.provider, &lane.account),
            text(format_args!("{:.1} of {rate}", minute.rate)),
            text(within(minute.lateness_p50)),
            text(within(minute.lateness_p99)),
            text(within(minute.latency_p50)),
            text(format_args!("{} of {most}", lane.in_flight.load(Relaxed))),
            element("span", &[("class", late)], text(if oldest > 0.0 { span(oldest) } else { "none due".into() })),
            circuit(lane.circuit_open.load(Relaxed), lane.paused.load(Relaxed)),
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
        ("Circuit", false),
    ];
    table("The last minute. Budgets and requests in flight are shared with the other replicas.", &columns, rows)
}

fn within(value: Option<Within>) -> String {
    match value {
        None => "–".into(),
        Some(Within::Up(seconds)) => format!("≤ {}", span(seconds)),
        Some(Within::Beyond(seconds)) => format!("> {}", span(seconds)),
    }
}

fn circuit(is_open: bool, is_paused: bool) -> Html {
    let (class, words) = match (is_open, is_paused) {
        (true, _) => ("bad", "open: only probes"),
        (false, true) => ("warn", "pause"),
        (false, false) => ("good", "closed"),
    };
    element("span", &[("class", class)], text(words))
}

fn show_stuck(stuck: &Stuck, unroutable: &[Unroutable]) -> Html {
    let mut parts = Vec::new();
    if !stuck.silent.is_empty() {
        parts.push(show_silent(stuck));
    }
    if !unroutable.is_empty() {
        let rows = unroutable.iter().map(|row| {
            let mend = format!("configure providers.{}.accounts.{}, or correct the rows", row.provider, row.account);
            vec![account(&row.provider, &row.account), text(count(row.count, crate::store::MOST)), text(mend)]
        });
        let columns = [("Account", false), ("Transactions", true), ("What to do", false)];
        parts.push(table("No running daemon serves these accounts: their transactions wait.", &columns, rows));
    }
    if !stuck.overdue.is_empty() {
        parts.push(show_overdue(stuck));
    }
    if !stuck.parked.is_empty() {
        parts.push(show_parked(stuck));
    }
    if parts.is_empty() {
        return element("p", &[("class", "good")], text("Nothing."));
    }
    parts.into_iter().map(|part| part.with(tag("br", &[]))).collect()
}

fn show_silent(stuck: &Stuck) -> Html {
    let rows = stuck.silent.iter().map(|silent| {
        let why = match (silent.open_s, silent.pause_s) {
            (Some(open_s), _) => {
                text(format_args!("circuit open for {}: ", span(open_s))).with(text(silent.reason.as_deref().unwrap_or("–")))
            }
            (None, Some(pause_s)) => text(format_args!("the provider asked for a pause, {} of it left", span(pause_s))),
            (None, None) => text("asked again"),
        };
        vec![account(&silent.provider, &silent.account), why]
    });
    table("These accounts are not asked, but for probes.", &[("Account", false), ("Why", false)], rows)
}

fn show_overdue(stuck: &Stuck) -> Html {
    let rows = stuck.overdue.iter().map(|row| {
        let silent = stuck.silent.iter().find(|silent| (&silent.provider, &silent.account) == (&row.provider, &row.account));
        let why = match silent {
            Some(silent) if silent.open_s.is_some() => "its account's circuit is open",
            Some(_) => "its account pauses",
            None => "more is due than the account's budget or this installation can carry",
        };
        let link = element("a", &[("href", &address(row.id))], element("bdi", &[], text(&row.reference)));
        vec![link, account(&row.provider, &row.account), text(span(row.due_s)), text(why)]
    });
    let columns = [("Reference", false), ("Account", false), ("Due for", true), ("Why", false)];
    table("Overdue: the first of each account.", &columns, rows)
}

fn show_parked(stuck: &Stuck) -> Html {
    let rows = stuck.parked.iter().map(|row| {
        let reason = row.reason.as_deref().unwrap_or("–");
        vec![
            account(&row.provider, &row.account),
            badge(&row.state),
            element("bdi", &[], text(reason)).with(text(meaning(reason).map(|words| format!(": {words}")).unwrap_or_default())),
            text(count(row.count, crate::store::page::PARKED)),
            text(format_args!("{} ago", span(row.latest_s))),
            element("a", &[("href", &address(row.example))], text("the last one")),
        ]
    });
    let columns = [("Account", false), ("State", false), ("Reason", false), ("How many", true), ("Last", true), ("Example", false)];
    table("Parked: not polled until somebody acts (paypoll retry).", &columns, rows)
}

fn show_counts(counts: &[Counts]) -> Html {
    let number = |value| text(count(value, ENOUGH));
    let rows = counts.iter().map(|row| {
        let numbers = [row.pending, row.action_required, row.unresolved, row.invalid];
        [text(&row.provider)].into_iter().chain(numbers.into_iter().map(number)).collect()
    });
    let columns = [("Provider", false), ("Pending", true), ("Action required", true), ("Unresolved", true), ("Invalid", true)];
    table("Over all accounts and replicas, as of some seconds ago.", &columns, rows)
}

fn count(value: i64, most: i64) -> String {
    if value >= most { format!("{most} or more") } else { value.to_string() }
}

fn replicas(stuck: &Stuck) -> Html {
    let rows = stuck.replicas.iter().map(|replica| {
        let host = if replica.host.is_empty() { "–" } else { &replica.host };
        vec![text(replica.id), element("bdi", &[], text(host)), text(span(replica.up_s)), text(replica.accounts)]
    });
    table("All that live on this database.", &[("Replica", false), ("Host", false), ("Up for", true), ("Accounts", true)], rows)
}

fn hits(found: &[Found]) -> Html {
    let rows = found.iter().map(|hit| {
        let link = element("a", &[("href", &address(hit.id))], element("bdi", &[], text(&hit.reference)));
        vec![link, account(&hit.provider, &hit.account), badge(&hit.state)]
    });
    table("Several transactions have this reference.", &[("Reference", false), ("Account", false), ("State", false)], rows)
}

fn badge(state: &str) -> Html {
    let class = match state {
        "succeeded" => "good",
        "failed" | "invalid" => "bad",
        "unresolved" | "action_required" => "warn",
        _ => "",
    };
    element("span", &[("class", class)], text(state))
}

/// What paypoll's own reasons mean.
fn meaning(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "window_over" => "the provider gave no final word while its rules let it be asked",
        "gave_up" => "no final word came within give_up_after",
        "no_usable_answer" => "no poll of the whole window got a usable answer: retried as it is, it will fail in the same way",
        "not_found" => "the provider does not know the reference",
        "amount_mismatch" => "the provider reports success with another amount",
        "currency_mismatch" => "the provider reports success in another currency",
        "credentials_rejected" => "the provider refuses the credentials that came with the row",
        _ => return None,
    })
}

fn show_life(life: &Life) -> Html {
    let found = &life.found;
    let facts = [
        ("Account", account(&found.provider, &found.account)),
        ("State", badge(&found.state)),
        ("Provider's word", element("bdi", &[], text(life.provider_state.as_deref().unwrap_or("none yet")))),
        ("Reason", element("bdi", &[], text(life.reason.as_deref().unwrap_or("–")))),
        ("Expected amount", element("bdi", &[], text(life.amount.as_deref().unwrap_or("none given")))),
        ("Polls", text(polls_sent(life))),
        ("Id", element("code", &[], text(found.id))),
    ];
    let facts = facts.into_iter().map(|(name, value)| element("dt", &[], text(name)).with(element("dd", &[], value)));
    element("h2", &[], element("bdi", &[], text(&found.reference)))
        .with(element("p", &[("class", "state")], text(why(life))))
        .with(element("dl", &[], facts.collect()))
        .with(element("h2", &[], text("Timeline")))
        .with(element("ol", &[], timeline(life)))
}

fn polls_sent(life: &Life) -> String {
    match life.failures {
        0 => life.attempts.to_string(),
        failures => format!("{}; without a usable answer in a row: {failures}", life.attempts),
    }
}

/// Why the transaction stands where it stands, and what comes next.
fn why(life: &Life) -> String {
    let (found, id) = (&life.found, life.found.id);
    let reason = life.reason.as_deref().unwrap_or("no reason was given");
    let next = life.next_poll_at.map_or(TimeDelta::zero(), |next| next - life.now).as_seconds_f64();
    match (&*found.state, &life.circuit) {
        ("unresolved", _) => format!(
            "Polling ended without a final word: {}. The outcome is unknown. `paypoll retry {id}` opens a new window.",
            meaning(reason).unwrap_or(reason)
        ),
        ("invalid", _) => format!("It cannot be asked about: {reason}. Mend the row, then `paypoll retry {id}`."),
        (state, _) if life.next_poll_at.is_none() => format!("{state} is final: nothing more is asked."),
        _ if !life.served => {
            format!(
                "It waits: no running daemon serves {}/{}. Configure that account, or correct the row.",
                found.provider, found.account
            )
        }
        (_, Some(reason)) => format!("It waits: its account's circuit is open ({reason}), and nothing is asked but probes."),
        _ if life.paused_until.is_some() => "It waits: the provider asked the whole account to pause.".into(),
        (state, _) => {
            let waits = match state {
                "action_required" => "The provider waits for the payer or the merchant",
                _ if life.attempts == 0 => "It has not been asked about yet",
                _ if life.failures > 0 => "The last poll got no usable answer",
                _ => "The provider has not decided",
            };
            match (next > 0.0, life.owner.is_some()) {
                (true, _) => format!("{waits}. The next poll is due in {}.", span(next)),
                (false, true) => format!("{waits}. A replica holds it and polls it right now."),
                (false, false) => format!("{waits}. It has been due for {} and waits for its turn.", span(-next)),
            }
        }
    }
}

/// Everything that happened, in its order.
fn timeline(life: &Life) -> Html {
    let mut events: Vec<(DateTime<Utc>, Html)> =
        vec![(life.initiated_at, text("initiated, by the feeder's clock")), (life.created_at, text("inserted"))];
    events.extend(life.polls.iter().map(|poll| (poll.sent_at, show_poll(poll))));
    events.extend(life.changes.iter().map(|change| (change.at, show_change(change))));
    events.sort_by_key(|(at, _)| *at);
    let more = if i64::try_from(life.polls.len()).is_ok_and(|polls| polls >= EVENTS) {
        element("li", &[], text(format_args!("Only the last {EVENTS} polls are shown; `paypoll show {}` has all.", life.found.id)))
    } else {
        Html::default()
    };
    let next = life.next_poll_at.map(|at| {
        let holder = life.owner.map_or(String::new(), |owner| format!(", held by replica {owner}"));
        entry(at, text(format_args!("next poll due{holder}")))
    });
    more.with(events.into_iter().map(|(at, what)| entry(at, what)).collect()).with(next.unwrap_or_default())
}

fn entry(at: DateTime<Utc>, what: Html) -> Html {
    let shown = at.format("%Y-%m-%d %H:%M:%S%.3f").to_string();
    element("li", &[], element("time", &[("datetime", &at.to_rfc3339())], text(shown)).with(element("div", &[], what)))
}

fn show_poll(poll: &LifePoll) -> Html {
    let status = poll.http_status.map_or("no answer".to_owned(), |status| format!("HTTP {status}"));
    let latency = poll.latency_ms.map_or(String::new(), |ms| format!(" in {ms} ms"));
    let late = (poll.sent_at - poll.due_at).as_seconds_f64();
    let late = if late > 0.0 { format!(", {} after it was due", span(late)) } else { String::new() };
    let outcome = element("span", &[("class", if poll.error.is_some() { "warn" } else { "" })], text(&poll.outcome));
    let error = poll.error.as_deref().map(|error| text(" — ").with(element("bdi", &[], text(error))));
    text(format_args!("asked{late}: {status}{latency}, ")).with(outcome).with(error.unwrap_or_default())
}

fn show_change(change: &LifeChange) -> Html {
    let word = change.provider_state.as_deref().map(|word| text(", the provider's word: ").with(element("bdi", &[], text(word))));
    let reason = change.reason.as_deref().map(|reason| text(", ").with(element("bdi", &[], text(reason))));
    let evidence = change.evidence.as_ref().map(|evidence| {
        let json = serde_json::to_string_pretty(evidence).unwrap_or_default();
        element("details", &[], element("summary", &[], text("evidence")).with(element("pre", &[], text(json))))
    });
    badge(&change.from)
        .with(text(" → "))
        .with(element("strong", &[], badge(&change.to)))
        .with(text(format_args!(", by {}", source(&change.source, &change.to))))
        .with(word.unwrap_or_default())
        .with(reason.unwrap_or_default())
        .with(evidence.unwrap_or_default())
}

fn source<'a>(source: &'a str, to: &str) -> &'a str {
    match source {
        "poll" if to == domain::State::Invalid.as_str() => "a look at the row: nobody was asked",
        "poll" => "a poll's answer",
        "deadline" => "the end of its time",
        "external" => "somebody else: a callback handler, or a hand at the database",
        "operator" => "an operator",
        other => other,
    }
}

/// A length of time as people say it.
fn span(seconds: f64) -> String {
    let whole = seconds.round() as i64;
    match whole {
        _ if seconds < 0.001 => "< 1 ms".into(),
        _ if seconds < 1.0 => format!("{} ms", (seconds * 1e4).round() / 10.0),
        ..60 => format!("{} s", (seconds * 10.0).round() / 10.0),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86400, whole % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_belong_to_anybody_is_not_local() {
        let host = |host: &str| is_local(&HeaderMap::from_iter([(header::HOST, HeaderValue::from_str(host).expect("a header"))]));
        for local in ["localhost", "LocalHost:9464", "127.0.0.1:9464", "127.0.0.1", "[::1]:9464"] {
            assert!(host(local), "{local}");
        }
        for foreign in ["evil.example", "evil.example:9464", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b"] {
            assert!(!host(foreign), "{foreign}");
        }
        assert!(!is_local(&HeaderMap::new()));
    }

    #[test]
    fn lengths_of_time_are_said_in_two_units_at_most() {
        let said = [0.0004, 0.0025, 0.25, 2.54, 59.7, 61.0, 3600.0, 90_061.0].map(span);
        assert_eq!(said, ["< 1 ms", "2.5 ms", "250 ms", "2.5 s", "1 min 0 s", "1 min 1 s", "1 h 0 min", "1 d 1 h"]);
    }
}

//! Lists of payments: filtered, in pages that can be linked to, as a table and as CSV; and the search.

use super::table::{account, address, badge, encoded, link, table};
use super::{no_answer, page, patiently};
use crate::config::duration;
use crate::csv;
use crate::domain::State as Standing;
use crate::ops::Ops;
use crate::ops::html::{Html, element, tag, text};
use crate::store::{Cursor, Filter, Found, LOOKED_AT, Listed, Page};
use crate::text::{between, count};
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use chrono::{DateTime, Utc};
use percent_encoding::percent_decode_str;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How many are on a page.
const ON_A_PAGE: usize = 100;
/// How many are in a file.
const IN_A_FILE: usize = 10_000;

/// What was requested, as in the address.
#[derive(Clone, Debug, Default)]
struct Wanted {
    filter: Filter,
    after: Option<Cursor>,
    /// What cannot be read, in a sentence.
    trouble: Option<String>,
}

impl Wanted {
    /// Empty fields of the form mean anything.
    fn read(query: &str) -> Self {
        let mut wanted = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().trim().to_owned();
            if value.is_empty() {
                continue;
            }
            let trouble = wanted.set(name, value).err();
            wanted.trouble = wanted.trouble.or(trouble);
        }
        wanted
    }

    /// Takes in one field; the error says what is wrong with it. Unknown ones are ignored.
    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        let age = || duration::parse(&value).map(Some).map_err(|mend| format!("{name} = {value:?}: {mend}"));
        match name {
            "older" => self.filter.older = age()?,
            "since" => self.filter.since = age()?,
            "state" => {
                let state = Standing::from_name(&value);
                self.filter.states.push(state.ok_or_else(|| format!("state = {value:?} is no state"))?);
            }
            "after" => {
                let place = Cursor::parse(&value);
                self.after = Some(place.ok_or_else(|| format!("after = {value:?} is no place in a list"))?);
            }
            "provider" => self.filter.provider = Some(value),
            "account" => self.filter.account = Some(value),
            "reason" => self.filter.reason = Some(value),
            "reference" => self.filter.reference = Some(value),
            _ => {}
        }
        Ok(())
    }

    /// The address of the same list from a place on.
    fn query(&self, after: Option<&Cursor>) -> String {
        let filter = &self.filter;
        let mut parts = Vec::new();
        let fields = [
            ("provider", &filter.provider),
            ("account", &filter.account),
            ("reason", &filter.reason),
            ("reference", &filter.reference),
        ];
        for (name, value) in fields {
            parts.extend(value.as_ref().map(|value| format!("{name}={}", encoded(value))));
        }
        parts.extend(filter.states.iter().map(|state| format!("state={state}")));
        for (name, age) in [("older", filter.older), ("since", filter.since)] {
            parts.extend(age.map(|age| format!("{name}={}", age_text(age))));
        }
        parts.extend(after.map(|after| format!("after={}", encoded(&after.text()))));
        parts.join("&")
    }
}

/// As the form reads it again.
fn age_text(age: Duration) -> String {
    match age.as_millis() {
        millis if millis.is_multiple_of(1_000) => format!("{}s", millis / 1_000),
        millis => format!("{millis}ms"),
    }
}

/// `GET /transactions`.
pub(super) async fn show(State(ops): State<Arc<Ops>>, RawQuery(query): RawQuery) -> Response {
    let wanted = Wanted::read(query.as_deref().unwrap_or_default());
    let heading = element("h2", &[], text("Payments")).with(form(&ops, &wanted));
    if let Some(trouble) = &wanted.trouble {
        let told = element("p", &[("class", "bad")], text(trouble));
        return page(StatusCode::BAD_REQUEST, "paypoll: payments", "", heading.with(told), false);
    }
    let found = {
        let _turn = ops.turn.lock().await;
        patiently(ops.store.list(&wanted.filter, wanted.after.as_ref(), ON_A_PAGE)).await
    };
    match found {
        None => page(StatusCode::SERVICE_UNAVAILABLE, "paypoll: payments", "", heading.with(no_answer()), false),
        Some(found) => page(StatusCode::OK, "paypoll: payments", "", heading.with(listed(&wanted, &found)), false),
    }
}

/// `GET /transactions.csv`.
pub(super) async fn csv(State(ops): State<Arc<Ops>>, RawQuery(query): RawQuery) -> Response {
    let wanted = Wanted::read(query.as_deref().unwrap_or_default());
    if let Some(trouble) = wanted.trouble {
        return (StatusCode::BAD_REQUEST, format!("{trouble}\n")).into_response();
    }
    let found = {
        let _turn = ops.turn.lock().await;
        patiently(ops.store.list(&wanted.filter, wanted.after.as_ref(), IN_A_FILE)).await
    };
    let Some(found) = found else { return (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n").into_response() };
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"payments.csv\""),
    ];
    (headers, csv::text(&found.rows, true)).into_response()
}

/// `GET /?q=…`: the payment of that reference or id; else those that begin like it; else what is near.
pub(super) async fn search(ops: &Arc<Ops>, wanted: &str) -> Response {
    let heading = element("h2", &[], text("Search"));
    if wanted.contains('\0') {
        // No reference contains one, and the database cannot even be queried for it.
        let told = element("p", &[], text("No payment has such a reference or id."));
        return page(StatusCode::NOT_FOUND, "paypoll: search", wanted, heading.with(told), false);
    }
    let found = {
        let _turn = ops.turn.lock().await;
        patiently(ops.store.named(wanted)).await
    };
    match found.as_deref() {
        None => return page(StatusCode::SERVICE_UNAVAILABLE, "paypoll: search", wanted, heading.with(no_answer()), false),
        Some([one]) => return Redirect::to(&address(one.id)).into_response(),
        Some([]) => {}
        Some(several) => return page(StatusCode::OK, "paypoll: search", wanted, heading.with(hits(several)), false),
    }
    let by_prefix = Wanted { filter: Filter { reference: Some(wanted.to_owned()), ..Filter::default() }, ..Wanted::default() };
    let found = {
        let _turn = ops.turn.lock().await;
        patiently(ops.store.list(&by_prefix.filter, None, ON_A_PAGE)).await
    };
    let named = || element("bdi", &[], text(wanted));
    let Some(found) = found else {
        return page(StatusCode::SERVICE_UNAVAILABLE, "paypoll: search", wanted, heading.with(no_answer()), false);
    };
    if !found.rows.is_empty() {
        let told = text("No payment has exactly the reference or id ").with(named()).with(text("; these begin like it."));
        let body = heading.with(element("p", &[], told)).with(listed(&by_prefix, &found));
        return page(StatusCode::OK, "paypoll: search", wanted, body, false);
    }
    let told = text("No payment has the reference or the id ").with(named()).with(text(", and none begins like it."));
    let near = if found.near.is_empty() {
        Html::default()
    } else {
        rows_table("Near it, in the order of references.", &found.near, found.as_of)
    };
    page(StatusCode::NOT_FOUND, "paypoll: search", wanted, heading.with(element("p", &[], told)).with(near), false)
}

fn hits(found: &[Found]) -> Html {
    let rows = found.iter().map(|hit| {
        vec![link(&address(hit.id), &hit.reference), account(&hit.provider, &hit.account), badge(&hit.state), id_cell(hit.id)]
    });
    let columns = [("Reference", false), ("Account", false), ("State", false), ("Id", false)];
    table("Several payments are named like this.", &columns, rows)
}

fn id_cell(id: Uuid) -> Html {
    element("code", &[], text(id))
}

/// The filters, for a browser without scripts.
fn form(ops: &Ops, wanted: &Wanted) -> Html {
    let filter = &wanted.filter;
    let mut providers: Vec<&str> = ops.metrics.accounts.iter().map(|account| account.provider).collect();
    providers.dedup();
    if let Some(provider) = filter.provider.as_deref().filter(|provider| !providers.contains(provider)) {
        providers.push(provider);
    }
    let state = if let [state] = filter.states.as_slice() { Some(state.as_str()) } else { None };
    let states: Vec<&str> = Standing::ALL.into_iter().map(Standing::as_str).collect();
    let older = filter.older.map(age_text).unwrap_or_default();
    let fields = [
        select("provider", "Provider", &providers, filter.provider.as_deref()),
        input("account", "Account", filter.account.as_deref().unwrap_or_default()),
        select("state", "State", &states, state),
        input("reason", "Reason", filter.reason.as_deref().unwrap_or_default()),
        input("reference", "Reference begins with", filter.reference.as_deref().unwrap_or_default()),
        input("older", "For longer than (2h)", &older),
        element("button", &[], text("List")),
    ];
    element("form", &[("action", "/transactions"), ("class", "filters")], fields.into_iter().collect())
}

fn input(name: &str, label: &str, value: &str) -> Html {
    let field = tag("input", &[("name", name), ("value", value), ("maxlength", "512")]);
    element("label", &[("class", "field")], element("span", &[], text(label)).with(field))
}

fn select(name: &str, label: &str, options: &[&str], chosen: Option<&str>) -> Html {
    let option = |value: &str, words: &str| {
        let selected = [("value", value), ("selected", "")];
        element("option", if chosen == Some(value) { &selected } else { &selected[..1] }, text(words))
    };
    let any = option("", "any");
    let all = options.iter().map(|value| option(value, value)).collect();
    let field = element("select", &[("name", name)], any.with(all));
    element("label", &[("class", "field")], element("span", &[], text(label)).with(field))
}

/// A page of the list, with the ways on.
fn listed(wanted: &Wanted, found: &Page) -> Html {
    if found.rows.is_empty() {
        let none = element("p", &[], text("No payment is like that."));
        let cut = if found.is_cut { cut() } else { Html::default() };
        let near = if found.near.is_empty() { Html::default() } else { rows_table("Near it.", &found.near, found.as_of) };
        return none.with(cut).with(near);
    }
    let caption = "What is polled first, the most overdue first; then what has ended, the latest first.";
    let caption = if wanted.filter.reference.is_some() { "In the order of their references." } else { caption };
    let mut ways = Vec::new();
    if let Some(next) = &found.next {
        ways.push(link(&format!("/transactions?{}", wanted.query(Some(next))), "Next page"));
        ways.push(text(" "));
    }
    ways.push(link(&format!("/transactions.csv?{}", wanted.query(wanted.after.as_ref())), "As CSV"));
    let cut = if found.is_cut { cut() } else { Html::default() };
    rows_table(caption, &found.rows, found.as_of).with(element("p", &[], ways.into_iter().collect())).with(cut)
}

fn cut() -> Html {
    let looked_at = count(LOOKED_AT);
    let words = format!("There may be more: of each account and state no more than {looked_at} were looked at. Name an account.");
    element("p", &[("class", "warn")], text(words))
}

fn rows_table(caption: &str, rows: &[Listed], now: DateTime<Utc>) -> Html {
    let rows = rows.iter().map(|row| {
        let when = match row.next_poll_at {
            Some(due) if due > now => format!("due in {}", between(now, due)),
            Some(due) => format!("due for {}", between(due, now)),
            None => format!("{} ago", between(row.updated_at, now)),
        };
        let amount = row.amount.as_ref().map(|amount| amount.as_str().map_or_else(|| amount.to_string(), str::to_owned));
        let amount = amount.map(|amount| format!("{amount} {}", row.currency.as_deref().unwrap_or_default()));
        vec![
            link(&address(row.id), &row.reference),
            account(&row.provider, &row.account),
            badge(&row.state),
            text(when),
            text(row.attempts),
            text(amount.unwrap_or_else(|| "–".into())),
            element("bdi", &[], text(row.reason.as_deref().unwrap_or("–"))),
        ]
    });
    let columns = [
        ("Reference", false),
        ("Account", false),
        ("State", false),
        ("When", false),
        ("Polls", true),
        ("Amount", true),
        ("Reason", false),
    ];
    table(caption, &columns, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_a_list_and_the_list_names_its_address() {
        let query = "provider=khalti&account=a%2Fb+c&state=failed&state=unresolved&older=2h&reason=&after=";
        let wanted = Wanted::read(query);
        assert_eq!(wanted.filter.account.as_deref(), Some("a/b c"));
        assert_eq!(wanted.filter.states, [Standing::Failed, Standing::Unresolved]);
        assert_eq!((wanted.filter.older, wanted.filter.reason.as_deref()), (Some(Duration::from_secs(7200)), None));
        assert_eq!(wanted.query(None), "provider=khalti&account=a/b%20c&state=failed&state=unresolved&older=7200s");
        let again = Wanted::read(&wanted.query(None));
        assert_eq!(again.query(None), wanted.query(None));
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        for query in ["state=paid", "older=2", "after=x"] {
            assert!(Wanted::read(query).trouble.is_some(), "{query}");
        }
        assert!(Wanted::read("unknown=1").trouble.is_none());
    }
}

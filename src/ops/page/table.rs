//! What every page is made of: sentences, tables, names that lead somewhere.

use crate::explain::Tone;
use crate::ops::html::{Html, element, text};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::fmt::Display;
use uuid::Uuid;

/// What may stand in a query as it is.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// A query's value.
pub(super) fn encoded(value: &str) -> String {
    utf8_percent_encode(value, QUERY).to_string()
}

pub(super) fn class(tone: Tone) -> &'static str {
    match tone {
        Tone::Bad => "bad",
        Tone::Warning => "warn",
        Tone::Calm => "",
        Tone::Good => "good",
    }
}

/// A sentence that stands out.
pub(super) fn banner(tone: Tone, sentence: &str) -> Html {
    element("p", &[("class", &format!("state {}", class(tone))), ("role", "status")], text(format_args!("{sentence}.")))
}

pub(super) fn toned(tone: Tone, words: impl Display) -> Html {
    element("span", &[("class", class(tone))], text(words))
}

pub(super) fn link(address: &str, words: impl Display) -> Html {
    element("a", &[("href", address)], element("bdi", &[], text(words)))
}

/// The address of a transaction's page.
pub(super) fn address(id: Uuid) -> String {
    format!("/transactions/{id}")
}

/// The address of a list of an account's transactions.
pub(super) fn list_of(provider: &str, account: &str, more: &str) -> String {
    format!("/transactions?provider={}&account={}{more}", encoded(provider), encoded(account))
}

/// An account, leading to its transactions.
pub(super) fn account(provider: &str, account: &str) -> Html {
    link(&list_of(provider, account, ""), format_args!("{provider}/{account}"))
}

pub(super) fn badge(state: &str) -> Html {
    let tone = match state {
        "succeeded" => Tone::Good,
        "failed" | "invalid" => Tone::Bad,
        "unresolved" | "action_required" => Tone::Warning,
        _ => Tone::Calm,
    };
    toned(tone, state)
}

/// A column: its heading, and whether it holds numbers.
pub(super) type Column = (&'static str, bool);

/// A table. On a narrow screen each row becomes a card, whose cells say what they are; the roles
/// keep it a table for screen readers.
pub(super) fn table(caption: &str, columns: &[Column], rows: impl IntoIterator<Item = Vec<Html>>) -> Html {
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

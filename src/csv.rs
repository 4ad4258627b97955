//! Transactions as CSV (RFC 4180), for `paypoll list --csv` and for the page.

use crate::store::Listed;
use crate::wire;
use chrono::{DateTime, SecondsFormat, Utc};
use std::fmt::Write as _;

/// The columns, in their order.
const COLUMNS: [&str; 16] = [
    "id",
    "provider",
    "account",
    "reference",
    "state",
    "provider_state",
    "reason",
    "amount",
    "currency",
    "attempts",
    "failures",
    "initiated_at",
    "updated_at",
    "last_polled_at",
    "next_poll_at",
    "finalized_at",
];

/// The rows, with the line of names before them where they are the `first`.
#[must_use]
pub fn text(rows: &[Listed], first: bool) -> String {
    let mut text = if first { COLUMNS.join(",") + "\r\n" } else { String::new() };
    for row in rows {
        let amount = row.amount.as_ref().and_then(wire::scalar).unwrap_or_default();
        let cells = [
            row.id.to_string(),
            row.provider.clone(),
            row.account.clone(),
            row.reference.clone(),
            row.state.clone(),
            row.provider_state.clone().unwrap_or_default(),
            row.reason.clone().unwrap_or_default(),
            amount,
            row.currency.clone().unwrap_or_default(),
            row.attempts.to_string(),
            row.failures.to_string(),
            moment(Some(row.initiated_at)),
            moment(Some(row.updated_at)),
            moment(row.last_polled_at),
            moment(row.next_poll_at),
            moment(row.finalized_at),
        ];
        let cells: Vec<String> = cells.iter().map(|cell| escaped(cell)).collect();
        // Writing to a string cannot fail.
        _ = write!(text, "{}\r\n", cells.join(","));
    }
    text
}

fn moment(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(String::new, |at| at.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// A cell. What a spreadsheet would take for a formula gets an apostrophe before it: a feeder must
/// not be able to run anything on the machine of a reader of the list.
fn escaped(cell: &str) -> String {
    let is_number = !cell.is_empty() && cell.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | '+'));
    let is_formula = !is_number && cell.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let cell = if is_formula { format!("'{cell}") } else { cell.to_owned() };
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_neither_breaks_out_nor_runs() {
        assert_eq!(escaped("R-1"), "R-1");
        assert_eq!(escaped("a,\"b\"\nc"), "\"a,\"\"b\"\"\nc\"");
        assert_eq!(escaped("=cmd|' /C calc'!A0"), "'=cmd|' /C calc'!A0");
        assert_eq!(escaped("@x,y"), "\"'@x,y\"");
        assert_eq!(escaped("-10.50"), "-10.50", "an amount stays one");
    }
}

//! `paypoll list`: transactions by state, account, reason, age and reference, in pages, as a table,
//! as JSON lines or as CSV.

use super::Known;
use super::text::{Paint, Table, Tone};
use crate::cli;
use crate::config::Config;
use crate::csv;
use crate::store::{Cursor, Filter, LOOKED_AT, Listed, Page};
use crate::text::{between, count, cut, plain};
use chrono::{DateTime, Utc};
use serde_json::json;
use std::io::{self, Write};

/// How many are read at once.
const AT_ONCE: usize = 1_000;
/// A longer reference is cut in the table; JSON and CSV have all of it.
const LONGEST_REFERENCE: usize = 40;
/// A longer reason is cut in the table.
const LONGEST_REASON: usize = 48;
/// A longer account name is cut in the table.
const LONGEST_ACCOUNT: usize = 30;

/// Prints the transactions that are meant.
pub async fn run(config: &Config, args: &cli::List, out: &mut impl Write) -> anyhow::Result<()> {
    let store = super::open_store(config).await?;
    Known::of(&store, config).await?.check(args.provider.as_deref(), args.account.as_deref())?;
    if let Some(reason) = args.reason.as_deref().filter(|_| args.states.is_empty()) {
        super::check_reason(&store, reason).await?;
    }
    let filter = Filter {
        provider: args.provider.clone(),
        account: args.account.clone(),
        states: args.states.clone(),
        reason: args.reason.clone(),
        reference: args.reference.clone(),
        older: args.older,
        since: args.since,
    };
    let mut cursor = args.after.clone();
    let (mut left, mut first) = (usize::try_from(args.limit).unwrap_or(usize::MAX), true);
    let mut shown = Shown::new(args, Paint::of_stdout());
    loop {
        let page = store.list(&filter, cursor.as_ref(), left.min(AT_ONCE)).await?;
        left = left.saturating_sub(page.rows.len());
        cursor = page.next.clone();
        shown.page(&page, first, out)?;
        first = false;
        if left == 0 || cursor.is_none() {
            break;
        }
    }
    store.close().await;
    shown.end(cursor.as_ref(), out)?;
    Ok(out.flush()?)
}

/// How it is printed. JSON and CSV are written as they come, however many there are.
struct Shown<'a> {
    args: &'a cli::List,
    paint: Paint,
    rows: Vec<Listed>,
    near: Vec<Listed>,
    as_of: Option<DateTime<Utc>>,
    is_cut: bool,
    number: usize,
}

impl<'a> Shown<'a> {
    fn new(args: &'a cli::List, paint: Paint) -> Self {
        Self { args, paint, rows: Vec::new(), near: Vec::new(), as_of: None, is_cut: false, number: 0 }
    }

    fn page(&mut self, page: &Page, first: bool, out: &mut impl Write) -> io::Result<()> {
        self.number += page.rows.len();
        self.is_cut |= page.is_cut;
        if self.args.csv {
            return out.write_all(csv::text(&page.rows, first).as_bytes());
        }
        self.as_of.get_or_insert(page.as_of);
        self.rows.extend(page.rows.iter().cloned());
        self.near.extend(page.near.iter().cloned());
        Ok(())
    }

    fn end(self, next: Option<&Cursor>, out: &mut impl Write) -> io::Result<()> {
        if self.args.csv {
            return Ok(());
        }
        if self.args.json {
            let next = next.map(Cursor::text);
            let all =
                json!({"as_of": self.as_of, "transactions": self.rows, "next": next, "is_cut": self.is_cut, "near": self.near});
            return writeln!(out, "{all}");
        }
        let now = self.as_of.unwrap_or_default();
        if self.rows.is_empty() {
            writeln!(out, "no transaction is like that")?;
        } else {
            table(&self.rows, now).lines(self.paint).iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        if !self.near.is_empty() {
            writeln!(out, "near it:")?;
            table(&self.near, now).lines(self.paint).iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        if let Some(next) = next {
            writeln!(out, "{} shown, there are more: add --after '{}'", self.number, next.text())?;
        }
        if self.is_cut {
            let looked_at = count(LOOKED_AT);
            writeln!(out, "there may be more: of each account and state no more than {looked_at} were looked at; name an account")?;
        }
        Ok(())
    }
}

fn table(rows: &[Listed], now: DateTime<Utc>) -> Table {
    let mut table =
        Table::new(&["STATE", "ACCOUNT", "REFERENCE", "WHEN", "POLLS", "REASON"], &[false, false, false, false, true, false]);
    for row in rows {
        let tone = match &*row.state {
            "unresolved" | "action_required" => Tone::Warning,
            "invalid" | "failed" => Tone::Bad,
            _ => Tone::Calm,
        };
        let name = format!("{}/{}", row.provider, row.account);
        table.row(vec![
            (plain(&row.state), tone),
            (cut(&name, LONGEST_ACCOUNT), Tone::Calm),
            (cut(&row.reference, LONGEST_REFERENCE), Tone::Calm),
            (when(row, now), Tone::Calm),
            (row.attempts.to_string(), Tone::Calm),
            (cut(row.reason.as_deref().unwrap_or("–"), LONGEST_REASON), Tone::Calm),
        ]);
    }
    table
}

/// When its next poll is due, or since when it stands where it stands.
fn when(row: &Listed, now: DateTime<Utc>) -> String {
    match row.next_poll_at {
        Some(due) if due > now => format!("due in {}", between(now, due)),
        Some(due) => format!("due for {}", between(due, now)),
        None => format!("{} ago", between(row.updated_at, now)),
    }
}

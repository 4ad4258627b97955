//! Text for people: columns, times and colours, the same in every command.

use crate::config::duration;
use crate::telemetry::is_steering;
use chrono::{DateTime, Utc};
use std::io::{self, IsTerminal as _};
use std::time::{Duration, SystemTime};

/// Whether text is painted: only on a terminal that can show it, and only where `NO_COLOR` is not set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint(bool);

impl Paint {
    /// For standard output.
    pub(super) fn of_stdout() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self(io::stdout().is_terminal() && !set("NO_COLOR") && !dumb)
    }

    /// No colours.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self(false)
    }

    /// What a reader looks for first.
    pub(super) fn strong(self, text: &str) -> String {
        self.with("1", text)
    }

    /// What is wrong.
    pub(super) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    /// What may become wrong.
    pub(super) fn warning(self, text: &str) -> String {
        self.with("33", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Text from a table as one line, without anything that would steer its reader.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|character| if is_steering(character) { '\u{fffd}' } else { character }).collect()
}

/// At most `most` characters of [`plain`] text; an ellipsis stands for what is left out.
pub(super) fn cut(text: &str, most: usize) -> String {
    let plain = plain(text);
    if plain.chars().count() <= most {
        return plain;
    }
    plain.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// A moment, exact to the millisecond, in UTC.
pub(super) fn moment(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

/// How long it is from `from` to `to`, with a minus where it is back.
pub(super) fn distance(from: DateTime<Utc>, to: DateTime<Utc>) -> String {
    match (to - from).to_std() {
        Ok(ahead) => duration::text(ahead),
        Err(_) => format!("-{}", duration::text((from - to).to_std().unwrap_or_default())),
    }
}

/// A duration for a glance: tenths of a second below ten seconds, whole seconds beyond.
pub(super) fn roughly(duration: Duration) -> String {
    let step = if duration < Duration::from_secs(10) { 100 } else { 1_000 };
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    duration::text(Duration::from_millis(millis / step * step))
}

/// The host's clock.
pub(super) fn now() -> DateTime<Utc> {
    SystemTime::now().into()
}

/// Rows under a head, in columns as wide as they need. Numbers stand to the right.
pub(super) struct Table {
    numbers: &'static [bool],
    rows: Vec<Vec<(String, Tone)>>,
}

/// How a cell is painted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// Not at all.
    Calm,
    /// [`Paint::strong`].
    Strong,
    /// [`Paint::warning`].
    Warning,
    /// [`Paint::bad`].
    Bad,
}

impl Table {
    /// A table with this head; `numbers` says which columns stand to the right.
    pub(super) fn new(head: &[&str], numbers: &'static [bool]) -> Self {
        Self { numbers, rows: vec![head.iter().map(|name| ((*name).to_owned(), Tone::Strong)).collect()] }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: Vec<(String, Tone)>) {
        self.rows.push(cells);
    }

    /// The lines.
    pub(super) fn lines(&self, paint: Paint) -> Vec<String> {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|(text, _)| text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.numbers.len()).map(width).collect();
        self.rows.iter().map(|row| self.line(row, &widths, paint)).collect()
    }

    fn line(&self, row: &[(String, Tone)], widths: &[usize], paint: Paint) -> String {
        let mut line = String::new();
        for (column, (text, tone)) in row.iter().enumerate() {
            let painted = match tone {
                Tone::Calm => text.clone(),
                Tone::Strong => paint.strong(text),
                Tone::Warning => paint.warning(text),
                Tone::Bad => paint.bad(text),
            };
            let gap = " ".repeat(widths.get(column).map_or(0, |width| width.saturating_sub(text.chars().count())));
            let last = column + 1 == row.len();
            match (self.numbers.get(column), last) {
                (Some(true), _) => line.push_str(&(gap + &painted)),
                (_, true) => line.push_str(&painted),
                (_, false) => line.push_str(&(painted + &gap)),
            }
            if !last {
                line.push_str("  ");
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_a_table_cannot_steer_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\nc\u{202e}d"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d");
        assert_eq!(cut("äöüß", 3), "äö…");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_painted_or_not() {
        let mut table = Table::new(&["NAME", "N"], &[false, true]);
        table.row(vec![("a".into(), Tone::Bad), ("1000".into(), Tone::Calm)]);
        assert_eq!(table.lines(Paint::none()), ["NAME     N", "a     1000"]);
        assert_eq!(table.lines(Paint(true))[1], "\x1b[31ma\x1b[0m     1000");
    }

    #[test]
    fn a_glance_needs_no_milliseconds() {
        assert_eq!(roughly(Duration::from_millis(1_234)), "1.2s");
        assert_eq!(roughly(Duration::from_millis(61_234)), "1m1s");
    }
}

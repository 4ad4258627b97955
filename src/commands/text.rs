//! What a terminal shows: columns and colours, the same in every command.

use crate::config::duration;
use crate::explain;
use chrono::{DateTime, Utc};
use std::io::{self, IsTerminal as _};
use std::time::SystemTime;

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

    /// A sentence, as good or bad as it is.
    pub(super) fn tone(self, tone: explain::Tone, text: &str) -> String {
        match tone {
            explain::Tone::Bad => self.bad(text),
            explain::Tone::Warning => self.warning(text),
            explain::Tone::Calm => text.to_owned(),
            explain::Tone::Good => self.with("32", text),
        }
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

/// How long it is from `from` to `to`, with a minus where it is back.
pub(super) fn distance(from: DateTime<Utc>, to: DateTime<Utc>) -> String {
    match (to - from).to_std() {
        Ok(ahead) => duration::text(ahead),
        Err(_) => format!("-{}", duration::text((from - to).to_std().unwrap_or_default())),
    }
}

/// The text in lines of at most `width` characters, broken between words; `indent` stands before
/// every line but the first.
pub(super) fn wrap(text: &str, width: usize, indent: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut length = 0;
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        let starts = length == if lines.is_empty() { 0 } else { indent.chars().count() };
        if !starts && length + 1 + word.len() > width {
            lines.push(std::mem::replace(&mut line, indent.to_owned()));
            length = indent.chars().count();
        } else if !starts {
            line.push(' ');
            length += 1;
        }
        // A word that is longer than a line.
        while length + word.len() > width && width > indent.chars().count() {
            let rest = word.split_off(width - length);
            line.extend(word);
            lines.push(std::mem::replace(&mut line, indent.to_owned()));
            length = indent.chars().count();
            word = rest;
        }
        length += word.len();
        line.extend(word);
    }
    lines.push(line);
    lines
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
    fn a_long_sentence_is_broken_between_words_and_a_long_word_anywhere() {
        assert_eq!(wrap("all is well", 80, "  "), ["all is well"]);
        assert_eq!(wrap("one two three", 8, "  "), ["one two", "  three"]);
        assert_eq!(wrap("a abcdefghijkl z", 6, " "), ["a", " abcde", " fghij", " kl z"]);
        assert!(wrap(&"äöü ".repeat(50), 20, "  ").iter().all(|line| line.chars().count() <= 20));
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_painted_or_not() {
        let mut table = Table::new(&["NAME", "N"], &[false, true]);
        table.row(vec![("a".into(), Tone::Bad), ("1000".into(), Tone::Calm)]);
        assert_eq!(table.lines(Paint::none()), ["NAME     N", "a     1000"]);
        assert_eq!(table.lines(Paint(true))[1], "\x1b[31ma\x1b[0m     1000");
    }
}

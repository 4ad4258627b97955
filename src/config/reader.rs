//! Reading the merged configuration key by key, so that every mistake is named with its key, its
//! value and its remedy.

use super::duration;
use super::layers::{Kind, Table, Value, from_environment, table_from_environment};
use crate::text::quotable_path;
use crate::wire::REDACTED;
use secrecy::SecretString;
use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The mistakes found so far, one sentence each.
#[derive(Default)]
pub(super) struct Problems(RefCell<Vec<String>>);

impl Problems {
    pub(super) fn add(&self, problem: String) {
        self.0.borrow_mut().push(problem);
    }

    pub(super) fn into_list(self) -> Vec<String> {
        self.0.into_inner()
    }
}

/// A table of the merged configuration. Every key is taken out as it is read; what is left at
/// [`Section::finish`] is unknown.
pub(super) struct Section<'a> {
    path: String,
    table: Table,
    known: Vec<String>,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    pub(super) fn new(path: String, table: Table, problems: &'a Problems) -> Self {
        Self { path, table, known: Vec::new(), problems }
    }

    /// The full dotted name of a key in here.
    pub(super) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes a mistake in the value of `key`.
    pub(super) fn wrong(&self, key: &str, value: impl Display, mend: impl Display) {
        self.problems.add(format!("{} = {value}: {mend}", self.path(key)));
    }

    /// Notes a mistake that has no value to show.
    pub(super) fn problem(&self, key: &str, mend: impl Display) {
        self.problems.add(format!("{}: {mend}", self.path(key)));
    }

    /// Everything has been read: what is left is unknown.
    pub(super) fn finish(&mut self) {
        self.known.sort();
        self.known.dedup();
        let mut unknown: Vec<&String> = self.table.keys().collect();
        unknown.sort();
        for key in unknown {
            let mend = match nearest(key, &self.known) {
                Some(near) => format!("did you mean {}?", self.path(near)),
                None => format!("known here: {}", self.known.join(", ")),
            };
            let key = if may_be_a_secret(key) { "a key that is not quoted here" } else { key };
            self.problems.add(format!("{} is not a known key; {mend}", self.path(key)));
        }
    }

    /// Whether the key is there.
    pub(super) fn has(&mut self, key: &str) -> bool {
        self.known.push(key.to_owned());
        self.table.contains_key(key)
    }

    /// Reads a key that may be absent.
    pub(super) fn optional<T>(&mut self, key: &str, read: impl FnOnce(&mut Self, &str) -> Option<T>) -> Option<T> {
        if self.has(key) { read(self, key) } else { None }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        let value = if self.has(key) { self.table.remove(key) } else { None };
        if value.is_none() {
            self.problem(key, "is missing");
        }
        value
    }

    /// The keys that are left: the names of accounts, the words of `by_state`.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.table.keys().cloned().collect();
        names.sort();
        names
    }

    /// A table below; an empty one where there is none.
    pub(super) fn section(&mut self, key: &str) -> Section<'a> {
        let value = if self.has(key) { self.table.remove(key) } else { None };
        // Where it is not known to be one, a variable of the environment is text until now.
        let value = value.map(|value| table_from_environment(&value).unwrap_or(value.kind));
        let table = match value {
            None => Table::new(),
            Some(Kind::Table(table)) => table,
            // It may be a secret that slipped one level up.
            Some(Kind::String(_)) => {
                self.problem(key, "must be a table of keys, such as { key = \"value\" }");
                Table::new()
            }
            Some(other) => {
                self.wrong(key, shown(&other), "must be a table of keys");
                Table::new()
            }
        };
        Section::new(self.path(key), table, self.problems)
    }

    /// A list of tables below, each a section; `None` where there is no list.
    pub(super) fn list(&mut self, key: &str) -> Option<Vec<Section<'a>>> {
        let items = match self.take(key)?.kind {
            Kind::Array(items) => items,
            other => {
                self.wrong(key, shown(&other), "must be a list of tables, such as [{ every = \"5m\" }]");
                return None;
            }
        };
        let mut sections = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let key = format!("{key}[{index}]");
            match item.kind {
                Kind::Table(table) => sections.push(Section::new(self.path(&key), table, self.problems)),
                other => self.wrong(&key, shown(&other), "must be a table, such as { every = \"5m\" }"),
            }
        }
        Some(sections)
    }

    /// Text, as it is.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        match self.take(key)?.kind {
            Kind::String(text) => Some(text),
            other => {
                self.wrong(key, shown(&other), "must be text in quotes");
                None
            }
        }
    }

    /// Text that `parse` understands.
    pub(super) fn parsed<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.parsed_hidden(key, |_| false, parse)
    }

    /// As [`Section::parsed`], but no error quotes a text that is `hidden`.
    pub(super) fn parsed_hidden<T>(
        &mut self,
        key: &str,
        hidden: impl FnOnce(&str) -> bool,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(key)?;
        let shown = if hidden(&text) { REDACTED.to_owned() } else { format!("{text:?}") };
        parse(&text).map_err(|mend| self.wrong(key, shown, mend)).ok()
    }

    /// A duration.
    pub(super) fn duration(&mut self, key: &str) -> Option<Duration> {
        self.timed(key, duration::parse)
    }

    /// A duration of at least `least`.
    pub(super) fn duration_from(&mut self, key: &str, least: Duration) -> Option<Duration> {
        self.timed(key, |text| match duration::parse(text)? {
            short if short < least => Err(format!("must be at least \"{}\"", duration::text(least))),
            long => Ok(long),
        })
    }

    /// What `parse` makes of a duration's text. A bare number is refused, because it has no unit.
    pub(super) fn timed<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = self.take(key)?;
        let (read, shown) = match &value.kind {
            Kind::String(text) => (parse(text), format!("{text:?}")),
            other => (Err(format!("a duration is {}", duration::FORM)), shown(other)),
        };
        read.map_err(|mend| self.wrong(key, shown, mend)).ok()
    }

    /// A number within `range`; text from the environment is read as one.
    pub(super) fn number<N>(&mut self, key: &str, range: RangeInclusive<N>) -> Option<N>
    where
        N: FromStr + PartialOrd + Display,
    {
        let value = self.take(key)?;
        let read = match &value.kind {
            Kind::I64(_) | Kind::U64(_) | Kind::Float(_) => shown(&value.kind).parse().ok(),
            Kind::String(text) if from_environment(&value) => text.trim().parse().ok(),
            _ => None,
        };
        let number = read.filter(|number| range.contains(number));
        if number.is_none() {
            let mend = format_args!("must be a number from {} to {}, without quotes", range.start(), range.end());
            self.wrong(key, shown(&value.kind), mend);
        }
        number
    }

    /// True or false; text from the environment is read as one of them.
    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        let value = self.take(key)?;
        let flag = match &value.kind {
            Kind::Boolean(flag) => Some(*flag),
            Kind::String(text) if from_environment(&value) => text.trim().to_ascii_lowercase().parse().ok(),
            _ => None,
        };
        if flag.is_none() {
            self.wrong(key, shown(&value.kind), "must be true or false, without quotes");
        }
        flag
    }

    /// A secret, given as `key` or, in a file, as `key_file`. Its value never stands in an error.
    pub(super) fn secret(&mut self, key: &str) -> Option<Secret> {
        let file_key = format!("{key}_file");
        let text = self.optional(key, Self::take);
        let file = self.optional(&file_key, Self::take);
        match (text.map(|value| value.kind), file.map(|value| value.kind)) {
            (None, None) => None,
            (Some(_), Some(_)) => {
                self.problem(key, format_args!("{file_key} is given too; keep one of the two"));
                None
            }
            (Some(Kind::String(text)), None) => Some(Secret::Text(text.into())),
            (Some(_), None) => {
                self.problem(key, "must be text in quotes");
                None
            }
            (None, Some(Kind::String(path))) => Some(Secret::File { key: self.path(&file_key), path: path.into() }),
            (None, Some(other)) => {
                self.wrong(&file_key, shown(&other), "must be a path in quotes");
                None
            }
        }
    }
}

/// A secret as it was configured; a file is read only when the secret is needed.
pub(super) enum Secret {
    Text(SecretString),
    File { key: String, path: PathBuf },
}

impl Secret {
    /// The secret itself. The error names the key and the path.
    pub(super) fn reveal(self) -> Result<SecretString, String> {
        match self {
            Self::Text(text) => Ok(text),
            Self::File { key, path } => {
                let told = quotable_path(path.to_str().unwrap_or_default());
                let wrong = |problem: &str| format!("{key} = {told}: {problem}");
                let text = std::fs::read_to_string(&path).map_err(|error| wrong(&format!("the file cannot be read ({error})")))?;
                Ok(content(&text).map_err(wrong)?.into())
            }
        }
    }
}

/// The secret that a file holds: a line, with or without its end, or PEM. Anything else would be
/// sent as it is, and refused for a reason that is not visible. The error says what is wrong with
/// the file, and nothing of what it holds.
fn content(text: &str) -> Result<&str, &'static str> {
    if text.starts_with('\u{feff}') {
        return Err("the file begins with a byte-order mark; save it without one");
    }
    let line = text.trim_end_matches(['\n', '\r']);
    if line.starts_with("-----BEGIN ") {
        return Ok(line);
    }
    if line.contains(['\n', '\r']) {
        return Err("the file has more than one line; a secret is one line");
    }
    if line.trim() != line {
        return Err("the file has blanks before or after the secret; take them out");
    }
    Ok(line)
}

/// Whether an unknown key is unlike any key: then it may be a secret that stands in a key's place.
fn may_be_a_secret(key: &str) -> bool {
    let digits = key.chars().filter(char::is_ascii_digit).count();
    let plain = key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    !plain || key.len() > 40 || digits > 4
}

/// A value as it would be written in TOML.
pub(super) fn shown(kind: &Kind) -> String {
    match kind {
        Kind::String(text) => format!("{text:?}"),
        Kind::Table(_) => "{…}".into(),
        Kind::Array(_) => "[…]".into(),
        plain => plain.to_string(),
    }
}

/// The known key that a mistyped one most likely stands for.
pub(super) fn nearest<'k>(key: &str, known: &'k [String]) -> Option<&'k str> {
    let (distance, near) = known.iter().map(|name| (distance(&key.to_lowercase(), &name.to_lowercase()), name)).min()?;
    (distance <= 1 + key.len() / 4).then_some(near)
}

/// How many letters have to be changed, added or left out (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

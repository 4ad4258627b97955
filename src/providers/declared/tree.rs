//! A file's tables with the line of every key: whatever is wrong is named with file, line, key and
//! remedy, and all of it at once.
//!
//! Every key is taken out as it is read; what is left at [`Table::finish`] is unknown. Knows
//! nothing of what the keys mean.

use std::cell::RefCell;
use std::fmt::Display;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A file larger than this is no declaration.
pub const LARGEST: usize = 1 << 20;
/// At most this many mistakes are reported at once.
const MOST: usize = 100;

/// The text of a file, and what is wrong with it.
pub(super) struct Source<'s> {
    name: &'s str,
    /// Where each line begins.
    lines: Vec<usize>,
    problems: RefCell<Vec<(usize, String)>>,
}

/// Where something stands in a file, for later errors about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spot {
    /// The line, from 1.
    pub(super) line: usize,
    /// The full name of the key.
    pub(super) key: String,
}

impl<'s> Source<'s> {
    pub(super) fn new(name: &'s str, text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self { name, lines: std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect(), problems: RefCell::default() }
    }

    /// The bytes as text. The error says why they are none.
    pub(super) fn text<'t>(name: &str, bytes: &'t [u8]) -> Result<&'t str, String> {
        if bytes.len() > LARGEST {
            return Err(format!("{name}: has more than {LARGEST} bytes, and no declaration has; point it to the declaration"));
        }
        std::str::from_utf8(bytes).map_err(|error| {
            let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
            format!("{name}, line {line}: is not UTF-8; save the file as UTF-8 text")
        })
    }

    /// The file's top table. `None` when it is no TOML, which is noted.
    pub(super) fn parse<'d>(&'s self, text: &'d str) -> Option<Table<'s, 'd>> {
        match DeTable::parse(text) {
            Ok(table) => Some(Table::new(self, String::new(), 0, table.into_inner())),
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                self.wrong(self.line(at), "", format_args!("no valid TOML ({})", error.message().replace('\n', " ")));
                None
            }
        }
    }

    fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|begin| *begin <= at).max(1)
    }

    /// Notes a mistake in the value of a key.
    pub(super) fn problem(&self, spot: &Spot, what: impl Display) {
        self.wrong(spot.line, &spot.key, what);
    }

    fn wrong(&self, line: usize, key: &str, what: impl Display) {
        let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
        let sentence = format!("{}, line {line}: {key}{what}", self.name);
        let mut problems = self.problems.borrow_mut();
        if problems.len() < MOST && !problems.iter().any(|(_, told)| *told == sentence) {
            problems.push((line, sentence));
        }
    }

    /// Whether nothing is wrong so far.
    pub(super) fn is_fine(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// What is wrong, in the order of the lines.
    pub(super) fn into_problems(self) -> Vec<String> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|(line, _)| *line);
        problems.into_iter().map(|(_, sentence)| sentence).collect()
    }
}

/// A table of the file.
pub(super) struct Table<'s, 'd> {
    source: &'s Source<'s>,
    spot: Spot,
    entries: Vec<(Spot, String, DeValue<'d>)>,
    known: Vec<String>,
}

/// A value with its place.
pub(super) struct Item<'s, 'd> {
    source: &'s Source<'s>,
    pub(super) spot: Spot,
    value: DeValue<'d>,
}

impl<'s, 'd> Table<'s, 'd> {
    fn new(source: &'s Source<'s>, path: String, at: usize, table: DeTable<'d>) -> Self {
        let mut entries: Vec<_> = table
            .into_iter()
            .map(|(key, value): (Spanned<_>, Spanned<_>)| {
                let at = key.span().start;
                let name = key.into_inner().into_owned();
                let full = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                (at, Spot { line: source.line(at), key: full }, name, value.into_inner())
            })
            .collect();
        // In the order of the file: in which errors are reported.
        entries.sort_by_key(|(at, ..)| *at);
        let entries = entries.into_iter().map(|(_, spot, name, value)| (spot, name, value)).collect();
        Self { source, spot: Spot { line: source.line(at), key: path }, entries, known: Vec::new() }
    }

    /// Where the table stands.
    pub(super) fn spot(&self) -> &Spot {
        &self.spot
    }

    /// Takes a key that may be absent.
    pub(super) fn optional(&mut self, key: &str) -> Option<Item<'s, 'd>> {
        self.known.push(key.to_owned());
        let index = self.entries.iter().position(|(_, name, _)| name == key)?;
        let (spot, _, value) = self.entries.remove(index);
        Some(Item { source: self.source, spot, value })
    }

    /// Takes a key that must be there.
    pub(super) fn required(&mut self, key: &str, mend: &str) -> Option<Item<'s, 'd>> {
        let item = self.optional(key);
        if item.is_none() {
            let spot = Spot { line: self.spot.line, key: self.path(key) };
            self.source.problem(&spot, format_args!("is missing; {mend}"));
        }
        item
    }

    /// Takes all keys that are left, with their values: names that the file chooses.
    pub(super) fn named(&mut self) -> Vec<(String, Item<'s, 'd>)> {
        let entries = std::mem::take(&mut self.entries).into_iter();
        entries.map(|(spot, name, value)| (name, Item { source: self.source, spot, value })).collect()
    }

    /// A table below; none where there is no such key.
    pub(super) fn table(&mut self, key: &str) -> Option<Self> {
        self.optional(key)?.table()
    }

    /// A list of tables below; an empty one where there is no such key.
    pub(super) fn tables(&mut self, key: &str) -> Vec<Self> {
        self.optional(key).and_then(Item::tables).unwrap_or_default()
    }

    /// Text below.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.optional(key)?.text().map(|(text, _)| text)
    }

    /// True or false below; false where there is no such key.
    pub(super) fn flag(&mut self, key: &str) -> bool {
        self.optional(key).and_then(Item::flag).unwrap_or_default()
    }

    fn path(&self, key: &str) -> String {
        if self.spot.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.spot.key) }
    }

    /// Everything has been read: what is left is unknown.
    pub(super) fn finish(self) {
        let mut known = self.known;
        known.sort();
        known.dedup();
        for (spot, ..) in self.entries {
            self.source.problem(&spot, format_args!("is not a known key; known here: {}", known.join(", ")));
        }
    }
}

impl<'s, 'd> Item<'s, 'd> {
    /// Notes a mistake in it.
    pub(super) fn wrong(&self, what: impl Display) {
        self.source.problem(&self.spot, what);
    }

    fn mistyped<T>(&self, wanted: &str) -> Option<T> {
        self.wrong(format_args!("is {}; must be {wanted}", self.value.type_str()));
        None
    }

    /// Text.
    pub(super) fn text(self) -> Option<(String, Spot)> {
        match self.value {
            DeValue::String(text) => Some((text.into_owned(), self.spot)),
            _ => self.mistyped("text in quotes"),
        }
    }

    /// Text that `read` understands; its error says what is wrong.
    pub(super) fn parsed<T>(self, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let source = self.source;
        let (text, spot) = self.text()?;
        read(&text).map_err(|why| source.problem(&spot, format_args!("{text:?} {why}"))).ok()
    }

    /// True or false.
    pub(super) fn flag(self) -> Option<bool> {
        match self.value {
            DeValue::Boolean(flag) => Some(flag),
            _ => self.mistyped("true or false, without quotes"),
        }
    }

    /// A whole number from `least` to `most`.
    pub(super) fn integer(self, least: i64, most: i64) -> Option<i64> {
        match &self.value {
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) if (least..=most).contains(&number) => Some(number),
                _ => {
                    self.wrong(format_args!("must be a number from {least} to {most}"));
                    None
                }
            },
            _ => self.mistyped(&format!("a number from {least} to {most}, without quotes")),
        }
    }

    /// A number above 0.
    pub(super) fn number(self) -> Option<f64> {
        let text = match &self.value {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
            DeValue::Float(number) => number.as_str(),
            _ => return self.mistyped("a number, without quotes"),
        };
        let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
        if number.is_none() {
            self.wrong(format_args!("{text} must be a number above 0"));
        }
        number
    }

    /// Whether it is a table.
    pub(super) fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    /// Whether it is a list.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.value, DeValue::Array(_))
    }

    /// A table.
    pub(super) fn table(self) -> Option<Table<'s, 'd>> {
        match self.value {
            DeValue::Table(table) => {
                let Spot { line, key } = self.spot;
                let mut table = Table::new(self.source, key, 0, table);
                table.spot.line = line;
                Some(table)
            }
            _ => self.mistyped("a table of keys"),
        }
    }

    /// A list of tables.
    pub(super) fn tables(self) -> Option<Vec<Table<'s, 'd>>> {
        Some(self.list("a list of tables")?.into_iter().filter_map(Item::table).collect())
    }

    /// One item, or each item of a list.
    pub(super) fn one_or_more(self) -> Vec<Self> {
        if self.is_list() { self.list("a list").unwrap_or_default() } else { vec![self] }
    }

    /// The items of a list.
    pub(super) fn list(self, wanted: &str) -> Option<Vec<Self>> {
        match self.value {
            DeValue::Array(items) => {
                let item = |(index, value): (usize, Spanned<DeValue<'d>>)| Self {
                    source: self.source,
                    spot: Spot { line: self.source.line(value.span().start), key: format!("{}[{index}]", self.spot.key) },
                    value: value.into_inner(),
                };
                Some(items.into_iter().enumerate().map(item).collect())
            }
            _ => self.mistyped(wanted),
        }
    }

    /// Text, a number or true or false, as JSON has them. Numbers keep their digits.
    pub(super) fn constant(self) -> Option<serde_json::Value> {
        match &self.value {
            DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) => self.json(),
            _ => self.mistyped("text, a number, or true or false"),
        }
    }

    /// The value as JSON.
    pub(super) fn json(self) -> Option<serde_json::Value> {
        let number = |text: &str| text.replace('_', "").trim_start_matches('+').parse().map(serde_json::Value::Number).ok();
        let json = match &self.value {
            DeValue::String(text) => Some(text.as_ref().into()),
            DeValue::Boolean(flag) => Some((*flag).into()),
            DeValue::Integer(digits) if digits.radix() == 10 => number(digits.as_str()),
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix()).ok().map(Into::into),
            DeValue::Float(digits) => number(digits.as_str()),
            DeValue::Datetime(_) => None,
            DeValue::Array(_) => {
                let items = self.list("a list")?.into_iter().map(Item::json);
                return items.collect::<Option<Vec<_>>>().map(Into::into);
            }
            DeValue::Table(_) => {
                let entries = self.table()?.named().into_iter().map(|(key, item)| Some((key, item.json()?)));
                return entries.collect::<Option<serde_json::Map<_, _>>>().map(Into::into);
            }
        };
        if json.is_none() { self.mistyped("something that JSON knows too") } else { json }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str, read: impl FnOnce(&mut Table<'_, '_>)) -> Vec<String> {
        let source = Source::new("a.toml", text);
        if let Some(mut table) = source.parse(text) {
            read(&mut table);
            table.finish();
        }
        source.into_problems()
    }

    #[test]
    fn what_is_left_is_unknown_and_told_with_its_line() {
        let text = "a = 1\nb = 2\n[c]\nd = 3\ne = 4\n";
        let told = problems(text, |table| {
            table.optional("a");
            let mut c = table.table("c").expect("a table");
            c.optional("d");
            c.finish();
        });
        assert_eq!(
            told,
            ["a.toml, line 2: b: is not a known key; known here: a, c", "a.toml, line 5: c.e: is not a known key; known here: d"]
        );
    }

    #[test]
    fn a_value_of_another_type_is_named_with_what_it_must_be() {
        let told = problems("a = 1\nb = \"x\"\nc = [1, \"y\"]\nd = 0x1F\n", |table| {
            table.text("a");
            table.flag("b");
            for item in table.optional("c").expect("there").one_or_more() {
                item.integer(0, 9);
            }
            assert_eq!(table.optional("d").and_then(|item| item.integer(0, 99)), Some(31));
            table.required("e", "write one");
        });
        assert_eq!(
            told,
            [
                "a.toml, line 1: a: is integer; must be text in quotes",
                "a.toml, line 1: e: is missing; write one",
                "a.toml, line 2: b: is string; must be true or false, without quotes",
                "a.toml, line 3: c[1]: is string; must be a number from 0 to 9, without quotes",
            ]
        );
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line() {
        let told = problems("a = 1\nb = \"\n", |_| {});
        assert!(told.len() == 1 && told[0].starts_with("a.toml, line 2: no valid TOML"), "{told:?}");
        assert_eq!(Source::text("a", b"x = 1\n\xff").unwrap_err(), "a, line 2: is not UTF-8; save the file as UTF-8 text");
        assert!(Source::text("a", &vec![b' '; 10 << 20]).unwrap_err().contains("has more than"));
    }

    #[test]
    fn values_become_json_with_their_digits() {
        let text = "x = { a = 1.50, b = [true, \"t\"], c = 1_000 }";
        let source = Source::new("a", text);
        let mut table = source.parse(text).expect("TOML");
        assert_eq!(table.optional("x").and_then(Item::json).expect("JSON").to_string(), r#"{"a":1.50,"b":[true,"t"],"c":1000}"#);
    }
}

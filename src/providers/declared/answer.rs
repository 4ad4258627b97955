//! `[answer]`, `[words]` and `[[errors]]` as they are declared: what is believed, what it is about,
//! and what its words mean.

use super::pointer::Pointer;
use super::template::{Names, Template};
use super::tree::{Item, Source, Spot, Table};
use serde_json::Value;
use std::collections::BTreeMap;

/// What an answer is read by.
#[derive(Debug)]
pub(super) struct Answer {
    /// The HTTP codes of an answer that speaks about the payment.
    pub(super) believe: Vec<u16>,
    pub(super) require: Vec<Test>,
    pub(super) identity: Vec<Identity>,
    pub(super) word: Word,
    /// The first that holds text is the reason.
    pub(super) reason: Vec<Place>,
    pub(super) amount: Amount,
    /// What payer or merchant must do: the kind, and the other members by pointer.
    pub(super) action: Option<Action>,
}

/// A pointer and where it stands in the file.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) pointer: Pointer,
    pub(super) spot: Spot,
}

/// What an answer says of itself before it is believed.
#[derive(Clone, Debug)]
pub(super) struct Test {
    pub(super) at: Place,
    pub(super) wants: Wants,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wants {
    Is(Value),
    Exists(bool),
    Contains(String),
}

/// An identifier that must be ours.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) at: Place,
    pub(super) is: Template,
}

/// Where the word stands; several parts are joined.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) at: Vec<Place>,
    pub(super) join: String,
}

#[derive(Debug)]
pub(super) enum Amount {
    /// The answer has none; says why.
    None(String),
    Some {
        at: Place,
        minor: Option<Exponents>,
        currency: Currency,
    },
}

/// How many places a minor unit has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exponents {
    pub(super) usual: u32,
    pub(super) by_currency: BTreeMap<String, u32>,
}

#[derive(Debug)]
pub(super) enum Currency {
    At(Place),
    Is(String),
}

#[derive(Debug)]
pub(super) struct Action {
    pub(super) kind: Option<String>,
    pub(super) members: Vec<(String, Place)>,
}

/// What a word means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Pending,
    ActionRequired,
    Succeeded,
    Failed,
    Cancelled,
    Refunded,
    NotFound,
    TooEarly,
}

/// All words, letter by letter unless `ignore_case`.
#[derive(Debug, Default)]
pub(super) struct Words {
    pub(super) ignore_case: bool,
    /// In the order of the file.
    pub(super) list: Vec<(String, WordRule)>,
}

#[derive(Clone, Debug)]
pub(super) struct WordRule {
    pub(super) means: Meaning,
    pub(super) rule: Option<String>,
    pub(super) spot: Spot,
}

/// An answer that says nothing about the payment.
#[derive(Debug)]
pub(super) struct ErrorRule {
    /// Any of these HTTP codes; all when there is none.
    pub(super) http: Vec<u16>,
    pub(super) when: Option<Test>,
    pub(super) means: ErrorMeaning,
    pub(super) message: Option<Place>,
    /// The token has run out before its time.
    pub(super) renew_token: bool,
    pub(super) rule: Option<String>,
    pub(super) spot: Spot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorMeaning {
    NotFound,
    TooEarly,
    Throttled,
    RefusedAccount,
    RefusedRow,
    RefusedRowPark,
    RequestFailed,
    ServerError,
}

/// The words for meanings, in the order of the documentation.
const MEANINGS: [(&str, Meaning); 8] = [
    ("pending", Meaning::Pending),
    ("action_required", Meaning::ActionRequired),
    ("succeeded", Meaning::Succeeded),
    ("failed", Meaning::Failed),
    ("cancelled", Meaning::Cancelled),
    ("refunded", Meaning::Refunded),
    ("not_found", Meaning::NotFound),
    ("too_early", Meaning::TooEarly),
];

const ERROR_MEANINGS: [(&str, ErrorMeaning); 8] = [
    ("not_found", ErrorMeaning::NotFound),
    ("too_early", ErrorMeaning::TooEarly),
    ("throttled", ErrorMeaning::Throttled),
    ("refused_account", ErrorMeaning::RefusedAccount),
    ("refused_row", ErrorMeaning::RefusedRow),
    ("refused_row_park", ErrorMeaning::RefusedRowPark),
    ("request_failed", ErrorMeaning::RequestFailed),
    ("server_error", ErrorMeaning::ServerError),
];

impl Meaning {
    /// As the file writes it.
    pub(super) fn name(self) -> &'static str {
        MEANINGS.iter().find(|(_, meaning)| *meaning == self).map_or("", |(name, _)| name)
    }

    /// Whether it ends a transaction.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Refunded)
    }
}

impl ErrorMeaning {
    /// As the file writes it.
    pub(super) fn name(self) -> &'static str {
        ERROR_MEANINGS.iter().find(|(_, meaning)| *meaning == self).map_or("", |(name, _)| name)
    }
}

impl Words {
    /// What a word means: as it stands, else by a pattern.
    pub(super) fn meaning(&self, word: &str) -> Option<Meaning> {
        let is = |known: &str| if self.ignore_case { known.eq_ignore_ascii_case(word) } else { known == word };
        let plain = self.list.iter().find(|(known, _)| is(known));
        let matched = || self.list.iter().find(|(known, _)| is_pattern(known) && is_like(word, known, self.ignore_case));
        plain.or_else(matched).map(|(_, rule)| rule.means)
    }

    /// The words that mean this, patterns excluded.
    pub(super) fn plain(&self) -> impl Iterator<Item = (&str, &WordRule)> {
        self.list.iter().filter(|(word, _)| !is_pattern(word)).map(|(word, rule)| (word.as_str(), rule))
    }
}

/// Whether a word stands for many.
pub(super) fn is_pattern(word: &str) -> bool {
    word.contains('*')
}

/// Whether a word is like a pattern, in which the one `*` stands for any text.
fn is_like(word: &str, pattern: &str, ignore_case: bool) -> bool {
    let Some((start, end)) = pattern.split_once('*') else { return false };
    let is = |part: Option<&str>, wanted: &str| {
        part.is_some_and(|part| if ignore_case { part.eq_ignore_ascii_case(wanted) } else { part == wanted })
    };
    let tail = word.len().checked_sub(end.len()).filter(|tail| *tail >= start.len());
    tail.is_some_and(|tail| is(word.get(..start.len()), start) && is(word.get(tail..), end))
}

/// A pointer below a key.
pub(super) fn place(item: Item<'_, '_>, source: &Source<'_>) -> Option<Place> {
    let (text, spot) = item.text()?;
    match Pointer::parse(&text) {
        Ok(pointer) => Some(Place { pointer, spot }),
        Err(why) => {
            source.problem(&spot, format_args!("{text:?} {why}"));
            None
        }
    }
}

/// HTTP codes: one or a list.
pub(super) fn codes(item: Item<'_, '_>) -> Vec<u16> {
    let code = |item: Item<'_, '_>| u16::try_from(item.integer(100, 599)?).ok();
    item.one_or_more().into_iter().filter_map(code).collect()
}

/// Reads `[answer]`. `None` after a mistake that leaves nothing to go on with.
pub(super) fn read(mut table: Table<'_, '_>, names: &Names, source: &Source<'_>) -> Option<Answer> {
    let believe = table.required("believe", "write the HTTP codes of an answer about the payment, such as [200]").map(codes);
    let require = table.tables("require").into_iter().filter_map(|table| read_test(table, source)).collect();
    let mend = "write what in an answer is our own identifier, such as [{ at = \"/data/reference\", is = \"{reference}\" }]";
    let identity = table.required("identity", mend).and_then(Item::tables).unwrap_or_default();
    let identity = identity.into_iter().filter_map(|table| read_identity(table, names, source)).collect();
    let word = table.required("word", "write where the status word stands, such as { at = \"/data/status\" }");
    let word = word.and_then(Item::table).and_then(|table| read_word(table, source));
    let reason = table.optional("reason").map(Item::one_or_more).unwrap_or_default();
    let reason = reason.into_iter().filter_map(|item| place(item, source)).collect();
    let mend = "write { at, unit, currency }, or { none = \"why\" } where the answers have no amount";
    let amount = table.required("amount", mend).and_then(Item::table).and_then(|table| read_amount(table, source));
    let action = table.table("action").map(|table| read_action(table, source));
    table.finish();
    Some(Answer { believe: believe?, require, identity, word: word?, reason, amount: amount?, action })
}

fn read_test(mut table: Table<'_, '_>, source: &Source<'_>) -> Option<Test> {
    let at = table.required("at", "write a JSON Pointer, such as \"/status\"").and_then(|item| place(item, source));
    let is = table.optional("is").and_then(Item::constant).map(Wants::Is);
    let exists = table.optional("exists").and_then(Item::flag).map(Wants::Exists);
    let contains = table.optional("contains").and_then(Item::text).map(|(text, _)| Wants::Contains(text));
    let spot = table.spot().clone();
    table.finish();
    let mut wants: Vec<Wants> = [is, exists, contains].into_iter().flatten().collect();
    if wants.len() != 1 {
        source.problem(&spot, "has not exactly one of is, exists and contains; write one of them");
    }
    match &wants.first() {
        Some(Wants::Is(Value::String(text)) | Wants::Contains(text)) if text.contains(['{', '}']) => {
            source.problem(&spot, "compares with a constant, not with a placeholder; identifiers belong into answer.identity");
        }
        Some(Wants::Contains(text)) if text.is_empty() => source.problem(&spot, "contains = \"\" is true of every text"),
        _ => {}
    }
    Some(Test { at: at?, wants: wants.pop()? })
}

fn read_identity(mut table: Table<'_, '_>, names: &Names, source: &Source<'_>) -> Option<Identity> {
    let at = table.required("at", "write a JSON Pointer, such as \"/reference\"").and_then(|item| place(item, source));
    let is = table.required("is", "write what it must be, such as \"{reference}\"").and_then(Item::text);
    table.finish();
    let (text, spot) = is?;
    Some(Identity { at: at?, is: Template::read(&text, spot, names, source) })
}

fn read_word(mut table: Table<'_, '_>, source: &Source<'_>) -> Option<Word> {
    let at = table.required("at", "write a JSON Pointer, or a list of them with join").map(Item::one_or_more);
    let join = table.optional("join").and_then(Item::text);
    let spot = table.spot().clone();
    table.finish();
    let at: Vec<Place> = at?.into_iter().filter_map(|item| place(item, source)).collect();
    if at.len() > 1 && join.is_none() {
        source.problem(&spot, "has several pointers and no join; write what stands between the parts, such as join = \" \"");
    }
    (!at.is_empty()).then(|| Word { at, join: join.map_or_else(String::new, |(text, _)| text) })
}

fn read_amount(mut table: Table<'_, '_>, source: &Source<'_>) -> Option<Amount> {
    let spot = table.spot().clone();
    if let Some(none) = table.optional("none") {
        let (why, spot) = none.text()?;
        if why.trim().is_empty() {
            source.problem(&spot, "is empty; say why the answers have no amount");
        }
        table.finish();
        return Some(Amount::None(why));
    }
    let mend = "write where the amount stands, or none = \"why\" where the answers have none";
    let at = table.required("at", mend).and_then(|item| place(item, source));
    let minor = table.required("unit", "write \"major\" (10.00) or \"minor\" (1000)").and_then(|item| {
        item.parsed(|text| match text {
            "major" => Ok(false),
            "minor" => Ok(true),
            _ => Err("is no unit; write \"major\" (10.00) or \"minor\" (1000)".into()),
        })
    });
    let exponent = |item: Item<'_, '_>| u32::try_from(item.integer(0, 8)?).ok();
    let usual = table.optional("exponent").and_then(exponent);
    let by_currency = table.table("exponents").map(|mut table| table.named()).unwrap_or_default();
    let by_currency: BTreeMap<_, _> = by_currency.into_iter().filter_map(|(name, item)| Some((name, exponent(item)?))).collect();
    let at_currency = table.optional("currency").and_then(|item| place(item, source)).map(Currency::At);
    let is_currency = table.optional("currency_is").and_then(Item::text);
    table.finish();
    if minor == Some(false) && (usual.is_some() || !by_currency.is_empty()) {
        source.problem(&spot, "has an exponent, which only minor units have; write unit = \"minor\", or leave it out");
    }
    if let Some((text, spot)) = &is_currency
        && !(text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase()))
    {
        source.problem(spot, format_args!("{text:?} is no currency of three capital letters, such as \"INR\""));
    }
    let currency = match (at_currency, is_currency) {
        (Some(at), None) => at,
        (None, Some((text, _))) => Currency::Is(text),
        _ => {
            source.problem(&spot, "has not exactly one of currency (a pointer) and currency_is (such as \"INR\")");
            return None;
        }
    };
    let exponents = Exponents { usual: usual.unwrap_or(2), by_currency };
    Some(Amount::Some { at: at?, minor: minor?.then_some(exponents), currency })
}

fn read_action(mut table: Table<'_, '_>, source: &Source<'_>) -> Action {
    let kind = table.text("kind");
    let members = table.named().into_iter().filter_map(|(key, item)| Some((key, place(item, source)?))).collect();
    Action { kind, members }
}

/// Reads `[words]`.
pub(super) fn read_words(mut table: Table<'_, '_>, source: &Source<'_>) -> Words {
    let mut words = Words::default();
    for (word, item) in table.named() {
        // The one key that is no word: a word is a table.
        if word == "case" && !item.is_table() {
            words.ignore_case = item.parsed(|text| match text {
                "ignore" => Ok(true),
                _ => Err("is no way to compare words; write \"ignore\", or leave it out".into()),
            }) == Some(true);
            continue;
        }
        let Some(mut table) = item.table() else { continue };
        let means = table.required("means", "write what the word means").and_then(|item| {
            item.parsed(|text| {
                let found = MEANINGS.iter().find(|(name, _)| *name == text).map(|(_, meaning)| *meaning);
                found.ok_or_else(|| format!("is no meaning; write one of {}", list(&MEANINGS)))
            })
        });
        let (rule, spot) = (table.text("rule"), table.spot().clone());
        table.finish();
        if let Some(means) = means {
            if is_pattern(&word) && means != Meaning::Pending {
                source.problem(&spot, "has a star, which stands for any text, and may only mean pending; list every other word");
            }
            if word.matches('*').count() > 1 {
                source.problem(&spot, "has several stars; one is allowed");
            }
            words.list.push((word, WordRule { means, rule, spot }));
        }
    }
    words
}

/// Reads `[[errors]]`, of the file or of `[token]`.
pub(super) fn read_errors(tables: Vec<Table<'_, '_>>, source: &Source<'_>) -> Vec<ErrorRule> {
    tables.into_iter().filter_map(|table| read_error(table, source)).collect()
}

fn read_error(mut table: Table<'_, '_>, source: &Source<'_>) -> Option<ErrorRule> {
    let spot = table.spot().clone();
    let http = table.optional("http").map(codes).unwrap_or_default();
    let when = table.table("when").map(|table| read_test(table, source));
    let means = table.required("means", "write what the error means").and_then(|item| {
        item.parsed(|text| {
            if let Some((name, _)) = MEANINGS[..6].iter().find(|(name, _)| *name == text) {
                return Err(format!(
                    "is a fate, and no error is one: an answer that says {name} says it in a word, under [words]; write one of {}",
                    list(&ERROR_MEANINGS)
                ));
            }
            let found = ERROR_MEANINGS.iter().find(|(name, _)| *name == text).map(|(_, meaning)| *meaning);
            found.ok_or_else(|| format!("is no meaning of an error; write one of {}", list(&ERROR_MEANINGS)))
        })
    });
    let message = table.optional("message").and_then(|item| place(item, source));
    let (renew_token, rule) = (table.flag("renew_token"), table.text("rule"));
    table.finish();
    if http.is_empty() && when.is_none() {
        source.problem(&spot, "matches every answer; give it http, when, or both");
    }
    // A test that could not be read must not make the rule match more than was meant.
    let when = match when {
        Some(test) => Some(test?),
        None => None,
    };
    Some(ErrorRule { http, when, means: means?, message, renew_token, rule, spot })
}

fn list<T>(meanings: &[(&str, T)]) -> String {
    meanings.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_compared_letter_by_letter_and_patterns_come_last() {
        let text = "A = { means = \"failed\" }\n\"A *\" = { means = \"pending\" }\n\"A x\" = { means = \"succeeded\" }";
        let source = Source::new("a", text);
        let words = read_words(source.parse(text).expect("TOML"), &source);
        assert!(source.is_fine());
        assert_eq!(words.meaning("A"), Some(Meaning::Failed));
        assert_eq!(words.meaning("A x"), Some(Meaning::Succeeded));
        assert_eq!(words.meaning("A y"), Some(Meaning::Pending));
        assert_eq!((words.meaning("a"), words.meaning("A x ")), (None, Some(Meaning::Pending)));
    }

    #[test]
    fn the_case_is_ignored_where_the_file_says_so() {
        let text = "case = \"ignore\"\nPaid = { means = \"succeeded\" }\n\"Wait*\" = { means = \"pending\" }";
        let source = Source::new("a", text);
        let words = read_words(source.parse(text).expect("TOML"), &source);
        assert_eq!(words.meaning("PAID"), Some(Meaning::Succeeded));
        assert_eq!(words.meaning("wAITING"), Some(Meaning::Pending));
    }

    #[test]
    fn an_error_is_no_fate_and_matches_something() {
        let text = "[[errors]]\nhttp = 400\nmeans = \"failed\"\n[[errors]]\nmeans = \"not_found\"\n\
                    [[errors]]\nhttp = 400\nmeans = \"dead\"\n";
        let source = Source::new("a", text);
        let mut table = source.parse(text).expect("TOML");
        read_errors(table.tables("errors"), &source);
        let told = source.into_problems();
        assert!(told[0].contains("line 3: errors[0].means: \"failed\" is a fate"), "{told:?}");
        assert!(told[1].contains("line 4: errors[1]: matches every answer"), "{told:?}");
        assert!(told[2].contains("\"dead\" is no meaning of an error"), "{told:?}");
    }
}

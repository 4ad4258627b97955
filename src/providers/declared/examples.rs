//! `[example]` and `[[examples]]`: answers from the documentation, what was asked, and what each
//! must come to.

use super::answer;
use super::tree::{Item, Source, Spot, Table};
use crate::wire::Method;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// An answer with all that is known of it.
#[derive(Clone, Debug)]
pub(super) struct Example {
    pub(super) name: String,
    /// It answers a request for a token.
    pub(super) is_token: bool,
    pub(super) asked: Asked,
    pub(super) http: u16,
    /// Of the answer; names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
    pub(super) expect: Expect,
    /// What the request must look like.
    pub(super) request: Option<Golden>,
    pub(super) spot: Spot,
}

/// What the provider is asked in an example.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) base_url: Option<String>,
    pub(super) reference: String,
    pub(super) params: Value,
    pub(super) amount: Option<String>,
    pub(super) currency: Option<String>,
    pub(super) token: Option<String>,
    pub(super) account: BTreeMap<String, String>,
    pub(super) options: BTreeMap<String, String>,
    pub(super) now: DateTime<Utc>,
}

/// What must come of an answer. What is not said is not compared.
#[derive(Clone, Debug, Default)]
pub(super) struct Expect {
    pub(super) outcome: Option<String>,
    pub(super) word: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) amount: Option<String>,
    pub(super) currency: Option<String>,
    pub(super) message: Option<String>,
    pub(super) action: Option<Value>,
    pub(super) token: Option<String>,
    pub(super) lifetime: Option<String>,
}

/// A request as the documentation shows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Golden {
    pub(super) method: Option<Method>,
    pub(super) url: Option<String>,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Option<String>,
}

/// When every example is asked that does not say when: 2023-03-28T15:13:27.123Z.
const NOW: i64 = 1_680_016_407_123;
/// More of them are a mistake, and would make every start slow.
const MOST_EXAMPLES: usize = 1_000;

/// Reads `[example]`, what every example asks, and `[[examples]]`.
pub(super) fn read(common: Option<Table<'_, '_>>, tables: Vec<Table<'_, '_>>, source: &Source<'_>) -> Vec<Example> {
    let nothing = Asked {
        base_url: None,
        reference: String::new(),
        params: Value::Object(Map::new()),
        amount: None,
        currency: None,
        token: None,
        account: BTreeMap::new(),
        options: BTreeMap::new(),
        now: DateTime::from_timestamp_millis(NOW).unwrap_or_default(),
    };
    let asked = match common {
        Some(mut table) => {
            let asked = read_asked(&mut table, nothing, source);
            table.finish();
            asked
        }
        None => nothing,
    };
    if tables.len() > MOST_EXAMPLES {
        source.problem(tables[0].spot(), format_args!("there are {} examples; at most {MOST_EXAMPLES}", tables.len()));
    }
    let mut examples: Vec<Example> = Vec::new();
    for table in tables.into_iter().take(MOST_EXAMPLES) {
        let Some(example) = read_example(table, asked.clone(), source) else { continue };
        if examples.iter().any(|other| other.name == example.name) {
            source.problem(&example.spot, format_args!("there is another example {:?}; give each its own name", example.name));
        }
        examples.push(example);
    }
    examples
}

fn read_asked(table: &mut Table<'_, '_>, before: Asked, source: &Source<'_>) -> Asked {
    let spot = table.spot().clone();
    let now = table.optional("now").and_then(|item| {
        item.parsed(|text| {
            let time = DateTime::parse_from_rfc3339(text).map(|time| time.with_timezone(&Utc));
            time.map_err(|_| "is no time; write it like \"2026-11-27T09:00:00Z\"".into())
        })
    });
    let params = table.optional("params").and_then(Item::json);
    if params.as_ref().is_some_and(|params| !params.is_object()) {
        source.problem(&spot, "params must be a table");
    }
    let reference = table.text("reference").unwrap_or(before.reference);
    if reference.chars().any(char::is_control) {
        source.problem(&spot, "reference has control characters");
    }
    Asked {
        base_url: table.text("base_url").or(before.base_url),
        reference,
        params: params.unwrap_or(before.params),
        amount: table.text("amount").or(before.amount),
        currency: table.text("currency").or(before.currency),
        token: table.text("token").or(before.token),
        account: overlaid(before.account, texts(table.table("account"))),
        options: overlaid(before.options, texts(table.table("options"))),
        now: now.unwrap_or(before.now),
    }
}

fn overlaid(mut below: BTreeMap<String, String>, above: BTreeMap<String, String>) -> BTreeMap<String, String> {
    below.extend(above);
    below
}

fn texts(table: Option<Table<'_, '_>>) -> BTreeMap<String, String> {
    let Some(mut table) = table else { return BTreeMap::new() };
    table.named().into_iter().filter_map(|(key, item)| Some((key, item.text()?.0))).collect()
}

fn read_example(mut table: Table<'_, '_>, common: Asked, source: &Source<'_>) -> Option<Example> {
    let spot = table.spot().clone();
    let name = table.required("name", "say in a word or two what is answered").and_then(Item::text);
    let is_token = table.optional("kind").and_then(|item| {
        item.parsed(|text| match text {
            "status" => Ok(false),
            "token" => Ok(true),
            _ => Err("is no kind of example; write \"status\" or \"token\"".into()),
        })
    });
    let http = table.required("http", "write the HTTP code of the answer, such as 200").map(answer::codes);
    let headers = texts(table.table("headers"));
    let body = table.required("body", "write the answer's body in '…' as the documentation has it").and_then(Item::text);
    let mend = "write what must come of it, such as { outcome = \"succeeded\" }";
    let expect = table.required("expect", mend).and_then(Item::table).map(read_expect);
    let request = table.table("request").map(read_golden);
    let asked = read_asked(&mut table, common, source);
    table.finish();
    if asked.reference.is_empty() {
        source.problem(&spot, "asks about nothing; write reference here or in [example]");
    }
    let is_token = is_token.unwrap_or_default();
    let expect = expect?;
    if expect.outcome.is_none() && !(is_token && expect.token.is_some()) {
        source.problem(&spot, "expects nothing; write expect.outcome, or expect.token for a token");
    }
    let http = *http?.first()?;
    Some(Example { name: name?.0, is_token, asked, http, headers, body: body?.0, expect, request, spot })
}

fn read_expect(mut table: Table<'_, '_>) -> Expect {
    let outcome = table.optional("outcome").and_then(|item| {
        item.parsed(|text| {
            let known = crate::domain::Outcome::NAMES;
            let found = known.contains(&text).then(|| text.to_owned());
            found.ok_or_else(|| format!("is no outcome; write one of {}", known.join(", ")))
        })
    });
    let expect = Expect {
        outcome,
        word: table.text("word"),
        reason: table.text("reason"),
        amount: table.text("amount"),
        currency: table.text("currency"),
        message: table.text("message"),
        action: table.optional("action").and_then(Item::json),
        token: table.text("token"),
        lifetime: table.text("lifetime"),
    };
    table.finish();
    expect
}

fn read_golden(mut table: Table<'_, '_>) -> Golden {
    let method = table.optional("method").and_then(|item| {
        item.parsed(|text| match text {
            "GET" => Ok(Method::Get),
            "POST" => Ok(Method::Post),
            _ => Err("is neither \"GET\" nor \"POST\"".into()),
        })
    });
    let headers = texts(table.table("headers")).into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    let golden = Golden { method, url: table.text("url"), headers, body: table.text("body") };
    table.finish();
    golden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_asks_what_is_common_unless_it_says_otherwise() {
        let text = "[example]\nreference = \"A\"\naccount = { k = \"1\", l = \"2\" }\nnow = \"2026-11-27T09:00:00+07:00\"\n\
                    [[examples]]\nname = \"x\"\nhttp = 200\nbody = '{}'\nexpect = { outcome = \"pending\" }\n\
                    reference = \"B\"\naccount = { l = \"3\" }\n";
        let source = Source::new("a", text);
        let mut table = source.parse(text).expect("TOML");
        let examples = read(table.table("example"), table.tables("examples"), &source);
        assert!(source.is_fine());
        let asked = &examples[0].asked;
        assert_eq!((asked.reference.as_str(), asked.account["k"].as_str(), asked.account["l"].as_str()), ("B", "1", "3"));
        assert_eq!(asked.now.to_rfc3339(), "2026-11-27T02:00:00+00:00");
    }

    #[test]
    fn an_example_that_says_too_little_is_refused() {
        let text = "[[examples]]\nname = \"x\"\nhttp = 99\nbody = '{}'\nexpect = { outcome = \"dead\" }\n\
                    [[examples]]\nname = \"x\"\nhttp = 200\nbody = '{}'\nexpect = { outcome = \"pending\", mood = \"x\" }\n";
        let source = Source::new("a", text);
        let mut table = source.parse(text).expect("TOML");
        read(None, table.tables("examples"), &source);
        let told = source.into_problems().join("\n");
        for said in ["must be a number from 100 to 599", "\"dead\" is no outcome", "asks about nothing", "mood: is not a known key"]
        {
            assert!(told.contains(said), "{said}: {told}");
        }
    }
}

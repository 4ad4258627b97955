//! What holds for every provider, written once: the common situations, and every small change of
//! every final answer.
//!
//! The requests, and what the answers mean, are in `tests/fixtures/NAME/answers.toml`, one file for
//! each provider in the registry:
//!
//! | key | means |
//! |---|---|
//! | `reference`, `params`, `account`, `options` | what is asked |
//! | `refuses` | to whom the credentials belong that an HTTP 401 refuses: `account` or `row` |
//! | `error_added` | error markers: beside any answer they take the belief from it |
//! | `answers.file`, `source`, `http`, `means` | an answer, where it comes from, its HTTP code (200) and its outcome |
//! | `word`, `names` | where a final answer has its status word and our identifier |
//! | `decides` | the parts that decide: whatever is changed in one of them, the answer is final no more |
//! | `tolerates` | … but for these values, by the document's own words (`absent`: without it; `wrapped`: in an object of another name) |
//! | `at_200` | the final state of an error's body at HTTP 200, where it is one |
//! | `amount`, `currency`, `currency_at` | what the row expects, where the answer has the currency |
//! | `elsewhere` | files that are no answers about a transaction |

use chrono::DateTime;
use paypoll::config;
use paypoll::domain::{Backoff, Health, NotFoundRule, Outcome, Rules, State, Transaction, Whose};
use paypoll::providers::{self, Ask, Provider, Settings, find};
use paypoll::wire::Response;
use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    reference: String,
    params: Value,
    account: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
    refuses: String,
    error_added: BTreeMap<String, String>,
    #[serde(default)]
    elsewhere: BTreeSet<String>,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    file: String,
    source: String,
    #[serde(default = "ok")]
    http: u16,
    means: String,
    at_200: Option<String>,
    word: Option<String>,
    names: Option<String>,
    #[serde(default)]
    decides: BTreeSet<String>,
    #[serde(default)]
    tolerates: BTreeMap<String, BTreeSet<String>>,
    amount: Option<String>,
    currency: Option<String>,
    currency_at: Option<String>,
}

fn ok() -> u16 {
    200
}

/// A provider under test.
struct Subject {
    name: &'static str,
    manifest: Manifest,
    provider: Box<dyn Provider>,
    rules: Rules,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Every provider that paypoll knows: one without a manifest fails every test here. Those that
/// files declare are tried by their own examples (`paypoll provider test`).
fn subjects() -> Vec<Subject> {
    let compiled = providers::all().into_iter().filter(|descriptor| descriptor.declaration().is_none());
    compiled.map(|descriptor| subject(descriptor.name)).collect()
}

fn subject(name: &'static str) -> Subject {
    let path = folder(name).join("answers.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let manifest: Manifest = toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let settings = Settings {
        base_url: "http://127.0.0.1:1".into(),
        options: manifest.options.clone(),
        account: manifest.account.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect(),
    };
    let provider = find(name).expect("registered").open(&settings).expect("complete settings");
    let rules = Rules {
        plan: config::default_plan(name).expect("a default"),
        retry: Backoff::new(Duration::from_secs(5), Duration::from_secs(300), 2.0),
        not_found: NotFoundRule { limit: u32::MAX, min_age: Duration::MAX },
        floors: find(name).expect("registered").floors,
    };
    Subject { name, manifest, provider, rules }
}

/// What a row expects, and the params of its request.
#[derive(Clone, Copy)]
struct Row<'a> {
    reference: &'a str,
    amount: Option<Decimal>,
    currency: Option<&'a str>,
}

impl Subject {
    fn body(&self, answer: &Answer) -> String {
        let text = std::fs::read_to_string(folder(self.name).join(&answer.file)).expect("a fixture");
        text.trim().to_owned()
    }

    fn finals(&self) -> impl Iterator<Item = &Answer> {
        self.manifest.answers.iter().filter(|answer| answer.means_state().is_final())
    }

    fn row<'a>(&'a self, answer: &'a Answer) -> Row<'a> {
        Row { reference: &self.manifest.reference, amount: answer.amount(), currency: answer.currency.as_deref() }
    }

    fn read(&self, row: Row<'_>, status: u16, body: &str) -> Outcome {
        self.read_response(row, Response { status, retry_after: None, body: body.to_owned().into() })
    }

    fn read_response(&self, row: Row<'_>, response: Response) -> Outcome {
        let now = DateTime::from_timestamp(1_680_016_407, 0).expect("a time in range");
        let Row { reference, amount, .. } = row;
        self.provider.read(Ask { reference, params: &self.manifest.params, now, token: None, amount }, &response)
    }

    /// The final state that a row is brought into.
    fn end(&self, row: Row<'_>, status: u16, body: &str) -> Option<State> {
        let outcome = self.read(row, status, body);
        let start = DateTime::from_timestamp(1_680_000_000, 0).expect("a time in range");
        let mut transaction = Transaction::new(uuid::Uuid::nil(), self.name, "default".into(), row.reference, start);
        (transaction.amount, transaction.currency) = (row.amount, row.currency.map(Into::into));
        let sent = self.rules.first_look(&transaction, 0.5);
        let decision = self.rules.decide(&transaction, &outcome, sent, 0.5);
        decision.change.map(|change| change.to).filter(|state| state.is_final())
    }
}

impl Answer {
    fn amount(&self) -> Option<Decimal> {
        self.amount.as_ref().map(|amount| amount.parse().expect("a decimal"))
    }

    fn means_state(&self) -> State {
        State::from_name(&self.means).unwrap_or(State::Pending)
    }
}

#[test]
fn every_fixture_says_where_it_comes_from_and_means_what_its_manifest_says() {
    for subject in subjects() {
        let files = std::fs::read_dir(folder(subject.name)).expect("a folder").map(|entry| entry.expect("an entry").path());
        let json = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let found: BTreeSet<String> = json.map(|path| path.file_name().expect("a name").to_string_lossy().into_owned()).collect();
        let listed: BTreeSet<String> = subject.manifest.answers.iter().map(|answer| answer.file.clone()).collect();
        let listed = &listed | &subject.manifest.elsewhere;
        assert_eq!(found, listed, "{}: files and manifest", subject.name);
        for answer in &subject.manifest.answers {
            let says = ["verbatim: ", "made: ", "the document's "].iter().any(|begin| answer.source.starts_with(begin));
            assert!(says && !answer.source.contains('\n'), "{} {}: {:?}", subject.name, answer.file, answer.source);
            let outcome = subject.read(subject.row(answer), answer.http, &subject.body(answer));
            assert_eq!(outcome.name(), answer.means, "{} {}: {outcome:?}", subject.name, answer.file);
        }
    }
}

// -- The common situations
// ----------------------------------------------------------------------------------------------------------

#[test]
fn a_final_answer_ends_the_transaction_as_it_says() {
    for subject in subjects() {
        let states: BTreeSet<State> = subject.finals().map(Answer::means_state).collect();
        assert!(states.contains(&State::Succeeded) && states.contains(&State::Failed), "{}: {states:?}", subject.name);
        for answer in subject.finals() {
            let end = subject.end(subject.row(answer), answer.http, &subject.body(answer));
            assert_eq!(end, Some(answer.means_state()), "{} {}", subject.name, answer.file);
        }
    }
}

#[test]
fn a_pending_answer_is_usable_and_ends_nothing() {
    for subject in subjects() {
        let pending = subject.manifest.answers.iter().filter(|answer| answer.means == "pending");
        let mut count = 0;
        for answer in pending {
            let outcome = subject.read(subject.row(answer), answer.http, &subject.body(answer));
            assert_eq!(outcome.health(), Health::Usable, "{} {}", subject.name, answer.file);
            count += 1;
        }
        assert!(count > 0, "{} has no pending answer", subject.name);
    }
}

#[test]
fn a_word_that_no_document_knows_ends_nothing_and_is_told() {
    for subject in subjects() {
        for answer in subject.finals() {
            let mut body: Value = serde_json::from_str(&subject.body(answer)).expect("JSON");
            let word = answer.word.as_deref().expect("a final answer says where its word stands");
            *body.pointer_mut(word).expect("it is there") = json!("NEVER_SEEN");
            let outcome = subject.read(subject.row(answer), answer.http, &body.to_string());
            assert_eq!(outcome, Outcome::UnknownStatus { status: "NEVER_SEEN".into() }, "{} {}", subject.name, answer.file);
        }
    }
}

#[test]
fn not_found_says_nothing_of_the_payment() {
    for subject in subjects() {
        let answer = subject.manifest.answers.iter().find(|answer| answer.means == "not_found");
        let answer = answer.unwrap_or_else(|| panic!("{} has no answer for what is not found", subject.name));
        let outcome = subject.read(subject.row(answer), answer.http, &subject.body(answer));
        assert!(matches!(outcome, Outcome::NotFound { .. }), "{}: {outcome:?}", subject.name);
        assert_eq!(outcome.health(), Health::Neutral);
    }
}

/// What comes where an answer should be, and every answer that there is.
fn bodies(subject: &Subject) -> Vec<String> {
    let odd = ["", " ", "null", "[]", "{}", "7", "\"text\"", "<html><body>Forbidden</body></html>", "{\"error\":"];
    let odd = odd.iter().map(|&body| body.to_owned());
    odd.chain(subject.manifest.answers.iter().map(|answer| subject.body(answer))).collect()
}

#[test]
fn throttling_holds_the_account_for_as_long_as_it_is_told_whatever_the_body() {
    for subject in subjects() {
        let row = Row { reference: &subject.manifest.reference, amount: None, currency: None };
        for body in bodies(&subject) {
            for wait in [None, Some(Duration::from_secs(9))] {
                let read = |status| subject.read_response(row, Response { status, retry_after: wait, body: body.clone().into() });
                let refused = matches!(read(429), Outcome::CredentialsRejected { park: true, .. });
                if !refused {
                    assert_eq!(read(429), Outcome::RateLimited { wait }, "{} 429 {body}", subject.name);
                    assert_eq!(read(503), Outcome::ServerError { status: 503, wait }, "{} 503 {body}", subject.name);
                }
                let neither = read(429).name() == "credentials_rejected" && !body.contains("INVALID_CREDENTIALS");
                assert!(!neither, "{} 429 {body}", subject.name);
            }
        }
    }
}

#[test]
fn a_401_refuses_the_credentials_of_whom_they_belong_to() {
    for subject in subjects() {
        let row = Row { reference: &subject.manifest.reference, amount: None, currency: None };
        let whose = if subject.manifest.refuses == "account" { Whose::Account } else { Whose::Row };
        for body in ["", "{}", "<html><body>Unauthorized</body></html>"] {
            let outcome = subject.read(row, 401, body);
            let refused = matches!(&outcome, Outcome::CredentialsRejected { whose: of, park: false, .. } if *of == whose);
            assert!(refused, "{} {body}: {outcome:?}", subject.name);
        }
    }
}

#[test]
fn a_firewalls_403_concerns_its_row_alone() {
    for subject in subjects() {
        let row = Row { reference: &subject.manifest.reference, amount: None, currency: None };
        for body in ["", "{}", "<html><body>Forbidden</body></html>", "{\"detail\":\"blocked\"}", "\u{feff}{}"] {
            let outcome = subject.read(row, 403, body);
            let refused = matches!(&outcome, Outcome::CredentialsRejected { whose: Whose::Row, park: false, .. });
            assert!(refused, "{} {body}: {outcome:?}", subject.name);
        }
    }
}

#[test]
fn a_server_error_says_nothing_of_the_payment_whatever_the_body() {
    for subject in subjects() {
        for answer in subject.finals() {
            for status in [500, 502, 504, 520] {
                for body in [String::new(), "<html>".into(), subject.body(answer)] {
                    let outcome = subject.read(subject.row(answer), status, &body);
                    assert_eq!(outcome, Outcome::ServerError { status, wait: None }, "{} {}", subject.name, answer.file);
                }
            }
        }
    }
}

#[test]
fn what_is_no_answer_is_unusable() {
    for subject in subjects() {
        let row = Row { reference: &subject.manifest.reference, amount: None, currency: None };
        for body in
            ["", " \n", "<html><body>Sign in</body></html>", "[]", "null", "\u{feff}{}", "{\"a\":1,\"a\":2}", "{\"status\":"]
        {
            let outcome = subject.read(row, 200, body);
            assert!(matches!(outcome, Outcome::Unusable { .. }), "{} {body:?}: {outcome:?}", subject.name);
        }
        for status in [301, 302, 307] {
            assert!(matches!(subject.read(row, status, ""), Outcome::Unusable { .. }), "{} {status}", subject.name);
        }
    }
}

#[test]
fn an_error_in_a_200_is_no_fate() {
    for subject in subjects() {
        let errors = subject.manifest.answers.iter().filter(|answer| !is_about_a_state(&answer.means));
        let mut count = 0;
        for answer in errors {
            count += 1;
            let end = subject.end(subject.row(answer), 200, &subject.body(answer));
            assert_eq!(end.map(State::as_str), answer.at_200.as_deref(), "{} {}", subject.name, answer.file);
        }
        assert!(count > 0, "{} has no errors", subject.name);
    }
}

fn is_about_a_state(means: &str) -> bool {
    State::from_name(means).is_some()
}

#[test]
fn another_transactions_answer_is_none() {
    for subject in subjects() {
        let mut unnamed = 0;
        for answer in subject.finals() {
            let other = Row { reference: "another-reference", ..subject.row(answer) };
            match &answer.names {
                Some(_) => {
                    let outcome = subject.read(other, answer.http, &subject.body(answer));
                    assert!(matches!(outcome, Outcome::Unusable { .. }), "{} {}: {outcome:?}", subject.name, answer.file);
                }
                None => unnamed += 1,
            }
        }
        let promised = subject.provider.answers_name_their_transaction();
        assert_eq!(promised, unnamed == 0, "{}: {unnamed} final answers name nobody", subject.name);
    }
}

#[test]
fn a_success_over_another_amount_or_currency_is_none() {
    for subject in subjects() {
        for answer in subject.finals() {
            let (body, row) = (subject.body(answer), subject.row(answer));
            for by in [Decimal::ONE, -Decimal::ONE, Decimal::new(1, 2)] {
                let other = Row { amount: row.amount.map(|amount| amount + by), ..row };
                let expected = (row.amount.is_none() || answer.means != "succeeded").then(|| answer.means_state());
                assert_eq!(subject.end(other, answer.http, &body), expected, "{} {}", subject.name, answer.file);
            }
            if row.currency.is_some() {
                let other = Row { currency: Some("XTS"), ..row };
                assert_eq!(subject.end(other, answer.http, &body), None, "{} {}", subject.name, answer.file);
            }
        }
    }
}

// -- Every small change of every final answer
// --------------------------------------------------------------------------------------------

/// One changed answer, and whether it may still be final.
struct Mutation {
    what: String,
    status: u16,
    body: String,
    touched: bool,
}

#[test]
fn no_final_answer_survives_a_change_in_what_decides_and_every_one_survives_any_other() {
    let mut all = 0;
    for subject in subjects() {
        let (mut touched, mut untouched, mut wrong) = (0_u32, 0_u32, Vec::new());
        for answer in subject.finals() {
            for mutation in mutations(&subject, answer) {
                let expected = (!mutation.touched).then(|| answer.means_state());
                let end = subject.end(subject.row(answer), mutation.status, &mutation.body);
                if end != expected {
                    wrong
                        .push(format!("{} {}: {end:?} at HTTP {}: {}", answer.file, mutation.what, mutation.status, mutation.body));
                }
                *(if mutation.touched { &mut touched } else { &mut untouched }) += 1;
            }
        }
        println!("{}: {touched} changes in what decides, {untouched} in what does not, {} exceptions", subject.name, wrong.len());
        assert_eq!(wrong, [""; 0], "{}", subject.name);
        assert!(touched > 200 && untouched > 20, "{}", subject.name);
        all += touched + untouched;
    }
    println!("{all} mutations");
    assert!(all >= 2_000, "{all}");
}

const OTHER_CODES: [u16; 16] = [201, 202, 203, 204, 206, 301, 302, 400, 401, 403, 404, 409, 422, 429, 500, 503];

fn mutations(subject: &Subject, answer: &Answer) -> Vec<Mutation> {
    let text = subject.body(answer);
    let tree: Value = serde_json::from_str(&text).expect("JSON");
    let mut all = Vec::new();
    let mut add = |what: String, status, body, touched| all.push(Mutation { what, status, body, touched });
    for status in OTHER_CODES {
        add(format!("HTTP {status}"), status, text.clone(), true);
    }
    for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
        add(format!("cut at {end}"), answer.http, text[..end].to_owned(), true);
    }
    for (what, body) in [
        ("in a list", format!("[{text}]")),
        ("in an object", format!("{{\"wrapped\":{text}}}")),
        ("twice", format!("{text}{text}")),
        ("with a byte-order mark", format!("\u{feff}{text}")),
        ("with a byte behind it", format!("{text}x")),
        ("as text", Value::from(text.clone()).to_string()),
    ] {
        add(what.into(), answer.http, body, true);
    }
    for (at, marker) in &subject.manifest.error_added {
        let marker: Value = serde_json::from_str(marker).expect("JSON");
        let mut changed = tree.clone();
        let fields = changed.as_object_mut().expect("an object");
        fields.insert(at.trim_start_matches('/').to_owned(), marker);
        add(format!("with {at}"), answer.http, changed.to_string(), true);
    }
    add("with a field that nobody knows".into(), answer.http, with_field(&tree), false);
    for at in pointers(&tree) {
        let decides = answer.decides.contains(&at);
        let tolerated = |value: &str| answer.tolerates.get(&at).is_some_and(|values| values.contains(value));
        let is_currency = answer.currency.is_some() && answer.currency_at.as_ref() == Some(&at);
        let old = tree.pointer(&at).expect("it is there").clone();
        add(format!("without {at}"), answer.http, without(&tree, &at), decides && !tolerated("absent"));
        add(format!("{at} twice"), answer.http, doubled(&tree, &at), true);
        for value in others(&old) {
            let touched = decides && !tolerated(&value.to_string()) || is_currency && is_another_text(&old, &value);
            add(format!("{at} = {value}"), answer.http, replaced(&tree, &at, value), touched);
        }
        add(format!("{at} in a list"), answer.http, replaced(&tree, &at, json!([old])), decides);
        let wrapped = replaced(&tree, &at, json!({ "wrapped": old }));
        add(format!("{at} in an object"), answer.http, wrapped, decides && !tolerated("wrapped"));
    }
    all
}

/// Other values: another type, and of text the other case and another text, of numbers and flags another one.
fn others(old: &Value) -> Vec<Value> {
    let mut others = vec![Value::Null, json!(true), json!(7), json!("another"), json!(""), json!([]), json!({})];
    match old {
        Value::String(text) => {
            others.push(json!(text.to_uppercase()));
            others.push(json!(text.to_lowercase()));
            others.push(json!(format!("{text} ")));
            others.extend(text.parse::<Decimal>().into_iter().flat_map(neighbours).map(Value::String));
            others.extend(text.parse::<u64>().map(|number| json!(number)));
        }
        Value::Bool(flag) => others.push(json!(!flag)),
        Value::Number(number) => others.extend(
            number.as_str().parse().into_iter().flat_map(neighbours).map(|text| serde_json::from_str(&text).expect("a number")),
        ),
        _ => {}
    }
    others.retain(|other| other != old);
    others
}

fn neighbours(number: Decimal) -> [String; 2] {
    [(number + Decimal::ONE).to_string(), (number - Decimal::ONE).to_string()]
}

/// A text that is not the old one in another case or with blanks around it.
fn is_another_text(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::String(old), Value::String(new)) => !new.trim().is_empty() && !old.trim().eq_ignore_ascii_case(new.trim()),
        _ => false,
    }
}

/// Where every part of an answer stands, but for the whole.
fn pointers(tree: &Value) -> Vec<String> {
    let children: Vec<(String, &Value)> = match tree {
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect(),
        Value::Array(values) => values.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    let below = |(key, value): (String, &Value)| {
        let here = format!("/{key}");
        let deeper: Vec<String> = pointers(value).into_iter().map(|rest| format!("{here}{rest}")).collect();
        std::iter::once(here).chain(deeper).collect::<Vec<_>>()
    };
    children.into_iter().flat_map(below).collect()
}

fn replaced(tree: &Value, at: &str, value: Value) -> String {
    let mut changed = tree.clone();
    *changed.pointer_mut(at).expect("it is there") = value;
    changed.to_string()
}

fn with_field(tree: &Value) -> String {
    let mut changed = tree.clone();
    changed.as_object_mut().expect("an object").insert("nobody knows".into(), json!({ "status": "FAILED", "state": "Failed" }));
    changed.to_string()
}

fn parent<'a>(tree: &'a mut Value, at: &str) -> (&'a mut Value, String) {
    let (above, key) = at.rsplit_once('/').expect("a pointer");
    (tree.pointer_mut(above).expect("it is there"), key.replace("~1", "/").replace("~0", "~"))
}

fn without(tree: &Value, at: &str) -> String {
    let mut changed = tree.clone();
    match parent(&mut changed, at) {
        (Value::Object(fields), key) => drop(fields.remove(&key)),
        (Value::Array(values), index) => drop(values.remove(index.parse().expect("an index"))),
        _ => unreachable!("only lists and objects have parts"),
    }
    changed.to_string()
}

/// The answer with one of its keys twice; in a list, whose elements have none, with a broken element.
fn doubled(tree: &Value, at: &str) -> String {
    let mut changed = tree.clone();
    // A text that stands nowhere else marks the place.
    const MARK: &str = "b1d4-here-it-is-twice";
    match parent(&mut changed, at) {
        (Value::Object(fields), key) => {
            let old = fields.get(&key).expect("it is there").clone();
            let twice = Map::from_iter([(MARK.to_owned(), json!([key, old]))]);
            fields.extend(twice);
        }
        (list, index) => list[index.parse::<usize>().expect("an index")] = json!(MARK),
    }
    let text = changed.to_string();
    let quoted = format!("\"{MARK}\"");
    let Some((before, after)) = text.split_once(&format!("{quoted}:[")) else { return text.replace(&quoted, "?") };
    // What is marked ends with the list that holds it: its key and its value.
    let mut values = serde_json::Deserializer::from_str(after).into_iter::<Value>();
    let key = values.next().expect("a key").expect("JSON").to_string();
    let rest = &after[key.len() + 1..];
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    let value = values.next().expect("a value").expect("JSON").to_string();
    format!("{before}{key}:{value}{}", &rest[value.len() + 1..])
}

// -- What is written of it
// ----------------------------------------------------------------------------------------------------------

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The words of a provider's file with their meanings: `"WORD" => Some(Reported::Meaning…`.
fn words_of_the_code(name: &str) -> BTreeMap<String, String> {
    let source = read(&format!("src/providers/{name}.rs"));
    let source = source.split("\nfn meaning(").nth(1).expect("a table of words").split("\n}\n").next().expect("its end").to_owned();
    let arms = source.lines().filter_map(|line| {
        let (word, meaning) = line.trim().strip_prefix('"')?.split_once("\" => Some(Reported::")?;
        let meaning: String = meaning.chars().take_while(char::is_ascii_alphabetic).collect();
        Some((word.to_owned(), if meaning == "ActionRequired" { "action_required".into() } else { meaning.to_lowercase() }))
    });
    arms.collect()
}

/// The rows `| `WORD` | `outcome` |` of its page's section.
fn words_of_the_page(page: &str) -> BTreeMap<String, String> {
    let section = page.split("\n## Words\n").nth(1).expect("a section on words").split("\n## ").next().expect("its text");
    let rows = section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.strip_suffix("` |")?.split("` | `").collect();
        (cells.len() == 2).then(|| (cells[0].to_owned(), cells[1].to_owned()))
    });
    rows.collect()
}

/// The keys that all providers have, as `config/default.toml` sets them, comments apart.
fn defaults(name: &str) -> Vec<String> {
    let text = read("config/default.toml");
    let section =
        text.split(&format!("\n[providers.{name}]\n")).nth(1).expect("a section").split("\n[").next().expect("its text").to_owned();
    let own = ["enabled", "base_url", "path", "path_prefix", "lookup", "timestamp"];
    let lines = section.lines().filter(|line| !line.starts_with('#') && line.contains(" = "));
    lines.filter(|line| !own.contains(&line.split(" = ").next().unwrap_or_default())).map(str::to_owned).collect()
}

#[test]
fn every_provider_has_a_page_with_its_words_its_defaults_and_a_way_to_try_it() {
    for subject in subjects() {
        let name = subject.name;
        let page = read(&format!("docs/providers/{name}.md"));
        for section in ["What is sent", "What comes with the row", "Words", "Errors", "The plan", "Traps", "Try it"] {
            assert!(page.contains(&format!("\n## {section}\n")), "{name}: no section {section:?}");
        }
        let code = words_of_the_code(name);
        assert!(code.len() >= 4, "{name}: {code:?}");
        assert_eq!(words_of_the_page(&page), code, "{name}: the words");
        let plan = page.split("```toml\n").nth(1).expect("the defaults").split("```").next().expect("their end");
        assert_eq!(plan.lines().map(str::to_owned).collect::<Vec<_>>(), defaults(name), "{name}: the defaults");
        let request = subject.provider.request(Ask {
            reference: &subject.manifest.reference,
            params: &subject.manifest.params,
            now: DateTime::from_timestamp_millis(1_680_016_407_123).expect("a time in range"),
            token: None,
            amount: None,
        });
        let request = request.expect("a request");
        let sent = page.split("```http\n").nth(1).expect("the request").split("```").next().expect("its end");
        let path = request.url.strip_prefix("http://127.0.0.1:1").expect("the base URL");
        assert!(sent.lines().next().is_some_and(|line| line.contains(path)), "{name}: {path} is not what {sent} says");
        for (header, _) in &request.headers {
            assert!(sent.contains(&format!("\n{header}: ")), "{name}: the header {header}");
        }
        for key in request.body.iter().flat_map(|body| body.split('"').skip(1).step_by(2)) {
            assert!(!is_key(key, &request.body) || sent.contains(&format!("\"{key}\"")), "{name}: the field {key}");
        }
        for word in page.split("-sim-").skip(1) {
            let steps: String = word.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '-').collect();
            for step in steps.split('-').filter(|step| !step.starts_with("t1") && *step != "opinfo") {
                let word = step.split('x').next().unwrap_or_default().trim_end_matches(|letter: char| letter.is_ascii_digit());
                let known = paypoll::simulator::scripts().iter().any(|script| script.word == word);
                assert!(known || word.is_empty(), "{name}: the simulator has no word {word:?}");
            }
        }
    }
}

fn is_key(text: &str, body: &Option<String>) -> bool {
    body.as_ref().is_some_and(|body| body.contains(&format!("\"{text}\":")))
}

//! No final state without its documented evidence, and no panic, whatever a provider answers.
//!
//! The predicates below say, from the providers' documents alone, whether an answer documents a
//! final state. They share neither code nor types with the readers, not even the JSON parser, so
//! that one mistake cannot hide in both. The fuzz mutates the documented answers, always from the
//! same seed. `PAYPOLL_FUZZ` sets the number of executions per provider.

use bytes::Bytes;
use chrono::DateTime;
use paypoll::domain::{Outcome, Reported};
use paypoll::providers::{Ask, Provider, Settings, find};
use paypoll::wire::Response;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

const SEED: u64 = 20_261_121;
const EXECUTIONS: u64 = 20_000;

/// A provider under test: how it is opened, the transaction that its answers are about, and its
/// predicate.
struct Subject {
    name: &'static str,
    options: &'static [(&'static str, &'static str)],
    account: &'static [(&'static str, &'static str)],
    reference: &'static str,
    /// The final state that an answer documents about a reference: HTTP status, body, reference.
    evidence: fn(u16, &Json, &str) -> Option<&'static str>,
    /// What its documents know beside what stands in the fixtures.
    words: &'static [&'static str],
}

const DROPAYMENT: Subject = Subject {
    name: "dropayment",
    options: &[("path_prefix", "/paynet/dapi/v1")],
    account: &[],
    reference: "INV-2026-0001",
    evidence: |status, answer, reference| {
        let about_us = status == 200 && answer.at("error").is_none() && answer.text("invoiceId") == Some(reference);
        match answer.text("state").filter(|_| about_us)? {
            "APPROVED" => Some("succeeded"),
            "DECLINED" => Some("failed"),
            _ => None,
        }
    },
    words: &["FILTERED", "ORDER_NOT_FOUND", "error", "cause"],
};

const DUSUPAY: Subject = Subject {
    name: "dusupay",
    options: &[],
    account: &[("public_key", "PUBK-0001")],
    reference: "MCTREFT2WMNWZ23SBN6Y",
    evidence: |status, answer, reference| {
        let about_us = status == 200
            && answer.number("code") == Some("200")
            && answer.text("status") == Some("success")
            && answer.at("data")?.text("merchant_reference") == Some(reference);
        match answer.at("data")?.text("transaction_status").filter(|_| about_us)? {
            "COMPLETED" => Some("succeeded"),
            "FAILED" => Some("failed"),
            "CANCELLED" => Some("cancelled"),
            _ => None,
        }
    },
    words: &["PROCESSING", "success", "error"],
};

const AYOCONNECT: Subject = Subject {
    name: "ayoconnect",
    options: &[("path_prefix", "/api/v1.0")],
    account: &[
        ("merchant_id", "AYOPOP"),
        ("client_id", "0123456789abcdef0123456789ABCDEF"),
        ("client_secret", "client-secret-0001"),
        ("channel_id", "95221"),
        ("private_key", include_str!("fixtures/ayoconnect/keys/pkcs8.pem")),
    ],
    reference: "qic5taezfgta7yhn74u7cppr47wan027",
    // No identifier of ours is in its answers: the reference is not compared.
    evidence: |status, answer, _| {
        let code = match answer.at("responseCode") {
            None => true,
            Some(Json::Text(code)) if code.is_empty() => true,
            Some(Json::Text(code) | Json::Number(code)) => code.starts_with("200"),
            Some(_) => false,
        };
        let word = answer.at("additionalInfo")?.text("paymentResult").filter(|_| status == 200 && code)?;
        match word.to_lowercase().as_str() {
            "success" | "settled" | "partially refunded" => Some("succeeded"),
            "failed" => Some("failed"),
            "refunded" => Some("refunded"),
            _ => None,
        }
    },
    words: &["SETTLED", "PARTIALLY REFUNDED", "Refunded", "TIMEOUT", "INITIATED", "2023600", "paymentResult"],
};

const KHALTI: Subject = Subject {
    name: "khalti",
    options: &[("lookup", "json")],
    account: &[("token", "token-0001")],
    reference: "7068074f-d04f-4262-8d9b-6a171da647b5",
    evidence: |status, answer, reference| {
        let about_us = status == 200
            && answer.at("status") == Some(&Json::True)
            && answer.at("error_code").is_none()
            && answer.text("reference") == Some(reference);
        let exists = || {
            let id = answer.number("response_id").unwrap_or_default();
            id.bytes().all(|byte| byte.is_ascii_digit()) && id.bytes().any(|byte| byte != b'0')
        };
        match answer.text("state").filter(|_| about_us)? {
            "Success" => Some("succeeded"),
            "Failed" | "Expired" | "Status Error" if answer.at("response_id").is_none() || exists() => Some("failed"),
            "Error" if exists() => Some("failed"),
            _ => None,
        }
    },
    words: &["Expired", "Status Error", "Timeout", "Processing", "Pending", "1011", "1018"],
};

const DAPI: Subject = Subject {
    name: "dapi",
    options: &[("path", "/v2/operation/get")],
    account: &[("app_secret", "app-secret-0001")],
    reference: "355b01ed-fb50-4bf0-b7f6-71b4cf94971c",
    evidence: |status, answer, reference| {
        let inner = answer.at("opInfo");
        let ids: Vec<Option<&Json>> = vec![answer.at("operationID"), inner.and_then(|info| info.at("operationID"))];
        let echoed = ids.iter().flatten().count();
        let others = ids.iter().flatten().filter(|id| !matches!(id, Json::Text(id) if id == reference)).count();
        let inner_type = |key: &str| inner.and_then(|info| info.text(key));
        // In the newer shape a request that worked shows the operation's status; the types then say
        // why it failed.
        let request_done = answer.at("status").is_none() || answer.text("status") == Some("done");
        let worked = answer.at("success") == Some(&Json::True) && request_done;
        let failed_inside =
            inner.is_some_and(|info| info.text("status") == Some("failed")) && worked && answer.at("type").is_none();
        let request_failed = !failed_inside
            && [answer.text("type"), inner_type("type"), inner_type("errorType")]
                .into_iter()
                .flatten()
                .any(|kind| matches!(kind, "NOT_FOUND" | "INVALID_JSON" | "INVALID_CREDENTIALS") || kind.starts_with("PARAMETER_"));
        let word = match inner {
            Some(info) => info.text("status"),
            None => answer.text("status").filter(|_| echoed > 0),
        };
        match word.filter(|_| status == 200 && others == 0 && !request_failed)? {
            "done" if answer.at("success") == Some(&Json::True) && (inner.is_none() || request_done) => Some("succeeded"),
            "failed" if inner.is_none() || worked => Some("failed"),
            _ => None,
        }
    },
    words: &["PARAMETER_MISSING", "initialized", "opInfo", "operationID", "errorType"],
};

const SUBJECTS: [&Subject; 5] = [&DROPAYMENT, &DUSUPAY, &AYOCONNECT, &KHALTI, &DAPI];

impl Subject {
    fn open(&self) -> Box<dyn Provider> {
        let settings = Settings {
            base_url: "http://127.0.0.1:1".into(),
            options: self.options.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
            account: self.account.iter().map(|&(key, value)| (key.to_owned(), value.into())).collect(),
        };
        find(self.name).expect("a known provider").open(&settings).expect("complete settings")
    }

    /// The documented answers, by file name.
    fn fixtures(&self) -> Vec<(String, Vec<u8>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(self.name);
        let files = std::fs::read_dir(&folder).expect("a fixture folder").map(|entry| entry.expect("an entry").path());
        let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|ext| ext == "json")).collect();
        files.sort();
        let stem = |path: &Path| path.file_stem().expect("a name").to_string_lossy().into_owned();
        files.into_iter().map(|path| (stem(&path), std::fs::read(&path).expect("a readable file"))).collect()
    }

    fn documents(&self, status: u16, body: &[u8], reference: &str) -> Option<&'static str> {
        parse(body).and_then(|answer| (self.evidence)(status, &answer, reference))
    }
}

fn params() -> Value {
    json!({ "endpointId": "39", "session": { "token": "session-token-0001" }, "accessToken": "access-token-0001" })
}

fn ask<'a>(reference: &'a str, params: &'a Value) -> Ask<'a> {
    let now = DateTime::from_timestamp(1_680_016_407, 0).expect("a time in range");
    Ask { reference, params, now, token: Some("fetched-token-0001"), amount: None }
}

/// The final state that a reader took from an answer.
fn believed(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Status(status) => match status.reported {
            Reported::Pending | Reported::ActionRequired(_) => None,
            Reported::Succeeded | Reported::Failed | Reported::Cancelled | Reported::Refunded => Some(outcome.name()),
        },
        _ => None,
    }
}

#[test]
fn readers_and_predicates_agree_on_every_documented_answer() {
    for subject in SUBJECTS {
        let (provider, params) = (subject.open(), params());
        let mut finals = 0;
        for (name, body) in subject.fixtures() {
            for status in STATUSES {
                let response = Response { status, retry_after: None, body: body.clone().into() };
                let believed = believed(&provider.read(ask(subject.reference, &params), &response));
                assert_eq!(believed, subject.documents(status, &body, subject.reference), "{} {name} at {status}", subject.name);
                finals += u32::from(believed.is_some());
            }
        }
        assert!(finals >= 2, "{}: a success and a failure are documented", subject.name);
    }
}

#[test]
fn dropayment_has_no_final_state_without_evidence() {
    println!("{}", fuzz(&DROPAYMENT));
}

#[test]
fn dusupay_has_no_final_state_without_evidence() {
    println!("{}", fuzz(&DUSUPAY));
}

#[test]
fn ayoconnect_has_no_final_state_without_evidence() {
    println!("{}", fuzz(&AYOCONNECT));
}

#[test]
fn khalti_has_no_final_state_without_evidence() {
    println!("{}", fuzz(&KHALTI));
}

#[test]
fn dapi_has_no_final_state_without_evidence() {
    println!("{}", fuzz(&DAPI));
}

/// Every request that a row leads to can be sent as it is; else the row is refused with a reason.
#[test]
fn whatever_a_row_holds_its_request_is_refused_or_can_be_sent() {
    const ODD: [&str; 14] = ["..", ".", "/", "\\", "?", "#", "%", "%2e", " ", "ü", "\u{7f}", "\r\nx: y", "\0", "a"];
    let mut random = StdRng::seed_from_u64(SEED);
    let (mut sent, mut refused) = (0, 0);
    for subject in SUBJECTS {
        let provider = subject.open();
        for _ in 0..2_000 {
            let mut odd = || (0..random.random_range(1..4)).map(|_| ODD[random.random_range(0..ODD.len())]).collect::<String>();
            let reference = odd();
            let params = json!({ "endpointId": odd(), "session": { "token": odd(), "accessToken": odd() }, "accessToken": odd() });
            match provider.request(ask(&reference, &params)) {
                Ok(request) => {
                    sent += 1;
                    let url = reqwest::Url::parse(&request.url).expect("a URL");
                    assert_eq!(url.as_str(), request.url, "another URL would be asked");
                    for (name, value) in &request.headers {
                        assert!(reqwest::header::HeaderValue::from_str(value).is_ok(), "{name}: {value:?}");
                    }
                }
                Err(why) => {
                    refused += 1;
                    assert!(!why.is_empty());
                }
            }
        }
    }
    assert!(sent > 1_000 && refused > 1_000, "{sent} sent, {refused} refused");
}

const STATUSES: [u16; 15] = [200, 201, 202, 204, 206, 301, 400, 401, 403, 404, 409, 422, 429, 500, 503];

/// Runs the mutated answers through the reader; the summary.
fn fuzz(subject: &Subject) -> String {
    let executions = std::env::var("PAYPOLL_FUZZ").map_or(EXECUTIONS, |count| count.parse().expect("a number in PAYPOLL_FUZZ"));
    let (provider, params) = (subject.open(), params());
    let mutator = Mutator::new(subject);
    let (mut finals, mut near) = (0_u64, 0_u64);
    for execution in 0..executions {
        let mut random = StdRng::seed_from_u64(SEED ^ (execution << 8));
        let body = mutator.body(&mut random);
        let status = if random.random_bool(0.6) { 200 } else { STATUSES[random.random_range(0..STATUSES.len())] };
        let reference = if random.random_bool(0.9) { subject.reference } else { "another-reference" };
        let response = Response { status, retry_after: None, body: Bytes::from(body) };
        let case = || format!("{} #{execution} HTTP {status} {}", subject.name, String::from_utf8_lossy(&response.body));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if let Some(flow) = provider.token_flow() {
                let _ = flow.read(&response, DateTime::UNIX_EPOCH);
            }
            provider.read(ask(reference, &params), &response)
        }));
        let outcome = outcome.unwrap_or_else(|_| panic!("a panic: {}", case()));
        let documented = subject.documents(status, &response.body, reference);
        if let Some(believed) = believed(&outcome) {
            assert_eq!(Some(believed), documented, "without evidence: {}", case());
            finals += 1;
        }
        near += u64::from(documented.is_some());
    }
    // Otherwise the mutations destroy everything and nothing was tried.
    assert!(finals * 50 > executions, "{}: only {finals} final states in {executions} executions", subject.name);
    // Readers also refuse what no predicate looks at: fields of the wrong type, amounts that are none.
    assert!(finals * 2 > near, "{}: {near} documented, only {finals} believed", subject.name);
    format!("{}: {executions} executions, {near} with evidence, {finals} final states, 0 without evidence", subject.name)
}

/// Makes answers that are almost documented.
struct Mutator {
    bodies: Vec<Vec<u8>>,
    trees: Vec<Json>,
    keys: Vec<String>,
    values: Vec<Json>,
}

impl Mutator {
    fn new(subject: &Subject) -> Self {
        let bodies: Vec<Vec<u8>> = subject.fixtures().into_iter().map(|(_, body)| body).collect();
        let trees: Vec<Json> = bodies.iter().map(|body| parse(body).expect("fixtures are JSON")).collect();
        let mut keys: Vec<String> = subject.words.iter().map(|&word| word.to_owned()).collect();
        let mut values = vec![Json::Null, Json::True, Json::False, Json::List(vec![]), Json::Object(vec![])];
        values.extend(["0", "1", "-1", "200", "1e3", "0.5"].map(|number| Json::Number(number.into())));
        values.extend(["", "another-reference", subject.reference].map(|text| Json::Text(text.into())));
        values.extend(subject.words.iter().map(|&word| Json::Text(word.into())));
        trees.iter().for_each(|tree| tree.harvest(&mut keys, &mut values));
        Self { bodies, trees, keys, values }
    }

    fn body(&self, random: &mut StdRng) -> Vec<u8> {
        let start = random.random_range(0..self.bodies.len());
        let mut body = self.bodies[start].clone();
        if random.random_bool(0.8) {
            let mut tree = self.trees[start].clone();
            for _ in 0..random.random_range(1..4) {
                self.reshape(&mut tree, random);
            }
            body = tree.to_string().into_bytes();
        }
        if random.random_bool(0.3) {
            for _ in 0..random.random_range(1..3) {
                scramble(&mut body, random);
            }
        }
        body
    }

    /// One change of the tree, at a random place of it.
    fn reshape(&self, tree: &mut Json, random: &mut StdRng) {
        let other = &self.trees[random.random_range(0..self.trees.len())];
        let value = match random.random_range(0..4) {
            0 => other.node(random.random_range(0..other.size())).clone(),
            _ => self.values[random.random_range(0..self.values.len())].clone(),
        };
        let key = self.keys[random.random_range(0..self.keys.len())].clone();
        let node = tree.node_mut(random.random_range(0..tree.size()));
        match (random.random_range(0..9), node) {
            (0, node) => *node = value,
            (1, node) => *node = Json::List(vec![std::mem::replace(node, Json::Null)]),
            (2, node) => *node = Json::Object(vec![(key, std::mem::replace(node, Json::Null))]),
            // The elements for the fields in order.
            (3, node @ Json::Object(_)) => {
                if let Json::Object(fields) = std::mem::replace(node, Json::Null) {
                    *node = Json::List(fields.into_iter().map(|(_, value)| value).collect());
                }
            }
            (4, Json::Object(fields)) if !fields.is_empty() => {
                fields.remove(random.random_range(0..fields.len()));
            }
            (5, Json::Object(fields)) if !fields.is_empty() => {
                let twin = fields[random.random_range(0..fields.len())].0.clone();
                fields.push((twin, value));
            }
            (6, Json::Object(fields)) if !fields.is_empty() => {
                let field = random.random_range(0..fields.len());
                fields[field].0 = key;
            }
            (7, Json::Object(fields)) if !fields.is_empty() => {
                let field = random.random_range(0..fields.len());
                fields[field].1 = value;
            }
            (_, Json::Object(fields)) => fields.push((key, value)),
            (_, node) => *node = value,
        }
    }
}

/// One change of the bytes.
fn scramble(body: &mut Vec<u8>, random: &mut StdRng) {
    if body.is_empty() {
        return;
    }
    let at = random.random_range(0..body.len());
    let end = (at + random.random_range(1..40)).min(body.len());
    match random.random_range(0..7) {
        0 => body[at] ^= 1 << random.random_range(0..8_u32),
        1 => body.insert(at, random.random_range(0..=255_u8)),
        2 => {
            body.drain(at..end);
        }
        3 => body.truncate(at),
        4 => {
            let twice = body[at..end].to_vec();
            body.splice(at..at, twice);
        }
        5 => body.extend_from_slice(b" {}"),
        _ => body[at] = b"\"{}[]:,\\ 0e-\xff\xef"[random.random_range(0..14_usize)],
    }
}

/// JSON with its fields in order. Small, slow and strict, on purpose.
#[derive(Clone, Debug, PartialEq)]
enum Json {
    Null,
    True,
    False,
    Number(String),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// The value of a field; `null` is as good as absent.
    fn at(&self, key: &str) -> Option<&Self> {
        let Self::Object(fields) = self else { return None };
        fields.iter().find(|(name, _)| name == key).map(|(_, value)| value).filter(|value| **value != Self::Null)
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.at(key) {
            Some(Self::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn number(&self, key: &str) -> Option<&str> {
        match self.at(key) {
            Some(Self::Number(text)) => Some(text),
            _ => None,
        }
    }

    fn children(&self) -> Vec<&Self> {
        match self {
            Self::List(values) => values.iter().collect(),
            Self::Object(fields) => fields.iter().map(|(_, value)| value).collect(),
            _ => vec![],
        }
    }

    /// How many nodes there are, this one included.
    fn size(&self) -> usize {
        1 + self.children().into_iter().map(Self::size).sum::<usize>()
    }

    /// Under which child the n-th node is, and as which of its nodes; `None` for this one, 0, and
    /// beyond the last.
    fn way(&self, n: usize) -> Option<(usize, usize)> {
        let mut rest = n.checked_sub(1)?;
        for (at, child) in self.children().into_iter().enumerate() {
            if rest < child.size() {
                return Some((at, rest));
            }
            rest -= child.size();
        }
        None
    }

    fn node(&self, n: usize) -> &Self {
        self.way(n).map_or(self, |(at, rest)| self.children()[at].node(rest))
    }

    fn node_mut(&mut self, n: usize) -> &mut Self {
        let Some((at, rest)) = self.way(n) else { return self };
        match self {
            Self::List(values) => values[at].node_mut(rest),
            Self::Object(fields) => fields[at].1.node_mut(rest),
            leaf => leaf,
        }
    }

    fn harvest(&self, keys: &mut Vec<String>, values: &mut Vec<Self>) {
        if let Self::Object(fields) = self {
            keys.extend(fields.iter().map(|(key, _)| key.clone()));
        }
        values.push(self.clone());
        self.children().into_iter().for_each(|child| child.harvest(keys, values));
    }
}

impl std::fmt::Display for Json {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::True => f.write_str("true"),
            Self::False => f.write_str("false"),
            Self::Number(text) => f.write_str(text),
            // No fixture has text that must be escaped.
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::List(values) => {
                let values: Vec<String> = values.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", values.join(","))
            }
            Self::Object(fields) => {
                let fields: Vec<String> = fields.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
                write!(f, "{{{}}}", fields.join(","))
            }
        }
    }
}

/// The body, if it is JSON in UTF-8 without duplicate keys.
fn parse(body: &[u8]) -> Option<Json> {
    let text: Vec<char> = std::str::from_utf8(body).ok()?.chars().collect();
    let mut parser = Parser { text: &text, at: 0 };
    let value = parser.value(0)?;
    parser.space();
    (parser.at == text.len()).then_some(value)
}

struct Parser<'a> {
    text: &'a [char],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += 1;
        Some(next)
    }

    fn eat(&mut self, wanted: &str) -> Option<()> {
        wanted.chars().all(|letter| self.take() == Some(letter)).then_some(())
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\r' | '\n')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        self.space();
        match self.peek().filter(|_| depth < 200)? {
            'n' => self.eat("null").map(|()| Json::Null),
            't' => self.eat("true").map(|()| Json::True),
            'f' => self.eat("false").map(|()| Json::False),
            '"' => self.string().map(Json::Text),
            '[' => self.list(depth),
            '{' => self.object(depth),
            _ => self.number(),
        }
    }

    fn list(&mut self, depth: usize) -> Option<Json> {
        self.eat("[")?;
        let mut values = vec![];
        self.space();
        if self.peek() == Some(']') {
            self.at += 1;
            return Some(Json::List(values));
        }
        loop {
            values.push(self.value(depth + 1)?);
            self.space();
            match self.take()? {
                ',' => {}
                ']' => return Some(Json::List(values)),
                _ => return None,
            }
        }
    }

    fn object(&mut self, depth: usize) -> Option<Json> {
        self.eat("{")?;
        let mut fields: Vec<(String, Json)> = vec![];
        self.space();
        if self.peek() == Some('}') {
            self.at += 1;
            return Some(Json::Object(fields));
        }
        loop {
            self.space();
            let key = self.string()?;
            self.space();
            self.eat(":")?;
            let value = self.value(depth + 1)?;
            if fields.iter().any(|(name, _)| *name == key) {
                return None;
            }
            fields.push((key, value));
            self.space();
            match self.take()? {
                ',' => {}
                '}' => return Some(Json::Object(fields)),
                _ => return None,
            }
        }
    }

    fn string(&mut self) -> Option<String> {
        self.eat("\"")?;
        let mut units: Vec<u16> = vec![];
        loop {
            let letter = match self.take()? {
                '"' => return String::from_utf16(&units).ok(),
                '\\' => match self.take()? {
                    'u' => {
                        let digits: String = (0..4).map(|_| self.take()).collect::<Option<_>>()?;
                        units.push(u16::from_str_radix(&digits, 16).ok()?);
                        continue;
                    }
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    same @ ('"' | '\\' | '/') => same,
                    _ => return None,
                },
                control if control < ' ' => return None,
                letter => letter,
            };
            units.extend(letter.encode_utf16(&mut [0; 2]).iter());
        }
    }

    fn number(&mut self) -> Option<Json> {
        let start = self.at;
        while matches!(self.peek(), Some('0'..='9' | '-' | '+' | '.' | 'e' | 'E')) {
            self.at += 1;
        }
        let text: String = self.text[start..self.at].iter().collect();
        text.contains(|digit: char| digit.is_ascii_digit()).then_some(Json::Number(text))
    }
}

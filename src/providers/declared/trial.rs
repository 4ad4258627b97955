//! The examples of a file, played through the same code that reads real answers, and what must be
//! shown by at least one of them.

use super::account::Account;
use super::answer::{ErrorMeaning, Meaning};
use super::examples::{Asked, Example, Golden};
use super::file::File;
use super::mutations;
use super::request::{self, Built};
use super::tree::{Source, Spot};
use crate::domain::{Amount, Backoff, NotFoundRule, Outcome, Reported, Rules, Status, Transaction};
use crate::duration;
use crate::providers::{Ask, Settings};
use crate::wire::Response;
use bytes::Bytes;
use chrono::TimeDelta;
use rust_decimal::Decimal;
use secrecy::ExposeSecret;
use serde_json::Value;
use std::time::Duration;
use uuid::Uuid;

/// What came of an example.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The example's name.
    pub name: String,
    /// Its line in the file.
    pub line: usize,
    /// What came of the answer, for people.
    pub outcome: String,
    /// What is not as the example expects.
    pub problems: Vec<String>,
    /// The changed answers, none of which may end a transaction: what was changed, and what came of it.
    pub mutations: Vec<Mutated>,
    /// The word that it shows, where it ends in a status.
    pub(super) word: Option<String>,
    pub(super) shown: &'static str,
}

/// A changed answer.
#[derive(Clone, Debug)]
pub struct Mutated {
    /// What was changed.
    pub change: String,
    /// The state in which it would end a transaction; `None` where all is well.
    pub ends: Option<&'static str>,
}

impl Tried {
    /// Whether it came to what it expects, and no mutation ended a transaction.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.problems.is_empty() && self.mutations.iter().all(|mutated| mutated.ends.is_none())
    }

    fn new(example: &Example) -> Self {
        Self {
            name: example.name.clone(),
            line: example.spot.line,
            outcome: "not tried".into(),
            problems: Vec::new(),
            mutations: Vec::new(),
            word: None,
            shown: "",
        }
    }
}

/// Plays every example.
pub(super) fn play(file: &File) -> Vec<Tried> {
    file.examples.iter().map(|example| play_one(file, example)).collect()
}

fn play_one(file: &File, example: &Example) -> Tried {
    let mut tried = Tried::new(example);
    let account = match Account::open(file, &example.asked.settings(file)) {
        Ok(account) => account,
        Err(why) => {
            tried.problems.push(format!("its account cannot be opened: {why}; write it under [example] account"));
            return tried;
        }
    };
    if example.is_token {
        token(&account, example, &mut tried);
    } else {
        status(&account, example, &mut tried);
    }
    tried
}

impl Asked {
    /// What the account is opened with.
    pub(super) fn settings(&self, file: &File) -> Settings {
        Settings {
            base_url: self.base_url.clone().or(file.base_url.clone()).unwrap_or_else(|| "https://provider.invalid".into()),
            options: self.options.clone(),
            account: self.account.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect(),
        }
    }

    /// The amount that the row expects.
    pub(super) fn amount(&self) -> Option<Decimal> {
        self.amount.as_deref().and_then(|text| Decimal::from_str_exact(text).ok())
    }

    /// What is asked.
    pub(super) fn ask(&self) -> Ask<'_> {
        Ask { reference: &self.reference, params: &self.params, now: self.now, token: self.token.as_deref(), amount: self.amount() }
    }
}

impl Example {
    /// The answer.
    pub(super) fn response(&self) -> Response {
        let seconds = self.headers.get("retry-after").and_then(|text| text.parse().ok());
        Response { status: self.http, retry_after: seconds.map(Duration::from_secs), body: Bytes::from(self.body.clone()) }
    }
}

fn status(account: &Account<'_>, example: &Example, tried: &mut Tried) {
    let asked = &example.asked;
    match account.status_request(asked.ask()) {
        Ok(built) => golden(example.request.as_ref(), &built, &mut tried.problems),
        Err(why) => tried.problems.push(format!("the request cannot be made: {why}")),
    }
    let outcome = account.outcome(asked.ask(), &example.response());
    tried.outcome = told(&outcome);
    tried.shown = outcome.name();
    compare(example, &outcome, &mut tried.problems);
    if let Outcome::Status(status) = &outcome {
        tried.word = Some(status.word.clone());
        keeps_no_secret(account, example, status, &mut tried.problems);
    }
    if let Some(state) = ends(account, asked, &outcome) {
        if state != outcome.name() {
            tried.problems.push(format!("the transaction would end {state}: amount or currency are not those of [example]"));
        }
        tried.mutations = mutations::play(account, example, &outcome);
    } else if is_final(&outcome) {
        tried.problems.push("amount or currency are not those of [example], so it would not be believed".into());
    }
}

fn is_final(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Status(status) if !matches!(status.reported, Reported::Pending | Reported::ActionRequired(_)))
}

/// The final state to which the engine would bring the example's transaction.
pub(super) fn ends(account: &Account<'_>, asked: &Asked, outcome: &Outcome) -> Option<&'static str> {
    let plan = account.file.pace.plan.clone();
    let second = Duration::from_secs(1);
    let rules = Rules {
        plan,
        retry: Backoff::new(second, second, 1.0),
        not_found: NotFoundRule { limit: u32::MAX, min_age: Duration::MAX },
        floors: account.file.documented.floors,
    };
    let sent = asked.now;
    let begun = sent - TimeDelta::minutes(1);
    let transaction = Transaction {
        amount: asked.amount(),
        currency: asked.currency.as_deref().map(Into::into),
        ..Transaction::new(Uuid::nil(), "", "".into(), &asked.reference, begun)
    };
    let change = rules.decide(&transaction, outcome, sent, 0.0).change?;
    change.to.is_final().then_some(change.to.as_str())
}

fn compare(example: &Example, outcome: &Outcome, problems: &mut Vec<String>) {
    let expect = &example.expect;
    let mut differs = |what: &str, wanted: Option<&str>, found: Option<String>| {
        if let Some(wanted) = wanted
            && found.as_deref() != Some(wanted)
        {
            let found = found.map_or_else(|| "nothing".to_owned(), |found| format!("{found:?}"));
            problems.push(format!("expect.{what} is {wanted:?}, and it comes to {found}"));
        }
    };
    differs("outcome", expect.outcome.as_deref(), Some(outcome.name().to_owned()));
    let status = if let Outcome::Status(status) = outcome { Some(status) } else { None };
    let word = match outcome {
        Outcome::UnknownStatus { status: word } => Some(word.clone()),
        _ => status.map(|status| status.word.clone()),
    };
    differs("word", expect.word.as_deref(), word);
    differs("reason", expect.reason.as_deref(), status.and_then(|status| status.reason.clone()));
    differs("currency", expect.currency.as_deref(), status.and_then(|status| status.currency.clone()));
    differs("message", expect.message.as_deref(), outcome.error());
    if let Some(wanted) = &expect.amount {
        let found = status.and_then(|status| told_amount(status));
        if Decimal::from_str_exact(wanted).ok() != found || found.is_none() {
            differs("amount", Some(wanted), found.map(|amount| amount.to_string()));
        }
    }
    if let Some(wanted) = &expect.action {
        let found = status.and_then(|status| status.action()).unwrap_or_default();
        if *wanted != found {
            problems.push(format!("expect.action is {wanted}, and it comes to {found}"));
        }
    }
    // What was asked for must have been what the answer is about.
    if expect.outcome.as_deref() != Some(outcome.name())
        && let Some(error) = outcome.error()
    {
        problems.push(format!("because: {error}"));
    }
}

fn keeps_no_secret(account: &Account<'_>, example: &Example, status: &Status, problems: &mut Vec<String>) {
    let kept = status.details.to_string();
    let secrets = account.secrets(example.asked.ask());
    if secrets.iter().any(|secret| secret.len() >= 4 && kept.contains(secret)) {
        problems.push("keep.at keeps a secret of the account or the row; take that pointer out".into());
    }
}

fn golden(golden: Option<&Golden>, built: &Built<'_>, problems: &mut Vec<String>) {
    let Some(golden) = golden else { return };
    // Examples hold no real secret: what is sent may be shown.
    let mut differs = |what: &str, wanted: &str, found: &str| {
        if wanted != found {
            problems.push(format!("request.{what} is {wanted:?}, and the request has {found:?}"));
        }
    };
    if let Some(wanted) = golden.method {
        differs("method", request::method(wanted), request::method(built.method));
    }
    if let Some(wanted) = &golden.url {
        differs("url", wanted, &built.url);
    }
    if let Some(wanted) = &golden.body {
        differs("body", wanted, built.body.as_deref().unwrap_or_default());
    }
    for (name, wanted) in &golden.headers {
        let found = built.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value);
        differs(&format!("headers.{name}"), wanted, found);
    }
}

fn token(account: &Account<'_>, example: &Example, tried: &mut Tried) {
    if account.file.token.is_none() {
        tried.problems.push("is a token's and the file has no [token]".into());
        return;
    }
    match account.token_request(example.asked.now) {
        Ok(built) => golden(example.request.as_ref(), &built, &mut tried.problems),
        Err(why) => tried.problems.push(format!("the request cannot be made: {why}")),
    }
    let expect = &example.expect;
    match account.fetched(&example.response(), example.asked.now) {
        Ok(fetched) => {
            tried.outcome = format!("a token for {}", duration::text(fetched.lifetime));
            tried.shown = TOKEN;
            if expect.token.as_deref() != Some(fetched.value.expose_secret()) {
                tried.problems.push("expect.token is another one".into());
            }
            let wanted = expect.lifetime.as_deref().map(duration::parse);
            if wanted.is_some_and(|wanted| wanted != Ok(fetched.lifetime)) {
                tried.problems.push(format!("expect.lifetime is another one than {}", duration::text(fetched.lifetime)));
            }
        }
        Err(outcome) => {
            tried.outcome = told(&outcome);
            if expect.token.is_some() || expect.outcome.as_deref() != Some(outcome.name()) {
                tried.problems.push(format!("comes to {}", told(&outcome)));
            }
        }
    }
}

/// What an example shows that a token came of.
const TOKEN: &str = "token";

fn told_amount(status: &Status) -> Option<Decimal> {
    match status.amount {
        Amount::Told(amount) => Some(amount),
        Amount::Untold | Amount::Unreadable => None,
    }
}

/// An outcome for people.
fn told(outcome: &Outcome) -> String {
    let Outcome::Status(status) = outcome else {
        return outcome.error().map_or_else(|| outcome.name().to_owned(), |error| format!("{}: {error}", outcome.name()));
    };
    let amount = told_amount(status).map(|amount| format!(", {amount}")).unwrap_or_default();
    let currency = status.currency.as_deref().map(|currency| format!(" {currency}")).unwrap_or_default();
    format!("{} ({}{amount}{currency})", outcome.name(), status.word)
}

/// Notes what no example shows and must be shown: every final word, not found, too early, a token,
/// every pointer that decides.
pub(super) fn check_shown(file: &File, tried: &[Tried], source: &Source<'_>) {
    let shows = |outcome: &str| tried.iter().any(|tried| tried.shown == outcome);
    for (word, rule) in file.words.plain() {
        let is_word = |tried: &Tried| {
            tried
                .word
                .as_deref()
                .is_some_and(|shown| if file.words.ignore_case { shown.eq_ignore_ascii_case(word) } else { shown == word })
        };
        if rule.means.is_final() && !tried.iter().any(is_word) {
            source.problem(&rule.spot, format_args!("is final ({}) and no example has it; add one", rule.means.name()));
        }
    }
    let word = |means| file.words.plain().find(|(_, rule)| rule.means == means).map(|(_, rule)| &rule.spot);
    let error = |means| file.errors.iter().find(|error| error.means == means).map(|error| &error.spot);
    for (outcome, spot) in [
        ("not_found", word(Meaning::NotFound).or_else(|| error(ErrorMeaning::NotFound))),
        ("too_early", word(Meaning::TooEarly).or_else(|| error(ErrorMeaning::TooEarly))),
        (TOKEN, file.token.as_ref().map(|token| &token.message.spot)),
    ] {
        if let Some(spot) = spot
            && !shows(outcome)
        {
            source.problem(spot, format_args!("no example shows {}; add one", outcome.replace('_', " ")));
        }
    }
    let bodies: Vec<(Value, &str)> = bodies(file);
    for place in file.pointers() {
        if !bodies.iter().any(|(body, reference)| place.pointer.get(body, reference).is_some()) {
            let pointer = place.pointer.as_str();
            source.problem(
                &place.spot,
                format_args!("{pointer:?} points to nothing in any example; mend it, or add an example that has it"),
            );
        }
    }
}

/// What is kept and stands in no example: no mistake, but worth a look.
pub(super) fn kept_for_nothing(file: &File) -> Vec<(Spot, String)> {
    let bodies = bodies(file);
    let shown =
        |place: &&super::answer::Place| !bodies.iter().any(|(body, reference)| place.pointer.get(body, reference).is_some());
    file.keep.iter().filter(shown).map(|place| (place.spot.clone(), place.pointer.as_str().to_owned())).collect()
}

fn bodies(file: &File) -> Vec<(Value, &str)> {
    let body = |example: &'_ Example| {
        let body = if file.skip_bom { example.body.trim_start_matches('\u{feff}') } else { &example.body };
        serde_json::from_str(body).ok()
    };
    let examples = file.examples.iter().filter(|example| !example.is_token);
    examples.filter_map(|example| Some((body(example)?, example.asked.reference.as_str()))).collect()
}

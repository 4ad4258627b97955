//! Every example that ends a transaction, changed in one way at a time: none of the changed answers
//! may still end it.

use super::account::Account;
use super::answer::{Amount, Currency, Wants};
use super::examples::Example;
use super::pointer::Pointer;
use super::trial::{self, Mutated};
use crate::domain::Outcome;
use crate::wire::Response;
use bytes::Bytes;
use serde_json::{Value, json};

/// A word that no provider has.
const NO_WORD: &str = "PAYPOLL-KNOWS-NO-SUCH-WORD";
/// HTTP codes under which no answer is believed.
const CODES: [u16; 4] = [302, 404, 429, 500];

/// Plays all mutations of an example that ends a transaction.
pub(super) fn play(account: &Account<'_>, example: &Example, outcome: &Outcome) -> Vec<Mutated> {
    let mut play = Play { account, example, results: Vec::new() };
    let body = if account.file.skip_bom { example.body.trim_start_matches('\u{feff}') } else { &example.body };
    for code in CODES {
        play.response(format!("HTTP {code}"), code, &example.body);
    }
    play.text(
        "cut by one byte",
        &example.body[..example.body.floor_char_boundary(example.body.trim_end().len().saturating_sub(1))],
    );
    play.text("wrapped in an array", &format!("[{body}]"));
    play.text("followed by a second body", &format!("{body}{body}"));
    let Ok(answer) = serde_json::from_str::<Value>(body) else { return play.results };
    play.duplicated(&answer);
    play.identities(&answer);
    play.words(&answer);
    if outcome.name() == "succeeded" {
        play.amounts(&answer);
    }
    play.guards(&answer);
    play.results
}

struct Play<'p> {
    account: &'p Account<'p>,
    example: &'p Example,
    results: Vec<Mutated>,
}

impl Play<'_> {
    fn response(&mut self, change: String, status: u16, body: &str) {
        let response = Response { status, retry_after: None, body: Bytes::copy_from_slice(body.as_bytes()) };
        let asked = &self.example.asked;
        let outcome = self.account.outcome(asked.ask(), &response);
        self.results.push(Mutated { change, ends: trial::ends(self.account, asked, &outcome) });
    }

    fn text(&mut self, change: &str, body: &str) {
        self.response(change.to_owned(), self.example.http, body);
    }

    /// Changes one value, where it is there.
    fn value(&mut self, change: String, answer: &Value, at: &Pointer, with: impl FnOnce(&mut Value)) {
        let mut changed = answer.clone();
        if at.change(&mut changed, &self.example.asked.reference, with) {
            self.response(change, self.example.http, &changed.to_string());
        }
    }

    /// Takes one value out, where it is there.
    fn without(&mut self, change: String, answer: &Value, at: &Pointer) {
        let mut changed = answer.clone();
        if at.remove(&mut changed, &self.example.asked.reference) {
            self.response(change, self.example.http, &changed.to_string());
        }
    }

    fn duplicated(&mut self, answer: &Value) {
        let Some((key, value)) = answer.as_object().and_then(|map| map.iter().next()) else { return };
        let (text, key) = (answer.to_string(), Value::from(key.as_str()));
        self.text("a duplicate key", &format!("{{{key}:{value},{}", &text[1..]));
    }

    fn identities(&mut self, answer: &Value) {
        for identity in &self.account.file.answer.identity {
            let at = &identity.at.pointer;
            self.value(format!("another {}", at.as_str()), answer, at, |value| *value = other(value));
            self.without(format!("no {}", at.as_str()), answer, at);
        }
    }

    fn words(&mut self, answer: &Value) {
        let file = self.account.file;
        for (index, place) in file.answer.word.at.iter().enumerate() {
            let at = &place.pointer;
            self.value(format!("an unknown word in {}", at.as_str()), answer, at, |value| *value = NO_WORD.into());
            // A later part may be missing: the word is another one then, which the file may know.
            if index == 0 {
                self.without(format!("no word in {}", at.as_str()), answer, at);
            }
            let swapped = at.get(answer, &self.example.asked.reference).and_then(Value::as_str).map(swap_case);
            if let Some(swapped) = swapped.filter(|_| !file.words.ignore_case)
                && at.get(answer, &self.example.asked.reference).and_then(Value::as_str) != Some(&swapped)
            {
                self.value(format!("the word in the other case in {}", at.as_str()), answer, at, |value| *value = swapped.into());
            }
        }
    }

    fn amounts(&mut self, answer: &Value) {
        let Amount::Some { at, currency, .. } = &self.account.file.answer.amount else { return };
        let at = &at.pointer;
        self.value("amount + 1".to_owned(), answer, at, |value| *value = plus_one(value));
        self.without("no amount".to_owned(), answer, at);
        if let Currency::At(place) = currency {
            let other = if place.pointer.get(answer, &self.example.asked.reference) == Some(&json!("XTS")) { "XXX" } else { "XTS" };
            self.value("another currency".to_owned(), answer, &place.pointer, |value| *value = other.into());
        }
    }

    fn guards(&mut self, answer: &Value) {
        for guard in &self.account.file.answer.require {
            let at = &guard.at.pointer;
            let change = format!("{} against its guard", at.as_str());
            match &guard.wants {
                Wants::Is(_) => self.value(change, answer, at, |value| *value = other(value)),
                Wants::Exists(true) => self.without(change, answer, at),
                Wants::Exists(false) => {
                    let mut changed = answer.clone();
                    merge(&mut changed, filled(at));
                    self.response(change, self.example.http, &changed.to_string());
                }
                Wants::Contains(_) => self.value(change, answer, at, |value| *value = "".into()),
            }
        }
    }
}

/// Another value of the same type.
fn other(value: &Value) -> Value {
    match value {
        Value::String(text) => format!("{text}-X").into(),
        Value::Bool(flag) => (!flag).into(),
        value => plus_one(value),
    }
}

/// The number, or the number in a text, raised by one.
fn plus_one(value: &Value) -> Value {
    let raised = |text: &str| {
        let number = rust_decimal::Decimal::from_str_exact(text).ok()?.checked_add(rust_decimal::Decimal::ONE)?;
        Some(number.to_string())
    };
    match value {
        Value::Number(number) => {
            let raised = raised(number.as_str()).and_then(|text| text.parse::<serde_json::Number>().ok());
            raised.map_or_else(|| json!(1), Value::Number)
        }
        Value::String(text) => raised(text).map_or_else(|| format!("{text}1").into(), Value::String),
        other => other.clone(),
    }
}

fn swap_case(text: &str) -> String {
    let swap = |letter: char| if letter.is_ascii_uppercase() { letter.to_ascii_lowercase() } else { letter.to_ascii_uppercase() };
    text.chars().map(swap).collect()
}

/// A value in which a pointer points to something.
fn filled(at: &Pointer) -> Value {
    at.as_str().rsplit('/').filter(|step| !step.is_empty()).fold(json!(true), |inner, step| {
        let key = step.replace("~1", "/").replace("~0", "~");
        json!({ key: inner })
    })
}

/// Lays one object over another.
fn merge(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                merge(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_value_is_another_one_of_the_same_type() {
        assert_eq!(other(&json!("a")), json!("a-X"));
        assert_eq!(other(&json!(true)), json!(false));
        assert_eq!(plus_one(&json!("10.00")), json!("11.00"));
        assert_eq!(plus_one(&json!(499)).to_string(), "500");
        assert_eq!(swap_case("Paid_1"), "pAID_1");
    }

    #[test]
    fn a_guard_that_wants_nothing_is_given_something() {
        let at = Pointer::parse("/a/b").expect("a pointer");
        let mut answer = json!({"a": {"c": 1}});
        merge(&mut answer, filled(&at));
        assert_eq!(answer, json!({"a": {"c": 1, "b": true}}));
    }
}

//! From an answer to an outcome, in one order for every file:
//!
//! 1. nothing that says so by its code alone: a redirect, 429, 503;
//! 2. strict JSON, an object;
//! 3. an identifier that is there and another one ends it, before any error rule;
//! 4. `errors`, in the order of the file, the first that matches;
//! 5. `believe`: the HTTP code;
//! 6. `require`: what the answer says of the request;
//! 7. `identity`: all of it there, all of it ours;
//! 8. the word;
//! 9. amount and currency: a success is only one with them;
//! 10. what is kept.
//!
//! Total: whatever comes in, something comes out, and only step 8 can end a transaction.

use super::account::{Account, Row, Scope};
use super::answer::{self, Currency, ErrorMeaning, ErrorRule, Meaning, Place, Test, Wants};
use super::request::method;
use crate::domain::{Amount, Outcome, Reported, Status, Whose};
use crate::providers::Ask;
use crate::wire::{self, Response};
use rust_decimal::Decimal;
use serde_json::{Value, json};

/// U+FEFF in UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

impl Account<'_> {
    /// What an answer about a transaction means.
    pub(super) fn outcome(&self, ask: Ask<'_>, response: &Response) -> Outcome {
        let row = match self.row(ask) {
            Ok(row) => row,
            // It would not have been polled.
            Err(why) => return Outcome::Unusable { why },
        };
        self.judged(&row, ask, response).unwrap_or_else(|outcome| outcome)
    }

    /// The status, or what else it is.
    fn judged(&self, row: &Row<'_>, ask: Ask<'_>, response: &Response) -> Result<Outcome, Outcome> {
        let file = self.file;
        let answer = self.object(response)?;
        let scope = Scope::new(self, Some(row), ask.token, ask.now, method(file.request.method));
        let find = |place: &Place| place.pointer.get(&answer, row.reference);
        let mut missing = None;
        for identity in &file.answer.identity {
            match find(&identity.at) {
                Some(found) if !is_ours(found, |text| scope.is(&identity.is, text)) => {
                    return Err(unusable(format!("{} is another one than ours", identity.at.pointer.as_str())));
                }
                Some(_) => {}
                None => missing = Some(identity.at.pointer.as_str()),
            }
        }
        if let Some(error) = failure(&file.errors, &answer, row.reference, response) {
            return Err(error);
        }
        if !file.answer.believe.contains(&response.status) {
            return Err(wire::unreadable(response, "the HTTP code is not one of an answer about the payment".into()));
        }
        if let Some(guard) = file.answer.require.iter().find(|guard| !guard.holds(&answer, row.reference)) {
            let message = self.reason(&answer, row.reference);
            let message =
                message.unwrap_or_else(|| format!("{} is not as an answer about the payment has it", guard.at.pointer.as_str()));
            return Err(Outcome::RequestFailed { message });
        }
        if let Some(pointer) = missing {
            return Err(unusable(format!("the answer has no {pointer}")));
        }
        let word = self.word(&answer, row.reference).map_err(unusable)?;
        let Some(meaning) = file.words.meaning(&word) else { return Err(Outcome::UnknownStatus { status: word }) };
        let reason = self.reason(&answer, row.reference);
        let reported = match meaning {
            Meaning::NotFound => return Err(Outcome::NotFound { message: reason.unwrap_or(word) }),
            Meaning::TooEarly => return Err(Outcome::TooEarly),
            Meaning::Pending => Reported::Pending,
            Meaning::ActionRequired => Reported::ActionRequired(self.action(&answer, row.reference, &word)),
            Meaning::Succeeded => Reported::Succeeded,
            Meaning::Failed => Reported::Failed,
            Meaning::Cancelled => Reported::Cancelled,
            Meaning::Refunded => Reported::Refunded,
        };
        let (amount, currency) = match self.amount(&answer, row.reference) {
            Ok(amount) => amount,
            Err(why) if meaning == Meaning::Succeeded => return Err(unusable(why)),
            // What does not decide costs no answer.
            Err(_) => (Amount::Untold, None),
        };
        let details = self.kept(&answer, row.reference).into();
        Ok(Outcome::Status(Box::new(Status { reported, word, reason, amount, currency, details })))
    }

    /// The body as a JSON object.
    fn object(&self, response: &Response) -> Result<Value, Outcome> {
        if matches!(response.status, 300..=399 | 429 | 503) {
            return Err(wire::unreadable(response, String::new()));
        }
        let body = match response.body.strip_prefix(BOM) {
            Some(body) if self.file.skip_bom => body,
            _ => &response.body,
        };
        match wire::json(body) {
            Ok(value) if value.is_object() => Ok(value),
            Ok(_) => Err(wire::unreadable(response, "the body is no JSON object".into())),
            Err(why) => Err(wire::unreadable(response, why)),
        }
    }

    /// The word, its parts joined. The first part must be there, a later one is empty where it is not.
    fn word(&self, answer: &Value, reference: &str) -> Result<String, String> {
        let word = &self.file.answer.word;
        let mut text = String::new();
        for (index, place) in word.at.iter().enumerate() {
            let part = match place.pointer.get(answer, reference) {
                Some(value) => told(value).ok_or_else(|| format!("{} is no word", place.pointer.as_str()))?,
                None if index == 0 => return Err(format!("the answer has no {}", place.pointer.as_str())),
                None => String::new(),
            };
            if index > 0 {
                text.push_str(&word.join);
            }
            text.push_str(&part);
        }
        Ok(text)
    }

    fn reason(&self, answer: &Value, reference: &str) -> Option<String> {
        let texts = self.file.answer.reason.iter().filter_map(|place| place.pointer.get(answer, reference)).filter_map(told);
        texts.into_iter().find(|text| !text.is_empty())
    }

    fn action(&self, answer: &Value, reference: &str, word: &str) -> Value {
        let Some(declared) = &self.file.answer.action else { return json!({ "kind": "provider", "word": word }) };
        let mut action = serde_json::Map::new();
        action.insert("kind".into(), declared.kind.as_deref().unwrap_or("provider").into());
        for (key, place) in &declared.members {
            if let Some(value) = place.pointer.get(answer, reference) {
                action.insert(key.clone(), value.clone());
            }
        }
        Value::Object(action)
    }

    /// Amount and currency, as the file declares them. The error says why a success is none without them.
    fn amount(&self, answer: &Value, reference: &str) -> Result<(Amount, Option<String>), String> {
        let answer::Amount::Some { at, minor, currency } = &self.file.answer.amount else { return Ok((Amount::Untold, None)) };
        let absent = |place: &Place| format!("the answer has no {}", place.pointer.as_str());
        let currency = match currency {
            Currency::Is(currency) => currency.clone(),
            Currency::At(place) => {
                let found = place.pointer.get(answer, reference).ok_or_else(|| absent(place))?;
                let text = found.as_str().map(str::trim).filter(|text| !text.is_empty());
                text.ok_or_else(|| format!("{} is no currency", place.pointer.as_str()))?.to_owned()
            }
        };
        let found = at.pointer.get(answer, reference).ok_or_else(|| absent(at))?;
        let wrong = || format!("{} is no amount", at.pointer.as_str());
        let amount = wire::scalar(found).ok_or_else(wrong).and_then(|text| wire::decimal(&text).map_err(|_| wrong()))?;
        let Some(exponents) = minor else { return Ok((Amount::Told(amount), Some(currency))) };
        if !amount.is_integer() {
            return Err(format!("{} is a fraction of the smallest unit", at.pointer.as_str()));
        }
        let by_currency = exponents.by_currency.iter().find(|(known, _)| known.eq_ignore_ascii_case(&currency));
        let exponent = by_currency.map_or(exponents.usual, |(_, exponent)| *exponent);
        let major = amount.checked_mul(Decimal::new(1, exponent)).ok_or_else(wrong)?;
        Ok((Amount::Told(major.normalize()), Some(currency)))
    }

    /// What is kept of an answer: what the file lists, and nothing else.
    fn kept(&self, answer: &Value, reference: &str) -> Value {
        let mut kept = Value::Object(serde_json::Map::new());
        for place in &self.file.keep {
            place.pointer.copy(answer, &mut kept, reference);
        }
        kept
    }
}

impl Test {
    /// Whether the answer is as it says.
    pub(super) fn holds(&self, answer: &Value, reference: &str) -> bool {
        let found = self.at.pointer.get(answer, reference);
        match (&self.wants, found) {
            (Wants::Exists(wanted), found) => found.is_some() == *wanted,
            (Wants::Is(Value::Number(wanted)), Some(Value::Number(found))) => {
                wanted.as_str() == found.as_str()
                    || matches!((wire::decimal(wanted.as_str()), wire::decimal(found.as_str())), (Ok(a), Ok(b)) if a == b)
            }
            (Wants::Is(wanted), Some(found)) => wanted == found,
            (Wants::Contains(wanted), Some(Value::String(found))) => found.contains(wanted),
            _ => false,
        }
    }
}

/// The first error rule that matches, as an outcome.
pub(super) fn failure(rules: &[ErrorRule], answer: &Value, reference: &str, response: &Response) -> Option<Outcome> {
    let rule = matching(rules, answer, reference, response)?;
    let said = rule.message.as_ref().and_then(|place| place.pointer.get(answer, reference)).and_then(told);
    let message = match said {
        Some(said) => format!("HTTP {}: {said}", response.status),
        None => format!("HTTP {}", response.status),
    };
    let refused = |whose, park, message| Outcome::CredentialsRejected { whose, park, message };
    Some(match rule.means {
        ErrorMeaning::NotFound => Outcome::NotFound { message },
        ErrorMeaning::TooEarly => Outcome::TooEarly,
        ErrorMeaning::Throttled => Outcome::RateLimited { wait: response.retry_after },
        ErrorMeaning::RefusedAccount => refused(Whose::Account, false, message),
        ErrorMeaning::RefusedRow => refused(Whose::Row, false, message),
        ErrorMeaning::RefusedRowPark => refused(Whose::Row, true, message),
        ErrorMeaning::RequestFailed => Outcome::RequestFailed { message },
        ErrorMeaning::ServerError => Outcome::ServerError { status: response.status, wait: response.retry_after },
    })
}

/// The first error rule that matches.
pub(super) fn matching<'r>(rules: &'r [ErrorRule], answer: &Value, reference: &str, response: &Response) -> Option<&'r ErrorRule> {
    let matches = |rule: &&ErrorRule| {
        (rule.http.is_empty() || rule.http.contains(&response.status))
            && rule.when.as_ref().is_none_or(|test| test.holds(answer, reference))
    };
    rules.iter().find(matches)
}

fn unusable(why: String) -> Outcome {
    Outcome::Unusable { why }
}

/// Text, a number's digits, or true or false.
fn told(value: &Value) -> Option<String> {
    match value {
        Value::Bool(flag) => Some(flag.to_string()),
        value => wire::scalar(value),
    }
}

/// Whether an identifier is ours: text or a number, letter by letter.
fn is_ours(found: &Value, is: impl Fn(&str) -> bool) -> bool {
    match found {
        Value::String(text) => is(text),
        Value::Number(number) => is(number.as_str()),
        _ => false,
    }
}

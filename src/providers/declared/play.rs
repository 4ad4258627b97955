//! A declared provider from its own side: what a request that comes in asks about, and what the
//! file's examples answer.
//!
//! For the simulator. A template that makes a request is read backwards here, so that every
//! identifier and every credential is checked; what a signature must be is computed anew.

use super::account::{Account, Row, Scope};
use super::examples::Example;
use super::file::File;
use super::message::{Body, Json, Message};
use super::template::{Name, Part, Template};
use super::{Declaration, request};
use crate::domain::Floors;
use chrono::{DateTime, Utc};
use percent_encoding::percent_decode_str;
use serde_json::Value;
use std::collections::BTreeMap;

/// A request as it came in; the path without the address that stands before the provider's own.
pub struct Came<'c> {
    /// In capital letters.
    pub method: &'c str,
    /// As it was sent, without the query.
    pub path: &'c str,
    /// Decoded.
    pub query: &'c [(String, String)],
    /// Names in lower case.
    pub headers: &'c [(String, String)],
    /// The body.
    pub body: &'c str,
    /// When it came.
    pub at: DateTime<Utc>,
    /// The tokens that were given away and are good.
    pub tokens: &'c [String],
}

/// What a request turns out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Recognised {
    /// For a transaction's status.
    Status(Known),
    /// For an access token.
    Token,
    /// None of this provider's.
    Unknown,
}

/// A transaction that was polled: its reference, and the params that the request carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The reference.
    pub reference: String,
    params: BTreeMap<usize, String>,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A credential, or what is made of one, is not as it must be.
    Credentials(String),
    /// It has not the declared form.
    Form(String),
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The HTTP code.
    pub http: u16,
    /// Header names and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

/// What templates were read to stand for.
#[derive(Default)]
struct Captures(BTreeMap<Name, String>);

impl Declaration {
    /// What a request is. The error says why it is refused.
    pub fn recognise(&self, came: &Came<'_>) -> Result<Recognised, Refused> {
        let file = &self.file;
        if let Some(token) = &file.token
            && read_path(&token.message, came).is_some()
        {
            return recognise(file, &token.message, came, true);
        }
        if read_path(&file.request, came).is_some() { recognise(file, &file.request, came, false) } else { Ok(Recognised::Unknown) }
    }

    /// What the example of that name answers about a transaction; by default the first that
    /// succeeds. `None`: there is none of the name.
    #[must_use]
    pub fn told(&self, example: Option<&str>, known: &Known) -> Option<Told> {
        let statuses = || self.file.examples.iter().filter(|example| !example.is_token);
        let by_name = |name: &str| statuses().find(|example| slug(&example.name) == name);
        let success = || statuses().find(|example| example.expect.outcome.as_deref() == Some("succeeded"));
        let example = example.map_or_else(|| success().or_else(|| statuses().next()), by_name)?;
        Some(Told { body: about(&self.file, example, known), ..told(example) })
    }

    /// The answer to a request for a token, with this token in it.
    #[must_use]
    pub fn told_token(&self, token: &str) -> Option<Told> {
        let declared = self.file.token.as_ref()?;
        let is_success = |example: &&Example| example.is_token && example.expect.token.is_some();
        let example = self.file.examples.iter().find(is_success)?;
        let mut answer: Value = serde_json::from_str(&example.body).ok()?;
        declared.value.pointer.change(&mut answer, "", |value| *value = token.into());
        Some(Told { body: answer.to_string(), ..told(example) })
    }

    /// The answer to what comes too early, where the file has one.
    #[must_use]
    pub fn told_early(&self, known: &Known) -> Option<Told> {
        let example = self.file.examples.iter().find(|example| example.expect.outcome.as_deref() == Some("too_early"))?;
        Some(Told { body: about(&self.file, example, known), ..told(example) })
    }

    /// The names of the examples as references choose them.
    #[must_use]
    pub fn scripts(&self) -> Vec<String> {
        self.file.examples.iter().filter(|example| !example.is_token).map(|example| slug(&example.name)).collect()
    }

    /// The outcome that an example expects, by the name that references choose it by.
    #[must_use]
    pub fn expected(&self, script: &str) -> Option<&str> {
        let example = self.file.examples.iter().find(|example| !example.is_token && slug(&example.name) == script)?;
        example.expect.outcome.as_deref()
    }

    /// What must be kept between two requests.
    #[must_use]
    pub fn rules(&self) -> Floors {
        self.file.documented.floors
    }

    /// The account, the options and the params of the examples, and the amount and currency that
    /// their successes are about: what a client of the simulator must send.
    #[must_use]
    pub fn played(&self) -> Played {
        let asked = self.file.examples.iter().find(|example| !example.is_token).map(|example| example.asked.clone());
        let Some(asked) = asked else { return Played::default() };
        Played {
            account: asked.account,
            options: asked.options,
            params: asked.params,
            amount: asked.amount,
            currency: asked.currency,
        }
    }
}

/// See [`Declaration::played`].
#[derive(Clone, Debug, Default)]
pub struct Played {
    /// Keys and values of the account.
    pub account: BTreeMap<String, String>,
    /// Options and their values.
    pub options: BTreeMap<String, String>,
    /// The params of a row.
    pub params: Value,
    /// The amount of a success.
    pub amount: Option<String>,
    /// Its currency.
    pub currency: Option<String>,
}

/// A name as a reference carries it: small letters, digits and single hyphens.
fn slug(name: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
    let text: String = name.chars().map(plain).collect();
    text.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

fn told(example: &Example) -> Told {
    Told { http: example.http, headers: example.headers.clone().into_iter().collect(), body: example.body.clone() }
}

/// An example's body about another transaction than its own.
fn about(file: &File, example: &Example, known: &Known) -> String {
    let Ok(mut answer) = serde_json::from_str::<Value>(&example.body) else { return example.body.clone() };
    let (own, reference) = (&example.asked.reference, &known.reference);
    rename(&mut answer, own, reference);
    let account = Account::open(file, &example.asked.settings(file));
    let Ok(account) = account else { return answer.to_string() };
    let params = (0..file.params.len()).map(|index| known.params.get(&index).map(String::as_str)).collect();
    let row = Row { reference, params };
    let scope = Scope::new(&account, Some(&row), None, example.asked.now, "");
    for identity in &file.answer.identity {
        let Ok(Some(text)) = scope.text(&identity.is, super::account::Target::Plain) else { continue };
        identity.at.pointer.change(&mut answer, reference, |value| {
            let number = value.is_number().then(|| text.parse().ok().map(Value::Number)).flatten();
            *value = number.unwrap_or_else(|| text.into());
        });
    }
    answer.to_string()
}

/// The reference wherever it stands, as a value or as a key.
fn rename(value: &mut Value, own: &str, other: &str) {
    match value {
        Value::String(text) if text == own => other.clone_into(text),
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, own, other)),
        Value::Object(map) => {
            map.values_mut().for_each(|value| rename(value, own, other));
            if let Some(inner) = map.remove(own) {
                map.insert(other.to_owned(), inner);
            }
        }
        _ => {}
    }
}

fn read_path(message: &Message, came: &Came<'_>) -> Option<Captures> {
    let mut captures = Captures::default();
    let is_method = request::method(message.method) == came.method;
    (is_method && captures.read(&message.path.parts, came.path, true)).then_some(captures)
}

fn recognise(file: &File, message: &Message, came: &Came<'_>, is_token: bool) -> Result<Recognised, Refused> {
    let form = |what: String| Refused::Form(what);
    let mut captures = read_path(message, came).unwrap_or_default();
    captures.pairs("query", &message.query, came.query)?;
    for (name, template) in &message.headers {
        let mut values = came.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value);
        match (values.next(), values.next()) {
            (Some(value), None) if captures.read(&template.parts, value, false) => {}
            (Some(_), None) => return Err(Refused::Credentials(format!("the header {name} has not its declared form"))),
            (None, _) if file.may_be_absent(template) => {}
            (None, _) => return Err(form(format!("the header {name} is missing"))),
            (Some(_), Some(_)) => return Err(form(format!("the header {name} came twice"))),
        }
    }
    captures.body(file, &message.body, came)?;
    let Some(example) = file.examples.iter().find(|example| example.is_token == is_token).or(file.examples.first()) else {
        return Err(form("the file has no example".into()));
    };
    let account = Account::open(file, &example.asked.settings(file)).map_err(form)?;
    captures.check(file, &account, message, came)?;
    if is_token {
        return Ok(Recognised::Token);
    }
    let reference = captures.0.get(&Name::Reference).cloned();
    let params: BTreeMap<usize, String> = captures
        .0
        .iter()
        .filter_map(|(name, text)| if let Name::Param(index) = name { Some((*index, text.clone())) } else { None })
        .collect();
    // Requests by params alone are distinguished by them.
    let reference = reference.or_else(|| params.values().next().cloned());
    let reference = reference.filter(|text| !text.is_empty()).ok_or_else(|| form("nothing is asked about".into()))?;
    Ok(Recognised::Status(Known { reference, params: file.with_defaults(params, example) }))
}

impl File {
    /// Whether what a template makes may be left out, because it names something optional.
    fn may_be_absent(&self, template: &Template) -> bool {
        template.names().flat_map(|name| self.reach(name)).any(|name| match name {
            Name::Param(index) => !self.params[index].required,
            Name::Account(index) => !self.account[index].required,
            Name::Option(index) => !self.options[index].required,
            _ => false,
        })
    }

    /// Params that a request does not carry, but answers repeat, are those of the example.
    fn with_defaults(&self, mut params: BTreeMap<usize, String>, example: &Example) -> BTreeMap<usize, String> {
        for (index, key) in self.params.iter().enumerate() {
            if let Ok(Some(text)) = crate::wire::optional_param(&example.asked.params, &key.name) {
                params.entry(index).or_insert_with(|| text.to_owned());
            }
        }
        params
    }
}

impl Captures {
    /// Reads a template backwards. `false` where the text cannot have come of it.
    fn read(&mut self, parts: &[Part], text: &str, is_path: bool) -> bool {
        let Some((part, rest)) = parts.split_first() else { return text.is_empty() };
        let name = match part {
            Part::Text(plain) => return text.strip_prefix(plain.as_str()).is_some_and(|text| self.read(rest, text, is_path)),
            Part::Placeholder(name) => *name,
        };
        // As much as there is up to where what follows can begin; in a path no further than the segment.
        let segment = if is_path { text.find('/').unwrap_or(text.len()) } else { text.len() };
        let ends = (0..=segment).rev().filter(|end| text.is_char_boundary(*end));
        for end in ends {
            let begins = match rest.first() {
                Some(Part::Text(plain)) => text[end..].starts_with(plain.as_str()),
                Some(Part::Placeholder(_)) => true,
                None => end == text.len(),
            };
            if !begins {
                continue;
            }
            let Some(value) = decoded(&text[..end], is_path) else { continue };
            if self.0.get(&name).is_some_and(|known| *known != value) {
                continue;
            }
            let before = self.0.insert(name, value);
            if self.read(rest, &text[end..], is_path) {
                return true;
            }
            match before {
                Some(before) => drop(self.0.insert(name, before)),
                None => drop(self.0.remove(&name)),
            }
        }
        false
    }

    fn pairs(&mut self, what: &str, declared: &[(String, Template)], came: &[(String, String)]) -> Result<(), Refused> {
        for (key, _) in came {
            if !declared.iter().any(|(known, _)| known == key) {
                return Err(Refused::Form(format!("the {what} has more than is declared")));
            }
        }
        for (key, template) in declared {
            let mut values = came.iter().filter(|(known, _)| known == key);
            match (values.next(), values.next()) {
                (Some((_, value)), None) if self.read(&template.parts, value, false) => {}
                (None, _) => {}
                _ => return Err(Refused::Form(format!("{key} in the {what} has not its declared form"))),
            }
        }
        Ok(())
    }

    fn body(&mut self, file: &File, body: &Body, came: &Came<'_>) -> Result<(), Refused> {
        let wrong = |what: &str| Err(Refused::Form(format!("the body {what}")));
        match body {
            Body::None if came.body.is_empty() => Ok(()),
            Body::None => wrong("is not empty"),
            Body::Form(pairs) => {
                let came: Vec<(String, String)> = came.body.split('&').filter(|pair| !pair.is_empty()).filter_map(pair).collect();
                self.pairs("body", pairs, &came)
            }
            Body::Json(json) => match serde_json::from_str(came.body) {
                Ok(value) if self.json(file, json, &value) => Ok(()),
                Ok(_) => wrong("has not its declared form"),
                Err(_) => wrong("is no JSON"),
            },
        }
    }

    fn json(&mut self, file: &File, declared: &Json, came: &Value) -> bool {
        match (declared, came) {
            (Json::Text(template), Value::String(text)) => self.read(&template.parts, text, false),
            (Json::Constant(constant), came) => constant == came,
            (Json::List(items), Value::Array(came)) => {
                items.len() == came.len() && items.iter().zip(came).all(|(item, came)| self.json(file, item, came))
            }
            (Json::Object(entries), Value::Object(came)) => {
                came.keys().all(|key| entries.iter().any(|(known, _)| known == key))
                    && entries.iter().all(|(key, json)| match (came.get(key), json) {
                        (Some(came), json) => self.json(file, json, came),
                        (None, Json::Text(template)) => file.may_be_absent(template),
                        (None, _) => false,
                    })
            }
            _ => false,
        }
    }

    /// Whether what was read is what it must be: the account's own, a token that was given away,
    /// and signatures that fit.
    fn check(&self, file: &File, account: &Account<'_>, message: &Message, came: &Came<'_>) -> Result<(), Refused> {
        let reference = self.0.get(&Name::Reference).map_or("", String::as_str);
        let params = (0..file.params.len()).map(|index| self.0.get(&Name::Param(index)).map(String::as_str)).collect();
        let row = Row { reference, params };
        let token = self.0.get(&Name::Token);
        if let Some(token) = token
            && !came.tokens.contains(token)
        {
            return Err(Refused::Credentials("the access token is not one that was given away, or has run out".into()));
        }
        let scope = Scope::new(account, Some(&row), token.map(String::as_str), came.at, request::method(message.method));
        drop(scope.path.set(came.path.to_owned()));
        drop(scope.body.set(came.body.to_owned()));
        for (name, text) in &self.0 {
            if let Name::Value(index) = name
                && file.values[*index].is_fresh()
            {
                scope.preset(*index, text);
            }
        }
        for (name, text) in &self.0 {
            let is_known = match name {
                Name::Account(_) | Name::Option(_) => true,
                // What is made of a time or a number that was not sent cannot be known.
                Name::Value(_) => file.reach(*name).iter().all(|name| match name {
                    Name::Value(index) => !file.values[*index].is_fresh() || self.0.contains_key(name),
                    Name::Param(_) | Name::Reference => self.0.contains_key(name),
                    _ => true,
                }),
                _ => false,
            };
            if is_known && !scope.stands_for(*name, text) {
                return Err(Refused::Credentials(format!("{} is not what it must be", file.names.text(*name))));
            }
        }
        Ok(())
    }
}

fn decoded(text: &str, is_encoded: bool) -> Option<String> {
    if is_encoded { percent_decode_str(text).decode_utf8().ok().map(Into::into) } else { Some(text.to_owned()) }
}

fn pair(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    Some((decoded(key, true)?, decoded(value, true)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACME: &str = include_str!("../../../tests/fixtures/declared/acme.toml");

    fn acme() -> Declaration {
        Declaration::inspect("acme.toml", ACME.as_bytes()).and_then(super::super::Inspection::accept).expect("in order")
    }

    fn came<'c>(path: &'c str, headers: &'c [(String, String)], query: &'c [(String, String)], body: &'c str) -> Came<'c> {
        Came { method: "POST", path, query, headers, body, at: DateTime::UNIX_EPOCH, tokens: &[] }
    }

    /// What the provider itself would send about a reference.
    fn sent(reference: &str) -> (String, Vec<(String, String)>, String) {
        let acme = acme();
        let example = &acme.file.examples[0];
        let account = Account::open(&acme.file, &example.asked.settings(&acme.file)).expect("an account");
        let asked = super::super::examples::Asked { reference: reference.into(), ..example.asked.clone() };
        let built = account.status_request(asked.ask()).expect("a request");
        let path = built.url.strip_prefix("https://api.acme.example/v2").expect("the address").split('?').next().expect("a path");
        let headers = built.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        (path.to_owned(), headers, built.body.expect("a body"))
    }

    #[test]
    fn a_request_is_recognised_by_what_made_it() {
        let (path, headers, body) = sent("ORDER/7 é");
        let query = [("wallet".to_owned(), "w-1".to_owned())];
        let recognised = acme().recognise(&came(&path, &headers, &query, &body));
        let Ok(Recognised::Status(known)) = recognised else { panic!("{recognised:?}") };
        assert_eq!(known.reference, "ORDER/7 é");
        let told = acme().told(Some("paid-not-captured"), &known).expect("an example");
        assert!(told.body.contains(r#""reference":"ORDER/7 é""#) && told.http == 200, "{told:?}");
        assert_eq!(acme().recognise(&came("/elsewhere", &headers, &query, &body)), Ok(Recognised::Unknown));
    }

    #[test]
    fn whatever_is_not_as_declared_is_refused() {
        let (path, headers, body) = sent("ORDER-7");
        let query = [("wallet".to_owned(), "w-1".to_owned())];
        let acme = acme();
        for index in 0..headers.len() {
            let mut other = headers.clone();
            if ["x-key", "x-signature", "x-stamp"].contains(&other[index].0.as_str()) {
                other[index].1 = format!("{}0", other[index].1);
                let refused = acme.recognise(&came(&path, &other, &query, &body));
                assert!(matches!(refused, Err(Refused::Credentials(_))), "{:?}: {refused:?}", other[index]);
            }
        }
        for (query, body) in [
            (&[("wallet".to_owned(), "w-1".to_owned()), ("x".to_owned(), "y".to_owned())][..], body.clone()),
            (&query[..], body.replace("ORDER-7", "ORDER-8")),
            (&query[..], body.replace("true", "false")),
            (&query[..], String::new()),
        ] {
            let refused = acme.recognise(&came(&path, &headers, query, &body));
            assert!(refused.is_err(), "{query:?} {body}: {refused:?}");
        }
        let other = path.replace("m-1", "m-2");
        assert!(matches!(acme.recognise(&came(&other, &headers, &query, &body)), Err(Refused::Credentials(_))));
    }

    #[test]
    fn examples_are_chosen_by_a_plain_name() {
        assert_eq!(slug("Paid, not captured!"), "paid-not-captured");
        assert!(acme().scripts().contains(&"the-payer-has-to-act".to_owned()));
        assert_eq!(acme().expected("declined"), Some("failed"));
    }
}

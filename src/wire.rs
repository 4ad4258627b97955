//! Requests and responses as plain data, and what every provider needs of both: strict JSON, percent-encoding, redaction.

use crate::domain::{Outcome, Whose};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// An HTTP request as a value. Its parts may hold secrets: `Debug` shows the method alone.
pub struct Request {
    /// The method.
    pub method: Method,
    /// The whole URL.
    pub url: String,
    /// Header names (lower case) and values.
    pub headers: Vec<(&'static str, String)>,
    /// The body, JSON where there is one.
    pub body: Option<String>,
}

/// The two methods that status APIs use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// POST.
    Post,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("method", &self.method).finish_non_exhaustive()
    }
}

/// An HTTP response as a value.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// `Retry-After`, from seconds or an HTTP date, cut to 24 h.
    pub retry_after: Option<Duration>,
    /// The whole body, decoded.
    pub body: Bytes,
}

/// Why there is no response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Not answered, or not completely, within the time-out.
    Timeout,
    /// The connection could not be made, or broke. Says how, without the URL.
    Connection(String),
    /// The body is longer than [`MAX_BODY`].
    TooLong,
}

/// The most that is read of an answer, after decoding.
pub const MAX_BODY: usize = 1 << 20;
/// The most of an answer that is kept as evidence.
pub const MAX_EVIDENCE: usize = 4096;
/// The longest number that is believed in an answer; no amount is longer, and PostgreSQL would refuse absurd ones.
const MAX_NUMBER: usize = 64;

/// Everything but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A percent-encoded path segment or query value.
#[must_use]
pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// A percent-encoded path segment. Errors where a URL cannot carry it: `.` and `..` mean another path, however they are encoded.
pub fn segment(name: &str, text: &str) -> Result<String, String> {
    if text == "." || text == ".." {
        return Err(format!("{name} {text:?} cannot stand in a URL path"));
    }
    Ok(encoded(text))
}

/// The text under `key` in a row's `params`, checked for presence, type and control characters; the error names the mend.
pub fn param<'a>(params: &'a Value, path: &str) -> Result<&'a str, String> {
    optional_param(params, path)?.ok_or_else(|| format!("params.{path} is missing"))
}

/// As [`param`], where the document says optional: absent and `null` are `None`.
pub fn optional_param<'a>(params: &'a Value, path: &str) -> Result<Option<&'a str>, String> {
    let mut value = params;
    for key in path.split('.') {
        value = match value {
            Value::Object(map) => map.get(key).unwrap_or(&Value::Null),
            Value::Null => return Ok(None),
            _ => return Err(format!("params.{path}: what should hold {key:?} is not an object")),
        };
    }
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Err(format!("params.{path} is empty")),
        Value::String(text) if text.chars().any(char::is_control) => Err(format!("params.{path} has a control character")),
        Value::String(text) => Ok(Some(text)),
        _ => Err(format!("params.{path} is not text")),
    }
}

/// The body as strict JSON: UTF-8 without a byte-order mark, no duplicate keys, no absurd numbers, nothing after it.
///
/// The error says what is wrong, without quoting the body.
pub fn json(body: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(body).map_err(|_| "the body is not UTF-8")?;
    if text.trim().is_empty() {
        return Err("the body is empty".into());
    }
    if text.starts_with('\u{feff}') {
        return Err("the body begins with a byte-order mark".into());
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| {
        format!("the body is not acceptable JSON (line {}, column {}: {})", error.line(), error.column(), kind(&error))
    })
}

/// The body as strict JSON and as the provider's documented form. The error says what is wrong, without quoting the body.
pub fn form<T: DeserializeOwned>(body: &[u8]) -> Result<(T, Value), String> {
    let value = json(body)?;
    match Object::deserialize(&value) {
        Ok(Object(form)) => Ok((form, value)),
        Err(_) => Err("the answer has not the documented form".into()),
    }
}

/// A JSON object of a documented form. A derived reader alone would also take an array, its elements for the fields in order.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(entries))
    }
}

/// Text, or a number's digits: for fields that are documented as the one and seen as the other.
#[must_use]
pub fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn kind(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Eof => "cut short",
        serde_json::error::Category::Data => "a duplicate key or a number beyond reason",
        _ => "syntax",
    }
}

/// What a response means whose body cannot be read: its HTTP status may still speak about the provider, never about a payment.
#[must_use]
pub fn unreadable(response: &Response, why: String) -> Outcome {
    match response.status {
        429 => Outcome::RateLimited { wait: response.retry_after },
        401 => Outcome::CredentialsRejected { whose: Whose::Account, park: false, message: "HTTP 401".into() },
        500.. => Outcome::ServerError { status: response.status, wait: response.retry_after },
        300..=399 => Outcome::Unusable { why: format!("HTTP {}: redirects are not followed", response.status) },
        status => Outcome::Unusable { why: format!("HTTP {status}: {why}") },
    }
}

/// A number from an answer as an exact decimal; absent is `None`. Errors where it is no amount.
pub fn amount(number: Option<&Number>) -> Result<Option<Decimal>, String> {
    number.map(|number| decimal(number.as_str())).transpose()
}

/// Text as an exact decimal.
pub fn decimal(text: &str) -> Result<Decimal, String> {
    Decimal::from_str_exact(text).or_else(|_| Decimal::from_scientific(text)).map_err(|_| "no amount".to_owned())
}

/// Checks a configured value that is sent as a header: visible ASCII only.
pub fn header_value(key: &str, value: &str) -> Result<(), String> {
    if value.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(format!("{key} has characters that no header can carry"))
    }
}

/// Builds a [`Value`] and refuses duplicate keys: two values for one key are two answers.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Strict)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            // With exact numbers serde_json hands a number over as a map with this one key.
            if key == NUMBER {
                return number(&entries.next_value::<String>()?).map(Value::Number);
            }
            let value = entries.next_value_seed(Strict)?;
            if map.insert(key, value).is_some() {
                return Err(de::Error::custom("duplicate key"));
            }
        }
        Ok(Value::Object(map))
    }
}

const NUMBER: &str = "$serde_json::private::Number";

fn number<E: de::Error>(text: &str) -> Result<Number, E> {
    let exponent = text.split_once(['e', 'E']).map_or(Ok(0), |(_, exponent)| exponent.parse::<i32>());
    if text.len() > MAX_NUMBER || !exponent.is_ok_and(|exponent| exponent.abs() <= 64) {
        return Err(E::custom("number"));
    }
    text.parse().map_err(|_| E::custom("number"))
}

/// What must not be kept of an answer: secrets by value, also as JSON or a URL spells them, and payer data by key.
pub struct Redaction<'a> {
    secrets: Vec<&'a str>,
    keys: &'static [&'static str],
}

/// What stands where a secret was.
pub const REDACTED: &str = "[redacted]";
/// A secret shorter than this would blot out ordinary text.
const SHORTEST_SECRET: usize = 4;

/// The most of a provider's word or message that is kept.
const MAX_LINE: usize = 512;

impl<'a> Redaction<'a> {
    /// Scrubs these secret values wherever they appear, and drops the values of these keys at any depth.
    #[must_use]
    pub fn new(mut secrets: Vec<&'a str>, keys: &'static [&'static str]) -> Self {
        secrets.retain(|secret| secret.len() >= SHORTEST_SECRET);
        // A secret that is part of another one must not break it up before it is found.
        secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { secrets, keys }
    }

    /// A provider's word or message: scrubbed, on one line, cut to a length that a person reads.
    #[must_use]
    pub fn line(&self, text: &str) -> String {
        let clean = self.text(text);
        let line = clean.chars().map(|character| if character.is_control() { ' ' } else { character });
        if clean.len() <= MAX_LINE { line.collect() } else { line.take(MAX_LINE).chain(['…']).collect() }
    }

    /// The text without secrets, and without NUL characters, which PostgreSQL cannot store.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        let mut clean = text.replace('\0', "\u{fffd}");
        for secret in &self.secrets {
            scrub(&mut clean, secret);
            if clean.contains('\\') {
                let escaped = secret.replace('\\', "\\\\").replace('"', "\\\"");
                scrub(&mut clean, &escaped);
                scrub(&mut clean, &escaped.replace('/', "\\/"));
            }
            if clean.contains('%') {
                scrub(&mut clean, &encoded(secret));
            }
        }
        clean
    }

    /// The JSON without secrets and without payer data.
    #[must_use]
    pub fn json(&self, mut value: Value) -> Value {
        self.clean(&mut value);
        value
    }

    /// In place: there is hardly ever anything to scrub.
    fn clean(&self, value: &mut Value) {
        match value {
            Value::String(text) if self.may_touch(text) => *text = self.text(text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.clean(value)),
            Value::Object(map) => {
                for (key, value) in map.iter_mut() {
                    if self.keys.contains(&key.as_str()) {
                        *value = REDACTED.into();
                    } else {
                        self.clean(value);
                    }
                }
                let touched: Vec<String> = map.keys().filter(|key| self.may_touch(key)).cloned().collect();
                for key in touched {
                    if let Some(value) = map.remove(&key) {
                        map.insert(self.text(&key), value);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether [`Self::text`] may change the text: false only when it certainly does not.
    fn may_touch(&self, text: &str) -> bool {
        text.contains(['\0', '\\', '%']) || self.secrets.iter().any(|secret| text.contains(secret))
    }

    /// An answer's body as it may be kept: as JSON where it is short JSON, else the beginning of its text. What is cut is scrubbed
    /// before, so that no piece of a secret is left at the cut.
    ///
    /// In a broken body keys cannot be recognised, so payer data might survive in it: only its length is kept when the provider's
    /// answers carry any.
    #[must_use]
    pub fn body(&self, body: &[u8]) -> Value {
        match json(body) {
            Ok(value) if body.len() <= MAX_EVIDENCE => self.json(value),
            Ok(value) => Value::String(beginning(self.json(value).to_string())),
            Err(_) if !self.keys.is_empty() => Value::String(format!("[{} bytes that are no JSON]", body.len())),
            Err(_) => Value::String(beginning(self.text(&String::from_utf8_lossy(body)))),
        }
    }
}

/// Replaces a secret.
fn scrub(text: &mut String, secret: &str) {
    if text.contains(secret) {
        *text = text.replace(secret, REDACTED);
    }
}

/// As much of the text as is kept of an answer.
fn beginning(mut text: String) -> String {
    let end = (0..=MAX_EVIDENCE.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_strictly() {
        assert!(json(br#"{"a":1,"b":{"a":[10.50,true,null]}}"#).is_ok());
        for broken in [
            &b""[..],
            b" \n",
            b"<html></html>",
            br#"{"a":1"#,
            br#"{"a":1,"a":2}"#,
            br#"{"a":{"b":1,"b":1}}"#,
            br#"{"a":1} x"#,
            b"\xef\xbb\xbf{}",
            b"{\"a\":\"\xff\"}",
            br#"{"a":1e999999}"#,
            br#"{"a":"\ud800"}"#,
            br#"{"$serde_json::private::Number":"1","a":2}"#,
        ] {
            assert!(json(broken).is_err(), "{:?}", String::from_utf8_lossy(broken));
        }
        assert!(json(format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)).as_bytes()).is_err(), "deep nesting");
    }

    #[test]
    fn an_array_is_no_object_even_if_its_elements_fit_the_fields() {
        #[derive(Deserialize)]
        struct Form {
            word: String,
            inner: Option<Object<Inner>>,
        }
        #[derive(Debug, Deserialize)]
        struct Inner {
            amount: Number,
        }
        let (Form { word, inner }, _) = form(br#"{"inner":{"amount":1.50},"word":"PAID"}"#).expect("the documented form");
        assert_eq!((word.as_str(), inner.expect("there").0.amount.to_string().as_str()), ("PAID", "1.50"));
        for array in [&br#"["PAID",{"amount":1.50}]"#[..], br#"{"word":"PAID","inner":[1.50]}"#] {
            assert!(form::<Form>(array).is_err(), "{:?}", String::from_utf8_lossy(array));
        }
    }

    #[test]
    fn numbers_keep_their_digits() {
        let value = json(br#"{"amount":12345678901234567890.10}"#).expect("valid");
        assert_eq!(value["amount"].to_string(), "12345678901234567890.10");
    }

    #[test]
    fn a_reference_cannot_leave_its_path_segment() {
        assert_eq!(segment("reference", "../a b/ü?x#y").as_deref(), Ok("..%2Fa%20b%2F%C3%BC%3Fx%23y"));
        assert!(segment("reference", "..").is_err());
    }

    #[test]
    fn secrets_are_scrubbed_by_value_and_payer_data_by_key() {
        let redaction = Redaction::new(vec!["s3cret-token"], &["customer_name"]);
        let kept = redaction.body(br#"{"x":["a s3cret-token b\u0000"],"s3cret-token":1,"customer_name":"JOHN DOE"}"#);
        let text = kept.to_string();
        assert!(!text.contains("s3cret") && !text.contains("JOHN") && !text.contains("u0000"), "{text}");
    }

    #[test]
    fn a_secret_is_found_as_json_and_urls_spell_it() {
        let redaction = Redaction::new(vec!["a/b\"Q+\\d"], &[]);
        for spelt in [r#"a/b"Q+\d"#, r#"{"x":"a/b\"Q+\\d"}"#, r#"{"x":"a\/b\"Q+\\d"}"#, "?x=a%2Fb%22Q%2B%5Cd"] {
            let clean = redaction.text(spelt);
            assert!(clean.contains(REDACTED) && !clean.contains('Q'), "{clean}");
        }
    }

    #[test]
    fn what_is_too_long_is_scrubbed_before_it_is_cut() {
        let redaction = Redaction::new(vec!["s3cret-token"], &[]);
        let after = "é".repeat(100);
        for before in MAX_EVIDENCE - 30..MAX_EVIDENCE {
            let (text, json) = ("x".repeat(before), "é".repeat(before / 2));
            for body in [format!("{text}s3cret-token{after}"), format!("[\"{json}s3cret-token{after}\",1]")] {
                let kept = redaction.body(body.as_bytes());
                let kept = kept.as_str().expect("text");
                assert!((MAX_EVIDENCE - 3..=MAX_EVIDENCE).contains(&kept.len()) && !kept.contains("s3c"), "{before}: {kept}");
            }
        }
    }

    #[test]
    fn payer_data_is_dropped_by_key_however_long_the_answer() {
        let redaction = Redaction::new(Vec::new(), &["customer_name"]);
        let body = format!(r#"{{"customer_name":"JOHN DOE","z":"{}"}}"#, "x".repeat(MAX_EVIDENCE));
        assert!(redaction.body(body.as_bytes()).as_str().is_some_and(|text| text.starts_with(r#"{"customer_name":"[redacted]""#)));
        let broken = redaction.body(br#"{"customer_name":"JOHN DOE""#);
        assert_eq!(broken, "[27 bytes that are no JSON]");
    }
}

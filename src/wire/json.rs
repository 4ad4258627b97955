//! An answer's body as strict JSON, as the provider's documented form, and the figures in it.
//!
//! What decides is read strictly; every other field is taken only if it has a usable form ([`Lenient`]).

use crate::domain::Amount;
use rust_decimal::Decimal;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

/// The longest number that is believed in an answer; no amount is longer, and PostgreSQL would
/// refuse absurd ones.
const MAX_NUMBER: usize = 64;
/// The largest exponent that is believed, either way.
const MAX_EXPONENT: i32 = 64;
/// What an exact decimal has room for.
const MAX_DIGITS: usize = 28;
const MAX_SCALE: i32 = 28;

/// The body as strict JSON: UTF-8 without a byte-order mark, no duplicate keys, no absurd numbers,
/// nothing after it.
///
/// The error says what is wrong, without quoting the body.
pub fn json(body: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(body).map_err(|_| "the body is not UTF-8")?;
    if text.trim().is_empty() {
        return Err("the body is empty".into());
    }
    if text.contains(PARSERS_OWN) {
        return Err("the body is not acceptable JSON (a key that is nobody's)".into());
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

/// The body as strict JSON and as the provider's documented form. The error says what is wrong,
/// without quoting the body.
pub fn form<T: DeserializeOwned>(body: &[u8]) -> Result<(T, Value), String> {
    let value = json(body)?;
    match Object::deserialize(&value) {
        Ok(Object(form)) => Ok((form, value)),
        Err(_) => Err("the answer has not the documented form".into()),
    }
}

/// A JSON object of a documented form. A derived reader alone would also take an array, its
/// elements for the fields in order.
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

/// A field that decides nothing: taken where it has a usable form, else left out. It never costs the answer.
///
/// What decides (status words, identifiers, flags of the request, markers of an error) is an
/// `Option` instead: in another form it makes the whole answer unusable. So a form's types say
/// which of its fields are which.
#[derive(Clone, Debug, PartialEq)]
pub struct Lenient<T>(pub Option<T>);

impl<T> Lenient<T> {
    /// What there is.
    #[must_use]
    pub fn as_ref(&self) -> Option<&T> {
        self.0.as_ref()
    }
}

impl<T: AsRef<str>> Lenient<T> {
    /// The text, where there is any.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        self.0.as_ref().map(AsRef::as_ref).filter(|text| !text.trim().is_empty())
    }
}

impl<T> Default for Lenient<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        // By way of an option, so that an absent field is none too.
        let value = Option::<Value>::deserialize(reader)?;
        Ok(Self(value.and_then(|value| T::deserialize(value).ok())))
    }
}

/// Text or a number, as text: for fields that are documented as the one and seen as the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scalar(pub String);

impl AsRef<str> for Scalar {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(reader)?;
        scalar(&value).map(Self).ok_or_else(|| de::Error::custom("neither text nor a number"))
    }
}

/// What an answer says of the amount at this JSON pointer: a number or decimal text, exact.
///
/// Absent and `null` say nothing. Whatever else stands there, or in the place of what should hold
/// it, is an amount that cannot be read: a success over it is not a success over ours.
#[must_use]
pub fn amount_at(answer: &Value, pointer: &str) -> Amount {
    let mut value = answer;
    for key in pointer.split('/').skip(1) {
        let key = key.replace("~1", "/").replace("~0", "~");
        let inner = match value {
            Value::Object(map) => map.get(&key),
            Value::Array(list) if key.parse::<usize>().is_ok() => key.parse::<usize>().ok().and_then(|index| list.get(index)),
            _ => return Amount::Unreadable,
        };
        match inner {
            None | Some(Value::Null) => return Amount::Untold,
            Some(inner) => value = inner,
        }
    }
    scalar(value).and_then(|text| decimal(&text).ok()).map_or(Amount::Unreadable, Amount::Told)
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

/// Decimal text, as JSON writes numbers, exactly. What has more digits than can be compared exactly
/// is refused, not rounded.
pub fn decimal(text: &str) -> Result<Decimal, String> {
    exact(text).ok_or_else(|| "no amount".to_owned())
}

fn exact(text: &str) -> Option<Decimal> {
    if text.len() > MAX_NUMBER {
        return None;
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().ok().filter(|exponent: &i32| exponent.abs() <= MAX_EXPONENT)?;
    let (negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (mantissa, ""),
    };
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut digits = format!("{whole}{fraction}").trim_start_matches('0').to_owned();
    let mut scale = i32::try_from(fraction.len()).ok()? - exponent;
    // Zeros at the end are dropped only where they do not fit: "10.00" stays as it was written.
    while scale > 0 && digits.ends_with('0') && (scale > MAX_SCALE || digits.len() > MAX_DIGITS) {
        digits.pop();
        scale -= 1;
    }
    if digits.is_empty() {
        return Some(Decimal::ZERO);
    }
    while scale < 0 {
        digits.push('0');
        scale += 1;
    }
    let number: i128 = digits.parse().ok()?;
    Decimal::try_from_i128_with_scale(if negative { -number } else { number }, u32::try_from(scale).ok()?).ok()
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
        while let Some(Key(key)) = entries.next_key()? {
            // With exact numbers serde_json hands a number over as a map with one key of its own.
            // `json` has seen to it that no text of the body is taken for such a key, but one that
            // is escaped: that one is no borrowed text.
            let key = match key {
                Cow::Borrowed(NUMBER) => return number(&entries.next_value::<String>()?).map(Value::Number),
                key if key.starts_with(PARSERS_OWN) => return Err(de::Error::custom("key")),
                key => key.into_owned(),
            };
            let value = entries.next_value_seed(Strict)?;
            if map.insert(key, value).is_some() {
                return Err(de::Error::custom("duplicate key"));
            }
        }
        Ok(Value::Object(map))
    }
}

const NUMBER: &str = "$serde_json::private::Number";
/// How the keys begin by which the parser tells its own values apart. In an answer they would be
/// read as something that is not there.
const PARSERS_OWN: &str = "$serde_json::private::";

/// A key, borrowed unless it had to be unescaped.
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
        Ok(Key(Cow::Borrowed(key)))
    }
    fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
        Ok(Key(Cow::Owned(key.to_owned())))
    }
}

fn number<E: de::Error>(text: &str) -> Result<Number, E> {
    let exponent = text.split_once(['e', 'E']).map_or(Ok(0), |(_, exponent)| exponent.parse::<i32>());
    if text.len() > MAX_NUMBER || !exponent.is_ok_and(|exponent| exponent.abs() <= MAX_EXPONENT) {
        return Err(E::custom("number"));
    }
    text.parse().map_err(|_| E::custom("number"))
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
            br#"{"a":1,"\u0061":1}"#,
            br#"{"a":1} x"#,
            b"\xef\xbb\xbf{}",
            b"{\"a\":\"\xff\"}",
            br#"{"a":1e999999}"#,
            br#"{"a":"\ud800"}"#,
        ] {
            assert!(json(broken).is_err(), "{:?}", String::from_utf8_lossy(broken));
        }
        assert!(json(format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)).as_bytes()).is_err(), "deep nesting");
    }

    #[test]
    fn the_parsers_own_key_never_makes_a_number() {
        for body in [
            r#"{"amount":{"$serde_json::private::Number":"10.0"}}"#,
            r#"{"amount":{"$serde_json::private::Number":"10.0","a":2}}"#,
            r#"{"amount":{"\u0024serde_json::private::Number":"10.0"}}"#,
            r#"{"amount":{"$serde_json::private::\u004eumber":"10.0"}}"#,
            r#"{"amount":{"a":1,"$serde_json::private::Number":"10.0"}}"#,
            r#"{"amount":{"a":1,"\u0024serde_json::private::Number":"10.0"}}"#,
            r#"{"amount":{"$serde_json::private::RawValue":"10.0"}}"#,
            r#"{"amount":{"\u0024serde_json::private::RawValue":"10.0"}}"#,
        ] {
            let read = json(body.as_bytes());
            let amount = read.as_ref().map(|value| amount_at(value, "/amount"));
            assert!(!matches!(amount, Ok(Amount::Told(_))), "{body}: {read:?}");
            assert!(read.is_err(), "{body}");
        }
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
    fn a_field_that_decides_nothing_never_costs_the_answer() {
        #[derive(Deserialize)]
        struct Form {
            word: Option<String>,
            #[serde(rename = "message")]
            message: Lenient<String>,
            code: Lenient<Scalar>,
            inner: Lenient<Object<Inner>>,
        }
        #[derive(Debug, Deserialize)]
        struct Inner {
            text: Lenient<String>,
        }
        let read = |rest: &str| form::<Form>(format!(r#"{{"word":"PAID"{rest}}}"#).as_bytes()).map(|(form, _)| form);
        let whole = read(r#","message":"done","code":7.10,"inner":{"text":"x"}"#).expect("the documented form");
        assert_eq!((whole.word.as_deref(), whole.message.text(), whole.code.text()), (Some("PAID"), Some("done"), Some("7.10")));
        assert_eq!(whole.inner.as_ref().and_then(|Object(inner)| inner.text.text()), Some("x"));
        for odd in ["null", "{}", "[]", "[\"x\"]", "true", "\"\"", "\" \""] {
            let odd = read(&format!(r#","message":{odd},"code":{odd},"inner":{odd}"#)).expect("it decides nothing");
            assert_eq!((odd.message.text(), odd.code.text()), (None, None));
        }
        assert!(read("").is_ok_and(|form| form.message.0.is_none() && form.inner.0.is_none()), "absent");
        assert!(form::<Form>(br#"{"word":1}"#).is_err(), "what decides does cost it");
    }

    #[test]
    fn numbers_keep_their_digits() {
        let value = json(br#"{"amount":12345678901234567890.10}"#).expect("valid");
        assert_eq!(value["amount"].to_string(), "12345678901234567890.10");
    }

    #[test]
    fn an_amount_is_told_untold_or_unreadable() {
        let at = |body: &str| amount_at(&json(body.as_bytes()).expect("valid"), "/data/amount");
        let told = |text: &str| Amount::Told(text.parse().expect("a decimal"));
        for (text, amount) in
            [("10.50", "10.50"), ("\"10.50\"", "10.50"), ("1e3", "1000"), ("-1", "-1"), ("0.00", "0"), ("1.5E-2", "0.015")]
        {
            assert_eq!(at(&format!(r#"{{"data":{{"amount":{text}}}}}"#)), told(amount), "{text}");
        }
        for body in ["{}", r#"{"data":null}"#, r#"{"data":{}}"#, r#"{"data":{"amount":null}}"#] {
            assert_eq!(at(body), Amount::Untold, "{body}");
        }
        for odd in
            ["\"\"", "\"2 M\"", "\"1,000\"", "\"1_000\"", "\"+1\"", "\" 1\"", "\".5\"", "\"5.\"", "true", "[1]", "{}", "\"NaN\""]
        {
            assert_eq!(at(&format!(r#"{{"data":{{"amount":{odd}}}}}"#)), Amount::Unreadable, "{odd}");
        }
        for data in ["\"10\"", "10", "[]", "[10]"] {
            assert_eq!(at(&format!(r#"{{"data":{data}}}"#)), Amount::Unreadable, "in the place of what holds it: {data}");
        }
        let list = json(br#"[{"amount":7}]"#).expect("valid");
        assert_eq!((amount_at(&list, "/0/amount"), amount_at(&list, "/1/amount")), (told("7"), Amount::Untold));
    }

    #[test]
    fn more_digits_than_can_be_compared_are_not_rounded_to_equality() {
        for text in [
            "100000000000000000000000000000000000000.5",
            "10.00000000000000000000000000000000000001",
            "79228162514264337593543950335.4999999999",
            "79228162514264337593543950336",
            "1e64",
            "0.1e-40",
        ] {
            assert!(decimal(text).is_err(), "{text}: {:?}", decimal(text));
        }
        for (text, exact) in [
            ("10.000000000000000000000000000000000000", "10"),
            ("79228162514264337593543950335", "79228162514264337593543950335"),
            ("0000000000000000000000000000000000000010.5", "10.5"),
            ("1000000000000000000000000000000e-30", "1"),
        ] {
            assert_eq!(decimal(text), Ok(exact.parse().expect("a decimal")), "{text}");
        }
    }
}

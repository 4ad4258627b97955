//! Requests and responses as plain data, and what every provider needs of both: percent-encoding, a
//! row's params, `Retry-After`.
//!
//! [`json`](mod@json) reads an answer: strictly where it decides, leniently where it does not.
//! [`redact`] says what may be kept of it.

pub mod json;
pub mod redact;

pub use json::{Lenient, Object, Scalar, amount_at, decimal, form, json, scalar};
pub use redact::{Kept, MAX_EVIDENCE, REDACTED, Redaction};

use crate::domain::{Outcome, Whose};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::fmt;
use std::time::{Duration, SystemTime};

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
    /// No byte of it was sent, because this process or machine had nothing left to send it with. Says what.
    NotSent(String),
    /// The body is longer than [`MAX_BODY`].
    TooLong,
}

/// The most that is read of an answer, after decoding.
pub const MAX_BODY: usize = 1 << 20;
/// `Retry-After` is believed up to this.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// Everything but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A percent-encoded path segment or query value.
#[must_use]
pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// A percent-encoded path segment. Errors where a URL cannot carry it: `.` and `..` mean another
/// path, however they are encoded.
pub fn segment(name: &str, text: &str) -> Result<String, String> {
    if text == "." || text == ".." {
        return Err(format!("{name} {text:?} cannot stand in a URL path"));
    }
    Ok(encoded(text))
}

/// The text under `key` in a row's `params`, checked for presence, type and control characters; the
/// error names the remedy.
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

/// What a response means whose body cannot be read: its HTTP status may still speak about the
/// provider, never about a payment.
#[must_use]
pub fn unreadable(response: &Response, why: String) -> Outcome {
    match response.status {
        429 => Outcome::RateLimited { wait: response.retry_after },
        401 => Outcome::CredentialsRejected { whose: Whose::Account, park: false, message: "HTTP 401".into() },
        // A provider that refuses an account says so in its own form. A firewall's page concerns
        // the one request that met it.
        403 => Outcome::CredentialsRejected { whose: Whose::Row, park: false, message: format!("HTTP 403: {why}") },
        500.. => Outcome::ServerError { status: response.status, wait: response.retry_after },
        300..=399 => Outcome::Unusable { why: format!("HTTP {}: redirects are not followed", response.status) },
        status => Outcome::Unusable { why: format!("HTTP {status}: {why}") },
    }
}

/// Checks a configured value that is sent as a header: visible ASCII only.
pub fn header_value(key: &str, value: &str) -> Result<(), String> {
    if value.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(format!("{key} has characters that no header can carry"))
    }
}

/// `Retry-After` as a wait from `now`, which is the answer's own date where it has one: seconds or
/// an HTTP date, of several the longest.
///
/// What is longer than [`LONGEST_PAUSE`] counts as that; a fraction of a second counts as a whole
/// one. What is neither is left out.
#[must_use]
pub fn retry_after<'a>(values: impl IntoIterator<Item = &'a str>, now: SystemTime) -> Option<Duration> {
    let pauses = values.into_iter().flat_map(|value| {
        // A date has a comma of its own, so each piece is tried alone and together with the next one.
        let pieces: Vec<&str> = value.split(',').collect();
        let dates = pieces.windows(2).map(|pair| until(pair.join(",").trim(), now)).collect::<Vec<_>>();
        let alone = pieces.into_iter().map(|piece| seconds(piece.trim()).or_else(|| until(piece.trim(), now)));
        alone.chain(dates).flatten().collect::<Vec<_>>()
    });
    pauses.max()
}

fn until(date: &str, now: SystemTime) -> Option<Duration> {
    let until = httpdate::parse_http_date(date).ok()?;
    Some(until.duration_since(now).unwrap_or_default().min(LONGEST_PAUSE))
}

/// Seconds, a fraction rounded up. However many digits there are: huge means long.
fn seconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let more = u64::from(fraction.bytes().any(|digit| digit != b'0'));
    let seconds = whole.parse::<u64>().unwrap_or(u64::MAX).saturating_add(more);
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_cannot_leave_its_path_segment() {
        assert_eq!(segment("reference", "../a b/ü?x#y").as_deref(), Ok("..%2Fa%20b%2F%C3%BC%3Fx%23y"));
        assert!(segment("reference", "..").is_err());
    }

    fn told(values: &[&str]) -> Option<Duration> {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").expect("a date");
        retry_after(values.iter().copied(), now)
    }

    #[test]
    fn a_pause_is_read_from_seconds_and_from_dates_and_is_bounded() {
        for (text, seconds) in [
            ("17", 17),
            (" 17 ", 17),
            ("0", 0),
            ("1.5", 2),
            ("1.0", 1),
            ("0.001", 1),
            ("99999999", 86_400),
            ("100000000000000000000", 86_400),
            ("100000000000000000000.5", 86_400),
            ("Wed, 21 Oct 2026 07:29:30 GMT", 90),
            ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
            ("Wed, 21 Oct 2099 07:28:00 GMT", 86_400),
        ] {
            assert_eq!(told(&[text]), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "soon", "-3", "+3", "1e3", "1.", ".5", "1.5.2", "0x10", "٣"] {
            assert_eq!(told(&[text]), None, "{text}");
        }
    }

    #[test]
    fn of_several_pauses_the_longest_counts() {
        assert_eq!(told(&["5, 10"]), Some(Duration::from_secs(10)));
        assert_eq!(told(&["10", "5"]), Some(Duration::from_secs(10)));
        assert_eq!(told(&["5, soon"]), Some(Duration::from_secs(5)));
        assert_eq!(told(&["5, Wed, 21 Oct 2026 07:29:30 GMT, 7"]), Some(Duration::from_secs(90)));
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn a_403_that_cannot_be_read_concerns_its_row_and_a_401_the_account() {
        let unread = |status| {
            let response = Response { status, retry_after: None, body: Bytes::from_static(b"<html>") };
            match unreadable(&response, "no JSON".into()) {
                Outcome::CredentialsRejected { whose, park: false, .. } => Some(whose),
                _ => None,
            }
        };
        assert_eq!((unread(401), unread(403), unread(404)), (Some(Whose::Account), Some(Whose::Row), None));
    }
}

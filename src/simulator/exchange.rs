//! What comes in and what goes out, as values: the part of HTTP that the five providers share.

use super::rules::{Kind, Moment};
use axum::http::HeaderMap;
use bytes::Bytes;
use serde_json::{Map, Value};

/// A request to a provider.
pub(super) struct Incoming {
    /// When it came.
    pub(super) at: Moment,
    /// The path as it was sent.
    pub(super) path: String,
    /// The variable parts of the path, decoded.
    pub(super) parts: Vec<String>,
    /// The query, decoded.
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// A request that the provider understands and whose sender it knows.
pub(super) struct Ask {
    /// Which of the [accounts](super::credentials).
    pub(super) account: usize,
    pub(super) reference: String,
    /// What must be the same in every request about this transaction.
    pub(super) flow: Option<String>,
    /// Of requests with the same key at most one may be in flight.
    pub(super) exclusive: Option<String>,
    /// The credentials that came with it.
    pub(super) secrets: Vec<String>,
}

/// A request that the provider refuses before it looks the transaction up.
pub(super) struct Refusal {
    /// The rule that it breaks; `None` where a well-behaved client may be refused as well.
    pub(super) kind: Option<Kind>,
    pub(super) detail: String,
    pub(super) reply: Reply,
}

/// An answer: JSON, as all five providers answer, but for a firewall before them.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) retry_after: Option<String>,
    pub(super) body: String,
}

impl Reply {
    pub(super) fn new(status: u16, body: &Value) -> Self {
        Self { status, retry_after: None, body: body.to_string() }
    }

    /// What a firewall before the provider says.
    pub(super) fn firewall() -> Self {
        let body = "<html><head><title>403 Forbidden</title></head><body>Request blocked</body></html>".to_owned();
        Self { status: 403, retry_after: None, body }
    }
}

/// The longest reference that is looked up.
const MAX_REFERENCE: usize = 512;

/// A reference is neither empty nor longer than paypoll accepts, and has no control characters.
pub(super) fn check_reference(name: &str, reference: &str) -> Result<(), String> {
    if reference.is_empty() || reference.chars().count() > MAX_REFERENCE || reference.chars().any(char::is_control) {
        return Err(format!("{name} is empty, too long or has control characters"));
    }
    Ok(())
}

/// The one value of a header; the error says which is missing or sent twice.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, String> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| format!("the header {name} is not ASCII")),
        (Some(_), Some(_)) => Err(format!("the header {name} came twice")),
        (None, _) => Err(format!("the header {name} is missing")),
    }
}

/// The access token of `Authorization: Bearer`.
pub(super) fn bearer(headers: &HeaderMap) -> Result<&str, String> {
    let token = header(headers, "authorization")?.strip_prefix("Bearer ").unwrap_or_default();
    if token.is_empty() { Err("the header authorization is not \"Bearer \" and a token".into()) } else { Ok(token) }
}

/// A status request has no other headers to say what its JSON is: the type is checked, a charset may follow.
pub(super) fn object(incoming: &Incoming) -> Result<Map<String, Value>, String> {
    let content_type = header(&incoming.headers, "content-type")?;
    if !content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return Err("the content-type is not application/json".into());
    }
    serde_json::from_slice(&incoming.body).map_err(|_| "the body is not a JSON object".into())
}

/// The text under a key.
pub(super) fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    optional_text(object, key)?.ok_or_else(|| format!("{key} is missing"))
}

/// The text under a key that need not be there; what is there must be text.
pub(super) fn optional_text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match object.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
        Some(_) => Err(format!("{key} is empty or not text")),
    }
}

/// Nothing but the documented keys.
pub(super) fn only<'a>(keys: impl IntoIterator<Item = &'a String>, documented: &[&str]) -> Result<(), String> {
    match keys.into_iter().find(|key| !documented.contains(&key.as_str())) {
        // Not its name: it may be of any length.
        Some(_) => Err(format!("there is more than {}", documented.join(", "))),
        None => Ok(()),
    }
}

/// The value of a query parameter that must be there once, beside the documented others.
pub(super) fn parameter<'a>(query: &'a [(String, String)], name: &str, documented: &[&str]) -> Result<&'a str, String> {
    only(query.iter().map(|(key, _)| key), documented)?;
    let mut values = query.iter().filter(|(key, _)| key == name);
    match (values.next(), values.next()) {
        (Some((_, value)), None) => Ok(value),
        (Some(_), Some(_)) => Err(format!("{name} came twice")),
        (None, _) => Err(format!("{name} is missing")),
    }
}

/// A number that belongs to a reference, for the identifiers that providers give away (FNV-1a, cut
/// to eight digits).
pub(super) fn number(reference: &str) -> u64 {
    reference.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
        % 90_000_000
        + 10_000_000
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes from hexadecimal, lower case only, as Ayoconnect's signatures are written.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? * 16 + digit(*low)?)).collect()
}

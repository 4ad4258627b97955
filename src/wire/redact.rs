//! What may be kept of an answer: secrets are scrubbed by value, however they are spelt, and payer
//! data by its place.

use super::json;
use memchr::memmem;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt::Write;
use std::ops::Range;

/// Which parts of an answer are kept.
#[derive(Clone, Debug)]
pub enum Kept<'a> {
    /// All but the values of these keys, at any depth: payer data, session tokens, redirect URLs.
    AllBut(&'a [&'a str]),
    /// Nothing but what stands at these JSON pointers.
    Only(Vec<Cow<'a, str>>),
}

impl Kept<'_> {
    /// Everything: nothing in it is private.
    pub const EVERYTHING: Kept<'static> = Kept::AllBut(&[]);

    /// Some of the answer is private, so it cannot be kept where its parts cannot be told apart.
    fn is_selective(&self) -> bool {
        !matches!(self, Self::AllBut([]))
    }
}

/// What must not be kept of an answer: secrets by value, also as other encodings spell them, and
/// payer data by its place.
pub struct Redaction<'a> {
    secrets: Vec<&'a str>,
    kept: Kept<'a>,
    /// Made when the first text comes that is long enough to hold a secret: most are not.
    patterns: OnceCell<Vec<Pattern>>,
}

/// The most of an answer that is kept as evidence.
pub const MAX_EVIDENCE: usize = 4096;
/// What stands where a secret was.
pub const REDACTED: &str = "[redacted]";
/// A secret shorter than this would blot out ordinary text.
const SHORTEST_SECRET: usize = 4;
/// A secret shorter than this is looked for as it is, not in other cases and encodings: they too
/// would blot out ordinary text.
const SHORTEST_ENCODED: usize = 8;
/// The most of a provider's word or message that is kept.
const MAX_LINE: usize = 512;

impl<'a> Redaction<'a> {
    /// Scrubs these secret values wherever they appear, and keeps no private part of an answer.
    #[must_use]
    pub fn new(mut secrets: Vec<&'a str>, kept: Kept<'a>) -> Self {
        secrets.retain(|secret| secret.len() >= SHORTEST_SECRET);
        Self { secrets, kept, patterns: OnceCell::new() }
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
        self.scrubbed(text).unwrap_or_else(|| text.to_owned())
    }

    /// The JSON without secrets and without private parts.
    #[must_use]
    pub fn json(&self, mut value: Value) -> Value {
        if let Kept::Only(pointers) = &self.kept {
            value = only(&value, pointers);
        }
        self.clean(&mut value);
        value
    }

    /// In place: there is hardly ever anything to scrub.
    fn clean(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Some(clean) = self.scrubbed(text) {
                    *text = clean;
                }
            }
            Value::Number(number) => {
                if let Some(clean) = self.scrubbed(number.as_str()) {
                    *value = clean.into();
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.clean(value)),
            Value::Object(map) => self.clean_object(map),
            _ => {}
        }
    }

    fn clean_object(&self, map: &mut Map<String, Value>) {
        let private = match &self.kept {
            Kept::AllBut(keys) => *keys,
            Kept::Only(_) => &[],
        };
        for (key, value) in map.iter_mut() {
            if private.contains(&key.as_str()) {
                *value = REDACTED.into();
            } else {
                self.clean(value);
            }
        }
        let touched: Vec<(String, String)> = map.keys().filter_map(|key| Some((key.clone(), self.scrubbed(key)?))).collect();
        for (key, clean) in touched {
            if let Some(value) = map.remove(&key) {
                map.insert(clean, value);
            }
        }
    }

    /// The text without what must not be kept of it; `None` where nothing has to be changed.
    fn scrubbed(&self, text: &str) -> Option<String> {
        let found = self.found(text);
        if found.is_empty() && !text.contains('\0') {
            return None;
        }
        let mut clean = String::with_capacity(text.len());
        let mut kept = 0;
        for place in found {
            clean.push_str(&text[kept..place.start]);
            clean.push_str(REDACTED);
            kept = place.end;
        }
        clean.push_str(&text[kept..]);
        Some(clean.replace('\0', "\u{fffd}"))
    }

    /// Whether a secret stands in the text, however it is spelt.
    #[must_use]
    pub fn finds(&self, text: &str) -> bool {
        !self.found(text).is_empty()
    }

    /// Where secrets stand in the text: rising and apart from each other.
    fn found(&self, text: &str) -> Vec<Range<usize>> {
        // No spelling is shorter than the secret itself.
        if !self.secrets.iter().any(|secret| secret.len() <= text.len()) {
            return Vec::new();
        }
        let patterns = self.patterns.get_or_init(|| self.secrets.iter().flat_map(|secret| Pattern::all(secret)).collect());
        let mut places = Vec::new();
        for view in View::all(text) {
            patterns.iter().for_each(|pattern| pattern.find(&view, &mut places));
        }
        merged(text, places)
    }

    /// An answer's body as it may be kept: as JSON where it is short JSON, else the beginning of
    /// its text. What is cut is scrubbed before, so that no piece of a secret is left at the cut.
    ///
    /// In a broken body keys cannot be recognised, so payer data might survive in it: only its
    /// length is kept when the provider's answers carry any.
    #[must_use]
    pub fn body(&self, body: &[u8]) -> Value {
        match json(body) {
            Ok(value) if body.len() <= MAX_EVIDENCE => self.json(value),
            Ok(value) => Value::String(beginning(self.json(value).to_string())),
            Err(_) if self.kept.is_selective() => Value::String(format!("[{} bytes that are no JSON]", body.len())),
            Err(_) => Value::String(beginning(self.text(&String::from_utf8_lossy(body)))),
        }
    }
}

/// What stands at these pointers, each in its place.
fn only(value: &Value, pointers: &[Cow<'_, str>]) -> Value {
    let mut kept = Value::Object(Map::new());
    for pointer in pointers {
        let Some(found) = value.pointer(pointer) else { continue };
        let keys: Vec<String> = pointer.split('/').skip(1).map(|key| key.replace("~1", "/").replace("~0", "~")).collect();
        if keys.is_empty() {
            return value.clone();
        }
        let mut place = &mut kept;
        for key in keys {
            // An array's elements are kept under their numbers: which of them are missing stays visible.
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            let Value::Object(map) = place else { break };
            place = map.entry(key).or_insert(Value::Null);
        }
        *place = found.clone();
    }
    kept
}

/// One spelling of a secret.
struct Pattern {
    bytes: Vec<u8>,
    /// Letters of the other case are the same, and so are the two alphabets of base64.
    folded: bool,
}

impl Pattern {
    /// A secret as it is, reversed, in hexadecimal and in base64, wherever in a longer text that
    /// was encoded it stood.
    fn all(secret: &str) -> Vec<Self> {
        if secret.len() < SHORTEST_ENCODED {
            return vec![Self { bytes: secret.into(), folded: false }];
        }
        let mut spellings = vec![secret.as_bytes().to_vec(), secret.chars().rev().collect::<String>().into_bytes(), hex(secret)];
        spellings.extend((0..3).map(|offset| base64(secret.as_bytes(), offset)));
        spellings.into_iter().map(|bytes| Self { bytes: bytes.iter().copied().map(fold).collect(), folded: true }).collect()
    }

    fn find(&self, view: &View, places: &mut Vec<Range<usize>>) {
        let text = if self.folded { &view.folded } else { &view.bytes };
        places.extend(memmem::find_iter(text, &self.bytes).map(|at| view.place(at..at + self.bytes.len())));
    }
}

/// Lower case, and base64's first alphabet.
fn fold(byte: u8) -> u8 {
    match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => other.to_ascii_lowercase(),
    }
}

fn hex(secret: &str) -> Vec<u8> {
    let mut text = String::with_capacity(2 * secret.len());
    for byte in secret.bytes() {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.into_bytes()
}

/// The letters of base64 that the secret alone decides, when `offset` bytes of a group of three
/// stand before it.
fn base64(secret: &[u8], offset: usize) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bit = |at: usize| secret[at / 8] >> (7 - at % 8) & 1;
    // Letters are six bits wide; the first ones that begin within the secret.
    let start = (6 - (8 * offset) % 6) % 6;
    let bits: Vec<u8> = (start..8 * secret.len()).map(bit).collect();
    bits.chunks_exact(6).map(|six| LETTERS[six.iter().fold(0, |value, bit| value << 1 | usize::from(*bit))]).collect()
}

/// A text as bytes, as it is or with escapes undone, and where each byte came from.
struct View {
    bytes: Vec<u8>,
    folded: Vec<u8>,
    /// For each byte the stretch of the text that it came from; `None` where bytes and text are the same.
    places: Option<Vec<Range<usize>>>,
}

/// How texts are escaped.
#[derive(Clone, Copy)]
struct Escapes {
    json: bool,
    percent: bool,
    html: bool,
}

impl View {
    /// The text as it is, with each kind of escape undone, with all undone, and with all undone once more.
    fn all(text: &str) -> Vec<Self> {
        let plain = Self::new(text.as_bytes().to_vec(), None);
        let escaped = [b'\\', b'%', b'&'].map(|mark| memchr::memchr(mark, text.as_bytes()).is_some());
        let mut views = Vec::new();
        if escaped.contains(&true) {
            let [json, percent, html] = escaped;
            let all = plain.unescaped(Escapes { json, percent, html });
            views.push(all.unescaped(Escapes { json: true, percent: true, html: true }));
            views.push(all);
            if escaped.iter().filter(|mark| **mark).count() > 1 {
                views.push(plain.unescaped(Escapes { json, percent: false, html: false }));
                views.push(plain.unescaped(Escapes { json: false, percent, html: false }));
                views.push(plain.unescaped(Escapes { json: false, percent: false, html }));
            }
        }
        views.push(plain);
        views
    }

    fn new(bytes: Vec<u8>, places: Option<Vec<Range<usize>>>) -> Self {
        let folded = bytes.iter().copied().map(fold).collect();
        Self { bytes, folded, places }
    }

    /// Where in the text these bytes came from.
    fn place(&self, bytes: Range<usize>) -> Range<usize> {
        match &self.places {
            None => bytes,
            Some(places) => match &places[bytes] {
                [first, .., last] => first.start..last.end,
                [single] => single.clone(),
                [] => 0..0,
            },
        }
    }

    fn unescaped(&self, escapes: Escapes) -> Self {
        let (mut bytes, mut places) = (Vec::with_capacity(self.bytes.len()), Vec::with_capacity(self.bytes.len()));
        let mut at = 0;
        while let Some(rest) = self.bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let (character, length) = match rest[0] {
                b'\\' if escapes.json => json_escape(rest),
                b'%' if escapes.percent => percent_escape(rest),
                b'&' if escapes.html => html_escape(rest),
                _ => None,
            }
            .unwrap_or((Unescaped::Byte(rest[0]), 1));
            let place = self.place(at..at + length);
            let mut buffer = [0; 4];
            let unescaped = match character {
                Unescaped::Byte(byte) => {
                    buffer[0] = byte;
                    &buffer[..1]
                }
                Unescaped::Character(character) => character.encode_utf8(&mut buffer).as_bytes(),
            };
            bytes.extend_from_slice(unescaped);
            places.extend(unescaped.iter().map(|_| place.clone()));
            at += length;
        }
        Self::new(bytes, Some(places))
    }
}

enum Unescaped {
    Byte(u8),
    Character(char),
}

/// What an escape at the beginning of this text stands for, and how long it is.
type Escape = Option<(Unescaped, usize)>;

fn json_escape(text: &[u8]) -> Escape {
    match text.get(1)? {
        b'u' => Some((Unescaped::Character(char::from_u32(number(text.get(2..6)?, 16)?)?), 6)),
        byte @ (b'"' | b'\\' | b'/') => Some((Unescaped::Byte(*byte), 2)),
        _ => None,
    }
}

fn percent_escape(text: &[u8]) -> Escape {
    Some((Unescaped::Byte(u8::try_from(number(text.get(1..3)?, 16)?).ok()?), 3))
}

fn html_escape(text: &[u8]) -> Escape {
    const NAMED: [(&[u8], u8); 5] = [(b"&amp;", b'&'), (b"&lt;", b'<'), (b"&gt;", b'>'), (b"&quot;", b'"'), (b"&apos;", b'\'')];
    /// `&#x10ffff;`
    const MAX_ENTITY: usize = 10;
    if let Some((name, byte)) = NAMED.into_iter().find(|(name, _)| text.starts_with(name)) {
        return Some((Unescaped::Byte(byte), name.len()));
    }
    let end = text.iter().take(MAX_ENTITY).position(|byte| *byte == b';')?;
    let digits = text[..end].strip_prefix(b"&#")?;
    let code = match digits.strip_prefix(b"x").or(digits.strip_prefix(b"X")) {
        Some(digits) => number(digits, 16)?,
        None => number(digits, 10)?,
    };
    Some((Unescaped::Character(char::from_u32(code)?), end + 1))
}

fn number(digits: &[u8], radix: u32) -> Option<u32> {
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_alphanumeric()))?;
    u32::from_str_radix(text, radix).ok()
}

/// The places in their order, those that touch made one, none of them within a character.
fn merged(text: &str, mut places: Vec<Range<usize>>) -> Vec<Range<usize>> {
    for place in &mut places {
        while !text.is_char_boundary(place.start) {
            place.start -= 1;
        }
        while !text.is_char_boundary(place.end) {
            place.end += 1;
        }
    }
    places.sort_unstable_by_key(|place| place.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for place in places {
        match merged.last_mut() {
            Some(last) if place.start <= last.end => last.end = last.end.max(place.end),
            _ => merged.push(place),
        }
    }
    merged
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
    use crate::wire::encoded;

    fn secrets(secrets: &[&'static str]) -> Redaction<'static> {
        Redaction::new(secrets.to_vec(), Kept::EVERYTHING)
    }

    #[test]
    fn secrets_are_scrubbed_by_value_and_payer_data_by_key() {
        let redaction = Redaction::new(vec!["s3cret-token", "11223344556677"], Kept::AllBut(&["customer_name"]));
        let body = br#"{"x":["a s3cret-token b\u0000",11223344556677],"s3cret-token":1,"customer_name":"JOHN DOE"}"#;
        let text = redaction.body(body).to_string();
        assert!(!text.contains("s3cret") && !text.contains("JOHN") && !text.contains("u0000"), "{text}");
        assert!(!text.contains("112233"), "{text}");
    }

    #[test]
    fn of_an_answer_with_a_list_of_what_to_keep_nothing_else_is_kept() {
        let pointers = ["/status", "/data/amount", "/data/items/1/id", "/nothing", "/a~1b", "/data/amount/deeper"];
        let redaction = Redaction::new(vec!["s3cret-token"], Kept::Only(pointers.map(Cow::Borrowed).to_vec()));
        let body = br#"{"status":"s3cret-token","payer":"JOHN","a/b":1,"data":{"amount":1.50,"name":"DOE","items":[{"id":1},{"id":2,"x":3}]}}"#;
        let kept = redaction.body(body);
        let expected = r#"{"status":"[redacted]","a/b":1,"data":{"amount":1.50,"items":{"1":{"id":2}}}}"#;
        assert_eq!(kept, json(expected.as_bytes()).expect("JSON"));
        assert_eq!(redaction.body(b"{\"payer\":\"JOHN\""), "[15 bytes that are no JSON]");
        assert_eq!(redaction.body(b"[\"JOHN\"]"), Value::Object(Map::new()));
    }

    #[test]
    fn a_secret_is_found_however_it_is_spelt() {
        let secret = "a/b\"Q+\\d'<é>&8~x";
        let reversed: String = secret.chars().rev().collect();
        let html: String = secret.chars().map(|letter| format!("&#{};", u32::from(letter))).collect();
        let html_hex: String = secret.chars().map(|letter| format!("&#x{:X};", u32::from(letter))).collect();
        let json_all: String = secret.chars().map(|letter| format!("\\u{:04x}", u32::from(letter))).collect();
        let named = secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
        let in_json = Value::from(secret).to_string();
        for spelt in [
            secret.to_owned(),
            secret.to_uppercase().replace('É', "é"),
            secret.to_ascii_lowercase(),
            reversed,
            in_json.clone(),
            in_json.replace('/', "\\/"),
            json_all,
            encoded(secret),
            encoded(secret).to_ascii_lowercase(),
            encoded(&encoded(secret)),
            encoded(secret).replace('%', "\\u0025"),
            html,
            html_hex,
            named,
            String::from_utf8(hex(secret)).expect("text").to_uppercase(),
        ] {
            let clean = secrets(&["a/b\"Q+\\d'<é>&8~x"]).text(&format!("before {spelt} after"));
            assert!(clean.starts_with("before ") && clean.ends_with(" after") && clean.contains(REDACTED), "{spelt}: {clean}");
            assert!(clean.len() < 45, "{spelt}: {clean}");
        }
    }

    #[test]
    fn a_secret_is_found_in_base64_wherever_it_stood_in_what_was_encoded() {
        // Made with coreutils' base64 from `s3cret-token?>` behind 0 to 3 letters, with more after it.
        for (spelt, around) in [
            ("czNjcmV0LXRva2VuPz4=", 0),
            ("dTpzM2NyZXQtdG9rZW4/PjE=", 2),
            ("dXM6czNjcmV0LXRva2VuPz4x", 3),
            ("dTpzM2NyZXQtdG9rZW4_PjE", 2),
            ("OnMzY3JldC10b2tlbj8+MTI=", 1),
        ] {
            let clean = secrets(&["s3cret-token?>"]).text(spelt);
            assert!(clean.contains(REDACTED) && clean.len() <= REDACTED.len() + 8 + around, "{spelt}: {clean}");
        }
    }

    #[test]
    fn a_short_secret_does_not_blot_out_ordinary_text() {
        assert_eq!(secrets(&["abcd"]).text("ABCD dcba abcd"), format!("ABCD dcba {REDACTED}"));
        assert_eq!(secrets(&["abc"]).text("abc"), "abc");
    }

    #[test]
    fn a_secret_that_is_part_of_another_does_not_break_it_up() {
        assert_eq!(secrets(&["token-0001", "my-token-0001-long"]).text("x my-token-0001-long y"), format!("x {REDACTED} y"));
    }

    #[test]
    fn what_is_too_long_is_scrubbed_before_it_is_cut() {
        let redaction = secrets(&["s3cret-token"]);
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
        let redaction = Redaction::new(Vec::new(), Kept::AllBut(&["customer_name"]));
        let body = format!(r#"{{"customer_name":"JOHN DOE","z":"{}"}}"#, "x".repeat(MAX_EVIDENCE));
        assert!(redaction.body(body.as_bytes()).as_str().is_some_and(|text| text.starts_with(r#"{"customer_name":"[redacted]""#)));
        let broken = redaction.body(br#"{"customer_name":"JOHN DOE""#);
        assert_eq!(broken, "[27 bytes that are no JSON]");
    }

    #[test]
    fn no_text_makes_the_search_stumble() {
        let redaction = secrets(&["s3cret-token", "é€😀éé"]);
        for text in [
            "%",
            "%4",
            "%zz%",
            "\\",
            "\\u",
            "\\ud800",
            "&",
            "&#",
            "&#;",
            "&#x;",
            "&#xffffffff;",
            "&#+1;",
            "%C3%A9%E2",
            "\\u00e9€😀éé%F0%9F",
        ] {
            let long = format!("{text}{}{text}", "é".repeat(12));
            assert!(redaction.text(&long).contains("é"), "{text}");
        }
    }
}

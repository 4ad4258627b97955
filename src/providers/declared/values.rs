//! `[values]`: one function each, over templates: encodings, digests, signatures, the time and
//! chance. A closed list, no expression.

use super::template::{Name, Names, Template};
use super::tree::{Item, Source, Spot, Table};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use aws_lc_rs::{digest, hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::format::{Item as Format, StrftimeItems};
use chrono::{DateTime, FixedOffset, Utc};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use std::fmt::Write as _;

/// A value that the file declares.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) function: Function,
    /// It may stand in a URL although it comes from a secret.
    pub(super) in_url: bool,
    pub(super) spot: Spot,
}

/// How a value is made.
#[derive(Debug)]
pub(super) enum Function {
    Text(Template),
    Base64(Template),
    Digest { algorithm: &'static digest::Algorithm, of: Template, form: Form },
    Hmac { algorithm: hmac::Algorithm, of: Template, key: Name, key_form: KeyForm, form: Form },
    RsaSha256 { of: Template, key: usize, form: Form },
    Now { clock: Clock },
    Random { bytes: usize, form: Form },
    Uuid,
}

/// How bytes become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Lower case.
    Hex,
    /// Upper case.
    UpperHex,
    Base64,
}

/// What a key's text stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyForm {
    /// Its own bytes.
    Text,
    Base64,
    Hex,
}

/// How the time is written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Clock {
    Seconds,
    Millis,
    Format { items: Vec<Format<'static>>, offset: FixedOffset },
}

/// The functions, for listings.
pub(super) const FUNCTIONS: [&str; 12] = [
    "base64",
    "sha1",
    "sha256",
    "sha512",
    "hmac_sha1",
    "hmac_sha256",
    "hmac_sha512",
    "rsa_sha256",
    "now",
    "random",
    "uuid",
    "text",
];

impl Value {
    /// Reads one value. `None` after a mistake, which is noted.
    pub(super) fn read(item: Item<'_, '_>, names: &Names, source: &Source<'_>) -> Option<Self> {
        let mut table = item.table()?;
        let spot = table.spot().clone();
        let mut given = FUNCTIONS.iter().filter_map(|name| Some((*name, table.optional(name)?))).collect::<Vec<_>>();
        let in_url = table.flag("in_url");
        let function = match (given.pop(), given.is_empty()) {
            (Some((name, item)), true) => read_function(name, item, &mut table, names, source),
            _ => {
                source.problem(&spot, format_args!("has not exactly one function; write one of {}", FUNCTIONS.join(", ")));
                None
            }
        };
        if function.is_some() {
            table.finish();
        }
        Some(Self { function: function?, in_url, spot })
    }

    /// Stands for one that could not be read.
    pub(super) fn unreadable() -> Self {
        Self { function: Function::Uuid, in_url: false, spot: Spot::default() }
    }

    /// The names that it is made of.
    pub(super) fn names(&self) -> Vec<Name> {
        match &self.function {
            Function::Text(of) | Function::Base64(of) | Function::Digest { of, .. } => of.names().collect(),
            Function::Hmac { of, key, .. } => of.names().chain([*key]).collect(),
            Function::RsaSha256 { of, key, .. } => of.names().chain([Name::Account(*key)]).collect(),
            Function::Now { .. } | Function::Random { .. } | Function::Uuid => Vec::new(),
        }
    }

    /// Whether it is another one each time, whatever it is made of.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self.function, Function::Now { .. } | Function::Random { .. } | Function::Uuid)
    }
}

fn read_function(
    name: &str,
    item: Item<'_, '_>,
    table: &mut Table<'_, '_>,
    names: &Names,
    source: &Source<'_>,
) -> Option<Function> {
    let template = |item: Item<'_, '_>| item.text().map(|(text, spot)| Template::read(&text, spot, names, source));
    Some(match name {
        "text" => Function::Text(template(item)?),
        "base64" => Function::Base64(template(item)?),
        "sha1" => digest_of(&digest::SHA1_FOR_LEGACY_USE_ONLY, template(item)?, table),
        "sha256" => digest_of(&digest::SHA256, template(item)?, table),
        "sha512" => digest_of(&digest::SHA512, template(item)?, table),
        "hmac_sha1" => hmac_of(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, template(item)?, table, names, source)?,
        "hmac_sha256" => hmac_of(hmac::HMAC_SHA256, template(item)?, table, names, source)?,
        "hmac_sha512" => hmac_of(hmac::HMAC_SHA512, template(item)?, table, names, source)?,
        "rsa_sha256" => {
            let of = template(item)?;
            let (form, key) = (form(table, Form::Base64), key(table, names, source)?);
            let Name::Account(key) = key else {
                source.problem(table.spot(), "key must be a key of [account] whose form is \"pem-rsa\"");
                return None;
            };
            Function::RsaSha256 { of, key, form }
        }
        "now" => {
            let (text, spot) = item.text()?;
            let offset = table.text("offset").unwrap_or_else(|| "+00:00".into());
            Function::Now { clock: clock(&text, &offset).map_err(|why| source.problem(&spot, why)).ok()? }
        }
        "random" => {
            let bytes = usize::try_from(item.integer(1, 64)?).ok()?;
            Function::Random { bytes, form: form(table, Form::Hex) }
        }
        _ => {
            item.flag()?.then_some(())?;
            Function::Uuid
        }
    })
}

fn digest_of(algorithm: &'static digest::Algorithm, of: Template, table: &mut Table<'_, '_>) -> Function {
    Function::Digest { algorithm, of, form: form(table, Form::Hex) }
}

fn hmac_of(
    algorithm: hmac::Algorithm,
    of: Template,
    table: &mut Table<'_, '_>,
    names: &Names,
    source: &Source<'_>,
) -> Option<Function> {
    let key_form = table.optional("key_as").and_then(|item| {
        item.parsed(|text| match text {
            "text" => Ok(KeyForm::Text),
            "base64" => Ok(KeyForm::Base64),
            "hex" => Ok(KeyForm::Hex),
            _ => Err("is no form of a key; write \"text\", \"base64\" or \"hex\"".into()),
        })
    });
    let (form, key) = (form(table, Form::Hex), key(table, names, source)?);
    Some(Function::Hmac { algorithm, of, key, key_form: key_form.unwrap_or(KeyForm::Text), form })
}

fn key(table: &mut Table<'_, '_>, names: &Names, source: &Source<'_>) -> Option<Name> {
    let (text, spot) = table.required("key", "write the name of the key, such as key = \"account.client_secret\"")?.text()?;
    names.find(&text).map_err(|why| source.problem(&spot, why)).ok()
}

fn form(table: &mut Table<'_, '_>, default: Form) -> Form {
    let read = table.optional("as").and_then(|item| {
        item.parsed(|text| match text {
            "hex" => Ok(Form::Hex),
            "HEX" => Ok(Form::UpperHex),
            "base64" => Ok(Form::Base64),
            _ => Err("is no form of bytes; write \"hex\", \"HEX\" or \"base64\"".into()),
        })
    });
    read.unwrap_or(default)
}

fn clock(text: &str, offset: &str) -> Result<Clock, String> {
    let offset: FixedOffset = offset.parse().map_err(|_| format!("offset {offset:?} is no offset like \"+07:00\""))?;
    match text {
        "seconds" => Ok(Clock::Seconds),
        "millis" => Ok(Clock::Millis),
        _ => {
            let items = StrftimeItems::new(text).parse_to_owned();
            let items = items.map_err(|_| "is no form of time; write \"seconds\", \"millis\", or like \"%Y-%m-%dT%H:%M:%SZ\"")?;
            Ok(Clock::Format { items, offset })
        }
    }
}

impl Form {
    /// The bytes as text.
    pub(super) fn text(self, bytes: &[u8]) -> String {
        match self {
            Self::Base64 => STANDARD.encode(bytes),
            Self::Hex | Self::UpperHex => bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
                // Writing to a `String` cannot fail.
                let _ = if self == Self::Hex { write!(text, "{byte:02x}") } else { write!(text, "{byte:02X}") };
                text
            }),
        }
    }
}

impl KeyForm {
    /// The key's bytes. The error does not quote it.
    pub(super) fn bytes(self, text: &str) -> Result<Vec<u8>, String> {
        match self {
            Self::Text => Ok(text.as_bytes().to_vec()),
            Self::Base64 => STANDARD.decode(text).map_err(|_| "is not base64".into()),
            Self::Hex => unhex(text).ok_or_else(|| "is not hexadecimal".into()),
        }
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? * 16 + digit(*low)?)).collect();
    if rest.is_empty() { bytes } else { None }
}

impl Clock {
    /// The time as text.
    pub(super) fn text(&self, now: DateTime<Utc>) -> String {
        match self {
            Self::Seconds => now.timestamp().to_string(),
            Self::Millis => now.timestamp_millis().to_string(),
            Self::Format { items, offset } => now.with_timezone(offset).format_with_items(items.iter()).to_string(),
        }
    }
}

/// The base64 of a text.
pub(super) fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

/// This many unpredictable bytes.
pub(super) fn random(bytes: usize) -> Result<Vec<u8>, String> {
    let mut random = vec![0; bytes];
    rand::fill(&mut random).map_err(|_| "the system gives no random bytes")?;
    Ok(random)
}

/// A random UUID.
pub(super) fn uuid() -> Result<String, String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| "the system gives no random bytes")?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
}

/// An RSA key, from PEM. No error quotes any of it.
pub(super) fn rsa_key(pem: &str) -> Result<RsaKeyPair, String> {
    let mend = "write the PEM text that begins with -----BEGIN PRIVATE KEY----- or -----BEGIN RSA PRIVATE KEY-----";
    let key = match PrivateKeyDer::from_pem_slice(pem.as_bytes()) {
        Ok(PrivateKeyDer::Pkcs8(der)) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
        Ok(PrivateKeyDer::Pkcs1(der)) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
        _ => return Err(format!("is no RSA private key in PEM: {mend}")),
    };
    let key = key.map_err(|_| format!("is no RSA private key of 2048 to 8192 bits: {mend}"))?;
    rsa_sha256(&key, "").map_err(|_| format!("does not sign: {mend}"))?;
    Ok(key)
}

/// `SHA256withRSA` of a text.
pub(super) fn rsa_sha256(key: &RsaKeyPair, text: &str) -> Result<Vec<u8>, String> {
    let mut signature = vec![0; key.public_modulus_len()];
    let signed = key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature);
    signed.map_err(|_| "the RSA key does not sign")?;
    Ok(signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_text_and_keys_become_bytes() {
        assert_eq!(Form::Hex.text(b"\x00\xab"), "00ab");
        assert_eq!(Form::UpperHex.text(b"\x00\xab"), "00AB");
        assert_eq!(Form::Base64.text(b"user:pass"), "dXNlcjpwYXNz");
        assert_eq!(KeyForm::Hex.bytes("00aB"), Ok(vec![0, 0xab]));
        assert_eq!(KeyForm::Base64.bytes("AKs="), Ok(vec![0, 0xab]));
        assert!(KeyForm::Hex.bytes("0").is_err() && KeyForm::Hex.bytes("zz").is_err() && KeyForm::Base64.bytes("#").is_err());
    }

    #[test]
    fn the_time_is_written_as_the_file_says() {
        let now = DateTime::from_timestamp_millis(1_680_016_407_123).expect("a time");
        let text = |form: &str, offset: &str| clock(form, offset).expect(form).text(now);
        assert_eq!(text("seconds", "+00:00"), "1680016407");
        assert_eq!(text("millis", "+00:00"), "1680016407123");
        assert_eq!(text("%Y-%m-%dT%H:%M:%S+07:00", "+07:00"), "2023-03-28T22:13:27+07:00");
        assert_eq!(text("%Y%m%d%H%M%S%3f", "-03:30"), "20230328114327123");
        assert!(clock("%Q", "+00:00").is_err() && clock("seconds", "Jakarta").is_err());
    }

    #[test]
    fn chance_is_another_one_each_time() {
        assert_ne!(random(16), random(16));
        let id = uuid().expect("a UUID");
        assert!(id.len() == 36 && id.as_bytes()[14] == b'4', "{id}");
    }

    #[test]
    fn an_rsa_key_is_checked_without_being_quoted() {
        for wrong in ["", "s3cret", include_str!("../../../tests/fixtures/ayoconnect/keys/ec.pem")] {
            let why = rsa_key(wrong).expect_err("refused");
            assert!(why.contains("-----BEGIN PRIVATE KEY-----") && !why.contains("s3cret"), "{why}");
        }
        let key = rsa_key(include_str!("../../../tests/fixtures/ayoconnect/keys/pkcs8.pem")).expect("a key");
        assert_eq!(rsa_sha256(&key, "x").expect("a signature").len(), key.public_modulus_len());
    }
}

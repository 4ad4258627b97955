//! `[account]`, `[params]` and `[options]`: what a file asks of the configuration and of a row, and
//! how their values are checked.

use super::tree::{Item, Source, Spot, Table};
use super::values;
use crate::wire;

/// A key of `[account]`, `[params]` or `[options]`.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: String,
    /// Nobody sees its value.
    pub(super) secret: bool,
    pub(super) required: bool,
    pub(super) form: Form,
    /// The fewest and the most characters.
    pub(super) length: Option<(usize, usize)>,
    /// It may stand in a URL although it is secret.
    pub(super) in_url: bool,
    pub(super) spot: Spot,
}

/// What a value must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Anything without control characters.
    Text,
    /// What a header can carry.
    Header,
    Uuid,
    Digits,
    /// Letters, digits, and the signs that mean nothing in a URL.
    Word,
    /// An RSA private key.
    PemRsa,
}

const FORMS: &str = "\"text\", \"header\", \"uuid\", \"digits\", \"word\" or \"pem-rsa\"";
/// No credential is longer.
const MAX_KEY_NUMBER: i64 = 65_536;

/// Reads one of the three tables. `secret` and `form` are what a key is that does not say.
pub(super) fn read(table: Option<Table<'_, '_>>, secret: bool, form: Form, source: &Source<'_>) -> Vec<Key> {
    let Some(mut table) = table else { return Vec::new() };
    table.named().into_iter().filter_map(|(name, item)| read_key(name, item, secret, form, source)).collect()
}

fn read_key(name: String, item: Item<'_, '_>, secret: bool, form: Form, source: &Source<'_>) -> Option<Key> {
    let mut table = item.table()?;
    let spot = table.spot().clone();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) || name.ends_with("_file") {
        source.problem(&spot, "is no name for a key; use letters, digits and _, and no _file at the end");
    }
    let key = Key {
        secret: table.optional("secret").map_or(Some(secret), Item::flag).unwrap_or(true),
        required: table.optional("required").map_or(Some(true), Item::flag).unwrap_or(true),
        form: table.optional("form").map_or(Some(form), |item| item.parsed(named_form)).unwrap_or(form),
        length: table.optional("length").and_then(|item| read_length(item, source)),
        in_url: table.flag("in_url"),
        name,
        spot,
    };
    table.finish();
    if key.form == Form::PemRsa && !key.secret {
        source.problem(&key.spot, "a private key is a secret; leave `secret = false` out");
    }
    Some(key)
}

fn named_form(text: &str) -> Result<Form, String> {
    Ok(match text {
        "text" => Form::Text,
        "header" => Form::Header,
        "uuid" => Form::Uuid,
        "digits" => Form::Digits,
        "word" => Form::Word,
        "pem-rsa" => Form::PemRsa,
        _ => return Err(format!("is no form; write {FORMS}")),
    })
}

/// A number of characters, or the fewest and the most.
fn read_length(item: Item<'_, '_>, source: &Source<'_>) -> Option<(usize, usize)> {
    let spot = item.spot.clone();
    let numbers: Vec<i64> = item.one_or_more().into_iter().filter_map(|item| item.integer(1, MAX_KEY_NUMBER)).collect();
    let size = |number: i64| usize::try_from(number).unwrap_or(usize::MAX);
    match numbers.as_slice() {
        [length] => Some((size(*length), size(*length))),
        [least, most] if least <= most => Some((size(*least), size(*most))),
        _ => {
            source.problem(&spot, "is a number of characters, or the fewest and the most, as in [16, 36]");
            None
        }
    }
}

impl Key {
    /// Checks a value. The error begins with the key and never quotes the value.
    pub(super) fn check(&self, shown: &str, value: &str) -> Result<(), String> {
        if let Some((least, most)) = self.length {
            let length = value.chars().count();
            if !(least..=most).contains(&length) {
                let wanted = if least == most { least.to_string() } else { format!("{least} to {most}") };
                return Err(format!("{shown} has {length} characters where {wanted} are documented"));
            }
        }
        let letters = || value.bytes();
        let fits = match self.form {
            Form::Text => !value.chars().any(char::is_control),
            Form::Header => return wire::header_value(shown, value),
            Form::Uuid => value.len() == 36 && uuid::Uuid::try_parse(value).is_ok(),
            Form::Digits => letters().all(|byte| byte.is_ascii_digit()),
            Form::Word => letters().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)),
            Form::PemRsa => return values::rsa_key(value).map(drop).map_err(|why| format!("{shown} {why}")),
        };
        if fits { Ok(()) } else { Err(format!("{shown} is not {}", self.form.described())) }
    }
}

impl Form {
    /// For people.
    pub(super) fn described(self) -> &'static str {
        match self {
            Self::Text => "text without control characters",
            Self::Header => "text that a header can carry",
            Self::Uuid => "a UUID such as 04822b2a-0896-4612-9e9e-15ce749b7883",
            Self::Digits => "digits alone",
            Self::Word => "a word of letters, digits and - . _ ~",
            Self::PemRsa => "an RSA private key in PEM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(form: Form, length: Option<(usize, usize)>) -> Key {
        Key { name: "k".into(), secret: true, required: true, form, length, in_url: false, spot: Spot::default() }
    }

    #[test]
    fn a_value_is_checked_without_being_quoted() {
        for (form, good, bad) in [
            (Form::Text, "a b é", "s3cret\n"),
            (Form::Header, "sk_1", "s3cret é"),
            (Form::Uuid, "04822b2a-0896-4612-9e9e-15ce749b7883", "s3cret"),
            (Form::Digits, "0123", "s3cret"),
            (Form::Word, "a-b._~9", "s3cret/"),
            (Form::PemRsa, include_str!("../../../tests/fixtures/ayoconnect/keys/pkcs8.pem"), "s3cret"),
        ] {
            assert_eq!(key(form, None).check("k", good), Ok(()), "{form:?}");
            let why = key(form, None).check("k", bad).expect_err("refused");
            assert!(why.starts_with("k ") && !why.contains("s3cret"), "{why}");
        }
    }

    #[test]
    fn a_length_is_counted_in_characters() {
        let said = key(Form::Text, Some((2, 3))).check("params.k", "é").expect_err("too short");
        assert_eq!(said, "params.k has 1 characters where 2 to 3 are documented");
        assert!(key(Form::Text, Some((2, 2))).check("k", "éé").is_ok());
    }
}

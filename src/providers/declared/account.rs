//! An account at a declared provider: credentials that were checked, and what can be made of them
//! once and for all.

use super::file::File;
use super::keys::Key;
use super::template::{Name, Part, Template};
use super::values::{self, Function, KeyForm};
use crate::providers::{Ask, Settings};
use crate::wire;
use aws_lc_rs::signature::RsaKeyPair;
use aws_lc_rs::{digest, hmac};
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;

/// An account, opened with its credentials.
pub(super) struct Account<'f> {
    pub(super) file: &'f File,
    pub(super) base_url: String,
    keys: Vec<Option<SecretString>>,
    options: Vec<Option<String>>,
    rsa_keys: Vec<Option<RsaKeyPair>>,
    /// By value: the key of an HMAC that is the account's own.
    hmac_keys: Vec<Option<hmac::Key>>,
    /// By value: what is the same in every request.
    fixed: Vec<Option<String>>,
    /// Secrets of the account, and what is made of them alone.
    secrets: Vec<SecretString>,
}

impl fmt::Debug for Account<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("provider", &self.file.name).finish_non_exhaustive()
    }
}

/// What a transaction brings along: one place for each of `[params]`.
pub(super) struct Row<'a> {
    pub(super) reference: &'a str,
    pub(super) params: Vec<Option<&'a str>>,
}

/// What placeholders stand for while one request is made or one answer is read.
pub(super) struct Scope<'a> {
    account: &'a Account<'a>,
    /// There is none when a token is requested.
    row: Option<&'a Row<'a>>,
    token: Option<&'a str>,
    now: DateTime<Utc>,
    method: &'static str,
    /// Set as soon as it is made.
    pub(super) path: OnceCell<String>,
    /// Set as soon as it is made.
    pub(super) body: OnceCell<String>,
    values: Vec<OnceCell<Option<String>>>,
}

/// Where rendered text is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Placeholders are percent-encoded.
    Url,
    /// Placeholders must be what a header can carry.
    Header,
    /// As it is.
    Plain,
}

impl<'f> Account<'f> {
    /// Opens an account. The error begins with the key and says what to fix.
    pub(super) fn open(file: &'f File, settings: &Settings) -> Result<Self, String> {
        let mut keys = Vec::with_capacity(file.account.len());
        let mut rsa_keys = Vec::with_capacity(file.account.len());
        for key in &file.account {
            let value = if key.required { Some(settings.required(&key.name)?) } else { settings.optional(&key.name) };
            if let Some(value) = &value {
                key.check(&key.name, value.expose_secret())?;
            }
            let signs = value.as_ref().filter(|_| key.form == super::keys::Form::PemRsa);
            let signs = signs.map(|pem| values::rsa_key(pem.expose_secret()));
            rsa_keys.push(signs.transpose().map_err(|why| format!("{} {why}", key.name))?);
            keys.push(value);
        }
        let options = file.options.iter().map(|key| option(key, settings)).collect::<Result<_, _>>()?;
        let base_url = settings.base_url.trim_end_matches('/').to_owned();
        let mut account =
            Self { file, base_url, keys, options, rsa_keys, hmac_keys: Vec::new(), fixed: Vec::new(), secrets: Vec::new() };
        account.hmac_keys = file.values.iter().map(|value| account.hmac_key(&value.function)).collect::<Result<_, _>>()?;
        account.fixed = account.fixed_values()?;
        account.secrets = account.collect_secrets();
        Ok(account)
    }

    /// The key of an HMAC where it is the account's own.
    fn hmac_key(&self, function: &Function) -> Result<Option<hmac::Key>, String> {
        let Function::Hmac { algorithm, key: Name::Account(index), key_form, .. } = function else { return Ok(None) };
        let Some(key) = &self.keys[*index] else { return Ok(None) };
        let bytes = key_form.bytes(key.expose_secret()).map_err(|why| format!("{} {why}", self.file.names.account[*index]))?;
        Ok(Some(hmac::Key::new(*algorithm, &bytes)))
    }

    /// Values that come of the account and the options alone.
    fn fixed_values(&self) -> Result<Vec<Option<String>>, String> {
        let scope = Scope::new(self, None, None, DateTime::UNIX_EPOCH, "");
        let indices = 0..self.file.values.len();
        indices
            .map(|index| if self.is_fixed(index) { scope.value(index).map(|value| value.map(str::to_owned)) } else { Ok(None) })
            .collect()
    }

    /// Whether a value is the same in every request.
    fn is_fixed(&self, index: usize) -> bool {
        let value = &self.file.values[index];
        let fixed = |name: Name| match name {
            Name::Account(_) | Name::Option(_) => true,
            Name::Value(index) => self.is_fixed(index),
            _ => false,
        };
        !value.is_fresh() && value.names().into_iter().all(fixed)
    }

    fn collect_secrets(&self) -> Vec<SecretString> {
        let keys = self.file.account.iter().zip(&self.keys);
        let of_account = keys.filter(|(key, _)| key.secret).filter_map(|(_, value)| value.clone());
        let made = self.fixed.iter().enumerate().filter(|(index, _)| self.file.is_secret(Name::Value(*index)));
        of_account.chain(made.filter_map(|(_, value)| value.clone().map(Into::into))).collect()
    }

    /// The secret values that an answer might echo.
    pub(super) fn secrets<'a>(&'a self, ask: Ask<'a>) -> Vec<&'a str> {
        let params = self.file.params.iter().filter(|param| param.secret);
        let of_row = params.filter_map(|param| wire::optional_param(ask.params, &param.name).ok().flatten());
        self.secrets.iter().map(ExposeSecret::expose_secret).chain(ask.token).chain(of_row).collect()
    }

    /// What the row brings along. The error names the param and the remedy.
    pub(super) fn row<'a>(&self, ask: Ask<'a>) -> Result<Row<'a>, String> {
        let param = |key: &Key| {
            let value = wire::optional_param(ask.params, &key.name)?;
            match value {
                Some(value) => key.check(&format!("params.{}", key.name), value)?,
                None if key.required => return Err(format!("params.{} is missing", key.name)),
                None => {}
            }
            Ok(value)
        };
        Ok(Row { reference: ask.reference, params: self.file.params.iter().map(param).collect::<Result<_, _>>()? })
    }
}

fn option(key: &Key, settings: &Settings) -> Result<Option<String>, String> {
    let value = settings.option(&key.name);
    match value {
        "" if key.required => Err(format!("{} is missing", key.name)),
        "" => Ok(None),
        value => key.check(&key.name, value).map(|()| Some(value.to_owned())),
    }
}

impl<'a> Scope<'a> {
    pub(super) fn new(
        account: &'a Account<'a>,
        row: Option<&'a Row<'a>>,
        token: Option<&'a str>,
        now: DateTime<Utc>,
        method: &'static str,
    ) -> Self {
        let values = account.file.values.iter().map(|_| OnceCell::new()).collect();
        Self { account, row, token, now, method, path: OnceCell::new(), body: OnceCell::new(), values }
    }

    /// What a name stands for; `None` where it is optional and not there.
    fn find(&self, name: Name) -> Result<Option<Cow<'_, str>>, String> {
        let made = |cell: &'_ OnceCell<String>| cell.get().cloned().map(Cow::Owned);
        Ok(match name {
            Name::Reference => self.row.map(|row| Cow::Borrowed(row.reference)),
            Name::Param(index) => self.row.and_then(|row| row.params[index]).map(Cow::Borrowed),
            Name::Token => Some(Cow::Borrowed(self.token.ok_or("the account has no access token yet")?)),
            Name::Account(index) => self.account.keys[index].as_ref().map(|key| Cow::Borrowed(key.expose_secret())),
            Name::Option(index) => self.account.options[index].as_deref().map(Cow::Borrowed),
            Name::Value(index) => self.value(index)?.map(Cow::Borrowed),
            Name::Method => Some(Cow::Borrowed(self.method)),
            Name::Path => made(&self.path),
            Name::Body => Some(made(&self.body).unwrap_or_default()),
        })
    }

    /// A value; the same one wherever the request uses it.
    fn value(&self, index: usize) -> Result<Option<&str>, String> {
        if let Some(fixed) = self.account.fixed.get(index).and_then(Option::as_deref) {
            return Ok(Some(fixed));
        }
        let cell = &self.values[index];
        if cell.get().is_none() {
            let made = self.make(index)?;
            // Nothing else sets it: a value that needs itself is refused when the file is read.
            drop(cell.set(made));
        }
        Ok(cell.get().and_then(Option::as_deref))
    }

    fn make(&self, index: usize) -> Result<Option<String>, String> {
        let plain = |template: &Template| self.text(template, Target::Plain);
        Ok(match &self.account.file.values[index].function {
            Function::Text(of) => plain(of)?,
            Function::Base64(of) => plain(of)?.map(|text| values::base64(&text)),
            Function::Digest { algorithm, of, form } => {
                plain(of)?.map(|text| form.text(digest::digest(algorithm, text.as_bytes()).as_ref()))
            }
            Function::Hmac { algorithm, of, key, key_form, form } => {
                let Some(text) = plain(of)? else { return Ok(None) };
                let signed = match self.account.hmac_keys.get(index) {
                    Some(Some(key)) => hmac::sign(key, text.as_bytes()),
                    _ => match self.hmac_key(*algorithm, *key, *key_form)? {
                        Some(key) => hmac::sign(&key, text.as_bytes()),
                        None => return Ok(None),
                    },
                };
                Some(form.text(signed.as_ref()))
            }
            Function::RsaSha256 { of, key, form } => match (plain(of)?, &self.account.rsa_keys[*key]) {
                (Some(text), Some(key)) => Some(form.text(&values::rsa_sha256(key, &text)?)),
                _ => None,
            },
            Function::Now { clock } => Some(clock.text(self.now)),
            Function::Random { bytes, form } => Some(form.text(&values::random(*bytes)?)),
            Function::Uuid => Some(values::uuid()?),
        })
    }

    fn hmac_key(&self, algorithm: hmac::Algorithm, key: Name, form: KeyForm) -> Result<Option<hmac::Key>, String> {
        let Some(text) = self.find(key)? else { return Ok(None) };
        let bytes = form.bytes(&text).map_err(|why| format!("{} {why}", self.account.file.names.text(key)))?;
        Ok(Some(hmac::Key::new(algorithm, &bytes)))
    }

    /// The template's text; `None` where it names something optional that is not there.
    pub(super) fn text(&self, template: &Template, into: Target) -> Result<Option<String>, String> {
        let mut text = String::new();
        for part in &template.parts {
            let name = match part {
                Part::Text(plain) => {
                    text.push_str(plain);
                    continue;
                }
                Part::Placeholder(name) => *name,
            };
            let Some(value) = self.find(name)? else { return Ok(None) };
            match into {
                // A path was encoded when it was made.
                Target::Url if name != Name::Path => text.push_str(&wire::encoded(&value)),
                Target::Header if !value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') => {
                    return Err(format!("{} has characters that no header can carry", self.account.file.names.text(name)));
                }
                _ => text.push_str(&value),
            }
        }
        Ok(Some(text))
    }

    /// Sets a value that is another one each time to what was seen of it.
    pub(super) fn preset(&self, index: usize, text: &str) {
        if let Some(cell) = self.values.get(index) {
            drop(cell.set(Some(text.to_owned())));
        }
    }

    /// Whether a name stands for this text.
    pub(super) fn stands_for(&self, name: Name, wanted: &str) -> bool {
        matches!(self.find(name), Ok(Some(text)) if text == wanted)
    }

    /// Whether a template's text is this one.
    pub(super) fn is(&self, template: &Template, wanted: &str) -> bool {
        match template.only() {
            // Compared without making it anew: this is what most files ask of every answer.
            Some(name) => self.stands_for(name, wanted),
            None => matches!(self.text(template, Target::Plain), Ok(Some(text)) if text == wanted),
        }
    }
}

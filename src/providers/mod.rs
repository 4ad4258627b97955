//! The providers: each knows its documented request, its documented words, and nothing else. Five
//! are compiled in, any number is [`declared`] in files; no code outside of here sees a difference.
//!
//! A provider builds a request *value* and reads a response *value*; it never sees a clock, a
//! socket or the database. What a provider file does not know: when it is polled, how often, by
//! which replica, and what follows from its [`Outcome`].
//!
//! A sixth compiled provider is one new file, one line in [`REGISTRY`], one section in
//! `config/default.toml`, one fixture folder and one line in a migration.

use crate::domain::{Floors, Outcome};
use crate::wire::{Kept, Request, Response};
use chrono::{DateTime, Utc};
use declared::Declaration;
use rust_decimal::Decimal;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

mod ayoconnect;
mod dapi;
pub mod declared;
mod dropayment;
mod dusupay;
mod khalti;

/// What a provider needs to know of the transaction to poll.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The key that the provider looks up. Neither empty nor with control characters: the caller
    /// has seen to that.
    pub reference: &'a str,
    /// What the lookup needs beside the reference.
    pub params: &'a Value,
    /// The time of the poll.
    pub now: DateTime<Utc>,
    /// The account's access token, where the provider has a [`TokenFlow`].
    pub token: Option<&'a str>,
    /// The amount that the feeder expects, in major units.
    pub amount: Option<Decimal>,
}

/// One merchant account at one provider.
pub trait Provider: Send + Sync {
    /// The request for a transaction's status. The error says what to fix in the row: the row is
    /// `invalid`.
    fn request(&self, ask: Ask<'_>) -> Result<Request, String>;

    /// What a response means. Total: every response has a meaning, and only a documented word about
    /// this very transaction is one about its outcome.
    fn read(&self, ask: Ask<'_>, response: &Response) -> Outcome;

    /// The secret values that an answer might echo: the account's and the row's.
    fn secrets<'a>(&'a self, ask: Ask<'a>) -> Vec<&'a str>;

    /// What is kept of an answer: never payer data, session tokens or redirect URLs.
    fn kept<'a>(&'a self, _ask: Ask<'a>) -> Kept<'a> {
        Kept::EVERYTHING
    }

    /// Whether every answer about a transaction carries an identifier that [`Provider::read`]
    /// compares with ours.
    ///
    /// Where it does not (Ayoconnect, Dapi's newer shape), a final word is believed only from a
    /// connection that carried no other request: an answer that strayed from another question could
    /// not be distinguished from one to ours.
    fn answers_name_their_transaction(&self) -> bool {
        true
    }

    /// Of requests with the same key at most one may be in flight.
    fn exclusive_key<'a>(&self, _ask: Ask<'a>) -> Option<&'a str> {
        None
    }

    /// SHA-256 of the file that declares the provider; `None` for a compiled one.
    fn declaration(&self) -> Option<[u8; 32]> {
        None
    }

    /// How to get an access token, for accounts that need one.
    fn token_flow(&self) -> Option<&dyn TokenFlow> {
        None
    }
}

/// How an account gets its access token. The token is fetched once per account, shared, renewed
/// early, and renewed once on a 401.
pub trait TokenFlow: Send + Sync {
    /// The request for a token at `now`.
    fn request(&self, now: DateTime<Utc>) -> Request;
    /// What the response to a request at `now` means: a token, or the outcome of the poll that wanted one.
    fn read(&self, response: &Response, now: DateTime<Utc>) -> Result<Token, Outcome>;
    /// Whether an answer about this reference says that the token was not accepted: then it is renewed, once.
    fn is_refused(&self, _reference: &str, response: &Response) -> bool {
        response.status == 401
    }
}

/// An access token.
pub struct Token {
    /// The token.
    pub value: SecretString,
    /// How long it is good for, or is taken to be.
    pub lifetime: Duration,
    /// It is renewed this long before its end, where the documentation says so; else when a tenth
    /// of its lifetime is left.
    pub renew_before: Option<Duration>,
}

impl Token {
    /// A token whose answer does not say how long it lives. Renewing too often only costs a request.
    pub const UNTOLD_LIFETIME: Duration = Duration::from_secs(900);
    /// However short its stated lifetime is, a token is not fetched anew for every poll: should it
    /// have expired before, a 401 says so.
    pub const SHORTEST_LIFETIME: Duration = Duration::from_secs(60);
    /// No token is trusted for longer, whatever its answer says.
    pub const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 3600);

    /// A token with the lifetime that its answer tells, within reason.
    #[must_use]
    pub fn new(value: SecretString, told: Option<Duration>) -> Self {
        let lifetime = told.unwrap_or(Self::UNTOLD_LIFETIME).clamp(Self::SHORTEST_LIFETIME, Self::LONGEST_LIFETIME);
        Self { value, lifetime, renew_before: None }
    }
}

/// What is known of a provider before any account of it is configured.
pub struct Descriptor {
    /// The name in configuration, tables, log and metrics.
    pub name: &'static str,
    /// What its documentation forbids to go below: see [`Floors`].
    pub floors: Floors,
    /// It needs no account key, so an account `default` exists without being configured.
    pub implicit_account: bool,
    /// The keys of its accounts.
    pub account_keys: &'static [&'static str],
    /// Its own configuration keys beyond the common ones.
    pub option_keys: &'static [&'static str],
    /// Opens an account: checks the values against their documented lengths and forms. The error
    /// names the key and the remedy, and never holds a secret.
    pub open: Open,
}

/// How an account is opened.
#[derive(Clone, Copy)]
pub enum Open {
    /// The provider is compiled in.
    Compiled(fn(&Settings) -> Result<Box<dyn Provider>, String>),
    /// It stands in a file.
    Declared(&'static Declaration),
}

impl Descriptor {
    /// Opens an account: see [`Descriptor::open`].
    pub fn open(&self, settings: &Settings) -> Result<Box<dyn Provider>, String> {
        match self.open {
            Open::Compiled(open) => open(settings),
            Open::Declared(declaration) => declaration.open(settings),
        }
    }

    /// The file that declares it; `None` for the compiled ones.
    #[must_use]
    pub fn declaration(&self) -> Option<&'static Declaration> {
        match self.open {
            Open::Compiled(_) => None,
            Open::Declared(declaration) => Some(declaration),
        }
    }
}

/// What an account is opened with.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The API's address, without a slash at the end.
    pub base_url: String,
    /// The provider's own options ([`Descriptor::option_keys`]).
    pub options: BTreeMap<String, String>,
    /// The account's keys ([`Descriptor::account_keys`]).
    pub account: BTreeMap<String, SecretString>,
}

impl Settings {
    /// A key that the account must have.
    pub fn required(&self, key: &str) -> Result<SecretString, String> {
        self.optional(key).ok_or_else(|| format!("{key} is missing"))
    }

    /// Errors and names, a line each, all of these keys that the account does not have.
    pub fn require(&self, keys: &[&str]) -> Result<(), String> {
        let missing: Vec<String> = keys.iter().filter_map(|key| self.required(key).err()).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing.join("\n")) }
    }

    /// A key that the account may have.
    #[must_use]
    pub fn optional(&self, key: &str) -> Option<SecretString> {
        self.account.get(key).filter(|value| !value.expose_secret().is_empty()).cloned()
    }

    /// A provider option; its default stands in `config/default.toml`.
    #[must_use]
    pub fn option(&self, key: &str) -> &str {
        self.options.get(key).map_or("", String::as_str)
    }

    /// A provider option that is put into the URL's path as it is: empty, or with a slash before
    /// and none after.
    pub fn path(&self, key: &str) -> Result<&str, String> {
        let path = self.option(key);
        let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~%".contains(&byte));
        if plain && (path.is_empty() || path.starts_with('/')) && !path.ends_with('/') {
            Ok(path)
        } else {
            Err(format!("{key} = {path:?} is no URL path: write it with a slash before it and none after it, like \"/api/v1\""))
        }
    }
}

/// The providers that are compiled in.
pub const REGISTRY: [Descriptor; 5] =
    [dropayment::DESCRIPTOR, dusupay::DESCRIPTOR, ayoconnect::DESCRIPTOR, khalti::DESCRIPTOR, dapi::DESCRIPTOR];

static COMPILED: [Descriptor; 5] = REGISTRY;
/// The providers that files declare, by the configuration that was read last.
static DECLARED: RwLock<Vec<&'static Descriptor>> = RwLock::new(Vec::new());

/// Every provider that paypoll knows: the compiled ones, then those that the configuration declares.
#[must_use]
pub fn all() -> Vec<&'static Descriptor> {
    let declared = DECLARED.read().unwrap_or_else(PoisonError::into_inner);
    COMPILED.iter().chain(declared.iter().copied()).collect()
}

/// The provider of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Descriptor> {
    all().into_iter().find(|descriptor| descriptor.name == name)
}

/// Makes a declared provider known, in place of an earlier one of its name. The same file is the
/// same provider.
pub fn declare(declaration: Declaration) -> &'static Descriptor {
    let mut declared = DECLARED.write().unwrap_or_else(PoisonError::into_inner);
    let same = |known: &&Descriptor| {
        known.declaration().is_some_and(|known| known.origin() == declaration.origin() && known.sha256() == declaration.sha256())
    };
    if let Some(known) = declared.iter().find(|known| same(known)) {
        return known;
    }
    // Files are read at the start and when they have changed: a few kilobytes each.
    let declaration: &'static Declaration = Box::leak(Box::new(declaration));
    let descriptor: &'static Descriptor = Box::leak(Box::new(declaration.descriptor()));
    declared.retain(|known| known.name != descriptor.name);
    declared.push(descriptor);
    descriptor
}

/// Whether a provider of that name is compiled in.
fn is_compiled(name: &str) -> bool {
    REGISTRY.iter().any(|descriptor| descriptor.name == name)
}

/// An identifier that may be scrubbed by value: digits alone would blot out amounts and references as well.
fn unlike_a_number(identifier: &str) -> Option<&str> {
    Some(identifier).filter(|text| text.bytes().any(|byte| !byte.is_ascii_digit()))
}

/// What the tests of all provider files need.
#[cfg(test)]
mod testing {
    use super::*;
    use bytes::Bytes;

    /// What to open an account with; its base URL has a path, as behind a gateway.
    pub(super) fn settings(options: &[(&str, &str)], account: &[(&str, &str)]) -> Settings {
        Settings {
            base_url: "http://127.0.0.1:1/gate".into(),
            options: options.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
            account: account.iter().map(|&(key, value)| (key.to_owned(), value.into())).collect(),
        }
    }

    /// Polls `reference` at a fixed time.
    pub(super) fn ask<'a>(reference: &'a str, params: &'a Value) -> Ask<'a> {
        let now = DateTime::from_timestamp_millis(1_680_016_407_123).expect("a time in range");
        Ask { reference, params, now, token: None, amount: None }
    }

    /// An answer without `Retry-After`.
    pub(super) fn response(status: u16, body: &str) -> Response {
        Response { status, retry_after: None, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    /// The value of a request's header.
    pub(super) fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
        request.headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str())
    }

    /// The body of a fixture with one text in it replaced.
    pub(super) fn with(body: &str, old: &str, new: &str) -> String {
        assert!(body.contains(old), "{old:?} is not in the fixture");
        body.replace(old, new)
    }
}

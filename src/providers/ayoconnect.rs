//! Ayoconnect: get the status of a transaction (direct debit, service code 36).
//!
//! Source: the page "Get the Status of a transaction API" of Ayoconnect's API documentation, read
//! 2026-11. Marked "public": newer public pages of the vendor, weaker than the page; it shows
//! neither an answer nor the names of its headers.
//!
//! | rule | source |
//! |---|---|
//! | no HTTP code but 200 fails a transaction | "In case of any HTTP response code other than 200 received in the response, please 'DO NOT FAIL' the transaction." |
//! | … it is polled again | "Instead, hit the 'Transaction Status' API again" |
//! | none for the pace | public: "A rate limiter is applied to this API." |
//! | the signature | "HMAC_SHA512(clientSecret, stringToSign)", "stringToSign = HTTPMethod +":"+ URLPath +":"+ AccessToken +":"+ Lowercase(HexEncode(SHA-256(minify(RequestBody))))+":" + X-TIMESTAMP" |
//! | the original transaction's X-EXTERNAL-ID throughout | "Value of X-External-ID header of the original transaction."; "unique in the same flow" |
//!
//! Traps: `TIMEOUT` is the bank's and not final; HTTP 202 is no success, and 404 may come just
//! after creation; the signature is hexadecimal, signs the path without the query and the token
//! without "Bearer "; the query key `XExternalId` has no hyphens, the header has; the published
//! samples mix upper and lower case, so words are compared without regard to case.
//!
//! Decided, because the page is silent: the answer is believed at HTTP 200 with a `responseCode`,
//! when it has one, that begins with 200, and a known `additionalInfo.paymentResult`. It carries no
//! identifier to compare. HTTP 202 says that the answer is not there yet: a snooze, no failure.

use super::{Ask, Descriptor, Open, Provider, Settings, Token, TokenFlow};
use crate::domain::{Floors, Outcome, Reported, Status, Whose};
use crate::wire::{self, Kept, Lenient, Method, Object, Request, Response, Scalar};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use aws_lc_rs::{digest, hmac};
use chrono::{DateTime, FixedOffset, Utc};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Duration;

/// The documentation sets none.
const FLOORS: Floors = Floors { first: Duration::ZERO, margin: Duration::ZERO, every: Duration::ZERO, window: None, rate: None };

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "ayoconnect",
    floors: FLOORS,
    implicit_account: false,
    account_keys: &["merchant_id", "client_id", "client_secret", "channel_id", "access_token", "private_key"],
    option_keys: &["path_prefix", "timestamp"],
    open: Open::Compiled(|settings| Ok(Box::new(Ayoconnect::open(settings)?))),
};

/// Keys of answers whose values are not kept; the last three are public.
const PRIVATE: [&str; 7] =
    ["webRedirectUrl", "appRedirectUrl", "bankCardToken", "accessToken", "accountToken", "publicUserId", "maskedCard"];

struct Ayoconnect {
    /// The URL before `/debit/status`.
    base_url: String,
    /// The path that is signed: of the whole URL, without the query.
    status_path: String,
    merchant_id: String,
    /// "X-CLIENT-KEY" is optional; signing for a token needs it.
    client_id: Option<String>,
    /// For rows that name none.
    channel_id: String,
    clock: Clock,
    client_secret: SecretString,
    signing_key: hmac::Key,
    access: Access,
}

/// How the account comes by its access token.
enum Access {
    /// It is configured.
    Fixed(SecretString),
    /// It is fetched.
    B2b(Box<B2b>),
}

/// Public: the B2B access token API.
struct B2b {
    url: String,
    merchant_id: String,
    client_id: String,
    clock: Clock,
    key: RsaKeyPair,
}

/// How time stamps are written.
#[derive(Clone, Copy)]
enum Clock {
    /// In UTC with milliseconds and `Z`: 24 characters.
    Utc,
    /// Public: in seconds with this offset, as in the published samples: 25 characters.
    Offset(FixedOffset),
}

impl Ayoconnect {
    fn open(settings: &Settings) -> Result<Self, String> {
        settings.require(&["merchant_id", "channel_id", "client_secret"])?;
        let base_url = format!("{}{}", settings.base_url, settings.path("path_prefix")?);
        // "Unique identifier of merchant", "length between 6 and 6"
        let merchant_id = identifier(settings, "merchant_id", 6)?;
        // "Client's client_id (PJP Name)", "length between 32 and 32"
        let client_id = settings.optional("client_id").map(|_| identifier(settings, "client_id", 32)).transpose()?;
        // "Numeric String", "length between 5 and 5"
        let channel_id = identifier(settings, "channel_id", 5)?;
        if !channel_id.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("channel_id is documented as 5 digits: write the number that Ayoconnect assigned".into());
        }
        let client_secret = settings.required("client_secret")?;
        let clock = clock(settings.option("timestamp"))?;
        let access = match (settings.optional("access_token"), settings.optional("private_key")) {
            (Some(token), None) => {
                wire::header_value("access_token", token.expose_secret())?;
                Access::Fixed(token)
            }
            (None, Some(key)) => {
                let url = format!("{base_url}/access-token/b2b");
                let key = private_key(&key)?;
                let client_id = client_id.clone().ok_or("client_id is missing: a token is asked for with it")?;
                Access::B2b(Box::new(B2b { url, merchant_id: merchant_id.clone(), client_id, clock, key }))
            }
            (None, None) => return Err("access_token or private_key is missing: write one of them".into()),
            (Some(_), Some(_)) => return Err("access_token and private_key exclude each other: write one of them".into()),
        };
        Ok(Self {
            status_path: format!("{}/debit/status", path(&base_url)),
            base_url,
            merchant_id,
            client_id,
            channel_id,
            clock,
            signing_key: hmac::Key::new(hmac::HMAC_SHA512, client_secret.expose_secret().as_bytes()),
            client_secret,
            access,
        })
    }
}

impl Provider for Ayoconnect {
    fn request(&self, ask: Ask<'_>) -> Result<Request, String> {
        let token = match &self.access {
            Access::Fixed(token) => token.expose_secret(),
            Access::B2b(_) => ask.token.ok_or("the account has no access token yet")?,
        };
        wire::header_value("reference", ask.reference)?;
        // "Must be the same in one flow": an app and a web shop of one merchant may differ.
        let channel_id = match wire::optional_param(ask.params, "channelId")? {
            Some(id) => wire::header_value("params.channelId", id).map(|()| id)?,
            None => &self.channel_id,
        };
        let timestamp = timestamp(self.clock, ask.now);
        let signature = signature(&self.signing_key, "GET", &self.status_path, token, "", &timestamp);
        let (merchant, reference) = (wire::encoded(&self.merchant_id), wire::encoded(ask.reference));
        let mut headers = vec![
            ("accept", "application/json".into()),
            ("authorization", format!("Bearer {token}")),
            ("x-timestamp", timestamp),
            ("x-signature", signature),
            ("x-partner-id", self.merchant_id.clone()),
            ("x-external-id", ask.reference.to_owned()),
            ("channel-id", channel_id.to_owned()),
        ];
        headers.extend(self.client_id.clone().map(|id| ("x-client-key", id)));
        Ok(Request {
            method: Method::Get,
            url: format!("{}/debit/status?merchantId={merchant}&XExternalId={reference}", self.base_url),
            headers,
            body: None,
        })
    }

    fn read(&self, _ask: Ask<'_>, response: &Response) -> Outcome {
        let answer = wire::form::<Answer>(&response.body);
        match (response.status, answer) {
            (200, Ok((answer, details))) => read_transaction(answer, details).unwrap_or_else(|why| Outcome::Unusable { why }),
            (202, _) => Outcome::TooEarly,
            (404, Ok((answer, _))) => Outcome::NotFound { message: answer.complaint() },
            (200 | 404, Err(why)) => wire::unreadable(response, why),
            (_, answer) => failure(response, answer.map(|(answer, _)| answer.complaint())),
        }
    }

    fn secrets<'a>(&'a self, ask: Ask<'a>) -> Vec<&'a str> {
        let fixed = match &self.access {
            Access::Fixed(token) => Some(token.expose_secret()),
            Access::B2b(_) => None,
        };
        let credentials = [Some(self.client_secret.expose_secret()), fixed, ask.token, self.client_id.as_deref()];
        let merchant = super::unlike_a_number(&self.merchant_id);
        credentials.into_iter().chain([merchant]).flatten().collect()
    }

    fn kept<'a>(&'a self, _ask: Ask<'a>) -> Kept<'a> {
        Kept::AllBut(&PRIVATE)
    }

    /// No answer of the published form repeats what was asked.
    fn answers_name_their_transaction(&self) -> bool {
        false
    }

    fn token_flow(&self) -> Option<&dyn TokenFlow> {
        match &self.access {
            Access::Fixed(_) => None,
            Access::B2b(flow) => Some(flow.as_ref()),
        }
    }
}

impl TokenFlow for B2b {
    fn request(&self, now: DateTime<Utc>) -> Request {
        let timestamp = timestamp(self.clock, now);
        let signature = rsa_signature(&self.key, &format!("{}|{timestamp}", self.client_id));
        let body = json!({ "grantType": "client_credentials", "additionalInfo": { "merchantId": self.merchant_id } });
        Request {
            method: Method::Post,
            url: self.url.clone(),
            headers: vec![
                ("accept", "application/json".into()),
                ("content-type", "application/json".into()),
                ("x-timestamp", timestamp),
                ("x-client-key", self.client_id.clone()),
                ("x-signature", signature.expect("a key that signed when the account was opened still signs")),
            ],
            body: Some(body.to_string()),
        }
    }

    fn read(&self, response: &Response, _now: DateTime<Utc>) -> Result<Token, Outcome> {
        let answer = wire::form::<TokenAnswer>(&response.body);
        if response.status != 200 {
            let outcome = failure(response, answer.map(|_| "no access token".into()));
            // A request for a token carries nothing of any row: a refusal concerns the account.
            return Err(match outcome {
                Outcome::CredentialsRejected { message, park, .. } => {
                    Outcome::CredentialsRejected { whose: Whose::Account, park, message }
                }
                other => other,
            });
        }
        let unusable = |why: String| Outcome::Unusable { why: format!("access token: {why}") };
        let (TokenAnswer { access_token, expires_in }, _) = answer.map_err(unusable)?;
        let token = access_token.filter(|token| !token.is_empty()).ok_or_else(|| unusable("the answer has none".into()))?;
        wire::header_value("it", &token).map_err(unusable)?;
        let seconds = expires_in.as_ref().and_then(wire::scalar).and_then(|text| text.parse().ok());
        Ok(Token::new(token.into(), seconds.map(Duration::from_secs)))
    }
}

/// An identifier of documented length, sent as a header.
fn identifier(settings: &Settings, key: &str, length: usize) -> Result<String, String> {
    let value = settings.required(key)?.expose_secret().to_owned();
    wire::header_value(key, &value)?;
    if value.len() != length {
        let is = value.len();
        return Err(format!("{key} has {is} characters where {length} are documented: write it as Ayoconnect disclosed it"));
    }
    Ok(value)
}

/// The account's RSA key, from PEM. No error quotes any of it.
fn private_key(pem: &SecretString) -> Result<RsaKeyPair, String> {
    let mend = "write the PEM text that begins with -----BEGIN PRIVATE KEY----- or -----BEGIN RSA PRIVATE KEY-----";
    let key = match PrivateKeyDer::from_pem_slice(pem.expose_secret().as_bytes()) {
        Ok(PrivateKeyDer::Pkcs8(der)) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
        Ok(PrivateKeyDer::Pkcs1(der)) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
        _ => return Err(format!("private_key is no RSA private key in PEM: {mend}")),
    };
    let key = key.map_err(|_| format!("private_key is no RSA private key of 2048 to 8192 bits: {mend}"))?;
    rsa_signature(&key, "").map_err(|_| format!("private_key does not sign: {mend}"))?;
    Ok(key)
}

/// `SHA256withRSA`, in hexadecimal.
fn rsa_signature(key: &RsaKeyPair, message: &str) -> Result<String, Unspecified> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature)?;
    Ok(hex(&signature))
}

/// "HMAC_SHA512(clientSecret, stringToSign)", in hexadecimal. The body must be minified.
fn signature(key: &hmac::Key, method: &str, path: &str, token: &str, body: &str, timestamp: &str) -> String {
    let body = hex(digest::digest(&digest::SHA256, body.as_bytes()).as_ref());
    hex(hmac::sign(key, format!("{method}:{path}:{token}:{body}:{timestamp}").as_bytes()).as_ref())
}

/// "yyyy-MM-ddTHH:mm:ss.SSSTZD", "length between 24 and 27": in UTC with `Z` 24; with an offset it
/// would be 29, without milliseconds 25.
fn timestamp(clock: Clock, now: DateTime<Utc>) -> String {
    match clock {
        Clock::Utc => now.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        Clock::Offset(offset) => now.with_timezone(&offset).format("%Y-%m-%dT%H:%M:%S%:z").to_string(),
    }
}

/// The option `timestamp`; its default stands in `config/default.toml`.
fn clock(option: &str) -> Result<Clock, String> {
    if matches!(option, "" | "utc") {
        return Ok(Clock::Utc);
    }
    let hours_and_minutes = option.strip_prefix(['+', '-']).and_then(|rest| rest.split_once(':'));
    let number =
        |text: &str| text.parse::<i32>().ok().filter(|_| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit()));
    let seconds = hours_and_minutes.and_then(|(hours, minutes)| {
        let (hours, minutes) = (number(hours)?, number(minutes).filter(|minutes| *minutes < 60)?);
        Some(hours * 3600 + minutes * 60).filter(|seconds| *seconds <= 14 * 3600)
    });
    let east = seconds.map(|seconds| if option.starts_with('-') { -seconds } else { seconds });
    east.and_then(FixedOffset::east_opt)
        .map(Clock::Offset)
        .ok_or_else(|| format!("timestamp = {option:?} is unknown: write \"utc\", or an offset like \"+07:00\""))
}

/// Lower case.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The path of a URL without a query.
fn path(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find('/').map_or("", |slash| &rest[slash..])
}

/// Any HTTP code but 200: "DO NOT FAIL".
fn failure(response: &Response, message: Result<String, String>) -> Outcome {
    let message = format!("HTTP {}: {}", response.status, message.unwrap_or_else(|why| why));
    match response.status {
        401 => Outcome::CredentialsRejected { whose: Whose::Account, park: false, message },
        // Public: "4033618 Inactive Card/Account/Customer" is about a single card. The document
        // says of any code but 200 to ask again.
        403 => Outcome::CredentialsRejected { whose: Whose::Row, park: false, message },
        300..=399 | 429 | 500.. => wire::unreadable(response, message),
        _ => Outcome::RequestFailed { message },
    }
}

/// The transaction's status, at HTTP 200. The error says why it is not believed.
fn read_transaction(answer: Answer, details: Value) -> Result<Outcome, String> {
    if answer.response_code.as_ref().is_some_and(|Scalar(code)| !code.is_empty() && !code.starts_with("200")) {
        return Ok(Outcome::RequestFailed { message: answer.complaint() });
    }
    let word = answer.additional_info.as_ref().and_then(|Object(info)| info.payment_result.as_deref());
    let word = word.ok_or("the answer has no additionalInfo.paymentResult")?;
    let Some(reported) = meaning(word, &answer) else {
        return Ok(Outcome::UnknownStatus { status: word.to_owned() });
    };
    let currency = answer.amount.as_ref().and_then(|Object(money)| money.currency.text());
    Ok(Outcome::Status(Box::new(Status {
        reported,
        word: word.to_owned(),
        // `responseMessage` is about the request.
        reason: None,
        amount: wire::amount_at(&details, "/amount/value"),
        currency: currency.map(str::to_owned),
        details: details.into(),
    })))
}

/// What the payer has to do: enter a one-time password, or go where the bank asks for it.
fn verification(answer: &Answer) -> Value {
    let inner = answer.additional_info.as_ref().and_then(|Object(info)| info.web_redirect_url.text());
    let mut action = json!({ "kind": "user_verification" });
    if let Some(url) = inner.or(answer.web_redirect_url.text()) {
        action["url"] = url.into();
    }
    action
}

/// Public: the answer, a documented error included.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    response_code: Option<Scalar>,
    additional_info: Option<Object<AdditionalInfo>>,
    response_message: Lenient<String>,
    amount: Lenient<Object<Money>>,
    web_redirect_url: Lenient<String>,
}

impl Answer {
    fn complaint(&self) -> String {
        let code = self.response_code.as_ref().map(|Scalar(code)| code.as_str()).filter(|code| !code.is_empty());
        let parts: Vec<&str> = [code, self.response_message.text()].into_iter().flatten().collect();
        if parts.is_empty() { "no responseCode and no responseMessage".into() } else { parts.join(" ") }
    }
}

#[derive(Deserialize)]
struct Money {
    currency: Lenient<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AdditionalInfo {
    payment_result: Option<String>,
    web_redirect_url: Lenient<String>,
}

/// Public: the answer to a request for a token.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenAnswer {
    access_token: Option<String>,
    expires_in: Option<Value>,
}

/// Public: "Payment Status" and "Settlement Status", in the pages' order.
fn meaning(word: &str, answer: &Answer) -> Option<Reported> {
    match word.to_ascii_uppercase().as_str() {
        "SUCCESS" => Some(Reported::Succeeded),
        "INITIATED" => Some(Reported::Pending),
        "PROCESSING" => Some(Reported::Pending),
        "PENDING_USER_VERIFICATION" => Some(Reported::ActionRequired(verification(answer))),
        "PENDING_USER_VERIFICATION WITH URL" => Some(Reported::ActionRequired(verification(answer))),
        "TIMEOUT" => Some(Reported::Pending),
        "FAILED" => Some(Reported::Failed),
        "SETTLED" => Some(Reported::Succeeded),
        "REFUNDED" => Some(Reported::Refunded),
        // The payment happened; how much of it was paid back stands in `details`.
        "PARTIALLY REFUNDED" => Some(Reported::Succeeded),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, header, response, settings, with};
    use super::*;
    use crate::domain::Amount;
    use crate::wire::{REDACTED, Redaction};

    const SUCCESS: &str = include_str!("../../tests/fixtures/ayoconnect/success.json");
    const WITH_URL: &str = include_str!("../../tests/fixtures/ayoconnect/pending_user_verification_with_url.json");
    const NOT_FOUND: &str = include_str!("../../tests/fixtures/ayoconnect/not_found.json");
    const UNAUTHORIZED: &str = include_str!("../../tests/fixtures/ayoconnect/unauthorized.json");
    const IN_PROGRESS: &str = include_str!("../../tests/fixtures/ayoconnect/in_progress.json");
    const TOKEN: &str = include_str!("../../tests/fixtures/ayoconnect/token.json");
    const PKCS1: &str = include_str!("../../tests/fixtures/ayoconnect/keys/pkcs1.pem");
    const PKCS8: &str = include_str!("../../tests/fixtures/ayoconnect/keys/pkcs8.pem");
    const SMALL: &str = include_str!("../../tests/fixtures/ayoconnect/keys/small.pem");
    const EC: &str = include_str!("../../tests/fixtures/ayoconnect/keys/ec.pem");
    const PUBLIC: &str = include_str!("../../tests/fixtures/ayoconnect/keys/public.pem");
    /// Made with OpenSSL from `0123456789abcdef0123456789ABCDEF|2023-03-28T15:13:27.123Z` and the key above.
    const TOKEN_SIGNATURE: &str = include_str!("../../tests/fixtures/ayoconnect/keys/token_signature.hex");
    const INACTIVE_CARD: &str = include_str!("../../tests/fixtures/ayoconnect/inactive_card.json");
    const ODD_FAILED: &str = include_str!("../../tests/fixtures/ayoconnect/failed_without_amount.json");
    const ODD_SUCCESS: &str = include_str!("../../tests/fixtures/ayoconnect/success_with_object_message.json");
    const REFERENCE: &str = "qic5taezfgta7yhn74u7cppr47wan027";

    type Account<'a> = Vec<(&'a str, &'a str)>;

    fn account<'a>(with: &[(&'a str, &'a str)]) -> Account<'a> {
        let mut account = vec![
            ("merchant_id", "AYOPOP"),
            ("client_id", "0123456789abcdef0123456789ABCDEF"),
            ("client_secret", "client-secret-0001"),
            ("channel_id", "95221"),
        ];
        account.extend(with);
        account
    }

    fn open(account: &[(&str, &str)]) -> Result<Ayoconnect, String> {
        Ayoconnect::open(&settings(&[("path_prefix", "/api/v1.0")], account))
    }

    fn ayoconnect() -> Ayoconnect {
        open(&account(&[("access_token", "token-0001")])).expect("complete settings")
    }

    fn b2b() -> Ayoconnect {
        open(&account(&[("private_key", PKCS8)])).expect("complete settings")
    }

    fn read(status: u16, body: &str) -> Outcome {
        ayoconnect().read(ask(REFERENCE, &Value::Null), &response(status, body))
    }

    fn reported(body: &str) -> Status {
        match read(200, body) {
            Outcome::Status(status) => *status,
            other => panic!("no status: {other:?}"),
        }
    }

    fn is_unusable(status: u16, body: &str) -> bool {
        matches!(read(status, body), Outcome::Unusable { .. })
    }

    fn is_refused(outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::CredentialsRejected { whose: Whose::Account, park: false, .. })
    }

    fn is_the_rows(outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::CredentialsRejected { whose: Whose::Row, park: false, .. })
    }

    #[test]
    fn a_403_concerns_its_row_whoever_says_it() {
        assert!(matches!(read(403, INACTIVE_CARD), Outcome::CredentialsRejected { whose: Whose::Row, park: false, message }
            if message == "HTTP 403: 4033618 Inactive Card/Account/Customer"));
        assert!(is_the_rows(&read(403, "<html>403</html>")));
    }

    #[test]
    fn what_decides_nothing_costs_no_answer() {
        assert_eq!(reported(ODD_FAILED).reported, Reported::Failed);
        assert_eq!(reported(ODD_SUCCESS).reported, Reported::Succeeded);
        for amount in ["\"10000\"", "[]", "7"] {
            let status = reported(&with(ODD_FAILED, "{\"value\":\"\",\"currency\":\"IDR\"}", amount));
            assert_eq!((status.reported, status.amount, status.currency), (Reported::Failed, Amount::Unreadable, None), "{amount}");
        }
        let waiting = with(WITH_URL, "\"https://bank.example/verify?id=1\"", "{}");
        assert_eq!(reported(&waiting).reported, Reported::ActionRequired(json!({ "kind": "user_verification" })));
    }

    #[test]
    fn a_client_id_is_needed_only_to_ask_for_tokens() {
        let without = |with: &[(&'static str, &'static str)]| {
            let mut account = account(with);
            account.retain(|(key, _)| *key != "client_id");
            open(&account)
        };
        let provider = without(&[("access_token", "token-0001")]).expect("complete settings");
        let request = provider.request(ask(REFERENCE, &Value::Null)).expect("a request");
        assert_eq!(header(&request, "x-client-key"), None);
        assert_eq!(without(&[("private_key", PKCS8)]).err().as_deref(), Some("client_id is missing: a token is asked for with it"));
    }

    #[test]
    fn a_rows_channel_stands_before_the_accounts() {
        let channel = |params: Value| {
            let request = ayoconnect().request(ask(REFERENCE, &params))?;
            Ok::<_, String>(header(&request, "channel-id").map(str::to_owned))
        };
        assert_eq!(channel(json!({ "channelId": "12345" })), Ok(Some("12345".into())));
        for none in [json!({}), json!({ "channelId": null }), Value::Null] {
            assert_eq!(channel(none), Ok(Some("95221".into())));
        }
        for odd in [json!(95221), json!(""), json!("1 2"), json!("1\n2"), json!([])] {
            assert!(channel(json!({ "channelId": odd })).is_err_and(|why| why.contains("params.channelId")));
        }
    }

    #[test]
    fn a_timestamp_may_have_an_offset_instead_of_milliseconds() {
        let now = ask("", &Value::Null).now;
        let written = |option: &str| clock(option).map(|clock| timestamp(clock, now));
        assert_eq!(written("utc").as_deref(), Ok("2023-03-28T15:13:27.123Z"));
        assert_eq!(written("+07:00").as_deref(), Ok("2023-03-28T22:13:27+07:00"));
        assert_eq!(written("-03:30").as_deref(), Ok("2023-03-28T11:43:27-03:30"));
        for odd in ["UTC", "07:00", "+7:00", "+0700", "+07:60", "+15:00", "+07:00 ", "Asia/Jakarta"] {
            assert!(written(odd).is_err_and(|why| why.contains("timestamp") && why.contains("+07:00")), "{odd}");
        }
        let account = account(&[("access_token", "token-0001")]);
        let opened = Ayoconnect::open(&settings(&[("path_prefix", "/api/v1.0"), ("timestamp", "+07:00")], &account));
        let request = opened.expect("complete settings").request(ask(REFERENCE, &Value::Null)).expect("a request");
        assert_eq!(header(&request, "x-timestamp"), Some("2023-03-28T22:13:27+07:00"));
    }

    #[test]
    fn the_signature_is_the_published_one() {
        let key = hmac::Key::new(hmac::HMAC_SHA512, b"fceda4da-ae95-4d14-8cb6-eef392139a2c");
        let path = "/api/v2/registration-account-binding";
        let token = "ed8f7f42a6d741fbb891bae654e81678";
        let body = concat!(
            r#"{"partnerReferenceNo":"qic5taezfgta7yhn74u7cppr47wan027","#,
            r#""authCode":"8ecx3bnfk9bu2o4y0z8ur8pfhH12eltF","merchantId":"AYOPOP"}"#
        );
        assert_eq!(
            signature(&key, "POST", path, token, body, "2023-03-28T22:13:27+07:00"),
            concat!(
                "2e955289baf7f297dda75b830c00f15b81a71710c2d0a0bbdf5884ae15bf47bb",
                "46e627a0b25cff1c1da16c42682ec69945950a1b120b6be490a53b7d613cf7e4"
            )
        );
    }

    #[test]
    fn the_request_is_the_documented_one() {
        let request = ayoconnect().request(ask(REFERENCE, &Value::Null)).expect("a request");
        assert_eq!(request.method, Method::Get);
        let url = "http://127.0.0.1:1/gate/api/v1.0/debit/status?merchantId=AYOPOP&XExternalId=qic5taezfgta7yhn74u7cppr47wan027";
        assert_eq!(request.url, url);
        assert_eq!(request.body, None);
        for (name, value) in [
            ("accept", "application/json"),
            ("authorization", "Bearer token-0001"),
            ("x-timestamp", "2023-03-28T15:13:27.123Z"),
            ("x-client-key", "0123456789abcdef0123456789ABCDEF"),
            ("x-partner-id", "AYOPOP"),
            ("x-external-id", REFERENCE),
            ("channel-id", "95221"),
            // Made with OpenSSL from
            // GET:/gate/api/v1.0/debit/status:token-0001:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855:2023-03-28T15:13:27.123Z
            (
                "x-signature",
                concat!(
                    "2f0d9018ddc4def5a34e879a22d04ce0a82906cf7596cbea2ccf3a70ae235a63",
                    "224fd8c741191f78e15dd33fefba530ba63d28e15ff3a405f676760ae3f57190"
                ),
            ),
        ] {
            assert_eq!(header(&request, name), Some(value), "{name}");
        }
    }

    #[test]
    fn the_timestamp_has_24_characters_at_a_full_second_too() {
        let now = DateTime::from_timestamp(1_680_016_407, 0).expect("a time in range");
        assert_eq!(timestamp(Clock::Utc, now), "2023-03-28T15:13:27.000Z");
    }

    #[test]
    fn a_reference_that_no_header_can_carry_is_the_rows_fault() {
        for reference in ["référence", "a b"] {
            let refusal = ayoconnect().request(ask(reference, &Value::Null)).expect_err("invalid");
            assert!(refusal.contains("reference") && refusal.contains("header"), "{refusal}");
        }
        let request = ayoconnect().request(ask("a&b=c", &Value::Null)).expect("a request");
        assert!(request.url.ends_with("&XExternalId=a%26b%3Dc"), "{}", request.url);
    }

    #[test]
    fn settings_are_checked_against_their_documented_lengths() {
        let token = ("access_token", "token-0001");
        for (key, value) in [
            ("merchant_id", "AYO"),
            ("client_id", "0123456789abcdef"),
            ("channel_id", "952"),
            ("channel_id", "9522x"),
            ("merchant_id", "AYO\nOP"),
            ("client_secret", ""),
            ("merchant_id", ""),
        ] {
            let refusal = open(&account(&[token, (key, value)])).err().expect("refused");
            assert!(refusal.contains(key) && (value.is_empty() || !refusal.contains(value)), "{refusal}");
        }
    }

    #[test]
    fn exactly_one_way_to_a_token_is_configured() {
        let refusal = |with: &[(&str, &str)]| open(&account(with)).err().expect("refused");
        assert!(refusal(&[]).contains("access_token or private_key is missing"));
        assert!(refusal(&[("access_token", "t"), ("private_key", PKCS8)]).contains("exclude each other"));
        let unfit = refusal(&[("access_token", "to ken")]);
        assert!(unfit.contains("access_token") && !unfit.contains("to ken"), "{unfit}");
        assert!(ayoconnect().token_flow().is_none());
    }

    #[test]
    fn a_private_key_that_is_none_is_refused_without_being_shown() {
        let cut = PKCS8.replace("-----END PRIVATE KEY-----\n", "");
        let emptied = "-----BEGIN PRIVATE KEY-----\nMIIEvQ==\n-----END PRIVATE KEY-----\n";
        for pem in ["s3cret", EC, PUBLIC, SMALL, &cut, emptied] {
            let refusal = open(&account(&[("private_key", pem)])).err().expect("refused");
            assert!(refusal.starts_with("private_key ") && refusal.contains("-----BEGIN PRIVATE KEY-----"), "{refusal}");
            let body = pem.lines().filter(|line| !line.starts_with("--")).any(|line| refusal.contains(line));
            assert!(!body, "{refusal}");
        }
    }

    #[test]
    fn the_token_request_is_signed_with_either_form_of_the_key() {
        let now = ask("", &Value::Null).now;
        for pem in [PKCS8, PKCS1] {
            let provider = open(&account(&[("private_key", pem)])).expect("complete settings");
            let request = provider.token_flow().expect("a flow").request(now);
            assert_eq!(request.method, Method::Post);
            assert_eq!(request.url, "http://127.0.0.1:1/gate/api/v1.0/access-token/b2b");
            assert_eq!(header(&request, "x-timestamp"), Some("2023-03-28T15:13:27.123Z"));
            assert_eq!(header(&request, "x-client-key"), Some("0123456789abcdef0123456789ABCDEF"));
            assert_eq!(header(&request, "x-signature"), Some(TOKEN_SIGNATURE.trim()));
            let body: Value = serde_json::from_str(&request.body.expect("a body")).expect("JSON");
            assert_eq!(body, json!({ "grantType": "client_credentials", "additionalInfo": { "merchantId": "AYOPOP" } }));
        }
    }

    #[test]
    fn a_fetched_token_is_asked_with_and_is_a_secret() {
        let provider = b2b();
        let ask = Ask { token: Some("fetched-0001"), ..ask(REFERENCE, &Value::Null) };
        let request = provider.request(ask).expect("a request");
        assert_eq!(header(&request, "authorization"), Some("Bearer fetched-0001"));
        assert_eq!(provider.secrets(ask)[..2], ["client-secret-0001", "fetched-0001"]);
        assert!(provider.request(Ask { token: None, ..ask }).is_err());
        let account = ["client-secret-0001", "token-0001", "0123456789abcdef0123456789ABCDEF", "AYOPOP"];
        assert_eq!(ayoconnect().secrets(Ask { token: None, ..ask }), account);
    }

    #[test]
    fn a_token_answer_tells_the_token_and_its_lifetime() {
        let provider = b2b();
        let token =
            |body: &str| provider.token_flow().expect("a flow").read(&response(200, body), DateTime::UNIX_EPOCH).expect("a token");
        for (lifetime, seconds) in [
            ("\"3600\"", 3600),
            ("900", 900),
            ("null", 900),
            ("\"soon\"", 900),
            ("-1", 900),
            ("0", 60),
            ("\"1\"", 60),
            ("99999999999", 86400),
        ] {
            let token = token(&with(TOKEN, "\"3600\"", lifetime));
            assert_eq!(token.value.expose_secret(), "b2b-token-0001");
            assert_eq!(token.lifetime, Duration::from_secs(seconds), "{lifetime}");
        }
        assert_eq!(token(r#"{"accessToken":"t"}"#).lifetime, Token::UNTOLD_LIFETIME);
    }

    #[test]
    fn a_token_that_is_not_given_is_never_about_the_transaction() {
        let provider = b2b();
        let read = |status, body: &str| {
            provider.token_flow().expect("a flow").read(&response(status, body), DateTime::UNIX_EPOCH).err().expect("no token")
        };
        assert!(is_refused(&read(401, UNAUTHORIZED)) && is_refused(&read(403, "")));
        assert_eq!(read(429, ""), Outcome::RateLimited { wait: None });
        assert_eq!(read(500, "<html>"), Outcome::ServerError { status: 500, wait: None });
        for status in [202, 400, 404] {
            assert!(matches!(read(status, TOKEN), Outcome::RequestFailed { .. }), "HTTP {status}");
        }
        for body in ["", "{}", r#"{"accessToken":""}"#, r#"{"accessToken":1}"#, r#"{"accessToken":"a b"}"#, r#"["t"]"#] {
            let outcome = read(200, body);
            assert!(
                matches!(&outcome, Outcome::Unusable { why } if why.contains("access token") && !why.contains("a b")),
                "{outcome:?}"
            );
        }
    }

    #[test]
    fn success_is_a_success_with_its_amount() {
        let status = reported(SUCCESS);
        assert_eq!((status.reported, status.word.as_str()), (Reported::Succeeded, "SUCCESS"));
        assert_eq!(status.amount, Amount::Told(10_000.into()));
        assert_eq!(status.currency.as_deref(), Some("IDR"));
        assert_eq!(status.details["referenceNo"], "2020102977770000000009");
    }

    #[test]
    fn an_amount_may_be_a_number_and_must_be_an_amount() {
        assert_eq!(reported(&with(SUCCESS, "\"10000.00\"", "10000.5")).amount, Amount::Told("10000.5".parse().expect("a decimal")));
        assert_eq!(reported(&with(SUCCESS, "\"10000.00\"", "null")).amount, Amount::Untold);
        for value in ["\"ten\"", "\"\"", "true", "[1]"] {
            assert_eq!(reported(&with(SUCCESS, "\"10000.00\"", value)).amount, Amount::Unreadable, "{value}");
        }
    }

    #[test]
    fn every_word_has_its_meaning_in_any_case() {
        let verification = Reported::ActionRequired(json!({ "kind": "user_verification" }));
        for (word, meaning) in [
            ("SUCCESS", Reported::Succeeded),
            ("INITIATED", Reported::Pending),
            ("PROCESSING", Reported::Pending),
            ("PENDING_USER_VERIFICATION", verification.clone()),
            ("PENDING_USER_VERIFICATION WITH URL", verification),
            ("TIMEOUT", Reported::Pending),
            ("FAILED", Reported::Failed),
            ("SETTLED", Reported::Succeeded),
            ("REFUNDED", Reported::Refunded),
            ("PARTIALLY REFUNDED", Reported::Succeeded),
        ] {
            for word in [word.to_owned(), word.to_ascii_lowercase()] {
                let status = reported(&with(SUCCESS, "SUCCESS", &word));
                assert_eq!((status.reported, status.word), (meaning.clone(), word));
            }
        }
    }

    #[test]
    fn a_verification_with_a_url_says_where_to_go_and_keeps_the_url_nowhere_else() {
        let action = json!({ "kind": "user_verification", "url": "https://bank.example/verify?id=1" });
        assert_eq!(reported(WITH_URL).reported, Reported::ActionRequired(action));
        let body = with(WITH_URL, "https://bank.example/verify?id=1", "u");
        let kept = Redaction::new(vec![], ayoconnect().kept(ask(REFERENCE, &Value::Null))).body(body.as_bytes());
        assert_eq!(kept["additionalInfo"]["webRedirectUrl"], REDACTED);
    }

    #[test]
    fn a_word_that_is_not_known_is_no_failure() {
        for word in ["CANCELLED", "PENDING_USER_VERIFICATION WITH OTP", "SUCCESS ", ""] {
            let outcome = read(200, &with(SUCCESS, "\"SUCCESS\"", &format!("{word:?}")));
            assert_eq!(outcome, Outcome::UnknownStatus { status: word.into() });
        }
    }

    #[test]
    fn no_http_code_but_200_moves_a_transaction() {
        let failed = with(SUCCESS, "SUCCESS", "FAILED");
        for body in [SUCCESS, &failed, IN_PROGRESS, ""] {
            assert_eq!(read(202, body), Outcome::TooEarly);
            assert!(is_refused(&read(401, body)) && is_the_rows(&read(403, body)));
            assert_eq!(read(504, body), Outcome::ServerError { status: 504, wait: None });
            for status in [201, 400, 405, 409] {
                assert!(matches!(read(status, body), Outcome::RequestFailed { .. }), "HTTP {status}");
            }
            assert!(is_unusable(302, body));
        }
    }

    #[test]
    fn a_transaction_that_is_not_found_has_not_failed() {
        assert_eq!(read(404, NOT_FOUND), Outcome::NotFound { message: "4043601 Transaction Not Found".into() });
        assert!(is_unusable(404, "<html>404</html>"), "no answer of the provider's");
    }

    #[test]
    fn throttling_and_server_errors_keep_their_retry_after() {
        let wait = Some(Duration::from_secs(9));
        let read = |status| {
            let response = Response { retry_after: wait, ..response(status, SUCCESS) };
            ayoconnect().read(ask(REFERENCE, &Value::Null), &response)
        };
        assert_eq!(read(429), Outcome::RateLimited { wait });
        assert_eq!(read(503), Outcome::ServerError { status: 503, wait });
    }

    #[test]
    fn a_response_code_that_is_no_success_is_believed_over_http_200() {
        for code in ["\"4043601\"", "2023600", "\" \"", "5003600"] {
            let outcome = read(200, &with(SUCCESS, "\"2003600\"", code));
            assert!(matches!(outcome, Outcome::RequestFailed { .. }), "{code}: {outcome:?}");
        }
        for code in ["2003600", "null", "\"200\"", "\"\""] {
            assert_eq!(reported(&with(SUCCESS, "\"2003600\"", code)).reported, Reported::Succeeded, "{code}");
        }
        assert!(is_unusable(200, &with(SUCCESS, "\"2003600\"", "true")));
    }

    #[test]
    fn an_answer_without_a_payment_result_is_none() {
        assert!(is_unusable(200, &with(SUCCESS, "paymentResult", "payment_result")));
        assert!(is_unusable(200, &with(SUCCESS, "additionalInfo", "info")));
        assert!(is_unusable(200, &with(SUCCESS, "\"SUCCESS\"", "1")));
        assert!(is_unusable(200, r#"{"paymentResult":"SUCCESS"}"#));
        assert!(is_unusable(200, r#"{"additionalInfo":["SUCCESS",null]}"#));
        assert!(is_unusable(200, "<html>"));
    }
}

//! Ayoconnect: `GET /api/v1.0/debit/status` and the token endpoint `POST /api/v1.0/access-token/b2b`.
//!
//! From its page "Get the Status of a transaction API" (service code 36), which gives lengths,
//! forms and the signature. The names of headers and parameters, the form of the answers and the
//! token endpoint are the national standard's (SNAP), which it follows: a `responseCode` is the
//! HTTP status, the service code and a case.

use super::credentials::{
    AMOUNT, AYOCONNECT_ACCESS_TOKEN, AYOCONNECT_CLIENT_ID, AYOCONNECT_CLIENT_SECRET, AYOCONNECT_MERCHANT_IDS,
    AYOCONNECT_PRIVATE_KEY, OTHER_AMOUNT, OTHER_CURRENCY, which,
};
use super::exchange::{Ask, Incoming, Refusal, Reply, bearer, header, hex, number, object, only, parameter, text, unhex};
use super::rules::{Kind, Moment};
use super::scripts::{EXTERNAL_ID, Told};
use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use aws_lc_rs::{digest, hmac};
use chrono::{DateTime, TimeDelta};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

pub(super) const CURRENCY: &str = "IDR";

/// By how much a time stamp may differ from the simulator's clock.
const SKEW: TimeDelta = TimeDelta::minutes(5);
const STATUS: &str = "36";
const ACCESS_TOKEN: &str = "73";

/// The access tokens that the token endpoint gave out.
#[derive(Default)]
pub(super) struct Tokens {
    issued: u64,
    /// When each one expires.
    valid: HashMap<String, Duration>,
}

/// Bounds the memory: no test needs as many valid tokens.
const MAX_TOKENS: usize = 10_000;
const TOKEN_PREFIX: &str = "sim-b2b-";

impl Tokens {
    fn issue(&mut self, now: Duration, lifetime: Duration) -> String {
        self.valid.retain(|_, expires| *expires > now);
        if self.valid.len() >= MAX_TOKENS {
            self.valid.clear();
        }
        self.issued += 1;
        let token = format!("{TOKEN_PREFIX}{:024}", self.issued);
        self.valid.insert(token.clone(), now + lifetime);
        token
    }

    /// The token is void from now on. The static one stays.
    pub(super) fn revoke(&mut self, token: &str) {
        self.valid.remove(token);
    }

    fn is_valid(&self, token: &str, now: Duration) -> bool {
        token == AYOCONNECT_ACCESS_TOKEN || self.valid.get(token).is_some_and(|expires| now < *expires)
    }
}

/// The request of the page, header by header.
pub(super) fn check(incoming: &Incoming, tokens: &Tokens) -> Result<Ask, Refusal> {
    let form = form(incoming).map_err(|why| refusal(Kind::BadRequest, 400, STATUS, "02", why))?;
    let unauthorized = |kind, case, why: &str| refusal(kind, 401, STATUS, case, why.to_owned());
    let token = bearer(&incoming.headers).map_err(|why| unauthorized(Kind::BadCredentials, "01", &why))?;
    if !tokens.is_valid(token, incoming.at.elapsed) {
        // Nobody can know that a token was revoked, and a restart of the simulator forgets all.
        let kind = (!token.starts_with(TOKEN_PREFIX)).then_some(Kind::BadCredentials);
        return Err(Refusal { kind, ..unauthorized(Kind::BadCredentials, "01", "Invalid Token (B2B)") });
    }
    let account = which(&AYOCONNECT_MERCHANT_IDS, form.merchant)
        .ok_or_else(|| unauthorized(Kind::BadCredentials, "00", "the merchant is unknown"))?;
    if header(&incoming.headers, "x-client-key").is_ok_and(|client| client != AYOCONNECT_CLIENT_ID) {
        return Err(unauthorized(Kind::BadCredentials, "00", "the X-CLIENT-KEY is unknown"));
    }
    let signed = string_to_sign("GET", &incoming.path, token, &incoming.body, form.timestamp);
    if !is_signed(&incoming.headers, &signed) {
        return Err(unauthorized(Kind::BadSignature, "00", "Invalid Signature"));
    }
    Ok(Ask {
        account,
        reference: form.external_id.to_owned(),
        flow: Some(form.channel.to_owned()),
        exclusive: None,
        secrets: vec![token.to_owned()],
    })
}

struct Form<'a> {
    merchant: &'a str,
    external_id: &'a str,
    channel: &'a str,
    timestamp: &'a str,
}

/// Presence, lengths and forms, and what must be the same in two places.
fn form(incoming: &Incoming) -> Result<Form<'_>, String> {
    const PARAMETERS: [&str; 2] = ["merchantId", "XExternalId"];
    let header = |name| header(&incoming.headers, name);
    let merchant = parameter(&incoming.query, "merchantId", &PARAMETERS)?;
    let external_id = parameter(&incoming.query, "XExternalId", &PARAMETERS)?;
    if header("accept")? != "application/json" {
        return Err("Accept is not application/json".into());
    }
    let timestamp = timestamp(header("x-timestamp")?, incoming.at)?;
    if merchant.chars().count() != 6 || header("x-partner-id")? != merchant {
        return Err("X-PARTNER-ID and merchantId are not the same 6 characters".into());
    }
    let is_external_id = external_id.len() == EXTERNAL_ID && external_id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !is_external_id || header("x-external-id")? != external_id {
        return Err("X-EXTERNAL-ID and XExternalId are not the same 32 alphanumeric characters".into());
    }
    let channel = header("channel-id")?;
    if channel.len() != 5 || !channel.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("CHANNEL-ID is not of 5 digits".into());
    }
    if incoming.headers.contains_key("x-client-key") && header("x-client-key")?.len() != 32 {
        return Err("X-CLIENT-KEY is not of 32 characters".into());
    }
    if !incoming.body.is_empty() {
        return Err("there is a body".into());
    }
    Ok(Form { merchant, external_id, channel, timestamp })
}

/// "length between 24 and 27", "yyyy-MM-ddTHH:mm:ss.SSSTZD format": with milliseconds that leaves
/// `Z` and `+07` for the zone. The published samples have none, and `+07:00`.
fn timestamp(text: &str, now: Moment) -> Result<&str, String> {
    if !matches!((text.len(), text.ends_with('Z'), text.contains('.')), (24, true, true) | (26, false, true) | (25, false, false)) {
        return Err("X-TIMESTAMP is not of 24 to 27 characters yyyy-MM-ddTHH:mm:ss.SSSTZD".into());
    }
    let form = if text.contains('.') { "%Y-%m-%dT%H:%M:%S%.3f%#z" } else { "%Y-%m-%dT%H:%M:%S%:z" };
    let at = DateTime::parse_from_str(text, form).map_err(|_| "X-TIMESTAMP is not yyyy-MM-ddTHH:mm:ss.SSSTZD")?;
    if (now.wall - at.to_utc()).abs() > SKEW {
        return Err("X-TIMESTAMP is more than 5 minutes off".into());
    }
    Ok(text)
}

/// `HTTPMethod +":"+ URLPath +":"+ AccessToken +":"+
/// Lowercase(HexEncode(SHA-256(minify(RequestBody)))) +":"+ X-TIMESTAMP`
fn string_to_sign(method: &str, path: &str, token: &str, minified: &[u8], timestamp: &str) -> String {
    let body = hex(digest::digest(&digest::SHA256, minified).as_ref());
    format!("{method}:{path}:{token}:{body}:{timestamp}")
}

/// `HMAC_SHA512(clientSecret, stringToSign)`, in lower-case hexadecimal.
fn is_signed(headers: &axum::http::HeaderMap, signed: &str) -> bool {
    let Some(signature) = header(headers, "x-signature").ok().and_then(unhex) else { return false };
    let key = hmac::Key::new(hmac::HMAC_SHA512, AYOCONNECT_CLIENT_SECRET.as_bytes());
    hmac::verify(&key, signed.as_bytes(), &signature).is_ok()
}

/// The token endpoint: a signed `clientId|timestamp` gets an access token.
pub(super) fn token(incoming: &Incoming, tokens: &mut Tokens, lifetime: Duration) -> Result<Reply, Refusal> {
    let bad_request = |why| refusal(Kind::BadRequest, 400, ACCESS_TOKEN, "02", why);
    let timestamp = header(&incoming.headers, "x-timestamp").and_then(|text| timestamp(text, incoming.at)).map_err(bad_request)?;
    grant(incoming).map_err(bad_request)?;
    if header(&incoming.headers, "x-client-key") != Ok(AYOCONNECT_CLIENT_ID) {
        return Err(refusal(Kind::BadCredentials, 401, ACCESS_TOKEN, "00", "the X-CLIENT-KEY is unknown".into()));
    }
    let signature = header(&incoming.headers, "x-signature").ok().and_then(unhex).unwrap_or_default();
    let signed = format!("{AYOCONNECT_CLIENT_ID}|{timestamp}");
    if !is_rsa_signed(signed.as_bytes(), &signature) {
        return Err(refusal(Kind::BadSignature, 401, ACCESS_TOKEN, "00", "Invalid Signature".into()));
    }
    let body = json!({
        "responseCode": format!("200{ACCESS_TOKEN}00"),
        "responseMessage": "Successful",
        "accessToken": tokens.issue(incoming.at.elapsed, lifetime),
        "tokenType": "Bearer",
        "expiresIn": lifetime.as_secs().to_string(),
    });
    Ok(Reply::new(200, &body))
}

fn grant(incoming: &Incoming) -> Result<(), String> {
    let body = object(incoming)?;
    only(body.keys(), &["grantType", "additionalInfo"])?;
    if text(&body, "grantType")? != "client_credentials" {
        return Err("grantType is not client_credentials".into());
    }
    let merchant = body.get("additionalInfo").and_then(|info| info.get("merchantId")).and_then(Value::as_str);
    match merchant.and_then(|merchant| which(&AYOCONNECT_MERCHANT_IDS, merchant)) {
        Some(_) => Ok(()),
        None => Err("additionalInfo.merchantId is unknown".into()),
    }
}

fn is_rsa_signed(signed: &[u8], signature: &[u8]) -> bool {
    let pair = PrivatePkcs8KeyDer::from_pem_slice(AYOCONNECT_PRIVATE_KEY.as_bytes())
        .ok()
        .and_then(|der| RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok());
    // The simulator's own key is a constant, which a test reads.
    pair.is_some_and(|pair| {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public_key()).verify(signed, signature).is_ok()
    })
}

pub(super) fn say(ask: &Ask, told: Told, nth: u32) -> Reply {
    let success = |paid: &str, amount: f64, currency: &str| answer(ask, "2003600", "Successful", paid, amount, currency);
    let ordinary = |paid: &str| success(paid, AMOUNT, CURRENCY);
    match told {
        Told::Ok | Told::Other | Told::NoId => ordinary("SUCCESS"),
        Told::Refund => ordinary("REFUNDED"),
        Told::Amount => success("SUCCESS", OTHER_AMOUNT, CURRENCY),
        Told::Currency => success("SUCCESS", AMOUNT, OTHER_CURRENCY),
        Told::Odd => {
            let message = json!({"EN": "Successful"});
            let body =
                json!({"responseCode": "2003600", "responseMessage": message, "additionalInfo": {"paymentResult": "SUCCESS"}});
            Reply::new(200, &body)
        }
        Told::OddFail => {
            let amount = json!({"value": "", "currency": CURRENCY});
            let body = json!({"responseCode": "2003600", "additionalInfo": {"paymentResult": "FAILED"}, "amount": amount});
            Reply::new(200, &body)
        }
        Told::Fail | Told::Cancel => ordinary("FAILED"),
        Told::Echo => {
            let message = format!("Not done for {}", ask.secrets.join(" "));
            answer(ask, "2003600", &message, "FAILED", AMOUNT, CURRENCY)
        }
        Told::Unknown => ordinary("ESCROWED"),
        Told::Action | Told::Fee | Told::OddFee | Told::Confirm | Told::Choice => ordinary("PENDING_USER_VERIFICATION"),
        Told::Pending | Told::Early | Told::PleaseWait => ordinary(["TIMEOUT", "INITIATED", "PROCESSING"][nth as usize % 3]),
        Told::NotFound => error(404, STATUS, "01", "Transaction Not Found"),
        Told::Error => Reply { status: 200, ..error(500, STATUS, "00", "General Error") },
        Told::Forbidden => error(403, STATUS, "18", "Inactive Card/Account/Customer"),
        Told::Firewall => Reply::firewall(),
        Told::WrongOtp | Told::Invalid => error(400, STATUS, "02", "Invalid Mandatory Field"),
        Told::Refused | Told::Revoke | Told::Denied | Told::BadToken | Told::Http(401) => {
            error(401, STATUS, "01", "Invalid Token (B2B)")
        }
        Told::Wait(_) | Told::Http(429) => error(429, STATUS, "00", "Too Many Requests"),
        // A success that only says that the request goes on.
        Told::Http(202) => Reply { status: 202, ..answer(ask, "2023600", "Request In Progress", "SUCCESS", AMOUNT, CURRENCY) },
        Told::Http(404) => error(404, STATUS, "01", "Transaction Not Found"),
        Told::Http(status) => error(status, STATUS, "00", "General Error"),
    }
}

fn answer(ask: &Ask, code: &str, message: &str, paid: &str, amount: f64, currency: &str) -> Reply {
    let body = json!({
        "responseCode": code,
        "responseMessage": message,
        "partnerReferenceNo": format!("P{}", number(&ask.reference)),
        "referenceNo": format!("R{}", number(&ask.reference)),
        "amount": {"value": format!("{amount:.2}"), "currency": currency},
        "additionalInfo": {"paymentResult": paid},
    });
    Reply::new(200, &body)
}

fn refusal(kind: Kind, status: u16, service: &str, case: &str, detail: String) -> Refusal {
    Refusal { kind: Some(kind), reply: error(status, service, case, &detail), detail }
}

fn error(status: u16, service: &str, case: &str, message: &str) -> Reply {
    Reply::new(status, &json!({"responseCode": format!("{status}{service}{case}"), "responseMessage": message}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Moment {
        let wall = DateTime::parse_from_rfc3339("2026-03-28T15:13:27Z").expect("valid").to_utc();
        Moment { elapsed: Duration::ZERO, wall }
    }

    #[test]
    fn the_string_to_sign_is_the_published_vectors() {
        let body = br#"{"partnerReferenceNo":"qic5taezfgta7yhn74u7cppr47wan027","authCode":"8ecx3bnfk9bu2o4y0z8ur8pfhH12eltF","merchantId":"AYOPOP"}"#;
        let path = "/api/v2/registration-account-binding";
        let signed = string_to_sign("POST", path, "ed8f7f42a6d741fbb891bae654e81678", body, "2023-03-28T22:13:27+07:00");
        let key = hmac::Key::new(hmac::HMAC_SHA512, b"fceda4da-ae95-4d14-8cb6-eef392139a2c");
        assert_eq!(
            hex(hmac::sign(&key, signed.as_bytes()).as_ref()),
            "2e955289baf7f297dda75b830c00f15b81a71710c2d0a0bbdf5884ae15bf47bb46e627a0b25cff1c1da16c42682ec69945950a1b120b6be490a53b7d613cf7e4"
        );
    }

    #[test]
    fn time_stamps_have_milliseconds_and_a_short_zone_and_are_of_now() {
        for good in
            ["2026-03-28T15:13:27.123Z", "2026-03-28T22:13:27.123+07", "2026-03-28T15:18:27.000Z", "2026-03-28T22:13:27+07:00"]
        {
            assert_eq!(timestamp(good, now()), Ok(good));
        }
        for bad in [
            "",
            "2026-03-28T15:13:27Z",
            "2026-03-28T15:13:27+07:00",
            "2026-03-28T22:13:27+0700",
            "2026-03-28T22:13:27.123+07:00",
            "2026-03-28 15:13:27.123Z",
            "2026-13-28T15:13:27.123Z",
            "2026-03-28T15:18:27.001Z",
            "2026-03-28T15:08:26.999Z",
            "2026-03-28T22:13:27.123Z",
            "2026-03-28T15:13:27.1234",
        ] {
            assert!(timestamp(bad, now()).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_issued_token_is_valid_until_it_expires_or_is_revoked() {
        let mut tokens = Tokens::default();
        let token = tokens.issue(Duration::ZERO, Duration::from_secs(60));
        assert!(tokens.is_valid(&token, Duration::from_secs(59)));
        assert!(!tokens.is_valid(&token, Duration::from_secs(60)));
        let other = tokens.issue(Duration::ZERO, Duration::from_secs(60));
        assert_ne!(token, other);
        tokens.revoke(&other);
        assert!(!tokens.is_valid(&other, Duration::ZERO));
        assert!(tokens.is_valid(AYOCONNECT_ACCESS_TOKEN, Duration::from_secs(9)));
        assert!(!tokens.is_valid("", Duration::ZERO));
    }

    #[test]
    fn the_published_test_key_can_be_read() {
        let der = PrivatePkcs8KeyDer::from_pem_slice(AYOCONNECT_PRIVATE_KEY.as_bytes()).expect("PEM");
        let pair = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).expect("PKCS#8");
        let mut signature = vec![0; pair.public_modulus_len()];
        let random = aws_lc_rs::rand::SystemRandom::new();
        pair.sign(&aws_lc_rs::signature::RSA_PKCS1_SHA256, &random, b"signed", &mut signature).expect("signed");
        assert!(is_rsa_signed(b"signed", &signature));
        assert!(!is_rsa_signed(b"other", &signature));
    }
}

//! DusuPay: transaction status verification.
//!
//! Source: the page "Transaction Status Verification" of DusuPay's API documentation, read 2026-11.
//!
//! | rule | source |
//! |---|---|
//! | no check sooner than 2 minutes after initiation | "Status check requests will be denied if they're done less than 2 minutes from the time the transaction was initiated." |
//! | 5 minutes between checks of one transaction | "We recommend that an interval of 5 minutes is implemented between status check requests for the same transaction." |
//! | `data.transaction_status` is the truth | "the parameter data.transaction_status holds the current status of the transaction" |
//! | the reason stands in `data.status_message` | "Reason for failure will always be in the data.status_message parameter." |
//!
//! Traps: the outer `status:"success"` and `code:200` describe the request; `data:{}` is an error's
//! data, not a transaction; 403 has two meanings, told apart by what the message speaks of; an HTTP
//! code and a body `code` that disagree are no answer; in cross-currency payments
//! `transaction_amount` differs from what was requested, so `request_amount` is the one to compare.
//! The document shows it in every answer: a success without it is no answer for a transaction with
//! an expected amount.

use super::{Ask, Descriptor, Open, Provider, Settings};
use crate::domain::{Amount, Floors, Outcome, Reported, Status, Whose};
use crate::wire::{self, Kept, Lenient, Method, Object, Request, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

const FLOORS: Floors = Floors {
    // "less than 2 minutes from the time the transaction was initiated"
    first: Duration::from_secs(120),
    // `initiated_at` is the feeder's clock: our choice. The default plan waits longer, because the
    // row often comes before the initiation.
    margin: Duration::from_secs(1),
    // "an interval of 5 minutes"
    every: Duration::from_secs(300),
    window: None,
    rate: None,
};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "dusupay",
    floors: FLOORS,
    implicit_account: false,
    account_keys: &["public_key"],
    option_keys: &[],
    open: Open::Compiled(|settings| Ok(Box::new(DusuPay::open(settings)?))),
};

struct DusuPay {
    base_url: String,
    public_key: SecretString,
}

impl DusuPay {
    fn open(settings: &Settings) -> Result<Self, String> {
        let public_key = settings.required("public_key")?;
        wire::header_value("public_key", public_key.expose_secret())?;
        Ok(Self { base_url: settings.base_url.clone(), public_key })
    }
}

impl Provider for DusuPay {
    fn request(&self, ask: Ask<'_>) -> Result<Request, String> {
        Ok(Request {
            method: Method::Get,
            url: format!("{}/data/transaction/verify/{}", self.base_url, wire::segment("reference", ask.reference)?),
            headers: vec![
                ("accept", "application/json".into()),
                // Public: the page "Authentication" requires it of every request, a GET too.
                ("content-type", "application/json".into()),
                ("x-api-version", "1".into()),
                ("public-key", self.public_key.expose_secret().to_owned()),
            ],
            body: None,
        })
    }

    fn read(&self, ask: Ask<'_>, response: &Response) -> Outcome {
        let (Envelope { code, status, message }, mut answer) = match wire::form(&response.body) {
            Ok(answer) => answer,
            Err(why) => return wire::unreadable(response, why),
        };
        let message = message.text().unwrap_or_default().to_owned();
        if code != response.status {
            return wire::unreadable(response, format!("HTTP {} and code {code} disagree", response.status));
        }
        match (code, status.as_str()) {
            (200, "success") => read_transaction(ask, answer["data"].take()).unwrap_or_else(|why| Outcome::Unusable { why }),
            (404, "error") => Outcome::NotFound { message },
            (403, "error") if is_too_early(&message) => Outcome::TooEarly,
            (401 | 403, "error") => Outcome::CredentialsRejected { whose: Whose::Account, park: false, message },
            (429, "error") => Outcome::RateLimited { wait: response.retry_after },
            (500.., "error") => Outcome::ServerError { status: code, wait: response.retry_after },
            (_, "error") => Outcome::RequestFailed { message },
            _ => wire::unreadable(response, format!("code {code} with status {status:?}")),
        }
    }

    fn secrets<'a>(&'a self, _ask: Ask<'a>) -> Vec<&'a str> {
        vec![self.public_key.expose_secret()]
    }

    fn kept<'a>(&'a self, _ask: Ask<'a>) -> Kept<'a> {
        Kept::AllBut(&["customer_name", "transaction_account"])
    }
}

/// "Status check denied. Try again after 2 minutes.": it speaks of the status check, or tells a
/// wait. Anything else that is denied with a 403 is denied to the account, "Access denied. Fix your
/// key and try again." too.
fn is_too_early(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    let tells_a_wait =
        |lead: &str| message.split(lead).skip(1).any(|rest| rest.trim_start().starts_with(|first: char| first.is_ascii_digit()));
    message.contains("status check denied") || tells_a_wait("try again after ") || tells_a_wait("try again in ")
}

/// The transaction in `data`. The error says why it is not believed.
fn read_transaction(ask: Ask<'_>, data: Value) -> Result<Outcome, String> {
    let Object(Transaction { merchant_reference, transaction_status: word, status_message, request_currency }) =
        Object::deserialize(&data).map_err(|_| "a success without the documented data")?;
    let amount = wire::amount_at(&data, "/request_amount");
    if merchant_reference != ask.reference {
        return Err("the answer is about another merchant_reference".into());
    }
    let Some(reported) = meaning(&word) else {
        return Ok(Outcome::UnknownStatus { status: word });
    };
    if reported == Reported::Succeeded && ask.amount.is_some() && amount == Amount::Untold {
        return Err("a success without the documented request_amount".into());
    }
    Ok(Outcome::Status(Box::new(Status {
        reported,
        word,
        reason: status_message.text().map(str::to_owned),
        amount,
        currency: request_currency.text().map(str::to_owned),
        details: data.into(),
    })))
}

/// What every answer has, beside `data`.
#[derive(Deserialize)]
struct Envelope {
    code: u16,
    status: String,
    message: Lenient<String>,
}

/// `data` of a request that worked.
#[derive(Deserialize)]
struct Transaction {
    merchant_reference: String,
    transaction_status: String,
    status_message: Lenient<String>,
    request_currency: Lenient<String>,
}

/// "Transaction Status Descriptions", in the document's order.
fn meaning(word: &str) -> Option<Reported> {
    match word {
        "PENDING" => Some(Reported::Pending),
        "PROCESSING" => Some(Reported::Pending),
        "FAILED" => Some(Reported::Failed),
        "COMPLETED" => Some(Reported::Succeeded),
        "CANCELLED" => Some(Reported::Cancelled),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, header, response, settings, with};
    use super::*;

    const COMPLETED: &str = include_str!("../../tests/fixtures/dusupay/completed.json");
    const FAILED: &str = include_str!("../../tests/fixtures/dusupay/failed.json");
    const NOT_FOUND: &str = include_str!("../../tests/fixtures/dusupay/not_found.json");
    const TOO_EARLY: &str = include_str!("../../tests/fixtures/dusupay/too_early.json");
    const TOO_MANY: &str = include_str!("../../tests/fixtures/dusupay/too_many_requests.json");
    const NO_RIGHTS: &str = include_str!("../../tests/fixtures/dusupay/no_rights.json");
    const FIX_YOUR_KEY: &str = include_str!("../../tests/fixtures/dusupay/access_denied.json");
    const BARE: &str = include_str!("../../tests/fixtures/dusupay/completed_bare.json");
    const REFERENCE: &str = "MCTREFT2WMNWZ23SBN6Y";

    fn dusupay() -> DusuPay {
        DusuPay::open(&settings(&[], &[("public_key", "PUBK-1234")])).expect("complete settings")
    }

    fn read(status: u16, body: &str) -> Outcome {
        dusupay().read(ask(REFERENCE, &Value::Null), &response(status, body))
    }

    fn reported(body: &str) -> Status {
        match read(200, body) {
            Outcome::Status(status) => *status,
            other => panic!("no status: {other:?}"),
        }
    }

    #[test]
    fn the_request_is_the_documented_one() {
        let request = dusupay().request(ask("MCT/REF 1", &Value::Null)).expect("a request");
        assert_eq!(request.method, Method::Get);
        assert_eq!(request.url, "http://127.0.0.1:1/gate/data/transaction/verify/MCT%2FREF%201");
        assert_eq!(header(&request, "public-key"), Some("PUBK-1234"));
        assert_eq!(header(&request, "x-api-version"), Some("1"));
        assert_eq!(header(&request, "accept"), Some("application/json"));
        assert_eq!(header(&request, "content-type"), Some("application/json"));
        assert_eq!(request.body, None);
    }

    #[test]
    fn a_reference_that_no_path_can_carry_is_the_rows_fault() {
        assert!(dusupay().request(ask("..", &Value::Null)).is_err_and(|why| why.contains("reference")));
    }

    #[test]
    fn a_public_key_is_needed_and_must_fit_into_a_header() {
        assert_eq!(DusuPay::open(&settings(&[], &[])).err().as_deref(), Some("public_key is missing"));
        let broken = DusuPay::open(&settings(&[], &[("public_key", "PUBK\n1")])).err().expect("refused");
        assert!(broken.contains("public_key") && !broken.contains("PUBK"), "{broken}");
    }

    #[test]
    fn completed_is_a_success_with_the_requested_amount() {
        let status = reported(COMPLETED);
        assert_eq!(status.reported, Reported::Succeeded);
        assert_eq!(status.word, "COMPLETED");
        assert_eq!(status.reason.as_deref(), Some("Transaction Completed Successfully"));
        assert_eq!(status.amount, Amount::Told(2_000_000.into()));
        assert_eq!(status.currency.as_deref(), Some("UGX"));
        assert_eq!(status.details["internal_reference"], "DUSUPAYRMGRXNNYBWATKJ");
    }

    #[test]
    fn the_amount_to_compare_is_the_requested_one() {
        let body = with(COMPLETED, r#""transaction_amount": 2000000"#, r#""transaction_amount": 530.25"#);
        assert_eq!(reported(&body).amount, Amount::Told(2_000_000.into()));
    }

    #[test]
    fn every_documented_word_has_its_meaning() {
        for (word, meaning) in [
            ("PENDING", Reported::Pending),
            ("PROCESSING", Reported::Pending),
            ("FAILED", Reported::Failed),
            ("COMPLETED", Reported::Succeeded),
            ("CANCELLED", Reported::Cancelled),
        ] {
            assert_eq!(reported(&with(COMPLETED, "COMPLETED", word)).reported, meaning, "{word}");
        }
        assert_eq!(reported(FAILED).reason.as_deref(), Some("Insufficient balance"));
    }

    #[test]
    fn a_word_in_another_spelling_is_unknown() {
        for word in ["completed", "COMPLETED ", "REVERSED", ""] {
            let outcome = read(200, &with(COMPLETED, "\"COMPLETED\"", &format!("{word:?}")));
            assert_eq!(outcome, Outcome::UnknownStatus { status: word.into() });
        }
    }

    #[test]
    fn documented_errors_say_nothing_about_the_payment() {
        assert!(matches!(read(404, NOT_FOUND), Outcome::NotFound { message } if message.contains("Not Found")));
        assert_eq!(read(403, TOO_EARLY), Outcome::TooEarly);
        assert_eq!(read(429, TOO_MANY), Outcome::RateLimited { wait: None });
        let wait = Some(Duration::from_secs(7));
        let throttled = Response { retry_after: wait, ..response(429, TOO_MANY) };
        assert_eq!(dusupay().read(ask(REFERENCE, &Value::Null), &throttled), Outcome::RateLimited { wait });
    }

    #[test]
    fn a_403_is_too_early_only_where_it_speaks_of_the_status_check() {
        for message in [
            "Status check denied. Try again after 2 minutes.",
            "STATUS CHECK DENIED. Please wait 2 minutes.",
            "Please try again in 90 seconds",
            "Denied: try again after  2 minutes",
        ] {
            assert_eq!(read(403, &with(TOO_EARLY, "Status check denied. Try again after 2 minutes.", message)), Outcome::TooEarly);
        }
        for (status, body) in [
            (403, NO_RIGHTS.to_owned()),
            (403, FIX_YOUR_KEY.to_owned()),
            (403, with(NO_RIGHTS, "Request denied. Invalid public key.", "Try again after you have fixed it")),
            (403, with(NO_RIGHTS, "\"Request denied. Invalid public key.\"", "null")),
            (401, with(NO_RIGHTS, "403", "401")),
        ] {
            let outcome = read(status, &body);
            assert!(matches!(outcome, Outcome::CredentialsRejected { whose: Whose::Account, park: false, .. }), "{outcome:?}");
        }
    }

    #[test]
    fn a_firewalls_403_concerns_its_row() {
        for body in ["<html>403</html>", "", r#"{"detail":"blocked"}"#, COMPLETED] {
            let outcome = read(403, body);
            assert!(matches!(outcome, Outcome::CredentialsRejected { whose: Whose::Row, park: false, .. }), "{outcome:?}");
        }
    }

    #[test]
    fn what_decides_nothing_costs_no_answer() {
        let status = reported(BARE);
        assert_eq!((status.reported, status.amount, status.reason), (Reported::Succeeded, Amount::Told(2_000.into()), None));
        for odd in ["null", "{}", "[1]", "7", "\"\""] {
            let body = with(COMPLETED, "\"Request completed successfully.\"", odd);
            let body = with(
                &with(&body, "\"Transaction Completed Successfully\"", odd),
                "\"request_currency\": \"UGX\"",
                &format!("\"request_currency\": {odd}"),
            );
            let status = reported(&body);
            assert_eq!((status.reported, status.reason, status.currency), (Reported::Succeeded, None, None), "{odd}");
        }
    }

    #[test]
    fn a_success_without_its_amount_is_no_answer_to_whoever_expects_one() {
        let read = |body: &str, amount: Option<i64>| {
            let ask = Ask { amount: amount.map(Into::into), ..ask(REFERENCE, &Value::Null) };
            dusupay().read(ask, &response(200, body))
        };
        for body in [
            with(COMPLETED, "\"request_amount\"", "\"amount\""),
            with(COMPLETED, "\"request_amount\": 2000000", "\"request_amount\": null"),
        ] {
            assert!(matches!(read(&body, Some(2_000_000)), Outcome::Unusable { .. }), "{body}");
            assert!(matches!(read(&body, None), Outcome::Status(_)), "{body}");
            assert!(matches!(read(&with(&body, "COMPLETED", "FAILED"), Some(2_000_000)), Outcome::Status(_)), "only a success");
        }
    }

    #[test]
    fn other_documented_error_bodies_follow_their_code() {
        assert!(matches!(read(400, &with(NO_RIGHTS, "403", "400")), Outcome::RequestFailed { .. }));
        assert_eq!(read(503, &with(NO_RIGHTS, "403", "503")), Outcome::ServerError { status: 503, wait: None });
    }

    #[test]
    fn an_http_code_and_a_body_code_that_disagree_are_no_answer() {
        assert!(matches!(read(404, COMPLETED), Outcome::Unusable { .. }));
        assert!(matches!(read(200, NOT_FOUND), Outcome::Unusable { .. }));
        assert!(matches!(read(200, TOO_EARLY), Outcome::Unusable { .. }));
        assert_eq!(read(502, COMPLETED), Outcome::ServerError { status: 502, wait: None });
    }

    #[test]
    fn a_success_without_its_transaction_is_no_answer() {
        for body in [
            r#"{"code":200,"status":"success","message":"","data":{}}"#,
            r#"{"code":200,"status":"success","message":""}"#,
            r#"{"code":200,"status":"success","message":"","data":["MCTREFT2WMNWZ23SBN6Y","COMPLETED",null,null,null]}"#,
            r#"[200,"success",""]"#,
        ] {
            assert!(matches!(read(200, body), Outcome::Unusable { .. }), "{body}");
        }
        assert!(matches!(
            read(200, &with(COMPLETED, "\"status\": \"success\"", "\"status\": \"error\"")),
            Outcome::RequestFailed { .. }
        ));
        assert!(matches!(read(200, &with(COMPLETED, "\"status\": \"success\"", "\"status\": \"ok\"")), Outcome::Unusable { .. }));
    }

    #[test]
    fn another_or_a_missing_reference_is_no_answer() {
        assert!(matches!(read(200, &with(COMPLETED, REFERENCE, "MCTREFOTHER")), Outcome::Unusable { .. }));
        assert!(matches!(read(200, &with(COMPLETED, "merchant_reference", "reference")), Outcome::Unusable { .. }));
    }

    #[test]
    fn an_amount_that_is_none_costs_no_answer_and_cannot_be_compared() {
        let odd = with(COMPLETED, "\"request_amount\": 2000000", "\"request_amount\": \"2 M\"");
        assert_eq!(reported(&odd).amount, Amount::Unreadable);
    }

    #[test]
    fn the_portals_html_is_no_answer() {
        assert!(matches!(read(200, "<html>Sign in</html>"), Outcome::Unusable { .. }));
        assert!(matches!(read(404, "<html>404</html>"), Outcome::Unusable { .. }));
        assert!(matches!(read(302, ""), Outcome::Unusable { .. }));
        assert_eq!(read(500, "<html>500</html>"), Outcome::ServerError { status: 500, wait: None });
    }
}

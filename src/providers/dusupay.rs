//! DusuPay: transaction status verification.
//!
//! Source: the page "Transaction Status Verification" of DusuPay's API documentation, read 2026-11.
//!
//! | rule | source |
//! |---|---|
//! | no check sooner than 2 minutes after initiation | "Status check requests will be denied if they're done less than 2 minutes from the time the transaction was initiated." |
//! | 5 minutes between checks of one transaction | "We recommend that an interval of 5 minutes is implemented between status check requests for the same transaction." |
//! | `data.transaction_status` is the truth | "the parameter data.transaction_status holds the current status of the transaction" |
//!
//! Traps: the outer `status:"success"` and `code:200` describe the request; `data:{}` is an error's data, not a transaction; 403
//! has two meanings, told apart by "Try again"; an HTTP code and a body `code` that disagree are no answer.

use super::{Ask, Descriptor, Provider, Settings};
use crate::domain::{Floors, Outcome, Reported, Status, Whose};
use crate::wire::{self, Method, Request, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Number, Value};
use std::time::Duration;

const FLOORS: Floors = Floors {
    first: Duration::from_secs(120),
    // `initiated_at` is the feeder's clock: our choice.
    margin: Duration::from_secs(1),
    every: Duration::from_secs(300),
    window: None,
};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "dusupay",
    floors: FLOORS,
    implicit_account: false,
    account_keys: &["public_key"],
    option_keys: &[],
    open: |settings| Ok(Box::new(DusuPay::open(settings)?)),
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
                ("x-api-version", "1".into()),
                ("public-key", self.public_key.expose_secret().to_owned()),
            ],
            body: None,
        })
    }

    fn read(&self, ask: Ask<'_>, response: &Response) -> Outcome {
        let answer = match wire::json(&response.body) {
            Ok(answer) => answer,
            Err(why) => return wire::unreadable(response, why),
        };
        let Ok(Envelope { code, status, message, data }) = Envelope::deserialize(&answer) else {
            return wire::unreadable(response, "the answer has not the documented form".into());
        };
        if code != response.status {
            return wire::unreadable(response, format!("HTTP {} and code {code} disagree", response.status));
        }
        match (code, status.as_str()) {
            (200, "success") => read_transaction(ask, data, &answer),
            (404, "error") => Outcome::NotFound { message },
            (403, "error") if message.to_ascii_lowercase().contains("try again") => Outcome::TooEarly,
            (401 | 403, "error") => Outcome::CredentialsRejected { whose: Whose::Account, park: false, message },
            (429, "error") => Outcome::RateLimited { wait: response.retry_after },
            (500.., "error") => Outcome::ServerError { status: code, wait: response.retry_after },
            (_, "error") => Outcome::RequestFailed { message },
            _ => Outcome::Unusable { why: format!("HTTP {code} with status {status:?}") },
        }
    }

    fn secrets<'a>(&'a self, _ask: Ask<'a>) -> Vec<&'a str> {
        vec![self.public_key.expose_secret()]
    }

    fn private_keys(&self) -> &'static [&'static str] {
        &["customer_name", "transaction_account"]
    }
}

fn read_transaction(ask: Ask<'_>, data: Value, answer: &Value) -> Outcome {
    let Ok(transaction) = Transaction::deserialize(data) else {
        return Outcome::Unusable { why: "a success without the documented data".into() };
    };
    if transaction.merchant_reference != ask.reference {
        return Outcome::Unusable { why: "the answer is about another merchant_reference".into() };
    }
    let Some(reported) = meaning(&transaction.transaction_status) else {
        return Outcome::UnknownWord { word: transaction.transaction_status };
    };
    let Ok(amount) = wire::amount(transaction.request_amount.as_ref()) else {
        return Outcome::Unusable { why: "request_amount is no amount".into() };
    };
    Outcome::Status(Box::new(Status {
        reported,
        word: transaction.transaction_status,
        reason: transaction.status_message.filter(|text| !text.is_empty()),
        amount,
        currency: transaction.request_currency,
        details: answer["data"].clone(),
    }))
}

#[derive(Deserialize)]
struct Envelope {
    code: u16,
    status: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct Transaction {
    merchant_reference: String,
    transaction_status: String,
    status_message: Option<String>,
    request_amount: Option<Number>,
    request_currency: Option<String>,
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

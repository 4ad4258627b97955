//! Khalti: `GET /api/service/status/`, from its page "Service Status Lookup API".
//!
//! The page shows the parameters as a JSON object; newer text has them in the path. All three ways
//! are understood: the object as the body, the query, the path.

use super::credentials::{AMOUNT, KHALTI_TOKENS, OTHER_AMOUNT, which};
use super::exchange::{Ask, Incoming, Refusal, Reply, check_reference, number, object, only, parameter, text};
use super::rules::Kind;
use super::scripts::Told;
use serde_json::{Value, json};

const PARAMETERS: [&str; 2] = ["token", "reference"];

pub(super) fn check(incoming: &Incoming) -> Result<Ask, Refusal> {
    let bad_request = |detail: String| Refusal {
        kind: Some(Kind::BadRequest),
        reply: error(400, "1012", "invalid_request", "The request is not valid."),
        detail,
    };
    let (token, reference) = parameters(incoming).map_err(bad_request)?;
    check_reference("the reference", &reference).map_err(bad_request)?;
    let Some(account) = which(&KHALTI_TOKENS, &token) else {
        let reply = error(401, "1001", "invalid_token", "The token sent is not valid.");
        return Err(Refusal { kind: Some(Kind::BadCredentials), reply, detail: "the token is unknown".into() });
    };
    Ok(Ask { account, reference, flow: None, exclusive: None, secrets: vec![token] })
}

/// The token and the reference, in exactly one of the three ways.
fn parameters(incoming: &Incoming) -> Result<(String, String), String> {
    match (&incoming.parts[..], incoming.query.is_empty(), incoming.body.is_empty()) {
        ([token, reference], true, true) => Ok((token.clone(), reference.clone())),
        ([], false, true) => {
            let value = |name| parameter(&incoming.query, name, &PARAMETERS).map(str::to_owned);
            Ok((value("token")?, value("reference")?))
        }
        ([], true, false) => {
            let body = object(incoming)?;
            only(body.keys(), &PARAMETERS)?;
            Ok((text(&body, "token")?.to_owned(), text(&body, "reference")?.to_owned()))
        }
        _ => Err("the parameters came in none or in several of the three ways".into()),
    }
}

pub(super) fn say(ask: &Ask, told: Told, nth: u32) -> Reply {
    let reference = ask.reference.as_str();
    match told {
        Told::Ok | Told::Currency => success(&found(reference, "Success", "Successful recharge")),
        Told::Odd => {
            let odd = json!({
                "status": true, "state": "Success", "details": {"en": "ok"}, "reference": reference, "response_id": 7,
                "amount": format!("{AMOUNT:.1}"),
            });
            success(&odd)
        }
        Told::OddFail => success(&json!({"status": true, "state": "Failed", "details": {"en": "no"}, "reference": reference})),
        Told::Refund => success(&with(reference, &[("refunded", json!(true)), ("refunded_amount", json!(AMOUNT))])),
        Told::Amount => success(&with(reference, &[("amount", json!(OTHER_AMOUNT))])),
        Told::Other => success(&with(reference, &[("reference", json!(format!("{reference}-ANOTHER")))])),
        Told::NoId => success(&with(reference, &[("reference", Value::Null)])),
        Told::Fail => success(&failed(reference)),
        Told::Echo => success(&found(reference, "Failed", &format!("Not done for {}", ask.secrets.join(" ")))),
        Told::Cancel => success(&manually_failed(reference)),
        Told::Unknown => success(&found(reference, "Escrowed", "")),
        _ if told.waits() || matches!(told, Told::Early | Told::PleaseWait) => {
            let words = ["Timeout", "Queued", "Processing"];
            success(&found(reference, words[nth as usize % words.len()], ""))
        }
        Told::NotFound => error(200, "002", "invalid_reference", "The reference sent is not a valid reference."),
        Told::Error => error(200, "1017", "service_unavailable", "The service is not available."),
        Told::Forbidden | Told::Firewall => Reply::firewall(),
        Told::WrongOtp => error(400, "1013", "bad_request", "The request is not valid."),
        Told::Invalid => {
            let details = json!({"reference": "too long"});
            let body = json!({
                "status": false, "error_code": "1011", "message": "Validation error", "error": "validation_error",
                "details": details, "error_data": {}, "state": "Error",
            });
            success(&body)
        }
        Told::BadToken => Reply::new(400, &json!({"error_code": "1002", "message": "Invalid token"})),
        Told::Refused | Told::Revoke | Told::Denied => error(200, "1001", "invalid_token", "The token sent is not valid."),
        Told::Wait(_) => error(429, "1018", "throttled", "Request was throttled."),
        Told::Http(202) => Reply { status: 202, ..success(&found(reference, "Queued", "")) },
        Told::Http(status @ (401 | 403)) => error(status, "1001", "invalid_token", "The token sent is not valid."),
        Told::Http(404) => error(404, "002", "invalid_reference", "The reference sent is not a valid reference."),
        Told::Http(429) => error(429, "1018", "throttled", "Request was throttled."),
        Told::Http(status) => error(status, "1017", "service_unavailable", "The service is not available."),
        _ => error(500, "1017", "service_unavailable", "The service is not available."),
    }
}

fn found(reference: &str, state: &str, details: &str) -> Value {
    json!({
        "status": true,
        "state": state,
        "original_status": state,
        "details": details,
        "reference": reference,
        "response_id": number(reference),
        "amount": AMOUNT,
        "refunded": false,
        "refunded_amount": 0.0,
        "refunds": [],
    })
}

/// A success with other fields; without those whose value is null.
fn with(reference: &str, others: &[(&str, Value)]) -> Value {
    let mut answer = found(reference, "Success", "Successful recharge");
    if let Some(fields) = answer.as_object_mut() {
        for (key, value) in others {
            fields.remove(*key);
            if !value.is_null() {
                fields.insert((*key).to_owned(), value.clone());
            }
        }
    }
    answer
}

/// The document's "Failed Response": `refunded` is false beside a refund.
fn failed(reference: &str) -> Value {
    let mut answer = found(reference, "Failed", "rtii");
    answer["original_status"] = json!("Error");
    answer["refunds"] = json!([{"created_at": "2024-07-15", "remarks": "rtii", "amount": AMOUNT}]);
    answer
}

/// The document's "Transaction Exists but Failure", which has fewer fields.
fn manually_failed(reference: &str) -> Value {
    json!({
        "status": true,
        "state": "Failed",
        "details": "Manually Failed",
        "reference": reference,
        "response_id": number(reference),
        "amount": AMOUNT,
    })
}

fn success(answer: &Value) -> Reply {
    Reply::new(200, answer)
}

fn error(status: u16, code: &str, kind: &str, message: &str) -> Reply {
    let body = json!({
        "status": false,
        "error_code": code,
        "message": message,
        "error": kind,
        "details": "",
        "error_data": {},
        "state": "Error",
    });
    Reply::new(status, &body)
}

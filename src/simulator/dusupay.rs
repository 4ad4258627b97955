//! DusuPay: `GET /data/transaction/verify/{reference}`, from its page "Transaction Status Verification".

use super::credentials::{AMOUNT, DUSUPAY_PUBLIC_KEYS, OTHER_AMOUNT, OTHER_CURRENCY, which};
use super::exchange::{Ask, Incoming, Refusal, Reply, check_reference, header, number};
use super::rules::Kind;
use super::scripts::Told;
use serde_json::{Value, json};

pub(super) const CURRENCY: &str = "UGX";

/// The request as the sample has it: the public key, version 1, and nothing in the query.
pub(super) fn check(incoming: &Incoming) -> Result<Ask, Refusal> {
    let reference = &incoming.parts[0];
    let refused = |kind, status, detail: String| Refusal { kind: Some(kind), reply: error(status, &detail), detail };
    let key = header(&incoming.headers, "public-key").map_err(|why| refused(Kind::BadCredentials, 401, why))?;
    let account =
        which(&DUSUPAY_PUBLIC_KEYS, key).ok_or_else(|| refused(Kind::BadCredentials, 401, "the public-key is unknown".into()))?;
    form(incoming, reference).map_err(|why| refused(Kind::BadRequest, 400, why))?;
    Ok(Ask { account, reference: reference.clone(), flow: None, exclusive: None, secrets: vec![key.to_owned()] })
}

fn form(incoming: &Incoming, reference: &str) -> Result<(), String> {
    check_reference("the reference", reference)?;
    if header(&incoming.headers, "x-api-version")? != "1" {
        return Err("the header x-api-version is not 1".into());
    }
    if header(&incoming.headers, "accept")? != "application/json" {
        return Err("the header accept is not application/json".into());
    }
    // Its page "Authentication" asks for it; the sample of this page has none.
    if incoming.headers.contains_key("content-type") && header(&incoming.headers, "content-type")? != "application/json" {
        return Err("the header content-type is not application/json".into());
    }
    if incoming.query.is_empty() && incoming.body.is_empty() { Ok(()) } else { Err("there is a query or a body".into()) }
}

pub(super) fn say(ask: &Ask, told: Told, nth: u32) -> Reply {
    let reference = ask.reference.as_str();
    match told {
        Told::Ok | Told::Refund => success(transaction(reference, "COMPLETED", "Transaction Completed Successfully")),
        Told::Odd => {
            let data = json!({
                "merchant_reference": reference, "transaction_status": "COMPLETED",
                "request_amount": format!("{AMOUNT:.0}"), "request_currency": CURRENCY,
            });
            Reply::new(200, &json!({"code": 200, "status": "success", "message": null, "data": data}))
        }
        Told::OddFail => success(with_word(reference, "FAILED", "request_amount", json!("ten"))),
        Told::Fail => success(transaction(reference, "FAILED", "Insufficient balance")),
        Told::Echo => success(transaction(reference, "FAILED", &format!("Not done for {}", ask.secrets.join(" ")))),
        Told::Cancel => success(transaction(reference, "CANCELLED", "Cancelled by the customer")),
        Told::Amount => success(with(reference, "request_amount", json!(OTHER_AMOUNT))),
        Told::Currency => success(with(reference, "request_currency", json!(OTHER_CURRENCY))),
        Told::Other => success(with(reference, "merchant_reference", json!(format!("{reference}-ANOTHER")))),
        Told::NoId => success(with(reference, "merchant_reference", Value::Null)),
        Told::Unknown => success(transaction(reference, "ESCROWED", "Held")),
        _ if told.waits() && nth % 2 == 1 => success(transaction(reference, "PENDING", "")),
        _ if told.waits() => success(transaction(reference, "PROCESSING", "")),
        Told::NotFound => error(404, &format!("Transaction with reference: {reference} Not Found. Contact Support")),
        Told::Early => error(403, "Status check denied. Try again after 2 minutes."),
        Told::PleaseWait => error(403, "Status check denied. Please wait 2 minutes."),
        Told::Denied => error(403, "Access denied. Fix your key and try again."),
        Told::Forbidden | Told::Firewall => Reply::firewall(),
        Told::WrongOtp | Told::Invalid => error(400, "Request Failed."),
        Told::Error => Reply { status: 200, ..error(500, "Request Failed. Internal error.") },
        Told::Refused | Told::Revoke | Told::BadToken => error(401, "Authentication failed."),
        Told::Wait(_) | Told::Http(429) => error(429, "Request Failed. Too many requests in a short time."),
        Told::Http(202) => Reply { status: 202, ..success(transaction(reference, "PENDING", "")) },
        Told::Http(403) => error(403, "Access to this resource is denied."),
        Told::Http(status) => error(status, "Request Failed."),
        _ => error(500, "Request Failed. Internal error."),
    }
}

fn transaction(reference: &str, status: &str, message: &str) -> Value {
    json!({
        "id": number(reference),
        "merchant_reference": reference,
        "internal_reference": format!("DUSUPAY{}", number(reference)),
        "transaction_type": "COLLECTION",
        "request_currency": CURRENCY,
        "transaction_amount": AMOUNT,
        "transaction_currency": CURRENCY,
        "transaction_charge": 0.3,
        "transaction_account": "256787008803",
        "charge_customer": false,
        "total_credit": 9.7,
        "provider_code": "mtn_ug",
        "request_amount": AMOUNT,
        "customer_name": "JOHN DOE",
        "transaction_status": status,
        "status_message": message,
    })
}

/// A success with one field that is not ours; without it where the value is null.
fn with(reference: &str, key: &str, value: Value) -> Value {
    with_word(reference, "COMPLETED", key, value)
}

fn with_word(reference: &str, word: &str, key: &str, value: Value) -> Value {
    let mut data = transaction(reference, word, "Transaction Completed Successfully");
    if let Some(fields) = data.as_object_mut() {
        fields.remove(key);
        if !value.is_null() {
            fields.insert(key.to_owned(), value);
        }
    }
    data
}

fn success(data: Value) -> Reply {
    Reply::new(200, &json!({"code": 200, "status": "success", "message": "Request completed successfully.", "data": data}))
}

fn error(status: u16, message: &str) -> Reply {
    Reply::new(status, &json!({"code": status, "status": "error", "message": message, "data": {}}))
}

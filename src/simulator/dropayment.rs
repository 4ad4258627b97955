//! Dropayment: `POST /paynet/dapi/v1/transfer/{endpointId}/{invoiceId}/status`, from its page
//! "Transfer status".

use super::credentials::{AMOUNT, DROPAYMENT_ENDPOINT, DROPAYMENT_SESSION_PREFIX, OTHER_AMOUNT};
use super::exchange::{Ask, Incoming, Refusal, Reply, check_reference, number, object, only, optional_text, text};
use super::rules::Kind;
use super::scripts::Told;
use serde_json::{Map, Value, json};

pub(super) fn check(incoming: &Incoming) -> Result<Ask, Refusal> {
    let (endpoint, invoice) = (&incoming.parts[0], &incoming.parts[1]);
    let refused = |kind, status, detail: String| Refusal {
        kind: Some(kind),
        reply: error(status, "INVALID_REQUEST", &detail, invoice),
        detail,
    };
    let session = session(incoming, invoice).map_err(|why| refused(Kind::BadRequest, 400, why))?;
    if endpoint != DROPAYMENT_ENDPOINT || !session.token.starts_with(DROPAYMENT_SESSION_PREFIX) {
        return Err(refused(Kind::BadCredentials, 401, "the endpointId or the session.token is unknown".into()));
    }
    let Session { token, access_token } = session;
    let secrets = access_token.into_iter().chain([token.clone()]).collect();
    Ok(Ask { account: 0, reference: invoice.clone(), flow: Some(token), exclusive: None, secrets })
}

struct Session {
    token: String,
    access_token: Option<String>,
}

fn session(incoming: &Incoming, invoice: &str) -> Result<Session, String> {
    check_reference("invoiceId", invoice)?;
    if !incoming.query.is_empty() {
        return Err("there is a query".into());
    }
    let body = object(incoming)?;
    only(body.keys(), &["session"])?;
    let session: &Map<String, Value> = body.get("session").and_then(Value::as_object).ok_or("session is no object")?;
    only(session.keys(), &["token", "accessToken"])?;
    let token = text(session, "token")?;
    if !(16..=36).contains(&token.chars().count()) {
        return Err("session.token is not of 16 to 36 characters".into());
    }
    let access_token = optional_text(session, "accessToken")?;
    if access_token.is_some_and(|token| !(32..=128).contains(&token.chars().count())) {
        return Err("session.accessToken is not of 32 to 128 characters".into());
    }
    Ok(Session { token: token.to_owned(), access_token: access_token.map(str::to_owned) })
}

pub(super) fn say(ask: &Ask, told: Told) -> Reply {
    let invoice = ask.reference.as_str();
    match told {
        Told::Ok | Told::Refund | Told::Currency => transfer(ask, "APPROVED", &approved(invoice, AMOUNT)),
        Told::Amount => transfer(ask, "APPROVED", &approved(invoice, OTHER_AMOUNT)),
        Told::Other => {
            transfer(ask, "APPROVED", &merged(approved(invoice, AMOUNT), json!({"invoiceId": format!("{invoice}-ANOTHER")})))
        }
        Told::NoId => transfer(ask, "APPROVED", &merged(approved(invoice, AMOUNT), json!({"invoiceId": null}))),
        Told::Odd => {
            let centis = format!("{:.0}", AMOUNT * 100.0);
            let odd = json!({"bankOrderId": "B", "redirectUrl": {}, "transaction": {"amountCentis": centis}, "errorMessage": null});
            transfer(ask, "APPROVED", &odd)
        }
        Told::OddFail => transfer(ask, "DECLINED", &json!({"errorCode": {}, "errorMessage": ["x"], "transaction": "none"})),
        Told::Fail => transfer(ask, "DECLINED", &declined(invoice, "Insufficient funds")),
        Told::Cancel => transfer(ask, "DECLINED", &declined(invoice, "Cancelled by the customer")),
        Told::Echo => transfer(ask, "DECLINED", &declined(invoice, &format!("Not done for {}", ask.secrets.join(" ")))),
        Told::Unknown => transfer(ask, "ESCROWED", &json!({})),
        Told::Pending | Told::Early | Told::PleaseWait => transfer(ask, "PROCESSING", &json!({})),
        Told::OddFee => transfer(ask, "TRANSFER_FEE_REQUEST", &odd_fees()),
        Told::Action | Told::Confirm | Told::Choice => {
            transfer(ask, "REDIRECT_REQUEST", &json!({"redirectUrl": "https://acs.example/3ds?pareq=1"}))
        }
        Told::Fee => transfer(ask, "TRANSFER_FEE_REQUEST", &fees()),
        Told::NotFound => error(404, "ORDER_NOT_FOUND", "The order is not found", invoice),
        // The error goes before the state that stands beside it.
        Told::Error => {
            let error = json!({"error": {"cause": "INTERNAL_ERROR", "code": "100", "message": "Internal error"}});
            transfer(ask, "APPROVED", &merged(approved(invoice, AMOUNT), error))
        }
        Told::Forbidden | Told::Firewall => Reply::firewall(),
        Told::WrongOtp | Told::Invalid => error(400, "INVALID_REQUEST", "The request is not valid", invoice),
        Told::Refused | Told::Revoke | Told::Denied | Told::BadToken => {
            error(401, "INVALID_REQUEST", "The session is not valid", invoice)
        }
        Told::Wait(_) | Told::Http(429) => error(429, "FILTERED", "Too many requests", invoice),
        Told::Http(202) => Reply { status: 202, ..transfer(ask, "PROCESSING", &json!({})) },
        Told::Http(404) => error(404, "ORDER_NOT_FOUND", "The order is not found", invoice),
        Told::Http(status @ 400..500) => error(status, "INVALID_REQUEST", "The request is not valid", invoice),
        Told::Http(status) => error(status, "INTERNAL_ERROR", "Internal error", invoice),
    }
}

fn transfer(ask: &Ask, state: &str, more: &Value) -> Reply {
    let token = ask.flow.as_deref().unwrap_or_default();
    let mut body = merged(json!({"invoiceId": ask.reference, "session": {"token": token}, "state": state}), more.clone());
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    Reply::new(200, &body)
}

/// The fields of both; the second's go before.
fn merged(mut body: Value, more: Value) -> Value {
    if let (Some(fields), Value::Object(more)) = (body.as_object_mut(), more) {
        fields.extend(more);
    }
    body
}

fn approved(invoice: &str, amount: f64) -> Value {
    json!({
        "bankOrderId": format!("BANK{}", number(invoice)),
        "orderId": number(invoice).to_string(),
        "transaction": {
            // In hundredths: "1.00 EUR = 100 centis".
            "amountCentis": (amount * 100.0).round() as i64,
            "commissionCentis": 25,
            "orderCreatedDate": "2026-01-01 00:00:00",
            "transactionCreatedDate": "2026-01-01 00:00:01",
        },
        "secure3DAuthStatus": "AUTHENTICATED",
    })
}

fn declined(invoice: &str, message: &str) -> Value {
    json!({"bankOrderId": format!("BANK{}", number(invoice)), "errorCode": 51, "errorMessage": message})
}

fn fees() -> Value {
    json!({"transferFeeList": [
        {"assignedId": "gate-a", "commissionCentis": 25, "currency": "EUR"},
        {"assignedId": "gate-b", "commissionCentis": 40, "currency": "EUR"},
    ]})
}

/// Numbers as text, and an option that lacks two of its parts.
fn odd_fees() -> Value {
    json!({"transferFeeList": [
        {"assignedId": "g", "commissionCentis": "150", "currency": "EUR"},
        {"assignedId": "h"},
    ]})
}

fn error(status: u16, cause: &str, message: &str, invoice: &str) -> Reply {
    let body = json!({"error": {"cause": cause, "code": "100", "message": message}, "invoiceId": invoice});
    Reply::new(status, &body)
}

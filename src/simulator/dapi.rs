//! Dapi: `POST /v2/operation/get`, from its page "Get Operation Status".
//!
//! The page asks for the user's access token without saying where it goes; elsewhere it is
//! `Authorization: Bearer`. A newer page has an `appKey` and the path `/v2/operation/status`; both
//! are understood.

use super::Api;
use super::credentials::{DAPI_ACCESS_TOKEN_PREFIX, DAPI_APP_KEY, DAPI_APP_SECRETS, which};
use super::exchange::{Ask, Incoming, Refusal, Reply, bearer, check_reference, number, object, only, optional_text, text};
use super::rules::{Kind, Moment};
use super::scripts::{NEWER_SHAPE, Told, has_part};
use serde_json::{Map, Value, json};

pub(super) fn check(incoming: &Incoming) -> Result<Ask, Refusal> {
    let refused = |kind, status, error_type, detail: String| Refusal {
        kind: Some(kind),
        reply: error(status, error_type, &detail, incoming.at),
        detail,
    };
    let token = bearer(&incoming.headers).map_err(|why| refused(Kind::BadCredentials, 401, "UNAUTHORIZED", why))?;
    if !token.starts_with(DAPI_ACCESS_TOKEN_PREFIX) {
        return Err(refused(Kind::BadCredentials, 401, "UNAUTHORIZED", "the access token is unknown".into()));
    }
    let body = object(incoming).map_err(|_| refused(Kind::BadRequest, 400, "INVALID_JSON", "Invalid JSON request".into()))?;
    // The document's "Failed Response - Invalid OperationID Provided" answers a request without any.
    if !body.contains_key("operationID") {
        let detail = "the operationID is missing".to_owned();
        return Err(Refusal { kind: Some(Kind::BadRequest), reply: error(200, "NOT_FOUND", "Job not found", incoming.at), detail });
    }
    let operation = operation(&body).map_err(|why| refused(Kind::BadRequest, 400, "PARAMETER_INVALID", why))?;
    let secret = text(&body, "appSecret").map_err(|why| refused(Kind::BadCredentials, 401, "UNAUTHORIZED", why))?;
    let key_is_known = body.get("appKey").is_none_or(|key| key == DAPI_APP_KEY);
    let account = which(&DAPI_APP_SECRETS, secret)
        .filter(|_| key_is_known)
        .ok_or_else(|| refused(Kind::BadCredentials, 401, "UNAUTHORIZED", "the appSecret or appKey is unknown".into()))?;
    Ok(Ask {
        account,
        reference: operation.to_owned(),
        flow: None,
        exclusive: Some(token.to_owned()),
        secrets: vec![token.to_owned(), secret.to_owned()],
    })
}

fn operation(body: &Map<String, Value>) -> Result<&str, String> {
    only(body.keys(), &["appSecret", "appKey", "userSecret", "operationID"])?;
    optional_text(body, "userSecret")?;
    let operation = text(body, "operationID")?;
    check_reference("operationID", operation)?;
    Ok(operation)
}

pub(super) fn say(ask: &Ask, told: Told, at: Moment) -> Reply {
    let operation = Operation { id: Some(ask.reference.clone()), newer: has_part(Api::Dapi, &ask.reference, NEWER_SHAPE) };
    match told {
        Told::Ok | Told::Refund | Told::Amount | Told::Currency => operation.done(),
        Told::Other => Operation { id: Some(format!("{}-ANOTHER", ask.reference)), ..operation }.done_with_id(),
        Told::NoId => Operation { id: None, ..operation }.done(),
        Told::Odd => operation.in_status("done", json!({"msg": {"en": "done"}, "reference": null, "timestamp": "now"})),
        Told::OddFail => {
            let info = json!({"status": "failed", "errorType": "PARAMETER_ERROR", "type": "/v2/payment/transfer/create"});
            Reply::new(200, &json!({"opInfo": info, "status": "done", "success": true}))
        }
        Told::Fail => operation.failed("Insufficient funds", at),
        Told::Cancel => operation.failed("Cancelled by the user", at),
        Told::Echo => operation.failed(&format!("Not done for {}", ask.secrets.join(" ")), at),
        Told::Unknown => operation.in_status("escrowed", json!({})),
        Told::Action | Told::Fee | Told::OddFee => operation.in_status("user_input_required", user_input()),
        Told::Confirm => operation.in_status("user_input_required", json!({"userInputs": {"id": "confirmation"}})),
        Told::Choice => operation.in_status("user_input_required", choice()),
        Told::WrongOtp => {
            let body = json!({
                "operationID": ask.reference, "success": false, "status": "failed", "type": "INVALID_MFA", "msg": "Wrong OTP",
            });
            Reply::new(401, &body)
        }
        Told::Forbidden | Told::Firewall => Reply::firewall(),
        Told::Invalid => error(400, "PARAMETER_INVALID", "The request is not valid", at),
        Told::Pending | Told::Early | Told::PleaseWait => operation.in_status("initialized", json!({})),
        Told::NotFound => error(200, "NOT_FOUND", "Job not found", at),
        Told::Error => error(200, "INTERNAL_ERROR", "Internal error", at),
        Told::Refused | Told::Revoke | Told::Denied | Told::BadToken => {
            error(200, "INVALID_CREDENTIALS", "The user's credentials are wrong", at)
        }
        Told::Http(202) => Reply { status: 202, ..operation.in_status("initialized", json!({})) },
        Told::Http(status @ (401 | 403)) => error(status, "UNAUTHORIZED", "Unauthorized", at),
        Told::Http(404) => error(404, "NOT_FOUND", "Job not found", at),
        Told::Wait(_) => error(429, "TOO_MANY_REQUESTS", "Too many requests", at),
        Told::Http(status) => error(status, "INTERNAL_ERROR", "Internal error", at),
    }
}

/// What an answer says about an operation, in one of the two shapes. Only the flat one names it.
struct Operation {
    id: Option<String>,
    newer: bool,
}

impl Operation {
    fn done(&self) -> Reply {
        let bank_reference = self.id.as_deref().map_or(0, number).to_string();
        self.in_status("done", json!({"reference": bank_reference}))
    }

    /// Names the operation in either shape.
    fn done_with_id(&self) -> Reply {
        if !self.newer {
            return self.done();
        }
        let body = json!({"operationID": self.id, "opInfo": {"status": "done"}, "success": true, "status": "done"});
        Reply::new(200, &body)
    }

    /// "msg: Descriptive message returned only in case of failure", and so the timestamp.
    fn failed(&self, message: &str, at: Moment) -> Reply {
        if self.newer {
            let info = json!({"status": "failed", "errorType": "OPERATION_FAILED", "type": "transfer", "msg": message});
            return Reply::new(200, &json!({"opInfo": info, "success": true, "status": "done"}));
        }
        let body = json!({
            "operationID": self.id,
            "success": false,
            "status": "failed",
            "msg": message,
            "timestamp": at.wall.timestamp_millis(),
        });
        Reply::new(200, &body)
    }

    fn in_status(&self, status: &str, more: Value) -> Reply {
        let mut body = if self.newer {
            json!({"opInfo": {"status": status, "type": "transfer"}, "success": true, "status": "done"})
        } else {
            json!({"operationID": self.id, "success": true, "status": status})
        };
        if let (Some(fields), Value::Object(more)) = (body.as_object_mut(), more) {
            fields.extend(more);
            fields.retain(|_, value| !value.is_null());
        }
        Reply::new(200, &body)
    }
}

fn user_input() -> Value {
    json!({"userInputs": [{
        "id": "otp",
        "query": "Please enter the One Time Password sent to your registered mobile number",
    }]})
}

fn choice() -> Value {
    json!({"userInputs": [{
        "id": "select",
        "index": 0,
        "queryType": "multiple_choice",
        "query": "Choose where to send the code",
        "queryOptions": [{"label": "By SMS", "value": "1"}, {"label": "By e-mail", "value": "2"}],
    }]})
}

/// A failed request: it names no operation.
fn error(status: u16, error_type: &str, message: &str, at: Moment) -> Reply {
    let timestamp = at.wall.timestamp_millis();
    let body = json!({"success": false, "status": "failed", "msg": message, "type": error_type, "timestamp": timestamp});
    Reply::new(status, &body)
}

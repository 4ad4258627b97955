//! Dropayment: transfer status.
//!
//! Source: the page "Transfer status" of Dropayment's API documentation, read 2026-11.
//!
//! | rule | source |
//! |---|---|
//! | 3 s between polls, a window of 3 minutes | "It is recommended to send Transfer status request for a period of 2-3 minutes with interval of 3-5 seconds between requests." |
//! | after the window the callback decides | "Connecting Party's server should rely on the callback for final status." |
//! | `TRANSFER_FEE_REQUEST` waits for the merchant | "the processing will remain paused until Complete transfer request is sent" |
//! | amounts are hundredths | "Amount of money transfered in centis, 1.00 EUR = 100 centis." |
//!
//! Traps: an `error` object, at any HTTP code, 200 included, is the request's trouble, never the
//! transfer's, and a `state` beside it is not believed; its `cause` is an open list; a late poll's
//! authorization error may only mean that the session has ended; `errorCode` is a number where
//! `error.code` is text; `transferFeeList` is documented as an object and shown as an array. The
//! page names no HTTP code: a state is believed at 200 only. `bankOrderId` ("Required if state is
//! APPROVED or DECLINED") is a fact to keep, no proof: a final word about our own `invoiceId` is
//! believed without it.

use super::{Ask, Descriptor, Open, Provider, Settings};
use crate::domain::{Amount, Floors, Outcome, Reported, Status, Whose};
use crate::wire::{self, Kept, Lenient, Method, Object, Request, Response, Scalar};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

const FLOORS: Floors = Floors {
    first: Duration::ZERO,
    margin: Duration::ZERO,
    // "with interval of 3-5 seconds between requests"
    every: Duration::from_secs(3),
    // "for a period of 2-3 minutes"
    window: Some(Duration::from_secs(180)),
    rate: None,
};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "dropayment",
    floors: FLOORS,
    implicit_account: true,
    account_keys: &["endpointId"],
    option_keys: &["path_prefix"],
    open: Open::Compiled(|settings| Ok(Box::new(Dropayment::open(settings)?))),
};

struct Dropayment {
    /// The URL before `/transfer/…`: the vendor's brands differ in their path.
    base_url: String,
    /// For rows that name none.
    endpoint_id: Option<String>,
}

impl Dropayment {
    fn open(settings: &Settings) -> Result<Self, String> {
        let base_url = format!("{}{}", settings.base_url, settings.path("path_prefix")?);
        let endpoint_id = settings.optional("endpointId").map(|id| id.expose_secret().to_owned());
        if let Some(id) = &endpoint_id {
            wire::segment("endpointId", id)?;
        }
        Ok(Self { base_url, endpoint_id })
    }
}

impl Provider for Dropayment {
    fn request(&self, ask: Ask<'_>) -> Result<Request, String> {
        let endpoint_id = match wire::optional_param(ask.params, "endpointId")? {
            Some(id) => id,
            None => self.endpoint_id.as_deref().ok_or("params.endpointId is missing, and the account has no default")?,
        };
        let mut session = json!({ "token": wire::param(ask.params, "session.token")? });
        // "The access token key received in Optional consumer authentication": there only where the
        // consumer was authenticated.
        if let Some(token) = wire::optional_param(ask.params, "session.accessToken")? {
            session["accessToken"] = token.into();
        }
        Ok(Request {
            method: Method::Post,
            url: format!(
                "{}/transfer/{}/{}/status",
                self.base_url,
                wire::segment("params.endpointId", endpoint_id)?,
                wire::segment("reference", ask.reference)?
            ),
            headers: vec![("accept", "application/json".into()), ("content-type", "application/json".into())],
            body: Some(json!({ "session": session }).to_string()),
        })
    }

    fn read(&self, ask: Ask<'_>, response: &Response) -> Outcome {
        match wire::form::<Answer>(&response.body) {
            Err(why) => unreadable(response, why),
            Ok((Answer { error: Some(Object(error)), invoice_id, .. }, _)) => read_error(ask, response, error, invoice_id),
            Ok(_) if response.status != 200 => unreadable(response, "no error where the HTTP code says one".into()),
            Ok((answer, details)) => read_transfer(ask, answer, details).unwrap_or_else(|why| Outcome::Unusable { why }),
        }
    }

    fn secrets<'a>(&'a self, ask: Ask<'a>) -> Vec<&'a str> {
        let row = ["session.token", "session.accessToken"].into_iter();
        let row = row.filter_map(|key| wire::optional_param(ask.params, key).ok().flatten());
        row.chain(self.endpoint_id.as_deref().and_then(super::unlike_a_number)).collect()
    }

    fn kept<'a>(&'a self, _ask: Ask<'a>) -> Kept<'a> {
        Kept::AllBut(&["session", "redirectUrl"])
    }
}

/// As [`wire::unreadable`], but the credentials are the row's: the session and the consumer's access token.
fn unreadable(response: &Response, why: String) -> Outcome {
    match response.status {
        401 | 403 => refused(format!("HTTP {}", response.status)),
        _ => wire::unreadable(response, why),
    }
}

fn refused(message: String) -> Outcome {
    Outcome::CredentialsRejected { whose: Whose::Row, park: false, message }
}

/// What an `error` says about the request. 429 and 503 come first: a `Retry-After` of theirs
/// concerns the whole account.
fn read_error(ask: Ask<'_>, response: &Response, error: Failure, invoice_id: Option<String>) -> Outcome {
    let message = error.to_string();
    match (response.status, error.cause.text()) {
        (429 | 503, _) => wire::unreadable(response, message),
        (401 | 403, _) => refused(message),
        (_, Some("ORDER_NOT_FOUND")) if invoice_id.is_none_or(|id| id == ask.reference) => Outcome::NotFound { message },
        (_, Some("ORDER_NOT_FOUND")) => Outcome::Unusable { why: "the error is about another invoiceId".into() },
        (500.., _) => wire::unreadable(response, message),
        _ => Outcome::RequestFailed { message },
    }
}

/// The transfer's state. The error says why it is not believed.
fn read_transfer(ask: Ask<'_>, answer: Answer, details: Value) -> Result<Outcome, String> {
    if answer.invoice_id.as_deref() != Some(ask.reference) {
        return Err("the answer names no invoiceId, or another".into());
    }
    let word = answer.state.as_deref().ok_or("the answer has no state")?;
    let Some(reported) = meaning(word, &answer)? else {
        return Ok(Outcome::UnknownStatus { status: word.to_owned() });
    };
    Ok(Outcome::Status(Box::new(Status {
        reported,
        word: word.to_owned(),
        reason: reason(&answer),
        amount: major_units(wire::amount_at(&details, "/transaction/amountCentis")),
        currency: None,
        details: details.into(),
    })))
}

/// `errorMessage` and `errorCode`: "Decline reason message / code, may present if state is DECLINED".
fn reason(answer: &Answer) -> Option<String> {
    match (answer.error_message.text(), answer.error_code.text()) {
        (Some(message), Some(code)) => Some(format!("{message} (errorCode {code})")),
        (Some(message), None) => Some(message.to_owned()),
        (None, Some(code)) => Some(format!("errorCode {code}")),
        (None, None) => None,
    }
}

/// "1.00 EUR = 100 centis": the same digits, two of them behind the point.
fn major_units(centis: Amount) -> Amount {
    let Amount::Told(mut amount) = centis else { return centis };
    if !amount.is_integer() {
        return Amount::Unreadable;
    }
    amount = amount.trunc();
    amount.set_scale(2).map_or(Amount::Unreadable, |()| Amount::Told(amount))
}

/// The payer has to be sent to `redirectUrl`.
fn redirect(answer: &Answer) -> Result<Value, String> {
    let url = answer.redirect_url.text().ok_or("REDIRECT_REQUEST without a redirectUrl")?;
    Ok(json!({ "kind": "redirect", "url": url }))
}

/// The merchant has to choose a processing gate by its commission. An odd option hides none of the others.
fn choose_fee(answer: &Answer) -> Result<Value, String> {
    let list = match &answer.transfer_fee_list {
        None => &[],
        Some(Value::Array(list)) => list.as_slice(),
        Some(single) => std::slice::from_ref(single),
    };
    let options: Vec<Value> = list.iter().filter_map(option).collect();
    if options.is_empty() {
        return Err("TRANSFER_FEE_REQUEST without a transferFeeList".into());
    }
    Ok(json!({ "kind": "choose_fee", "options": options }))
}

/// What is known of an option: what is missing stays missing, and a number that came as text is a number.
fn option(fee: &Value) -> Option<Value> {
    let Object(Fee { assigned_id, commission_centis, currency }) = Object::deserialize(fee).ok()?;
    let mut option = Map::new();
    let mut put = |key: &str, value: Option<Value>| value.map(|value| option.insert(key.to_owned(), value));
    put("assignedId", assigned_id.text().map(Into::into));
    put("commissionCentis", commission_centis.text().and_then(|text| text.parse().ok()).map(Value::Number));
    put("currency", currency.text().map(Into::into));
    (!option.is_empty()).then_some(Value::Object(option))
}

/// The "Success" and the "Fail Response Parameters" in one: which of them it is, `error` says.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    invoice_id: Option<String>,
    state: Option<String>,
    error: Option<Object<Failure>>,
    redirect_url: Lenient<String>,
    transfer_fee_list: Option<Value>,
    error_code: Lenient<Scalar>,
    error_message: Lenient<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fee {
    assigned_id: Lenient<Scalar>,
    commission_centis: Lenient<Scalar>,
    currency: Lenient<String>,
}

#[derive(Deserialize)]
struct Failure {
    cause: Lenient<String>,
    code: Lenient<Scalar>,
    message: Lenient<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.cause.text().unwrap_or("an error without a cause"))?;
        if let Some(code) = self.code.text() {
            write!(f, " {code}")?;
        }
        match self.message.text() {
            None => Ok(()),
            Some(message) => write!(f, ": {message}"),
        }
    }
}

/// The possible values of `state`, in the document's order.
fn meaning(word: &str, answer: &Answer) -> Result<Option<Reported>, String> {
    Ok(match word {
        "PROCESSING" => Some(Reported::Pending),
        "REDIRECT_REQUEST" => Some(Reported::ActionRequired(redirect(answer)?)),
        "APPROVED" => Some(Reported::Succeeded),
        "DECLINED" => Some(Reported::Failed),
        "TRANSFER_FEE_REQUEST" => Some(Reported::ActionRequired(choose_fee(answer)?)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, header, response, settings, with};
    use super::*;

    const APPROVED: &str = include_str!("../../tests/fixtures/dropayment/approved.json");
    const DECLINED: &str = include_str!("../../tests/fixtures/dropayment/declined.json");
    const PROCESSING: &str = include_str!("../../tests/fixtures/dropayment/processing.json");
    const REDIRECT: &str = include_str!("../../tests/fixtures/dropayment/redirect_request.json");
    const FEES: &str = include_str!("../../tests/fixtures/dropayment/transfer_fee_request.json");
    const FEE: &str = include_str!("../../tests/fixtures/dropayment/transfer_fee_request_object.json");
    const NOT_FOUND: &str = include_str!("../../tests/fixtures/dropayment/order_not_found.json");
    const ERROR: &str = include_str!("../../tests/fixtures/dropayment/processing_failed.json");
    const ERROR_AND_STATE: &str = include_str!("../../tests/fixtures/dropayment/error_beside_state.json");
    const ODD_FEES: &str = include_str!("../../tests/fixtures/dropayment/transfer_fee_request_odd.json");
    const ODD_APPROVED: &str = include_str!("../../tests/fixtures/dropayment/approved_odd.json");
    const INVOICE: &str = "INV-2026-0001";

    fn dropayment(account: &[(&str, &str)]) -> Dropayment {
        Dropayment::open(&settings(&[("path_prefix", "/paynet/dapi/v1")], account)).expect("complete settings")
    }

    fn params() -> Value {
        json!({ "endpointId": "1 1/4", "session": { "token": "session-token-0001", "accessToken": "access-token-0001" } })
    }

    fn read(status: u16, body: &str) -> Outcome {
        dropayment(&[]).read(ask(INVOICE, &params()), &response(status, body))
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

    #[test]
    fn the_request_is_the_documented_one() {
        let request = dropayment(&[]).request(ask("INV/1", &params())).expect("a request");
        assert_eq!(request.method, Method::Post);
        assert_eq!(request.url, "http://127.0.0.1:1/gate/paynet/dapi/v1/transfer/1%201%2F4/INV%2F1/status");
        assert_eq!(header(&request, "content-type"), Some("application/json"));
        let body: Value = serde_json::from_str(&request.body.expect("a body")).expect("JSON");
        assert_eq!(body, json!({ "session": { "accessToken": "access-token-0001", "token": "session-token-0001" } }));
    }

    #[test]
    fn an_access_token_that_the_row_has_not_is_left_out() {
        for session in [json!({ "token": "t" }), json!({ "token": "t", "accessToken": null })] {
            let params = json!({ "endpointId": "39", "session": session });
            let request = dropayment(&[]).request(ask(INVOICE, &params)).expect("a request");
            assert_eq!(request.body.as_deref(), Some(r#"{"session":{"token":"t"}}"#));
        }
    }

    #[test]
    fn the_accounts_endpoint_serves_rows_that_name_none() {
        let params = json!({ "session": { "token": "t" } });
        let url = |endpoint| dropayment(endpoint).request(ask(INVOICE, &params)).map(|request| request.url);
        let expected = "http://127.0.0.1:1/gate/paynet/dapi/v1/transfer/39/INV-2026-0001/status";
        assert_eq!(url(&[("endpointId", "39")]).as_deref(), Ok(expected));
        assert!(url(&[]).is_err_and(|why| why.contains("params.endpointId")));
    }

    #[test]
    fn a_row_that_cannot_be_asked_about_names_what_to_mend() {
        let endpoint = |params: Value| dropayment(&[]).request(ask(INVOICE, &params)).expect_err("invalid");
        assert_eq!(endpoint(json!({ "endpointId": "39" })), "params.session.token is missing");
        assert_eq!(endpoint(json!({ "endpointId": 39, "session": { "token": "t" } })), "params.endpointId is not text");
        assert!(endpoint(json!({ "endpointId": "..", "session": { "token": "t" } })).contains("params.endpointId"));
        assert!(endpoint(json!({ "endpointId": "39", "session": { "token": "a\nb" } })).contains("params.session.token"));
        assert!(endpoint(json!({ "endpointId": "39", "session": "t" })).contains("params.session.token"));
        assert!(endpoint(json!(["39"])).contains("params.endpointId"));
        assert!(dropayment(&[]).request(ask(".", &params())).is_err_and(|why| why.contains("reference")));
    }

    #[test]
    fn settings_that_no_url_can_carry_are_refused_by_name() {
        for prefix in ["paynet", "/paynet/", "/pay net", "/a?b"] {
            let refusal = Dropayment::open(&settings(&[("path_prefix", prefix)], &[])).err().expect("refused");
            assert!(refusal.contains("path_prefix") && refusal.contains("slash"), "{refusal}");
        }
        assert!(Dropayment::open(&settings(&[], &[("endpointId", "..")])).is_err());
        assert!(Dropayment::open(&settings(&[], &[])).is_ok(), "a brand may have no prefix");
    }

    #[test]
    fn approved_is_a_success_in_major_units() {
        let status = reported(APPROVED);
        assert_eq!(status.reported, Reported::Succeeded);
        assert_eq!(status.word, "APPROVED");
        assert_eq!(status.amount, Amount::Told("150.05".parse().expect("a decimal")));
        assert_eq!(status.currency, None);
        assert_eq!(status.details["bankOrderId"], "BANK-77");
        assert_eq!(status.details["transaction"]["commissionCentis"].to_string(), "120");
    }

    #[test]
    fn declined_is_a_failure_with_its_reason() {
        let status = reported(DECLINED);
        assert_eq!(status.reported, Reported::Failed);
        assert_eq!(status.reason.as_deref(), Some("Insufficient funds (errorCode 51)"));
        assert_eq!(reported(&with(DECLINED, "Insufficient funds", "")).reason.as_deref(), Some("errorCode 51"));
    }

    #[test]
    fn processing_is_pending() {
        assert_eq!(reported(PROCESSING).reported, Reported::Pending);
    }

    #[test]
    fn a_redirect_waits_for_the_payer() {
        let action = json!({ "kind": "redirect", "url": "https://3ds.example/acs?id=1" });
        assert_eq!(reported(REDIRECT).reported, Reported::ActionRequired(action));
        assert!(is_unusable(200, &with(REDIRECT, "redirectUrl", "otherUrl")));
        assert!(is_unusable(200, &with(REDIRECT, "https://3ds.example/acs?id=1", "")));
    }

    #[test]
    fn a_choice_of_fees_waits_for_the_merchant() {
        let gate = |id: &str, centis: u32| json!({ "assignedId": id, "commissionCentis": centis, "currency": "EUR" });
        let action = json!({ "kind": "choose_fee", "options": [gate("gate-a", 100), gate("gate-b", 150)] });
        assert_eq!(reported(FEES).reported.clone(), Reported::ActionRequired(action));
        let action = json!({ "kind": "choose_fee", "options": [gate("gate-a", 100)] });
        assert_eq!(reported(FEE).reported.clone(), Reported::ActionRequired(action), "documented as an object");
        for list in ["null", "[]", "[1]", "{}", "[{}]", "\"gate-a\"", "[[\"gate-a\",100,\"EUR\"]]"] {
            let body = format!(r#"{{"invoiceId":"{INVOICE}","state":"TRANSFER_FEE_REQUEST","transferFeeList":{list}}}"#);
            assert!(is_unusable(200, &body), "{list}");
        }
    }

    #[test]
    fn an_odd_option_hides_none_of_the_others() {
        let options = |body: &str| match reported(body).reported {
            Reported::ActionRequired(action) => action["options"].clone(),
            other => panic!("no action: {other:?}"),
        };
        let expected = json!([{ "assignedId": "g", "commissionCentis": 150, "currency": "EUR" }, { "assignedId": "h" }]);
        assert_eq!(options(ODD_FEES), expected);
        let odd =
            with(ODD_FEES, "{\"assignedId\":\"h\"}", "7,null,[],{},{\"assignedId\":8,\"commissionCentis\":\"x\",\"currency\":{}}");
        assert_eq!(options(&odd)[1], json!({ "assignedId": "8" }));
    }

    #[test]
    fn what_decides_nothing_costs_no_answer() {
        let status = reported(ODD_APPROVED);
        assert_eq!(status.reported, Reported::Succeeded);
        assert_eq!(status.amount, Amount::Told("10.50".parse().expect("a decimal")));
        let odd = with(&with(DECLINED, "51", "{}"), "\"Insufficient funds\"", "[]");
        assert_eq!((reported(&odd).reported, reported(&odd).reason), (Reported::Failed, None));
        for transaction in ["[]", "\"x\"", "7"] {
            let body = with(ODD_APPROVED, "{\"amountCentis\":\"1050\"}", transaction);
            assert_eq!((reported(&body).reported, reported(&body).amount), (Reported::Succeeded, Amount::Unreadable));
        }
    }

    #[test]
    fn an_unknown_state_is_no_decline() {
        for word in ["approved", "FILTERED", "ERROR", ""] {
            let outcome = read(200, &with(APPROVED, "\"APPROVED\"", &format!("{word:?}")));
            assert_eq!(outcome, Outcome::UnknownStatus { status: word.into() });
        }
    }

    #[test]
    fn an_order_that_is_not_found_has_not_failed() {
        for status in [200, 400, 404, 500] {
            assert!(
                matches!(read(status, NOT_FOUND), Outcome::NotFound { message } if message == "ORDER_NOT_FOUND 10004: Order not found")
            );
        }
        assert!(is_unusable(404, &with(NOT_FOUND, INVOICE, "INV-OTHER")));
    }

    #[test]
    fn every_other_cause_is_the_requests_trouble() {
        for cause in [
            "FILTERED",
            "INVALID_REQUEST",
            "INTERNAL_ERROR",
            "PROCESSING_FAILED",
            "DECLINED",
            "INVALID_CONFIGURATION",
            "SERVER_FAILED",
            "SERVER_UNAVAILABLE",
            "SOMETHING_NEW",
        ] {
            for status in [200, 400, 404, 422] {
                let outcome = read(status, &with(ERROR, "PROCESSING_FAILED", cause));
                assert!(matches!(&outcome, Outcome::RequestFailed { message } if message.starts_with(cause)), "{outcome:?}");
            }
        }
        assert!(matches!(read(200, r#"{"error":{}}"#), Outcome::RequestFailed { .. }));
    }

    #[test]
    fn an_error_beside_a_state_wins() {
        assert!(matches!(read(200, ERROR_AND_STATE), Outcome::RequestFailed { .. }));
        assert!(is_unusable(200, &with(APPROVED, "\"state\"", "\"error\": \"text\", \"state\"")));
        assert_eq!(reported(&with(APPROVED, "\"state\"", "\"error\": null, \"state\"")).reported, Reported::Succeeded);
    }

    #[test]
    fn a_refused_session_concerns_its_row() {
        for (status, body) in [(401, ERROR), (403, ERROR), (403, NOT_FOUND), (401, ""), (403, "<html>"), (401, DECLINED)] {
            let outcome = read(status, body);
            assert!(matches!(outcome, Outcome::CredentialsRejected { whose: Whose::Row, park: false, .. }), "{outcome:?}");
        }
    }

    #[test]
    fn throttling_and_server_errors_keep_their_retry_after() {
        let wait = Some(Duration::from_secs(9));
        let read =
            |status, body| dropayment(&[]).read(ask(INVOICE, &params()), &Response { retry_after: wait, ..response(status, body) });
        for body in [ERROR, NOT_FOUND, DECLINED, ""] {
            assert_eq!(read(429, body), Outcome::RateLimited { wait });
            assert_eq!(read(503, body), Outcome::ServerError { status: 503, wait });
        }
        assert_eq!(read(500, ERROR), Outcome::ServerError { status: 500, wait });
    }

    #[test]
    fn a_state_is_believed_at_http_200_only() {
        for status in [201, 202, 302, 400, 404] {
            assert!(is_unusable(status, APPROVED) && is_unusable(status, DECLINED), "HTTP {status}");
        }
    }

    #[test]
    fn another_or_a_missing_invoice_is_no_answer() {
        assert!(is_unusable(200, &with(APPROVED, INVOICE, "INV-OTHER")));
        assert!(is_unusable(200, &with(APPROVED, "invoiceId", "id")));
        assert!(is_unusable(200, &with(APPROVED, &format!("\"{INVOICE}\""), "1")));
        assert!(is_unusable(200, &with(APPROVED, "\"state\"", "\"status\"")));
    }

    #[test]
    fn centis_must_be_a_whole_number_that_can_be_compared() {
        for centis in ["15005.5", "1e40", "\"15005.5\"", "\"\"", "{}"] {
            assert_eq!(reported(&with(APPROVED, "15005", centis)).amount, Amount::Unreadable, "{centis}");
        }
        let text = reported(&with(APPROVED, "15005", "\"15005\"")).amount;
        assert_eq!(text, Amount::Told("150.05".parse().expect("a decimal")));
        assert_eq!(reported(&with(APPROVED, "15005", "100.0")).amount, Amount::Told(1.into()));
        let most = reported(&with(APPROVED, "15005", "79228162514264337593543950335")).amount;
        assert_eq!(most, Amount::Told("792281625142643375935439503.35".parse().expect("a decimal")));
    }

    #[test]
    fn the_rows_tokens_are_secrets_and_the_session_is_never_kept() {
        assert_eq!(dropayment(&[]).secrets(ask(INVOICE, &params())), ["session-token-0001", "access-token-0001"]);
        assert!(matches!(dropayment(&[]).kept(ask(INVOICE, &params())), Kept::AllBut(["session", "redirectUrl"])));
    }
}

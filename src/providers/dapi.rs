//! Dapi: get operation status.
//!
//! Source: the page "Get Operation Status" of Dapi's API documentation, read 2026-11. Marked
//! "public": newer public pages and client code of the vendor, weaker than the page.
//!
//! | rule | source |
//! |---|---|
//! | none for the pace | – |
//! | `status` is the truth | "Returns the status of the job." |
//! | `success` is about the request | "Returns true if request is successful and false for all else." |
//! | one request at a time per access token | public: no parallel calls for one access token |
//! | stop at `INVALID_CREDENTIALS` | public: repeats may lock the user's bank account |
//!
//! Traps: a request that failed says `status:"failed"` too, like a payment that failed, but names
//! no `operationID`; in the newer shape (public) the outer `status` is the request's and
//! `opInfo.status` the operation's; `success:true` may come with `user_input_required`; `done`
//! without `reference` (an operation that is no transfer) is done all the same.
//!
//! Decided, because the page is silent: a status is believed at HTTP 200 only, and an answer whose
//! `type` says that the *request* was wrong (`NOT_FOUND`, `INVALID_JSON`, `PARAMETER_…`) is none,
//! even if it echoes our identifier; but where the request worked and `opInfo.status` says
//! `failed`, the operation failed, and the types say why. A 401 or 403 is about the account if the
//! answer's `type` or `msg` names the app secret or the app key, about nobody's credentials if it
//! echoes our identifier with a type about the operation (a wrong one-time password), else about
//! the access token, which is the row's.

use super::{Ask, Descriptor, Open, Provider, Settings};
use crate::domain::{Amount, Floors, Outcome, Reported, Status, Whose};
use crate::wire::{self, Kept, Lenient, Method, Object, Request, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// The documentation sets none.
const FLOORS: Floors = Floors { first: Duration::ZERO, margin: Duration::ZERO, every: Duration::ZERO, window: None, rate: None };

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "dapi",
    floors: FLOORS,
    implicit_account: false,
    account_keys: &["app_secret", "app_key"],
    option_keys: &["path"],
    open: Open::Compiled(|settings| Ok(Box::new(Dapi::open(settings)?))),
};

struct Dapi {
    url: String,
    app_secret: SecretString,
    /// Public: a newer page asks for it.
    app_key: Option<SecretString>,
}

impl Dapi {
    fn open(settings: &Settings) -> Result<Self, String> {
        let path = settings.path("path")?;
        if path.is_empty() {
            return Err("path is empty: write the operation's path, like \"/v2/operation/get\"".into());
        }
        Ok(Self {
            url: format!("{}{path}", settings.base_url),
            app_secret: settings.required("app_secret")?,
            app_key: settings.optional("app_key"),
        })
    }
}

impl Provider for Dapi {
    fn request(&self, ask: Ask<'_>) -> Result<Request, String> {
        let access_token = wire::param(ask.params, "accessToken")?;
        wire::header_value("params.accessToken", access_token)?;
        let mut body = json!({ "appSecret": self.app_secret.expose_secret(), "operationID": ask.reference });
        if let Some(user_secret) = wire::optional_param(ask.params, "userSecret")? {
            body["userSecret"] = user_secret.into();
        }
        if let Some(app_key) = &self.app_key {
            body["appKey"] = app_key.expose_secret().into();
        }
        Ok(Request {
            method: Method::Post,
            url: self.url.clone(),
            headers: vec![
                ("accept", "application/json".into()),
                ("content-type", "application/json".into()),
                ("authorization", format!("Bearer {access_token}")),
            ],
            body: Some(body.to_string()),
        })
    }

    fn read(&self, ask: Ask<'_>, response: &Response) -> Outcome {
        let (answer, details) = match wire::form::<Answer>(&response.body) {
            Ok(answer) => answer,
            Err(why) => return unreadable(response, "", why),
        };
        if answer.identifiers().any(|id| id != ask.reference) {
            return unreadable(response, "", "the answer is about another operationID".into());
        }
        match read_error(response, &answer) {
            Some(outcome) => outcome,
            None => read_operation(&answer, details).unwrap_or_else(|why| Outcome::Unusable { why }),
        }
    }

    fn secrets<'a>(&'a self, ask: Ask<'a>) -> Vec<&'a str> {
        let row = ["accessToken", "userSecret"].into_iter();
        let row = row.filter_map(|key| wire::optional_param(ask.params, key).ok().flatten());
        let account = std::iter::once(&self.app_secret).chain(&self.app_key);
        row.chain(account.map(ExposeSecret::expose_secret)).collect()
    }

    fn kept<'a>(&'a self, _ask: Ask<'a>) -> Kept<'a> {
        Kept::AllBut(&["userInputs"])
    }

    /// The newer shape shows none.
    fn answers_name_their_transaction(&self) -> bool {
        false
    }

    fn exclusive_key<'a>(&self, ask: Ask<'a>) -> Option<&'a str> {
        wire::param(ask.params, "accessToken").ok()
    }
}

/// As [`wire::unreadable`], but a refusal is the row's unless `complaint` names what belongs to the account.
fn unreadable(response: &Response, complaint: &str, why: String) -> Outcome {
    match response.status {
        401 | 403 => {
            let message = if complaint.is_empty() { format!("HTTP {}", response.status) } else { complaint.to_owned() };
            Outcome::CredentialsRejected { whose: whose(complaint), park: false, message }
        }
        _ => wire::unreadable(response, why),
    }
}

/// The letters of a text alone, in lower case.
fn letters(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphabetic).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// Whose credentials were refused, by the provider's own words; the row's where they leave it open.
fn whose(complaint: &str) -> Whose {
    let letters = letters(complaint);
    if letters.contains("appsecret") || letters.contains("appkey") { Whose::Account } else { Whose::Row }
}

/// What an answer says about the request; `None` when it is about the operation. 429 and 503 come
/// first: a `Retry-After` of theirs concerns the whole account.
fn read_error(response: &Response, answer: &Answer) -> Option<Outcome> {
    if response.status == 200 && answer.tells_a_failure_inside() {
        return None;
    }
    let message = answer.complaint();
    if answer.types().any(|kind| kind == "INVALID_CREDENTIALS") {
        return Some(Outcome::CredentialsRejected { whose: Whose::Row, park: true, message });
    }
    if matches!(response.status, 401 | 403) && answer.is_about_the_operation() && whose(&message) == Whose::Row {
        return Some(Outcome::RequestFailed { message });
    }
    if matches!(response.status, 401 | 403 | 429 | 503) {
        return Some(unreadable(response, &message, "refused".into()));
    }
    if answer.types().any(|kind| kind == "NOT_FOUND") {
        return Some(Outcome::NotFound { message });
    }
    match response.status {
        200 if answer.is_about_the_request() => Some(Outcome::RequestFailed { message }),
        200 => None,
        400..=499 if answer.success == Some(false) => Some(Outcome::RequestFailed { message }),
        _ => Some(unreadable(response, &message, "a status where the HTTP code says none".into())),
    }
}

/// The operation's status. The error says why it is not believed.
fn read_operation(answer: &Answer, details: Value) -> Result<Outcome, String> {
    let word = answer.word()?;
    let success = answer.success.ok_or("the answer does not say whether the request worked")?;
    let Some(reported) = meaning(word, answer) else {
        return Ok(Outcome::UnknownStatus { status: word.to_owned() });
    };
    // In the flat shape a payment that failed says so with `success:false`; in the newer one
    // `success` is the request's alone.
    if !success && (reported != Reported::Failed || answer.op_info.is_some()) {
        return Err(format!("{word:?} in the answer to a request that failed"));
    }
    let kind = answer.types().find(|kind| !kind.is_empty() && reported == Reported::Failed);
    Ok(Outcome::Status(Box::new(Status {
        reason: answer.message().or(kind).map(str::to_owned),
        reported,
        word: word.to_owned(),
        amount: Amount::Untold,
        currency: None,
        details: details.into(),
    })))
}

/// Both shapes in one: which of them it is, `opInfo` says.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(rename = "operationID")]
    operation_id: Option<String>,
    success: Option<bool>,
    status: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    op_info: Option<Object<OpInfo>>,
    msg: Lenient<String>,
    user_inputs: Lenient<Value>,
}

/// Public: what a newer page tells of the operation.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OpInfo {
    #[serde(rename = "operationID")]
    operation_id: Option<String>,
    status: Option<String>,
    error_type: Lenient<String>,
    #[serde(rename = "type")]
    kind: Lenient<String>,
    msg: Lenient<String>,
    user_inputs: Lenient<Value>,
}

impl Answer {
    fn op_info(&self) -> Option<&OpInfo> {
        self.op_info.as_ref().map(|Object(info)| info)
    }

    /// Every identifier that the answer echoes.
    fn identifiers(&self) -> impl Iterator<Item = &str> {
        let inner = self.op_info().and_then(|info| info.operation_id.as_deref());
        self.operation_id.as_deref().into_iter().chain(inner)
    }

    /// Every type of error that the answer names, the most telling first.
    fn types(&self) -> impl Iterator<Item = &str> {
        let inner = self.op_info().into_iter().flat_map(|info| [info.error_type.text(), info.kind.text()]);
        inner.chain(std::iter::once(self.kind.as_deref())).flatten()
    }

    fn message(&self) -> Option<&str> {
        self.op_info().and_then(|info| info.msg.text()).or(self.msg.text())
    }

    fn complaint(&self) -> String {
        let parts: Vec<&str> = self.types().chain(self.message()).filter(|part| !part.is_empty()).collect();
        if parts.is_empty() { "the request failed".into() } else { parts.join(" ") }
    }

    /// In the newer shape the request worked, and the operation inside it failed, or is in a status
    /// that nobody knows: its types then say why it is.
    fn tells_a_failure_inside(&self) -> bool {
        let word = self.op_info().and_then(|info| info.status.as_deref());
        let failed = word.is_some_and(|word| !matches!(word, "done" | "initialized" | "user_input_required"));
        failed && self.success == Some(true) && self.status.as_deref().is_none_or(|outer| outer == "done") && self.kind.is_none()
    }

    /// Public: types such as INVALID_MFA, INACTIVE_ACCOUNT or BENEFICIARY_… beside our own
    /// identifier (which was compared before) are about the operation, whatever the HTTP code;
    /// types of refused access are not.
    fn is_about_the_operation(&self) -> bool {
        let is_access = |kind: &str| {
            let letters = letters(kind);
            ["credential", "token", "secret", "apikey", "appkey", "unauthori", "forbidden", "accessdenied"]
                .iter()
                .any(|word| letters.contains(word))
        };
        self.operation_id.is_some() && self.kind.as_deref().is_some_and(|kind| !kind.is_empty() && !is_access(kind))
    }

    /// "failed", but nothing proves that this is the operation's status and not the request's.
    fn is_about_the_request(&self) -> bool {
        let names_the_request = |kind: &str| kind == "INVALID_JSON" || kind.starts_with("PARAMETER_");
        let is_failed = self.status.as_deref() == Some("failed");
        // Beside `opInfo` the outer status is the request's.
        let unproven = self.op_info.is_some() || self.operation_id.is_none();
        self.types().any(names_the_request) || (unproven && is_failed)
    }

    /// The operation's own status word.
    fn word(&self) -> Result<&str, String> {
        match self.op_info() {
            Some(_) if self.status.as_deref().is_some_and(|outer| outer != "done") => Err("the request itself is not done".into()),
            Some(info) => info.status.as_deref().ok_or_else(|| "opInfo has no status".into()),
            None if self.operation_id.is_none() => Err("the answer names no operationID".into()),
            None => self.status.as_deref().ok_or_else(|| "the answer has no status".into()),
        }
    }

    /// What the user has to enter; the page does not promise the list, and shows a list where a
    /// single question was seen.
    fn action(&self) -> Value {
        let inner = self.op_info().and_then(|info| info.user_inputs.as_ref());
        let inputs = match inner.or(self.user_inputs.as_ref()) {
            None => &[],
            Some(Value::Array(inputs)) => inputs.as_slice(),
            Some(single) => std::slice::from_ref(single),
        };
        json!({ "kind": "user_input", "inputs": inputs.iter().filter_map(question).collect::<Vec<_>>() })
    }
}

/// What the user is asked, with the choices that there are. An answer that stands beside it is not read.
fn question(input: &Value) -> Option<Value> {
    const KEYS: [&str; 5] = ["id", "index", "queryType", "query", "queryOptions"];
    let input = input.as_object()?;
    let there = |key: &str| input.get(key).filter(|value| !value.is_null());
    let question: Map<String, Value> = KEYS.iter().filter_map(|key| Some(((*key).to_owned(), there(key)?.clone()))).collect();
    (!question.is_empty()).then_some(Value::Object(question))
}

/// "Operation can have one of the following statuses", in the document's order.
fn meaning(word: &str, answer: &Answer) -> Option<Reported> {
    match word {
        "done" => Some(Reported::Succeeded),
        "initialized" => Some(Reported::Pending),
        "user_input_required" => Some(Reported::ActionRequired(answer.action())),
        "failed" => Some(Reported::Failed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, header, response, settings, with};
    use super::*;

    const DONE: &str = include_str!("../../tests/fixtures/dapi/done.json");
    const USER_INPUT: &str = include_str!("../../tests/fixtures/dapi/user_input_required.json");
    const FAILED: &str = include_str!("../../tests/fixtures/dapi/failed.json");
    const JOB_NOT_FOUND: &str = include_str!("../../tests/fixtures/dapi/job_not_found.json");
    const INVALID_JSON: &str = include_str!("../../tests/fixtures/dapi/invalid_json.json");
    const INVALID_CREDENTIALS: &str = include_str!("../../tests/fixtures/dapi/invalid_credentials.json");
    const NEWER_DONE: &str = include_str!("../../tests/fixtures/dapi/newer_done.json");
    const NEWER_FAILED: &str = include_str!("../../tests/fixtures/dapi/newer_failed.json");
    const PARAMETER_ERROR: &str = include_str!("../../tests/fixtures/dapi/newer_failed_parameter_error.json");
    const WRONG_OTP: &str = include_str!("../../tests/fixtures/dapi/wrong_otp.json");
    const ODD_DONE: &str = include_str!("../../tests/fixtures/dapi/done_with_object_msg.json");
    const CONFIRMATION: &str = include_str!("../../tests/fixtures/dapi/confirmation_required.json");
    const MULTIPLE_CHOICE: &str = include_str!("../../tests/fixtures/dapi/multiple_choice.json");
    const OPERATION: &str = "355b01ed-fb50-4bf0-b7f6-71b4cf94971c";

    fn dapi(account: &[(&str, &str)]) -> Dapi {
        let account = [&[("app_secret", "app-secret-0001")], account].concat();
        Dapi::open(&settings(&[("path", "/v2/operation/get")], &account)).expect("complete settings")
    }

    fn params() -> Value {
        json!({ "accessToken": "access-token-0001", "userSecret": "user-secret-0001" })
    }

    fn read(status: u16, body: &str) -> Outcome {
        dapi(&[]).read(ask(OPERATION, &params()), &response(status, body))
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

    fn refused(status: u16, body: &str) -> Option<(Whose, bool)> {
        match read(status, body) {
            Outcome::CredentialsRejected { whose, park, .. } => Some((whose, park)),
            _ => None,
        }
    }

    #[test]
    fn the_request_is_the_documented_one() {
        let request = dapi(&[]).request(ask(OPERATION, &params())).expect("a request");
        assert_eq!(request.method, Method::Post);
        assert_eq!(request.url, "http://127.0.0.1:1/gate/v2/operation/get");
        assert_eq!(header(&request, "authorization"), Some("Bearer access-token-0001"));
        assert_eq!(header(&request, "content-type"), Some("application/json"));
        let body: Value = serde_json::from_str(&request.body.expect("a body")).expect("JSON");
        let expected = json!({ "appSecret": "app-secret-0001", "userSecret": "user-secret-0001", "operationID": OPERATION });
        assert_eq!(body, expected);
    }

    #[test]
    fn the_app_key_is_sent_where_it_is_configured_and_the_user_secret_where_the_row_has_it() {
        let params = json!({ "accessToken": "t", "userSecret": null });
        let request = dapi(&[("app_key", "app-key-0001")]).request(ask("any text", &params)).expect("a request");
        let body: Value = serde_json::from_str(&request.body.expect("a body")).expect("JSON");
        assert_eq!(body, json!({ "appSecret": "app-secret-0001", "appKey": "app-key-0001", "operationID": "any text" }));
    }

    #[test]
    fn a_row_that_cannot_be_asked_about_names_what_to_mend() {
        let refusal = |params: Value| dapi(&[]).request(ask(OPERATION, &params)).expect_err("invalid");
        assert_eq!(refusal(json!({})), "params.accessToken is missing");
        assert_eq!(refusal(json!({ "accessToken": 1 })), "params.accessToken is not text");
        assert_eq!(refusal(json!({ "accessToken": "t", "userSecret": [] })), "params.userSecret is not text");
        for token in ["tökén", "a b", "a\r\nx-evil: 1"] {
            let why = refusal(json!({ "accessToken": token }));
            assert!(why.contains("params.accessToken") && !why.contains(token), "{why}");
        }
    }

    #[test]
    fn settings_are_refused_by_name() {
        let refusal = |options, account| Dapi::open(&settings(options, account)).err().expect("refused");
        assert_eq!(refusal(&[("path", "/v2/operation/get")], &[]), "app_secret is missing");
        assert!(refusal(&[("path", "v2")], &[("app_secret", "s")]).contains("path"));
        assert!(refusal(&[], &[("app_secret", "s")]).contains("/v2/operation/get"));
    }

    #[test]
    fn done_is_a_success() {
        let status = reported(DONE);
        assert_eq!((status.reported, status.word.as_str()), (Reported::Succeeded, "done"));
        assert_eq!((status.amount, status.currency), (Amount::Untold, None));
        assert_eq!(status.details["reference"], "12345678");
        let body = format!(r#"{{"operationID":"{OPERATION}","success":true,"status":"done"}}"#);
        assert_eq!(reported(&body).reported, Reported::Succeeded, "an operation that is no transfer has no reference");
    }

    #[test]
    fn initialized_is_pending() {
        assert_eq!(reported(&with(DONE, "\"done\"", "\"initialized\"")).reported, Reported::Pending);
    }

    #[test]
    fn user_input_required_waits_for_the_payer_and_keeps_no_answer() {
        let query = "Please enter the One Time Password sent to your registered mobile number";
        let action = json!({ "kind": "user_input", "inputs": [{ "id": "otp", "query": query }] });
        assert_eq!(reported(USER_INPUT).reported, Reported::ActionRequired(action.clone()));
        let answered = with(USER_INPUT, "\"id\": \"otp\"", "\"id\": \"otp\", \"answer\": \"123456\"");
        assert_eq!(reported(&answered).reported, Reported::ActionRequired(action));
        assert!(matches!(dapi(&[]).kept(ask(OPERATION, &Value::Null)), Kept::AllBut(["userInputs"])));
        let bare = json!({ "kind": "user_input", "inputs": [] });
        assert_eq!(reported(&with(DONE, "\"done\"", "\"user_input_required\"")).reported, Reported::ActionRequired(bare));
        let numbered = json!({ "kind": "user_input", "inputs": [{ "id": 1, "query": query }] });
        assert_eq!(reported(&with(USER_INPUT, "\"otp\"", "1")).reported, Reported::ActionRequired(numbered), "odd, but a question");
    }

    #[test]
    fn a_question_is_kept_with_its_choices() {
        let inputs = |body: &str| match reported(body).reported {
            Reported::ActionRequired(action) => action["inputs"].clone(),
            other => panic!("no action: {other:?}"),
        };
        assert_eq!(inputs(CONFIRMATION), json!([{ "id": "confirmation" }]));
        let choice = inputs(MULTIPLE_CHOICE);
        assert_eq!(choice[0]["queryType"], "multiple_choice");
        assert_eq!(choice[0]["queryOptions"][1]["label"], "By e-mail");
        let single = with(&with(CONFIRMATION, "[{", "{"), "}]", "}");
        assert_eq!(inputs(&single), json!([{ "id": "confirmation" }]), "one question instead of a list");
        let odd = with(CONFIRMATION, "[{", "[7,null,{},[],{");
        assert_eq!(inputs(&odd), json!([{ "id": "confirmation" }]), "an odd one hides no other");
        for none in ["null", "7", "\"otp\"", "[]"] {
            assert_eq!(inputs(&with(CONFIRMATION, "[{\"id\":\"confirmation\",\"query\":null}]", none)), json!([]), "{none}");
        }
    }

    #[test]
    fn what_decides_nothing_costs_no_answer() {
        assert_eq!((reported(ODD_DONE).reported, reported(ODD_DONE).reason), (Reported::Succeeded, None));
        let failed = with(FAILED, "\"Insufficient funds in the account\"", "{}");
        assert_eq!(reported(&failed).reason.as_deref(), Some("BANK_ERROR"), "the next best text");
        assert_eq!(reported(&with(NEWER_FAILED, "\"BANK_ERROR\"", "7")).reason.as_deref(), Some("TRANSFER"));
    }

    #[test]
    fn a_wrong_password_concerns_nobodys_credentials() {
        for status in [400, 401, 403, 422] {
            for kind in ["INVALID_MFA", "INACTIVE_ACCOUNT", "INSUFFICIENT_BALANCE", "BENEFICIARY_COOL_DOWN_PERIOD"] {
                let outcome = read(status, &with(WRONG_OTP, "INVALID_MFA", kind));
                assert!(matches!(outcome, Outcome::RequestFailed { .. }), "{kind} at HTTP {status}: {outcome:?}");
            }
        }
        for status in [401, 403] {
            assert_eq!(refused(status, &with(WRONG_OTP, "INVALID_MFA", "UNAUTHORIZED_ACCESS")), Some((Whose::Row, false)));
            assert_eq!(refused(status, &with(WRONG_OTP, OPERATION, "another")), Some((Whose::Row, false)));
            assert_eq!(refused(status, &with(WRONG_OTP, "Wrong OTP", "Wrong appSecret")), Some((Whose::Account, false)));
            assert_eq!(refused(status, &with(WRONG_OTP, "INVALID_MFA", "INVALID_CREDENTIALS")), Some((Whose::Row, true)));
        }
    }

    #[test]
    fn failed_about_our_operation_is_a_failure_with_its_reason() {
        let status = reported(FAILED);
        assert_eq!(status.reported, Reported::Failed);
        assert_eq!(status.reason.as_deref(), Some("Insufficient funds in the account"));
        assert_eq!(reported(&with(FAILED, "\"success\": false", "\"success\": true")).reported, Reported::Failed);
    }

    #[test]
    fn a_request_that_failed_is_no_failed_payment() {
        for status in [200, 400, 404, 500] {
            let outcome = read(status, JOB_NOT_FOUND);
            assert_eq!(outcome, Outcome::NotFound { message: "NOT_FOUND Job not found".into() }, "HTTP {status}");
        }
        for status in [200, 400, 422] {
            for kind in ["INVALID_JSON", "PARAMETER_MISSING", "SOMETHING_NEW"] {
                let outcome = read(status, &with(INVALID_JSON, "INVALID_JSON", kind));
                assert!(matches!(outcome, Outcome::RequestFailed { .. }), "{kind} at HTTP {status}: {outcome:?}");
            }
        }
        let bare = r#"{"success":false,"status":"failed"}"#;
        assert_eq!(read(200, bare), Outcome::RequestFailed { message: "the request failed".into() });
        assert_eq!(read(500, bare), Outcome::ServerError { status: 500, wait: None });
    }

    #[test]
    fn a_type_about_the_request_wins_over_an_echoed_identifier() {
        let echoed =
            |body, kind| with(body, "\"success\"", &format!("\"operationID\": \"{OPERATION}\", \"type\": \"{kind}\", \"success\""));
        let failed = r#"{"success":false,"status":"failed"}"#;
        assert!(matches!(read(200, &echoed(failed, "NOT_FOUND")), Outcome::NotFound { .. }));
        assert!(matches!(read(200, &echoed(failed, "INVALID_JSON")), Outcome::RequestFailed { .. }));
        assert!(matches!(read(200, &echoed(failed, "PARAMETER_INVALID")), Outcome::RequestFailed { .. }));
    }

    #[test]
    fn invalid_credentials_park_the_row_at_any_http_code() {
        for status in [200, 400, 401, 403, 500] {
            assert_eq!(refused(status, INVALID_CREDENTIALS), Some((Whose::Row, true)), "HTTP {status}");
        }
        let newer = with(NEWER_DONE, "\"errorType\": null", "\"errorType\": \"INVALID_CREDENTIALS\"");
        assert_eq!(refused(200, &newer), Some((Whose::Row, true)));
    }

    #[test]
    fn a_refusal_is_the_accounts_only_if_the_answer_says_so() {
        for status in [401, 403] {
            for body in ["", "<html>", JOB_NOT_FOUND, DONE, r#"{"success":false,"status":"failed","msg":"Invalid access token"}"#] {
                assert_eq!(refused(status, body), Some((Whose::Row, false)), "{body}");
            }
            for msg in ["Invalid appSecret", "App secret is wrong", "unknown APP_KEY"] {
                let body = format!(r#"{{"success":false,"status":"failed","msg":{msg:?}}}"#);
                assert_eq!(refused(status, &body), Some((Whose::Account, false)), "{msg}");
            }
        }
    }

    #[test]
    fn the_newer_shape_tells_the_operations_status_inside() {
        assert_eq!(reported(NEWER_DONE).reported, Reported::Succeeded);
        let status = reported(NEWER_FAILED);
        assert_eq!((status.reported, status.word.as_str()), (Reported::Failed, "failed"));
        let echoed = with(NEWER_DONE, "\"opInfo\": {", &format!("\"opInfo\": {{ \"operationID\": \"{OPERATION}\","));
        assert_eq!(reported(&echoed).reported, Reported::Succeeded);
        assert!(is_unusable(200, &with(&echoed, OPERATION, "another")));
        let waiting = r#"{"opInfo":{"status":"user_input_required","userInputs":[{"id":"otp","query":"OTP?"}]},"status":"done","success":true}"#;
        let action = json!({ "kind": "user_input", "inputs": [{ "id": "otp", "query": "OTP?" }] });
        assert_eq!(reported(waiting).reported, Reported::ActionRequired(action));
    }

    #[test]
    fn an_operation_that_failed_in_a_request_that_worked_has_failed_whatever_the_types_say() {
        let status = reported(PARAMETER_ERROR);
        assert_eq!((status.reported, status.reason.as_deref()), (Reported::Failed, Some("PARAMETER_ERROR")));
        for kind in ["NOT_FOUND", "INVALID_CREDENTIALS", "INVALID_JSON", "PARAMETER_MISSING"] {
            let status = reported(&with(PARAMETER_ERROR, "PARAMETER_ERROR", kind));
            assert_eq!((status.reported, status.reason.as_deref()), (Reported::Failed, Some(kind)));
        }
        for body in [
            with(PARAMETER_ERROR, "\"success\":true", "\"success\":false"),
            with(PARAMETER_ERROR, "\"status\":\"done\"", "\"status\":\"failed\""),
            with(PARAMETER_ERROR, "\"success\":true", "\"type\":\"PARAMETER_ERROR\",\"success\":true"),
        ] {
            assert!(matches!(read(200, &body), Outcome::RequestFailed { .. }), "a request that failed: {body}");
        }
        assert!(is_unusable(200, &with(NEWER_FAILED, "\"success\": true", "\"success\": false")));
    }

    #[test]
    fn the_outer_status_beside_op_info_is_the_requests() {
        for info in [
            r#"{}"#,
            r#"{"operationID":"355b01ed-fb50-4bf0-b7f6-71b4cf94971c"}"#,
            r#"{"status":null}"#,
            r#"["x","done"]"#,
            r#""done""#,
        ] {
            let body = format!(r#"{{"operationID":"{OPERATION}","opInfo":{info},"status":"done","success":true}}"#);
            assert!(is_unusable(200, &body), "{info}");
        }
        let body = format!(r#"{{"operationID":"{OPERATION}","opInfo":{{}},"status":"failed","success":false}}"#);
        assert!(matches!(read(200, &body), Outcome::RequestFailed { .. }));
    }

    #[test]
    fn a_request_that_failed_tells_no_success() {
        for word in ["done", "initialized", "user_input_required"] {
            let body = format!(r#"{{"operationID":"{OPERATION}","success":false,"status":{word:?}}}"#);
            assert!(is_unusable(200, &body), "{word}");
        }
        assert!(is_unusable(200, &with(NEWER_DONE, "\"success\": true", "\"success\": false")));
        assert!(is_unusable(200, &with(DONE, "\"success\": true,", "")));
    }

    #[test]
    fn an_unknown_status_is_no_failure() {
        for word in ["Done", "FAILED", "cancelled", ""] {
            let outcome = read(200, &with(DONE, "\"done\"", &format!("{word:?}")));
            assert_eq!(outcome, Outcome::UnknownStatus { status: word.into() });
        }
    }

    #[test]
    fn another_or_a_missing_operation_is_no_answer() {
        assert!(is_unusable(200, &with(DONE, OPERATION, "another")));
        assert!(is_unusable(200, &with(FAILED, OPERATION, "another")));
        assert!(is_unusable(200, &with(DONE, "operationID", "operationId")));
        assert!(is_unusable(200, &with(DONE, &format!("\"{OPERATION}\""), "1")));
        assert!(is_unusable(200, &with(DONE, "\"status\"", "\"state\"")));
    }

    #[test]
    fn a_status_is_believed_at_http_200_only() {
        for status in [201, 202, 302, 400, 404] {
            assert!(is_unusable(status, DONE) && is_unusable(status, NEWER_DONE), "HTTP {status}");
            assert!(!matches!(read(status, FAILED), Outcome::Status(_)), "HTTP {status}");
        }
    }

    #[test]
    fn throttling_and_server_errors_keep_their_retry_after() {
        let wait = Some(Duration::from_secs(9));
        let read =
            |status, body| dapi(&[]).read(ask(OPERATION, &params()), &Response { retry_after: wait, ..response(status, body) });
        for body in [JOB_NOT_FOUND, INVALID_JSON, DONE, FAILED, ""] {
            assert_eq!(read(429, body), Outcome::RateLimited { wait });
            assert_eq!(read(503, body), Outcome::ServerError { status: 503, wait });
        }
    }

    #[test]
    fn secrets_are_the_accounts_and_the_rows_and_a_token_is_asked_with_alone() {
        let dapi = dapi(&[("app_key", "app-key-0001")]);
        let params = params();
        let secrets = dapi.secrets(ask(OPERATION, &params));
        assert_eq!(secrets, ["access-token-0001", "user-secret-0001", "app-secret-0001", "app-key-0001"]);
        assert_eq!(dapi.exclusive_key(ask(OPERATION, &params)), Some("access-token-0001"));
        assert_eq!(dapi.exclusive_key(ask(OPERATION, &Value::Null)), None);
    }
}

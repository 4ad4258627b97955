//! Khalti: service status lookup.
//!
//! Source: the page "Service Status Lookup API" of Khalti's documentation, read 2026-11. Marked
//! "public": newer public texts of the vendor, weaker than the page.
//!
//! | rule | source |
//! |---|---|
//! | none for the pace | public: a held transaction is looked up no sooner than 5 minutes. The default plan follows that; no floor is compiled in |
//! | `state` is the truth | "Please refer to the state field in the response to determine the success or failure of the transaction, not the status field." |
//! | … of a lookup that worked | "status: Indicates whether the API call was successful (false)." |
//! | the identifier is echoed | "reference: The reference ID of the transaction." |
//!
//! Traps: "state, not status" read literally would fail a live payment when the token is wrong
//! (`status:false`, `state:"Error"`): with `status:false`, or with any `error_code`, the lookup
//! failed and the transaction did not. `Error` is a failure only of a transaction that Khalti has
//! (`response_id`), and a `response_id` that is none takes the belief from every failure. Refunds
//! beside a state (a documented failure has `refunded:false` and a refund in its list) are facts to
//! keep, no verdict. The page names no HTTP code, neither for "Transaction Exists but Failure" nor
//! for "No such Transaction": a state is believed at 200 only, an error by its code at any. The
//! token stands in the URL or in the body.

use super::{Ask, Descriptor, Open, Provider, Settings};
use crate::domain::{Floors, Outcome, Reported, Status, Whose};
use crate::wire::{self, Lenient, Method, Request, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// The documentation sets none.
const FLOORS: Floors = Floors { first: Duration::ZERO, margin: Duration::ZERO, every: Duration::ZERO, window: None, rate: None };

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "khalti",
    floors: FLOORS,
    implicit_account: false,
    account_keys: &["token"],
    option_keys: &["lookup"],
    open: Open::Compiled(|settings| Ok(Box::new(Khalti::open(settings)?))),
};

struct Khalti {
    /// Ends with a slash, as documented.
    url: String,
    lookup: Lookup,
    token: SecretString,
    /// The token as it stands in a URL.
    encoded_token: SecretString,
}

/// How `token` and `reference` are sent.
enum Lookup {
    /// As the page shows them: a JSON object, the body of the GET.
    Json,
    /// As the query.
    Query,
    /// Public: as two path segments.
    Path,
}

impl Khalti {
    fn open(settings: &Settings) -> Result<Self, String> {
        let token = settings.required("token")?;
        let lookup = match settings.option("lookup") {
            "json" => Lookup::Json,
            "query" => Lookup::Query,
            "path" => Lookup::Path,
            other => return Err(format!("lookup = {other:?} is unknown: write \"json\", \"query\" or \"path\"")),
        };
        // The error of `segment` quotes what it refuses, but nothing longer than two dots.
        let encoded_token = wire::segment("token", token.expose_secret())?.into();
        Ok(Self { url: format!("{}/api/service/status/", settings.base_url), lookup, token, encoded_token })
    }
}

impl Provider for Khalti {
    fn request(&self, ask: Ask<'_>) -> Result<Request, String> {
        let token = self.encoded_token.expose_secret();
        let mut headers = vec![("accept", "application/json".to_owned())];
        let (url, body) = match self.lookup {
            Lookup::Json => {
                headers.push(("content-type", "application/json".into()));
                let body = json!({ "token": self.token.expose_secret(), "reference": ask.reference });
                (self.url.clone(), Some(body.to_string()))
            }
            Lookup::Query => (format!("{}?token={token}&reference={}", self.url, wire::encoded(ask.reference)), None),
            Lookup::Path => (format!("{}{token}/{}", self.url, wire::segment("reference", ask.reference)?), None),
        };
        Ok(Request { method: Method::Get, url, headers, body })
    }

    fn read(&self, ask: Ask<'_>, response: &Response) -> Outcome {
        match wire::form::<Answer>(&response.body) {
            Err(why) => wire::unreadable(response, why),
            Ok((answer, _)) if answer.is_error() => read_error(ask, response, &answer),
            Ok(_) if response.status != 200 => wire::unreadable(response, "no error where the HTTP code says one".into()),
            Ok((answer, details)) => read_transaction(ask, answer, details).unwrap_or_else(|why| Outcome::Unusable { why }),
        }
    }

    fn secrets<'a>(&'a self, _ask: Ask<'a>) -> Vec<&'a str> {
        vec![self.token.expose_secret()]
    }
}

fn refused(message: String) -> Outcome {
    Outcome::CredentialsRejected { whose: Whose::Account, park: false, message }
}

/// What a failed lookup says. 429 and 503 come first: a `Retry-After` of theirs concerns the whole account.
fn read_error(ask: Ask<'_>, response: &Response, answer: &Answer) -> Outcome {
    if matches!(response.status, 429 | 503) {
        return wire::unreadable(response, "a failed lookup".into());
    }
    if answer.reference.as_deref().is_some_and(|reference| reference != ask.reference) {
        return Outcome::Unusable { why: "the answer is about another reference".into() };
    }
    let code = answer.error_code.as_ref().and_then(wire::scalar).unwrap_or_default();
    let message = answer.complaint(&code);
    match (code.parse(), answer.error.text()) {
        (Ok(2 | 1012), _) | (_, Some("invalid_reference")) => Outcome::NotFound { message },
        // Public: token or account trouble.
        (Ok(1001..=1009), _) => refused(message),
        // Public: validation errors, of this one request.
        (Ok(1010 | 1011), _) => Outcome::RequestFailed { message },
        // Among the others 1016 (no credits) and 1017 to 1021 (their side; public): nothing to do
        // but to ask again.
        _ => match response.status {
            401 => refused(message),
            403 | 500.. => wire::unreadable(response, message),
            _ => Outcome::RequestFailed { message },
        },
    }
}

/// The transaction's state. The error says why it is not believed.
fn read_transaction(ask: Ask<'_>, answer: Answer, details: Value) -> Result<Outcome, String> {
    if answer.status.is_none() {
        return Err("the answer does not say whether the lookup worked".into());
    }
    if answer.reference.as_deref() != Some(ask.reference) {
        return Err("the answer names no reference, or another".into());
    }
    let word = answer.state.as_deref().ok_or("the answer has no state")?;
    let Some(reported) = meaning(word) else {
        return Ok(Outcome::UnknownStatus { status: word.to_owned() });
    };
    // "The unique ID associated with the response": `Error` must have one, and what is there must be one.
    let exists = match &answer.response_id {
        None => word != "Error",
        Some(id) => id.as_u64().is_some_and(|id| id > 0),
    };
    if reported == Reported::Failed && !exists {
        return Err(format!("state {word:?} without the response_id of a transaction"));
    }
    Ok(Outcome::Status(Box::new(Status {
        reported,
        word: word.to_owned(),
        reason: answer.reason(word),
        amount: wire::amount_at(&details, "/amount"),
        currency: None,
        details: details.into(),
    })))
}

/// All documented answers in one. `status` is in all of them but in one public form of an error,
/// which has an `error_code`.
#[derive(Deserialize)]
struct Answer {
    status: Option<bool>,
    state: Option<String>,
    reference: Option<String>,
    response_id: Option<Value>,
    error_code: Option<Value>,
    error: Lenient<String>,
    message: Lenient<String>,
    details: Lenient<String>,
    original_status: Lenient<String>,
}

impl Answer {
    /// The lookup failed, whatever `state` says.
    fn is_error(&self) -> bool {
        self.status == Some(false) || self.error_code.is_some()
    }

    /// "A description of the transaction status", else the next best text; none that only repeats the state.
    fn reason(&self, word: &str) -> Option<String> {
        let texts = [&self.details, &self.message, &self.original_status];
        texts.into_iter().find_map(Lenient::text).filter(|text| *text != word).map(str::to_owned)
    }

    fn complaint(&self, code: &str) -> String {
        let parts = [Some(code), self.error.text(), self.message.text()];
        let parts: Vec<&str> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
        if parts.is_empty() { "the lookup failed".into() } else { parts.join(" ") }
    }
}

/// The states, the page's in its order, then the public ones. Called for a lookup that worked,
/// about our reference.
fn meaning(word: &str) -> Option<Reported> {
    match word {
        "Success" => Some(Reported::Succeeded),
        "Failed" => Some(Reported::Failed),
        "Error" => Some(Reported::Failed),
        "Queued" => Some(Reported::Pending),
        "Processing" => Some(Reported::Pending),
        "Timeout" => Some(Reported::Pending),
        // The word of Khalti's payment lookup; a hold in any case, so believing it moves no money.
        "Pending" => Some(Reported::Pending),
        "Expired" => Some(Reported::Failed),
        "Status Error" => Some(Reported::Failed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, header, response, settings, with};
    use super::*;
    use crate::domain::Amount;

    const SUCCESS: &str = include_str!("../../tests/fixtures/khalti/success.json");
    const FAILED: &str = include_str!("../../tests/fixtures/khalti/failed_with_refund.json");
    const MANUALLY_FAILED: &str = include_str!("../../tests/fixtures/khalti/failed.json");
    const INVALID_REFERENCE: &str = include_str!("../../tests/fixtures/khalti/invalid_reference.json");
    const INVALID_TOKEN: &str = include_str!("../../tests/fixtures/khalti/invalid_token.json");
    const ERROR: &str = include_str!("../../tests/fixtures/khalti/error.json");
    const SHORT_INVALID_TOKEN: &str = include_str!("../../tests/fixtures/khalti/invalid_token_short.json");
    const VALIDATION_ERROR: &str = include_str!("../../tests/fixtures/khalti/validation_error.json");
    const ODD_SUCCESS: &str = include_str!("../../tests/fixtures/khalti/success_with_object_details.json");
    const REFERENCE: &str = "7068074f-d04f-4262-8d9b-6a171da647b5";

    fn khalti(lookup: &str) -> Khalti {
        Khalti::open(&settings(&[("lookup", lookup)], &[("token", "to/ken 1")])).expect("complete settings")
    }

    fn read(status: u16, body: &str) -> Outcome {
        khalti("json").read(ask(REFERENCE, &Value::Null), &response(status, body))
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

    #[test]
    fn the_documented_lookup_is_a_json_object() {
        let request = khalti("json").request(ask("a&b", &Value::Null)).expect("a request");
        assert_eq!(request.method, Method::Get);
        assert_eq!(request.url, "http://127.0.0.1:1/gate/api/service/status/");
        assert_eq!(header(&request, "content-type"), Some("application/json"));
        let body: Value = serde_json::from_str(&request.body.expect("a body")).expect("JSON");
        assert_eq!(body, json!({ "token": "to/ken 1", "reference": "a&b" }));
    }

    #[test]
    fn the_lookup_may_be_a_query_or_a_path() {
        let ask = ask("a&b/c", &Value::Null);
        let query = khalti("query").request(ask).expect("a request");
        assert_eq!(query.url, "http://127.0.0.1:1/gate/api/service/status/?token=to%2Fken%201&reference=a%26b%2Fc");
        assert_eq!((query.body, query.headers.len()), (None, 1));
        let path = khalti("path").request(ask).expect("a request");
        assert_eq!(path.url, "http://127.0.0.1:1/gate/api/service/status/to%2Fken%201/a%26b%2Fc");
        assert_eq!((path.body, path.headers.len()), (None, 1));
        assert!(khalti("path").request(super::super::testing::ask("..", &Value::Null)).is_err());
        assert!(khalti("query").request(super::super::testing::ask("..", &Value::Null)).is_ok());
    }

    #[test]
    fn an_unknown_lookup_and_a_missing_token_are_refused_by_name() {
        let refusal = |lookup, account| Khalti::open(&settings(&[("lookup", lookup)], account)).err().expect("refused");
        assert!(refusal("xml", &[("token", "t")]).contains("\"json\", \"query\" or \"path\""));
        assert_eq!(refusal("json", &[]), "token is missing");
        assert!(refusal("json", &[("token", "..")]).contains("token"));
    }

    #[test]
    fn success_is_a_success_in_rupees() {
        let status = reported(SUCCESS);
        assert_eq!(status.reported, Reported::Succeeded);
        assert_eq!(status.word, "Success");
        assert_eq!(status.reason.as_deref(), Some("Successful recharge"));
        assert_eq!(status.amount, Amount::Told(10.into()));
        assert_eq!(status.currency, None);
    }

    #[test]
    fn a_failure_with_a_refund_beside_it_is_a_failure_and_keeps_the_fact() {
        let status = reported(FAILED);
        assert_eq!(status.reported, Reported::Failed);
        assert_eq!(status.details["refunds"][0]["created_at"], "2024-07-15");
    }

    #[test]
    fn a_success_that_was_refunded_is_a_success_and_keeps_the_fact() {
        let status = reported(&with(SUCCESS, "\"refunded\": false", "\"refunded\": true"));
        assert_eq!(status.reported, Reported::Succeeded);
        assert_eq!(status.details["refunded"], true);
    }

    #[test]
    fn the_short_failure_is_a_failure() {
        let status = reported(MANUALLY_FAILED);
        assert_eq!((status.reported, status.reason.as_deref()), (Reported::Failed, Some("Manually Failed")));
        assert_eq!(status.amount, Amount::Told(1.into()));
    }

    #[test]
    fn every_word_has_its_meaning() {
        for (word, meaning) in [
            ("Success", Reported::Succeeded),
            ("Failed", Reported::Failed),
            ("Error", Reported::Failed),
            ("Queued", Reported::Pending),
            ("Processing", Reported::Pending),
            ("Timeout", Reported::Pending),
            ("Expired", Reported::Failed),
            ("Status Error", Reported::Failed),
        ] {
            let body = with(SUCCESS, "\"state\": \"Success\"", &format!("\"state\": {word:?}"));
            assert_eq!(reported(&body).reported, meaning, "{word}");
        }
    }

    #[test]
    fn a_word_that_is_not_documented_is_unknown() {
        for word in ["Completed", "success", "FAILED", "Refunded", ""] {
            let body = with(SUCCESS, "\"state\": \"Success\"", &format!("\"state\": {word:?}"));
            assert_eq!(read(200, &body), Outcome::UnknownStatus { status: word.into() });
        }
    }

    #[test]
    fn error_is_a_failure_only_of_a_transaction_that_exists() {
        assert_eq!(reported(ERROR).reported, Reported::Failed);
        for id in ["0", "-1", "null", "\"123611\"", "1.5", "true"] {
            assert!(is_unusable(200, &with(ERROR, "123611", id)), "{id}");
        }
        assert!(is_unusable(200, &with(ERROR, "response_id", "id")));
        for word in ["Failed", "Expired", "Status Error"] {
            let failed = with(ERROR, "\"state\": \"Error\"", &format!("\"state\": {word:?}"));
            assert_eq!(reported(&with(&failed, "response_id", "id")).reported, Reported::Failed, "{word}");
            for id in ["0", "-1", "\"123611\"", "1.5", "true", "{}"] {
                assert!(is_unusable(200, &with(&failed, "123611", id)), "{word} {id}");
            }
        }
        assert!(matches!(read(200, &with(ERROR, "\"status\": true", "\"status\": false")), Outcome::RequestFailed { .. }));
        assert!(is_unusable(200, &with(ERROR, REFERENCE, "another")));
    }

    #[test]
    fn a_reference_that_khalti_does_not_know_is_not_found_whatever_the_state_says() {
        for status in [200, 400, 404, 500] {
            let outcome = read(status, INVALID_REFERENCE);
            let message = "002 invalid_reference The reference sent is not a valid reference.";
            assert_eq!(outcome, Outcome::NotFound { message: message.into() }, "HTTP {status}");
        }
        for code in ["\"1012\"", "1012", "2"] {
            let body = format!(r#"{{"status":false,"error_code":{code},"state":"Error"}}"#);
            assert!(matches!(read(200, &body), Outcome::NotFound { .. }), "{code}");
        }
        let other = with(INVALID_REFERENCE, "\"details\"", "\"reference\": \"another\", \"details\"");
        assert!(is_unusable(200, &other));
    }

    #[test]
    fn a_wrong_token_is_the_accounts_trouble_whatever_the_state_says() {
        for code in 1001..=1009 {
            for code in [format!("\"{code}\""), code.to_string()] {
                let body = with(INVALID_TOKEN, "\"1001\"", &code);
                for status in [200, 400, 401, 500] {
                    assert!(is_refused(&read(status, &body)), "{code} at HTTP {status}");
                }
            }
        }
        for (status, body) in [(401, ""), (401, r#"{"detail":"Invalid token."}"#), (401, SUCCESS), (400, SHORT_INVALID_TOKEN)] {
            assert!(is_refused(&read(status, body)), "{body}");
        }
    }

    #[test]
    fn a_403_without_a_code_of_the_accounts_concerns_its_row() {
        for body in ["<html>", "", SUCCESS, r#"{"status":false,"state":"Error"}"#] {
            let outcome = read(403, body);
            assert!(matches!(outcome, Outcome::CredentialsRejected { whose: Whose::Row, park: false, .. }), "{outcome:?}");
        }
        assert!(is_refused(&read(403, INVALID_TOKEN)));
    }

    #[test]
    fn validation_errors_do_not_touch_the_account() {
        for code in [1010, 1011] {
            for status in [200, 400, 401, 403] {
                let outcome = read(status, &with(VALIDATION_ERROR, "1011", &code.to_string()));
                assert!(matches!(outcome, Outcome::RequestFailed { .. }), "{code} at HTTP {status}: {outcome:?}");
            }
        }
    }

    #[test]
    fn what_decides_nothing_costs_no_answer() {
        let status = reported(ODD_SUCCESS);
        assert_eq!((status.reported, status.amount, status.reason), (Reported::Succeeded, Amount::Told(10.into()), None));
        let body = with(FAILED, "\"details\": \"rtii\"", "\"details\": {\"en\":\"rtii\"}");
        assert_eq!(reported(&body).reason.as_deref(), Some("Error"), "the next best text");
    }

    #[test]
    fn other_error_codes_fail_the_request_and_not_the_transaction() {
        for code in ["\"1016\"", "1017", "\"1021\"", "\"003\"", "\"E\"", "\"\"", "{}", "false", "1013", "1010", "\"1011\""] {
            let body = with(INVALID_TOKEN, "\"1001\"", code);
            assert!(matches!(read(200, &body), Outcome::RequestFailed { .. }), "{code}");
        }
        let body = r#"{"status":false,"state":"Error"}"#;
        assert_eq!(read(200, body), Outcome::RequestFailed { message: "the lookup failed".into() });
        assert!(is_refused(&read(401, body)));
        assert_eq!(read(500, body), Outcome::ServerError { status: 500, wait: None });
    }

    #[test]
    fn an_error_code_beside_a_state_wins() {
        let body = with(SUCCESS, "\"status\": true", "\"status\": true, \"error_code\": \"1018\"");
        assert!(matches!(read(200, &body), Outcome::RequestFailed { .. }));
        let body = with(MANUALLY_FAILED, "\"status\": true", "\"status\": false");
        assert!(matches!(read(200, &body), Outcome::RequestFailed { .. }));
    }

    #[test]
    fn throttling_and_server_errors_keep_their_retry_after() {
        let wait = Some(Duration::from_secs(9));
        let ask = ask(REFERENCE, &Value::Null);
        let read = |status, body| khalti("json").read(ask, &Response { retry_after: wait, ..response(status, body) });
        for body in [INVALID_REFERENCE, INVALID_TOKEN, SUCCESS, ""] {
            assert_eq!(read(429, body), Outcome::RateLimited { wait });
            assert_eq!(read(503, body), Outcome::ServerError { status: 503, wait });
        }
    }

    #[test]
    fn a_state_is_believed_at_http_200_only() {
        for status in [201, 202, 302, 400, 404] {
            assert!(is_unusable(status, SUCCESS) && is_unusable(status, MANUALLY_FAILED), "HTTP {status}");
        }
    }

    #[test]
    fn another_or_a_missing_reference_is_no_answer() {
        assert!(is_unusable(200, &with(SUCCESS, REFERENCE, "another")));
        assert!(is_unusable(200, &with(SUCCESS, "\"reference\"", "\"ref\"")));
        assert!(is_unusable(200, &with(SUCCESS, "\"status\": true,", "")));
        assert!(is_unusable(200, &with(SUCCESS, "\"status\": true", "\"status\": \"true\"")));
        assert!(is_unusable(200, &with(SUCCESS, "\"state\"", "\"stat\"")));
        assert_eq!(reported(&with(SUCCESS, "10.0", "\"10.0\"")).amount, Amount::Told(10.into()));
    }

    #[test]
    fn the_token_is_a_secret() {
        assert_eq!(khalti("query").secrets(ask(REFERENCE, &Value::Null)), ["to/ken 1"]);
    }
}

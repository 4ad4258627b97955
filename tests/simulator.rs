//! The simulator over HTTP: each provider's documented answers, each rule, each hostile answer.

use aws_lc_rs::{digest, hmac, rand::SystemRandom, signature};
use paypoll::simulator::credentials::{
    AYOCONNECT_ACCESS_TOKEN, AYOCONNECT_CHANNEL_ID, AYOCONNECT_CLIENT_ID, AYOCONNECT_CLIENT_SECRET, AYOCONNECT_MERCHANT_IDS,
    AYOCONNECT_PRIVATE_KEY, DAPI_APP_SECRETS, DUSUPAY_PUBLIC_KEYS, KHALTI_TOKENS,
};
use paypoll::simulator::{self, Budget, Kind, Options, PROVIDERS, Simulator};
use reqwest::{Client, RequestBuilder, StatusCode, redirect};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// So fast that no interval is felt.
const NO_WAITING: f64 = 100_000.0;

struct Server {
    address: SocketAddr,
    simulator: Simulator,
    client: Client,
    stop: CancellationToken,
    served: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(speed: f64) -> Self {
        Self::with(Options { speed, ..Options::default() }).await
    }

    async fn with(options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (simulator, stop) = (Simulator::new(options), CancellationToken::new());
        let served = tokio::spawn(simulator.clone().serve(listener, stop.clone().cancelled_owned()));
        let client = Client::builder().redirect(redirect::Policy::none()).no_proxy().build().expect("a client");
        Self { address, simulator, client, stop, served }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("http://{}{path}", self.address))
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("http://{}{path}", self.address))
    }

    /// A correct status request.
    fn ask(&self, provider: &str, reference: &str) -> RequestBuilder {
        match provider {
            "dropayment" => self.dropayment("1001", reference, &json!({"session": {"token": "sim-session-0001"}})),
            "dusupay" => self.dusupay(reference, DUSUPAY_PUBLIC_KEYS[0]),
            "ayoconnect" => Ayoconnect::new(reference).request(self),
            "khalti" => self.khalti(&json!({"token": KHALTI_TOKENS[0], "reference": reference})),
            "dapi" => self.dapi("sim-dapi-user-1", &json!({"appSecret": DAPI_APP_SECRETS[0], "operationID": reference})),
            other => panic!("no provider {other}"),
        }
    }

    fn dropayment(&self, endpoint: &str, invoice: &str, body: &Value) -> RequestBuilder {
        let request = self.post(&format!("/paynet/dapi/v1/transfer/{endpoint}/{invoice}/status"));
        request.header("content-type", "application/json").body(body.to_string())
    }

    fn dusupay(&self, reference: &str, key: &str) -> RequestBuilder {
        let request = self.get(&format!("/data/transaction/verify/{reference}")).header("accept", "application/json");
        request.header("x-api-version", "1").header("public-key", key)
    }

    fn khalti(&self, body: &Value) -> RequestBuilder {
        self.get("/api/service/status/").header("content-type", "application/json").body(body.to_string())
    }

    fn dapi(&self, token: &str, body: &Value) -> RequestBuilder {
        let request = self.post("/v2/operation/get").header("authorization", format!("Bearer {token}"));
        request.header("content-type", "application/json").body(body.to_string())
    }

    async fn register(&self, body: &Value) -> StatusCode {
        self.post("/_simulator/register").body(body.to_string()).send().await.expect("answered").status()
    }

    fn violations(&self) -> Vec<Kind> {
        self.simulator.report().violations.into_iter().map(|violation| violation.kind).collect()
    }

    /// A connection on which this request was sent by hand.
    async fn raw(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream
    }

    /// A status request of Khalti by hand.
    async fn raw_khalti(&self, reference: &str) -> TcpStream {
        let token = KHALTI_TOKENS[0];
        self.raw(&format!("GET /api/service/status/{token}/{reference} HTTP/1.1\r\nHost: simulator\r\n\r\n")).await
    }
}

/// Sends and gives the status and the JSON, which is null where the body is none.
async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("answered");
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&response.bytes().await.expect("read")).unwrap_or(Value::Null))
}

/// The parts of a request to Ayoconnect, each of which can be made wrong.
struct Ayoconnect {
    headers: Vec<(&'static str, String)>,
    query: String,
    token: String,
    /// Signed instead of what is sent.
    signed_path: &'static str,
}

impl Ayoconnect {
    fn new(external_id: &str) -> Self {
        let merchant = AYOCONNECT_MERCHANT_IDS[0];
        let headers = vec![
            ("accept", "application/json".to_owned()),
            ("x-timestamp", timestamp(SystemTime::now())),
            ("x-client-key", AYOCONNECT_CLIENT_ID.to_owned()),
            ("x-partner-id", merchant.to_owned()),
            ("x-external-id", external_id.to_owned()),
            ("channel-id", AYOCONNECT_CHANNEL_ID.to_owned()),
        ];
        let query = format!("merchantId={merchant}&XExternalId={external_id}");
        Self { headers, query, token: AYOCONNECT_ACCESS_TOKEN.to_owned(), signed_path: "/api/v1.0/debit/status" }
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.iter_mut().filter(|(known, _)| *known == name).for_each(|(_, old)| value.clone_into(old));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self
    }

    fn request(&self, server: &Server) -> RequestBuilder {
        let timestamp = self.headers.iter().find(|(name, _)| *name == "x-timestamp").map_or("", |(_, value)| value.as_str());
        let empty = hex(digest::digest(&digest::SHA256, b"").as_ref());
        let signed = format!("GET:{}:{}:{empty}:{timestamp}", self.signed_path, self.token);
        let key = hmac::Key::new(hmac::HMAC_SHA512, AYOCONNECT_CLIENT_SECRET.as_bytes());
        let request = server.get(&format!("/api/v1.0/debit/status?{}", self.query));
        let request = request.header("x-signature", hex(hmac::sign(&key, signed.as_bytes()).as_ref()));
        let request = request.header("authorization", format!("Bearer {}", self.token));
        self.headers.iter().fold(request, |request, (name, value)| request.header(*name, value))
    }
}

fn timestamp(at: SystemTime) -> String {
    chrono::DateTime::<chrono::Utc>::from(at).format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request for an access token, signed with the test key.
fn b2b(server: &Server, timestamp: &str) -> RequestBuilder {
    let der = PrivatePkcs8KeyDer::from_pem_slice(AYOCONNECT_PRIVATE_KEY.as_bytes()).expect("PEM");
    let pair = signature::RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).expect("PKCS#8");
    let mut signed = vec![0; pair.public_modulus_len()];
    let text = format!("{AYOCONNECT_CLIENT_ID}|{timestamp}");
    pair.sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signed).expect("signed");
    let body = json!({"grantType": "client_credentials", "additionalInfo": {"merchantId": AYOCONNECT_MERCHANT_IDS[0]}});
    server
        .post("/api/v1.0/access-token/b2b")
        .header("x-timestamp", timestamp)
        .header("x-client-key", AYOCONNECT_CLIENT_ID)
        .header("x-signature", hex(&signed))
        .header("content-type", "application/json")
        .body(body.to_string())
}

/// Polls once for each script and compares the status and one field.
async fn check_answers(provider: &str, expected: &[(&str, u16, &str, Value)]) {
    let budgets = [Budget { per_second: 1_000, burst: 1_000 }; PROVIDERS.len()];
    let server = Server::with(Options { speed: NO_WAITING, budgets, ..Options::default() }).await;
    for (serial, (script, status, pointer, value)) in (1..).zip(expected) {
        let reference = simulator::reference(provider, serial, script);
        let (answered, body) = answer(server.ask(provider, &reference)).await;
        assert_eq!((answered, body.pointer(pointer)), (*status, Some(value)), "{provider} {script}: {body}");
    }
    assert_eq!(server.violations(), [], "{provider}");
}

#[tokio::test]
async fn dropayment_answers_as_its_page_says() {
    let expected = [
        ("ok", 200, "/state", json!("APPROVED")),
        ("ok", 200, "/transaction/amountCentis", json!(1000)),
        ("ok", 200, "/session/token", json!("sim-session-0001")),
        ("amount", 200, "/transaction/amountCentis", json!(9999)),
        ("fail", 200, "/state", json!("DECLINED")),
        ("fail", 200, "/errorMessage", json!("Insufficient funds")),
        ("echo", 200, "/errorMessage", json!("Not done for sim-session-0001")),
        ("pending", 200, "/state", json!("PROCESSING")),
        ("action", 200, "/state", json!("REDIRECT_REQUEST")),
        ("action", 200, "/redirectUrl", json!("https://acs.example/3ds?pareq=1")),
        ("fee", 200, "/state", json!("TRANSFER_FEE_REQUEST")),
        ("fee", 200, "/transferFeeList/1/commissionCentis", json!(40)),
        ("unknownword", 200, "/state", json!("ESCROWED")),
        ("other", 200, "/invoiceId", json!("SIM-000014-other-ANOTHER")),
        ("notfound", 404, "/error/cause", json!("ORDER_NOT_FOUND")),
        ("error", 200, "/error/cause", json!("INTERNAL_ERROR")),
        ("refused", 401, "/error/cause", json!("INVALID_REQUEST")),
        ("odd", 200, "/transaction/amountCentis", json!("1000")),
        ("oddfail", 200, "/errorCode", json!({})),
        ("oddfee", 200, "/transferFeeList/1", json!({"assignedId": "h"})),
        ("invalid", 400, "/error/cause", json!("INVALID_REQUEST")),
        ("500", 500, "/error/cause", json!("INTERNAL_ERROR")),
    ];
    check_answers("dropayment", &expected).await;
}

#[tokio::test]
async fn dusupay_answers_as_its_page_says() {
    let expected = [
        ("ok", 200, "/data/transaction_status", json!("COMPLETED")),
        ("ok", 200, "/data/merchant_reference", json!("SIM-000002-ok")),
        ("fail", 200, "/data/transaction_status", json!("FAILED")),
        ("fail", 200, "/data/status_message", json!("Insufficient balance")),
        ("cancel", 200, "/data/transaction_status", json!("CANCELLED")),
        ("pending", 200, "/data/transaction_status", json!("PENDING")),
        ("amount", 200, "/data/request_amount", json!(99.99)),
        ("currency", 200, "/data/request_currency", json!("XTS")),
        ("unknownword", 200, "/data/transaction_status", json!("ESCROWED")),
        ("notfound", 404, "/message", json!("Transaction with reference: SIM-000010-notfound Not Found. Contact Support")),
        ("early", 403, "/message", json!("Status check denied. Try again after 2 minutes.")),
        ("pleasewait", 403, "/message", json!("Status check denied. Please wait 2 minutes.")),
        ("denied", 403, "/message", json!("Access denied. Fix your key and try again.")),
        ("odd", 200, "/data/request_amount", json!("10")),
        ("odd", 200, "/message", json!(null)),
        ("oddfail", 200, "/data/request_amount", json!("ten")),
        ("403", 403, "/message", json!("Access to this resource is denied.")),
        ("429", 429, "/message", json!("Request Failed. Too many requests in a short time.")),
        ("error", 200, "/code", json!(500)),
        ("refused", 401, "/data", json!({})),
        ("503", 503, "/code", json!(503)),
    ];
    check_answers("dusupay", &expected).await;
}

#[tokio::test]
async fn ayoconnect_answers_in_its_standards_form() {
    let expected = [
        ("ok", 200, "/additionalInfo/paymentResult", json!("SUCCESS")),
        ("ok", 200, "/responseCode", json!("2003600")),
        ("ok", 200, "/amount", json!({"value": "10.00", "currency": "IDR"})),
        ("fail", 200, "/additionalInfo/paymentResult", json!("FAILED")),
        ("refund", 200, "/additionalInfo/paymentResult", json!("REFUNDED")),
        ("pending", 200, "/additionalInfo/paymentResult", json!("INITIATED")),
        ("action", 200, "/additionalInfo/paymentResult", json!("PENDING_USER_VERIFICATION")),
        ("amount", 200, "/amount/value", json!("99.99")),
        ("202", 202, "/additionalInfo/paymentResult", json!("SUCCESS")),
        ("notfound", 404, "/responseCode", json!("4043601")),
        ("refused", 401, "/responseCode", json!("4013601")),
        ("429", 429, "/responseCode", json!("4293600")),
        ("forbidden", 403, "/responseCode", json!("4033618")),
        ("odd", 200, "/responseMessage", json!({"EN": "Successful"})),
        ("oddfail", 200, "/amount/value", json!("")),
        ("error", 200, "/responseCode", json!("5003600")),
    ];
    check_answers("ayoconnect", &expected).await;
}

#[tokio::test]
async fn khalti_answers_as_its_page_says() {
    let expected = [
        ("ok", 200, "/state", json!("Success")),
        ("ok", 200, "/amount", json!(10.0)),
        ("refund", 200, "/refunded", json!(true)),
        ("fail", 200, "/original_status", json!("Error")),
        ("fail", 200, "/refunds/0/remarks", json!("rtii")),
        ("cancel", 200, "/details", json!("Manually Failed")),
        ("pending", 200, "/state", json!("Queued")),
        ("other", 200, "/reference", json!("SIM-000008-other-ANOTHER")),
        ("notfound", 200, "/error_code", json!("002")),
        ("notfound", 200, "/state", json!("Error")),
        ("error", 200, "/status", json!(false)),
        ("refused", 200, "/error_code", json!("1001")),
        ("invalid", 200, "/error_code", json!("1011")),
        ("invalid", 200, "/details/reference", json!("too long")),
        ("badtoken", 400, "", json!({"error_code": "1002", "message": "Invalid token"})),
        ("odd", 200, "/details", json!({"en": "ok"})),
        ("odd", 200, "/amount", json!("10.0")),
        ("500", 500, "/state", json!("Error")),
    ];
    check_answers("khalti", &expected).await;
}

#[tokio::test]
async fn dapi_answers_as_its_page_says() {
    let expected = [
        ("ok", 200, "/status", json!("done")),
        ("ok", 200, "/operationID", json!("SIM-000002-ok")),
        ("fail", 200, "/status", json!("failed")),
        ("fail", 200, "/operationID", json!("SIM-000004-fail")),
        ("pending", 200, "/status", json!("initialized")),
        ("action", 200, "/userInputs/0/id", json!("otp")),
        ("notfound", 200, "/type", json!("NOT_FOUND")),
        ("refused", 200, "/type", json!("INVALID_CREDENTIALS")),
        ("wrongotp", 401, "/type", json!("INVALID_MFA")),
        ("choice", 200, "/userInputs/0/queryOptions/1/label", json!("By e-mail")),
        ("confirm", 200, "/userInputs/id", json!("confirmation")),
        ("odd", 200, "/msg", json!({"en": "done"})),
        ("oddfail", 200, "/opInfo/errorType", json!("PARAMETER_ERROR")),
        ("opinfo-ok", 200, "/opInfo/status", json!("done")),
        ("opinfo-fail", 200, "/opInfo/status", json!("failed")),
        ("opinfo-action", 200, "/opInfo/status", json!("user_input_required")),
        ("500", 500, "/status", json!("failed")),
    ];
    check_answers("dapi", &expected).await;
}

#[tokio::test]
async fn a_firewall_speaks_no_json_whoever_is_behind_it() {
    let server = Server::start(NO_WAITING).await;
    for provider in PROVIDERS {
        let response = server.ask(provider, &simulator::reference(provider, 7, "firewall")).send().await.expect("answered");
        assert_eq!(response.status(), 403, "{provider}");
        assert!(response.text().await.expect("read").starts_with("<html>"), "{provider}");
    }
}

#[tokio::test]
async fn an_ordinary_reference_succeeds_whatever_numerals_and_words_are_in_it() {
    let server = Server::start(NO_WAITING).await;
    for reference in ["ORDER-500", "INV-404-2026", "order-never-7", "2026-429-ok2"] {
        for (provider, pointer, word) in [
            ("dropayment", "/state", "APPROVED"),
            ("dusupay", "/data/transaction_status", "COMPLETED"),
            ("khalti", "/state", "Success"),
            ("dapi", "/status", "done"),
        ] {
            let (status, body) = answer(server.ask(provider, reference)).await;
            assert_eq!((status, body.pointer(pointer)), (200, Some(&json!(word))), "{provider} {reference}");
        }
    }
}

#[tokio::test]
async fn dapi_finds_no_job_without_an_operation() {
    let server = Server::start(NO_WAITING).await;
    let secret = DAPI_APP_SECRETS[0];
    for body in [json!({"appSecret": secret}), json!({"appSecret": secret, "jobID": "A"})] {
        let (status, body) = answer(server.dapi("sim-dapi-user-1", &body)).await;
        assert_eq!((status, &body["type"], &body["msg"]), (200, &json!("NOT_FOUND"), &json!("Job not found")));
    }
    assert_eq!(server.violations(), [Kind::BadRequest; 2]);
}

#[tokio::test]
async fn a_missing_identifier_is_missing() {
    let server = Server::start(NO_WAITING).await;
    let pointers =
        [("dropayment", "/invoiceId"), ("dusupay", "/data/merchant_reference"), ("khalti", "/reference"), ("dapi", "/operationID")];
    for (provider, pointer) in pointers {
        let (status, body) = answer(server.ask(provider, "SIM-noid")).await;
        assert_eq!((status, body.pointer(pointer)), (200, None), "{provider}: {body}");
    }
}

#[tokio::test]
async fn a_script_goes_on_with_each_poll_at_every_provider() {
    let server = Server::start(NO_WAITING).await;
    for provider in PROVIDERS {
        let reference = simulator::reference(provider, 1, "500x2-429-ok2");
        let mut statuses = Vec::new();
        for _ in 0..5 {
            statuses.push(answer(server.ask(provider, &reference)).await.0);
        }
        assert_eq!(statuses, [500, 500, 429, 200, 200], "{provider}");
    }
}

#[tokio::test]
async fn a_failed_request_of_dapi_names_no_operation() {
    let server = Server::start(NO_WAITING).await;
    for script in ["notfound", "error", "refused", "500"] {
        let (_, body) = answer(server.ask("dapi", &format!("SIM-{script}"))).await;
        assert_eq!((&body["status"], body.get("operationID")), (&json!("failed"), None), "{script}");
    }
}

#[tokio::test]
async fn retry_after_comes_in_both_forms() {
    let server = Server::start(1.0).await;
    let header = |response: reqwest::Response| response.headers()["retry-after"].to_str().expect("ASCII").to_owned();
    let seconds = server.ask("dapi", "SIM-wait7").send().await.expect("answered");
    assert_eq!((seconds.status().as_u16(), header(seconds)), (429, "7".to_owned()));
    let date = server.ask("khalti", "SIM-waitdate").send().await.expect("answered");
    assert_eq!(date.status(), 429);
    assert!(httpdate::parse_http_date(&header(date)).expect("a date") > SystemTime::now());
}

#[tokio::test]
async fn khalti_understands_its_parameters_in_three_ways_and_not_in_two_at_once() {
    let server = Server::start(1.0).await;
    let token = KHALTI_TOKENS[0];
    let query = format!("/api/service/status/?token={token}&reference=A%2F1");
    for path in [query.clone(), format!("/api/service/status/{token}/A%2F1"), format!("/api/service/status/{token}/A%2F1/")] {
        let (status, body) = answer(server.get(&path)).await;
        assert_eq!((status, &body["reference"]), (200, &json!("A/1")), "{path}");
    }
    let twice = server.get(&query).header("content-type", "application/json").body(json!({"token": token}).to_string());
    assert_eq!(answer(twice).await.0, 400);
    assert_eq!(server.violations(), [Kind::BadRequest]);
}

#[tokio::test]
async fn dusupay_refuses_too_early_and_too_often() {
    let server = Server::start(1.0).await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis();
    let early = answer(server.ask("dusupay", &format!("SIM-t{now}-ok"))).await;
    assert_eq!((early.0, &early.1["message"]), (403, &json!("Status check denied. Try again after 2 minutes.")));
    assert_eq!(server.register(&json!({"provider": "dusupay", "reference": "B", "initiated_at": now})).await, 200);
    assert_eq!(answer(server.ask("dusupay", "B")).await.0, 403);
    assert_eq!(answer(server.ask("dusupay", &format!("SIM-t{}-ok", now - 121_000))).await.0, 200);
    assert_eq!(answer(server.ask("dusupay", "C")).await.0, 200);
    let often = answer(server.ask("dusupay", "C")).await;
    assert_eq!((often.0, &often.1["message"]), (429, &json!("Request Failed. Too many requests in a short time.")));
    assert_eq!(server.violations(), [Kind::TooEarly, Kind::TooEarly, Kind::Interval]);
}

#[tokio::test]
async fn a_refused_poll_does_not_move_the_script_on() {
    let server = Server::start(1.0).await;
    assert_eq!(answer(server.ask("dusupay", "SIM-500-ok")).await.0, 500);
    assert_eq!(answer(server.ask("dusupay", "SIM-500-ok")).await.0, 429);
    let log = answer(server.get("/_simulator/log?last=5&reference=SIM-500-ok")).await.1;
    assert_eq!((&log[0]["verdict"], &log[0]["poll"]), (&json!("500"), &json!(1)));
    assert_eq!((&log[1]["verdict"], &log[1]["poll"]), (&json!("refused: TooOften"), &Value::Null));
    assert_eq!(log[1]["violations"], json!(["interval"]));
}

#[tokio::test]
async fn dropayment_answers_a_hurried_request_and_records_it() {
    let server = Server::start(1.0).await;
    assert_eq!(answer(server.ask("dropayment", "SIM-ok2")).await.0, 200);
    assert_eq!(answer(server.ask("dropayment", "SIM-ok2")).await.1["state"], json!("APPROVED"));
    assert_eq!(server.violations(), [Kind::Interval]);
}

#[tokio::test]
async fn credentials_that_nobody_gave_out_are_refused() {
    let server = Server::start(1.0).await;
    let session = json!({"session": {"token": "somebody-elses-0001"}});
    let secret = DAPI_APP_SECRETS[0];
    let requests = [
        server.dropayment("1001", "A", &session),
        server.dropayment("1002", "A", &json!({"session": {"token": "sim-session-0001"}})),
        server.dusupay("A", "unknown"),
        server.get("/data/transaction/verify/A"),
        server.khalti(&json!({"token": "unknown", "reference": "A"})),
        server.dapi("unknown", &json!({"appSecret": secret, "operationID": "A"})),
        server.dapi("sim-dapi-user-1", &json!({"appSecret": "unknown", "operationID": "A"})),
        server.dapi("sim-dapi-user-1", &json!({"appSecret": secret, "appKey": "unknown", "operationID": "A"})),
        server.post("/v2/operation/get").body("{}"),
    ];
    let count = requests.len();
    for request in requests {
        assert_eq!(answer(request).await.0, 401);
    }
    assert_eq!(server.violations(), vec![Kind::BadCredentials; count]);
}

#[tokio::test]
async fn requests_that_have_not_the_documented_form_are_refused() {
    let server = Server::start(1.0).await;
    let secret = DAPI_APP_SECRETS[0];
    let with = |session| server.dropayment("1001", "A", &json!({"session": session}));
    let key = DUSUPAY_PUBLIC_KEYS[0];
    let requests = [
        with(json!({"token": "sim-session-"})),
        with(json!({"token": "sim-session-0001", "accessToken": "short"})),
        with(json!({"token": "sim-session-0001", "accessToken": null})),
        with(json!({"accessToken": "x".repeat(32)})),
        server.dropayment("1001", "A", &json!([])),
        server.post("/paynet/dapi/v1/transfer/1001/A/status").body(r#"{"session":{"token":"sim-session-0001"}}"#),
        server.get("/data/transaction/verify/A").header("public-key", key).header("accept", "application/json"),
        server.dusupay("A?a=b", key),
        server.dusupay(&"A".repeat(513), key),
        server.dusupay("%00", key),
        server.khalti(&json!({"token": KHALTI_TOKENS[0]})),
        server.khalti(&json!({"token": KHALTI_TOKENS[0], "reference": 1})),
        server.get("/api/service/status/"),
        server.get("/api/service/status/?token=a&token=b&reference=c"),
        server.dapi("sim-dapi-user-1", &json!({"appSecret": secret, "operationID": 1})),
        server.dapi("sim-dapi-user-1", &json!({"appSecret": secret, "operationID": "A", "jobID": "A"})),
        server.dapi("sim-dapi-user-1", &json!("no object")),
        server.dapi("sim-dapi-user-1", &json!("x".repeat(100_000))),
    ];
    let count = requests.len();
    for (index, request) in requests.into_iter().enumerate() {
        assert_eq!(answer(request).await.0, 400, "{index}");
    }
    assert_eq!(server.violations(), vec![Kind::BadRequest; count]);
}

#[tokio::test]
async fn a_dropayment_invoice_keeps_its_session() {
    let server = Server::start(NO_WAITING).await;
    assert_eq!(answer(server.ask("dropayment", "A")).await.0, 200);
    let other = server.dropayment("1001", "A", &json!({"session": {"token": "sim-session-0002"}}));
    assert_eq!(answer(other).await.0, 401);
    assert_eq!(server.violations(), [Kind::BadCredentials]);
}

const EXTERNAL_ID: &str = "000000000000000000000000000001ok";

#[tokio::test]
async fn ayoconnect_checks_every_header() {
    let server = Server::start(1.0).await;
    let good = || Ayoconnect::new(EXTERNAL_ID);
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let mut requests: Vec<Ayoconnect> =
        ["accept", "x-timestamp", "x-partner-id", "x-external-id", "channel-id"].map(|name| good().without(name)).into();
    requests.extend([
        good().header("accept", "*/*"),
        good().header("x-timestamp", &timestamp(SystemTime::now() - minutes(6))),
        good().header("x-timestamp", &timestamp(SystemTime::now() + minutes(6))),
        good().header("x-timestamp", "2026-03-28T22:13:27+0700"),
        good().header("x-partner-id", AYOCONNECT_MERCHANT_IDS[1]),
        good().header("x-client-key", "short"),
        good().header("x-external-id", "000000000000000000000000000002ok"),
        good().header("channel-id", "1234"),
        good().header("channel-id", "1234x"),
        Ayoconnect::new("too-short"),
        Ayoconnect::new("0000000000000000000000000000-1ok"),
        Ayoconnect { query: format!("merchantId=SIMMER&X-EXTERNAL-ID={EXTERNAL_ID}"), ..good() },
        Ayoconnect { query: format!("merchantId=SIMMER&XExternalId={EXTERNAL_ID}&a=b"), ..good() },
    ]);
    let count = requests.len();
    for (index, request) in requests.iter().enumerate() {
        let (status, body) = answer(request.request(&server)).await;
        assert_eq!((status, &body["responseCode"]), (400, &json!("4003602")), "{index}");
    }
    assert_eq!(server.violations(), vec![Kind::BadRequest; count]);
    assert_eq!(answer(good().without("x-client-key").request(&server)).await.0, 200, "it is optional");
}

#[tokio::test]
async fn ayoconnect_checks_signature_and_credentials() {
    let server = Server::start(1.0).await;
    let good = || Ayoconnect::new(EXTERNAL_ID);
    let with_query = Ayoconnect { signed_path: "/api/v1.0/debit/status?merchantId=SIMMER", ..good() };
    let (status, body) = answer(with_query.request(&server)).await;
    assert_eq!((status, &body["responseCode"]), (401, &json!("4013600")));
    let upper = good().request(&server).build().expect("a request");
    let signature = upper.headers()["x-signature"].to_str().expect("ASCII").to_uppercase();
    let twice = good().request(&server).header("x-signature", &signature);
    assert_eq!(answer(twice).await.0, 401);
    let unknown = Ayoconnect { token: "unknown".into(), ..good() };
    assert_eq!(answer(unknown.request(&server)).await.0, 401);
    let merchant = Ayoconnect { query: format!("merchantId=NOBODY&XExternalId={EXTERNAL_ID}"), ..good() };
    assert_eq!(answer(merchant.header("x-partner-id", "NOBODY").request(&server)).await.0, 401);
    let client = good().header("x-client-key", &"x".repeat(32));
    assert_eq!(answer(client.request(&server)).await.0, 401);
    let [signature, credentials] = [Kind::BadSignature, Kind::BadCredentials];
    assert_eq!(server.violations(), [signature, signature, credentials, credentials, credentials]);
}

#[tokio::test]
async fn ayoconnects_channel_stays_the_same_in_one_flow() {
    let server = Server::start(1.0).await;
    assert_eq!(answer(server.ask("ayoconnect", EXTERNAL_ID)).await.0, 200);
    assert_eq!(answer(Ayoconnect::new(EXTERNAL_ID).header("channel-id", "54321").request(&server)).await.0, 400);
    assert_eq!(server.violations(), [Kind::BadRequest]);
}

#[tokio::test]
async fn ayoconnect_gives_out_access_tokens_and_takes_them_back() {
    let server = Server::start(1.0).await;
    let (status, body) = answer(b2b(&server, &timestamp(SystemTime::now()))).await;
    assert_eq!((status, &body["responseCode"], &body["expiresIn"]), (200, &json!("2007300"), &json!("3600")));
    let token = body["accessToken"].as_str().expect("a token").to_owned();
    let revoking = simulator::reference("ayoconnect", 1, "revoke-ok");
    let with_token = || Ayoconnect { token: token.clone(), ..Ayoconnect::new(&revoking) };
    assert_eq!(answer(with_token().request(&server)).await.0, 401, "the script's answer");
    assert_eq!(answer(with_token().request(&server)).await.0, 401, "void");
    assert_eq!(answer(server.ask("ayoconnect", &revoking)).await.0, 200, "the static token stays");
    assert_eq!(server.violations(), [], "nobody can know that a token was revoked");
    let report = server.simulator.report();
    assert_eq!((report.providers["ayoconnect"].token_requests, report.providers["ayoconnect"].requests), (1, 3));
}

#[tokio::test]
async fn an_access_token_expires() {
    let server = Server::with(Options { token_lifetime: Duration::ZERO, ..Options::default() }).await;
    let (_, body) = answer(b2b(&server, &timestamp(SystemTime::now()))).await;
    let token = body["accessToken"].as_str().expect("a token").to_owned();
    let (status, body) = answer(Ayoconnect { token, ..Ayoconnect::new(EXTERNAL_ID) }.request(&server)).await;
    assert_eq!((status, &body["responseCode"]), (401, &json!("4013601")));
}

#[tokio::test]
async fn a_token_request_is_checked_too() {
    let server = Server::start(1.0).await;
    let now = timestamp(SystemTime::now());
    let badly_signed = b2b(&server, &now).build().expect("a request");
    let signature = badly_signed.headers()["x-signature"].to_str().expect("ASCII").replace(['a', '1'], "0");
    let body = r#"{"grantType":"client_credentials","additionalInfo":{"merchantId":"SIMMER"}}"#;
    let request = |client: &str, body: &'static str| {
        let request = server.post("/api/v1.0/access-token/b2b").header("x-timestamp", &now).header("x-client-key", client);
        request.header("x-signature", &signature).header("content-type", "application/json").body(body)
    };
    assert_eq!(answer(request(AYOCONNECT_CLIENT_ID, body)).await.0, 401);
    assert_eq!(answer(request("unknown", body)).await.0, 401);
    assert_eq!(answer(request(AYOCONNECT_CLIENT_ID, "{}")).await.0, 400);
    assert_eq!(server.violations(), [Kind::BadSignature, Kind::BadCredentials, Kind::BadRequest]);
}

#[tokio::test]
async fn over_the_budget_is_recorded_and_the_worst_second_counted() {
    let budgets = [Budget { per_second: 1, burst: 1 }; PROVIDERS.len()];
    let server = Server::with(Options { budgets, ..Options::default() }).await;
    for _ in 0..3 {
        assert_eq!(answer(server.ask("khalti", "A")).await.0, 200);
    }
    let report = server.simulator.report();
    assert_eq!((report.providers["khalti"].worst_second, server.violations()), (3, vec![Kind::Rate]));
}

#[tokio::test]
async fn a_path_that_no_provider_has_is_recorded() {
    let server = Server::start(1.0).await;
    for request in
        [server.get("/"), server.get("/v2/operation/get"), server.get("/data/transaction/verify/a/b"), server.get("/%ff")]
    {
        assert_eq!(answer(request).await.0, 404);
    }
    assert_eq!(server.violations(), [Kind::UnknownPath; 4]);
}

#[tokio::test]
async fn whoever_follows_a_redirect_is_seen() {
    let server = Server::start(1.0).await;
    let response = server.ask("dapi", "A/ü-sim-redirect").send().await.expect("answered");
    assert_eq!(response.status(), 302);
    let location = response.headers()["location"].to_str().expect("ASCII").to_owned();
    assert_eq!(server.violations(), []);
    assert_eq!(answer(server.get(&location)).await.1["status"], json!("done"));
    assert_eq!(server.violations(), [Kind::RedirectFollowed]);
}

#[tokio::test]
async fn hostile_bodies_are_no_acceptable_json() {
    let server = Server::start(1.0).await;
    for provider in PROVIDERS {
        let mut bodies = Vec::new();
        for script in ["garbage", "html", "empty", "cut", "bom", "mojibake", "dup"] {
            let response = server.ask(provider, &simulator::reference(provider, 1, script)).send().await.expect("answered");
            assert_eq!(response.status(), 200, "{provider} {script}");
            bodies.push(response.bytes().await.expect("read"));
        }
        let (duplicate, broken) = bodies.split_last().expect("seven");
        for body in broken {
            assert!(serde_json::from_slice::<Value>(body).is_err(), "{provider} {}", String::from_utf8_lossy(body));
        }
        let value: Value = serde_json::from_slice(duplicate).expect("JSON");
        let first_key = value.as_object().and_then(|map| map.keys().next()).expect("a key");
        assert_eq!(String::from_utf8_lossy(duplicate).matches(&format!("{{\"{first_key}\":")).count(), 1);
        assert!(duplicate.len() > value.to_string().len(), "{provider}: one key more than it has");
    }
}

#[tokio::test]
async fn a_reset_is_a_reset() {
    let server = Server::start(1.0).await;
    let error = server.raw_khalti("SIM-reset").await.read_to_end(&mut Vec::new()).await.expect_err("no end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_dropped_answer_ends_half_way() {
    let server = Server::start(1.0).await;
    let response = server.ask("khalti", "SIM-drop").send().await.expect("answered");
    assert!(response.content_length().is_some_and(|length| length > 100));
    assert!(response.bytes().await.is_err());
}

#[tokio::test]
async fn a_dribbled_answer_begins_with_one_byte() {
    let server = Server::start(1.0).await;
    let mut response = server.ask("khalti", "SIM-dribble").send().await.expect("answered");
    assert_eq!(response.chunk().await.expect("read").as_deref(), Some(&b"{"[..]));
}

#[tokio::test]
async fn a_huge_answer_is_as_long_as_it_says_and_may_be_left() {
    let server = Server::start(1.0).await;
    let mut response = server.ask("khalti", "SIM-huge").send().await.expect("answered");
    assert_eq!(response.content_length(), Some(100 << 20));
    let mut read = 0;
    while read < 2 << 20 {
        read += response.chunk().await.expect("read").expect("more").len();
    }
    drop(response);
    assert_eq!(answer(server.ask("khalti", "B")).await.0, 200);
}

#[tokio::test]
async fn the_gzip_bomb_says_that_it_is_gzip_and_is_small() {
    let server = Server::start(1.0).await;
    let response = server.ask("khalti", "SIM-gzipbomb").send().await.expect("answered");
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let packed = response.bytes().await.expect("read");
    assert!(packed.len() < 1 << 20);
    assert_eq!(packed[..4], [0x1f, 0x8b, 8, 0]);
}

/// Waits until the simulator has seen this many requests.
async fn seen(server: &Server, requests: u64) {
    while server.simulator.report().requests < requests {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_second_request_in_flight_is_seen_by_transaction_and_by_dapis_access_token() {
    let server = Server::start(1.0).await;
    let _held = server.raw_khalti("SIM-slow-ok").await;
    seen(&server, 1).await;
    assert_eq!(answer(server.ask("khalti", "SIM-slow-ok")).await.0, 200);
    assert_eq!(answer(server.ask("khalti", "B")).await.0, 200);
    assert_eq!(server.violations(), [Kind::Parallel]);

    let held = server.ask("dapi", "SIM-slow");
    let held = tokio::spawn(held.send());
    seen(&server, 4).await;
    assert_eq!(answer(server.ask("dapi", "B")).await.0, 200);
    assert_eq!(server.violations(), [Kind::Parallel, Kind::Parallel]);
    held.abort();
}

fn parallel(server: &Server) -> usize {
    server.violations().iter().filter(|kind| **kind == Kind::Parallel).count()
}

#[tokio::test]
async fn an_abandoned_request_is_in_flight_no_longer() {
    let server = Server::start(1.0).await;
    drop(server.raw_khalti("SIM-slow-ok").await);
    seen(&server, 1).await;
    // The simulator learns of the closed connection in its own time; from then on there is no new violation.
    let forgotten = async {
        loop {
            let before = parallel(&server);
            assert_eq!(answer(server.ask("khalti", "SIM-slow-ok")).await.0, 200);
            if parallel(&server) == before {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), forgotten).await.expect("forgotten");
}

#[tokio::test]
async fn slow_with_a_number_answers_in_the_end() {
    let server = Server::start(1.0).await;
    let before = tokio::time::Instant::now();
    let (status, body) = answer(server.ask("khalti", "SIM-slow1")).await;
    assert_eq!((status, &body["state"]), (200, &json!("Queued")));
    assert!(before.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_stop_waits_for_nobody_long() {
    let server = Server::start(1.0).await;
    let mut held = server.raw_khalti("SIM-slow").await;
    seen(&server, 1).await;
    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), server.served).await.expect("in time").expect("no panic").expect("served");
    assert!(held.read_to_end(&mut Vec::new()).await.is_err(), "reset");
}

#[tokio::test]
async fn the_report_names_every_provider_and_reset_forgets() {
    let server = Server::start(1.0).await;
    assert_eq!(answer(server.ask("dropayment", "A")).await.0, 200);
    assert_eq!(answer(server.ask("dropayment", "A")).await.0, 200);
    let report = answer(server.get("/_simulator/report")).await.1;
    assert_eq!((&report["requests"], &report["counts"]), (&json!(2), &json!({"interval": 1})));
    let violation = &report["violations"][0];
    assert_eq!(
        (&violation["kind"], &violation["provider"], &violation["reference"]),
        (&json!("interval"), &json!("dropayment"), &json!("A"))
    );
    let provider = json!({"requests": 2, "token_requests": 0, "violations": 1, "worst_second": 2, "references": 1});
    assert_eq!(report["providers"]["dropayment"], provider);
    assert!(PROVIDERS.iter().all(|name| report["providers"][name].is_object()));

    assert_eq!(answer(server.post("/_simulator/reset")).await.0, 200);
    let report = server.simulator.report();
    assert_eq!((report.requests, report.violation_count(), report.providers["dropayment"].references), (0, 0, 0));
}

#[tokio::test]
async fn a_registration_that_says_nothing_is_refused() {
    let server = Server::start(1.0).await;
    for body in
        [json!({}), json!({"provider": "nobody", "reference": "A"}), json!({"provider": "khalti", "reference": "A", "x": 1})]
    {
        assert_eq!(server.register(&body).await, 400);
    }
}

#[tokio::test]
async fn what_is_published_for_rows_is_accepted() {
    let server = Server::start(1.0).await;
    for provider in PROVIDERS {
        let reference = simulator::reference(provider, 17, "ok");
        let params = simulator::params(provider, 17);
        let request = match provider {
            "dropayment" => {
                let endpoint = params["endpointId"].as_str().expect("text");
                server.dropayment(endpoint, &reference, &json!({"session": params["session"]}))
            }
            "dapi" => {
                let secret = simulator::account("dapi")[0].1;
                let token = params["accessToken"].as_str().expect("text");
                server.dapi(token, &json!({"appSecret": secret, "operationID": reference}))
            }
            other => server.ask(other, &reference),
        };
        assert_eq!(answer(request).await.0, 200, "{provider}");
    }
    assert_eq!(server.violations(), []);
}

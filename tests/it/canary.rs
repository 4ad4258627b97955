//! Canaries: every secret has a value of its own, the providers echo whatever they are sent, and
//! payer data stands in every documented field. Then everything that paypoll writes anywhere is
//! searched for them.
//!
//! A canary begins and ends with a mark, so that a piece of one is found too. The `/` and the `"`
//! in it are what encoders of JSON spell in several ways.

use crate::support::{database, eventually};
use paypoll::config::DEFAULTS;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool, Row};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

/// Begins and ends a secret; begins and ends what a payer would not like to read elsewhere.
const MARKS: [&str; 4] = ["CNRY", "YRNC", "PAYR", "RYAP"];
/// Inside the private key, which is never sent.
const KEY_LINE: &str = "MIIEvwIBADANBgkqhkiG9w0BAQEFAASCBKkwggSlAgEAAoIBAQCveq1FDMJoTyhv";
const KEY_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/ayoconnect/keys/pkcs8.pem");

const PROVIDERS: [&str; 5] = ["dropayment", "dusupay", "ayoconnect", "khalti", "dapi"];

fn secret(name: &str) -> String {
    format!("CNRY-{name}/\"7+-YRNC")
}

fn payer(name: &str) -> String {
    format!("PAYR-{name}-RYAP")
}

/// What a provider answers at first; then the transaction succeeds.
const SHAPES: [&str; 17] = [
    "success", "failed", "pending", "action", "unknown", "message", "refused", "missing", "locked", "broken", "html", "busy",
    "redirect", "long", "lost", "header", "text",
];

/// A request as it came, with its provider and reference.
struct Asked {
    provider: &'static str,
    reference: String,
    /// Line, headers and body, as they stood on the wire.
    text: String,
}

/// Every provider in one, and each of them repeats in its answers all that it was sent.
#[derive(Clone, Default)]
struct Echo {
    heard: Arc<Mutex<String>>,
    asked: Arc<Mutex<BTreeMap<(&'static str, String), u32>>>,
}

impl Echo {
    async fn start(self) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                tokio::spawn(self.clone().converse(connection));
            }
        });
        address
    }

    async fn converse(self, connection: TcpStream) -> Option<()> {
        let mut connection = BufReader::new(connection);
        let text = request(&mut connection).await?;
        self.heard.lock().unwrap().push_str(&text);
        let answer = match asked(&text) {
            None => {
                let token = json!({"responseCode": "2007300", "responseMessage": text, "accessToken": secret("fetched"), "expiresIn": "3600"});
                whole("200 OK", "", &token.to_string())
            }
            Some(asked) => {
                let key = (asked.provider, asked.reference.clone());
                let before = {
                    let mut counts = self.asked.lock().unwrap();
                    let count = counts.entry(key).or_default();
                    *count += 1;
                    *count - 1
                };
                answer(&asked, before)
            }
        };
        connection.write_all(answer.as_bytes()).await.ok()
    }
}

/// One request to its end; `None` when the client is gone.
async fn request(connection: &mut BufReader<TcpStream>) -> Option<String> {
    let mut text = String::new();
    let mut length = 0;
    loop {
        let begun = text.len();
        if connection.read_line(&mut text).await.ok()? == 0 {
            return None;
        }
        let line = text[begun..].to_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await.ok()?;
    text.push_str(std::str::from_utf8(&body).unwrap());
    Some(text)
}

/// What is polled; `None` for a token.
fn asked(text: &str) -> Option<Asked> {
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let target = head.split(' ').nth(1).unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let segment = |from_the_end: usize| path.rsplit('/').nth(from_the_end).unwrap().to_owned();
    let from_body = |key: &str| serde_json::from_str::<Value>(body).unwrap()[key].as_str().unwrap().to_owned();
    let (provider, reference) = if path.contains("/transfer/") {
        ("dropayment", segment(1))
    } else if path.contains("/data/transaction/verify/") {
        ("dusupay", segment(0))
    } else if path.ends_with("/debit/status") {
        ("ayoconnect", query.split("XExternalId=").nth(1).unwrap().to_owned())
    } else if path.contains("/api/service/status/") {
        ("khalti", if body.is_empty() { segment(0) } else { from_body("reference") })
    } else if path.ends_with("/access-token/b2b") {
        return None;
    } else {
        ("dapi", from_body("operationID"))
    };
    Some(Asked { provider, reference, text: text.to_owned() })
}

fn whole(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

/// As some languages spell JSON: a slash with a backslash before it.
fn spelt(body: &Value) -> String {
    body.to_string().replace('/', "\\/")
}

/// The answer to the poll after `before` others, with the request in its status line, its headers
/// and its body.
fn answer(asked: &Asked, before: u32) -> String {
    let line = asked.text.replace("\r\n", " ");
    let headers = format!("x-echo: {line}\r\n");
    let with = |code: &str, body: &str| whole(&format!("{code} {line}"), &headers, body);
    let usable = |word: &str| spelt(&usable(asked, word));
    let [pending, success, failed, action] = words(asked.provider);
    let shape = asked.reference.split('-').next().unwrap();
    match (shape, before) {
        ("failed", 0) => with("200", &usable(failed)),
        ("pending", 0) => with("200", &usable(pending)),
        // For good: it must be seen while it lasts.
        ("action", _) => with("200", &usable(action)),
        ("unknown", 0) => with("200", &usable(&line)),
        ("message", 0) => with("400", &spelt(&refusal(asked, 400, false))),
        ("refused", 0) => with("401", &spelt(&refusal(asked, 401, false))),
        ("missing", 0..=1) => with("404", &spelt(&refusal(asked, 404, true))),
        ("locked", 0) if asked.provider == "dapi" => {
            let answer = json!({"success": false, "status": "failed", "type": "INVALID_CREDENTIALS", "msg": asked.text});
            with("200", &spelt(&answer))
        }
        ("broken", 0) => with("200", &format!("{{\"a\": \"{line}\", {}", asked.text)),
        ("html", 0) => with("500", &format!("<html>{}</html>", asked.text)),
        ("busy", 0) => whole("503 busy", &format!("{headers}retry-after: {line}\r\n"), &asked.text),
        ("redirect", 0) => {
            whole("302 Found", &format!("{headers}location: /{}?{}\r\n", payer("location"), line.replace(' ', "+")), &line)
        }
        // Longer than what is kept as evidence, and whatever is cut there is in the middle of a secret.
        ("long", 0) => {
            let mut long = self::usable(asked, success);
            let (first, rest) = (&asked.text, asked.text.split_once("\r\n\r\n").unwrap().1);
            long["a"] = json!([first, rest.repeat(40), secret_parts(first).repeat(200)]);
            with("200", &spelt(&long))
        }
        // The second time it parks the transaction, and is kept as the reason's evidence.
        ("lost", 0..=1) => {
            let mut missing = refusal(asked, 404, true);
            missing["a"] = secret_parts(&asked.text).repeat(300).into();
            with("404", &spelt(&missing))
        }
        ("header", 0) => format!("HTTP/1.1 200 OK\r\n{line}\r\nx y: {line}\r\n\r\n{line}"),
        ("text", 0) => with("403", &asked.text),
        _ => with("200", &usable(success)),
    }
}

/// The secrets in a request, one directly after the other.
fn secret_parts(text: &str) -> String {
    text.split("CNRY").skip(1).filter_map(|rest| rest.split_once("YRNC")).map(|(middle, _)| format!("CNRY{middle}YRNC")).collect()
}

/// A provider's words for pending, success, failure, and what the payer has to do; where it has no
/// word for that, pending.
fn words(provider: &str) -> [&'static str; 4] {
    match provider {
        "dropayment" => ["PROCESSING", "APPROVED", "DECLINED", "REDIRECT_REQUEST"],
        "dusupay" => ["PENDING", "COMPLETED", "FAILED", "PROCESSING"],
        "ayoconnect" => ["PROCESSING", "SUCCESS", "FAILED", "PENDING_USER_VERIFICATION WITH URL"],
        "khalti" => ["Queued", "Success", "Failed", "Processing"],
        _ => ["initialized", "done", "failed", "user_input_required"],
    }
}

/// A documented answer with the request in every field that is free text, and payer data wherever
/// the documents show some.
fn usable(asked: &Asked, word: &str) -> Value {
    let (echo, reference) = (&asked.text, &asked.reference);
    let body = echo.split_once("\r\n\r\n").unwrap().1;
    let mut answer = match asked.provider {
        "dropayment" => json!({
            "invoiceId": reference, "state": word, "redirectUrl": payer("url"), "session": {"token": echo, "accessToken": echo},
            "errorMessage": echo, "errorCode": echo, "orderId": echo, "transaction": {"cardHash": echo}}),
        "dusupay" => json!({"code": 200, "status": "success", "message": echo, "data": {
            "merchant_reference": reference, "transaction_status": word, "status_message": echo, "internal_reference": echo,
            "customer_name": payer("name"), "transaction_account": payer("phone"), "more": [{"customer_name": payer("name")}]}}),
        "ayoconnect" => {
            json!({"responseCode": "2003600", "responseMessage": echo, "webRedirectUrl": payer("url"), "accessToken": echo,
            "additionalInfo": {"paymentResult": word, "webRedirectUrl": payer("url"), "appRedirectUrl": payer("url"),
                               "bankCardToken": payer("card"), "remark": echo}})
        }
        "khalti" => json!({"status": true, "state": word, "original_status": echo, "details": echo, "reference": reference,
            "response_id": 5, "amount": 1.0, "refunds": [{"remarks": echo}]}),
        _ => json!({"operationID": reference, "success": true, "status": word, "type": echo, "msg": echo,
            "userInputs": [{"id": "otp", "query": payer("question"), "answer": payer("otp")}]}),
    };
    answer["echo"] = json!({"text": echo, "body": body, echo.as_str(): [echo]});
    answer
}

/// A documented error with the request as its message.
fn refusal(asked: &Asked, status: u16, missing: bool) -> Value {
    let echo = &asked.text;
    match asked.provider {
        "dropayment" => {
            json!({"error": {"cause": if missing { "ORDER_NOT_FOUND" } else { "OTHER" }, "code": echo, "message": echo}})
        }
        "dusupay" => json!({"code": status, "status": "error", "message": echo, "data": {}}),
        "ayoconnect" => json!({"responseCode": format!("{status}3600"), "responseMessage": echo}),
        "khalti" => {
            json!({"status": false, "error_code": if missing { "002" } else { "999" }, "message": echo, "error": echo, "state": "Error"})
        }
        _ => json!({"success": false, "status": "failed", "type": if missing { "NOT_FOUND" } else { echo }, "msg": echo}),
    }
}

/// What both daemons and every command are started with: the keys of two accounts, of which each
/// daemon serves one.
fn environment(url: &str, account: &str, echo: SocketAddr, ops: SocketAddr) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    let mut set = |key: &str, value: &str| drop(environment.insert(format!("PAYPOLL__{key}"), value.to_owned()));
    set("DATABASE__URL", url);
    set("LOG__FILTER", "trace");
    set("WORKER__LEASE", "4s");
    set("OPS__LISTEN", &ops.to_string());
    for provider in PROVIDERS {
        let name = provider.to_uppercase();
        set(&format!("PROVIDERS__{name}__ENABLED"), "true");
        set(&format!("PROVIDERS__{name}__BASE_URL"), &format!("http://{echo}"));
        set(&format!("PROVIDERS__{name}__TIMEOUT"), "1s");
        set(&format!("PROVIDERS__{name}__NOT_FOUND"), "{ limit = 2, min_age = \"1s\" }");
    }
    set("PROVIDERS__KHALTI__SCHEDULE", "{ first = \"10s\", phases = [{ every = \"20s\" }] }");
    let mut key =
        |provider: &str, key: &str, value: &str| set(&format!("PROVIDERS__{provider}__ACCOUNTS__{account}__{key}"), value);
    key("DROPAYMENT", "ENDPOINTID", &secret("endpoint"));
    key("DUSUPAY", "PUBLIC_KEY", &secret("public-key"));
    key("AYOCONNECT", "MERCHANT_ID", "CNRY06");
    key("AYOCONNECT", "CLIENT_ID", "CNRY-client-id-of-32-characters/");
    key("AYOCONNECT", "CLIENT_SECRET", &secret("client-secret"));
    key("AYOCONNECT", "CHANNEL_ID", "12345");
    key("KHALTI", "TOKEN", &secret("khalti-token"));
    key("DAPI", "APP_SECRET", &secret("app-secret"));
    key("DAPI", "APP_KEY", &secret("app-key"));
    match account {
        // Both ways to an access token, and two of the places where Khalti's token is sent.
        "FIXED" => key("AYOCONNECT", "ACCESS_TOKEN", &secret("access-token")),
        _ => {
            key("AYOCONNECT", "PRIVATE_KEY_FILE", KEY_FILE);
            set("PROVIDERS__KHALTI__LOOKUP", "path");
        }
    }
    environment
}

/// The binary with this environment and no other.
fn paypoll(environment: &BTreeMap<String, String>, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paypoll"));
    command.env_clear().envs(environment).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A daemon and all that it says.
struct Daemon {
    child: Child,
    said: Vec<thread::JoinHandle<String>>,
}

impl Daemon {
    fn start(environment: &BTreeMap<String, String>) -> Self {
        let mut child = paypoll(environment, &["run", "--speed", "60"]).spawn().unwrap();
        fn listen(mut stream: impl Read + Send + 'static) -> thread::JoinHandle<String> {
            thread::spawn(move || {
                let mut text = Vec::new();
                stream.read_to_end(&mut text).unwrap();
                String::from_utf8(text).unwrap()
            })
        }
        let said = vec![listen(child.stdout.take().unwrap()), listen(child.stderr.take().unwrap())];
        Self { child, said }
    }

    /// Ends it. Returns its log and what else it said.
    async fn stop(mut self) -> (ExitStatus, Vec<String>) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = eventually("the daemon ends", || std::future::ready(self.child.try_wait().unwrap())).await;
        (status, std::mem::take(&mut self.said).into_iter().map(|said| said.join().unwrap()).collect())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where marks were found, and what stands around them.
#[derive(Default)]
struct Leaks(BTreeSet<String>);

impl Leaks {
    fn search(&mut self, place: &str, text: &str) {
        for mark in MARKS.iter().chain([&KEY_LINE]) {
            if let Some(at) = text.find(mark) {
                let around: String = text[..at].chars().rev().take(160).collect::<Vec<_>>().into_iter().rev().collect();
                let after: String = text[at..].chars().take(60).collect();
                self.0.insert(format!("{place}: …{around}{after}…"));
            }
        }
    }

    /// Every column of every table of the schema. A row that is still polled, or may be, keeps what
    /// polling needs.
    async fn search_tables(&mut self, pool: &PgPool) {
        let tables: Vec<String> = sqlx::query_scalar(
            "select c.relname::text from pg_class c where c.relnamespace = 'paypoll'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition",
        )
        .fetch_all(pool)
        .await
        .unwrap();
        assert!(
            ["transactions", "transitions", "polls", "accounts", "replicas"].iter().all(|name| tables.iter().any(|t| t == name))
        );
        for table in tables {
            let sql = format!("select to_jsonb(t) as row from paypoll.{table} t");
            for row in sqlx::query(AssertSqlSafe(sql)).fetch_all(pool).await.unwrap() {
                let mut row: Value = row.get("row");
                if table == "transactions" {
                    if row["finalized_at"].is_null() {
                        row["params"].take();
                    }
                    row["action"].take();
                }
                for (column, value) in row.as_object().unwrap() {
                    // As text and not as JSON, whose spelling would hide a slash.
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    self.search(&format!("{table}.{column} of {}", row["reference"]), &text);
                }
            }
        }
    }

    /// What a command says, wherever it says it. `allowed` takes away what the command may say.
    async fn search_command(
        &mut self,
        environment: &BTreeMap<String, String>,
        arguments: &[&str],
        allowed: fn(String) -> String,
    ) -> i32 {
        let mut command = paypoll(environment, arguments);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        for stream in [output.stdout, output.stderr] {
            self.search(&arguments.join(" "), &allowed(String::from_utf8(stream).unwrap()));
        }
        output.status.code().unwrap()
    }
}

/// `show` of all accounts' transactions without the payer's action.
fn without_action(text: String) -> String {
    match serde_json::from_str::<Value>(&text) {
        Ok(mut lives) => {
            for life in lives.as_array_mut().unwrap() {
                life["transaction"]["action"].take();
            }
            lives.to_string()
        }
        Err(_) => text.lines().filter(|line| !line.trim_start().starts_with("action ")).collect::<Vec<_>>().join("\n"),
    }
}

async fn get(address: SocketAddr, path: &str) -> String {
    reqwest::get(format!("http://{address}{path}")).await.unwrap().text().await.unwrap()
}

fn free() -> SocketAddr {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

async fn insert(pool: &PgPool, provider: &str, account: &str, shape: &str) -> Uuid {
    let params = match provider {
        "dropayment" => json!({"session": {"token": secret("session"), "accessToken": secret("consumer")}}),
        "dapi" => json!({"accessToken": secret(&format!("user-{account}-{shape}")), "userSecret": secret("user-secret")}),
        _ => json!({}),
    };
    sqlx::query_scalar(
        "insert into paypoll.transactions (provider, account, reference, params) values ($1, $2, $3, $4) returning id",
    )
    .bind(provider)
    .bind(account)
    .bind(format!("{shape}-{account}"))
    .bind(params)
    .fetch_one(pool)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_payer_data_stands_anywhere_although_providers_echo_all_of_it() {
    let database = database().await;
    let url = database.url.replacen("postgres@", &format!("postgres:{}@", "CNRY-password-YRNC"), 1);
    assert_ne!(url, database.url);
    let echo = Echo::default();
    let address = echo.clone().start().await;
    let accounts = [("fixed", free()), ("fetched", free())];
    let environments = accounts.map(|(account, ops)| environment(&url, &account.to_uppercase(), address, ops));
    let mut ids = BTreeMap::new();
    for (account, _) in accounts {
        for provider in PROVIDERS {
            for shape in SHAPES {
                ids.insert((account, provider, shape), insert(&database.pool, provider, account, shape).await);
            }
        }
    }
    let daemons = environments.each_ref().map(Daemon::start);
    eventually("everything is settled but what waits for a payer", || async {
        let left = "select count(*) from paypoll.transactions where next_poll_at is not null and state <> 'action_required'
                       and not (provider in ('dusupay', 'khalti') and reference like 'action-%')";
        let asked = "select count(*) from paypoll.transactions t where state = 'action_required'
                        and (select count(*) from paypoll.polls p where p.transaction_id = t.id) > 1";
        let left: i64 = sqlx::query_scalar(left).fetch_one(&database.pool).await.unwrap();
        let asked: i64 = sqlx::query_scalar(asked).fetch_one(&database.pool).await.unwrap();
        (left == 0 && asked >= 2).then_some(())
    })
    .await;

    let mut leaks = Leaks::default();
    leaks.search_tables(&database.pool).await;
    for (environment, (account, ops)) in environments.iter().zip(accounts) {
        for path in ["/metrics", "/", "/?q=long-fixed", "/readyz", "/healthz"] {
            leaks.search(path, &get(ops, path).await);
        }
        for ((_, provider, shape), id) in ids.iter().filter(|((of, ..), _)| *of == account) {
            leaks.search(&format!("page of {provider} {shape}"), &get(ops, &format!("/transactions/{id}")).await);
        }
        for arguments in [
            &["check"][..],
            &["status"],
            &["status", "--json"],
            &["audit", "--json"],
            &["audit"],
            &["plan", "khalti"],
            &["migrate"],
        ] {
            leaks.search_command(environment, arguments, |text| text).await;
        }
        for shape in SHAPES {
            let reference = format!("{shape}-{account}");
            let arguments = if account == "fixed" { &["show", &reference][..] } else { &["show", "--json", &reference] };
            let code = leaks.search_command(environment, arguments, without_action).await;
            assert_eq!(code, 0, "{reference}");
        }
        let parked = ids[&(account, "khalti", "missing")].to_string();
        for arguments in [&["retry", "--reason", "not_found", "--dry-run"][..], &["retry", &parked]] {
            assert_eq!(leaks.search_command(environment, arguments, |text| text).await, 0, "{arguments:?}");
        }
    }
    for daemon in daemons {
        let (status, said) = daemon.stop().await;
        assert!(status.success());
        assert!(
            said[0].contains("\"target\":\"sqlx::query\"") && said[0].contains("poll_failed"),
            "the log is there, with libraries"
        );
        leaks.search("log", &said[0]);
        leaks.search("stderr of run", &said[1]);
    }
    // A search for what was never there finds nothing.
    let heard = echo.heard.lock().unwrap().clone();
    for name in
        ["public-key", "access-token", "fetched", "khalti-token", "app-secret", "app-key", "session", "consumer", "user-secret"]
    {
        assert!(heard.contains(&format!("CNRY-{name}/")) || heard.contains(&format!("CNRY-{name}%2F")), "{name} was never sent");
    }
    let kept: i64 = sqlx::query_scalar("select count(*) from paypoll.transitions where evidence::text like '%[redacted]%'")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert!(kept > 40, "what was echoed is evidence, {kept}");
    let erased = "select count(*) from paypoll.transactions where finalized_at is not null and params::text like '%CNRY%'";
    assert_eq!(sqlx::query_scalar::<_, i64>(erased).fetch_one(&database.pool).await.unwrap(), 0);
    let for_the_payer = "select count(*) from paypoll.transactions where action::text like '%PAYR%'";
    assert!(sqlx::query_scalar::<_, i64>(for_the_payer).fetch_one(&database.pool).await.unwrap() >= 2, "the payer needs all of it");
    assert!(leaks.0.is_empty(), "{} leaks:\n{}", leaks.0.len(), leaks.0.into_iter().collect::<Vec<_>>().join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_configuration_error_shows_a_secret() {
    let database = database().await;
    let good = environment(&database.url, "FIXED", free(), free());
    let mut leaks = Leaks::default();
    let canary = secret("wrong");
    for (key, value) in [
        ("DATABASE__URL", format!("mysql://user:{canary}@host/db")),
        ("DATABASE__URL", format!("postgres://user:{canary}@host:port/db")),
        ("DATABASE__URL", "postgres://user:CNRY-password-YRNC@127.0.0.1:1/db?sslmode=CNRY".into()),
        ("DATABASE__URL__X", canary.clone()),
        ("PROVIDERS__KHALTI__ACCOUNTS__FIXED__TOKEN__X", canary.clone()),
        ("PROVIDERS__KHALTI__ACCOUNTS__FIXED__TOKN", canary.clone()),
        ("PROVIDERS__KHALTI__ACCOUNTS__FIXED", canary.clone()),
        ("PROVIDERS__KHALTI__ACCOUNTS", canary.clone()),
        ("PROVIDERS__KHALTI__ACCOUNTS__FIXED__TOKEN_FILE", "/dev/null".into()),
        ("PROVIDERS__KHALTI__BASE_URL", format!("https://user:{canary}@host")),
        ("PROVIDERS__KHALTI__BASE_URL", format!("https://host/?token={canary}")),
        ("PROVIDERS__DUSUPAY__ACCOUNTS__FIXED__PUBLIC_KEY", format!("{canary}\u{e4}")),
        ("PROVIDERS__AYOCONNECT__ACCOUNTS__FIXED__MERCHANT_ID", canary.clone()),
        ("PROVIDERS__AYOCONNECT__ACCOUNTS__FIXED__CLIENT_ID", canary.clone()),
        ("PROVIDERS__AYOCONNECT__ACCOUNTS__FIXED__CHANNEL_ID", "CNRY5".into()),
        ("PROVIDERS__AYOCONNECT__ACCOUNTS__FIXED__PRIVATE_KEY", canary.clone()),
    ] {
        let mut wrong = good.clone();
        wrong.insert(format!("PAYPOLL__{key}"), value);
        for command in ["run", "check", "status"] {
            let code = leaks.search_command(&wrong, &[command], |text| text).await;
            // What is no concern of a provider's account is shown without one.
            assert!(code != 0 || command == "status", "{command} with {key}");
        }
    }
    let folder = std::env::temp_dir().join(format!("paypoll-canary-{}.toml", std::process::id()));
    let khalti = "[providers.khalti.accounts.fixed]\n";
    for text in [
        format!("{khalti}token = {canary}\n"),
        format!("{khalti}token = \"{canary}\n"),
        format!("{khalti}token = [\"CNRY\"]\n"),
        format!("{khalti}token = {{ value = \"CNRY\" }}\n"),
        format!("{khalti}{canary} = \"x\"\n"),
        format!("{DEFAULTS}\n[database]\nurl = \"CNRY\"\n"),
    ] {
        std::fs::write(&folder, text).unwrap();
        let mut wrong = good.clone();
        wrong.remove("PAYPOLL__PROVIDERS__KHALTI__ACCOUNTS__FIXED__TOKEN");
        let code = leaks.search_command(&wrong, &["check", "--config", folder.to_str().unwrap()], |text| text).await;
        assert_eq!(code, 2);
    }
    std::fs::remove_file(&folder).unwrap();
    assert!(leaks.0.is_empty(), "{} leaks:\n{}", leaks.0.len(), leaks.0.into_iter().collect::<Vec<_>>().join("\n"));
}

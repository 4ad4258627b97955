//! Access tokens (Ayoconnect's B2B flow) from an endpoint that hangs, talks nonsense or asks for a pause.

use crate::host::{Heard, Host, Reply, json, whole};
use crate::process::Settings;
use crate::support::{TestDatabase, database, eventually};
use serde_json::json;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

const KEY_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/ayoconnect/keys/pkcs8.pem");

/// Ayoconnect with these accounts, each with a private key; an account's merchant is its name.
fn settings(url: &str, host: SocketAddr, accounts: &[&str]) -> Settings {
    let mut settings = Settings::new(url);
    let mut set = |key: &str, value: &str| {
        settings.set(&format!("PROVIDERS__AYOCONNECT__{key}"), value);
    };
    set("ENABLED", "true");
    set("BASE_URL", &format!("http://{host}"));
    set("TIMEOUT", "1500ms");
    set("SCHEDULE", "{ first = \"0s\", phases = [{ every = \"1s\" }], give_up_after = \"1h\" }");
    set("RETRY", "{ initial = \"500ms\", max = \"1s\" }");
    set("RATE_LIMIT", "{ per_second = 100, burst = 100 }");
    for account in accounts {
        let mut key = |key: &str, value: &str| set(&format!("ACCOUNTS__{}__{key}", account.to_uppercase()), value);
        key("MERCHANT_ID", account);
        key("CLIENT_ID", &format!("client-of-{account:-<22}"));
        key("CLIENT_SECRET", "a-client-secret");
        key("CHANNEL_ID", "12345");
        key("PRIVATE_KEY_FILE", KEY_FILE);
    }
    settings
}

async fn insert(database: &TestDatabase, account: &str, count: i32) {
    sqlx::query(
        "insert into paypoll.transactions (provider, account, reference)
         select 'ayoconnect', $1, lpad($1 || n, 32, '0') from generate_series(1, $2) n",
    )
    .bind(account)
    .bind(count)
    .execute(&database.pool)
    .await
    .unwrap();
}

async fn count(database: &TestDatabase, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&database.pool).await.unwrap()
}

fn is_token_request(heard: &Heard) -> bool {
    heard.path().ends_with("/access-token/b2b")
}

fn token(value: &str, expires_in: &str) -> Vec<u8> {
    json(&json!({"responseCode": "2007300", "responseMessage": "Successful", "accessToken": value, "expiresIn": expires_in}))
}

fn status(word: &str) -> Vec<u8> {
    json(&json!({"responseCode": "2003600", "responseMessage": "Successful", "additionalInfo": {"paymentResult": word}}))
}

#[tokio::test]
async fn an_endpoint_that_talks_nonsense_is_asked_seldom_and_its_account_is_closed() {
    let database = database().await;
    let nonsense = |account: &str| match account {
        "htm200" => whole("200 OK", "content-type: text/html\r\n", "<html>hello</html>"),
        "none00" => json(&json!({"responseCode": "2007300", "responseMessage": "Successful"})),
        "moved0" => whole("302 Found", "location: /elsewhere\r\n", ""),
        "bad400" => whole("400 Bad Request", "", r#"{"responseCode":"4007300","responseMessage":"Bad Request"}"#),
        "not404" => whole("404 Not Found", "", "not here"),
        "lineend" => token("a-token\n", "3600"),
        _ => token(&"x".repeat(900_000), "3600"),
    };
    let accounts = ["htm200", "none00", "moved0", "bad400", "not404", "line00", "long00"];
    let host = Host::start(move |heard| {
        let client = heard.header("x-client-key");
        let account = client.strip_prefix("client-of-").unwrap_or_default().trim_end_matches('-');
        match account {
            "line00" => Reply::Keep(nonsense("lineend")),
            "moved0" => Reply::Close(nonsense(account)),
            _ => Reply::Keep(nonsense(account)),
        }
    })
    .await;
    for account in accounts {
        insert(&database, account, 30).await;
    }
    let mut daemon = settings(&database.url, host.address, &accounts).run(&[]);
    eventually("every circuit opens", || async {
        let opened = daemon.told("circuit_opened");
        accounts.iter().all(|account| opened.iter().any(|line| line["account"] == *account)).then_some(())
    })
    .await;
    assert!(host.heard().iter().all(is_token_request), "nobody was asked without a token");
    for account in accounts {
        let client = format!("client-of-{account:-<22}");
        let requests = host.heard().iter().filter(|heard| heard.header("x-client-key") == client).count();
        assert!(requests <= 20, "{account}: {requests} token requests before {} failures in a row", 20);
        let told = daemon.told("poll_failed");
        let why = told.iter().find(|line| line["account"] == account && line["provider"] == "ayoconnect");
        let why = why.unwrap_or_else(|| panic!("{account}: nothing was told"));
        assert!(why["error"].as_str().is_some_and(|error| error.contains("access token")), "{why}");
    }
    assert_eq!(count(&database, "select count(*) from paypoll.polls").await, 0);
    assert_eq!(count(&database, "select sum(attempts) + sum(failures) from paypoll.transactions").await, 0);
    assert!(daemon.terminate().await.0.success());
    assert_eq!(count(&database, "select count(*) from paypoll.transactions where owner is not null").await, 0);
}

#[tokio::test]
async fn one_request_is_everybodys_its_silence_too_and_who_waits_is_overdue() {
    let database = database().await;
    let host = Host::start(|_| Reply::Hang).await;
    insert(&database, "hanger", 60).await;
    let ops = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut settings = settings(&database.url, host.address, &["hanger"]);
    settings.set("OPS__LISTEN", &ops.to_string()).set("OPS__MAX_OVERDUE", "1s");
    settings.set("PROVIDERS__AYOCONNECT__TIMEOUT", "8s").set("WORKER__LEASE", "15s");
    let mut daemon = settings.run(&[]);
    let get = async |path: &str| {
        let answer = reqwest::get(format!("http://{ops}{path}")).await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    };
    eventually("those who wait are overdue", || async {
        let overdue = (get("/metrics").await?.1.lines())
            .filter_map(|line| line.strip_prefix("paypoll_oldest_due_seconds{provider=\"ayoconnect\"} "))
            .any(|seconds| seconds.parse::<f64>().unwrap() > 2.0);
        (overdue && get("/readyz").await?.0 == 503).then_some(())
    })
    .await;
    assert_eq!(host.heard().len(), 1, "one request for all sixty");
    daemon.tells("circuit_opened").await;
    let requests = host.heard().len();
    assert!(requests <= 2, "the circuit opened after {requests} token requests that failed for everybody");
    assert!(daemon.terminate().await.0.success());
}

#[tokio::test]
async fn a_stop_waits_for_no_token_and_gives_back_who_waits_for_one() {
    let database = database().await;
    let host = Host::start(|_| Reply::Hang).await;
    insert(&database, "hanger", 60).await;
    let mut settings = settings(&database.url, host.address, &["hanger"]);
    settings.set("PROVIDERS__AYOCONNECT__TIMEOUT", "30s").set("WORKER__LEASE", "60s");
    let mut daemon = settings.run(&[]);
    eventually("a token is asked for", || std::future::ready((!host.heard().is_empty()).then_some(()))).await;
    let begun = Instant::now();
    let (ended, error) = daemon.terminate().await;
    let took = begun.elapsed();
    assert!(ended.success(), "{error}");
    assert!(took < Duration::from_secs(10), "it waited {took:?} for a token that nobody needs any more");
    assert_eq!(count(&database, "select count(*) from paypoll.transactions where owner is not null").await, 0);
    assert_eq!(count(&database, "select count(*) from paypoll.polls").await, 0);
    assert_eq!(daemon.told("daemon_stopped").len(), 1);
}

#[tokio::test]
async fn a_pause_that_the_token_endpoint_asks_for_is_kept() {
    const PAUSE: Duration = Duration::from_secs(3);
    let database = database().await;
    let host = Host::start(|heard| {
        let reply = if !is_token_request(heard) {
            status("SUCCESS")
        } else if heard.connection == 0 && heard.before == 0 {
            whole("429 Too Many Requests", &format!("retry-after: {}\r\n", PAUSE.as_secs()), "{}")
        } else {
            token("a-token", "3600")
        };
        Reply::Keep(reply)
    })
    .await;
    insert(&database, "paused", 30).await;
    let mut daemon = settings(&database.url, host.address, &["paused"]).run(&[]);
    eventually("all are settled", || async {
        (count(&database, "select count(*) from paypoll.transactions where state = 'succeeded'").await == 30).then_some(())
    })
    .await;
    let tokens: Vec<Heard> = host.heard().into_iter().filter(is_token_request).collect();
    assert_eq!(tokens.len(), 2);
    let gap = tokens[1].at - tokens[0].at;
    assert!(gap >= PAUSE - Duration::from_millis(20), "asked again after {gap:?}");
    assert_eq!(daemon.told("rate_limited").len(), 1, "told once: {:?}", daemon.told("rate_limited"));
    assert!(daemon.terminate().await.0.success());
}

#[tokio::test]
async fn a_token_that_says_it_lives_for_no_time_is_not_fetched_for_every_poll() {
    let database = database().await;
    let host =
        Host::start(|heard| Reply::Keep(if is_token_request(heard) { token("a-token", "0") } else { status("SUCCESS") })).await;
    insert(&database, "moment", 40).await;
    let mut daemon = settings(&database.url, host.address, &["moment"]).run(&[]);
    eventually("all are settled", || async {
        (count(&database, "select count(*) from paypoll.transactions where state = 'succeeded'").await == 40).then_some(())
    })
    .await;
    let fetched = host.heard().iter().filter(|heard| is_token_request(heard)).count();
    assert!(fetched <= 5, "{fetched} tokens for 40 polls");
    assert!(daemon.terminate().await.0.success());
}

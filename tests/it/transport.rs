//! HTTP as it is spoken by hosts that are careless, hostile or not there any more.

use crate::host::{Heard, Host, Reply, json, whole};
use crate::process::Settings;
use crate::support::{TestDatabase, database, eventually};
use paypoll::transport::{Connections, Tls, Transport};
use paypoll::wire::{Failure, Method, Request, Response};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

fn transport(connections: Connections) -> Transport {
    Transport::new(&Tls::of_system().unwrap(), connections).unwrap()
}

async fn ask(transport: &Transport, address: SocketAddr, path: &str) -> Result<Response, Failure> {
    let request = Request { method: Method::Get, url: format!("http://{address}/{path}"), headers: Vec::new(), body: None };
    transport.send(Transport::prepare(request).unwrap(), Duration::from_secs(20)).await
}

/// The answer to the request, and right behind it one without a request.
fn followed(answer: &str, stray: &str) -> Vec<u8> {
    [whole("200 OK", "", answer), whole("200 OK", "", stray)].concat()
}

#[tokio::test]
async fn a_connection_on_which_something_came_unasked_is_not_used_again() {
    let host = Host::start(|_| Reply::Keep(followed("asked", "stray"))).await;
    for connections in [Connections::Kept, Connections::OneRequestEach] {
        let transport = transport(connections);
        let before = host.heard().len();
        for _ in 0..12 {
            let answer = ask(&transport, host.address, "").await.unwrap();
            assert_eq!(answer.body, "asked", "{connections:?}");
        }
        let heard = host.heard();
        assert!(heard[before..].iter().all(|heard| heard.before == 0), "{connections:?}: a connection of its own for each");
    }
}

#[tokio::test]
async fn connections_are_kept_where_an_answer_names_its_question_and_not_elsewhere() {
    let host = Host::start(|_| Reply::Keep(whole("200 OK", "", "asked"))).await;
    for (connections, kept) in [(Connections::Kept, true), (Connections::OneRequestEach, false)] {
        let transport = transport(connections);
        for _ in 0..3 {
            ask(&transport, host.address, "").await.unwrap();
        }
        assert_eq!(host.heard().last().unwrap().before > 0, kept, "{connections:?}");
    }
}

#[tokio::test]
async fn a_host_that_speaks_before_it_is_asked_is_not_believed() {
    let greeting = |_| whole("200 OK", "", "unasked");
    let host = Host::greeting(greeting, |_| Reply::Keep(whole("200 OK", "", "asked"))).await;
    let transport = transport(Connections::OneRequestEach);
    for _ in 0..12 {
        match ask(&transport, host.address, "").await {
            Err(Failure::Connection(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(host.heard().is_empty(), "nothing is sent on such a connection");
}

#[tokio::test]
async fn header_lines_that_are_none_take_nothing_away_and_two_ends_are_no_end() {
    let host = Host::start(|heard| {
        let odd = match heard.path() {
            "/name" => "x y: 1\r\n",
            "/nothing" => "no colon here\r\n",
            "/space" => "Server : x\r\n",
            "/fold" => "x-long: a\r\n  b\r\n",
            "/bytes" => "x-odd: \u{1}\u{fc}\r\n",
            "/empty" => ": nameless\r\n",
            "/twice" => "transfer-encoding: chunked\r\n",
            _ => "",
        };
        let body = if heard.path() == "/twice" { "3\r\nyes\r\n0\r\n\r\n" } else { "yes" };
        Reply::Close(whole("200 OK", odd, body))
    })
    .await;
    let transport = transport(Connections::Kept);
    for path in ["", "name", "nothing", "space", "fold", "bytes", "empty"] {
        let answer = ask(&transport, host.address, path).await.unwrap_or_else(|failure| panic!("{path}: {failure:?}"));
        assert_eq!((answer.status, &answer.body[..]), (200, &b"yes"[..]), "{path}");
    }
    let answer = ask(&transport, host.address, "twice").await.unwrap();
    assert!(answer.body.starts_with(b"an answer with both"), "{answer:?}");
}

/// Khalti and Ayoconnect at one host, polled every half second.
fn settings(url: &str, host: &str) -> Settings {
    let mut settings = Settings::new(url);
    for provider in ["KHALTI", "AYOCONNECT"] {
        let mut set = |key: &str, value: &str| {
            settings.set(&format!("PROVIDERS__{provider}__{key}"), value);
        };
        set("ENABLED", "true");
        set("BASE_URL", host);
        set("TIMEOUT", "1500ms");
        set("SCHEDULE", "{ first = \"0s\", phases = [{ every = \"500ms\" }], give_up_after = \"1h\" }");
        set("RETRY", "{ initial = \"500ms\", max = \"1s\" }");
        set("RATE_LIMIT", "{ per_second = 100, burst = 100 }");
        set("CIRCUIT", "{ failures = 5, probe_after = \"2s\" }");
    }
    settings.set("PROVIDERS__KHALTI__ACCOUNTS__DEFAULT__TOKEN", "a-token");
    for (key, value) in [
        ("MERCHANT_ID", "MERCH1"),
        ("CLIENT_ID", "client-id-of-32-characters-00001"),
        ("CLIENT_SECRET", "a-client-secret"),
        ("CHANNEL_ID", "12345"),
        ("ACCESS_TOKEN", "an-access-token"),
    ] {
        settings.set(&format!("PROVIDERS__AYOCONNECT__ACCOUNTS__DEFAULT__{key}"), value);
    }
    settings
}

async fn insert(database: &TestDatabase, provider: &str, count: i32) {
    sqlx::query(
        "insert into paypoll.transactions (provider, reference) select $1, lpad($1 || n, 32, '0') from generate_series(1, $2) n",
    )
    .bind(provider)
    .bind(count)
    .execute(&database.pool)
    .await
    .unwrap();
}

async fn count(database: &TestDatabase, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&database.pool).await.unwrap()
}

/// Ayoconnect's answer, which names no transaction.
fn paid(word: &str) -> String {
    json!({"responseCode": "2003600", "responseMessage": "Successful", "additionalInfo": {"paymentResult": word}}).to_string()
}

/// Khalti's answer to this request.
fn khaltis(heard: &Heard, word: &str) -> Value {
    let asked: Value = serde_json::from_str(heard.text.split_once("\r\n\r\n").unwrap().1).unwrap_or_default();
    json!({"status": true, "state": word, "reference": asked["reference"], "response_id": 5})
}

#[tokio::test]
async fn an_answer_that_came_unasked_finishes_nobodys_payment() {
    let database = database().await;
    // What a connection's second request gets was on its way before it: late, twice or another's.
    let host = Host::start(|heard| {
        let word = if heard.before == 0 { "PROCESSING" } else { "SUCCESS" };
        Reply::Keep(whole("200 OK", "", &paid(word)))
    })
    .await;
    insert(&database, "ayoconnect", 12).await;
    let mut daemon = settings(&database.url, &format!("http://{}", host.address)).run(&[]);
    eventually("each is polled several times", || async { (host.heard().len() > 60).then_some(()) }).await;
    assert!(daemon.terminate().await.0.success());
    assert_eq!(count(&database, "select count(*) from paypoll.transactions where state <> 'pending'").await, 0);
    assert_eq!(count(&database, "select count(*) from paypoll.polls where outcome <> 'pending'").await, 0);
}

/// Answers 503 on whatever connection it has; counts the requests.
async fn broken_host(listener: TcpListener, asked: Arc<AtomicUsize>, gone: Arc<AtomicBool>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    while !gone.load(Ordering::Relaxed) {
        let accepted = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        let Ok(Ok((mut connection, _))) = accepted else { continue };
        let asked = asked.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while connection.read(&mut buffer).await.is_ok_and(|length| length > 0) {
                asked.fetch_add(1, Ordering::Relaxed);
                if connection.write_all(&whole("503 Service Unavailable", "", "{}")).await.is_err() {
                    return;
                }
            }
        });
    }
}

#[tokio::test]
async fn a_host_that_moved_while_its_circuit_was_open_is_found_by_a_probe() {
    let database = database().await;
    insert(&database, "khalti", 12).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let old = tokio::spawn(broken_host(listener, asked.clone(), gone.clone()));
    let mut daemon = settings(&database.url, &format!("http://{address}")).run(&[]);
    daemon.tells("circuit_opened").await;
    // The address leads elsewhere from now on; connections that were made before stay where they are.
    gone.store(true, Ordering::Relaxed);
    old.await.unwrap();
    let before = asked.load(Ordering::Relaxed);
    let new = Host::start_at(address, |heard| Reply::Keep(json(&khaltis(heard, "Success")))).await;
    eventually("all are settled", || async {
        (count(&database, "select count(*) from paypoll.transactions where state = 'succeeded'").await == 12).then_some(())
    })
    .await;
    let probes = asked.load(Ordering::Relaxed) - before;
    assert!(probes <= 1, "{probes} probes went to where the host was");
    assert_eq!(new.heard().iter().filter(|heard| heard.text.contains("khalti")).count(), new.heard().len());
    assert!(daemon.terminate().await.0.success());
}

#[tokio::test]
async fn without_certificate_authorities_all_works_that_needs_none_and_check_says_what_run_would() {
    let database = database().await;
    let host = Host::start(|heard| Reply::Keep(json(&khaltis(heard, "Success")))).await;
    insert(&database, "khalti", 1).await;
    let nowhere = [("SSL_CERT_DIR", "/nonexistent"), ("SSL_CERT_FILE", "/nonexistent")];
    let command = |settings: &Settings, name: &'static str| {
        let mut command = settings.command(&[name]);
        command.envs(nowhere);
        async move {
            let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap())
        }
    };
    let mut settings = settings(&database.url, &format!("http://{}", host.address));
    assert_eq!(command(&settings, "check").await.0, Some(0));
    let mut running = settings.command(&["run"]);
    let mut child = running.envs(nowhere).stdout(std::process::Stdio::null()).spawn().unwrap();
    eventually("it is settled", || async {
        (count(&database, "select count(*) from paypoll.transactions where state = 'succeeded'").await == 1).then_some(())
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    settings.set("PROVIDERS__KHALTI__BASE_URL", &format!("https://localhost:{}", host.address.port()));
    for name in ["check", "run"] {
        let (code, error, log) = command(&settings, name).await;
        assert_eq!(code, Some(1), "{name}: {error}");
        assert!(error.contains("no certificate authorities") && error.contains("ca-certificates"), "{name}: {error}");
        assert!(!log.contains("daemon_started"), "{log}");
    }
}

//! The ops port: probes, metrics and the page for people, over HTTP, against a real PostgreSQL.

use crate::support::{TestDatabase, database};
use paypoll::config::Config;
use paypoll::metrics::Metrics;
use paypoll::ops;
use paypoll::scheduler;
use paypoll::store::{Store, Unroutable};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The ops port of a daemon whose loop is played by the test.
struct Port {
    address: std::net::SocketAddr,
    metrics: Arc<Metrics>,
    stopping: CancellationToken,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

async fn port(database: &TestDatabase) -> Port {
    port_of(&database.url).await
}

async fn port_of(url: &str) -> Port {
    let setting = |key: &str, value: &str| (format!("PAYPOLL__{key}"), value.to_owned());
    let environment = [
        setting("DATABASE__URL", url),
        setting("OPS__MAX_OVERDUE", "30s"),
        setting("PROVIDERS__KHALTI__ENABLED", "true"),
        setting("PROVIDERS__KHALTI__ACCOUNTS__DEFAULT__TOKEN", "s3cret-token"),
        setting("PROVIDERS__KHALTI__ACCOUNTS__OTHER__TOKEN", "s3cret-token"),
    ];
    let config = Config::load(&[], environment.into_iter(), 1.0).unwrap();
    let lanes = scheduler::lanes(&config);
    let metrics = Arc::new(Metrics::new(lanes.iter().map(|spec| (spec.provider, &*spec.account))));
    let store = Store::open(&config.database).unwrap();
    let accounts: Vec<_> = lanes.iter().map(|spec| (spec.provider, spec.account.clone())).collect();
    // Without a database there is nothing to make them in.
    drop(store.make_accounts(&accounts).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stopping, stop) = (CancellationToken::new(), CancellationToken::new());
    metrics.ready.store(true, Relaxed);
    metrics.turn(Instant::now());
    let serving = ops::serve_on(listener, &config, metrics.clone(), stopping.clone(), stop.clone()).unwrap();
    Port { address, metrics, stopping, stop, serving }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Port {
    async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address)).await
    }

    async fn ask(&self, request: &str) -> Answer {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// Why it is not ready; empty when it is.
    async fn unready(&self) -> String {
        let answer = self.get("/readyz").await;
        assert_eq!(answer.status == 200, answer.body == "ready\n", "{}", answer.body);
        assert_eq!(answer.body.lines().count(), 1, "one line: {}", answer.body);
        if answer.status == 200 { String::new() } else { answer.body }
    }
}

async fn insert(database: &TestDatabase, account: &str, reference: &str) -> Uuid {
    sqlx::query_scalar("insert into paypoll.transactions (provider, account, reference) values ('khalti', $1, $2) returning id")
        .bind(account)
        .bind(reference)
        .fetch_one(&database.pool)
        .await
        .unwrap()
}

/// Makes the transaction due `seconds` ago, held by `owner`.
async fn age(database: &TestDatabase, id: Uuid, seconds: i32, owner: Option<i64>) {
    sqlx::query(
        "update paypoll.transactions set fence = fence + 1, next_poll_at = now() - make_interval(secs => $2), owner = $3 where id = $1",
    )
    .bind(id)
    .bind(f64::from(seconds))
    .bind(owner)
    .execute(&database.pool)
    .await
    .unwrap();
}

async fn execute(database: &TestDatabase, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&database.pool).await.unwrap();
}

#[tokio::test]
async fn a_process_is_alive_and_ready_while_nothing_is_late() {
    let database = database().await;
    let port = port(&database).await;
    insert(&database, "default", "JUST-CAME").await;
    assert_eq!(port.get("/healthz").await.status, 200);
    assert_eq!(port.unready().await, "");
}

#[tokio::test]
async fn without_database_or_lease_the_process_lives_but_is_not_ready() {
    let database = database().await;
    let port = port(&database).await;
    port.metrics.ready.store(false, Relaxed);
    assert!(port.unready().await.contains("holds no lease"), "{}", port.unready().await);
    assert_eq!(port.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_database_that_does_not_answer_makes_it_unready_and_its_numbers_absent() {
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let port = port_of(&format!("postgres://nobody@{nowhere}/none")).await;
    assert!(port.unready().await.contains("the database does not answer"));
    let metrics = port.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.body.contains("paypoll_in_flight") && !metrics.body.contains("paypoll_pending"), "{}", metrics.body);
    let page = port.get("/").await;
    assert!(page.status == 200 && page.body.contains("The database does not answer."), "{}", page.body);
}

#[tokio::test]
async fn a_row_that_nobody_takes_makes_it_unready_and_says_whose_it_is() {
    let database = database().await;
    let port = port(&database).await;
    let id = insert(&database, "other", "LATE").await;
    age(&database, id, 40, None).await;
    let why = port.unready().await;
    assert!(why.contains("khalti/other") && why.contains("ops.max_overdue (30 s)"), "{why}");
}

#[tokio::test]
async fn the_row_of_a_dead_replica_counts_as_nobodys() {
    let database = database().await;
    let port = port(&database).await;
    let id = insert(&database, "default", "ORPHAN").await;
    age(&database, id, 40, Some(77)).await;
    assert!(port.unready().await.contains("khalti/default"));
}

#[tokio::test]
async fn a_row_that_a_living_replica_holds_is_its_own_affair() {
    let database = database().await;
    execute(&database, "insert into paypoll.replicas (lease, complied) values ('15 s', 0)").await;
    let replica: i64 = sqlx::query_scalar("select id from paypoll.replicas").fetch_one(&database.pool).await.unwrap();
    let port = port(&database).await;
    let id = insert(&database, "default", "HELD").await;
    age(&database, id, 40, Some(replica)).await;
    assert_eq!(port.unready().await, "", "its row may lag");
    assert!(!port.get("/metrics").await.body.contains("paypoll_oldest_due_seconds{provider=\"khalti\"} 4"));
}

#[tokio::test]
async fn a_row_that_a_living_replica_owns_counts_once_it_lags_further_than_it_may() {
    let database = database().await;
    execute(&database, "insert into paypoll.replicas (lease, complied) values ('15 s', 0)").await;
    let replica: i64 = sqlx::query_scalar("select id from paypoll.replicas").fetch_one(&database.pool).await.unwrap();
    let port = port(&database).await;
    let id = insert(&database, "default", "FORGOTTEN").await;
    // A minute, and the owner's lease.
    age(&database, id, 80, Some(replica)).await;
    let why = port.unready().await;
    assert!(why.contains("khalti/default has been due for 8"), "{why}");
    let metrics = port.get("/metrics").await.body;
    assert!(metrics.contains("paypoll_oldest_due_seconds{provider=\"khalti\"} 8"), "{metrics}");
}

#[tokio::test]
async fn a_held_transaction_that_is_not_sent_makes_it_unready() {
    let database = database().await;
    let port = port(&database).await;
    port.metrics.accounts[0].oldest_due_us.store(31_000_000, Relaxed);
    assert!(port.unready().await.contains("has been due for 31 s"));
}

#[tokio::test]
async fn an_open_circuit_or_a_pause_is_the_providers_lateness() {
    let database = database().await;
    let port = port(&database).await;
    for account in ["default", "other"] {
        let id = insert(&database, account, "WAITS").await;
        age(&database, id, 4000, None).await;
    }
    execute(
        &database,
        "update paypoll.accounts set circuit_since = now(), circuit_reason = 'x', probe_at = now() where account = 'default';
         update paypoll.accounts set held_until = now() + interval '1 hour' where account = 'other'",
    )
    .await;
    port.metrics.accounts[0].circuit_open.store(true, Relaxed);
    port.metrics.accounts[0].oldest_due_us.store(4_000_000_000, Relaxed);
    port.metrics.accounts[1].paused.store(true, Relaxed);
    port.metrics.accounts[1].oldest_due_us.store(4_000_000_000, Relaxed);
    assert_eq!(port.unready().await, "");
    let metrics = port.get("/metrics").await.body;
    let line = |name: &str| metrics.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(
        line("paypoll_oldest_due_seconds").ends_with(" 4000") || line("paypoll_oldest_due_seconds").contains(" 4000."),
        "{metrics}"
    );
    assert_eq!(line("paypoll_behind_seconds"), "paypoll_behind_seconds{provider=\"khalti\"} 0");
}

#[tokio::test]
async fn metrics_have_the_public_names_and_labels() {
    let database = database().await;
    let port = port(&database).await;
    insert(&database, "default", "A").await;
    insert(&database, "other", "B").await;
    execute(
        &database,
        "insert into paypoll.transactions (provider, reference) values ('khalti', 'C');
         update paypoll.transactions set state = 'unresolved', reason = 'x' where reference = 'C';
         insert into paypoll.transactions (provider, reference, initiated_at) values ('khalti', 'D', now() + interval '1 day')",
    )
    .await;
    port.metrics.accounts[0].poll("succeeded", Duration::from_millis(3), Some(Duration::from_millis(70)));
    port.metrics.accounts[0].transition(paypoll::domain::State::Succeeded);
    port.metrics.accounts[1].circuit_open.store(true, Relaxed);
    port.metrics.set_unroutable(vec![Unroutable { provider: "dapi".into(), account: "nobody's".into(), count: 3 }]);
    let answer = port.get("/metrics").await;
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    for line in [
        "paypoll_polls_total{provider=\"khalti\",account=\"default\",outcome=\"succeeded\"} 1",
        "paypoll_polls_total{provider=\"khalti\",account=\"other\",outcome=\"timeout\"} 0",
        "paypoll_transitions_total{provider=\"khalti\",to=\"succeeded\"} 1",
        "paypoll_poll_lateness_seconds_bucket{provider=\"khalti\",le=\"0.005\"} 1",
        "paypoll_provider_latency_seconds_bucket{provider=\"khalti\",le=\"0.05\"} 0",
        "paypoll_pending{provider=\"khalti\",state=\"pending\"} 2",
        "paypoll_pending{provider=\"khalti\",state=\"action_required\"} 0",
        "paypoll_pending{provider=\"khalti\",state=\"unresolved\"} 1",
        "paypoll_pending{provider=\"khalti\",state=\"invalid\"} 1",
        "paypoll_in_flight{provider=\"khalti\"} 0",
        "paypoll_circuit_open{provider=\"khalti\",account=\"default\"} 0",
        "paypoll_circuit_open{provider=\"khalti\",account=\"other\"} 1",
        "paypoll_unroutable{provider=\"dapi\"} 3",
        "paypoll_parked{provider=\"khalti\",account=\"default\",state=\"unresolved\",reason=\"other\"} 1",
        "paypoll_parked{provider=\"khalti\",account=\"default\",state=\"invalid\",reason=\"other\"} 1",
        "paypoll_paused_seconds{provider=\"khalti\",account=\"default\"} 0",
        "paypoll_config_reloads_total{result=\"applied\"} 0",
        "paypoll_config_reloads_total{result=\"rejected\"} 0",
        "paypoll_events_total{event=\"commits_lost\"} 0",
        "# TYPE paypoll_oldest_due_seconds gauge",
    ] {
        assert!(answer.body.lines().any(|found| found == line), "{line} is missing in\n{}", answer.body);
    }
}

#[tokio::test]
async fn scraping_again_and_again_counts_once() {
    let database = database().await;
    let port = port(&database).await;
    let pending = |answer: Answer| answer.body.lines().find(|line| line.contains("state=\"pending\"")).map(str::to_owned);
    let first = pending(port.get("/metrics").await);
    insert(&database, "default", "NEW").await;
    assert!(first.is_some());
    assert_eq!(first, pending(port.get("/metrics").await), "counted anew within a moment");
}

#[tokio::test]
async fn the_page_shows_hostile_text_as_text_and_lets_a_browser_load_nothing() {
    let database = database().await;
    let port = port(&database).await;
    let hostile = "<script>alert(1)</script>\"'&\u{202e}x";
    let id = insert(&database, "default", hostile).await;
    age(&database, id, 100, None).await;
    let unroutable = Unroutable { provider: "khalti".into(), account: "<img src=x onerror=alert(1)>".into(), count: 1 };
    port.metrics.set_unroutable(vec![unroutable]);
    for path in ["/".to_owned(), format!("/transactions/{id}"), "/?q=%3Cscript%3Ealert(1)%3C/script%3E".to_owned()] {
        let answer = port.get(&path).await;
        let nonce = answer.head.split("style-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap().to_owned();
        assert!(answer.head.contains("content-security-policy: default-src 'none';"), "{}", answer.head);
        for header in ["x-content-type-options: nosniff", "referrer-policy: no-referrer", "cache-control: no-store"] {
            assert!(answer.head.contains(header), "{path}: {header}");
        }
        assert!(!answer.head.contains("unsafe"), "{}", answer.head);
        let ours = format!("<script nonce=\"{nonce}\">");
        assert_eq!(answer.body.matches("<script").count(), answer.body.matches(&ours).count(), "{path}: {}", answer.body);
        for foreign in ["<img", "onerror=\"", "\u{202e}", "http://", "https://"] {
            assert!(!answer.body.contains(foreign), "{path} has {foreign}: {}", answer.body);
        }
        assert!(answer.body.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{path}: {}", answer.body);
    }
}

#[tokio::test]
async fn a_reference_leads_to_its_payments_life_without_its_secrets() {
    let database = database().await;
    let port = port(&database).await;
    let id = insert(&database, "default", "A/B 1").await;
    sqlx::query(
        "update paypoll.transactions set fence = fence + 1, params = '{\"token\":\"s3cret-param\"}', details = '{\"x\":1}', attempts = 1 where id = $1",
    )
    .bind(id)
    .execute(&database.pool)
    .await
    .unwrap();
    execute(
        &database,
        "insert into paypoll.polls (transaction_id, provider, account, due_at, sent_at, latency_ms, http_status, outcome, error)
         select id, provider, account, now(), now(), 35, 503, 'server_error', 'HTTP 503 <b>' from paypoll.transactions;
         select paypoll.settle('khalti', 'default', 'A/B 1', 'succeeded', 'Completed', null, '{\"body\":\"<i>\"}')",
    )
    .await;
    let found = port.get("/?q=A%2FB+1").await;
    assert_eq!(found.status, 303);
    assert!(found.head.contains(&format!("location: /transactions/{id}")), "{}", found.head);
    assert_eq!(port.get(&format!("/?q={id}")).await.status, 303, "an id is found too");
    let life = port.get(&format!("/transactions/{id}")).await;
    assert_eq!(life.status, 200);
    for shown in ["succeeded is final", "HTTP 503 in 35 ms", "HTTP 503 &lt;b&gt;", "Completed", "&lt;i&gt;", "another writer, "] {
        assert!(life.body.contains(shown), "{shown} is missing in {}", life.body);
    }
    assert!(!life.body.contains("s3cret"), "{}", life.body);
}

#[tokio::test]
async fn what_cannot_be_found_is_said_so_and_several_hits_are_listed() {
    let database = database().await;
    let port = port(&database).await;
    for account in ["default", "other"] {
        insert(&database, account, "TWICE").await;
    }
    let several = port.get("/?q=TWICE").await;
    assert_eq!((several.status, several.body.matches("href=\"/transactions/").count()), (200, 2), "{}", several.body);
    assert_eq!(port.get("/?q=NOBODY").await.status, 404);
    assert_eq!(port.get(&format!("/transactions/{}", Uuid::nil())).await.status, 404);
    assert_eq!(port.get("/transactions/x").await.status, 404);
}

#[tokio::test]
async fn the_page_says_why_a_payment_waits() {
    let database = database().await;
    let port = port(&database).await;
    let id = insert(&database, "nobody", "WAITS").await;
    assert!(port.get(&format!("/transactions/{id}")).await.body.contains("no running daemon serves khalti/nobody"));
    execute(
        &database,
        "insert into paypoll.replicas (lease, complied, accounts) values ('15 s', 0, '[[\"khalti\",\"default\"]]');
         update paypoll.accounts set circuit_since = now(), circuit_reason = '20 polls in a row failed', probe_at = now()",
    )
    .await;
    let id = insert(&database, "default", "WAITS").await;
    let life = port.get(&format!("/transactions/{id}")).await.body;
    assert!(life.contains("circuit is open for ") && life.contains("(20 polls in a row failed)"), "{life}");
    let page = port.get("/").await.body;
    assert!(page.contains("khalti/default is not asked: circuit open for ") && page.contains("class=\"state bad\""), "{page}");
}

#[tokio::test]
async fn the_page_is_green_only_while_nothing_is_wrong() {
    let database = database().await;
    execute(
        &database,
        "insert into paypoll.replicas (lease, complied, accounts) values ('1 h', 0, '[[\"khalti\",\"default\"],[\"khalti\",\"other\"]]')",
    )
    .await;
    let port = port(&database).await;
    let page = port.get("/").await.body;
    assert!(page.contains("class=\"state good\"") && page.contains("All is well"), "{page}");
    let id = insert(&database, "default", "LATE").await;
    age(&database, id, 20, None).await;
    let late = crate::support::eventually("the page tells what is late", || async {
        let page = port.get("/").await.body;
        page.contains("khalti/default is behind").then_some(page)
    });
    let page = late.await;
    assert!(page.contains("class=\"state warn\"") && page.contains("1 payment late, by 2"), "{page}");
    assert_eq!(port.unready().await, "", "no reason yet to send traffic elsewhere");
}

#[tokio::test]
async fn a_pause_is_told_wherever_the_account_stands() {
    let database = database().await;
    let port = port(&database).await;
    let id = insert(&database, "default", "WAITS").await;
    age(&database, id, 4000, None).await;
    execute(
        &database,
        "insert into paypoll.replicas (lease, complied, accounts) values ('1 h', 0, '[[\"khalti\",\"default\"]]');
         select paypoll.pause('khalti', 'default', 'a change at <Khalti>', now() + interval '1 hour')",
    )
    .await;
    let page = port.get("/").await.body;
    assert!(page.contains("khalti/default is not asked: paused for ") && page.contains("a change at &lt;Khalti&gt;"), "{page}");
    let life = port.get(&format!("/transactions/{id}")).await.body;
    assert!(life.contains("khalti/default has been paused by "), "{life}");
    assert_eq!(port.unready().await, "", "nobody's fault");
    let metrics = port.get("/metrics").await.body;
    let paused = metrics.lines().find(|line| line.starts_with("paypoll_paused_seconds") && line.contains("default")).unwrap();
    assert!(!paused.ends_with(" 0"), "{paused}");
}

#[tokio::test]
async fn payments_are_listed_in_pages_that_can_be_linked_to_and_as_csv() {
    let database = database().await;
    let port = port(&database).await;
    execute(
        &database,
        "insert into paypoll.transactions (provider, account, reference) select 'khalti', 'default', 'R-' || lpad(n::text, 4, '0')
           from generate_series(1, 150) n;
         update paypoll.transactions set state = 'failed', reason = 'no money' where reference <= 'R-0120';
         insert into paypoll.transactions (provider, account, reference) values ('dapi', 'x', '=1+1')",
    )
    .await;
    let links = |page: &str| page.matches("href=\"/transactions/").count();
    let first = port.get("/transactions?state=failed").await;
    assert_eq!((first.status, links(&first.body)), (200, 100), "{}", first.body);
    let next = first.body.split("href=\"").find(|part| part.contains("Next page")).unwrap().split('"').next().unwrap();
    let second = port.get(&next.replace("&amp;", "&")).await;
    assert_eq!(links(&second.body), 20, "{}", second.body);
    assert_eq!(links(&port.get("/transactions?reason=no+money&account=default").await.body), 100);
    assert_eq!(links(&port.get("/transactions?state=pending").await.body), 31);
    assert_eq!(links(&port.get("/transactions?reference=R-001").await.body), 10);
    assert_eq!(port.get("/transactions?state=paid").await.status, 400);
    let csv = port.get("/transactions.csv?state=failed&state=pending").await;
    assert!(csv.head.contains("text/csv") && csv.body.contains("id,provider,account,reference"), "{}{}", csv.head, csv.body);
    assert!(csv.body.contains(",'=1+1,") && csv.body.matches("no money").count() == 120, "{}", csv.body);
}

#[tokio::test]
async fn a_search_that_hits_nothing_shows_what_begins_like_it_or_what_is_near() {
    let database = database().await;
    let port = port(&database).await;
    let id = insert(&database, "default", "ORDER-1001").await;
    insert(&database, "other", "ORDER-1002").await;
    let begins = port.get("/?q=ORDER-10").await;
    assert_eq!(begins.status, 200);
    assert!(begins.body.contains("ORDER-1001") && begins.body.contains("ORDER-1002"), "{}", begins.body);
    let near = port.get("/?q=ORDER-1001X").await;
    assert_eq!(near.status, 404);
    assert!(near.body.contains("Near it") && near.body.contains("ORDER-1001"), "{}", near.body);
    assert_eq!(port.get(&format!("/?q={}", &id.to_string()[..18])).await.status, 303, "an id is found by how it begins");
}

#[tokio::test]
async fn a_name_that_points_at_this_machine_gets_nothing() {
    let database = database().await;
    let port = port(&database).await;
    let ask = |host: &str, path: &str| format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let refused = port.ask(&ask("evil.example:9464", "/")).await;
    assert_eq!(refused.status, 421);
    assert!(!refused.body.contains("khalti"));
    assert_eq!(port.ask(&ask("evil.example", "/transactions/x")).await.status, 421);
    assert_eq!(port.ask(&ask("localhost:9464", "/")).await.status, 200);
    for path in ["/healthz", "/readyz", "/metrics", "/nowhere"] {
        assert_eq!(port.ask(&ask("evil.example", path)).await.status, 421, "{path}");
        assert_ne!(port.ask(&ask("127.0.0.1", path)).await.status, 421, "{path}");
    }
}

#[tokio::test]
async fn a_search_for_what_no_reference_can_hold_finds_nothing() {
    let database = database().await;
    let port = port(&database).await;
    let answer = port.get("/?q=%00").await;
    assert_eq!(answer.status, 404, "{}", answer.body);
    assert!(answer.body.contains("No payment has such a reference"), "{}", answer.body);
}

#[tokio::test]
async fn a_request_is_one_of_its_connection_short_and_comes_soon() {
    let database = database().await;
    let port = port(&database).await;
    let answer = port.ask(&format!("GET /healthz HTTP/1.1\r\nhost: {}\r\n\r\n", port.address)).await;
    assert!(answer.status == 200 && answer.head.contains("connection: close"), "{}", answer.head);
    let mut endless = TcpStream::connect(port.address).await.unwrap();
    let mut slow = TcpStream::connect(port.address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
    // Where it is not read any more, writing fails at some time.
    let line = format!("x-long: {}\r\n", "x".repeat(1000));
    endless.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let endless = async {
        for _ in 0..1000 {
            if endless.write_all(line.as_bytes()).await.is_err() {
                return;
            }
        }
        panic!("a megabyte of headers was taken");
    };
    let slow = async {
        let mut answer = Vec::new();
        let _ = slow.read_to_end(&mut answer).await;
    };
    tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(endless, slow) }).await.expect("both end");
}

#[tokio::test]
async fn nothing_can_be_changed_through_the_port() {
    let database = database().await;
    let port = port(&database).await;
    for path in ["/", "/transactions", "/transactions.csv", "/transactions/x", "/readyz", "/metrics"] {
        let request = format!("POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", port.address);
        assert_eq!(port.ask(&request).await.status, 405, "{path}");
    }
}

#[tokio::test]
async fn a_daemon_that_stops_says_so_until_it_has() {
    let database = database().await;
    let port = port(&database).await;
    assert_eq!(port.unready().await, "");
    port.stopping.cancel();
    assert_eq!(port.unready().await, "not ready: stopping: what is under way is waited for\n");
    assert_eq!(port.get("/healthz").await.status, 200, "no reason to end it sooner");
    assert_eq!(port.get("/metrics").await.status, 200, "its last polls are counted");
    port.stop.cancel();
    port.serving.await.unwrap();
    assert!(TcpStream::connect(port.address).await.is_err());
}

#[tokio::test]
async fn a_client_that_never_ends_its_request_does_not_keep_the_daemon_from_ending() {
    let database = database().await;
    let port = port(&database).await;
    let mut idler = TcpStream::connect(port.address).await.unwrap();
    idler.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
    // The port has taken the idler's connection when it answers a later one.
    assert_eq!(port.get("/healthz").await.status, 200);
    port.stop.cancel();
    tokio::time::timeout(Duration::from_secs(30), port.serving).await.expect("it ends").unwrap();
}

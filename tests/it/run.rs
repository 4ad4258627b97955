//! `paypoll run` in its environment: the reader of its log, the sender of its signals.

use crate::host::{Host, Reply, json};
use crate::process::Settings;
use crate::support::{TestDatabase, database, eventually};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Khalti, polled every half second, at a host that answers that all is still queued.
async fn queued() -> Host {
    Host::start(|heard| {
        let body = heard.text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let asked: Value = serde_json::from_str(body).unwrap_or_default();
        Reply::Keep(json(&json!({"status": true, "state": "Queued", "reference": asked["reference"], "response_id": 0})))
    })
    .await
}

fn settings(url: &str, host: SocketAddr, ops: SocketAddr) -> Settings {
    let mut settings = Settings::new(url);
    settings.set("OPS__LISTEN", &ops.to_string());
    for (key, value) in [
        ("ENABLED", "true"),
        ("BASE_URL", &*format!("http://{host}")),
        ("TIMEOUT", "1500ms"),
        ("ACCOUNTS__DEFAULT__TOKEN", "a-token"),
        ("RATE_LIMIT", "{ per_second = 1000, burst = 1000 }"),
        ("SCHEDULE", "{ first = \"0s\", phases = [{ every = \"500ms\" }], give_up_after = \"1h\" }"),
    ] {
        settings.set(&format!("PROVIDERS__KHALTI__{key}"), value);
    }
    settings
}

async fn insert(database: &TestDatabase, count: i32) {
    sqlx::query("insert into paypoll.transactions (provider, reference) select 'khalti', 'REF' || n || repeat('x', 450) from generate_series(1, $1) n")
        .bind(count)
        .execute(&database.pool)
        .await
        .unwrap();
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The body of an answer with status 200; `None` without one.
async fn got(ops: SocketAddr, path: &str) -> Option<String> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap();
    let answer = client.get(format!("http://{ops}{path}")).send().await.ok()?;
    if answer.status() == 200 { answer.text().await.ok() } else { None }
}

async fn metric(ops: SocketAddr, name: &str) -> Option<f64> {
    let text = got(ops, "/metrics").await?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// A pipe with a name, open at both ends, whose reader stalls.
struct Stalled {
    folder: PathBuf,
    pipe: File,
}

impl Stalled {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("paypoll-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("log");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let pipe = OpenOptions::new().read(true).write(true).open(path).unwrap();
        Self { folder, pipe }
    }

    /// A daemon whose log goes there.
    fn daemon(&self, settings: &Settings) -> Running {
        let mut command = settings.command(&["run"]);
        Running(command.stdout(self.pipe.try_clone().unwrap()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    async fn ends(&mut self) -> bool {
        eventually("the daemon ends", || std::future::ready(self.0.try_wait().unwrap())).await.success()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_reader_of_the_log_that_stalls_stops_nothing() {
    let (database, host, ops, stalled) = (database().await, queued().await, free_address(), Stalled::new("stalled"));
    insert(&database, 300).await;
    let mut settings = settings(&database.url, host.address, ops);
    let mut daemon = stalled.daemon(settings.set("LOG__FILTER", "trace"));
    eventually("lines are dropped, and counted", || async {
        (metric(ops, "paypoll_log_lines_dropped_total").await? > 0.0).then_some(())
    })
    .await;
    let asked = host.heard().len();
    let beat = async || {
        sqlx::query_scalar::<_, f64>("select extract(epoch from max(heartbeat_at))::float8 from paypoll.replicas")
            .fetch_one(&database.pool)
            .await
            .unwrap()
    };
    let beaten = beat().await;
    eventually("it goes on", || async {
        let goes_on = host.heard().len() > asked + 40 && beat().await > beaten + 1.5;
        (goes_on && got(ops, "/healthz").await.is_some() && got(ops, "/readyz").await.is_some()).then_some(())
    })
    .await;
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    assert!(daemon.ends().await);
    assert!(begun.elapsed() < Duration::from_secs(15), "a stop waits a moment for the log, not for ever: {:?}", begun.elapsed());
    let held: i64 = sqlx::query_scalar("select count(*) from paypoll.transactions where owner is not null")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!(held, 0);
}

#[tokio::test]
async fn once_the_log_flows_again_it_tells_how_much_is_missing_and_its_last_line_is_not() {
    let (database, host, ops, stalled) = (database().await, queued().await, free_address(), Stalled::new("resumed"));
    insert(&database, 300).await;
    let mut settings = settings(&database.url, host.address, ops);
    let mut daemon = stalled.daemon(settings.set("LOG__FILTER", "trace"));
    let dropped = eventually("lines are dropped", || async {
        metric(ops, "paypoll_log_lines_dropped_total").await.filter(|count| *count > 0.0)
    })
    .await;
    let lines = Arc::new(Mutex::new(Vec::<Value>::new()));
    let (written, pipe) = (lines.clone(), stalled.pipe.try_clone().unwrap());
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            written.lock().unwrap().push(serde_json::from_str(&line).unwrap());
        }
    });
    let told = |event: &'static str| {
        let lines = lines.clone();
        async move { lines.lock().unwrap().iter().find(|line| line["event"] == event).cloned() }
    };
    let line = eventually("it tells", || told("log_lines_dropped")).await;
    assert!(line["count"].as_f64().unwrap() >= dropped && line["level"] == "warn", "{line}");
    daemon.signal(Signal::TERM);
    assert!(daemon.ends().await);
    eventually("the last line", || told("daemon_stopped")).await;
}

/// The daemon while it waits for a database that takes connections and never says a word.
async fn connecting(settings: &mut Settings) -> (crate::process::Process, tokio::net::TcpStream) {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    settings.set("DATABASE__URL", &format!("postgres://nobody@{}/none", silent.local_addr().unwrap()));
    let daemon = settings.run(&[]);
    let (connection, _) = silent.accept().await.unwrap();
    (daemon, connection)
}

#[tokio::test]
async fn a_stop_is_heard_while_the_database_is_still_waited_for() {
    let mut settings = settings("postgres://nobody@127.0.0.1:1/none", free_address(), free_address());
    settings.set("OPS__LISTEN", "");
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let (mut daemon, _silent) = connecting(&mut settings).await;
        let begun = Instant::now();
        daemon.signal(signal);
        let (ended, error) = daemon.ends().await;
        assert!(ended.success(), "{signal:?}: {ended} {error}");
        assert!(begun.elapsed() < Duration::from_secs(6), "{signal:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn signals_that_mean_nothing_do_nothing_and_all_that_end_a_process_end_it_cleanly() {
    let (database, host, ops) = (database().await, queued().await, free_address());
    insert(&database, 5).await;
    for signal in [Signal::QUIT, Signal::INT] {
        let mut daemon = settings(&database.url, host.address, ops).run(&[]);
        daemon.tells("daemon_started").await;
        daemon.signal(Signal::USR1);
        daemon.signal(Signal::USR2);
        let asked = host.heard().len();
        eventually("it goes on", || std::future::ready((host.heard().len() > asked + 10).then_some(()))).await;
        let begun = Instant::now();
        daemon.signal(signal);
        let (ended, error) = daemon.ends().await;
        assert!(ended.success() && daemon.told("daemon_stopped").len() == 1, "{signal:?}: {ended} {error}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{signal:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_second_interrupt_ends_at_once() {
    let (database, host, ops) = (database().await, Host::start(|_| Reply::Hang).await, free_address());
    insert(&database, 5).await;
    let mut settings = settings(&database.url, host.address, ops);
    settings.set("PROVIDERS__KHALTI__TIMEOUT", "60s").set("WORKER__LEASE", "90s").set("WORKER__SHUTDOWN_GRACE", "60s");
    let mut daemon = settings.run(&[]);
    eventually("a poll is under way", || std::future::ready((!host.heard().is_empty()).then_some(()))).await;
    daemon.signal(Signal::INT);
    daemon.tells("daemon_stopping").await;
    daemon.signal(Signal::INT);
    assert_eq!(daemon.ends().await.0.code(), Some(130));
}

#[tokio::test]
async fn housekeeping_that_fails_is_told_once_and_one_that_takes_long_holds_up_no_stop() {
    let (database, host, ops) = (database().await, queued().await, free_address());
    let prune = |body: &str| {
        let create = "create or replace function paypoll.prune_journal(first date) returns integer language plpgsql as";
        sqlx::AssertSqlSafe(format!("{create} $$ begin {body} end $$"))
    };
    let settings = settings(&database.url, host.address, ops);
    sqlx::raw_sql(prune("raise exception 'somebody reads it';")).execute(&database.pool).await.unwrap();
    let mut daemon = settings.run(&[]);
    let line = daemon.tells("maintenance_failed").await;
    assert_eq!((&line["level"], &line["error"]), (&"warn".into(), &"somebody reads it".into()), "{line}");
    assert!(line["message"].as_str().unwrap().contains("7 more days"), "{line}");
    eventually("it is counted", || async { (metric(ops, "paypoll_journal_days_ahead").await? == 7.0).then_some(()) }).await;
    assert!(daemon.terminate().await.0.success());
    sqlx::raw_sql(prune("perform pg_catalog.pg_sleep(9); return 0;")).execute(&database.pool).await.unwrap();
    let mut daemon = settings.run(&[]);
    eventually("it takes long", || async {
        let running = "select count(*) from pg_stat_activity where query like '%prune_journal%' and wait_event = 'PgSleep'";
        (sqlx::query_scalar::<_, i64>(running).fetch_one(&database.pool).await.unwrap() > 0).then_some(())
    })
    .await;
    let begun = Instant::now();
    assert!(daemon.terminate().await.0.success());
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn accounts_that_a_feeder_invents_are_told_of_in_sum() {
    let (database, host, ops) = (database().await, queued().await, free_address());
    sqlx::query(
        "insert into paypoll.transactions (provider, account, reference) select 'khalti', 'invented-' || n, 'REF' from generate_series(1, 40) n",
    )
    .execute(&database.pool)
    .await
    .unwrap();
    let mut daemon = settings(&database.url, host.address, ops).run(&[]);
    let sum =
        eventually("the sum", || async { daemon.told("unroutable").into_iter().find(|line| line.get("account").is_none()) }).await;
    assert!(sum["message"].as_str().unwrap().contains("of 30 more accounts"), "{sum}");
    assert_eq!((daemon.told("unroutable").len(), &sum["count"]), (11, &30.into()));
    assert!(daemon.terminate().await.0.success());
}

/// The daemon with no more descriptors than that.
fn limited(settings: &Settings, descriptors: u32) -> crate::process::Process {
    settings.run_through(&["sh", "-c", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"")])
}

#[tokio::test]
async fn whoever_holds_on_to_the_ops_port_takes_nothing_from_polling() {
    let (database, host, ops) = (database().await, queued().await, free_address());
    insert(&database, 40).await;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let mut daemon = limited(&settings(&database.url, host.address, ops), 1024);
    daemon.tells("daemon_started").await;
    let mut idlers = Vec::new();
    for _ in 0..1100 {
        let mut idler = tokio::net::TcpStream::connect(ops).await.unwrap();
        // The port may have given it up already.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut idler, b"GET / HTTP/1.1\r\nhost: ").await;
        idlers.push(idler);
    }
    let asked = host.heard().len();
    eventually("it goes on, and whoever asks is answered", || async {
        (got(ops, "/healthz").await.is_some() && host.heard().len() > asked + 200).then_some(())
    })
    .await;
    let held: usize = std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap().count();
    assert!(held < 300, "{held} descriptors");
    assert!(daemon.told("circuit_opened").is_empty() && daemon.told("poll_failed").is_empty());
    drop(idlers);
    assert!(daemon.terminate().await.0.success());
}

#[tokio::test]
async fn what_could_not_be_sent_for_want_of_descriptors_is_no_poll() {
    let (database, host, ops) = (database().await, Host::start(|_| Reply::Hang).await, free_address());
    insert(&database, 200).await;
    let mut settings = settings(&database.url, host.address, ops);
    settings.set("OPS__LISTEN", "").set("PROVIDERS__KHALTI__CIRCUIT", "{ failures = 1000000, probe_after = \"1s\" }");
    settings.set("DATABASE__MAX_CONNECTIONS", "4").set("PROVIDERS__KHALTI__RETRY", "{ initial = \"500ms\", max = \"1s\" }");
    let mut daemon = limited(&settings, 48);
    let told = eventually("it is told", || async {
        daemon.told("poll_failed").into_iter().find(|line| line.get("transaction_id").is_none())
    })
    .await;
    assert!(told["error"].as_str().unwrap().contains("Too many open files"), "{told}");
    let count = async |sql: &'static str| sqlx::query_scalar::<_, i64>(sql).fetch_one(&database.pool).await.unwrap();
    eventually("polls are journaled", || async { (count("select count(*) from paypoll.polls").await > 20).then_some(()) }).await;
    assert_eq!(count("select count(*) from paypoll.polls where outcome <> 'timeout'").await, 0);
    assert!(i64::try_from(host.heard().len()).unwrap() >= count("select count(*) from paypoll.polls").await);
    drop(daemon.terminate().await);
}

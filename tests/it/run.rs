//! `paypoll run` among its surroundings: whoever reads its log, whoever sends it signals.

use crate::host::{Host, Reply, json};
use crate::process::Settings;
use crate::support::{TestDatabase, database, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Khalti, asked every half second, at a host that answers that all is still queued.
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

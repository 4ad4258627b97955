//! SIGHUP: the configuration is read anew, and what has changed is in force without a restart; what
//! is wrong changes nothing.

use crate::host::{Heard, Host, Reply, json};
use crate::process::{Process, Settings};
use crate::support::{TestDatabase, database, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Khalti, at a host that answers that all is still queued.
async fn queued() -> Host {
    Host::start(|heard| {
        let reference = body(heard)["reference"].clone();
        Reply::Keep(json(&json!({"status": true, "state": "Queued", "reference": reference, "response_id": 0})))
    })
    .await
}

fn body(heard: &Heard) -> Value {
    let body = heard.text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).unwrap_or_default()
}

/// A daemon with a configuration in files that the test writes.
struct Stage {
    database: TestDatabase,
    host: Host,
    folder: PathBuf,
    daemon: Process,
}

impl Stage {
    async fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (database, host) = (database().await, queued().await);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("paypoll-reload-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("paypoll.toml");
        std::fs::write(folder.join("token"), "canary-one").unwrap();
        std::fs::write(&file, configuration(&folder, &host, "500ms", "")).unwrap();
        sqlx::query(
            "insert into paypoll.transactions (provider, account, reference)
             select 'khalti', account, account || n from unnest('{default,second}'::text[]) account, generate_series(1, 10) n",
        )
        .execute(&database.pool)
        .await
        .unwrap();
        let daemon = Settings::new(&database.url).run(&["--config", file.to_str().unwrap()]);
        let stage = Self { database, host, folder, daemon };
        stage.asks("canary-one").await;
        stage
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.folder.join(file), text).unwrap();
    }

    fn configure(&self, every: &str, more: &str) {
        self.write("paypoll.toml", &configuration(&self.folder, &self.host, every, more));
    }

    /// SIGHUP, and the line that says what came of it.
    async fn reload(&self, event: &str) -> Value {
        let before = self.daemon.told(event).len();
        self.daemon.signal(Signal::HUP);
        eventually(event, || async { self.daemon.told(event).into_iter().nth(before) }).await
    }

    /// Waits until some more requests bear this token.
    async fn asks(&self, token: &str) {
        let asked = || self.host.heard().iter().filter(|heard| body(heard)["token"] == token).count();
        let before = asked();
        eventually("polls go on", || std::future::ready((asked() >= before + 25).then_some(()))).await;
    }

    /// Stops, and fails the test where a request is not in the journal, came before its interval
    /// was over, or a secret was printed.
    async fn settle(mut self) {
        let (ended, error) = self.daemon.terminate().await;
        assert!(ended.success(), "{ended} {error}");
        let (heard, polls) = (self.host.heard(), "select count(*) from paypoll.polls");
        let journaled: i64 = sqlx::query_scalar(polls).fetch_one(&self.database.pool).await.unwrap();
        let attempts = "select sum(attempts)::bigint from paypoll.transactions";
        let attempts: i64 = sqlx::query_scalar(attempts).fetch_one(&self.database.pool).await.unwrap();
        assert_eq!((journaled, attempts), (heard.len() as i64, heard.len() as i64));
        for (at, later) in heard.iter().enumerate() {
            let same = |earlier: &&Heard| body(earlier)["reference"] == body(later)["reference"];
            if let Some(earlier) = heard[..at].iter().rev().find(same) {
                let gap = later.at - earlier.at;
                assert!(gap > Duration::from_millis(450), "{gap:?} between two polls of {}", body(later)["reference"]);
            }
        }
        let told = format!("{:?}{error}", self.daemon.lines());
        assert!(!told.contains("canary"), "{told}");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Transactions of two accounts, of which one is configured at first.
fn configuration(folder: &Path, host: &Host, every: &str, more: &str) -> String {
    format!(
        "[providers.khalti]\nenabled = true\nbase_url = \"http://{}\"\ntimeout = \"1500ms\"\n\
         rate_limit = {{ per_second = 1000, burst = 1000 }}\n\
         schedule = {{ first = \"0s\", phases = [{{ every = \"{every}\" }}], give_up_after = \"1h\" }}\n\
         [providers.khalti.accounts.default]\ntoken_file = {:?}\n{more}",
        host.address,
        folder.join("token").display().to_string()
    )
}

const SECOND: &str = "[providers.khalti.accounts.second]\ntoken = \"canary-second\"\n";

#[tokio::test]
async fn a_new_secret_schedule_and_account_are_in_force_and_named_without_their_values() {
    let stage = Stage::new().await;
    stage.write("token", "canary-two");
    stage.configure("600ms", SECOND);
    let told = stage.reload("config_reloaded").await;
    assert_eq!(
        told["changed"],
        "providers.khalti.accounts.default.token_file, providers.khalti.accounts.second.token, providers.khalti.schedule.phases"
    );
    assert_eq!(told["restart"], "");
    let one = || stage.host.heard().iter().filter(|heard| body(heard)["token"] == "canary-one").count();
    let before = one();
    tokio::join!(stage.asks("canary-two"), stage.asks("canary-second"));
    assert_eq!(one(), before, "the old secret is not sent any more");
    // An account that is gone is left alone.
    stage.configure("600ms", "");
    assert_eq!(stage.reload("config_reloaded").await["changed"], "providers.khalti.accounts.second.token");
    stage.asks("canary-two").await;
    assert_eq!(stage.daemon.told("daemon_started").len(), 1);
    assert_eq!(stage.daemon.told("daemon_stopping").len(), 0);
    stage.settle().await;
}

#[tokio::test]
async fn a_configuration_that_is_wrong_changes_nothing_and_one_that_is_mended_is_taken() {
    let stage = Stage::new().await;
    for (wrong, why) in [
        ("[providers.khalti", "no valid TOML"),
        ("[providers.khalti]\nevry = 1", "evry"),
        ("[providers.khalti]\nenabled = false", "no provider is enabled any more"),
    ] {
        stage.write("paypoll.toml", wrong);
        let told = stage.reload("config_rejected").await;
        assert!(told["error"].as_str().unwrap().contains(why), "{told}");
    }
    stage.configure("500ms", "");
    std::fs::remove_file(stage.folder.join("token")).unwrap();
    let told = stage.reload("config_rejected").await;
    assert!(told["error"].as_str().unwrap().contains("token_file"), "{told}");
    stage.asks("canary-one").await;
    stage.write("token", "canary-one");
    assert_eq!(stage.reload("config_reloaded").await["changed"], "");
    stage.configure("500ms", "[database]\nmax_connections = 3\n[log]\nfilter = \"debug\"\n");
    let told = stage.reload("config_reloaded").await;
    assert_eq!((&told["changed"], &told["restart"]), (&json!("log.filter"), &json!("database.max_connections")));
    eventually("polls are in the log", || async { (stage.daemon.told("poll").len() > 20).then_some(()) }).await;
    stage.settle().await;
}

#[tokio::test]
async fn two_reloads_in_a_row_end_with_what_was_written_last() {
    let stage = Stage::new().await;
    for token in ["canary-two", "canary-three", "canary-four"] {
        stage.write("token", token);
        stage.daemon.signal(Signal::HUP);
    }
    stage.asks("canary-four").await;
    stage.settle().await;
}

#[tokio::test]
async fn a_reload_while_the_database_is_away_waits_until_it_is_back() {
    let stage = Stage::new().await;
    let (head, rest) = stage.database.url.rsplit_once('?').unwrap();
    let (server, name) = head.rsplit_once('/').unwrap();
    let mut admin = PgConnection::connect(&format!("{server}/postgres?{rest}")).await.unwrap();
    let allow = |yes: bool| AssertSqlSafe(format!("alter database {name} with allow_connections {yes}"));
    admin.execute(allow(false)).await.unwrap();
    let end = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");
    admin.execute(AssertSqlSafe(end)).await.unwrap();
    stage.daemon.tells("database_lost").await;
    stage.write("token", "canary-two");
    stage.daemon.signal(Signal::HUP);
    admin.execute(allow(true)).await.unwrap();
    stage.asks("canary-two").await;
    stage.daemon.tells("config_reloaded").await;
    stage.daemon.tells("database_back").await;
    stage.settle().await;
}

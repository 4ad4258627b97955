//! What a scenario plays on: a database, the providers, replicas, and a load that keeps them busy
//! at a steady pace.

use crate::network::{Proxy, Target};
use crate::support::{self, Provider, TOLERANCE, TestDatabase, eventually};
use chrono::{DateTime, Utc};
use paypoll::postgres::{self, PrivatePostgres};
use paypoll::simulator::{self, Budget, Options, PROVIDERS};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// The rules run this many times as fast: DusuPay's 5 minutes are half a second, and so is every
/// other interval here.
const SPEED: f64 = 600.0;
/// Polls a second of one transaction: every plan here has one interval.
const PACE: usize = 2;
/// How long a replica's claims outlive its last heartbeat.
pub(crate) const LEASE: Duration = Duration::from_secs(4);
/// DusuPay refuses and records what comes too early; Dapi bears with nothing parallel.
const POLLED: [&str; 2] = ["dusupay", "dapi"];
/// More than any scenario needs that is not about budgets.
const AMPLE: Budget = Budget { per_second: 1000, burst: 1000 };

/// A server of the scenario's own, for trouble that concerns all of it.
pub(crate) async fn server(settings: &[(&str, &str)]) -> (PrivatePostgres, TestDatabase) {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let options = postgres::Options { settings, ..postgres::Options::default() };
    let started = tokio::task::spawn_blocking(move || PrivatePostgres::start_with(&options));
    let postgres = started.await.unwrap().map_err(anyhow::Error::from).unwrap();
    let admin = PgPoolOptions::new().connect(&postgres.admin_url()).await.unwrap();
    admin.execute("create database paypoll").await.unwrap();
    admin.close().await;
    let url = postgres.url("paypoll");
    paypoll::store::migrate(&url).await.unwrap();
    let pool = PgPoolOptions::new().max_connections(3).connect(&url).await.unwrap();
    (postgres, TestDatabase { url, pool })
}

pub(crate) struct Stage {
    pub(crate) pool: PgPool,
    pub(crate) provider: Provider,
    pub(crate) settings: BTreeMap<String, String>,
    url: String,
}

impl Stage {
    /// On a database of its own, of a server that other scenarios use too.
    pub(crate) async fn new() -> Self {
        Self::over(support::database().await)
    }

    pub(crate) fn over(database: TestDatabase) -> Self {
        Self::with_budget(database, AMPLE)
    }

    pub(crate) fn with_budget(database: TestDatabase, budget: Budget) -> Self {
        let options = Options { speed: SPEED, tolerance: TOLERANCE, budgets: [budget; PROVIDERS.len()], ..Options::default() };
        let provider = Provider::start_with((Ipv4Addr::LOCALHOST, 0).into(), options);
        let mut stage = Self { pool: database.pool, provider, settings: BTreeMap::new(), url: database.url.clone() };
        stage.set("DATABASE__URL", &database.url);
        stage.set("LOG__FORMAT", "json");
        stage.set("OPS__LISTEN", "");
        stage.set("WORKER__LEASE", &format!("{}s", LEASE.as_secs()));
        for provider in POLLED {
            stage.set_of(provider, "ENABLED", "true");
            stage.set_of(provider, "TIMEOUT", "1s");
            stage.set_of(provider, "MAX_IN_FLIGHT", "1000");
            let Budget { per_second, burst } = budget;
            stage.set_of(provider, "RATE_LIMIT", &format!("{{ per_second = {per_second}, burst = {burst} }}"));
            stage.set_of(provider, "SCHEDULE", "{ first = \"2m\", phases = [{ every = \"5m\" }], give_up_after = \"72h\" }");
            for (key, value) in simulator::account(provider) {
                stage.set_of(provider, &format!("ACCOUNTS__DEFAULT__{}", key.to_uppercase()), value);
            }
        }
        stage.ask_at(stage.provider.address);
        stage
    }

    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.settings.insert(format!("PAYPOLL__{key}"), value.to_owned());
    }

    /// One key of every provider that is polled.
    pub(crate) fn set_of_all(&mut self, key: &str, value: &str) {
        POLLED.iter().for_each(|provider| self.set_of(provider, key, value));
    }

    fn set_of(&mut self, provider: &str, key: &str, value: &str) {
        self.set(&format!("PROVIDERS__{}__{key}", provider.to_uppercase()), value);
    }

    /// Replicas that start from now on poll the providers at this address.
    pub(crate) fn ask_at(&mut self, address: SocketAddr) {
        self.set_of_all("BASE_URL", &format!("http://{address}"));
    }

    /// Where the database's server is reached.
    fn server(&self) -> Target {
        let folder = self.url.split_once("?host=").unwrap().1.split('&').next().unwrap();
        Target::Unix(Path::new(folder).join(".s.PGSQL.5432"))
    }

    /// Replicas that start from now on reach the database through this.
    pub(crate) fn database_proxy(&mut self) -> Proxy {
        let (head, _) = self.url.split_once("?host=").unwrap();
        let proxy = Proxy::before(self.server());
        let name = head.rsplit('/').next().unwrap();
        self.set("DATABASE__URL", &format!("postgres://postgres@{}/{name}?sslmode=disable", proxy.address));
        proxy
    }

    /// The database is served by another server from now on: for the test, and for connections
    /// through the proxy.
    pub(crate) async fn move_to(&mut self, postgres: &PrivatePostgres, proxy: &Proxy) {
        self.pool.close().await;
        self.url = postgres.url("paypoll");
        self.pool = PgPoolOptions::new().max_connections(3).connect(&self.url).await.unwrap();
        proxy.lead_to(self.server());
    }

    /// Replicas that start from now on know all of these servers, in this order, and want the one
    /// that takes writes.
    pub(crate) fn database_hosts(&mut self, servers: &[&PrivatePostgres]) {
        let folders: Vec<String> = servers.iter().map(|server| server.folder().display().to_string()).collect();
        let folders = folders.join(",");
        let url = format!("postgres://postgres@localhost/paypoll?host={folders}&target_session_attrs=read-write");
        self.set("DATABASE__URL", &url);
    }

    /// Replicas that start from now on reach the database without a detour.
    pub(crate) fn database_direct(&mut self) {
        let url = self.url.clone();
        self.set("DATABASE__URL", &url);
    }

    /// Replicas that start from now on reach the providers through this.
    pub(crate) fn provider_proxy(&mut self) -> Proxy {
        let proxy = Proxy::before(Target::Tcp(self.provider.address));
        self.ask_at(proxy.address);
        proxy
    }

    /// A replica as users start it.
    pub(crate) fn replica(&self) -> Replica {
        let speed = SPEED.to_string();
        let mut command = self.paypoll(&["run", "--speed", &speed]);
        Replica::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))
    }

    /// A replica that serves these accounts of the configuration and leaves the others alone.
    pub(crate) fn replica_of(&self, accounts: &str) -> Replica {
        let speed = SPEED.to_string();
        let mut command = self.paypoll(&["run", "--speed", &speed, "--accounts", accounts]);
        Replica::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))
    }

    /// `paypoll audit`, which must find no breach.
    pub(crate) async fn audit(&self) -> Output {
        let speed = SPEED.to_string();
        let mut command = self.paypoll(&["audit", "--speed", &speed]);
        command.env("PAYPOLL__DATABASE__URL", &self.url);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    fn paypoll(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paypoll"));
        command.args(arguments).envs(&self.settings).env_remove("DATABASE_URL");
        command
    }

    /// Transactions that are decided at their `polls`-th poll, each of them in one of three ways.
    pub(crate) async fn insert(&self, count: usize, polls: u32) -> Vec<Inserted> {
        assert!(polls > 7, "the third script needs more");
        let scripts = [format!("ok{polls}"), format!("fail{polls}"), format!("action3x4-ok{}", polls - 6)];
        self.insert_scripts(count, &scripts.each_ref().map(String::as_str)).await
    }

    /// As many transactions, which take turns at the scripts and at the providers.
    pub(crate) async fn insert_scripts(&self, count: usize, scripts: &[&str]) -> Vec<Inserted> {
        let now = DateTime::<Utc>::from(SystemTime::now());
        self.store((0..count).map(|turn| Inserted::new(turn, scripts, now)).collect(), now).await
    }

    /// As many transactions of one provider alone.
    pub(crate) async fn insert_of(&self, provider: &str, count: usize, scripts: &[&str]) -> Vec<Inserted> {
        let now = DateTime::<Utc>::from(SystemTime::now());
        let rows = (0..count * POLLED.len()).filter(|turn| POLLED[turn % POLLED.len()] == provider);
        self.store(rows.map(|turn| Inserted::new(turn, scripts, now)).collect(), now).await
    }

    async fn store(&self, rows: Vec<Inserted>, now: DateTime<Utc>) -> Vec<Inserted> {
        let column = |of: fn(&Inserted) -> String| rows.iter().map(of).collect::<Vec<_>>();
        sqlx::query(
            "insert into paypoll.transactions (id, provider, reference, params, initiated_at)
             select id, provider, reference, params::jsonb, $5
               from unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) as x (id, provider, reference, params)",
        )
        .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
        .bind(column(|row| row.provider.to_owned()))
        .bind(column(|row| row.reference.clone()))
        .bind(column(|row| row.params.to_string()))
        .bind(now)
        .execute(&self.pool)
        .await
        .unwrap();
        rows
    }

    /// Waits until the load has run for some seconds, so that its pace is known.
    pub(crate) async fn steady(&self, inserted: &[Inserted]) {
        self.asked((inserted.len() * PACE * 5 / 2) as u64).await;
    }

    /// Waits until the simulator has seen this many more requests.
    pub(crate) async fn asked(&self, more: u64) {
        let until = self.requests() + more;
        eventually("the providers are asked", || async { (self.requests() >= until).then_some(()) }).await;
    }

    /// Requests that the simulator has seen.
    pub(crate) fn requests(&self) -> u64 {
        self.provider.simulator.report().requests
    }

    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    /// Ends every connection of every replica; says how many there were.
    pub(crate) async fn kill_backends(&self) -> i64 {
        self.count(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
              where datname = current_database() and application_name = 'paypoll'",
        )
        .await
    }

    /// Says something to the server that no pool of ours must remember.
    pub(crate) async fn tell(&self, statement: String) {
        self.pool.execute(AssertSqlSafe(statement)).await.unwrap();
    }
}

/// A transaction, and where its script leads.
pub(crate) struct Inserted {
    pub(crate) id: Uuid,
    pub(crate) provider: &'static str,
    pub(crate) reference: String,
    pub(crate) expected: &'static str,
    params: Value,
}

impl Inserted {
    fn new(turn: usize, scripts: &[&str], now: DateTime<Utc>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let provider = POLLED[turn % POLLED.len()];
        let script = scripts[turn / POLLED.len() % scripts.len()];
        let script = if provider == "dusupay" { format!("t{}-{script}", now.timestamp_millis()) } else { script.to_owned() };
        let reference = simulator::reference(provider, serial, &script);
        Self {
            id: Uuid::from_u128(u128::from(serial)),
            provider,
            expected: simulator::expected_state(provider, &reference).unwrap(),
            params: simulator::params(provider, serial),
            reference,
        }
    }
}

/// Reads our end of a pipe and, when that closes without a word, kills the replica: so it dies with
/// the test, however that ends.
const LEASH: &str = r#"trap '' HUP INT TERM; read -r _ || kill -KILL "$1""#;

/// A daemon in a process of its own, and its log.
pub(crate) struct Replica {
    child: Child,
    leash: Child,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Replica {
    fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let pid = child.id().to_string();
        let leash = Command::new("/bin/sh").args(["-c", LEASH, "leash", &pid]).stdin(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, written) = (BufReader::new(child.stdout.take().unwrap()).lines(), log.clone());
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                written.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, leash, log }
    }

    pub(crate) fn told(&self, event: &str) -> Vec<Value> {
        self.log.lock().unwrap().iter().filter(|line| line["event"] == event).cloned().collect()
    }

    pub(crate) async fn tells(&self, event: &str) {
        self.tells_times(event, 1).await;
    }

    pub(crate) async fn tells_times(&self, event: &str, times: usize) {
        eventually(event, || async { (self.told(event).len() >= times).then_some(()) }).await;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// `kill -9`.
    pub(crate) fn kill(self) {}
}

impl Drop for Replica {
    fn drop(&mut self) {
        // The leash is let go before the id may become another process's.
        let _ = self.leash.stdin.take().map(|mut leash| leash.write_all(b"\n"));
        let _ = self.leash.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = self.log.lock().unwrap();
            let tail = log.iter().filter(|line| line["event"] != "transition" && line["event"] != "poll_failed");
            tail.for_each(|line| println!("{line}"));
        }
    }
}

//! One PostgreSQL per test process, one database per test.
//!
//! `cargo test` runs all tests in one process: they share a cluster. `cargo nextest` gives every
//! test its own process, and so its own cluster, a second each. Either way nothing is left behind:
//! the cluster ends with the process, however that ends.

use paypoll::postgres::PrivatePostgres;
use paypoll::simulator::{Options, Simulator};
use serde_json::Value;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// Never dropped, being static; the end of the process ends it.
static CLUSTER: LazyLock<PrivatePostgres> = LazyLock::new(|| PrivatePostgres::start().map_err(anyhow::Error::from).unwrap());

/// The database that every test's own is copied from.
const TEMPLATE: &str = "paypoll_template";

/// A database of the test's own.
pub(crate) struct TestDatabase {
    /// For whatever connects by itself: the daemon, a command, `psql`.
    pub(crate) url: String,
    /// For the test.
    pub(crate) pool: PgPool,
}

/// A new database with the current schema.
pub(crate) async fn database() -> TestDatabase {
    static SCHEMA: OnceCell<()> = OnceCell::const_new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    SCHEMA.get_or_init(create_template).await;
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    create_database(&name, TEMPLATE).await;
    let url = CLUSTER.url(&name);
    let pool = PgPoolOptions::new().max_connections(8).connect(&url).await.unwrap();
    TestDatabase { url, pool }
}

/// The template, migrated once.
async fn create_template() {
    create_database(TEMPLATE, "template1").await;
    migrate(&CLUSTER.url(TEMPLATE)).await;
}

/// Brings the template's schema to date. It must have closed its connections when it returns: a
/// template with one cannot be copied.
async fn migrate(url: &str) {
    paypoll::store::migrate(url).await.unwrap();
}

async fn create_database(name: &str, template: &str) {
    // The cluster starts on first use, which blocks.
    let url = tokio::task::spawn_blocking(|| CLUSTER.admin_url()).await.unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute(AssertSqlSafe(format!("create database {name} template {template}"))).await.unwrap();
    connection.close().await.unwrap();
}

/// A new database without any schema.
pub(crate) async fn empty_database() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("empty_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    create_database(&name, "template1").await;
    CLUSTER.url(&name)
}

/// Far longer than anything takes that is waited for.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Repeats `look` until it finds something; fails the test when it never does.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + CONDITION_TIMEOUT;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "this never happened: {what}");
    }
}

/// By how much an arrival at the simulator may be late on a machine that does other things too.
pub(crate) const TOLERANCE: Duration = Duration::from_millis(40);

/// A simulator on a thread of its own. It ends with the test.
pub(crate) struct Provider {
    pub(crate) simulator: Simulator,
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
}

impl Provider {
    pub(crate) fn start(speed: f64) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), speed)
    }

    pub(crate) fn start_at(address: SocketAddr, speed: f64) -> Self {
        Self::start_with(address, Options { speed, tolerance: TOLERANCE, ..Options::default() })
    }

    pub(crate) fn start_with(address: SocketAddr, options: Options) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let simulator = Simulator::new(options);
        let stop = CancellationToken::new();
        let (served, stopped) = (simulator.clone(), stop.clone());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                served.serve(listener, stopped.cancelled_owned()).await.unwrap();
            });
        });
        Self { simulator, address, stop }
    }

    /// The log of requests, oldest first.
    pub(crate) async fn log(&self) -> Vec<Value> {
        let url = format!("http://{}/_simulator/log?last=100000", self.address);
        serde_json::from_str(&reqwest::get(url).await.unwrap().text().await.unwrap()).unwrap()
    }

    /// Fails the test when a rule was broken.
    pub(crate) fn assert_no_violations(&self) {
        let report = self.simulator.report();
        assert!(report.violations.is_empty(), "{:#?}", report.violations);
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

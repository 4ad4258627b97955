//! One PostgreSQL per test process, one database per test.
//!
//! `cargo test` runs all tests in one process: they share a cluster. `cargo nextest` gives every test its own process, and so its own
//! cluster, a second each. Either way nothing is left behind: the cluster ends with the process, however that ends.

use paypoll::postgres::PrivatePostgres;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::OnceCell;

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

/// Brings the template's schema to date. It must have closed its connections when it returns: a template with one cannot be copied.
async fn migrate(url: &str) {
    paypoll::store::migrate(url).await.unwrap();
}

async fn create_database(name: &str, template: &str) {
    // The cluster starts where it is first asked for, which blocks.
    let url = tokio::task::spawn_blocking(|| CLUSTER.admin_url()).await.unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute(AssertSqlSafe(format!("create database {name} template {template}"))).await.unwrap();
    connection.close().await.unwrap();
}

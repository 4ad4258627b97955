//! The schema: applying it, and checking that it is the one this binary was built for.

use super::session::{check_encoding, connect_options};
use super::{Store, StoreError};
use chrono::{DateTime, Utc};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection, Row, SqlSafeStr};
use std::borrow::Cow;

/// Every change of the schema, in order: version, description, statements.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "transactions", include_str!("../../migrations/0001_transactions.sql")),
    (2, "transitions", include_str!("../../migrations/0002_transitions.sql")),
    (3, "writers", include_str!("../../migrations/0003_writers.sql")),
    (4, "polls", include_str!("../../migrations/0004_polls.sql")),
    (5, "replicas", include_str!("../../migrations/0005_replicas.sql")),
    (6, "rights", include_str!("../../migrations/0006_rights.sql")),
    (7, "feed", include_str!("../../migrations/0007_feed.sql")),
    (9, "providers", include_str!("../../migrations/0009_providers.sql")),
    (10, "rows", include_str!("../../migrations/0010_rows.sql")),
    (11, "paths", include_str!("../../migrations/0011_paths.sql")),
    (12, "comments", include_str!("../../migrations/0012_comments.sql")),
    (30, "answered", include_str!("../../migrations/0030_answered.sql")),
];

/// Why the schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// There is none.
    #[error("the database has no paypoll schema: run `paypoll migrate`")]
    Missing,
    /// It is older than this binary.
    #[error("the paypoll schema is at version {found}, this paypoll needs {needed}: run `paypoll migrate`")]
    Older {
        /// The version found.
        found: i64,
        /// The version needed.
        needed: i64,
    },
    /// It is newer than this binary.
    #[error(
        "the paypoll schema is at version {found}, this paypoll knows {needed}: run the paypoll that migrated it, or a newer one"
    )]
    Newer {
        /// The version found.
        found: i64,
        /// The version known.
        needed: i64,
    },
    /// It could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn migrator() -> Migrator {
    let migrations = MIGRATIONS
        .iter()
        .map(|(version, description, sql)| {
            Migration::new(*version, Cow::Borrowed(description), MigrationType::Simple, sql.into_sql_str(), false)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    migrator.create_schema("paypoll");
    migrator.dangerous_set_table_name("paypoll.migrations");
    migrator
}

/// Brings the schema to this binary's version. Several at once are safe: they take turns. Returns the version.
pub async fn migrate(url: &str) -> Result<i64, StoreError> {
    let mut connection = PgConnection::connect_with(&connect_options(url)?.options([("statement_timeout", "0")])).await?;
    check_encoding(&mut connection).await?;
    migrator().run(&mut connection).await.map_err(sqlx::Error::from)?;
    connection.close().await?;
    Ok(newest())
}

fn newest() -> i64 {
    MIGRATIONS.iter().map(|(version, ..)| *version).max().unwrap_or(0)
}

/// The database server, as it says of itself.
#[derive(Clone, Debug)]
pub struct Server {
    /// PostgreSQL's version.
    pub version: String,
    /// The version of the schema.
    pub schema: i64,
    /// Its clock during the statement.
    pub clock: DateTime<Utc>,
}

impl Store {
    /// What the server says of itself. Needs the schema.
    pub async fn server(&self) -> Result<Server, StoreError> {
        let row = sqlx::query(
            "select split_part(current_setting('server_version'), ' ', 1) as version, clock_timestamp() as clock,
                    (select max(version) from paypoll.migrations where success) as schema",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Server { version: row.try_get("version")?, schema: row.try_get("schema")?, clock: row.try_get("clock")? })
    }
}

/// Errors unless the schema is exactly this binary's version.
pub(super) async fn check(pool: &PgPool) -> Result<(), SchemaError> {
    check_encoding(&mut *pool.acquire().await.map_err(StoreError::from)?).await?;
    let there: bool = sqlx::query_scalar("select to_regclass('paypoll.migrations') is not null")
        .fetch_one(pool)
        .await
        .map_err(StoreError::from)?;
    if !there {
        return Err(SchemaError::Missing);
    }
    let found: Option<i64> = sqlx::query_scalar("select max(version) from paypoll.migrations where success")
        .fetch_one(pool)
        .await
        .map_err(StoreError::from)?;
    let needed = newest();
    match found.unwrap_or(0) {
        0 => Err(SchemaError::Missing),
        found if found < needed => Err(SchemaError::Older { found, needed }),
        found if found > needed => Err(SchemaError::Newer { found, needed }),
        _ => Ok(()),
    }
}

//! The schema: applying it, and checking that it is the one this binary was built for.

use super::hosts::Hosts;
use super::session::check_encoding;
use super::{Store, StoreError};
use chrono::{DateTime, Utc};
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Row, SqlSafeStr};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

/// Every change of the schema, in order: version, description, statements.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "transactions", include_str!("../../migrations/0001_transactions.sql")),
    (2, "transitions", include_str!("../../migrations/0002_transitions.sql")),
    (3, "writers", include_str!("../../migrations/0003_writers.sql")),
    (4, "polls", include_str!("../../migrations/0004_polls.sql")),
    (5, "replicas", include_str!("../../migrations/0005_replicas.sql")),
    (6, "rights", include_str!("../../migrations/0006_rights.sql")),
    (7, "feed", include_str!("../../migrations/0007_feed.sql")),
    (8, "commits", include_str!("../../migrations/0008_commits.sql")),
    (9, "providers", include_str!("../../migrations/0009_providers.sql")),
    (10, "rows", include_str!("../../migrations/0010_rows.sql")),
    (11, "paths", include_str!("../../migrations/0011_paths.sql")),
    (12, "comments", include_str!("../../migrations/0012_comments.sql")),
    (13, "finished", include_str!("../../migrations/0013_finished.sql")),
    (14, "reasons", include_str!("../../migrations/0014_reasons.sql")),
    (15, "errors", include_str!("../../migrations/0015_errors.sql")),
    (16, "declared", include_str!("../../migrations/0016_declared.sql")),
    (20, "backlog", include_str!("../../migrations/0020_backlog.sql")),
    (30, "answered", include_str!("../../migrations/0030_answered.sql")),
    (31, "changed", include_str!("../../migrations/0031_changed.sql")),
    (32, "hurry", include_str!("../../migrations/0032_hurry.sql")),
    (33, "held", include_str!("../../migrations/0033_held.sql")),
];

/// Why the schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// There is none.
    #[error("the database has no paypoll schema: run `paypoll migrate`")]
    Missing,
    /// It is older than this binary.
    #[error("the paypoll schema lacks migration {missing}, which this paypoll needs: run `paypoll migrate`")]
    Older {
        /// The first migration that it lacks.
        missing: String,
    },
    /// What was applied to it under that name is not what this binary has under it.
    #[error(
        "migration {migration} in the database is not the one that this paypoll has: another build made the schema; \
         run that build, or let this one migrate a new database and move the rows there"
    )]
    Altered {
        /// The first migration that differs.
        migration: String,
    },
    /// It could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How a schema that can be used stands to this binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// It is the one that this binary was built for, of that version.
    Current(i64),
    /// It has further migrations. They only add to what this binary knows: a version later removes
    /// what the one before still needs.
    Newer {
        /// Its version.
        found: i64,
        /// The version that this binary was built for.
        known: i64,
    },
}

impl Schema {
    /// The version of the schema.
    #[must_use]
    pub fn version(self) -> i64 {
        let (Self::Current(version) | Self::Newer { found: version, .. }) = self;
        version
    }
}

/// How a migration begins that may not run inside a transaction: a single statement that blocks no
/// other session.
const ALONE: &str = "-- no-transaction";

fn migrator() -> Migrator {
    let migrations = MIGRATIONS
        .iter()
        .map(|(version, description, sql)| {
            let alone = sql.starts_with(ALONE);
            Migration::new(*version, Cow::Borrowed(description), MigrationType::Simple, sql.into_sql_str(), alone)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    migrator.create_schema("paypoll");
    // A newer paypoll's. The next one's schema serves this one too.
    migrator.set_ignore_missing(true);
    migrator.dangerous_set_table_name("paypoll.migrations");
    migrator
}

/// A migration as people know it: the name of its file.
fn name(migration: &Migration) -> String {
    format!("{:04}_{}", migration.version, migration.description)
}

/// What `migrate` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// How the schema stands to this binary now.
    pub schema: Schema,
    /// What was applied, in order: version and description.
    pub applied: Vec<(i64, String)>,
}

/// How often a replica checks whether another one has finished.
const TURN_EVERY: Duration = Duration::from_millis(100);

/// Brings the schema to this binary's version, or leaves a newer one as it is. Several at once are
/// safe: they take turns.
pub async fn migrate(url: &str) -> Result<Migrated, SchemaError> {
    let hosts = Hosts::of(url, &[("statement_timeout", "0")])?;
    let mut connection = match hosts.is_plain() {
        true => PgConnection::connect_with(hosts.options(0)).await.map_err(StoreError::from)?,
        false => hosts.find(0).await?.1,
    };
    check_encoding(&mut connection).await?;
    take_turn(&mut connection).await?;
    drop_unfinished(&mut connection).await?;
    let before = applied(&mut connection).await?;
    let migrator = migrator();
    migrator.run(&mut connection).await.map_err(|error| refused(&migrator, error))?;
    index_journal(&mut connection).await?;
    let applied = applied(&mut connection).await?.into_iter().filter(|one| !before.contains(one)).collect();
    let schema = check(&mut connection).await?;
    connection.close().await.map_err(StoreError::from)?;
    Ok(Migrated { schema, applied })
}

/// Waits until no other process migrates. A session that waits for a lock holds a snapshot, and an
/// index that is built concurrently waits for every snapshot: so the wait is not in the database.
/// The turn ends with the connection.
async fn take_turn(connection: &mut PgConnection) -> Result<(), StoreError> {
    while !sqlx::query_scalar("select pg_try_advisory_lock(hashtext('paypoll.migrate'))").fetch_one(&mut *connection).await? {
        tokio::time::sleep(TURN_EVERY).await;
    }
    Ok(())
}

/// The migrations that the database has.
async fn applied(connection: &mut PgConnection) -> Result<Vec<(i64, String)>, StoreError> {
    let there: bool =
        sqlx::query_scalar("select to_regclass('paypoll.migrations') is not null").fetch_one(&mut *connection).await?;
    if !there {
        return Ok(Vec::new());
    }
    let rows = sqlx::query("select version, description from paypoll.migrations where success order by version");
    rows.fetch_all(connection).await?.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Drops indexes whose building was interrupted: they cost every write, serve no query, and block
/// the next attempt.
async fn drop_unfinished(connection: &mut PgConnection) -> Result<(), StoreError> {
    let broken: Vec<String> = sqlx::query_scalar(
        "select format('%I', c.relname) from pg_index i join pg_class c on c.oid = i.indexrelid
          where not i.indisvalid and c.relkind = 'i' and c.relnamespace = to_regnamespace('paypoll')",
    )
    .fetch_all(&mut *connection)
    .await?;
    for name in broken {
        sqlx::query(AssertSqlSafe(format!("drop index concurrently if exists paypoll.{name}"))).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Gives the journal's days that were there before it the index of errors, the latest first: one
/// after the other, and without blocking writers. Days that are created later have it from the
/// start.
async fn index_journal(connection: &mut PgConnection) -> Result<(), StoreError> {
    let days: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid
          where i.inhparent = to_regclass('paypoll.polls')
            and not exists (select from pg_index x join pg_inherits h on h.inhrelid = x.indexrelid
                             where x.indrelid = c.oid and h.inhparent = to_regclass('paypoll.polls_errors'))
          order by c.relname desc",
    )
    .fetch_all(&mut *connection)
    .await?;
    // The names are those that make_journal gives: nothing to quote.
    for day in days.iter().filter(|day| day.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')) {
        let index =
            format!("create index concurrently {day}_errors on paypoll.{day} (provider, account, sent_at) where error is not null");
        let attach = format!("alter index paypoll.polls_errors attach partition paypoll.{day}_errors");
        for statement in [index, attach] {
            match sqlx::query(AssertSqlSafe(statement)).execute(&mut *connection).await {
                // The day was pruned meanwhile.
                Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| code == "42P01") => break,
                done => _ = done?,
            }
        }
    }
    Ok(())
}

fn refused(migrator: &Migrator, error: MigrateError) -> SchemaError {
    let altered = |version: i64| migrator.iter().find(|migration| migration.version == version).map(name);
    match error {
        MigrateError::VersionMismatch(version) => SchemaError::Altered { migration: altered(version).unwrap_or_default() },
        other => SchemaError::Store(sqlx::Error::from(other).into()),
    }
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

/// Errors unless the schema has every migration of this binary, each as it stands here.
pub(super) async fn check(connection: &mut PgConnection) -> Result<Schema, SchemaError> {
    check_encoding(&mut *connection).await?;
    let there: bool = sqlx::query_scalar("select to_regclass('paypoll.migrations') is not null")
        .fetch_one(&mut *connection)
        .await
        .map_err(StoreError::from)?;
    if !there {
        return Err(SchemaError::Missing);
    }
    let applied: Vec<(i64, Vec<u8>)> = sqlx::query_as("select version, checksum from paypoll.migrations where success")
        .fetch_all(connection)
        .await
        .map_err(StoreError::from)?;
    compare(&migrator(), &applied.into_iter().collect())
}

/// The versions that were applied, each with the checksum of what was.
fn compare(migrator: &Migrator, applied: &BTreeMap<i64, Vec<u8>>) -> Result<Schema, SchemaError> {
    let Some((&found, _)) = applied.last_key_value() else { return Err(SchemaError::Missing) };
    let is_altered = |migration: &&Migration| applied.get(&migration.version).is_some_and(|sum| **sum != *migration.checksum);
    if let Some(altered) = migrator.iter().find(is_altered) {
        return Err(SchemaError::Altered { migration: name(altered) });
    }
    if let Some(missing) = migrator.iter().find(|migration| !applied.contains_key(&migration.version)) {
        return Err(SchemaError::Older { missing: name(missing) });
    }
    let known = migrator.iter().map(|migration| migration.version).max().unwrap_or(0);
    Ok(if found > known { Schema::Newer { found, known } } else { Schema::Current(found) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database to which all of this binary's migrations were applied.
    fn applied() -> BTreeMap<i64, Vec<u8>> {
        migrator().iter().map(|migration| (migration.version, migration.checksum.to_vec())).collect()
    }

    #[test]
    fn every_file_of_a_migration_is_applied_under_its_name() {
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap();
        let mut files: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        let known: Vec<String> = migrator().iter().map(|migration| format!("{}.sql", name(migration))).collect();
        assert_eq!(known, files);
    }

    #[test]
    fn a_schema_is_compared_migration_by_migration_and_not_by_its_highest_number() {
        let migrator = migrator();
        let known = *applied().last_key_value().unwrap().0;
        let told = |applied: &BTreeMap<i64, Vec<u8>>| compare(&migrator, applied).map_err(|error| error.to_string());
        assert_eq!(told(&applied()), Ok(Schema::Current(known)));

        let mut newer = applied();
        newer.insert(known + 5, vec![1]);
        assert_eq!(told(&newer), Ok(Schema::Newer { found: known + 5, known }));

        let mut altered = newer.clone();
        altered.insert(4, vec![1]);
        assert!(told(&altered).unwrap_err().contains("0004_polls"), "named although its number is right");

        for mut lacking in [applied(), newer] {
            lacking.remove(&7);
            let error = told(&lacking).unwrap_err();
            assert!(error.contains("0007_feed") && error.contains("run `paypoll migrate`"), "{error}");
        }
        assert!(told(&BTreeMap::new()).unwrap_err().contains("no paypoll schema"));
    }
}

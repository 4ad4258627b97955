//! PostgreSQL: every statement that paypoll runs.
//!
//! The store writes what it is told and decides nothing. Its rules: whoever writes a transaction carries the fence of his claim;
//! the database's clock is the only one; no statement's cost grows with the number of transactions that are not due.
//!
//! Statements are checked against a real, migrated PostgreSQL by the tests instead of at compile time: a build needs no database.

mod accounts;
mod audit;
mod backlog;
mod claim;
mod declarations;
mod errors;
mod history;
mod journal;
mod levers;
mod list;
mod migrate;
mod problems;
mod record;
mod reopen;
mod replicas;
mod rows;
mod session;

pub use accounts::{AHEAD, AccountState, Draw, Drawn};
pub use audit::{BusySecond, JournalReader, PolledTransaction};
pub use backlog::{AccountOverview, Counts, LATE_AFTER, MOST, MOST_ACCOUNTS, ROW_LAG, Unclaimed, Unroutable};
pub use claim::{Candidate, Claim, ClaimOrder, Claimed, LaneFound, LaneRoom, Placement};
pub use declarations::Registration;
pub use errors::{StoreError, Trouble};
pub use history::{Extent, Found, Life, LifePoll, LifeRow, LifeTransition, Pause, QUEUE, Surroundings};
pub use levers::Probe;
pub use list::{Cursor, Filter, LOOKED_AT, Listed, Page};
pub use migrate::{Migrated, Schema, SchemaError, Server, migrate};
pub use problems::{ERRORS, EXACT, FrequentError, Overdue, Parked, RecentEvent, Replica, Situation};
pub use record::{Attempt, Batch, Entry, Poll, Recorded, Transition, Writer};
pub use reopen::{Group, Meant, Reopened};
pub use replicas::{Beat, Membership, Override, ReplicaId};

use crate::config::Database;
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret;
use session::connect_options;
use sqlx::Connection as _;
use sqlx::pool::PoolConnectionMetadata;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A pool of connections to one database.
#[derive(Clone)]
pub struct Store {
    pool: PgPool,
    doubts: Doubts,
}

/// How long a statement waits for a free connection before the database counts as lost.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that is doubted must answer within this time.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// When the connections were last doubted, and why.
///
/// A network can lose a connection without a word, and the system waits for a quarter of an hour before it calls it broken; so where one
/// statement has waited too long, every connection of that time is doubted. So it is where a new connection leads to another server:
/// what was committed on the old one may be gone.
#[derive(Clone)]
struct Doubts {
    last: watch::Sender<Doubt>,
    /// When the server was started that the last new connection led to.
    server: Arc<Mutex<Option<DateTime<Utc>>>>,
}

#[derive(Clone, Copy)]
struct Doubt {
    at: Instant,
    moved: bool,
}

impl Doubts {
    fn new() -> Self {
        Self { last: watch::Sender::new(Doubt { at: Instant::now(), moved: false }), server: Arc::default() }
    }

    fn raise(&self, moved: bool) {
        self.last.send_replace(Doubt { at: Instant::now(), moved });
    }

    /// Notices when a new connection leads to another server. Whatever waits for the database then fails, this connection's first
    /// statement included.
    async fn greet(self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let started = sqlx::query_scalar("select pg_postmaster_start_time()").fetch_one(connection).await?;
        let before = self.server.lock().unwrap_or_else(PoisonError::into_inner).replace(started);
        if before.is_some_and(|before| before != started) {
            self.raise(true);
        }
        Ok(())
    }

    /// Errors when the connection has lived through the last doubt and does not answer now. An error closes it at once.
    async fn check(self, connection: &mut PgConnection, metadata: PoolConnectionMetadata) -> Result<bool, sqlx::Error> {
        let spared = metadata.age < self.last.borrow().at.elapsed();
        if !spared {
            let answer = tokio::time::timeout(PING_TIMEOUT, connection.ping());
            answer.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
        }
        Ok(true)
    }
}

impl Store {
    /// A store that connects when it is first used.
    pub fn open(database: &Database) -> Result<Self, StoreError> {
        Self::with_options(database, &[])
    }

    /// A store for the daemon: its statements know which rows they want. In a small table the planner would rather read all of it for
    /// each of them.
    pub fn open_for_polling(database: &Database) -> Result<Self, StoreError> {
        Self::with_options(database, &[("enable_hashjoin", "off"), ("enable_mergejoin", "off")])
    }

    /// A store of two connections for whoever looks at a few rows of many: the planner does not know how few they are.
    pub fn open_for_ops(database: &Database) -> Result<Self, StoreError> {
        let options = [("enable_seqscan", "off"), ("enable_hashjoin", "off"), ("enable_mergejoin", "off")];
        Self::with_options(&Database { url: database.url.clone(), max_connections: 2, ..*database }, &options)
    }

    fn with_options(database: &Database, options: &[(&str, &str)]) -> Result<Self, StoreError> {
        let url = database.url.as_ref().ok_or_else(|| StoreError::Url("it is not set".into()))?;
        let options = connect_options(url.expose_secret())?.options(options.iter().copied());
        let doubts = Doubts::new();
        let (new, idle, released) = (doubts.clone(), doubts.clone(), doubts.clone());
        let pool = PgPoolOptions::new()
            .max_connections(database.max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A connection that broke while idle is found out by the statement that uses it, which is tried again anyway.
            .test_before_acquire(false)
            .after_connect(move |connection, _| Box::pin(new.clone().greet(connection)))
            .before_acquire(move |connection, metadata| Box::pin(idle.clone().check(connection, metadata)))
            .after_release(move |connection, metadata| Box::pin(released.clone().check(connection, metadata)))
            .connect_lazy_with(options);
        Ok(Self { pool, doubts })
    }

    /// Does some work on the database, and gives it up when that takes longer than `limit`, or when other work was given up meanwhile:
    /// then no connection of that time is trusted without an answer. What was given up may have been done all the same.
    pub async fn within<T>(&self, limit: Duration, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let mut doubts = self.doubts.last.subscribe();
        // Kept until the silence is noted: the connection that it drops is doubted when it comes back to the pool.
        let mut work = pin!(work);
        // Whoever waits for the result would wait for ever.
        let result = poll_fn(|context| {
            let poll = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
            poll.unwrap_or(task::Poll::Ready(Err(StoreError::Unreadable)))
        });
        let result = tokio::select! {
            result = result => result,
            _ = doubts.changed() => Err(if doubts.borrow().moved { StoreError::Moved } else { StoreError::Silent(limit) }),
            () = tokio::time::sleep(limit) => {
                self.doubts.raise(false);
                Err(StoreError::Silent(limit))
            }
        };
        match result {
            // A pool that waited in vain does not say what for (a role's connection limit, say); one more attempt does.
            Err(StoreError::Database(sqlx::Error::PoolTimedOut)) => {
                Err(self.reach().await.err().unwrap_or(sqlx::Error::PoolTimedOut.into()))
            }
            result => result,
        }
    }

    /// Where the database is, for people: host and port, or the socket's folder; and its name.
    #[must_use]
    pub fn address(&self) -> String {
        let options = self.pool.connect_options();
        let place = match options.get_socket() {
            Some(folder) => folder.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        options.get_database().map_or_else(|| place.clone(), |name| format!("{place}, database {name},"))
    }

    /// Errors, and says why, unless a new connection can be made at once.
    pub async fn reach(&self) -> Result<(), StoreError> {
        let options = self.pool.connect_options();
        let attempt = tokio::time::timeout(ACQUIRE_TIMEOUT, PgConnection::connect_with(&options));
        let connection = attempt.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
        Ok(connection.close().await?)
    }

    /// Errors unless the schema has all that this binary needs, as it needs it.
    pub async fn check_schema(&self) -> Result<Schema, SchemaError> {
        migrate::check(&mut *self.pool.acquire().await.map_err(StoreError::from)?).await
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// The pool, for statements of the commands.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}

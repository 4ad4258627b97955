//! PostgreSQL: every statement that paypoll runs.
//!
//! The store decides nothing. Its rules: every write to a transaction carries the fence of its
//! claim; the database's clock is the only one; no statement's cost grows with the number of
//! transactions that are not due.
//!
//! Statements are checked against a real, migrated PostgreSQL by the tests instead of at compile
//! time: a build needs no database.

mod accounts;
mod audit;
mod backlog;
mod claim;
mod declarations;
mod errors;
mod history;
mod hosts;
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
use hosts::Hosts;
use secrecy::ExposeSecret;
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
    hosts: Arc<Hosts>,
    /// Where several hosts are named: whether the one that the pool leads to is as wanted, and why
    /// none is. `None`: not known yet.
    used: Option<watch::Receiver<Option<Result<(), String>>>>,
}

/// How long a statement waits for a free connection before the database counts as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// A suspect connection must answer within this time.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// When the connections last became suspect, and why.
///
/// A network can drop a connection silently, and the system needs a quarter of an hour to notice;
/// so where one statement has waited too long, every connection of that time is suspect. Where the
/// server was demoted or a new connection leads to another one, the earlier ones are closed: what
/// was committed on the old server may be gone, and it may still answer.
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
    /// Connections of before then are not used again.
    moved_at: Option<Instant>,
}

impl Doubts {
    fn new() -> Self {
        Self { last: watch::Sender::new(Doubt { at: Instant::now(), moved: false, moved_at: None }), server: Arc::default() }
    }

    fn raise(&self, moved: bool) {
        let at = Instant::now();
        self.last.send_modify(|doubt| {
            *doubt = Doubt { at, moved, moved_at: if moved { Some(at) } else { doubt.moved_at } };
        });
    }

    /// Notices when a new connection leads to another server. Every statement under way then fails,
    /// this connection's first one included.
    async fn greet(self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let started = sqlx::query_scalar("select pg_postmaster_start_time()").fetch_one(connection).await?;
        let before = self.server.lock().unwrap_or_else(PoisonError::into_inner).replace(started);
        if before.is_some_and(|before| before != started) {
            self.raise(true);
        }
        Ok(())
    }

    /// False when the connection leads to an earlier server. Errors when it is suspect and does not
    /// answer now; an error closes it at once.
    async fn check(self, connection: &mut PgConnection, metadata: PoolConnectionMetadata) -> Result<bool, sqlx::Error> {
        let doubt = *self.last.borrow();
        if doubt.moved_at.is_some_and(|moved| metadata.age >= moved.elapsed()) {
            return Ok(false);
        }
        let spared = metadata.age < doubt.at.elapsed();
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

    /// A store for the daemon: its statements know which rows they want. In a small table the
    /// planner would otherwise read all of it each time.
    pub fn open_for_polling(database: &Database) -> Result<Self, StoreError> {
        Self::with_options(database, &[("enable_hashjoin", "off"), ("enable_mergejoin", "off")])
    }

    /// A store of two connections for reading a few rows of many: the planner does not know how few
    /// they are.
    pub fn open_for_ops(database: &Database) -> Result<Self, StoreError> {
        let options = [("enable_seqscan", "off"), ("enable_hashjoin", "off"), ("enable_mergejoin", "off")];
        Self::with_options(&Database { url: database.url.clone(), max_connections: 2, ..*database }, &options)
    }

    fn with_options(database: &Database, options: &[(&str, &str)]) -> Result<Self, StoreError> {
        let url = database.url.as_ref().ok_or_else(|| StoreError::Url("it is not set".into()))?;
        let hosts = Arc::new(Hosts::of(url.expose_secret(), options)?);
        let doubts = Doubts::new();
        let (new, idle, released) = (doubts.clone(), doubts.clone(), doubts.clone());
        let pool = PgPoolOptions::new()
            .max_connections(database.max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A connection that broke while idle is found out by the statement that uses it, which
            // is tried again anyway.
            .test_before_acquire(false)
            .after_connect(move |connection, _| Box::pin(new.clone().greet(connection)))
            .before_acquire(move |connection, metadata| Box::pin(idle.clone().check(connection, metadata)))
            .after_release(move |connection, metadata| Box::pin(released.clone().check(connection, metadata)))
            .connect_lazy_with(hosts.options(0).clone());
        let mut store = Self { pool, doubts, hosts, used: None };
        if !store.hosts.is_plain() {
            let (told, used) = watch::channel(None);
            let (pool, doubts, hosts) = (store.pool.clone(), store.doubts.clone(), store.hosts.clone());
            tokio::spawn(async move {
                let ended = told.clone();
                tokio::select! {
                    () = lead(&hosts, &pool, &doubts, &told) => {}
                    () = pool.close_event() => {}
                    () = ended.closed() => {}
                }
            });
            store.used = Some(used);
        }
        Ok(store)
    }

    /// Errors, and says why, unless the pool leads to a host that meets the connection string's
    /// requirement.
    async fn host(&self) -> Result<(), StoreError> {
        let Some(mut used) = self.used.clone() else { return Ok(()) };
        let known = used.wait_for(Option::is_some).await.map(|used| used.clone());
        match known {
            Ok(Some(Err(why))) => Err(StoreError::NoHost(why)),
            _ => Ok(()),
        }
    }

    /// Does some work on the database, and gives it up when that takes longer than `limit`, or when
    /// other work was given up meanwhile: then no connection of that time is trusted without an
    /// answer. What was given up may have been done all the same.
    pub async fn within<T>(&self, limit: Duration, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let mut doubts = self.doubts.last.subscribe();
        // Kept until the silence is noted: the connection that it drops is doubted when it comes
        // back to the pool.
        let mut work = pin!(work);
        // Otherwise the caller would wait for ever.
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
        if matches!(&result, Err(error) if error.is_read_only()) {
            // The server was demoted: nothing can be done in any of its sessions.
            self.doubts.raise(true);
        }
        match result {
            // A pool that waited in vain does not say what for (a role's connection limit, say);
            // one more attempt does.
            Err(StoreError::Database(sqlx::Error::PoolTimedOut)) => {
                Err(self.reach().await.err().unwrap_or(sqlx::Error::PoolTimedOut.into()))
            }
            result => result,
        }
    }

    /// Where the database is, for people: hosts and ports, or the socket's folder; and its name.
    #[must_use]
    pub fn address(&self) -> String {
        self.hosts.address()
    }

    /// Errors, and says why, unless a new connection can be made at once.
    pub async fn reach(&self) -> Result<(), StoreError> {
        self.host().await?;
        let options = self.pool.connect_options();
        let attempt = tokio::time::timeout(ACQUIRE_TIMEOUT, PgConnection::connect_with(&options));
        let connection = attempt.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
        Ok(connection.close().await?)
    }

    /// Errors unless the schema has all that this binary needs, as it needs it.
    pub async fn check_schema(&self) -> Result<Schema, SchemaError> {
        self.host().await?;
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

/// Directs the pool to a suitable host, for as long as the pool is in use.
async fn lead(hosts: &Hosts, pool: &PgPool, doubts: &Doubts, told: &watch::Sender<Option<Result<(), String>>>) {
    let mut used = 0;
    loop {
        match hosts.find(used).await {
            Ok((host, mut connection)) => {
                if host != used {
                    pool.set_connect_options(hosts.options(host).clone());
                    // Whatever waits for the old one waits in vain.
                    doubts.raise(true);
                }
                used = host;
                told.send_replace(Some(Ok(())));
                hosts.watch(&mut connection).await;
            }
            Err(error) => {
                told.send_replace(Some(Err(error.to_string())));
                tokio::time::sleep(hosts::LOOK_EVERY).await;
            }
        }
    }
}

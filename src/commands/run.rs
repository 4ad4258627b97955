//! `paypoll run`: the daemon.

use super::reload::{Read, Reloads, Source};
use crate::config::{self, Config};
use crate::declarations::Declarations;
use crate::metrics::Metrics;
use crate::notify::{self, ServiceManager};
use crate::ops;
use crate::scheduler::{self, Daemon};
use crate::store::{Schema, SchemaError, Store, StoreError};
use crate::telemetry::{Output, event};
use crate::text::span;
use crate::upkeep::Upkeep;
use anyhow::{Context as _, anyhow, bail};
use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Runs until a signal says stop, and reads the configuration anew when one says so.
pub async fn run(config: Config, source: Source, log: &Output) -> anyhow::Result<()> {
    for warning in config::warnings(&source.files) {
        warn!(event = event::CONFIG_EXPOSED, "{warning}");
    }
    let (stop, reload) = (CancellationToken::new(), Arc::new(Notify::new()));
    heed_signals(stop.clone(), reload.clone())?;
    raise_descriptors();
    serve_from(config, Some(Reloads::new(source, reload, log)?), stop).await
}

/// Runs until `stop`.
pub async fn serve(config: &Config, stop: CancellationToken) -> anyhow::Result<()> {
    serve_from(config.clone(), None, stop).await
}

async fn serve_from(config: Config, mut reloads: Option<Reloads<'_>>, stop: CancellationToken) -> anyhow::Result<()> {
    config.database.url()?;
    if config.providers.iter().all(|provider| provider.accounts.is_empty()) {
        bail!("no provider is enabled: set providers.NAME.enabled = true and give it an account");
    }
    let store = Store::open_for_polling(&config.database)?;
    let reached = async {
        let schema = reach(&store, config.database.connect_timeout).await?;
        store.check_session().await?;
        store.make_journal(None).await.context("the journal's partitions could not be made")?;
        anyhow::Ok(schema)
    };
    let schema = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        schema = reached => schema?,
    };
    if let Schema::Newer { found, known } = schema {
        warn!(
            event = event::SCHEMA_NEWER,
            "the paypoll schema is at version {found}, newer than version {known} that paypoll {} was built for: \
             it works, update it before the next migration",
            env!("CARGO_PKG_VERSION")
        );
    }
    let mut generation = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        prepared = Generation::prepare(config, &store) => prepared?,
    };
    let port = ops::bind(&generation.config)?;
    let manager = ServiceManager::from_environment().map(Arc::new);
    info!(
        event = event::DAEMON_STARTED,
        version = env!("CARGO_PKG_VERSION"),
        accounts = generation.accounts,
        speed = generation.config.speed,
        "paypoll {} polls {} accounts",
        env!("CARGO_PKG_VERSION"),
        generation.accounts
    );
    let result = loop {
        let end = stop.child_token();
        let (running, metrics, replaced) = (generation.config.clone(), generation.metrics.clone(), generation.daemon.is_replaced());
        let mut serving = pin!(generation.serve(&store, port.as_ref(), manager.clone(), stop.clone(), end.clone()));
        let next = async {
            match &mut reloads {
                Some(reloads) => successor(reloads, &running, &metrics, &store).await,
                None => std::future::pending().await,
            }
        };
        let (read, next) = tokio::select! {
            result = &mut serving => break result?,
            next = next => next,
        };
        // Everything is given back as at a stop, and taken up again under the new configuration.
        replaced.store(true, Relaxed);
        end.cancel();
        let result = tokio::select! {
            result = &mut serving => result?,
            () = stop.cancelled() => {
                replaced.store(false, Relaxed);
                break serving.await?;
            }
        };
        if stop.is_cancelled() {
            break result;
        }
        next.metrics.go_on_from(&metrics);
        if let Some(reloads) = &mut reloads {
            reloads.applied(read, &next.metrics, result.err().as_deref());
        }
        generation = next;
    };
    drop(tokio::time::timeout(FAREWELL, store.close()).await);
    result.map_err(|error| anyhow!(error))?;
    info!(event = event::DAEMON_STOPPED, "stopped: everything that was held is given back");
    Ok(())
}

/// Waits for a configuration that differs, and for a database that can take what the daemon of
/// before gives back; prepares the daemon of after.
async fn successor(reloads: &mut Reloads<'_>, running: &Config, metrics: &Metrics, store: &Store) -> (Read, Generation) {
    loop {
        let read = reloads.next(running, metrics).await;
        if !read.is_new() {
            reloads.applied(read, metrics, None);
            continue;
        }
        while !metrics.ready.load(Relaxed) {
            tokio::time::sleep(READY_EVERY).await;
        }
        match store.within(REGISTER_LIMIT, async { Ok(Generation::prepare(read.config.clone(), store).await) }).await {
            Ok(Ok(next)) => return (read, next),
            Ok(Err(why)) => reloads.reject(metrics, &format!("{why:#}")),
            Err(why) => reloads.reject(metrics, &why.to_string()),
        }
    }
}

/// The daemon under one configuration, and what serves it.
struct Generation {
    config: Config,
    daemon: Daemon,
    declarations: Declarations,
    metrics: Arc<Metrics>,
    accounts: usize,
}

impl Generation {
    async fn prepare(config: Config, store: &Store) -> anyhow::Result<Self> {
        let registered = Declarations::register(&config, store).await;
        let (declarations, permits) = registered.context("a declared provider cannot be registered")?;
        let lanes = scheduler::permitted_lanes(&config, &permits);
        let metrics = Arc::new(Metrics::new(lanes.iter().map(|spec| (spec.provider, &*spec.account))));
        let accounts = lanes.len();
        let daemon = Daemon::new(&config, store.clone(), lanes, metrics.clone()).map_err(|error| anyhow!(error))?;
        Ok(Self { config, daemon, declarations, metrics, accounts })
    }

    /// Works until `end`. The inner result is that of the work.
    async fn serve(
        self,
        store: &Store,
        port: Option<&TcpListener>,
        manager: Option<Arc<ServiceManager>>,
        stop: CancellationToken,
        end: CancellationToken,
    ) -> anyhow::Result<Result<bool, String>> {
        let Self { config, daemon, declarations, metrics, .. } = self;
        // The port stays open until the last answer is recorded: it shows a daemon that stops, not
        // one that is gone.
        let drained = CancellationToken::new();
        let ops = match port {
            Some(port) => {
                let listener = tokio::net::TcpListener::from_std(port.try_clone()?)?;
                ops::serve_on(listener, &config, metrics.clone(), end.clone(), drained.clone())?
            }
            None => tokio::spawn(async {}),
        };
        let declarations = tokio::spawn(declarations.keep(drained.clone()));
        let upkeep = tokio::spawn(crate::upkeep::keep(Upkeep::new(&config, store.clone(), metrics.clone()), end.clone()));
        if let Some(manager) = manager {
            tokio::spawn(notify::keep(manager, metrics, stop, drained.clone()));
        }
        let result = daemon.run(end.clone()).await;
        end.cancel();
        drained.cancel();
        // All of them end now; what they were doing is not needed any more, and is not waited for
        // when the database does not answer.
        drop(tokio::time::timeout(FAREWELL, async { drop(tokio::join!(upkeep, ops, declarations)) }).await);
        Ok(result)
    }
}

/// Tries for as long as the configuration allows to reach the database, then checks its schema.
async fn reach(store: &Store, patience: Duration) -> anyhow::Result<Schema> {
    let begun = Instant::now();
    let mut waits = reconnect();
    loop {
        let error = match store.check_schema().await {
            Ok(schema) => return Ok(schema),
            Err(SchemaError::Store(StoreError::Database(error))) => error,
            Err(SchemaError::Store(StoreError::NoHost(_))) if begun.elapsed() < patience => sqlx::Error::PoolTimedOut,
            Err(other) => return Err(other.into()),
        };
        let left = patience.saturating_sub(begun.elapsed());
        if left.is_zero() || is_final(&error) {
            return Err(unreachable(store, error, begun.elapsed()).await);
        }
        tokio::time::sleep(waits.next_backoff().unwrap_or(patience).min(left)).await;
    }
}

/// Why the database cannot be used: in its own words where it has answered.
async fn unreachable(store: &Store, error: sqlx::Error, tried: Duration) -> anyhow::Error {
    // A pool that waited in vain does not say what for; one more attempt does.
    let cause = match error {
        sqlx::Error::PoolTimedOut => store.reach().await.err().unwrap_or(error.into()),
        told => told.into(),
    };
    let tried = span(tried);
    match cause {
        StoreError::Database(sqlx::Error::Database(_)) => anyhow!("{cause} (so the database answered; tried for {tried})"),
        _ => anyhow!(cause).context(format!("the database could not be reached within {tried}")),
    }
}

/// Trying again would not help: the address, the password, the database's name or what stands
/// between is wrong.
fn is_final(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Configuration(_) => true,
        sqlx::Error::Database(error) => {
            error.code().is_some_and(|code| matches!(&*code, "28P01" | "28000" | "3D000"))
                // A PgBouncer that is not configured to ignore our session settings; its code
                // stands for anything.
                || error.message().contains("startup parameter")
        }
        _ => false,
    }
}

/// The waits between attempts to reach the database at the start.
fn reconnect() -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(100))
        .with_max_interval(Duration::from_secs(2))
        .with_max_elapsed_time(None)
        .build()
}

/// How often a reload checks whether the database is available again.
const READY_EVERY: Duration = Duration::from_millis(100);
/// Registering declared providers takes no longer than this.
const REGISTER_LIMIT: Duration = Duration::from_secs(10);
/// The end of what serves the daemon waits no longer than this.
const FAREWELL: Duration = Duration::from_secs(1);
/// What a shell makes of a process that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// SIGTERM, SIGINT and SIGQUIT stop cleanly, a second SIGINT ends at once; SIGHUP reads the
/// configuration anew. SIGUSR1 and SIGUSR2 mean nothing, and so do nothing.
fn heed_signals(stop: CancellationToken, reload: Arc<Notify>) -> anyhow::Result<()> {
    let listen = |kind, name| signal(kind).with_context(|| format!("{name} cannot be listened for"));
    let mut terminate = listen(SignalKind::terminate(), "SIGTERM")?;
    let mut interrupt = listen(SignalKind::interrupt(), "SIGINT")?;
    let mut quit = listen(SignalKind::quit(), "SIGQUIT")?;
    let mut hang_up = listen(SignalKind::hangup(), "SIGHUP")?;
    // Once listened for, they end no process any more, listened to or not.
    let meaningless = [listen(SignalKind::user_defined1(), "SIGUSR1")?, listen(SignalKind::user_defined2(), "SIGUSR2")?];
    tokio::spawn(async move {
        let _meaningless = meaningless;
        let mut interrupted = false;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = quit.recv() => {}
                _ = hang_up.recv() => {
                    reload.notify_one();
                    continue;
                }
                _ = interrupt.recv() => {
                    if interrupted {
                        std::process::exit(INTERRUPTED);
                    }
                    interrupted = true;
                }
            }
            stop.cancel();
        }
    });
    Ok(())
}

/// Takes all descriptors that the system allows: each request under way needs one. Where it allows
/// no more, what it has must do.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| limit.maximum.is_none_or(|maximum| current < maximum)) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

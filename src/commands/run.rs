//! `paypoll run`: the daemon.

use crate::config::Config;
use crate::declarations::Declarations;
use crate::metrics::Metrics;
use crate::notify::{self, ServiceManager};
use crate::ops;
use crate::scheduler::{self, Daemon};
use crate::store::{Schema, SchemaError, Store, StoreError};
use crate::telemetry::event;
use crate::text::span;
use crate::upkeep::Upkeep;
use anyhow::{Context as _, anyhow, bail};
use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Runs until a signal says stop. `warnings`: what is dangerous about the configuration's files.
pub async fn run(config: &Config, warnings: &[String]) -> anyhow::Result<()> {
    for warning in warnings {
        warn!(event = event::CONFIG_EXPOSED, "{warning}");
    }
    let stop = CancellationToken::new();
    heed_signals(stop.clone())?;
    raise_descriptors();
    serve(config, stop).await
}

/// Runs until `stop`.
pub async fn serve(config: &Config, stop: CancellationToken) -> anyhow::Result<()> {
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
    let (declarations, permits) = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        registered = Declarations::register(config, &store) => registered.context("a declared provider cannot be registered")?,
    };
    let lanes = scheduler::permitted_lanes(config, &permits);
    let metrics = Arc::new(Metrics::new(lanes.iter().map(|spec| (spec.provider, &*spec.account))));
    let daemon = Daemon::new(config, store.clone(), lanes.clone(), metrics.clone()).map_err(|error| anyhow!(error))?;
    // The port stays open until the last answer is written down: whoever looks sees a daemon that stops, not one that is gone.
    let drained = CancellationToken::new();
    let ops = ops::serve(config, metrics.clone(), stop.clone(), drained.clone()).await?;
    let declarations = tokio::spawn(declarations.keep(drained.clone()));
    let upkeep = tokio::spawn(crate::upkeep::keep(Upkeep::new(config, store.clone(), metrics.clone()), stop.clone()));
    info!(
        event = event::DAEMON_STARTED,
        version = env!("CARGO_PKG_VERSION"),
        accounts = lanes.len(),
        speed = config.speed,
        "paypoll {} polls {} accounts",
        env!("CARGO_PKG_VERSION"),
        lanes.len()
    );
    if let Some(manager) = ServiceManager::from_environment() {
        tokio::spawn(notify::keep(manager, metrics, stop.clone()));
    }
    let result = daemon.run(stop.clone()).await;
    stop.cancel();
    drained.cancel();
    // All of them end now; what they were doing is not needed any more, and is not waited for when the database does not answer.
    let ends = async {
        drop(tokio::join!(upkeep, ops, declarations));
        store.close().await;
    };
    drop(tokio::time::timeout(FAREWELL, ends).await);
    result.map_err(|error| anyhow!(error))?;
    info!(event = event::DAEMON_STOPPED, "stopped: everything that was held is given back");
    Ok(())
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

/// Trying again would not help: the address, the password, the database's name or what stands between is wrong.
fn is_final(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Configuration(_) => true,
        sqlx::Error::Database(error) => {
            error.code().is_some_and(|code| matches!(&*code, "28P01" | "28000" | "3D000"))
                // A PgBouncer that has not been told to ignore our session settings; its code stands for anything.
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

/// The end of what serves the daemon waits no longer than this.
const FAREWELL: Duration = Duration::from_secs(1);
/// What a shell makes of a process that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// SIGTERM, SIGINT, SIGQUIT and SIGHUP stop cleanly; a second SIGINT ends at once. SIGUSR1 and SIGUSR2 mean nothing, and so do nothing.
fn heed_signals(stop: CancellationToken) -> anyhow::Result<()> {
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
                _ = hang_up.recv() => {}
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

/// Takes all descriptors that the system allows: each request under way needs one. Where it allows no more, what it has must do.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| limit.maximum.is_none_or(|maximum| current < maximum)) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

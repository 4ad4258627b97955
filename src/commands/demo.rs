//! `paypoll demo`: everything at once, nothing to set up. A private PostgreSQL, the simulator, the
//! daemon, and transactions that are inserted as any application would; ends by itself.
//!
//! The daemon is [`super::run::serve`], in this process on a runtime of its own: it cannot outlive
//! the demo, however that ends. The PostgreSQL removes itself and its folder, in which everything
//! else is that the demo writes.

mod cast;
mod stage;
mod summary;
mod view;

use crate::cli;
use crate::config::{Config, ConfigError, Log, LogFormat};
use crate::postgres::PrivatePostgres;
use crate::simulator::{PROVIDERS, Simulator, amount};
use crate::{store, telemetry};
use anyhow::{Context as _, anyhow, bail};
use cast::{Part, Role, cast};
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Connection, Executor, PgConnection, Row as _};
use stage::{Stage, configuration};
use std::collections::HashMap;
use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use summary::{Ended, Summary};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::util::SubscriberInitExt as _;
use uuid::Uuid;
use view::{Standing, View};

/// Dropayment's window of 3 minutes is 3 s then: a script with a time-out of 2 s, which no speed
/// hurries, still fits in.
const FASTEST: f64 = 60.0;
/// How often the tables are read.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The longest that a transaction takes by the rules, without speed; and what slow machines and
/// time-outs need beyond that.
const MAX_RUN: (Duration, Duration) = (Duration::from_secs(1800), Duration::from_secs(60));
/// The database's name in the private cluster.
const DATABASE: &str = "paypoll";
const LOG_FILE: &str = "paypoll.log";

/// Plays the demo. Errors, after the summary, unless every transaction ended where its script
/// expects it and no rule was broken.
pub fn run(asked: &cli::Demo) -> anyhow::Result<()> {
    if asked.speed > FASTEST {
        let problem = format!("--speed = {}: the demo's scripts need time-outs of seconds; write {FASTEST} or less", asked.speed);
        return Err(ConfigError::one(problem).into());
    }
    writeln!(io::stdout(), "starting a private PostgreSQL, the simulator of five providers and a declared one, and the daemon")?;
    let postgres = PrivatePostgres::start()?;
    let stage = Stage::open(asked.transactions, asked.speed).context("the simulator cannot be started")?;
    let main = Builder::new_current_thread().enable_all().build()?;
    // Its own, so that the view and the insertions do not disturb it.
    let workers = Builder::new_multi_thread().enable_all().build()?;
    let result = main.block_on(async {
        let interrupted = interrupted()?;
        tokio::select! {
            result = play(asked, &postgres, &stage, &workers) => result,
            () = interrupted => bail!("interrupted: everything is removed"),
        }
    });
    // What is still under way after an interruption is not waited for.
    workers.shutdown_background();
    result
}

/// SIGINT or SIGTERM.
fn interrupted() -> io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

async fn play(asked: &cli::Demo, postgres: &PrivatePostgres, stage: &Stage, workers: &Runtime) -> anyhow::Result<()> {
    let begun = Instant::now();
    create_database(postgres).await.context("the database cannot be prepared")?;
    let config = Arc::new(write_configuration(postgres, stage, asked)?);
    log_to(&postgres.folder().join(LOG_FILE), &config.log)?;
    let stop = CancellationToken::new();
    let (served, stopping) = (config.clone(), stop.clone());
    let mut daemon = workers.spawn(async move { super::run::serve(&served, stopping).await });
    let pool = PgPoolOptions::new().max_connections(2).connect(&postgres.url(DATABASE)).await?;

    let parts: Vec<Part> = cast(asked.transactions).into_iter().chain(cast::guests()).collect();
    let performance =
        async { tokio::try_join!(insert(&pool, &parts), watch(&pool, &stage.simulator, &parts, asked)).map(|(ids, ())| ids) };
    let ids = tokio::select! {
        ids = performance => ids?,
        ended = &mut daemon => return Err(ended_early(ended)),
    };
    stop.cancel();
    stopped(daemon).await?;
    let ended = read(&pool, &parts, &ids).await?;
    pool.close().await;
    judge(&Summary::of(&ended), stage, &config, begun.elapsed()).await.map_err(|error| match keep_log(postgres) {
        Ok(log) => error.context(format!("the demo failed; the daemon's log is kept in {}", log.display())),
        Err(_) => error,
    })
}

/// What the scripts, the simulator and the journal say of it.
async fn judge(summary: &Summary, stage: &Stage, config: &Config, took: Duration) -> anyhow::Result<()> {
    let mut out = io::stdout();
    let concluded = conclude(summary, &stage.simulator, took);
    writeln!(out, "\npaypoll audit, from the journal of polls:")?;
    let audited = super::audit::run_hurried(config, &mut out).await;
    concluded.and(audited)?;
    writeln!(
        out,
        "\nnext: `paypoll simulate` in one terminal and `paypoll run` in another: see README, \"Use it with your database\""
    )?;
    Ok(())
}

async fn create_database(postgres: &PrivatePostgres) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(&postgres.admin_url()).await?;
    connection.execute(sqlx::AssertSqlSafe(format!("create database {DATABASE}"))).await?;
    connection.close().await?;
    store::migrate(&postgres.url(DATABASE)).await?;
    Ok(())
}

/// The configuration as a user would write it, in a file, and nothing from the environment.
fn write_configuration(postgres: &PrivatePostgres, stage: &Stage, asked: &cli::Demo) -> anyhow::Result<Config> {
    let file = postgres.folder().join("demo.toml");
    let text = configuration(&postgres.url(DATABASE), stage.address, asked.transactions);
    fs::write(&file, text).with_context(|| format!("{} cannot be written", file.display()))?;
    let guest = postgres.folder().join(format!("{}.toml", cast::GUEST));
    fs::write(&guest, stage::GUEST_FILE).with_context(|| format!("{} cannot be written", guest.display()))?;
    Ok(Config::load(&[file], std::iter::empty(), asked.speed)?)
}

fn log_to(file: &Path, log: &Log) -> anyhow::Result<()> {
    let writer = Mutex::new(File::create(file).with_context(|| format!("{} cannot be written", file.display()))?);
    let log = Log { format: LogFormat::Json, filter: log.filter.clone() };
    telemetry::subscriber(&log, writer, false).map_err(anyhow::Error::msg)?.try_init()?;
    Ok(())
}

fn ended_early(ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow!("the daemon ended by itself"),
        Ok(Err(error)) => error.context("the daemon ended"),
        Err(error) => anyhow!("the daemon broke: {error}"),
    }
}

async fn stopped(daemon: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    daemon.await.context("the daemon broke")?.context("the daemon did not stop cleanly")
}

const INSERT: &str = "insert into paypoll.transactions (provider, account, reference, params, amount, currency, initiated_at)
                      values ($1, $2, $3, $4, $5::text::numeric, $6, $7) returning id";
const CALLBACK: &str = "update paypoll.transactions set state = 'succeeded' where id = $1";

/// Inserts the transactions one after the other, then plays the callback handler of some.
async fn insert(pool: &PgPool, parts: &[Part]) -> anyhow::Result<Vec<Uuid>> {
    let begun = tokio::time::Instant::now();
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    let mut ids = Vec::with_capacity(parts.len());
    for (place, part) in parts.iter().enumerate() {
        tokio::time::sleep_until(begun + cast::entrance(place, count)).await;
        let now = DateTime::<Utc>::from(SystemTime::now());
        let (amount, currency) = match part.provider {
            cast::GUEST => {
                registered(pool).await?;
                ("5000.00", Some("NGN"))
            }
            provider => amount(provider),
        };
        let id = sqlx::query_scalar(INSERT)
            .bind(part.provider)
            .bind(part.account)
            .bind(part.reference(now.timestamp_millis()))
            .bind(part.params())
            .bind(amount)
            .bind(currency)
            .bind(now)
            .fetch_one(pool)
            .await
            .with_context(|| format!("a transaction of {} cannot be inserted", part.provider))?;
        ids.push(id);
    }
    for (id, _) in ids.iter().zip(parts).filter(|(_, part)| part.role == Role::Callback) {
        sqlx::query(CALLBACK).bind(id).execute(pool).await.context("a callback was refused")?;
    }
    Ok(ids)
}

/// Waits until the daemon has registered the guest: before that the database does not know its name.
async fn registered(pool: &PgPool) -> anyhow::Result<()> {
    loop {
        let known = sqlx::query_scalar("select exists (select from paypoll.providers where name = $1)");
        if known.bind(cast::GUEST).fetch_one(pool).await? {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The providers that play, in the order in which they are shown.
fn shown() -> Vec<&'static str> {
    PROVIDERS.into_iter().chain([cast::GUEST]).collect()
}

/// Shows how the transactions stand until all are settled, or should have been for long.
async fn watch(pool: &PgPool, simulator: &Simulator, parts: &[Part], asked: &cli::Demo) -> anyhow::Result<()> {
    let (by_rules, beyond) = MAX_RUN;
    let deadline = Instant::now() + cast::spread(asked.transactions) + by_rules.div_f64(asked.speed) + beyond;
    let mut view = View::open(&shown());
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let standings = standings(pool, simulator, parts).await?;
        view.show(&shown(), &standings)?;
        if standings.iter().all(|standing| standing.settled == standing.total) || Instant::now() > deadline {
            view.close();
            return Ok(());
        }
    }
}

const STANDINGS: &str = "
    select provider, count(*) filter (where next_poll_at is null) as settled, count(*) filter (where state = 'action_required') as waiting
      from paypoll.transactions group by provider";

async fn standings(pool: &PgPool, simulator: &Simulator, parts: &[Part]) -> anyhow::Result<Vec<Standing>> {
    let rows = sqlx::query(STANDINGS).fetch_all(pool).await?;
    let report = simulator.report();
    let mut standings = Vec::new();
    for provider in shown() {
        let mut standing = Standing {
            total: parts.iter().filter(|part| part.provider == provider).count() as u64,
            requests: report.providers.get(provider).map_or(0, |provider| provider.requests),
            ..Standing::default()
        };
        for row in &rows {
            if row.try_get::<&str, _>("provider")? == provider {
                standing.settled = u64::try_from(row.try_get::<i64, _>("settled")?)?;
                standing.waiting = u64::try_from(row.try_get::<i64, _>("waiting")?)?;
            }
        }
        standings.push(standing);
    }
    Ok(standings)
}

/// How every transaction ended.
async fn read(pool: &PgPool, parts: &[Part], ids: &[Uuid]) -> anyhow::Result<Vec<Ended>> {
    let rows = sqlx::query("select id, reference, state, reason, attempts from paypoll.transactions").fetch_all(pool).await?;
    let mut by_id = HashMap::with_capacity(rows.len());
    for row in &rows {
        by_id.insert(row.try_get::<Uuid, _>("id")?, row);
    }
    let ended = ids.iter().zip(parts).map(|(id, part)| {
        let row = by_id.get(id).with_context(|| format!("transaction {id} is gone"))?;
        Ok(Ended {
            provider: part.provider,
            reference: row.try_get("reference")?,
            expected: part.expected,
            state: row.try_get("state")?,
            reason: row.try_get("reason")?,
            attempts: u32::try_from(row.try_get::<i32, _>("attempts")?)?,
        })
    });
    ended.collect()
}

/// Prints what came of it. Errors unless it is all as it should be.
fn conclude(summary: &Summary, simulator: &Simulator, took: Duration) -> anyhow::Result<()> {
    let report = simulator.report();
    let mut out = io::stdout();
    writeln!(out, "\n{summary}\n")?;
    let violations = report.violation_count();
    writeln!(out, "surprises: {}", summary.surprises().len())?;
    writeln!(
        out,
        "the simulator's report: {} requests, {violations} violations (forgiven to timers: {} ms)",
        report.requests, report.tolerance_ms
    )?;
    for violation in &report.violations {
        let (provider, reference) = (violation.provider.unwrap_or("-"), violation.reference.as_deref().unwrap_or("-"));
        let (kind, detail) = (serde_json::to_string(&violation.kind)?, &violation.detail);
        writeln!(out, "violation: {provider} {reference}: {kind} {detail}")?;
    }
    writeln!(out, "took {:.1} s", took.as_secs_f64())?;
    if violations > 0 || !summary.surprises().is_empty() {
        bail!("{} transactions ended elsewhere than expected, {violations} rules were broken", summary.surprises().len());
    }
    Ok(())
}

/// The folder goes, the log is to be read.
fn keep_log(postgres: &PrivatePostgres) -> io::Result<PathBuf> {
    let kept = std::env::temp_dir().join(format!("paypoll-demo-{}.log", std::process::id()));
    let mut log = File::open(postgres.folder().join(LOG_FILE))?;
    // A new file: whatever somebody may have put there under that name is left alone.
    io::copy(&mut log, &mut File::create_new(&kept)?)?;
    Ok(kept)
}

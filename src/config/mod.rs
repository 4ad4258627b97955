//! The configuration: text in layers becomes typed settings here, in terms of the domain; every
//! secret becomes a redacted type.
//!
//! Nothing behind this module reads a file, a variable or a text again. `config/default.toml`
//! documents every key and is the lowest layer. Every mistake is named with its key, its value
//! (never a secret's) and its remedy, and all of them at once.

mod declared;
mod layers;
mod provider;
mod reader;
mod schedule;
mod settings;
#[cfg(test)]
mod tests;

pub use crate::duration;
pub use declared::read as read_declaration;

use crate::domain::{Plan, Rules};
use crate::providers::{self, Descriptor, Provider};
use crate::telemetry;
use reader::{Problems, Section};
use secrecy::{ExposeSecret, SecretString};
pub use settings::{Fingerprints, Setting, fingerprints, settings};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The documented defaults: the lowest layer.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// The highest `--speed`: beyond it the shortest documented waits are too short to be kept.
pub const HIGHEST_SPEED: f64 = 10_000.0;

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the transactions are.
    pub database: Database,
    /// What is logged, and how.
    pub log: Log,
    /// Health and metrics.
    pub ops: Ops,
    /// This replica.
    pub worker: Worker,
    /// The journal of polls.
    pub journal: Journal,
    /// The enabled providers.
    pub providers: Vec<ProviderConfig>,
    /// Configured accounts that this daemon leaves to others: provider and account.
    pub left: Vec<(&'static str, Arc<str>)>,
    /// By what the rules' durations have been divided; 1 outside of simulations.
    pub speed: f64,
}

/// Where the transactions are.
#[derive(Clone, Debug)]
pub struct Database {
    /// The address with user and password; commands that need none work without: see [`Database::url`].
    pub url: Option<SecretString>,
    /// The most connections that this replica opens.
    pub max_connections: u32,
    /// How long the start tries to reach the database.
    pub connect_timeout: Duration,
}

/// What is logged, and how.
#[derive(Clone, Debug)]
pub struct Log {
    /// The form of a line.
    pub format: LogFormat,
    /// Which lines, in the syntax of tracing-subscriber's `EnvFilter`.
    pub filter: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object.
    Json,
    /// For people.
    Text,
}

/// Health and metrics.
#[derive(Clone, Debug)]
pub struct Ops {
    /// Where they are served; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// Not ready while a due transaction has waited longer.
    pub max_overdue: Duration,
}

/// This replica.
#[derive(Clone, Debug)]
pub struct Worker {
    /// How long a stop waits for answers.
    pub shutdown_grace: Duration,
    /// How long its claims outlive its last sign of life.
    pub lease: Duration,
    /// The most requests in flight, over all accounts.
    pub max_in_flight: u32,
    /// The most transactions in memory.
    pub max_held: usize,
}

/// The journal of polls.
#[derive(Clone, Debug)]
pub struct Journal {
    /// How long polls are kept.
    pub retention: Duration,
}

/// An enabled provider.
#[derive(Clone)]
pub struct ProviderConfig {
    /// What is known of it without configuration.
    pub descriptor: &'static Descriptor,
    /// The API's address, without a slash at the end.
    pub base_url: String,
    /// How long one request may take.
    pub timeout: Duration,
    /// The most requests in flight for one account, over all replicas.
    pub max_in_flight: u32,
    /// The budget of one account over all replicas.
    pub rate: Rate,
    /// When to poll and what ends it, its durations divided by [`Config::speed`].
    pub rules: Rules,
    /// When to stop polling an account, its wait divided by [`Config::speed`].
    pub circuit: Circuit,
    /// The merchant accounts, in the order of their names; none where the secrets were not read.
    pub accounts: Vec<AccountConfig>,
    /// The names of all accounts that are configured.
    pub names: Vec<String>,
}

/// The budget of one account over all replicas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Requests per second.
    pub per_second: f64,
    /// How many of them at once.
    pub burst: u32,
}

/// When to stop polling an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circuit {
    /// Failures in a row that open it.
    pub failures: u32,
    /// The wait from probe to probe while it is open.
    pub probe_after: Duration,
}

/// A merchant account at a provider.
#[derive(Clone)]
pub struct AccountConfig {
    /// The value of `transactions.account`.
    pub name: Arc<str>,
    /// The provider, opened with the account's credentials.
    pub provider: Arc<dyn Provider>,
}

/// What is wrong with the configuration: one sentence a line, each with the key, the value (never a
/// secret's) and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// One mistake, also on the command line.
    pub(crate) fn one(problem: String) -> Self {
        Self(vec![problem])
    }

    /// Mistakes, one sentence each.
    pub(crate) fn all(problems: Vec<String>) -> Self {
        Self(problems)
    }

    /// The mistakes, one sentence each; never empty.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Debug for ProviderConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ProviderConfig");
        shown.field("name", &self.descriptor.name).field("base_url", &self.base_url).field("accounts", &self.accounts);
        shown.finish_non_exhaustive()
    }
}

impl fmt::Debug for AccountConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AccountConfig").field(&self.name).finish()
    }
}

impl Database {
    /// The address. Errors when none is configured: the sentence says how to set it.
    pub fn url(&self) -> Result<&SecretString, ConfigError> {
        self.url.as_ref().ok_or_else(|| {
            ConfigError::one(
                "database.url: is missing; set it (or database.url_file) in a --config file, or set DATABASE_URL".into(),
            )
        })
    }
}

/// What is dangerous about the files themselves, one sentence each.
#[must_use]
pub fn warnings(files: &[PathBuf]) -> Vec<String> {
    layers::exposed(files)
}

/// The environment's variables, without those that are no Unicode text.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

impl Config {
    /// The settings out of all layers: the defaults, `files` in their order, `environment`. `speed`
    /// divides the rules' durations; other than 1 it is refused unless every enabled provider is on
    /// this machine.
    pub fn load(files: &[PathBuf], environment: impl Iterator<Item = (String, String)>, speed: f64) -> Result<Self, ConfigError> {
        let (tree, declared) = layers::merged(DEFAULTS, files, environment)?;
        let problems = Problems::default();
        let config = read(tree, &declared, &problems).open(speed, Secrets::Needed, &problems);
        finish(config, problems)
    }

    /// The same for commands that poll no provider: no account is opened, and no account's secret
    /// is read or required.
    pub fn load_without_secrets(
        files: &[PathBuf],
        environment: impl Iterator<Item = (String, String)>,
        speed: f64,
    ) -> Result<Self, ConfigError> {
        let (tree, declared) = layers::merged(DEFAULTS, files, environment)?;
        let problems = Problems::default();
        let config = read(tree, &declared, &problems).open(speed, Secrets::LeftAlone, &problems);
        finish(config, problems)
    }
}

/// Whether the accounts' secrets are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Secrets {
    Needed,
    LeftAlone,
}

impl Config {
    /// With the accounts alone whose `provider/account` is like one of the patterns, in which `*`
    /// stands for any text; with all of them where there is no pattern. Errors when a pattern is
    /// like none.
    pub fn serving(mut self, patterns: &[String]) -> Result<Self, ConfigError> {
        if patterns.is_empty() {
            return Ok(self);
        }
        let mut unused: Vec<&String> = patterns.iter().collect();
        let mut names = Vec::new();
        for provider in &mut self.providers {
            let of = provider.descriptor.name;
            provider.accounts.retain(|account| {
                let name = format!("{of}/{}", account.name);
                unused.retain(|pattern| !is_like(&name, pattern));
                let served = patterns.iter().any(|pattern| is_like(&name, pattern));
                if !served {
                    self.left.push((of, account.name.clone()));
                }
                names.push(name);
                served
            });
        }
        self.providers.retain(|provider| !provider.accounts.is_empty());
        let known = if names.is_empty() { "none".into() } else { names.join(", ") };
        let problem = |pattern| format!("--accounts {pattern:?} matches no account of an enabled provider: there are {known}");
        let problems: Vec<String> = unused.into_iter().map(problem).collect();
        if problems.is_empty() { Ok(self) } else { Err(ConfigError(problems)) }
    }
}

/// Whether a text is like a pattern, in which `*` stands for any text.
fn is_like(text: &str, pattern: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return text == pattern };
    let Some(text) = text.strip_prefix(start) else { return false };
    let mut ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    ends.any(|at| is_like(&text[at..], rest))
}

/// The plan of `provider` as it is configured, divided by `speed`; `None` for an unknown provider.
///
/// Accounts and secrets are not needed for it.
pub fn plan(
    provider: &str,
    files: &[PathBuf],
    environment: impl Iterator<Item = (String, String)>,
    speed: f64,
) -> Result<Option<Plan>, ConfigError> {
    let (tree, declared) = layers::merged(DEFAULTS, files, environment)?;
    let problems = Problems::default();
    let layout = read(tree, &declared, &problems);
    let speed = layout.checked_speed(speed, &problems);
    let plan = layout.providers.into_iter().find(|read| read.descriptor.name == provider).map(|read| read.plan);
    finish(Some(plan.flatten().map(|plan| plan.divided(speed))), problems)
}

/// The plan of `provider` without any configuration; `None` for an unknown provider.
#[must_use]
pub fn default_plan(provider: &str) -> Option<Plan> {
    plan(provider, &[], std::iter::empty(), 1.0).ok().flatten()
}

/// How a provider without configuration is polled.
#[derive(Clone, Debug)]
pub struct ProviderDefaults {
    /// When to poll, and what ends it.
    pub plan: Plan,
    /// The budget of one account.
    pub rate: Rate,
    /// The longest back-off after a failure.
    pub longest_retry: Duration,
}

/// How `provider` is polled without any configuration; `None` for an unknown provider.
#[must_use]
pub fn defaults_of(provider: &str) -> Option<ProviderDefaults> {
    let (tree, declared) = layers::merged(DEFAULTS, &[], std::iter::empty()).ok()?;
    let layout = read(tree, &declared, &Problems::default());
    layout.providers.into_iter().find(|read| read.descriptor.name == provider)?.defaults()
}

/// The settings, unless there are problems.
fn finish<T>(settings: Option<T>, problems: Problems) -> Result<T, ConfigError> {
    match (settings, problems.into_list()) {
        (Some(settings), problems) if problems.is_empty() => Ok(settings),
        (_, problems) => Err(ConfigError(problems)),
    }
}

/// All sections as they were read: every key is known and of its form, but nothing is opened yet.
struct Layout {
    database: Option<(Option<reader::Secret>, u32, Duration)>,
    log: Option<Log>,
    ops: Option<Ops>,
    worker: Option<Worker>,
    journal: Option<Journal>,
    providers: Vec<provider::Read>,
}

fn read(tree: layers::Table, declared: &[&'static Descriptor], problems: &Problems) -> Layout {
    let mut root = Section::new(String::new(), tree, problems);
    let layout = Layout {
        database: read_database(root.section("database")),
        log: read_log(root.section("log")),
        ops: read_ops(root.section("ops")),
        worker: read_worker(root.section("worker")),
        journal: read_journal(root.section("journal")),
        providers: read_providers(root.section("providers"), declared),
    };
    root.finish();
    layout
}

fn read_database(mut section: Section<'_>) -> Option<(Option<reader::Secret>, u32, Duration)> {
    let url = section.secret("url");
    let max_connections = section.number("max_connections", 1..=10_000);
    let connect_timeout = section.duration("connect_timeout");
    section.finish();
    Some((url, max_connections?, connect_timeout?))
}

fn read_log(mut section: Section<'_>) -> Option<Log> {
    let format = section.parsed("format", |text| match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err("must be \"json\" or \"text\"".into()),
    });
    let filter = section.parsed("filter", |text| telemetry::filter(text).map(|_| text.to_owned()));
    section.finish();
    Some(Log { format: format?, filter: filter? })
}

fn read_ops(mut section: Section<'_>) -> Option<Ops> {
    let listen = section.parsed("listen", |text| match text {
        "" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| "must be an address and a port, such as \"127.0.0.1:9464\", or empty".into()),
    });
    let max_overdue = section.duration("max_overdue");
    section.finish();
    Some(Ops { listen: listen?, max_overdue: max_overdue? })
}

fn read_worker(mut section: Section<'_>) -> Option<Worker> {
    let shutdown_grace = section.duration("shutdown_grace");
    let lease = section.duration("lease");
    let max_in_flight = section.number("max_in_flight", 1..=100_000);
    let max_held = section.number("max_held", 1..=100_000_000);
    section.finish();
    Some(Worker { shutdown_grace: shutdown_grace?, lease: lease?, max_in_flight: max_in_flight?, max_held: max_held? })
}

fn read_journal(mut section: Section<'_>) -> Option<Journal> {
    let retention = section.duration_from("retention", Duration::from_secs(86_400));
    section.finish();
    Some(Journal { retention: retention? })
}

fn read_providers(mut section: Section<'_>, declared: &[&'static Descriptor]) -> Vec<provider::Read> {
    let compiled = providers::REGISTRY.iter().filter_map(|descriptor| providers::find(descriptor.name));
    let known = compiled.chain(declared.iter().copied());
    let read = known.map(|descriptor| provider::read(descriptor, section.section(descriptor.name))).collect();
    section.finish();
    read
}

impl Layout {
    /// The speed, or 1 after a mistake, which is noted.
    fn checked_speed(&self, speed: f64, problems: &Problems) -> f64 {
        if !(1.0..=HIGHEST_SPEED).contains(&speed) {
            problems.add(format!("--speed = {speed}: must be a number from 1 to {HIGHEST_SPEED}"));
            return 1.0;
        }
        for provider in &self.providers {
            provider.check_speed(speed, problems);
        }
        speed
    }

    /// Opens what is enabled, with its secrets. `None` after a mistake, which is noted.
    fn open(self, speed: f64, secrets: Secrets, problems: &Problems) -> Option<Config> {
        let speed = self.checked_speed(speed, problems);
        for provider in &self.providers {
            provider.check_lease(self.worker.as_ref().map(|worker| worker.lease), problems);
        }
        let enabled = self.providers.into_iter().filter(|provider| provider.enabled);
        let providers = enabled.filter_map(|provider| provider.open(speed, secrets, problems)).collect();
        let (url, max_connections, connect_timeout) = self.database?;
        let url = url.and_then(|url| database_url(url).map_err(|problem| problems.add(problem)).ok());
        Some(Config {
            database: Database { url, max_connections, connect_timeout },
            log: self.log?,
            ops: self.ops?,
            worker: self.worker?,
            journal: self.journal?,
            providers,
            left: Vec::new(),
            speed,
        })
    }
}

fn database_url(url: reader::Secret) -> Result<SecretString, String> {
    let url = url.reveal()?;
    let text = url.expose_secret();
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        Ok(url)
    } else {
        Err("database.url: must begin with postgres:// or postgresql://".into())
    }
}

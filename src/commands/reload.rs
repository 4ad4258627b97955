//! A configuration that is read anew while the daemon runs: what has changed, and what of it can be applied.

use crate::config::{self, Config, ConfigError, Fingerprints};
use crate::metrics::Metrics;
use crate::telemetry::{Output, event};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Notify;
use tracing::{error, info};

/// What is read once: the connections, the port and the form of the log are there for good.
const FOR_GOOD: [&str; 3] = ["database.", "log.format", "ops.listen"];

/// Where the configuration comes from, as the command line says.
#[derive(Clone)]
pub struct Source {
    /// The files, in their order.
    pub files: Vec<PathBuf>,
    /// By what the rules' durations are divided.
    pub speed: f64,
    /// The accounts that are served, as patterns.
    pub accounts: Vec<String>,
}

impl Source {
    /// Reads it.
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.files, config::environment(), self.speed)?.serving(&self.accounts)
    }

    fn fingerprints(&self) -> Result<Fingerprints, ConfigError> {
        config::fingerprints(&self.files, config::environment())
    }
}

/// A running daemon's configuration, and when to read it anew.
pub struct Reloads<'a> {
    source: Source,
    asked: Arc<Notify>,
    log: &'a Output,
    known: Fingerprints,
}

/// A configuration that was read anew.
pub struct Read {
    /// What is to be applied; what needs a restart is as it was.
    pub config: Config,
    known: Fingerprints,
    changed: Vec<String>,
    restart: Vec<String>,
}

impl Read {
    /// Whether the daemon has to take anything from it.
    pub fn is_new(&self) -> bool {
        self.changed.iter().any(|key| key != "log.filter")
    }
}

impl<'a> Reloads<'a> {
    /// `asked`: notified when the configuration is to be read anew.
    pub fn new(source: Source, asked: Arc<Notify>, log: &'a Output) -> Result<Self, ConfigError> {
        Ok(Self { known: source.fingerprints()?, source, asked, log })
    }

    /// Waits until the configuration is to be read anew, and reads it. A configuration that cannot
    /// be read is reported and counted, and changes nothing.
    pub async fn next(&self, running: &Config, metrics: &Metrics) -> Read {
        loop {
            self.asked.notified().await;
            match self.read(running).await {
                Ok(read) => return read,
                Err(why) => self.reject(metrics, &why),
            }
        }
    }

    async fn read(&self, running: &Config) -> Result<Read, String> {
        let source = self.source.clone();
        // Judging declared providers takes a while.
        let read = tokio::task::spawn_blocking(move || {
            let known = source.fingerprints()?;
            source.load().map(|config| (known, config))
        });
        let (known, mut config) = read.await.map_err(|_| "it cannot be read".to_owned())?.map_err(|error| error.to_string())?;
        if config.providers.iter().all(|provider| provider.accounts.is_empty()) {
            return Err("no provider is enabled any more: stop the daemon instead".into());
        }
        crate::telemetry::filter(&config.log.filter).map_err(|why| format!("log.filter: {why}"))?;
        config.database.clone_from(&running.database);
        config.log.format = running.log.format;
        config.ops.listen = running.ops.listen;
        let keys = self.known.keys().chain(known.keys().filter(|key| !self.known.contains_key(*key)));
        let mut differ: Vec<String> = keys.filter(|key| self.known.get(*key) != known.get(*key)).cloned().collect();
        differ.sort_unstable();
        let (restart, changed) = differ.into_iter().partition(|key| FOR_GOOD.iter().any(|fixed| key.starts_with(fixed)));
        Ok(Read { config, known, changed, restart })
    }

    /// Nothing is changed, because of this.
    pub fn reject(&self, metrics: &Metrics, why: &str) {
        metrics.reload(false);
        error!(
            event = event::CONFIG_REJECTED,
            error = why,
            "the configuration is not applied, the one of before is in force: {why}"
        );
    }

    /// The configuration is in force. `unwritten`: why the last polls of the time before could not
    /// be written down.
    pub fn applied(&mut self, read: Read, metrics: &Metrics, unwritten: Option<&str>) {
        let Read { config, mut known, changed, restart } = read;
        // Reported again each time until the restart.
        for key in &restart {
            match self.known.get(key) {
                Some(before) => known.insert(key.clone(), before.clone()),
                None => known.remove(key),
            };
        }
        self.known = known;
        if let Err(why) = self.log.set_filter(&config.log.filter) {
            return self.reject(metrics, &format!("log.filter: {why}"));
        }
        metrics.reload(true);
        let list = |keys: &[String]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
        let mut words = format!("the configuration was read anew; changed: {}", list(&changed));
        if !restart.is_empty() {
            words += &format!("; needs a restart: {}", restart.join(", "));
        }
        if let Some(why) = unwritten {
            words += &format!("; {why}, so what it was about is polled again after the lease");
        }
        info!(event = event::CONFIG_RELOADED, changed = changed.join(", "), restart = restart.join(", "), "{words}");
    }
}

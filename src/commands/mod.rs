//! The commands, one file each.

use crate::config::{Config, ConfigError};
use crate::explain;
use crate::providers;
use crate::store::{SchemaError, Store, StoreError};
use crate::text::count;
use anyhow::anyhow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

pub mod audit;
pub mod check;
pub mod completions;
pub mod config;
pub mod demo;
pub mod list;
pub mod man;
pub mod migrate;
pub mod pause;
pub mod plan;
mod play;
pub mod provider;
pub mod reload;
pub mod retry;
pub mod run;
pub mod show;
pub mod simulate;
pub mod status;
mod text;

/// The declared providers of these files, for the simulator. Errors where a file is refused.
pub fn plays(files: &[std::path::PathBuf]) -> Result<Vec<std::sync::Arc<dyn crate::simulator::declared::Play>>, ConfigError> {
    play::files(files)
}

/// The database for a command that reads all of a table. See [`open_store`].
async fn open_store_for_reading(config: &Config) -> anyhow::Result<Store> {
    config.database.url()?;
    reached(Store::open(&config.database)?).await
}

/// The database, reached and with the schema that this binary needs. Errors name what is wrong and
/// how to fix it.
async fn open_store(config: &Config) -> anyhow::Result<Store> {
    config.database.url()?;
    reached(Store::open_for_ops(&config.database)?).await
}

async fn reached(store: Store) -> anyhow::Result<Store> {
    match store.check_schema().await {
        Ok(_) => Ok(store),
        Err(SchemaError::Store(unfit @ StoreError::Unfit(_))) => Err(unfit.into()),
        Err(SchemaError::Store(error)) => {
            // A pool that waited in vain does not say what for; one more attempt does.
            let cause = store.reach().await.err().unwrap_or(error);
            Err(anyhow!("the database at {} cannot be reached: {cause}", store.address()))
        }
        Err(other) => Err(other.into()),
    }
}

/// The accounts that there are: those that daemons have served, that have transactions, or that are
/// configured here.
struct Known(BTreeMap<String, BTreeSet<String>>);

impl Known {
    async fn of(store: &Store, config: &Config) -> Result<Self, StoreError> {
        let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for name in store.provider_names().await? {
            known.entry(name.clone()).or_default().extend(store.accounts_of(&name).await?);
        }
        for descriptor in &providers::REGISTRY {
            known.entry(descriptor.name.to_owned()).or_default();
        }
        for provider in &config.providers {
            known.entry(provider.descriptor.name.to_owned()).or_default().extend(provider.names.iter().cloned());
        }
        Ok(Self(known))
    }

    /// All accounts of a provider.
    fn accounts(&self, provider: &str) -> Vec<String> {
        self.0.get(provider).into_iter().flatten().cloned().collect()
    }

    /// Errors, as misuse, when there is no such provider or account.
    fn check(&self, provider: Option<&str>, account: Option<&str>) -> Result<(), ConfigError> {
        if let Some(provider) = provider
            && !self.0.contains_key(provider)
        {
            let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
            return Err(ConfigError::one(format!(
                "{provider:?} is no provider that is known here: there are {}",
                names.join(", ")
            )));
        }
        let Some(account) = account else { return Ok(()) };
        let mut of = self.0.iter().filter(|(name, _)| provider.is_none_or(|wanted| *name == wanted));
        if of.any(|(_, accounts)| accounts.contains(account)) {
            return Ok(());
        }
        let of = self.0.iter().filter(|(name, _)| provider.is_none_or(|wanted| *name == wanted));
        let names: Vec<String> =
            of.flat_map(|(name, accounts)| accounts.iter().map(move |a| format!("{name}/{a}"))).take(50).collect();
        let names = if names.is_empty() { "none yet".into() } else { names.join(", ") };
        Err(ConfigError::one(format!("{account:?} is no account that is known here: there are {names}")))
    }
}

/// Errors, as misuse, unless the provider is known.
async fn known_provider(store: &Store, config: &Config, provider: &str) -> anyhow::Result<()> {
    Ok(Known::of(store, config).await?.check(Some(provider), None)?)
}

/// Errors, as misuse, when neither paypoll nor any parked transaction knows that reason.
async fn check_reason(store: &Store, reason: &str) -> anyhow::Result<()> {
    if explain::reason(reason).is_some() {
        return Ok(());
    }
    let parked = store.parked_by_reason().await?;
    let wanted: String = reason.chars().take(100).collect();
    if parked.iter().any(|kind| kind.reason.as_deref() == Some(&wanted)) {
        return Ok(());
    }
    let found: Vec<String> = parked
        .iter()
        .take(20)
        .map(|kind| format!("{:?} ({})", kind.reason.as_deref().unwrap_or_default(), count(kind.count)))
        .collect();
    let found = if found.is_empty() { "nothing is parked".into() } else { format!("parked are {}", found.join(", ")) };
    let own: Vec<&str> = explain::REASONS.iter().map(|reason| reason.name).collect();
    Err(ConfigError::one(format!(
        "--reason {reason:?}: no transaction is parked with it; {found}; paypoll's own reasons are {}",
        own.join(", ")
    ))
    .into())
}

/// Who types this: the name given, else the user of this machine.
fn actor(name: Option<&str>) -> String {
    if let Some(name) = name.map(str::trim).filter(|name| !name.is_empty()) {
        return name.to_owned();
    }
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let user = set("USER").or_else(|| set("LOGNAME")).unwrap_or_else(user);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = Some(host.trim().to_owned()).filter(|host| !host.is_empty()).or_else(|| set("HOSTNAME"));
    format!("{user}@{}", host.as_deref().unwrap_or("localhost"))
}

/// The name of this process's user where the machine's own list has it, else the number.
fn user() -> String {
    let id = rustix::process::getuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| format!("uid {id}"))
}

/// Prints a command's error on `stderr` and returns the exit code: 0 fine, 1 the work failed, 2
/// usage or configuration error.
///
/// Output that is no longer read (`paypoll plan dapi | head`) is no error.
pub fn conclude(result: anyhow::Result<()>, stderr: &mut impl Write) -> u8 {
    let Err(error) = result else { return 0 };
    let is_closed_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    if error.downcast_ref().is_some_and(is_closed_pipe) {
        return 0;
    }
    // Where the errors are not read either, the exit code still shows the failure.
    let _ = writeln!(stderr, "{}", told(&error));
    let is_misconfigured = error.is::<ConfigError>()
        || matches!(error.downcast_ref(), Some(StoreError::Url(_)))
        || matches!(error.downcast_ref(), Some(SchemaError::Store(StoreError::Url(_))));
    if is_misconfigured { 2 } else { 1 }
}

/// An error with its causes, each said once: libraries repeat their causes' words in their own.
fn told(error: &anyhow::Error) -> String {
    let mut causes = error.chain().map(ToString::to_string);
    let mut last = causes.next().unwrap_or_default();
    let mut text = last.clone();
    for cause in causes {
        if !text.contains(&cause) && !cause.contains(&last) {
            text = format!("{text}: {cause}");
            last = cause;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    /// An error whose words already hold its cause's, as sqlx's do.
    #[derive(Debug)]
    struct Repeating(io::Error);

    impl fmt::Display for Repeating {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "error returned from database: {}", self.0)
        }
    }

    impl std::error::Error for Repeating {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn a_cause_is_told_once_however_often_it_is_wrapped() {
        let cause = || Repeating(io::Error::other("no such role"));
        assert_eq!(told(&anyhow!(cause())), "error returned from database: no such role");
        assert_eq!(told(&anyhow!(cause()).context("no such role")), "no such role");
        let wrapped =
            anyhow!(cause()).context("error returned from database: no such role").context("the schema is not to be read");
        assert_eq!(told(&wrapped), "the schema is not to be read: error returned from database: no such role");
        assert_eq!(told(&anyhow!("the end").context("the middle").context("the beginning")), "the beginning: the middle: the end");
    }

    #[test]
    fn a_connection_string_that_cannot_be_used_is_a_configuration_error() {
        let code = |error: StoreError| conclude(Err(error.into()), &mut Vec::new());
        assert_eq!((code(StoreError::Url("x".into())), code(StoreError::Database(sqlx::Error::PoolTimedOut))), (2, 1));
    }
}

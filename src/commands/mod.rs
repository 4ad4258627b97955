//! The commands, one file each.

use crate::config::{Config, ConfigError};
use crate::store::{SchemaError, Store, StoreError};
use anyhow::anyhow;
use std::io::{self, Write};

pub mod audit;
pub mod check;
pub mod completions;
pub mod demo;
pub mod man;
pub mod migrate;
pub mod plan;
pub mod provider;
pub mod retry;
pub mod run;
pub mod show;
pub mod simulate;
pub mod status;
mod text;

/// The database, reached and with the schema that this binary needs. Errors name what is wrong and how to mend it.
async fn open_store(config: &Config) -> anyhow::Result<Store> {
    config.database.url()?;
    let store = Store::open(&config.database)?;
    match store.check_schema().await {
        Ok(_) => Ok(store),
        Err(SchemaError::Store(unfit @ StoreError::Unfit(_))) => Err(unfit.into()),
        Err(SchemaError::Store(error)) => {
            // A pool that waited in vain does not say what for; one more attempt does.
            let cause = store.reach().await.err().unwrap_or(error);
            Err(anyhow!("the database cannot be reached: {cause}"))
        }
        Err(other) => Err(other.into()),
    }
}

/// Tells a command's error on `stderr` and gives the exit code: 0 fine, 1 the work failed, 2 usage or configuration error.
///
/// Output that nobody reads any more (`paypoll plan dapi | head`) is no error.
pub fn conclude(result: anyhow::Result<()>, stderr: &mut impl Write) -> u8 {
    let Err(error) = result else { return 0 };
    let is_closed_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    if error.downcast_ref().is_some_and(is_closed_pipe) {
        return 0;
    }
    // Where nobody reads the errors either, the exit code still tells.
    let _ = writeln!(stderr, "{}", told(&error));
    let is_misconfigured = error.is::<ConfigError>() || matches!(error.downcast_ref(), Some(StoreError::Url(_)));
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

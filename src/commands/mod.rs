//! The commands, one file each.

use crate::config::{Config, ConfigError};
use crate::store::{SchemaError, Store};
use anyhow::anyhow;
use std::io::{self, Write};

pub mod audit;
pub mod check;
pub mod demo;
pub mod migrate;
pub mod plan;
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
        Ok(()) => Ok(store),
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
    let _ = writeln!(stderr, "{error:#}");
    if error.is::<ConfigError>() { 2 } else { 1 }
}

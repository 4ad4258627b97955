//! `paypoll migrate`: brings the schema to this binary's version.

use crate::config::Config;
use crate::store::{self, Schema};
use secrecy::ExposeSecret;
use std::io::Write;

/// Applies the migrations that are missing. Safe from several replicas at once: they take turns.
pub async fn run(config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    let schema = store::migrate(config.database.url()?.expose_secret()).await?;
    writeln!(out, "the schema paypoll is at version {}", schema.version())?;
    if let Schema::Newer { known, .. } = schema {
        writeln!(out, "it is newer than version {known}, which this paypoll was built for: nothing was changed")?;
    }
    Ok(())
}

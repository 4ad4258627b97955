//! `paypoll migrate`: brings the schema to this binary's version.

use crate::config::Config;
use crate::store;
use secrecy::ExposeSecret;
use std::io::Write;

/// Applies the migrations that are missing. Safe from several replicas at once: they take turns.
pub async fn run(config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    let version = store::migrate(config.database.url()?.expose_secret()).await?;
    writeln!(out, "the schema paypoll is at version {version}")?;
    Ok(())
}

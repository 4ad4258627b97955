//! `paypoll migrate`: brings the schema to this binary's version.

use crate::config::Config;
use crate::store::{self, Schema};
use secrecy::ExposeSecret;
use std::io::Write;

/// Applies the migrations that are missing, and lists them. Safe from several replicas at once:
/// they take turns.
pub async fn run(config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    let migrated = store::migrate(config.database.url()?.expose_secret()).await?;
    for (version, description) in &migrated.applied {
        writeln!(out, "applied {version:04} {description}")?;
    }
    if migrated.applied.is_empty() {
        writeln!(out, "nothing to do")?;
    }
    writeln!(out, "the schema paypoll is at version {}", migrated.schema.version())?;
    if let Schema::Newer { known, .. } = migrated.schema {
        writeln!(out, "it is newer than version {known}, which this paypoll was built for: nothing was changed")?;
    }
    Ok(())
}

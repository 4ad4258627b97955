//! `paypoll config`: every setting that is in force, with the layer that it comes from. Secrets are redacted.

use crate::config::{self, Config};
use crate::text::plain;
use std::io::Write;
use std::path::PathBuf;

/// Prints the settings as TOML, one key a line, in the order of their names. Errors, behind them,
/// when they cannot be used.
pub fn run(files: &[PathBuf], out: &mut impl Write) -> anyhow::Result<()> {
    let settings = config::settings(files, config::environment())?;
    let width = settings.iter().map(|setting| setting.key.chars().count() + setting.value.chars().count() + 3).max().unwrap_or(0);
    for setting in &settings {
        let line = format!("{} = {}", setting.key, plain(&setting.value));
        writeln!(out, "{line:<width$}  # {}", plain(&setting.origin), width = width.min(60))?;
    }
    out.flush()?;
    Config::load_without_secrets(files, config::environment(), 1.0)?;
    Ok(())
}

//! `paypoll provider`: a provider's file, from a skeleton to one that is in order.

use crate::cli;
use crate::config::{self, Config, ConfigError};
use crate::providers::declared::{Declaration, Inspection};
use std::io::Write;
use std::path::{Path, PathBuf};

mod live;
mod new;
mod show;
mod test;

pub(super) use show::write_meaning;

/// Runs the command. `load` reads the configuration, for what needs one.
pub fn run(asked: &cli::Provider, load: impl FnOnce() -> Result<Config, ConfigError>, out: &mut impl Write) -> anyhow::Result<()> {
    match &asked.action {
        cli::ProviderAction::New { name } => new::run(name, out),
        cli::ProviderAction::Show { provider } => show::run(provider, load, out),
        cli::ProviderAction::Test(asked) if asked.live => live::run(asked, load()?, out),
        cli::ProviderAction::Test(asked) => test::run(&asked.files, out),
    }
}

/// Reads and tries a file. The error is that of a refused configuration: it exits 2.
pub(in crate::commands) fn inspect(file: &Path) -> Result<Inspection, ConfigError> {
    let name = file.display().to_string();
    let bytes = config::read_declaration(file).map_err(|why| ConfigError::one(format!("{name}: {why}")))?;
    Declaration::inspect(&name, &bytes).map_err(ConfigError::all)
}

/// Files that declare the same provider cannot all be meant.
fn check_names(inspected: &[(PathBuf, Inspection)]) -> Result<(), ConfigError> {
    for (index, (file, inspection)) in inspected.iter().enumerate() {
        let name = inspection.declaration().name();
        if let Some((other, _)) = inspected[..index].iter().find(|(_, other)| other.declaration().name() == name) {
            let (file, other) = (file.display(), other.display());
            return Err(ConfigError::one(format!("{file}: name: {name:?} is the name in {other} too; give each its own")));
        }
    }
    Ok(())
}

//! `paypoll provider new NAME`: a file with every required key, and a question in place of each value.

use crate::config::ConfigError;
use std::io::Write;

const SKELETON: &str = include_str!("skeleton.toml");

/// Prints the skeleton. Errors on what is no name.
pub(super) fn run(name: &str, out: &mut impl Write) -> anyhow::Result<()> {
    crate::providers::declared::check_name(name).map_err(|why| ConfigError::one(format!("NAME = {name:?}: {why}")))?;
    out.write_all(SKELETON.replace("NAME", name).as_bytes())?;
    Ok(out.flush()?)
}

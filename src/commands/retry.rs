//! placeholder
use crate::cli;
use crate::config::Config;
use std::io::Write;
/// placeholder
pub async fn run(_config: &Config, _asked: &cli::Retry, _out: &mut impl Write) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}

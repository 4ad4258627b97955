//! placeholder
use crate::cli;
/// placeholder
pub fn run(_asked: &cli::Demo) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}

//! `paypoll retry`: an operator reopens parked transactions, named or described; a new polling window starts.

use super::text::{cut, plain};
use crate::cli;
use crate::config::Config;
use crate::store::{Parked, Reopened};
use anyhow::bail;
use std::collections::HashSet;
use std::io::{self, Write};
use uuid::Uuid;

/// So many are reopened in one statement: few enough for its locks to be short.
const AT_ONCE: usize = 500;
/// A longer reason is cut.
const LONGEST_REASON: usize = 60;

/// Reopens what may be reopened and prints what became of each. Errors when any could not be.
pub async fn run(config: &Config, asked: &cli::Retry, out: &mut impl Write) -> anyhow::Result<()> {
    let store = super::open_store(config).await?;
    let ids = match asked.ids.as_slice() {
        [] => store.parked(&described(asked)).await?,
        named => without_repeats(named),
    };
    if ids.is_empty() {
        writeln!(out, "no unresolved or invalid transaction is like that")?;
        return Ok(());
    }
    let (mut reopened, mut left) = (0_usize, 0_usize);
    for ids in ids.chunks(AT_ONCE) {
        for one in store.reopen(ids, !asked.dry_run).await? {
            *(if one.obstacle.is_none() { &mut reopened } else { &mut left }) += 1;
            tell(out, &one, asked.dry_run)?;
        }
    }
    store.close().await;
    writeln!(out, "{reopened} {}", if asked.dry_run { "would be reopened: nothing was changed" } else { "reopened" })?;
    out.flush()?;
    if left > 0 {
        bail!("{left} of {} transactions cannot be reopened", reopened + left);
    }
    Ok(())
}

fn described(asked: &cli::Retry) -> Parked {
    Parked { provider: asked.provider.clone(), account: asked.account.clone(), reason: asked.reason.clone(), since: asked.since }
}

fn without_repeats(ids: &[Uuid]) -> Vec<Uuid> {
    let mut seen = HashSet::new();
    ids.iter().copied().filter(|id| seen.insert(*id)).collect()
}

fn tell(out: &mut impl Write, one: &Reopened, dry_run: bool) -> io::Result<()> {
    let name = match &one.name {
        Some((provider, account, reference)) => plain(&format!("{provider}/{account} {reference}")),
        None => "–".into(),
    };
    if let Some(obstacle) = &one.obstacle {
        return writeln!(out, "not reopened    {}  {name}: {}", one.id, plain(obstacle));
    }
    let state = one.state.as_deref().unwrap_or_default();
    let reason = one.reason.as_ref().map_or_else(String::new, |reason| format!(", {}", cut(reason, LONGEST_REASON)));
    let verb = if dry_run { "would be reopened" } else { "reopened" };
    writeln!(out, "{verb:<15} {}  {name}: was {state}{reason}", one.id)
}

//! `paypoll pause`, `resume` and `probe`: an operator's hand on whole accounts. Their effect is
//! kept in `paypoll.accounts`, for every replica and across restarts.

use super::Known;
use crate::cli;
use crate::config::{Config, ConfigError};
use crate::store::Probe;
use crate::text::{moment, plain, span};
use anyhow::bail;
use std::io::Write;

/// Pauses a provider's accounts, or one of them.
pub async fn pause(config: &Config, args: &cli::Pause, out: &mut impl Write) -> anyhow::Result<()> {
    if args.because.trim().is_empty() {
        return Err(ConfigError::one("--because = \"\": says why, to whoever looks next".into()).into());
    }
    let store = super::open_store(config).await?;
    let (provider, accounts) = meant(&store, config, &args.account).await?;
    let actor = super::actor(args.actor.name.as_deref());
    let until = store.pause(&provider, &accounts, &args.because, args.length, &actor).await?;
    store.close().await;
    let until = match (until, args.length) {
        (Some(until), Some(length)) => format!("until {} UTC, for {}", moment(until), span(length)),
        _ => "until `paypoll resume`".into(),
    };
    for account in &accounts {
        let name = plain(&format!("{provider}/{account}"));
        writeln!(out, "{name} is paused {until}, by {}: {}", plain(&actor), plain(&args.because))?;
    }
    writeln!(out, "no replica sends anything for it from its next look at the accounts on, at most a second from now")?;
    Ok(())
}

/// Resumes a provider's accounts, or one of them.
pub async fn resume(config: &Config, args: &cli::Resume, out: &mut impl Write) -> anyhow::Result<()> {
    let store = super::open_store(config).await?;
    let (provider, accounts) = meant(&store, config, &args.account).await?;
    let actor = super::actor(args.actor.name.as_deref());
    let were = store.resume(&provider, &accounts, &actor).await?;
    store.close().await;
    for (account, was_paused) in accounts.iter().zip(were) {
        let name = plain(&format!("{provider}/{account}"));
        let what = if was_paused { "is asked again" } else { "was not paused" };
        writeln!(out, "{name} {what}")?;
    }
    Ok(())
}

/// Has the next probe of an account's open circuit sent at once.
pub async fn probe(config: &Config, args: &cli::Probe, out: &mut impl Write) -> anyhow::Result<()> {
    let Some((provider, account)) = args.account.split_once('/') else {
        return Err(ConfigError::one(format!("{:?}: name one account, as PROVIDER/ACCOUNT", args.account)).into());
    };
    let store = super::open_store(config).await?;
    Known::of(&store, config).await?.check(Some(provider), Some(account))?;
    let name = plain(&args.account);
    let asked = store.probe_now(provider, account).await?;
    store.close().await;
    match asked {
        Probe::Closed => writeln!(out, "{name}: its circuit is closed, it is asked anyway")?,
        Probe::Unknown => bail!("{name}: no daemon has ever served this account, so there is nothing to probe"),
        Probe::Asked { paused: true, .. } => {
            bail!("{name} is paused by an operator: not even a probe is sent; `paypoll resume {name}` first");
        }
        Probe::Asked { served: false, .. } => bail!("{name}: no running daemon serves this account, so nobody sends the probe"),
        Probe::Asked { reason, .. } => {
            let reason = plain(reason.as_deref().unwrap_or("no reason is known"));
            writeln!(
                out,
                "{name}: the next probe is sent now, with the first transaction that is due (the circuit is open: {reason})"
            )?;
        }
    }
    Ok(())
}

/// The accounts that are meant: the one that is named, or all of a provider that are known.
async fn meant(store: &crate::store::Store, config: &Config, name: &str) -> anyhow::Result<(String, Vec<String>)> {
    let known = Known::of(store, config).await?;
    if let Some((provider, account)) = name.split_once('/') {
        known.check(Some(provider), Some(account))?;
        return Ok((provider.to_owned(), vec![account.to_owned()]));
    }
    known.check(Some(name), None)?;
    let accounts = known.accounts(name);
    if accounts.is_empty() {
        bail!("no account of {name} is known yet: name the one that is meant, as {name}/ACCOUNT");
    }
    Ok((name.to_owned(), accounts))
}

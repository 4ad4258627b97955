//! `paypoll retry`: an operator reopens parked transactions, named or described; a new polling window starts.

use super::Known;
use super::text::Paint;
use crate::cli;
use crate::config::Config;
use crate::explain::{self, Rules};
use crate::store::{Group, Meant, Reopened, Store};
use crate::text::{about, count, cut, plain};
use anyhow::bail;
use std::collections::{BTreeMap, HashSet};
use std::io::{self, IsTerminal as _, Write};
use uuid::Uuid;

/// How many are reopened in one statement: few enough for its locks to be short.
const AT_ONCE: usize = 500;
/// More than this many are reopened only after a yes, and not named one by one.
const MANY: usize = 100;
/// A longer reason is cut.
const LONGEST_REASON: usize = 60;

/// Reopens what may be reopened and prints what became of each. Errors when any could not be.
pub async fn run(config: &Config, args: &cli::Retry, out: &mut impl Write) -> anyhow::Result<()> {
    let store = super::open_store(config).await?;
    check(&store, config, args).await?;
    let (ids, unknown) = ids(&store, args).await?;
    if ids.is_empty() && unknown.is_empty() {
        writeln!(out, "no parked transaction matches")?;
        return Ok(());
    }
    for name in &unknown {
        writeln!(out, "not reopened    {}: there is no such transaction", plain(name))?;
    }
    let groups = store.parked_groups(&ids).await?;
    foretell(out, &groups, &Rules::of(config), Paint::of_stdout())?;
    if ids.len() > MANY && !args.dry_run && !args.yes && !agreed(out, ids.len())? {
        bail!("nothing was changed");
    }
    let actor = super::actor(args.actor.name.as_deref());
    let (mut reopened, mut left) = (0_usize, unknown.len());
    for chunk in ids.chunks(AT_ONCE) {
        let answers = match args.dry_run {
            true => store.would_reopen(chunk).await?,
            false => store.reopen(chunk, args.because.as_deref(), &actor).await?,
        };
        for one in answers {
            *(if one.obstacle.is_none() { &mut reopened } else { &mut left }) += 1;
            if one.obstacle.is_some() || ids.len() <= MANY {
                tell(out, &one, args.dry_run)?;
            }
        }
    }
    store.close().await;
    conclude(out, args, reopened, &actor)?;
    if left > 0 {
        bail!("{left} of {} transactions cannot be reopened", reopened + left);
    }
    Ok(())
}

fn conclude(out: &mut impl Write, args: &cli::Retry, reopened: usize, actor: &str) -> io::Result<()> {
    if args.dry_run {
        writeln!(out, "{reopened} would be reopened: nothing was changed")?;
    } else {
        let because = args.because.as_deref().map_or_else(String::new, |because| format!(": {}", plain(because)));
        let by = if reopened > 0 { format!(" by {}{because}", plain(actor)) } else { String::new() };
        writeln!(out, "{reopened} reopened{by}")?;
    }
    out.flush()
}

/// Errors when a filter names something that does not exist: it would match nothing, and look as if
/// all were well.
async fn check(store: &Store, config: &Config, args: &cli::Retry) -> anyhow::Result<()> {
    let known = Known::of(store, config).await?;
    known.check(args.provider.as_deref(), args.account.as_deref())?;
    match &args.reason {
        Some(reason) => super::check_reason(store, reason).await,
        None => Ok(()),
    }
}

/// The transactions that are meant, and the names that lead to none.
async fn ids(store: &Store, args: &cli::Retry) -> anyhow::Result<(Vec<Uuid>, Vec<String>)> {
    if args.transactions.is_empty() {
        let meant = Meant {
            provider: args.provider.clone(),
            account: args.account.clone(),
            reason: args.reason.clone(),
            since: args.since,
            limit: args.limit,
        };
        return Ok((store.parked(&meant).await?, Vec::new()));
    }
    let (mut ids, mut seen, mut unknown) = (Vec::new(), HashSet::new(), Vec::new());
    for name in &args.transactions {
        let found = match Uuid::try_parse(name) {
            Ok(id) => Some(id),
            Err(_) => by_reference(store, name).await?,
        };
        match found {
            Some(id) if seen.insert(id) => ids.push(id),
            Some(_) => {}
            None => unknown.push(name.clone()),
        }
    }
    ids.truncate(args.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)));
    Ok((ids, unknown))
}

/// The one transaction of that reference that can be meant. Errors when there are several.
async fn by_reference(store: &Store, reference: &str) -> anyhow::Result<Option<Uuid>> {
    let mut found = store.by_reference(reference).await?;
    if found.len() > 1 {
        found.retain(|one| matches!(&*one.state, "unresolved" | "invalid"));
    }
    if found.len() > 1 {
        let names: Vec<String> = found.iter().map(|one| format!("{} of {}/{}", one.id, one.provider, one.account)).collect();
        bail!("{reference:?} is the reference of several parked transactions: name the id, of {}", plain(&names.join(", ")));
    }
    Ok(found.first().map(|one| one.id))
}

/// How long the budgets need for them, and what would only come again.
fn foretell(out: &mut impl Write, groups: &[Group], rules: &Rules, paint: Paint) -> io::Result<()> {
    let mut accounts: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for group in groups {
        *accounts.entry((&group.provider, &group.account)).or_default() += group.count;
    }
    for ((provider, account), number) in accounts.iter().filter(|(_, number)| **number > 1) {
        if let Some(budget) = rules.budgets().get(*provider) {
            let needs = about(*number as f64 / budget);
            let name = plain(&format!("{provider}/{account}"));
            writeln!(out, "{name}: {} transactions, about {needs} of its whole budget ({budget} a second)", count(*number))?;
        }
    }
    for group in groups {
        let reason = group.reason.as_deref().unwrap_or_default();
        if let Some(warning) = explain::comes_again(reason, group.count, group.last_error.as_deref()) {
            let name = plain(&format!("{}/{}", group.provider, group.account));
            writeln!(out, "{}", paint.warning(&format!("warning: {name}: {warning}")))?;
        }
    }
    Ok(())
}

/// Whether the person at the terminal wants it; where there is none the command itself says so.
fn agreed(out: &mut impl Write, number: usize) -> io::Result<bool> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Ok(true);
    }
    write!(out, "Reopen {} transactions? [y/N] ", count(i64::try_from(number).unwrap_or(i64::MAX)))?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
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

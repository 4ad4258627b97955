//! `paypoll provider show NAME|FILE`: what a provider is to paypoll, compiled ones included.

use super::super::check;
use super::inspect;
use crate::config::{self, Config, ConfigError};
use crate::domain::Plan;
use crate::providers::declared::Declaration;
use crate::providers::{self, Descriptor};
use crate::text::plain;
use std::io::{self, Write};
use std::path::Path;

/// Prints what is known of the provider. Errors where there is none of that name and no such file.
pub(super) fn run(provider: &str, load: impl FnOnce() -> Result<Config, ConfigError>, out: &mut impl Write) -> anyhow::Result<()> {
    if let Some(descriptor) = providers::find(provider) {
        return Ok(compiled(out, descriptor)?);
    }
    let looks_like_a_file = provider.contains(['/', '.']) || Path::new(provider).exists();
    if looks_like_a_file {
        let declaration = inspect(Path::new(provider))?.accept().map_err(ConfigError::all)?;
        return Ok(declared(out, &declaration)?);
    }
    // A name that only the configuration knows; what else is wrong with it is of no concern here.
    let loaded = load();
    match (providers::find(provider).and_then(Descriptor::declaration), loaded) {
        (Some(declaration), _) => Ok(declared(out, declaration)?),
        (None, Err(error)) => Err(error.into()),
        (None, Ok(_)) => {
            let known: Vec<&str> = providers::all().iter().map(|descriptor| descriptor.name).collect();
            let mend = format!("is neither a file nor a known provider; known are {}", known.join(", "));
            Err(ConfigError::one(format!("NAME|FILE = {provider:?}: {mend}")).into())
        }
    }
}

fn field(out: &mut impl Write, name: &str, value: &str) -> io::Result<()> {
    writeln!(out, "{name:<13} {}", plain(value))
}

fn compiled(out: &mut impl Write, descriptor: &Descriptor) -> io::Result<()> {
    field(out, descriptor.name, "compiled in")?;
    let or_none = |list: &[&str]| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    field(out, "account keys", &or_none(descriptor.account_keys))?;
    field(out, "options", &or_none(descriptor.option_keys))?;
    let floors = check::floors(&descriptor.floors);
    field(out, "documented", floors.as_deref().unwrap_or("no floor"))?;
    if let Some(plan) = config::default_plan(descriptor.name) {
        write_plan(out, &plan)?;
    }
    field(out, "words", "see the provider's file in src/providers/ and docs/integrate.md")
}

fn write_plan(out: &mut impl Write, plan: &Plan) -> io::Result<()> {
    field(out, "plan", &check::plan(plan))
}

fn declared(out: &mut impl Write, declaration: &Declaration) -> io::Result<()> {
    field(out, declaration.name(), declaration.title())?;
    field(out, "base_url", declaration.base_url().unwrap_or("none: the configuration must name one"))?;
    field(out, "asks", &declaration.asks())?;
    let optional = |(name, required): (&str, bool)| if required { name.to_owned() } else { format!("{name} (optional)") };
    let list = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    field(out, "account keys", &list(declaration.account_keys().map(optional).collect()))?;
    field(out, "options", &list(declaration.options().map(optional).collect()))?;
    let param = |(name, required, secret): (&str, bool, bool)| {
        let secret = if secret { ", secret" } else { "" };
        if required { format!("{name} (required{secret})") } else { format!("{name} (optional{secret})") }
    };
    field(out, "params", &list(declaration.params().map(param).collect()))?;
    write_meaning(out, declaration)?;
    write_plan(out, declaration.plan())?;
    if let Some(because) = declaration.plan_because() {
        field(out, "", &format!("\"{}\" ({})", because.says, because.at))?;
    }
    field(out, "keeps", &list(declaration.keeps().map(str::to_owned).collect()))
}

/// File, hash, words and floors of a declared provider: what `check` tells of it too.
pub(in crate::commands) fn write_meaning(out: &mut impl Write, declaration: &Declaration) -> io::Result<()> {
    field(out, "declared in", declaration.origin())?;
    field(out, "SHA-256", declaration.sha256())?;
    field(out, "format", &declaration.format().to_string())?;
    for meant in declaration.words() {
        let rule = meant.rule.map(|rule| format!(" (rule {rule})")).unwrap_or_default();
        let end = if meant.is_final { ", final" } else { "" };
        field(out, "word", &format!("{:<24} {}{end}{rule}", meant.word, meant.means))?;
    }
    for meant in declaration.errors() {
        field(out, "error", &format!("{:<24} {}", meant.word, meant.means))?;
    }
    for because in declaration.floors() {
        let read = because.read.map(|read| format!(", read {read}")).unwrap_or_default();
        field(out, "documented", &format!("{}: \"{}\" ({}{read})", because.what, because.says, because.at))?;
    }
    if let Some(why) = declaration.no_floors() {
        field(out, "documented", &format!("no floor, says the file: {why}. Warning: nothing keeps a plan from asking too often"))?;
    }
    if let Some(why) = declaration.no_amount() {
        field(out, "amount", &format!("none, says the file: {why}. Warning: a success is believed whatever was paid"))?;
    }
    Ok(())
}

//! `paypoll man`: the manual pages, paypoll(1) and one for each command, such as paypoll-run(1).

use crate::cli::Cli;
use crate::config::ConfigError;
use clap::CommandFactory as _;
use clap_mangen::Man;
use std::io::Write;

/// Prints the page of `command`; without one, the page of paypoll itself.
pub fn run(command: Option<&str>, out: &mut impl Write) -> anyhow::Result<()> {
    let mut cli = Cli::command();
    // Hands the global options down to the commands.
    cli.build();
    let subject = match command {
        None => cli,
        Some(name) => page(&cli, name)?,
    };
    Man::new(subject).render(out)?;
    Ok(())
}

fn page(cli: &clap::Command, name: &str) -> Result<clap::Command, ConfigError> {
    let commands = || cli.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
    let found = commands().find(|command| command.get_name() == name);
    let found = found.ok_or_else(|| {
        let known: Vec<&str> = commands().map(clap::Command::get_name).collect();
        ConfigError::one(format!("there is no command {name:?}: the commands are {}", known.join(", ")))
    })?;
    Ok(found.clone())
}

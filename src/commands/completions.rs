//! `paypoll completions`: completions of commands and options for a shell.

use crate::cli::Cli;
use clap::CommandFactory as _;
use clap_complete::Shell;
use std::io::{self, Write};

/// Prints the script that the shell is to load.
pub fn run(shell: Shell, out: &mut impl Write) -> io::Result<()> {
    // In one piece: the generator fails loudly where its output is no longer read.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "paypoll", &mut script);
    out.write_all(&script)
}

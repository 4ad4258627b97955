//! `paypoll completions`: what makes a shell complete commands and options.

use crate::cli::Cli;
use clap::CommandFactory as _;
use clap_complete::Shell;
use std::io::{self, Write};

/// Prints the script that the shell is to load.
pub fn run(shell: Shell, out: &mut impl Write) -> io::Result<()> {
    // In one piece: the generator gives up loudly where nobody reads any more.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "paypoll", &mut script);
    out.write_all(&script)
}

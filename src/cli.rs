//! The command line: what can be typed. What the commands do stands in [`crate::commands`].

use crate::config::{HIGHEST_SPEED, duration};
use crate::domain::State;
use crate::store::Cursor;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that was typed.
#[derive(Debug, Parser)]
#[command(
    name = "paypoll",
    version,
    about = "Polls payment providers for the fate of pending transactions and writes every change of state back to PostgreSQL",
    after_help = "Options may stand before or after the command. Every key of the configuration can be set in the environment as \
                  PAYPOLL__SECTION__KEY; DATABASE_URL names the database.\n\
                  `paypoll completions SHELL` and `paypoll man [COMMAND]` print what a shell and man(1) want of it.\n\
                  Exit codes: 0 fine, 1 the work failed, 2 usage or configuration error."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Configuration file in TOML; may be given several times, later ones win
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Vec<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon until SIGTERM or SIGINT
    #[command(
        after_help = "A pattern is PROVIDER/ACCOUNT, in which * stands for any text. Accounts that no pattern matches are left to other \
                      daemons on the same database."
    )]
    Run(Run),
    /// Bring the database's schema up to date; safe from several replicas at once
    Migrate,
    /// Print every setting that is in force and the layer it comes from; secrets are redacted
    Config,
    /// Check configuration, database and schema, and print the enabled providers with their rules
    #[command(
        after_help = "Each provider's host is connected to; nothing is sent, no credential least of all. Exit code 1 when the \
                            database, its schema or a provider's host is not as it must be."
    )]
    Check,
    /// Show when a transaction that stays pending would be polled, and what ends it; needs no database
    Plan(Plan),
    /// Show how everything stands, the worst first: what is late, parked or not asked, and why
    Status(Status),
    /// Show one transaction's life: every poll and every change of state
    Show(Show),
    /// List transactions by state, account, reason, age or the beginning of their reference
    #[command(
        after_help = "What is polled comes first, the most overdue first; then what has ended, the latest change first. `--after` goes on \
                      where a list ended."
    )]
    List(List),
    /// Reopen unresolved or invalid transactions: a new polling window starts
    Retry(Retry),
    /// Keep a provider's accounts, or one of them, from being asked, on every replica and until resumed
    Pause(Pause),
    /// Have paused accounts asked again
    Resume(Resume),
    /// Have the next probe of an open circuit sent at once
    Probe(Probe),
    /// Prove from the journal of polls that the providers' rules were kept; exit code 1 on any breach
    Audit(Audit),
    /// Declare a provider in a file: a skeleton, a test without network or database, and what it means
    Provider(Provider),
    /// Serve the five providers' status APIs in one process, strict about their rules
    Simulate(Simulate),
    /// Show everything at once, with nothing to set up: database, simulator, daemon, and a live view
    Demo(Demo),
    /// Generate shell completions
    #[command(hide = true)]
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print the manual page of paypoll or of one of its commands, for man(1)
    #[command(hide = true)]
    Man {
        /// The command
        #[arg(value_name = "COMMAND")]
        command: Option<String>,
    },
}

/// `paypoll run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Serve only accounts like this, such as "khalti/*"; may be given several times
    #[arg(long, value_name = "PATTERN")]
    pub accounts: Vec<String>,
    /// How many times as fast.
    #[command(flatten)]
    pub speed: Speed,
}

/// `paypoll plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// The provider whose plan is shown: as configured, else its default
    #[arg(value_name = "PROVIDER")]
    pub provider: String,
    /// Show the polls up to this age, such as "10m"; else up to the end of the plan
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    pub horizon: Option<Duration>,
    /// Compare with the provider's plan in this configuration file
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// How many times as fast.
    #[command(flatten)]
    pub speed: Speed,
}

/// `paypoll status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print again and again until interrupted
    #[arg(long)]
    pub watch: bool,
    /// Only this provider's accounts
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    /// Only accounts of which something is wrong
    #[arg(long)]
    pub problems: bool,
}

/// `paypoll show`.
#[derive(Debug, Args)]
pub struct Show {
    /// The transaction's id or its reference
    #[arg(value_name = "ID|REFERENCE")]
    pub transaction: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `paypoll list`.
#[derive(Debug, Args)]
pub struct List {
    /// Of this provider
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    /// Of this account
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// In this state; may be given several times
    #[arg(long = "state", value_name = "STATE", value_parser = state)]
    pub states: Vec<State>,
    /// With this reason, such as window_over
    #[arg(long, value_name = "REASON")]
    pub reason: Option<String>,
    /// Whose reference begins like this
    #[arg(long, value_name = "PREFIX")]
    pub reference: Option<String>,
    /// In their state for longer than this, such as "2h"; what is polled: there for longer
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub older: Option<Duration>,
    /// In their state for no longer than this; what is polled: there for no longer
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub since: Option<Duration>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Go on where a list has ended: what it said there
    #[arg(long, value_name = "PLACE", value_parser = place)]
    pub after: Option<Cursor>,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV
    #[arg(long)]
    pub csv: bool,
}

/// `paypoll retry`.
#[derive(Debug, Args)]
#[command(after_help = "Exit code 1 when any of the transactions that were named could not be reopened; the others still are.")]
pub struct Retry {
    /// The ids or references of the transactions; instead of them, options say which ones
    #[arg(
        value_name = "ID|REFERENCE",
        required_unless_present_any = ["provider", "account", "reason", "since"],
        conflicts_with_all = ["provider", "account", "reason", "since"]
    )]
    pub transactions: Vec<String>,
    /// All parked transactions of this provider
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    /// All parked transactions of this account
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// All transactions that were parked with this reason, such as window_over
    #[arg(long, value_name = "REASON")]
    pub reason: Option<String>,
    /// All transactions that were parked, or corrected since, within this time, such as "24h"
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub since: Option<Duration>,
    /// No more than so many, those first that have been parked for longest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Why; stands in the transactions' history
    #[arg(long, value_name = "TEXT")]
    pub because: Option<String>,
    /// Do not ask before reopening more than 100
    #[arg(long)]
    pub yes: bool,
    /// Only print what would be reopened
    #[arg(long)]
    pub dry_run: bool,
    /// Who does it.
    #[command(flatten)]
    pub actor: Actor,
}

/// `paypoll pause`.
#[derive(Debug, Args)]
pub struct Pause {
    /// The account; a provider alone means all of its accounts
    #[arg(value_name = "PROVIDER[/ACCOUNT]")]
    pub account: String,
    /// Why: whoever looks next reads it
    #[arg(long, value_name = "TEXT")]
    pub because: String,
    /// End the pause by itself after this time, such as "1h"
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    pub length: Option<Duration>,
    /// Who does it.
    #[command(flatten)]
    pub actor: Actor,
}

/// `paypoll resume`.
#[derive(Debug, Args)]
pub struct Resume {
    /// The account; a provider alone means all of its accounts
    #[arg(value_name = "PROVIDER[/ACCOUNT]")]
    pub account: String,
    /// Who does it.
    #[command(flatten)]
    pub actor: Actor,
}

/// `paypoll probe`.
#[derive(Debug, Args)]
pub struct Probe {
    /// The account whose circuit is open
    #[arg(value_name = "PROVIDER/ACCOUNT")]
    pub account: String,
}

/// `--as`, for commands whose changes are signed.
#[derive(Debug, Args)]
pub struct Actor {
    /// The name that stands beside the database login in the history; else USER@HOST
    #[arg(long = "as", value_name = "NAME")]
    pub name: Option<String>,
}

/// `paypoll audit`.
#[derive(Debug, Args)]
pub struct Audit {
    /// Judge only polls sent within this time, such as "24h"; else the whole journal
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub since: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// How many times as fast.
    #[command(flatten)]
    pub speed: Speed,
}

/// `paypoll provider`.
#[derive(Debug, Args)]
pub struct Provider {
    /// What to do with it.
    #[command(subcommand)]
    pub action: ProviderAction,
}

/// What to do with a provider's file.
#[derive(Debug, Subcommand)]
pub enum ProviderAction {
    /// Print a skeleton: every required key, and a question in place of each value
    New {
        /// The provider's name: small letters, digits and hyphens
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Play a file's examples and, for those that end a transaction, changed answers that must not
    #[command(
        after_help = "Exit code 0 when all is as it must be, 1 when an example or a changed answer fails, 2 when a file is refused."
    )]
    Test(ProviderTest),
    /// Print what a provider means to paypoll: words, errors, floors, plan; compiled ones included
    Show {
        /// A provider's name or its file
        #[arg(value_name = "NAME|FILE")]
        provider: String,
    },
}

/// `paypoll provider test`.
#[derive(Debug, Args)]
pub struct ProviderTest {
    /// The files
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Send one real request with a configured account's credentials, and print what the answer would mean; writes nothing
    #[arg(long, requires = "reference")]
    pub live: bool,
    /// The reference that is asked about
    #[arg(long, value_name = "R", requires = "live")]
    pub reference: Option<String>,
    /// The account that asks
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub account: String,
    /// What the lookup needs beside the reference, as JSON
    #[arg(long, value_name = "JSON", requires = "live")]
    pub params: Option<String>,
}

/// `paypoll simulate`.
#[derive(Debug, Args)]
pub struct Simulate {
    /// Where to listen; config/simulator.toml expects the default
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9500")]
    pub listen: SocketAddr,
    /// Serve the provider that this file declares too, under /NAME, from its own examples; may be given several times
    #[arg(long, value_name = "FILE")]
    pub provider: Vec<PathBuf>,
    /// How many times as fast.
    #[command(flatten)]
    pub speed: Speed,
}

/// `paypoll demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// How many transactions
    #[arg(long, value_name = "N", default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub transactions: u32,
    /// Divide every duration of the rules by N
    #[arg(long, value_name = "N", default_value_t = 60.0, value_parser = speed)]
    pub speed: f64,
}

/// `--speed`, for commands that obey or serve the rules.
#[derive(Clone, Copy, Debug, Args)]
pub struct Speed {
    /// Divide every duration of the rules by N; other than 1 only against a simulator on this machine
    #[arg(long = "speed", value_name = "N", default_value_t = 1.0, value_parser = speed)]
    pub factor: f64,
}

fn state(text: &str) -> Result<State, String> {
    let names: Vec<&str> = State::ALL.into_iter().map(State::as_str).collect();
    State::from_name(text).ok_or_else(|| format!("states are {}", names.join(", ")))
}

fn place(text: &str) -> Result<Cursor, String> {
    Cursor::parse(text).ok_or_else(|| "a place is what a list printed behind --after".to_owned())
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|speed| (1.0..=HIGHEST_SPEED).contains(speed));
    speed.ok_or_else(|| format!("a speed is a number from 1 to {HIGHEST_SPEED}"))
}

impl Cli {
    /// Reads the arguments, the program's name first. The error prints help and usage, and knows its exit code.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(command_first(arguments.into_iter().collect()))
    }
}

/// Moves options that stand before the command behind it, where clap looks for them.
fn command_first(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let cli = Cli::command();
    let takes_value = |option: &str| {
        let mut known = cli.get_subcommands().flat_map(clap::Command::get_arguments).chain(cli.get_arguments());
        known.any(|known| known.get_long().is_some_and(|long| long == option) && known.get_action().takes_values())
    };
    let mut at = 1;
    while let Some(argument) = arguments.get(at).and_then(|argument| argument.to_str()) {
        match argument.strip_prefix("--") {
            Some("") => break,
            Some(option) => at += if takes_value(option) { 2 } else { 1 },
            None if argument.starts_with('-') => at += 1,
            None => {
                if let Some(options) = arguments.get(1..=at) {
                    let mut options = options.to_vec();
                    options.rotate_right(1);
                    arguments.splice(1..=at, options);
                }
                break;
            }
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_stand_before_or_after_the_command() {
        for line in [
            "paypoll plan dusupay --json --for 10m --config run --config b.toml --speed 2",
            "paypoll --json --for 10m --config run --config=b.toml --speed 2 plan dusupay",
            "paypoll --config run --for=10m plan --speed=2 --json dusupay --config b.toml",
        ] {
            let cli = read(line).expect(line);
            let Command::Plan(plan) = cli.command else { panic!("{line}") };
            assert_eq!(
                (plan.provider.as_str(), plan.json, plan.horizon),
                ("dusupay", true, Some(Duration::from_secs(600))),
                "{line}"
            );
            assert_eq!(plan.speed.factor, 2.0, "{line}");
            assert_eq!(cli.config, [PathBuf::from("run"), PathBuf::from("b.toml")], "{line}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_a_usage_error() {
        for line in [
            "paypoll",
            "paypoll walk",
            "paypoll --config x.toml",
            "paypoll plan",
            "paypoll plan dusupay --for 10",
            "paypoll run --speed 0",
            "paypoll run --speed NaN",
            "paypoll migrate --speed 2",
            "paypoll --speed 2 migrate",
            "paypoll retry",
            "paypoll retry --dry-run",
            "paypoll retry --limit 0 --provider khalti",
            "paypoll list --state paid",
            "paypoll list --json --csv",
            "paypoll list --after nowhere",
            "paypoll pause khalti",
            "paypoll probe",
            "paypoll retry --reason window_over 0199f5b2-0000-7000-8000-000000000000",
            "paypoll simulate --listen 9500",
            "paypoll -- run --json",
        ] {
            assert_eq!(read(line).expect_err(line).exit_code(), 2, "{line}");
        }
        for line in ["paypoll --help", "paypoll --version", "paypoll --help plan", "paypoll plan --help"] {
            assert_eq!(read(line).expect_err(line).exit_code(), 0, "{line}");
        }
    }

    #[test]
    fn transactions_to_retry_are_named_or_described() {
        let cli = read("paypoll --dry-run --provider dusupay retry --reason gave_up --since 24h").expect("valid");
        let Command::Retry(retry) = cli.command else { panic!("retry") };
        assert_eq!((retry.provider.as_deref(), retry.reason.as_deref()), (Some("dusupay"), Some("gave_up")));
        assert_eq!((retry.since, retry.dry_run, retry.transactions.len()), (Some(Duration::from_secs(86_400)), true, 0));
    }

    #[test]
    fn defaults_are_those_of_real_life_but_for_the_demo() {
        assert!(matches!(read("paypoll run").expect("valid").command, Command::Run(run) if run.speed.factor == 1.0));
        assert!(
            matches!(read("paypoll demo").expect("valid").command, Command::Demo(demo) if demo.speed == 60.0 && demo.transactions >= 200)
        );
    }
}

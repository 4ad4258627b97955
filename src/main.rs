//! Arguments → configuration → logging → one command → exit code. Nothing else.

use paypoll::cli::{Cli, Command};
use paypoll::commands::{self, conclude};
use paypoll::config::{self, Config};
use paypoll::telemetry;
use std::io::{stderr, stdout};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    ExitCode::from(end(run(&cli)))
}

/// Says how it ended. A stalled reader of standard error must not keep the process from ending.
fn end(result: anyhow::Result<()>) -> u8 {
    let (send, concluded) = mpsc::channel();
    thread::spawn(move || send.send(conclude(result, &mut stderr())));
    // Only an error is said, and so only an error stalls.
    concluded.recv_timeout(FLUSH_TIMEOUT).unwrap_or(1)
}

/// How long an error waits for its reader.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

fn run(cli: &Cli) -> anyhow::Result<()> {
    let load = |speed| Config::load(&cli.config, config::environment(), speed);
    // For commands that poll no provider: they do not need its secrets.
    let read = |speed| Config::load_without_secrets(&cli.config, config::environment(), speed);
    let mut out = stdout();
    match &cli.command {
        Command::Run(asked) => {
            let (files, speed, accounts) = (cli.config.clone(), asked.speed.factor, asked.accounts.clone());
            let source = commands::reload::Source { files, speed, accounts };
            let config = source.load()?;
            let log = telemetry::init(&config.log).map_err(anyhow::Error::msg)?;
            let runtime = one_thread()?;
            let result = runtime.block_on(commands::run::run(config, source, &log));
            // A name lookup under way does not delay the end.
            runtime.shutdown_background();
            result
        }
        Command::Migrate => one_thread()?.block_on(commands::migrate::run(&read(1.0)?, &mut out)),
        Command::Config => commands::config::run(&cli.config, &mut out),
        Command::Check => one_thread()?.block_on(commands::check::run(&load(1.0)?, &config::warnings(&cli.config), &mut out)),
        Command::Plan(asked) => commands::plan::run(asked, &cli.config, &mut out),
        Command::Status(args) => one_thread()?.block_on(commands::status::run(&read(1.0)?, args, &mut out)),
        Command::Show(args) => one_thread()?.block_on(commands::show::run(&read(1.0)?, args, &mut out)),
        Command::List(args) => one_thread()?.block_on(commands::list::run(&read(1.0)?, args, &mut out)),
        Command::Retry(args) => one_thread()?.block_on(commands::retry::run(&read(1.0)?, args, &mut out)),
        Command::Pause(args) => one_thread()?.block_on(commands::pause::pause(&read(1.0)?, args, &mut out)),
        Command::Resume(args) => one_thread()?.block_on(commands::pause::resume(&read(1.0)?, args, &mut out)),
        Command::Probe(args) => one_thread()?.block_on(commands::pause::probe(&read(1.0)?, args, &mut out)),
        Command::Audit(args) => one_thread()?.block_on(commands::audit::run(&read(args.speed.factor)?, args, &mut out)),
        Command::Provider(asked) => commands::provider::run(asked, || load(1.0), &mut out),
        Command::Simulate(asked) => workers()?.block_on(commands::simulate::run(asked.listen, asked.speed.factor, &asked.provider)),
        Command::Demo(asked) => commands::demo::run(asked),
        Command::Completions { shell } => Ok(commands::completions::run(*shell, &mut out)?),
        Command::Man { command } => commands::man::run(command.as_deref(), &mut out),
    }
}

/// For what has several things to do at once that need not be on time.
fn workers() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// Also for the daemon: a poll passes through many tasks, and waking another thread for each costs
/// more than the poll itself.
fn one_thread() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

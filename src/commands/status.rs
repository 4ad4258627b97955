//! `paypoll status`: what is pending, due, overdue and parked, for each provider and account.

use super::text::{Paint, Table, Tone, cut, now, plain, roughly};
use crate::cli;
use crate::config::Config;
use crate::store::page::{PARKED, Parked};
use crate::store::{AccountOverview, Store, StoreError, Unroutable, counted};
use anyhow::Context as _;
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(1);
/// A longer account name is cut in the table.
const LONGEST_ACCOUNT: usize = 24;
/// A longer explanation is cut below the table.
const LONGEST_REASON: usize = 200;
/// So many lines tell why transactions are parked.
const MOST_REASONS: usize = 10;
/// The alternate screen without cursor and line wrap: what stood in the terminal before stays untouched.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
/// Back to what stood there.
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// Prints the overview once, or with `--watch` every second until SIGINT or SIGTERM.
pub async fn run(config: &Config, asked: &cli::Status, out: &mut impl Write) -> anyhow::Result<()> {
    let store = super::open_store(config).await?;
    if asked.watch {
        watch(&store, asked.json, out).await?;
    } else {
        print(&look(&store).await?, asked.json, out)?;
    }
    store.close().await;
    Ok(())
}

/// The JSON of `status --json`.
#[derive(Debug, Serialize)]
struct Overview {
    providers: Vec<AccountOverview>,
    unroutable: Vec<Unroutable>,
    /// Parked transactions by reason, for people.
    #[serde(skip)]
    parked: Vec<Parked>,
}

async fn look(store: &Store) -> Result<Overview, StoreError> {
    let providers = store.overview().await?;
    let names: BTreeSet<&str> = providers.iter().map(|account| &*account.provider).collect();
    let parked = store.parked_by_reason(&Vec::from_iter(names)).await?;
    Ok(Overview { unroutable: store.unroutable(&[]).await?, providers, parked })
}

fn print(overview: &Overview, json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        writeln!(out, "{}", serde_json::to_string(overview)?)?;
    } else {
        for line in lines(overview, Paint::of_stdout()) {
            writeln!(out, "{line}")?;
        }
    }
    out.flush()
}

fn lines(overview: &Overview, paint: Paint) -> Vec<String> {
    if overview.providers.is_empty() {
        return vec!["no transaction is polled or parked, and no daemon has served an account yet".into()];
    }
    let mut lines = table(&overview.providers).lines(paint);
    for account in overview.providers.iter().filter(|account| is_open(account)) {
        let reason = cut(account.circuit_reason.as_deref().unwrap_or("no reason is known"), LONGEST_REASON);
        let name = plain(&format!("{}/{}", account.provider, account.account));
        let since = account.circuit_open_s.map_or_else(String::new, |seconds| format!(" for {}", spell(seconds)));
        lines.push(paint.bad(&format!("the circuit of {name} has been open{since}, only probes are sent: {reason}")));
    }
    for row in &overview.unroutable {
        let (name, count) = (plain(&format!("{}/{}", row.provider, row.account)), counted(row.count));
        lines.push(paint.warning(&format!("{count} of {name} wait: no running daemon serves this account")));
    }
    for row in overview.parked.iter().take(MOST_REASONS) {
        let reason = cut(row.reason.as_deref().unwrap_or("no reason is known"), LONGEST_REASON);
        let plus = if row.count >= PARKED { "+" } else { "" };
        let last = format!("the last one {} ago: {}", spell(row.latest_s), row.example);
        lines.push(plain(&format!("{}{plus} of {}/{} {}: {reason}; {last}", row.count, row.provider, row.account, row.state)));
    }
    if overview.parked.len() > MOST_REASONS {
        lines.push(format!(
            "… {} more reasons: `paypoll retry --dry-run --provider NAME` lists all",
            overview.parked.len() - MOST_REASONS
        ));
    }
    lines
}

/// Seconds from the database, for a glance.
fn spell(seconds: f64) -> String {
    roughly(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

fn table(accounts: &[AccountOverview]) -> Table {
    const HEAD: [&str; 10] =
        ["PROVIDER", "ACCOUNT", "PENDING", "DUE", "OVERDUE", "OLDEST DUE", "ACTION", "UNRESOLVED", "INVALID", "CIRCUIT"];
    let mut table = Table::new(&HEAD, &[false, false, true, true, true, true, true, true, true, false]);
    for account in accounts {
        let noted = |number: i64| (counted(number), if number > 0 { Tone::Warning } else { Tone::Calm });
        let oldest = account.oldest_due_s.map(spell);
        table.row(vec![
            (plain(&account.provider), Tone::Calm),
            (cut(&account.account, LONGEST_ACCOUNT), Tone::Calm),
            (counted(account.pending), Tone::Calm),
            (counted(account.due), Tone::Calm),
            (counted(account.overdue), if account.overdue > 0 { Tone::Bad } else { Tone::Calm }),
            (oldest.unwrap_or_else(|| "–".into()), Tone::Calm),
            (counted(account.action_required), Tone::Calm),
            noted(account.unresolved),
            noted(account.invalid),
            (account.circuit.clone(), if is_open(account) { Tone::Bad } else { Tone::Calm }),
        ]);
    }
    table
}

fn is_open(account: &AccountOverview) -> bool {
    account.circuit == "open"
}

/// Looks again and again. A database that goes away for a while does not end it.
async fn watch(store: &Store, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be listened for")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be listened for")?;
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP cannot be listened for")?;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut screen = Screen::new(out, json || !io::stdout().is_terminal())?;
    let mut last = look(store).await?;
    loop {
        let trouble = tokio::select! {
            biased;
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            found = next(store, &mut ticks) => match found {
                Ok(found) => {
                    last = found;
                    None
                }
                Err(error) => Some(format!("the database cannot be reached, this is what was known before: {error}")),
            },
        };
        screen.show(&last, json, trouble.as_deref())?;
    }
}

async fn next(store: &Store, ticks: &mut tokio::time::Interval) -> Result<Overview, StoreError> {
    ticks.tick().await;
    look(store).await
}

/// Where `--watch` draws: a terminal's alternate screen, given back at the end however that comes; or plain lines, one block after
/// the other.
struct Screen<'a, W: Write> {
    out: &'a mut W,
    plain: bool,
}

impl<'a, W: Write> Screen<'a, W> {
    fn new(out: &'a mut W, plain: bool) -> io::Result<Self> {
        let screen = Self { out, plain };
        if !screen.plain {
            screen.out.write_all(ENTER.as_bytes())?;
        }
        Ok(screen)
    }

    fn show(&mut self, overview: &Overview, json: bool, trouble: Option<&str>) -> io::Result<()> {
        if self.plain {
            // Whoever reads the lines takes them for current: none are better than old ones.
            return match trouble {
                Some(trouble) if !json => writeln!(self.out, "{}", plain(trouble)),
                Some(_) => Ok(()),
                None => print(overview, json, self.out),
            };
        }
        let paint = Paint::of_stdout();
        let clock = now().format("%Y-%m-%d %H:%M:%S");
        let mut shown = vec![paint.strong(&format!("paypoll status   {clock} UTC   Ctrl-C ends")), String::new()];
        shown.extend(lines(overview, paint));
        shown.extend(trouble.map(|trouble| paint.bad(&plain(trouble))));
        // A terminal that does not know its height says 0.
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_row > 0);
        let height = size.map_or(24, |size| usize::from(size.ws_row).max(2));
        // In one piece, so that nothing flickers on a slow line.
        self.out.write_all(frame(&shown, height).as_bytes())?;
        self.out.flush()
    }
}

impl<W: Write> Drop for Screen<'_, W> {
    fn drop(&mut self) {
        if !self.plain {
            // A terminal that is gone needs nothing any more.
            drop(self.out.write_all(LEAVE.as_bytes()).and_then(|()| self.out.flush()));
        }
    }
}

/// One picture: from the top, each line cleared to its end, the rest of the screen below; never more than `height` lines.
fn frame(lines: &[String], height: usize) -> String {
    let fits = if lines.len() <= height { lines.len() } else { height - 1 };
    let mut shown: Vec<String> = lines.iter().take(fits).cloned().collect();
    if fits < lines.len() {
        shown.push(format!("… {} more lines: enlarge the window", lines.len() - fits));
    }
    format!("\x1b[H{}\x1b[K\x1b[J", shown.join("\x1b[K\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MOST;

    fn account(name: &str) -> AccountOverview {
        AccountOverview {
            provider: "dusupay".into(),
            account: name.into(),
            pending: 12,
            due: 3,
            overdue: 0,
            oldest_due_s: Some(4.25),
            action_required: 0,
            unresolved: 2,
            invalid: 0,
            circuit: "closed".into(),
            circuit_reason: None,
            circuit_open_s: None,
        }
    }

    #[test]
    fn the_table_is_aligned_and_says_below_what_is_wrong() {
        let open = AccountOverview {
            circuit: "open".into(),
            circuit_reason: Some("20 polls in a row failed".into()),
            circuit_open_s: Some(75.0),
            oldest_due_s: None,
            ..account("shop\x1b[2J")
        };
        let unroutable = Unroutable { provider: "khalti".into(), account: "old".into(), count: MOST };
        let parked = Parked {
            provider: "dusupay".into(),
            account: "default".into(),
            state: "unresolved".into(),
            reason: Some("gave_up".into()),
            count: 2,
            latest_s: 3.5,
            example: uuid::Uuid::nil(),
        };
        let overview = Overview { providers: vec![account("default"), open], unroutable: vec![unroutable], parked: vec![parked] };
        assert_eq!(
            lines(&overview, Paint::none()),
            [
                "PROVIDER  ACCOUNT   PENDING  DUE  OVERDUE  OLDEST DUE  ACTION  UNRESOLVED  INVALID  CIRCUIT",
                "dusupay   default        12    3        0        4.2s       0           2        0  closed",
                "dusupay   shop\u{fffd}[2J       12    3        0           –       0           2        0  open",
                "the circuit of dusupay/shop\u{fffd}[2J has been open for 1m15s, only probes are sent: 20 polls in a row failed",
                "100000+ of khalti/old wait: no running daemon serves this account",
                "2 of dusupay/default unresolved: gave_up; the last one 3.5s ago: 00000000-0000-0000-0000-000000000000",
            ]
        );
    }

    #[test]
    fn a_frame_never_scrolls_the_screen() {
        let lines: Vec<String> = (0..5).map(|n| n.to_string()).collect();
        assert_eq!(frame(&lines, 5).matches("\r\n").count(), 4);
        let cut = frame(&lines, 3);
        assert_eq!(cut, "\x1b[H0\x1b[K\r\n1\x1b[K\r\n… 3 more lines: enlarge the window\x1b[K\x1b[J");
    }

    #[test]
    fn the_terminal_is_given_back_also_after_an_error() {
        let mut out = Vec::new();
        drop(Screen::new(&mut out, false).map(|_screen| ()));
        assert_eq!(out, format!("{ENTER}{LEAVE}").into_bytes());
    }
}

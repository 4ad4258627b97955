//! `paypoll status`: how everything stands. The first line is the worst that is true; what is wrong
//! stands before what is not.

use super::text::{Paint, Table, Tone, now, wrap};
use crate::cli;
use crate::config::Config;
use crate::explain::{self, Rules, Sentence};
use crate::store::{AccountOverview, ERRORS, MOST, Situation, Store, StoreError};
use crate::text::{between, clock, count, cut, json, plain, seconds, some};
use anyhow::Context as _;
use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

/// How often `--watch` repeats the report.
const EVERY: Duration = Duration::from_secs(1);
/// A longer account name is cut in the table.
const LONGEST_ACCOUNT: usize = 40;
/// In a window that is narrower than [`WIDE`].
const LONGEST_ACCOUNT_NARROW: usize = 22;
/// From this many columns on the table shows all of its own.
const WIDE: usize = 118;
/// Where nobody's window ends: a reader of lines from a pipe wants one sentence in each.
const ENDLESS: usize = 2_000;
/// At most this many problems, errors and events are shown where there is room for them.
const MOST_TOLD: usize = 30;
/// The alternate screen without cursor and line wrap: what stood in the terminal before stays untouched.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
/// Back to what stood there.
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// Prints the overview once, or with `--watch` every second until SIGINT or SIGTERM.
pub async fn run(config: &Config, args: &cli::Status, out: &mut impl Write) -> anyhow::Result<()> {
    let store = super::open_store(config).await?;
    if let Some(provider) = &args.provider {
        super::known_provider(&store, config, provider).await?;
    }
    let look = Look { store: &store, rules: Rules::of(config), args };
    if args.watch {
        watch(&look, out).await?;
    } else {
        print(&look.take().await?, args, out)?;
    }
    store.close().await;
    Ok(())
}

/// What to report on.
struct Look<'a> {
    store: &'a Store,
    rules: Rules,
    args: &'a cli::Status,
}

impl Look<'_> {
    async fn take(&self) -> Result<Situation, StoreError> {
        let mut situation = self.store.situation(self.rules.budgets()).await?;
        if let Some(wanted) = &self.args.provider {
            situation.accounts.retain(|row| row.provider == *wanted);
            situation.unroutable.retain(|row| row.provider == *wanted);
            situation.parked.retain(|row| row.provider == *wanted);
            situation.errors.retain(|row| row.provider == *wanted);
            let prefix = format!("{wanted}/");
            situation.events.retain(|event| event.subject.as_ref().is_none_or(|subject| subject.starts_with(&prefix)));
        }
        if self.args.problems {
            let wrong = wrong(&explain::headlines(&situation));
            situation.accounts.retain(|row| wrong.contains(&(row.provider.clone(), row.account.clone())));
        }
        Ok(situation)
    }
}

/// The accounts of which something is wrong.
fn wrong(headlines: &[Sentence]) -> Vec<(String, String)> {
    headlines.iter().filter(|one| one.tone <= explain::Tone::Warning).filter_map(|one| one.account.clone()).collect()
}

fn print(situation: &Situation, args: &cli::Status, out: &mut impl Write) -> io::Result<()> {
    if args.json {
        writeln!(out, "{}", json(situation)?)?;
    } else {
        for line in lines(situation, Paint::of_stdout(), Window::of_stdout(None)) {
            writeln!(out, "{line}")?;
        }
    }
    out.flush()
}

/// How much room there is.
#[derive(Clone, Copy, Debug)]
struct Window {
    width: usize,
    /// `None`: as many lines as it takes.
    height: Option<usize>,
}

impl Window {
    /// What is no terminal is wide and has no end.
    fn of_stdout(height: Option<usize>) -> Self {
        // A terminal that does not know its size says 0.
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
        let width = size.map_or(ENDLESS, |size| usize::from(size.ws_col));
        let height = height.map(|unknown| size.map_or(unknown, |size| usize::from(size.ws_row)));
        Self { width: width.max(40), height }
    }
}

/// All lines, the most important first. Where the window is too low for all of them, each part says
/// how much of it is left out.
fn lines(situation: &Situation, paint: Paint, window: Window) -> Vec<String> {
    let headlines = explain::headlines(situation);
    let mut lines = Vec::new();
    let first = explain::first_line(&headlines);
    lines.extend(wrap(&first.text, window.width, "  ").iter().map(|line| paint.tone(first.tone, line)));
    lines.extend(wrap(&replicas(situation), window.width, "  "));
    let rest: Vec<&Sentence> = headlines.iter().skip(1).filter(|one| one.tone <= explain::Tone::Warning).collect();
    // Of what is left of the window the table gets the half.
    let room = window.height.map_or(usize::MAX, |height| height.saturating_sub(lines.len()));
    lines.extend(problems(&rest, paint, window, room / 3));
    let left = window.height.map_or(usize::MAX, |height| height.saturating_sub(lines.len()));
    let more = [errors(situation, window.width), events(situation, window.width)];
    // Below the table errors and events have what is left, and something in any case.
    let below: usize = more.iter().map(|part| part.len().min(3)).sum();
    lines.extend(accounts(situation, &headlines, paint, window, left.saturating_sub(below)));
    for part in more {
        let left = window.height.map_or(usize::MAX, |height| height.saturating_sub(lines.len()));
        if left > 1 {
            lines.extend(limited(part, left, "lines"));
        }
    }
    lines
}

/// At most `most` of the lines; the last one says how many are left out.
fn limited(mut lines: Vec<String>, most: usize, what: &str) -> Vec<String> {
    if lines.len() > most {
        let left_out = lines.len() - most.saturating_sub(1);
        lines.truncate(most.saturating_sub(1));
        lines.push(format!("… {left_out} more {what}"));
    }
    lines
}

/// As of when, and who works.
fn replicas(situation: &Situation) -> String {
    let mut text = format!("as of {} UTC; ", situation.as_of.format("%Y-%m-%d %H:%M:%S"));
    if situation.replicas.is_empty() {
        return text + "no replica lives";
    }
    text += &some(i64::try_from(situation.replicas.len()).unwrap_or(i64::MAX), i64::MAX, "replica", "replicas");
    for (at, replica) in situation.replicas.iter().take(4).enumerate() {
        let host = if replica.host.is_empty() { String::new() } else { format!(" on {}", cut(&replica.host, 30)) };
        let up = between(replica.started_at, situation.as_of);
        text += &format!("{} {}{host} up {up}", if at == 0 { ":" } else { "," }, replica.id);
    }
    if situation.replicas.len() > 4 {
        text += ", …";
    }
    text
}

fn problems(rest: &[&Sentence], paint: Paint, window: Window, most: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for (at, sentence) in rest.iter().enumerate() {
        let wrapped = wrap(&sentence.text, window.width, "  ");
        if at >= MOST_TOLD || lines.len() + wrapped.len() > most.saturating_sub(1).max(1) {
            lines.push(format!("… {} more problems: --provider and --problems show fewer accounts", rest.len() - at));
            break;
        }
        lines.extend(wrapped.iter().map(|line| paint.tone(sentence.tone, line)));
    }
    lines
}

/// The table: what is wrong first, then what is busy; what is idle in one line.
fn accounts(situation: &Situation, headlines: &[Sentence], paint: Paint, window: Window, room: usize) -> Vec<String> {
    let wrong = wrong(headlines);
    let place = |row: &AccountOverview| {
        let found = wrong.iter().position(|(provider, account)| (provider, account) == (&row.provider, &row.account));
        (found.unwrap_or(usize::MAX), row.is_idle(), -(row.pending + row.action_required))
    };
    let mut shown: Vec<&AccountOverview> = situation.accounts.iter().collect();
    shown.sort_by_key(|row| place(row));
    let (idle, mut shown): (Vec<_>, Vec<_>) = shown.into_iter().partition(|row| place(row).0 == usize::MAX && row.is_idle());
    // The head, the fold of the idle ones, the line that says what is left out.
    let fits = room.saturating_sub(1 + usize::from(!idle.is_empty()));
    let left_out = if shown.len() > fits { shown.len() - fits.saturating_sub(1) } else { 0 };
    shown.truncate(shown.len() - left_out);
    let mut lines = Vec::new();
    if !shown.is_empty() {
        lines.extend(table(&shown, window.width).lines(paint));
    }
    if left_out > 0 {
        lines.push(format!("… {left_out} more accounts, none worse: --provider NAME, --problems, or a larger window"));
    }
    if !idle.is_empty() {
        let names = idle.iter().map(|row| plain(&format!("{}/{}", row.provider, row.account)));
        let names: Vec<String> = names.collect();
        let number = if idle.len() == 1 { "1 idle account".into() } else { format!("{} idle accounts", idle.len()) };
        lines.push(cut(&format!("{number}: {}", names.join(", ")), window.width));
    }
    lines
}

fn table(accounts: &[&AccountOverview], width: usize) -> Table {
    const HEAD: [&str; 10] =
        ["ACCOUNT", "CIRCUIT", "PENDING", "DUE", "LATE", "OVERDUE", "OLDEST DUE", "ACTION", "UNRESOLVED", "INVALID"];
    const NARROW: [&str; 7] = ["ACCOUNT", "CIRCUIT", "PENDING", "DUE", "LATE", "OLDEST DUE", "PARKED"];
    let is_wide = width >= WIDE;
    let mut table = if is_wide {
        Table::new(&HEAD, &[false, false, true, true, true, true, true, true, true, true])
    } else {
        Table::new(&NARROW, &[false, false, true, true, true, true, true])
    };
    let bad = |number: i64| (short(number), if number > 0 { Tone::Bad } else { Tone::Calm });
    let noted = |number: i64| (short(number), if number > 0 { Tone::Warning } else { Tone::Calm });
    let calm = |number: i64| (short(number), Tone::Calm);
    for account in accounts {
        let name = format!("{}/{}", account.provider, account.account);
        let circuit = match &*account.circuit {
            "closed" if account.held_until.is_some() => ("held".to_owned(), Tone::Warning),
            "closed" => ("closed".into(), Tone::Calm),
            "paused" => ("paused".into(), Tone::Warning),
            other => (other.to_owned(), Tone::Bad),
        };
        let oldest = (account.oldest_due_s.map_or_else(|| "–".into(), seconds), Tone::Calm);
        let parked = account.unresolved.saturating_add(account.invalid);
        table.row(if is_wide {
            vec![
                (cut(&name, LONGEST_ACCOUNT), Tone::Calm),
                circuit,
                calm(account.pending),
                calm(account.due),
                bad(account.late),
                bad(account.overdue),
                oldest,
                calm(account.action_required),
                noted(account.unresolved),
                noted(account.invalid),
            ]
        } else {
            let name = (cut(&name, LONGEST_ACCOUNT_NARROW), Tone::Calm);
            vec![name, circuit, calm(account.pending), calm(account.due), bad(account.late), oldest, noted(parked)]
        });
    }
    table
}

/// A count for a column, with a plus where counting has stopped.
fn short(number: i64) -> String {
    format!("{}{}", count(number), if number >= MOST { "+" } else { "" })
}

fn errors(situation: &Situation, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    if !situation.errors.is_empty() {
        lines.push("most frequent errors of the last hour:".into());
    }
    for error in situation.errors.iter().take(MOST_TOLD) {
        let number = if error.count >= ERRORS { format!("at least {}", count(error.count)) } else { count(error.count) };
        let whose = format!("{}/{}", error.provider, error.account);
        lines.push(cut(&format!("  {number} × {whose} {}: {}", error.outcome, error.error), width));
    }
    lines
}

fn events(situation: &Situation, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    if !situation.events.is_empty() {
        lines.push("in the last hour:".into());
    }
    for event in situation.events.iter().take(MOST_TOLD) {
        let subject = event.subject.as_deref().map_or_else(String::new, |subject| format!(" {subject}"));
        let who = event.who.as_deref().map_or_else(String::new, |who| format!(" by {who}"));
        let at = clock(event.at, situation.as_of);
        lines.push(cut(&format!("  {at} {}{subject}{who}: {}", event.kind, event.what), width));
    }
    lines
}

/// Repeats the report. A database that is unavailable for a while does not end it.
async fn watch(look: &Look<'_>, out: &mut impl Write) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be listened for")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be listened for")?;
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP cannot be listened for")?;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut screen = Screen::new(out, look.args.json || !io::stdout().is_terminal())?;
    let mut last = look.take().await?;
    loop {
        let trouble = tokio::select! {
            biased;
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            found = next(look, &mut ticks) => match found {
                Ok(found) => {
                    last = found;
                    None
                }
                Err(error) => Some(format!("the database cannot be reached, this is what was known before: {error}")),
            },
        };
        screen.show(&last, look.args, trouble.as_deref())?;
    }
}

async fn next(look: &Look<'_>, ticks: &mut tokio::time::Interval) -> Result<Situation, StoreError> {
    ticks.tick().await;
    look.take().await
}

/// Where `--watch` draws: a terminal's alternate screen, given back at the end however that comes;
/// or plain lines, one block after the other.
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

    fn show(&mut self, situation: &Situation, args: &cli::Status, trouble: Option<&str>) -> io::Result<()> {
        if self.plain {
            // Lines on a pipe are taken for current ones: better none than old ones.
            return match trouble {
                Some(trouble) if !args.json => writeln!(self.out, "{}", plain(trouble)),
                Some(_) => Ok(()),
                None => print(situation, args, self.out),
            };
        }
        let paint = Paint::of_stdout();
        let window = Window::of_stdout(Some(24));
        let height = window.height.unwrap_or(24).max(8);
        let clock = now().format("%H:%M:%S");
        let mut shown = match trouble {
            Some(trouble) => wrap(&plain(trouble), window.width, "  ").iter().map(|line| paint.bad(line)).collect(),
            None => vec![paint.strong(&cut(&format!("paypoll status   {clock} UTC here   Ctrl-C ends"), window.width))],
        };
        let window = Window { height: Some(height.saturating_sub(shown.len())), ..window };
        shown.extend(lines(situation, paint, window));
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

/// One picture: from the top, each line cleared to its end, the rest of the screen below; never
/// more than `height` lines.
fn frame(lines: &[String], height: usize) -> String {
    let shown = limited(lines.to_vec(), height, "lines: enlarge the window");
    format!("\x1b[H{}\x1b[K\x1b[J", shown.join("\x1b[K\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{FrequentError, RecentEvent, Replica, Unroutable};
    use chrono::{DateTime, TimeDelta, Utc};

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(1_700_000_000 + seconds)
    }

    fn account(name: &str) -> AccountOverview {
        AccountOverview {
            provider: "dusupay".into(),
            account: name.into(),
            pending: 12,
            due: 3,
            oldest_due_s: Some(4.25),
            circuit: "closed".into(),
            ..AccountOverview::default()
        }
    }

    fn open(name: &str) -> AccountOverview {
        AccountOverview {
            circuit: "open".into(),
            circuit_reason: Some("20 polls in a row failed".into()),
            circuit_since: Some(at(-75)),
            next_probe_at: Some(at(12)),
            late: 9_411,
            due: 9_411,
            oldest_due_s: Some(115.0),
            clears_in_s: Some(900.0),
            ..account(name)
        }
    }

    fn situation(accounts: Vec<AccountOverview>) -> Situation {
        let replica = Replica { id: 4, host: "worker-1".into(), started_at: at(-3600), heartbeat_at: at(0), accounts: Vec::new() };
        let (unroutable, parked) = (Vec::new(), Vec::new());
        Situation { as_of: at(0), accounts, unroutable, parked, replicas: vec![replica], errors: Vec::new(), events: Vec::new() }
    }

    const WIDELY: Window = Window { width: WIDE, height: None };

    #[test]
    fn the_worst_stands_first_then_the_table_then_what_happened() {
        let mut all =
            situation(vec![account("default"), open("shop\x1b[2J"), AccountOverview { pending: 0, due: 0, ..account("idle") }]);
        all.unroutable.push(Unroutable { provider: "khalti".into(), account: "old".into(), count: 3 });
        all.errors.push(FrequentError {
            provider: "dusupay".into(),
            account: "shop".into(),
            outcome: "server_error".into(),
            error: "HTTP 503".into(),
            count: 40,
            latest_at: at(-1),
            example: uuid::Uuid::nil(),
        });
        all.events.push(RecentEvent {
            at: at(-60),
            kind: "operator".into(),
            subject: None,
            who: Some("ops (as alice@desk)".into()),
            what: "412 × unresolved → pending: Khalti is back".into(),
        });
        assert_eq!(
            lines(&all, Paint::none(), WIDELY),
            [
                "dusupay/shop\u{fffd}[2J is not asked: circuit open for 1 min 15 s (20 polls in a row failed); 9,411 payments late, the \
                 oldest",
                "  by 1 min 55 s; clears in about 15 min once it is asked again; next probe in 12 s — and one more problem",
                "as of 2023-11-14 22:13:20 UTC; 1 replica: 4 on worker-1 up 1 h",
                "khalti/old: 3 payments wait; no running daemon serves this account",
                "ACCOUNT           CIRCUIT  PENDING    DUE   LATE  OVERDUE  OLDEST DUE  ACTION  UNRESOLVED  INVALID",
                "dusupay/shop\u{fffd}[2J  open          12  9,411  9,411        0  1 min 55 s       0           0        0",
                "dusupay/default   closed        12      3      0        0       4.3 s       0           0        0",
                "1 idle account: dusupay/idle",
                "most frequent errors of the last hour:",
                "  40 × dusupay/shop server_error: HTTP 503",
                "in the last hour:",
                "  22:12:20 operator by ops (as alice@desk): 412 × unresolved → pending: Khalti is back",
            ]
        );
    }

    #[test]
    fn two_hundred_accounts_fit_into_a_small_window_and_nothing_is_left_out_without_a_sign() {
        let mut accounts: Vec<AccountOverview> = (0..200).map(|n| account(&format!("account-with-a-long-name-{n}"))).collect();
        for n in [17, 40, 99, 150] {
            accounts[n] = open(&format!("account-with-a-long-name-{n}"));
        }
        let all = situation(accounts);
        let shown = lines(&all, Paint::none(), Window { width: 80, height: Some(24) });
        assert!(shown.len() <= 24, "{}\n{}", shown.len(), shown.join("\n"));
        assert!(shown.iter().all(|line| line.chars().count() <= 80), "{}", shown.join("\n"));
        assert!(shown[0].starts_with("dusupay/account-with-a-long-name-"), "{}", shown[0]);
        let whole = shown.join("\n");
        assert!(whole.contains("more problems") && whole.contains("more accounts, none worse"), "{whole}");
        let head = shown.iter().position(|line| line.starts_with("ACCOUNT")).expect("a table");
        assert!(shown[head + 1..head + 5].iter().all(|line| line.contains("  open  ")), "{whole}");
        assert!(shown[head + 1].starts_with("dusupay/account-with-…"), "{whole}");
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

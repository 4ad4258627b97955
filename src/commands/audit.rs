//! `paypoll audit`: whether the providers' rules were kept, recomputed from the journal and the
//! documented rules alone.

use super::text::{Paint, Table, Tone};
use crate::cli;
use crate::config::{self, Config, Rate, duration};
use crate::domain::audit::{self, Finding, Kind, Law, RateMeter, Tally};
use crate::domain::{Floors, Plan};
use crate::providers::{self, Descriptor};
use crate::store::{BusySecond, JournalReader, PolledTransaction};
use crate::text::{cut, json, moment, plain, span};
use anyhow::bail;
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::time::Duration;
use uuid::Uuid;

/// How many findings of each kind are named for each provider; all are counted.
const NAMED: u64 = 5;
/// How many findings are in the JSON.
const LISTED: usize = 1_000;
/// A longer reference is cut.
const LONGEST_REFERENCE: usize = 40;

/// Prints what was found. Errors when a rule was broken.
pub async fn run(config: &Config, asked: &cli::Audit, out: &mut impl Write) -> anyhow::Result<()> {
    let audit = Audit::of_journal(config, asked.since).await?;
    if asked.json {
        writeln!(out, "{}", json(&audit.report())?)?;
    } else {
        audit.write(&Kind::ALL, out, Paint::of_stdout())?;
    }
    audit.conclude(out)
}

/// The same for the demo: its hurried plans ask for more than the budgets allow, so the polls that
/// had to wait are counted, not named.
pub(super) async fn run_hurried(config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    let audit = Audit::of_journal(config, None).await?;
    let breaches: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.is_breach()).collect();
    audit.write(&breaches, out, Paint::of_stdout())?;
    if audit.books.values().any(|book| book.tally.of(Kind::WindowMissed) > 0) {
        writeln!(
            out,
            "(windows missed are no breach: the speed hurries the plans, not the budgets, so polls wait for their turn)"
        )?;
    }
    audit.conclude(out)
}

fn counted(breaches: u64) -> String {
    if breaches == 1 { "1 breach".into() } else { format!("{breaches} breaches") }
}

async fn read(journal: &mut JournalReader, audit: &mut Audit) -> anyhow::Result<()> {
    let budgets = audit.budgets();
    journal.busy_seconds(&budgets, &mut |second| audit.second(second)).await?;
    journal.open_polled().await?;
    loop {
        let mut batch = journal.next_polled().await?;
        if batch.is_empty() {
            break;
        }
        let with_first_wait: Vec<Uuid> = batch.iter().filter(|one| audit.has_first_wait(one)).map(|one| one.id).collect();
        if !with_first_wait.is_empty() {
            let mut too_early = journal.too_early(&with_first_wait).await?;
            batch.iter_mut().for_each(|one| one.history.too_early = too_early.remove(&one.id).unwrap_or_default());
        }
        let declared: Vec<Uuid> = batch.iter().filter(|one| audit.is_declared(one)).map(|one| one.id).collect();
        if !declared.is_empty() {
            let files = journal.declarations(&declared).await?;
            batch.iter_mut().for_each(|one| audit.add_floors(one, files.get(&one.id)));
        }
        let suspects: Vec<Uuid> = batch.iter().filter(|one| audit.misses_polls(one)).map(|one| one.id).collect();
        if !suspects.is_empty() {
            let failed = journal.failed(&suspects).await?;
            batch.iter_mut().for_each(|one| one.history.failed = failed.contains(&one.id));
        }
        batch.iter().for_each(|one| audit.transaction(one));
    }
    journal.never_polled(&mut |one| audit.transaction(one)).await?;
    Ok(())
}

/// The JSON of `audit --json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    providers: Vec<Line<'a>>,
    breaches: u64,
    findings: Vec<Found<'a>>,
}

/// A finding for machines.
#[derive(Debug, Serialize)]
struct Found<'a> {
    provider: &'a str,
    kind: &'static str,
    /// Of a whole account's rate: none.
    transaction_id: Option<Uuid>,
    at: DateTime<Utc>,
    detail: String,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    provider: &'a str,
    polls: u64,
    early: u64,
    interval: u64,
    rate: u64,
    outside_window: u64,
    windows_missed: u64,
}

/// One provider's rules, and what was found.
struct Book {
    enabled: bool,
    law: Law,
    rate: Rate,
    polls: u64,
    tally: Tally,
    named: Vec<Named>,
}

/// A finding, and whom it is about.
struct Named {
    finding: Finding,
    whom: String,
    id: Option<Uuid>,
}

struct Audit {
    books: BTreeMap<String, Book>,
    /// The account whose seconds are being read, and its meter.
    metered: Option<(String, String, RateMeter)>,
    since: Option<DateTime<Utc>>,
    complete_since: DateTime<Utc>,
    speed: f64,
    /// What the files that were ever served forbade, by their hashes.
    declared: HashMap<Vec<u8>, Floors>,
}

impl Audit {
    /// Whether its provider stands, or stood, in a file.
    fn is_declared(&self, one: &PolledTransaction) -> bool {
        !self.declared.is_empty() && !providers::REGISTRY.iter().any(|compiled| compiled.name == one.provider)
    }

    /// Each poll is judged by the file under which it was sent: one that became stricter does not
    /// make old polls guilty.
    fn add_floors(&self, one: &mut PolledTransaction, files: Option<&Vec<(DateTime<Utc>, Vec<u8>)>>) {
        let Some(files) = files else { return };
        let floors = |sent: &DateTime<Utc>| {
            let at = files.binary_search_by_key(sent, |(sent, _)| *sent).ok()?;
            self.declared.get(&files[at].1).map(|floors| floors.divided(self.speed))
        };
        one.history.floors = one.history.sent.iter().map(|sent| floors(sent).unwrap_or_default()).collect();
    }

    async fn of_journal(config: &Config, since: Option<Duration>) -> anyhow::Result<Self> {
        let store = super::open_store_for_reading(config).await?;
        let declared = store.declared_floors().await?;
        let mut journal = store.journal(since).await?;
        let mut audit = Self::new(config, &journal);
        audit.declared = declared;
        read(&mut journal, &mut audit).await?;
        drop(journal);
        store.close().await;
        Ok(audit)
    }

    /// Errors when a rule was broken.
    fn conclude(&self, out: &mut impl Write) -> anyhow::Result<()> {
        out.flush()?;
        match self.breaches() {
            0 => Ok(()),
            breaches => bail!("{} of the providers' rules", counted(breaches)),
        }
    }

    fn new(config: &Config, journal: &JournalReader) -> Self {
        let books = config.providers.iter().map(|provider| {
            let plan = provider.rules.plan.clone();
            let floors = provider.rules.floors;
            let floors = Floors { every: if floors.every.is_zero() { shortest_gap(&plan) } else { floors.every }, ..floors };
            let law = Law { floors, plan: Some((plan, provider.rules.retry.wait(u32::MAX, 0.0))) };
            (provider.descriptor.name.to_owned(), Book::new(true, law, provider.rate))
        });
        Self {
            books: books.collect(),
            metered: None,
            since: journal.since,
            complete_since: journal.complete_since,
            speed: config.speed,
            declared: HashMap::new(),
        }
    }

    /// The book of a provider. One that is not configured here is judged by its documented rules,
    /// its default plan and budget.
    fn book(&mut self, provider: &str) -> &mut Book {
        let speed = self.speed;
        self.books.entry(provider.to_owned()).or_insert_with(|| unconfigured(provider, providers::find(provider), speed))
    }

    /// How many polls any second of an account may have, for every provider there is.
    fn budgets(&mut self) -> Vec<(&'static str, usize)> {
        let known = providers::all().into_iter().map(|descriptor| descriptor.name);
        known
            .map(|name| {
                let rate = self.book(name).rate;
                (name, audit::most_per_second(rate.per_second, rate.burst))
            })
            .collect()
    }

    fn second(&mut self, second: &BusySecond) {
        let rate = self.book(&second.provider).rate;
        let same =
            |(provider, account, _): &(String, String, RateMeter)| *provider == second.provider && *account == second.account;
        let (.., mut meter) = self
            .metered
            .take()
            .filter(same)
            .unwrap_or_else(|| (String::new(), String::new(), RateMeter::new(rate.per_second, rate.burst)));
        let book = self.book(&second.provider);
        for at in &second.sent {
            if let Some(finding) = meter.poll(*at) {
                book.note(finding, None, || format!("account {}", cut(&second.account, LONGEST_REFERENCE)));
            }
        }
        self.metered = Some((second.provider.clone(), second.account.clone(), meter));
    }

    /// Whether the provider documents a wait before the first poll: then it says "too early" of
    /// polls that break a rule.
    fn has_first_wait(&mut self, one: &PolledTransaction) -> bool {
        !self.book(&one.provider).law.floors.first.is_zero()
    }

    /// Whether polls seem to be missing, as long as none of them is known to have failed.
    fn misses_polls(&mut self, one: &PolledTransaction) -> bool {
        let complete_since = self.complete_since;
        let found = self.book(&one.provider).law.judge(&one.history, complete_since);
        found.iter().any(|finding| finding.kind == Kind::WindowMissed)
    }

    fn transaction(&mut self, transaction: &PolledTransaction) {
        let (since, complete_since) = (self.since, self.complete_since);
        let book = self.book(&transaction.provider);
        let sent = transaction.history.sent.as_slice();
        book.polls += (sent.len() - since.map_or(0, |since| sent.partition_point(|sent| *sent < since))) as u64;
        for finding in book.law.judge(&transaction.history, complete_since) {
            if since.is_none_or(|since| finding.at >= since) {
                book.note(finding, Some(transaction.id), || {
                    let reference =
                        transaction.reference.as_deref().map_or("(deleted)".into(), |text| cut(text, LONGEST_REFERENCE));
                    format!("{} {reference}", transaction.id)
                });
            }
        }
    }

    fn breaches(&self) -> u64 {
        self.books.values().map(|book| book.tally.breaches()).sum()
    }

    fn report(&self) -> Report<'_> {
        let told = self.books.iter().filter(|(_, book)| book.is_told());
        let lines = told.map(|(provider, book)| Line {
            provider,
            polls: book.polls,
            early: book.tally.of(Kind::Early),
            interval: book.tally.of(Kind::Interval),
            rate: book.tally.of(Kind::Rate),
            outside_window: book.tally.of(Kind::OutsideWindow),
            windows_missed: book.tally.of(Kind::WindowMissed),
        });
        Report { providers: lines.collect(), breaches: self.breaches(), findings: self.findings() }
    }

    /// What was found, breaches first.
    fn findings(&self) -> Vec<Found<'_>> {
        let mut all: Vec<(&str, &Named)> =
            self.books.iter().flat_map(|(provider, book)| book.named.iter().map(move |named| (provider.as_str(), named))).collect();
        all.sort_by_key(|(_, named)| (!named.finding.kind.is_breach(), named.finding.at));
        let found = all.into_iter().take(LISTED).map(|(provider, named)| Found {
            provider,
            kind: key(named.finding.kind),
            transaction_id: named.id,
            at: named.finding.at,
            detail: format!("{}: {}", named.whom, told(&named.finding)),
        });
        found.collect()
    }

    /// Writes the table, and the findings of the kinds in `named`.
    fn write(&self, named: &[Kind], out: &mut impl Write, paint: Paint) -> std::io::Result<()> {
        const HEAD: [&str; 7] = ["PROVIDER", "POLLS", "EARLY", "INTERVAL", "RATE", "OUTSIDE WINDOW", "WINDOWS MISSED"];
        let mut table = Table::new(&HEAD, &[false, true, true, true, true, true, true]);
        let report = self.report();
        for line in &report.providers {
            let breach = |count: u64| (count.to_string(), if count > 0 { Tone::Bad } else { Tone::Calm });
            let missed = (line.windows_missed.to_string(), if line.windows_missed > 0 { Tone::Warning } else { Tone::Calm });
            table.row(vec![
                (plain(line.provider), Tone::Calm),
                (line.polls.to_string(), Tone::Calm),
                breach(line.early),
                breach(line.interval),
                breach(line.rate),
                breach(line.outside_window),
                missed,
            ]);
        }
        for line in table.lines(paint) {
            writeln!(out, "{line}")?;
        }
        for (provider, book) in &self.books {
            book.write(named, out, provider, paint)?;
        }
        let polls: u64 = self.books.values().map(|book| book.polls).sum();
        let from = self.since.unwrap_or(self.complete_since);
        writeln!(out, "{} in {polls} polls since {} UTC", counted(report.breaches), moment(from))
    }
}

fn unconfigured(provider: &str, descriptor: Option<&Descriptor>, speed: f64) -> Book {
    let floors = descriptor.map_or_else(Floors::default, |descriptor| descriptor.floors.divided(speed));
    let defaults = config::defaults_of(provider);
    let rate = defaults.as_ref().map_or(Rate { per_second: f64::MAX, burst: u32::MAX }, |defaults| defaults.rate);
    let plan = defaults.map(|defaults| (defaults.plan.divided(speed), defaults.longest_retry.div_f64(speed)));
    Book::new(false, Law { floors, plan }, rate)
}

/// The shortest gap that a plan may ever leave.
fn shortest_gap(plan: &Plan) -> Duration {
    let all = plan.phases.iter().chain(plan.by_state.values().flatten());
    all.map(|phase| phase.every.min).min().unwrap_or_default()
}

impl Book {
    fn new(enabled: bool, law: Law, rate: Rate) -> Self {
        Self { enabled, law, rate, polls: 0, tally: Tally::default(), named: Vec::new() }
    }

    /// Whether there is anything to report about the provider.
    fn is_told(&self) -> bool {
        self.enabled || self.polls > 0 || self.tally != Tally::default()
    }

    fn note(&mut self, finding: Finding, id: Option<Uuid>, whom: impl FnOnce() -> String) {
        self.tally.add(finding.kind);
        if self.named.len() < LISTED || self.tally.of(finding.kind) <= NAMED {
            self.named.push(Named { finding, whom: whom(), id });
        }
    }

    fn write(&self, kinds: &[Kind], out: &mut impl Write, provider: &str, paint: Paint) -> std::io::Result<()> {
        for &kind in kinds {
            let named = self.named.iter().filter(|named| named.finding.kind == kind);
            for Named { finding, whom, .. } in named.take(usize::try_from(NAMED).unwrap_or(usize::MAX)) {
                let line = format!("{} UTC  {}  {whom}: {}", moment(finding.at), plain(provider), told(finding));
                writeln!(out, "{}", if kind.is_breach() { paint.bad(&line) } else { paint.warning(&line) })?;
            }
            if self.tally.of(kind) > NAMED {
                writeln!(out, "{:23}      {}  and {} more like the last one", "", plain(provider), self.tally.of(kind) - NAMED)?;
            }
        }
        Ok(())
    }
}

/// The key that counts such findings.
fn key(kind: Kind) -> &'static str {
    match kind {
        Kind::Early => "early",
        Kind::Interval => "interval",
        Kind::Rate => "rate",
        Kind::OutsideWindow => "outside_window",
        Kind::WindowMissed => "windows_missed",
    }
}

fn told(finding: &Finding) -> String {
    let exactly = duration::text(finding.by);
    match finding.kind {
        Kind::Early if finding.by.is_zero() => "polled when the provider said that it was too early: is initiated_at right?".into(),
        Kind::Early => format!("polled {exactly} before its documented first poll"),
        Kind::Interval => format!("polled {exactly} sooner after the poll before than the rules allow"),
        Kind::Rate => "more polls within a second than the account's budget".into(),
        Kind::OutsideWindow => format!("polled {exactly} after the end of its documented window"),
        Kind::WindowMissed => format!("a poll was due then at the latest and had not come {} later", span(finding.by)),
    }
}

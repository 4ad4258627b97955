//! `paypoll plan`: at which offsets a transaction that stays pending would be polled, and what ends it.
//!
//! Needs no database and no credentials. With ranges the n-th poll falls between two timetables:
//! that of all shortest waits and that of all longest waits.

use crate::cli;
use crate::config::{self, ConfigError, duration};
use crate::domain::plan::{self, Plan};
use crate::domain::{Anchors, Phase, Progress, Until, after, since};
use crate::providers;
use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// At most this many polls are listed.
const MOST: usize = 100_000;
/// How much of a plan without an end is shown.
const OF_ENDLESS: Duration = Duration::from_secs(7 * 86_400);
/// Of more polls in a row with one gap only the first and the last ones are shown.
const LONGEST_RUN: usize = 6;
/// The ages at which two plans are compared.
const AGES: [Duration; 4] =
    [Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3_600), Duration::from_secs(86_400)];

/// Prints the plan. Errors on an unknown provider or a wrong configuration, which are
/// [`ConfigError`]s, and where `out` fails.
pub fn run(asked: &cli::Plan, files: &[PathBuf], out: &mut impl Write) -> anyhow::Result<()> {
    let plan = read(asked, files, config::environment())?;
    let shown = Timetable::of(&plan, asked.horizon);
    let against = match &asked.against {
        // The file alone, over the defaults: what else is configured here belongs to the plan that
        // it is compared with.
        Some(file) => Some(read(asked, std::slice::from_ref(file), std::iter::empty())?),
        None => None,
    };
    match (against, asked.json) {
        (None, false) => table(out, &asked.provider, &plan, &shown)?,
        (Some(other), false) => {
            let name = asked.against.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
            let other = Timetable::of(&other, asked.horizon);
            side_by_side(out, (&asked.provider, &shown), (&name, &other))?;
        }
        (against, true) => {
            let against = against.map(|plan| Timetable::of(&plan, asked.horizon));
            let answer = Answer { provider: &asked.provider, timetable: &shown, against: against.as_ref() };
            writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        }
    }
    Ok(())
}

fn read(asked: &cli::Plan, files: &[PathBuf], environment: impl Iterator<Item = (String, String)>) -> Result<Plan, ConfigError> {
    config::plan(&asked.provider, files, environment, asked.speed.factor)?.ok_or_else(|| {
        let known: Vec<&str> = providers::all().iter().map(|descriptor| descriptor.name).collect();
        ConfigError::one(format!("PROVIDER = {:?}: is not a known provider; known are {}", asked.provider, known.join(", ")))
    })
}

/// When a transaction that stays pending is polled.
#[derive(Serialize)]
pub struct Timetable {
    /// The polls, in their order.
    pub polls: Vec<Poll>,
    /// What ends them; `None` for a plan without an end.
    pub ends: Option<Ends>,
    /// The fewest polls, when every wait is the longest.
    #[serde(skip)]
    fewest: usize,
    /// The polls of the longest waits: offsets from initiation.
    #[serde(skip)]
    latest: Vec<Duration>,
    /// The age up to which polls are listed, where the list does not reach the end.
    #[serde(skip)]
    cut: Option<Duration>,
}

/// The n-th poll.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Poll {
    /// Its offset from initiation when every wait is the shortest.
    #[serde(rename = "earliest_s", serialize_with = "as_seconds")]
    pub earliest: Duration,
    /// Its offset from initiation when every wait is the longest; at most the end of the window.
    #[serde(rename = "latest_s", serialize_with = "as_seconds")]
    pub latest: Duration,
    /// The phase that it falls into, from 0.
    #[serde(skip)]
    phase: usize,
}

/// What ends the polling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ends {
    /// The latest possible age.
    #[serde(rename = "at_s", serialize_with = "as_seconds")]
    pub at: Duration,
    /// The state that the transaction is parked in.
    pub state: &'static str,
    /// Why.
    pub reason: &'static str,
    /// The earliest possible age.
    #[serde(skip)]
    earliest: Duration,
}

#[derive(Serialize)]
struct Answer<'a> {
    provider: &'a str,
    #[serde(flatten)]
    timetable: &'a Timetable,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<&'a Timetable>,
}

impl Timetable {
    /// The timetable up to `horizon`, else up to the end of the plan.
    #[must_use]
    pub fn of(plan: &Plan, horizon: Option<Duration>) -> Self {
        let ends = ends(plan);
        let until = horizon.unwrap_or(if ends.is_some() { Duration::MAX } else { OF_ENDLESS });
        let (earliest, ended) = plan::timetable(plan, 0.0, until, MOST);
        let (latest, _) = plan::timetable(plan, 1.0, Duration::MAX, earliest.len());
        let end = ends.map_or(Duration::MAX, |ends| ends.at);
        let polls = earliest.iter().enumerate().map(|(n, stop)| Poll {
            earliest: stop.offset,
            latest: latest.get(n).map_or(end, |stop| stop.offset).max(stop.offset),
            phase: stop.phase,
        });
        let latest: Vec<Duration> = latest.iter().map(|stop| stop.offset).filter(|offset| *offset <= until).collect();
        let cut = ended.is_none().then(|| if earliest.len() < MOST { until } else { earliest[MOST - 1].offset });
        Self { polls: polls.collect(), ends, fewest: latest.len(), latest, cut }
    }
}

/// What ends the plan, at the latest and at the earliest.
fn ends(plan: &Plan) -> Option<Ends> {
    let (at, reason) = end(plan, 1.0)?;
    let earliest = end(plan, 0.0).map_or(at, |(earliest, _)| earliest.min(at));
    Some(Ends { at, state: crate::domain::State::Unresolved.as_str(), reason, earliest })
}

fn end(plan: &Plan, draw: f64) -> Option<(Duration, &'static str)> {
    let (stops, end) = plan::timetable(plan, draw, Duration::MAX, MOST);
    if end.is_some() {
        return end;
    }
    // Too many polls to count through: what the clock alone says.
    let start = DateTime::<Utc>::UNIX_EPOCH;
    let opened = stops.first().map(|stop| after(start, stop.offset));
    let phase_since = if plan.from == plan::Origin::Initiation { Some(start) } else { opened };
    let progress = Progress { opened_at: opened, phase_since, ..Progress::default() };
    let ending = plan.ending(&progress, Anchors { start, action: None }, None)?;
    Some((since(start, ending.at), ending.reason))
}

/// A plain number of seconds, whole where it is whole.
fn as_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let micros = (duration.as_nanos() + 500) / 1_000;
    match u64::try_from(micros) {
        Ok(micros) if micros % 1_000_000 == 0 => serializer.serialize_u64(micros / 1_000_000),
        _ => serializer.serialize_f64(micros as f64 / 1e6),
    }
}

fn table(out: &mut impl Write, provider: &str, plan: &Plan, shown: &Timetable) -> std::io::Result<()> {
    writeln!(out, "{provider}: {}", summary(shown))?;
    writeln!(out, "\n{:>6}  {:<22} {:<12} phase", "poll", "offset", "gap")?;
    let rows: Vec<Row> = (0..shown.polls.len()).map(|n| Row::of(plan, &shown.polls, n)).collect();
    for run in rows.chunk_by(|row, next| row.gap == next.gap && row.phase == next.phase) {
        if run.len() <= LONGEST_RUN {
            run.iter().try_for_each(|row| row.write(out))?;
        } else {
            let (first, rest) = run.split_at(3);
            let (skipped, last) = rest.split_at(rest.len() - 1);
            first.iter().try_for_each(|row| row.write(out))?;
            writeln!(out, "{:>6}  {} more, every {}", "…", skipped.len(), run[0].gap)?;
            last.iter().try_for_each(|row| row.write(out))?;
        }
    }
    if let Some(cut) = shown.cut {
        writeln!(out, "{:>6}  later polls are not shown: the list ends at {}", "…", duration::text(cut))?;
    }
    match shown.ends {
        Some(ends) => {
            writeln!(out, "{:>6}  {:<22} {:<12} {}: {}", "end", span(ends.earliest, ends.at), "", ends.state, ends.reason)
        }
        None => writeln!(out, "{:>6}  none: polled until the provider's final word", "end"),
    }
}

fn summary(shown: &Timetable) -> String {
    let polls = polls(shown);
    match (shown.ends, shown.cut) {
        (_, Some(cut)) => format!("{polls} in {}, while the transaction stays pending", duration::text(cut)),
        (Some(ends), None) => format!("{polls} in {} at the most, while the transaction stays pending", duration::text(ends.at)),
        (None, None) => format!("{polls}, while the transaction stays pending"),
    }
}

fn polls(shown: &Timetable) -> String {
    match (shown.fewest, shown.polls.len()) {
        (_, 1) => "1 poll".into(),
        (fewest, most) if fewest < most => format!("{fewest}–{most} polls"),
        (_, most) => format!("{most} polls"),
    }
}

/// One line of the table.
struct Row {
    number: usize,
    offset: String,
    gap: String,
    phase: String,
}

impl Row {
    fn of(plan: &Plan, polls: &[Poll], n: usize) -> Self {
        let poll = polls[n];
        let gap = match n.checked_sub(1).map(|before| polls[before]) {
            None => "–".to_owned(),
            Some(before) => {
                let gap = poll.earliest.saturating_sub(before.earliest);
                let every = plan.phases.get(before.phase).map(|phase| phase.every);
                // Another gap than the phase's own: drawn back to the end of the window.
                every.filter(|every| every.min == gap).map_or_else(|| duration::text(gap), duration::range_text)
            }
        };
        let phase = plan.phases.get(poll.phase).map_or_else(String::new, |phase| described(poll.phase, phase));
        Self { number: n + 1, offset: span(poll.earliest, poll.latest), gap, phase }
    }

    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(out, "{:>6}  {:<22} {:<12} {}", self.number, self.offset, self.gap, self.phase)
    }
}

fn described(index: usize, phase: &Phase) -> String {
    let every = duration::range_text(phase.every);
    match phase.until {
        Until::For(long) => format!("{}: every {every} for {}", index + 1, duration::text(long)),
        Until::Count(gaps) => format!("{}: every {every}, {gaps} times", index + 1),
        Until::Open => format!("{}: every {every}", index + 1),
    }
}

fn span(min: Duration, max: Duration) -> String {
    duration::range_text(crate::domain::Range { min, max })
}

fn side_by_side(out: &mut impl Write, this: (&str, &Timetable), other: (&str, &Timetable)) -> std::io::Result<()> {
    let width = this.0.chars().count().max(24) + 2;
    let mut row = |name: &str, this: String, other: String| writeln!(out, "{name:<36} {this:<width$} {other}");
    row("", this.0.to_owned(), other.0.to_owned())?;
    row("polls per transaction", per_transaction(this.1), per_transaction(other.1))?;
    row("first poll", first_poll(this.1), first_poll(other.1))?;
    for age in AGES {
        row(&format!("polls in the first {}", duration::text(age)), polls_within(this.1, age), polls_within(other.1, age))?;
    }
    for age in AGES.into_iter().map(Some).chain([None]) {
        let name = age.map_or_else(String::new, |age| format!(" in the first {}", duration::text(age)));
        row(&format!("worst wait for news{name}"), worst_wait(this.1, age), worst_wait(other.1, age))?;
    }
    row("end", how_it_ends(this.1), how_it_ends(other.1))
}

fn per_transaction(shown: &Timetable) -> String {
    let within = shown.cut.map_or_else(String::new, |cut| format!(" in {}", duration::text(cut)));
    format!("{}{within}", polls(shown).trim_end_matches(" polls").trim_end_matches(" poll"))
}

fn first_poll(shown: &Timetable) -> String {
    shown.polls.first().map_or_else(|| "–".into(), |poll| span(poll.earliest, poll.latest))
}

fn polls_within(shown: &Timetable, age: Duration) -> String {
    let most = shown.polls.iter().filter(|poll| poll.earliest <= age).count();
    let fewest = shown.latest.iter().filter(|offset| **offset <= age).count();
    if fewest < most { format!("{fewest}–{most}") } else { most.to_string() }
}

/// The longest time that a final word can go unheard, when every wait is the longest: over the
/// waits that begin before `age`.
fn worst_wait(shown: &Timetable, age: Option<Duration>) -> String {
    let begins = std::iter::once(Duration::ZERO).chain(shown.latest.iter().copied());
    let waits = begins.zip(&shown.latest).filter(|(begin, _)| age.is_none_or(|age| *begin < age));
    waits.map(|(begin, end)| end.saturating_sub(begin)).max().map_or_else(|| "–".into(), duration::text)
}

fn how_it_ends(shown: &Timetable) -> String {
    match shown.ends {
        Some(ends) => format!("{}: {}, {}", span(ends.earliest, ends.at), ends.state, ends.reason),
        None => "none".into(),
    }
}

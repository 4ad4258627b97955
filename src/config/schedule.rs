//! A provider's `schedule`: from keys to a [`Plan`], refused where it makes no sense or goes beyond
//! the provider's own rules.

use super::duration::{self, text};
use super::reader::Section;
use crate::domain::{Floors, Origin, Phase, Plan, Range, Until};
use std::collections::BTreeMap;
use std::time::Duration;

/// A plan with more phases than this is a mistake.
const MOST_PHASES: usize = 1_000;

/// The plan of a `schedule`; `None` after a mistake, which is noted.
pub(super) fn read(mut schedule: Section<'_>, floors: &Floors) -> Option<Plan> {
    let first = schedule.timed("first", |text| at_least(text, floors.first, "no poll may be sent sooner after initiation"));
    let from = schedule.optional("from", |schedule, key| schedule.parsed(key, origin));
    let give_up_after = schedule.optional("give_up_after", |schedule, key| schedule.timed(key, give_up_age)).flatten();
    let phases = read_phases(&mut schedule, "phases", floors);
    let by_state = read_by_state(schedule.section("by_state"), floors);
    // A first wait that goes beyond the floor already has its margin, or some of it.
    let first = first?;
    let margin = floors.first.saturating_add(floors.margin).saturating_sub(first.min);
    let plan = Plan { first, margin, from: from.unwrap_or_default(), phases: phases?, by_state, give_up_after };
    check_end(&schedule, &plan);
    check_window(&schedule, &plan, floors);
    schedule.finish();
    Some(plan)
}

fn at_least(text: &str, floor: Duration, why: &str) -> Result<Range, String> {
    let range = duration::parse_range(text)?;
    if range.min < floor {
        let floor = duration::text(floor);
        return Err(format!("the provider's documented floor is {floor}, {why}; write \"{floor}\" or more"));
    }
    Ok(range)
}

fn origin(text: &str) -> Result<Origin, String> {
    match text {
        "initiation" => Ok(Origin::Initiation),
        "first_poll" => Ok(Origin::FirstPoll),
        "action" => Ok(Origin::Action),
        _ => Err("must be \"initiation\", \"first_poll\" or \"action\"".into()),
    }
}

fn give_up_age(text: &str) -> Result<Option<Duration>, String> {
    if text == "never" { Ok(None) } else { duration::parse(text).map(Some).map_err(|mend| format!("{mend}, or \"never\"")) }
}

fn read_by_state(mut section: Section<'_>, floors: &Floors) -> BTreeMap<String, Vec<Phase>> {
    let mut by_state = BTreeMap::new();
    for word in section.names() {
        match read_phases(&mut section, &word, floors) {
            Some(list) if list.is_empty() => section.problem(&word, "must have at least one phase"),
            Some(list) => drop(by_state.insert(word, list)),
            None => {}
        }
    }
    by_state
}

fn read_phases(section: &mut Section<'_>, key: &str, floors: &Floors) -> Option<Vec<Phase>> {
    let list = section.list(key)?;
    let count = list.len();
    if count > MOST_PHASES {
        section.problem(key, format_args!("has {count} phases; at most {MOST_PHASES} are allowed"));
        return None;
    }
    let phases = list.into_iter().enumerate().map(|(index, mut phase)| {
        let read = read_phase(&mut phase, floors);
        if index + 1 < count && read.is_some_and(|phase| phase.until == Until::Open) {
            section.problem(
                &format!("{key}[{index}]"),
                "only the last phase may be open; give this one `for` or `count`, or move it to the end",
            );
        }
        read
    });
    // Read to the end, so that every mistake is noted, before the first one ends the reading.
    phases.collect::<Vec<_>>().into_iter().collect()
}

fn read_phase(phase: &mut Section<'_>, floors: &Floors) -> Option<Phase> {
    let every = phase.timed("every", |text| at_least(text, floors.every, "no gap between two polls may be shorter"));
    let long = phase.optional("for", |phase, key| phase.duration_from(key, Duration::from_millis(1)));
    let count = phase.optional("count", |phase, key| phase.number(key, 1..=u32::MAX));
    phase.finish();
    let until = match (long, count) {
        (Some(_), Some(_)) => {
            phase.problem("count", "`for` is given too; keep one of the two");
            return None;
        }
        (Some(long), None) => Until::For(long),
        (None, Some(count)) => Until::Count(count),
        (None, None) => Until::Open,
    };
    Some(Phase { every: every?, until })
}

/// A plan has a first poll before it gives up, and something to do after it.
fn check_end(schedule: &Section<'_>, plan: &Plan) {
    let Some(age) = plan.give_up_after else {
        if plan.phases.is_empty() {
            schedule.problem("phases", "must have at least one phase, because there is no give_up_after either");
        }
        return;
    };
    let first = plan.first.max.saturating_add(plan.margin);
    if first >= age {
        let mend = format_args!("must be longer than the wait for the first poll, {}", text(first));
        schedule.wrong("give_up_after", format_args!("\"{}\"", text(age)), mend);
    }
}

/// The provider's longest window is kept, whatever the answers are: by the give-up age, or else by
/// phases of a fixed length that are counted from a moment that never moves.
fn check_window(schedule: &Section<'_>, plan: &Plan, floors: &Floors) {
    let Some(window) = floors.window else { return };
    if plan.give_up_after.is_some_and(|age| age <= plan.first.min.saturating_add(plan.margin).saturating_add(window)) {
        return;
    }
    let documented = format!("the provider's documented window is {} from the first poll", text(window));
    let by_state = plan.by_state.iter().map(|(word, list)| (format!("by_state.{word}"), list));
    for (key, list) in std::iter::once(("phases".to_owned(), &plan.phases)).chain(by_state) {
        match length(list) {
            None => schedule.problem(&key, format_args!("{documented}; end every phase with `for`")),
            Some(long) if long > window => {
                schedule.problem(&key, format_args!("{documented}, these phases last {}; shorten them", text(long)));
            }
            Some(_) => {}
        }
    }
    if plan.from == Origin::Action {
        schedule.wrong("from", "\"action\"", format_args!("{documented}; leave `from` out"));
    }
}

/// How long the phases last; `None` where the clock alone does not tell.
fn length(phases: &[Phase]) -> Option<Duration> {
    let lengths = phases.iter().map(|phase| match phase.until {
        Until::For(long) => Some(long),
        Until::Count(_) | Until::Open => None,
    });
    lengths.sum()
}

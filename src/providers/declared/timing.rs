//! `[floors]` and `[plan]`: what the documentation forbids, with its sentence, and when to ask by default.

use super::tree::{Item, Source, Spot, Table};
use crate::domain::{Floors, Origin, Phase, Plan, Range, Until};
use crate::duration;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// What the documentation forbids, and where it says so.
#[derive(Debug, Default)]
pub(super) struct Documented {
    pub(super) floors: Floors,
    /// For people: what is forbidden, and the rule that says so.
    pub(super) because: Vec<(String, String)>,
    /// There is no floor; says why.
    pub(super) none: Option<String>,
}

/// The default plan.
#[derive(Debug)]
pub(super) struct Pace {
    pub(super) plan: Plan,
    pub(super) rule: Option<String>,
}

/// A plan with more phases than this is a mistake.
const MOST_PHASES: usize = 1_000;

/// Reads `[floors]`. `rules` are the ids that may be named.
pub(super) fn read_floors(table: Option<Table<'_, '_>>, rules: &[&str], source: &Source<'_>) -> Documented {
    let mut documented = Documented::default();
    let Some(mut table) = table else {
        let spot = Spot { line: 1, key: "floors".into() };
        let mend = "is missing; write what the documentation forbids, or none = \"why there is nothing\"";
        source.problem(&spot, mend);
        return documented;
    };
    let spot = table.spot().clone();
    documented.none = table.text("none");
    let mut floor = |key: &str, words: &str| {
        let mut table = table.table(key)?;
        let wait = table.required("wait", "write the shortest wait, such as \"5m\"").and_then(|item| item.parsed(told_duration));
        let margin = if key == "first" { table.optional("margin") } else { None };
        let margin = margin.and_then(|item| item.parsed(told_duration));
        let rule = rule(&mut table, rules, source);
        table.finish();
        let (wait, rule) = (wait?, rule?);
        documented.because.push((format!("{words} {}", duration::text(wait)), rule));
        Some((wait, margin.unwrap_or_default()))
    };
    let first = floor("first", "no poll before");
    let every = floor("every", "no gap under");
    let window = floor("window", "no window over");
    if let Some(mut rate) = table.table("rate") {
        let mend = "write how many requests a second are allowed";
        let per_second = rate.required("per_second", mend).and_then(Item::number);
        let rule = rule(&mut rate, rules, source);
        rate.finish();
        if let (Some(per_second), Some(rule)) = (per_second, rule) {
            documented.because.push((format!("at most {per_second} requests a second"), rule));
            documented.floors.rate = Some(per_second);
        }
    }
    table.finish();
    let (first, margin) = first.unwrap_or_default();
    let every = every.map_or(Duration::ZERO, |(wait, _)| wait);
    let window = window.map(|(wait, _)| wait);
    documented.floors = Floors { first, margin, every, window, ..documented.floors };
    match &documented.none {
        Some(why) if why.trim().is_empty() => source.problem(&spot, "none is empty; say why the documentation sets no floor"),
        Some(_) if !documented.because.is_empty() => source.problem(&spot, "has both none and a floor; keep one of them"),
        None if documented.because.is_empty() && source.is_fine() => {
            source.problem(&spot, "is empty; write what the documentation forbids, or none = \"why there is nothing\"");
        }
        _ => {}
    }
    documented
}

/// A floor's rule, which must be quoted.
fn rule(table: &mut Table<'_, '_>, rules: &[&str], source: &Source<'_>) -> Option<String> {
    let mend = "a floor names the sentence that it comes from: write rule = \"ID\" of one of [[rules]]";
    let (id, spot) = table.required("rule", mend)?.text()?;
    check_rule(&id, &spot, rules, source);
    Some(id)
}

/// A rule that is named must be there.
pub(super) fn check_rule(id: &str, spot: &Spot, rules: &[&str], source: &Source<'_>) {
    if !rules.contains(&id) {
        let known = if rules.is_empty() { "none".to_owned() } else { rules.join(", ") };
        source.problem(spot, format_args!("{id:?} is no id of [[rules]]; there are {known}"));
    }
}

fn told_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|why| format!("is no duration: {why}"))
}

fn positive(text: &str) -> Result<Duration, String> {
    told_duration(text).and_then(|wait| if wait.is_zero() { Err("must be longer than nothing".into()) } else { Ok(wait) })
}

fn range(text: &str) -> Result<Range, String> {
    duration::parse_range(text).map_err(|why| format!("is no wait: {why}"))
}

/// Reads `[plan]`. `None` after a mistake, which is noted.
pub(super) fn read_plan(table: Option<Table<'_, '_>>, floors: &Floors, rules: &[&str], source: &Source<'_>) -> Option<Pace> {
    let Some(mut table) = table else {
        let spot = Spot { line: 1, key: "plan".into() };
        source.problem(&spot, "is missing; write first, phases and give_up_after: when a transaction is asked about by default");
        return None;
    };
    let spot = table.spot().clone();
    let rule = table.optional("rule").and_then(Item::text).map(|(id, spot)| {
        check_rule(&id, &spot, rules, source);
        id
    });
    let first = table.required("first", "write the wait from initiation to the first poll").and_then(|item| item.parsed(range));
    let from = table.optional("from").and_then(|item| {
        item.parsed(|text| match text {
            "initiation" => Ok(Origin::Initiation),
            "first_poll" => Ok(Origin::FirstPoll),
            "action" => Ok(Origin::Action),
            _ => Err("is none of \"initiation\", \"first_poll\" and \"action\"".into()),
        })
    });
    let give_up_after = table
        .optional("give_up_after")
        .and_then(|item| item.parsed(|text| if text == "never" { Ok(None) } else { positive(text).map(Some) }));
    let phases = table.required("phases", "write a list such as [{ every = \"5m\" }]").and_then(|item| read_phases(item, source));
    let mut by_state = BTreeMap::new();
    for (word, item) in table.table("by_state").map(|mut table| table.named()).unwrap_or_default() {
        if let Some(phases) = read_phases(item, source) {
            by_state.insert(word, phases);
        }
    }
    table.finish();
    let (from, give_up_after) = (from.unwrap_or_default(), give_up_after.flatten());
    let plan = Plan { first: first?, margin: floors.margin, from, phases: phases?, by_state, give_up_after };
    check(&plan, floors, &spot, source);
    Some(Pace { plan, rule })
}

fn read_phases(item: Item<'_, '_>, source: &Source<'_>) -> Option<Vec<Phase>> {
    let spot = item.spot.clone();
    let tables = item.tables()?;
    if tables.is_empty() || tables.len() > MOST_PHASES {
        source.problem(&spot, format_args!("must have 1 to {MOST_PHASES} phases"));
        return None;
    }
    let last = tables.len() - 1;
    let phases: Vec<Option<Phase>> = tables
        .into_iter()
        .enumerate()
        .map(|(index, mut table)| {
            let spot = table.spot().clone();
            let mend = "write the gap after each poll, such as \"5m\"";
            let every = table.required("every", mend).and_then(|item| item.parsed(range));
            let long = table.optional("for").and_then(|item| item.parsed(positive));
            let count = table.optional("count").and_then(|item| item.integer(1, i64::from(u32::MAX)));
            table.finish();
            let until = match (long, count.and_then(|count| u32::try_from(count).ok())) {
                (Some(_), Some(_)) => {
                    source.problem(&spot, "has both for and count; keep one of the two");
                    return None;
                }
                (Some(long), None) => Until::For(long),
                (None, Some(count)) => Until::Count(count),
                (None, None) => Until::Open,
            };
            if until == Until::Open && index < last {
                source.problem(&spot, "only the last phase may be open; give this one for or count");
            }
            Some(Phase { every: every?, until })
        })
        .collect();
    phases.into_iter().collect()
}

/// A plan that keeps the floors and has an end that makes sense.
fn check(plan: &Plan, floors: &Floors, spot: &Spot, source: &Source<'_>) {
    let below = |what: &str, wait: Duration, floor: Duration| {
        if wait < floor {
            let (wait, floor) = (duration::text(wait), duration::text(floor));
            source.problem(
                spot,
                format_args!("{what} = \"{wait}\" is below the documented floor, {floor}; write \"{floor}\" or more"),
            );
        }
    };
    below("first", plan.first.min, floors.first);
    for phase in plan.phases.iter().chain(plan.by_state.values().flatten()) {
        below("every", phase.every.min, floors.every);
    }
    let first = plan.first.max.saturating_add(plan.margin);
    if plan.give_up_after.is_some_and(|age| age <= first) {
        source.problem(
            spot,
            format_args!("give_up_after must be longer than the wait for the first poll, {}", duration::text(first)),
        );
    }
    let Some(window) = floors.window else { return };
    let ends = |list: &[Phase]| {
        let lengths = list.iter().map(|phase| match phase.until {
            Until::For(long) => Some(long),
            Until::Count(_) | Until::Open => None,
        });
        lengths.sum::<Option<Duration>>().is_some_and(|long| long <= window)
    };
    let gives_up = plan.give_up_after.is_some_and(|age| age <= plan.first.min.saturating_add(plan.margin).saturating_add(window));
    let within = plan.from != Origin::Action && std::iter::once(&plan.phases).chain(plan.by_state.values()).all(|list| ends(list));
    if !gives_up && !within {
        let window = duration::text(window);
        source.problem(spot, format_args!("goes beyond the documented window, {window}; end its phases, or give up, within it"));
    }
}

/// A plan as the configuration writes it.
pub(super) fn as_schedule(plan: &Plan) -> String {
    let wait = |range: Range| format!("\"{}ms..{}ms\"", range.min.as_millis(), range.max.as_millis());
    let phases = |list: &[Phase]| {
        let phases = list.iter().map(|phase| {
            let every = wait(phase.every);
            match phase.until {
                Until::For(long) => format!("{{ every = {every}, for = \"{}ms\" }}", long.as_millis()),
                Until::Count(count) => format!("{{ every = {every}, count = {count} }}"),
                Until::Open => format!("{{ every = {every} }}"),
            }
        });
        format!("[{}]", phases.collect::<Vec<_>>().join(", "))
    };
    let mut text = format!("{{ first = {}, phases = {}", wait(plan.first), phases(&plan.phases));
    // Writing to a `String` cannot fail.
    match plan.from {
        Origin::FirstPoll => {}
        Origin::Initiation => text += ", from = \"initiation\"",
        Origin::Action => text += ", from = \"action\"",
    }
    if !plan.by_state.is_empty() {
        let lists =
            plan.by_state.iter().map(|(word, list)| format!("{} = {}", serde_json::Value::from(word.as_str()), phases(list)));
        let _ = write!(text, ", by_state = {{ {} }}", lists.collect::<Vec<_>>().join(", "));
    }
    if let Some(age) = plan.give_up_after {
        let _ = write!(text, ", give_up_after = \"{}ms\"", age.as_millis());
    }
    text + " }"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Documented, Option<Pace>, Vec<String>) {
        let source = Source::new("a", text);
        let mut table = source.parse(text).expect("TOML");
        let documented = read_floors(table.table("floors"), &["r"], &source);
        let pace = read_plan(table.table("plan"), &documented.floors, &["r"], &source);
        table.finish();
        (documented, pace, source.into_problems())
    }

    const PLAN: &str = "[plan]\nfirst = \"5m\"\nphases = [{ every = \"5m\" }]\ngive_up_after = \"72h\"\n";

    #[test]
    fn floors_have_their_sentence() {
        let text = format!(
            "[floors]\nfirst = {{ wait = \"5m\", margin = \"1s\", rule = \"r\" }}\nrate = {{ per_second = 10, rule = \"r\" }}\n{PLAN}"
        );
        let (documented, pace, told) = read(&text);
        assert_eq!(told, [""; 0]);
        let floors = documented.floors;
        assert_eq!((floors.first, floors.margin, floors.rate), (Duration::from_secs(300), Duration::from_secs(1), Some(10.0)));
        assert_eq!(documented.because.len(), 2);
        assert_eq!(pace.expect("a plan").plan.margin, Duration::from_secs(1));
    }

    #[test]
    fn a_floor_without_a_reason_and_no_floors_are_refused() {
        for (floors, said) in [
            ("", "floors: is missing"),
            ("[floors]\n", "is empty; write what"),
            ("[floors]\nfirst = { wait = \"5m\" }\n", "floors.first.rule: is missing; a floor names the sentence"),
            ("[floors]\nevery = { wait = \"5m\", rule = \"x\" }\n", "\"x\" is no id of [[rules]]; there are r"),
            ("[floors]\nrate = { per_second = 0, rule = \"r\" }\n", "0 must be a number above 0"),
            ("[floors]\nnone = \" \"\n", "none is empty"),
            ("[floors]\nnone = \"x\"\nevery = { wait = \"5m\", rule = \"r\" }\n", "both none and a floor"),
            ("[floors]\nevery = { wait = \"5m\", margin = \"1s\", rule = \"r\" }\n", "margin: "),
        ] {
            let (_, _, told) = read(&format!("{floors}{PLAN}"));
            assert!(told.iter().any(|told| told.contains(said)), "{floors}: {told:?}");
        }
    }

    #[test]
    fn a_plan_below_its_floors_or_without_sense_is_refused() {
        let floors = "first = { wait = \"2m\", rule = \"r\" }\nevery = { wait = \"5m\", rule = \"r\" }\n";
        for (plan, said) in [
            ("first = \"1m\"\nphases = [{ every = \"5m\" }]", "first = \"1m\" is below the documented floor, 2m"),
            ("first = \"2m\"\nphases = [{ every = \"4m..6m\" }]", "every = \"4m\" is below the documented floor, 5m"),
            ("first = \"2m\"\nphases = [{ every = \"5m\" }, { every = \"6m\" }]", "only the last phase may be open"),
            ("first = \"2m\"\nphases = []", "must have 1 to"),
            ("first = \"2m\"\nphases = [{ every = \"5m\" }]\ngive_up_after = \"2m\"", "must be longer than the wait"),
            ("first = \"2\"\nphases = [{ every = \"5m\" }]", "is no wait"),
            ("first = \"2m\"\nphases = [{ every = \"5m\", for = \"1h\", count = 2 }]", "both for and count"),
            ("first = \"2m\"\nphases = [{ every = \"5m\", each = 2 }]", "each: is not a known key"),
        ] {
            let (_, _, told) = read(&format!("[floors]\n{floors}[plan]\n{plan}\n"));
            assert!(told.iter().any(|told| told.contains(said)), "{plan}: {told:?}");
        }
        let window = "[floors]\nwindow = { wait = \"3m\", rule = \"r\" }\n";
        let (_, _, told) = read(&format!("{window}{PLAN}"));
        assert!(told.iter().any(|told| told.contains("beyond the documented window")), "{told:?}");
    }

    #[test]
    fn a_plan_is_written_as_the_configuration_reads_it() {
        let text = "[floors]\nnone = \"x\"\n[plan]\nfirst = \"20s..25s\"\nfrom = \"action\"\n\
                    phases = [{ every = \"3s\", for = \"30s\" }, { every = \"1m\", count = 2 }]\nby_state = { \"A b\" = [{ every = \"1h\" }] }\n";
        let (_, pace, told) = read(text);
        assert_eq!(told, [""; 0]);
        assert_eq!(
            as_schedule(&pace.expect("a plan").plan),
            "{ first = \"20000ms..25000ms\", phases = [{ every = \"3000ms..3000ms\", for = \"30000ms\" }, \
             { every = \"60000ms..60000ms\", count = 2 }], from = \"action\", \
             by_state = { \"A b\" = [{ every = \"3600000ms..3600000ms\" }] } }"
        );
    }
}

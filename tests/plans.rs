//! The plan language: published rules of the field with their exact timetables, and properties that
//! hold for every plan and history.

use chrono::{DateTime, TimeDelta, Utc};
use paypoll::cli::{Cli, Command};
use paypoll::commands;
use paypoll::config;
use paypoll::domain::plan::{self, Plan};
use paypoll::domain::{
    Amount, Backoff, Due, Floors, NotFoundRule, Origin, Outcome, Phase, Progress, Range, Reported, Rules, Sent, State, Status,
    Transaction, Until, Whose,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/plans").join(format!("{name}.toml"))
}

fn read(provider: &str, name: &str) -> Plan {
    config::plan(provider, &[fixture(name)], std::iter::empty(), 1.0).expect("valid").expect("a known provider")
}

/// The plan's timetable with one `draw` for all waits: the first offset, then counts of gaps with
/// their seconds, and the ending.
#[track_caller]
fn expect(plan: &Plan, draw: f64, first: u64, gaps: &[(usize, u64)], ending: (u64, &'static str)) {
    let (stops, end) = plan::timetable(plan, draw, Duration::MAX, 10_000);
    let offsets: Vec<Duration> = stops.iter().map(|stop| stop.offset).collect();
    let found: Vec<u64> = offsets.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    let expected: Vec<u64> = gaps.iter().flat_map(|(times, gap)| std::iter::repeat_n(*gap, *times)).collect();
    assert_eq!(offsets.first(), Some(&seconds(first)));
    assert_eq!(found, expected);
    assert_eq!(end, Some((seconds(ending.0), ending.1)));
}

#[test]
fn phonepe_asks_ever_slower_until_20_minutes() {
    let plan = read("khalti", "phonepe");
    let gaps = [(10, 3), (10, 6), (6, 10), (2, 30), (16, 60)];
    expect(&plan, 0.0, 20, &gaps, (1_200, "gave_up"));
    expect(&plan, 1.0, 25, &gaps, (1_200, "gave_up"));
}

#[test]
fn ksher_counts_its_polls_to_600_seconds() {
    let gaps = [(15, 2), (10, 3), (12, 5), (6, 10), (3, 20), (12, 30)];
    expect(&read("khalti", "ksher"), 0.0, 0, &gaps, (600, "window_over"));
}

#[test]
fn payture_starts_from_the_redirect_and_starts_anew_at_the_next() {
    let plan = read("khalti", "payture");
    expect(&plan, 0.0, 15, &[(10, 3), (24, 5), (60, 60), (70, 3_600)], (259_200, "gave_up"));

    // An hour and a half later the payer is redirected: 3 s for 30 s again, then 5 s.
    let mut progress = Progress::default();
    let mut anchors = plan::Anchors { start: at(0), action: None };
    let poll = |seconds, acted| Sent { at: at(seconds), before: None, provider_state: None, acted };
    plan.after_poll(&mut progress, anchors, poll(15, false), Duration::ZERO, 0.0);
    let hourly = plan.after_poll(&mut progress, anchors, poll(5_400, false), Duration::ZERO, 0.0);
    assert_eq!(hourly, plan::Next::Look(at(9_000)));
    anchors.action = Some(at(9_000));
    let mut sent = 9_000;
    let mut gaps = Vec::new();
    for n in 0..13 {
        let plan::Next::Look(next) = plan.after_poll(&mut progress, anchors, poll(sent, n == 0), Duration::ZERO, 0.0) else {
            panic!("the plan is not over")
        };
        gaps.push((next - at(sent)).num_seconds());
        sent = (next - at(0)).num_seconds();
    }
    assert_eq!(gaps, [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 5, 5, 5]);
}

#[test]
fn vipps_asks_every_2_seconds_without_end_and_slows_down_when_told() {
    let plan = read("khalti", "vipps");
    let (stops, end) = plan::timetable(&plan, 0.0, seconds(25), 10_000);
    let offsets: Vec<u64> = stops.iter().map(|stop| stop.offset.as_secs()).collect();
    assert_eq!((offsets, end), (vec![5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25], None));

    let variables = [("ENABLED", "true"), ("ACCOUNTS__DEFAULT__TOKEN", "t")];
    let variables = variables.map(|(key, value)| (format!("PAYPOLL__PROVIDERS__KHALTI__{key}"), value.to_owned()));
    let config = config::Config::load(&[fixture("vipps")], variables.into_iter(), 1.0).expect("valid");
    let rules = &config.providers[0].rules;
    let mut transaction = new_transaction(0);
    let mut gaps = Vec::new();
    for sent in [5, 9, 17] {
        let decision = rules.decide(&transaction, &Outcome::RateLimited { wait: None }, at(sent), 0.0);
        gaps.push((decision.next.expect("polled on") - at(sent)).num_seconds());
        record(&mut transaction, &decision, at(sent));
    }
    let pending = rules.decide(&transaction, &pending("Queued"), at(33), 0.0);
    gaps.push((pending.next.expect("polled on") - at(33)).num_seconds());
    assert_eq!(gaps, [4, 8, 16, 2]);
}

#[test]
fn cybersource_chooses_the_interval_by_the_last_state() {
    let plan = read("khalti", "cybersource");
    let (stops, end) = plan::timetable(&plan, 0.0, seconds(13 * 86_400), 10_000);
    let gaps: Vec<u64> = stops.windows(2).map(|pair| (pair[1].offset - pair[0].offset).as_secs()).collect();
    assert_eq!((stops[0].offset, end), (seconds(900), None));
    assert_eq!(gaps, [vec![900; 959], vec![86_400; 3]].concat());

    let anchors = plan::Anchors { start: at(0), action: None };
    let mut progress = Progress::default();
    let mut gap = |sent: i64, before, word| {
        let poll = Sent { at: at(sent), before, provider_state: word, acted: false };
        match plan.after_poll(&mut progress, anchors, poll, Duration::ZERO, 0.0) {
            plan::Next::Look(next) => (next - at(sent)).num_seconds(),
            plan::Next::Over(ending) => panic!("over: {ending:?}"),
        }
    };
    assert_eq!(gap(900, None, Some("PENDING")), 900);
    assert_eq!(gap(1_800, Some("PENDING"), Some("AUTHORIZED")), 4 * 3_600);
    assert_eq!(gap(16_200, Some("AUTHORIZED"), Some("AUTHORIZED")), 4 * 3_600);
    assert_eq!(gap(30_600, Some("AUTHORIZED"), Some("PENDING")), 900);
    assert_eq!(gap(864_000, Some("PENDING"), Some("AUTHORIZED")), 86_400);
}

#[test]
fn setu_stops_at_one_minute() {
    expect(&read("khalti", "setu"), 0.0, 5, &[(11, 5)], (60, "gave_up"));
}

#[test]
fn antom_asks_after_a_minute_and_backs_off() {
    let gaps = [(1, 120), (1, 240), (1, 480), (1, 960), (46, 1_800)];
    expect(&read("khalti", "antom"), 0.0, 60, &gaps, (86_400, "gave_up"));
}

#[test]
fn efil_asks_for_a_year_without_overflow() {
    let gaps = [(167, 3_600), (92, 21_600), (47, 604_800)];
    expect(&read("khalti", "efil"), 0.0, 3_600, &gaps, (31_536_000, "gave_up"));
}

#[test]
fn dropayment_keeps_to_its_window_of_3_minutes() {
    let plan = read("dropayment", "dropayment");
    expect(&plan, 0.0, 3, &[(60, 3)], (183, "window_over"));
    expect(&plan, 1.0, 5, &[(36, 5)], (185, "window_over"));
    assert_eq!(Some(plan), config::default_plan("dropayment"), "the published rule is the default");
}

#[test]
fn dusupay_waits_2_minutes_and_then_5() {
    let plan = read("dusupay", "dusupay");
    expect(&plan, 0.0, 121, &[(863, 300)], (259_200, "gave_up"));
    let default = config::default_plan("dusupay").expect("known");
    expect(&default, 0.0, 130, &[(863, 300)], (259_200, "gave_up"));
    let rest = |plan: Plan| (plan.phases, plan.by_state, plan.give_up_after);
    assert_eq!(rest(plan), rest(default), "the published rule is the default, but for some more patience before the first poll");
}

#[test]
fn a_plan_without_gaps_still_ends_with_its_window() {
    let every = Range::exactly(Duration::ZERO);
    let plan = Plan {
        first: every,
        margin: Duration::ZERO,
        from: Origin::FirstPoll,
        phases: vec![Phase { every, until: Until::For(seconds(60)) }],
        by_state: BTreeMap::new(),
        give_up_after: None,
    };
    let anchors = plan::Anchors { start: at(0), action: None };
    let mut progress = Progress::default();
    let mut after = |sent| {
        plan.after_poll(
            &mut progress,
            anchors,
            Sent { at: at(sent), before: None, provider_state: None, acted: false },
            Duration::ZERO,
            0.0,
        )
    };
    assert_eq!(after(0), plan::Next::Look(at(0)));
    assert_eq!(after(60), plan::Next::Over(plan::Ending { at: at(60), reason: "window_over" }));
}

#[test]
fn every_published_rule_is_tested() {
    let files = std::fs::read_dir(fixture("x").parent().expect("a folder")).expect("readable");
    assert_eq!(files.count(), 10);
}

/// What `paypoll` prints for this line, or the exit code and the error.
fn printed(line: &str) -> Result<String, (u8, String)> {
    let cli = Cli::read(line.split_whitespace().map(Into::into)).expect(line);
    let Command::Plan(asked) = cli.command else { panic!("{line}") };
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let code = commands::conclude(commands::plan::run(&asked, &cli.config, &mut out), &mut errors);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    if code == 0 { Ok(text(out)) } else { Err((code, text(errors))) }
}

fn printed_json(line: &str) -> Value {
    serde_json::from_str(&printed(line).expect(line)).expect("JSON")
}

#[test]
fn the_timetable_as_json_pairs_the_shortest_with_the_longest_waits() {
    let plan = printed_json("paypoll plan dropayment --json");
    let polls = plan["polls"].as_array().expect("a list");
    assert_eq!((plan["provider"].as_str(), polls.len()), (Some("dropayment"), 61));
    assert_eq!(polls[0], json!({"earliest_s": 3, "latest_s": 5}));
    assert_eq!(polls[36], json!({"earliest_s": 111, "latest_s": 185}));
    assert_eq!(polls[60], json!({"earliest_s": 183, "latest_s": 185}));
    assert_eq!(plan["ends"], json!({"at_s": 185, "state": "unresolved", "reason": "window_over"}));
}

#[test]
fn the_timetable_as_json_obeys_horizon_and_speed() {
    let plan = printed_json("paypoll plan dusupay --json --for 10m");
    assert_eq!(plan["polls"], json!([{"earliest_s": 130, "latest_s": 130}, {"earliest_s": 430, "latest_s": 430}]));
    assert_eq!(plan["ends"]["at_s"], 259_200);
    let plan = printed_json("paypoll --speed 8 plan dusupay --json --for 1m");
    assert_eq!(plan["polls"][0], json!({"earliest_s": 16.25, "latest_s": 16.25}));
    assert_eq!(plan["ends"]["at_s"], 32_400);
    let open = printed_json(&format!("paypoll plan khalti --json --for 9s --config {}", fixture("vipps").display()));
    assert_eq!((open["polls"].as_array().map(Vec::len), &open["ends"]), (Some(3), &Value::Null));
}

#[test]
fn the_table_shows_offsets_gaps_and_phases_and_skips_the_monotonous() {
    let expected = "\
dusupay: 864 polls in 72h at the most, while the transaction stays pending

  poll  offset                 gap          phase
     1  2m10s                  –            1: every 5m
     2  7m10s                  5m           1: every 5m
     3  12m10s                 5m           1: every 5m
     4  17m10s                 5m           1: every 5m
     …  859 more, every 5m
   864  71h57m10s              5m           1: every 5m
   end  72h                                 unresolved: gave_up
";
    assert_eq!(printed("paypoll plan dusupay").expect("fine"), expected);
    let open = printed(&format!("paypoll plan khalti --config {}", fixture("cybersource").display())).expect("fine");
    assert!(open.lines().count() < 15 && open.contains("none: polled until the provider's final word"), "{open}");
    assert!(open.contains("the list ends at 7d"), "{open}");
    let ranges = printed("paypoll plan dropayment --for 10s").expect("fine");
    assert!(ranges.contains("2  6s–10s                 3s–5s        1: every 3s–5s for 3m"), "{ranges}");
}

#[test]
fn two_plans_stand_side_by_side() {
    let file = fixture("phonepe");
    let shown = printed(&format!("paypoll plan khalti --against {}", file.display())).expect("fine");
    let line = |start: &str| {
        let line = shown.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}\n{shown}"));
        line[start.len()..].split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("polls per transaction"), ["864", "45"]);
    assert_eq!(line("first poll"), ["5m", "20s–25s"]);
    assert_eq!(line("polls in the first 1m "), ["0", "11–12"]);
    assert_eq!(line("worst wait for news in the first 1m "), ["5m", "25s"]);
    assert_eq!(line("worst wait for news  "), ["5m", "1m"]);
    let json = printed_json(&format!("paypoll plan khalti --json --against {}", file.display()));
    assert_eq!((json["polls"].as_array().map(Vec::len), json["against"]["polls"].as_array().map(Vec::len)), (Some(864), Some(45)));
    assert_eq!(json["against"]["ends"]["at_s"], 1_200);
}

#[test]
fn a_plan_that_cannot_be_shown_is_a_usage_error() {
    let (code, error) = printed("paypoll plan stripe").expect_err("unknown");
    assert_eq!(code, 2);
    assert_eq!(error.lines().count(), 1);
    assert!(error.contains("\"stripe\"") && error.contains("dropayment, dusupay, ayoconnect, khalti, dapi"), "{error}");
    let (code, error) = printed("paypoll plan dapi --config /nowhere.toml").expect_err("unreadable");
    assert!(code == 2 && error.contains("/nowhere.toml"), "{error}");
}

#[test]
fn a_window_without_one_usable_answer_says_so() {
    let rules = |plan: &str| Rules {
        plan: config::default_plan(plan).expect("known"),
        retry: Backoff::new(seconds(5), seconds(5), 1.0),
        not_found: NotFoundRule { limit: u32::MAX, min_age: Duration::ZERO },
        floors: Floors::default(),
    };
    let down = || Outcome::ServerError { status: 500, wait: None };
    let ends = |rules: &Rules, transaction: &mut Transaction, answers: &dyn Fn(usize) -> Outcome| {
        let mut next = rules.first_look(transaction, 0.0);
        for poll in 0.. {
            if let Due::Park(reason) = rules.due(transaction) {
                return reason.to_owned();
            }
            let decision = rules.decide(transaction, &answers(poll), next, 0.0);
            record(transaction, &decision, next);
            match decision.next {
                Some(at) => next = at,
                None => return decision.reason.expect("a reason"),
            }
        }
        unreachable!("every plan here ends");
    };
    for (provider, reason) in [("dropayment", "window_over"), ("dusupay", "gave_up")] {
        let rules = rules(provider);
        let mut transaction = new_transaction(0);
        assert_eq!(ends(&rules, &mut transaction, &|_| down()), "no_usable_answer", "{provider}");
        // A new window counts by itself, whatever the one before heard.
        let mut heard = new_transaction(0);
        assert_eq!(ends(&rules, &mut heard, &|poll| if poll == 1 { pending("P") } else { down() }), reason, "{provider}");
        let mut reopened = Transaction { reopened_at: heard.last_polled_at, failures: 0, progress: Progress::default(), ..heard };
        reopened.state = State::Pending;
        assert_eq!(ends(&rules, &mut reopened, &|_| down()), "no_usable_answer", "{provider}");
    }
    assert_eq!(ends(&rules("dropayment"), &mut new_transaction(0), &|_| Outcome::TooEarly), "window_over", "the provider spoke");
    // Polled so far by a daemon that did not count this: a failure fewer than polls means that
    // there was an answer.
    let rules = rules("dropayment");
    let old = Transaction {
        attempts: 40,
        failures: 3,
        last_polled_at: Some(at(180)),
        progress: Progress { opened_at: Some(at(3)), phase_since: Some(at(3)), ..Progress::default() },
        ..new_transaction(0)
    };
    assert_eq!(ends(&rules, &mut old.clone(), &|_| down()), "window_over");
    assert_eq!(ends(&rules, &mut Transaction { failures: 40, ..old }, &|_| down()), "no_usable_answer");
}

// ---------------------------------------------------------------------------------------------------------------------------------

fn new_transaction(initiated: i64) -> Transaction {
    Transaction::new(uuid::Uuid::nil(), "khalti", "default".into(), "R", at(initiated))
}

/// Writes a decision down, as the store does.
fn record(transaction: &mut Transaction, decision: &paypoll::domain::Decision, sent: DateTime<Utc>) {
    if let Some(change) = &decision.change {
        if change.to.is_polled() {
            transaction.action_at = Some(sent);
        }
        transaction.state = change.to;
    }
    if let Some(word) = &decision.provider_state {
        transaction.provider_state = Some(word.as_str().into());
    }
    transaction.attempts += 1;
    transaction.failures = decision.failures;
    transaction.not_found = decision.not_found;
    transaction.last_polled_at = Some(sent);
    transaction.progress = decision.progress;
}

fn status(reported: Reported, word: &str) -> Outcome {
    let (word, reason, amount, currency, details) = (word.to_owned(), None, Amount::Untold, None, Value::Null);
    Outcome::Status(Box::new(Status { reported, word, reason, amount, currency, details: details.into() }))
}

fn pending(word: &str) -> Outcome {
    status(Reported::Pending, word)
}

/// A small generator of reproducible choices (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
    fn up_to(&mut self, most: u64) -> u64 {
        self.next() % (most + 1)
    }
    fn draw(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.up_to(n - 1) == 0
    }

    fn range(&mut self, least: u64, most: u64) -> Range {
        let min = least + self.up_to(most - least);
        let max = if self.one_in(2) { min } else { min + self.up_to(10) };
        Range { min: seconds(min), max: seconds(max) }
    }

    fn phases(&mut self, floor: u64) -> Vec<Phase> {
        let count = 1 + self.up_to(3);
        let phases = (0..count).map(|n| {
            let every = self.range(floor, 60);
            let until = match self.up_to(2) {
                0 if n + 1 == count => Until::Open,
                0 | 1 => Until::For(seconds(1 + self.up_to(600))),
                _ => Until::Count(1 + u32::try_from(self.up_to(9)).expect("small")),
            };
            Phase { every, until }
        });
        phases.collect()
    }

    fn rules(&mut self) -> Rules {
        let floor = 1 + self.up_to(5);
        let first = self.range(0, 120);
        let margin = seconds(self.up_to(1));
        let from = [Origin::FirstPoll, Origin::Initiation, Origin::Action][usize::try_from(self.up_to(2)).expect("small")];
        let mut by_state = BTreeMap::new();
        for word in ["B", "ACT"] {
            if self.one_in(4) {
                by_state.insert(word.to_owned(), self.phases(floor));
            }
        }
        let give_up = first.max + margin + seconds(1 + self.up_to(3_000));
        let give_up_after = (!self.one_in(3)).then_some(give_up);
        Rules {
            plan: Plan { first, margin, from, phases: self.phases(floor), by_state, give_up_after },
            retry: Backoff::new(seconds(5), seconds(60), 2.0),
            not_found: NotFoundRule { limit: 1_000_000, min_age: Duration::ZERO },
            floors: Floors { first: first.min, margin, every: seconds(floor), window: None, rate: None },
        }
    }

    fn outcome(&mut self) -> Outcome {
        match self.up_to(11) {
            0 => status(Reported::ActionRequired(Value::Null), "ACT"),
            1 => pending("B"),
            2 => Outcome::UnknownStatus { status: "ODD".into() },
            3 => Outcome::NotFound { message: String::new() },
            4 => Outcome::TooEarly,
            5 => Outcome::RateLimited { wait: None },
            6 => Outcome::ServerError { status: 500, wait: None },
            7 => Outcome::CredentialsRejected { whose: Whose::Account, park: false, message: String::new() },
            _ => pending("A"),
        }
    }

    /// How late a poll is: seldom at all, now and then by an outage.
    fn lateness(&mut self) -> TimeDelta {
        match self.up_to(19) {
            0 => TimeDelta::seconds(i64::try_from(self.up_to(2_000)).expect("small")),
            1..=3 => TimeDelta::milliseconds(i64::try_from(self.up_to(900)).expect("small")),
            _ => TimeDelta::zero(),
        }
    }
}

/// When the window of these polls closes, worked out from the rules alone; `None` where it depends
/// on counts and answers.
fn window_end(plan: &Plan, start: DateTime<Utc>, first_poll: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let gave_up = plan.give_up_after.map(|age| start + age);
    let lengths = plan.phases.iter().map(|phase| match phase.until {
        Until::For(long) => Some(long),
        _ => None,
    });
    let fixed = plan.by_state.is_empty() && plan.from != Origin::Action;
    let over = lengths.sum::<Option<Duration>>().filter(|_| fixed).map(|long| match plan.from {
        Origin::Initiation => start + long,
        _ => first_poll + long,
    });
    [gave_up, over].into_iter().flatten().min()
}

const MOST_POLLS: usize = 250;

/// One transaction's polls in one window, with random answers, delays and draws. Says whether the
/// window was closed.
fn window(rules: &Rules, transaction: &mut Transaction, dice: &mut Dice, from: DateTime<Utc>) -> (Vec<DateTime<Utc>>, bool) {
    let mut polls: Vec<DateTime<Utc>> = Vec::new();
    let mut look = rules.first_look(transaction, dice.draw()).max(from);
    while polls.len() < MOST_POLLS {
        let now = look + dice.lateness();
        if let Due::Park(_) = rules.due(transaction) {
            return (polls, true);
        }
        if let Some(last) = transaction.last_polled_at {
            assert!(now >= last + rules.floors.every, "a gap below the floor: {last} to {now}");
            assert!(now > last, "polls go forward");
        }
        let decision = rules.decide(transaction, &dice.outcome(), now, dice.draw());
        record(transaction, &decision, now);
        polls.push(now);
        match decision.next {
            Some(next) => look = next,
            None => return (polls, true),
        }
    }
    (polls, false)
}

fn check_window(rules: &Rules, start: DateTime<Utc>, polls: &[DateTime<Utc>], closed: bool) {
    let first = *polls.first().expect("every window has at least one poll");
    let Some(end) = window_end(&rules.plan, start, first) else { return };
    let late = polls.iter().filter(|poll| **poll > end).count();
    assert!(late <= 1, "{late} polls after the window");
    if let (1, [.., before, _]) = (late, polls) {
        assert!(*before + rules.floors.every <= end, "a last poll without need");
    }
    let plan = &rules.plan;
    let by_clock = plan.by_state.is_empty() && plan.phases.iter().all(|phase| !matches!(phase.until, Until::Count(_)));
    if let (true, true, Some(longest)) = (closed, by_clock, plan.phases.iter().map(|phase| phase.every.min).max()) {
        let last = polls[polls.len() - 1];
        // From the redirect the window may end later than is known here.
        assert!(last + longest >= end || plan.from == Origin::Action, "closed {last}, before its end {end}, with room for a poll");
    }
}

#[test]
fn no_history_breaks_a_floor_or_a_window() {
    let mut windows_closed = 0;
    for seed in 0..12_000 {
        let result = std::panic::catch_unwind(|| {
            let dice = &mut Dice(seed);
            let rules = dice.rules();
            let mut transaction = new_transaction(0);
            let arrives = at(if dice.one_in(4) { i64::try_from(dice.up_to(5_000)).expect("small") } else { 0 });
            let (polls, closed) = window(&rules, &mut transaction, dice, arrives);
            assert!(polls[0] >= at(0) + rules.plan.first.min + rules.plan.margin, "a first poll before its time");
            check_window(&rules, at(0), &polls, closed);
            if closed {
                // An operator reopens it.
                let reopened = polls[polls.len() - 1] + TimeDelta::seconds(i64::try_from(dice.up_to(100)).expect("small"));
                let last = transaction.last_polled_at;
                transaction = Transaction {
                    reopened_at: Some(reopened),
                    state: State::Pending,
                    failures: 0,
                    not_found: 0,
                    progress: Progress::default(),
                    action_at: None,
                    last_polled_at: last,
                    ..transaction
                };
                let (polls, closed) = window(&rules, &mut transaction, dice, reopened);
                check_window(&rules, reopened, &polls, closed);
            }
            closed
        });
        match result {
            Ok(closed) => windows_closed += usize::from(closed),
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic)
            }
        }
    }
    assert!(windows_closed > 5_000, "the histories are of use: {windows_closed}");
}

#[test]
fn every_plan_ends_or_is_open_by_declaration_and_its_offsets_increase() {
    for seed in 0..12_000 {
        let dice = &mut Dice(seed);
        let rules = dice.rules();
        let plan = &rules.plan;
        let open = plan.give_up_after.is_none() && plan.phases.last().is_some_and(|phase| phase.until == Until::Open);
        for draw in [0.0, dice.draw(), 1.0] {
            let (stops, end) = plan::timetable(plan, draw, Duration::MAX, if open { 300 } else { 5_000 });
            assert_eq!(end.is_none(), open, "seed {seed}: {plan:?}");
            assert!(stops.windows(2).all(|pair| pair[0].offset < pair[1].offset), "seed {seed}: {plan:?}");
            let after_end = stops.iter().filter(|stop| end.is_some_and(|(at, _)| stop.offset > at)).count();
            // Phases that are over before the first poll still have that one.
            assert!(after_end == 0 || stops.len() == 1, "seed {seed}: {plan:?}");
        }
    }
}

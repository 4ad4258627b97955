//! Proof of compliance: what a history of polls says about the rules under which it was made.
//!
//! Judged are the times at which polls were sent, against what the provider documents: nothing that
//! the daemon believed when it sent them. Only whether polls are missing is judged against the
//! plan, because no document says that a poll must be sent.

use super::after;
use super::plan::{Anchors, Floors, Next, Origin, Plan, Progress, Sent};
use chrono::{DateTime, Utc};
use std::collections::VecDeque;
use std::time::Duration;

/// Times of sending are stamped with an estimate of the database's clock: it may move by this much
/// between two polls.
pub const TOLERANCE: Duration = Duration::from_millis(1);
/// The length of the stretch in which polls are counted against a rate.
const SECOND: Duration = Duration::from_secs(1);

/// What one provider's polls are judged by.
#[derive(Clone, Debug)]
pub struct Law {
    /// What the documentation forbids. `every` is the plan's own shortest gap where no document
    /// names one; zero forbids nothing.
    pub floors: Floors,
    /// The plan, and the longest back-off after a failure: by them polls are missing. `None`:
    /// nothing is said about missing polls.
    pub plan: Option<(Plan, Duration)>,
}

/// One transaction's history.
#[derive(Clone, Debug)]
pub struct History {
    /// What its row says; `None` when the row was deleted.
    pub row: Option<HistoryRow>,
    /// When operators reopened it, rising.
    pub reopened: Vec<DateTime<Utc>>,
    /// When its polls were sent, rising.
    pub sent: Vec<DateTime<Utc>>,
    /// Those of them that the provider answered with "too early", rising.
    pub too_early: Vec<DateTime<Utc>>,
    /// One of them got no usable answer: the gap after it may have been a back-off's.
    pub failed: bool,
    /// For each poll, what was forbidden when it was sent; empty where that is what is forbidden today.
    pub floors: Vec<Floors>,
}

/// What a transaction's row says.
#[derive(Clone, Copy, Debug)]
pub struct HistoryRow {
    /// When the payment was initiated.
    pub initiated_at: DateTime<Utc>,
    /// When the row appeared: it could not be polled before.
    pub created_at: DateTime<Utc>,
    /// When polling ended; the time of the audit where it has not.
    pub until: DateTime<Utc>,
}

/// What can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A poll before the documented wait since initiation was over.
    Early,
    /// A poll too soon after the one before.
    Interval,
    /// More polls of an account within a second than its budget allows.
    Rate,
    /// A poll after the end of the documented window that is not the one last poll.
    OutsideWindow,
    /// A window in which a poll that was due never came. Reported, no breach.
    WindowMissed,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Early, Self::Interval, Self::Rate, Self::OutsideWindow, Self::WindowMissed];

    /// Whether a rule was broken.
    #[must_use]
    pub fn is_breach(self) -> bool {
        self != Self::WindowMissed
    }
}

/// Something found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// When: the poll that should not have been sent then; for a missing poll, when it should have
    /// been sent at the latest.
    pub at: DateTime<Utc>,
    /// By how much it is too early, too soon, too late or missing.
    pub by: Duration,
}

impl Law {
    /// What a transaction's history says. `complete_since` is when the journal begins: about
    /// windows that opened before, nothing is said.
    #[must_use]
    pub fn judge(&self, history: &History, complete_since: DateTime<Utc>) -> Vec<Finding> {
        let mut found = Vec::new();
        self.judge_first(history, &mut found);
        self.judge_intervals(history, &mut found);
        let mut rest = history.sent.as_slice();
        let mut before = None;
        for number in 0..=history.reopened.len() {
            let end = history.reopened.get(number);
            let (polls, later) = rest.split_at(end.map_or(rest.len(), |end| rest.partition_point(|sent| sent < end)));
            let floors = self.floors_of(history, history.sent.len() - rest.len());
            rest = later;
            judge_window(&floors, polls, &mut found);
            found.extend(self.missed(history, number, before, polls, complete_since));
            before = polls.last().copied().or(before);
        }
        found
    }

    /// Every poll before the documented first one, not just the first: the provider would refuse
    /// them all. And every poll that it did refuse as too early, whatever our clock says: it counts
    /// from its own initiation. Where no first wait is documented, "too early" says only that there
    /// is no answer yet.
    fn judge_first(&self, history: &History, found: &mut Vec<Finding>) {
        if self.floors.first.is_zero() && history.floors.is_empty() {
            return;
        }
        for (index, at) in history.sent.iter().enumerate() {
            let first = self.floors_of(history, index).first;
            if first.is_zero() {
                continue;
            }
            let floor = history.row.map(|row| after(row.initiated_at, first));
            let is_before = floor.is_some_and(|floor| after(*at, TOLERANCE) < floor);
            if is_before || history.too_early.binary_search(at).is_ok() {
                let by = floor.map_or(Duration::ZERO, |floor| between(*at, floor));
                found.push(Finding { kind: Kind::Early, at: *at, by });
            }
        }
    }

    /// What was forbidden when a poll was sent.
    fn floors_of(&self, history: &History, poll: usize) -> Floors {
        history.floors.get(poll).copied().unwrap_or(self.floors)
    }

    fn judge_intervals(&self, history: &History, found: &mut Vec<Finding>) {
        for (index, pair) in history.sent.windows(2).enumerate() {
            let floor = after(pair[0], self.floors_of(history, index + 1).every);
            if after(pair[1], TOLERANCE) < floor {
                found.push(Finding { kind: Kind::Interval, at: pair[1], by: between(pair[1], floor) });
            }
        }
    }

    /// Follows the plan from poll to poll, every wait being the longest. A poll was missed where
    /// even after that wait another one of the shortest would have fitted. `before` is the last
    /// poll of the window before.
    fn missed(
        &self,
        history: &History,
        number: usize,
        before: Option<DateTime<Utc>>,
        polls: &[DateTime<Utc>],
        complete_since: DateTime<Utc>,
    ) -> Option<Finding> {
        let ((plan, longest_retry), row) = (self.plan.as_ref()?, history.row?);
        let reopened = number.checked_sub(1).and_then(|before| history.reopened.get(before).copied());
        let opening = reopened.unwrap_or(row.created_at);
        if opening < complete_since {
            return None;
        }
        let wait = if history.failed { *longest_retry } else { Duration::ZERO };
        let anchors = Anchors { start: reopened.unwrap_or(row.initiated_at), action: None };
        let mut progress = Progress::default();
        let mut due = plan.first_look(row.initiated_at, before, 1.0).max(opening);
        let is_missing = |due: DateTime<Utc>, progress: &Progress, next: DateTime<Utc>| {
            (after(due, spare(plan, progress)) <= after(next, TOLERANCE)).then(|| Finding {
                kind: Kind::WindowMissed,
                at: due,
                by: between(due, next),
            })
        };
        for sent in polls {
            if let Some(missing) = is_missing(due, &progress, *sent) {
                return Some(missing);
            }
            let poll = Sent { at: *sent, before: None, provider_state: None, acted: false };
            due = match plan.after_poll(&mut progress, anchors, poll, wait, 1.0) {
                Next::Over(_) => return None,
                Next::Look(at) if is_steady(plan) => at,
                Next::Look(at) => at.max(after(*sent, longest_gap(plan))),
            };
            if plan.is_over(&progress, anchors, None, Some(*sent)).is_some() {
                return None;
            }
        }
        // What came between the end of an earlier window and its reopening is not known: its polls
        // had ended by then.
        let is_last = number == history.reopened.len();
        is_missing(due, &progress, row.until).filter(|_| is_last)
    }
}

/// After the window's end one last poll is allowed, when the one before it was sent more than an
/// interval before the end.
fn judge_window(floors: &Floors, polls: &[DateTime<Utc>], found: &mut Vec<Finding>) {
    let (Some(window), Some(first)) = (floors.window, polls.first()) else { return };
    let end = after(*first, window);
    let inside = polls.partition_point(|sent| *sent <= after(end, TOLERANCE));
    let (inside, outside) = polls.split_at(inside);
    let last_one = inside.last().is_some_and(|last| after(*last, floors.every) <= after(end, TOLERANCE));
    let outside = outside.iter().skip(usize::from(last_one));
    found.extend(outside.map(|at| Finding { kind: Kind::OutsideWindow, at: *at, by: between(end, *at) }));
}

/// Whether the times of the polls alone show where in the plan they are.
fn is_steady(plan: &Plan) -> bool {
    plan.by_state.is_empty() && plan.from != Origin::Action
}

fn longest_gap(plan: &Plan) -> Duration {
    let all = plan.phases.iter().chain(plan.by_state.values().flatten());
    all.map(|phase| phase.every.max).max().unwrap_or_default()
}

/// The wait after which one more poll would have fitted.
fn spare(plan: &Plan, progress: &Progress) -> Duration {
    if is_steady(plan) { plan.shortest_gap(progress, None) } else { longest_gap(plan) }
}

fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> Duration {
    super::since(from, to)
}

/// The most polls that a budget of `per_second` polls a second and `burst` of them at once allows
/// in any second.
#[must_use]
pub fn most_per_second(per_second: f64, burst: u32) -> usize {
    per_second.floor().min(1e9) as usize + usize::try_from(burst).unwrap_or(usize::MAX)
}

/// One account's polls against its budget.
#[derive(Clone, Debug)]
pub struct RateMeter {
    most: usize,
    recent: VecDeque<DateTime<Utc>>,
}

impl RateMeter {
    /// A meter for a budget: see [`most_per_second`].
    #[must_use]
    pub fn new(per_second: f64, burst: u32) -> Self {
        Self { most: most_per_second(per_second, burst), recent: VecDeque::new() }
    }

    /// Takes in the next poll; they come in the order of time. A finding when it is one too many
    /// within a second. Counting then begins anew, so that no poll counts in two findings.
    pub fn poll(&mut self, at: DateTime<Utc>) -> Option<Finding> {
        while self.recent.front().is_some_and(|oldest| after(*oldest, SECOND) <= after(at, TOLERANCE)) {
            self.recent.pop_front();
        }
        self.recent.push_back(at);
        if self.recent.len() <= self.most {
            return None;
        }
        let oldest = self.recent.front().copied().unwrap_or(at);
        self.recent.clear();
        Some(Finding { kind: Kind::Rate, at, by: SECOND.saturating_sub(between(oldest, at)) })
    }
}

/// Which polls of a provider broke no rule, and which did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    counts: [u64; Kind::ALL.len()],
}

impl Tally {
    /// Counts a finding.
    pub fn add(&mut self, kind: Kind) {
        self.counts[kind as usize] += 1;
    }

    /// How many of that kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }

    /// How many broke a rule.
    #[must_use]
    pub fn breaches(&self) -> u64 {
        Kind::ALL.into_iter().filter(|kind| kind.is_breach()).map(|kind| self.of(kind)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Phase, Range, Until};
    use chrono::TimeDelta;

    fn at(seconds: f64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::milliseconds(1_000_000_000 + (seconds * 1000.0).round() as i64)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn plan(first: u64, margin: u64, every: Range, until: Until) -> Plan {
        Plan {
            first: Range::exactly(seconds(first)),
            margin: seconds(margin),
            from: Origin::FirstPoll,
            phases: vec![Phase { every, until }],
            by_state: std::collections::BTreeMap::new(),
            give_up_after: None,
        }
    }

    /// Dropayment's document: 3 s between polls, a window of 3 minutes.
    fn windowed() -> Law {
        Law {
            floors: Floors { every: seconds(3), window: Some(seconds(180)), ..Floors::default() },
            plan: Some((plan(3, 0, Range { min: seconds(3), max: seconds(5) }, Until::For(seconds(180))), seconds(20))),
        }
    }

    /// DusuPay's document: 2 minutes since initiation, 5 minutes between polls.
    fn slow() -> Law {
        Law {
            floors: Floors { first: seconds(120), margin: seconds(1), every: seconds(300), window: None, rate: None },
            plan: Some((plan(120, 1, Range::exactly(seconds(300)), Until::Open), seconds(300))),
        }
    }

    /// Initiated and inserted at 0, polled at these seconds, ended with the last poll.
    fn history(sent: &[f64]) -> History {
        let until = at(sent.last().copied().unwrap_or(0.0) + 0.1);
        History {
            row: Some(HistoryRow { initiated_at: at(0.0), created_at: at(0.0), until }),
            reopened: Vec::new(),
            sent: sent.iter().copied().map(at).collect(),
            too_early: Vec::new(),
            failed: false,
            floors: Vec::new(),
        }
    }

    fn found(law: &Law, history: &History) -> Vec<(Kind, u64)> {
        let found = law.judge(history, at(-1e6));
        found.iter().map(|finding| (finding.kind, u64::try_from(finding.by.as_millis()).unwrap_or(u64::MAX))).collect()
    }

    fn steady(from: f64, every: f64, count: u32) -> Vec<f64> {
        (0..count).map(|n| from + f64::from(n) * every).collect()
    }

    #[test]
    fn each_poll_is_judged_by_what_was_forbidden_when_it_was_sent() {
        let floors = |first: u64, every: u64| Floors { first: seconds(first), every: seconds(every), ..Floors::default() };
        let law = Law { floors: floors(100, 50), plan: None };
        let mut history = history(&[60.0, 90.0, 140.0, 180.0]);
        let early = [(Kind::Early, 40_000), (Kind::Early, 10_000)];
        let intervals = [(Kind::Interval, 20_000), (Kind::Interval, 10_000)];
        assert_eq!(found(&law, &history), [early, intervals].concat());
        // The file became stricter after the second poll: before, 50 s and 20 s were enough.
        history.floors = vec![floors(50, 20), floors(50, 20), floors(100, 50), floors(100, 50)];
        assert_eq!(found(&law, &history), [(Kind::Interval, 10_000)]);
    }

    #[test]
    fn a_history_that_keeps_the_rules_is_clean() {
        assert_eq!(found(&windowed(), &history(&steady(3.0, 4.0, 45))), []);
        assert_eq!(found(&slow(), &history(&steady(121.0, 300.0, 20))), []);
        assert_eq!(found(&slow(), &history(&[120.0])), [], "the margin is ours, not the document's");
    }

    #[test]
    fn a_poll_before_the_first_wait_is_over_is_early() {
        assert_eq!(found(&slow(), &history(&[90.0, 390.0])), [(Kind::Early, 30_000)]);
        assert_eq!(found(&slow(), &history(&[119.999])), [], "within the precision of the clock");
    }

    #[test]
    fn a_poll_that_the_provider_calls_too_early_is_early_whatever_our_clock_says() {
        let told =
            |history: History, too_early: &[f64]| History { too_early: too_early.iter().copied().map(at).collect(), ..history };
        assert_eq!(found(&slow(), &told(history(&[121.0, 421.0]), &[121.0])), [(Kind::Early, 0)]);
        assert_eq!(found(&slow(), &told(history(&[90.0, 421.0]), &[90.0])), [(Kind::Early, 30_000)], "counted once");
        assert_eq!(
            found(&windowed(), &told(history(&[3.0, 7.0]), &[3.0])),
            [],
            "no wait is documented: the answer is not there yet"
        );
        let deleted = History { row: None, ..told(history(&[121.0]), &[121.0]) };
        assert_eq!(found(&slow(), &deleted), [(Kind::Early, 0)]);
    }

    #[test]
    fn a_gap_below_the_floor_is_an_interval_breach() {
        assert_eq!(found(&slow(), &history(&[121.0, 420.0, 720.0])), [(Kind::Interval, 1_000)]);
        assert_eq!(found(&windowed(), &history(&[3.0, 6.0, 8.5])), [(Kind::Interval, 500)]);
        assert_eq!(found(&windowed(), &history(&[3.0, 5.999])), [], "within the precision of the clock");
    }

    #[test]
    fn after_the_window_one_last_poll_is_allowed_where_none_was_sent_near_its_end() {
        let mut polls = steady(3.0, 4.0, 45);
        assert_eq!(polls.last(), Some(&179.0));
        polls.push(183.02);
        assert_eq!(found(&windowed(), &history(&polls)), [], "the last one, drawn back to the end and sent a little late");
        polls.push(187.02);
        assert_eq!(found(&windowed(), &history(&polls)), [(Kind::OutsideWindow, 4_020)]);
        let mut full = steady(3.0, 4.5, 41);
        assert_eq!(full.last(), Some(&183.0), "exactly at the end");
        full.push(187.0);
        assert_eq!(found(&windowed(), &history(&full)), [(Kind::OutsideWindow, 4_000)]);
    }

    #[test]
    fn a_reopened_transaction_has_a_new_window() {
        let mut twice = history(&[steady(3.0, 4.0, 45), steady(1_000.0, 4.0, 45)].concat());
        assert!(found(&windowed(), &twice).iter().any(|(kind, _)| *kind == Kind::OutsideWindow));
        twice.reopened = vec![at(999.0)];
        assert_eq!(found(&windowed(), &twice), []);
        twice.reopened = vec![at(999.0), at(5_000.0)];
        twice.row = twice.row.map(|row| HistoryRow { until: at(6_000.0), ..row });
        assert_eq!(found(&windowed(), &twice), [(Kind::WindowMissed, 1_000_000)], "reopened again, and never polled");
    }

    #[test]
    fn a_poll_that_never_came_is_a_missed_window() {
        let mut polls = steady(121.0, 300.0, 20);
        polls.remove(7);
        assert_eq!(found(&slow(), &history(&polls)), [(Kind::WindowMissed, 300_000)]);
        let mut polls = steady(3.0, 4.0, 45);
        polls.drain(20..22);
        assert_eq!(found(&windowed(), &history(&polls)), [(Kind::WindowMissed, 7_000)]);
        let mut never = history(&[]);
        never.row = never.row.map(|row| HistoryRow { until: at(600.0), ..row });
        assert_eq!(found(&slow(), &never), [(Kind::WindowMissed, 479_000)]);
        never.row = never.row.map(|row| HistoryRow { until: at(200.0), ..row });
        assert_eq!(found(&slow(), &never), [], "settled by somebody else before");
    }

    #[test]
    fn polling_that_stops_before_its_end_is_a_missed_window() {
        let mut stopped = history(&steady(3.0, 4.0, 10));
        stopped.row = stopped.row.map(|row| HistoryRow { until: at(183.0), ..row });
        assert_eq!(found(&windowed(), &stopped), [(Kind::WindowMissed, 139_000)]);
    }

    #[test]
    fn a_back_off_after_failures_misses_nothing() {
        let mut failing = history(&[3.0, 8.0, 18.0, 38.0, 58.0, 78.0]);
        failing.failed = true;
        assert_eq!(found(&windowed(), &failing), []);
        failing.failed = false;
        assert_eq!(found(&windowed(), &failing), [(Kind::WindowMissed, 5_000)]);
    }

    #[test]
    fn nothing_is_said_about_what_the_journal_no_longer_has() {
        let mut old = history(&[900.0]);
        assert_eq!(old.row.map(|row| row.created_at), Some(at(0.0)));
        assert_eq!(slow().judge(&old, at(1.0)), []);
        old.row = None;
        old.sent = vec![at(10.0), at(20.0)];
        assert_eq!(found(&slow(), &old), [(Kind::Interval, 290_000)], "the row is gone, the polls still tell");
    }

    #[test]
    fn a_second_with_more_polls_than_the_budget_is_one_finding() {
        let count = |times: &[f64]| {
            let mut meter = RateMeter::new(10.0, 10);
            times.iter().filter(|time| meter.poll(at(**time)).is_some()).count()
        };
        let burst: Vec<f64> = [vec![0.0; 10], steady(0.1, 0.1, 100)].concat();
        assert_eq!(count(&burst), 0, "a full burst and the pace behind it");
        assert_eq!(count(&[5.0; 20]), 0);
        assert_eq!(count(&[5.0; 21]), 1);
        assert_eq!(count(&[steady(0.0, 0.04, 21), steady(10.0, 0.04, 21)].concat()), 2);
    }
}

//! A provider's polling rules as data: when the first poll is, how often to poll then, and what
//! ends it.
//!
//! A plan is followed poll by poll. [`Plan::first_look`] says when a transaction is first polled;
//! after each poll [`Plan::after_poll`] moves its [`Progress`] and says when it is due again;
//! [`Plan::ending`] says when its window closes. Missed polls are never replayed: after an outage
//! the plan goes on from where the clock is.

use super::{after, since};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::time::Duration;

/// A wait that is drawn uniformly between two durations, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The shortest wait.
    pub min: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Range {
    /// Always the same wait.
    #[must_use]
    pub fn exactly(wait: Duration) -> Self {
        Self { min: wait, max: wait }
    }

    /// The wait at `jitter`, 0 the shortest, 1 the longest.
    #[must_use]
    pub fn at(self, jitter: f64) -> Duration {
        self.min + (self.max.saturating_sub(self.min)).mul_f64(jitter.clamp(0.0, 1.0))
    }

    fn divided(self, speed: f64) -> Self {
        Self { min: self.min.div_f64(speed), max: self.max.div_f64(speed) }
    }
}

/// How long a phase lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// This long from the end of the phase before; the first one from the plan's [`Origin`].
    For(Duration),
    /// This many gaps.
    Count(u32),
    /// Open: until something else ends the polling.
    Open,
}

/// A stretch of the plan with one interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The gap after each poll that falls into the phase, from request sent to request sent.
    pub every: Range,
    /// How long it lasts.
    pub until: Until,
}

/// The moment from which the first phase counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Origin {
    /// The first poll of the window.
    #[default]
    FirstPoll,
    /// The initiation; after `retry` the reopening.
    Initiation,
    /// The moment when the transaction last came into or left `action_required`; until then as
    /// [`Origin::FirstPoll`].
    Action,
}

/// What a provider's documentation forbids to go below or beyond. Compiled in: no configuration can relax it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Floors {
    /// The shortest wait from initiation to the first poll.
    pub first: Duration,
    /// Kept beyond `first`, because `initiated_at` is the feeder's clock and not the provider's.
    pub margin: Duration,
    /// The shortest gap between two polls of the same transaction.
    pub every: Duration,
    /// The longest window from the first poll to the last.
    pub window: Option<Duration>,
    /// The most requests that an account may send in any second. A count, no duration: no speed divides it.
    pub rate: Option<f64>,
}

impl Floors {
    /// The same floors with every duration divided by `speed`.
    #[must_use]
    pub fn divided(self, speed: f64) -> Self {
        Self {
            first: self.first.div_f64(speed),
            margin: self.margin.div_f64(speed),
            every: self.every.div_f64(speed),
            window: self.window.map(|window| window.div_f64(speed)),
            rate: self.rate,
        }
    }
}

/// A provider's polling rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The wait from initiation to the first poll.
    pub first: Range,
    /// Added to the first wait, as far as that does not keep [`Floors::margin`] by itself.
    pub margin: Duration,
    /// Where the first phase counts from.
    pub from: Origin,
    /// The phases in their order.
    pub phases: Vec<Phase>,
    /// Other phases while the provider's last status is the key.
    pub by_state: BTreeMap<String, Vec<Phase>>,
    /// The age at which polling gives up, from initiation or reopening.
    pub give_up_after: Option<Duration>,
}

/// How far a transaction has come in its plan. Changes with every poll, is kept with the row, and
/// can be rebuilt from the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The first poll of this window; `None` before it.
    pub opened_at: Option<DateTime<Utc>>,
    /// The phase that the last poll fell into; one past the last phase when they are used up.
    pub phase: u16,
    /// When that phase began.
    pub phase_since: Option<DateTime<Utc>>,
    /// How many of its gaps are over.
    pub gaps: u32,
    /// A poll of this window got a usable answer.
    pub answered: bool,
}

/// The moments that a plan counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchors {
    /// Initiation, or the reopening by an operator.
    pub start: DateTime<Utc>,
    /// The last change into or out of `action_required`.
    pub action: Option<DateTime<Utc>>,
}

/// When and why a window closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The moment.
    pub at: DateTime<Utc>,
    /// `window_over` or `gave_up`.
    pub reason: &'static str,
}

/// The reason when the phases are used up.
pub const WINDOW_OVER: &str = "window_over";
/// The reason when `give_up_after` has passed.
pub const GAVE_UP: &str = "gave_up";

/// What follows a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Due again then: to be polled, or to be parked when [`Plan::is_over`] says so at that moment.
    Look(DateTime<Utc>),
    /// The window is over.
    Over(Ending),
}

impl Plan {
    /// Whether it goes on until `give_up_after`, if there is one: its polls are not those of a short window.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phases.last().is_some_and(|phase| phase.until == Until::Open)
    }

    /// The same plan with every duration divided by `speed`.
    #[must_use]
    pub fn divided(&self, speed: f64) -> Self {
        let phases = |list: &[Phase]| list.iter().map(|phase| phase.divided(speed)).collect();
        Self {
            first: self.first.divided(speed),
            margin: self.margin.div_f64(speed),
            from: self.from,
            phases: phases(&self.phases),
            by_state: self.by_state.iter().map(|(state, list)| (state.clone(), phases(list))).collect(),
            give_up_after: self.give_up_after.map(|age| age.div_f64(speed)),
        }
    }

    /// When a transaction is first polled in this window. May lie in the past: then at once.
    ///
    /// `last_polled_at` is the last poll of an earlier window: the floor since it holds (`retry`).
    #[must_use]
    pub fn first_look(&self, initiated_at: DateTime<Utc>, last_polled_at: Option<DateTime<Utc>>, jitter: f64) -> DateTime<Utc> {
        let first = after(initiated_at, self.first.at(jitter).saturating_add(self.margin));
        match last_polled_at {
            Some(polled) => first.max(after(polled, shortest(&self.phases, 0))),
            None => first,
        }
    }

    /// Moves `progress` over a poll, and says what follows.
    ///
    /// `wait` is what the answer demands beyond the plan (the back-off after a failure); the gap is
    /// the longer one of the two. A due time beyond the window is moved back to its end:
    /// [`Plan::is_over`] then says whether a poll still fits.
    pub fn after_poll(&self, progress: &mut Progress, anchors: Anchors, poll: Sent<'_>, wait: Duration, jitter: f64) -> Next {
        self.advance(progress, anchors, poll);
        let list = self.list(poll.provider_state);
        let floor = shortest(list, progress.phase);
        let gap = list.get(usize::from(progress.phase)).map_or(floor, |phase| phase.every.at(jitter)).max(wait);
        let look = after(poll.at, gap);
        match self.ending(progress, anchors, poll.provider_state) {
            Some(ending) if poll.at >= ending.at => Next::Over(ending),
            Some(ending) => Next::Look(look.min(ending.at)),
            None => Next::Look(look),
        }
    }

    /// Whether the window has closed for a transaction that was last polled at `last`: it is not
    /// polled any more.
    ///
    /// While the shortest gap since `last` still fits before the end there is one more poll to
    /// send, however late it is. A transaction that was never polled in this window always has that
    /// one poll.
    #[must_use]
    pub fn is_over(
        &self,
        progress: &Progress,
        anchors: Anchors,
        provider_state: Option<&str>,
        last: Option<DateTime<Utc>>,
    ) -> Option<Ending> {
        let last = last.filter(|_| progress.opened_at.is_some())?;
        let ending = self.ending(progress, anchors, provider_state)?;
        let floor = shortest(self.list(provider_state), progress.phase);
        (after(last, floor) > ending.at).then_some(ending)
    }

    /// When the window closes, as far as that is known: phases by count end when their polls have been sent.
    #[must_use]
    pub fn ending(&self, progress: &Progress, anchors: Anchors, provider_state: Option<&str>) -> Option<Ending> {
        let gave_up = self.give_up_after.map(|age| Ending { at: after(anchors.start, age), reason: GAVE_UP });
        let over = progress.phase_since.and_then(|mut end| {
            for phase in self.list(provider_state).iter().skip(usize::from(progress.phase)) {
                let Until::For(long) = phase.until else { return None };
                end = after(end, long);
            }
            Some(Ending { at: end, reason: WINDOW_OVER })
        });
        match (over, gave_up) {
            (Some(over), Some(gave_up)) => Some(if over.at <= gave_up.at { over } else { gave_up }),
            (over, gave_up) => over.or(gave_up),
        }
    }

    /// The shortest gap of the phase that the last poll fell into; of the last phase when they are used up.
    #[must_use]
    pub fn shortest_gap(&self, progress: &Progress, provider_state: Option<&str>) -> Duration {
        shortest(self.list(provider_state), progress.phase)
    }

    fn list(&self, provider_state: Option<&str>) -> &[Phase] {
        provider_state.and_then(|state| self.by_state.get(state)).unwrap_or(&self.phases)
    }

    /// Moves over a poll: which phase it falls into. The phases start anew when another list
    /// applies or their moment has come.
    fn advance(&self, progress: &mut Progress, anchors: Anchors, poll: Sent<'_>) {
        let first = progress.opened_at.is_none();
        let opened = progress.opened_at.unwrap_or(poll.at);
        let anew = first
            || (poll.acted && self.from == Origin::Action)
            || !std::ptr::eq(self.list(poll.before), self.list(poll.provider_state));
        if anew {
            let since = match self.from {
                Origin::FirstPoll => opened,
                Origin::Initiation => anchors.start,
                Origin::Action => anchors.action.unwrap_or(opened),
            };
            *progress =
                Progress { opened_at: Some(opened), phase: 0, phase_since: Some(since), gaps: 0, answered: progress.answered };
        } else {
            progress.gaps = progress.gaps.saturating_add(1);
        }
        skip_past(progress, self.list(poll.provider_state), poll.at);
    }
}

/// A poll that was sent and answered, as the plan needs to know it.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    /// When it was sent.
    pub at: DateTime<Utc>,
    /// The provider's status before it.
    pub before: Option<&'a str>,
    /// The provider's status now.
    pub provider_state: Option<&'a str>,
    /// The transaction came into `action_required` or left it.
    pub acted: bool,
}

fn shortest(list: &[Phase], phase: u16) -> Duration {
    list.get(usize::from(phase)).or(list.last()).map_or(Duration::ZERO, |phase| phase.every.min)
}

/// Leaves every phase that is over at `at`; a poll on the border belongs to the later phase.
fn skip_past(progress: &mut Progress, list: &[Phase], at: DateTime<Utc>) {
    while let (Some(phase), Some(since)) = (list.get(usize::from(progress.phase)), progress.phase_since) {
        let end = match phase.until {
            Until::For(long) if after(since, long) <= at => after(since, long),
            Until::Count(gaps) if progress.gaps >= gaps => at,
            _ => return,
        };
        *progress = Progress { phase: progress.phase + 1, phase_since: Some(end), gaps: 0, ..*progress };
    }
}

impl Phase {
    fn divided(&self, speed: f64) -> Self {
        let until = match self.until {
            Until::For(long) => Until::For(long.div_f64(speed)),
            other => other,
        };
        Self { every: self.every.divided(speed), until }
    }
}

/// The offsets, from initiation, at which a transaction that stays pending is polled, with one
/// `jitter` for all waits; and the ending.
///
/// Stops at `until` or after `most` polls, whichever comes first.
#[must_use]
pub fn timetable(plan: &Plan, jitter: f64, until: Duration, most: usize) -> (Vec<Stop>, Option<(Duration, &'static str)>) {
    let start = DateTime::<Utc>::UNIX_EPOCH;
    let anchors = Anchors { start, action: None };
    let mut progress = Progress::default();
    let mut stops = Vec::new();
    let mut at = plan.first_look(start, None, jitter);
    while stops.len() < most && since(start, at) <= until {
        let next = plan.after_poll(
            &mut progress,
            anchors,
            Sent { at, before: None, provider_state: None, acted: false },
            Duration::ZERO,
            jitter,
        );
        stops.push(Stop { offset: since(start, at), phase: usize::from(progress.phase).min(plan.phases.len().saturating_sub(1)) });
        at = match next {
            Next::Over(ending) => return (stops, Some((since(start, ending.at), ending.reason))),
            Next::Look(look) => look,
        };
        if let Some(ending) = plan.is_over(&progress, anchors, None, stops.last().map(|stop| after(start, stop.offset))) {
            return (stops, Some((since(start, ending.at), ending.reason)));
        }
    }
    (stops, None)
}

/// One poll of a [`timetable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The offset from initiation.
    pub offset: Duration,
    /// The phase that the poll falls into, from 0.
    pub phase: usize,
}

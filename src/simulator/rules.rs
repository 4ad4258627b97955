//! The documented rules, watched from the provider's side. Told the time; knows no HTTP.
//!
//! | rule | source |
//! |---|---|
//! | DusuPay: no check within 2 minutes of initiation | "Status check requests will be denied if they're done less than 2 minutes from the time the transaction was initiated." |
//! | DusuPay: 5 minutes between checks of one transaction | "We recommend that an interval of 5 minutes is implemented between status check requests for the same transaction." |
//! | Dropayment: at least 3 s between requests, for at most 3 minutes | "It is recommended to send Transfer status request for a period of 2-3 minutes with interval of 3-5 seconds between requests." |
//!
//! DusuPay refuses what breaks its rules, with the answers that it documents. Dropayment only
//! recommends: it answers, and the breach is recorded. Requests per second are paypoll's own
//! budgets, no provider's words; DusuPay and Ayoconnect, which are known to limit rates, answer
//! 429.

use super::Api;
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Which rule was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// DusuPay was asked within 2 minutes of the initiation.
    TooEarly,
    /// A transaction was polled again before its interval was over.
    Interval,
    /// Dropayment was asked after the 3 minutes, and it was not the one last poll.
    OutsideWindow,
    /// More requests within a second than the account's budget and burst.
    Rate,
    /// A request while a `Retry-After` of the account had still to run.
    RetryAfter,
    /// A signature does not fit its request.
    BadSignature,
    /// Credentials that the simulator does not know.
    BadCredentials,
    /// A request that has not the documented form.
    BadRequest,
    /// A second request in flight for one transaction, or for one Dapi access token.
    Parallel,
    /// A redirect was followed.
    RedirectFollowed,
    /// No provider has this method and path.
    UnknownPath,
}

/// An account's budget: in any second at most `per_second` + `burst` requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Requests per second in the long run.
    pub per_second: u32,
    /// What may come at once.
    pub burst: u32,
}

/// A moment, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Since the simulator's start, by the monotonic clock: intervals.
    pub(super) elapsed: Duration,
    /// By the wall clock: initiation times and time stamps.
    pub(super) wall: DateTime<Utc>,
}

/// A request that the provider would look at: well-formed, from a known account.
pub(super) struct Poll<'a> {
    pub(super) api: Api,
    pub(super) account: usize,
    pub(super) reference: &'a str,
    /// What must be the same in every request about this transaction.
    pub(super) flow: Option<&'a str>,
    /// The initiation time in Unix milliseconds, where the reference carries it.
    pub(super) initiated_ms: Option<i64>,
}

/// What the rules say of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) breaches: Vec<(Kind, String)>,
    /// The number of the poll, counting those that were let through; or why it was not.
    pub(super) admitted: Result<u32, Denial>,
}

/// Why the rules let a request not through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    TooEarly,
    TooOften,
    /// Not the flow that this transaction began with.
    OtherFlow,
    /// The simulator remembers as many references as it can.
    Full,
}

const DUSUPAY_FIRST: Duration = Duration::from_secs(120);
const DUSUPAY_EVERY: Duration = Duration::from_secs(300);
const DROPAYMENT_EVERY: Duration = Duration::from_secs(3);
/// The longest interval that Dropayment recommends: after a longer silence one last poll may follow
/// the window.
const DROPAYMENT_LONGEST: Duration = Duration::from_secs(5);
const DROPAYMENT_WINDOW: Duration = Duration::from_secs(180);
/// A poll that is due at the window's very end is sent then and arrives a moment later.
const WINDOW_SLACK: Duration = Duration::from_millis(100);
/// After a `Retry-After` was answered: what is on the wire, and the time in which the replicas of a
/// client tell each other.
const RETRY_AFTER_GRACE: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);
/// Bounds the memory: a transaction takes about 200 bytes beside its reference.
const MAX_REFERENCES: usize = 1_000_000;

/// What is remembered of one transaction.
#[derive(Default)]
struct History {
    /// Polls that were let through.
    polls: u32,
    /// When the window opened.
    opened: Option<Duration>,
    /// When the last request came that counts for the interval.
    last: Option<Duration>,
    initiated_ms: Option<i64>,
    flow: Option<Box<str>>,
    /// The one last poll after the window was sent.
    last_poll_spent: bool,
}

/// What is remembered of one account.
#[derive(Default)]
struct Pace {
    /// The requests of the last second.
    recent: VecDeque<Duration>,
    worst_second: usize,
    /// Set by a `Retry-After`: when it was answered and when it ends.
    pause: Option<(Duration, Duration)>,
}

/// All that the rules remember.
pub(super) struct Rules {
    speed: f64,
    tolerance: Duration,
    budgets: [Budget; Api::ALL.len()],
    histories: HashMap<(Api, Box<str>), History>,
    paces: HashMap<(Api, usize), Pace>,
    in_flight: HashMap<(Api, String), u32>,
}

impl Rules {
    pub(super) fn new(speed: f64, tolerance: Duration, budgets: [Budget; Api::ALL.len()]) -> Self {
        let (histories, paces, in_flight) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { speed, tolerance, budgets, histories, paces, in_flight }
    }

    /// Looks at a request that arrives now.
    pub(super) fn ask(&mut self, poll: &Poll<'_>, now: Moment) -> Verdict {
        let mut breaches = Vec::new();
        breaches.extend(self.over_rate(poll, now.elapsed));
        breaches.extend(self.in_pause(poll, now.elapsed));
        if breaches.iter().any(|(kind, _)| *kind == Kind::Rate) && matches!(poll.api, Api::DusuPay | Api::Ayoconnect) {
            return Verdict { breaches, admitted: Err(Denial::TooOften) };
        }
        let Some(history) = remembered(&mut self.histories, poll.api, poll.reference) else {
            return Verdict { breaches, admitted: Err(Denial::Full) };
        };
        let clock = Clock { speed: self.speed, tolerance: self.tolerance, now };
        let admitted = history.admit(poll, &clock, &mut breaches);
        Verdict { breaches, admitted }
    }

    /// The provider answered "too early": the interval to the next request does not count from this one.
    pub(super) fn forget_last(&mut self, api: Api, reference: &str) {
        if let Some(history) = self.histories.get_mut(&(api, reference.into())) {
            history.last = None;
        }
    }

    /// The provider answered `Retry-After` to an account.
    pub(super) fn pause(&mut self, api: Api, account: usize, now: Moment, wait: Duration) {
        self.paces.entry((api, account)).or_default().pause = Some((now.elapsed, now.elapsed + wait));
    }

    /// A transaction is announced: when it was initiated, and that its window begins with the next poll.
    ///
    /// `false` when no more references can be remembered.
    pub(super) fn register(&mut self, api: Api, reference: &str, initiated_ms: Option<i64>) -> bool {
        let Some(history) = remembered(&mut self.histories, api, reference) else { return false };
        history.initiated_ms = initiated_ms.or(history.initiated_ms);
        history.opened = None;
        history.last_poll_spent = false;
        true
    }

    /// One more request in flight under this key; a breach when it is not the only one.
    /// [`Rules::landed`] takes it back.
    pub(super) fn took_off(&mut self, api: Api, key: &str) -> bool {
        let flying = self.in_flight.entry((api, key.to_owned())).or_default();
        *flying += 1;
        *flying > 1
    }

    /// One request less in flight under this key.
    pub(super) fn landed(&mut self, api: Api, key: &str) {
        let key = (api, key.to_owned());
        if let Some(flying) = self.in_flight.get_mut(&key) {
            *flying -= 1;
            if *flying == 0 {
                self.in_flight.remove(&key);
            }
        }
    }

    /// Forgets all but what is in flight.
    pub(super) fn reset(&mut self) {
        self.histories.clear();
        self.paces.clear();
    }

    /// The most requests that any account of a provider sent within a second.
    pub(super) fn worst_second(&self, api: Api) -> usize {
        self.paces.iter().filter(|((of, _), _)| *of == api).map(|(_, pace)| pace.worst_second).max().unwrap_or(0)
    }

    /// How many of a provider's transactions were polled or announced.
    pub(super) fn references(&self, api: Api) -> usize {
        self.histories.keys().filter(|(of, _)| *of == api).count()
    }

    /// The second is measured short by the tolerance: two requests that were sent a second apart
    /// may arrive closer together.
    fn over_rate(&mut self, poll: &Poll<'_>, now: Duration) -> Option<(Kind, String)> {
        let budget = self.budgets[poll.api as usize];
        let pace = self.paces.entry((poll.api, poll.account)).or_default();
        let second = SECOND.saturating_sub(self.tolerance);
        while pace.recent.front().is_some_and(|first| now.saturating_sub(*first) >= second) {
            pace.recent.pop_front();
        }
        pace.recent.push_back(now);
        let count = pace.recent.len();
        pace.worst_second = pace.worst_second.max(count);
        let Budget { per_second, burst } = budget;
        (count > per_second.saturating_add(burst) as usize)
            .then(|| (Kind::Rate, format!("{count} requests within a second; the budget is {per_second} and a burst of {burst}")))
    }

    fn in_pause(&self, poll: &Poll<'_>, now: Duration) -> Option<(Kind, String)> {
        let (from, until) = self.paces.get(&(poll.api, poll.account))?.pause?;
        let breached = now > from + RETRY_AFTER_GRACE && now + self.tolerance < until;
        breached.then(|| (Kind::RetryAfter, format!("{} before the account's Retry-After is over", millis(until - now))))
    }
}

/// The history of a transaction; `None` when there is no room for one more.
fn remembered<'a>(histories: &'a mut HashMap<(Api, Box<str>), History>, api: Api, reference: &str) -> Option<&'a mut History> {
    let key = (api, reference.into());
    if histories.len() >= MAX_REFERENCES && !histories.contains_key(&key) {
        return None;
    }
    Some(histories.entry(key).or_default())
}

/// The time, and how exactly it is meant.
struct Clock {
    speed: f64,
    tolerance: Duration,
    now: Moment,
}

impl Clock {
    fn scaled(&self, rule: Duration) -> Duration {
        rule.div_f64(self.speed)
    }

    /// By how much a gap falls short of a rule; `None` within the tolerance.
    fn short_of(&self, rule: Duration, gap: Duration) -> Option<Duration> {
        let short = self.scaled(rule).saturating_sub(gap);
        (short > self.tolerance).then_some(short)
    }
}

impl History {
    fn admit(&mut self, poll: &Poll<'_>, clock: &Clock, breaches: &mut Vec<(Kind, String)>) -> Result<u32, Denial> {
        if let Some(flow) = poll.flow
            && self.flow.get_or_insert_with(|| flow.into()).as_ref() != flow
        {
            return Err(Denial::OtherFlow);
        }
        match poll.api {
            Api::DusuPay => self.dusupay(poll, clock, breaches)?,
            Api::Dropayment => self.dropayment(clock, breaches),
            Api::Ayoconnect | Api::Khalti | Api::Dapi => {}
        }
        self.polls += 1;
        Ok(self.polls)
    }

    fn dusupay(&mut self, poll: &Poll<'_>, clock: &Clock, breaches: &mut Vec<(Kind, String)>) -> Result<(), Denial> {
        let age = self.initiated_ms.or(poll.initiated_ms).map(|initiated| clock.now.wall.timestamp_millis() - initiated);
        let age = age.map(|ms| Duration::from_millis(ms.try_into().unwrap_or(0)));
        if let Some(short) = age.and_then(|age| clock.short_of(DUSUPAY_FIRST, age)) {
            breaches.push((Kind::TooEarly, format!("{} before two minutes have passed since the initiation", millis(short))));
            return Err(Denial::TooEarly);
        }
        if self.interval(DUSUPAY_EVERY, clock, breaches) { Ok(()) } else { Err(Denial::TooOften) }
    }

    fn dropayment(&mut self, clock: &Clock, breaches: &mut Vec<(Kind, String)>) {
        let now = clock.now.elapsed;
        let closes = *self.opened.get_or_insert(now) + clock.scaled(DROPAYMENT_WINDOW);
        if now > closes + WINDOW_SLACK.max(clock.tolerance) {
            let silent = self.last.is_some_and(|last| last + clock.scaled(DROPAYMENT_LONGEST) < closes);
            if self.last_poll_spent || !silent {
                breaches.push((Kind::OutsideWindow, format!("{} after the window closed", millis(now - closes))));
            }
            self.last_poll_spent = true;
        }
        self.interval(DROPAYMENT_EVERY, clock, breaches);
    }

    /// Whether the interval since the last request was kept.
    fn interval(&mut self, every: Duration, clock: &Clock, breaches: &mut Vec<(Kind, String)>) -> bool {
        let now = clock.now.elapsed;
        let gap = self.last.replace(now).map(|last| now.saturating_sub(last));
        let short = gap.and_then(|gap| clock.short_of(every, gap));
        breaches.extend(short.map(|short| (Kind::Interval, format!("{} before the interval was over", millis(short)))));
        short.is_none()
    }
}

fn millis(span: Duration) -> String {
    format!("{:.1} ms", span.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Duration = Duration::from_millis(5);
    const START: i64 = 1_763_760_000_000;

    fn rules(speed: f64) -> Rules {
        Rules::new(speed, TOLERANCE, [Budget { per_second: 10, burst: 10 }; 5])
    }

    fn at(ms: u64) -> Moment {
        let wall = DateTime::from_timestamp_millis(START + i64::try_from(ms).expect("small")).expect("valid");
        Moment { elapsed: Duration::from_millis(ms), wall }
    }

    fn poll(api: Api, reference: &str) -> Poll<'_> {
        Poll { api, account: 0, reference, flow: None, initiated_ms: None }
    }

    fn kinds(verdict: &Verdict) -> Vec<Kind> {
        verdict.breaches.iter().map(|(kind, _)| *kind).collect()
    }

    #[test]
    fn dusupay_is_refused_before_two_minutes_to_the_tolerance() {
        let mut rules = rules(1.0);
        let poll = Poll { initiated_ms: Some(START), ..poll(Api::DusuPay, "a") };
        let early = rules.ask(&poll, at(119_994));
        assert_eq!((kinds(&early), early.admitted), (vec![Kind::TooEarly], Err(Denial::TooEarly)));
        let in_time = rules.ask(&poll, at(119_995));
        assert_eq!((kinds(&in_time), in_time.admitted), (vec![], Ok(1)), "the refused request did not start the interval");
    }

    #[test]
    fn an_initiation_in_the_future_is_too_early() {
        let poll = Poll { initiated_ms: Some(START + 60_000), ..poll(Api::DusuPay, "a") };
        assert_eq!(rules(1.0).ask(&poll, at(0)).admitted, Err(Denial::TooEarly));
    }

    #[test]
    fn a_registered_initiation_goes_before_the_references() {
        let mut rules = rules(1.0);
        assert!(rules.register(Api::DusuPay, "a", Some(START)));
        let poll = Poll { initiated_ms: Some(0), ..poll(Api::DusuPay, "a") };
        assert_eq!(rules.ask(&poll, at(1_000)).admitted, Err(Denial::TooEarly));
    }

    #[test]
    fn dusupay_counts_five_minutes_from_every_request_that_was_not_too_early() {
        let mut rules = rules(1.0);
        let poll = poll(Api::DusuPay, "a");
        assert_eq!(rules.ask(&poll, at(0)).admitted, Ok(1));
        assert_eq!(rules.ask(&poll, at(299_994)).admitted, Err(Denial::TooOften));
        assert_eq!(rules.ask(&poll, at(300_000)).admitted, Err(Denial::TooOften), "the refused one counts");
        assert_eq!(rules.ask(&poll, at(599_999)).admitted, Ok(2));
    }

    #[test]
    fn transactions_do_not_share_an_interval() {
        let mut rules = rules(1.0);
        assert_eq!(rules.ask(&poll(Api::DusuPay, "a"), at(0)).admitted, Ok(1));
        assert_eq!(rules.ask(&poll(Api::DusuPay, "b"), at(1)).admitted, Ok(1));
    }

    #[test]
    fn speed_divides_the_rules_and_not_the_tolerance() {
        let mut rules = rules(60.0);
        let poll = poll(Api::DusuPay, "a");
        assert_eq!(rules.ask(&poll, at(0)).admitted, Ok(1));
        assert_eq!(rules.ask(&poll, at(4_994)).admitted, Err(Denial::TooOften));
        assert_eq!(rules.ask(&poll, at(9_989)).admitted, Ok(2));
    }

    #[test]
    fn dropayment_answers_a_short_interval_and_it_is_recorded() {
        let mut rules = rules(1.0);
        let poll = poll(Api::Dropayment, "a");
        assert!(rules.ask(&poll, at(0)).breaches.is_empty());
        let short = rules.ask(&poll, at(2_994));
        assert_eq!((kinds(&short), short.admitted), (vec![Kind::Interval], Ok(2)));
        assert!(rules.ask(&poll, at(5_990)).breaches.is_empty());
    }

    #[test]
    fn dropayments_window_opens_at_the_first_poll_and_closes_after_three_minutes() {
        let mut rules = rules(1.0);
        let poll = poll(Api::Dropayment, "a");
        for ms in [1_000_000, 1_177_000, 1_180_100] {
            assert!(rules.ask(&poll, at(ms)).breaches.is_empty(), "{ms}");
        }
        assert_eq!(kinds(&rules.ask(&poll, at(1_183_101))), [Kind::OutsideWindow]);
    }

    #[test]
    fn one_last_poll_may_follow_the_window_after_a_silence() {
        let mut rules = rules(1.0);
        let poll = poll(Api::Dropayment, "a");
        assert!(rules.ask(&poll, at(0)).breaches.is_empty());
        assert!(rules.ask(&poll, at(400_000)).breaches.is_empty());
        assert_eq!(kinds(&rules.ask(&poll, at(500_000))), [Kind::OutsideWindow]);
    }

    #[test]
    fn registering_again_opens_a_new_window_but_not_a_new_interval() {
        let mut rules = rules(1.0);
        let poll = poll(Api::Dropayment, "a");
        rules.ask(&poll, at(0));
        rules.ask(&poll, at(179_000));
        assert!(rules.register(Api::Dropayment, "a", None));
        assert_eq!(kinds(&rules.ask(&poll, at(181_000))), [Kind::Interval]);
        assert!(rules.ask(&poll, at(361_000)).breaches.is_empty());
    }

    #[test]
    fn the_budget_is_a_sliding_second_per_account() {
        let mut rules = rules(1.0);
        for n in 0..20 {
            assert!(rules.ask(&poll(Api::Khalti, "a"), at(n)).breaches.is_empty(), "{n}");
        }
        assert!(rules.ask(&Poll { account: 1, ..poll(Api::Khalti, "a") }, at(20)).breaches.is_empty());
        let over = rules.ask(&poll(Api::Khalti, "a"), at(500));
        assert_eq!((kinds(&over), over.admitted), (vec![Kind::Rate], Ok(22)), "Khalti documents no limit and answers");
        assert_eq!(rules.worst_second(Api::Khalti), 21);
        assert!(rules.ask(&poll(Api::Khalti, "a"), at(1_020)).breaches.is_empty());
    }

    #[test]
    fn dusupay_and_ayoconnect_refuse_what_is_over_the_budget() {
        for api in [Api::DusuPay, Api::Ayoconnect] {
            let mut rules = rules(1.0);
            let references: Vec<String> = (0..21).map(|n| n.to_string()).collect();
            let last = references.iter().map(|reference| rules.ask(&poll(api, reference), at(0)).admitted).last();
            assert_eq!(last, Some(Err(Denial::TooOften)));
        }
    }

    #[test]
    fn retry_after_holds_for_the_whole_account_and_no_other() {
        let mut rules = rules(1.0);
        rules.pause(Api::Dapi, 0, at(0), Duration::from_secs(5));
        assert!(rules.ask(&poll(Api::Dapi, "on-the-wire"), at(900)).breaches.is_empty());
        assert_eq!(kinds(&rules.ask(&poll(Api::Dapi, "b"), at(4_990))), [Kind::RetryAfter]);
        assert!(rules.ask(&Poll { account: 1, ..poll(Api::Dapi, "b") }, at(4_990)).breaches.is_empty());
        assert!(rules.ask(&poll(Api::Dapi, "b"), at(4_995)).breaches.is_empty());
    }

    #[test]
    fn a_transaction_keeps_the_flow_that_it_began_with() {
        let mut rules = rules(1.0);
        let with = |flow| Poll { flow: Some(flow), ..poll(Api::Ayoconnect, "a") };
        assert_eq!(rules.ask(&with("12345"), at(0)).admitted, Ok(1));
        assert_eq!(rules.ask(&with("54321"), at(1)).admitted, Err(Denial::OtherFlow));
        assert_eq!(rules.ask(&with("12345"), at(2)).admitted, Ok(2));
    }

    #[test]
    fn requests_in_flight_are_counted_by_key() {
        let mut rules = rules(1.0);
        assert!(!rules.took_off(Api::Dapi, "token"));
        assert!(rules.took_off(Api::Dapi, "token"));
        assert!(!rules.took_off(Api::Khalti, "token"));
        rules.landed(Api::Dapi, "token");
        rules.landed(Api::Dapi, "token");
        assert!(!rules.took_off(Api::Dapi, "token"));
    }
}

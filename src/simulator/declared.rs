//! Providers that are declared in a file, served from the examples of that file.
//!
//! The simulator knows nothing of the language: its caller passes a [`Play`] for each file, which
//! reads requests and makes answers. What is the simulator's own is the memory: floors, tokens,
//! scripts, the record.
//!
//! Each provider has a path of its own, `/NAME/…`, to which its `base_url` points. A reference
//! chooses what is answered: it is cut at its double hyphens, and each part that is a step counts,
//! in their order: the name of an example in small letters with hyphens (`ORDER-1--pending--paid`),
//! an HTTP code (`--500`), either with a number of times (`--pendingx3`). The last step is answered
//! for ever; without one, the first example that succeeds. `t` and 13 digits is the time of the
//! initiation in Unix milliseconds.

use super::exchange::Reply;
use super::record::{Asked, Entry, ProviderReport};
use super::rules::{Kind, Moment};
use super::{Simulator, http};
use axum::http::HeaderMap;
use axum::response::Response;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

/// A declared provider as it is played.
pub trait Play: Send + Sync + fmt::Debug {
    /// Its name, and the first segment of its paths.
    fn name(&self) -> &'static str;
    /// What its documentation forbids.
    fn paces(&self) -> Paces;
    /// What a request is. The error says why it is refused, and whether credentials are the cause.
    fn recognise(&self, request: &Came<'_>) -> Result<Recognised, (bool, String)>;
    /// The answer to a request for a token: with this token in it.
    fn token(&self, token: &str) -> Option<Answer>;
}

/// A transaction that was polled.
pub trait Known {
    /// Its reference.
    fn reference(&self) -> &str;
    /// What the example of that name answers, the first that succeeds by default; `None` where
    /// there is none of the name.
    fn answer(&self, example: Option<&str>) -> Option<Answer>;
    /// The answer to what comes too early, where there is one.
    fn early(&self) -> Option<Answer>;
}

/// What a request is.
pub enum Recognised {
    /// For a status.
    Status(Box<dyn Known>),
    /// For an access token.
    Token,
    /// No path of this provider's.
    Unknown,
}

/// What a provider's documentation forbids.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paces {
    /// The shortest wait from the initiation.
    pub first: Duration,
    /// The shortest gap between two requests about one transaction.
    pub every: Duration,
    /// The most requests in any second.
    pub rate: Option<f64>,
}

/// A request as it came in.
pub struct Came<'c> {
    /// In capital letters.
    pub method: &'c str,
    /// Without the provider's own first segment and without the query.
    pub path: &'c str,
    /// Decoded.
    pub query: &'c [(String, String)],
    /// Names in lower case.
    pub headers: &'c [(String, String)],
    /// The body.
    pub body: &'c str,
    /// When it came.
    pub at: chrono::DateTime<chrono::Utc>,
    /// The tokens that are good.
    pub tokens: &'c [String],
}

/// What is answered.
pub struct Answer {
    /// The HTTP code.
    pub status: u16,
    /// `Retry-After`.
    pub retry_after: Option<String>,
    /// The body.
    pub body: String,
}

/// All that is remembered of one provider.
#[derive(Default)]
pub(super) struct Memory {
    seen: HashMap<String, Seen>,
    recent: VecDeque<Duration>,
    tokens: Vec<(String, Duration)>,
    pub(super) report: ProviderReport,
}

/// What is remembered of one transaction.
#[derive(Default)]
struct Seen {
    polls: u32,
    last: Option<Duration>,
    initiated_ms: Option<i64>,
}

const SECOND: Duration = Duration::from_secs(1);
/// Bounds the memory.
const MAX_REFERENCES: usize = 100_000;
/// Where the five providers are: no declared one may stand in their way.
pub const TAKEN: [&str; 5] = ["paynet", "data", "api", "v2", "_simulator"];

impl Memory {
    /// Forgets everything but tokens.
    pub(super) fn reset(&mut self) {
        *self = Self { tokens: std::mem::take(&mut self.tokens), ..Self::default() };
    }

    /// A transaction is announced. `false` when there is no room for it.
    pub(super) fn register(&mut self, reference: &str, initiated_ms: Option<i64>) -> bool {
        let Some(seen) = self.seen(reference) else { return false };
        seen.initiated_ms = initiated_ms.or(seen.initiated_ms);
        true
    }

    fn seen(&mut self, reference: &str) -> Option<&mut Seen> {
        if self.seen.len() >= MAX_REFERENCES && !self.seen.contains_key(reference) {
            return None;
        }
        Some(self.seen.entry(reference.to_owned()).or_default())
    }

    fn good_tokens(&mut self, now: Duration) -> Vec<String> {
        self.tokens.retain(|(_, ends)| *ends > now);
        self.tokens.iter().map(|(token, _)| token.clone()).collect()
    }

    /// Which rules a request breaks.
    fn breaches(&mut self, reference: &str, paces: &Paces, clock: &Clock) -> Vec<(Kind, String)> {
        let now = clock.now.elapsed;
        let mut breaches = Vec::new();
        while self.recent.front().is_some_and(|first| now.saturating_sub(*first) >= SECOND.saturating_sub(clock.tolerance)) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        let count = self.recent.len();
        self.report.worst_second = self.report.worst_second.max(count);
        if let Some(rate) = paces.rate
            && count as f64 > rate.ceil()
        {
            breaches.push((Kind::Rate, format!("{count} requests within a second; documented are {rate}")));
        }
        let wall = clock.now.wall.timestamp_millis();
        let Some(seen) = self.seen(reference) else { return breaches };
        let initiated = parts(reference).find_map(initiated).or(seen.initiated_ms);
        if let Some(age) = initiated.map(|initiated| Duration::from_millis((wall - initiated).try_into().unwrap_or(0)))
            && clock.is_short(paces.first, age)
        {
            breaches.push((Kind::TooEarly, format!("{age:?} after the initiation; documented are {:?}", paces.first)));
        }
        if let Some(gap) = seen.last.replace(now).map(|last| now.saturating_sub(last))
            && clock.is_short(paces.every, gap)
        {
            breaches.push((Kind::Interval, format!("{gap:?} after the request before; documented are {:?}", paces.every)));
        }
        breaches
    }
}

/// The time, and how exactly it is meant.
struct Clock {
    now: Moment,
    speed: f64,
    tolerance: Duration,
}

impl Clock {
    fn is_short(&self, rule: Duration, gap: Duration) -> bool {
        gap + self.tolerance < rule.div_f64(self.speed)
    }
}

/// The parts of a reference after its first.
fn parts(reference: &str) -> impl Iterator<Item = &str> {
    reference.split("--").skip(1)
}

fn initiated(part: &str) -> Option<i64> {
    part.strip_prefix('t').filter(|ms| ms.len() == 13 && ms.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

/// What the `nth` poll (from 1) of a reference is answered by.
fn step(known: &dyn Known, nth: u32) -> Answer {
    let mut left = nth;
    let mut last = None;
    for part in parts(known.reference()).filter(|part| initiated(part).is_none()) {
        let (name, times) = match part.rsplit_once('x') {
            Some((name, times)) if times.parse::<u32>().is_ok_and(|times| times > 0) => (name, times.parse().unwrap_or(1)),
            _ => (part, 1),
        };
        let code = name.parse().ok().filter(|code| name.len() == 3 && (400..600).contains(code));
        let answer = match code {
            Some(status) => Some(Answer { status, retry_after: None, body: "{}".into() }),
            None => known.answer(Some(name)),
        };
        let Some(answer) = answer else { continue };
        last = Some(answer);
        if left <= times {
            break;
        }
        left -= times;
    }
    last.or_else(|| known.answer(None)).unwrap_or(Answer { status: 404, retry_after: None, body: "{}".into() })
}

impl Simulator {
    /// The declared provider whose path it is, and the rest of the path.
    pub(super) fn declared<'p>(&self, path: &'p str) -> Option<(usize, &'p str)> {
        let rest = path.strip_prefix('/')?;
        let (name, _) = rest.split_once('/')?;
        let index = self.shared.options.declared.iter().position(|play| play.name() == name)?;
        Some((index, &rest[name.len()..]))
    }

    /// Answers a request to a declared provider.
    pub(super) fn play(&self, index: usize, came: &Parts<'_>, now: Moment) -> Response {
        let (reply, entry, breaches) = self.played(index, came, now);
        let mut state = self.state();
        state.declared[index].report.violations += breaches.len() as u64;
        state.record.request(None, entry, breaches);
        drop(state);
        http::response(reply)
    }

    fn played(&self, index: usize, came: &Parts<'_>, now: Moment) -> (Reply, Entry, Vec<(Kind, String)>) {
        let play = &self.shared.options.declared[index];
        let mut state = self.state();
        let memory = &mut state.declared[index];
        let tokens = memory.good_tokens(now.elapsed);
        let headers = came.headers();
        let request = Came {
            method: came.method,
            path: came.path,
            query: came.query,
            headers: &headers,
            body: came.body,
            at: now.wall,
            tokens: &tokens,
        };
        let entry = |reference: Option<&str>, asked: Asked, verdict: String| Entry {
            provider: Some(play.name()),
            verdict,
            ..Entry::new(None, reference, asked, now)
        };
        let refused = |status: u16, kind: Kind, why: String| {
            let verdict = format!("refused: {why}");
            (Reply::new(status, &serde_json::json!({ "error": why })), entry(None, Asked::Status, verdict), vec![(kind, why)])
        };
        match play.recognise(&request) {
            Ok(Recognised::Status(known)) => {
                memory.report.requests += 1;
                let clock = Clock { now, speed: self.shared.options.speed, tolerance: self.shared.options.tolerance };
                let breaches = memory.breaches(known.reference(), &play.paces(), &clock);
                let early = breaches.iter().any(|(kind, _)| *kind == Kind::TooEarly);
                let nth = memory.seen(known.reference()).map_or(1, |seen| {
                    seen.polls += u32::from(breaches.is_empty());
                    seen.polls.max(1)
                });
                memory.report.references = memory.seen.len();
                let answer = match (breaches.is_empty(), early) {
                    (true, _) => step(&*known, nth),
                    (false, true) => known.early().unwrap_or(Answer { status: 403, retry_after: None, body: "{}".into() }),
                    (false, false) => Answer { status: 429, retry_after: None, body: "{}".into() },
                };
                let mut entry = entry(Some(known.reference()), Asked::Status, format!("HTTP {}", answer.status));
                entry.poll = breaches.is_empty().then_some(nth);
                (Reply { status: answer.status, retry_after: answer.retry_after, body: answer.body }, entry, breaches)
            }
            Ok(Recognised::Token) => {
                memory.report.token_requests += 1;
                let token = format!("sim-{}-{:016x}", play.name(), now.elapsed.as_nanos());
                memory.tokens.push((token.clone(), now.elapsed + self.shared.options.token_lifetime));
                let answer = play.token(&token).unwrap_or(Answer { status: 500, retry_after: None, body: "{}".into() });
                let reply = Reply { status: answer.status, retry_after: answer.retry_after, body: answer.body };
                (reply, entry(None, Asked::Token, "issued".into()), Vec::new())
            }
            Ok(Recognised::Unknown) => refused(404, Kind::UnknownPath, "no such path".into()),
            Err((true, why)) => refused(401, Kind::BadCredentials, why),
            Err((false, why)) => refused(400, Kind::BadRequest, why),
        }
    }
}

/// A request, before it is read.
pub(super) struct Parts<'p> {
    pub(super) method: &'p str,
    pub(super) path: &'p str,
    pub(super) query: &'p [(String, String)],
    pub(super) headers: &'p HeaderMap,
    pub(super) body: &'p str,
}

impl Parts<'_> {
    fn headers(&self) -> Vec<(String, String)> {
        let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        self.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Order(&'static str);

    impl Known for Order {
        fn reference(&self) -> &str {
            self.0
        }
        fn answer(&self, example: Option<&str>) -> Option<Answer> {
            let body = ["paid", "pending"].into_iter().find(|name| *name == example.unwrap_or("paid"))?;
            Some(Answer { status: 200, retry_after: None, body: body.to_owned() })
        }
        fn early(&self) -> Option<Answer> {
            None
        }
    }

    #[test]
    fn a_reference_chooses_what_is_answered() {
        let says = |reference: &'static str| -> Vec<String> {
            (1..=4).map(|nth| step(&Order(reference), nth)).map(|answer| format!("{} {}", answer.status, answer.body)).collect()
        };
        assert_eq!(says("O-1"), ["200 paid"; 4]);
        assert_eq!(says("O-1--pendingx2--t1763760000000--nonsense--paid"), ["200 pending", "200 pending", "200 paid", "200 paid"]);
        assert_eq!(says("O-1--500--pending"), ["500 {}", "200 pending", "200 pending", "200 pending"]);
    }
}

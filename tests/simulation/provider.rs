//! The providers as seen from outside: the requests to them, when, and their answers.

use crate::Micros;
use paypoll::domain::{Amount, NoAnswer, Outcome, Reported, State, Status, Whose};
use rand::RngExt;
use rand::rngs::SmallRng;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use uuid::Uuid;

/// An answer, and how long it takes; silence until the time-out where there is no latency.
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    pub(crate) status: Option<u16>,
    pub(crate) latency: Option<Duration>,
}

/// How the providers are.
#[derive(Default)]
pub(crate) struct Provider {
    /// The final word on a transaction, once it is spoken.
    verdicts: HashMap<Uuid, State>,
    /// Everything that was ever said about a transaction's state.
    pub(crate) said: HashSet<(Uuid, State)>,
    /// Until then an account answers nothing of use.
    pub(crate) down_until: HashMap<usize, Micros>,
    /// Nothing goes wrong any more, and decisions come soon.
    pub(crate) calm: bool,
}

impl Provider {
    /// Polls a transaction.
    pub(crate) fn ask(&mut self, random: &mut SmallRng, now: Micros, account: usize, id: Uuid) -> Answer {
        let latency = Duration::from_millis(if self.calm { random.random_range(5..200) } else { random.random_range(5..1_500) });
        if self.down_until.get(&account).is_some_and(|until| now < *until) {
            return match random.random_range(0..3) {
                0 => silent(NoAnswer::Timeout),
                1 => silent(NoAnswer::Connection("refused".into())),
                _ => answer(Outcome::ServerError { status: 500, wait: None }, 500, latency),
            };
        }
        let troubles = if self.calm { 0..70 } else { 0..100 };
        match random.random_range(troubles) {
            0..70 => self.tell(random, id, latency),
            70..78 => answer(Outcome::NotFound { message: "unknown".into() }, 404, latency),
            78..82 => answer(Outcome::Unusable { why: "not JSON".into() }, 200, latency),
            82..84 => answer(Outcome::UnknownStatus { status: "LIMBO".into() }, 200, latency),
            84..86 => answer(Outcome::RateLimited { wait: retry_after(random) }, 429, latency),
            86..88 => answer(Outcome::ServerError { status: 503, wait: retry_after(random) }, 503, latency),
            88..90 => answer(Outcome::TooEarly, 403, latency),
            90..92 => answer(refused(Whose::Account, false), 401, latency),
            92..93 => answer(refused(Whose::Row, random.random_bool(0.3)), 401, latency),
            93..95 => silent(NoAnswer::Timeout),
            95..97 => silent(NoAnswer::Connection("reset".into())),
            97..98 => answer(Outcome::RequestFailed { message: "try again".into() }, 400, latency),
            _ => answer(Outcome::ServerError { status: 500, wait: None }, 500, latency),
        }
    }

    /// A usable answer.
    fn tell(&mut self, random: &mut SmallRng, id: Uuid, latency: Duration) -> Answer {
        if !self.verdicts.contains_key(&id) {
            let decided = if self.calm { 0.5 } else { 0.12 };
            if random.random_bool(decided) {
                let states = [State::Succeeded, State::Failed, State::Cancelled, State::Refunded];
                self.verdicts.insert(id, states[random.random_range(0..states.len())]);
            }
        }
        let waits = if random.random_bool(0.15) { State::ActionRequired } else { State::Pending };
        let state = self.verdicts.get(&id).copied().unwrap_or(waits);
        self.said.insert((id, state));
        answer(status(state), 200, latency)
    }
}

/// The outcome of an answer in that word.
pub(crate) fn status(state: State) -> Outcome {
    let reported = match state {
        State::ActionRequired => Reported::ActionRequired(json!({ "redirect": "https://pay.example" })),
        State::Succeeded => Reported::Succeeded,
        State::Failed => Reported::Failed,
        State::Cancelled => Reported::Cancelled,
        State::Refunded => Reported::Refunded,
        _ => Reported::Pending,
    };
    let word = state.as_str().to_uppercase();
    Outcome::Status(Box::new(Status {
        reported,
        word,
        reason: None,
        amount: Amount::Untold,
        currency: None,
        details: Value::Null.into(),
    }))
}

fn answer(outcome: Outcome, status: u16, latency: Duration) -> Answer {
    Answer { outcome, status: Some(status), latency: Some(latency) }
}

fn silent(why: NoAnswer) -> Answer {
    Answer { outcome: Outcome::NoAnswer(why), status: None, latency: None }
}

fn refused(whose: Whose, park: bool) -> Outcome {
    Outcome::CredentialsRejected { whose, park, message: "who are you".into() }
}

fn retry_after(random: &mut SmallRng) -> Option<Duration> {
    let long = if random.random_bool(0.15) { 8..16 } else { 0..6 };
    random.random_bool(0.7).then(|| Duration::from_secs(random.random_range(long)))
}

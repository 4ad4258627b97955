//! One poll: from a transaction in memory to its result.

use super::held::Held;
use super::lane::LaneSpec;
use super::protocol::PollResult;
use super::token::{NoToken, Refusal, Tokens};
use crate::domain::{Health, NoAnswer, Outcome};
use crate::providers::{Ask, Token, TokenFlow};
use crate::telemetry::event;
use crate::transport::Transport;
use crate::wire::{self, Failure, Kept, Redaction, Response};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// Polls for one account.
pub struct Poller {
    spec: Arc<LaneSpec>,
    transport: Transport,
    tokens: Tokens,
    /// When it was last reported that requests cannot be sent.
    told_unsent: Mutex<Option<Instant>>,
}

/// That this process or machine lacks the means to send requests is reported once in this time for
/// each account.
const TELL_UNSENT: Duration = Duration::from_secs(10);

/// Signals that end a poll early.
#[derive(Clone)]
pub struct Stops {
    /// No request is sent any more, and nothing that must precede one (a token, say) is waited for.
    pub sending: CancellationToken,
    /// Answers are not waited for any more either.
    pub waiting: CancellationToken,
}

/// The error of a poll that met a fault of this program.
const OUR_FAULT: &str = "paypoll itself failed while it polled";

impl Poller {
    /// A poller without a token.
    #[must_use]
    pub fn new(spec: Arc<LaneSpec>, transport: Transport) -> Self {
        let (retry, probe_after) = (spec.rules.retry.clone(), spec.circuit.probe_after);
        // An open circuit's probe has to find out whether there is a token: by then the pause is
        // over.
        let tokens = Tokens::new(move |failures| retry.wait(failures, 0.0).min(probe_after / 2));
        Self { spec, transport, tokens, told_unsent: Mutex::new(None) }
    }

    /// Since when transactions have waited for a token that is not available.
    #[must_use]
    pub fn waits_for_token_since(&self) -> Option<Instant> {
        self.tokens.missing_since()
    }

    /// Polls, unless it is later than `before` by then.
    ///
    /// No panic is known in here; should there be one, it fails this poll and loses no transaction.
    pub async fn poll(&self, held: &Held, before: Instant, stops: &Stops) -> PollResult {
        let sent = OnceLock::new();
        if let Some(result) = caught(self.attempt(held, before, stops, &sent)).await {
            return result;
        }
        error!(
            event = event::POLL_FAILED,
            transaction_id = %held.transaction.id,
            provider = self.spec.provider,
            account = &*self.spec.account,
            reference = &*held.transaction.reference,
            error = OUR_FAULT,
            "{} {}: {OUR_FAULT}; please report it",
            self.spec.provider,
            held.transaction.reference,
        );
        match sent.get() {
            // A request that may have been sent counts as sent.
            Some(at) => nothing_usable(*at, Outcome::Unusable { why: OUR_FAULT.into() }),
            None => PollResult::Later(self.spec.rules.retry.wait(1, 0.0)),
        }
    }

    async fn attempt(&self, held: &Held, before: Instant, stops: &Stops, sent: &OnceLock<Instant>) -> PollResult {
        if let Some(flaw) = &held.flaw {
            return PollResult::Impossible(flaw.clone());
        }
        let reference = &*held.transaction.reference;
        if reference.chars().any(char::is_control) {
            return PollResult::Impossible("reference has control characters".into());
        }
        match self.spec.asks.token_flow() {
            None => self.exchange(held, None, before, stops, sent).await,
            // Rare and large: without the box every poll would have room for it.
            Some(flow) => Box::pin(self.ask_with_token(flow, held, before, stops, sent)).await,
        }
    }

    async fn ask_with_token(
        &self,
        flow: &dyn TokenFlow,
        held: &Held,
        before: Instant,
        stops: &Stops,
        sent: &OnceLock<Instant>,
    ) -> PollResult {
        let token = match self.token(flow, None, stops).await {
            None => return PollResult::NotSent(None),
            Some(Ok(token)) => token,
            Some(Err(NoToken::Later(pause))) => return PollResult::Later(pause),
            Some(Err(NoToken::Failed { refusal: Refusal::NotSent(why), pause, .. })) => return self.unsent(&why, pause),
            Some(Err(NoToken::Failed { refusal: Refusal::Provider(outcome), pause, first })) => {
                return self.without_token(held, outcome, pause, first);
            }
        };
        let first = self.exchange(held, Some(&token), before, stops, sent).await;
        let PollResult::Sent { status: Some(status), body, .. } = &first else { return first };
        if !flow.is_refused(&held.transaction.reference, &Response { status: *status, retry_after: None, body: body.clone() }) {
            return first;
        }
        // The token has run out before its time: one renewal and one repeat, and both requests are one poll.
        match self.token(flow, Some(&token), stops).await {
            Some(Ok(renewed)) if renewed.expose_secret() != token.expose_secret() => {
                match self.exchange(held, Some(&renewed), before, stops, sent).await {
                    PollResult::Sent { at, latency, status, body, outcome } => {
                        PollResult::Sent { at, latency, status, body, outcome }
                    }
                    _ => first,
                }
            }
            _ => first,
        }
    }

    /// The account's token; `None` when the daemon stops before it comes.
    async fn token(
        &self,
        flow: &dyn TokenFlow,
        refused: Option<&SecretString>,
        stops: &Stops,
    ) -> Option<Result<SecretString, NoToken>> {
        let fetch = async || {
            let failed = || Err(Refusal::Provider(Outcome::Unusable { why: format!("access token: {OUR_FAULT}") }));
            caught(self.fetch(flow)).await.unwrap_or_else(failed)
        };
        tokio::select! {
            biased;
            () = stops.sending.cancelled() => None,
            token = self.tokens.get(refused, fetch) => Some(token),
        }
    }

    async fn fetch(&self, flow: &dyn TokenFlow) -> Result<Token, Refusal> {
        let now = SystemTime::now().into();
        let request = Transport::prepare(flow.request(now));
        let request = request.map_err(|message| Refusal::Provider(Outcome::RequestFailed { message }))?;
        let response = match self.transport.send(request, self.spec.timeout).await {
            Ok(response) => response,
            Err(Failure::NotSent(why)) => return Err(Refusal::NotSent(why)),
            Err(failure) => return Err(Refusal::Provider(no_answer(failure))),
        };
        flow.read(&response, now).map_err(Refusal::Provider)
    }

    /// The result when this machine lacks the means to send a request: it says nothing about the
    /// provider, and is no poll.
    fn unsent(&self, why: &str, pause: Duration) -> PollResult {
        let mut told = self.told_unsent.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= TELL_UNSENT) {
            *told = Some(Instant::now());
            warn!(
                event = event::POLL_FAILED,
                provider = self.spec.provider,
                account = &*self.spec.account,
                error = why,
                "{}/{}: requests cannot be sent from here ({why}); they are tried again, and do not count",
                self.spec.provider,
                self.spec.account,
            );
        }
        PollResult::Later(pause)
    }

    /// The result when there is no token: reported once for all that waited, a failure of each, and
    /// no poll.
    fn without_token(&self, held: &Held, outcome: Outcome, pause: Duration, first: bool) -> PollResult {
        let ask = self.question(held, None);
        let redaction = Redaction::new(self.spec.asks.secrets(ask), self.spec.asks.kept(ask));
        let why = outcome.error().unwrap_or_else(|| outcome.name().to_owned());
        let why = redaction.line(&why);
        let why = if why.starts_with("access token") { why } else { format!("access token: {why}") };
        if first {
            warn!(
                event = event::POLL_FAILED,
                provider = self.spec.provider,
                account = &*self.spec.account,
                outcome = outcome.name(),
                error = why,
                "{}/{} has no access token, and nothing of it is asked without one; it is asked for again in {:.1} s",
                self.spec.provider,
                self.spec.account,
                pause.as_secs_f64(),
            );
        }
        if !first && outcome.retry_after().is_some() {
            // One such answer is enough to stop the whole account.
            return PollResult::Later(pause);
        }
        let tells_of_itself = outcome.health() != Health::Neutral || matches!(outcome, Outcome::RateLimited { .. });
        // Whatever is wrong with the token, the account cannot be polled: its circuit counts it as
        // an unreachable host.
        let outcome = if tells_of_itself { outcome } else { Outcome::NoAnswer(NoAnswer::Connection(why)) };
        PollResult::NotSent(Some(outcome))
    }

    fn question<'a>(&self, held: &'a Held, token: Option<&'a SecretString>) -> Ask<'a> {
        Ask {
            reference: &held.transaction.reference,
            params: &held.transaction.params,
            now: DateTime::<Utc>::from(SystemTime::now()),
            token: token.map(ExposeSecret::expose_secret),
            amount: held.transaction.amount,
        }
    }

    async fn exchange(
        &self,
        held: &Held,
        token: Option<&SecretString>,
        before: Instant,
        stops: &Stops,
        sent: &OnceLock<Instant>,
    ) -> PollResult {
        let ask = self.question(held, token);
        let request = catch_unwind(AssertUnwindSafe(|| self.spec.asks.request(ask).and_then(Transport::prepare)));
        let request = match request.unwrap_or_else(|_| Err("paypoll failed to make the request".into())) {
            Ok(request) => request,
            Err(reason) => return PollResult::Impossible(reason),
        };
        let at = Instant::now();
        if at >= before || stops.sending.is_cancelled() {
            return PollResult::NotSent(None);
        }
        sent.get_or_init(|| at);
        let answer = tokio::select! {
            answer = self.transport.send(request, self.spec.timeout) => answer,
            () = stops.waiting.cancelled() => return nothing_usable(at, Outcome::NoAnswer(NoAnswer::Stopped)),
        };
        let result = match answer {
            // Nothing was sent, so the transaction stays due as it was.
            Err(Failure::NotSent(why)) => return self.unsent(&why, self.spec.rules.retry.wait(1, 0.0)),
            Ok(response) => {
                let response = without(response, token);
                let read = catch_unwind(AssertUnwindSafe(|| self.spec.asks.read(ask, &response)));
                let outcome = read.unwrap_or_else(|_| Outcome::Unusable { why: "paypoll failed to read the answer".into() });
                PollResult::Sent { at, latency: Some(at.elapsed()), status: Some(response.status), body: response.body, outcome }
            }
            Err(failure) => nothing_usable(at, no_answer(failure)),
        };
        if let PollResult::Sent { outcome, .. } = &result
            && !matches!(outcome.health(), Health::Usable | Health::Neutral)
        {
            self.transport.doubt();
        }
        result
    }
}

/// A poll that was sent and brought no usable answer.
fn nothing_usable(at: Instant, outcome: Outcome) -> PollResult {
    PollResult::Sent { at, latency: None, status: None, body: Bytes::new(), outcome }
}

/// The future's result; `None` when it panics.
async fn caught<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(polled) => polled.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}

fn no_answer(failure: Failure) -> Outcome {
    match failure {
        Failure::Timeout => Outcome::NoAnswer(NoAnswer::Timeout),
        Failure::Connection(how) | Failure::NotSent(how) => Outcome::NoAnswer(NoAnswer::Connection(how)),
        Failure::TooLong => Outcome::Unusable { why: "the answer is longer than 1 MiB".into() },
    }
}

/// The response without the access token, should the provider echo it in any encoding.
fn without(response: Response, token: Option<&SecretString>) -> Response {
    let (Some(token), Ok(text)) = (token, std::str::from_utf8(&response.body)) else { return response };
    let redaction = Redaction::new(vec![token.expose_secret()], Kept::EVERYTHING);
    if !redaction.finds(text) {
        return response;
    }
    let clean = match wire::json(&response.body) {
        Ok(value) => redaction.json(value).to_string(),
        Err(_) => redaction.text(text),
    };
    Response { body: Bytes::from(clean), ..response }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::domain::Transaction;
    use crate::providers::Provider;
    use crate::scheduler::held::Unsaved;
    use crate::transport::{Connections, Tls};
    use crate::wire::{Method, REDACTED, Request};
    use uuid::Uuid;

    /// A provider with a fault in one place.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Panics {
        WhileAsked,
        WhileRead,
        WhileSent,
        ForAToken,
    }

    impl Panics {
        fn here(self, place: Self) {
            assert!(self != place, "a panic that the test wants");
        }
    }

    impl Provider for Panics {
        fn request(&self, _: Ask<'_>) -> Result<Request, String> {
            self.here(Self::WhileAsked);
            Ok(Request { method: Method::Get, url: "http://127.0.0.1:1/".into(), headers: Vec::new(), body: None })
        }
        fn read(&self, _: Ask<'_>, _: &Response) -> Outcome {
            self.here(Self::WhileRead);
            Outcome::TooEarly
        }
        fn secrets<'a>(&'a self, _: Ask<'a>) -> Vec<&'a str> {
            Vec::new()
        }
        fn token_flow(&self) -> Option<&dyn TokenFlow> {
            (*self == Self::ForAToken).then_some(self)
        }
    }

    impl TokenFlow for Panics {
        fn request(&self, _: DateTime<Utc>) -> Request {
            panic!("a panic that the test wants");
        }
        fn read(&self, _: &Response, _: DateTime<Utc>) -> Result<Token, Outcome> {
            Err(Outcome::TooEarly)
        }
    }

    fn spec(asks: Panics) -> Arc<LaneSpec> {
        let settings = [
            ("DATABASE_URL", "postgres://127.0.0.1/none"),
            ("PAYPOLL__PROVIDERS__DROPAYMENT__ENABLED", "true"),
            ("PAYPOLL__PROVIDERS__DROPAYMENT__BASE_URL", "http://127.0.0.1:1"),
        ];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = Config::load(&[], settings.into_iter(), 1.0).expect("a configuration");
        let lane = Arc::into_inner(crate::scheduler::lanes(&config).remove(0)).expect("nobody else's");
        Arc::new(LaneSpec { asks: Arc::new(asks), ..lane })
    }

    fn held() -> Held {
        let transaction = Transaction::new(Uuid::nil(), "dropayment", "default".into(), "ref", DateTime::UNIX_EPOCH);
        let (due, unsaved) = (DateTime::UNIX_EPOCH, Unsaved::default());
        Held { transaction, lane: 0, fence: 0, epoch: 0, due, flaw: None, backlog: false, claim: 0, generation: 0, unsaved }
    }

    fn transport() -> Transport {
        Transport::new(&Tls::of_system().expect("TLS"), Connections::Kept).expect("a client")
    }

    fn stops() -> Stops {
        Stops { sending: CancellationToken::new(), waiting: CancellationToken::new() }
    }

    #[tokio::test]
    async fn a_mistake_of_ours_in_any_part_of_a_poll_is_that_polls_failure() {
        let soon = Instant::now() + Duration::from_secs(60);
        for place in [Panics::WhileAsked, Panics::WhileSent, Panics::ForAToken] {
            let poller = Poller::new(spec(place), transport());
            let result = poller.poll(&held(), soon, &stops()).await;
            match (place, result) {
                (Panics::WhileAsked, PollResult::Impossible(why)) => assert!(why.contains("paypoll failed"), "{why}"),
                (Panics::WhileSent, PollResult::Sent { outcome, .. }) => assert_eq!(outcome.name(), "connection_failed"),
                (Panics::ForAToken, PollResult::NotSent(Some(outcome))) => {
                    assert!(outcome.error().is_some_and(|why| why.contains(OUR_FAULT)), "{outcome:?}");
                }
                (place, _) => panic!("{place:?} became something else"),
            }
        }
    }

    #[tokio::test]
    async fn what_panics_while_it_waits_is_caught_too() {
        let fails_later = async {
            tokio::task::yield_now().await;
            Panics::WhileSent.here(Panics::WhileSent);
        };
        assert_eq!(caught(fails_later).await, None);
        assert_eq!(caught(std::future::ready(7)).await, Some(7));
    }

    #[tokio::test]
    async fn nothing_is_sent_once_sending_has_stopped() {
        let poller = Poller::new(spec(Panics::WhileRead), transport());
        let stops = stops();
        stops.sending.cancel();
        let result = poller.poll(&held(), Instant::now() + Duration::from_secs(60), &stops).await;
        assert!(matches!(result, PollResult::NotSent(None)));
    }

    #[test]
    fn an_echoed_access_token_is_taken_out_however_json_spells_it() {
        let token = SecretString::from("b2b/t\"oken+");
        for body in [
            r#"{"x":"b2b/t\"oken+","n":1.50}"#,
            r#"{"x":"b2b\/t\"oken+","n":1.50}"#,
            r#"{"x":"b2b\u002ft\"oken\u002b","n":1.50}"#,
            r#"b2b/t"oken+ n:1.50"#,
        ] {
            let response = Response { status: 200, retry_after: None, body: Bytes::from_static(body.as_bytes()) };
            let clean = String::from_utf8(without(response, Some(&token)).body.to_vec()).expect("UTF-8");
            assert!(clean.contains(REDACTED) && !clean.contains("oken") && clean.contains("1.50"), "{clean}");
        }
    }
}

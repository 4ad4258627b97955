//! An account's access token: fetched once for all polls that wait for it, renewed early, and not
//! requested again at once after a failure.

use crate::domain::Outcome;
use crate::providers::Token;
use secrecy::{ExposeSecret, SecretString};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// One account's token.
pub(super) struct Tokens {
    /// The wait after a number of failed requests in a row.
    pause: Box<dyn Fn(u32) -> Duration + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<Kept>,
    /// The request under way. Its result, whatever it is, goes to every caller that waits for it.
    under_way: Option<Arc<Request>>,
    /// Failed requests in a row.
    failures: u32,
    /// No new request before that.
    pause_until: Option<Instant>,
    /// Since when callers have waited while there is no token.
    missing_since: Option<Instant>,
}

type Request = OnceCell<Result<SecretString, Failure>>;

struct Kept {
    value: SecretString,
    renew_at: Instant,
    ends_at: Instant,
}

#[derive(Clone)]
struct Failure {
    refusal: Refusal,
    pause: Duration,
}

/// Why a request for a token brought none.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    /// What the provider answered, or did not.
    Provider(Outcome),
    /// Nothing was sent: this machine lacks the means to.
    NotSent(String),
}

/// Why there is no token.
pub(super) enum NoToken {
    /// The request failed. `first`: this caller sent it, the others waited for the same one.
    Failed {
        /// Its cause.
        refusal: Refusal,
        /// Until the next request.
        pause: Duration,
        /// Whether to report it.
        first: bool,
    },
    /// The last request failed a moment ago: there is no new one before this time is over.
    Later(Duration),
}

/// A token is renewed when this much of its lifetime is left. Should the renewal fail, it is used
/// until its end.
const RENEW_EARLY: f64 = 0.1;
/// A longer token is refused: it would be sent, and kept in memory, with every poll.
const LONGEST_TOKEN: usize = 16 * 1024;

impl Tokens {
    /// No token yet; `pause` is the wait after a number of failed requests in a row.
    pub(super) fn new(pause: impl Fn(u32) -> Duration + Send + Sync + 'static) -> Self {
        Self { pause: Box::new(pause), state: Mutex::default() }
    }

    /// A token that is not the one that was `refused`; `fetch` sends the request for a new one
    /// where it is needed.
    ///
    /// A caller that stops waiting does not affect the others: if it was the one that sent the
    /// request, the next one sends it again.
    pub(super) async fn get<F>(&self, refused: Option<&SecretString>, fetch: impl FnOnce() -> F) -> Result<SecretString, NoToken>
    where
        F: Future<Output = Result<Token, Refusal>>,
    {
        let request = match self.state().enter(refused, Instant::now()) {
            Entered::Here(token) => return Ok(token),
            Entered::Later(pause) => return Err(NoToken::Later(pause)),
            Entered::Wait(request) => request,
        };
        let mut first = false;
        let result = request.get_or_init(|| async {
            first = true;
            let issued_at = Instant::now();
            let fetched = fetch().await.and_then(checked);
            self.keep(fetched, issued_at, Instant::now())
        });
        match result.await {
            Ok(token) => Ok(token.clone()),
            Err(Failure { refusal, pause }) => Err(NoToken::Failed { refusal: refusal.clone(), pause: *pause, first }),
        }
    }

    /// Since when callers have waited while there is no token; `None` while there is one.
    pub(super) fn missing_since(&self) -> Option<Instant> {
        self.state().missing_since
    }

    /// Stores the result of a request.
    fn keep(&self, fetched: Result<Token, Refusal>, issued_at: Instant, now: Instant) -> Result<SecretString, Failure> {
        let mut state = self.state();
        state.under_way = None;
        match fetched {
            Ok(token) => {
                let early = token.renew_before.filter(|early| *early < token.lifetime);
                let early = early.unwrap_or_else(|| token.lifetime.mul_f64(RENEW_EARLY));
                let (renew_at, ends_at) = (issued_at + token.lifetime - early, issued_at + token.lifetime);
                state.token = Some(Kept { value: token.value.clone(), renew_at, ends_at });
                (state.failures, state.pause_until, state.missing_since) = (0, None, None);
                Ok(token.value)
            }
            Err(refusal) => {
                let wanted = match &refusal {
                    Refusal::Provider(outcome) => outcome.retry_after().unwrap_or_default(),
                    Refusal::NotSent(_) => Duration::ZERO,
                };
                state.failures = state.failures.saturating_add(1);
                let pause = (self.pause)(state.failures).max(wanted);
                state.pause_until = Some(now + pause);
                // The old token is used until its end: it is not known to be bad.
                match state.token.as_ref().filter(|token| token.ends_at > now) {
                    Some(old) => Ok(old.value.clone()),
                    None => Err(Failure { refusal, pause }),
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Entered {
    Here(SecretString),
    Wait(Arc<Request>),
    Later(Duration),
}

impl State {
    fn enter(&mut self, refused: Option<&SecretString>, now: Instant) -> Entered {
        if let Some(refused) = refused
            && self.token.as_ref().is_some_and(|token| token.value.expose_secret() == refused.expose_secret())
        {
            self.token = None;
        }
        let pause = self.pause_until.map(|until| until.saturating_duration_since(now)).filter(|pause| !pause.is_zero());
        if let Some(token) = &self.token
            && (token.renew_at > now || (token.ends_at > now && pause.is_some()))
        {
            return Entered::Here(token.value.clone());
        }
        if self.token.as_ref().is_none_or(|token| token.ends_at <= now) {
            self.missing_since.get_or_insert(now);
        }
        match (&self.under_way, pause) {
            (Some(request), _) => Entered::Wait(request.clone()),
            (None, Some(pause)) => Entered::Later(pause),
            (None, None) => Entered::Wait(self.under_way.insert(Arc::default()).clone()),
        }
    }
}

/// The token, if it can be sent at all.
fn checked(token: Token) -> Result<Token, Refusal> {
    let unusable = |why: &str| Err(Refusal::Provider(Outcome::Unusable { why: format!("access token: {why}") }));
    let text = token.value.expose_secret();
    if text.len() > LONGEST_TOKEN {
        return unusable("it is longer than 16 kB");
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return unusable("it is empty or has characters that no header can carry");
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use tokio::sync::Notify;

    const SECOND: Duration = Duration::from_secs(1);

    fn token(value: &str, lifetime: Duration) -> Token {
        Token::new(value.into(), Some(lifetime))
    }

    fn down() -> Refusal {
        Refusal::Provider(Outcome::ServerError { status: 500, wait: None })
    }

    fn tokens() -> Tokens {
        Tokens::new(|failures| SECOND * failures)
    }

    /// What a caller gets: the token, the pause before the next request, or the failure and whether
    /// it was the caller's own.
    fn shown(result: &Result<SecretString, NoToken>) -> String {
        match result {
            Ok(token) => token.expose_secret().to_owned(),
            Err(NoToken::Failed { first, .. }) => format!("failed, {}", if *first { "first" } else { "waited" }),
            Err(NoToken::Later(_)) => "later".to_owned(),
        }
    }

    #[tokio::test]
    async fn whoever_waits_shares_one_request_and_what_it_brought() {
        for good in [true, false] {
            let (tokens, requests, answered) = (tokens(), AtomicU32::new(0), Notify::new());
            let fetch = || async {
                requests.fetch_add(1, Relaxed);
                answered.notified().await;
                if good { Ok(token("one", 3600 * SECOND)) } else { Err(down()) }
            };
            let waiting = async { tokio::join!(tokens.get(None, fetch), tokens.get(None, fetch), tokens.get(None, fetch)) };
            let (results, ()) = tokio::join!(waiting, async { answered.notify_one() });
            let shown = [shown(&results.0), shown(&results.1), shown(&results.2)];
            assert_eq!(requests.load(Relaxed), 1, "{shown:?}");
            let expected = if good { ["one"; 3] } else { ["failed, first", "failed, waited", "failed, waited"] };
            assert_eq!(shown, expected);
            assert_eq!(tokens.missing_since().is_some(), !good);
        }
    }

    #[tokio::test]
    async fn one_who_stops_waiting_leaves_the_request_to_the_next() {
        let tokens = tokens();
        let endless = tokio::time::timeout(Duration::from_millis(1), tokens.get(None, std::future::pending));
        assert!(endless.await.is_err());
        let second = tokens.get(None, || async { Ok(token("second", SECOND)) }).await;
        assert_eq!(shown(&second), "second");
    }

    #[tokio::test]
    async fn after_a_failure_nobody_asks_for_a_while_and_longer_each_time() {
        let tokens = tokens();
        assert_eq!(shown(&tokens.get(None, || async { Err(down()) }).await), "failed, first");
        let never = || async { panic!("asked again at once") };
        match tokens.get(None, never).await {
            Err(NoToken::Later(pause)) => assert!(pause <= SECOND && pause > SECOND / 2, "{pause:?}"),
            other => panic!("{}", shown(&other)),
        }
        tokens.state().pause_until = None;
        match tokens.get(None, || async { Err(down()) }).await {
            Err(NoToken::Failed { pause, .. }) => assert_eq!(pause, 2 * SECOND),
            other => panic!("{}", shown(&other)),
        }
        tokens.state().pause_until = None;
        let asks_for_more = Refusal::Provider(Outcome::RateLimited { wait: Some(60 * SECOND) });
        match tokens.get(None, || async { Err(asks_for_more) }).await {
            Err(NoToken::Failed { pause, .. }) => assert_eq!(pause, 60 * SECOND),
            other => panic!("{}", shown(&other)),
        }
    }

    #[tokio::test]
    async fn a_token_is_not_lost_to_a_failed_renewal() {
        let tokens = tokens();
        assert_eq!(shown(&tokens.get(None, || async { Ok(token("old", 3600 * SECOND)) }).await), "old");
        tokens.state().token.as_mut().unwrap().renew_at = Instant::now();
        assert_eq!(shown(&tokens.get(None, || async { Err(down()) }).await), "old", "its last tenth is still good");
        assert_eq!(shown(&tokens.get(None, || async { Err(down()) }).await), "old", "also while nobody asks for a new one");
    }

    #[tokio::test]
    async fn a_refused_token_is_not_handed_out_again() {
        let tokens = tokens();
        let first = tokens.get(None, || async { Ok(token("first", 3600 * SECOND)) }).await.ok().unwrap();
        let next = || async { Ok(token("second", 3600 * SECOND)) };
        assert_eq!(shown(&tokens.get(Some(&first), next).await), "second");
        assert_eq!(shown(&tokens.get(Some(&first), next).await), "second", "somebody else has renewed it already");
    }

    #[tokio::test]
    async fn a_token_that_no_header_carries_or_that_is_absurdly_long_is_refused() {
        for bad in ["", "line\n", "a\0b", "ü", &"x".repeat(LONGEST_TOKEN + 1)] {
            let result = tokens().get(None, || async { Ok(token(bad, SECOND)) }).await;
            assert_eq!(shown(&result), "failed, first", "{} bytes", bad.len());
        }
        let longest = "x".repeat(LONGEST_TOKEN);
        assert!(tokens().get(None, || async { Ok(token(&longest, SECOND)) }).await.is_ok());
    }
}

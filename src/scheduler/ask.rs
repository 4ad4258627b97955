//! Asking: from a held transaction to what came of it.

use super::engine::Asked;
use super::held::Held;
use super::lane::LaneSpec;
use crate::domain::{NoAnswer, Outcome};
use crate::providers::{Ask, TokenFlow};
use crate::transport::Transport;
use crate::wire::{self, Failure, Kept, Redaction, Response};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Asks for one account.
pub struct Asker {
    spec: Arc<LaneSpec>,
    transport: Transport,
    token: Mutex<Option<Cached>>,
}

struct Cached {
    value: SecretString,
    renew_at: Instant,
}

/// A token is renewed when so much of its lifetime is left.
const RENEW_EARLY: f64 = 0.1;

impl Asker {
    /// An asker without a token.
    #[must_use]
    pub fn new(spec: Arc<LaneSpec>, transport: Transport) -> Self {
        Self { spec, transport, token: Mutex::new(None) }
    }

    /// Asks, unless it is later than `before` by then. `stop` ends the wait for an answer.
    pub async fn ask(&self, held: &Held, before: Instant, stop: &CancellationToken) -> Asked {
        if let Some(flaw) = &held.flaw {
            return Asked::Impossible(flaw.clone());
        }
        let reference = &*held.transaction.reference;
        if reference.chars().any(char::is_control) {
            return Asked::Impossible("reference has control characters".into());
        }
        match self.spec.asks.token_flow() {
            None => self.exchange(held, None, before, stop).await,
            // Rare and large: without the box every poll would have room for it.
            Some(flow) => Box::pin(self.ask_with_token(flow, held, before, stop)).await,
        }
    }

    async fn ask_with_token(&self, flow: &dyn TokenFlow, held: &Held, before: Instant, stop: &CancellationToken) -> Asked {
        let token = match self.fetched(flow, None).await {
            Ok(token) => token,
            Err(outcome) => return Asked::NotSent(Some(outcome)),
        };
        let first = self.exchange(held, Some(&token), before, stop).await;
        let Asked::Sent { status: Some(401), .. } = first else { return first };
        // The token has run out before its time: one renewal and one repeat, and both requests are one poll.
        match self.fetched(flow, Some(&token)).await {
            Ok(renewed) if renewed.expose_secret() != token.expose_secret() => {
                match self.exchange(held, Some(&renewed), before, stop).await {
                    Asked::NotSent(_) => first,
                    repeated => repeated,
                }
            }
            _ => first,
        }
    }

    async fn exchange(&self, held: &Held, token: Option<&SecretString>, before: Instant, stop: &CancellationToken) -> Asked {
        let ask = Ask {
            reference: &held.transaction.reference,
            params: &held.transaction.params,
            now: DateTime::<Utc>::from(SystemTime::now()),
            token: token.map(ExposeSecret::expose_secret),
            amount: held.transaction.amount,
        };
        // Neither this nor the reader has a known way to panic; if one finds it, it must not take a transaction away.
        let request = catch_unwind(AssertUnwindSafe(|| self.spec.asks.request(ask).and_then(Transport::prepare)));
        let request = match request.unwrap_or_else(|_| Err("paypoll failed to make the request".into())) {
            Ok(request) => request,
            Err(reason) => return Asked::Impossible(reason),
        };
        let at = Instant::now();
        if at >= before || stop.is_cancelled() {
            return Asked::NotSent(None);
        }
        let answer = tokio::select! {
            answer = self.transport.send(request, self.spec.timeout) => answer.map_err(no_answer),
            () = stop.cancelled() => Err(Outcome::NoAnswer(NoAnswer::Stopped)),
        };
        match answer {
            Ok(response) => {
                let response = without(response, token);
                let read = catch_unwind(AssertUnwindSafe(|| self.spec.asks.read(ask, &response)));
                let outcome = read.unwrap_or_else(|_| Outcome::Unusable { why: "paypoll failed to read the answer".into() });
                Asked::Sent { at, latency: Some(at.elapsed()), status: Some(response.status), body: response.body, outcome }
            }
            Err(outcome) => Asked::Sent { at, latency: None, status: None, body: Bytes::new(), outcome },
        }
    }

    /// The account's token: fetched once, shared, renewed early, and renewed when it is the one that was `refused`.
    async fn fetched(&self, flow: &dyn TokenFlow, refused: Option<&SecretString>) -> Result<SecretString, Outcome> {
        // Held while fetching: whoever comes meanwhile waits for the same token.
        let mut cached = self.token.lock().await;
        if let Some(token) = cached.as_ref()
            && token.renew_at > Instant::now()
            && refused.is_none_or(|refused| refused.expose_secret() != token.value.expose_secret())
        {
            return Ok(token.value.clone());
        }
        let asked = Instant::now();
        let request =
            Transport::prepare(flow.request(SystemTime::now().into())).map_err(|message| Outcome::RequestFailed { message })?;
        let response = self.transport.send(request, self.spec.timeout).await.map_err(no_answer)?;
        let token = flow.read(&response)?;
        let renew_at = asked + token.lifetime.mul_f64(1.0 - RENEW_EARLY).min(Duration::from_secs(24 * 3600));
        *cached = Some(Cached { value: token.value.clone(), renew_at });
        Ok(token.value)
    }
}

fn no_answer(failure: Failure) -> Outcome {
    match failure {
        Failure::Timeout => Outcome::NoAnswer(NoAnswer::Timeout),
        Failure::Connection(how) => Outcome::NoAnswer(NoAnswer::Connection(how)),
        Failure::TooLong => Outcome::Unusable { why: "the answer is longer than 1 MiB".into() },
    }
}

/// The response without the access token, should the provider echo it, however it is spelt.
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
    use crate::wire::REDACTED;

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

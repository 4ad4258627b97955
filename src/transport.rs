//! HTTP: a request value goes in, a response value or a failure comes out. Knows no provider and decides nothing.

use crate::wire::{self, Failure, MAX_BODY, Method, Request, Response};
use bytes::{Bytes, BytesMut};
use reqwest::header::{DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, redirect};
use std::error::Error;
use std::time::{Duration, SystemTime};

/// A client for all providers. Cheap to clone.
#[derive(Clone)]
pub struct Transport {
    client: Client,
}

/// A request that is ready to be sent: nothing about it can fail any more but the network.
pub struct Prepared(reqwest::Request);

/// A connection that nobody used for so long is closed.
const IDLE: Duration = Duration::from_secs(90);

impl Transport {
    /// A client that follows no redirect, uses no proxy and asks for no compression.
    pub fn new() -> Result<Self, String> {
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .http1_only()
            .tcp_nodelay(true)
            .pool_idle_timeout(IDLE)
            .user_agent(concat!("paypoll/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| format!("the HTTP client cannot be made: {}", described(error)))?;
        Ok(Self { client })
    }

    /// Checks that the request can be sent as it is. The error names what cannot.
    pub fn prepare(request: Request) -> Result<Prepared, String> {
        let method = match request.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
        };
        let url = request.url.parse().map_err(|_| "no URL can be made of it".to_owned())?;
        let mut prepared = reqwest::Request::new(method, url);
        for (name, value) in request.headers {
            let value = HeaderValue::try_from(value).map_err(|_| format!("the header {name} cannot carry its value"))?;
            prepared.headers_mut().insert(HeaderName::from_static(name), value);
        }
        *prepared.body_mut() = request.body.map(Into::into);
        Ok(Prepared(prepared))
    }

    /// Sends a request and reads its answer to the end, all within `timeout`.
    pub async fn send(&self, request: Prepared, timeout: Duration) -> Result<Response, Failure> {
        tokio::time::timeout(timeout, self.exchange(request)).await.unwrap_or(Err(Failure::Timeout))
    }

    async fn exchange(&self, request: Prepared) -> Result<Response, Failure> {
        let mut response = self.client.execute(request.0).await.map_err(failed)?;
        let status = response.status().as_u16();
        let retry_after = pause(response.headers());
        let first = response.chunk().await.map_err(failed)?.unwrap_or_default();
        let body = match response.chunk().await.map_err(failed)? {
            // Most answers come in one piece: it is not copied.
            None => first,
            Some(second) => rest(&mut response, first, second).await?,
        };
        if body.len() > MAX_BODY {
            return Err(Failure::TooLong);
        }
        Ok(Response { status, retry_after, body })
    }
}

async fn rest(response: &mut reqwest::Response, first: Bytes, second: Bytes) -> Result<Bytes, Failure> {
    let mut body = BytesMut::from(first);
    let mut next = Some(second);
    while let Some(chunk) = next {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(Failure::TooLong);
        }
        body.extend_from_slice(&chunk);
        next = response.chunk().await.map_err(failed)?;
    }
    Ok(body.freeze())
}

fn failed(error: reqwest::Error) -> Failure {
    if error.is_timeout() { Failure::Timeout } else { Failure::Connection(described(error)) }
}

/// What went wrong, down to its cause, without the URL: it may hold a token.
fn described(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// `Retry-After` as a wait from now; a date counts from the answer's own date where it has one.
fn pause(headers: &HeaderMap) -> Option<Duration> {
    let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let values = headers.get_all(RETRY_AFTER).iter().filter_map(|value| value.to_str().ok());
    wire::retry_after(values, date.unwrap_or_else(SystemTime::now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(retry_after: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, retry_after.parse().expect("a header"));
        headers.insert(DATE, "Wed, 21 Oct 2026 07:28:00 GMT".parse().expect("a header"));
        headers
    }

    #[test]
    fn a_pause_counts_from_the_answers_own_date_and_of_several_lines_the_longest_counts() {
        assert_eq!(pause(&headers("Wed, 21 Oct 2026 07:29:30 GMT")), Some(Duration::from_secs(90)));
        let mut several = headers("17");
        several.append(RETRY_AFTER, "19".parse().expect("a header"));
        assert_eq!(pause(&several), Some(Duration::from_secs(19)));
        assert_eq!(pause(&HeaderMap::new()), None);
    }
}

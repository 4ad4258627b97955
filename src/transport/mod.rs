//! HTTP: a request value goes in, a response value or a failure comes out. Knows no provider and
//! decides nothing.

mod body;
mod connect;

pub use connect::Tls;

use crate::wire::{self, Failure, MAX_BODY, Method, Request, Response};
use bytes::{Bytes, BytesMut};
use reqwest::header::{DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, redirect};
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The connections of one account.
pub struct Transport {
    tls: Tls,
    connections: Connections,
    current: Mutex<Current>,
}

/// What connections are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// For one request after the other.
    Kept,
    /// For one request each: for answers that cannot be tied to their question. On a connection
    /// that carried another request, what came late, or twice, or unasked, would pass for the
    /// answer to this one.
    OneRequestEach,
}

/// The client whose connections are used at present. Those of its predecessor end with their last request.
struct Current {
    client: Client,
    since: Instant,
    /// Something went wrong lately.
    doubted: bool,
}

/// A request that is ready to be sent: nothing about it can fail any more but the network.
pub struct Prepared(reqwest::Request);

/// A connection that was not used for this long is closed.
const IDLE: Duration = Duration::from_secs(90);
/// No connection is used for longer: by then a name may lead elsewhere.
const LONGEST_USE: Duration = Duration::from_secs(60);
/// After a failure new connections are made, but not more often than this.
const SHORTEST_USE: Duration = Duration::from_secs(1);

impl Transport {
    /// Connections that follow no redirect, use no proxy and ask for no compression.
    pub fn new(tls: &Tls, connections: Connections) -> Result<Self, String> {
        let client = client(tls, connections)?;
        let current = Current { client, since: Instant::now(), doubted: false };
        Ok(Self { tls: tls.clone(), connections, current: Mutex::new(current) })
    }

    /// Something went wrong: what is at the other end of the connections may not be what their name
    /// leads to any more. The next request gets a new one.
    pub fn doubt(&self) {
        self.current().doubted = true;
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> Client {
        let mut current = self.current();
        let age = current.since.elapsed();
        let is_old = age >= LONGEST_USE || (current.doubted && age >= SHORTEST_USE);
        // One client could be made, so another one can. If not, the old one still works.
        if is_old
            && self.connections == Connections::Kept
            && let Ok(client) = client(&self.tls, self.connections)
        {
            *current = Current { client, since: Instant::now(), doubted: false };
        }
        current.client.clone()
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
        let mut response = self.client().execute(request.0).await.map_err(failed)?;
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
        let body = body::plain(response.headers(), body)?;
        Ok(Response { status, retry_after, body })
    }
}

fn client(tls: &Tls, connections: Connections) -> Result<Client, String> {
    let builder = Client::builder()
        .tls_backend_preconfigured(tls.config.clone())
        .redirect(redirect::Policy::none())
        .no_proxy()
        .http1_only()
        // As browsers do: a header line that is none takes nothing away from the others.
        .http1_ignore_invalid_headers_in_responses(true)
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .tcp_nodelay(true)
        .pool_idle_timeout(IDLE)
        .user_agent(concat!("paypoll/", env!("CARGO_PKG_VERSION")));
    let builder = match connections {
        Connections::Kept => builder,
        Connections::OneRequestEach => connect::one_request_each(builder),
    };
    builder.build().map_err(|error| format!("the HTTP client cannot be made: {}", described(error)))
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
    if error.is_timeout() {
        Failure::Timeout
    } else if error.is_connect() && connect::is_ours(&error) {
        Failure::NotSent(described(error))
    } else {
        Failure::Connection(described(error))
    }
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

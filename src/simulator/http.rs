//! The one port: which path is whose, what is done with a request, and how values become HTTP.

use super::connection::Connection;
use super::exchange::{Ask, Incoming, Refusal, Reply, check_reference};
use super::hostile::{self, Scene};
use super::record::{Asked, Entry};
use super::rules::{Denial, Kind, Moment, Poll, Verdict};
use super::scripts::{self, RETRY_AFTER_S, Retry, Told, Word};
use super::{Api, Simulator, State, ayoconnect, dapi, declared, dropayment, dusupay, khalti};
use axum::body::Body;
use axum::extract::{ConnectInfo, Query, Request, State as Shared};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// What a path stands for, with its variable parts decoded.
enum Route {
    Status(Api, Vec<String>),
    Token,
    Redirected(Api, String),
    Report,
    Log,
    Scripts,
    Register,
    Reset,
    Unknown,
}

impl Route {
    fn of(method: &Method, path: &str) -> Self {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let route = match (method.as_str(), segments.as_slice()) {
            ("POST", ["paynet", "dapi", "v1", "transfer", endpoint, invoice, "status"]) => {
                Self::status(Api::Dropayment, &[endpoint, invoice])
            }
            ("GET", ["data", "transaction", "verify", reference]) => Self::status(Api::DusuPay, &[reference]),
            ("GET", ["api", "v1.0", "debit", "status"]) => Self::status(Api::Ayoconnect, &[]),
            ("POST", ["api", "v1.0", "access-token", "b2b"]) => Some(Self::Token),
            ("GET", ["api", "service", "status", ""]) => Self::status(Api::Khalti, &[]),
            ("GET", ["api", "service", "status", token, reference] | ["api", "service", "status", token, reference, ""]) => {
                Self::status(Api::Khalti, &[token, reference])
            }
            ("POST", ["v2", "operation", "get" | "status"]) => Self::status(Api::Dapi, &[]),
            (_, ["_simulator", "redirected", name, reference]) => {
                Api::named(name).zip(decoded(reference)).map(|(api, reference)| Self::Redirected(api, reference))
            }
            ("GET", ["_simulator", "report"]) => Some(Self::Report),
            ("GET", ["_simulator", "log"]) => Some(Self::Log),
            ("GET", ["_simulator", "scripts"]) => Some(Self::Scripts),
            ("POST", ["_simulator", "register"]) => Some(Self::Register),
            ("POST", ["_simulator", "reset"]) => Some(Self::Reset),
            _ => None,
        };
        route.unwrap_or(Self::Unknown)
    }

    fn status(api: Api, parts: &[&str]) -> Option<Self> {
        Some(Self::Status(api, parts.iter().map(|part| decoded(part)).collect::<Option<_>>()?))
    }
}

fn decoded(segment: &str) -> Option<String> {
    percent_decode_str(segment).decode_utf8().ok().map(Into::into)
}

/// The longest body that is read of a request: no documented one comes near it.
const MAX_REQUEST: usize = 64 << 10;

/// Answers any request.
pub(super) async fn handle(
    Shared(simulator): Shared<Simulator>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request,
) -> Response {
    let at = simulator.now();
    let (head, body) = request.into_parts();
    let route = Route::of(&head.method, head.uri.path());
    let query = Query::<Vec<(String, String)>>::try_from_uri(&head.uri).map(|Query(pairs)| pairs);
    let (Ok(query), Ok(body)) = (query, axum::body::to_bytes(body, MAX_REQUEST).await) else {
        return simulator.malformed(&route, at);
    };
    let path = head.uri.path().to_owned();
    if let Some((index, rest)) = simulator.declared(&path) {
        let Ok(body) = std::str::from_utf8(&body) else { return simulator.malformed(&route, at) };
        let (method, headers) = (head.method.as_str(), &head.headers);
        return simulator.play(index, &declared::Parts { method, path: rest, query: &query, headers, body }, at);
    }
    let incoming = |parts| Incoming { at, path, parts, query: query.clone(), headers: head.headers, body: body.clone() };
    match route {
        Route::Status(api, parts) => simulator.status(api, &incoming(parts), connection).await,
        Route::Token => simulator.token(&incoming(Vec::new())),
        Route::Redirected(api, reference) => simulator.redirected(api, &reference, at),
        Route::Report => page(StatusCode::OK, &json!(simulator.report())),
        Route::Log => simulator.log(&query),
        Route::Scripts => page(StatusCode::OK, &json!(scripts::scripts())),
        Route::Register => simulator.register(&body),
        Route::Reset => {
            simulator.reset();
            page(StatusCode::OK, &json!({}))
        }
        Route::Unknown => simulator.unknown(&head.method, at),
    }
}

/// A request that was let through or refused, and what is answered.
struct Answer {
    word: Word,
    nth: u32,
}

impl Simulator {
    async fn status(&self, api: Api, incoming: &Incoming, connection: Connection) -> Response {
        let (ask, answer, flight) = match self.admit(api, incoming) {
            Ok(admitted) => admitted,
            Err(reply) => return response(reply),
        };
        let say = |told| say(api, &ask, told, answer.nth, incoming.at);
        let hostile = match answer.word {
            Word::Told(told) => return response(say(told)),
            Word::Hostile(hostile) => hostile,
        };
        let Ok(place) = self.shared.places.clone().try_acquire_owned() else {
            return response(say(Told::Http(503)));
        };
        let location = format!("/_simulator/redirected/{}/{}", api.name(), utf8_percent_encode(&ask.reference, NON_ALPHANUMERIC));
        let (success, pending) = (say(Told::Ok).body, say(Told::Pending));
        hostile::perform(hostile, Scene { success, pending, location, connection, place, flight }).await
    }

    /// Everything about a status request that needs the simulator's memory: checks, rules, script, record.
    fn admit(&self, api: Api, incoming: &Incoming) -> Result<(Ask, Answer, Flight), Reply> {
        let mut state = self.state();
        let ask = match check(api, incoming, &state) {
            Ok(ask) => ask,
            Err(refusal) => {
                // The path's last part is the reference where there is one.
                return Err(state.refuse(
                    Some(api),
                    incoming.parts.last().map(String::as_str),
                    Asked::Status,
                    refusal,
                    incoming.at,
                ));
            }
        };
        let poll = Poll {
            api,
            account: ask.account,
            reference: &ask.reference,
            flow: ask.flow.as_deref(),
            initiated_ms: scripts::initiated(api, &ask.reference),
        };
        let Verdict { mut breaches, admitted } = state.rules.ask(&poll, incoming.at);
        let answer = match admitted {
            Ok(nth) => Answer { word: scripts::answer(&scripts::steps(api, &ask.reference), nth), nth },
            Err(denial) => Answer { word: Word::Told(denied(api, denial, &mut breaches)), nth: 0 },
        };
        let keys: Vec<String> =
            [Some(format!("reference {}", ask.reference)), ask.exclusive.clone()].into_iter().flatten().collect();
        for key in &keys {
            if state.rules.took_off(api, key) {
                breaches.push((Kind::Parallel, "another request of the same transaction or access token is in flight".into()));
            }
        }
        state.follow(api, &ask, answer.word, incoming.at);
        let mut entry = Entry::new(Some(api), Some(&ask.reference), Asked::Status, incoming.at);
        entry.poll = admitted.ok();
        entry.verdict = match admitted {
            Ok(_) => answer.word.label(),
            Err(denial) => format!("refused: {denial:?}"),
        };
        state.record.request(Some(api), entry, breaches);
        drop(state);
        Ok((ask, answer, Flight { simulator: self.clone(), api, keys }))
    }

    fn token(&self, incoming: &Incoming) -> Response {
        let mut state = self.state();
        match ayoconnect::token(incoming, &mut state.tokens, self.shared.options.token_lifetime) {
            Ok(reply) => {
                let mut entry = Entry::new(Some(Api::Ayoconnect), None, Asked::Token, incoming.at);
                entry.verdict = "issued".into();
                state.record.request(Some(Api::Ayoconnect), entry, Vec::new());
                response(reply)
            }
            Err(refusal) => response(state.refuse(Some(Api::Ayoconnect), None, Asked::Token, refusal, incoming.at)),
        }
    }

    /// Where the script `redirect` leads: nobody is to come here.
    fn redirected(&self, api: Api, reference: &str, at: Moment) -> Response {
        let ask = Ask { account: 0, reference: reference.to_owned(), flow: None, exclusive: None, secrets: Vec::new() };
        let mut entry = Entry::new(Some(api), Some(reference), Asked::Other, at);
        entry.verdict = "redirected".into();
        let breaches = vec![(Kind::RedirectFollowed, "a redirect was followed".into())];
        self.state().record.request(Some(api), entry, breaches);
        response(say(api, &ask, Told::Ok, 1, at))
    }

    /// A query or a body that cannot be read at all.
    fn malformed(&self, route: &Route, at: Moment) -> Response {
        let api = match route {
            Route::Status(api, _) | Route::Redirected(api, _) => Some(*api),
            Route::Token => Some(Api::Ayoconnect),
            _ => None,
        };
        let detail = "the query or the body cannot be read".to_owned();
        let reply = Reply::new(400, &json!({"error": detail}));
        let refusal = Refusal { kind: Some(Kind::BadRequest), detail, reply };
        response(self.state().refuse(api, None, Asked::Other, refusal, at))
    }

    /// As behind any web server: a page. The path is not repeated, for it may hold a token.
    fn unknown(&self, method: &Method, at: Moment) -> Response {
        let reply = Reply::new(404, &Value::Null);
        let refusal = Refusal { kind: Some(Kind::UnknownPath), detail: format!("{method}: no provider has this path"), reply };
        self.state().refuse(None, None, Asked::Other, refusal, at);
        hostile::html(StatusCode::NOT_FOUND)
    }

    fn log(&self, query: &[(String, String)]) -> Response {
        let value = |name| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let last = value("last").map_or(Ok(LOG_PAGE), str::parse);
        match last {
            Ok(last) => page(StatusCode::OK, &json!(self.state().record.last(last, value("reference")))),
            Err(_) => page(StatusCode::BAD_REQUEST, &json!({"error": "last is a number"})),
        }
    }

    fn register(&self, body: &Bytes) -> Response {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Registration {
            provider: String,
            reference: String,
            initiated_at: Option<i64>,
        }
        let Ok(registration) = serde_json::from_slice::<Registration>(body) else {
            return page(StatusCode::BAD_REQUEST, &json!({"error": "provider, reference and initiated_at (Unix milliseconds)"}));
        };
        let declared = self.shared.options.declared.iter().position(|play| play.name() == registration.provider);
        if let Some(index) = declared {
            let known = self.state().declared[index].register(&registration.reference, registration.initiated_at);
            let status = if known { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            return page(status, &json!({}));
        }
        let Some(api) = Api::named(&registration.provider) else {
            return page(StatusCode::BAD_REQUEST, &json!({"error": "the provider is unknown"}));
        };
        if let Err(error) = check_reference("the reference", &registration.reference) {
            return page(StatusCode::BAD_REQUEST, &json!({"error": error}));
        }
        if self.state().rules.register(api, &registration.reference, registration.initiated_at) {
            page(StatusCode::OK, &json!({}))
        } else {
            page(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": "no room for more references: POST /_simulator/reset"}))
        }
    }
}

/// How many entries of the log are shown where the query does not say.
const LOG_PAGE: usize = 1000;

impl State {
    /// Records a refusal; gives what is answered.
    fn refuse(&mut self, api: Option<Api>, reference: Option<&str>, asked: Asked, refusal: Refusal, at: Moment) -> Reply {
        let Refusal { kind, detail, reply } = refusal;
        let mut entry = Entry::new(api, reference, asked, at);
        entry.verdict = format!("refused: {detail}");
        self.record.request(api, entry, kind.map(|kind| (kind, detail)).into_iter().collect());
        reply
    }

    /// What an answer means for the requests after it.
    fn follow(&mut self, api: Api, ask: &Ask, word: Word, at: Moment) {
        match word {
            Word::Told(Told::Early) => self.rules.forget_last(api, &ask.reference),
            Word::Told(Told::Wait(retry)) => self.rules.pause(api, ask.account, at, wait(retry, at)),
            Word::Told(Told::Revoke) => ask.secrets.iter().for_each(|token| self.tokens.revoke(token)),
            _ => {}
        }
    }
}

fn check(api: Api, incoming: &Incoming, state: &State) -> Result<Ask, Refusal> {
    match api {
        Api::Dropayment => dropayment::check(incoming),
        Api::DusuPay => dusupay::check(incoming),
        Api::Ayoconnect => ayoconnect::check(incoming, &state.tokens),
        Api::Khalti => khalti::check(incoming),
        Api::Dapi => dapi::check(incoming),
    }
}

fn say(api: Api, ask: &Ask, told: Told, nth: u32, at: Moment) -> Reply {
    let reply = match api {
        Api::Dropayment => dropayment::say(ask, told),
        Api::DusuPay => dusupay::say(ask, told, nth),
        Api::Ayoconnect => ayoconnect::say(ask, told, nth),
        Api::Khalti => khalti::say(ask, told, nth),
        Api::Dapi => dapi::say(ask, told, at),
    };
    let retry_after = match told {
        Told::Wait(Retry::Seconds(seconds)) => Some(seconds.to_string()),
        Told::Wait(Retry::Date) => Some(httpdate::fmt_http_date(SystemTime::from(at.wall) + RETRY_DATE)),
        _ => None,
    };
    Reply { retry_after, ..reply }
}

const RETRY_DATE: Duration = Duration::from_secs(RETRY_AFTER_S as u64);

/// How long `Retry-After` asks to wait. A date has whole seconds, so that it may come up to a second sooner.
fn wait(retry: Retry, at: Moment) -> Duration {
    match retry {
        Retry::Seconds(seconds) => Duration::from_secs(seconds.into()),
        Retry::Date => RETRY_DATE.saturating_sub(Duration::from_millis(at.wall.timestamp_subsec_millis().into())),
    }
}

/// What is answered to a request that the rules do not let through.
fn denied(api: Api, denial: Denial, breaches: &mut Vec<(Kind, String)>) -> Told {
    match denial {
        Denial::TooEarly => Told::Early,
        Denial::TooOften => Told::Http(429),
        Denial::Full => Told::Http(503),
        Denial::OtherFlow if api == Api::Dropayment => {
            breaches.push((Kind::BadCredentials, "the session.token is not the one of this invoice".into()));
            Told::Refused
        }
        Denial::OtherFlow => {
            breaches.push((Kind::BadRequest, "the CHANNEL-ID is not the one that this flow began with".into()));
            Told::Http(400)
        }
    }
}

/// Requests in flight: taken back when their answer is on its way, or when nobody waits for it any more.
pub(super) struct Flight {
    simulator: Simulator,
    api: Api,
    keys: Vec<String>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut state = self.simulator.state();
        for key in &self.keys {
            state.rules.landed(self.api, key);
        }
    }
}

/// A provider's answer as HTTP.
pub(super) fn response(reply: Reply) -> Response {
    let mut response = Response::new(Body::from(reply.body));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(retry_after) = reply.retry_after.and_then(|value| HeaderValue::from_str(&value).ok()) {
        response.headers_mut().insert(RETRY_AFTER, retry_after);
    }
    response
}

/// One of the simulator's own pages.
fn page(status: StatusCode, value: &Value) -> Response {
    response(Reply::new(status.as_u16(), value))
}

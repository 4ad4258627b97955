//! The page for people: how everything stands and what is wrong with it, lists of payments, and one
//! payment's life.
//!
//! Rendered here, complete without scripts and without anything from elsewhere. It shows nothing
//! secret, but it does show payments: opening the port to others shows them these, too. It changes
//! nothing.

mod list;
mod overview;
mod table;
mod transaction;

use super::html::{Html, element, literal, tag, text};
use super::{Ops, patiently};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::net::IpAddr;
use std::sync::Arc;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The default policy for a browser: load nothing, send nothing, be framed by no page.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The page's addresses.
pub(super) fn routes(ops: &Arc<Ops>) -> Router<Arc<Ops>> {
    Router::new()
        .route("/", get(overview::show))
        .route("/transactions", get(list::show))
        .route("/transactions.csv", get(list::csv))
        .route("/transactions/{id}", get(transaction::show))
        .layer(middleware::from_fn_with_state(ops.clone(), guard))
}

/// Adds what every answer carries, and refuses requests that a page from elsewhere could have made:
/// a name that its owner points at this machine reaches a port that listens on this machine only,
/// and the browser would let that page read the answer.
async fn guard(State(ops): State<Arc<Ops>>, request: Request, next: Next) -> Response {
    let mut response = if ops.local && !is_local(request.headers()) {
        (StatusCode::MISDIRECTED_REQUEST, "this port is served as localhost or by an IP address only\n").into_response()
    } else {
        next.run(request).await
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether the request names this machine, or an address instead of a name.
pub(super) fn is_local(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(authority) = host.and_then(|host| host.parse::<axum::http::uri::Authority>().ok()) else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// A complete document.
fn page(status: StatusCode, title: &str, wanted: &str, body: Html, is_live: bool) -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let reload = element("noscript", &[], tag("meta", &[("http-equiv", "refresh"), ("content", "10")]));
    let head = tag("meta", &[("charset", "utf-8")])
        .with(tag("meta", &[("name", "viewport"), ("content", "width=device-width, initial-scale=1")]))
        .with(element("title", &[], text(title)))
        .with(if is_live { reload } else { Html::default() })
        .with(element("style", &[("nonce", &nonce)], literal(STYLE)));
    let label = "Reference or id, or how it begins";
    let field = [("id", "q"), ("name", "q"), ("type", "search"), ("value", wanted), ("placeholder", label), ("maxlength", "512")];
    let form = element("label", &[("for", "q")], text(label)).with(tag("input", &field)).with(element("button", &[], text("Find")));
    let lists = element("nav", &[], element("a", &[("href", "/transactions")], text("Payments")));
    let header = element("h1", &[], element("a", &[("href", "/")], text("paypoll"))).with(lists).with(element(
        "form",
        &[("action", "/"), ("role", "search")],
        form,
    ));
    let version = concat!("paypoll ", env!("CARGO_PKG_VERSION"), ". Read-only; times are UTC. ");
    let machines = element("a", &[("href", "/readyz")], text("readyz")).with(text(" ")).with(element(
        "a",
        &[("href", "/metrics")],
        text("metrics"),
    ));
    let note = element("p", &[("id", "note"), ("role", "status"), ("class", "bad")], Html::default());
    let script = if is_live { element("script", &[("nonce", &nonce)], literal(SCRIPT)) } else { Html::default() };
    let body = element("header", &[], header)
        .with(element("main", &[], note.with(body)))
        .with(element("footer", &[], text(version).with(machines)))
        .with(script);
    let document = literal("<!doctype html>").with(element(
        "html",
        &[("lang", "en")],
        element("head", &[], head).with(element("body", &[], body)),
    ));
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'"
    );
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()), (header::CONTENT_SECURITY_POLICY, policy)];
    (status, headers, document.into_string()).into_response()
}

fn no_answer() -> Html {
    element("p", &[("class", "bad")], text("The database does not answer."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_belong_to_anybody_is_not_local() {
        let host = |host: &str| is_local(&HeaderMap::from_iter([(header::HOST, HeaderValue::from_str(host).expect("a header"))]));
        for local in ["localhost", "LocalHost:9464", "127.0.0.1:9464", "127.0.0.1", "[::1]:9464"] {
            assert!(host(local), "{local}");
        }
        for foreign in ["evil.example", "evil.example:9464", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b"] {
            assert!(!host(foreign), "{foreign}");
        }
        assert!(!is_local(&HeaderMap::new()));
    }
}

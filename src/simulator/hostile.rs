//! What no client should have to meet: silence, resets, bytes, and bodies without an end.
//!
//! Each of them carries or promises a success where it can, so that a client that reads less
//! strictly than it should gives itself away. What is long is made while it is sent, so that it
//! costs the simulator next to nothing.

use super::connection::Connection;
use super::exchange::Reply;
use super::http::{self, Flight};
use super::scripts::Hostile;
use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use bytes::{Buf, Bytes};
use serde_json::{Map, Value};
use std::io;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, Sleep};
use tokio_util::io::ReaderStream;

/// How long `slow` does not answer where the script names no seconds; longer than any client should
/// wait.
const SILENCE: Duration = Duration::from_secs(60);
/// The pace of `dribble`.
const DRIBBLE: Duration = Duration::from_secs(1);
/// What a half answer is given to arrive before the connection ends.
const DROP_AFTER: Duration = Duration::from_millis(20);
/// The length of `huge`, and of what `gzipbomb` unpacks to.
const HUGE: usize = 100 << 20;

/// What a hostile answer is made of.
pub(super) struct Scene {
    /// What the provider would say of a success.
    pub(super) success: String,
    /// What it would say of a pending transaction.
    pub(super) pending: Reply,
    /// Where a redirect leads.
    pub(super) location: String,
    pub(super) connection: Connection,
    /// One of the places for answers that take long.
    pub(super) place: OwnedSemaphorePermit,
    pub(super) flight: Flight,
}

pub(super) async fn perform(hostile: Hostile, scene: Scene) -> Response {
    let success = scene.success.as_str();
    match hostile {
        Hostile::Slow(seconds) => silence(seconds, scene).await,
        Hostile::Reset => {
            scene.connection.reset();
            json(Body::empty())
        }
        Hostile::Garbage => json(Body::from(GARBAGE.as_slice())),
        Hostile::Html => html(StatusCode::OK),
        Hostile::Empty => json(Body::empty()),
        Hostile::Cut => json(Body::from(success[..half(success)].to_owned())),
        Hostile::Duplicate => json(Body::from(duplicate(success))),
        Hostile::ByteOrderMark => json(Body::from(format!("\u{feff}{success}"))),
        Hostile::Mojibake => json(Body::from([b"{\"note\":\"\xff\xfe\",", &success.as_bytes()[1..]].concat())),
        Hostile::Redirect => redirect(&scene.location),
        Hostile::GzipBomb => gzip_bomb().await,
        Hostile::Drop => {
            let head = Bytes::from(success[..half(success)].to_owned());
            streamed(success.len(), Trickle { ends: Some(End::new()), ..Trickle::new(head, scene) })
        }
        Hostile::Dribble => {
            let pace = Some(tokio::time::interval(DRIBBLE));
            streamed(success.len(), Trickle { pace, ..Trickle::new(Bytes::from(success.to_owned()), scene) })
        }
        Hostile::Huge => {
            let head = Bytes::from_static(PADDED);
            streamed(HUGE, Trickle { padding: HUGE - head.len(), ..Trickle::new(head, scene) })
        }
        // A script resolves it into its turns.
        Hostile::Flaky => http::response(scene.pending),
    }
}

/// The beginning of a JSON object that goes on without an end.
const PADDED: &[u8] = b"{\"padding\":\"a";
/// No text, no JSON, no compression.
const GARBAGE: [u8; 64] = {
    let mut bytes = [0; 64];
    let mut index = 0;
    while index < bytes.len() {
        bytes[index] = (index as u8).wrapping_mul(151) ^ 0xa5;
        index += 1;
    }
    bytes
};

async fn silence(seconds: Option<u32>, scene: Scene) -> Response {
    let long = seconds.map_or(SILENCE, |seconds| Duration::from_secs(seconds.into()));
    tokio::select! {
        () = tokio::time::sleep(long) => {}
        () = scene.connection.stopping.cancelled() => scene.connection.reset(),
    }
    http::response(scene.pending)
}

fn json(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A page as a portal or a proxy would show it.
pub(super) fn html(status: StatusCode) -> Response {
    let page = "<!DOCTYPE html><html><head><title>Sign in</title></head><body><p>COMPLETED APPROVED Success done</p></body></html>";
    let mut response = Response::new(Body::from(page));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

fn redirect(location: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::FOUND;
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn half(text: &str) -> usize {
    text.floor_char_boundary(text.len() / 2)
}

/// The object with its first key once more.
fn duplicate(object: &str) -> String {
    let first = serde_json::from_str::<Map<String, Value>>(object).ok().and_then(|map| map.into_iter().next());
    let (key, value) = first.unwrap_or_default();
    format!("{{{}:{value},{}", Value::String(key), &object[1..])
}

fn streamed(length: usize, trickle: Trickle) -> Response {
    let mut response = json(Body::from_stream(ReaderStream::new(trickle)));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// Built when it is first wanted, on a thread of its own: no other request may wait for it, and no
/// clock stand still.
async fn gzip_bomb() -> Response {
    static BOMB: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(bomb(HUGE)));
    // A panic while it was built shows as an empty answer.
    let bomb = tokio::task::spawn_blocking(|| BOMB.clone()).await.unwrap_or_default();
    let mut response = json(Body::from(bomb));
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response
}

/// A gzip stream that unpacks to about `length` bytes of JSON. Its checksum is wrong: a reader that
/// notices has unpacked it all.
fn bomb(length: usize) -> Vec<u8> {
    const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let mut bits = Bits { bytes: HEADER.to_vec(), used: 8 };
    // One last block with fixed codes.
    bits.low_first(0b011, 3);
    for literal in PADDED {
        bits.high_first(0x30 + u32::from(*literal), 8);
    }
    // "Repeat the last byte 258 times": length code 285, distance code 0.
    for _ in 0..length / 258 {
        bits.high_first(0xc5, 8);
        bits.high_first(0, 5);
    }
    bits.high_first(0, 7);
    bits.bytes.extend([0; 8]);
    bits.bytes
}

/// A bit stream as deflate packs it.
struct Bits {
    bytes: Vec<u8>,
    /// Bits used of the last byte.
    used: u32,
}

impl Bits {
    fn low_first(&mut self, value: u32, count: u32) {
        (0..count).for_each(|bit| self.push(value >> bit & 1));
    }

    fn high_first(&mut self, code: u32, count: u32) {
        (0..count).rev().for_each(|bit| self.push(code >> bit & 1));
    }

    fn push(&mut self, bit: u32) {
        if self.used == 8 {
            self.bytes.push(0);
            self.used = 0;
        }
        if let (Some(last), 1) = (self.bytes.last_mut(), bit) {
            *last |= 1 << self.used;
        }
        self.used += 1;
    }
}

/// A body that is made while it is sent: `head`, then so many bytes of padding.
struct Trickle {
    head: Bytes,
    padding: usize,
    /// One byte at each tick.
    pace: Option<Interval>,
    /// A broken end instead of a proper one.
    ends: Option<End>,
    _place: OwnedSemaphorePermit,
    _flight: Flight,
}

/// The end of a connection that breaks: not before what went ahead had time to leave.
struct End(Pin<Box<Sleep>>);

impl End {
    fn new() -> Self {
        Self(Box::pin(tokio::time::sleep(DROP_AFTER)))
    }
}

impl Trickle {
    fn new(head: Bytes, scene: Scene) -> Self {
        Self { head, padding: 0, pace: None, ends: None, _place: scene.place, _flight: scene.flight }
    }
}

impl AsyncRead for Trickle {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut room = buffer.remaining();
        if let Some(pace) = &mut self.pace {
            ready!(pace.poll_tick(cx));
            room = room.min(1);
        }
        if !self.head.is_empty() {
            let count = room.min(self.head.len());
            buffer.put_slice(&self.head[..count]);
            self.head.advance(count);
            if let Some(End(sleep)) = &mut self.ends {
                sleep.as_mut().reset(Instant::now() + DROP_AFTER);
            }
        } else if self.padding > 0 {
            let count = room.min(self.padding);
            buffer.initialize_unfilled_to(count).fill(b'a');
            buffer.advance(count);
            self.padding -= count;
        } else if let Some(End(sleep)) = &mut self.ends {
            ready!(sleep.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duplicate_key_stands_in_front_of_the_object() {
        assert_eq!(duplicate(r#"{"a":1,"b":{"a":2}}"#), r#"{"a":1,"a":1,"b":{"a":2}}"#);
    }

    #[test]
    fn the_bomb_is_small_and_begins_as_deflate_wants_it() {
        let bomb = bomb(HUGE);
        assert!(bomb.len() < 1 << 20, "{}", bomb.len());
        // '{' is literal 0x7b, code 0xab, behind the three bits 011 (low first): 110 10101 011...
        assert_eq!(bomb[10], 0b1010_1011);
    }

    #[test]
    fn garbage_is_not_utf_8() {
        assert!(std::str::from_utf8(&GARBAGE).is_err());
    }
}

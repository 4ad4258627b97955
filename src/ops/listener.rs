//! Who may keep a connection to the ops port open, and for how long.
//!
//! Requests to the port must not slow down polling: a bounded number of connections, one request
//! each, short and soon. Where there are more, the oldest one without a request is closed first: a
//! client that sends one is answered, however many others only hold on.

use axum::serve::Listener;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// At most this many connections at once.
const MOST: usize = 64;
/// From its first byte to its last one.
const LIFETIME: Duration = Duration::from_secs(10);
/// The longest request: a page's address and a browser's headers.
const MAX_REQUEST: usize = 16 << 10;
/// When no descriptor is left, or all connections are about to end, another one is looked for after this.
const PAUSE: Duration = Duration::from_millis(20);

/// The listener.
pub(super) struct Bounded {
    listener: TcpListener,
    open: Open,
    accepted: u64,
}

/// The open connections, oldest first.
type Open = Arc<Mutex<BTreeMap<u64, Visitor>>>;

struct Visitor {
    end: CancellationToken,
    /// It has sent a request.
    asked: bool,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, open: Open::default(), accepted: 0 }
    }

    /// Ends a connection where there are too many. False when even then there would be.
    fn make_room(&self) -> bool {
        let open = lock(&self.open);
        if open.len() < MOST {
            return true;
        }
        let stays = |visitor: &&Visitor| !visitor.end.is_cancelled();
        if let Some(visitor) = open.values().filter(stays).find(|visitor| !visitor.asked) {
            visitor.end.cancel();
        }
        // A connection that was told to end does so in a moment.
        open.len() < 2 * MOST && open.values().filter(stays).count() < MOST
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            while !self.make_room() {
                sleep(PAUSE).await;
            }
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    self.accepted += 1;
                    return (Connection::new(stream, self.accepted, &self.open), address);
                }
                // No descriptor is left, or the client is gone already.
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with an end.
pub(super) struct Connection {
    stream: TcpStream,
    number: u64,
    open: Open,
    lifetime: Pin<Box<Sleep>>,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
    /// How many bytes may still come.
    left: usize,
}

impl Connection {
    fn new(stream: TcpStream, number: u64, open: &Open) -> Self {
        let end = CancellationToken::new();
        lock(open).insert(number, Visitor { end: end.clone(), asked: false });
        let (lifetime, end) = (Box::pin(sleep(LIFETIME)), Box::pin(end.cancelled_owned()));
        Self { stream, number, open: open.clone(), lifetime, end, left: MAX_REQUEST }
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let ends = self.lifetime.as_mut().poll(context).is_ready() || self.end.as_mut().poll(context).is_ready();
        if ends { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        lock(&self.open).remove(&self.number);
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_end(context)?;
        if self.left == 0 {
            return Poll::Ready(Err(io::Error::other("the request is too long")));
        }
        // A request is short: it is read in pieces, so that it cannot come to more than it may.
        let mut piece = [0; 1024];
        let room = piece.len().min(self.left).min(buffer.remaining());
        let mut part = ReadBuf::new(&mut piece[..room]);
        let polled = Pin::new(&mut self.stream).poll_read(context, &mut part);
        buffer.put_slice(part.filled());
        self.left -= part.filled().len();
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_end(context)?;
        if let Some(visitor) = lock(&self.open).get_mut(&self.number) {
            visitor.asked = true;
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn lock(open: &Open) -> MutexGuard<'_, BTreeMap<u64, Visitor>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

//! A small TCP proxy that stands for the network: it forwards bytes until it is made to fail.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Where the proxy leads.
#[derive(Clone)]
pub(crate) enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// It carries bytes.
    Fair,
    /// It resets every connection, old and new.
    Resets,
    /// It carries nothing. What was sent arrives when it is fair again, unless the sender has hung
    /// up by then.
    Stalls,
    /// It carries nothing, and connections that lived through it never carry anything again.
    Severs,
    /// PostgreSQL alone: it carries bytes, but nothing that comes back after a commit.
    SwallowsCommits,
    /// HTTP alone: something on the way answers 503 to every request.
    Unavailable,
}

/// How the library ends a database transaction.
const COMMIT: &[u8] = b"COMMIT\0";

/// The proxy, on a thread of its own. It ends when it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    weather: watch::Sender<Weather>,
    carried: Arc<AtomicU64>,
    target: Arc<Mutex<Target>>,
    _ends: DropGuard,
}

impl Proxy {
    pub(crate) fn before(target: Target) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (weather, seen) = watch::channel(Weather::Fair);
        let carried = Arc::new(AtomicU64::new(0));
        let target = Arc::new(Mutex::new(target));
        let path = Path { target: target.clone(), weather: seen, carried: carried.clone() };
        let end = CancellationToken::new();
        let ended = end.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = accept(&listener, &path) => {}
                    () = ended.cancelled() => {}
                }
            });
        });
        Self { address, weather, carried, target, _ends: end.drop_guard() }
    }

    /// Connections that are made from now on lead there.
    pub(crate) fn lead_to(&self, target: Target) {
        *self.target.lock().unwrap() = target;
    }

    pub(crate) fn turn(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// How many pieces from the client's side were carried on.
    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

async fn accept(listener: &TcpListener, path: &Path) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        tokio::spawn(path.clone().lead(client));
    }
}

/// One connection's way.
#[derive(Clone)]
struct Path {
    target: Arc<Mutex<Target>>,
    weather: watch::Receiver<Weather>,
    carried: Arc<AtomicU64>,
}

impl Path {
    async fn lead(self, mut client: TcpStream) {
        let now = *self.weather.borrow();
        if now == Weather::Unavailable {
            return refuse(client).await;
        }
        tokio::select! {
            biased;
            () = turned(&self.weather, &[Weather::Resets, Weather::Unavailable]) => {
                let _ = client.set_zero_linger();
            }
            // The sockets stay open, and are not read any more.
            () = turned(&self.weather, &[Weather::Severs]) => std::future::pending().await,
            () = self.carry(&mut client) => {}
        }
    }

    /// Carries bytes both ways until one side hangs up.
    async fn carry(&self, client: &mut TcpStream) {
        let mut begun = Vec::new();
        if !gather(client, &mut begun, &self.weather).await {
            return;
        }
        let target = self.target.lock().unwrap().clone();
        let Some(target) = target.connect().await else { return };
        let (mut from_target, mut to_target) = tokio::io::split(target);
        let (mut from_client, mut to_client) = client.split();
        let swallows = AtomicBool::new(false);
        let there = |piece: &[u8]| {
            self.carried.fetch_add(1, Ordering::Relaxed);
            let commits = piece.windows(COMMIT.len()).any(|word| word == COMMIT);
            if commits && *self.weather.borrow() == Weather::SwallowsCommits {
                swallows.store(true, Ordering::Relaxed);
            }
            true
        };
        let back = |_: &[u8]| !swallows.load(Ordering::Relaxed);
        tokio::select! {
            () = pump(&mut from_client, &mut to_target, begun, &self.weather, there) => {}
            () = pump(&mut from_target, &mut to_client, Vec::new(), &self.weather, back) => {}
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Target {
    async fn connect(&self) -> Option<Box<dyn Stream>> {
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await.ok()?;
                let _ = stream.set_nodelay(true);
                Some(Box::new(stream))
            }
            Self::Unix(path) => Some(Box::new(UnixStream::connect(path).await.ok()?)),
        }
    }
}

/// Waits for one of these.
async fn turned(weather: &watch::Receiver<Weather>, wanted: &[Weather]) {
    // An error says that the proxy was dropped: then everything ends.
    let _ = weather.clone().wait_for(|weather| wanted.contains(weather)).await;
}

/// Waits for fair weather and takes in meanwhile what is sent. False when the sender has hung up.
async fn gather(from: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>, weather: &watch::Receiver<Weather>) -> bool {
    loop {
        tokio::select! {
            biased;
            () = turned(weather, &[Weather::Fair, Weather::SwallowsCommits]) => return true,
            read = from.read_buf(buffer) => if !matches!(read, Ok(1..)) { return false },
        }
    }
}

/// Carries on what `carries` says of each piece, and the rest nowhere.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut buffer: Vec<u8>,
    weather: &watch::Receiver<Weather>,
    carries: impl Fn(&[u8]) -> bool,
) {
    loop {
        if buffer.is_empty() && !matches!(from.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
        if !gather(from, &mut buffer, weather).await || carries(&buffer) && to.write_all(&buffer).await.is_err() {
            return;
        }
        buffer.clear();
    }
}

/// What a gateway says whose backend is gone.
async fn refuse(mut client: TcpStream) {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if !matches!(client.read_buf(&mut request).await, Ok(1..)) {
            return;
        }
    }
    let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let _ = client.write_all(answer).await;
}

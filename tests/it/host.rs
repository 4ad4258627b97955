//! A provider's host, played byte by byte: for what no well-behaved HTTP server can be made to do.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A request as it stood on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    /// When it had come whole.
    pub(crate) at: Instant,
    /// On which connection, in the order in which they were made, from 0.
    pub(crate) connection: usize,
    /// How many came before it on the same one.
    pub(crate) before: usize,
    /// Line, headers and body.
    pub(crate) text: String,
}

impl Heard {
    /// The path, without the query.
    pub(crate) fn path(&self) -> &str {
        let target = self.text.split(' ').nth(1).unwrap_or_default();
        target.split('?').next().unwrap_or_default()
    }

    /// The value of a header; empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut lines = self.text.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| header.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }
}

/// What the host does with a request.
pub(crate) enum Reply {
    /// Sends these bytes and waits for the next request.
    Keep(Vec<u8>),
    /// Sends these bytes and closes.
    Close(Vec<u8>),
    /// Says nothing until the client goes.
    Hang,
}

/// An answer with a length.
pub(crate) fn whole(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// JSON with status 200.
pub(crate) fn json(body: &serde_json::Value) -> Vec<u8> {
    whole("200 OK", "content-type: application/json\r\n", &body.to_string())
}

/// The host. It ends with the test's runtime.
pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Host {
    pub(crate) async fn start(answer: impl Fn(&Heard) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), answer).await
    }

    pub(crate) async fn start_at(address: SocketAddr, answer: impl Fn(&Heard) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(TcpListener::bind(address).await.unwrap(), |_| Vec::new(), answer)
    }

    /// As [`Self::start`]; on each new connection, by its number, `greet` speaks first.
    pub(crate) async fn greeting(
        greet: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static,
        answer: impl Fn(&Heard) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(), greet, answer)
    }

    fn serve(
        listener: TcpListener,
        greet: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static,
        answer: impl Fn(&Heard) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (written, answer) = (heard.clone(), Arc::new(answer));
        tokio::spawn(async move {
            for number in 0.. {
                let Ok((mut connection, _)) = listener.accept().await else { return };
                let first = greet(number);
                let (written, answer) = (written.clone(), answer.clone());
                tokio::spawn(async move {
                    if connection.write_all(&first).await.is_ok() {
                        converse(connection, number, &written, &*answer).await;
                    }
                });
            }
        });
        Self { address, heard }
    }

    /// What came so far, oldest first.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

async fn converse(
    connection: TcpStream,
    number: usize,
    heard: &Mutex<Vec<Heard>>,
    answer: &(dyn Fn(&Heard) -> Reply + Send + Sync),
) -> Option<()> {
    let mut connection = BufReader::new(connection);
    for before in 0.. {
        let text = request(&mut connection).await?;
        let request = Heard { at: Instant::now(), connection: number, before, text };
        heard.lock().unwrap().push(request.clone());
        match answer(&request) {
            Reply::Keep(bytes) => connection.write_all(&bytes).await.ok()?,
            Reply::Close(bytes) => {
                connection.write_all(&bytes).await.ok()?;
                return connection.shutdown().await.ok();
            }
            Reply::Hang => {
                let _ = connection.read(&mut [0]).await;
                return None;
            }
        }
    }
    None
}

/// One request to its end; `None` when the client is gone.
async fn request(connection: &mut BufReader<TcpStream>) -> Option<String> {
    let mut text = String::new();
    let mut length = 0;
    loop {
        let begun = text.len();
        if connection.read_line(&mut text).await.ok()? == 0 {
            return None;
        }
        let line = text[begun..].to_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await.ok()?;
    text.push_str(std::str::from_utf8(&body).ok()?);
    Some(text)
}

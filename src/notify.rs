//! Notifications to a service manager: systemd's `sd_notify` protocol, one datagram for each.
//!
//! Read in the manual page sd_notify(3): `NOTIFY_SOCKET` names the socket, by a path or, after `@`,
//! in the abstract name space; `WATCHDOG_USEC` says within which time a sign of life must come, for
//! the process of `WATCHDOG_PID`.

use crate::metrics::Metrics;
use std::io;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often to check whether the daemon is ready.
const STARTING: Duration = Duration::from_millis(20);
/// How often to check where there is nothing to report.
const IDLE: Duration = Duration::from_secs(3600);
/// The loop turns at least once a second; with so much between two turns it does not hang yet.
const TURNS: Duration = Duration::from_secs(3);

/// The service manager that started this process.
pub struct ServiceManager {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The one that the environment names; `None` where there is none, or none that can be talked to.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let text = |name| std::env::var(name).ok();
        let watchdog = watchdog(text("WATCHDOG_USEC").as_deref(), text("WATCHDOG_PID").as_deref(), std::process::id());
        Self::new(&text("NOTIFY_SOCKET")?, watchdog).ok()
    }

    /// The one that listens on `socket`. `watchdog` is the longest it waits between two signs of life.
    pub fn new(socket: &str, watchdog: Option<Duration>) -> io::Result<Self> {
        let here = UnixDatagram::unbound()?;
        // A manager that does not read must not stop the daemon.
        here.set_nonblocking(true)?;
        Ok(Self { socket: here, address: address(socket)?, watchdog })
    }

    /// Sends a notification. A manager that does not listen any more is no reason to stop.
    fn tell(&self, news: &str) {
        drop(self.socket.send_to_addr(news.as_bytes(), &self.address));
    }
}

fn address(socket: &str) -> io::Result<SocketAddr> {
    match socket.strip_prefix('@') {
        #[cfg(target_os = "linux")]
        Some(name) => SocketAddr::from_abstract_name(name),
        #[cfg(not(target_os = "linux"))]
        Some(_) => Err(io::ErrorKind::Unsupported.into()),
        None => SocketAddr::from_pathname(socket),
    }
}

fn watchdog(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    let usec: u64 = usec?.parse().ok()?;
    (is_ours && usec > 0).then(|| Duration::from_micros(usec))
}

/// Reports when the daemon is ready, that it lives until `end`, and that it stops on `stop`.
pub async fn keep(manager: Arc<ServiceManager>, metrics: Arc<Metrics>, stop: CancellationToken, end: CancellationToken) {
    let mut signs = Signs::new(manager.watchdog, Instant::now());
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = end.cancelled() => return,
            () = tokio::time::sleep(signs.pause()) => {}
        }
        let now = Instant::now();
        for news in signs.look(metrics.ready.load(Relaxed), metrics.since_turn(now), now).into_iter().flatten() {
            manager.tell(news);
        }
    }
    manager.tell("STOPPING=1");
}

/// What is to be reported when.
struct Signs {
    /// Between two signs of life; `None` where none are wanted.
    every: Option<Duration>,
    is_ready: bool,
    last: Instant,
}

impl Signs {
    fn new(watchdog: Option<Duration>, now: Instant) -> Self {
        Self { every: watchdog.map(|longest| longest / 2), is_ready: false, last: now }
    }

    /// How long nothing is to be reported.
    fn pause(&self) -> Duration {
        let every = self.every.unwrap_or(IDLE);
        if self.is_ready { every } else { every.min(STARTING) }
    }

    /// A sign of life is given only while the loop turns: a daemon that hangs is ended and started
    /// anew, and nothing is lost by that.
    fn look(&mut self, is_ready: bool, since_turn: Duration, now: Instant) -> [Option<&'static str>; 2] {
        let begins = is_ready && !self.is_ready;
        self.is_ready |= is_ready;
        let lives = self
            .every
            .is_some_and(|every| now.saturating_duration_since(self.last) >= every.mul_f64(0.9) && since_turn < every.max(TURNS));
        if lives {
            self.last = now;
        }
        [begins.then_some("READY=1"), lives.then_some("WATCHDOG=1")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_manager_hears_what_it_is_told() {
        let name = format!("paypoll-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        ServiceManager::new(&format!("@{name}"), None).unwrap().tell("READY=1");
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }

    #[test]
    fn ready_is_told_once_and_life_in_time_for_the_watchdog() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let turned = Duration::from_millis(900);
        let mut signs = Signs::new(Some(Duration::from_secs(30)), begun);
        assert_eq!((signs.pause(), signs.look(false, turned, at(0))), (STARTING, [None, None]));
        assert_eq!(signs.look(true, turned, at(1)), [Some("READY=1"), None]);
        assert_eq!((signs.pause(), signs.look(true, turned, at(15))), (Duration::from_secs(15), [None, Some("WATCHDOG=1")]));
        assert_eq!(signs.look(false, turned, at(16)), [None, None], "a lost database is no reason to start anew");
        assert_eq!(signs.look(true, turned, at(30)), [None, Some("WATCHDOG=1")]);
    }

    #[test]
    fn a_loop_that_hangs_gives_no_sign_of_life() {
        let begun = Instant::now();
        let mut signs = Signs::new(Some(Duration::from_secs(30)), begun);
        assert_eq!(signs.look(true, Duration::from_secs(16), begun + Duration::from_secs(60)), [Some("READY=1"), None]);
        let mut hasty = Signs::new(Some(Duration::from_millis(500)), begun);
        let turned = Duration::from_millis(1100);
        assert_eq!(
            hasty.look(true, turned, begun + Duration::from_secs(1)),
            [Some("READY=1"), Some("WATCHDOG=1")],
            "idle, not hanging"
        );
    }

    #[test]
    fn a_watchdog_that_waits_for_another_process_is_not_ours() {
        assert_eq!(watchdog(Some("30000000"), None, 7), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(Some("30000000"), Some("7"), 7), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(Some("30000000"), Some("8"), 7), None);
        assert_eq!((watchdog(Some("0"), None, 7), watchdog(Some("soon"), None, 7), watchdog(None, None, 7)), (None, None, None));
    }

    #[test]
    fn a_manager_is_found_by_path_and_a_path_that_cannot_be_is_refused() {
        assert!(ServiceManager::new("/run/systemd/notify", None).is_ok());
        assert!(ServiceManager::new(&"x".repeat(200), None).is_err());
    }
}

//! The ops port: whether the process is alive, whether it makes progress, numbers for machines, a
//! page for people.
//!
//! The port may be queried at any rate: what costs the database something is looked up once for all
//! clients and kept for a moment (`Cached`). Nothing here changes anything.

mod html;
mod listener;
mod metrics;
mod page;
mod recent;
mod slow;

use crate::config::Config;
use crate::explain::Rules;
use crate::metrics::Metrics;
use crate::store::{Counts, Overdue, Parked, Situation, Store, StoreError, Unclaimed};
use anyhow::Context as _;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use recent::Recent;
use slow::Slow;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// A database that has not answered a probe by then is as good as none.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// `/readyz` queries the database at most this often.
const READY_FOR: Duration = Duration::from_secs(1);
/// `/metrics` and the page query how late the accounts are at most this often.
const LATENESS_FOR: Duration = Duration::from_secs(5);
/// Transactions are counted at most this often, and only on request.
const COUNT_EVERY: Duration = Duration::from_secs(15);
/// Counting takes at most this share of a connection's time, however large the tables are.
const COUNT_SHARE: u32 = 50;
/// A scrape waits this long for current counts; after that it gets the previous ones.
const COUNT_TIMEOUT: Duration = Duration::from_millis(500);
/// The page's overview is read at most this often, and for at most this share of a connection's
/// time.
const SITUATION_EVERY: Duration = Duration::from_secs(2);
const SITUATION_SHARE: u32 = 10;
/// The loop turns at least once a second; after this long without a turn, it hangs.
const HANGS: Duration = Duration::from_secs(10);
/// A loop that has hung for this long will not turn again: the process should be restarted.
const HANGS_FOR_GOOD: Duration = Duration::from_secs(60);
/// Once the daemon has stopped, clients that hang on to their connection are cut off after this.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What the handlers share.
struct Ops {
    store: Store,
    metrics: Arc<Metrics>,
    /// Requests per second and requests in flight that each account may have, in the order of the lanes.
    budgets: Vec<(f64, u32)>,
    max_overdue: Duration,
    /// Whether the daemon has been told to stop.
    stopping: CancellationToken,
    /// The port is reachable from this machine only.
    local: bool,
    rules: Rules,
    unclaimed: Cached<Option<Vec<Unclaimed>>>,
    overdue: Cached<Option<Vec<Overdue>>>,
    counts: Slow<Vec<Counts>>,
    parked: Slow<Vec<Parked>>,
    situation: Slow<Situation>,
    recent: Mutex<Recent>,
    /// Searches and timelines are looked up one after the other: people may not take the daemon's
    /// connections away.
    turn: tokio::sync::Mutex<()>,
}

/// The port, open from now on; `None` where the configuration names no address.
pub fn bind(config: &Config) -> anyhow::Result<Option<std::net::TcpListener>> {
    let Some(listen) = config.ops.listen else { return Ok(None) };
    let opened = std::net::TcpListener::bind(listen).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    opened.map(Some).with_context(|| format!("ops.listen = {listen:?} cannot be listened on"))
}

/// Serves on a listener until `stop`, and is not ready from `stopping` on. Errors when the listener
/// has no address.
pub fn serve_on(
    listener: TcpListener,
    config: &Config,
    metrics: Arc<Metrics>,
    stopping: CancellationToken,
    stop: CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    let address: SocketAddr = listener.local_addr()?;
    let accounts = config.providers.iter().flat_map(|provider| provider.accounts.iter().map(move |_| provider));
    let ops = Arc::new(Ops {
        // Its own connections: readers take none from the daemon.
        store: Store::open_for_ops(&config.database)?,
        budgets: accounts.map(|provider| (provider.rate.per_second, provider.max_in_flight)).collect(),
        max_overdue: config.ops.max_overdue,
        stopping,
        local: address.ip().is_loopback(),
        rules: Rules::of(config),
        unclaimed: Cached::default(),
        overdue: Cached::default(),
        counts: Slow::default(),
        parked: Slow::default(),
        situation: Slow::default(),
        recent: Mutex::new(Recent::new(&metrics, Instant::now())),
        turn: tokio::sync::Mutex::default(),
        metrics,
    });
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .merge(page::routes(&ops))
        .layer(middleware::from_fn_with_state(ops.clone(), guard))
        .with_state(ops.clone());
    let listener = listener::Bounded::new(listener);
    Ok(tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
        tokio::select! {
            // An error here is a listener that broke: the daemon itself goes on.
            result = served => drop(result),
            () = recent::watch(&ops) => {}
            // A client that does not end its request must not keep the daemon from ending.
            () = async { stop.cancelled().await; tokio::time::sleep(LAST_ANSWERS).await } => {}
        }
    }))
}

/// Refuses requests that a page from elsewhere could have made: a name that its owner points at
/// this machine reaches a port that listens on this machine only, and the browser would let that
/// page read the answer. The next request comes on another connection.
async fn guard(State(ops): State<Arc<Ops>>, request: Request, next: Next) -> Response {
    let mut response = if ops.local && !page::is_local(request.headers()) {
        (StatusCode::MISDIRECTED_REQUEST, "this port is served as localhost or by an IP address only\n").into_response()
    } else {
        next.run(request).await
    };
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Whether the process lives. A lost database or a provider that is down are no reason to start it
/// anew; a loop that hangs is one.
async fn healthz(State(ops): State<Arc<Ops>>) -> (StatusCode, String) {
    match turns(ops.metrics.since_turn(Instant::now()), HANGS_FOR_GOOD) {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn readyz(State(ops): State<Arc<Ops>>) -> (StatusCode, String) {
    match ops.readiness().await {
        Ok(()) => (StatusCode::OK, "ready\n".into()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

async fn scrape(State(ops): State<Arc<Ops>>) -> impl IntoResponse {
    let unclaimed = ops.unclaimed(LATENESS_FOR).await;
    let (counts, parked) = match &unclaimed {
        Some(_) => (ops.counts().await, ops.parked().await),
        // A database that does not answer is not queried three times.
        None => (None, None),
    };
    let text = metrics::text(&ops.metrics, unclaimed.as_deref(), counts.as_deref(), parked.as_deref());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// What was requested.
impl Ops {
    /// Whether progress is real; else why not, in one line.
    ///
    /// A transaction is overdue by this daemon's fault only: accounts whose circuit is open, or
    /// that pause because the provider asked for it, have their own metrics and alerts, and
    /// restarting the daemon would fix nothing. Once they are polled again, what piled up counts
    /// until it is worked off.
    async fn readiness(&self) -> Result<(), String> {
        if self.stopping.is_cancelled() {
            return Err("stopping: what is under way is waited for".into());
        }
        turns(self.metrics.since_turn(Instant::now()), HANGS)?;
        if !self.metrics.ready.load(Relaxed) {
            return Err("the database is not there, or this replica holds no lease yet".into());
        }
        let unclaimed = self.unclaimed(READY_FOR).await.ok_or("the database does not answer")?;
        match self.behind(&unclaimed).max_by(|one, other| one.2.total_cmp(&other.2)) {
            Some((provider, account, seconds)) if seconds > self.max_overdue.as_secs_f64() => Err(format!(
                "a transaction of {provider}/{account} has been due for {seconds:.0} s, longer than ops.max_overdue ({} s)",
                self.max_overdue.as_secs_f64()
            )),
            _ => Ok(()),
        }
    }

    /// For how many seconds the first transaction of each polled account has been due: by this
    /// replica's memory, and by the rows.
    fn behind<'a>(&'a self, unclaimed: &'a [Unclaimed]) -> impl Iterator<Item = (&'a str, &'a str, f64)> {
        let held = metrics::held(&self.metrics).filter(|held| held.asked).map(|held| (held.provider, held.account, held.oldest_s));
        let rest = unclaimed.iter().filter(|account| !account.circuit_open && !account.paused);
        held.chain(rest.filter_map(|rest| Some((&*rest.provider, &*rest.account, rest.oldest_s?))))
    }

    /// How late the accounts are by their rows, as of `max_age` ago at most; `None` when the
    /// database does not answer.
    async fn unclaimed(&self, max_age: Duration) -> Option<Vec<Unclaimed>> {
        let accounts: Vec<(&str, &str)> =
            self.metrics.accounts.iter().map(|account| (account.provider, &*account.account)).collect();
        self.unclaimed.get(max_age, || patiently(self.store.unclaimed(&accounts))).await
    }

    /// The first transactions that are overdue; `None` when the database does not answer.
    async fn overdue(&self) -> Option<Vec<Overdue>> {
        self.overdue.get(LATENESS_FOR, || patiently(self.store.overdue(self.max_overdue.as_secs_f64()))).await
    }

    /// How everything stands; `None` when the database does not answer.
    async fn situation(self: &Arc<Self>) -> Option<Situation> {
        let ops = self.clone();
        let look = || async move { found(ops.store.situation(ops.rules.budgets()).await) };
        self.situation.get(SITUATION_EVERY, SITUATION_SHARE, LOOKUP_TIMEOUT, look).await
    }

    /// The counts, as fresh as they are to be had soon. Counting goes on when the client does not
    /// wait for it.
    async fn counts(self: &Arc<Self>) -> Option<Vec<Counts>> {
        let ops = self.clone();
        let look = || async move { ops.unless_stopping(async { found(ops.store.counts(&ops.providers()).await) }).await };
        self.counts.get(COUNT_EVERY, COUNT_SHARE, COUNT_TIMEOUT, look).await
    }

    /// The parked transactions by reason, likewise.
    async fn parked(self: &Arc<Self>) -> Option<Vec<Parked>> {
        let ops = self.clone();
        let look = || async move { ops.unless_stopping(async { found(ops.store.parked_by_reason().await) }).await };
        self.parked.get(COUNT_EVERY, COUNT_SHARE, COUNT_TIMEOUT, look).await
    }

    /// What takes long is not waited for once the daemon stops.
    async fn unless_stopping<T>(&self, look: impl Future<Output = Option<T>>) -> Option<T> {
        tokio::select! {
            () = self.stopping.cancelled() => None,
            found = look => found,
        }
    }

    fn providers(&self) -> Vec<&'static str> {
        let mut providers: Vec<&'static str> = self.metrics.accounts.iter().map(|account| account.provider).collect();
        providers.dedup();
        providers
    }
}

/// Whether the loop turns, given how long ago it last did.
fn turns(last: Duration, bound: Duration) -> Result<(), String> {
    if last > bound { Err(format!("the loop has not turned for {} s", last.as_secs())) } else { Ok(()) }
}

/// The answer, unless it fails or takes too long.
async fn patiently<T>(asked: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
    found(tokio::time::timeout(LOOKUP_TIMEOUT, asked).await.ok()?)
}

fn found<T>(answer: Result<T, StoreError>) -> Option<T> {
    answer.inspect_err(|error| debug!(%error, "the ops port got no answer from the database")).ok()
}

/// Something that is looked up at most once in a while, however many callers there are: the first
/// one looks it up, the others wait for its result.
struct Cached<T>(tokio::sync::Mutex<Option<(Instant, T)>>);

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self(tokio::sync::Mutex::const_new(None))
    }
}

impl<T: Clone> Cached<T> {
    /// What was found within `max_age`, else what `look` finds now.
    async fn get<F: Future<Output = T>>(&self, max_age: Duration, look: impl FnOnce() -> F) -> T {
        let mut kept = self.0.lock().await;
        if let Some((_, found)) = kept.as_ref().filter(|(at, _)| at.elapsed() < max_age) {
            return found.clone();
        }
        let found = look().await;
        *kept = Some((Instant::now(), found.clone()));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn a_loop_that_has_not_turned_for_long_hangs() {
        let metrics = Metrics::new([].into_iter());
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert!(turns(metrics.since_turn(at(5)), HANGS).is_ok());
        assert!(turns(metrics.since_turn(at(12)), HANGS).is_err_and(|why| why.contains("not turned")));
        metrics.turn(at(11));
        assert!(turns(metrics.since_turn(at(12)), HANGS).is_ok());
    }

    #[tokio::test]
    async fn however_many_ask_only_the_first_one_looks() {
        let (cached, looks) = (Cached::default(), AtomicU32::new(0));
        let look = || async { looks.fetch_add(1, Relaxed) };
        let found =
            tokio::join!(cached.get(LOOKUP_TIMEOUT, look), cached.get(LOOKUP_TIMEOUT, look), cached.get(LOOKUP_TIMEOUT, look));
        assert_eq!(found, (0, 0, 0));
        assert_eq!(cached.get(Duration::ZERO, look).await, 1, "what is too old is looked up anew");
    }
}

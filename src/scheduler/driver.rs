//! Carries out the engine's commands, with tokio, sockets and the store.

use super::engine::Engine;
use super::lane::{CircuitChange, LaneSpec};
use super::poller::{Poller, Stops};
use super::protocol::{AccountNotice, Command, Event, PollResult, Setup, StoreFailure, Watch};
use super::recording::Recording;
use super::report::Reporter;
use super::timer::Timer;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::{Beat, Recorded, ReplicaId, Store, StoreError, Trouble, Writer};
use crate::telemetry::event;
use crate::transport::{Connections, Tls, Transport};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use uuid::Uuid;

/// The daemon's loop in one process.
pub struct Daemon {
    store: Store,
    lanes: Vec<Arc<LaneSpec>>,
    pollers: Vec<Arc<Poller>>,
    metrics: Arc<Metrics>,
    process: Uuid,
    lease: Duration,
    grace: Duration,
    events: mpsc::UnboundedSender<Event>,
    inbox: mpsc::UnboundedReceiver<Event>,
    engine: Engine,
    stops: Stops,
    replaced: Arc<AtomicBool>,
}

/// The loop turns no more often than this while nothing happens.
const SHORTEST_TURN: Duration = Duration::from_micros(50);
/// A jump of the wall clock against the monotonic one that is more than clock discipline: the machine slept.
const SLEPT: Duration = Duration::from_secs(1);
/// A claim or a batch of several statements is given up after this: the connection is dead. A
/// statement that merely runs too long is cancelled earlier by the server.
const STATEMENT_LIMIT: Duration = Duration::from_secs(15);
/// A heartbeat writes one small row: where even that takes longer, the database is unavailable, and
/// all other statements under way are given up too.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(4);
/// After the grace period, this long for recording the last polls.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// This long for deregistering.
const FAREWELL: Duration = Duration::from_secs(1);
/// An exclusive key that is never released outlives its request's time-out by this.
const KEY_MARGIN: Duration = Duration::from_secs(5);
/// How long a poll waits while another replica has its exclusive key.
const EXCLUDED_FOR: Duration = Duration::from_millis(500);

impl Daemon {
    /// A daemon that has not started.
    pub fn new(config: &Config, store: Store, lanes: Vec<Arc<LaneSpec>>, metrics: Arc<Metrics>) -> Result<Self, String> {
        let tls = Tls::for_hosts(config.providers.iter().map(|provider| &*provider.base_url))?;
        let poller = |spec: &Arc<LaneSpec>| {
            let named = spec.asks.answers_name_their_transaction();
            let connections = if named { Connections::Kept } else { Connections::OneRequestEach };
            Ok(Arc::new(Poller::new(spec.clone(), Transport::new(&tls, connections)?)))
        };
        let process = Uuid::from_u128(rand::random());
        let setup = Setup {
            lanes: lanes.clone(),
            process,
            lease: config.worker.lease,
            max_in_flight: config.worker.max_in_flight,
            max_held: config.worker.max_held,
            seed: rand::random(),
        };
        let (events, inbox) = mpsc::unbounded_channel();
        Ok(Self {
            pollers: lanes.iter().map(poller).collect::<Result<_, String>>()?,
            engine: Engine::new(setup, Instant::now()),
            process,
            lease: config.worker.lease,
            grace: config.worker.shutdown_grace,
            store,
            lanes,
            metrics,
            events,
            inbox,
            stops: Stops { sending: CancellationToken::new(), waiting: CancellationToken::new() },
            replaced: Arc::default(),
        })
    }

    /// Set before `stop`: the process goes on, with another daemon after this one. Nothing is given
    /// up until it is unset.
    #[must_use]
    pub fn is_replaced(&self) -> Arc<AtomicBool> {
        self.replaced.clone()
    }

    /// Runs until `stop`, then releases its transactions. Errors when a poll that was sent could
    /// not be recorded. True when everything was released; else other replicas take it over.
    pub async fn run(mut self, stop: CancellationToken) -> Result<bool, String> {
        let mut reporter = Reporter::new(self.lanes.clone(), self.metrics.clone(), Instant::now());
        let mut commands = Vec::new();
        let mut watchdog = Sleepwatch::new();
        let timer = Timer::new().map_err(|error| format!("no timer: {error}"))?;
        let mut deadline = None;
        let mut event = Event::Tick;
        loop {
            let now = Instant::now();
            if watchdog.slept(now) {
                self.engine.on(now, Event::Woken, &mut commands);
            }
            // All events first, then one decision about what to do next.
            self.engine.on(now, event, &mut commands);
            while let Ok(event) = self.inbox.try_recv() {
                self.engine.on(Instant::now(), event, &mut commands);
            }
            self.engine.advance(Instant::now(), &mut commands);
            for notice in self.engine.notices.drain(..) {
                reporter.report(notice);
            }
            reporter.advance(&self.engine, &self.pollers, now);
            for command in commands.drain(..) {
                if let Command::Finish { replica, unwritten, given_back } = command {
                    return self.finish(replica, unwritten).await.map(|()| given_back);
                }
                self.carry_out(command);
            }
            let wakeup = self.engine.next_wakeup().unwrap_or(now + SLEPT).min(reporter.next_look().max(now + SLEPT));
            // The loop does not spin, whatever the engine asks for.
            let wakeup = wakeup.max(now + SHORTEST_TURN);
            event = tokio::select! {
                event = self.inbox.recv() => event.unwrap_or(Event::Tick),
                () = timer.until(wakeup) => Event::Tick,
                () = stop.cancelled(), if deadline.is_none() => {
                    deadline = Some(now + self.grace);
                    self.stops.sending.cancel();
                    if !self.replaced.load(Relaxed) {
                        let in_flight = self.engine.in_flight();
                        info!(event = event::DAEMON_STOPPING, in_flight, "stopping: waiting for answers under way");
                    }
                    Event::Stop
                }
                () = until(deadline) => {
                    // Where the process goes on, there is time to wait for the database.
                    if self.stops.waiting.is_cancelled() && !self.replaced.load(Relaxed) {
                        let why = "the database is not there, or another session keeps rows locked";
                        return Err(format!("the last polls could not be written down: {why}"));
                    }
                    self.stops.waiting.cancel();
                    deadline = Some(now + FLUSH_TIMEOUT);
                    Event::Tick
                }
            };
        }
    }

    async fn finish(&self, replica: Option<ReplicaId>, unwritten: Option<String>) -> Result<(), String> {
        if let Some(replica) = replica {
            // If deregistering fails, the lease expires by itself.
            drop(self.store.within(FAREWELL, self.store.deregister(replica, self.process)).await);
        }
        unwritten.map_or(Ok(()), |why| Err(format!("not everything could be written down: {why}")))
    }

    /// Does some work on the database and sends the resulting event.
    fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
        event: impl FnOnce(Result<T, StoreFailure>) -> Event + Send + 'static,
    ) {
        let (store, events) = (self.store.clone(), self.events.clone());
        tokio::spawn(async move {
            let result = store.within(limit, work).await.map_err(failure);
            // The receiver lives as long as the loop; after it nobody needs the event.
            drop(events.send(event(result)));
        });
    }

    fn carry_out(&self, command: Command) {
        let (store, process, issued_at) = (self.store.clone(), self.process, Instant::now());
        match command {
            Command::Register => {
                let accounts: Vec<_> = self.lanes.iter().map(|spec| (spec.provider, spec.account.clone())).collect();
                let lease = self.lease;
                let work = async move { register(&store, process, lease, &accounts).await };
                self.ask(STATEMENT_LIMIT, work, move |result| Event::Registered(result, issued_at));
            }
            Command::Beat { replica, complied, judge, held } => {
                let work = async move { store.beat(replica, process, complied, held, judge).await };
                self.ask(HEARTBEAT_LIMIT, work, move |result| Event::Beaten(replica, result, issued_at));
            }
            Command::Claim { order, mut placer, mut cycle } => {
                let events = self.events.clone();
                tokio::spawn(async move {
                    let mut place = |candidate: &mut crate::store::Candidate| placer.place(candidate);
                    let claim = store.claim(&order, &mut place, &mut cycle.unsure);
                    let result = store.within(STATEMENT_LIMIT, claim).await.map_err(failure);
                    drop(events.send(Event::Claimed(result, cycle)));
                });
            }
            Command::Draw { draws, lanes } => {
                let work = async move { store.draw(&draws).await };
                self.ask(STATEMENT_LIMIT, work, move |result| Event::Drawn(result, lanes, issued_at));
            }
            Command::Poll { held, before } => {
                let (poller, stops, events) = (self.pollers[held.lane].clone(), self.stops.clone(), self.events.clone());
                let spec = self.lanes[held.lane].clone();
                tokio::spawn(async move {
                    let result = match spec.asks.exclusive_key(held.ask()).map(|key| key_name(&spec, key)) {
                        None => poller.poll(&held, before, &stops).await,
                        Some(key) => exclusively(&store, process, &spec, &key, poller.poll(&held, before, &stops)).await,
                    };
                    drop(events.send(Event::Polled(held, result)));
                });
            }
            Command::Record(mut recording) => {
                let events = self.events.clone();
                tokio::spawn(async move {
                    let work = record(&store, process, &mut recording);
                    let result = store.within(STATEMENT_LIMIT, work).await.map_err(failure);
                    drop(events.send(Event::Recorded(recording, result)));
                });
            }
            Command::Watch { replica } => {
                let work = async move { watch(&store, replica).await };
                self.ask(STATEMENT_LIMIT, work, Event::Watched);
            }
            Command::Compare { replica, ids } => {
                let asked_for = ids.clone();
                let work = async move { store.owned(replica, &asked_for).await };
                self.ask(STATEMENT_LIMIT, work, move |result| Event::Compared(ids, result));
            }
            Command::SlowDown { lane, until } => {
                let spec = self.lanes[lane].clone();
                let wait = until.saturating_duration_since(issued_at);
                let work = async move { store.slow_down(spec.provider, &spec.account, wait).await };
                self.ask(STATEMENT_LIMIT, work, move |result| {
                    Event::AccountNoticeSent(AccountNotice::SlowDown { lane, until }, result)
                });
            }
            Command::Circuit { lane, change } => {
                let (spec, notice) = (self.lanes[lane].clone(), AccountNotice::Circuit { lane, change: change.clone() });
                let work = async move { tell_circuit(&store, &spec, &change).await };
                self.ask(STATEMENT_LIMIT, work, move |result| Event::AccountNoticeSent(notice, result));
            }
            Command::Probe { lane } => {
                let spec = self.lanes[lane].clone();
                let work = async move { store.take_probe(spec.provider, &spec.account, spec.circuit.probe_after).await };
                self.ask(STATEMENT_LIMIT, work, move |granted| Event::Probe { lane, granted });
            }
            // Handled by the loop: it is the last one.
            Command::Finish { .. } => {}
        }
    }
}

async fn register(
    store: &Store,
    process: Uuid,
    lease: Duration,
    accounts: &[(&'static str, Arc<str>)],
) -> Result<(ReplicaId, Beat), StoreError> {
    store.make_accounts(accounts).await?;
    let replica = store.register(process, lease, accounts, &host()).await?;
    let beat = store.beat(replica, process, 0, 0, None).await?;
    Ok((replica, beat))
}

async fn record(store: &Store, process: Uuid, recording: &mut Recording) -> Result<Recorded, StoreError> {
    // Polls from a time without registration are recorded all the same.
    let replica = recording.replica.unwrap_or(ReplicaId(0));
    let writer = Writer { replica, process, number: recording.number, acknowledged: recording.acknowledged };
    match store.record(writer, &recording.batch, &mut recording.attempt).await {
        Err(error) if error.is_missing_partition() => {
            let oldest = recording.batch.polls.iter().map(|poll| poll.sent_at).min();
            store.make_journal(oldest).await?;
            store.record(writer, &recording.batch, &mut recording.attempt).await
        }
        other => other,
    }
}

async fn watch(store: &Store, replica: ReplicaId) -> Result<Watch, StoreError> {
    let overrides = store.overrides(replica).await?;
    Ok(Watch { replica, overrides, accounts: store.account_states().await? })
}

/// An exclusive key as the database knows it: it may be a secret, so only its digest leaves the process.
fn key_name(spec: &LaneSpec, key: &str) -> Vec<u8> {
    let name = [spec.provider, &*spec.account, key].join("\0");
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_bytes()).as_ref().to_vec()
}

/// Polls while no other replica polls with the same key.
async fn exclusively(
    store: &Store,
    process: Uuid,
    spec: &LaneSpec,
    key: &[u8],
    poll: impl Future<Output = PollResult>,
) -> PollResult {
    let taken = store.within(HEARTBEAT_LIMIT, store.take_key(key, process, spec.timeout + KEY_MARGIN)).await;
    if !matches!(taken, Ok(true)) {
        return PollResult::Later(EXCLUDED_FOR);
    }
    let result = poll.await;
    // If releasing it fails, it expires by itself.
    drop(store.within(HEARTBEAT_LIMIT, store.give_key_back(key, process)).await);
    result
}

async fn tell_circuit(store: &Store, spec: &LaneSpec, change: &CircuitChange) -> Result<(), StoreError> {
    let (provider, account, probe_after) = (spec.provider, &*spec.account, spec.circuit.probe_after);
    match change {
        CircuitChange::Open(reason) => {
            if store.open_circuit(provider, account, reason, probe_after).await? {
                error!(
                    event = event::CIRCUIT_OPENED,
                    provider,
                    account,
                    reason,
                    "{provider}/{account} is not asked any more but for a probe every {} s: {reason}",
                    probe_after.as_secs_f64()
                );
            }
        }
        CircuitChange::Close => {
            if store.close_circuit(provider, account).await? {
                info!(event = event::CIRCUIT_CLOSED, provider, account, "{provider}/{account} answers again");
            }
        }
        CircuitChange::Abandon => {
            if store.abandon_circuit(provider, account).await? {
                info!(
                    event = event::CIRCUIT_CLOSED,
                    provider,
                    account,
                    "{provider}/{account} has had nothing to probe with for ten minutes: the next transaction will show whether it answers"
                );
            }
        }
    }
    Ok(())
}

/// Classifies an error for the engine.
fn failure(error: StoreError) -> StoreFailure {
    let words = error.to_string();
    match error.trouble() {
        Trouble::Unavailable => StoreFailure::Unavailable(words),
        Trouble::Conflict => StoreFailure::Conflict(words),
        Trouble::TimedOut => StoreFailure::TimedOut(words),
        Trouble::Refused => StoreFailure::Refused(words),
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// This machine's name; a service manager gives its services no HOSTNAME.
fn host() -> String {
    let kernels = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(kernels)
}

/// Notices that the machine slept: the monotonic clock may stand still meanwhile, the wall clock does not.
struct Sleepwatch {
    monotonic: Instant,
    wall: SystemTime,
}

impl Sleepwatch {
    fn new() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    fn slept(&mut self, now: Instant) -> bool {
        let wall = SystemTime::now();
        let passed = now.saturating_duration_since(self.monotonic);
        let slept = wall.duration_since(self.wall).is_ok_and(|elapsed| elapsed > passed + SLEPT);
        (self.monotonic, self.wall) = (now, wall);
        slept
    }
}

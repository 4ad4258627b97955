//! The loop: from due rows to recorded decisions.
//!
//! [`engine`] decides what happens next and is told what happened; this module carries it out with a real clock, a real database and
//! real sockets. It is the only place that spawns tasks.

pub mod clock;
pub mod engine;
pub mod held;
pub mod lane;
pub mod outbox;
pub mod placement;
pub mod poller;
mod report;
mod timer;
mod token;
pub mod waiting;
pub mod watch;

use crate::config::Config;
use crate::declarations::Permit;
use crate::metrics::Metrics;
use crate::store::{Recorded, ReplicaId, Store, StoreError};
use crate::telemetry::event;
use crate::transport::{Connections, Tls, Transport};
use engine::{Command, Engine, Event, Failed, Setup};
use lane::{CircuitChange, LaneSpec};
use outbox::Recording;
use poller::{Poller, Stops};
use report::Reporter;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use timer::Timer;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use watch::Watch;

/// The lanes of a configuration: one for each account of each enabled provider.
#[must_use]
pub fn lanes(config: &Config) -> Vec<Arc<LaneSpec>> {
    permitted_lanes(config, &vec![Permit::default(); config.providers.len()])
}

/// The accounts of a configuration, each with the permit of its provider.
#[must_use]
pub fn permitted_lanes(config: &Config, permits: &[Permit]) -> Vec<Arc<LaneSpec>> {
    let spec = |provider: &crate::config::ProviderConfig, account: &crate::config::AccountConfig, permit: &Permit| LaneSpec {
        provider: provider.descriptor.name,
        account: account.name.clone(),
        asks: account.provider.clone(),
        rules: provider.rules.clone(),
        timeout: provider.timeout,
        max_in_flight: provider.max_in_flight,
        rate: provider.rate,
        circuit: provider.circuit,
        permit: permit.clone(),
    };
    let providers = config.providers.iter().zip(permits);
    let accounts =
        providers.flat_map(|(provider, permit)| provider.accounts.iter().map(move |account| (provider, account, permit)));
    accounts.map(|(provider, account, permit)| Arc::new(spec(provider, account, permit))).collect()
}

/// The daemon's loop in one process.
pub struct Daemon {
    store: Store,
    lanes: Vec<Arc<LaneSpec>>,
    pollers: Vec<Arc<Poller>>,
    metrics: Arc<Metrics>,
    lease: Duration,
    grace: Duration,
    events: mpsc::UnboundedSender<Event>,
    inbox: mpsc::UnboundedReceiver<Event>,
    engine: Engine,
    stops: Stops,
}

/// The loop turns no more often than this while nothing happens.
const SHORTEST_TURN: Duration = Duration::from_micros(50);
/// A jump of the wall clock against the monotonic one that is more than clock discipline: the machine slept.
const SLEPT: Duration = Duration::from_secs(1);
/// Whatever is asked of the database, a claim or a batch of several statements, is given up after this: the connection is dead. What
/// the server takes longer for it gives up itself.
const LONGEST: Duration = Duration::from_secs(15);
/// A heartbeat writes one small row: where even that takes longer, the database is lost, and so is what else was asked of it.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(4);
/// After the grace, so long for writing down what came of the last polls.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Daemon {
    /// A daemon that has not begun.
    pub fn new(config: &Config, store: Store, lanes: Vec<Arc<LaneSpec>>, metrics: Arc<Metrics>) -> Result<Self, String> {
        let tls = Tls::for_hosts(config.providers.iter().map(|provider| &*provider.base_url))?;
        let poller = |spec: &Arc<LaneSpec>| {
            let named = spec.asks.answers_name_their_transaction();
            let connections = if named { Connections::Kept } else { Connections::OneRequestEach };
            Ok(Arc::new(Poller::new(spec.clone(), Transport::new(&tls, connections)?)))
        };
        let setup = Setup {
            lanes: lanes.clone(),
            lease: config.worker.lease,
            max_in_flight: config.worker.max_in_flight,
            max_held: config.worker.max_held,
            seed: rand::random(),
        };
        let (events, inbox) = mpsc::unbounded_channel();
        Ok(Self {
            pollers: lanes.iter().map(poller).collect::<Result<_, String>>()?,
            engine: Engine::new(setup, Instant::now()),
            lease: config.worker.lease,
            grace: config.worker.shutdown_grace,
            store,
            lanes,
            metrics,
            events,
            inbox,
            stops: Stops { sending: CancellationToken::new(), waiting: CancellationToken::new() },
        })
    }

    /// Works until `stop`, then gives back what it holds. Errors when something that was sent could not be written down.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), String> {
        let mut reporter = Reporter::new(self.lanes.clone(), self.metrics.clone(), Instant::now());
        let mut commands = Vec::new();
        let mut watchdog = Sleepwatch::new();
        let timer = Timer::new().map_err(|error| format!("no timer: {error}"))?;
        let mut deadline = None;
        let mut event = Event::Tick;
        loop {
            let now = Instant::now();
            if watchdog.slept(now) {
                self.engine.handle(now, Event::Woken, &mut commands);
            }
            self.engine.handle(now, event, &mut commands);
            while let Ok(event) = self.inbox.try_recv() {
                self.engine.handle(Instant::now(), event, &mut commands);
            }
            for news in self.engine.news.drain(..) {
                reporter.tell(news);
            }
            reporter.look(&self.engine, &self.pollers, now);
            for command in commands.drain(..) {
                if let Command::Finish { replica } = command {
                    return self.finish(replica).await;
                }
                self.carry_out(command);
            }
            let wakeup = self.engine.next_wakeup().unwrap_or(now + SLEPT).min(reporter.next_look().max(now + SLEPT));
            // Whatever the engine says, the loop does not spin.
            let wakeup = wakeup.max(now + SHORTEST_TURN);
            event = tokio::select! {
                event = self.inbox.recv() => event.unwrap_or(Event::Tick),
                () = timer.until(wakeup) => Event::Tick,
                () = stop.cancelled(), if deadline.is_none() => {
                    deadline = Some(now + self.grace);
                    self.stops.sending.cancel();
                    info!(event = event::DAEMON_STOPPING, in_flight = self.engine.in_flight(), "stopping: waiting for answers under way");
                    Event::Stop
                }
                () = until(deadline) => {
                    if self.stops.waiting.is_cancelled() {
                        let why = "the database is not there, or another session keeps rows locked";
                        return Err(format!("the last polls could not be written down: {why}"));
                    }
                    self.stops.waiting.cancel();
                    deadline = Some(now + LAST_WORDS);
                    Event::Tick
                }
            };
        }
    }

    async fn finish(&self, replica: Option<ReplicaId>) -> Result<(), String> {
        if let Some(replica) = replica
            && let Err(error) = self.store.deregister(replica).await
        {
            return Err(format!("the replica could not be deregistered: {error}"));
        }
        Ok(())
    }

    fn carry_out(&self, command: Command) {
        let (store, events) = (self.store.clone(), self.events.clone());
        // The receiver lives as long as the loop; after it nobody needs the event.
        let send = move |event| drop(events.send(event));
        match command {
            Command::Register => {
                let accounts: Vec<_> = self.lanes.iter().map(|spec| (spec.provider, spec.account.clone())).collect();
                let lease = self.lease;
                tokio::spawn(async move {
                    let asked = Instant::now();
                    let result = store.within(LONGEST, register(&store, lease, &accounts)).await.map_err(failed);
                    send(Event::Registered(result, asked));
                });
            }
            Command::Beat { replica, complied, judge } => {
                tokio::spawn(async move {
                    let asked = Instant::now();
                    let result = store.within(HEARTBEAT_LIMIT, store.beat(replica, complied, judge)).await.map_err(failed);
                    send(Event::Beaten(replica, result, asked));
                });
            }
            Command::Claim { replica, members, rooms, horizon, mut placer, mut look } => {
                tokio::spawn(async move {
                    let mut place = |candidate: &mut crate::store::Candidate| placer.place(candidate);
                    let claim = store.claim(replica, &members, &rooms, horizon, &mut place, &mut look.unsure);
                    let result = store.within(LONGEST, claim).await.map_err(failed);
                    send(Event::Claimed(result, look));
                });
            }
            Command::Draw { draws, lanes } => {
                tokio::spawn(async move {
                    let asked = Instant::now();
                    let result = store.within(LONGEST, store.draw(&draws)).await.map_err(failed);
                    send(Event::Drawn(result, lanes, asked));
                });
            }
            Command::Ask { held, before } => {
                let (poller, stops) = (self.pollers[held.lane].clone(), self.stops.clone());
                tokio::spawn(async move {
                    let asked = poller.poll(&held, before, &stops).await;
                    send(Event::Asked(held, asked));
                });
            }
            Command::Record(mut recording) => {
                tokio::spawn(async move {
                    let result = store.within(LONGEST, record(&store, &mut recording)).await.map_err(failed);
                    send(Event::Recorded(recording, result));
                });
            }
            Command::Watch { after } => {
                tokio::spawn(async move {
                    let result = store.within(LONGEST, watch(&store, after)).await.map_err(failed);
                    send(Event::Watched(result));
                });
            }
            Command::SlowDown { lane, wait } => {
                let spec = self.lanes[lane].clone();
                tokio::spawn(async move {
                    // The lane itself pauses already; an error here is the database's, and every other statement meets it too.
                    drop(store.within(LONGEST, store.slow_down(spec.provider, &spec.account, wait)).await);
                });
            }
            Command::Circuit { lane, change } => {
                tokio::spawn(tell_circuit(store, self.lanes[lane].clone(), change));
            }
            Command::Probe { lane } => {
                let spec = self.lanes[lane].clone();
                tokio::spawn(async move {
                    let taken = store.take_probe(spec.provider, &spec.account, spec.circuit.probe_after);
                    let granted = store.within(LONGEST, taken).await.map_err(failed);
                    send(Event::Probe { lane, granted });
                });
            }
            // Handled by the loop: it is the last one.
            Command::Finish { .. } => {}
        }
    }
}

async fn register(
    store: &Store,
    lease: Duration,
    accounts: &[(&'static str, Arc<str>)],
) -> Result<(ReplicaId, crate::store::Beat, i64), StoreError> {
    store.make_accounts(accounts).await?;
    let verdict = store.last_transition().await?;
    let replica = store.register(lease, accounts, &host()).await?;
    let beat = store.beat(replica, 0, None).await?;
    Ok((replica, beat, verdict))
}

async fn record(store: &Store, recording: &mut Recording) -> Result<Recorded, StoreError> {
    // Polls of a time without registration are facts all the same.
    let replica = recording.replica.unwrap_or(ReplicaId(0));
    let result = store.record(replica, &recording.batch, &mut recording.attempt).await;
    match result {
        Err(StoreError::Database(sqlx::Error::Database(error))) if error.message().contains("no partition of relation") => {
            let oldest = recording.batch.polls.iter().map(|poll| poll.sent_at).min();
            store.make_journal(oldest).await?;
            store.record(replica, &recording.batch, &mut recording.attempt).await
        }
        other => other,
    }
}

async fn watch(store: &Store, after: i64) -> Result<Watch, StoreError> {
    let (verdicts, heard) = store.verdicts(after).await?;
    Ok(Watch { verdicts, heard, accounts: store.account_states().await? })
}

async fn tell_circuit(store: Store, spec: Arc<LaneSpec>, change: CircuitChange) {
    let (provider, account) = (spec.provider, &*spec.account);
    match change {
        CircuitChange::Open(reason) => {
            let opened = store.open_circuit(provider, account, &reason, spec.circuit.probe_after);
            if let Ok(true) = store.within(LONGEST, opened).await {
                error!(
                    event = event::CIRCUIT_OPENED,
                    provider,
                    account,
                    reason,
                    "{provider}/{account} is not asked any more but for a probe every {} s: {reason}",
                    spec.circuit.probe_after.as_secs_f64()
                );
            }
        }
        CircuitChange::Close => {
            if let Ok(true) = store.within(LONGEST, store.close_circuit(provider, account)).await {
                info!(event = event::CIRCUIT_CLOSED, provider, account, "{provider}/{account} answers again");
            }
        }
    }
}

/// Whether a failure is the database's absence or its refusal of what was to be written.
fn failed(error: StoreError) -> Failed {
    let refused = match &error {
        StoreError::Database(sqlx::Error::Database(error)) => {
            // Data exceptions and violated constraints.
            error.code().is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
        }
        StoreError::Database(sqlx::Error::Encode(_)) => true,
        _ => false,
    };
    if refused { Failed::Refused(error.to_string()) } else { Failed::Lost(error.to_string()) }
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

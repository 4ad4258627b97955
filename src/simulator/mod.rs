//! The simulator: the five providers' status APIs in one process, strict about their rules; beside
//! them any that a file [`declared`].
//!
//! It is written from the providers' documents and shares nothing with [`crate::providers`], so
//! that one mistake cannot hide in both. The demo and the tests use it, and so may anyone who tries
//! an integration in staging: every provider's `base_url` is the simulator's address, and the
//! [`credentials`] are its own.
//!
//! # Scripts
//!
//! What is answered is chosen by the reference. It is cut at its hyphens; each part behind the part
//! `SIM` (or `sim`) that is a step counts, in their order, and all other parts are ignored.
//! Ayoconnect's references carry no hyphen: they begin with `SIM`, and a capital `Z` cuts. A
//! reference without the marker, as `ORDER-500` is one, or without any step means `ok`.
//!
//! | step | means |
//! |---|---|
//! | `ok` | the word `ok` at the first poll of this step |
//! | `ok3` | at the third poll; the two before it are answered "pending" |
//! | `500x2` | at two polls, then the next step |
//! | `action3x2` | at the third and the fourth poll, then the next step |
//! | `slow3` `wait30` | for these two words the number is seconds, of the wall clock |
//!
//! A word is said once, and the last step's word for ever. Only polls that the provider's rules let
//! through are counted. So `ORDER-17-sim-500x2-action-ok2` is two server errors, a payer who has to
//! act, one "pending", and success. The words are listed by [`scripts()`] and at `GET
//! /_simulator/scripts`; HTTP status codes (`202`, `400` to `599`) are words too. `flaky` in a row
//! is HTTP 500, a reset, an HTML page, "pending".
//!
//! Two more parts behind the marker are no steps: `t` and 13 digits is the time of the initiation
//! in Unix milliseconds, and `opinfo` makes Dapi answer in its newer shape.
//!
//! Every success is about 10.00 in the currency of [`amount`]; the script `amount` says 99.99.
//!
//! # Rules
//!
//! DusuPay's two minutes count from the initiation: the reference carries it (`t…`), or `POST
//! /_simulator/register` with `{"provider","reference","initiated_at"}` announces it; where neither
//! does, no request is too early. To register a transaction again opens a new window for it, as
//! `paypoll retry` does. All durations of rules are divided by [`Options::speed`]; budgets,
//! `Retry-After`, the lifetime of tokens and the tolerance are not.
//!
//! What breaks a rule is refused as the provider would, and recorded: [`Kind`] lists the rules.
//! Scripted refusals are no violations.
//!
//! # Its own pages
//!
//! | page | shows or does |
//! |---|---|
//! | `GET /_simulator/report` | the [`Report`] |
//! | `GET /_simulator/log?last=N&reference=R` | the latest of the last 100,000 requests, with their verdicts |
//! | `GET /_simulator/scripts` | the words |
//! | `POST /_simulator/register` | see above |
//! | `POST /_simulator/reset` | forgets everything |

mod ayoconnect;
mod connection;
pub mod credentials;
mod dapi;
pub mod declared;
mod dropayment;
mod dusupay;
mod exchange;
mod hostile;
mod http;
mod khalti;
mod record;
mod rules;
mod scripts;

pub use credentials::{account, amount, params};
pub use record::{ProviderReport, Report, Violation};
pub use rules::{Budget, Kind};
pub use scripts::{Script, expected_state, reference, scripts};

use axum::Router;
use chrono::{DateTime, Utc};
use connection::{Connection, Door};
use record::Record;
use rules::{Moment, Rules};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// The providers that the simulator plays, by paypoll's names.
pub const PROVIDERS: [&str; 5] =
    [Api::ALL[0].name(), Api::ALL[1].name(), Api::ALL[2].name(), Api::ALL[3].name(), Api::ALL[4].name()];

/// The lowest [`Options::speed`]: below it rules would take years.
pub const SLOWEST: f64 = 0.001;

/// How the simulator is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the rules' durations are divided by: 1 is real time. Finite, and at least [`SLOWEST`].
    pub speed: f64,
    /// By how much a gap may fall short of its rule without being a violation: a request may be on
    /// its way a little longer than the one after it. Not divided by the speed. 5 ms are enough on
    /// a machine that is not loaded, and small enough to see a client that is early.
    pub tolerance: Duration,
    /// How long Ayoconnect's access tokens are good for, in whole seconds.
    pub token_lifetime: Duration,
    /// What an account of each provider may send, in the order of [`PROVIDERS`].
    pub budgets: [Budget; PROVIDERS.len()],
    /// Providers that are declared in files, played beside the five: see [`declared`].
    pub declared: Vec<Arc<dyn declared::Play>>,
}

impl Default for Options {
    /// Real time, 5 ms, one hour, and paypoll's own default budgets: Dropayment 100 requests a
    /// second, the others 10.
    fn default() -> Self {
        let budgets = Api::ALL.map(|api| match api {
            Api::Dropayment => Budget { per_second: 100, burst: 100 },
            _ => Budget { per_second: 10, burst: 10 },
        });
        Self {
            speed: 1.0,
            tolerance: Duration::from_millis(5),
            token_lifetime: Duration::from_secs(3600),
            budgets,
            declared: Vec::new(),
        }
    }
}

/// The five providers and all that they remember. A clone is the same simulator.
#[derive(Clone)]
pub struct Simulator {
    shared: Arc<SharedState>,
}

struct SharedState {
    options: Options,
    started: Instant,
    state: Mutex<State>,
    /// For answers that take long: bounds what they cost.
    places: Arc<Semaphore>,
}

/// What changes with each request.
struct State {
    rules: Rules,
    record: Record,
    tokens: ayoconnect::Tokens,
    /// In the order of [`Options::declared`].
    declared: Vec<declared::Memory>,
}

/// At most this many slow answers at the same time; later requests get 503.
const PLACES: usize = 1024;
/// What answers on their way are given when the simulator stops.
const STOP_GRACE: Duration = Duration::from_millis(500);

impl Simulator {
    /// A simulator that has seen nothing yet.
    ///
    /// # Panics
    /// When the speed is not finite or below [`SLOWEST`]: the caller must check it.
    #[must_use]
    pub fn new(options: Options) -> Self {
        assert!(options.speed.is_finite() && options.speed >= SLOWEST, "the simulator's speed is {}", options.speed);
        let rules = Rules::new(options.speed, options.tolerance, options.budgets);
        let declared = options.declared.iter().map(|_| declared::Memory::default()).collect();
        let state = State { rules, record: Record::default(), tokens: ayoconnect::Tokens::default(), declared };
        let (started, places) = (Instant::now(), Arc::new(Semaphore::new(PLACES)));
        Self { shared: Arc::new(SharedState { options, started, state: Mutex::new(state), places }) }
    }

    /// What it saw so far.
    #[must_use]
    pub fn report(&self) -> Report {
        let Options { speed, tolerance, .. } = self.shared.options;
        let state = self.state();
        let mut report = state.record.report(speed, tolerance.as_secs_f64() * 1000.0);
        for api in Api::ALL {
            let provider = report.providers.entry(api.name()).or_default();
            provider.worst_second = state.rules.worst_second(api);
            provider.references = state.rules.references(api);
        }
        for (play, memory) in self.shared.options.declared.iter().zip(&state.declared) {
            report.providers.insert(play.name(), memory.report.clone());
        }
        report
    }

    /// Forgets everything but the access tokens and the requests in flight.
    pub fn reset(&self) {
        let mut state = self.state();
        state.rules.reset();
        state.declared.iter_mut().for_each(declared::Memory::reset);
        state.record = Record::default();
    }

    /// Answers on `listener` until `stop`. What is on its way then is cut off after half a second.
    ///
    /// # Errors
    /// None that is known today: failed connections concern themselves alone.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let stopping = CancellationToken::new();
        let door = Door { listener, stopping: stopping.clone() };
        let service = Router::new().fallback(http::handle).with_state(self).into_make_service_with_connect_info::<Connection>();
        let served = axum::serve(door, service).with_graceful_shutdown(stopping.clone().cancelled_owned());
        let stopped = async {
            stop.await;
            stopping.cancel();
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            served = served => served,
            () = stopped => Ok(()),
        }
    }

    fn now(&self) -> Moment {
        Moment { elapsed: self.shared.started.elapsed(), wall: DateTime::<Utc>::from(SystemTime::now()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves counts behind that are at worst one short.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the five providers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Api {
    Dropayment,
    DusuPay,
    Ayoconnect,
    Khalti,
    Dapi,
}

impl Api {
    /// In the order of their discriminants.
    const ALL: [Self; 5] = [Self::Dropayment, Self::DusuPay, Self::Ayoconnect, Self::Khalti, Self::Dapi];

    const fn name(self) -> &'static str {
        match self {
            Self::Dropayment => "dropayment",
            Self::DusuPay => "dusupay",
            Self::Ayoconnect => "ayoconnect",
            Self::Khalti => "khalti",
            Self::Dapi => "dapi",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|api| api.name() == name)
    }
}

//! What the demo needs around the daemon: the simulator on a thread of its own, and a configuration
//! that points to it.

use super::cast;
use crate::providers::declared::{Declaration, Inspection};
use crate::simulator::credentials::{
    AYOCONNECT_CHANNEL_ID, AYOCONNECT_CLIENT_ID, AYOCONNECT_CLIENT_SECRET, AYOCONNECT_MERCHANT_IDS, AYOCONNECT_PRIVATE_KEY,
    DAPI_APP_SECRETS, DUSUPAY_PUBLIC_KEYS, KHALTI_TOKENS,
};
use crate::simulator::{Budget, Options, PROVIDERS, Simulator, account};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// By how much a gap may fall short of its rule, seen from the simulator: at speed 60 an interval
/// of 3 s is 50 ms, and two requests need not be equally long on their way through a busy machine.
/// What the daemon itself sends too early the audit of its journal shows.
const TOLERANCE: Duration = Duration::from_millis(40);

/// The simulator, apart from everything else: what its clock says of arrivals is not to depend on
/// the daemon's work.
pub(super) struct Stage {
    pub(super) simulator: Simulator,
    pub(super) address: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Stage {
    /// A simulator on a free port of this machine, with budgets for `count` transactions.
    pub(super) fn open(count: u32, speed: f64) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let declared = vec![super::super::play::play(guest().map_err(io::Error::other)?)];
        let options = Options { speed, tolerance: TOLERANCE, budgets: budgets(count), declared, ..Options::default() };
        let simulator = Simulator::new(options);
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (served, stopped) = (simulator.clone(), stop.clone());
        let serve = move || {
            runtime.block_on(async {
                // An error here shows as transactions that never get an answer.
                if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
                    drop(served.serve(listener, stopped.cancelled_owned()).await);
                }
            });
        };
        let thread = thread::Builder::new().name("simulator".into()).spawn(serve)?;
        Ok(Self { simulator, address, stop, thread: Some(thread) })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // Its panic has been reported already.
            drop(thread.join());
        }
    }
}

/// The file that declares the guest, as it is shipped.
pub(super) const GUEST_FILE: &str = include_str!("../../../config/providers/paystack.toml");

/// The guest. The error says what is wrong with its file.
pub(super) fn guest() -> Result<Declaration, String> {
    let name = format!("{}.toml", cast::GUEST);
    Declaration::inspect(&name, GUEST_FILE.as_bytes()).and_then(Inspection::accept).map_err(|problems| problems.join("; "))
}

fn budgets(count: u32) -> [Budget; PROVIDERS.len()] {
    let scale = cast::scale(count);
    Options::default().budgets.map(|budget| Budget { per_second: budget.per_second * scale, burst: budget.burst * scale })
}

/// The daemon's configuration: the defaults, but for addresses, credentials, budgets, time-outs
/// (which `--speed` does not hurry) and the ages at which polling ends.
pub(super) fn configuration(database: &str, address: SocketAddr, count: u32) -> String {
    let mut text = format!(
        "[database]\nurl = {database:?}\n\n[log]\nformat = \"json\"\n\n[ops]\nlisten = \"\"\n\n\
         [worker]\nlease = \"10s\"\nshutdown_grace = \"5s\"\n"
    );
    for (provider, budget) in PROVIDERS.into_iter().zip(budgets(count)) {
        let Budget { per_second, burst } = budget;
        // Writing to a string cannot fail.
        _ = write!(
            text,
            "\n[providers.{provider}]\nenabled = true\nbase_url = \"http://{address}\"\ntimeout = \"2s\"\n\
             rate_limit = {{ per_second = {per_second}, burst = {burst} }}\nnot_found = {{ limit = 3, min_age = \"1m\" }}\n{}",
            rules(provider)
        );
        let accounts = [account(provider).to_vec(), second_account(provider)];
        for (name, keys) in cast::ACCOUNTS.iter().zip(accounts).filter(|(_, keys)| !keys.is_empty()) {
            _ = writeln!(text, "[providers.{provider}.accounts.{name}]");
            keys.iter().for_each(|(key, value)| _ = writeln!(text, "{key} = {value:?}"));
        }
    }
    let guest = cast::GUEST;
    // Beside this file, where `write_configuration` puts it. Its account is the one of the file's examples.
    _ = write!(
        text,
        "\n[providers.{guest}]\ndeclaration = \"{guest}.toml\"\nenabled = true\nbase_url = \"http://{address}/{guest}\"\n\
         timeout = \"2s\"\nschedule = {{ give_up_after = \"20m\" }}\n[providers.{guest}.accounts.default]\n"
    );
    for (key, value) in guest_account() {
        _ = writeln!(text, "{key} = {value:?}");
    }
    text
}

fn guest_account() -> BTreeMap<String, String> {
    guest().map(|declaration| declaration.played().account).unwrap_or_default()
}

/// Shorter ends than the defaults', so that what never gets a final word is done within the demo;
/// the documented floors stay.
fn rules(provider: &str) -> &'static str {
    match provider {
        // The window of 3 minutes is compiled in. With the slower half of the documented 3 to 5 s
        // the tolerance alone hides no breach.
        "dropayment" => "schedule = { phases = [{ every = \"4s..5s\", for = \"3m\" }] }\n",
        "dusupay" => "schedule = { give_up_after = \"25m\" }\n",
        "khalti" => "schedule = { first = \"1m\", phases = [{ every = \"1m\" }], give_up_after = \"20m\" }\n",
        _ => "schedule = { give_up_after = \"20m\" }\n",
    }
}

/// Ayoconnect's fetches its access tokens, the default one has a fixed one.
fn second_account(provider: &str) -> Vec<(&'static str, &'static str)> {
    match provider {
        "dusupay" => vec![("public_key", DUSUPAY_PUBLIC_KEYS[1])],
        "ayoconnect" => vec![
            ("merchant_id", AYOCONNECT_MERCHANT_IDS[1]),
            ("client_id", AYOCONNECT_CLIENT_ID),
            ("client_secret", AYOCONNECT_CLIENT_SECRET),
            ("channel_id", AYOCONNECT_CHANNEL_ID),
            ("private_key", AYOCONNECT_PRIVATE_KEY),
        ],
        "khalti" => vec![("token", KHALTI_TOKENS[1])],
        "dapi" => vec![("app_secret", DAPI_APP_SECRETS[1])],
        _ => Vec::new(),
    }
}

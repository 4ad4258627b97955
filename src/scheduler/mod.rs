//! The loop: from due rows to recorded decisions.
//!
//! ```text
//!             events                                          commands
//! driver  ───────────────►  engine  ──────────────────────────────────────►  driver
//! (tokio, sockets,          membership   am I registered, does my lease hold, who else is there
//!  the store)               claims       what to take from the table, and when
//!                           workset      what is in memory: a lane for each account, an index by id
//!                           results      what an answer means for its transaction
//!                           outbox       what is to be written, in batches
//! ```
//!
//! [`engine`] is given what happened and decides what happens next; [`driver`] carries it out with
//! a real clock, a real database and real sockets. The driver is the only place that spawns tasks,
//! and the engine's parts know nothing of each other.

pub mod admission;
mod claims;
pub mod clock;
pub mod driver;
pub mod engine;
pub mod held;
mod history;
pub mod lane;
mod membership;
pub mod notice;
mod outbox;
pub mod poller;
pub mod protocol;
pub mod recording;
mod report;
mod results;
mod timer;
mod token;
mod workset;

pub use driver::Daemon;

use crate::config::{AccountConfig, Config, ProviderConfig};
use crate::declarations::Permit;
use lane::LaneSpec;
use std::sync::Arc;

/// The lanes of a configuration: one for each account of each enabled provider.
#[must_use]
pub fn lanes(config: &Config) -> Vec<Arc<LaneSpec>> {
    permitted_lanes(config, &vec![Permit::default(); config.providers.len()])
}

/// The accounts of a configuration, each with the permit of its provider.
#[must_use]
pub fn permitted_lanes(config: &Config, permits: &[Permit]) -> Vec<Arc<LaneSpec>> {
    let spec = |provider: &ProviderConfig, account: &AccountConfig, permit: &Permit| LaneSpec {
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

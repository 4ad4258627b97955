//! The accounts that are polled in the simulation: small intervals, small budgets, short windows,
//! so that every edge is met often.

use crate::bugs::Bug;
use paypoll::config::{Circuit, Rate};
use paypoll::declarations::Permit;
use paypoll::domain::{Backoff, Floors, NotFoundRule, Origin, Outcome, Phase, Plan, Range, Rules, Until};
use paypoll::providers::{Ask, Provider};
use paypoll::scheduler::lane::LaneSpec;
use paypoll::wire::{Method, Request, Response};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long claims outlive the last heartbeat.
pub(crate) const LEASE: Duration = Duration::from_secs(6);
/// An answer that takes longer counts as none. The lease is longer by more than the two seconds
/// that the configuration requires.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(3);
/// The wait from probe to probe while a circuit is open.
pub(crate) const PROBE_AFTER: Duration = Duration::from_secs(3);
/// How many accounts there are.
pub(crate) const ACCOUNTS: usize = 3;

/// Sends nothing: the simulated provider makes outcomes, not bytes.
struct Silent;

impl Provider for Silent {
    fn request(&self, _ask: Ask<'_>) -> Result<Request, String> {
        // It is made, to see whether the row can be polled, and never sent.
        Ok(Request { method: Method::Get, url: "http://127.0.0.1".into(), headers: Vec::new(), body: None })
    }

    fn read(&self, _ask: Ask<'_>, _response: &Response) -> Outcome {
        Outcome::Unusable { why: "the simulation reads no bytes".into() }
    }

    fn exclusive_key<'a>(&self, ask: Ask<'a>) -> Option<&'a str> {
        key(ask.reference)
    }

    fn secrets<'a>(&'a self, _ask: Ask<'a>) -> Vec<&'a str> {
        Vec::new()
    }
}

/// Every third transaction has one of two keys, of which one request at a time may be in flight.
fn key(reference: &str) -> Option<&'static str> {
    let number: u64 = reference.strip_prefix('R')?.parse().ok()?;
    number.is_multiple_of(3).then_some(if number.is_multiple_of(2) { "even" } else { "odd" })
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn phase(every: (u64, u64), until: Until) -> Phase {
    Phase { every: Range { min: ms(every.0), max: ms(every.1) }, until }
}

/// The rules that the checker holds the engine to.
pub(crate) fn rules(account: usize) -> Rules {
    let (first, floors, phases, give_up_after) = match account {
        // A short window of quick polls.
        0 => (
            (1_000, 2_000),
            Floors { first: ms(1_000), margin: Duration::ZERO, every: ms(1_000), window: Some(ms(15_000)), rate: None },
            vec![phase((1_000, 1_600), Until::For(ms(15_000)))],
            None,
        ),
        // Rare polls that are refused when they come early, until an age.
        1 => (
            (3_000, 3_000),
            Floors { first: ms(3_000), margin: ms(250), every: ms(8_000), window: None, rate: None },
            vec![phase((8_000, 8_000), Until::Open)],
            Some(ms(40_000)),
        ),
        // Phases by count, then an open end.
        _ => (
            (0, 500),
            Floors { first: Duration::ZERO, margin: Duration::ZERO, every: ms(1_500), window: None, rate: None },
            vec![phase((1_500, 2_000), Until::Count(4)), phase((3_000, 5_000), Until::Open)],
            Some(ms(60_000)),
        ),
    };
    Rules {
        plan: Plan {
            first: Range { min: ms(first.0), max: ms(first.1) },
            margin: floors.margin,
            from: Origin::FirstPoll,
            phases,
            by_state: BTreeMap::new(),
            give_up_after,
        },
        retry: Backoff::new(ms(1_500), ms(6_000), 2.0),
        not_found: NotFoundRule { limit: 3, min_age: ms(8_000) },
        floors,
    }
}

/// The rules that the engine gets: the same, unless a bug is planted in them.
fn engine_rules(account: usize, bug: Option<Bug>) -> Rules {
    let mut rules = rules(account);
    match bug {
        Some(Bug::JitterBelowFloor) => {
            for phase in &mut rules.plan.phases {
                phase.every.min = phase.every.min.mul_f64(0.8);
            }
            rules.floors.every = Duration::ZERO;
        }
        Some(Bug::WindowIgnored) => {
            for phase in &mut rules.plan.phases {
                phase.until = Until::Open;
            }
            rules.plan.give_up_after = None;
        }
        Some(Bug::FirstFloorIgnored) => rules.plan.first.min = Duration::ZERO,
        _ => {}
    }
    rules
}

/// What provider and account are called.
pub(crate) const NAMES: [(&str, &str); ACCOUNTS] = [("dropayment", "default"), ("dusupay", "shop"), ("dusupay", "market")];

/// Requests per second and at once, and requests in flight.
pub(crate) fn budget(account: usize) -> (Rate, u32) {
    match account {
        0 => (Rate { per_second: 6.0, burst: 4 }, 4),
        1 => (Rate { per_second: 3.0, burst: 1 }, 2),
        _ => (Rate { per_second: 4.0, burst: 3 }, 3),
    }
}

/// The lanes of one process.
pub(crate) fn lanes(bug: Option<Bug>) -> Vec<Arc<LaneSpec>> {
    let lane = |account: usize| {
        let (rate, max_in_flight) = budget(account);
        let (provider, name) = NAMES[account];
        Arc::new(LaneSpec {
            provider,
            account: name.into(),
            asks: Arc::new(Silent),
            rules: engine_rules(account, bug),
            timeout: TIMEOUT,
            max_in_flight: if bug == Some(Bug::InFlightPerProcess) { 3 * max_in_flight } else { max_in_flight },
            rate,
            circuit: Circuit { failures: 6, probe_after: PROBE_AFTER },
            permit: Permit::default(),
        })
    };
    (0..ACCOUNTS).map(lane).collect()
}

/// The key as the database knows it: of each account by itself.
pub(crate) fn key_name(account: &str, reference: &str) -> Option<String> {
    key(reference).map(|key| format!("{account} {key}"))
}

/// The account of that name.
pub(crate) fn number(provider: &str, account: &str) -> usize {
    NAMES.iter().position(|name| *name == (provider, account)).expect("an account of the simulation")
}

//! The scheduler's engine, driven by one seed in virtual time: several replicas, a database in
//! memory with the store's semantics, a network that is slow and loses answers, providers that say
//! anything, and a checker that knows the rules.
//!
//! A seed that fails is replayed, with every step, by
//!
//! ```text
//! PAYPOLL_SEED=123 cargo test --test simulation one_seed -- --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a helper that panics fails its test; a trace is printed")]

mod accounts;
mod bugs;
mod checker;
mod database;
mod overload;
mod provider;
mod world;
mod year;

use bugs::Bug;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use world::{Failure, World};

/// Microseconds since the start of a run.
pub(crate) type Micros = i64;

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} = {text:?} is no number")))
}

/// Runs `seeds` on all cores; returns the failures with the lowest seeds.
fn run(seeds: std::ops::Range<u64>, bug: Option<Bug>, most: usize) -> Vec<Failure> {
    let next = AtomicU64::new(seeds.start);
    let failures = Mutex::new(Vec::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || failures.lock().unwrap().len() >= most {
                return;
            }
            // What fails without the bug too says nothing of it.
            let is_bugs = || bug.is_none_or(|bug| World::amid(seed, None, Some(bug.mishaps())).run().is_ok());
            if let Err(failure) = World::new(seed, bug).run()
                && is_bugs()
            {
                failures.lock().unwrap().push(failure);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort_by_key(|failure| failure.seed);
    failures
}

#[test]
fn no_seed_breaks_an_invariant() {
    let seeds = setting("PAYPOLL_SEEDS").unwrap_or(1_000);
    let first = setting("PAYPOLL_FIRST_SEED").unwrap_or(0);
    let failures = run(first..first + seeds, None, 20);
    for failure in &failures {
        println!("seed {}: at {:.6} s: {}", failure.seed, failure.at as f64 / 1e6, failure.what);
    }
    assert!(failures.is_empty(), "{} seeds failed; PAYPOLL_SEED={} shows the first one", failures.len(), failures[0].seed);
}

#[test]
fn one_seed() {
    let Some(seed) = setting("PAYPOLL_SEED") else { return };
    let mut world = World::new(seed, None);
    world.tell();
    if let Err(failure) = world.run() {
        panic!("seed {seed}: at {:.6} s: {}", failure.at as f64 / 1e6, failure.what);
    }
}

/// A planted bug is caught within this many seeds.
const CAUGHT_WITHIN: u64 = 1_000;

#[test]
fn every_planted_bug_is_caught() {
    let only = std::env::var("PAYPOLL_BUG").ok();
    let mut missed = Vec::new();
    for bug in Bug::ALL.into_iter().filter(|bug| only.as_ref().is_none_or(|only| *only == format!("{bug:?}"))) {
        match run(0..CAUGHT_WITHIN, Some(bug), 1).first() {
            Some(failure) => println!("{bug:?}: seed {}: {}", failure.seed, failure.what),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not caught within {CAUGHT_WITHIN} seeds: {missed:?}");
}

//! Chaos: real PostgreSQL, real replicas in processes of their own, real HTTP, and trouble.
//!
//! Every scenario lets replicas poll at a steady pace, makes trouble, lets all transactions run to
//! their ends, and counts:
//!
//! - **lost**: transactions that did not reach the state that their provider led them to;
//! - **doubled**: transactions with a change of state reported twice, or with a poll counted twice
//!   or not at all;
//! - **early**: requests that broke a rule as the provider saw it, and breaches that `paypoll
//!   audit` finds in the journal;
//! - **recovery**: the seconds from the end of the trouble to the first second in which at least 98
//!   % of the polls were sent that a second had before. A replica that dies is trouble that ends
//!   with its death.
//!
//! The first three are to be 0. Where a failover or a restore takes commits back, **polled again**
//! says after how many seconds the last of the transactions that are open in the surviving history
//! was polled again; at most 30. The tables are printed by
//!
//! ```text
//! cargo test --test chaos -- --nocapture --test-threads=1
//! ```

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a helper that panics fails its test; the table is printed")]

mod cells;
mod database;
mod failover;
mod network;
mod providers;
mod replicas;
mod stage;
#[expect(dead_code, reason = "shared with the integration tests, which use all of it")]
#[path = "../it/support.rs"]
mod support;
mod tally;

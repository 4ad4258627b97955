//! paypoll takes pending payment transactions out of PostgreSQL, polls each payment provider for
//! their outcome under that provider's documented rules, and writes every transition back.
//!
//! # The map
//!
//! ```text
//!  main ─► commands ─► scheduler ─► store ──────┐
//!              │           │  └───► transport   │
//!              │           ▼            ▼       ▼
//!              └──────► providers ──► wire    domain
//! ```
//!
//! - [`domain`]: what a transaction is, what an answer means for it, when to poll again. Pure.
//! - [`providers`]: the five providers, one file each: the documented request, the documented
//!   statuses. Pure.
//! - [`wire`]: requests and responses as values; strict JSON, percent-encoding, redaction. Pure.
//! - [`transport`]: HTTP. Knows no provider.
//! - [`store`]: PostgreSQL: every statement, and no decision.
//! - [`scheduler`]: the loop. Its [`engine`](scheduler::engine) is a state machine that is given
//!   the time and what happened; the rest of it carries out what the engine says. The only place
//!   that spawns tasks, but for servers.
//! - [`ops`], [`metrics`], [`telemetry`], [`incidents`]: what the daemon shows of itself.
//!   [`upkeep`]: housekeeping.
//! - [`explain`], [`text`], [`csv`]: texts for people, the same in the commands and on the page.
//! - [`config`], [`cli`], [`commands`]: what can be set, typed and done.
//! - [`simulator`] and [`postgres`]: the five providers and a database for the demo, the tests and
//!   a user's staging.
//!
//! # From a row to a final status
//!
//! Each claim cycle *claims* what falls due within the next second, in the order in which it falls
//! due, with `FOR UPDATE SKIP LOCKED`; each claim raises the row's *fence* and names the replica
//! that holds it. The poll is *sent* at its due instant, when the account's *lane* has a slot of
//! the shared budget. What comes back, whatever it is, becomes an *outcome*; the outcome leads to
//! one *decision*; and the decision is *recorded* in one database transaction with its *transition*
//! and its row of the *journal*.
//!
//! # What always holds
//!
//! - Only a documented final status, in a well-formed answer about our own identifier, makes a
//!   transaction final. A deadline parks it.
//! - Every write to a row carries the fence of its claim. A late answer meets a raised fence and
//!   changes nothing.
//! - A replica's heartbeat is its lease. It sends only while an answer would still come within the
//!   lease; the replica that takes over assumes that what may have been sent was sent.
//! - While the next poll comes within a minute, a transaction stays in its owner's memory, and a
//!   poll costs the database one row of a batched append; the row itself is written once a minute.
//!   The journal is the truth about what was sent: counts are rebuilt from it after a crash.
//! - The database's clock decides what is due; a process only waits by its own.
//! - An account's budget and circuit are one row, however many replicas share them.
//! - No statement's cost grows with the number of transactions that are not due.
//!
//! `tests/it/tidy.rs` checks the arrows.

pub mod cli;
pub mod commands;
pub mod config;
pub mod csv;
pub mod declarations;
pub mod domain;
pub mod duration;
pub mod explain;
pub mod incidents;
pub mod metrics;
pub mod notify;
pub mod ops;
pub mod postgres;
pub mod providers;
pub mod scheduler;
pub mod simulator;
pub mod store;
pub mod telemetry;
pub mod text;
pub mod transport;
pub mod upkeep;
pub mod wire;

//! The one integration binary: everything that needs a process, a socket or a database.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod binary;
mod canary;
mod commands;
mod daemon;
mod declared;
mod disturbance;
mod documents;
mod host;
mod initiation;
mod ops;
mod oversized;
mod postgres;
mod process;
mod reload;
mod rights;
mod rules;
mod run;
mod session;
mod store;
mod support;
mod tidy;
mod tls;
mod token;
mod transport;

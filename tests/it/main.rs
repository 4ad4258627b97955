//! The one integration binary: everything that needs a process, a socket or a database.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod commands;
mod postgres;
mod store;
mod support;

//! paypoll
pub mod cli;
pub mod commands;
pub mod config;
pub mod domain;
pub mod metrics;
pub mod notify;
pub mod ops;
pub mod postgres;
pub mod providers;
pub mod scheduler;
pub mod simulator;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod upkeep;
pub mod wire;

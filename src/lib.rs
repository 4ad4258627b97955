//! paypoll
pub mod config;
pub mod commands;
pub mod domain;
pub mod postgres;
pub mod providers;
pub mod metrics;
pub mod scheduler;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod simulator;
pub mod wire;

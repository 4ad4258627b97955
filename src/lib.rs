//! paypoll
pub mod config;
pub mod domain;
pub mod providers;
pub mod scheduler;
pub mod store;
pub mod telemetry;
pub mod wire;

//! paypoll
pub mod cli;
pub mod commands;
pub mod config;
pub mod domain;
pub mod providers;
pub mod telemetry;
pub mod wire;

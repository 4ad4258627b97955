//! paypoll
pub mod commands;
pub mod domain;
pub mod providers;
pub mod simulator;
pub mod wire;

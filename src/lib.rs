//! paypoll
pub mod domain;
pub mod providers;
pub mod scheduler;
pub mod store;
pub mod wire;

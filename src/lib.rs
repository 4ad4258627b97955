//! paypoll
pub mod domain;
pub mod providers;
pub mod wire;

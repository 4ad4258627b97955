//! paypoll
pub mod domain;
pub mod postgres;
pub mod providers;
pub mod wire;

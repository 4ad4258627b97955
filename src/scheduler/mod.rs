//! The loop.
pub mod clock;
pub mod engine;
pub mod held;
pub mod lane;
pub mod placement;
pub mod watch;

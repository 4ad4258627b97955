//! What the engine learns from the database several times a second.

use crate::store::{AccountState, Verdict};

/// What others wrote since the last look.
#[derive(Debug, Default)]
pub struct Watch {
    /// What callback handlers and operators wrote. Some of it may have been told before.
    pub verdicts: Vec<Verdict>,
    /// The transition up to which that is all: from there on the next look begins.
    pub heard: i64,
    /// Every account that is held or whose circuit is open.
    pub accounts: Vec<AccountState>,
}

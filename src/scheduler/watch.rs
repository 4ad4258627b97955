//! What the engine learns from the database several times a second.

use crate::store::AccountState;
use uuid::Uuid;

/// What others wrote since the last look.
#[derive(Debug, Default)]
pub struct Watch {
    /// Verdicts of callback handlers and operators: the transition, the transaction, and its fence now.
    pub verdicts: Vec<(i64, Uuid, i64)>,
    /// Every account that is held or whose circuit is open.
    pub accounts: Vec<AccountState>,
}

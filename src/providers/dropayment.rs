//! placeholder
use super::*;
pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "dropayment",
    floors: Floors { first: Duration::ZERO, margin: Duration::ZERO, every: Duration::ZERO, window: None },
    implicit_account: false,
    account_keys: &[],
    option_keys: &[],
    open: |_| Err("not yet".into()),
};

//! The test credentials that the simulator accepts, and rows that fit them. No secrets: they open
//! nothing but the simulator.

use super::Api;
use serde_json::{Value, json};

/// Dropayment's `endpointId`.
pub const DROPAYMENT_ENDPOINT: &str = "1001";
/// Every Dropayment `session.token` that begins with this is known: 16 to 36 characters in all.
pub const DROPAYMENT_SESSION_PREFIX: &str = "sim-session-";
/// DusuPay's `public_key`, of two accounts.
pub const DUSUPAY_PUBLIC_KEYS: [&str; 2] = ["sim-dusupay-public-key", "sim-dusupay-public-key-2"];
/// Khalti's `token`, of two accounts.
pub const KHALTI_TOKENS: [&str; 2] = ["sim-khalti-token", "sim-khalti-token-2"];
/// Dapi's `app_secret`, of two accounts.
pub const DAPI_APP_SECRETS: [&str; 2] = ["sim-dapi-app-secret", "sim-dapi-app-secret-2"];
/// Dapi's `app_key`, for those who send one.
pub const DAPI_APP_KEY: &str = "sim-dapi-app-key";
/// Every Dapi `accessToken` that begins with this is known.
pub const DAPI_ACCESS_TOKEN_PREFIX: &str = "sim-dapi-user-";
/// Ayoconnect's `merchant_id`, of two accounts.
pub const AYOCONNECT_MERCHANT_IDS: [&str; 2] = ["SIMMER", "SIMME2"];
/// Ayoconnect's `client_id`, of both accounts.
pub const AYOCONNECT_CLIENT_ID: &str = "simclient00000000000000000000001";
/// Ayoconnect's `client_secret`, of both accounts.
pub const AYOCONNECT_CLIENT_SECRET: &str = "sim-ayoconnect-client-secret";
/// Ayoconnect's `channel_id`; any five digits are accepted, always the same for one transaction.
pub const AYOCONNECT_CHANNEL_ID: &str = "12345";
/// Ayoconnect's static `access_token`, of both accounts.
pub const AYOCONNECT_ACCESS_TOKEN: &str = "sim-ayoconnect-access-token";
/// Ayoconnect's `private_key` for the B2B token flow, of both accounts: PEM. Made for the simulator
/// and published with it.
pub const AYOCONNECT_PRIVATE_KEY: &str = include_str!("ayoconnect_test_key.pem");

/// The amount of every success, in major units.
pub(super) const AMOUNT: f64 = 10.0;
/// The amount that the script `amount` answers instead.
pub(super) const OTHER_AMOUNT: f64 = 99.99;
/// The currency that the script `currency` answers instead: ISO 4217's code for tests.
pub(super) const OTHER_CURRENCY: &str = "XTS";

/// The keys and values of `[providers.NAME.accounts.default]`; Ayoconnect's with the static access token.
#[must_use]
pub fn account(provider: &str) -> &'static [(&'static str, &'static str)] {
    match Api::named(provider) {
        Some(Api::DusuPay) => &[("public_key", DUSUPAY_PUBLIC_KEYS[0])],
        Some(Api::Ayoconnect) => &[
            ("merchant_id", AYOCONNECT_MERCHANT_IDS[0]),
            ("client_id", AYOCONNECT_CLIENT_ID),
            ("client_secret", AYOCONNECT_CLIENT_SECRET),
            ("channel_id", AYOCONNECT_CHANNEL_ID),
            ("access_token", AYOCONNECT_ACCESS_TOKEN),
        ],
        Some(Api::Khalti) => &[("token", KHALTI_TOKENS[0])],
        Some(Api::Dapi) => &[("app_secret", DAPI_APP_SECRETS[0])],
        Some(Api::Dropayment) | None => &[],
    }
}

/// `transactions.params` of a row: with a session (Dropayment) or a user (Dapi) of its own.
#[must_use]
pub fn params(provider: &str, serial: u64) -> Value {
    match Api::named(provider) {
        Some(Api::Dropayment) => json!({
            "endpointId": DROPAYMENT_ENDPOINT,
            "session": {"token": format!("{DROPAYMENT_SESSION_PREFIX}{serial:06}")},
        }),
        Some(Api::Dapi) => json!({"accessToken": format!("{DAPI_ACCESS_TOKEN_PREFIX}{serial:06}")}),
        _ => json!({}),
    }
}

/// What every success is about: the amount in major units, and the currency where the provider's
/// answer names one.
#[must_use]
pub fn amount(provider: &str) -> (&'static str, Option<&'static str>) {
    let currency = match Api::named(provider) {
        Some(Api::DusuPay) => Some(super::dusupay::CURRENCY),
        Some(Api::Ayoconnect) => Some(super::ayoconnect::CURRENCY),
        _ => None,
    };
    ("10.00", currency)
}

/// Which of an account's values this is.
pub(super) fn which(known: &[&str], value: &str) -> Option<usize> {
    known.iter().position(|known| *known == value)
}

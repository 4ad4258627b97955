//! What single steps of a poll cost: time and allocations.
//!
//! ```text
//! cargo bench --bench micro
//! ```
//!
//! The harness is these few lines: a framework for benchmarks would bring more packages than the
//! product may have.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark prints, and panics when it is set up wrongly")]

use chrono::{DateTime, TimeDelta, Utc};
use paypoll::config::Config;
use paypoll::domain::{Progress, Sent, Transaction};
use paypoll::providers::declared::{Declaration, Inspection};
use paypoll::providers::{Ask, Settings};
use paypoll::scheduler::lane::LaneSpec;
use paypoll::wire::{Redaction, Response};
use serde_json::{Value, json};
use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The daemon's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[allow(unsafe_code, reason = "the trait is unsafe; every call is passed on as it came")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { mimalloc::MiMalloc.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        unsafe { mimalloc::MiMalloc.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How long one measurement takes, and how many there are; the fastest one is reported, because
/// noise only ever adds.
const SAMPLE: Duration = Duration::from_millis(100);
const SAMPLES: usize = 7;

fn measure<T>(name: &str, mut step: impl FnMut() -> T) {
    let mut best = f64::INFINITY;
    for _ in 0..SAMPLES {
        let (begun, mut steps) = (Instant::now(), 0_u32);
        while begun.elapsed() < SAMPLE {
            for _ in 0..100 {
                black_box(step());
            }
            steps += 100;
        }
        best = best.min(begun.elapsed().as_secs_f64() / f64::from(steps));
    }
    let before = ALLOCATIONS.load(Relaxed);
    black_box(step());
    let allocations = ALLOCATIONS.load(Relaxed) - before;
    println!("{name:<44} {:>8.0} ns {allocations:>4} allocations", best * 1e9);
}

/// The five accounts, Ayoconnect's with a static token.
fn lanes() -> Vec<Arc<LaneSpec>> {
    let names = ["DROPAYMENT", "DUSUPAY", "AYOCONNECT", "KHALTI", "DAPI"];
    let enabled = names.into_iter().flat_map(|name| {
        let set = |key: &str, value: &str| (format!("PAYPOLL__PROVIDERS__{name}__{key}"), value.to_owned());
        [set("ENABLED", "true"), set("BASE_URL", "https://provider.example")]
    });
    let accounts = [
        ("DUSUPAY__ACCOUNTS__DEFAULT__PUBLIC_KEY", "PUBK-0123456789abcdef"),
        ("AYOCONNECT__ACCOUNTS__DEFAULT__MERCHANT_ID", "SIMMER"),
        ("AYOCONNECT__ACCOUNTS__DEFAULT__CLIENT_ID", "simclient00000000000000000000001"),
        ("AYOCONNECT__ACCOUNTS__DEFAULT__CLIENT_SECRET", "0123456789abcdef0123456789abcdef"),
        ("AYOCONNECT__ACCOUNTS__DEFAULT__CHANNEL_ID", "12345"),
        ("AYOCONNECT__ACCOUNTS__DEFAULT__ACCESS_TOKEN", "0123456789abcdef"),
        ("KHALTI__ACCOUNTS__DEFAULT__TOKEN", "0123456789abcdef"),
        ("DAPI__ACCOUNTS__DEFAULT__APP_SECRET", "0123456789abcdef"),
    ];
    let accounts = accounts.into_iter().map(|(key, value)| (format!("PAYPOLL__PROVIDERS__{key}"), value.to_owned()));
    let database = ("DATABASE_URL".to_owned(), "postgres://127.0.0.1/none".to_owned());
    let config = Config::load(&[], enabled.chain(accounts).chain([database]), 1.0).unwrap();
    paypoll::scheduler::lanes(&config)
}

/// For each provider: an answer that says "pending" or the like, what it is about, and what the lookup needs.
fn answers() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let session = json!({ "endpointId": "1001", "session": { "token": "session-token-0001" } });
    vec![
        ("dropayment", include_str!("../tests/fixtures/dropayment/processing.json"), "INV-2026-0001", session),
        ("dusupay", include_str!("../tests/fixtures/dusupay/pending.json"), "MCTREFT2WMNWZ23SBN6Y", Value::Null),
        (
            "ayoconnect",
            include_str!("../tests/fixtures/ayoconnect/processing.json"),
            "00000000000000000000000000000001",
            Value::Null,
        ),
        ("khalti", include_str!("../tests/fixtures/khalti/queued.json"), "7068074f-d04f-4262-8d9b-6a171da647b5", Value::Null),
        (
            "dapi",
            include_str!("../tests/fixtures/dapi/initialized.json"),
            "355b01ed-fb50-4bf0-b7f6-71b4cf94971c",
            json!({ "accessToken": "0123456789abcdef" }),
        ),
    ]
}

fn transaction(spec: &LaneSpec, reference: &str, params: &Value, now: DateTime<Utc>) -> Transaction {
    Transaction {
        params: params.clone(),
        attempts: 3,
        last_polled_at: Some(now - TimeDelta::minutes(5)),
        progress: Progress { opened_at: Some(now - TimeDelta::minutes(8)), ..Progress::default() },
        ..Transaction::new(Uuid::from_u128(1), spec.provider, spec.account.clone(), reference, now - TimeDelta::minutes(10))
    }
}

/// DusuPay from a file, and the answer that the compiled one is measured with.
fn declared(now: DateTime<Utc>) {
    let text = include_str!("../tests/fixtures/declared/dusupay.toml");
    let declaration = Declaration::inspect("dusupay.toml", text.as_bytes()).and_then(Inspection::accept).unwrap();
    let account = [("public_key".to_owned(), "PUBK-0123456789abcdef".into())].into();
    let settings = Settings { base_url: "https://provider.example".into(), account, ..Settings::default() };
    let provider = Box::leak(Box::new(declaration)).open(&settings).unwrap();
    let body = include_str!("../tests/fixtures/dusupay/pending.json");
    let ask = Ask { reference: "MCTREFT2WMNWZ23SBN6Y", params: &Value::Null, now, token: None, amount: None };
    let response = Response { status: 200, retry_after: None, body: body.as_bytes().to_vec().into() };
    measure("dusupay from a file: request", || provider.request(ask).unwrap());
    measure(&format!("dusupay from a file: read ({} bytes)", body.len()), || provider.read(ask, &response));
    println!("{:<44} {}", "", provider.read(ask, &response).name());
}

fn main() {
    let now = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
    declared(now);
    let lanes = lanes();
    for (provider, body, reference, params) in answers() {
        let spec = lanes.iter().find(|spec| spec.provider == provider).unwrap();
        let ask = Ask { reference, params: &params, now, token: None, amount: None };
        let response = Response { status: 200, retry_after: None, body: body.as_bytes().to_vec().into() };
        measure(&format!("{provider}: request"), || spec.asks.request(ask).unwrap());
        measure(&format!("{provider}: read ({} bytes)", body.len()), || spec.asks.read(ask, &response));
        let outcome = spec.asks.read(ask, &response);
        println!("{:<44} {}", "", outcome.name());
        let transaction = transaction(spec, reference, &params, now);
        measure(&format!("{provider}: decide"), || spec.rules.decide(&transaction, &outcome, now, 0.5));
        let redaction = Redaction::new(spec.asks.secrets(ask), spec.asks.kept(ask));
        measure(&format!("{provider}: evidence of it, redacted"), || redaction.body(&response.body));
        let poll = Sent { at: now, before: None, provider_state: None, acted: false };
        measure(&format!("{provider}: plan step"), || {
            let mut progress = transaction.progress;
            spec.rules.plan.after_poll(&mut progress, transaction.anchors(), poll, Duration::ZERO, 0.5)
        });
    }
}

//! What was seen: the request log, the violations, the counts. Bounded.

use super::Api;
use super::rules::{Kind, Moment};
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// What the simulator saw, as `GET /_simulator/report` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Requests to the providers and to paths that nobody has; its own pages do not count.
    pub requests: u64,
    /// The latest violations, oldest first, at most 10,000.
    pub violations: Vec<Violation>,
    /// All violations, by kind.
    pub counts: BTreeMap<Kind, u64>,
    /// By provider.
    pub providers: BTreeMap<&'static str, ProviderReport>,
    /// What the rules' durations are divided by.
    pub speed: f64,
    /// What is forgiven to clocks and timers, in milliseconds.
    pub tolerance_ms: f64,
}

impl Report {
    /// How many violations there were in all.
    #[must_use]
    pub fn violation_count(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// One provider's part of a [`Report`].
#[derive(Clone, Debug, Default, Serialize)]
pub struct ProviderReport {
    /// Status requests, refused ones included.
    pub requests: u64,
    /// Requests for an access token.
    pub token_requests: u64,
    /// Violations.
    pub violations: u64,
    /// The most requests that one account sent within any second.
    pub worst_second: usize,
    /// How many transactions were polled or registered.
    pub references: usize,
}

/// A rule that was broken.
#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    /// Which rule.
    pub kind: Kind,
    /// By whose rule; `None` for a path that no provider has.
    pub provider: Option<&'static str>,
    /// About which transaction, where the request could be read.
    pub reference: Option<String>,
    /// When the request came.
    pub at: DateTime<Utc>,
    /// By how much or what exactly.
    pub detail: String,
}

/// One request in the log.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Entry {
    pub(super) at: DateTime<Utc>,
    pub(super) provider: Option<&'static str>,
    pub(super) reference: Option<String>,
    pub(super) asked: Asked,
    /// The number of the poll, counting those that the rules let through.
    pub(super) poll: Option<u32>,
    /// The script's word, or why the request was refused.
    pub(super) verdict: String,
    pub(super) violations: Vec<Kind>,
}

/// What a request was for.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Asked {
    /// A transaction's status.
    Status,
    /// An access token.
    Token,
    /// Nothing that a provider documents.
    Other,
}

const MAX_ENTRIES: usize = 100_000;
const MAX_VIOLATIONS: usize = 10_000;
/// What is kept of a reference, in bytes: a refused one may be of any length.
const MAX_REFERENCE: usize = 512;

/// All that is kept of what was seen.
#[derive(Default)]
pub(super) struct Record {
    requests: u64,
    log: VecDeque<Entry>,
    violations: VecDeque<Violation>,
    counts: BTreeMap<Kind, u64>,
    providers: [ProviderReport; Api::ALL.len()],
}

impl Record {
    /// A request with its verdict and what it broke.
    pub(super) fn request(&mut self, api: Option<Api>, mut entry: Entry, breaches: Vec<(Kind, String)>) {
        self.requests += 1;
        entry.violations = breaches.iter().map(|(kind, _)| *kind).collect();
        if let Some(api) = api {
            let provider = &mut self.providers[api as usize];
            provider.violations += breaches.len() as u64;
            match entry.asked {
                Asked::Status => provider.requests += 1,
                Asked::Token => provider.token_requests += 1,
                Asked::Other => {}
            }
        }
        for (kind, detail) in breaches {
            *self.counts.entry(kind).or_default() += 1;
            let Entry { at, provider, reference, .. } = &entry;
            let violation = Violation { kind, provider: *provider, reference: reference.clone(), at: *at, detail };
            push(&mut self.violations, violation, MAX_VIOLATIONS);
        }
        push(&mut self.log, entry, MAX_ENTRIES);
    }

    /// The counts and the violations. The caller adds what the rules know.
    pub(super) fn report(&self, speed: f64, tolerance_ms: f64) -> Report {
        let providers = Api::ALL.map(|api| (api.name(), self.providers[api as usize].clone()));
        Report {
            requests: self.requests,
            violations: self.violations.iter().cloned().collect(),
            counts: self.counts.clone(),
            providers: providers.into_iter().collect(),
            speed,
            tolerance_ms,
        }
    }

    /// The latest entries, oldest first.
    pub(super) fn last(&self, count: usize, reference: Option<&str>) -> Vec<Entry> {
        let wanted = |entry: &&Entry| reference.is_none_or(|wanted| entry.reference.as_deref() == Some(wanted));
        let mut entries: Vec<Entry> = self.log.iter().rev().filter(wanted).take(count).cloned().collect();
        entries.reverse();
        entries
    }
}

impl Entry {
    /// A request that came at this moment.
    pub(super) fn new(api: Option<Api>, reference: Option<&str>, asked: Asked, at: Moment) -> Self {
        let reference = reference.map(|text| text[..text.floor_char_boundary(MAX_REFERENCE)].to_owned());
        let provider = api.map(Api::name);
        Self { at: at.wall, provider, reference, asked, poll: None, verdict: String::new(), violations: Vec::new() }
    }
}

fn push<T>(ring: &mut VecDeque<T>, value: T, most: usize) {
    if ring.len() == most {
        ring.pop_front();
    }
    ring.push_back(value);
}

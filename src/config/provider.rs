//! One provider's section: its address, its budget, its rules and its accounts.

use super::reader::{Problems, Secret, Section};
use super::{AccountConfig, Circuit, ProviderConfig, ProviderDefaults, Rate, Secrets, schedule};
use crate::domain::{Backoff, NotFoundRule, Plan, Rules};
use crate::providers::{Descriptor, Provider, Settings};
// No lookup: the address is read here exactly as it will be when requests are sent.
use reqwest::Url;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A lease outlives the longest request by this much.
const LEASE_MARGIN: Duration = Duration::from_secs(2);
const MILLISECOND: Duration = Duration::from_millis(1);

/// A provider's section as it was read, enabled or not.
pub(super) struct Read {
    pub(super) descriptor: &'static Descriptor,
    pub(super) enabled: bool,
    path: String,
    base_url: Address,
    timeout: Option<Duration>,
    max_in_flight: Option<u32>,
    rate: Option<Rate>,
    pub(super) plan: Option<Plan>,
    retry: Option<Retry>,
    circuit: Option<Circuit>,
    not_found: Option<NotFoundRule>,
    options: BTreeMap<String, String>,
    accounts: BTreeMap<String, BTreeMap<String, Secret>>,
}

/// Where a provider is.
enum Address {
    At(Url),
    /// It is not configured.
    Missing,
    /// It is configured and cannot be read: that has been said already.
    Wrong,
}

impl Address {
    fn url(&self) -> Option<&Url> {
        if let Self::At(url) = self { Some(url) } else { None }
    }
}

struct Retry {
    initial: Duration,
    max: Duration,
    multiplier: f64,
}

/// Reads the section of a provider. The form of every key is checked whether the provider is
/// enabled or not; what must be there is only asked for where it is (see [`Read::open`]).
pub(super) fn read(descriptor: &'static Descriptor, mut section: Section<'_>) -> Read {
    let read = Read {
        descriptor,
        enabled: section.flag("enabled").unwrap_or_default(),
        path: section.path(""),
        base_url: read_address(&mut section),
        timeout: section.duration_from("timeout", MILLISECOND),
        max_in_flight: section.number("max_in_flight", 1..=100_000),
        rate: read_rate(section.section("rate_limit"), descriptor.floors.rate),
        plan: schedule::read(section.section("schedule"), &descriptor.floors),
        retry: read_retry(section.section("retry")),
        circuit: read_circuit(section.section("circuit")),
        not_found: read_not_found(section.section("not_found")),
        options: read_options(descriptor, &mut section),
        accounts: read_accounts(descriptor, section.section("accounts")),
    };
    if descriptor.declaration().is_some() {
        // It has been read long since: its file says what all the other keys mean.
        section.optional(super::declared::KEY, Section::text);
    }
    section.finish();
    read
}

fn read_address(section: &mut Section<'_>) -> Address {
    if !section.has("base_url") {
        return Address::Missing;
    }
    match section.parsed_hidden("base_url", may_hold_credentials, base_url) {
        Some(Some(url)) => Address::At(url),
        Some(None) => Address::Missing,
        None => Address::Wrong,
    }
}

/// The budget. Of a documented rate no second may see more, so what may come at once counts too.
fn read_rate(mut section: Section<'_>, documented: Option<f64>) -> Option<Rate> {
    let per_second: Option<f64> = section.number("per_second", 0.001..=1_000_000_000.0);
    let burst: Option<u32> = section.number("burst", 1..=u32::MAX);
    section.finish();
    if let (Some(per_second), Some(burst), Some(rate)) = (per_second, burst, documented)
        && per_second + f64::from(burst) - 1.0 > rate
    {
        let mend = format_args!(
            "with burst = {burst} that is more than the provider's documented limit, {rate} requests in any second; lower one of them"
        );
        section.wrong("per_second", per_second, mend);
    }
    Some(Rate { per_second: per_second?, burst: burst? })
}

fn read_retry(mut section: Section<'_>) -> Option<Retry> {
    let initial = section.duration_from("initial", MILLISECOND);
    let max = section.duration_from("max", initial.unwrap_or(MILLISECOND));
    let multiplier = section.number("multiplier", 1.0..=100.0);
    section.finish();
    Some(Retry { initial: initial?, max: max?, multiplier: multiplier? })
}

fn read_circuit(mut section: Section<'_>) -> Option<Circuit> {
    let failures = section.number("failures", 1..=u32::MAX);
    let probe_after = section.duration_from("probe_after", MILLISECOND);
    section.finish();
    Some(Circuit { failures: failures?, probe_after: probe_after? })
}

fn read_not_found(mut section: Section<'_>) -> Option<NotFoundRule> {
    let limit = section.number("limit", 1..=u32::MAX);
    let min_age = section.duration("min_age");
    section.finish();
    Some(NotFoundRule { limit: limit?, min_age: min_age? })
}

fn read_options(descriptor: &Descriptor, section: &mut Section<'_>) -> BTreeMap<String, String> {
    // What a declared provider must have is asked for when it is opened, as its account's keys are.
    let is_declared = descriptor.declaration().is_some();
    let mut text = |key: &str| if is_declared { section.optional(key, Section::text) } else { section.text(key) };
    descriptor.option_keys.iter().filter_map(|key| Some(((*key).to_owned(), text(key)?))).collect()
}

fn read_accounts(descriptor: &Descriptor, mut section: Section<'_>) -> BTreeMap<String, BTreeMap<String, Secret>> {
    let mut accounts = BTreeMap::new();
    for name in section.names() {
        let mut account = section.section(&name);
        let secret = |key: &&str| Some(((*key).to_owned(), account.secret(key)?));
        let keys = descriptor.account_keys.iter().filter_map(secret).collect();
        account.finish();
        if name.is_empty() || name.chars().any(char::is_control) {
            section.problem(&format!("{name:?}"), "an account's name is not empty and has no control character");
        }
        accounts.insert(name, keys);
    }
    accounts
}

/// Whether an address has more than a scheme, a host and a path: then it is not quoted in errors.
fn may_hold_credentials(text: &str) -> bool {
    text.contains(['@', '?', '#'])
}

/// An address to which paths are appended; empty text is none.
fn base_url(text: &str) -> Result<Option<Url>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let url = Url::parse(text).map_err(|error| format!("no address ({error}); write it like \"https://api.example.com\""))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must begin with https:// (or http://)".into());
    }
    if url.username() != "" || url.password().is_some() {
        return Err("must hold no user and no password; credentials are account keys".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must end before any ? or #".into());
    }
    if url.scheme() == "http" && !is_private(&url) {
        return Err("would send credentials unencrypted to a public host; write https://".into());
    }
    Ok(Some(url))
}

/// Whether the address is on this machine.
fn is_loopback(url: &Url) -> bool {
    url.host_str() == Some("localhost") || address(url).is_some_and(|address| address.is_loopback())
}

/// Whether the host cannot be reached from the internet: this machine, a private address, a name
/// that no public DNS has.
fn is_private(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    match address(url) {
        Some(IpAddr::V4(address)) => address.is_loopback() || address.is_private(),
        Some(IpAddr::V6(address)) => address.is_loopback() || address.is_unique_local(),
        None => !host.contains('.') || host.ends_with(".internal") || host.ends_with(".local"),
    }
}

fn address(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

impl Read {
    /// The settings that need no account. `None` after a mistake.
    pub(super) fn defaults(self) -> Option<ProviderDefaults> {
        Some(ProviderDefaults { plan: self.plan?, rate: self.rate?, longest_retry: self.retry?.max })
    }

    /// Whether `--speed` may shorten its waits: only where no real provider's rules are broken by
    /// it.
    pub(super) fn check_speed(&self, speed: f64, problems: &Problems) {
        // What is missing or cannot be read is a mistake of its own, and reported as such.
        if let (true, Some(url)) = (speed != 1.0 && self.enabled, self.base_url.url().filter(|url| !is_loopback(url))) {
            let url = url.as_str();
            problems.add(format!(
                "--speed = {speed}: refused because {}base_url = {url:?} is not on this machine; leave --speed out, or point it to a simulator on 127.0.0.1",
                self.path
            ));
        }
    }

    /// The lease must outlive a request: else another replica takes over what this one still polls.
    pub(super) fn check_lease(&self, lease: Option<Duration>, problems: &Problems) {
        if let (true, Some(lease), Some(timeout)) = (self.enabled, lease, self.timeout)
            && lease <= timeout + LEASE_MARGIN
        {
            let (lease, least) = (super::duration::text(lease), super::duration::text(timeout + LEASE_MARGIN));
            problems.add(format!(
                "worker.lease = \"{lease}\": must be longer than {}timeout plus 2 s; write more than \"{least}\"",
                self.path
            ));
        }
    }

    /// The settings of an enabled provider, its rules hurried by `speed`. `None` after a mistake,
    /// which is noted.
    pub(super) fn open(self, speed: f64, secrets: Secrets, problems: &Problems) -> Option<ProviderConfig> {
        let path = self.path;
        if matches!(self.base_url, Address::Missing) {
            problems.add(format!("{path}base_url: is missing; set it to the provider's address, or set {path}enabled = false"));
        }
        // Without an address the accounts are checked all the same: all mistakes are reported at
        // once.
        let is_placed = self.base_url.url().is_some();
        let base_url = self.base_url.url().map_or("http://127.0.0.1", Url::as_str).trim_end_matches('/').to_owned();
        let mut accounts = self.accounts;
        if self.descriptor.implicit_account {
            accounts.entry("default".to_owned()).or_default();
        }
        let names = accounts.keys().cloned().collect();
        if accounts.is_empty() && secrets == Secrets::Needed {
            let key = self.descriptor.account_keys.first().unwrap_or(&"…");
            problems.add(format!("{path}accounts: has no account; set {path}accounts.default.{key} (or {key}_file)"));
        }
        let wanted = accounts.into_iter().filter(|_| secrets == Secrets::Needed);
        let opened = wanted.filter_map(|(name, keys)| {
            let settings = Settings { base_url: base_url.clone(), options: self.options.clone(), ..Settings::default() };
            let provider = open_account(self.descriptor, &path, &name, settings, keys);
            Some(AccountConfig { provider: provider.map_err(|problem| problems.add(problem)).ok()?, name: name.into() })
        });
        let accounts = opened.collect();
        if !is_placed {
            return None;
        }
        let (retry, circuit, not_found) = (self.retry?, self.circuit?, self.not_found?);
        Some(ProviderConfig {
            descriptor: self.descriptor,
            base_url,
            timeout: self.timeout?,
            max_in_flight: self.max_in_flight?,
            rate: self.rate?,
            rules: Rules {
                plan: self.plan?.divided(speed),
                retry: Backoff::new(retry.initial.div_f64(speed), retry.max.div_f64(speed), retry.multiplier),
                not_found: NotFoundRule { min_age: not_found.min_age.div_f64(speed), ..not_found },
                floors: self.descriptor.floors.divided(speed),
            },
            circuit: Circuit { probe_after: circuit.probe_after.div_f64(speed), ..circuit },
            accounts,
            names,
        })
    }
}

fn open_account(
    descriptor: &Descriptor,
    path: &str,
    name: &str,
    mut settings: Settings,
    keys: BTreeMap<String, Secret>,
) -> Result<Arc<dyn Provider>, String> {
    let mut unreadable = Vec::new();
    for (key, secret) in keys {
        match secret.reveal() {
            Ok(value) => _ = settings.account.insert(key, value),
            Err(problem) => unreadable.push(problem),
        }
    }
    if !unreadable.is_empty() {
        return Err(unreadable.join("\n"));
    }
    let opened = descriptor.open(&settings).map_err(|problems| {
        let named: Vec<String> = problems.lines().map(|problem| full_name(descriptor, path, name, problem)).collect();
        named.join("\n")
    })?;
    Ok(Arc::from(opened))
}

/// A provider's complaint begins with the key as the provider knows it; in the configuration it has
/// a longer name.
fn full_name(descriptor: &Descriptor, path: &str, name: &str, problem: &str) -> String {
    let key = problem.split([' ', ':']).next().unwrap_or_default();
    if descriptor.option_keys.contains(&key) {
        return format!("{path}{problem}");
    }
    if !descriptor.account_keys.contains(&key) {
        return format!("{path}accounts.{name}: {problem}");
    }
    let mend = if problem.ends_with(" is missing") { format!("; set it, or {key}_file") } else { String::new() };
    format!("{path}accounts.{name}.{problem}{mend}")
}

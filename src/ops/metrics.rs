//! The numbers as Prometheus reads them: text format 0.0.4.

use crate::domain::{Outcome, State};
use crate::explain;
use crate::incidents;
use crate::metrics::{BUCKETS, Histogram, Metrics};
use crate::store::{Counts, EXACT, MOST, Parked, Unclaimed};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

/// What this replica holds of an account.
pub(super) struct HeldDue<'a> {
    /// The provider.
    pub(super) provider: &'static str,
    /// The account.
    pub(super) account: &'a str,
    /// How long the held transaction has been due that has waited longest, in seconds; 0 when none is due.
    pub(super) oldest_s: f64,
    /// Neither is the circuit open nor does a pause last.
    pub(super) asked: bool,
}

pub(super) fn held(metrics: &Metrics) -> impl Iterator<Item = HeldDue<'_>> {
    metrics.accounts.iter().map(|account| HeldDue {
        provider: account.provider,
        account: &account.account,
        oldest_s: account.oldest_due_us.load(Relaxed) as f64 / 1e6,
        asked: !account.circuit_open.load(Relaxed) && !account.paused.load(Relaxed),
    })
}

/// Everything, one family after the other. What the database did not report is left out, not given
/// as zero.
pub(super) fn text(
    metrics: &Metrics,
    unclaimed: Option<&[Unclaimed]>,
    counts: Option<&[Counts]>,
    parked: Option<&[Parked]>,
) -> String {
    let mut page = Page(String::with_capacity(16 * 1024));
    page.family("paypoll_build_info", "gauge", "Always 1; the version that runs");
    page.line("paypoll_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    page.family("paypoll_database_up", "gauge", "1 while the database answers and this replica holds its lease");
    page.line("paypoll_database_up", &[], flag(metrics.ready.load(Relaxed) && unclaimed.is_some()));
    write_counters(&mut page, metrics);
    let lateness = |account: &crate::metrics::AccountMetrics| read(&account.lateness);
    page.histogram(
        "paypoll_poll_lateness_seconds",
        "How long after their due time polls were sent",
        by_provider(metrics, lateness),
    );
    let latency = |account: &crate::metrics::AccountMetrics| read(&account.latency);
    page.histogram("paypoll_provider_latency_seconds", "How long providers took to answer", by_provider(metrics, latency));
    write_accounts(&mut page, metrics);
    if let Some(unclaimed) = unclaimed {
        write_lateness(&mut page, metrics, unclaimed);
        write_pauses(&mut page, metrics, unclaimed);
    }
    if let Some(counts) = counts {
        write_counts(&mut page, counts);
    }
    if let Some(parked) = parked {
        write_parked(&mut page, metrics, parked);
    }
    write_unroutable(&mut page, metrics);
    write_events(&mut page, metrics);
    if let Some(days) = metrics.journal_days_ahead() {
        let help = "For how many days after today the journal has partitions; without one no poll is recorded";
        page.family("paypoll_journal_days_ahead", "gauge", help);
        page.line("paypoll_journal_days_ahead", &[], days as f64);
    }
    page.family(
        "paypoll_log_lines_dropped_total",
        "counter",
        "Lines of the log that were dropped because nobody read it fast enough",
    );
    page.line("paypoll_log_lines_dropped_total", &[], crate::telemetry::lines_dropped() as f64);
    page.0
}

fn write_counters(page: &mut Page, metrics: &Metrics) {
    page.family("paypoll_polls_total", "counter", "Polls sent, by what came of them");
    for account in &metrics.accounts {
        for (outcome, count) in Outcome::NAMES.iter().zip(&account.polls) {
            let labels = [("provider", account.provider), ("account", &*account.account), ("outcome", *outcome)];
            page.line("paypoll_polls_total", &labels, count.load(Relaxed) as f64);
        }
    }
    page.family("paypoll_transitions_total", "counter", "Changes of state that this replica wrote, by the state they led to");
    let transitions =
        |account: &crate::metrics::AccountMetrics| account.transitions.iter().map(|count| count.load(Relaxed)).collect();
    for (provider, counts) in by_provider(metrics, |account| (transitions(account), 0.0)) {
        for (state, count) in State::ALL.iter().zip(counts.0) {
            page.line("paypoll_transitions_total", &[("provider", provider), ("to", state.as_str())], count as f64);
        }
    }
}

fn write_accounts(page: &mut Page, metrics: &Metrics) {
    page.family("paypoll_in_flight", "gauge", "Requests of this replica that wait for their answer");
    for (provider, counts) in by_provider(metrics, |account| (vec![account.in_flight.load(Relaxed)], 0.0)) {
        page.line("paypoll_in_flight", &[("provider", provider)], counts.0.iter().sum::<u64>() as f64);
    }
    page.family("paypoll_circuit_open", "gauge", "1 while the account is not asked but for probes");
    for account in &metrics.accounts {
        let labels = [("provider", account.provider), ("account", &*account.account)];
        page.line("paypoll_circuit_open", &labels, flag(account.circuit_open.load(Relaxed)));
    }
    page.family("paypoll_paused", "gauge", "1 while the account pauses because its provider asked for it");
    for account in &metrics.accounts {
        let labels = [("provider", account.provider), ("account", &*account.account)];
        page.line("paypoll_paused", &labels, flag(account.paused.load(Relaxed)));
    }
}

fn write_lateness(page: &mut Page, metrics: &Metrics, unclaimed: &[Unclaimed]) {
    let held = held(metrics).map(|held| (held.provider, held.asked, held.oldest_s));
    let rest = unclaimed.iter().filter_map(|rest| {
        let provider = metrics.accounts.iter().find(|account| account.provider == rest.provider)?.provider;
        Some((provider, !rest.circuit_open && !rest.paused, rest.oldest_s.unwrap_or(0.0)))
    });
    let mut oldest: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (provider, asked, seconds) in held.chain(rest) {
        let (all, behind) = oldest.entry(provider).or_default();
        *all = all.max(seconds);
        *behind = behind.max(if asked { seconds } else { 0.0 });
    }
    let all = "For how long the transaction has been due that has waited longest";
    page.family("paypoll_oldest_due_seconds", "gauge", all);
    for (provider, (all, _)) in &oldest {
        page.line("paypoll_oldest_due_seconds", &[("provider", provider)], *all);
    }
    let behind = "The same without accounts whose circuit is open or that pause because their provider asked for it";
    page.family("paypoll_behind_seconds", "gauge", behind);
    for (provider, (_, behind)) in &oldest {
        page.line("paypoll_behind_seconds", &[("provider", provider)], *behind);
    }
}

fn write_counts(page: &mut Page, counts: &[Counts]) {
    let help = format!("Transactions that are not final, over all replicas; each count stops at {MOST}");
    page.family("paypoll_pending", "gauge", &help);
    for row in counts {
        let states = [State::Pending, State::ActionRequired, State::Unresolved, State::Invalid];
        for (state, count) in states.iter().zip([row.pending, row.action_required, row.unresolved, row.invalid]) {
            page.line("paypoll_pending", &[("provider", &row.provider), ("state", state.as_str())], count as f64);
        }
    }
}

/// Of the accounts that this replica serves, by a pause that an operator wants.
fn write_pauses(page: &mut Page, metrics: &Metrics, unclaimed: &[Unclaimed]) {
    let help = "For how long an operator has kept the account from being asked; 0 while nobody does";
    page.family("paypoll_paused_seconds", "gauge", help);
    for account in &metrics.accounts {
        let paused = unclaimed.iter().find(|row| row.provider == account.provider && row.account == account.account);
        let labels = [("provider", account.provider), ("account", &*account.account)];
        page.line("paypoll_paused_seconds", &labels, paused.and_then(|row| row.paused_s).unwrap_or(0.0));
    }
}

/// Of the accounts that this replica serves: feeders choose the names of others. Reasons that are
/// free text stand together, for the same cause.
fn write_parked(page: &mut Page, metrics: &Metrics, parked: &[Parked]) {
    let help =
        format!("Transactions that are parked, by reason; each exact up to {EXACT}; other: reasons that are not paypoll's own");
    page.family("paypoll_parked", "gauge", &help);
    let mut counts: BTreeMap<(&str, &str, &str, &str), i64> = BTreeMap::new();
    for row in parked {
        let serves = |account: &&crate::metrics::AccountMetrics| account.provider == row.provider && account.account == row.account;
        let Some(account) = metrics.accounts.iter().find(serves) else { continue };
        let reason = row.reason.as_deref().and_then(explain::reason).map_or("other", |reason| reason.name);
        *counts.entry((account.provider, &account.account, &row.state, reason)).or_default() += row.count;
    }
    for ((provider, account, state, reason), count) in counts {
        let labels = [("provider", provider), ("account", account), ("state", state), ("reason", reason)];
        page.line("paypoll_parked", &labels, count as f64);
    }
}

/// What the log reported, for alerts.
fn write_events(page: &mut Page, metrics: &Metrics) {
    page.family("paypoll_events_total", "counter", "Log lines at warn and above, and those about whole accounts, by event");
    let counts = incidents::counts();
    let alerted = ["commits_lost", "record_refused", "maintenance_failed"];
    let known = alerted.into_iter().filter(|name| !counts.contains_key(*name)).map(|name| (name, 0));
    for (event, count) in counts.iter().map(|(event, count)| (event.as_str(), *count)).chain(known) {
        page.line("paypoll_events_total", &[("event", event)], count as f64);
    }
    page.family("paypoll_config_reloads_total", "counter", "How often the configuration was read anew, by what came of it");
    for (result, count) in ["applied", "rejected"].iter().zip(&metrics.reloads) {
        page.line("paypoll_config_reloads_total", &[("result", result)], count.load(Relaxed) as f64);
    }
}

/// By provider: feeders choose the names of accounts, and a series for each name would let them
/// fill the scraper's memory.
fn write_unroutable(page: &mut Page, metrics: &Metrics) {
    page.family("paypoll_unroutable", "gauge", "Transactions whose account no running daemon serves");
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    for account in &metrics.accounts {
        counts.insert(account.provider.to_owned(), 0);
    }
    for row in metrics.unroutable() {
        *counts.entry(row.provider).or_default() += row.count;
    }
    for (provider, count) in &counts {
        page.line("paypoll_unroutable", &[("provider", provider)], *count as f64);
    }
}

fn flag(flag: bool) -> f64 {
    f64::from(u8::from(flag))
}

fn read(histogram: &Histogram) -> (Vec<u64>, f64) {
    histogram.read()
}

/// The accounts' numbers and sums added up by provider.
fn by_provider(
    metrics: &Metrics,
    read: impl Fn(&crate::metrics::AccountMetrics) -> (Vec<u64>, f64),
) -> BTreeMap<&'static str, (Vec<u64>, f64)> {
    let mut all: BTreeMap<&'static str, (Vec<u64>, f64)> = BTreeMap::new();
    for account in &metrics.accounts {
        let (counts, sum) = read(account);
        let entry = all.entry(account.provider).or_insert_with(|| (vec![0; counts.len()], 0.0));
        entry.0.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
        entry.1 += sum;
    }
    all
}

struct Page(String);

/// Writing to a string cannot fail.
impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            _ = write!(self.0, "{}{label}=\"{}\"", if at == 0 { '{' } else { ',' }, escaped(text));
        }
        self.0.push_str(if labels.is_empty() { "" } else { "}" });
        _ = writeln!(self.0, " {value}");
    }

    fn histogram(&mut self, name: &str, help: &str, providers: BTreeMap<&'static str, (Vec<u64>, f64)>) {
        self.family(name, "histogram", help);
        for (provider, (counts, sum)) in providers {
            let bounds = BUCKETS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
            let mut total = 0;
            for (bound, count) in bounds.zip(counts) {
                total += count;
                self.line(&format!("{name}_bucket"), &[("provider", provider), ("le", &bound)], total as f64);
            }
            self.line(&format!("{name}_sum"), &[("provider", provider)], sum);
            self.line(&format!("{name}_count"), &[("provider", provider)], total as f64);
        }
    }
}

/// A label's value as the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn buckets_add_up_over_accounts_and_end_in_the_count() {
        let metrics = Metrics::new([("khalti", "a"), ("khalti", "b")].into_iter());
        metrics.accounts[0].poll("pending", Duration::from_millis(3), Some(Duration::from_millis(40)));
        metrics.accounts[1].poll("timeout", Duration::from_secs(120), None);
        let text = text(&metrics, None, None, None);
        for line in [
            "# TYPE paypoll_poll_lateness_seconds histogram",
            "paypoll_poll_lateness_seconds_bucket{provider=\"khalti\",le=\"0.0025\"} 0",
            "paypoll_poll_lateness_seconds_bucket{provider=\"khalti\",le=\"0.005\"} 1",
            "paypoll_poll_lateness_seconds_bucket{provider=\"khalti\",le=\"60\"} 1",
            "paypoll_poll_lateness_seconds_bucket{provider=\"khalti\",le=\"+Inf\"} 2",
            "paypoll_poll_lateness_seconds_sum{provider=\"khalti\"} 120.003",
            "paypoll_poll_lateness_seconds_count{provider=\"khalti\"} 2",
            "paypoll_provider_latency_seconds_count{provider=\"khalti\"} 1",
            "paypoll_polls_total{provider=\"khalti\",account=\"a\",outcome=\"pending\"} 1",
            "paypoll_polls_total{provider=\"khalti\",account=\"b\",outcome=\"timeout\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn what_the_database_did_not_tell_is_left_out() {
        let metrics = Metrics::new([("khalti", "a")].into_iter());
        metrics.ready.store(true, Relaxed);
        let silent = text(&metrics, None, None, None);
        assert!(!silent.contains("paypoll_pending") && !silent.contains("paypoll_oldest_due_seconds"), "{silent}");
        assert!(silent.contains("paypoll_database_up 0\n"), "{silent}");
        assert!(text(&metrics, Some(&[]), None, None).contains("paypoll_database_up 1\n"));
    }

    #[test]
    fn an_account_whose_circuit_is_open_is_late_but_the_daemon_is_not_behind() {
        let metrics = Metrics::new([("khalti", "a"), ("khalti", "b")].into_iter());
        metrics.accounts[0].circuit_open.store(true, Relaxed);
        metrics.accounts[1].oldest_due_us.store(2_500_000, Relaxed);
        let row = |account: &str, oldest_s, circuit_open| Unclaimed {
            provider: "khalti".into(),
            account: account.into(),
            oldest_s,
            circuit_open,
            paused: false,
            paused_s: None,
        };
        let text = text(&metrics, Some(&[row("a", Some(300.0), true), row("b", None, false)]), None, None);
        assert!(text.contains("paypoll_oldest_due_seconds{provider=\"khalti\"} 300\n"), "{text}");
        assert!(text.contains("paypoll_behind_seconds{provider=\"khalti\"} 2.5\n"), "{text}");
    }

    #[test]
    fn parked_rows_are_told_by_paypolls_own_reasons_and_only_of_accounts_that_are_served() {
        let metrics = Metrics::new([("khalti", "a")].into_iter());
        let row = |account: &str, reason: Option<&str>, count| Parked {
            provider: "khalti".into(),
            account: account.into(),
            state: "unresolved".into(),
            reason: reason.map(str::to_owned),
            count,
            at_least: false,
            latest_at: chrono::DateTime::UNIX_EPOCH,
            example: uuid::Uuid::nil(),
            last_error: None,
        };
        let parked =
            [row("a", Some("no_usable_answer"), 412), row("a", Some("free text"), 2), row("a", None, 1), row("x", None, 9)];
        let text = text(&metrics, None, None, Some(&parked));
        let line =
            |reason: &str| format!("paypoll_parked{{provider=\"khalti\",account=\"a\",state=\"unresolved\",reason=\"{reason}\"}}");
        assert!(text.contains(&format!("{} 412\n", line("no_usable_answer"))), "{text}");
        assert!(text.contains(&format!("{} 3\n", line("other"))), "{text}");
        assert!(!text.contains("account=\"x\""), "{text}");
    }

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let metrics = Metrics::new([("khalti", "a\"} 1\nevil\\")].into_iter());
        let text = text(&metrics, None, None, None);
        assert!(text.contains("paypoll_circuit_open{provider=\"khalti\",account=\"a\\\"} 1\\nevil\\\\\"} 0\n"), "{text}");
    }
}

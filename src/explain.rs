//! What is wrong, and why a transaction waits, in sentences: the same ones in `paypoll status` and
//! `show` and on the page.
//!
//! Knows what the store found and how times and counts are written; queries nothing, and decides
//! nothing.

use crate::config::{self, Config};
use crate::domain::{Ending, Plan, State};
use crate::store::{AccountOverview, LATE_AFTER, Life, LifeTransition, MOST, MOST_ACCOUNTS, Parked, QUEUE, ROW_LAG, Situation};
use crate::text::{about, between, clock, count, counted, cut, moment, plain, seconds, some, span};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;

/// How good or bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tone {
    /// An operator should act now.
    Bad,
    /// An operator should check it.
    Warning,
    /// Neither good nor bad.
    Calm,
    /// Nothing is wrong.
    Good,
}

/// Something true, and how bad it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// How bad.
    pub tone: Tone,
    /// The text, without a full stop.
    pub text: String,
    /// The account that it is about, where it is about one.
    pub account: Option<(String, String)>,
}

/// A reason is quoted up to this length.
const QUOTED: usize = 160;
/// What has been due for longer is an incident.
const BEHIND_S: f64 = 60.0;

/// Budgets and plans of the providers: as configured, else the defaults.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    budgets: BTreeMap<String, f64>,
    plans: BTreeMap<String, Plan>,
}

impl Rules {
    /// Those in force.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let mut rules = Self::default();
        for descriptor in &crate::providers::REGISTRY {
            if let Some(defaults) = config::defaults_of(descriptor.name) {
                rules.budgets.insert(descriptor.name.to_owned(), defaults.rate.per_second);
                rules.plans.insert(descriptor.name.to_owned(), defaults.plan.divided(config.speed));
            }
        }
        for provider in &config.providers {
            let name = provider.descriptor.name.to_owned();
            rules.budgets.insert(name.clone(), provider.rate.per_second);
            rules.plans.insert(name, provider.rules.plan.clone());
        }
        rules
    }

    /// How many requests a second an account of each provider may send.
    #[must_use]
    pub fn budgets(&self) -> &BTreeMap<String, f64> {
        &self.budgets
    }

    /// When the transaction's window closes, and with which reason; `None` where that is not known,
    /// or where it has no end.
    #[must_use]
    pub fn ending(&self, life: &Life) -> Option<Ending> {
        let (anchors, progress) = life.surroundings.anchors?;
        life.transaction.next_poll_at?;
        self.plans.get(&life.transaction.provider)?.ending(&progress, anchors, life.transaction.provider_state.as_deref())
    }
}

/// At most this many accounts that no replica serves are named.
const MOST_UNSERVED: usize = 10;

/// What is wrong, the worst first; one good sentence where nothing is.
#[must_use]
pub fn headlines(situation: &Situation) -> Vec<Sentence> {
    let mut found = Vec::new();
    found.extend(no_daemon(situation));
    let mut accounts: Vec<(&AccountOverview, Sentence)> =
        situation.accounts.iter().filter_map(|account| Some((account, standing(account, situation)?))).collect();
    accounts.sort_by(|(one, first), (other, second)| first.tone.cmp(&second.tone).then(other.late.cmp(&one.late)));
    found.extend(accounts.into_iter().map(|(_, sentence)| sentence));
    let (named, rest) = situation.unroutable.split_at(situation.unroutable.len().min(MOST_UNSERVED));
    if !rest.is_empty() {
        let accounts =
            some(rest.len() as i64, i64::from(MOST_ACCOUNTS) - MOST_UNSERVED as i64, "more account has", "more accounts have");
        let tone = if situation.replicas.is_empty() { Tone::Calm } else { Tone::Bad };
        found.push(Sentence { tone, text: format!("{accounts} payments that no running daemon serves"), account: None });
    }
    for row in named {
        let tone = if situation.replicas.is_empty() { Tone::Calm } else { Tone::Bad };
        let what = some(row.count, MOST, "payment waits", "payments wait");
        let of = situation.accounts.iter().find(|account| (&account.provider, &account.account) == (&row.provider, &row.account));
        let oldest = of
            .and_then(|account| account.oldest_due_s)
            .map_or_else(String::new, |due| format!(", the oldest due for {}", seconds(due)));
        let whose = plain(&name(&row.provider, &row.account));
        let text = format!("{whose}: {what}{oldest}; no running daemon serves this account");
        found.push(Sentence { tone, text, account: Some((row.provider.clone(), row.account.clone())) });
    }
    found.extend(situation.parked.iter().map(parked_sentence));
    found.sort_by_key(|sentence| sentence.tone);
    if found.iter().all(|sentence| sentence.tone >= Tone::Calm) {
        found.insert(0, all_is_well(situation));
    }
    found
}

/// The first line: the worst sentence, and how many more there are as bad.
#[must_use]
pub fn first_line(headlines: &[Sentence]) -> Sentence {
    let Some(worst) = headlines.first() else {
        return Sentence { tone: Tone::Calm, text: "nothing is known".into(), account: None };
    };
    let more = headlines.iter().skip(1).filter(|sentence| sentence.tone <= Tone::Warning).count();
    let text = match more {
        0 => worst.text.clone(),
        1 => format!("{} — and one more problem", worst.text),
        more => format!("{} — and {more} more problems", worst.text),
    };
    Sentence { text, ..worst.clone() }
}

fn name(provider: &str, account: &str) -> String {
    format!("{provider}/{account}")
}

fn no_daemon(situation: &Situation) -> Option<Sentence> {
    if !situation.replicas.is_empty() {
        return None;
    }
    let polled: i64 = situation.accounts.iter().map(|account| account.pending + account.action_required).sum();
    let oldest = situation.accounts.iter().filter_map(|account| account.oldest_due_s).fold(0.0, f64::max);
    let (tone, text) = match (polled, oldest > 0.0) {
        (0, _) => (Tone::Warning, "no daemon runs; nothing waits for one".into()),
        (_, true) => {
            let waits = some(polled, MOST, "payment waits", "payments wait");
            (Tone::Bad, format!("no daemon runs: {waits}, the oldest due for {}", seconds(oldest)))
        }
        (_, false) => {
            let waits = some(polled, MOST, "payment waits", "payments wait");
            (Tone::Bad, format!("no daemon runs: {waits}, none of them due yet"))
        }
    };
    Some(Sentence { tone, text, account: None })
}

/// What is wrong with an account; `None` where it is polled and nothing of it is late.
fn standing(account: &AccountOverview, situation: &Situation) -> Option<Sentence> {
    let (now, whose) = (situation.as_of, plain(&name(&account.provider, &account.account)));
    let is_served = !situation.unroutable.iter().any(|row| (&row.provider, &row.account) == (&account.provider, &account.account));
    let (tone, mut text) = if account.is_paused() {
        (Tone::Warning, format!("{whose} is not asked: {}", paused(account, now)))
    } else if account.is_open() {
        let since = account.circuit_since.map_or_else(String::new, |since| format!(" for {}", between(since, now)));
        let reason = account.circuit_reason.as_deref().unwrap_or_default();
        let reason = if reason.is_empty() { String::new() } else { format!(" ({})", cut(reason, QUOTED)) };
        (Tone::Bad, format!("{whose} is not asked: circuit open{since}{reason}"))
    } else if let Some(until) = account.held_until {
        (Tone::Warning, format!("{whose} is not asked for another {}: the provider asked for a pause", between(now, until)))
    } else if account.late > 0 && is_served {
        let oldest = account.oldest_due_s.unwrap_or_default();
        (if oldest > BEHIND_S { Tone::Bad } else { Tone::Warning }, format!("{whose} is behind"))
    } else {
        return None;
    };
    text += &late(account);
    if let Some(probe) = account.next_probe_at.filter(|_| account.is_open() && !account.is_paused()) {
        text += &if probe > now { format!("; next probe in {}", between(now, probe)) } else { "; next probe now".into() };
    }
    Some(Sentence { tone, text, account: Some((account.provider.clone(), account.account.clone())) })
}

/// Who paused the account, since and until when, and why.
fn paused(account: &AccountOverview, now: DateTime<Utc>) -> String {
    let since = account.paused_since.map_or_else(String::new, |since| format!(" for {}", between(since, now)));
    let by = account.paused_by.as_deref().map_or_else(String::new, |by| format!(" by {}", cut(by, QUOTED)));
    let until = match account.paused_until {
        Some(until) => format!("another {} to go", between(now, until)),
        None => "until somebody resumes it".into(),
    };
    let because = cut(account.paused_because.as_deref().unwrap_or("no reason was given"), QUOTED);
    format!("paused{since}{by}, {until}: {because}")
}

/// How many are late, by how much, and when that is over.
fn late(account: &AccountOverview) -> String {
    if account.late == 0 {
        return match account.due {
            0 => String::new(),
            due => format!("; {}", some(due, MOST, "payment due", "payments due")),
        };
    }
    let oldest = seconds(account.oldest_due_s.unwrap_or_default());
    let by = if account.late == 1 { format!("by {oldest}") } else { format!("the oldest by {oldest}") };
    let clears = match account.clears_in_s {
        Some(clears) if account.is_silent() => format!("; clears in about {} once it is asked again", about(clears)),
        Some(clears) => format!("; clears in about {}", about(clears)),
        None => "; more falls due than the budget allows".into(),
    };
    format!("; {}, {by}{clears}", some(account.late, MOST, "payment late", "payments late"))
}

fn parked_sentence(row: &Parked) -> Sentence {
    let whose = plain(&name(&row.provider, &row.account));
    let number = counted(row.count, if row.at_least { row.count } else { i64::MAX });
    let (noun, verb) = if row.count == 1 { ("payment", "is") } else { ("payments", "are") };
    let reason = row.reason.as_deref().unwrap_or("no reason was given");
    let error = match &row.last_error {
        Some(error) if reason == NO_USABLE_ANSWER => format!("; last error: {}", cut(error, QUOTED)),
        _ => String::new(),
    };
    Sentence {
        tone: Tone::Warning,
        text: format!("{whose}: {number} {noun} {verb} {}, {}{error}", plain(&row.state), cut(reason, QUOTED)),
        account: Some((row.provider.clone(), row.account.clone())),
    }
}

fn all_is_well(situation: &Situation) -> Sentence {
    if situation.accounts.is_empty() && situation.replicas.is_empty() {
        let text = "no transaction is polled or parked, and no daemon has served an account yet".into();
        return Sentence { tone: Tone::Calm, text, account: None };
    }
    let polled: i64 = situation.accounts.iter().map(|account| account.pending + account.action_required).sum();
    let replicas = some(i64::try_from(situation.replicas.len()).unwrap_or(i64::MAX), i64::MAX, "replica", "replicas");
    let accounts = situation.accounts.len();
    let accounts = some(i64::try_from(accounts).unwrap_or(i64::MAX), i64::MAX, "account", "accounts");
    let payments = some(polled, i64::MAX, "payment is", "payments are");
    let text = format!("all is well: {payments} polled, none is late, none is parked ({accounts}, {replicas})");
    Sentence { tone: Tone::Good, text, account: None }
}

/// The reason of a window in which no poll got a usable answer.
pub const NO_USABLE_ANSWER: &str = "no_usable_answer";

/// paypoll's own reasons for parking a transaction, with what they mean and whether the same would
/// happen again.
pub const REASONS: [Reason; 7] = [
    Reason { name: "window_over", means: "the provider gave no final word while its rules let it be asked", again: None },
    Reason { name: "gave_up", means: "no final word came within give_up_after", again: None },
    Reason {
        name: NO_USABLE_ANSWER,
        means: "not one poll of the window got a usable answer",
        again: Some("mend what stands in its last error first: as it is, retrying most likely ends in the same way"),
    },
    Reason {
        name: "not_found",
        means: "the provider does not know the reference",
        again: Some("correct reference or account first, unless the provider was late in logging it"),
    },
    Reason {
        name: "amount_mismatch",
        means: "the provider reports success with another amount",
        again: Some("compare amounts first: the provider will say the same again"),
    },
    Reason {
        name: "currency_mismatch",
        means: "the provider reports success in another currency",
        again: Some("compare currencies first: the provider will say the same again"),
    },
    Reason {
        name: "credentials_rejected",
        means: "the provider refuses the credentials that came with the row",
        again: Some("write new credentials into params first: the same ones will be refused again"),
    },
];

/// One of paypoll's own reasons.
#[derive(Clone, Copy, Debug)]
pub struct Reason {
    /// The value of `transactions.reason`.
    pub name: &'static str,
    /// What it means.
    pub means: &'static str,
    /// What to do before a retry; `None` where a retry may well end differently.
    pub again: Option<&'static str>,
}

/// What is known of a reason; `None` for texts of the provider and of others.
#[must_use]
pub fn reason(name: &str) -> Option<&'static Reason> {
    REASONS.iter().find(|reason| reason.name == name)
}

/// Why the transaction stands where it stands, and what comes next.
#[must_use]
pub fn why(life: &Life, rules: &Rules) -> String {
    let (row, around) = (&life.transaction, &life.surroundings);
    let Some(next) = row.next_poll_at else { return ended(life) };
    if let Some(obstacle) = obstacle(life) {
        let due = if next > around.now { format!(", and would be due in {}", between(around.now, next)) } else { String::new() };
        return format!("It waits: {obstacle}{due}.");
    }
    let waits = match row.state.as_str() {
        "action_required" => "The provider waits for the payer or the merchant",
        _ if row.attempts == 0 && life.polls.is_empty() => "It has not been asked about yet",
        _ if row.failures > 0 => "The last poll got no usable answer",
        _ => "The provider has not decided",
    };
    format!("{waits}; {}.", turn(life, next, rules))
}

/// Why it is not polled any more.
fn ended(life: &Life) -> String {
    let (row, id) = (&life.transaction, life.transaction.id);
    let why = row.reason.as_deref().unwrap_or("no reason was given");
    match State::from_name(&row.state) {
        Some(State::Unresolved) => {
            let known = reason(why);
            let error = life.polls.iter().rev().find_map(|poll| poll.error.as_deref());
            let error = match error {
                Some(error) if why == NO_USABLE_ANSWER => format!(" Its last error: {}.", cut(error, QUOTED)),
                _ => String::new(),
            };
            let again = known.and_then(|known| known.again).map_or_else(String::new, |again| format!(" But {again}."));
            let means = known.map_or_else(|| plain(why), |known| known.means.to_owned());
            format!(
                "Polling ended without a final word: {means}.{error} The outcome is unknown, not failed. \
                 `paypoll retry {id}` opens a new window.{again}"
            )
        }
        Some(State::Invalid) => {
            format!("It cannot be asked about: {}. Correct the row, then `paypoll retry {id}`.", plain(why))
        }
        _ => format!("{} is final: nothing more is asked.", plain(&row.state)),
    }
}

/// What keeps the whole account from being polled.
fn obstacle(life: &Life) -> Option<String> {
    let (row, around) = (&life.transaction, &life.surroundings);
    let whose = plain(&name(&row.provider, &row.account));
    if let Some(pause) = &around.pause {
        let until = pause.until.map_or_else(|| "somebody resumes it".into(), |until| format!("{} UTC", clock(until, around.now)));
        let by = if pause.by.is_empty() { String::new() } else { format!(" by {}", cut(&pause.by, QUOTED)) };
        let because = cut(&pause.because, QUOTED);
        return Some(format!("{whose} has been paused{by} for {} until {until}: {because}", between(pause.since, around.now)));
    }
    if !around.served {
        return Some(format!("no running daemon serves {whose}. Configure that account, or correct the row"));
    }
    if let Some(reason) = &around.circuit {
        let since = around.circuit_since.map_or_else(String::new, |since| format!(" for {}", between(since, around.now)));
        let probe = around.probe_at.map_or_else(String::new, |at| format!(", the next at {} UTC", clock(at, around.now)));
        return Some(format!(
            "its account's circuit is open{since} ({}), and nothing is asked but a probe{probe}",
            cut(reason, QUOTED)
        ));
    }
    let until = around.held_until.filter(|until| *until > around.now)?;
    Some(format!("until {} UTC, because the provider asked the whole account to pause", clock(until, around.now)))
}

/// When its turn comes.
fn turn(life: &Life, next: DateTime<Utc>, rules: &Rules) -> String {
    let around = &life.surroundings;
    if next > around.now {
        return format!("the next poll is due in {}, at {} UTC", between(around.now, next), moment(next));
    }
    let due_for = (around.now - next).to_std().unwrap_or_default();
    if let Some(owner) = around.owner.filter(|_| due_for <= ROW_LAG) {
        return format!("replica {owner} has it in memory and polls it; its latest polls may not stand here yet");
    }
    let since = format!("due since {} UTC, for {}", clock(next, around.now), span(due_for));
    let budget = rules.budgets.get(&life.transaction.provider).copied().unwrap_or(f64::MAX);
    match around.queue {
        Some((before, due)) if due_for > LATE_AFTER && before as f64 > budget => format!(
            "{since}: more is due than the budget allows, position about {} of {}, in about {}",
            counted(before + 1, QUEUE),
            counted(due, QUEUE),
            about((before + 1) as f64 / budget)
        ),
        _ => format!("{since}: it waits for its turn"),
    }
}

/// When polling ends at the latest, and with which reason.
#[must_use]
pub fn gives_up(life: &Life, rules: &Rules) -> Option<String> {
    let Ending { at, reason } = rules.ending(life)?;
    let now = life.surroundings.now;
    Some(if at > now {
        format!("{} UTC, in {}, then unresolved with reason {reason}", moment(at), between(now, at))
    } else {
        format!("{} UTC is over: one last poll, then unresolved with reason {reason}", moment(at))
    })
}

/// Who or what changed a state.
#[must_use]
pub fn by(change: &LifeTransition) -> String {
    let source = match &*change.source {
        "poll" if change.to_state == State::Invalid.as_str() => "a look at the row, nobody was asked",
        "poll" => "the provider's answer",
        "deadline" => "the end of its plan",
        "external" => "another writer",
        "operator" => "an operator",
        other => other,
    };
    match &change.actor {
        Some(actor) => format!("{}, {}", plain(source), cut(actor, QUOTED)),
        None => plain(source),
    }
}

/// What must be known before a retry of transactions that were parked with this reason.
#[must_use]
pub fn comes_again(name: &str, number: i64, last_error: Option<&str>) -> Option<String> {
    let again = reason(name)?.again?;
    let error = last_error.map_or_else(String::new, |error| format!(" (last error: {})", cut(error, QUOTED)));
    let were = if number == 1 { "was" } else { "were" };
    Some(format!("{} {were} parked with {name}{error}: {again}", count(number)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{LifeRow, Pause, Replica, Surroundings, Unroutable};
    use chrono::TimeDelta;
    use serde_json::Value;
    use uuid::Uuid;

    fn now() -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(20_000)
    }

    fn ago(seconds: i64) -> DateTime<Utc> {
        now() - TimeDelta::seconds(seconds)
    }

    fn account(name: &str) -> AccountOverview {
        AccountOverview {
            provider: "khalti".into(),
            account: name.into(),
            pending: 10_000,
            circuit: "closed".into(),
            ..AccountOverview::default()
        }
    }

    fn open(name: &str) -> AccountOverview {
        AccountOverview {
            due: 9_411,
            late: 9_411,
            oldest_due_s: Some(115.0),
            clears_in_s: Some(900.0),
            circuit: "open".into(),
            circuit_since: Some(ago(360)),
            circuit_reason: Some("20 polls in a row failed".into()),
            next_probe_at: Some(ago(-12)),
            ..account(name)
        }
    }

    fn situation(accounts: Vec<AccountOverview>) -> Situation {
        let replica = Replica { id: 1, host: "a".into(), started_at: ago(100), heartbeat_at: now(), accounts: Vec::new() };
        Situation {
            as_of: now(),
            accounts,
            unroutable: Vec::new(),
            parked: Vec::new(),
            replicas: vec![replica],
            errors: Vec::new(),
            events: Vec::new(),
        }
    }

    fn first(situation: &Situation) -> (Tone, String) {
        let first = first_line(&headlines(situation));
        (first.tone, first.text)
    }

    #[test]
    fn it_is_green_only_where_nothing_is_wrong() {
        let (tone, text) = first(&situation(vec![account("default")]));
        assert_eq!(tone, Tone::Good);
        assert_eq!(text, "all is well: 10,000 payments are polled, none is late, none is parked (1 account, 1 replica)");
    }

    #[test]
    fn an_open_circuit_says_how_many_are_late_by_how_much_and_when_that_is_over() {
        let (tone, text) = first(&situation(vec![account("other"), open("default")]));
        assert_eq!(tone, Tone::Bad);
        assert_eq!(
            text,
            "khalti/default is not asked: circuit open for 6 min (20 polls in a row failed); 9,411 payments late, the oldest by \
             1 min 55 s; clears in about 15 min once it is asked again; next probe in 12 s"
        );
    }

    #[test]
    fn the_worst_stands_first_and_the_others_are_counted() {
        let worse = AccountOverview { late: 20_000, ..open("worse") };
        let (_, text) = first(&situation(vec![open("default"), account("x"), worse]));
        assert!(text.starts_with("khalti/worse is not asked") && text.ends_with(" — and one more problem"), "{text}");
    }

    #[test]
    fn a_pause_says_who_why_and_how_long_also_where_the_circuit_is_open_besides() {
        let paused = AccountOverview {
            circuit: "paused".into(),
            paused_since: Some(ago(720)),
            paused_until: Some(ago(-600)),
            paused_because: Some("maintenance at Khalti".into()),
            paused_by: Some("ops (as alice@desk)".into()),
            ..open("default")
        };
        let (tone, text) = first(&situation(vec![paused]));
        assert_eq!(tone, Tone::Warning);
        assert!(
            text.starts_with(
                "khalti/default is not asked: paused for 12 min by ops (as alice@desk), another 10 min to go: maintenance at Khalti; \
                 9,411 payments late"
            ),
            "{text}"
        );
        assert!(!text.contains("probe"), "{text}");
    }

    #[test]
    fn without_a_daemon_that_is_the_worst() {
        let mut none = situation(vec![AccountOverview { oldest_due_s: Some(31.0), late: 3, due: 3, ..account("default") }]);
        none.replicas.clear();
        none.unroutable.push(Unroutable { provider: "khalti".into(), account: "default".into(), count: 10_000 });
        let (tone, text) = first(&none);
        assert_eq!(tone, Tone::Bad);
        assert_eq!(text, "no daemon runs: 10,000 payments wait, the oldest due for 31 s");
        none.accounts.clear();
        none.unroutable.clear();
        assert_eq!(first(&none), (Tone::Warning, "no daemon runs; nothing waits for one".into()));
    }

    #[test]
    fn parked_payments_are_named_with_their_reason_and_counted_exactly_or_at_least() {
        let mut parked = situation(vec![account("default")]);
        parked.parked.push(Parked {
            provider: "khalti".into(),
            account: "default".into(),
            state: "unresolved".into(),
            reason: Some(NO_USABLE_ANSWER.into()),
            count: 10_000,
            at_least: true,
            latest_at: ago(3),
            example: Uuid::nil(),
            last_error: Some("HTTP 403: an HTML page".into()),
        });
        let (tone, text) = first(&parked);
        assert_eq!(tone, Tone::Warning);
        assert_eq!(
            text,
            "khalti/default: at least 10,000 payments are unresolved, no_usable_answer; last error: HTTP 403: an HTML page"
        );
    }

    fn life(next_s: i64, around: Surroundings) -> Life {
        let row = LifeRow {
            id: Uuid::nil(),
            provider: "khalti".into(),
            account: "default".into(),
            reference: "R1".into(),
            params: Value::Null,
            amount: None,
            currency: None,
            initiated_at: ago(1000),
            state: "pending".into(),
            provider_state: None,
            reason: None,
            action: None,
            details: None,
            attempts: 1,
            failures: 0,
            last_polled_at: Some(ago(300)),
            next_poll_at: Some(ago(-next_s)),
            finalized_at: None,
            created_at: ago(1000),
            updated_at: ago(1000),
        };
        let surroundings = Surroundings { now: now(), served: true, ..around };
        Life { transaction: row, transitions: Vec::new(), polls: Vec::new(), surroundings }
    }

    fn ten_a_second() -> Rules {
        Rules { budgets: BTreeMap::from([("khalti".to_owned(), 10.0)]), plans: BTreeMap::new() }
    }

    #[test]
    fn a_payment_that_waits_behind_others_is_told_its_place() {
        let queue = Some((411, 1_000));
        let text = why(&life(-90, Surroundings { queue, ..Surroundings::default() }), &ten_a_second());
        assert!(
            text.contains("for 1 min 30 s: more is due than the budget allows, position about 412 of 1,000, in about 42 s"),
            "{text}"
        );
        let alone = why(&life(-90, Surroundings { queue: Some((0, 1)), ..Surroundings::default() }), &ten_a_second());
        assert!(alone.ends_with("it waits for its turn."), "{alone}");
    }

    #[test]
    fn an_owner_is_trusted_for_as_long_as_a_row_may_lag() {
        let held = |next| why(&life(next, Surroundings { owner: Some(7), ..Surroundings::default() }), &ten_a_second());
        assert!(held(-50).contains("replica 7 has it in memory"), "{}", held(-50));
        assert!(held(-70).contains("due since"), "{}", held(-70));
        assert!(held(30).contains("the next poll is due in 30 s"), "{}", held(30));
    }

    #[test]
    fn what_keeps_the_account_from_being_asked_stands_before_the_payments_own_time() {
        let pause = Pause { because: "a change".into(), by: "bob".into(), since: ago(60), until: None };
        let text = why(&life(30, Surroundings { pause: Some(pause), ..Surroundings::default() }), &ten_a_second());
        assert_eq!(
            text,
            "It waits: khalti/default has been paused by bob for 1 min until somebody resumes it: a change, and would be due in 30 s."
        );
    }

    #[test]
    fn what_would_come_again_is_said_before_a_retry() {
        let text = comes_again(NO_USABLE_ANSWER, 412, Some("HTTP 403")).expect("it would");
        assert!(text.starts_with("412 were parked with no_usable_answer (last error: HTTP 403): mend"), "{text}");
        assert_eq!(comes_again("window_over", 412, None), None);
    }
}

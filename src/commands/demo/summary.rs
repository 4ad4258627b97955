//! What came of it: the table, and everything that did not end as its script expects.

use std::collections::BTreeMap;
use std::fmt;

/// A transaction at the end.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) provider: &'static str,
    pub(super) reference: String,
    pub(super) expected: &'static str,
    /// As the table says.
    pub(super) state: String,
    pub(super) reason: Option<String>,
    /// Polls sent.
    pub(super) attempts: u32,
}

/// The table of the end states.
pub(super) struct Summary {
    rows: BTreeMap<(&'static str, String), Row>,
    surprises: Vec<String>,
}

#[derive(Default)]
struct Row {
    transactions: usize,
    polls: u64,
    expected: usize,
}

impl Summary {
    pub(super) fn of(ended: &[Ended]) -> Self {
        let mut rows: BTreeMap<_, Row> = BTreeMap::new();
        for transaction in ended {
            let row = rows.entry((transaction.provider, transaction.state.clone())).or_default();
            row.transactions += 1;
            row.polls += u64::from(transaction.attempts);
            rows.entry((transaction.provider, transaction.expected.to_owned())).or_default().expected += 1;
        }
        let surprises = ended.iter().filter(|transaction| transaction.state != transaction.expected).map(surprise).collect();
        Self { rows, surprises }
    }

    /// One sentence for each transaction that is not where its script expects it.
    pub(super) fn surprises(&self) -> &[String] {
        &self.surprises
    }
}

fn surprise(ended: &Ended) -> String {
    let Ended { provider, reference, expected, state, reason, attempts } = ended;
    let reference = reference.escape_debug();
    let reason = reason.as_ref().map(|reason| format!(" ({})", reason.escape_debug())).unwrap_or_default();
    format!("surprise: {provider} {reference} is {state}{reason} after {attempts} polls; its script expects {expected}")
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<12} {:<16} {:>12} {:>8} {:>10}", "provider", "end state", "transactions", "polls", "expected")?;
        let mut last = "";
        for ((provider, state), row) in &self.rows {
            let name = if *provider == last { "" } else { provider };
            last = provider;
            writeln!(f, "{name:<12} {state:<16} {:>12} {:>8} {:>10}", row.transactions, row.polls, row.expected)?;
        }
        let sum = |value: fn(&Row) -> u64| self.rows.values().map(value).sum::<u64>();
        let (transactions, polls) = (sum(|row| row.transactions as u64), sum(|row| row.polls));
        write!(f, "{:<12} {:<16} {transactions:>12} {polls:>8} {:>10}", "all", "", sum(|row| row.expected as u64))?;
        self.surprises.iter().try_for_each(|surprise| write!(f, "\n{surprise}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(reference: &str, expected: &'static str, state: &str) -> Ended {
        let reason = (state == "unresolved").then(|| "gave_up".to_owned());
        Ended { provider: "khalti", reference: reference.into(), expected, state: state.into(), reason, attempts: 3 }
    }

    #[test]
    fn a_transaction_that_ended_elsewhere_is_counted_in_both_states_and_named() {
        let summary = Summary::of(&[ended("A", "succeeded", "succeeded"), ended("B", "failed", "unresolved")]);
        let text = summary.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "khalti       failed                      0        0          1");
        assert_eq!(lines[2], "             succeeded                   1        3          1");
        assert_eq!(lines[3], "             unresolved                  1        3          0");
        assert_eq!(lines[4], "all                                      2        6          2");
        assert_eq!(lines[5], "surprise: khalti B is unresolved (gave_up) after 3 polls; its script expects failed");
        assert_eq!(summary.surprises().len(), 1);
    }
}

//! Which transactions play: every script of the simulator at every provider, callbacks that come
//! before the answer, broken rows.

use crate::simulator::{self, PROVIDERS};
use serde_json::{Value, json};
use std::time::Duration;

/// A transaction of the demo.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) serial: u64,
    pub(super) provider: &'static str,
    pub(super) account: &'static str,
    pub(super) role: Role,
    /// The state in which it is to end.
    pub(super) expected: &'static str,
}

/// What is special about a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The simulator answers by this script.
    Script(&'static str),
    /// The provider never decides, a callback does.
    Callback,
    /// The row cannot be polled.
    Broken,
}

/// Why a provider asks for fewer requests, or refuses an account. These come last and, where the
/// simulator has a second account, on that one: what they bring about concerns the whole account.
const TROUBLE: [&str; 6] = ["429-ok", "wait1-ok", "waitdate-ok", "refused-ok", "revoke-ok", "denied-badtoken-ok"];

/// The scripts in the order in which they are cast, so that a small demo has the most telling ones.
const SCRIPTS: [&str; 46] = [
    "ok",
    "action2x2-ok",
    "fail2",
    "500x2-ok",
    "never",
    "notfound",
    "slow-ok",
    "cancel",
    "html-ok",
    "amount",
    "flakyx3-ok",
    "ok3",
    "fee-ok",
    "currency",
    "refund",
    "echo",
    "unknownword",
    "reset-ok",
    "dribble-ok",
    "drop-ok",
    "huge-ok",
    "gzipbomb-ok",
    "redirect-ok",
    "garbage-ok",
    "empty-fail",
    "cut-ok",
    "dup-ok",
    "bom-ok",
    "mojibake-ok",
    "other-ok",
    "noid-fail",
    "choice-confirm-oddfee-odd",
    "wrongotp-invalid-oddfail",
    "forbidden-firewall-ok",
    "202-ok",
    "400-ok",
    "404-fail",
    "503-ok",
    "error-ok",
    "action-fail",
    "429-ok",
    "wait1-ok",
    "waitdate-ok",
    "refused-ok",
    "revoke-ok",
    "denied-badtoken-ok",
];

/// After each of the scripts one plays that the simulator has no word for.
const ROLES: usize = SCRIPTS.len() + 2;

/// Users from this number on have one transaction each.
const LONERS: u64 = 1_000_000;

/// The accounts by name: the first one, and the one that gets into trouble.
pub(super) const ACCOUNTS: [&str; 2] = ["default", "second"];

/// As many transactions as requested, in the order in which they are inserted.
pub(super) fn cast(count: u32) -> Vec<Part> {
    let mut parts: Vec<Part> = (0..u64::from(count)).map(part).collect();
    parts.sort_by_key(|part| matches!(part.role, Role::Script(script) if TROUBLE.contains(&script)));
    parts
}

/// A provider that is declared in a file, played beside the five.
pub(super) const GUEST: &str = "paystack";
/// What its transactions play, by the names of the file's examples, and where each ends.
const GUESTS: [(&str, &str); 6] = [
    ("success", "succeeded"),
    ("failed", "failed"),
    ("reversed", "refunded"),
    ("abandoned-is-not-failed--success", "succeeded"),
    ("500--ongoing--success", "succeeded"),
    ("not-found--success", "succeeded"),
];

/// The guest's transactions: a few more than were requested.
pub(super) fn guests() -> impl Iterator<Item = Part> {
    let part = |(serial, (script, expected)): (u64, (&'static str, &'static str))| Part {
        serial,
        provider: GUEST,
        account: ACCOUNTS[0],
        role: Role::Script(script),
        expected,
    };
    (0..).zip(GUESTS).map(part)
}

fn part(serial: u64) -> Part {
    let providers = PROVIDERS.len() as u64;
    let provider = PROVIDERS[(serial % providers) as usize];
    let role = match (serial / providers) as usize % ROLES {
        0 => Role::Callback,
        1 => Role::Broken,
        number => Role::Script(SCRIPTS[number - 2]),
    };
    let expected = match role {
        Role::Callback => Some("succeeded"),
        Role::Broken => Some("invalid"),
        Role::Script(script) => simulator::expected_state(provider, &simulator::reference(provider, serial, script)),
    };
    let troubled = matches!(role, Role::Script(script) if TROUBLE.contains(&script));
    // All Dropayment sessions are one account to the simulator.
    let account = ACCOUNTS[usize::from(troubled && provider != "dropayment")];
    Part { serial, provider, account, role, expected: expected.unwrap_or("unresolved") }
}

impl Part {
    /// Its reference, when it is initiated at this time: DusuPay's tells the simulator.
    pub(super) fn reference(&self, initiated_ms: i64) -> String {
        let script = match self.role {
            Role::Script(script) => script,
            Role::Callback => "never",
            // Ayoconnect's header carries no such letters, the others take no control characters.
            Role::Broken if self.provider == "ayoconnect" => return format!("référence-{}", self.serial),
            Role::Broken => return format!("SIM-{:06}-\u{7}", self.serial),
        };
        match self.provider {
            GUEST => format!("GUEST-{:06}--{script}", self.serial),
            "dusupay" => simulator::reference(self.provider, self.serial, &format!("t{initiated_ms}-{script}")),
            _ => simulator::reference(self.provider, self.serial, script),
        }
    }

    /// What the lookup needs beside it. Every two Dapi transactions have one user: only one of them
    /// may be polled at a time. Not so where the daemon stops waiting for an answer: the simulator
    /// may hear of that after the next request.
    pub(super) fn params(&self) -> Value {
        match (self.provider, self.role) {
            ("dropayment", Role::Broken) => json!({"endpointId": simulator::credentials::DROPAYMENT_ENDPOINT}),
            ("dapi", Role::Script("slow-ok" | "dribble-ok")) => simulator::params(self.provider, LONERS + self.serial),
            ("dapi", _) => simulator::params(self.provider, self.serial / 2 / PROVIDERS.len() as u64),
            _ => simulator::params(self.provider, self.serial),
        }
    }
}

/// When the transaction at this place is inserted: evenly, for as long as [`spread`] says.
pub(super) fn entrance(place: usize, count: u32) -> Duration {
    spread(count).mul_f64(place as f64 / f64::from(count))
}

/// How long the insertion takes: 10 s, less for few transactions and more for very many.
pub(super) fn spread(count: u32) -> Duration {
    let count = f64::from(count);
    Duration::from_secs_f64((count / 25.0).min(10.0).max(count / 500.0))
}

/// How many times the providers' usual budgets are needed for this many transactions.
pub(super) fn scale(count: u32) -> u32 {
    (f64::from(count) / spread(count).as_secs_f64() / 25.0).ceil().max(1.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn two_hundred_transactions_play_nearly_everything_and_the_default_plays_everything() {
        let everything = ROLES * PROVIDERS.len();
        assert!(everything <= 250, "{everything}");
        let played: BTreeSet<_> = cast(250).iter().map(|part| (part.provider, format!("{:?}", part.role))).collect();
        assert_eq!(played.len(), everything);
    }

    #[test]
    fn every_word_of_the_simulator_is_played_but_for_repetitions() {
        let words: BTreeSet<&str> = SCRIPTS.iter().flat_map(|script| script.split('-')).collect();
        let played = |word: &str| words.iter().any(|step| step.trim_end_matches(|c: char| c.is_ascii_digit() || c == 'x') == word);
        let missing: Vec<&str> = simulator::scripts().iter().map(|script| script.word).filter(|word| !played(word)).collect();
        let reason = "`never` says pending too; DusuPay's \"too early\" would be a broken rule to the audit";
        assert_eq!(missing, ["pending", "early", "pleasewait"], "{reason}");
    }

    #[test]
    fn references_are_unique_and_carry_their_script() {
        let parts = cast(1000);
        let references: BTreeSet<_> = parts.iter().map(|part| (part.provider, part.reference(1_763_760_000_000))).collect();
        assert_eq!(references.len(), parts.len());
        for part in parts.iter().filter(|part| matches!(part.role, Role::Script(_))) {
            let reference = part.reference(1_763_760_000_000);
            assert_eq!(simulator::expected_state(part.provider, &reference), Some(part.expected), "{reference}");
        }
    }

    #[test]
    fn the_guest_plays_examples_of_its_file() {
        let declaration = super::super::stage::guest().expect("the shipped file is in order");
        for (script, expected) in GUESTS {
            let steps = script.split("--").filter(|step| *step != "500");
            let outcomes: Vec<_> = steps.map(|step| declaration.expected(step).expect(step)).collect();
            assert_eq!(outcomes.last(), Some(&expected), "{script}");
        }
    }

    #[test]
    fn budgets_grow_with_the_number_of_transactions() {
        assert_eq!((scale(1), scale(250), scale(500), scale(100_000)), (1, 1, 2, 20));
    }
}

//! The scripts: how a reference chooses what is answered. Pure; the grammar stands in the [module's
//! documentation](super).

use super::Api;
use serde::Serialize;

/// One word of the grammar, for listings.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Script {
    /// The word.
    pub word: &'static str,
    /// What is answered.
    pub answers: &'static str,
    /// As the last step it brings paypoll to an end state at the first poll that hears it. `false`
    /// where the end comes only with a window, a give-up age or the not-found rule, or where it
    /// depends on the provider.
    pub ends_soon: bool,
    #[serde(skip)]
    says: Word,
}

/// Every word but the HTTP status codes, which are words too (`202`, `400` to `599`).
#[must_use]
pub fn scripts() -> &'static [Script] {
    SCRIPTS
}

/// The state in which paypoll is to leave a transaction with this reference, when the row names
/// [`amount`](super::amount).
///
/// That is what the first decisive word of the script says; without one polling ends by time, in
/// `unresolved`. `None` for a provider that the simulator does not play.
#[must_use]
pub fn expected_state(provider: &str, reference: &str) -> Option<&'static str> {
    let api = Api::named(provider)?;
    let newer = has_part(api, reference, NEWER_SHAPE);
    Some(steps(api, reference).iter().find_map(|step| step.word.end(api, newer)).unwrap_or(UNRESOLVED))
}

/// A reference for `script` (`"500x2-ok"`) that the provider accepts; `serial` makes it unique.
///
/// Ayoconnect's is 32 alphanumeric characters with `Z` for the hyphens: a script of more than 22
/// characters leaves less room for the serial, one of more than 28 gives a reference that
/// Ayoconnect refuses.
#[must_use]
pub fn reference(provider: &str, serial: u64, script: &str) -> String {
    if Api::named(provider) == Some(Api::Ayoconnect) {
        let script = format!("Z{}", script.replace('-', "Z"));
        let room = EXTERNAL_ID.saturating_sub(MARKER.len() + script.len());
        return format!("{MARKER}{serial:0room$}{script}");
    }
    // Six digits at least: three would be an HTTP status.
    format!("{MARKER}-{serial:06}-{script}")
}

/// What says that a reference carries a script: without it `ORDER-500` is an order like any other.
const MARKER: &str = "SIM";
/// The length of Ayoconnect's X-EXTERNAL-ID: "length between 32 and 32".
pub(super) const EXTERNAL_ID: usize = 32;
/// The part of a reference that makes Dapi answer in its newer shape.
pub(super) const NEWER_SHAPE: &str = "opinfo";

const SUCCEEDED: &str = "succeeded";
const FAILED: &str = "failed";
const UNRESOLVED: &str = "unresolved";

/// One answer of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// In the provider's documented form.
    Told(Told),
    /// Anything but an answer.
    Hostile(Hostile),
}

/// What can be said in a provider's documented form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Ok,
    Fail,
    Cancel,
    Refund,
    Echo,
    Amount,
    Currency,
    Pending,
    Action,
    Fee,
    Unknown,
    Other,
    NoId,
    NotFound,
    Early,
    Error,
    Refused,
    Revoke,
    Odd,
    OddFail,
    OddFee,
    Confirm,
    Choice,
    WrongOtp,
    Invalid,
    BadToken,
    Denied,
    PleaseWait,
    Forbidden,
    Firewall,
    Http(u16),
    Wait(Retry),
}

impl Told {
    /// Said by providers that have no word of their own for it as "pending".
    pub(super) fn waits(self) -> bool {
        matches!(self, Self::Pending | Self::Action | Self::Fee | Self::OddFee | Self::Confirm | Self::Choice)
    }
}

/// The two forms of `Retry-After`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    Seconds(u32),
    Date,
}

/// What no client should have to meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hostile {
    Slow(Option<u32>),
    Reset,
    Drop,
    Garbage,
    Html,
    Empty,
    Cut,
    Duplicate,
    ByteOrderMark,
    Mojibake,
    Dribble,
    Huge,
    GzipBomb,
    Redirect,
    Flaky,
}

/// What `Retry-After` says where the script names no seconds, and what a date lies ahead.
pub(super) const RETRY_AFTER_S: u32 = 2;

/// A word with its counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    word: Word,
    /// How many polls are answered "pending" before the word comes.
    before: u32,
    /// How many polls get the word; the last step's word is never followed by another.
    times: u32,
}

/// The steps that a reference asks for; never empty.
pub(super) fn steps(api: Api, reference: &str) -> Vec<Step> {
    let steps: Vec<Step> = parts(api, reference).filter_map(step).collect();
    if steps.is_empty() { vec![Step { word: Word::Told(Told::Ok), before: 0, times: 1 }] } else { steps }
}

/// What the `nth` poll (from 1) is answered.
pub(super) fn answer(steps: &[Step], nth: u32) -> Word {
    let mut left = nth.max(1);
    for (index, step) in steps.iter().enumerate() {
        if left <= step.before {
            return Word::Told(Told::Pending);
        }
        left -= step.before;
        if left <= step.times || index + 1 == steps.len() {
            return step.word.turn(left);
        }
        left -= step.times;
    }
    Word::Told(Told::Ok)
}

/// The initiation time that a reference carries, in Unix milliseconds: the part `t` and 13 digits.
pub(super) fn initiated(api: Api, reference: &str) -> Option<i64> {
    parts(api, reference).find_map(|part| part.strip_prefix('t').filter(|ms| ms.len() == 13 && is_digits(ms))?.parse().ok())
}

/// Whether a reference has this part.
pub(super) fn has_part(api: Api, reference: &str, wanted: &str) -> bool {
    parts(api, reference).any(|part| part == wanted)
}

/// The parts behind the marker. Ayoconnect's references begin with it, because they have no
/// hyphens; in the others it is a part of its own.
fn parts(api: Api, reference: &str) -> impl Iterator<Item = &str> {
    let is_marker = |text: &&str| text.eq_ignore_ascii_case(MARKER);
    let behind = if api == Api::Ayoconnect {
        reference.get(..MARKER.len()).filter(is_marker).map(|_| &reference[MARKER.len()..])
    } else {
        let mut start = 0;
        reference.split('-').find_map(|part| {
            start += part.len() + 1;
            is_marker(&part).then(|| reference.get(start..).unwrap_or_default())
        })
    };
    behind.into_iter().flat_map(move |behind| behind.split(if api == Api::Ayoconnect { 'Z' } else { '-' }))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The longest count that is read: a longer number is no part of a script.
const MAX_DIGITS: usize = 6;

fn count(text: &str) -> Option<u32> {
    text.parse().ok().filter(|count| *count > 0 && text.len() <= MAX_DIGITS && is_digits(text))
}

fn step(part: &str) -> Option<Step> {
    let (part, times) = match part.rsplit_once('x') {
        Some((word, times)) if is_digits(times) => (word, count(times)?),
        _ => (part, 1),
    };
    if let Some(status) = http_status(part) {
        return Some(Step { word: Word::Told(Told::Http(status)), before: 0, times });
    }
    let name = part.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = match &part[name.len()..] {
        "" => None,
        digits => Some(count(digits)?),
    };
    let word = word(name, number)?;
    // Seconds for these two, the poll at which the word comes for all others.
    let is_seconds = matches!(name, "slow" | "wait");
    let before = if is_seconds { 0 } else { number.unwrap_or(1) - 1 };
    Some(Step { word, before, times })
}

fn http_status(part: &str) -> Option<u16> {
    let status = part.parse().ok().filter(|_| part.len() == 3 && is_digits(part))?;
    (status == 202 || (400..600).contains(&status)).then_some(status)
}

/// The word of this name, with the seconds that belong to it.
fn word(name: &str, number: Option<u32>) -> Option<Word> {
    let script = SCRIPTS.iter().find(|script| script.word == name)?;
    Some(match (script.says, number) {
        (Word::Hostile(Hostile::Slow(_)), seconds) => Word::Hostile(Hostile::Slow(seconds)),
        (WAIT, Some(seconds)) => Word::Told(Told::Wait(Retry::Seconds(seconds))),
        (word, _) => word,
    })
}

const WAIT: Word = Word::Told(Told::Wait(Retry::Seconds(RETRY_AFTER_S)));
const SLOW: Word = Word::Hostile(Hostile::Slow(None));

impl Word {
    /// As the grammar writes it, without counts.
    pub(super) fn label(self) -> String {
        let plain = match self {
            Self::Told(Told::Http(status)) => return status.to_string(),
            Self::Told(Told::Wait(Retry::Seconds(_))) => WAIT,
            Self::Hostile(Hostile::Slow(_)) => SLOW,
            word => word,
        };
        SCRIPTS.iter().find(|script| script.says == plain).map_or_else(String::new, |script| script.word.to_owned())
    }

    /// The word at its `nth` turn (from 1): only `flaky` changes.
    fn turn(self, nth: u32) -> Self {
        match (self, nth % 4) {
            (Self::Hostile(Hostile::Flaky), 1) => Self::Told(Told::Http(500)),
            (Self::Hostile(Hostile::Flaky), 2) => Self::Hostile(Hostile::Reset),
            (Self::Hostile(Hostile::Flaky), 3) => Self::Hostile(Hostile::Html),
            (Self::Hostile(Hostile::Flaky), _) => Self::Told(Told::Pending),
            (word, _) => word,
        }
    }

    /// The state that this word alone leads to; `None` where polling goes on.
    fn end(self, api: Api, newer: bool) -> Option<&'static str> {
        let Self::Told(told) = self else { return None };
        let end = match (told, api) {
            (Told::Ok | Told::Odd, _) => SUCCEEDED,
            (Told::Fail | Told::OddFail | Told::Echo, _) => FAILED,
            (Told::Cancel, Api::DusuPay) => "cancelled",
            (Told::Cancel, _) => FAILED,
            (Told::Refund, Api::Ayoconnect) => "refunded",
            (Told::Refund, _) => SUCCEEDED,
            (Told::Amount, Api::Dapi) => SUCCEEDED,
            (Told::Amount, _) => UNRESOLVED,
            (Told::Currency, Api::DusuPay | Api::Ayoconnect) => UNRESOLVED,
            (Told::Currency, _) => SUCCEEDED,
            (Told::Other | Told::NoId, Api::Ayoconnect) => SUCCEEDED,
            (Told::NoId, Api::Dapi) if newer => SUCCEEDED,
            (Told::Refused | Told::Revoke | Told::Denied | Told::BadToken, Api::Dapi) => UNRESOLVED,
            _ => return None,
        };
        Some(end)
    }
}

const fn told(word: &'static str, says: Told, answers: &'static str) -> Script {
    Script { word, answers, ends_soon: false, says: Word::Told(says) }
}

const fn decisive(word: &'static str, says: Told, answers: &'static str) -> Script {
    Script { ends_soon: true, ..told(word, says, answers) }
}

const fn hostile(word: &'static str, says: Hostile, answers: &'static str) -> Script {
    Script { word, answers, ends_soon: false, says: Word::Hostile(says) }
}

const SCRIPTS: &[Script] = &[
    decisive("ok", Told::Ok, "success"),
    decisive("fail", Told::Fail, "failure with a reason"),
    decisive("cancel", Told::Cancel, "DusuPay: cancelled; the others, which have no such word: failure"),
    decisive(
        "refund",
        Told::Refund,
        "Ayoconnect: refunded; Khalti: success with refunds; the others, which have no such word: success",
    ),
    decisive("echo", Told::Echo, "failure whose reason repeats the credentials that were sent"),
    decisive("amount", Told::Amount, "success over another amount; Dapi, which names none: success"),
    decisive("currency", Told::Currency, "success in another currency; Dropayment, Khalti and Dapi, which name none: success"),
    told("pending", Told::Pending, "pending"),
    told("never", Told::Pending, "pending"),
    told(
        "action",
        Told::Action,
        "Dropayment, Ayoconnect, Dapi: the payer has to act; the others, which have no such word: pending",
    ),
    told("fee", Told::Fee, "Dropayment: the merchant has to choose a fee; the others as action"),
    told("unknownword", Told::Unknown, "a word that no document knows"),
    told("other", Told::Other, "success with another transaction's identifier; Ayoconnect, which has none to compare: success"),
    told("noid", Told::NoId, "success without the identifier; Ayoconnect, which has none to compare: success"),
    told("notfound", Told::NotFound, "not found"),
    told("early", Told::Early, "DusuPay: 403, try again after 2 minutes; the others: pending"),
    told("error", Told::Error, "HTTP 200 with the body of an error"),
    told("refused", Told::Refused, "credentials refused; Dapi: the payer's, by INVALID_CREDENTIALS"),
    decisive("odd", Told::Odd, "success in which what decides nothing is missing, null or of another type"),
    decisive("oddfail", Told::OddFail, "failure in the same way; Dapi in its newer shape, with PARAMETER_ERROR for its reason"),
    told("oddfee", Told::OddFee, "Dropayment: a choice of fees of which one lacks two parts; the others as action"),
    told("confirm", Told::Confirm, "Dapi: a question without a text; the others as action"),
    told("choice", Told::Choice, "Dapi: a multiple choice; the others as action"),
    told("wrongotp", Told::WrongOtp, "Dapi: HTTP 401 about the operation, a wrong one-time password; the others HTTP 400"),
    told(
        "invalid",
        Told::Invalid,
        "Khalti: the request does not validate (1011), with details that are an object; the others HTTP 400",
    ),
    told("badtoken", Told::BadToken, "Khalti: HTTP 400 in the short form, invalid token (1002); the others as refused"),
    told("denied", Told::Denied, "DusuPay: HTTP 403, access denied, fix your key and try again; the others as refused"),
    told("pleasewait", Told::PleaseWait, "DusuPay: HTTP 403, please wait 2 minutes; the others: pending"),
    told("forbidden", Told::Forbidden, "HTTP 403 about this transaction alone: Ayoconnect's inactive card, the others as firewall"),
    told("firewall", Told::Firewall, "HTTP 403 with a firewall's HTML page"),
    told("revoke", Told::Revoke, "Ayoconnect: 401, and the access token is void from now on; the others as refused"),
    told("wait", Told::Wait(Retry::Seconds(RETRY_AFTER_S)), "HTTP 429 with Retry-After in seconds"),
    told("waitdate", Told::Wait(Retry::Date), "HTTP 429 with Retry-After as a date"),
    hostile("slow", Hostile::Slow(None), "nothing for 60 s, or for as many seconds as the number says; then pending"),
    hostile("reset", Hostile::Reset, "the connection is reset"),
    hostile("drop", Hostile::Drop, "the connection ends half-way through a success"),
    hostile("garbage", Hostile::Garbage, "bytes"),
    hostile("html", Hostile::Html, "an HTML page"),
    hostile("empty", Hostile::Empty, "an empty body"),
    hostile("cut", Hostile::Cut, "half of a success"),
    hostile("dup", Hostile::Duplicate, "a success with a duplicate key"),
    hostile("bom", Hostile::ByteOrderMark, "a success behind a byte-order mark"),
    hostile("mojibake", Hostile::Mojibake, "a success with bytes that are not UTF-8"),
    hostile("dribble", Hostile::Dribble, "a success, one byte a second"),
    hostile("huge", Hostile::Huge, "100 MB"),
    hostile("gzipbomb", Hostile::GzipBomb, "100 MB in less than 1 MB of gzip"),
    hostile("redirect", Hostile::Redirect, "a redirect to a page that says success"),
    hostile("flaky", Hostile::Flaky, "in turn HTTP 500, a reset, an HTML page, pending"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn words(api: Api, reference: &str, polls: u32) -> Vec<Word> {
        let steps = steps(api, reference);
        (1..=polls).map(|nth| answer(&steps, nth)).collect()
    }

    const OK: Word = Word::Told(Told::Ok);
    const PENDING: Word = Word::Told(Told::Pending);
    const HTTP_500: Word = Word::Told(Told::Http(500));

    #[test]
    fn a_reference_without_a_step_succeeds_at_once() {
        assert_eq!(words(Api::Khalti, "MCTREFT2WMNWZ23SBN6Y", 2), [OK, OK]);
        assert_eq!(words(Api::Khalti, "355b01ed-fb50-4bf0-b7f6-71b4cf94971c", 1), [OK]);
    }

    #[test]
    fn an_ordinary_reference_is_no_script() {
        for reference in
            ["ORDER-500", "INV-404-2026", "order-cancel-7", "500", "never", "A-fail-SIM", "SIMPLE-500", "ASIM-500", "SIM"]
        {
            for api in Api::ALL {
                assert_eq!(words(api, reference, 2), [OK, OK], "{reference}");
            }
            assert_eq!(expected_state("dusupay", reference), Some("succeeded"), "{reference}");
        }
        assert_eq!(words(Api::Ayoconnect, "00000000000000000000017Z500x2Zok", 1), [OK]);
        assert_eq!(initiated(Api::DusuPay, "A-t1763760000000-ok"), None);
        assert_eq!(words(Api::Khalti, "ORDER-500-sim-404", 1), [Word::Told(Told::Http(404))]);
    }

    #[test]
    fn steps_follow_each_other_and_the_last_one_stays() {
        assert_eq!(words(Api::Dapi, "SIM-500x2-ok3", 6), [HTTP_500, HTTP_500, PENDING, PENDING, OK, OK]);
        assert_eq!(words(Api::Dapi, "A-sim-500-ok", 3), [HTTP_500, OK, OK]);
        assert_eq!(words(Api::Dapi, "SIM-500", 3), [HTTP_500; 3]);
    }

    #[test]
    fn ayoconnect_writes_z_for_the_hyphen_and_only_ayoconnect() {
        assert_eq!(words(Api::Ayoconnect, "SIM00000000000000000017Z500x2Zok", 3), [HTTP_500, HTTP_500, OK]);
        assert_eq!(words(Api::Khalti, "SIMAZ500", 1), [OK]);
    }

    #[test]
    fn numbers_of_slow_and_wait_are_seconds() {
        assert_eq!(words(Api::Dapi, "SIM-slow3", 1), [Word::Hostile(Hostile::Slow(Some(3)))]);
        assert_eq!(words(Api::Dapi, "SIM-wait30x2-ok", 3)[1..], [Word::Told(Told::Wait(Retry::Seconds(30))), OK]);
    }

    #[test]
    fn absurd_counts_are_no_steps() {
        for part in ["ok0", "okx0", "ok9999999", "okx99999999999", "600", "399", "1500", "x2", "", "OK"] {
            assert_eq!(step(part), None, "{part}");
        }
    }

    #[test]
    fn flaky_takes_turns() {
        let turns = words(Api::Dapi, "SIM-flakyx5-ok", 6);
        assert_eq!(turns[0], HTTP_500);
        assert_eq!(turns[1], Word::Hostile(Hostile::Reset));
        assert_eq!(turns[3..], [PENDING, HTTP_500, OK]);
    }

    #[test]
    fn every_listed_word_is_a_step_and_is_listed_once() {
        let mut listed: Vec<&str> = scripts().iter().map(|script| script.word).collect();
        for word in &listed {
            assert!(step(word).is_some(), "{word}");
        }
        listed.sort_unstable();
        listed.dedup();
        assert_eq!(listed.len(), scripts().len());
    }

    #[test]
    fn a_word_that_ends_soon_ends_in_a_state_of_its_own_for_every_provider() {
        for script in scripts() {
            let ends = Api::ALL.map(|api| step(script.word).and_then(|step| step.word.end(api, false)).is_some());
            assert_eq!(ends.iter().all(|ends| *ends), script.ends_soon, "{}", script.word);
        }
    }

    #[test]
    fn the_first_decisive_word_is_the_expected_state() {
        assert_eq!(expected_state("dusupay", "SIM-500x2-cancel"), Some("cancelled"));
        assert_eq!(expected_state("khalti", "SIM-cancel-ok"), Some("failed"));
        assert_eq!(expected_state("ayoconnect", &reference("ayoconnect", 1, "refund")), Some("refunded"));
        assert_eq!(expected_state("dropayment", "SIM-never"), Some("unresolved"));
        assert_eq!(expected_state("dapi", "SIM-amount"), Some("succeeded"));
        assert_eq!(expected_state("nobody", "SIM-ok"), None);
    }

    #[test]
    fn built_references_carry_their_script_and_fit_their_provider() {
        for api in Api::ALL {
            let built = reference(api.name(), 404, "500x2-ok");
            assert_eq!(words(api, &built, 3), [HTTP_500, HTTP_500, OK], "{built}");
        }
        let built = reference("ayoconnect", 17, "gzipbombx2-ok");
        assert!(built.len() == 32 && built.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{built}");
    }

    #[test]
    fn the_initiation_time_is_read_from_the_reference() {
        assert_eq!(initiated(Api::DusuPay, "SIM-t1763760000000-ok"), Some(1_763_760_000_000));
        assert_eq!(initiated(Api::DusuPay, "SIM-t17637600000-ok"), None);
    }
}

//! Text for people: one way to write lengths of time, counts, moments and foreign text, in every
//! command and on the page.
//!
//! A duration as the configuration writes it, exact and to be read again, is [`crate::config::duration`]'s.

use chrono::{DateTime, Utc};
use std::time::Duration;

/// Whether a terminal obeys this character, or it has no shape of its own but changes how its
/// neighbours are shown. A feeder that inserts rows must not steer the reader's eye.
#[must_use]
pub fn is_steering(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text from a table as one line, without anything that would steer its reader.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().map(|character| if is_steering(character) { '\u{fffd}' } else { character }).collect()
}

/// JSON that steers no terminal: what a terminal would obey stands in it as an escape, which means the same.
pub fn json(value: &impl serde::Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_string(value)?;
    if !text.chars().any(is_steering) {
        return Ok(text);
    }
    // Outside of its strings JSON has no such character.
    let escaped = |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect::<String>();
    Ok(text.chars().map(|c| if is_steering(c) { escaped(c) } else { c.to_string() }).collect())
}

/// A path as an error may quote it: what does not look like one may be a secret in the wrong place.
#[must_use]
pub fn quotable_path(text: &str) -> &str {
    let is_plain = text.len() <= 255 && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/ ".contains(c));
    let has_extension = text.rsplit_once('.').is_some_and(|(name, end)| !name.is_empty() && (1..=5).contains(&end.len()));
    let leads_somewhere = ["/", "./", "../"].iter().any(|start| text.starts_with(start)) || has_extension;
    if is_plain && leads_somewhere { text } else { crate::wire::REDACTED }
}

/// At most `most` characters of [`plain`] text; an ellipsis stands for what is left out.
#[must_use]
pub fn cut(text: &str, most: usize) -> String {
    let plain = plain(text);
    if plain.chars().count() <= most {
        return plain;
    }
    plain.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// A moment, exact to the millisecond, in UTC.
#[must_use]
pub fn moment(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

/// A moment for a glance: the time of day, with the date where it is another one than `now`'s.
#[must_use]
pub fn clock(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let form = if at.date_naive() == now.date_naive() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M" };
    at.format(form).to_string()
}

/// A length of time as people say it, in two units at most: `250 ms`, `4.2 s`, `1 min 55 s`, `3 h`,
/// `2 d 4 h`.
#[must_use]
pub fn span(length: Duration) -> String {
    let seconds = length.as_secs_f64();
    let whole = seconds.round() as u64;
    let two = |large: u64, unit: &str, small: u64, subunit: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {subunit}"),
    };
    match whole {
        _ if length.is_zero() => "0 s".into(),
        _ if seconds < 0.001 => "< 1 ms".into(),
        _ if seconds < 0.1 => format!("{} ms", (seconds * 1e4).round() / 10.0),
        _ if seconds < 0.9995 => format!("{} ms", (seconds * 1e3).round()),
        _ if seconds < 9.95 => format!("{} s", (seconds * 10.0).round() / 10.0),
        ..60 => format!("{whole} s"),
        60..3600 => two(whole / 60, "min", whole % 60, "s"),
        3600..86_400 => two(whole / 3600, "h", whole % 3600 / 60, "min"),
        _ => two(whole / 86_400, "d", whole % 86_400 / 3600, "h"),
    }
}

/// [`span`] of seconds as the database gives them; what is negative counts as none.
#[must_use]
pub fn seconds(seconds: f64) -> String {
    span(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// A length of time that is only estimated, in one unit where that says enough: `40 s`, `15 min`, `3 h`.
#[must_use]
pub fn about(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    match seconds {
        ..1.0 => "1 s".into(),
        ..90.0 => format!("{} s", seconds.ceil()),
        ..5400.0 => format!("{} min", (seconds / 60.0).round()),
        ..172_800.0 => format!("{} h", (seconds / 3600.0).round()),
        _ => format!("{} d", (seconds / 86_400.0).round()),
    }
}

/// How long it is from `from` to `to`; nothing where `to` lies before.
#[must_use]
pub fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> String {
    span((to - from).to_std().unwrap_or_default())
}

/// A count with its thousands apart: `9,411`.
#[must_use]
pub fn count(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if number < 0 {
        text.push('-');
    }
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count that has stopped at `most`: then it says so.
#[must_use]
pub fn counted(number: i64, most: i64) -> String {
    if number >= most { format!("at least {}", count(most)) } else { count(number) }
}

/// One or many of something: `1 payment`, `9,411 payments`.
#[must_use]
pub fn some(number: i64, most: i64, one: &str, many: &str) -> String {
    format!("{} {}", counted(number, most), if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_a_table_cannot_steer_its_reader() {
        assert_eq!(plain("a\x1b[2Jb\nc\u{202e}d"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d");
        assert_eq!(cut("äöüß", 3), "äö…");
    }

    #[test]
    fn lengths_of_time_are_said_in_two_units_at_most() {
        let said = [0.0, 0.0004, 0.0025, 0.25, 2.54, 9.99, 59.4, 61.0, 115.0, 360.0, 3600.0, 5400.0, 90_061.0].map(seconds);
        let expected = [
            "0 s",
            "< 1 ms",
            "2.5 ms",
            "250 ms",
            "2.5 s",
            "10 s",
            "59 s",
            "1 min 1 s",
            "1 min 55 s",
            "6 min",
            "1 h",
            "1 h 30 min",
            "1 d 1 h",
        ];
        assert_eq!(said, expected);
        assert_eq!(seconds(-3.0), "0 s");
        assert_eq!([0.2, 40.0, 941.0, 8_000.0, 200_000.0].map(about), ["1 s", "40 s", "16 min", "2 h", "2 d"]);
    }

    #[test]
    fn json_steers_no_terminal_and_means_the_same() {
        let value = serde_json::json!({"reference": "a\u{9b}31m\u{202e}b\u{7f}ü"});
        let text = json(&value).expect("JSON");
        assert_eq!(text, r#"{"reference":"a\u009b31m\u202eb\u007fü"}"#);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), value);
    }

    #[test]
    fn what_looks_like_no_path_is_not_quoted() {
        for path in ["/run/secrets/khalti", "./token", "../a/b", "ca.pem", "/no such/file"] {
            assert_eq!(quotable_path(path), path);
        }
        for secret in ["hunter2", "live_secret_key_68791341fdd94846a146f0457ff7b455", "a+b/c==", "-----BEGIN KEY-----\nabc", ""] {
            assert_eq!(quotable_path(secret), "[redacted]", "{secret}");
        }
    }

    #[test]
    fn counts_have_their_thousands_apart_and_say_where_they_stopped() {
        assert_eq!(
            [0, 7, 999, 1_000, 9_411, 1_234_567, -1_000].map(count),
            ["0", "7", "999", "1,000", "9,411", "1,234,567", "-1,000"]
        );
        assert_eq!((counted(9_999, 10_000), counted(10_000, 10_000)), ("9,999".into(), "at least 10,000".into()));
        assert_eq!(
            (some(1, 10, "payment", "payments"), some(0, 10, "payment", "payments")),
            ("1 payment".into(), "0 payments".into())
        );
    }
}

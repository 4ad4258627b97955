//! Durations as text: `"500ms"`, `"3s"`, `"5m"`, `"72h"`, `"30d"`, also compound, `"2m10s"`, and
//! ranges of them, `"3s..5s"`.

use crate::domain::Range;
use std::time::Duration;

/// What an error says about the form.
pub(crate) const FORM: &str = r#"text with a unit, such as "500ms", "3s", "5m", "2m10s", "72h" or "30d""#;
/// The longest duration that is accepted: a hundred years.
const MAX_DURATION: Duration = Duration::from_secs(36_525 * 86_400);

/// Reads one duration: whole numbers, each with its unit, the longest unit first. The error says
/// what is wrong and shows the form.
pub fn parse(text: &str) -> Result<Duration, String> {
    let (mut rest, mut total, mut last_unit) = (text.trim(), Some(0_u64), u64::MAX);
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = rest.split_at(digits);
        let unit = unit.trim_start();
        let letters = unit.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, next) = unit.split_at(letters);
        let millis_per_unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => 0,
        };
        if number.is_empty() || millis_per_unit == 0 || millis_per_unit >= last_unit {
            return Err(format!("a duration is {FORM}"));
        }
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(millis_per_unit));
        total = total.zip(part).and_then(|(total, part)| total.checked_add(part));
        (rest, last_unit) = (next.trim_start(), millis_per_unit);
        if rest.is_empty() {
            break;
        }
    }
    total
        .map(Duration::from_millis)
        .filter(|duration| *duration <= MAX_DURATION)
        .ok_or_else(|| "a duration is at most 100 years".to_owned())
}

/// Reads a range `"3s..5s"`, or a single duration as a range of one.
pub(crate) fn parse_range(text: &str) -> Result<Range, String> {
    let Some((min, max)) = text.split_once("..") else {
        return parse(text).map(Range::exactly);
    };
    let range = Range { min: parse(min)?, max: parse(max)? };
    if range.min > range.max {
        return Err("the shorter wait of a range comes first, as in \"3s..5s\"".into());
    }
    Ok(range)
}

/// The duration for people, exact to the millisecond: `2m1s`, `72h`, `1.5s`. [`parse`] reads all
/// but those with a point.
#[must_use]
pub fn text(duration: Duration) -> String {
    let millis = duration.as_millis();
    let days = Some(millis / 86_400_000).filter(|days| *days > 3).unwrap_or_default();
    let rest = millis - days * 86_400_000;
    let mut text = String::new();
    for (count, unit) in [(days, "d"), (rest / 3_600_000, "h"), (rest / 60_000 % 60, "m")] {
        if count > 0 {
            text += &format!("{count}{unit}");
        }
    }
    match (rest / 1_000 % 60, rest % 1_000) {
        (0, 0) if !text.is_empty() => {}
        (0, millis) if text.is_empty() && millis > 0 => text += &format!("{millis}ms"),
        (seconds, 0) => text += &format!("{seconds}s"),
        (seconds, millis) => text += format!("{seconds}.{millis:03}").trim_end_matches('0'),
    }
    if text.ends_with(|last: char| last.is_ascii_digit()) { text + "s" } else { text }
}

/// A range for people: `3s–5s`.
#[must_use]
pub fn range_text(range: Range) -> String {
    if range.min == range.max { text(range.min) } else { format!("{}–{}", text(range.min), text(range.max)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (text, millis) in [
            ("500ms", 500),
            ("3s", 3_000),
            ("5m", 300_000),
            ("72h", 259_200_000),
            ("30d", 2_592_000_000),
            ("0s", 0),
            (" 3 s ", 3_000),
            ("2m10s", 130_000),
            ("1h30m", 5_400_000),
            ("30d1h1m1s", 2_595_661_000),
            ("1m 0s 5ms", 60_005),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("36525d"), Ok(MAX_DURATION));
    }

    #[test]
    fn what_is_no_duration_is_refused_with_the_form() {
        for text in [
            "",
            "5",
            "-5s",
            "s",
            "1.5s",
            "5 minutes",
            "30m1h",
            "2m2m",
            "2m10",
            "10s2m",
            "2m-10s",
            "2m,10s",
            "5S",
            "٣s",
            "3s..5s",
            "+3s",
            "1e3s",
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains("\"500ms\", \"3s\""), "{text}: {error}");
        }
        for text in ["36526d", "36525d1ms", "1d18446744073709551615ms", "99999999999999999999s", "18446744073709551615d"] {
            assert!(parse(text).expect_err(text).contains("100 years"), "{text}");
        }
    }

    #[test]
    fn a_range_has_its_shorter_wait_first() {
        assert_eq!(parse_range("3s..5s"), Ok(Range { min: Duration::from_secs(3), max: Duration::from_secs(5) }));
        assert_eq!(parse_range("2m10s..3m"), Ok(Range { min: Duration::from_secs(130), max: Duration::from_secs(180) }));
        assert_eq!(parse_range("3s"), Ok(Range::exactly(Duration::from_secs(3))));
        for text in ["5s..3s", "3..5s", "3s..", "..", "3s...5s", "3s..4s..5s"] {
            assert!(parse_range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_duration_is_shown_in_the_units_that_people_use() {
        for (millis, shown) in [
            (0, "0s"),
            (50, "50ms"),
            (1_500, "1.5s"),
            (61_050, "1m1.05s"),
            (121_000, "2m1s"),
            (300_000, "5m"),
            (259_200_000, "72h"),
            (31_536_000_000, "365d"),
            (2_595_661_000, "30d1h1m1s"),
        ] {
            assert_eq!(text(Duration::from_millis(millis)), shown);
        }
    }
}

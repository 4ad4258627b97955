//! An account's access token, as the file says how to get and read it.

use super::account::Account;
use super::file::TokenRequest;
use super::read;
use crate::domain::Outcome;
use crate::providers::Token;
use crate::wire::{self, Response};
use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::Value;
use std::time::Duration;

impl Account<'_> {
    /// The token of an answer that was asked for at `now`; else the outcome of the poll that wanted it.
    pub(super) fn fetched(&self, response: &Response, now: DateTime<Utc>) -> Result<Token, Outcome> {
        let Some(token) = &self.file.token else {
            return Err(Outcome::RequestFailed { message: "no access token is declared".into() });
        };
        if matches!(response.status, 300..=399 | 429 | 503) {
            return Err(wire::unreadable(response, String::new()));
        }
        let answer = wire::json(&response.body).map_err(|why| wire::unreadable(response, format!("access token: {why}")))?;
        if let Some(error) = read::failure(&token.errors, &answer, "", response) {
            return Err(error);
        }
        if !token.believe.contains(&response.status) {
            return Err(wire::unreadable(response, "no access token".into()));
        }
        let unusable = |why: &str| Outcome::Unusable { why: format!("access token: {} {why}", token.value.pointer.as_str()) };
        let value = token.value.pointer.get(&answer, "").and_then(Value::as_str).filter(|value| !value.is_empty());
        let value = value.ok_or_else(|| unusable("is not there or no text"))?;
        wire::header_value("it", value).map_err(|_| unusable("has characters that no header can carry"))?;
        Ok(Token { renew_before: token.renew_before, ..Token::new(value.into(), Some(token.lifetime(&answer, now))) })
    }

    /// Whether an answer says that the token has run out before its time.
    pub(super) fn is_token_refused(&self, reference: &str, response: &Response) -> bool {
        if response.status == 401 {
            return true;
        }
        if !self.file.errors.iter().any(|rule| rule.renew_token) {
            return false;
        }
        let answer = wire::json(&response.body).unwrap_or_default();
        read::matching(&self.file.errors, &answer, reference, response).is_some_and(|rule| rule.renew_token)
    }
}

impl TokenRequest {
    /// How long a token is good for: as the answer says, but for its longest.
    fn lifetime(&self, answer: &Value, now: DateTime<Utc>) -> Duration {
        let told = |place: &super::answer::Place| place.pointer.get(answer, "").and_then(wire::scalar);
        let seconds = self.seconds.as_ref().and_then(told).and_then(|text| seconds(&text));
        let until = self.until.as_ref().and_then(told).and_then(|text| time(&text));
        let until = until.map(|until| (until - now).to_std().unwrap_or_default());
        seconds.or(until).unwrap_or(self.unless_told).min(self.longest)
    }
}

/// Whole seconds, whatever stands behind the point.
fn seconds(text: &str) -> Option<Duration> {
    let whole = text.split_once('.').map_or(text, |(whole, _)| whole);
    whole.parse().ok().map(Duration::from_secs)
}

/// A time as answers write it; without an offset it is UTC.
fn time(text: &str) -> Option<DateTime<Utc>> {
    let with_offset = DateTime::parse_from_rfc3339(text).map(|time| time.with_timezone(&Utc));
    let plain = |form| NaiveDateTime::parse_from_str(text, form).map(|time| time.and_utc());
    let forms = || plain("%Y-%m-%dT%H:%M:%S%.f").or_else(|_| plain("%Y-%m-%d %H:%M:%S%.f"));
    with_offset.or_else(|_| forms()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_read_as_answers_write_it() {
        assert_eq!(seconds("3599"), Some(Duration::from_secs(3599)));
        assert_eq!(seconds("180.0"), Some(Duration::from_secs(180)));
        assert_eq!((seconds("-1"), seconds("soon")), (None, None));
        for text in ["2021-08-26T12:29:30.5177702Z", "2021-08-26T14:29:30+02:00", "2021-08-26T12:29:30", "2021-08-26 12:29:30"] {
            assert_eq!(time(text).map(|time| time.timestamp()), Some(1_629_980_970), "{text}");
        }
    }
}

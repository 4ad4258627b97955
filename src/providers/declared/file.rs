//! A declaration as one value: read from text, every key known, every name found. What it means as
//! a whole is judged by [`check`](super::check) and tried by [`trial`](super::trial).

use super::answer::{self, Answer, ErrorRule, Place, Words};
use super::examples::{self, Example};
use super::keys::{self, Form, Key};
use super::message::{self, Message};
use super::template::{Name, Names, Template};
use super::timing::{self, Documented, Pace};
use super::tree::{Item, Source, Spot, Table};
use super::values::Value;
use std::net::IpAddr;
use std::time::Duration;

/// The one format that this version reads. A file's meaning never changes within a format.
const FORMAT: i64 = 1;

/// A provider as its file declares it.
#[derive(Debug)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) base_url: Option<String>,
    pub(super) skip_bom: bool,
    pub(super) rules: Vec<Rule>,
    pub(super) names: Names,
    pub(super) account: Vec<Key>,
    pub(super) params: Vec<Key>,
    pub(super) options: Vec<Key>,
    /// In the order of the file, as [`Names::values`].
    pub(super) values: Vec<Value>,
    pub(super) token: Option<TokenRequest>,
    pub(super) request: Message,
    pub(super) answer: Answer,
    pub(super) words: Words,
    pub(super) errors: Vec<ErrorRule>,
    pub(super) documented: Documented,
    pub(super) pace: Pace,
    pub(super) keep: Vec<Place>,
    /// Of requests with the same value at most one may be in flight.
    pub(super) exclusive: Option<Name>,
    pub(super) examples: Vec<Example>,
    /// SHA-256 of the bytes that it was read from.
    pub(super) hash: [u8; 32],
}

/// A sentence of the documentation.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) id: String,
    pub(super) says: String,
    pub(super) at: String,
    pub(super) read: Option<String>,
}

/// How the account's access token is got.
#[derive(Debug)]
pub(super) struct TokenRequest {
    pub(super) message: Message,
    pub(super) believe: Vec<u16>,
    pub(super) value: Place,
    /// Seconds, in the answer.
    pub(super) seconds: Option<Place>,
    /// The time at which it ends, in the answer.
    pub(super) until: Option<Place>,
    pub(super) unless_told: Duration,
    pub(super) longest: Duration,
    pub(super) renew_before: Option<Duration>,
    pub(super) errors: Vec<ErrorRule>,
}

/// Reads a file's text. `None` after mistakes, which are noted.
pub(super) fn read(text: &str, source: &Source<'_>) -> Option<File> {
    let mut top = source.parse(text)?;
    // An unknown format may mean anything by any key: nothing else is looked at.
    let format = top.required("format", "write format = 1").and_then(|item| {
        let spot = item.spot.clone();
        item.integer(i64::MIN, i64::MAX).map(|number| (number, spot))
    });
    let (format, spot) = format?;
    if format != FORMAT {
        source.problem(&spot, format_args!("{format} is not known to this paypoll; it reads format = {FORMAT}"));
        return None;
    }
    let name = top.required("name", "write the provider's name, such as \"paystack\"").and_then(|item| item.parsed(name));
    let title = top.required("title", "write the provider's name for people and what is asked").and_then(Item::text);
    let base_url = top.optional("base_url").and_then(|item| item.parsed(base_url));
    let skip_bom = top.optional("bom").and_then(|item| {
        item.parsed(|text| match text {
            "skip" => Ok(true),
            _ => Err("is nothing to do about a byte-order mark; write \"skip\", or leave it out".into()),
        })
    });
    let rules = read_rules(&mut top, source);
    let ids: Vec<&str> = rules.iter().map(|rule| rule.id.as_str()).collect();
    let account = keys::read(top.table("account"), true, Form::Header, source);
    let params = keys::read(top.table("params"), false, Form::Text, source);
    let options = keys::read(top.table("options"), false, Form::Header, source);
    let (values, names) = read_values(top.table("values"), [&account, &params, &options], source);
    let token = top.table("token").map(|table| read_token(table, &names, &ids, source));
    let request = top.required("request", "write [request]: how a status is asked for").and_then(Item::table);
    let request = request.and_then(|mut table| {
        let message = message::read(&mut table, &names, source);
        table.finish();
        message
    });
    let answer = top.required("answer", "write [answer]: what is believed").and_then(Item::table);
    let answer = answer.and_then(|table| answer::read(table, &names, source));
    let words = top.required("words", "write [words]: what each documented word means").and_then(Item::table);
    let words = words.map(|table| answer::read_words(table, source));
    let errors = answer::read_errors(top.tables("errors"), source);
    let documented = timing::read_floors(top.table("floors"), &ids, source);
    let pace = timing::read_plan(top.table("plan"), &documented.floors, &ids, source);
    let keep = read_keep(top.table("keep"), source);
    let exclusive = top.optional("exclusive").and_then(|item| read_exclusive(item, &names, source));
    let examples = examples::read(top.table("example"), top.tables("examples"), source);
    top.finish();
    let token = match token {
        Some(token) => Some(token?),
        None => None,
    };
    let words = words?;
    let named = words.list.iter().filter_map(|(_, word)| Some((word.rule.as_ref()?, &word.spot)));
    for (id, spot) in named.chain(errors.iter().filter_map(|error| Some((error.rule.as_ref()?, &error.spot)))) {
        timing::check_rule(id, spot, &ids, source);
    }
    Some(File {
        name: name?,
        title: title?.0,
        base_url,
        skip_bom: skip_bom.unwrap_or_default(),
        rules,
        names,
        account,
        params,
        options,
        values,
        token,
        request: request?,
        answer: answer?,
        words,
        errors,
        documented,
        pace: pace?,
        keep,
        exclusive,
        examples,
        hash: [0; 32],
    })
}

/// Whether a provider may be called that: its name stands in tables, labels and variables. The
/// error says what to write.
pub fn check_name(text: &str) -> Result<(), String> {
    name(text).map(drop)
}

fn name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = (2..=32).contains(&text.len()) && text.bytes().all(plain) && text.as_bytes()[0].is_ascii_lowercase();
    match fits {
        false => Err("is no name; write 2 to 32 small letters, digits and hyphens, a letter first".into()),
        true if super::super::is_compiled(text) => Err("is the name of a compiled provider; choose another one".into()),
        true => Ok(text.to_owned()),
    }
}

/// An address: https, or plain http to this machine or a private network.
fn base_url(text: &str) -> Result<String, String> {
    let (scheme, rest) = text.split_once("://").ok_or("is no address; write it like \"https://api.example.com\"")?;
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.is_empty() || text.contains(['@', '?', '#']) || text.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err("is no address of a host and a path; write it like \"https://api.example.com\"".into());
    }
    let host = if authority.starts_with('[') { authority } else { authority.split(':').next().unwrap_or_default() };
    match scheme {
        "https" => Ok(text.trim_end_matches('/').to_owned()),
        "http" if is_private(host) => Ok(text.trim_end_matches('/').to_owned()),
        "http" => Err("would send credentials unencrypted to a public host; write https://".into()),
        _ => Err("must begin with https://".into()),
    }
}

/// Whether the host cannot be reached from the internet: this machine, a private address, a name
/// that no public DNS has.
fn is_private(host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse() {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_private(),
        Ok(IpAddr::V6(address)) => address.is_loopback() || address.is_unique_local(),
        Err(_) => !host.contains('.') || host.ends_with(".internal") || host.ends_with(".local"),
    }
}

fn read_rules(top: &mut Table<'_, '_>, source: &Source<'_>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for mut table in top.tables("rules") {
        let id = table.required("id", "write a short name for the rule").and_then(Item::text);
        let says = table.required("says", "write what the documentation says").and_then(Item::text);
        let at = table.required("where", "write the page's address").and_then(Item::text);
        let read = table.text("read");
        table.finish();
        let (Some((id, spot)), Some((says, said)), Some((at, _))) = (id, says, at) else { continue };
        if says.trim().is_empty() {
            source.problem(&said, "is empty; write what the documentation says");
        }
        if rules.iter().any(|rule| rule.id == id) {
            source.problem(&spot, format_args!("{id:?} is another rule's id"));
        }
        rules.push(Rule { id, says, at, read });
    }
    rules
}

/// Reads `[values]`, which may use one another, and with them all names.
fn read_values(table: Option<Table<'_, '_>>, keys: [&Vec<Key>; 3], source: &Source<'_>) -> (Vec<Value>, Names) {
    let names = |keys: &Vec<Key>| keys.iter().map(|key| key.name.clone()).collect();
    let items = table.map(|mut table| table.named()).unwrap_or_default();
    let names = Names {
        account: names(keys[0]),
        params: names(keys[1]),
        options: names(keys[2]),
        values: items.iter().map(|(name, _)| name.clone()).collect(),
    };
    let mut read = Vec::with_capacity(items.len());
    for (name, item) in items {
        if matches!(name.as_str(), "reference" | "token") || name.contains(['.', '{', '}']) {
            item.wrong("is no name for a value: it means something else already, or holds a dot or a brace");
        }
        match Value::read(item, &names, source) {
            Some(value) => read.push(value),
            // The list keeps step with the names; the mistake is noted, so nobody asks for this one.
            None => read.push(Value::unreadable()),
        }
    }
    (read, names)
}

/// A token whose answer does not say how long it lives.
const UNLESS_TOLD: Duration = Duration::from_secs(15 * 60);
/// No token is trusted for longer, unless the file says so.
const MAX_TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

fn read_token(mut table: Table<'_, '_>, names: &Names, rules: &[&str], source: &Source<'_>) -> Option<TokenRequest> {
    let message = message::read(&mut table, names, source);
    let believe = table.required("believe", "write the HTTP codes of an answer with a token, such as [200]").map(answer::codes);
    let mend = "write where the token stands, such as \"/access_token\"";
    let value = table.required("value", mend).and_then(|item| answer::place(item, source));
    let mut lifetime = table.table("lifetime");
    let mut at = |key: &str| lifetime.as_mut().and_then(|table| table.optional(key)).and_then(|item| answer::place(item, source));
    let (seconds, until) = (at("seconds"), at("until"));
    let mut wait = |key: &str| lifetime.as_mut().and_then(|table| table.optional(key)).and_then(told);
    let (unless_told, longest) = (wait("unless_told"), wait("longest"));
    if let Some(lifetime) = lifetime {
        if seconds.is_some() && until.is_some() {
            source.problem(lifetime.spot(), "has both seconds and until; keep one of them");
        }
        lifetime.finish();
    }
    let renew_before = table.table("renew_before").and_then(|mut table| {
        let wait = table.required("wait", "write how long before its end a token is renewed").and_then(told);
        if let Some((id, spot)) = table.optional("rule").and_then(Item::text) {
            timing::check_rule(&id, &spot, rules, source);
        }
        table.finish();
        wait
    });
    let errors = answer::read_errors(table.tables("errors"), source);
    table.finish();
    Some(TokenRequest {
        message: message?,
        believe: believe?,
        value: value?,
        seconds,
        until,
        unless_told: unless_told.unwrap_or(UNLESS_TOLD),
        longest: longest.unwrap_or(MAX_TOKEN_LIFE),
        renew_before,
        errors,
    })
}

fn told(item: Item<'_, '_>) -> Option<Duration> {
    item.parsed(|text| crate::duration::parse(text).map_err(|why| format!("is no duration: {why}")))
}

fn read_keep(table: Option<Table<'_, '_>>, source: &Source<'_>) -> Vec<Place> {
    let Some(mut table) = table else { return Vec::new() };
    let at = table.required("at", "write what of an answer is kept, such as [\"/status\"]").map(Item::one_or_more);
    table.finish();
    at.unwrap_or_default().into_iter().filter_map(|item| answer::place(item, source)).collect()
}

fn read_exclusive(item: Item<'_, '_>, names: &Names, source: &Source<'_>) -> Option<Name> {
    let (text, spot): (String, Spot) = item.text()?;
    match Template::read(&text, spot.clone(), names, source).only() {
        Some(name @ (Name::Reference | Name::Param(_))) => Some(name),
        _ => {
            source.problem(&spot, "must be one placeholder of the row, such as \"{params.wallet}\"");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_plain_and_nobody_elses() {
        assert!(name("mtn-momo").is_ok() && name("p2").is_ok());
        for wrong in ["", "p", "Pay", "2pay", "-pay", "pay_stack", "dusupay", &"p".repeat(33)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_is_encrypted_or_not_public() {
        for good in
            ["https://api.example.com/v1/", "http://127.0.0.1:80/x", "http://[::1]:1", "http://localhost", "http://10.0.0.7"]
        {
            assert!(base_url(good).is_ok(), "{good}");
        }
        assert_eq!(base_url("https://a.example/v1//"), Ok("https://a.example/v1".into()));
        for bad in
            ["api.example.com", "http://api.example.com", "ftp://a", "https://", "https://u:p@a", "https://a?x", "http://8.8.8.8"]
        {
            assert!(base_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn another_format_is_refused_and_nothing_else_is_looked_at() {
        for (text, said) in
            [("format = 2\nx = 1", "a, line 1: format: 2 is not known"), ("x = 1", "format: is missing; write format = 1")]
        {
            let source = Source::new("a", text);
            assert!(read(text, &source).is_none());
            let told = source.into_problems();
            assert!(told.len() == 1 && told[0].contains(said), "{told:?}");
        }
    }
}

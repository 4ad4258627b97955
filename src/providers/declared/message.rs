//! `[request]` and `[token]` as they are declared: method, path, query, headers and body, all templates.

use super::template::{Name, Names, Template};
use super::tree::{Item, Source, Spot, Table};
use crate::wire::Method;
use serde_json::Value;

/// A request as it is declared.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) method: Method,
    pub(super) path: Template,
    pub(super) query: Vec<(String, Template)>,
    /// Names in lower case.
    pub(super) headers: Vec<(String, Template)>,
    pub(super) body: Body,
    pub(super) spot: Spot,
}

/// What a request's body is.
#[derive(Debug)]
pub(super) enum Body {
    None,
    Json(Json),
    /// `application/x-www-form-urlencoded`.
    Form(Vec<(String, Template)>),
}

/// A JSON body: the types stand in the file, the texts are templates.
#[derive(Debug)]
pub(super) enum Json {
    Text(Template),
    Constant(Value),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// Headers that belong to the connection, not to the provider.
const NOT_OURS: [&str; 7] = ["host", "content-length", "transfer-encoding", "connection", "upgrade", "accept-encoding", "expect"];

/// Reads the keys that both tables have. `None` after a mistake that leaves nothing to go on with.
pub(super) fn read(table: &mut Table<'_, '_>, names: &Names, source: &Source<'_>) -> Option<Message> {
    let spot = table.spot().clone();
    let method = table.required("method", "write \"GET\" or \"POST\"").and_then(|item| {
        item.parsed(|text| match text {
            "GET" => Ok(Method::Get),
            "POST" => Ok(Method::Post),
            _ => Err("is no method that a status is asked with; write \"GET\" or \"POST\"".into()),
        })
    });
    let path = table.required("path", "write the path below base_url, such as \"/payments/{reference}\"").and_then(Item::text);
    let query = templates(table.table("query"), names, source);
    let headers = templates(table.table("headers"), names, source);
    let json = table.optional("json").and_then(|item| json(item, names, source));
    let form = table.optional("form").and_then(Item::table).map(|form| templates(Some(form), names, source));
    let body_on_get = table.flag("body_on_get");
    let body = match (json, form) {
        (Some(_), Some(_)) => {
            source.problem(&spot, "has both json and form; a request has one body");
            Body::None
        }
        (Some(json), None) => Body::Json(json),
        (None, Some(form)) => Body::Form(form),
        (None, None) => Body::None,
    };
    if method == Some(Method::Get) && !matches!(body, Body::None) && !body_on_get {
        source.problem(&spot, "has a body on a GET; add body_on_get = true where the documentation wants that");
    }
    let (path, path_spot) = path?;
    check_path(&path, &path_spot, source);
    let message = Message { method: method?, path: Template::read(&path, path_spot, names, source), query, headers, body, spot };
    message.check_headers(source);
    Some(message)
}

fn templates(table: Option<Table<'_, '_>>, names: &Names, source: &Source<'_>) -> Vec<(String, Template)> {
    let Some(mut table) = table else { return Vec::new() };
    let read = |(key, item): (String, Item<'_, '_>)| {
        let (text, spot) = item.text()?;
        Some((key, Template::read(&text, spot, names, source)))
    };
    table.named().into_iter().filter_map(read).collect()
}

fn json(item: Item<'_, '_>, names: &Names, source: &Source<'_>) -> Option<Json> {
    if item.is_table() {
        let entries = item.table()?.named().into_iter().map(|(key, item)| Some((key, json(item, names, source)?)));
        return entries.collect::<Option<_>>().map(Json::Object);
    }
    if item.is_list() {
        let items = item.list("a list")?.into_iter().map(|item| json(item, names, source));
        return items.collect::<Option<_>>().map(Json::List);
    }
    let spot = item.spot.clone();
    match item.json()? {
        Value::String(text) => Some(Json::Text(Template::read(&text, spot, names, source))),
        constant => Some(Json::Constant(constant)),
    }
}

/// What a path may hold beside placeholders.
fn check_path(path: &str, spot: &Spot, source: &Source<'_>) {
    if !path.starts_with('/') {
        source.problem(spot, format_args!("{path:?} must begin with a slash"));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@{}".contains(&byte);
    if !path.bytes().all(allowed) {
        source.problem(spot, format_args!("{path:?} holds what no path can carry; what follows a ? belongs into query"));
    }
}

impl Message {
    fn check_headers(&self, source: &Source<'_>) {
        for (name, template) in &self.headers {
            let token = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
            if name.is_empty() || !name.bytes().all(token) {
                let lower = name.to_ascii_lowercase();
                source.problem(&template.spot, format_args!("{name:?} is no header's name in lower case; write {lower:?}"));
            }
            if NOT_OURS.contains(&name.as_str()) {
                source.problem(&template.spot, "is the connection's own header; leave it out");
            }
        }
    }

    /// What stands in its URL.
    pub(super) fn in_url(&self) -> impl Iterator<Item = (Name, &Spot)> {
        let query = self.query.iter().map(|(_, template)| template);
        std::iter::once(&self.path).chain(query).flat_map(|template| template.names().map(move |name| (name, &template.spot)))
    }

    /// What stands in its headers.
    pub(super) fn in_headers(&self) -> impl Iterator<Item = (Name, &Spot)> {
        self.headers.iter().flat_map(|(_, template)| template.names().map(move |name| (name, &template.spot)))
    }

    /// What stands in its body.
    pub(super) fn in_body(&self) -> Vec<(Name, &Spot)> {
        let mut found = Vec::new();
        match &self.body {
            Body::None => {}
            Body::Json(json) => json.collect(&mut found),
            Body::Form(form) => {
                found.extend(form.iter().flat_map(|(_, template)| template.names().map(move |name| (name, &template.spot))));
            }
        }
        found
    }

    /// What stands anywhere in it.
    pub(super) fn names(&self) -> Vec<(Name, &Spot)> {
        self.in_url().chain(self.in_headers()).chain(self.in_body()).collect()
    }
}

impl Json {
    fn collect<'j>(&'j self, found: &mut Vec<(Name, &'j Spot)>) {
        match self {
            Self::Text(template) => found.extend(template.names().map(|name| (name, &template.spot))),
            Self::Constant(_) => {}
            Self::List(items) => items.iter().for_each(|item| item.collect(found)),
            Self::Object(entries) => entries.iter().for_each(|(_, json)| json.collect(found)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> (Option<Message>, Vec<String>) {
        let source = Source::new("a", text);
        let mut table = source.parse(text).expect("TOML");
        let message = read(&mut table, &Names::default(), &source);
        table.finish();
        (message, source.into_problems())
    }

    #[test]
    fn a_request_is_read_with_all_that_it_carries() {
        let (message, told) = problems(
            "method = \"POST\"\npath = \"/v1/{reference}\"\nquery = { q = \"{reference}\" }\nheaders = { x-a = \"b\" }\n\
             json = { id = \"{reference}\", n = 1.50, deep = [{ t = \"{token}\" }] }",
        );
        assert_eq!(told, [""; 0]);
        let names: Vec<Name> = message.expect("a request").names().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [Name::Reference, Name::Reference, Name::Reference, Name::Token]);
    }

    #[test]
    fn what_no_request_can_be_is_refused() {
        for (text, said) in [
            ("method = \"PUT\"\npath = \"/\"", "is no method"),
            ("method = \"GET\"\npath = \"x\"", "must begin with a slash"),
            ("method = \"GET\"\npath = \"/x?y=1\"", "belongs into query"),
            ("method = \"GET\"\npath = \"/\"\nheaders = { X-A = \"b\" }", "write \"x-a\""),
            ("method = \"GET\"\npath = \"/\"\nheaders = { host = \"b\" }", "the connection's own header"),
            ("method = \"GET\"\npath = \"/\"\njson = {}", "body_on_get"),
            ("method = \"POST\"\npath = \"/\"\njson = {}\nform = {}", "both json and form"),
            ("path = \"/\"", "method: is missing"),
            ("method = \"GET\"\npath = \"/\"\nbody = 1", "body: is not a known key"),
        ] {
            let (_, told) = problems(text);
            assert!(told.iter().any(|told| told.contains(said)), "{text}: {told:?}");
        }
    }
}

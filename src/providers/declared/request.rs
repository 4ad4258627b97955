//! From a declaration and a row to a request.

use super::account::{Account, Scope, Target};
use super::message::{Body, Json, Message};
use super::template::Template;
use crate::providers::Ask;
use crate::wire::{self, Method, Request};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

/// A request whose headers' names live as long as the file.
pub(super) struct Built<'f> {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: Vec<(&'f str, String)>,
    pub(super) body: Option<String>,
}

impl<'f> Account<'f> {
    /// The request for a transaction's status. The error says what to fix in the row.
    pub(super) fn status_request(&self, ask: Ask<'_>) -> Result<Built<'f>, String> {
        let row = self.row(ask)?;
        let message = &self.file.request;
        self.built(message, &Scope::new(self, Some(&row), ask.token, ask.now, method(message.method)))
    }

    /// The request for an access token.
    pub(super) fn token_request(&self, now: DateTime<Utc>) -> Result<Built<'f>, String> {
        let token = self.file.token.as_ref().ok_or("no access token is declared")?;
        let message = &token.message;
        self.built(message, &Scope::new(self, None, None, now, method(message.method)))
    }

    /// First the path, then the body, then the query, last the headers: what comes later may be
    /// made of what came before.
    fn built(&self, message: &'f Message, scope: &Scope<'_>) -> Result<Built<'f>, String> {
        let path = scope.text(&message.path, Target::Url)?.ok_or("the path lacks something that the row does not have")?;
        if path.split('/').any(|segment| segment == "." || segment == "..") {
            return Err(format!("reference or params make the path {path:?}, which no URL can carry"));
        }
        let mut url = format!("{}{path}", self.base_url);
        // Each is set once, and read only later.
        drop(scope.path.set(path));
        let body = body(&message.body, scope)?;
        if let Some(body) = &body {
            drop(scope.body.set(body.clone()));
        }
        append(&mut url, '?', &message.query, scope)?;
        let mut headers = Vec::with_capacity(message.headers.len() + 2);
        let has = |name: &str| message.headers.iter().any(|(known, _)| known == name);
        if !has("accept") {
            headers.push(("accept", "application/json".to_owned()));
        }
        let content_type = match &message.body {
            Body::None => None,
            Body::Json(_) => Some("application/json"),
            Body::Form(_) => Some("application/x-www-form-urlencoded"),
        };
        if let Some(content_type) = content_type.filter(|_| !has("content-type")) {
            headers.push(("content-type", content_type.to_owned()));
        }
        for (name, template) in &message.headers {
            if let Some(value) = scope.text(template, Target::Header)? {
                headers.push((name.as_str(), value));
            }
        }
        Ok(Built { method: message.method, url, headers, body })
    }
}

impl From<Built<'static>> for Request {
    fn from(built: Built<'static>) -> Self {
        Self { method: built.method, url: built.url, headers: built.headers, body: built.body }
    }
}

/// As a signature names it.
pub(super) fn method(method: Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Post => "POST",
    }
}

fn body(body: &Body, scope: &Scope<'_>) -> Result<Option<String>, String> {
    Ok(match body {
        Body::None => None,
        Body::Json(json) => Some(value(json, scope)?.unwrap_or_default().to_string()),
        Body::Form(pairs) => {
            let mut text = String::new();
            append(&mut text, '\0', pairs, scope)?;
            Some(text)
        }
    })
}

/// Appends pairs as a query is written, the first one after `before`.
fn append(text: &mut String, before: char, pairs: &[(String, Template)], scope: &Scope<'_>) -> Result<(), String> {
    let mut before = before;
    for (key, template) in pairs {
        let Some(value) = scope.text(template, Target::Plain)? else { continue };
        if before != '\0' {
            text.push(before);
        }
        before = '&';
        text.push_str(&wire::encoded(key));
        text.push('=');
        text.push_str(&wire::encoded(&value));
    }
    Ok(())
}

/// The JSON; `None` where its text names something optional that is not there: then the member is left out.
fn value(json: &Json, scope: &Scope<'_>) -> Result<Option<Value>, String> {
    Ok(Some(match json {
        Json::Text(template) => return Ok(scope.text(template, Target::Plain)?.map(Value::String)),
        Json::Constant(value) => value.clone(),
        Json::List(items) => {
            let items = items.iter().filter_map(|item| value(item, scope).transpose());
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        Json::Object(entries) => {
            let mut map = Map::new();
            for (key, json) in entries {
                if let Some(value) = value(json, scope)? {
                    map.insert(key.clone(), value);
                }
            }
            Value::Object(map)
        }
    }))
}

//! The merged configuration as it was written: every key with its value and the layer that it comes
//! from. Secrets are redacted.

use super::layers::{self, Kind, Table, Value};
use super::{ConfigError, DEFAULTS};
use crate::wire::REDACTED;
use aws_lc_rs::digest;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One setting that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its full name.
    pub key: String,
    /// Its value, as TOML; `"[redacted]"` for a secret.
    pub value: String,
    /// The layer that it comes from.
    pub origin: String,
}

/// Every setting out of all layers, in the order of their names. Nothing is checked but that the
/// layers can be read.
pub fn settings(files: &[PathBuf], environment: impl Iterator<Item = (String, String)>) -> Result<Vec<Setting>, ConfigError> {
    let (tree, _) = layers::merged(DEFAULTS, files, environment)?;
    let mut settings = Vec::new();
    collect(&tree, &mut Vec::new(), &mut settings);
    Ok(settings)
}

/// What each setting is, by its full name, without saying it: a digest of its value, and of the
/// file that it names.
pub type Fingerprints = BTreeMap<String, Vec<u8>>;

/// The fingerprints of all settings out of all layers: two readings differ where something was changed.
pub fn fingerprints(files: &[PathBuf], environment: impl Iterator<Item = (String, String)>) -> Result<Fingerprints, ConfigError> {
    let (tree, _) = layers::merged(DEFAULTS, files, environment)?;
    let mut found = Vec::new();
    leaves(&tree, &mut Vec::new(), &mut |path, value| {
        let mut text = toml(value).into_bytes();
        let last = path.last().map_or("", String::as_str);
        if let (true, Kind::String(file)) = (last.ends_with("_file") || last == "declaration", &value.kind) {
            // A file that cannot be read is named where it is needed.
            text.extend(std::fs::read(file).unwrap_or_default());
        }
        found.push((name(path), digest::digest(&digest::SHA256, &text).as_ref().to_vec()));
    });
    Ok(found.into_iter().collect())
}

fn collect(table: &Table, path: &mut Vec<String>, settings: &mut Vec<Setting>) {
    leaves(table, path, &mut |path, value| {
        settings.push(Setting {
            key: name(path),
            value: if is_secret(path, value) { format!("{REDACTED:?}") } else { toml(value) },
            origin: value.origin().unwrap_or("the defaults").to_owned(),
        });
    });
}

fn name(path: &[String]) -> String {
    path.iter().map(|part| quoted(part)).collect::<Vec<_>>().join(".")
}

/// Shows every value that is no table with others in it, in the order of their names.
fn leaves(table: &Table, path: &mut Vec<String>, show: &mut impl FnMut(&[String], &Value)) {
    let mut keys: Vec<&String> = table.keys().collect();
    keys.sort();
    for key in keys {
        let Some(value) = table.get(key) else { continue };
        path.push(key.clone());
        match &value.kind {
            Kind::Table(below) if !below.is_empty() => leaves(below, path, show),
            _ => show(path, value),
        }
        path.pop();
    }
}

/// The database's address holds a password, an account's keys are credentials, and a provider's
/// address may hold some. The path of a file that holds a secret is none.
fn is_secret(path: &[String], value: &Value) -> bool {
    let last = path.last().map_or("", String::as_str);
    if last.ends_with("_file") {
        return false;
    }
    let text = if let Kind::String(text) = &value.kind { text.as_str() } else { "" };
    match path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["database", "url"] | ["providers", _, "accounts", ..] => true,
        [.., "base_url"] => text.contains(['@', '?', '#']),
        _ => false,
    }
}

/// A key, in quotes where TOML wants them.
fn quoted(key: &str) -> String {
    let is_bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if is_bare { key.to_owned() } else { text(key) }
}

/// Text as TOML writes it.
fn text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted += &format!("\\u{:04X}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

fn toml(value: &Value) -> String {
    match &value.kind {
        Kind::String(string) => text(string),
        Kind::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Kind::Table(table) => {
            let mut keys: Vec<&String> = table.keys().collect();
            keys.sort();
            let pairs = keys.into_iter().filter_map(|key| Some(format!("{} = {}", quoted(key), toml(table.get(key)?))));
            let pairs = pairs.collect::<Vec<_>>().join(", ");
            if pairs.is_empty() { "{}".into() } else { format!("{{ {pairs} }}") }
        }
        plain => plain.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_its_layer_and_no_secret_is_shown() {
        let environment = [
            ("DATABASE_URL", "postgres://u:canary@h/d"),
            ("PAYPOLL__LOG__FORMAT", "text"),
            ("PAYPOLL__PROVIDERS__KHALTI__ACCOUNTS__SHOP__TOKEN", "canary"),
            ("PAYPOLL__PROVIDERS__KHALTI__ACCOUNTS__KIOSK__TOKEN_FILE", "/run/token"),
            ("PAYPOLL__PROVIDERS__DAPI__BASE_URL", "https://u:canary@api.example"),
        ];
        let settings = settings(&[], environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))).expect("readable");
        let line = |key: &str| {
            let found = settings.iter().find(|setting| setting.key == key).unwrap_or_else(|| panic!("{key} is missing"));
            (found.value.as_str(), found.origin.as_str())
        };
        assert_eq!(line("log.filter"), ("\"info\"", "the defaults"));
        assert_eq!(line("log.format"), ("\"text\"", "the environment: PAYPOLL__LOG__FORMAT"));
        assert_eq!(line("database.url"), ("\"[redacted]\"", "the environment: DATABASE_URL"));
        assert_eq!(line("providers.khalti.accounts.shop.token").0, "\"[redacted]\"");
        assert_eq!(line("providers.khalti.accounts.kiosk.token_file").0, "\"/run/token\"");
        assert_eq!(line("providers.dapi.base_url").0, "\"[redacted]\"");
        assert_eq!(line("providers.khalti.schedule.phases").0, "[{ every = \"5m\" }]");
        assert!(!format!("{settings:?}").contains("canary"));
        let lines: Vec<String> = settings.iter().map(|setting| format!("{} = {}", setting.key, setting.value)).collect();
        lines.join("\n").parse::<::toml::Table>().expect("what is shown is TOML");
    }
}

//! The layers of the configuration, merged into one tree: the defaults, files, the environment.
//!
//! Knows nothing of what the keys mean, except that `x` and `x_file` are two ways to give one secret.

use super::{ConfigError, declared};
use crate::providers::{self, Descriptor};
use ::config::{FileFormat, Source as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

pub(super) use ::config::{Value, ValueKind as Kind};

/// A table of values.
pub(super) type Table = ::config::Map<String, Value>;

/// How the origin of values begins that came from the environment: they are text, whatever they stand for.
const ENVIRONMENT: &str = "the environment: ";
const PREFIX: &str = "PAYPOLL__";
const DATABASE_URL: &str = "DATABASE_URL";

/// Whether the value is text from the environment.
pub(super) fn from_environment(value: &Value) -> bool {
    value.origin().is_some_and(|origin| origin.starts_with(ENVIRONMENT))
}

/// The defaults, the files in their order, and the environment, merged: later layers win. With
/// them, the providers that files declare: what their files bring along lies over the defaults and
/// below everything else.
pub(super) fn merged(
    defaults: &str,
    files: &[PathBuf],
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(Table, Vec<&'static Descriptor>), ConfigError> {
    let mut tree = parsed("the defaults", defaults)?;
    let mut layers = Vec::with_capacity(files.len());
    for file in files {
        let name = format!("--config {}", file.display());
        let text = std::fs::read_to_string(file)
            .map_err(|error| ConfigError::one(format!("{name}: the file cannot be read ({error})")))?;
        let mut layer = parsed(&name, &text)?;
        declared::anchor(&mut layer, file);
        layers.push(layer);
    }
    // In the order of their names a variable for a whole table comes before those for keys in it.
    let mut variables: Vec<(String, String)> = environment.collect();
    variables.sort();
    let declared = add_declared(&mut tree, &layers, &variables)?;
    for layer in layers {
        merge(&mut tree, layer);
    }
    add_environment(&mut tree, variables, &declared)?;
    Ok((tree, declared))
}

/// Lays the sections of declared providers over the defaults. Errors with all that is wrong with
/// any of their files.
fn add_declared(
    tree: &mut Table,
    layers: &[Table],
    variables: &[(String, String)],
) -> Result<Vec<&'static Descriptor>, ConfigError> {
    let mut named: Vec<(String, String)> = layers.iter().flat_map(declared::named).collect();
    for (name, file) in variables {
        let path: Vec<&str> = name.strip_prefix(PREFIX).unwrap_or_default().split("__").collect();
        if let [providers, section, key] = path.as_slice()
            && providers.eq_ignore_ascii_case("providers")
            && key.eq_ignore_ascii_case(declared::KEY)
        {
            named.push((section.to_lowercase(), file.clone()));
        }
    }
    let (mut found, mut problems) = (Vec::<&'static Descriptor>::new(), Vec::new());
    // The last layer that names a file wins.
    while let Some((section, file)) = named.pop() {
        named.retain(|(other, _)| !declared::is_named(&section, other) && !declared::is_named(other, &section));
        match declared::load(&section, &file) {
            Ok((descriptor, defaults)) => {
                found.push(descriptor);
                let section = stamped(Value::new(None, defaults), &format!("the declaration {file}"));
                if let Some(Kind::Table(providers)) = tree.get_mut("providers").map(|value| &mut value.kind) {
                    providers.insert(descriptor.name.to_owned(), section);
                }
            }
            Err(error) => problems.extend(error.0),
        }
    }
    found.reverse();
    if problems.is_empty() { Ok(found) } else { Err(ConfigError(problems)) }
}

/// The table that a variable of the environment holds as text; `None` where it holds none.
pub(super) fn table_from_environment(value: &Value) -> Option<Kind> {
    let Kind::String(text) = &value.kind else { return None };
    let origin = value.origin().filter(|_| from_environment(value))?;
    let table = stamped(structure(text).ok()?, origin).kind;
    matches!(table, Kind::Table(_)).then_some(table)
}

/// The files that hold secrets and that every user of this machine may read: one sentence for each.
pub(super) fn exposed(files: &[PathBuf]) -> Vec<String> {
    let is_exposed = |file: &&PathBuf| {
        let everybody = std::fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0);
        everybody && std::fs::read_to_string(file).is_ok_and(|text| parsed("", &text).is_ok_and(|layer| holds_secret(&layer)))
    };
    let sentence = |file: &PathBuf| {
        format!(
            "--config {}: holds secrets, and everybody on this machine may read it; chmod o-r it, or move them into files of their own (x_file)",
            file.display()
        )
    };
    files.iter().filter(is_exposed).map(sentence).collect()
}

/// Account keys that are no secrets.
const IDENTIFIERS: [&str; 4] = ["merchant_id", "client_id", "channel_id", "endpointId"];

fn holds_secret(layer: &Table) -> bool {
    let table = |value: &Value| if let Kind::Table(table) = &value.kind { Some(table.clone()) } else { None };
    let below = |tree: &Table, key: &str| tree.get(key).and_then(table);
    let url = below(layer, "database").and_then(|database| database.get("url").map(ToString::to_string));
    // A user, a password and a host.
    let has_password = url.is_some_and(|url| {
        let rest = url.split_once("://").map_or("", |(_, rest)| rest);
        rest.split_once('@').is_some_and(|(user, _)| user.contains(':'))
    });
    let providers = below(layer, "providers").unwrap_or_default();
    // What opens nothing but a simulator on this machine is no secret.
    let is_real = |provider: &Table| {
        let base_url = provider.get("base_url").map(ToString::to_string).unwrap_or_default();
        !["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|here| base_url.starts_with(here))
    };
    let accounts = providers.values().filter_map(table).filter(is_real).filter_map(|provider| below(&provider, "accounts"));
    let mut keys = accounts.flat_map(|accounts| accounts.values().filter_map(table).flatten().collect::<Vec<_>>());
    has_password
        || keys.any(|(key, value)| {
            matches!(value.kind, Kind::String(_)) && !key.ends_with("_file") && !IDENTIFIERS.contains(&key.as_str())
        })
}

/// The text as TOML. The error names the place without quoting the line: it may hold a secret.
pub(super) fn parsed(name: &str, text: &str) -> Result<Table, ConfigError> {
    let read = ::config::File::from_str(text, FileFormat::Toml).collect().map_err(|error| {
        let ::config::ConfigError::FileParse { cause, .. } = error else {
            return ConfigError::one(format!("{name}: {error}"));
        };
        let Some(error) = cause.downcast_ref::<toml::de::Error>() else {
            return ConfigError::one(format!("{name}: {cause}"));
        };
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        ConfigError::one(format!("{name}, line {line}: no valid TOML ({})", error.message().replace('\n', " ")))
    })?;
    Ok(read.into_iter().map(|(key, value)| (key, stamped(value, name))).collect())
}

/// The value, and everything in it, with the layer that it comes from.
fn stamped(value: Value, origin: &str) -> Value {
    let kind = match value.kind {
        Kind::Table(table) => Kind::Table(table.into_iter().map(|(key, value)| (key, stamped(value, origin))).collect()),
        Kind::Array(items) => Kind::Array(items.into_iter().map(|value| stamped(value, origin)).collect()),
        other => other,
    };
    Value::new(Some(&origin.to_owned()), kind)
}

/// Lays `layer` over `tree`: tables key by key, anything else as a whole. `x` displaces the
/// `x_file` of a layer below, and the other way round.
fn merge(tree: &mut Table, layer: Table) {
    let keys: Vec<String> = layer.keys().cloned().collect();
    for key in &keys {
        let other = key.strip_suffix("_file").map_or_else(|| format!("{key}_file"), str::to_owned);
        let is_secret = tree.get(&other).is_some_and(|value| matches!(value.kind, Kind::String(_)));
        if is_secret && !keys.contains(&other) {
            tree.remove(&other);
        }
    }
    for (key, value) in layer {
        match (tree.get_mut(&key).map(|below| &mut below.kind), value) {
            (Some(Kind::Table(below)), Value { kind: Kind::Table(above), .. }) => merge(below, above),
            (_, value) => {
                tree.insert(key, value);
            }
        }
    }
}

/// Lays the environment over `tree`.
fn add_environment(
    tree: &mut Table,
    variables: Vec<(String, String)>,
    declared: &[&'static Descriptor],
) -> Result<(), ConfigError> {
    let mut database_url = None;
    let mut layer = Table::new();
    for (name, text) in variables {
        if name == DATABASE_URL && !text.is_empty() {
            database_url = Some(text);
        } else if let Some(path) = name.strip_prefix(PREFIX) {
            let path: Vec<&str> = path.split("__").collect();
            set(&mut layer, tree, &path, text, &name, declared).map_err(|mend| ConfigError::one(format!("{name}: {mend}")))?;
        } else if let Some(key) = misspelt(&name, tree) {
            return Err(ConfigError::one(format!(
                "{name} is not read: two underscores stand between the levels; did you mean {PREFIX}{}?",
                key.replace('.', "__").to_uppercase()
            )));
        }
    }
    let has_own = matches!(layer.get("database").map(|value| &value.kind),
        Some(Kind::Table(database)) if database.contains_key("url") || database.contains_key("url_file"));
    if let (Some(url), false) = (database_url, has_own) {
        let set = set(&mut layer, tree, &["database", "url"], url, DATABASE_URL, declared);
        set.map_err(|mend| ConfigError::one(format!("{DATABASE_URL}: {mend}")))?;
    }
    merge(tree, layer);
    Ok(())
}

/// The key that a variable would set if its name had two underscores where it has one, such as
/// `PAYPOLL_LOG_FORMAT`. Other variables with that beginning are not ours: Kubernetes makes some
/// for a service of that name.
fn misspelt(name: &str, tree: &Table) -> Option<String> {
    let words =
        |text: &str| text.to_uppercase().split(['.', '_']).filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let meant = words(name.strip_prefix(PREFIX.trim_end_matches('_'))?.strip_prefix('_')?);
    let mut known = vec!["database.url".to_owned(), "database.url_file".to_owned()];
    keys(tree, "", &mut known);
    known.into_iter().find(|key| words(key) == meant)
}

/// The full names of all keys in a table.
fn keys(table: &Table, path: &str, found: &mut Vec<String>) {
    for (key, value) in table {
        let key = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if let Kind::Table(below) = &value.kind {
            keys(below, &key, found);
        }
        found.push(key);
    }
}

/// Puts one variable into the layer. `below` shows how its keys are spelt, and where a table or a
/// list is wanted.
fn set(
    layer: &mut Table,
    below: &Table,
    path: &[&str],
    text: String,
    name: &str,
    declared: &[&'static Descriptor],
) -> Result<(), String> {
    let (key, rest) = path.split_first().map_or(("", &[][..]), |(key, rest)| (*key, rest));
    if key.is_empty() {
        return Err("two underscores stand between the levels, as in PAYPOLL__LOG__FORMAT".into());
    }
    let key = spelt(key, below, declared);
    let origin = format!("{ENVIRONMENT}{name}");
    let no_table = Table::new();
    let below = below.get(&key).map(|value| &value.kind);
    if rest.is_empty() {
        let value = match below {
            Some(Kind::Table(_) | Kind::Array(_)) => stamped(structure(&text)?, &origin),
            _ => Value::new(Some(&origin), Kind::String(text)),
        };
        layer.insert(key, value);
        return Ok(());
    }
    let below = if let Some(Kind::Table(table)) = below { table } else { &no_table };
    let entry = layer.entry(key).or_insert_with(|| Value::new(Some(&origin), Table::new()));
    match &mut entry.kind {
        Kind::Table(table) => set(table, below, rest, text, name, declared),
        _ => Err("another variable sets the level above it".into()),
    }
}

/// Names of variables have lost their case and their hyphens: a key is spelt as in the layers below
/// or as the providers spell it, else in lower case.
fn spelt(key: &str, below: &Table, declared: &[&'static Descriptor]) -> String {
    let account_keys = providers::REGISTRY.into_iter().flat_map(|descriptor| descriptor.account_keys);
    let account_keys = account_keys.chain(declared.iter().flat_map(|descriptor| descriptor.account_keys));
    let account_keys = account_keys.flat_map(|key| [(*key).to_owned(), format!("{key}_file")]);
    let known: Vec<String> = below.keys().cloned().chain(account_keys).collect();
    let exact = known.iter().find(|known| known.eq_ignore_ascii_case(key));
    let found = exact.or_else(|| known.iter().find(|known| declared::is_named(key, known)));
    found.cloned().unwrap_or_else(|| key.to_lowercase())
}

/// A table or a list, written as TOML in one variable.
fn structure(text: &str) -> Result<Value, String> {
    let read = parsed("", &format!("value = {text}")).ok().and_then(|mut table| table.remove("value"));
    read.ok_or_else(|| "a table or a list is given as TOML, such as { first = \"1m\" }".into())
}

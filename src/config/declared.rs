//! `[providers.NAME] declaration = "FILE"`: which files declare providers, and the defaults that
//! they bring along.

use super::ConfigError;
use super::layers::{self, Kind, Table, Value};
use crate::providers::declared::{Declaration, Inspection, LARGEST};
use crate::providers::{self, Descriptor};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// The key that names the file.
pub(super) const KEY: &str = "declaration";

/// Makes the names of files in a layer relative to the layer's own file.
pub(super) fn anchor(layer: &mut Table, file: &Path) {
    let folder = file.parent().unwrap_or(Path::new(""));
    for section in sections(layer) {
        if let Some(Value { kind: Kind::String(name), .. }) = section.get_mut(KEY) {
            *name = folder.join(&*name).to_string_lossy().into_owned();
        }
    }
}

fn sections(layer: &mut Table) -> impl Iterator<Item = &mut Table> {
    let providers = match layer.get_mut("providers").map(|value| &mut value.kind) {
        Some(Kind::Table(providers)) => Some(providers.values_mut()),
        _ => None,
    };
    providers.into_iter().flatten().filter_map(|section| match &mut section.kind {
        Kind::Table(section) => Some(section),
        _ => None,
    })
}

/// The files that a layer names, by the section's name.
pub(super) fn named(layer: &Table) -> Vec<(String, String)> {
    let Some(Value { kind: Kind::Table(providers), .. }) = layer.get("providers") else { return Vec::new() };
    let file = |(name, section): (&String, &Value)| match &section.kind {
        Kind::Table(section) => match &section.get(KEY)?.kind {
            Kind::String(file) => Some((name.clone(), file.clone())),
            _ => None,
        },
        _ => None,
    };
    providers.iter().filter_map(file).collect()
}

/// Whether a section is meant by this name: variables have lost case and hyphens.
pub(super) fn is_named(section: &str, name: &str) -> bool {
    section.eq_ignore_ascii_case(name) || section.replace('_', "-").eq_ignore_ascii_case(name)
}

/// Reads a file, judges it, and makes its provider known: with the section that it brings along.
pub(super) fn load(section: &str, file: &str) -> Result<(&'static Descriptor, Table), ConfigError> {
    let key = format!("providers.{section}.{KEY} = {file:?}");
    let bytes = read(Path::new(file)).map_err(|why| ConfigError::one(format!("{key}: {why}")))?;
    let declaration = Declaration::inspect(file, &bytes).and_then(Inspection::accept).map_err(ConfigError)?;
    let name = declaration.name().to_owned();
    if !is_named(section, &name) {
        let mend = format!("the file declares {name:?}; write [providers.{name}]");
        return Err(ConfigError::one(format!("{key}: {mend}")));
    }
    let defaults = layers::parsed(file, &declaration.defaults())?;
    Ok((providers::declare(declaration), defaults))
}

/// A declaration's bytes. The error says why there are none.
pub fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let opened = File::open(file)
        .and_then(|file| if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::Error::other("is no file")) });
    // One byte more than is allowed: the parser then reports that it is too long.
    let read = opened.and_then(|file| file.take(LARGEST as u64 + 1).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| format!("the file cannot be read ({error})"))
}

//! The arrows of the crate's map, read off the sources, so that they stay true without anyone remembering.

use std::fs;
use std::path::{Path, PathBuf};

/// A place in the sources, and words that must not stand there.
const NEVER: &[(&str, &[&str])] = &[
    (
        "src/domain",
        &[
            "tokio",
            "sqlx",
            "reqwest",
            "tracing::",
            "::now()",
            "use rand",
            "crate::store",
            "crate::scheduler",
            "crate::providers",
            "crate::wire",
        ],
    ),
    (
        "src/providers",
        &["tokio", "sqlx", "reqwest", "std::env", "::now()", "use rand", "crate::store", "crate::scheduler", "crate::transport"],
    ),
    (
        "src/wire",
        &["tokio", "sqlx", "reqwest", "std::env", "::now()", "use rand", "crate::store", "crate::scheduler", "crate::providers"],
    ),
    ("src/transport", &["crate::domain", "crate::store", "crate::providers", "crate::scheduler", "sqlx"]),
    ("src/store", &["crate::providers", "crate::transport", "crate::scheduler", "crate::commands"]),
    ("src/scheduler/lane", &["tokio", "crate::store", "crate::transport", "::now()"]),
    ("src/scheduler/engine.rs", &["tokio", "crate::transport", "sqlx", "::now()"]),
    ("src/scheduler/admission.rs", &["tokio", "crate::transport", "sqlx", "::now()"]),
    (
        "src/scheduler",
        &[
            "reqwest",
            "\"select ",
            "\"update ",
            "\"insert ",
            "\"dusupay\"",
            "\"khalti\"",
            "\"dapi\"",
            "\"dropayment\"",
            "\"ayoconnect\"",
        ],
    ),
    ("src/simulator", &["crate::providers", "crate::domain", "crate::store", "crate::scheduler", "crate::wire"]),
    ("src", &["unsafe {", "todo!", "unimplemented!", "TODO", "FIXME"]),
];

/// Only these may speak SQL.
/// The demo speaks it as the application that it plays.
const SQL: &[&str] = &["src/store", "src/postgres.rs", "src/commands/demo.rs", "src/commands/demo"];

#[test]
fn every_module_keeps_to_what_it_may_know() {
    let mut found = Vec::new();
    for (place, words) in NEVER {
        for file in sources(Path::new(place)) {
            let code = code(&file);
            found.extend(words.iter().filter(|word| code.contains(**word)).map(|word| format!("{}: {word}", file.display())));
        }
    }
    assert_eq!(found, [""; 0]);
}

#[test]
fn sql_stands_in_the_store_only() {
    let speaks = |file: &PathBuf| {
        let code = code(file).to_lowercase();
        ["sqlx::query", "select * from", "insert into paypoll", "update paypoll"].iter().any(|word| code.contains(word))
    };
    let mut elsewhere = sources(Path::new("src"));
    elsewhere.retain(|file| !SQL.iter().any(|place| file.starts_with(place)) && speaks(file));
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

#[test]
fn no_statement_of_the_audit_reads_the_journal_and_another_table() {
    let code = code(Path::new("src/store/audit.rs"));
    let both = |text: &&str| {
        text.contains("paypoll.polls") && ["paypoll.transactions", "paypoll.transitions"].iter().any(|of| text.contains(of))
    };
    assert_eq!(code.split('"').find(both), None, "a distributed journal cannot be joined with what is not");
}

#[test]
fn no_provider_knows_another() {
    let names = ["dropayment", "dusupay", "ayoconnect", "khalti", "dapi"];
    for name in names {
        let code = code(Path::new(&format!("src/providers/{name}.rs"))).to_lowercase();
        for other in names.iter().filter(|other| **other != name) {
            assert!(!code.contains(&format!("super::{other}")), "{name} knows {other}");
        }
    }
}

#[test]
fn every_provider_has_fixtures_a_default_and_a_place_in_the_database() {
    let defaults = fs::read_to_string("config/default.toml").unwrap();
    let files = fs::read_dir("migrations").unwrap();
    let migrations: String = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    for descriptor in &paypoll::providers::REGISTRY {
        let name = descriptor.name;
        assert!(Path::new("tests/fixtures").join(name).is_dir(), "{name} has no fixtures");
        assert!(defaults.contains(&format!("[providers.{name}]")), "{name} has no defaults");
        assert!(migrations.contains(&format!("('{name}', ")), "no migration puts {name} into paypoll.providers");
    }
}

fn sources(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let mut files: Vec<PathBuf> = fs::read_dir(place).unwrap().flat_map(|entry| sources(&entry.unwrap().path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files
}

/// The file without comments and without its unit tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end].lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

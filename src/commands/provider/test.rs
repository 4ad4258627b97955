//! `paypoll provider test FILE…`: every example, and for those that end a transaction every changed
//! answer. Needs neither network nor database.

use super::super::text::Paint;
use super::{check_names, inspect};
use crate::config::ConfigError;
use crate::providers::declared::{Inspection, Tried};
use crate::text::plain;
use anyhow::bail;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Tries the files and prints what came of it. Errors where a file is refused (exit 2), or an
/// example or a mutation fails (exit 1).
pub(super) fn run(files: &[PathBuf], out: &mut impl Write) -> anyhow::Result<()> {
    let paint = Paint::of_stdout();
    let (mut refused, mut inspected) = (Vec::new(), Vec::new());
    for file in files {
        match inspect(file) {
            Ok(inspection) => {
                write_file(out, file, &inspection, paint)?;
                inspected.push((file.clone(), inspection));
            }
            Err(error) => {
                writeln!(out, "{}", paint.bad(&format!("{}: refused, see below", file.display())))?;
                refused.extend(error.problems().iter().cloned());
            }
        }
    }
    out.flush()?;
    if let Err(error) = check_names(&inspected) {
        refused.extend(error.problems().iter().cloned());
    }
    let wrong = inspected.iter().flat_map(|(_, inspection)| &inspection.tried).filter(|tried| !tried.is_fine()).count();
    if wrong == 0 {
        refused.extend(inspected.iter().flat_map(|(_, inspection)| inspection.missing.iter().cloned()));
    }
    if !refused.is_empty() {
        return Err(ConfigError::all(refused).into());
    }
    match wrong {
        0 => Ok(()),
        1 => bail!("1 example is not as it must be"),
        wrong => bail!("{wrong} examples are not as they must be"),
    }
}

fn write_file(out: &mut impl Write, file: &Path, inspection: &Inspection, paint: Paint) -> std::io::Result<()> {
    let declaration = inspection.declaration();
    let (file, title) = (file.display().to_string(), plain(declaration.title()));
    writeln!(out, "{}", paint.strong(&format!("{file}: {}, {title}", declaration.name())))?;
    let width = inspection.tried.iter().map(|tried| tried.name.chars().count()).max().unwrap_or(0).min(40);
    for tried in &inspection.tried {
        write_example(out, &file, tried, width, paint)?;
    }
    for missing in &inspection.missing {
        writeln!(out, "  {}", paint.bad(&format!("FAIL  {}", plain(missing))))?;
    }
    for hint in &inspection.hints {
        writeln!(out, "  {}", paint.warning(&format!("hint  {}", plain(hint))))?;
    }
    let changed: usize = inspection.tried.iter().map(|tried| tried.mutations.len()).sum();
    let ended = inspection.tried.iter().flat_map(|tried| &tried.mutations).filter(|mutated| mutated.ends.is_some()).count();
    let verdict = if inspection.is_fine() { "in order" } else { "not in order" };
    let examples = inspection.tried.len();
    writeln!(out, "  {examples} examples, {changed} changed answers of which {ended} would end a transaction: {verdict}")
}

fn write_example(out: &mut impl Write, file: &str, tried: &Tried, width: usize, paint: Paint) -> std::io::Result<()> {
    let name = plain(&tried.name);
    let mutations = match tried.mutations.len() {
        0 => String::new(),
        count => format!("; {count} changed answers"),
    };
    let line = format!("{name:<width$}  {}{mutations}", plain(&tried.outcome));
    if tried.is_fine() {
        return writeln!(out, "  ok    {line}");
    }
    writeln!(out, "  {}", paint.bad(&format!("FAIL  {line}")))?;
    for problem in &tried.problems {
        writeln!(out, "        {file}, line {}: {}", tried.line, plain(problem))?;
    }
    for mutated in &tried.mutations {
        if let Some(state) = mutated.ends {
            writeln!(out, "        {file}, line {}: with {} it still ends {state}", tried.line, plain(&mutated.change))?;
        }
    }
    Ok(())
}

//! Declared providers for the simulator: it plays them, their files say what.

use crate::config::ConfigError;
use crate::providers::declared::{self, Declaration, Refused};
use crate::simulator::declared::{Answer, Came, Known, Paces, Play, Recognised, TAKEN};
use std::path::PathBuf;
use std::sync::Arc;

/// A file that is played.
#[derive(Debug)]
struct Played(&'static Declaration);

/// A transaction that was polled.
struct Asked {
    declaration: &'static Declaration,
    known: declared::Known,
}

/// The providers of these files, for the simulator. Errors where a file is refused, or its provider
/// cannot be played.
pub(super) fn files(files: &[PathBuf]) -> Result<Vec<Arc<dyn Play>>, ConfigError> {
    let mut plays: Vec<Arc<dyn Play>> = Vec::with_capacity(files.len());
    for file in files {
        let declaration = super::provider::inspect(file)?.accept().map_err(ConfigError::all)?;
        let name = declaration.name();
        if TAKEN.contains(&name) || plays.iter().any(|play| play.name() == name) {
            return Err(ConfigError::one(format!("--provider {}: another provider is served under /{name}", file.display())));
        }
        plays.push(play(declaration));
    }
    Ok(plays)
}

/// A declaration as the simulator plays it.
pub(super) fn play(declaration: Declaration) -> Arc<dyn Play> {
    // It is played for as long as the process lives.
    Arc::new(Played(Box::leak(Box::new(declaration))))
}

impl Play for Played {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn paces(&self) -> Paces {
        let floors = self.0.limits();
        Paces { first: floors.first, every: floors.every, rate: floors.rate }
    }

    fn recognise(&self, came: &Came<'_>) -> Result<Recognised, (bool, String)> {
        let Came { method, path, query, headers, body, at, tokens } = *came;
        match self.0.recognise(&declared::Came { method, path, query, headers, body, at, tokens }) {
            Ok(declared::Recognised::Status(known)) => Ok(Recognised::Status(Box::new(Asked { declaration: self.0, known }))),
            Ok(declared::Recognised::Token) => Ok(Recognised::Token),
            Ok(declared::Recognised::Unknown) => Ok(Recognised::Unknown),
            Err(Refused::Credentials(why)) => Err((true, why)),
            Err(Refused::Form(why)) => Err((false, why)),
        }
    }

    fn token(&self, token: &str) -> Option<Answer> {
        self.0.told_token(token).map(answer)
    }
}

impl Known for Asked {
    fn reference(&self) -> &str {
        &self.known.reference
    }

    fn answer(&self, example: Option<&str>) -> Option<Answer> {
        self.declaration.told(example, &self.known).map(answer)
    }

    fn early(&self) -> Option<Answer> {
        self.declaration.told_early(&self.known).map(answer)
    }
}

fn answer(told: declared::Told) -> Answer {
    let retry_after = told.headers.into_iter().find(|(name, _)| name == "retry-after").map(|(_, value)| value);
    Answer { status: told.http, retry_after, body: told.body }
}

//! Providers that are declared in a file instead of compiled in.
//!
//! A file is read once, when the configuration is: [`Declaration::inspect`] reads it, judges it,
//! and plays its examples and their mutations through the code that will read real answers. What
//! passes is a provider like the compiled ones; what does not is refused with file, line, key and
//! remedy. There is no expression in the language: what ends a transaction can be listed, and each
//! such word has its example.
//!
//! | file | knows |
//! |---|---|
//! | `tree` | tables, keys and their lines |
//! | `file`, `keys`, `message`, `answer`, `timing`, `examples` | the keys of the language, one part each |
//! | `template`, `values`, `pointer` | placeholders, functions, places in an answer |
//! | `check` | what a file means as a whole |
//! | `account`, `request`, `token`, `read` | the provider: opened, asking, reading |
//! | `trial`, `mutations` | the examples, and what must not be believed |
//! | `play` | the provider's own side, for the simulator |

use super::{Ask, Descriptor, Open, Provider, Settings, Token, TokenFlow};
use crate::domain::{Floors, Outcome, Plan};
use crate::wire::{Kept, Request, Response};
use account::Account;
use aws_lc_rs::digest;
use chrono::{DateTime, Utc};
use file::File;
use tree::Source;

mod account;
mod answer;
mod check;
mod examples;
mod file;
mod keys;
mod message;
mod mutations;
mod play;
mod pointer;
mod read;
mod request;
mod template;
mod timing;
mod token;
mod tree;
mod trial;
mod values;

pub use file::check_name;
pub use play::{Came, Known, Played, Recognised, Refused, Told};
pub use tree::LARGEST;
pub use trial::{Mutated, Tried};

/// A provider's file, read and found to be in order.
#[derive(Debug)]
pub struct Declaration {
    origin: String,
    sha256: String,
    file: File,
}

/// A file and what came of its examples. Only [`Inspection::accept`] makes a provider of it.
#[derive(Debug)]
pub struct Inspection {
    declaration: Declaration,
    /// The examples, in the order of the file.
    pub tried: Vec<Tried>,
    /// What no example shows and must be shown, one sentence each.
    pub missing: Vec<String>,
    /// What is no mistake and worth a look, one sentence each.
    pub hints: Vec<String>,
}

/// A sentence of the documentation and what it is the reason for.
#[derive(Clone, Copy, Debug)]
pub struct Because<'d> {
    /// What is forbidden or meant.
    pub what: &'d str,
    /// What the documentation says.
    pub says: &'d str,
    /// The page's address.
    pub at: &'d str,
    /// When it was read.
    pub read: Option<&'d str>,
}

/// A word, or an error, with its meaning.
#[derive(Clone, Debug)]
pub struct Meant {
    /// The word; for an error, what it matches.
    pub word: String,
    /// What it means.
    pub means: &'static str,
    /// Whether it ends a transaction.
    pub is_final: bool,
    /// The rule that is its reason.
    pub rule: Option<String>,
}

impl Declaration {
    /// Reads a file. `name` stands in every error, one sentence each, with line, key and remedy.
    pub fn inspect(name: &str, bytes: &[u8]) -> Result<Inspection, Vec<String>> {
        let text = Source::text(name, bytes).map_err(|problem| vec![problem])?;
        let source = Source::new(name, text);
        let Some(mut file) = file::read(text, &source).filter(|_| source.is_fine()) else { return Err(source.into_problems()) };
        check::check(&file, &source);
        if !source.is_fine() {
            return Err(source.into_problems());
        }
        let tried = trial::play(&file);
        trial::check_shown(&file, &tried, &source);
        let missing = source.into_problems();
        let hint = |(spot, pointer): (tree::Spot, String)| {
            format!("{name}, line {}: {}: {pointer:?} stands in no example; a mistyped pointer keeps nothing", spot.line, spot.key)
        };
        let mut hints: Vec<String> = trial::kept_for_nothing(&file).into_iter().map(hint).collect();
        if let Some(why) = &file.documented.none {
            hints.push(format!("{name}: no floor is declared ({why}); whoever knows better writes it down"));
        }
        let hash = digest::digest(&digest::SHA256, bytes);
        file.hash.copy_from_slice(hash.as_ref());
        let sha256 = values::Form::Hex.text(hash.as_ref());
        Ok(Inspection { declaration: Self { origin: name.to_owned(), sha256, file }, tried, missing, hints })
    }

    /// The provider's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// The provider's name for people.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.file.title
    }

    /// Where the file is.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The SHA-256 of the file, in hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The version of the language.
    #[must_use]
    pub fn format(&self) -> i32 {
        1
    }

    /// The API's address, where the file names one.
    #[must_use]
    pub fn base_url(&self) -> Option<&str> {
        self.file.base_url.as_deref()
    }

    /// What is sent: method and path.
    #[must_use]
    pub fn asks(&self) -> String {
        let template = |template: &template::Template| {
            let part = |part: &template::Part| match part {
                template::Part::Text(text) => text.clone(),
                template::Part::Placeholder(name) => format!("{{{}}}", self.file.names.text(*name)),
            };
            template.parts.iter().map(part).collect::<String>()
        };
        let message = &self.file.request;
        format!("{} {}", request::method(message.method), template(&message.path))
    }

    /// The words, in the order of the file.
    pub fn words(&self) -> impl Iterator<Item = Meant> + '_ {
        self.file.words.list.iter().map(|(word, rule)| Meant {
            word: word.clone(),
            means: rule.means.name(),
            is_final: rule.means.is_final(),
            rule: rule.rule.clone(),
        })
    }

    /// The errors, in the order in which they are tried.
    pub fn errors(&self) -> impl Iterator<Item = Meant> + '_ {
        self.file.errors.iter().map(|rule| {
            let codes: Vec<String> = rule.http.iter().map(ToString::to_string).collect();
            let http = (!codes.is_empty()).then(|| format!("HTTP {}", codes.join(", ")));
            let when = rule.when.as_ref().map(|test| {
                let wants = match &test.wants {
                    answer::Wants::Is(value) => format!("is {value}"),
                    answer::Wants::Exists(true) => "is there".into(),
                    answer::Wants::Exists(false) => "is not there".into(),
                    answer::Wants::Contains(text) => format!("contains {text:?}"),
                };
                format!("{} {wants}", test.at.pointer.as_str())
            });
            let word = [http, when].into_iter().flatten().collect::<Vec<_>>().join(" and ");
            Meant { word, means: rule.means.name(), is_final: false, rule: rule.rule.clone() }
        })
    }

    /// What the documentation forbids, with its sentences; empty where it forbids nothing.
    pub fn floors(&self) -> impl Iterator<Item = Because<'_>> {
        self.file.documented.because.iter().filter_map(|(what, id)| {
            let rule = self.file.rules.iter().find(|rule| rule.id == *id)?;
            Some(Because { what, says: &rule.says, at: &rule.at, read: rule.read.as_deref() })
        })
    }

    /// Why there is no floor, where there is none.
    #[must_use]
    pub fn no_floors(&self) -> Option<&str> {
        self.file.documented.none.as_deref()
    }

    /// The default plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.file.pace.plan
    }

    /// The sentence that the default plan comes from, where the file names one.
    #[must_use]
    pub fn plan_because(&self) -> Option<Because<'_>> {
        let id = self.file.pace.rule.as_ref()?;
        let rule = self.file.rules.iter().find(|rule| rule.id == *id)?;
        Some(Because { what: "the plan", says: &rule.says, at: &rule.at, read: rule.read.as_deref() })
    }

    /// Why answers have no amount, where they have none.
    #[must_use]
    pub fn no_amount(&self) -> Option<&str> {
        match &self.file.answer.amount {
            answer::Amount::None(why) => Some(why),
            answer::Amount::Some { .. } => None,
        }
    }

    /// What is kept of an answer.
    pub fn keeps(&self) -> impl Iterator<Item = &str> {
        self.file.keep.iter().map(|place| place.pointer.as_str())
    }

    /// The keys of an account: name, and whether it must be there.
    pub fn account_keys(&self) -> impl Iterator<Item = (&str, bool)> {
        self.file.account.iter().map(|key| (key.name.as_str(), key.required))
    }

    /// What a row brings along in `params`: name, whether it must be there, and whether it is a secret.
    pub fn params(&self) -> impl Iterator<Item = (&str, bool, bool)> {
        self.file.params.iter().map(|key| (key.name.as_str(), key.required, key.secret))
    }

    /// The provider's own options: name, and whether it must be there.
    pub fn options(&self) -> impl Iterator<Item = (&str, bool)> {
        self.file.options.iter().map(|key| (key.name.as_str(), key.required))
    }

    /// What the documentation forbids.
    #[must_use]
    pub fn limits(&self) -> Floors {
        self.file.documented.floors
    }

    /// The section `providers.NAME` of the configuration without what a user must add: the lowest
    /// layer, as TOML.
    #[must_use]
    pub fn defaults(&self) -> String {
        let (per_second, burst) = budget(self.file.documented.floors.rate);
        let url = self.base_url().map_or_else(String::new, |url| format!("base_url = {}\n", serde_json::Value::from(url)));
        format!(
            "enabled = false\n{url}timeout = \"10s\"\nmax_in_flight = 64\n\
             rate_limit = {{ per_second = {per_second:?}, burst = {burst} }}\nschedule = {}\n\
             retry = {{ initial = \"5s\", max = \"5m\", multiplier = 2.0 }}\n\
             circuit = {{ failures = 20, probe_after = \"30s\" }}\nnot_found = {{ limit = 5, min_age = \"10m\" }}\n",
            timing::as_schedule(&self.file.pace.plan)
        )
    }

    /// What is known of the provider before any account of it is configured.
    pub(super) fn descriptor(&'static self) -> Descriptor {
        let names = |keys: &'static [keys::Key]| -> &'static [&'static str] {
            Box::leak(keys.iter().map(|key| key.name.as_str()).collect())
        };
        Descriptor {
            name: &self.file.name,
            floors: self.file.documented.floors,
            implicit_account: self.file.account.iter().all(|key| !key.required),
            account_keys: names(&self.file.account),
            option_keys: names(&self.file.options),
            open: Open::Declared(self),
        }
    }

    /// Opens an account. The error names the key and the remedy, and never holds a secret.
    pub fn open(&'static self, settings: &Settings) -> Result<Box<dyn Provider>, String> {
        Ok(Box::new(Account::open(&self.file, settings)?))
    }
}

/// The budget of an account by default: 10 requests a second and 10 at once, or what is documented
/// where that is less. Of a documented rate no second may see more, so the burst counts too.
fn budget(documented: Option<f64>) -> (f64, u32) {
    match documented {
        Some(rate) if rate >= 20.0 => (10.0, 10),
        Some(rate) if rate >= 3.0 => (rate - 1.0, 2),
        Some(rate) => (rate.min(10.0), 1),
        None => (10.0, 10),
    }
}

impl Inspection {
    /// The declaration, whether its examples passed or not.
    #[must_use]
    pub fn declaration(&self) -> &Declaration {
        &self.declaration
    }

    /// Whether every example came to what it expects, no mutation ended a transaction, and nothing
    /// is missing.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.tried.iter().all(Tried::is_fine) && self.missing.is_empty()
    }

    /// The declaration, if everything is as it must be; else what is not, one sentence each.
    pub fn accept(self) -> Result<Declaration, Vec<String>> {
        let name = &self.declaration.origin;
        let mut problems = Vec::new();
        for tried in &self.tried {
            let at = format!("{name}, line {}: example {:?}", tried.line, tried.name);
            problems.extend(tried.problems.iter().map(|problem| format!("{at}: {problem}")));
            problems.extend(tried.mutations.iter().filter_map(|mutated| {
                let state = mutated.ends?;
                Some(format!("{at}: with {} it still ends {state}; make the file tell the two apart", mutated.change))
            }));
        }
        problems.extend(self.missing);
        if problems.is_empty() { Ok(self.declaration) } else { Err(problems) }
    }
}

impl Provider for Account<'static> {
    fn request(&self, ask: Ask<'_>) -> Result<Request, String> {
        self.status_request(ask).map(Into::into)
    }

    fn read(&self, ask: Ask<'_>, response: &Response) -> Outcome {
        self.outcome(ask, response)
    }

    fn secrets<'a>(&'a self, ask: Ask<'a>) -> Vec<&'a str> {
        Account::secrets(self, ask)
    }

    fn kept<'a>(&'a self, ask: Ask<'a>) -> Kept<'a> {
        Kept::Only(self.file.keep.iter().map(|place| place.pointer.of(ask.reference)).collect())
    }

    fn exclusive_key<'a>(&self, ask: Ask<'a>) -> Option<&'a str> {
        match self.file.exclusive? {
            template::Name::Reference => Some(ask.reference),
            template::Name::Param(index) => crate::wire::optional_param(ask.params, &self.file.params[index].name).ok().flatten(),
            _ => None,
        }
    }

    fn declaration(&self) -> Option<[u8; 32]> {
        Some(self.file.hash)
    }

    fn token_flow(&self) -> Option<&dyn TokenFlow> {
        self.file.token.as_ref().map(|_| self as &dyn TokenFlow)
    }
}

impl TokenFlow for Account<'static> {
    fn request(&self, now: DateTime<Utc>) -> Request {
        // Sending it fails because its URL is empty: a failed poll, and no more.
        let nothing = |_| Request { method: crate::wire::Method::Post, url: String::new(), headers: Vec::new(), body: None };
        self.token_request(now).map_or_else(nothing, Into::into)
    }

    fn read(&self, response: &Response, now: DateTime<Utc>) -> Result<Token, Outcome> {
        self.fetched(response, now)
    }

    fn is_refused(&self, reference: &str, response: &Response) -> bool {
        self.is_token_refused(reference, response)
    }
}

//! Text with placeholders: `"Bearer {account.secret_key}"`. A placeholder yields text and nothing
//! is cast; `{{` and `}}` are braces.
//!
//! Every name is looked up when the file is read, so that none can be missing when a request is made.

use super::tree::{Source, Spot};

/// What a placeholder stands for. Numbers are places in the file's own lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Name {
    /// The key that the provider looks up.
    Reference,
    /// The account's access token.
    Token,
    /// A key of the account.
    Account(usize),
    /// Something that came with the row.
    Param(usize),
    /// An option of the provider's section.
    Option(usize),
    /// One of `[values]`.
    Value(usize),
    /// The request's method, in capital letters.
    Method,
    /// The request's path as it is sent, without the path of `base_url` and without the query.
    Path,
    /// The request's body as it is sent; empty where there is none.
    Body,
}

/// The names that a file declares.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) account: Vec<String>,
    pub(super) params: Vec<String>,
    pub(super) options: Vec<String>,
    pub(super) values: Vec<String>,
}

impl Names {
    /// What a name in a placeholder stands for. The error says what is declared.
    pub(super) fn find(&self, name: &str) -> Result<Name, String> {
        match name {
            "reference" => return Ok(Name::Reference),
            "token" => return Ok(Name::Token),
            "request.method" => return Ok(Name::Method),
            "request.path" => return Ok(Name::Path),
            "request.body" => return Ok(Name::Body),
            _ => {}
        }
        let (table, list, key, of): (_, _, _, fn(usize) -> Name) = match name.split_once('.') {
            Some(("account", key)) => ("[account]", &self.account, key, Name::Account),
            Some(("params", key)) => ("[params]", &self.params, key, Name::Param),
            Some(("options", key)) => ("[options]", &self.options, key, Name::Option),
            _ => ("[values]", &self.values, name, Name::Value),
        };
        list.iter().position(|known| known == key).map(of).ok_or_else(|| {
            let known = if list.is_empty() { "nothing".to_owned() } else { list.join(", ") };
            format!("{{{name}}} is not declared; {table} has {known}. Declare it there, or write {{{{ for a brace")
        })
    }

    /// How the file writes a name.
    pub(super) fn text(&self, name: Name) -> String {
        let of = |list: &[String], index: usize| list.get(index).cloned().unwrap_or_default();
        match name {
            Name::Reference => "reference".into(),
            Name::Token => "token".into(),
            Name::Account(index) => format!("account.{}", of(&self.account, index)),
            Name::Param(index) => format!("params.{}", of(&self.params, index)),
            Name::Option(index) => format!("options.{}", of(&self.options, index)),
            Name::Value(index) => of(&self.values, index),
            Name::Method => "request.method".into(),
            Name::Path => "request.path".into(),
            Name::Body => "request.body".into(),
        }
    }
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// As it stands.
    Text(String),
    /// What the name stands for.
    Placeholder(Name),
}

/// Text with placeholders, and where it stands in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) parts: Vec<Part>,
    pub(super) spot: Spot,
}

impl Template {
    /// Reads a template; undeclared names and stray braces are noted.
    pub(super) fn read(text: &str, spot: Spot, names: &Names, source: &Source<'_>) -> Self {
        match parse(text, names) {
            Ok(parts) => Self { parts, spot },
            Err(why) => {
                source.problem(&spot, why);
                Self { parts: Vec::new(), spot }
            }
        }
    }

    /// The names in it.
    pub(super) fn names(&self) -> impl Iterator<Item = Name> + '_ {
        self.parts.iter().filter_map(|part| match part {
            Part::Placeholder(name) => Some(*name),
            Part::Text(_) => None,
        })
    }

    /// The name, where the template is one placeholder and nothing else.
    pub(super) fn only(&self) -> Option<Name> {
        match self.parts.as_slice() {
            [Part::Placeholder(name)] => Some(*name),
            _ => None,
        }
    }
}

fn parse(text: &str, names: &Names) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        plain.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(next) = after.strip_prefix(&rest[at..=at]) {
            plain.push_str(&rest[at..=at]);
            rest = next;
            continue;
        }
        let name = if rest[at..].starts_with('{') { after.split_once('}') } else { None };
        let (name, after) = name.ok_or("has a single brace; a placeholder is {name}, a brace alone is {{ or }}")?;
        if !plain.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut plain)));
        }
        parts.push(Part::Placeholder(names.find(name)?));
        rest = after;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Names { account: list(&["key"]), params: list(&["session.token"]), options: Vec::new(), values: list(&["digest"]) }
    }

    #[test]
    fn a_template_is_text_and_declared_names() {
        let parts = parse("a{account.key}{{{digest}}}-{params.session.token}", &names()).expect("a template");
        let text = |text: &str| Part::Text(text.to_owned());
        assert_eq!(
            parts,
            [
                text("a"),
                Part::Placeholder(Name::Account(0)),
                text("{"),
                Part::Placeholder(Name::Value(0)),
                text("}-"),
                Part::Placeholder(Name::Param(0))
            ]
        );
        assert_eq!(parse("", &names()), Ok(Vec::new()));
    }

    #[test]
    fn what_nobody_declared_and_stray_braces_are_refused() {
        for (text, said) in [
            ("{account.other}", "{account.other} is not declared; [account] has key"),
            ("{nothing}", "{nothing} is not declared; [values] has digest"),
            ("{options.x}", "[options] has nothing"),
            ("{reference", "single brace"),
            ("x}", "single brace"),
            ("{}", "{} is not declared"),
        ] {
            assert!(parse(text, &names()).expect_err(text).contains(said), "{text}");
        }
    }

    #[test]
    fn a_name_is_told_as_the_file_writes_it() {
        for text in ["reference", "token", "account.key", "params.session.token", "digest", "request.body"] {
            let name = names().find(text).expect(text);
            assert_eq!(names().text(name), text);
        }
    }
}

//! What is refused when a file is read, although each of its keys is in order: what the file means
//! as a whole.

use super::answer::{Amount, Currency, Meaning, Place};
use super::file::File;
use super::keys::Key;
use super::message::Message;
use super::template::Name;
use super::tree::{Source, Spot};
use std::collections::BTreeSet;

/// HTTP codes that are looked at before the body is.
const NEVER_READ: [u16; 2] = [429, 503];

/// Notes everything that makes the file no declaration. Only a file that passes may be opened.
pub(super) fn check(file: &File, source: &Source<'_>) {
    check_cycles(file, source);
    if !source.is_fine() {
        // What follows a value's names would never come to an end.
        return;
    }
    check_order(&file.request, file, source);
    check_token(file, source);
    check_identity(file, source);
    check_row(file, source);
    check_urls(file, source);
    check_used(file, source);
    check_words(file, source);
    check_codes(file, source);
}

impl File {
    /// All names that a name is made of, itself included.
    pub(super) fn reach(&self, name: Name) -> BTreeSet<Name> {
        let mut reached = BTreeSet::new();
        let mut open = vec![name];
        while let Some(name) = open.pop() {
            if reached.insert(name)
                && let Name::Value(index) = name
                && let Some(value) = self.values.get(index)
            {
                open.extend(value.names());
            }
        }
        reached
    }

    fn key(&self, name: Name) -> Option<&Key> {
        match name {
            Name::Account(index) => self.account.get(index),
            Name::Param(index) => self.params.get(index),
            Name::Option(index) => self.options.get(index),
            _ => None,
        }
    }

    /// Whether nobody may see what a name stands for.
    pub(super) fn is_secret(&self, name: Name) -> bool {
        self.reach(name).into_iter().any(|name| name == Name::Token || self.key(name).is_some_and(|key| key.secret))
    }

    fn may_stand_in_url(&self, name: Name) -> bool {
        let marked = |name: Name| matches!(name, Name::Value(index) if self.values.get(index).is_some_and(|value| value.in_url));
        let allowed = |name: Name| match self.key(name) {
            Some(key) => !key.secret || key.in_url,
            None => name != Name::Token,
        };
        marked(name) || self.reach(name).into_iter().all(allowed)
    }

    /// Where the file points to in an answer about a transaction, but for what is only kept.
    pub(super) fn pointers(&self) -> Vec<&Place> {
        let answer = &self.answer;
        let mut places: Vec<&Place> = answer.identity.iter().map(|identity| &identity.at).collect();
        places.extend(answer.require.iter().map(|guard| &guard.at));
        places.extend(answer.word.at.iter().chain(&answer.reason));
        places.extend(answer.action.iter().flat_map(|action| action.members.iter().map(|(_, place)| place)));
        if let Amount::Some { at, currency, .. } = &answer.amount {
            places.push(at);
            if let Currency::At(place) = currency {
                places.push(place);
            }
        }
        for error in &self.errors {
            places.extend(error.when.as_ref().map(|test| &test.at).into_iter().chain(&error.message));
        }
        places
    }
}

fn check_cycles(file: &File, source: &Source<'_>) {
    for (index, value) in file.values.iter().enumerate() {
        let below: Vec<Name> = value.names();
        if below.into_iter().any(|name| file.reach(name).contains(&Name::Value(index))) {
            source.problem(&value.spot, "is made of itself; write it so that no value needs itself");
        }
    }
}

/// A part of a request can only be made of parts that are made before it: the path, the body, the
/// query, the headers.
fn check_order(message: &Message, file: &File, source: &Source<'_>) {
    let path = message.path.names().map(|name| (name, &message.path.spot));
    let late = |(name, spot): (Name, &Spot), what: &str, not_yet: &[Name]| {
        if let Some(early) = not_yet.iter().find(|early| file.reach(name).contains(early)) {
            let early = file.names.text(*early);
            source.problem(spot, format_args!("{{{early}}} cannot be part of the {what}, which is made before it"));
        }
    };
    path.for_each(|found| late(found, "path", &[Name::Path, Name::Body]));
    message.in_body().into_iter().for_each(|found| late(found, "body", &[Name::Body]));
}

fn check_token(file: &File, source: &Source<'_>) {
    let names = file.request.names();
    let used = names.iter().find(|(name, _)| file.reach(*name).contains(&Name::Token));
    match (&file.token, used) {
        (None, Some((_, spot))) => source.problem(spot, "{token} is used and there is no [token]; write how it is fetched"),
        (Some(token), None) => source.problem(&token.message.spot, "is fetched and {token} is never used; leave [token] out"),
        _ => {}
    }
    if let (None, Some(error)) = (&file.token, file.errors.iter().find(|error| error.renew_token)) {
        source.problem(&error.spot, "renew_token is set and there is no [token]");
    }
    let Some(token) = &file.token else { return };
    check_order(&token.message, file, source);
    for (name, spot) in token.message.names() {
        let of_row = |name: &Name| matches!(name, Name::Reference | Name::Param(_) | Name::Token);
        if let Some(name) = file.reach(name).iter().find(|name| of_row(name)) {
            let name = file.names.text(*name);
            source.problem(
                spot,
                format_args!("{{{name}}} is not known when a token is asked for: a token is the account's, not a row's"),
            );
        }
    }
}

fn check_identity(file: &File, source: &Source<'_>) {
    let is_of_row = |name: Name| matches!(name, Name::Reference | Name::Param(_));
    let identities = &file.answer.identity;
    if !identities.iter().any(|identity| identity.is.names().any(is_of_row)) {
        let spot =
            identities.first().map_or_else(|| Spot { line: 1, key: "answer.identity".into() }, |first| first.at.spot.clone());
        source.problem(
            &spot,
            "compares nothing of the row, so another transaction's answer would be believed; compare \"{reference}\" or a \
             \"{params.…}\" that the answer repeats",
        );
    }
    for identity in identities {
        let spot = &identity.is.spot;
        for name in identity.is.names() {
            let text = file.names.text(name);
            if file.is_secret(name) {
                source.problem(spot, format_args!("{{{text}}} is a secret and is compared with an answer; compare an identifier"));
            } else if !matches!(name, Name::Reference | Name::Param(_) | Name::Account(_) | Name::Option(_)) {
                source
                    .problem(spot, format_args!("{{{text}}} is no identifier; compare the reference, a param or an account's key"));
            } else if file.key(name).is_some_and(|key| !key.required) {
                source.problem(spot, format_args!("{{{text}}} is compared and may be missing; declare it with required = true"));
            }
        }
    }
}

fn check_row(file: &File, source: &Source<'_>) {
    let of_row = |name: Name| file.reach(name).into_iter().any(|name| matches!(name, Name::Reference | Name::Param(_)));
    if !file.request.names().into_iter().any(|(name, _)| of_row(name)) {
        source.problem(&file.request.spot, "carries nothing of the row; put {reference} into path, query, headers or body");
    }
}

fn check_urls(file: &File, source: &Source<'_>) {
    let of_token = file.token.iter().flat_map(|token| token.message.in_url());
    for (name, spot) in file.request.in_url().chain(of_token) {
        if file.is_secret(name) && !file.may_stand_in_url(name) {
            let text = file.names.text(name);
            let mend = "URLs end up in logs; send it in a header, or, where the documentation wants it there, declare it with in_url = true";
            source.problem(spot, format_args!("{{{text}}} is a secret in a URL: {mend}"));
        }
    }
}

fn check_used(file: &File, source: &Source<'_>) {
    let of_token = file.token.iter().flat_map(|token| token.message.names());
    let mut used: BTreeSet<Name> =
        file.request.names().into_iter().chain(of_token).flat_map(|(name, _)| file.reach(name)).collect();
    used.extend(file.answer.identity.iter().flat_map(|identity| identity.is.names()));
    for (index, key) in file.account.iter().enumerate() {
        if !used.contains(&Name::Account(index)) {
            source.problem(&key.spot, "is declared and never used; use it, or leave it out");
        }
    }
}

fn check_words(file: &File, source: &Source<'_>) {
    let words = &file.words;
    let spot = Spot { line: words.list.first().map_or(1, |(_, word)| word.spot.line), key: "words".into() };
    if !words.plain().any(|(_, word)| word.means.is_final()) {
        source.problem(&spot, "has no word that is final, so every transaction would end unresolved");
    }
    if words.ignore_case {
        for (index, (word, rule)) in words.list.iter().enumerate() {
            if words.list[..index].iter().any(|(other, _)| other.eq_ignore_ascii_case(word)) {
                source.problem(&rule.spot, "is there twice, because the case is ignored");
            }
        }
    }
    if file.answer.word.at.len() == 1 {
        return;
    }
    for (word, rule) in words.plain() {
        if rule.means == Meaning::Succeeded && !file.answer.word.join.is_empty() && !word.contains(&file.answer.word.join) {
            source.problem(&rule.spot, format_args!("has not {:?}, which joins the parts of every word", file.answer.word.join));
        }
    }
}

fn check_codes(file: &File, source: &Source<'_>) {
    let spot = Spot { line: file.request.spot.line, key: "answer.believe".into() };
    if file.answer.believe.is_empty() {
        source.problem(&spot, "is empty, so nothing would be believed; write [200]");
    }
    for code in &file.answer.believe {
        if NEVER_READ.contains(code) || (300..400).contains(code) {
            source.problem(
                &spot,
                format_args!("{code} is never read: such an answer means \"not now\" or \"not here\" whatever it says"),
            );
        }
    }
}

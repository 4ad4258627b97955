//! JSON Pointers (RFC 6901), in which `{reference}` stands for the transaction's reference.

use serde_json::Value;
use std::borrow::Cow;

/// What stands for the reference in a pointer.
const REFERENCE: &str = "{reference}";
/// No documented answer nests deeper.
const DEEPEST: usize = 32;

/// A pointer into an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pointer {
    text: String,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// A member's name, or an item's index.
    Key(String, Option<usize>),
    /// The member that is named like the reference.
    Reference,
}

impl Pointer {
    /// Reads a pointer. The error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err("is no JSON Pointer; it begins with a slash, as in \"/data/status\"".into());
        };
        let steps = rest.split('/').map(step).collect::<Result<Vec<_>, String>>()?;
        if steps.len() > DEEPEST {
            return Err(format!("goes deeper than {DEEPEST} levels"));
        }
        Ok(Self { text: text.to_owned(), steps })
    }

    /// As it was written.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The pointer for one reference.
    pub(super) fn of(&self, reference: &str) -> Cow<'_, str> {
        if !self.steps.contains(&Step::Reference) {
            return Cow::Borrowed(&self.text);
        }
        let escaped = reference.replace('~', "~0").replace('/', "~1");
        Cow::Owned(self.text.replace(REFERENCE, &escaped))
    }

    /// The value that it points to; an explicit `null` is no value.
    pub(super) fn get<'v>(&self, value: &'v Value, reference: &str) -> Option<&'v Value> {
        let found = self.steps.iter().try_fold(value, |value, step| match (value, step) {
            (Value::Object(map), Step::Key(key, _)) => map.get(key),
            (Value::Object(map), Step::Reference) => map.get(reference),
            (Value::Array(items), Step::Key(_, Some(index))) => items.get(*index),
            _ => None,
        });
        found.filter(|value| !value.is_null())
    }

    /// Puts what it points to in `from` to the same place in `to`.
    pub(super) fn copy(&self, from: &Value, to: &mut Value, reference: &str) {
        let Some(found) = self.get(from, reference) else { return };
        let mut place = to;
        for step in &self.steps {
            if !place.is_object() {
                *place = Value::Object(serde_json::Map::new());
            }
            place = &mut place[step.key(reference)];
        }
        *place = found.clone();
    }

    /// Changes what it points to. Says whether it is there.
    pub(super) fn change(&self, value: &mut Value, reference: &str, change: impl FnOnce(&mut Value)) -> bool {
        let mut place = Some(value);
        for step in &self.steps {
            place = place.and_then(|value| match (value, step) {
                (Value::Object(map), step) => map.get_mut(step.key(reference)),
                (Value::Array(items), Step::Key(_, Some(index))) => items.get_mut(*index),
                _ => None,
            });
        }
        match place {
            Some(place) if !place.is_null() => {
                change(place);
                true
            }
            _ => false,
        }
    }

    /// Takes out what it points to. Says whether it was there.
    pub(super) fn remove(&self, value: &mut Value, reference: &str) -> bool {
        let Some((last, parents)) = self.steps.split_last() else { return false };
        let parents = Self { text: String::new(), steps: parents.to_vec() };
        let mut removed = false;
        parents.change(value, reference, |parent| match (parent, last) {
            (Value::Object(map), step) => removed = map.remove(step.key(reference)).is_some(),
            (Value::Array(items), Step::Key(_, Some(index))) if *index < items.len() => {
                items.remove(*index);
                removed = true;
            }
            _ => {}
        });
        removed
    }
}

impl Step {
    fn key<'a>(&'a self, reference: &'a str) -> &'a str {
        match self {
            Self::Key(key, _) => key,
            Self::Reference => reference,
        }
    }
}

fn step(text: &str) -> Result<Step, String> {
    if text == REFERENCE {
        return Ok(Step::Reference);
    }
    if text.contains(['{', '}']) {
        return Err("holds a brace; only {reference} may stand in a pointer, and alone between its slashes".into());
    }
    let mut key = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '~' => key.push(match letters.next() {
                Some('0') => '~',
                Some('1') => '/',
                _ => return Err("has a ~ that is neither ~0 (for ~) nor ~1 (for /)".into()),
            }),
            letter => key.push(letter),
        }
    }
    let canonical = key == "0" || (!key.starts_with('0') && !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit()));
    let index = key.parse().ok().filter(|_| canonical);
    Ok(Step::Key(key, index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pointer_finds_members_items_and_the_reference() {
        let answer = json!({"a": {"b/c": [1, {"d~": "x"}]}, "R/1": {"status": "paid"}, "n": null});
        let get = |text: &str| Pointer::parse(text).expect(text).get(&answer, "R/1").cloned();
        assert_eq!(get("/a/b~1c/1/d~0"), Some(json!("x")));
        assert_eq!(get("/{reference}/status"), Some(json!("paid")));
        assert_eq!(Pointer::parse("/a/{reference}/b").expect("a pointer").of("R/~1"), "/a/R~1~01/b");
        assert_eq!((get("/n"), get("/a/b~1c/2"), get("/a/b~1c/01"), get("/x")), (None, None, None, None));
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        for text in ["", "a", "/a~2", "/a~", "/x{reference}", "/{account.key}"] {
            assert!(Pointer::parse(text).is_err(), "{text}");
        }
        assert!(Pointer::parse(&"/a".repeat(33)).is_err());
    }

    #[test]
    fn what_it_points_to_is_copied_changed_and_removed() {
        let answer = json!({"a": {"b": [{"c": 1}], "d": 2}, "secret": 3});
        let mut kept = json!({});
        for text in ["/a/b/0/c", "/a/d", "/nowhere"] {
            Pointer::parse(text).expect(text).copy(&answer, &mut kept, "R");
        }
        assert_eq!(kept, json!({"a": {"b": {"0": {"c": 1}}, "d": 2}}));
        let mut changed = answer.clone();
        let pointer = Pointer::parse("/a/b/0/c").expect("a pointer");
        assert!(pointer.change(&mut changed, "R", |value| *value = 9.into()));
        assert_eq!(changed["a"]["b"][0]["c"], 9);
        assert!(pointer.remove(&mut changed, "R") && !pointer.remove(&mut changed, "R"));
    }
}

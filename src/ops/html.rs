//! HTML that cannot be broken by what it shows: text becomes HTML only by being escaped.

use crate::text::is_steering;
use std::fmt::{Display, Write as _};

/// A piece of HTML.
#[derive(Clone, Debug, Default)]
pub(super) struct Html(String);

/// Text. Characters that would turn the reading direction or hide something are shown by their number.
pub(super) fn text(text: impl Display) -> Html {
    let mut shown = String::new();
    for c in text.to_string().chars() {
        match c {
            // Writing to a string cannot fail.
            c if c != '\n' && is_steering(c) => _ = write!(shown, "\\u{{{:x}}}", u32::from(c)),
            c => shown.push(c),
        }
    }
    Html(escaped(&shown))
}

/// The text with everything that means something in HTML taken for itself.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// An element with its attributes and its content.
pub(super) fn element(name: &'static str, attributes: &[(&'static str, &str)], content: Html) -> Html {
    let mut html = tag(name, attributes);
    _ = write!(html.0, "{}</{name}>", content.0);
    html
}

/// An element's opening tag: all there is of elements without content.
pub(super) fn tag(name: &'static str, attributes: &[(&'static str, &str)]) -> Html {
    let mut html = format!("<{name}");
    for (attribute, value) in attributes {
        _ = write!(html, " {attribute}=\"{}\"", escaped(value));
    }
    html.push('>');
    Html(html)
}

/// Text that stands in the program and is HTML already.
pub(super) fn literal(html: &'static str) -> Html {
    Html(html.to_owned())
}

impl Html {
    /// Puts something behind it.
    pub(super) fn with(mut self, other: Self) -> Self {
        self.0.push_str(&other.0);
        self
    }

    /// The document.
    pub(super) fn into_string(self) -> String {
        self.0
    }
}

impl FromIterator<Html> for Html {
    fn from_iter<I: IntoIterator<Item = Self>>(pieces: I) -> Self {
        pieces.into_iter().fold(Self::default(), Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_breaks_out_of_its_place() {
        let hostile = "</td><script>alert('1')</script>\" onload=\"x\u{202e}\u{1b}[2J&lt;";
        let html = element("td", &[("title", hostile)], text(hostile)).into_string();
        assert_eq!((html.matches('<').count(), html.matches('>').count(), html.matches('"').count()), (2, 2, 2), "{html}");
        assert!(html.contains("\\u{202e}\\u{1b}[2J&amp;lt;"), "{html}");
    }
}

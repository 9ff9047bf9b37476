//! Text with the captures of a path's pattern and variables of the request: where a request is sent, and what it is
//! called there.

use crate::model::expression::{VARIABLES_MAX, Variable};
use crate::model::l7::{Piece, Template};

/// `$1` to `$9` (also `${1}`), variables that are known when a request is decided, and text.
pub(super) fn template(text: &str) -> Result<Template, String> {
    // Each place is filled in for each request, with up to all of its head.
    let places = text.matches('$').count();
    if places > VARIABLES_MAX {
        return Err(format!("{places} variables and captures, of which there may be {VARIABLES_MAX}"));
    }
    read(text).map_err(|name| format!("{text:?}: no variable ${name} is known when a request is decided"))
}

/// Whether a redirect can be made to this text.
pub fn is_location(text: &str) -> bool {
    template(text).is_ok()
}

fn known(name: &str) -> Option<Variable> {
    let variable = if name == "http_host" { Variable::BestHost } else { Variable::named(name)? };
    variable.is_told_early().then_some(variable)
}

/// The error is a name that is neither a group nor known.
fn read(text: &str) -> Result<Template, &str> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (name, after) = match rest.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
            Some((name, after)) => (name, after),
            // A group has one digit, whatever follows.
            None if rest.starts_with(|c: char| c.is_ascii_digit()) => rest.split_at(1),
            None => {
                let is_outside = |c: char| !c.is_ascii_alphanumeric() && c != '_';
                rest.split_at(rest.find(is_outside).unwrap_or(rest.len()))
            }
        };
        let piece = match name.parse::<usize>() {
            Ok(group @ 1..=9) => Piece::Capture(group),
            _ => Piece::Variable(known(name).ok_or(name)?),
        };
        if !literal.is_empty() {
            pieces.push(Piece::Literal(std::mem::take(&mut literal)));
        }
        pieces.push(piece);
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(Template(pieces))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_have_one_digit() {
        let literal = |text: &str| Piece::Literal(text.to_owned());
        let cases = [
            ("/", Ok(vec![literal("/")])),
            ("/$2", Ok(vec![literal("/"), Piece::Capture(2)])),
            (
                "/a/$1/b${2}c",
                Ok(vec![literal("/a/"), Piece::Capture(1), literal("/b"), Piece::Capture(2), literal("c")]),
            ),
            ("$1$2", Ok(vec![Piece::Capture(1), Piece::Capture(2)])),
            ("/$10", Ok(vec![literal("/"), Piece::Capture(1), literal("0")])),
            ("/$", Err(())),
            ("/${x", Err(())),
            ("/$0", Err(())),
        ];
        for (text, expected) in cases {
            assert_eq!(template(text).map_err(|_| ()), expected.map(Template), "{text}");
        }
    }

    /// One annotation of 240 KB would otherwise have a gigabyte written for each request.
    #[test]
    fn a_text_has_few_places_to_fill_in() {
        assert!(template(&"/$1".repeat(VARIABLES_MAX)).is_ok());
        let many = template(&"/$1".repeat(VARIABLES_MAX + 1));
        assert!(many.unwrap_err().contains("65 variables and captures"));
    }

    #[test]
    fn variables_are_those_that_are_known_early() {
        let literal = |text: &str| Piece::Literal(text.to_owned());
        let cases = [
            ("https://x$request_uri", Ok(vec![literal("https://x"), Piece::Variable(Variable::RequestUri)])),
            (
                "$scheme://${host}/$1",
                Ok(vec![
                    Piece::Variable(Variable::Scheme),
                    literal("://"),
                    Piece::Variable(Variable::Host),
                    literal("/"),
                    Piece::Capture(1),
                ]),
            ),
            ("https://$http_host", Ok(vec![literal("https://"), Piece::Variable(Variable::BestHost)])),
            (
                "https://x/$http_x_Tenant/$arg_q",
                Ok(vec![
                    literal("https://x/"),
                    Piece::Variable(Variable::Header("x_tenant".to_owned())),
                    literal("/"),
                    Piece::Variable(Variable::Argument("q".to_owned())),
                ]),
            ),
            ("https://x/$request_id", Err(())),
            ("https://x/$nobody", Err(())),
            ("https://x/$", Err(())),
        ];
        for (text, expected) in cases {
            assert_eq!(template(text).map_err(|_| ()), expected.map(Template), "{text}");
        }
    }
}

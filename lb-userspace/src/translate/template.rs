//! Text with the captures of a path's pattern.

use crate::model::l7::{Piece, Template};

/// `$1` to `$9` (also `${1}`) and text; other variables are refused.
pub(super) fn template(text: &str) -> Result<Template, String> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (name, after) = match rest.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
            Some((name, after)) => (name, after),
            None => rest.split_at(rest.chars().next().map_or(0, char::len_utf8)),
        };
        match name.parse::<usize>() {
            Ok(group @ 1..=9) => {
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                }
                pieces.push(Piece::Capture(group));
            }
            _ => {
                return Err(format!(
                    "{text:?}: only the captures $1 to $9 are supported, not other variables"
                ));
            }
        }
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
    fn templates_know_captures_and_nothing_else() {
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
            ("/$host", Err(())),
            ("/$", Err(())),
            ("/${x", Err(())),
            ("/$0", Err(())),
        ];
        for (text, expected) in cases {
            assert_eq!(template(text).map_err(|_| ()), expected.map(Template), "{text}");
        }
    }
}

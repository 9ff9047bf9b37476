//! Patterns as nginx's configuration has them, compiled to linear-time regexes.

mod pcre;

use std::sync::{Arc, OnceLock};

use regex::bytes::{Regex, RegexBuilder};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use thiserror::Error;

/// Linear-time regex over bytes; equal when its source and its reading of case are. It is known to compile, and does
/// when it is first asked: of thousands of patterns a node is asked for a few.
#[derive(Clone)]
pub struct Pattern(Arc<Source>);

struct Source {
    text: String,
    case: Case,
    unicode: bool,
    size: usize,
    /// Nothing matches that does not begin so, letters of both cases alike.
    beginning: String,
    regex: OnceLock<Regex>,
}

/// Bytes that a compiled pattern may have. Its size is the first of these that takes it, which for the patterns
/// that people write is nearly always the least.
const SIZES: [usize; 3] = [8 << 10, 64 << 10, 1 << 20];

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadPattern {
    /// PCRE knows it, and it has no meaning that can be found in linear time.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// It is no pattern.
    #[error("{0}")]
    Malformed(String),
}

impl BadPattern {
    /// What its author may do.
    pub const FIX: &str =
        "look-around, back-references and what else cannot be found in linear time are not supported";
}

/// Whether letters of both cases are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Same,
    Differs,
}

impl Pattern {
    /// Compiles a path pattern of a regex host: case-insensitive, anchored at the start.
    pub fn anchored(source: &str) -> Result<Self, BadPattern> {
        Self::build(format!("^(?:{})", pcre::translated(source)?), Case::Same, beginning(source))
    }

    /// Compiles the same pattern for a rewrite: case-insensitive, not anchored.
    pub fn unanchored(source: &str) -> Result<Self, BadPattern> {
        Self::build(pcre::translated(source)?, Case::Same, "")
    }

    /// Compiles a path pattern that takes whole paths and tells letters of both cases apart.
    pub fn whole(source: &str) -> Result<Self, BadPattern> {
        Self::build(format!("^(?:{})$", pcre::translated(source)?), Case::Differs, beginning(source))
    }

    /// Compiles a pattern for what begins with this text, as it is.
    pub fn beginning(text: &str) -> Result<Self, BadPattern> {
        Self::build(format!("^{}", regex::escape(text)), Case::Differs, "")
    }

    /// Compiles a pattern for a value, like the subject of a certificate or a header: case-sensitive,
    /// not anchored.
    pub fn subject(source: &str) -> Result<Self, BadPattern> {
        Self::build(pcre::translated(source)?, Case::Differs, "")
    }

    /// Over bytes, as nginx's patterns are: a path need not be UTF-8. Classes of characters beyond
    /// ASCII exist in Unicode only; what needs them is compiled so.
    fn build(text: String, case: Case, beginning: &str) -> Result<Self, BadPattern> {
        for size in SIZES {
            let (fit, unicode) = match Fit::of(&text, case, false, size) {
                Fit::Malformed => (Fit::of(&text, case, true, size), true),
                fit => (fit, false),
            };
            match fit {
                Fit::Fits => {
                    // Beyond ASCII other characters are the same as some of its letters.
                    let beginning = if unicode { String::new() } else { beginning.to_owned() };
                    let regex = OnceLock::new();
                    return Ok(Self(Arc::new(Source { text, case, unicode, size, beginning, regex })));
                }
                Fit::TooLarge => {}
                Fit::Malformed => break,
            }
        }
        // Says why in words for people.
        let compile = |unicode| compile(&text, case, unicode, SIZES[SIZES.len() - 1]);
        let refused = compile(false).or_else(|error| match error {
            regex::Error::CompiledTooBig(_) => Err(error),
            _ => compile(true),
        });
        let Err(refused) = refused else { return Err(BadPattern::Malformed("too large".to_owned())) };
        // The lines before it draw the pattern and point into it.
        let last_line = |error: regex::Error| {
            error
                .to_string()
                .lines()
                .last()
                .unwrap_or_default()
                .trim()
                .trim_start_matches("error: ")
                .to_owned()
        };
        Err(BadPattern::Malformed(last_line(refused)))
    }

    /// Bytes that it has at most when compiled; the regex crate makes about three such programs of it.
    pub fn size(&self) -> usize {
        self.0.size
    }

    /// Whether it is found in `text`.
    pub fn is_match(&self, text: &[u8]) -> bool {
        let beginning = self.0.beginning.as_bytes();
        text.get(..beginning.len()).is_some_and(|begun| begun.eq_ignore_ascii_case(beginning))
            && self.regex().is_match(text)
    }

    /// Whether no byte is needed for a match, so that it is found in every text; where the ends of a text or a word
    /// come into it, in some. Compiles nothing.
    pub fn takes_nothing(&self) -> bool {
        let Source { text, case, unicode, .. } = &*self.0;
        let parsed = syntax::parse_with(text, &syntax_of(*case, *unicode));
        parsed.is_ok_and(|parsed| parsed.properties().minimum_len() == Some(0))
    }

    /// The compiled regex.
    pub fn regex(&self) -> &Regex {
        let Source { text, case, unicode, regex, .. } = &*self.0;
        regex.get_or_init(|| {
            // The automaton that was built of it is the larger part of what this takes.
            compile(text, *case, *unicode, usize::MAX).expect("its automaton was built")
        })
    }
}

/// Whether a pattern can be compiled.
enum Fit {
    Fits,
    /// Not in so many bytes.
    TooLarge,
    Malformed,
}

impl Fit {
    /// By the automaton alone, of which all else is made.
    fn of(text: &str, case: Case, unicode: bool, size: usize) -> Self {
        let automaton = thompson::Compiler::new()
            .configure(thompson::Config::new().utf8(false).nfa_size_limit(Some(size)))
            .syntax(syntax_of(case, unicode))
            .build(text);
        match automaton {
            Ok(_) => Self::Fits,
            Err(error) if error.size_limit().is_some() => Self::TooLarge,
            Err(_) => Self::Malformed,
        }
    }
}

fn syntax_of(case: Case, unicode: bool) -> syntax::Config {
    syntax::Config::new().case_insensitive(case == Case::Same).unicode(unicode).utf8(false)
}

fn compile(text: &str, case: Case, unicode: bool, size: usize) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text).case_insensitive(case == Case::Same).unicode(unicode).size_limit(size).build()
}

/// Text that whatever matches at its start begins with; empty where that takes more than a look.
fn beginning(source: &str) -> &str {
    let mut depth = 0_u32;
    let mut characters = source.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' if source[at..].starts_with("\\Q") => return "",
            '\\' => drop(characters.next()),
            '[' => return "",
            '(' if source[at..].starts_with("(?") && !source[at..].starts_with("(?:") => return "",
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => return "",
            _ => {}
        }
    }
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-_~,;:=@!%&".contains(byte);
    let length = source.bytes().take_while(|byte| is_plain(byte)).count();
    // What a quantifier follows need not be there.
    let is_optional = source[length..].starts_with(['?', '*', '{']);
    &source[..length - usize::from(is_optional && length > 0)]
}

impl std::fmt::Debug for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pattern").field(&self.0.text).field(&self.0.case).finish()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (&self.0.text, self.0.case) == (&other.0.text, other.0.case)
    }
}

impl Eq for Pattern {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_cannot_begin_as_it_has_to_does_not_match(
            source in "[/abK|(?:)*+{2}.$^\\\\\\[\\]-]{1,12}",
            path in "/?[abkAB|]{0,6}",
        ) {
            for pattern in [Pattern::anchored(&source), Pattern::whole(&source)].into_iter().flatten() {
                let expected = pattern.regex().is_match(path.as_bytes());
                prop_assert_eq!(pattern.is_match(path.as_bytes()), expected, "{} {}", source, path);
            }
        }
    }

    #[test]
    fn what_takes_nothing_is_known_without_compiling() {
        for (source, expected) in
            [("", true), ("a*", true), ("^$", true), ("(a|b?)", true), ("a", false), ("^a|b", false)]
        {
            let pattern = Pattern::unanchored(source).unwrap();
            assert_eq!(pattern.takes_nothing(), expected, "{source}");
            assert!(pattern.0.regex.get().is_none());
            assert_eq!(pattern.regex().is_match(b""), expected, "{source}");
        }
    }

    #[test]
    fn the_beginning_is_what_no_match_is_without() {
        for (source, expected) in [
            ("/api(/|$)(.*)", "/api"),
            ("/api-v2/.*", "/api-v2/"),
            ("/ab?", "/a"),
            ("/ab*c", "/a"),
            ("/ab{0}", "/a"),
            ("/ab+", "/ab"),
            ("/a|/b", ""),
            ("/a\\(|/b", ""),
            ("/a(b|c)", "/a"),
            ("/a[)]|/b", ""),
            ("(?i)/a", ""),
            ("/a\\Q(\\E|b", ""),
            ("^/a", ""),
            ("*", ""),
        ] {
            assert_eq!(beginning(source), expected, "{source}");
        }
    }

    #[test]
    fn letters_beyond_ascii_may_be_those_of_ascii() {
        let kelvin = Pattern::anchored("/k[\u{3b1}-\u{3c9}]").expect("a pattern");
        assert!(kelvin.is_match("/\u{212a}\u{3b1}".as_bytes()));
    }
}

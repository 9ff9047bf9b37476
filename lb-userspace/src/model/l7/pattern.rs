//! Patterns as nginx's configuration has them, compiled to linear-time regexes.

mod pcre;

use thiserror::Error;

/// Compiled, linear-time regex over bytes; equal when its source and its reading of case are.
#[derive(Debug, Clone)]
pub struct Pattern {
    regex: regex::bytes::Regex,
    case: Case,
    size: usize,
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
        Self::build(&format!("^(?:{})", pcre::translated(source)?), Case::Same)
    }

    /// Compiles the same pattern for a rewrite: case-insensitive, not anchored.
    pub fn unanchored(source: &str) -> Result<Self, BadPattern> {
        Self::build(&pcre::translated(source)?, Case::Same)
    }

    /// Compiles a path pattern that takes whole paths and tells letters of both cases apart.
    pub fn whole(source: &str) -> Result<Self, BadPattern> {
        Self::build(&format!("^(?:{})$", pcre::translated(source)?), Case::Differs)
    }

    /// Compiles a pattern for what begins with this text, as it is.
    pub fn beginning(text: &str) -> Result<Self, BadPattern> {
        Self::build(&format!("^{}", regex::escape(text)), Case::Differs)
    }

    /// Compiles a pattern for a value, like the subject of a certificate or a header: case-sensitive,
    /// not anchored.
    pub fn subject(source: &str) -> Result<Self, BadPattern> {
        Self::build(&pcre::translated(source)?, Case::Differs)
    }

    /// Over bytes, as nginx's patterns are: a path need not be UTF-8. Classes of characters beyond
    /// ASCII exist in Unicode only; what needs them is compiled so.
    fn build(source: &str, case: Case) -> Result<Self, BadPattern> {
        let compile = |unicode, size| {
            regex::bytes::RegexBuilder::new(source)
                .case_insensitive(case == Case::Same)
                .unicode(unicode)
                .size_limit(size)
                .build()
        };
        let mut refused = regex::Error::CompiledTooBig(0);
        for size in SIZES {
            let compiled = compile(false, size).or_else(|error| match error {
                regex::Error::CompiledTooBig(_) => Err(error),
                _ => compile(true, size),
            });
            match compiled {
                Ok(regex) => return Ok(Self { regex, case, size }),
                Err(error) => refused = error,
            }
            if !matches!(refused, regex::Error::CompiledTooBig(_)) {
                break;
            }
        }
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
        self.size
    }

    /// The compiled regex.
    pub fn regex(&self) -> &regex::bytes::Regex {
        &self.regex
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str() && self.case == other.case
    }
}

impl Eq for Pattern {}

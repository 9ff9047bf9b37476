//! Who is turned away on every host (`block-cidrs`, `block-user-agents`, `block-referers`).

use super::policy::AddressSet;
use super::{BadPattern, Pattern};

/// Each is answered 403.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blocked {
    /// Clients.
    pub clients: AddressSet,
    /// User-Agent headers.
    pub agents: Vec<Listed>,
    /// Referer headers.
    pub referers: Vec<Listed>,
}

/// An entry of a list, as nginx's `map` compares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// The whole value; letters of both cases are one.
    Exact(String),
    /// Anywhere in the value.
    Pattern(Pattern),
}

impl Listed {
    /// An entry as it is written: text, `~` and a pattern, or `~*` and one that takes both cases.
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        match (text.strip_prefix("~*"), text.strip_prefix('~')) {
            (Some(pattern), _) => Pattern::unanchored(pattern).map(Self::Pattern),
            (None, Some(pattern)) => Pattern::subject(pattern).map(Self::Pattern),
            (None, None) => Ok(Self::Exact(text.to_owned())),
        }
    }

    /// The value is meant.
    pub fn takes(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value.eq_ignore_ascii_case(text.as_bytes()),
            Self::Pattern(pattern) => pattern.regex().is_match(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_compared_whole_and_patterns_anywhere() {
        let cases = [
            ("BadBot/1.0", "badbot/1.0", true),
            ("BadBot/1.0", "BadBot/1.0 beta", false),
            ("~Bot", "a Bot b", true),
            ("~Bot", "a bot b", false),
            ("~*Bot", "a bot b", true),
            ("~*^bot$", "a bot", false),
        ];
        for (entry, value, expected) in cases {
            assert_eq!(Listed::parse(entry).unwrap().takes(value.as_bytes()), expected, "{entry} {value}");
        }
        assert!(Listed::parse("~(").is_err());
    }
}

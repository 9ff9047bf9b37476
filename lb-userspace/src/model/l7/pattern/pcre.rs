//! PCRE's way of writing a pattern in that of the `regex` crate, where the two differ. What is harmless there and
//! unknown here is written otherwise; what means something else, or nothing that can be found in linear time, is refused
//! by its name. All else is handed on as it is.
//!
//! Known differences that paths do not show: `$` does not match before a final line feed, and a newline is `\n` alone.

use super::BadPattern;

/// Characters that a `\` of PCRE may stand before in a class and mean more than one character.
const SETS: &str = "dDsSwW";

/// The same pattern for the `regex` crate.
pub(super) fn translated(source: &str) -> Result<String, BadPattern> {
    let mut reader = Reader { rest: source, out: String::with_capacity(source.len()), ..Reader::default() };
    while let Some(next) = reader.take() {
        reader.step(next)?;
    }
    match reader.open.len() {
        0 => Ok(reader.out),
        _ => Err(BadPattern::Malformed("a group is not closed".to_owned())),
    }
}

#[derive(Default)]
struct Reader<'s> {
    rest: &'s str,
    out: String,
    /// Groups that are open.
    open: Vec<Group>,
    /// Where in `out` the last single character or class begins; `None`: a group or nothing came last.
    atom: Option<usize>,
    /// Something came last that can be repeated.
    repeats: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Plain,
    /// Gives nothing back: the same as a plain one where nothing comes after it.
    Atomic,
}

fn unsupported(what: impl Into<String>) -> BadPattern {
    BadPattern::Unsupported(what.into())
}

impl<'s> Reader<'s> {
    fn take(&mut self) -> Option<char> {
        let next = self.rest.chars().next()?;
        self.skip(next.len_utf8());
        Some(next)
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }

    fn skip_prefix(&mut self, prefix: &str) -> bool {
        let rest = self.rest.strip_prefix(prefix);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Writes one thing that can be repeated.
    fn atom(&mut self, text: &str) {
        self.atom = Some(self.out.len());
        self.repeats = true;
        self.out.push_str(text);
    }

    /// Writes what takes no character.
    fn place(&mut self, text: &str) {
        self.atom = None;
        self.repeats = true;
        self.out.push_str(text);
    }

    /// Writes what a part of the pattern begins with.
    fn begin(&mut self, text: &str) {
        self.atom = None;
        self.repeats = false;
        self.out.push_str(text);
    }

    fn step(&mut self, next: char) -> Result<(), BadPattern> {
        match next {
            '\\' => return self.escape(),
            '[' => return self.class(),
            '(' => return self.group(),
            ')' => return self.end_of_group(),
            '*' | '+' | '?' => return self.quantifier(&next.to_string()),
            '{' => return self.brace(),
            '}' => self.atom("\\}"),
            ']' => self.atom("\\]"),
            '^' | '$' => self.place(next.encode_utf8(&mut [0; 4])),
            '|' => self.begin("|"),
            _ => self.atom(next.encode_utf8(&mut [0; 4])),
        }
        Ok(())
    }

    /// A brace that is no quantifier is a brace.
    fn brace(&mut self) -> Result<(), BadPattern> {
        let counts = self.rest.split_once('}').map(|(counts, _)| counts);
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let Some(counts) = counts else {
            self.atom("\\{");
            return Ok(());
        };
        let is_quantifier = match counts.split_once(',') {
            // PCRE changed its mind about it.
            Some(("", most)) if is_number(most) => {
                return Err(unsupported(format!("the quantifier {{{counts}}} without a least number")));
            }
            Some((least, most)) => is_number(least) && (most.is_empty() || is_number(most)),
            None => is_number(counts),
        };
        if !is_quantifier {
            self.atom("\\{");
            return Ok(());
        }
        self.skip(counts.len() + 1);
        self.quantifier(&format!("{{{counts}}}"))
    }

    fn quantifier(&mut self, text: &str) -> Result<(), BadPattern> {
        if !self.repeats {
            return Err(BadPattern::Malformed(format!("the quantifier {text} has nothing to repeat")));
        }
        let is_possessive = self.skip_prefix("+");
        if is_possessive && !self.gives_nothing_back() {
            return Err(unsupported(format!("the possessive quantifier {text}+ before what it may take")));
        }
        self.out.push_str(text);
        if !is_possessive && self.skip_prefix("?") {
            self.out.push('?');
        }
        self.atom = None;
        self.repeats = false;
        Ok(())
    }

    /// What a repeated atom has taken could not be of use to what comes behind it: so it is all the same whether it
    /// would give anything back.
    fn gives_nothing_back(&self) -> bool {
        if self.rest.is_empty() {
            return true;
        }
        let Some(atom) = self.atom.and_then(|start| self.out.get(start..)) else { return false };
        let Ok(one) = regex::bytes::Regex::new(&format!("(?i-u)^(?:{atom})$")) else { return false };
        match self.rest.chars().next() {
            Some('$') => self.rest == "$",
            Some(next) if next.is_ascii_alphanumeric() || "/-_,;:=@%~&<>!\"'#".contains(next) => {
                // What follows must be there.
                let is_needed = !self.rest.get(1..).unwrap_or_default().starts_with(['*', '?', '{', '+']);
                is_needed && !one.is_match(next.encode_utf8(&mut [0; 4]).as_bytes())
            }
            _ => false,
        }
    }

    fn group(&mut self) -> Result<(), BadPattern> {
        if self.rest.starts_with('*') {
            return Err(unsupported("a verb (*…)"));
        }
        if !self.skip_prefix("?") {
            self.open(Group::Plain, "(");
            return Ok(());
        }
        let refused = [
            ("=", "look-ahead (?=…)"),
            ("!", "look-ahead (?!…)"),
            ("<=", "look-behind (?<=…)"),
            ("<!", "look-behind (?<!…)"),
            ("|", "a group (?|…) that numbers its branches anew"),
            ("(", "a condition (?(…)…)"),
            ("R", "recursion (?R)"),
            ("&", "recursion (?&…)"),
            ("P>", "recursion (?P>…)"),
            ("P=", "the back-reference (?P=…)"),
            ("C", "a callout (?C)"),
        ];
        if let Some((_, what)) = refused.iter().find(|(start, _)| self.rest.starts_with(start)) {
            return Err(unsupported(*what));
        }
        let number = self.rest.strip_prefix(['+', '-']).unwrap_or(self.rest);
        if number.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(unsupported("recursion (?1)"));
        }
        if self.skip_prefix("#") {
            // A comment says nothing, and what is before it is still what a quantifier repeats.
            let Some((_, after)) = self.rest.split_once(')') else {
                return Err(BadPattern::Malformed("a comment (?# is not closed".to_owned()));
            };
            self.rest = after;
            return Ok(());
        }
        if self.skip_prefix(">") {
            self.open(Group::Atomic, "(?:");
            return Ok(());
        }
        if self.skip_prefix("'") {
            let Some((name, after)) = self.rest.split_once('\'') else {
                return Err(BadPattern::Malformed("the name of a group is not closed".to_owned()));
            };
            self.rest = after;
            self.open(Group::Plain, &format!("(?P<{name}>"));
            return Ok(());
        }
        // Flags for the rest of the group, for this group, or a name.
        let end = self.rest.find([')', ':', '>']).map_or(self.rest.len(), |end| end + 1);
        let (flags, after) = self.rest.split_at(end);
        if flags.contains('x') && !flags.starts_with(['<', 'P']) {
            return Err(unsupported("the flag (?x)"));
        }
        self.rest = after;
        if flags.ends_with(')') {
            self.begin(&format!("(?{flags}"));
        } else {
            self.open(Group::Plain, &format!("(?{flags}"));
        }
        Ok(())
    }

    fn open(&mut self, group: Group, text: &str) {
        self.open.push(group);
        self.begin(text);
    }

    fn end_of_group(&mut self) -> Result<(), BadPattern> {
        let Some(group) = self.open.pop() else {
            return Err(BadPattern::Malformed("a group is closed that is not open".to_owned()));
        };
        if group == Group::Atomic && !self.rest.is_empty() {
            return Err(unsupported("an atomic group (?>…) before the end of the pattern"));
        }
        self.place(")");
        Ok(())
    }

    fn escape(&mut self) -> Result<(), BadPattern> {
        let Some(next) = self.take() else {
            return Err(BadPattern::Malformed("a \\ stands at the end".to_owned()));
        };
        match next {
            // Where a line feed ends the text, `$` does not match before it here either.
            'Z' => self.place("\\z"),
            'G' => self.place("\\A"),
            'A' | 'z' | 'b' | 'B' => self.place(&format!("\\{next}")),
            'h' => self.atom("[\\t ]"),
            'H' => self.atom("[^\\t ]"),
            'v' => self.atom("[\\n-\\r]"),
            'V' => self.atom("[^\\n-\\r]"),
            'N' => self.atom("[^\\n]"),
            'R' => self.atom("(?:\\r\\n|[\\n-\\r])"),
            'e' => self.atom("\\x1B"),
            'Q' => {
                let (text, after) = self.rest.split_once("\\E").unwrap_or((self.rest, ""));
                self.rest = after;
                for one in text.chars() {
                    self.atom(&regex::escape(one.encode_utf8(&mut [0; 4])));
                }
            }
            'E' => {}
            '1'..='9' => return Err(unsupported(format!("the back-reference \\{next}"))),
            'g' | 'k' => return Err(unsupported(format!("the back-reference \\{next}"))),
            '0' | 'c' | 'o' | 'K' | 'C' | 'X' => return Err(unsupported(format!("\\{next}"))),
            'p' | 'P' | 'x' => {
                let text = self.coded(next);
                self.atom(&text);
            }
            'd' | 'D' | 's' | 'S' | 'w' | 'W' | 'a' | 'f' | 'n' | 'r' | 't' => {
                self.atom(&format!("\\{next}"))
            }
            next if next.is_ascii_alphabetic() => {
                return Err(BadPattern::Malformed(format!("\\{next} means nothing")));
            }
            // Itself; with a \ in front the crate takes some for the beginning of a word.
            next => self.atom(&regex::escape(next.encode_utf8(&mut [0; 4]))),
        }
        Ok(())
    }

    /// Behind `\x`, `\p` or `\P`: the whole of it.
    fn coded(&mut self, letter: char) -> String {
        let braced = self.rest.starts_with('{').then(|| self.rest.find('}')).flatten();
        let length = match (braced, letter) {
            (Some(end), _) => end + 1,
            (None, 'x') => self.rest.bytes().take(2).take_while(u8::is_ascii_hexdigit).count(),
            (None, _) => self.rest.chars().next().map_or(0, char::len_utf8),
        };
        let (code, after) = self.rest.split_at(length);
        self.rest = after;
        match (letter, code.len()) {
            // PCRE takes up to two digits.
            ('x', 0) => "\\x00".to_owned(),
            ('x', 1) => format!("\\x0{code}"),
            _ => format!("\\{letter}{code}"),
        }
    }

    /// Behind `[`. In PCRE a class has no classes in it, and no operators but `-`.
    fn class(&mut self) -> Result<(), BadPattern> {
        let start = self.out.len();
        self.out.push('[');
        if self.skip_prefix("^") {
            self.out.push('^');
        }
        let mut is_first = true;
        loop {
            let Some(next) = self.take() else {
                return Err(BadPattern::Malformed("a class is not closed".to_owned()));
            };
            if next == ']' && !is_first {
                break;
            }
            is_first = false;
            if next == '[' && self.rest.starts_with(':') && self.posix() {
                continue;
            }
            let one = self.member(next)?;
            // A range, unless the `-` is the last or beside more than one character.
            let is_range = self.rest.starts_with('-') && !self.rest.starts_with("-]") && one.is_single;
            self.out.push_str(&one.text);
            if !is_range {
                continue;
            }
            self.skip(1);
            let Some(next) = self.take() else { continue };
            if next == '[' && self.rest.starts_with(':') {
                let before = self.out.len();
                self.out.push_str("\\-");
                if self.posix() {
                    continue;
                }
                self.out.truncate(before);
            }
            let last = self.member(next)?;
            self.out.push_str(if last.is_single { "-" } else { "\\-" });
            self.out.push_str(&last.text);
        }
        self.out.push(']');
        self.atom = Some(start);
        self.repeats = true;
        Ok(())
    }

    /// Behind `[`: `:alpha:]` and the like; false if it is none.
    fn posix(&mut self) -> bool {
        let name = self.rest.get(1..).and_then(|rest| rest.split_once(":]")).map(|(name, _)| name);
        let is_name =
            |name: &&str| name.trim_start_matches('^').bytes().all(|byte| byte.is_ascii_lowercase());
        let Some(name) = name.filter(is_name) else { return false };
        self.out.push_str(&format!("[:{name}:]"));
        self.skip(name.len() + 3);
        true
    }

    /// A character of a class, or an escape that stands for some.
    fn member(&mut self, next: char) -> Result<Member, BadPattern> {
        if next != '\\' {
            return Ok(Member::of(next));
        }
        let Some(next) = self.take() else {
            return Err(BadPattern::Malformed("a class is not closed".to_owned()));
        };
        Ok(match next {
            'b' => Member { text: "\\x08".to_owned(), is_single: true },
            'e' => Member { text: "\\x1B".to_owned(), is_single: true },
            'h' => Member::set("\\t "),
            'v' => Member::set("\\n-\\r"),
            'n' | 'r' | 't' | 'f' | 'a' => Member { text: format!("\\{next}"), is_single: true },
            'x' => Member { text: self.coded(next), is_single: true },
            'p' | 'P' => Member::set(&self.coded(next)),
            next if SETS.contains(next) => Member::set(&format!("\\{next}")),
            next if next.is_ascii_alphanumeric() => return Err(unsupported(format!("\\{next} in a class"))),
            next => Member::of(next),
        })
    }
}

/// What a class may have.
struct Member {
    text: String,
    is_single: bool,
}

impl Member {
    fn of(one: char) -> Self {
        let text = match one {
            // Operators of the crate's classes are made of these.
            '[' | ']' | '\\' | '^' | '-' | '&' | '~' => format!("\\{one}"),
            one => one.to_string(),
        };
        Self { text, is_single: true }
    }

    fn set(text: &str) -> Self {
        Self { text: text.to_owned(), is_single: false }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Pattern;
    use super::*;

    #[test]
    fn what_means_the_same_is_handed_on() {
        let same = [
            "/api(/|$)(.*)",
            "^/a[a-z0-9]{2,4}/?$",
            "/(?i)b(?:c|d)*?",
            "/(?P<id>\\d+)/(?<name>\\w+)",
            "/[^/]+/x{3}y{2,}",
            "[[:alpha:]_]",
        ];
        for pattern in same {
            assert_eq!(translated(pattern).as_deref(), Ok(pattern));
        }
    }

    #[test]
    fn what_pcre_takes_literally_is_literal() {
        let cases = [
            ("/{a}", "/\\{a\\}"),
            ("/a{", "/a\\{"),
            ("/a{1,x}", "/a\\{1,x\\}"),
            ("/a]b", "/a\\]b"),
            ("\\/a\\-b\\<c\\_", "/a\\-b<c_"),
            ("[]a]", "[\\]a]"),
            ("[^]a]", "[^\\]a]"),
            ("[a[b]", "[a\\[b]"),
            ("[a&&b]", "[a\\&\\&b]"),
            ("[\\w-]", "[\\w\\-]"),
            ("[\\w-a]", "[\\w\\-a]"),
            ("[a-\\d]", "[a\\-\\d]"),
            ("[+--]", "[+-\\-]"),
            ("[a-[:digit:]]", "[a\\-[:digit:]]"),
            ("\\Qa.b{\\E.", "a\\.b\\{."),
        ];
        for (pattern, expected) in cases {
            assert_eq!(translated(pattern).as_deref(), Ok(expected), "{pattern}");
            Pattern::unanchored(pattern).expect(pattern);
        }
    }

    #[test]
    fn what_is_written_otherwise_means_the_same() {
        let cases: [(&str, &[&str], &[&str]); 11] = [
            ("^/a\\Z", &["/a"], &["/ab"]),
            ("^/\\h$", &["/ ", "/\t"], &["/a"]),
            ("^[^/]++/$", &["a/"], &["a//", "a"]),
            ("^a*+$", &["aa", ""], &["b"]),
            ("^[a-z]{2,}+-", &["ab-"], &["a-"]),
            ("^/(?>a|b)", &["/a"], &["/c"]),
            ("^a(?#who)b", &["ab"], &["a"]),
            ("^(?'x'a)b", &["ab"], &["b"]),
            ("^\\x41\\x{42}$", &["AB"], &["41"]),
            ("^[\\x41-\\x43]$", &["B"], &["4"]),
            ("^a{2}+b", &["aab"], &["ab"]),
        ];
        for (pattern, good, bad) in cases {
            let compiled = Pattern::subject(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            for text in good {
                assert!(compiled.regex().is_match(text.as_bytes()), "{pattern} {text:?}");
            }
            for text in bad {
                assert!(!compiled.regex().is_match(text.as_bytes()), "{pattern} {text:?}");
            }
        }
    }

    #[test]
    fn what_has_no_counterpart_is_refused_by_name() {
        let cases = [
            ("/(?!a)", "look-ahead (?!…)"),
            ("/(?=a)", "look-ahead (?=…)"),
            ("(?<=a)b", "look-behind (?<=…)"),
            ("(?<!a)b", "look-behind (?<!…)"),
            ("(a)\\1", "the back-reference \\1"),
            ("(?P<a>b)(?P=a)", "the back-reference (?P=…)"),
            ("a++a", "the possessive quantifier ++ before what it may take"),
            ("(a|b)*+c", "the possessive quantifier *+ before what it may take"),
            ("a++b?", "the possessive quantifier ++ before what it may take"),
            ("(?>a|ab)c", "an atomic group (?>…) before the end of the pattern"),
            ("(?R)", "recursion (?R)"),
            ("(a)(?1)", "recursion (?1)"),
            ("(*UTF8)a", "a verb (*…)"),
            ("a{,3}", "the quantifier {,3} without a least number"),
        ];
        for (pattern, what) in cases {
            assert_eq!(translated(pattern), Err(unsupported(what)), "{pattern}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_none() {
        for pattern in ["(", "/a)(/b", "/a)|(/b", "[a", "*a", "(|+)", "a**", "\\", "\\y", "[b-a]"] {
            let anchored = Pattern::anchored(pattern);
            assert!(matches!(anchored, Err(BadPattern::Malformed(_))), "{pattern}: {anchored:?}");
        }
    }

    #[test]
    fn nothing_that_can_be_written_breaks_it() {
        let alphabet = "ab/\\[](){}?*+^$|.-&~<>:#=!,1xpPQE\u{e9}'".chars().collect::<Vec<_>>();
        let mut seed: u64 = 0x5eed;
        for _ in 0..1_000 {
            let mut text = String::new();
            for _ in 0..12 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push(alphabet[usize::try_from(seed >> 40).unwrap_or(0) % alphabet.len()]);
            }
            if let Ok(translated) = translated(&text) {
                // Whatever it is, it stays within the group that is put around it.
                if regex::bytes::Regex::new(&translated).is_ok() {
                    regex::bytes::RegexBuilder::new(&format!("^(?:{translated})"))
                        .unicode(false)
                        .build()
                        .or_else(|_| regex::bytes::Regex::new(&format!("^(?:{translated})")))
                        .unwrap_or_else(|error| panic!("{text:?}: {error}"));
                }
            }
        }
    }
}

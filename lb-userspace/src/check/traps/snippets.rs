//! Snippets of nginx configuration, directive by directive, with what says the same here.

mod advice;

use std::collections::HashSet;

use self::advice::{Place, advice};
use super::Caught;
use super::world::{World, field, key};
use crate::translate::{KeyStatus, Status, TABLE, key_statuses};

/// Directives shown of one snippet.
const SHOWN: usize = 40;
/// Keys of the ConfigMap that hold nginx configuration.
const KEYS: [&str; 7] = [
    "main-snippet",
    "http-snippet",
    "server-snippet",
    "location-snippet",
    "stream-snippet",
    "global-auth-snippet",
    "modsecurity-snippet",
];

/// `*-snippet` annotations.
pub(super) fn of_ingresses(world: &World<'_>, caught: &mut Caught) {
    for ingress in &world.ingresses {
        for (name, text) in &ingress.annotations {
            let is_snippet = TABLE
                .iter()
                .any(|row| row.name == *name && row.status == Status::Refused && name.ends_with("-snippet"));
            if is_snippet {
                let place = if *name == "auth-snippet" { Place::Question } else { Place::Ingress };
                let (message, fix) = report(text, place);
                caught.needs_action(&ingress.id, "snippet", field(name), message, fix);
            }
        }
    }
}

/// `*-snippet` keys of the controller's ConfigMap.
pub(super) fn of_the_config_map(world: &World<'_>, caught: &mut Caught) {
    for name in KEYS {
        if let Some(text) = world.config.get(name) {
            let place = if name == "global-auth-snippet" { Place::QuestionOfAll } else { Place::All };
            let (message, fix) = report(text, place);
            caught.needs_action(&world.config_id, "snippet", key(name), message, fix);
        }
    }
}

/// What there is to say about a snippet as a whole, and of each directive what to write instead.
fn report(text: &str, place: Place) -> (String, String) {
    let directives = directives(text);
    let about_access = access(&directives, place);
    let advice: Vec<_> = directives
        .iter()
        .zip(about_access)
        .map(|(Directive { text, is_nested }, access)| {
            // What stands in a block holds for it alone, which no annotation can say.
            let said = if *is_nested { None } else { access.unwrap_or_else(|| advice(text, place)) };
            (text, said)
        })
        .collect();
    let is_of_use = |advice: &Option<String>| advice.as_deref().is_some_and(|advice| !waits(advice));
    let by_hand = advice.iter().filter(|(_, advice)| !is_of_use(advice)).count();
    let all = match directives.len() {
        1 => "its directive".to_owned(),
        number => format!("its {number} directives"),
    };
    let said = match (by_hand, directives.len() - by_hand) {
        (0, _) => format!("{all} can be said otherwise"),
        (_, 0) => format!("{all} can only be replaced by hand"),
        (by_hand, _) => format!("of {all} {by_hand} can only be replaced by hand"),
    };
    let message = format!("nginx configuration is never run here; {said}");
    let mut lines: Vec<_> = advice
        .iter()
        .take(SHOWN)
        .map(|(directive, advice)| {
            let directive = cut(directive);
            match advice.as_deref() {
                None => format!("{directive} => by hand"),
                Some(advice) if waits(advice) => format!("{directive} => {advice}, not honoured yet"),
                Some(advice) => format!("{directive} => {advice}"),
            }
        })
        .collect();
    if advice.len() > SHOWN {
        lines.push(format!("and {} more", advice.len() - SHOWN));
    }
    (message, lines.join("\n"))
}

/// One directive of nginx.
#[derive(Debug, PartialEq)]
struct Directive {
    text: String,
    /// It stands in a block of the snippet.
    is_nested: bool,
}

/// Directives without comments, line ends and closing braces; a block counts by what opens it and
/// by what is in it.
fn directives(text: &str) -> Vec<Directive> {
    let mut found = Vec::new();
    let mut depth = 0_usize;
    let mut current = String::new();
    let mut quote = None;
    let mut comment = false;
    for char in text.chars() {
        match (char, quote) {
            ('\n', _) if comment => comment = false,
            _ if comment => {}
            ('#', None) if current.is_empty() || current.ends_with(char::is_whitespace) => comment = true,
            (';' | '{' | '}', None) => {
                let directive = current.split_whitespace().collect::<Vec<_>>().join(" ");
                if !directive.is_empty() {
                    let text = if char == '{' { directive + " {" } else { directive };
                    found.push(Directive { text, is_nested: depth > 0 });
                }
                match char {
                    '{' => depth += 1,
                    '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                current.clear();
            }
            (mark @ ('"' | '\''), None) => {
                quote = Some(mark);
                current.push(mark);
            }
            (mark, Some(open)) if mark == open => {
                quote = None;
                current.push(mark);
            }
            _ => current.push(char),
        }
    }
    let rest = current.split_whitespace().collect::<Vec<_>>().join(" ");
    if !rest.is_empty() {
        found.push(Directive { text: rest, is_nested: depth > 0 });
    }
    found
}

/// What to do about `allow` and `deny`, which mean something only together: the first that fits the client decides,
/// where our lists ask who is denied first and then who is allowed. `None` for other directives.
fn access(directives: &[Directive], place: Place) -> Vec<Option<Option<String>>> {
    let rules: Vec<_> = directives
        .iter()
        .map(|directive| {
            let (verb, who) = directive.text.split_once(' ')?;
            matches!(verb, "allow" | "deny").then_some((verb, who)).filter(|_| !directive.is_nested)
        })
        .collect();
    let ranges = |wanted: &str| {
        let named = rules.iter().flatten().filter(|(verb, who)| *verb == wanted && *who != "all");
        named.map(|(_, who)| *who).collect::<Vec<_>>().join(",")
    };
    let (allowed, denied) = (ranges("allow"), ranges("deny"));
    let denies_rest = rules.iter().flatten().any(|rule| *rule == ("deny", "all"));
    // Behind the first that allows somebody, others are only kept out together.
    let mut behind_allowed = rules.iter().flatten().skip_while(|(verb, _)| *verb == "deny");
    let is_ordered = !behind_allowed.any(|(verb, who)| *verb == "deny" && *who != "all");
    let mut told = HashSet::new();
    let mut all_of = |verb: &'static str, list: &str, ranges: &str| match told.insert(verb) {
        true => place.setting(list, ranges),
        false => "nothing: it is in that list".to_owned(),
    };
    let mut said = Vec::new();
    for rule in &rules {
        said.push(rule.map(|rule| match rule {
            _ if !is_ordered => None,
            ("deny", "all") if allowed.is_empty() => {
                Some(place.setting("denylist-source-range", "0.0.0.0/0,::/0"))
            }
            ("deny", "all") => Some("nothing: allowlist-source-range keeps all others out".to_owned()),
            ("deny", _) => Some(all_of("deny", "denylist-source-range", &denied)),
            (_, "all") => Some("nothing: who is not on denylist-source-range may enter".to_owned()),
            _ if !denies_rest => Some("nothing: without deny all everybody may enter".to_owned()),
            _ => Some(all_of("allow", "allowlist-source-range", &allowed)),
        }));
    }
    said
}

fn cut(directive: &str) -> String {
    const LONGEST: usize = 70;
    match directive.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", directive.get(..end).unwrap_or_default()),
        None => directive.to_owned(),
    }
}

/// Whether advice names a key that is not honoured yet.
fn waits(advice: &str) -> bool {
    let is_in_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut words = advice.split(|c: char| !is_in_name(c)).filter(|word| word.contains('-'));
    words.any(|word| {
        key_statuses().iter().any(|(row, status)| row.name == word && *status == KeyStatus::NotYet)
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{caught, found, ingress};
    use super::*;

    #[test]
    fn advice_that_nothing_honours_yet_says_so() {
        let not_yet = key_statuses().into_iter().find(|(_, status)| *status == KeyStatus::NotYet);
        let not_yet = not_yet.map(|(row, _)| row.name);

        assert!(not_yet.is_none_or(|name| waits(&format!("key {name} of the ConfigMap: 1"))), "{not_yet:?}");
        assert!(!waits("annotation proxy-read-timeout: \"300\""));
        assert!(!waits("key use-gzip of the ConfigMap: \"true\""));
    }

    #[test]
    fn directives_are_split_as_nginx_does() {
        let text = "add_header X \"a;b\"; # why\n# all of it\nif ($a = '}') {\n  return 403;\n}\nlast";

        let found = directives(text);
        let found: Vec<_> = found.iter().map(|found| (found.text.as_str(), found.is_nested)).collect();
        assert_eq!(
            found,
            [
                ("add_header X \"a;b\"", false),
                ("if ($a = '}') {", false),
                ("return 403", true),
                ("last", false)
            ]
        );
    }

    #[test]
    fn nothing_is_opened_by_what_is_said_of_allow_and_deny() {
        let cases = [
            ("deny all;", vec!["deny all => annotation denylist-source-range: 0.0.0.0/0,::/0"]),
            (
                "allow 10.0.0.0/8; allow 192.0.2.1; deny all;",
                vec![
                    "allow 10.0.0.0/8 => annotation allowlist-source-range: 10.0.0.0/8,192.0.2.1",
                    "allow 192.0.2.1 => nothing: it is in that list",
                    "deny all => nothing: allowlist-source-range keeps all others out",
                ],
            ),
            (
                "deny 10.0.0.1; deny 10.0.0.2; allow all;",
                vec![
                    "deny 10.0.0.1 => annotation denylist-source-range: 10.0.0.1,10.0.0.2",
                    "deny 10.0.0.2 => nothing: it is in that list",
                    "allow all => nothing: who is not on denylist-source-range may enter",
                ],
            ),
            (
                "deny 10.0.0.1; allow 10.0.0.0/8; deny all;",
                vec![
                    "deny 10.0.0.1 => annotation denylist-source-range: 10.0.0.1",
                    "allow 10.0.0.0/8 => annotation allowlist-source-range: 10.0.0.0/8",
                    "deny all => nothing: allowlist-source-range keeps all others out",
                ],
            ),
            (
                "allow 10.0.0.1; deny 10.0.0.0/8;",
                vec!["allow 10.0.0.1 => by hand", "deny 10.0.0.0/8 => by hand"],
            ),
            ("allow 10.0.0.1;", vec!["allow 10.0.0.1 => nothing: without deny all everybody may enter"]),
            (
                "location ~ /\\.git { deny all; access_log off; }",
                vec!["location ~ /\\.git { => by hand", "deny all => by hand", "access_log off => by hand"],
            ),
        ];
        for (snippet, expected) in cases {
            assert_eq!(report(snippet, Place::Ingress).1.lines().collect::<Vec<_>>(), expected, "{snippet}");
        }
    }

    #[test]
    fn a_snippet_is_told_once_and_stays_refused() {
        let annotations = "
            nginx.ingress.kubernetes.io/configuration-snippet: |
              proxy_read_timeout 10s;
              return 403;";

        let found = found(&ingress("a", annotations), &["snippet", "refused-annotation"]);

        let [finding] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(finding.reason, "snippet");
        assert_eq!(
            finding.message,
            "nginx configuration is never run here; of its 2 directives 1 can only be replaced by hand"
        );
        assert_eq!(
            finding.fix,
            "proxy_read_timeout 10s => annotation proxy-read-timeout: \"10\"\nreturn 403 => by hand"
        );
        assert_eq!(
            caught(&ingress("a", annotations), &["snippet"]),
            ["refused: configuration-snippet [snippet]"]
        );
    }
}

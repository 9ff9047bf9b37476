//! Locations of one host: kind of host, order, conflicts, patterns.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::annotations::{self, Elsewhere, Policy, field};
use super::findings::{About, Findings};
use super::template::template;
use super::upstream_tls::ProxySsl;
use crate::model::expression::Variable;
use crate::model::l7::{
    Action, BadPattern, Filters, Location, Mode, PathMatch, Pattern, Piece, Protocol, Redirect,
    RedirectQuery, Rewrite, ServicePort, SslRedirect, Template,
};
use crate::model::{ObjectId, ObjectName};

const REGEX_CHARACTERS: [char; 9] = ['(', ')', '[', ']', '*', '+', '^', '$', '|'];

/// A path before the host is known as a whole.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub path: String,
    pub exact: bool,
    /// Of type ImplementationSpecific: a pattern, where patterns are asked for.
    pub specific: bool,
    /// Field of the path, empty for the implicit `/`.
    pub field: String,
    /// `None`: of nobody, who has the default backend of all answer.
    pub ingress: Option<ObjectName>,
    pub id: ObjectId,
    /// What it names.
    pub backend: Option<Arc<ServicePort>>,
    /// Where requests go, before annotations have their say.
    pub action: Action,
    pub policy: Arc<Policy>,
    /// `proxy-ssl-*` that hold for it, its own or its host's.
    pub proxy_ssl: Option<Arc<ProxySsl>>,
}

impl Draft {
    /// No path was written for it.
    fn is_implicit(&self) -> bool {
        self.field.is_empty()
    }
}

/// How the text of a path is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// As it is.
    Literal,
    /// As a pattern of paths that begin so, in any case.
    Start,
    /// As a pattern of whole paths.
    Whole,
}

impl Reading {
    fn of(draft: &Draft, host_is_regex: bool) -> Self {
        match draft.policy.mode {
            Mode::Compat if host_is_regex => Self::Start,
            Mode::Strict if draft.specific && asks_for_patterns(draft) => Self::Whole,
            Mode::Compat | Mode::Strict => Self::Literal,
        }
    }

    fn compile(self, path: &str) -> Result<Pattern, BadPattern> {
        match self {
            Self::Literal => Pattern::beginning(path),
            Self::Start => Pattern::anchored(path),
            Self::Whole => Pattern::whole(path),
        }
    }
}

/// The host's paths are regular expressions: one location is enough to make all of them so. Those
/// that are read strictly make nothing of others, and a target that no path was written for makes nothing of the
/// implicit `/`.
pub(super) fn is_regex_host(drafts: &[Draft]) -> bool {
    let asks = |draft: &Draft| draft.policy.use_regex || (rewrites(draft) && !draft.is_implicit());
    drafts.iter().any(|draft| draft.policy.mode == Mode::Compat && asks(draft))
}

fn asks_for_patterns(draft: &Draft) -> bool {
    draft.policy.use_regex || rewrites(draft)
}

/// A target equal to the path rewrites nothing and makes nothing a regex.
fn rewrites(draft: &Draft) -> bool {
    draft.policy.rewrite_target.as_ref().is_some_and(|target| *target != draft.path)
}

/// Bytes of compiled patterns that the paths and aliases of one Ingress may have together: some 8,000 of the usual ones. A
/// short text can ask for a large program, and every agent has all of them in memory.
const PATTERN_BYTES: usize = 64 << 20;

/// What the patterns of each Ingress have taken of [`PATTERN_BYTES`].
#[derive(Default)]
pub(super) struct PatternBudget(BTreeMap<ObjectId, usize>);

impl PatternBudget {
    /// Compiles if there is something left. The error says why there is no pattern, and what to do.
    pub(super) fn compile(
        &mut self,
        ingress: &ObjectId,
        compile: impl FnOnce() -> Result<Pattern, BadPattern>,
    ) -> Result<Pattern, (String, &'static str)> {
        let taken = self.0.get(ingress).copied().unwrap_or_default();
        if taken >= PATTERN_BYTES {
            let limit = PATTERN_BYTES >> 20;
            let message = format!("the patterns of this Ingress take more than {limit} MiB of memory");
            return Err((message, "repetitions like {90} multiply what stands before them; write fewer"));
        }
        let pattern = compile().map_err(|error| (error.to_string(), BadPattern::FIX))?;
        self.0.insert(ingress.clone(), taken + pattern.size());
        Ok(pattern)
    }
}

/// Locations in the order of precedence.
pub(super) fn locations(
    mut drafts: Vec<Draft>,
    tls: bool,
    patterns: &mut PatternBudget,
    findings: &mut Findings,
) -> Vec<Location> {
    let regex = is_regex_host(&drafts);
    if regex {
        // Stable: of the same path the older Ingress stays first.
        drafts.sort_by_key(|draft| (Reverse(draft.path.len()), Reverse(draft.path.clone())));
    } else {
        drafts.sort_by_key(|draft| (Reverse(draft.path.len()), Reverse(draft.path.clone()), !draft.exact));
        added_slashes(&drafts, findings);
    }
    drafts.into_iter().map(|draft| location(draft, regex, tls, patterns, findings)).collect()
}

fn location(
    draft: Draft,
    regex: bool,
    tls: bool,
    patterns: &mut PatternBudget,
    findings: &mut Findings,
) -> Location {
    let reading = Reading::of(&draft, regex);
    surprises(&draft, reading, findings);
    let rewrites = rewrites(&draft);
    let Draft {
        path,
        exact,
        specific: _,
        field: path_field,
        ingress,
        id,
        backend,
        mut action,
        policy,
        proxy_ssl,
    } = draft;
    let mut about = findings.about(&id);
    let mut denied = policy.denied;
    let mut filters = Filters {
        ssl_redirect: match policy.redirects_to_https(&path, tls) {
            true => SslRedirect::Always,
            false => SslRedirect::Never,
        },
        ..filters(&policy, &path)
    };
    if action == Action::DefaultBackend {
        // It is of another author, who did not say what it speaks.
        filters.protocol = Protocol::Http;
        filters.fastcgi = None;
    } else if let Some(proxy_ssl) = proxy_ssl {
        let namespace = ingress.as_ref().map_or("", |ingress| ingress.namespace.as_str());
        let service = backend.as_ref().map_or("", |backend| &backend.service);
        filters.upstream_tls = Arc::new(proxy_ssl.towards(namespace, service));
    }
    if let Some(Elsewhere { by, status, url }) = &policy.redirect {
        match template(url) {
            Ok(location) => {
                action = Action::Redirect(Redirect { status: *status, location, query: RedirectQuery::Drop })
            }
            Err(message) => {
                denied = true;
                about.error("bad-redirect", field(by), format!("{message}; its paths answer 503"));
            }
        }
    }
    let matched = match matched(reading, &path, exact, &path_field, patterns, (&id, &mut about)) {
        Ok(matched) => matched,
        Err(Closed(matched)) => {
            denied = true;
            matched
        }
    };
    if let (true, Some(target)) = (rewrites && !denied, &policy.rewrite_target) {
        // What a location matched at the start is what its rewrite finds first, though nginx has that look anywhere.
        let pattern = match &matched {
            PathMatch::Regex(pattern) => Ok(pattern.clone()),
            PathMatch::Exact(_) | PathMatch::Prefix(_) => patterns.compile(&id, || reading.compile(&path)),
        };
        match (template(target), pattern) {
            (Err(message), _) => {
                denied = true;
                let message = format!("{message}; its paths answer 503");
                about.error("bad-rewrite-target", field("rewrite-target"), message);
            }
            (Ok(location), _) if URLS.iter().any(|start| target.starts_with(start)) => {
                if !matches!(action, Action::Redirect(_)) {
                    action =
                        Action::Redirect(Redirect { status: 302, location, query: RedirectQuery::Append });
                }
            }
            (Ok(mut target), Ok(pattern)) => {
                if !starts_with_slash(&target) {
                    about.warn(
                        "relative-rewrite-target",
                        field("rewrite-target"),
                        "does not start with `/`; one is put in front",
                        "",
                    );
                    target.0.insert(0, Piece::Literal("/".to_owned()));
                }
                filters.rewrite = Some(Rewrite { pattern, target });
            }
            (Ok(_), Err(_)) => denied = true,
        }
    }
    if denied {
        action = Action::Deny;
    }
    Location { path: matched, path_label: path, ingress, backend, action, filters }
}

/// How a target begins that clients are sent to, as nginx has it.
const URLS: [&str; 3] = ["http://", "https://", "$scheme"];

/// What is closed because its pattern cannot be read.
struct Closed(PathMatch);

fn matched(
    reading: Reading,
    path: &str,
    exact: bool,
    path_field: &str,
    patterns: &mut PatternBudget,
    (ingress, about): (&ObjectId, &mut About<'_>),
) -> Result<PathMatch, Closed> {
    if reading == Reading::Literal {
        let path = path.to_owned();
        return Ok(if exact { PathMatch::Exact(path) } else { PathMatch::Prefix(path) });
    }
    let (error, fix) = match patterns.compile(ingress, || reading.compile(path)) {
        Ok(pattern) => return Ok(PathMatch::Regex(pattern)),
        Err(error) => error,
    };
    // Whatever the pattern protects lies below its literal beginning: close all of it.
    let literal = literal_text(path);
    let message = format!("pattern {path:?} cannot be used, paths below {literal:?} answer 503: {error}");
    about.error_fix("bad-pattern", path_field, message, fix);
    Err(Closed(match Pattern::anchored(literal) {
        Ok(literal) => PathMatch::Regex(literal),
        Err(_) => PathMatch::Prefix("/".to_owned()),
    }))
}

fn filters(policy: &Policy, path: &str) -> Filters {
    let default = Filters::default();
    Filters {
        connect_timeout: policy.connect_timeout.unwrap_or(default.connect_timeout),
        send_timeout: policy.send_timeout.unwrap_or(default.send_timeout),
        read_timeout: policy.read_timeout.unwrap_or(default.read_timeout),
        max_body_bytes: match policy.body_bytes {
            None => default.max_body_bytes,
            Some(0) => None,
            Some(bytes) => Some(bytes),
        },
        protocol: policy.protocol,
        fastcgi: policy.fastcgi.clone(),
        retry: policy.retry,
        buffers: policy.buffers,
        logged: policy.logged,
        logs_rewrites: policy.logs_rewrites,
        mode: policy.mode,
        policies: policy.policies_at(path),
        redirects: policy.redirects.clone(),
        ..default
    }
}

/// Starts with `/`, or with what is one or may be one.
fn starts_with_slash(target: &Template) -> bool {
    match target.0.first() {
        Some(Piece::Literal(text)) => text.starts_with('/'),
        Some(Piece::Capture(_) | Piece::Variable(Variable::RequestUri | Variable::Uri)) => true,
        Some(Piece::Variable(_)) | None => false,
    }
}

/// What an author may not expect of a path.
fn surprises(draft: &Draft, reading: Reading, findings: &mut Findings) {
    let regex = reading != Reading::Literal;
    let Draft { path, exact, field, id, policy, .. } = draft;
    if draft.is_implicit() {
        return;
    }
    let mut about = findings.about(id);
    if !regex && path.contains(REGEX_CHARACTERS) {
        about.warn(
            "regex-without-use-regex",
            field,
            format!("{path:?} looks like a pattern but is compared literally"),
            "set use-regex: \"true\"",
        );
    }
    if reading == Reading::Start && !policy.use_regex && !rewrites(draft) && path != "/" {
        about.warn(
            "regex-host",
            field,
            format!("another path makes this a regex host: {path:?} is a case-insensitive pattern anchored at its start only"),
            "",
        );
    }
    if reading != Reading::Literal
        && policy.affinity.as_ref().is_some_and(|affinity| affinity.cookie.path.is_none())
    {
        about.warn(
            "pattern-as-cookie-path",
            annotations::field("session-cookie-path"),
            format!("the session's cookie gets Path={path}, as it is written; browsers do not take it for a pattern"),
            "set session-cookie-path",
        );
    }
    if reading == Reading::Start && *exact {
        about.warn(
            "exact-in-regex-host",
            field,
            format!("on a regex host an Exact path also takes everything that starts with {path:?}"),
            "write it as a pattern that ends with `$`",
        );
    }
}

/// Tells of paths that end in a slash, which is added to a request that leaves it out, unless it has a path of its own.
fn added_slashes(drafts: &[Draft], findings: &mut Findings) {
    let adds = |draft: &&Draft| draft.path.len() > 1 && draft.path.ends_with('/') && !draft.is_implicit();
    let mut adding = drafts.iter().filter(adds).peekable();
    if adding.peek().is_none() {
        return;
    }
    let known: HashSet<&str> = drafts.iter().map(|draft| draft.path.as_str()).collect();
    for Draft { path, field, id, .. } in adding {
        let without = path.strip_suffix('/').unwrap_or(path);
        if !known.contains(without) {
            let message = format!("a request for {without:?} is answered 301 to {path:?}");
            let fix = format!("write the path {without} as well, if it is to be served");
            findings.about(id).info("slash-added", field, message, fix);
        }
    }
}

/// The beginning of a pattern up to its first special character, as text.
fn literal_text(pattern: &str) -> &str {
    // Then the beginning of the whole is not the beginning of each alternative.
    if has_alternative_outside_groups(pattern) {
        return "/";
    }
    let end = pattern.find(|c: char| REGEX_CHARACTERS.contains(&c) || ['?', '.', '{', '\\'].contains(&c));
    let literal = &pattern[..end.unwrap_or(pattern.len())];
    // The character before a quantifier is optional, so the literal ends before it.
    match pattern[literal.len()..].chars().next() {
        Some('?' | '*' | '{') => {
            let last = literal.chars().next_back().map_or(0, char::len_utf8);
            &literal[..literal.len() - last]
        }
        _ => literal,
    }
}

/// `a|b` and not only `(a|b)`. Escapes and classes are not looked through: taking one for an
/// alternative closes more, never less.
fn has_alternative_outside_groups(pattern: &str) -> bool {
    let mut depth = 0_i32;
    pattern.chars().any(|character| {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        character == '|' && depth <= 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patterns_of_one_ingress_have_a_budget() {
        let of = |name: &str| ObjectId { name: name.to_owned(), ..ObjectId::default() };
        let small = || Pattern::anchored("/foo(/|$)(.*)");
        assert_eq!(small().unwrap().size(), 8 << 10);
        assert_eq!(Pattern::anchored("/([a-z]{50}){50}").unwrap().size(), 1 << 20);
        assert!(Pattern::anchored("/([a-z]{500}){500}").is_err());

        let mut budget = PatternBudget::default();
        let fit = PATTERN_BYTES / (8 << 10);
        let compiled = (0..fit + 1).filter(|_| budget.compile(&of("greedy"), small).is_ok()).count();

        assert_eq!(compiled, fit);
        assert!(budget.compile(&of("greedy"), small).unwrap_err().0.contains("more than 64 MiB"));
        assert!(budget.compile(&of("other"), small).is_ok());
    }

    #[test]
    fn a_broken_pattern_is_closed_from_its_literal_beginning() {
        let cases = [
            ("/admin/(?!public).*", "/admin/"),
            ("/ab?(?=x)", "/a"),
            ("/a|/b(?=x)", "/"),
            ("/a(b)|/d(?=x)", "/"),
            ("/a(b|c(?=x))", "/a"),
            ("/a(?<x", "/a"),
            ("[", ""),
        ];
        for (pattern, expected) in cases {
            assert_eq!(literal_text(pattern), expected, "{pattern}");
        }
    }
}

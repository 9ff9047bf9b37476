//! `auth-url` with what goes with it; in the ConfigMap `global-auth-*`, for Ingresses without a service of
//! their own. What guards and cannot be read closes the locations.

use std::time::Duration;

use super::super::findings::About;
use super::super::header_map;
use super::super::view::View;
use super::policies::{Source, Unusable};
use super::{field, value};
use crate::model::ObjectName;
use crate::model::expression::{Expression, Part, Variable};
use crate::model::l7::policy::{Auth, External, FilledHeader, Header, Remember, RememberRule};
use crate::model::upstream::Keepalive;

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];
const DURATION: &str = "auth-cache-duration";
const DURATIONS: &str = "200 202 401 5m";
/// Connections kept to one service at most, whatever is asked for.
const KEEPALIVE_MAX: usize = 1024;

/// Whose service is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Own,
    Global,
}

/// The values that one of both is made of.
#[derive(Clone, Copy)]
struct Values<'s, 'a> {
    source: &'s Source<'a>,
    whose: Whose,
}

impl<'a> Values<'_, 'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        match self.whose {
            Whose::Own => self.source.valid.get(name).copied(),
            Whose::Global => self.source.settings.text(&format!("global-{name}")),
        }
    }

    /// An annotation that the ConfigMap has no key for, so it is nothing to a service of the ConfigMap.
    fn own(&self, name: &str) -> Option<&'a str> {
        match self.whose {
            Whose::Own => self.source.valid.get(name).copied(),
            Whose::Global => None,
        }
    }

    fn unusable<T>(&self, name: &'static str, message: String) -> Result<T, Unusable> {
        match self.whose {
            Whose::Own => Err(Unusable::new(name, message)),
            Whose::Global => {
                let message = format!("global-{name} of the ConfigMap cannot be used: {message}");
                Err(Unusable::new("enable-global-auth", message))
            }
        }
    }

    /// A text with variables that may as well be missing.
    fn filled(&self, name: &'static str, about: &mut About<'_>) -> Option<Expression> {
        match Expression::parse(self.text(name)?) {
            Ok(filled) => Some(filled),
            Err(message) => {
                about.warn("unknown-variable", field(name), format!("{message}; it is ignored"), "");
                None
            }
        }
    }
}

/// The service that an Ingress has asked.
pub(super) fn read(source: &Source<'_>, about: &mut About<'_>) -> Result<Option<External>, Unusable> {
    if source.namespace.is_empty() {
        // A place without an Ingress is nobody's, and nobody guards it.
        return Ok(None);
    }
    let wants_global = source.boolean("enable-global-auth").unwrap_or(true);
    let whose = match source.valid.contains_key("auth-url") {
        true => Whose::Own,
        false if wants_global => Whose::Global,
        false => return Ok(None),
    };
    let values = Values { source, whose };
    let Some(url) = values.text("auth-url") else { return Ok(None) };
    let (tls, host, target) = match split(url) {
        Ok(parts) => parts,
        Err(message) => return values.unusable("auth-url", format!("{url:?} {message}")),
    };
    let method = match values.text("auth-method").map(method).transpose() {
        Ok(method) => method,
        Err(message) => return values.unusable("auth-method", message),
    };
    let response_headers = match names(values.text("auth-response-headers").unwrap_or_default()) {
        Ok(names) => names,
        Err(message) => return values.unusable("auth-response-headers", message),
    };
    let set_headers = match set_headers(values) {
        Ok(headers) => headers,
        Err(message) => return values.unusable("auth-proxy-set-headers", message),
    };
    let remember = match remember(values, about) {
        Ok(remember) => remember,
        Err(message) => return values.unusable(DURATION, message),
    };
    let number = |name: &str| values.own(name).and_then(|text| text.parse::<u32>().ok());
    Ok(Some(External {
        url: url.to_owned(),
        tls,
        // Told by whoever names upstreams, where the host is one of our Services.
        upstream: None,
        host,
        target,
        method,
        sign_in: sign_in(values, about),
        response_headers,
        request_redirect: values.filled("auth-request-redirect", about),
        set_headers,
        always_set_cookie: values.text("auth-always-set-cookie").and_then(value::boolean).unwrap_or(false),
        remember,
        keepalive: Keepalive {
            connections: number("auth-keepalive").map_or(0, |n| (n as usize).min(KEEPALIVE_MAX)),
            requests: number("auth-keepalive-requests").unwrap_or(1000),
            idle: Duration::from_secs(number("auth-keepalive-timeout").unwrap_or(60).into()),
            ..Keepalive::default()
        },
    }))
}

/// Whether a value of the ConfigMap's `global-auth-*` can be used.
pub(in crate::translate) fn check_global(key: &str, text: &str) -> Result<(), String> {
    match key {
        "global-auth-url" => split(text).map(drop).map_err(|message| format!("{text:?} {message}")),
        "global-auth-method" => method(text).map(drop),
        "global-auth-response-headers" => names(text).map(drop),
        "global-auth-signin" => sign_in_url(text).map(drop),
        "global-auth-request-redirect" | "global-auth-cache-key" => Expression::parse(text).map(drop),
        "global-auth-cache-duration" => rules(text).map(drop).ok_or_else(|| not_rules(text)),
        _ => Ok(()),
    }
}

fn method(text: &str) -> Result<String, String> {
    match METHODS.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is none of {}", METHODS.join(", "))),
    }
}

/// Whether by TLS, host with port, and path with query.
fn split(url: &str) -> Result<(bool, Expression, Expression), String> {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let tls = scheme.eq_ignore_ascii_case("https");
    if !tls && !scheme.eq_ignore_ascii_case("http") {
        return Err("is no http or https URL".to_owned());
    }
    let (host, target) = rest.split_at(value::host_end(rest));
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]${}".contains(c);
    if host.is_empty() || host.contains("..") || !host.chars().all(is_host) {
        return Err("names no host".to_owned());
    }
    if target.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return Err("has a path that cannot be sent".to_owned());
    }
    // A variable there begins with one itself.
    let slash = if target.starts_with(['/', '$']) { "" } else { "/" };
    Ok((tls, Expression::parse(host)?, Expression::parse(&format!("{slash}{target}"))?))
}

/// Where the client is sent on 401, and how it gets back from there.
fn sign_in(values: Values<'_, '_>, about: &mut About<'_>) -> Option<Expression> {
    const NAME: &str = "auth-signin";
    let text = values.text(NAME)?;
    let mut filled = match sign_in_url(text) {
        Ok(filled) => filled,
        Err(message) => {
            let message = format!("{message}; clients are answered 401");
            about.warn("bad-annotation", field(NAME), message, "");
            return None;
        }
    };
    let parameter = values.text("auth-signin-redirect-param").unwrap_or("rd");
    let query = text.split_once('?').map(|(_, query)| query).unwrap_or_default();
    let has_parameter = query
        .split('&')
        .any(|pair| pair.split_once('=').is_some_and(|(name, value)| name == parameter && !value.is_empty()));
    if !has_parameter {
        let mark = if query.is_empty() { '?' } else { '&' };
        filled.0.extend([
            Part::Literal(format!("{mark}{parameter}=")),
            Part::Variable(Variable::AccessScheme),
            Part::Literal("://".to_owned()),
            Part::Variable(Variable::BestHost),
            Part::Variable(Variable::EscapedRequestUri),
        ]);
    }
    Some(filled)
}

/// A path is one of the host that was asked, as in `return 302 /path` of nginx.
fn sign_in_url(text: &str) -> Result<Expression, String> {
    let is_path = text.starts_with('/');
    let is_url = text.split_once("://").is_some_and(|(scheme, rest)| {
        ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) && !rest.is_empty()
    });
    if !(is_url || is_path) || text.contains("..") || text.contains(char::is_whitespace) {
        return Err(format!("{text:?} is no http or https URL, and no path"));
    }
    let filled = Expression::parse(text).map_err(|message| format!("{text:?}: {message}"))?;
    if !is_path {
        return Ok(filled);
    }
    let asked = [
        Part::Variable(Variable::AccessScheme),
        Part::Literal("://".to_owned()),
        Part::Variable(Variable::BestHost),
    ];
    Ok(Expression(asked.into_iter().chain(filled.0).collect()))
}

/// Names of headers with commas; none that delimits messages.
fn names(text: &str) -> Result<Vec<String>, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| match value::is_header_name(name) && !header_map::delimits(name) {
            true if !name.eq_ignore_ascii_case("host") => Ok(name.to_owned()),
            _ => Err(format!("{name:?} is no header that can be copied")),
        })
        .collect()
}

/// Headers that a ConfigMap adds to the question.
fn set_headers(values: Values<'_, '_>) -> Result<Vec<FilledHeader>, String> {
    let Some(reference) = values.own("auth-proxy-set-headers") else { return Ok(Vec::new()) };
    let source = values.source;
    let headers = header_map::read(reference, source.namespace, source.crosses(), source.objects)?;
    let filled = |header: Header| {
        let value = Expression::parse(&header.value)?;
        Ok(FilledHeader { name: header.name, value })
    };
    headers.into_iter().map(filled).collect()
}

/// Without a key nothing is remembered. The ConfigMap's service has no durations but those that are set.
fn remember(values: Values<'_, '_>, about: &mut About<'_>) -> Result<Option<Remember>, String> {
    let set = values.text(DURATION).map(|text| rules(text).ok_or_else(|| not_rules(text))).transpose()?;
    let rules = match (set, values.whose) {
        (None, Whose::Own) => rules(DURATIONS),
        (set, _) => set,
    };
    let key = values.filled("auth-cache-key", about);
    Ok(key.zip(rules).map(|(key, rules)| Remember { key, rules }))
}

fn not_rules(text: &str) -> String {
    format!("{text:?} is no list of statuses with a time, as {DURATIONS:?} is")
}

/// `<statuses> <time>` with commas.
fn rules(text: &str) -> Option<Vec<RememberRule>> {
    let rule = |text: &str| {
        let mut words: Vec<_> = text.split_ascii_whitespace().collect();
        let time = value::time(words.pop()?)?;
        let statuses = match words.as_slice() {
            [] => vec![200, 301, 302],
            ["any"] => Vec::new(),
            words => words
                .iter()
                .map(|word| word.parse().ok().filter(|status| (100..=599).contains(status)))
                .collect::<Option<_>>()?,
        };
        Some(RememberRule { statuses, time })
    };
    text.split(',').map(rule).collect()
}

/// The Service that a host without variables names, and the port asked for. `name.namespace` alone may be
/// of the public DNS as well.
pub(super) fn service(host: &Expression, tls: bool, objects: &View<'_>) -> Option<(ObjectName, u16)> {
    let [Part::Literal(text)] = host.0.as_slice() else { return None };
    let name = service_name(text)?;
    let port = match text.split_once(':') {
        Some((_, port)) => port.parse().ok()?,
        None if tls => 443,
        None => 80,
    };
    let spec = objects.services.get(&name)?.object.spec.as_ref();
    let is_elsewhere = spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
    (!is_elsewhere).then_some((name, port))
}

/// The Service that this is the name of, with or without a port.
pub(in crate::translate) fn service_name(host: &str) -> Option<ObjectName> {
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    let labels: Vec<_> = name.trim_end_matches('.').split('.').collect();
    let ([service, namespace, "svc"] | [service, namespace, "svc", "cluster", "local"]) = labels.as_slice()
    else {
        return None;
    };
    Some(ObjectName::new(*namespace, *service))
}

/// The Service whose endpoints are asked.
pub(super) fn service_of(auth: &Auth, objects: &View<'_>) -> Option<(ObjectName, u16)> {
    auth.external.as_ref().and_then(|external| service(&external.host, external.tls, objects))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_split_where_its_host_ends() {
        let text =
            |key: &Expression| key.0.iter().map(|part| format!("{part:?}")).collect::<Vec<_>>().join(" ");
        let cases = [
            ("http://a", Ok((false, r#"Literal("a")"#, r#"Literal("/")"#))),
            ("https://a:8443/b?c=d", Ok((true, r#"Literal("a:8443")"#, r#"Literal("/b?c=d")"#))),
            ("HTTPS://a", Ok((true, r#"Literal("a")"#, r#"Literal("/")"#))),
            ("://a", Err(())),
            ("http://a?b", Ok((false, r#"Literal("a")"#, r#"Literal("/?b")"#))),
            ("https://$host/x", Ok((true, "Variable(Host)", r#"Literal("/x")"#))),
            ("http://a:80$request_uri", Ok((false, r#"Literal("a:80")"#, "Variable(RequestUri)"))),
            ("http://a${uri}?b", Ok((false, r#"Literal("a")"#, r#"Variable(Uri) Literal("?b")"#))),
            ("http://$request_uri", Err(())),
            ("ftp://a", Err(())),
            ("a.example.com/auth", Err(())),
            ("http://", Err(())),
            ("http:///x", Err(())),
            ("http://a..b", Err(())),
            ("http://u@a", Err(())),
            ("http://a/b c", Err(())),
            ("http://a/$nobody_knows", Err(())),
        ];
        for (url, expected) in cases {
            let parts =
                split(url).map(|(tls, host, target)| (tls, text(&host), text(&target))).map_err(|_| ());
            let expected = expected.map(|(tls, host, target)| (tls, host.to_owned(), target.to_owned()));
            assert_eq!(parts, expected, "{url}");
        }
    }

    #[test]
    fn durations_are_statuses_with_a_time_and_a_time_alone_is_for_what_nginx_remembers() {
        let rule = |statuses: &[u16], seconds| RememberRule {
            statuses: statuses.to_vec(),
            time: Duration::from_secs(seconds),
        };
        let cases = [
            ("200 202 401 5m", Some(vec![rule(&[200, 202, 401], 300)])),
            ("200 10s, any 1s", Some(vec![rule(&[200], 10), rule(&[], 1)])),
            ("1h", Some(vec![rule(&[200, 301, 302], 3600)])),
            ("200", Some(vec![rule(&[200, 301, 302], 200)])),
            ("200 x", None),
            ("99 1s", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(rules(text), expected, "{text}");
        }
    }
}

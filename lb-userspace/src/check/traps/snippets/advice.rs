//! What one directive is to be replaced by. Whatever is proposed can be written as it stands and says the same;
//! where nothing does, a person has to see to it.

use crate::model::expression::Expression;
use crate::translate::{KeyStatus, TABLE, is_location, key_statuses};

/// Whose the snippet is in which a directive stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Ingress,
    /// A key of the ConfigMap, for all of them.
    All,
    /// Of an Ingress, about the question to its auth service.
    Question,
    /// Of the ConfigMap, about the question to the auth service of all.
    QuestionOfAll,
}

impl Place {
    /// What is to be set, by the name that the annotation and the key have.
    pub(super) fn setting(self, name: &str, value: &str) -> String {
        format!("{}: {}", self.named(name), quoted(value))
    }

    fn named(self, name: &str) -> String {
        let is_key = || has_key(name);
        match self {
            Self::All | Self::QuestionOfAll if is_key() => format!("key {name} of the ConfigMap"),
            Self::All | Self::QuestionOfAll if TABLE.iter().any(|row| row.name == name) => {
                format!("annotation {name} of each Ingress")
            }
            _ if TABLE.iter().any(|row| row.name == name) => format!("annotation {name}"),
            _ => format!("key {name} of the ConfigMap"),
        }
    }
}

/// There is such a key, and it does what it says, or will.
fn has_key(name: &str) -> bool {
    key_statuses()
        .iter()
        .any(|(row, status)| row.name == name && matches!(status, KeyStatus::Honoured | KeyStatus::NotYet))
}

/// What says the same here; `None` where only a person can tell.
pub(super) fn advice(directive: &str, place: Place) -> Option<String> {
    let words = words(directive);
    let (name, values) = words.split_first()?;
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    if matches!(place, Place::Question | Place::QuestionOfAll) {
        return of_question(name, &values, place);
    }
    let first = values.first().copied().unwrap_or_default();
    let rest = values.get(1..).unwrap_or_default().join(" ");
    let rest = rest.as_str();
    let all = join(first, rest);
    let set = |name: &str, value: &str| Some(place.setting(name, value));
    match name.as_str() {
        "add_header" => {
            let value = values.get(1..).unwrap_or_default();
            header(first, &value.strip_suffix(&["always"]).unwrap_or(value).join(" "), place)
        }
        "more_set_headers" => more_set_headers(&values, place),
        // Patterns end with a star.
        "more_clear_headers" if values.iter().any(|name| name.starts_with('-') || name.contains('*')) => None,
        "more_clear_headers" | "proxy_hide_header" if !values.is_empty() => {
            Some(format!("key hide-headers of the ConfigMap, for all Ingresses: {}", values.join(",")))
        }
        "proxy_http_version" if first == "1.1" => Some("nothing: it is spoken anyway".to_owned()),
        "proxy_set_header" => request_header(first, rest, place),
        "return" => returned(first, rest, place),
        "rewrite" => rewritten(&values, place),
        "auth_basic" if first == "off" => Some("nothing: without auth-type there is no password".to_owned()),
        "auth_basic" => Some(format!("annotations auth-type: basic and auth-realm: {}", quoted(&all))),
        "auth_basic_user_file" => {
            Some("annotation auth-secret, a Secret with this file under the key auth".to_owned())
        }
        "auth_request" => Some("annotation auth-url".to_owned()),
        "satisfy" => set("satisfy", first),
        "client_max_body_size" => set("proxy-body-size", first),
        "proxy_read_timeout" | "grpc_read_timeout" => seconds("proxy-read-timeout", first, place),
        "proxy_send_timeout" | "grpc_send_timeout" => seconds("proxy-send-timeout", first, place),
        "proxy_connect_timeout" | "grpc_connect_timeout" => seconds("proxy-connect-timeout", first, place),
        "proxy_buffers" => Some(format!(
            "{} and {}",
            place.setting("proxy-buffers-number", first),
            place.setting("proxy-buffer-size", rest)
        )),
        "limit_rate" | "limit_rate_after" => Some(format!("{}, in kilobytes", place.named(&dashes(name)))),
        "limit_req" => Some("annotation limit-rps or limit-rpm".to_owned()),
        "limit_conn" => Some("annotation limit-connections".to_owned()),
        "access_log" if first == "off" => match place {
            Place::All => set("disable-access-log", "true"),
            _ => set("enable-access-log", "false"),
        },
        "rewrite_log" if first == "on" => set("enable-rewrite-log", "true"),
        "opentelemetry" => set("enable-opentelemetry", if first == "on" { "true" } else { "false" }),
        "opentelemetry_operation_name" if directive.contains('$') => Some(format!(
            "key opentelemetry-operation-name of the ConfigMap, for all Ingresses: {}",
            quoted(&all)
        )),
        "opentelemetry_operation_name" => Some(place.named("opentelemetry-operation-name")),
        "opentelemetry_trust_incoming_spans" => Some(place.named("opentelemetry-trust-incoming-span")),
        "opentelemetry_propagate" => Some("nothing: it is so where requests are traced".to_owned()),
        "error_page" => Some("annotations custom-http-errors and default-backend".to_owned()),
        "mirror" => Some("annotation mirror-target".to_owned()),
        "grpc_pass" => set("backend-protocol", "GRPC"),
        "proxy_pass" | "fastcgi_pass" => Some("the backend of a path of its own".to_owned()),
        "gzip" if first == "on" => set("use-gzip", "true"),
        "gzip_types" | "gzip_min_length" => set(&dashes(name), &all),
        "gzip_comp_level" => set("gzip-level", first),
        "set_real_ip_from" => set("proxy-real-ip-cidr", first),
        "real_ip_header" => {
            Some(format!("keys enable-real-ip and forwarded-for-header of the ConfigMap: {first}"))
        }
        "keepalive_timeout" => set("keep-alive", first),
        "keepalive_requests" => set("keep-alive-requests", first),
        "underscores_in_headers" if first == "on" => set("enable-underscores-in-headers", "true"),
        "server_tokens" => set("server-tokens", if first == "off" { "false" } else { "true" }),
        "client_header_timeout"
        | "client_body_timeout"
        | "large_client_header_buffers"
        | "ssl_protocols"
        | "client_body_buffer_size"
        | "proxy_buffer_size"
        | "proxy_buffering"
        | "proxy_busy_buffers_size"
        | "proxy_http_version"
        | "proxy_max_temp_file_size"
        | "proxy_next_upstream"
        | "proxy_next_upstream_tries"
        | "proxy_request_buffering"
        | "proxy_ssl_name"
        | "proxy_ssl_protocols"
        | "proxy_ssl_server_name"
        | "proxy_ssl_verify"
        | "proxy_ssl_verify_depth"
        | "ssl_ciphers" => set(&dashes(name), &all),
        "proxy_cookie_domain" | "proxy_cookie_path" => match values.as_slice() {
            ["off"] => set(&dashes(name), "off"),
            // Attributes behind the path, and patterns, are not for our annotation to write.
            [from, to] if is_swap(from) && is_swap(to) => set(&dashes(name), &all),
            _ => None,
        },
        "proxy_redirect" => match values.as_slice() {
            [word @ ("off" | "default")] => set("proxy-redirect-from", word),
            [from, to] if is_swap(from) && is_swap(to) => {
                let [from, to] = [("from", from), ("to", to)]
                    .map(|(which, text)| place.setting(&format!("proxy-redirect-{which}"), text));
                Some(format!("{from} and {to}"))
            }
            _ => None,
        },
        _ => None,
    }
}

/// A word that is replaced, or replaces one: no pattern, and nothing that ends it.
fn is_swap(text: &str) -> bool {
    !text.starts_with('~')
        && !text.is_empty()
        && !text.contains([' ', ';'])
        && Expression::parse(text).is_ok()
}

/// The question is not the request: what is set for the upstream does not reach who answers it.
fn of_question(name: &str, values: &[&str], place: Place) -> Option<String> {
    let nothing = |why: &str| Some(format!("nothing: {why}"));
    match (name, values) {
        ("proxy_method", [method]) if method.contains('$') => None,
        ("proxy_method", [method]) => match place {
            Place::QuestionOfAll => Some(format!("key global-auth-method of the ConfigMap: {method}")),
            _ => Some(format!("annotation auth-method: {method}")),
        },
        ("proxy_pass_request_body", ["off"]) => nothing("the question has no body"),
        ("proxy_set_header", [name, ""]) if name.eq_ignore_ascii_case("content-length") => {
            nothing("the question has no body")
        }
        ("proxy_set_header", [name, value]) => {
            let sent: &[&str] = match name.to_ascii_lowercase().as_str() {
                "x-real-ip" | "x-forwarded-for" => &["$remote_addr"],
                "x-original-url" => {
                    &["$scheme://$http_host$request_uri", "$pass_access_scheme://$http_host$request_uri"]
                }
                "x-original-method" => &["$request_method"],
                "x-request-id" => &["$req_id", "$request_id"],
                "host" | "connection" | "content-length" | "transfer-encoding" | "upgrade" => return None,
                _ => &[],
            };
            if sent.contains(value) {
                return nothing("the auth service gets it anyway");
            }
            Expression::parse(value).ok().filter(|_| !value.is_empty())?;
            let names = match place {
                Place::QuestionOfAll => "annotations auth-url and auth-proxy-set-headers of each Ingress",
                _ => "annotation auth-proxy-set-headers",
            };
            Some(format!("{names}, which names a ConfigMap with {name}: {}", quoted(value)))
        }
        _ => None,
    }
}

/// Words as nginx has them: what stands in quotes is one.
fn words(directive: &str) -> Vec<String> {
    let (mut words, mut quote, mut open) = (Vec::new(), None, None::<String>);
    for char in directive.chars() {
        match (char, quote) {
            (' ', None) => words.extend(open.take()),
            ('"' | '\'', None) if open.is_none() => {
                quote = Some(char);
                open = Some(String::new());
            }
            (mark, Some(begun)) if mark == begun => quote = None,
            _ => open.get_or_insert_default().push(char),
        }
    }
    words.extend(open);
    words
}

/// As it has to stand in a manifest, where every value is a text.
fn quoted(value: &str) -> String {
    const OTHERS: [&str; 10] = ["true", "false", "on", "off", "yes", "no", "y", "n", "null", "~"];
    let is_other = OTHERS.iter().any(|word| word.eq_ignore_ascii_case(value)) || value.parse::<f64>().is_ok();
    let opens = |c: char| "-?:,[]{}#&*!|>'\"%@`".contains(c);
    match value.is_empty()
        || is_other
        || value.starts_with(opens)
        || value.contains(": ")
        || value.contains(" #")
    {
        true => format!("{value:?}"),
        false => value.to_owned(),
    }
}

fn more_set_headers(values: &[&str], place: Place) -> Option<String> {
    let one = |text: &&str| {
        text.split_once(':').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
    };
    // An option says for which answers they are.
    let headers: Vec<_> = values.iter().map(one).collect::<Option<_>>()?;
    match headers.as_slice() {
        _ if values.iter().any(|value| value.starts_with('-')) => None,
        [] => None,
        [(name, value)] => header(name, value, place),
        _ if headers.iter().any(|(name, value)| is_of_a_setting(name) || value.contains('$')) => None,
        headers => Some(with_headers(headers, place)),
    }
}

fn header(name: &str, value: &str, place: Place) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    if lower == "strict-transport-security" {
        return Some(
            "keys hsts, hsts-max-age, hsts-include-subdomains, hsts-preload of the ConfigMap".to_owned(),
        );
    }
    if lower.starts_with("access-control-") {
        return Some("annotations enable-cors and cors-*".to_owned());
    }
    if value.contains('$') {
        // The text of custom-headers is sent as it stands.
        Expression::parse(value).ok()?;
        return Some(with_headers(&[(name.to_owned(), value.to_owned())], Place::All));
    }
    Some(with_headers(&[(name.to_owned(), value.to_owned())], place))
}

/// Not what a ConfigMap of headers is for.
fn is_of_a_setting(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower == "strict-transport-security" || lower.starts_with("access-control-")
}

fn with_headers(headers: &[(String, String)], place: Place) -> String {
    let lines: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {}", quoted(value))).collect();
    let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
    let lines = lines.join(" and ");
    match place {
        Place::All => format!(
            "key add-headers of the ConfigMap, for all Ingresses, which names a ConfigMap with {lines}"
        ),
        _ => format!(
            "annotation custom-headers, which names a ConfigMap with {lines}; allow {} in the key global-allowed-response-headers",
            names.join(",")
        ),
    }
}

/// A header of requests.
fn request_header(name: &str, value: &str, place: Place) -> Option<String> {
    if name.eq_ignore_ascii_case("x-forwarded-for") && value == "$proxy_add_x_forwarded_for" {
        return Some(
            "nothing: the client's address is sent; with the chain before it: key compute-full-forwarded-for of the ConfigMap: \"true\""
                .to_owned(),
        );
    }
    if is_sent_anyway(name, value) {
        return Some("nothing: it is sent anyway".to_owned());
    }
    Expression::parse(value).ok()?;
    let own = match name.to_ascii_lowercase().as_str() {
        "host" => Some("upstream-vhost"),
        "x-forwarded-prefix" => Some("x-forwarded-prefix"),
        _ => None,
    };
    match own {
        Some(name) => Some(place.setting(name, value)),
        // What is written out may be a password of this upstream, or an address that others may not take for theirs.
        None if place == Place::Ingress && !value.contains('$') => None,
        None => Some(format!(
            "key proxy-set-headers of the ConfigMap, for all Ingresses, which names a ConfigMap with {name}: {}",
            quoted(value)
        )),
    }
}

/// Headers that every endpoint gets, with the value that people write for them.
fn is_sent_anyway(name: &str, value: &str) -> bool {
    let values: &[&str] = match name.to_ascii_lowercase().as_str() {
        "host" => &["$host", "$http_host", "$best_http_host"],
        "x-real-ip" | "x-forwarded-for" => &["$remote_addr"],
        "x-forwarded-proto" | "x-forwarded-scheme" | "x-scheme" => &["$scheme", "$pass_access_scheme"],
        "x-forwarded-host" => &["$host", "$http_host", "$best_http_host"],
        "x-forwarded-port" => &["$server_port", "$pass_port"],
        "x-request-id" => &["$req_id", "$request_id"],
        "upgrade" => &["$http_upgrade"],
        "connection" => &["", "upgrade", "Upgrade", "$connection_upgrade"],
        _ => &[],
    };
    values.contains(&value)
}

/// The path of an Ingress is a pattern that begins at the start by itself, where the annotation makes the host one of
/// patterns.
fn rewritten(values: &[&str], place: Place) -> Option<String> {
    let [pattern, target, flag @ ..] = values else { return None };
    let path = pattern.strip_prefix('^').unwrap_or(pattern);
    if !path.starts_with('/') || place == Place::All {
        return None;
    }
    let at = format!("with the pattern {path} as path, which makes patterns of all paths of its hosts");
    let is_url = target.starts_with("http");
    match flag {
        // Of a target without scheme and host no redirect is made.
        ["permanent" | "redirect"] if !is_url => None,
        ["permanent"] => {
            Some(format!("annotations permanent-redirect: {target} and use-regex: \"true\", {at}"))
        }
        ["redirect"] => {
            Some(format!("annotations temporal-redirect: {target} and use-regex: \"true\", {at}"))
        }
        _ => Some(format!("annotation rewrite-target: {target}, {at}")),
    }
}

fn returned(status: &str, url: &str, place: Place) -> Option<String> {
    // With variables, too, that a redirect knows.
    let fixed = is_location(url) && url.starts_with("http");
    let (name, usual) = match status {
        "301" | "308" if url.starts_with("https://$host$request_uri") => {
            return Some(place.setting("force-ssl-redirect", "true"));
        }
        "301" | "308" if fixed => ("permanent-redirect", "301"),
        "302" | "303" | "307" if fixed => ("temporal-redirect", "302"),
        _ => return None,
    };
    let code = match status == usual {
        true => String::new(),
        false => format!(" and {name}-code: \"{status}\""),
    };
    Some(format!("{}{code}", place.setting(name, url)))
}

/// Annotations count whole seconds.
fn seconds(annotation: &str, time: &str, place: Place) -> Option<String> {
    let digits = time.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let seconds = match time.get(digits.len()..)? {
        "" | "s" => number,
        "m" => number.checked_mul(60)?,
        "h" => number.checked_mul(3600)?,
        _ => return None,
    };
    Some(place.setting(annotation, &seconds.to_string()))
}

fn dashes(name: &str) -> String {
    name.replace('_', "-")
}

fn join(first: &str, rest: &str) -> String {
    format!("{first} {rest}").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_directive_gets_what_says_the_same() {
        let cases = [
            ("proxy_read_timeout 5m", Some("annotation proxy-read-timeout: \"300\"")),
            ("client_max_body_size 50m", Some("annotation proxy-body-size: 50m")),
            ("client_max_body_size 0", Some("annotation proxy-body-size: \"0\"")),
            (
                "return 301 https://b.example.com/",
                Some("annotation permanent-redirect: https://b.example.com/"),
            ),
            (
                "return 307 https://b.example.com/",
                Some(
                    "annotation temporal-redirect: https://b.example.com/ and temporal-redirect-code: \"307\"",
                ),
            ),
            ("return 301 https://$host$request_uri", Some("annotation force-ssl-redirect: \"true\"")),
            (
                "return 301 https://b.example.com$request_uri",
                Some("annotation permanent-redirect: https://b.example.com$request_uri"),
            ),
            ("return 301 /b", None),
            ("rewrite ^/a$ /b permanent", None),
            (
                "rewrite ^/old/(.*)$ /new/$1 break",
                Some(
                    "annotation rewrite-target: /new/$1, with the pattern /old/(.*)$ as path, which makes patterns of all paths of its hosts",
                ),
            ),
            (
                "rewrite ^/a$ https://b.example.com permanent",
                Some(
                    "annotations permanent-redirect: https://b.example.com and use-regex: \"true\", with the pattern /a$ as path, which makes patterns of all paths of its hosts",
                ),
            ),
            ("rewrite ^(.*)$ /b$1 break", None),
            ("proxy_set_header X-Real-IP $remote_addr", Some("nothing: it is sent anyway")),
            ("proxy_set_header Host $http_host", Some("nothing: it is sent anyway")),
            ("proxy_set_header Connection \"\"", Some("nothing: it is sent anyway")),
            (
                "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for",
                Some(
                    "nothing: the client's address is sent; with the chain before it: key compute-full-forwarded-for of the ConfigMap: \"true\"",
                ),
            ),
            (
                "proxy_set_header X-Path $request_uri",
                Some(
                    "key proxy-set-headers of the ConfigMap, for all Ingresses, which names a ConfigMap with X-Path: $request_uri",
                ),
            ),
            ("proxy_set_header Authorization \"Basic abc\"", None),
            ("proxy_set_header X-A $nobody_knows", None),
            ("proxy_http_version 1.1", Some("nothing: it is spoken anyway")),
            ("return 403", None),
            ("proxy_set_header Host web.internal", Some("annotation upstream-vhost: web.internal")),
            ("proxy_buffer_size 16k", Some("annotation proxy-buffer-size: 16k")),
            ("proxy_buffering off", Some("annotation proxy-buffering: \"off\"")),
            ("proxy_max_temp_file_size 0", Some("annotation proxy-max-temp-file-size: \"0\"")),
            ("server_tokens off", Some("key server-tokens of the ConfigMap: \"false\"")),
            ("proxy_redirect off", Some("annotation proxy-redirect-from: \"off\"")),
            (
                "proxy_redirect http://a/ /",
                Some("annotation proxy-redirect-from: http://a/ and annotation proxy-redirect-to: /"),
            ),
            ("proxy_redirect ~^http://a(.*)$ /$1", None),
            ("proxy_cookie_path / /app", Some("annotation proxy-cookie-path: / /app")),
            ("proxy_cookie_path / \"/; secure; HttpOnly\"", None),
            ("proxy_cookie_path ~^/(.*)$ \"/$1; SameSite=None\"", None),
            (
                "more_set_headers \"X-A: 1\" \"X-B: 2\"",
                Some(
                    "annotation custom-headers, which names a ConfigMap with X-A: \"1\" and X-B: \"2\"; allow X-A,X-B in the key global-allowed-response-headers",
                ),
            ),
            ("more_set_headers -s 404 \"X-A: 1\"", None),
            (
                "more_clear_headers \"X-A\" \"X-B\"",
                Some("key hide-headers of the ConfigMap, for all Ingresses: X-A,X-B"),
            ),
            ("more_clear_headers \"X-*\"", None),
            (
                "more_set_headers \"X-Frame-Options: DENY\"",
                Some(
                    "annotation custom-headers, which names a ConfigMap with X-Frame-Options: DENY; allow X-Frame-Options in the key global-allowed-response-headers",
                ),
            ),
            (
                "add_header X-A \"b c\" always",
                Some(
                    "annotation custom-headers, which names a ConfigMap with X-A: b c; allow X-A in the key global-allowed-response-headers",
                ),
            ),
            (
                "add_header X-Var $host",
                Some(
                    "key add-headers of the ConfigMap, for all Ingresses, which names a ConfigMap with X-Var: $host",
                ),
            ),
            ("if ($http_x = 1) {", None),
            ("content_by_lua_block {", None),
        ];
        for (directive, expected) in cases {
            assert_eq!(advice(directive, Place::Ingress).as_deref(), expected, "{directive}");
        }
    }

    #[test]
    fn what_holds_for_all_is_said_for_all() {
        let cases = [
            ("client_max_body_size 8m", Some("key proxy-body-size of the ConfigMap: 8m")),
            (
                "more_set_headers \"X-A: 1\"",
                Some(
                    "key add-headers of the ConfigMap, for all Ingresses, which names a ConfigMap with X-A: \"1\"",
                ),
            ),
            (
                "proxy_set_header X-A b",
                Some(
                    "key proxy-set-headers of the ConfigMap, for all Ingresses, which names a ConfigMap with X-A: b",
                ),
            ),
            ("grpc_pass grpc://a", Some("annotation backend-protocol of each Ingress: GRPC")),
            ("rewrite ^/a$ /b break", None),
        ];
        for (directive, expected) in cases {
            assert_eq!(advice(directive, Place::All).as_deref(), expected, "{directive}");
        }
    }

    #[test]
    fn what_is_said_of_the_question_reaches_the_auth_service() {
        let cases = [
            (
                "proxy_set_header X-Forwarded-Host $http_host",
                Some(
                    "annotation auth-proxy-set-headers, which names a ConfigMap with X-Forwarded-Host: $http_host",
                ),
            ),
            (
                "proxy_set_header X-Forwarded-Method $request_method",
                Some(
                    "annotation auth-proxy-set-headers, which names a ConfigMap with X-Forwarded-Method: $request_method",
                ),
            ),
            (
                "proxy_set_header X-Original-Method $request_method",
                Some("nothing: the auth service gets it anyway"),
            ),
            ("proxy_set_header X-A $nobody_knows", None),
            ("proxy_set_header Host a", None),
            ("proxy_set_header Content-Length \"\"", Some("nothing: the question has no body")),
            ("proxy_method POST", Some("annotation auth-method: POST")),
            ("proxy_read_timeout 5m", None),
            ("client_max_body_size 8m", None),
        ];
        for (directive, expected) in cases {
            assert_eq!(advice(directive, Place::Question).as_deref(), expected, "{directive}");
        }
        assert_eq!(
            advice("proxy_set_header X-A $host", Place::QuestionOfAll).as_deref(),
            Some(
                "annotations auth-url and auth-proxy-set-headers of each Ingress, which names a ConfigMap with X-A: $host"
            )
        );
    }
}

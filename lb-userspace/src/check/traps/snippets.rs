//! Snippets of nginx configuration, directive by directive, with what says the same here.

use std::collections::HashSet;

use super::Caught;
use super::world::{World, field, key};
use crate::translate::{KeyStatus, Status, TABLE, is_location, key_statuses};

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
                let (message, fix) = report(text);
                caught.needs_action(&ingress.id, "snippet", field(name), message, fix);
            }
        }
    }
}

/// `*-snippet` keys of the controller's ConfigMap.
pub(super) fn of_the_config_map(world: &World<'_>, caught: &mut Caught) {
    for name in KEYS {
        if let Some(text) = world.config.get(name) {
            let (message, fix) = report(text);
            caught.needs_action(&world.config_id, "snippet", key(name), message, fix);
        }
    }
}

/// What there is to say about a snippet as a whole, and of each directive what to write instead.
fn report(text: &str) -> (String, String) {
    let directives = directives(text);
    let about_access = access(&directives);
    let advice: Vec<_> = directives
        .iter()
        .zip(about_access)
        .map(|(Directive { text, is_nested }, access)| {
            // What stands in a block holds for it alone, which no annotation can say.
            let said = if *is_nested { None } else { access.unwrap_or_else(|| advice(text)) };
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
fn access(directives: &[Directive]) -> Vec<Option<Option<String>>> {
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
        true => format!("annotation {list}: {ranges}"),
        false => "nothing: it is in that list".to_owned(),
    };
    let mut said = Vec::new();
    for rule in &rules {
        said.push(rule.map(|rule| match rule {
            _ if !is_ordered => None,
            ("deny", "all") if allowed.is_empty() => {
                Some("annotation denylist-source-range: 0.0.0.0/0,::/0".to_owned())
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

/// What says the same here; `None` where only a person can tell.
fn advice(directive: &str) -> Option<String> {
    let mut words = directive.split(' ');
    let name = words.next()?;
    let words: Vec<&str> = words.map(|word| word.trim_matches(['"', '\''])).collect();
    let first = words.first().copied().unwrap_or_default();
    let rest = words.get(1..).unwrap_or_default().join(" ");
    let rest = rest.trim_matches(['"', '\'']);
    Some(match name {
        "add_header" => header(first, rest.trim_end_matches("always").trim().trim_matches(['"', '\''])),
        "more_set_headers" => {
            let (name, value) =
                directive.get(name.len()..)?.trim().trim_matches(['"', '\'']).split_once(':')?;
            header(name, value.trim())
        }
        "more_clear_headers" | "proxy_hide_header" => {
            format!("key hide-headers of the ConfigMap: {first}")
        }
        "proxy_set_header" if is_sent_anyway(first, rest) => "nothing: it is sent anyway".to_owned(),
        "proxy_http_version" if first == "1.1" => "nothing: it is spoken anyway".to_owned(),
        "proxy_set_header" if first.eq_ignore_ascii_case("host") => {
            format!("annotation upstream-vhost: {rest}")
        }
        "proxy_set_header" if first.eq_ignore_ascii_case("x-forwarded-prefix") => {
            format!("annotation x-forwarded-prefix: {rest}")
        }
        "proxy_set_header" => {
            format!(
                "key proxy-set-headers of the ConfigMap, for all Ingresses, which names a ConfigMap with {first}: {rest}"
            )
        }
        "return" => returned(first, rest)?,
        // Of a target without scheme and host no redirect is made.
        "rewrite"
            if matches!(words.last(), Some(&("permanent" | "redirect")))
                && words.get(1).is_none_or(|target| !target.starts_with("http")) =>
        {
            return None;
        }
        "rewrite" if words.last() == Some(&"permanent") => {
            format!("annotation permanent-redirect, with the pattern {first} as path: {}", words.get(1)?)
        }
        "rewrite" if words.last() == Some(&"redirect") => {
            format!("annotation temporal-redirect, with the pattern {first} as path: {}", words.get(1)?)
        }
        "rewrite" => {
            format!("annotation rewrite-target, with the pattern {first} as path: {}", words.get(1)?)
        }
        "auth_basic" if first == "off" => "nothing: without auth-type there is no password".to_owned(),
        "auth_basic" => format!("annotations auth-type: basic and auth-realm: {}", join(first, rest)),
        "auth_basic_user_file" => {
            "annotation auth-secret, a Secret with this file under the key auth".to_owned()
        }
        "auth_request" => "annotation auth-url".to_owned(),
        "satisfy" => format!("annotation satisfy: {first}"),
        "client_max_body_size" => format!("annotation proxy-body-size: {first}"),
        "proxy_read_timeout" | "grpc_read_timeout" => seconds("proxy-read-timeout", first)?,
        "proxy_send_timeout" | "grpc_send_timeout" => seconds("proxy-send-timeout", first)?,
        "proxy_connect_timeout" | "grpc_connect_timeout" => seconds("proxy-connect-timeout", first)?,
        "proxy_buffers" => format!("annotations proxy-buffers-number: {first} and proxy-buffer-size: {rest}"),
        "limit_rate" | "limit_rate_after" => format!("annotation {}, in kilobytes", dashes(name)),
        "limit_req" => "annotation limit-rps or limit-rpm".to_owned(),
        "limit_conn" => "annotation limit-connections".to_owned(),
        "access_log" if first == "off" => "annotation enable-access-log: \"false\"".to_owned(),
        "rewrite_log" if first == "on" => "annotation enable-rewrite-log: \"true\"".to_owned(),
        "opentelemetry" if first == "on" => "annotation enable-opentelemetry: \"true\"".to_owned(),
        "opentelemetry" => "annotation enable-opentelemetry: \"false\"".to_owned(),
        "opentelemetry_operation_name" if directive.contains('$') => {
            format!(
                "key opentelemetry-operation-name of the ConfigMap, for all Ingresses: {}",
                join(first, rest)
            )
        }
        "opentelemetry_operation_name" => "annotation opentelemetry-operation-name".to_owned(),
        "opentelemetry_trust_incoming_spans" => "annotation opentelemetry-trust-incoming-span".to_owned(),
        "opentelemetry_propagate" => "nothing: it is so where requests are traced".to_owned(),
        "error_page" => "annotations custom-http-errors and default-backend".to_owned(),
        "mirror" => "annotation mirror-target".to_owned(),
        "grpc_pass" => "annotation backend-protocol: GRPC".to_owned(),
        "proxy_pass" | "fastcgi_pass" => "the backend of a path of its own".to_owned(),
        "gzip" if first == "on" => "key use-gzip of the ConfigMap: \"true\"".to_owned(),
        "gzip_types" | "gzip_min_length" => {
            format!("key {} of the ConfigMap: {}", dashes(name), join(first, rest))
        }
        "gzip_comp_level" => format!("key gzip-level of the ConfigMap: {first}"),
        "set_real_ip_from" => format!("key proxy-real-ip-cidr of the ConfigMap: {first}"),
        "real_ip_header" => format!("keys enable-real-ip and forwarded-for-header of the ConfigMap: {first}"),
        "keepalive_timeout" => format!("key keep-alive of the ConfigMap: {first}"),
        "keepalive_requests" => format!("key keep-alive-requests of the ConfigMap: {first}"),
        "underscores_in_headers" if first == "on" => {
            "key enable-underscores-in-headers of the ConfigMap: \"true\"".to_owned()
        }
        "client_header_timeout"
        | "client_body_timeout"
        | "large_client_header_buffers"
        | "ssl_protocols"
        | "server_tokens" => {
            format!("key {} of the ConfigMap: {}", dashes(name), join(first, rest))
        }
        "client_body_buffer_size"
        | "proxy_buffer_size"
        | "proxy_buffering"
        | "proxy_busy_buffers_size"
        | "proxy_cookie_domain"
        | "proxy_cookie_path"
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
        | "ssl_ciphers" => {
            format!("annotation {}: {}", dashes(name), join(first, rest))
        }
        "proxy_redirect" => format!("annotations proxy-redirect-from: {first} and proxy-redirect-to: {rest}"),
        _ => return None,
    })
}

fn header(name: &str, value: &str) -> String {
    if name.eq_ignore_ascii_case("strict-transport-security") {
        return "keys hsts, hsts-max-age, hsts-include-subdomains, hsts-preload of the ConfigMap".to_owned();
    }
    if name.to_ascii_lowercase().starts_with("access-control-") {
        return "annotations enable-cors and cors-*".to_owned();
    }
    format!(
        "annotation custom-headers, which names a ConfigMap with {name}: {value}; allow {name} in the key global-allowed-response-headers"
    )
}

/// Headers that every endpoint gets, with the value that people write for them.
fn is_sent_anyway(name: &str, value: &str) -> bool {
    let values: &[&str] = match name.to_ascii_lowercase().as_str() {
        "host" => &["$host", "$http_host", "$best_http_host"],
        "x-real-ip" => &["$remote_addr"],
        "x-forwarded-for" => &["$remote_addr", "$proxy_add_x_forwarded_for"],
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

fn returned(status: &str, url: &str) -> Option<String> {
    // With variables, too, that a redirect knows.
    let fixed = is_location(url) && url.starts_with("http");
    Some(match status {
        "301" | "308" if url.starts_with("https://$host$request_uri") => {
            "annotation force-ssl-redirect: \"true\"".to_owned()
        }
        "301" | "308" if fixed => {
            let code = if status == "301" { "" } else { " and permanent-redirect-code: \"308\"" };
            format!("annotation permanent-redirect: {url}{code}")
        }
        "302" | "303" | "307" if fixed => {
            let code = match status {
                "302" => String::new(),
                status => format!(" and temporal-redirect-code: \"{status}\""),
            };
            format!("annotation temporal-redirect: {url}{code}")
        }
        _ => return None,
    })
}

/// Annotations count whole seconds.
fn seconds(annotation: &str, time: &str) -> Option<String> {
    let digits = time.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let seconds = match time.get(digits.len()..)? {
        "" | "s" => number,
        "m" => number.checked_mul(60)?,
        "h" => number.checked_mul(3600)?,
        _ => return None,
    };
    Some(format!("annotation {annotation}: \"{seconds}\""))
}

fn dashes(name: &str) -> String {
    name.replace('_', "-")
}

fn join(first: &str, rest: &str) -> String {
    format!("{first} {rest}").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{caught, found, ingress};
    use super::*;

    #[test]
    fn each_directive_gets_what_says_the_same() {
        let cases = [
            ("proxy_read_timeout 5m", Some("annotation proxy-read-timeout: \"300\"")),
            ("client_max_body_size 50m", Some("annotation proxy-body-size: 50m")),
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
            ("proxy_set_header X-Real-IP $remote_addr", Some("nothing: it is sent anyway")),
            ("proxy_set_header Host $http_host", Some("nothing: it is sent anyway")),
            ("proxy_set_header Connection \"\"", Some("nothing: it is sent anyway")),
            ("proxy_http_version 1.1", Some("nothing: it is spoken anyway")),
            ("return 403", None),
            ("proxy_set_header Host web.internal", Some("annotation upstream-vhost: web.internal")),
            ("proxy_buffer_size 16k", Some("annotation proxy-buffer-size: 16k")),
            ("if ($http_x = 1) {", None),
            ("content_by_lua_block {", None),
        ];
        for (directive, expected) in cases {
            assert_eq!(advice(directive).as_deref(), expected, "{directive}");
        }
        assert!(
            advice("more_set_headers \"X-Frame-Options: DENY\"")
                .is_some_and(|a| a.contains("X-Frame-Options: DENY;"))
        );
        assert!(advice("add_header X-A \"b c\" always").is_some_and(|a| a.contains("X-A: b c;")));
    }

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
            assert_eq!(report(snippet).1.lines().collect::<Vec<_>>(), expected, "{snippet}");
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

//! Doors that the order of processing, a header or a second listener leaves open.

use super::world::{Seen, World, field, key};
use super::{Caught, listed};
use crate::translate::{self, TABLE};

const AUTH: [&str; 5] =
    ["auth-type", "auth-url", "allowlist-source-range", "whitelist-source-range", "denylist-source-range"];
/// `no-auth-locations` where it is not set.
const CHALLENGES: &str = "/.well-known/acme-challenge";
const BY_ADDRESS: [&str; 6] = [
    "allowlist-source-range",
    "whitelist-source-range",
    "denylist-source-range",
    "limit-rps",
    "limit-rpm",
    "limit-connections",
];

/// A redirect and a preflight are answered before anybody is asked who he is; a strict Ingress asks, but for what
/// browsers show with no preflight.
pub(super) fn answers_before_auth(world: &World<'_>, caught: &mut Caught) {
    for ingress in world.primaries().filter(|ingress| !ingress.is_strict) {
        let Some(auth) = ingress.first_of(&AUTH) else { continue };
        if let Some(redirect) = ingress.first_of(&["permanent-redirect", "temporal-redirect"]) {
            let message = format!("is answered before {auth} is looked at: whoever asks sees where it leads");
            let fix = "redirect to nothing secret, or serve the redirect from the upstream";
            caught.note(&ingress.id, "answered-before-auth", field(redirect), message, fix);
        }
        if ingress.is_on("enable-cors") {
            let message = format!("preflights (OPTIONS) are answered 204 without regard to {auth}");
            caught.note(&ingress.id, "answered-before-auth", field("enable-cors"), message, "");
        }
    }
}

/// Whoever may write the header that the client's address is taken from may be anybody. With the PROXY protocol it is
/// the connection's, whatever headers say.
pub(super) fn spoofable_address(world: &World<'_>, caught: &mut Caught) {
    if world.is_set("use-proxy-protocol") {
        return;
    }
    let Some(switch) = ["use-forwarded-headers", "enable-real-ip"].into_iter().find(|key| world.is_set(key))
    else {
        return;
    };
    let trusted = world.config.get("proxy-real-ip-cidr").copied().unwrap_or("0.0.0.0/0");
    let is_open = trusted.split(',').any(|range| matches!(range.trim(), "0.0.0.0/0" | "::/0"));
    if !is_open {
        return;
    }
    let of_config =
        ["allowlist-source-range", "whitelist-source-range", "denylist-source-range", "block-cidrs"];
    let by_address = of_config.into_iter().find(|key| world.config.contains_key(key));
    let header = world.config.get("forwarded-for-header").copied().unwrap_or("X-Forwarded-For");
    let message = |rule: &str| {
        format!(
            "{rule} goes by an address that every client can name in {header}: {switch} is on and everybody is trusted"
        )
    };
    let fix = "write the addresses of your proxies into the key proxy-real-ip-cidr of the ConfigMap";
    if let Some(rule) = by_address {
        caught.needs_action(&world.config_id, "spoofable-address", key(rule), message(rule), fix);
    }
    for ingress in world.primaries() {
        if let Some(rule) = ingress.first_of(&BY_ADDRESS) {
            caught.needs_action(&ingress.id, "spoofable-address", field(rule), message(rule), fix);
        }
    }
}

/// ingress-nginx asks for certificates on its TLS listener only, and so serves such a host over
/// plain HTTP to anybody where nothing redirects.
pub(super) fn client_certificates_over_http(world: &World<'_>, caught: &mut Caught) {
    for ingress in world.primaries().filter(|ingress| demands_certificate(ingress)) {
        let own = ingress.text("ssl-redirect");
        let of_all = || world.config.get("ssl-redirect").copied().and_then(translate::boolean);
        let redirects = own.and_then(translate::boolean).or_else(of_all).unwrap_or(true);
        if redirects || ingress.is_on("force-ssl-redirect") {
            continue;
        }
        let name = if own.is_some() { "ssl-redirect" } else { "auth-tls-secret" };
        let message = "with ingress-nginx the host answers over plain HTTP without a certificate; here 403 is answered there";
        let fix = "remove ssl-redirect: \"false\", so that clients are sent to https";
        caught.differs(&ingress.id, "client-certificate-over-http", field(name), message, fix);
    }
}

fn demands_certificate(ingress: &Seen<'_>) -> bool {
    let verify = ingress.text("auth-tls-verify-client").unwrap_or("on");
    ingress.text("auth-tls-secret").is_some() && !["off", "optional", "optional_no_ca"].contains(&verify)
}

/// What an Ingress asks of its clients beside where they come from; somebody may count on each.
const BY_IDENTITY: [&str; 3] = ["auth-type", "auth-url", "auth-tls-secret"];

/// Of a host whose TLS is handed on nobody here sees a request, whichever Ingress has it handed on.
pub(super) fn handed_on_unopened(world: &World<'_>, caught: &mut Caught) {
    for ingress in world.primaries() {
        let handed = ingress.hosts.iter().filter(|host| world.snapshot.l7.passthrough.contains_key(*host));
        let handed: Vec<_> = handed.collect();
        if handed.is_empty() {
            continue;
        }
        let hosts = listed(&handed);
        let set = |name: &&str| ingress.text(name).is_some();
        for guard in BY_IDENTITY.iter().chain(&BY_ADDRESS).filter(|name| set(name)) {
            let message = format!(
                "holds for plain HTTP alone: TLS of {hosts} is handed on unopened (ssl-passthrough), so over https everybody gets to the Service"
            );
            let fix = "let the application see to it, or remove ssl-passthrough";
            caught.needs_action(&ingress.id, "handed-on-unopened", field(guard), message, fix);
        }
        let others = TABLE.iter().map(|row| row.name);
        let others = others.filter(|name| {
            *name != "ssl-passthrough"
                && !BY_IDENTITY.contains(name)
                && !BY_ADDRESS.contains(name)
                && set(name)
        });
        let others: Vec<_> = others.collect();
        if !others.is_empty() && ingress.is_on("ssl-passthrough") {
            let message = format!(
                "hands TLS of {hosts} on unopened, so over https this has no effect: {}",
                others.join(", ")
            );
            caught.note(&ingress.id, "handed-on-unopened", field("ssl-passthrough"), message, "");
        }
    }
}

/// Paths that begin as `no-auth-locations` says ask nobody to show anything.
pub(super) fn asks_nobody(world: &World<'_>, caught: &mut Caught) {
    let listed_starts = world.config.get("no-auth-locations").copied().unwrap_or(CHALLENGES);
    let starts: Vec<_> = listed_starts.split(',').map(str::trim).filter(|start| !start.is_empty()).collect();
    for ingress in world.primaries() {
        let is_open = |path: &str| starts.iter().any(|start| path.starts_with(start));
        let open: Vec<_> =
            ingress.paths.iter().map(|place| place.path).filter(|path| is_open(path)).collect();
        if open.is_empty() {
            continue;
        }
        let of_key = match world.config.contains_key("no-auth-locations") {
            true => format!("the key no-auth-locations of the ConfigMap, {listed_starts:?}"),
            false => format!("the default of the key no-auth-locations, {listed_starts:?}"),
        };
        for auth in ["auth-type", "auth-url"].into_iter().filter(|name| ingress.text(name).is_some()) {
            if open.len() == ingress.paths.len() {
                let message = format!("asks nobody: {} begins as {of_key}", listed(&open));
                let fix =
                    "name paths of challenges alone in no-auth-locations, or give this path another name";
                caught.needs_action(&ingress.id, "asks-nobody", field(auth), message, fix);
            } else {
                let message = format!("asks nobody at {}, which begins as {of_key}", listed(&open));
                caught.note(&ingress.id, "asks-nobody", field(auth), message, "");
            }
        }
    }
}

/// `rd=$scheme://$host$request_uri` is taken apart at the first `&` of the query.
pub(super) fn unescaped_sign_in(world: &World<'_>, caught: &mut Caught) {
    for ingress in world.primaries() {
        let Some((_, query)) = ingress.text("auth-signin").and_then(|text| text.split_once('?')) else {
            continue;
        };
        if query.contains("$request_uri") {
            let message = "$request_uri is not escaped there: of a URL with several arguments the sign-in page gets the first one only";
            let fix = "write $escaped_request_uri, or leave the parameter out, which is then added escaped";
            caught.note(&ingress.id, "unescaped-sign-in", field("auth-signin"), message, fix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{caught, config_map, found_with, ingress, ingress_of, line, service};
    use crate::translate::Options;

    #[test]
    fn redirects_and_preflights_before_auth_are_named() {
        let annotations = "
            nginx.ingress.kubernetes.io/auth-type: basic
            nginx.ingress.kubernetes.io/auth-secret: a
            nginx.ingress.kubernetes.io/enable-cors: 'true'
            nginx.ingress.kubernetes.io/permanent-redirect: https://b.example.com";

        assert_eq!(
            caught(&ingress("a", annotations), &["answered-before-auth"]),
            [
                "identical: enable-cors [answered-before-auth]",
                "identical: permanent-redirect [answered-before-auth]"
            ]
        );
    }

    #[test]
    fn a_strict_ingress_asks_before_it_answers() {
        let annotations = "
            penstock.dev/mode: strict
            nginx.ingress.kubernetes.io/whitelist-source-range: 10.0.0.0/8
            nginx.ingress.kubernetes.io/enable-cors: 'true'";

        assert!(caught(&ingress("a", annotations), &["answered-before-auth"]).is_empty());
    }

    #[test]
    fn a_mode_that_is_none_leaves_it_to_the_config_map() {
        let annotations = "
            penstock.dev/mode: stricter
            nginx.ingress.kubernetes.io/whitelist-source-range: 10.0.0.0/8
            nginx.ingress.kubernetes.io/enable-cors: 'true'";
        let input = format!("{}---\n{}", ingress("a", annotations), config_map("penstock-mode: strict"));

        assert!(caught(&input, &["answered-before-auth"]).is_empty());
    }

    #[test]
    fn a_list_of_addresses_that_clients_can_forge_needs_action() {
        let list = ingress("a", "nginx.ingress.kubernetes.io/whitelist-source-range: 10.0.0.0/8");
        let cases = [
            ("use-forwarded-headers: 'true'", 1),
            ("use-forwarded-headers: 'true'\n  proxy-real-ip-cidr: 10.0.0.1/32", 0),
            ("use-forwarded-headers: 'false'", 0),
            ("enable-real-ip: 'true'\n  proxy-real-ip-cidr: 10.0.0.1/32,0.0.0.0/0", 1),
            ("use-forwarded-headers: 'true'\n  use-proxy-protocol: 'true'", 0),
            ("use-forwarded-headers: 'true'\n  allowlist-source-range: 10.0.0.0/8", 2),
        ];
        for (config, expected) in cases {
            let input = format!("{list}---\n{}", config_map(config));

            assert_eq!(caught(&input, &["spoofable-address"]).len(), expected, "{config}");
        }
    }

    #[test]
    fn a_host_with_client_certificates_that_plain_http_reached_differs() {
        let with = |more: &str| {
            let annotations = format!(
                "
            nginx.ingress.kubernetes.io/auth-tls-secret: default/ca{more}"
            );
            caught(&ingress("a", &annotations), &["client-certificate-over-http"]).len()
        };

        assert_eq!(with("\n            nginx.ingress.kubernetes.io/ssl-redirect: 'false'"), 1);
        assert_eq!(with(""), 0);
    }

    #[test]
    fn what_guards_a_host_that_is_handed_on_needs_action() {
        let web = service("web", "ports: [{port: 80}]");
        let options = Options { enable_ssl_passthrough: true, ..Options::default() };
        let handed = "
            nginx.ingress.kubernetes.io/ssl-passthrough: 'true'
            nginx.ingress.kubernetes.io/enable-cors: 'true'";
        let guards = "
            nginx.ingress.kubernetes.io/auth-url: http://auth.example.com
            nginx.ingress.kubernetes.io/limit-rps: '5'";
        let found = |options: &Options, input: &str| {
            let found = found_with(options, input, &["handed-on-unopened"]);
            found.iter().map(line).collect::<Vec<_>>()
        };
        let both = format!("{web}---\n{}", ingress("a", &format!("{handed}{guards}")));

        assert_eq!(
            found(&options, &both),
            [
                "needs action: auth-url [handed-on-unopened]",
                "needs action: limit-rps [handed-on-unopened]",
                "identical: ssl-passthrough [handed-on-unopened]"
            ]
        );
        assert!(found(&Options::default(), &both).is_empty());
        // By another Ingress of the host.
        let apart = [&web[..], &ingress("a", handed), &ingress_of("b", guards, "a.example.com", &["/b"])];
        assert_eq!(found(&options, &apart.join("---\n")).len(), 3);
    }

    #[test]
    fn a_password_that_nobody_is_asked_for_needs_action() {
        let auth = "nginx.ingress.kubernetes.io/auth-url: http://auth.example.com";
        let of = |paths: &[&str], config: &str| {
            let input = format!("{}---\n{}", ingress_of("a", auth, "a", paths), config_map(config));
            caught(&input, &["asks-nobody"])
        };
        let usual = "use-gzip: 'true'";

        assert_eq!(
            of(&["/.well-known/acme-challenge-admin"], usual),
            ["needs action: auth-url [asks-nobody]"]
        );
        assert_eq!(of(&["/"], "no-auth-locations: /public, /"), ["needs action: auth-url [asks-nobody]"]);
        assert_eq!(
            of(&["/", "/public/a"], "no-auth-locations: /public"),
            ["identical: auth-url [asks-nobody]"]
        );
        assert!(of(&["/"], usual).is_empty());
        let input = ingress_of(
            "a",
            &format!(
                "
            {auth}
            nginx.ingress.kubernetes.io/auth-method: POST"
            ),
            "a",
            &["/.well-known/acme-challenge-admin"],
        );
        let report = super::super::super::tests::of(&input);
        assert_eq!(report.objects.first().map(|object| object.honoured.len()), Some(0));
    }

    #[test]
    fn a_sign_in_with_an_unescaped_address_is_named() {
        let annotations = "
            nginx.ingress.kubernetes.io/auth-url: https://auth.example.com/auth
            nginx.ingress.kubernetes.io/auth-signin: https://auth.example.com/start?rd=$scheme://$host$request_uri";

        assert_eq!(caught(&ingress("a", annotations), &["unescaped-sign-in"]).len(), 1);
        let escaped = annotations.replace("$request_uri", "$escaped_request_uri");
        assert_eq!(caught(&ingress("a", &escaped), &["unescaped-sign-in"]).len(), 0);
    }
}

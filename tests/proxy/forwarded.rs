//! What upstreams, lists, redirects and the log make of the words of those who stand in front.

use std::sync::Arc;

use penstock::model::l4::Prefix;
use penstock::model::l7::forwarding::{Address, Behind, Chain, HeaderNames, Words};
use penstock::model::l7::policy::Access;
use penstock::model::l7::{ClientLimits, Edge, Filters, Forwarding, L7, Policies, SslRedirect};

use crate::rig::{Backend, Rig, to, to_with};

const GET: &str = "GET /a?b HTTP/1.1\r\nHost: pod\r\nX-Forwarded-For: 203.0.113.9, 192.0.2.1\r\n\
    X-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example:8443, pod\r\nX-Forwarded-Port: 8443\r\n\
    X-Original-URI: /lie\r\nX_Under: 1\r\n\r\n";

fn range(addr: &str, bits: u8) -> Prefix {
    Prefix::new(addr.parse().expect("address"), bits).expect("range")
}

fn behind() -> Forwarding {
    let trusted = vec![range("127.0.0.0", 8)];
    let behind = Behind { words: Words::Believed, address: Address::Told, trusted };
    Forwarding { behind: Some(behind), ..Forwarding::default() }
}

fn with(forwarding: Forwarding, l7: L7) -> Rig {
    Rig::start(L7 { edge: Edge { forwarding, ..Edge::default() }, ..l7 })
}

/// Lines of the head that the backend got, without those of an id that is made anew each time.
fn seen(rig: &Rig) -> Vec<String> {
    let text = rig.ask(GET).text().replace(&format!("Port: {}", rig.http.port()), "Port: (of the listener)");
    let lines = text.lines().skip(1).filter(|line| !line.is_empty() && !line.starts_with("X-Request-ID"));
    lines.map(str::to_owned).collect()
}

#[test]
fn nobody_is_believed_by_default() {
    let backend = Backend::mirror();

    assert_eq!(
        seen(&with(Forwarding::default(), to(&[backend.addr]))),
        [
            "Host: pod",
            "X-Original-URI: /lie",
            "X-Real-IP: 127.0.0.1",
            "X-Forwarded-For: 127.0.0.1",
            "X-Forwarded-Host: pod",
            "X-Forwarded-Port: (of the listener)",
            "X-Forwarded-Proto: http",
            "X-Forwarded-Scheme: http",
            "X-Scheme: http",
            "X-Original-Forwarded-For: 203.0.113.9, 192.0.2.1",
            "X-Original-Forwarded-Host: shop.example:8443, pod",
        ]
    );
}

#[test]
fn those_in_front_say_who_asks_and_for_what() {
    let backend = Backend::mirror();
    let forwarding = Forwarding { chain: Chain::Appended, original_uri: true, ..behind() };

    assert_eq!(
        seen(&with(forwarding, to(&[backend.addr]))),
        [
            "Host: shop.example:8443",
            "X-Forwarded-For: 203.0.113.9, 192.0.2.1, 127.0.0.1",
            "X-Real-IP: 192.0.2.1",
            "X-Forwarded-Host: shop.example:8443",
            "X-Forwarded-Port: 8443",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Scheme: https",
            "X-Scheme: https",
            "X-Original-Forwarded-For: 203.0.113.9, 192.0.2.1",
            "X-Original-Forwarded-Host: shop.example:8443, pod",
            "X-Original-URI: /a?b",
        ]
    );
}

#[test]
fn lists_look_at_the_address_that_was_told() {
    let backend = Backend::mirror();
    let access = Access { denied: [range("192.0.2.0", 24)].into_iter().collect(), allowed: None };
    let policies = Some(Arc::new(Policies { access: Some(access), ..Policies::default() }));
    let closed = to_with(&[backend.addr], Filters { policies, ..Filters::default() });

    assert_eq!(with(behind(), closed.clone()).ask(GET).status, 403);
    assert_eq!(with(Forwarding::default(), closed).ask(GET).status, 200);
}

#[test]
fn who_came_by_https_is_not_redirected_and_others_keep_the_name_they_used() {
    let backend = Backend::mirror();
    let filters = Filters { ssl_redirect: SslRedirect::Always, ..Filters::default() };
    let rig = with(behind(), to_with(&[backend.addr], filters));

    assert_eq!(rig.ask(GET).status, 200);
    let redirected = rig.ask(&GET.replace("Proto: https", "Proto: http"));
    assert_eq!((redirected.status, redirected.header("location")), (308, Some("https://shop.example/a?b")));
    assert_eq!(redirected.header("strict-transport-security"), None);
}

#[test]
fn a_request_id_is_made_unless_that_is_switched_off() {
    let backend = Backend::mirror();
    let off = Forwarding { request_id: false, ..Forwarding::default() };
    let own = GET.replace("X_Under: 1", "X-Request-ID: mine");
    let id = |forwarding: &Forwarding, request: &str| {
        let text = with(forwarding.clone(), to(&[backend.addr])).ask(request).text();
        text.lines().find_map(|line| line.strip_prefix("X-Request-ID: ").map(str::to_owned))
    };

    assert_eq!(id(&Forwarding::default(), GET).map(|id| id.len()), Some(32));
    assert_eq!(id(&off, GET), None);
    assert_eq!(id(&off, &own).as_deref(), Some("mine"));
}

#[test]
fn names_with_underscores_pass_where_they_are_wanted() {
    let backend = Backend::mirror();
    for (names, passes) in [(HeaderNames::Plain, false), (HeaderNames::Underscores, true)] {
        let limits = ClientLimits { names, ..ClientLimits::default() };
        let edge = Edge { limits, ..Edge::default() };
        let text = Rig::start(L7 { edge, ..to(&[backend.addr]) }).ask(GET).text();

        assert_eq!(text.contains("X_Under: 1\r\n"), passes, "{names:?}: {text}");
    }
}

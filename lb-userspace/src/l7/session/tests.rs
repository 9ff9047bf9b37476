use super::*;

fn affinity(mode: Mode) -> Affinity {
    Affinity {
        mode,
        cookie: SessionCookie::default(),
        on_failure: OnFailure::Stay,
        places: Default::default(),
    }
}

fn endpoints(last: impl IntoIterator<Item = u8>) -> Vec<SocketAddr> {
    last.into_iter().map(|last| SocketAddr::from(([10, 0, 0, last], 8080))).collect()
}

fn sessions(mode: Mode, endpoints: &[SocketAddr]) -> Sessions {
    Sessions::new(&UpstreamName("default-web-80".to_owned()), &affinity(mode), endpoints, &[])
}

fn sent(cookie: &str) -> Vec<(String, String)> {
    vec![("Cookie".to_owned(), cookie.to_owned())]
}

/// From `md5sum`, fed what ingress-nginx feeds its own.
const KEY: &str = "0aa3b49d3795ad62718deaa56ec75fae";
const UPSTREAM: &str = "6cde5721ec2c7e2bce07cff7d0e4ac37";

#[test]
fn persistent_cookies_are_those_of_ingress_nginx() {
    let v6: SocketAddr = "[2001:db8::1]:8080".parse().unwrap();
    let sessions = sessions(Mode::Persistent, &[endpoints([1])[0], v6]);
    let mut line = Vec::new();

    sessions.line(&sessions.key(0).unwrap(), b"; Path=/", &mut line);

    let expected = format!("Set-Cookie: INGRESSCOOKIE={KEY}|{UPSTREAM}; Path=/\r\n");
    assert_eq!(String::from_utf8(line).unwrap(), expected);
    assert_eq!(sessions.key(1), Some(Key("86435826ffb94205fbe908a199599bee".into())));
}

#[test]
fn a_persistent_session_stays_as_long_as_its_endpoint_is_there() {
    let cookie = sent(&format!("a=b; INGRESSCOOKIE={KEY}|{UPSTREAM}"));
    let cases = [
        (endpoints([1]), Some(0)),
        (endpoints([0, 1, 2]), Some(1)),
        (endpoints([2, 3]), None),
        (vec![], None),
    ];
    for (endpoints, expected) in cases {
        let sessions = sessions(Mode::Persistent, &endpoints);
        assert_eq!(sessions.endpoint(&Headers::Given(&cookie)), expected, "{endpoints:?}");
    }
}

#[test]
fn a_balanced_key_leads_every_process_to_the_same_endpoint_and_few_move_when_one_comes() {
    let before = sessions(Mode::Balanced, &endpoints(0..10));
    let restarted = sessions(Mode::Balanced, &endpoints(0..10));
    let grown = sessions(Mode::Balanced, &endpoints(0..11));
    let random = Random::new(3);
    let mut moved = 0;
    for _ in 0..1000 {
        let (index, Key(key)) = before.draw(&random, |_| true).unwrap();
        let cookie = sent(&format!("INGRESSCOOKIE={key}|{UPSTREAM}"));

        assert_eq!(restarted.endpoint(&Headers::Given(&cookie)), Some(index));
        let now = grown.endpoint(&Headers::Given(&cookie)).unwrap();
        assert!(now == index || now == 10, "to the new one or nowhere");
        moved += usize::from(now != index);
    }
    assert!((30..200).contains(&moved), "{moved} of 1000 sessions moved");
}

#[test]
fn a_drawn_key_avoids_who_is_closed_and_takes_anybody_when_all_are() {
    let sessions = sessions(Mode::Balanced, &endpoints(0..4));
    let random = Random::new(9);
    for _ in 0..200 {
        assert_ne!(sessions.draw(&random, |index| index != 2).unwrap().0, 2);
    }
    assert!(sessions.draw(&random, |_| false).is_some());
    assert_eq!(super::tests::sessions(Mode::Balanced, &[]).draw(&random, |_| true), None);
}

#[test]
fn cookies_are_read_as_clients_send_them() {
    let other = "0".repeat(32);
    let cases = [
        ("ours", format!("INGRESSCOOKIE=k|{UPSTREAM}"), Some("k"), true),
        ("quoted", format!("x=y;INGRESSCOOKIE=\"k|{UPSTREAM}\""), Some("k"), true),
        ("of another upstream", format!("INGRESSCOOKIE=k|{other}"), Some("k"), false),
        ("both", format!("INGRESSCOOKIE=o|{other}; INGRESSCOOKIE=k|{UPSTREAM}"), Some("k"), true),
        ("without its second part", "INGRESSCOOKIE=k".to_owned(), Some("k"), false),
        ("without its first part", format!("INGRESSCOOKIE=|{UPSTREAM}"), None, false),
        ("name in another case", format!("ingresscookie=k|{UPSTREAM}"), None, false),
        ("longer name", format!("INGRESSCOOKIES=k|{UPSTREAM}"), None, false),
        ("none", "a=b".to_owned(), None, false),
    ];
    let sessions = sessions(Mode::Balanced, &endpoints([1]));
    for (case, cookie, key, holds) in cases {
        let cookie = sent(&cookie);
        let headers = Headers::Given(&cookie);

        assert_eq!(sessions.cookie(&headers).map(|c| c.key), key.map(str::as_bytes), "{case}");
        assert_eq!(sessions.holds(&headers), holds, "{case}");
    }
}

#[test]
fn attributes_are_what_annotations_and_the_connection_say() {
    let usual = SessionCookie::default;
    let all = SessionCookie {
        name: "route".to_owned(),
        path: Some("/own".to_owned()),
        domain: Some("example.com".to_owned()),
        expires: Some(3600),
        max_age: Some(-1),
        secure: Secure::Always,
        same_site: Some(SameSite::Lax),
    };
    let past = SessionCookie { expires: Some(-784_111_778), ..usual() };
    let site = |same_site| SessionCookie { same_site: Some(same_site), ..usual() };
    let (http, https) = (Scheme::Http, Scheme::Https);
    let cases = [
        ("usual", usual(), http, "; Path=/shop; HttpOnly"),
        ("over TLS", usual(), https, "; Path=/shop; Secure; HttpOnly"),
        (
            "all",
            all,
            http,
            "; Path=/own; Expires=Sun, 06-Nov-94 09:49:37 GMT; Max-Age=-1; Domain=example.com; Secure; HttpOnly; \
             SameSite=Lax",
        ),
        ("past", past, http, "; Path=/shop; Expires=Thu, 01-Jan-70 00:00:00 GMT; HttpOnly"),
        ("strict", site(SameSite::Strict), http, "; Path=/shop; HttpOnly; SameSite=Strict"),
        ("none", site(SameSite::None), http, "; Path=/shop; HttpOnly; SameSite=None"),
    ];
    for (case, cookie, scheme, expected) in cases {
        let affinity = Affinity { cookie, ..affinity(Mode::Balanced) };
        let sessions = Sessions::new(&UpstreamName("u".to_owned()), &affinity, &[], &[]);
        let mut out = Vec::new();

        sessions.attributes("/s;hop\r\n", scheme, &Headers::Given(&[]), 784_111_777, &mut out);

        assert_eq!(String::from_utf8(out).unwrap(), expected, "{case}");
    }
}

#[test]
fn browsers_that_mistake_none_are_not_told() {
    let cases = [
        ("Mozilla/5.0 (X11) Chrome/41.0.2228.0 Safari/537.36", true),
        ("Mozilla/5.0 (X11) Chrome/51.0.2704.0 Safari/537.36", true),
        ("Mozilla/5.0 (X11) Chrome/66.0.3359.0 Safari/537.36", true),
        ("Mozilla/5.0 (X11) Chrome/80.0.3987.0 Safari/537.36", false),
        ("Mozilla/5.0 (X11) Chrome/150.0.0.0 Safari/537.36", false),
        ("Mozilla/5.0 (X11) Chrome/500.0.0.0 Safari/537.36", false),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 12_4 like Mac OS X) Safari/604.1", true),
        ("Mozilla/5.0 (iPad; CPU OS 12_4 like Mac OS X) Safari/604.1", true),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 13_0 like Mac OS X) Safari/604.1", false),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_14_6) Version/12.1 Safari/605.1", true),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_14_6) Chrome/90.0.0.0 Safari/537.36", false),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) Version/13.0 Safari/605.1", false),
    ];
    for (agent, expected) in cases {
        let headers = [("User-Agent".to_owned(), agent.to_owned())];
        assert_eq!(mistakes_none(&Headers::Given(&headers)), expected, "{agent}");
    }
    assert!(!mistakes_none(&Headers::Given(&[])));
}

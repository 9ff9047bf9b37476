//! Errors that another service words.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use penstock::model::l7::policy::{Auth, Basic, ErrorPages, Satisfy, Users};
use penstock::model::l7::{Action, Buffers, Filters, L7, Policies, Upstream, UpstreamName};

use crate::rig::{Backend, Reply, Rig, nobody, to_with};

const GET: &str = "GET /a/b?c=d HTTP/1.1\r\nHost: h\r\nAccept: text/html\r\nX-Code: 200\r\n\r\n";

/// What the upstream answers unless it is to fail.
const GONE: &str = "HTTP/1.1 503 Nope\r\nContent-Length: 4\r\nX-Own: yes\r\n\r\nnope";

fn pages(statuses: &[u16]) -> ErrorPages {
    ErrorPages { statuses: BTreeSet::from_iter(statuses.iter().copied()), ..ErrorPages::default() }
}

fn state(upstream: &[SocketAddr], words: Option<SocketAddr>, errors: ErrorPages) -> L7 {
    let policies = Some(Arc::new(Policies { errors: Some(errors), ..Policies::default() }));
    with_words(upstream, words, Filters { policies, ..Filters::default() })
}

/// A default backend beside the location.
fn with_words(upstream: &[SocketAddr], words: Option<SocketAddr>, filters: Filters) -> L7 {
    let buffers = Buffers { request: Some(Buffers::REQUEST_BYTES), ..filters.buffers };
    let mut l7 = to_with(upstream, Filters { buffers, ..filters });
    let name = UpstreamName("default-errors-80".to_owned());
    l7.upstreams
        .insert(name.clone(), Upstream { endpoints: words.into_iter().collect(), ..Upstream::default() });
    l7.default_backend = Some(name);
    l7
}

/// Echoes what it was asked, with the status that it was told.
fn words() -> Backend {
    Backend::start(|mut peer| {
        while let Some(head) = peer.head() {
            let body = peer.exactly(crate::rig::length_of(&head));
            let code = head.lines().find_map(|line| line.strip_prefix("X-Code: ")).unwrap_or("200");
            let answer = [head.as_bytes(), &body].concat();
            let status = format!("HTTP/1.1 {code} Worded\r\nContent-Length: {}\r\n\r\n", answer.len());
            if !peer.try_send(&[status.as_bytes(), &answer].concat()) {
                return;
            }
        }
    })
}

/// Lines of what the error backend was asked.
fn asked(reply: &Reply) -> Vec<String> {
    reply.text().lines().map(str::to_owned).collect()
}

#[test]
fn the_answer_of_the_error_backend_takes_the_place_of_an_error() {
    let (upstream, words) = (Backend::saying(GONE), words());
    let rig = Rig::start(state(&[upstream.addr], Some(words.addr), pages(&[404, 503])));
    let mut client = rig.client();

    for _ in 0..2 {
        client.send(GET);
        let reply = client.reply();
        let lines = asked(&reply);

        assert_eq!((reply.status, reply.header("x-own")), (503, None));
        assert_eq!(lines.first().map(String::as_str), Some("GET /?c=d HTTP/1.1"), "{lines:?}");
        for line in [
            "Host: h",
            "X-Code: 503",
            "X-Format: text/html",
            "X-Original-URI: /a/b?c=d",
            "X-Namespace: default",
            "X-Ingress-Name: echo",
            "X-Service-Name: echo",
            "X-Service-Port: 80",
            "X-Forwarded-For: 127.0.0.1",
        ] {
            assert_eq!(lines.iter().filter(|known| *known == line).count(), 1, "{line} in {lines:?}");
        }
        assert_eq!(lines.iter().filter(|line| line.to_ascii_lowercase().starts_with("x-code")).count(), 1);
        assert!(lines.iter().any(|line| line.starts_with("X-Request-ID: ")), "{lines:?}");
    }
}

#[test]
fn a_page_in_the_place_of_a_401_still_asks_who_the_client_is() {
    let upstream = Backend::saying(
        "HTTP/1.1 401 No\r\nwww-authenticate: Negotiate\r\nWWW-Authenticate: Basic realm=\"a\"\r\n\
         Content-Length: 2\r\n\r\nno",
    );
    let rig = Rig::start(state(&[upstream.addr], Some(words().addr), pages(&[401])));

    let reply = rig.ask(GET);

    let challenges: Vec<_> =
        reply.head.lines().filter_map(|line| line.strip_prefix("WWW-Authenticate: ")).collect();
    assert_eq!((reply.status, challenges), (401, vec!["Negotiate", "Basic realm=\"a\""]));
    assert_eq!(asked(&reply).first().map(String::as_str), Some("GET /?c=d HTTP/1.1"));
}

#[test]
fn errors_that_are_not_listed_or_not_to_be_replaced_are_the_upstreams() {
    let (upstream, words) = (Backend::saying(GONE), words());
    let spared = ErrorPages { only_ours: true, ..pages(&[503]) };

    for errors in [pages(&[500]), spared.clone()] {
        let reply = Rig::start(state(&[upstream.addr], Some(words.addr), errors)).ask(GET);
        assert_eq!((reply.status, reply.text().as_str()), (503, "nope"));
    }
    let ours = Rig::start(state(&[], Some(words.addr), spared)).ask(GET);
    assert_eq!((ours.status, asked(&ours).first().map(String::as_str)), (503, Some("GET /?c=d HTTP/1.1")));
}

#[test]
fn the_built_in_404_is_an_upstreams_and_only_replaced_where_those_are() {
    let words = words();
    for (only_ours, expected) in [(false, "GET /?c=d HTTP/1.1"), (true, "<html>")] {
        let mut l7 = state(&[], Some(words.addr), ErrorPages { only_ours, ..pages(&[404]) });
        l7.servers.edit(|_, server| server.locations[0].action = Action::DefaultBackend);
        // The words of the location's own.
        let own = l7.default_backend.take().expect("a default backend");
        l7.servers.edit(|_, server| {
            let mut policies =
                Policies::clone(server.locations[0].filters.policies.as_deref().expect("pages"));
            policies.errors.get_or_insert_default().backend = Some(own.clone());
            server.locations[0].filters.policies = Some(Arc::new(policies));
        });

        let reply = Rig::start(l7).ask(GET);

        assert_eq!((reply.status, asked(&reply).first().map(String::as_str)), (404, Some(expected)));
    }
}

#[test]
fn the_request_is_sent_again_with_its_method_and_body() {
    let upstream = Backend::start(|mut peer| {
        while let Some(head) = peer.head() {
            let _ = peer.exactly(crate::rig::length_of(&head));
            if !peer.try_send(GONE.as_bytes()) {
                return;
            }
        }
    });
    let words = words();
    let failing = state(&[upstream.addr], Some(words.addr), pages(&[503]));
    let missing = state(&[], Some(words.addr), pages(&[503]));
    let long = "x".repeat(20_000);
    for (case, l7) in [("answered", failing), ("without endpoints", missing)] {
        let rig = Rig::start(l7);
        let mut client = rig.client();
        for body in ["", "abc", &long] {
            client
                .send(format!("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
            let reply = client.reply();
            let text = reply.text();

            assert_eq!(reply.status, 503, "{case}");
            assert!(text.starts_with("POST / HTTP/1.1\r\n"), "{case}: {text}");
            assert!(
                text.ends_with(&format!("\r\n\r\n{body}")),
                "{case}: {} bytes of {}",
                text.len(),
                body.len()
            );
            assert_eq!(text.to_ascii_lowercase().matches("content-length:").count(), 1, "{case}: {text}");
        }
    }
}

#[test]
fn a_chunked_body_that_was_held_is_sent_again_whole() {
    let upstream = Backend::start(|mut peer| {
        while let Some(head) = peer.head() {
            let _ = peer.exactly(crate::rig::length_of(&head));
            if !peer.try_send(GONE.as_bytes()) {
                return;
            }
        }
    });
    let words = words();
    let rig = Rig::start(state(&[upstream.addr], Some(words.addr), pages(&[503])));

    let reply = rig.ask(
        "PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    );

    let text = reply.text();
    assert!(text.starts_with("PUT / HTTP/1.1\r\n") && text.ends_with("\r\n\r\nabcde"), "{text}");
    assert!(text.contains("Content-Length: 5\r\n") && !text.contains("chunked"), "{text}");
}

#[test]
fn what_is_too_large_is_worded_without_it() {
    let (upstream, words) = (Backend::mirror(), words());
    let policies = Some(Arc::new(Policies { errors: Some(pages(&[413])), ..Policies::default() }));
    let filters = Filters { policies, max_body_bytes: Some(4), ..Filters::default() };
    let rig = Rig::start(with_words(&[upstream.addr], Some(words.addr), filters));

    let reply = rig.ask("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nabcde");

    let text = reply.text();
    assert_eq!((reply.status, reply.header("connection")), (413, Some("close")));
    assert!(text.contains("Content-Length: 0\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn an_upstream_without_endpoints_is_stood_in_for_under_the_same_path() {
    let words = words();
    let name = UpstreamName("custom-default-backend-default-errors".to_owned());
    let errors = ErrorPages { backend: Some(name.clone()), ..pages(&[503]) };
    let mut l7 = state(&[], None, errors);
    l7.upstreams.insert(name, Upstream { endpoints: BTreeSet::from([words.addr]), ..Upstream::default() });

    let reply = Rig::start(l7.clone()).ask(GET);
    let lines = asked(&reply);

    assert_eq!(reply.status, 503, "as it was told");
    assert_eq!(lines.first().map(String::as_str), Some("GET /a/b?c=d HTTP/1.1"), "{lines:?}");
    for line in ["X-Code: 503", "X-Ingress-Name: echo", "X-Service-Name: echo"] {
        assert_eq!(lines.iter().filter(|known| *known == line).count(), 1, "{line} in {lines:?}");
    }

    let upstream = Backend::saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let served = UpstreamName("default-echo-80".to_owned());
    l7.upstreams
        .insert(served, Upstream { endpoints: BTreeSet::from([upstream.addr]), ..Upstream::default() });
    assert_eq!(Rig::start(l7).ask(GET).text(), "ok");
}

#[test]
fn without_anybody_to_word_it_an_error_is_the_built_in_404() {
    let upstream = Backend::saying(GONE);
    let rig = Rig::start(state(&[upstream.addr], None, pages(&[503])));
    let mut client = rig.client();

    for _ in 0..2 {
        client.send(GET);
        let reply = client.reply();
        assert_eq!(reply.status, 404);
        assert!(reply.text().contains("404 Not Found"), "{}", reply.text());
    }
}

#[test]
fn errors_of_the_error_backend_are_worded_by_nobody() {
    let upstream = Backend::saying(GONE);
    let failing = Backend::saying("HTTP/1.1 503 Worse\r\nContent-Length: 5\r\n\r\nworse");

    let unreachable = Rig::start(state(&[upstream.addr], Some(nobody()), pages(&[502, 503]))).ask(GET);
    let worse = Rig::start(state(&[upstream.addr], Some(failing.addr), pages(&[503]))).ask(GET);

    assert_eq!(unreachable.status, 502);
    assert!(unreachable.text().contains("502 Bad Gateway"), "{}", unreachable.text());
    assert_eq!((worse.status, worse.text().as_str()), (503, "worse"));
}

#[test]
fn who_may_not_enter_is_told_so_in_other_words_and_enters_nothing() {
    let (upstream, words) = (Backend::mirror(), words());
    let basic = Basic { realm: "r".to_owned(), users: Users::default() };
    let auth = Auth { satisfy: Satisfy::All, basic: Some(basic), external: None };
    let policies = Policies { auth: Some(auth), errors: Some(pages(&[401])), ..Policies::default() };
    let filters = Filters { policies: Some(Arc::new(policies)), ..Filters::default() };
    let rig = Rig::start(with_words(&[upstream.addr], Some(words.addr), filters));

    let reply = rig
        .ask("POST /secret HTTP/1.1\r\nHost: h\r\nAuthorization: Basic YTpi\r\nContent-Length: 3\r\n\r\nabc");

    let text = reply.text();
    assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some("Basic realm=\"r\"")));
    assert!(text.starts_with("POST / HTTP/1.1\r\n") && text.ends_with("\r\n\r\nabc"), "{text}");
    assert!(!text.to_ascii_lowercase().contains("authorization"), "{text}");
    assert_eq!(upstream.connections(), 0);
}

//! What is remembered of the answers of auth services, and what is not.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use penstock::model::l7::policy::{External, Remember, RememberRule};

use crate::external_auth::{NO, Service, YES, guarded, lines, text};
use crate::rig::{Backend, DEADLINE, Reply, Rig, nobody};

fn remembered(service: &Service, key: &str) -> External {
    let rule =
        |statuses: &[u16]| RememberRule { statuses: statuses.to_vec(), time: Duration::from_secs(600) };
    let remember = Some(Remember { key: text(key), rules: vec![rule(&[200, 401])] });
    External { remember, response_headers: vec!["X-User".to_owned()], ..service.external() }
}

#[test]
fn a_user_is_part_of_what_an_answer_depends_on() {
    let (backend, service) = (Backend::mirror(), Service::saying(YES));
    let rig = Rig::start(guarded(&backend, remembered(&service, "$remote_user$http_authorization")));

    // alice, alice, bob.
    for credentials in ["YWxpY2U6YQ==", "YWxpY2U6YQ==", "Ym9iOmI="] {
        let ask = format!("GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Basic {credentials}\r\n\r\n");
        assert_eq!(rig.ask(&ask).status, 200);
    }

    assert_eq!(service.questions(), 2);
}

fn ask_with(rig: &Rig, cookie: &str) -> Reply {
    rig.ask(&format!("GET /a HTTP/1.1\r\nHost: h\r\nCookie: session={cookie}\r\n\r\n"))
}

#[test]
fn answers_are_remembered_by_their_key_and_outlive_the_service() {
    let backend = Backend::mirror();
    let service = Service::saying("HTTP/1.1 200 OK\r\nX-User: ann\r\nContent-Length: 0\r\n\r\n");
    let external = remembered(&service, "$cookie_session");
    let rig = Rig::with_workers(guarded(&backend, external.clone()), 4);

    let users =
        ["one", "one", "two", "one"].map(|cookie| lines(&ask_with(&rig, cookie).text(), "x-user").len());
    assert_eq!((users, service.questions()), ([1; 4], 2));
    // Each on a connection of its own, which any worker may get.
    let statuses: BTreeSet<u16> = (0..32).map(|_| ask_with(&rig, "one").status).collect();
    assert_eq!((statuses, service.questions()), (BTreeSet::from([200]), 0));

    // The same place, its service gone: what is remembered serves on, and nothing else does.
    let gone = External { host: text(&format!("127.0.0.1:{}", nobody().port())), ..external };
    rig.publish(guarded(&backend, gone));
    let started = Instant::now();
    // Whoever is new each time, because an answer of before the change would be remembered, too.
    let nobody_knows = (0..).map(|number| ask_with(&rig, &format!("new-{number}")).status);
    let refused = nobody_knows.take_while(|_| started.elapsed() < DEADLINE).find(|status| *status == 500);
    assert_eq!(refused, Some(500));
    let statuses: BTreeSet<u16> = (0..32).map(|_| ask_with(&rig, "one").status).collect();
    assert_eq!((statuses, ask_with(&rig, "two").status), (BTreeSet::from([200]), 200));
}

/// Says who has the cookie `session`, as services read it: in any case and in whichever line. Nobody else gets in.
fn service_by_cookie() -> Service {
    let (tell, heads) = channel();
    let tell = Mutex::new(tell);
    let backend = Backend::start(move |mut peer| {
        while let Some(head) = peer.head() {
            let lower = head.to_ascii_lowercase();
            let user = lower.split_once("session=").and_then(|(_, rest)| rest.split(['\r', ';']).next());
            let answer = user.map_or_else(
                || NO.to_owned(),
                |user| format!("HTTP/1.1 200 OK\r\nX-User: {user}\r\nContent-Length: 0\r\n\r\n"),
            );
            let _ = tell.lock().expect("tell").send(head);
            if !peer.try_send(answer.as_bytes()) {
                return;
            }
        }
    });
    Service { backend, heads }
}

#[test]
fn nobody_gets_in_by_what_is_remembered_of_another_however_cookies_are_written() {
    let (backend, service) = (Backend::mirror(), service_by_cookie());
    let rig = Rig::start(guarded(&backend, remembered(&service, "$cookie_session")));
    let cases = [
        ("Cookie: SESSION=alice\r\n", "X-User: alice"),
        ("", "401"),
        ("Cookie: a=1\r\nCookie: session=bob\r\n", "X-User: bob"),
        ("Cookie: a=1\r\n", "401"),
        ("Cookie: Session=carol\r\n", "X-User: carol"),
        ("Cookie: a=1, session=dave\r\n", "X-User: dave"),
        ("Cookie: session=alice\r\n", "X-User: alice"),
        ("Cookie: b=2; session=bob\r\n", "X-User: bob"),
    ];
    for (cookies, expected) in cases {
        let reply = rig.ask(&format!("GET /a HTTP/1.1\r\nHost: h\r\n{cookies}\r\n"));

        let text = reply.text();
        let user =
            lines(&text, "x-user").first().map_or_else(|| reply.status.to_string(), ToString::to_string);
        assert_eq!(user, expected, "{cookies:?}");
    }
    // Whoever has none is one, and the last two are known.
    assert_eq!(service.questions(), 5);
}

#[test]
fn what_is_meant_for_one_client_or_not_listed_is_asked_every_time() {
    let backend = Backend::mirror();
    for (case, answer, status) in [
        ("a cookie", "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n", 200),
        ("private", "HTTP/1.1 200 OK\r\nCache-Control: private\r\nContent-Length: 0\r\n\r\n", 200),
        ("not listed", "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", 403),
    ] {
        let service = Service::saying(answer);
        let rig = Rig::start(guarded(&backend, remembered(&service, "$cookie_session")));

        let asked = [ask_with(&rig, "x").status, ask_with(&rig, "x").status];

        assert_eq!((asked, service.questions()), ([status; 2], 2), "{case}");
    }
}

/// A date as HTTP writes it, long past every test.
const LATER: &str = "Expires: Fri, 31 Dec 2100 23:59:59 GMT";

#[test]
fn an_answer_is_remembered_for_as_long_as_it_says_itself() {
    let backend = Backend::mirror();
    let asked_again: [&[&str]; 21] = [
        &["Cache-Control: no-store"],
        &["Cache-Control: No-Cache"],
        &["Cache-Control: private=\"x-user\""],
        &["Cache-Control: max-age=0"],
        &["Cache-Control: max-age=\"0\""],
        &["Cache-Control: s-maxage=0"],
        &["Cache-Control: max-age=60, s-maxage=0"],
        &["Cache-Control: max-age=60", "cache-control: no-store"],
        &["Cache-Control: max-age=60 no-store"],
        &["Cache-Control: max-age=60", "Cache-Control: max-age=0"],
        &["Cache-Control: public", "Expires: 0"],
        &["Vary: X-Api-Key"],
        &["Vary: *", "Cache-Control: max-age=60"],
        &["Vary: X-Api-Key", "X-Accel-Expires: 60"],
        &["Expires: Thu, 01 Jan 1970 00:00:00 GMT"],
        &["Expires: 0"],
        &["Expires: -1"],
        &["X-Accel-Expires: 0"],
        &["X-Accel-Expires: @1", "Cache-Control: max-age=60"],
        &["X-Accel-Expires: 0", "Cache-Control: max-age=60", LATER],
        &["X-Accel-Expires: 60", "Set-Cookie: a=b"],
    ];
    let known: [&[&str]; 9] = [
        &["X-Else: 1"],
        &["Cache-Control: public"],
        &["Cache-Control: max-age=60"],
        &["Cache-Control: max-age=0, s-maxage=60"],
        &["Cache-Control: max-age=60", "Expires: 0"],
        &["Cache-Control: no-store", "X-Accel-Expires: 60"],
        &["X-Accel-Expires: @4102444800", "Expires: 0"],
        &["X-Accel-Expires: soon"],
        &[LATER],
    ];
    let cases = asked_again.iter().map(|case| (case, 2)).chain(known.iter().map(|case| (case, 1)));
    for (said, expected) in cases {
        let answer = format!("HTTP/1.1 200 OK\r\n{}\r\nContent-Length: 0\r\n\r\n", said.join("\r\n"));
        let service = Service::saying(answer);
        let rig = Rig::start(guarded(&backend, remembered(&service, "$cookie_session")));

        let statuses = [ask_with(&rig, "x").status, ask_with(&rig, "x").status];

        assert_eq!((statuses, service.questions()), ([200; 2], expected), "{said:?}");
    }
}

//! What variables stand for, as upstreams, clients and the log are told.

use std::sync::Arc;

use penstock::model::expression::{Expression, Part};
use penstock::model::l7::policy::{FilledHeader, RequestHeaders};
use penstock::model::l7::{Action, Filters, Piece, Policies, Redirect, RedirectQuery, Template};

use crate::access_log::Log;
use crate::rig::{Backend, Rig, to_with};

const TOLD: &str = "https://x/$arg_user|$cookie_session|$http_x_t|$http_cookie";

/// Told of a request: the upstream, its client by a redirect, and the log.
fn told(target: &str, headers: &[&str]) -> [String; 3] {
    let (backend, log) = (Backend::mirror(), Log::new());
    let text = Expression::parse(TOLD).expect("known variables");
    let set = vec![FilledHeader { name: "X-Told".to_owned(), value: text.clone() }];
    let request = Some(RequestHeaders { set, ..RequestHeaders::default() });
    let policies = Some(Arc::new(Policies { request, ..Policies::default() }));
    let proxied = to_with(&[backend.addr], Filters { policies, ..Filters::default() });
    let mut redirected = proxied.clone();
    redirected.servers.edit(|_, server| {
        for location in &mut server.locations {
            let location_of = template(&text);
            let redirect = Redirect { status: 302, location: location_of, query: RedirectQuery::Drop };
            location.action = Action::Redirect(redirect);
        }
    });
    let ask = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{}\r\n\r\n", headers.join("\r\n"));

    let seen = Rig::start(log.of(proxied, TOLD)).ask(&ask).text();
    let sent = Rig::start(redirected).ask(&ask);

    let upstream = seen.lines().find_map(|line| line.strip_prefix("X-Told: "));
    let location = sent.header("location");
    let [logged] = log.lines(1).try_into().expect("one line");
    [upstream.unwrap_or_default().to_owned(), location.unwrap_or_default().to_owned(), logged]
}

fn template(text: &Expression) -> Template {
    let piece = |part: &Part| match part {
        Part::Literal(literal) => Piece::Literal(literal.clone()),
        Part::Variable(variable) => Piece::Variable(variable.clone()),
    };
    Template(text.0.iter().map(piece).collect())
}

#[test]
fn cookies_and_arguments_are_found_in_any_case_and_in_whichever_line() {
    let cases: [(&str, &[&str], &str); 7] = [
        ("/?user=u1", &["Cookie: session=s1", "X-T: a"], "u1|s1|a|session=s1"),
        ("/?User=u1", &["Cookie: SESSION=s1", "X-T: a"], "u1|s1|a|SESSION=s1"),
        ("/?a&USER=u1", &["Cookie: x=1", "X-T: a", "cookie: session=s1"], "u1|s1|a|x=1; session=s1"),
        ("/?user=u1&user=u2", &["Cookie: session=s1;session=s2", "X-T: a"], "u1|s1|a|session=s1;session=s2"),
        ("/?user=u1", &["Cookie: x=1, session = s1;y", "X-T: a"], "u1|s1|a|x=1, session = s1;y"),
        ("/?xuser=0&user&user=u1", &["Cookie: xsession=0; y=session=0; session=s1", "X-T: a"], {
            "u1|s1|a|xsession=0; y=session=0; session=s1"
        }),
        ("/?user=u1", &["X-T: a", "x-t: b", "Cookie: session=s1"], "u1|s1|a, b|session=s1"),
    ];
    for (target, headers, expected) in cases {
        let expected = format!("https://x/{expected}");

        let [upstream, client, log] = told(target, headers);

        assert_eq!([&upstream, &client, &log], [&expected; 3], "{target} {headers:?}");
    }
}

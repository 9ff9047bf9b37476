//! What a client has to show before its request goes on.

use std::sync::Arc;

use penstock::l7::explain::{Request, Scheme, explain};
use penstock::model::l4::Prefix;
use penstock::model::l7::policy::{Access, AddressSet, Auth, Basic, Cors, Origins, Password, Satisfy, Users};
use penstock::model::l7::{Action, Filters, Policies};

use crate::rig::{Backend, Reply, Rig, to_with};

fn rig(backend: &Backend, policies: Policies) -> Rig {
    let policies = Some(Arc::new(policies));
    Rig::start(to_with(&[backend.addr], Filters { policies, ..Filters::default() }))
}

/// alice by bcrypt, bob by an MD5 of many rounds, carol by nothing that can be read.
fn basic() -> Basic {
    let alice = "$2y$05$R4XzctxPH4fA21OMgwYgQuTjAenDfq2dVTG2uME/SrKMoRto4qRYq";
    let bob = Password::Md5 {
        magic: "$apr1$",
        salt: "0DB6fZ3q".to_owned(),
        hash: "AkluBSoeMvHzx2AI5tEwh1".to_owned(),
    };
    let users = [
        (b"alice".to_vec(), Password::Bcrypt(alice.to_owned())),
        (b"bob".to_vec(), bob),
        (b"carol".to_vec(), Password::Unusable),
    ];
    Basic { realm: "who is it".to_owned(), users: Users(users.into_iter().collect()) }
}

fn auth(satisfy: Satisfy) -> Policies {
    Policies { auth: Some(Auth { satisfy, basic: Some(basic()), external: None }), ..Policies::default() }
}

const ALICE: &str = "YWxpY2U6d29uZGVybGFuZA==";
const BOB: &str = "Ym9iOmJ1aWxkZXI=";

fn ask_as(rig: &Rig, credentials: &str) -> Reply {
    rig.ask(&format!("GET /a HTTP/1.1\r\nHost: h\r\nAuthorization: Basic {credentials}\r\n\r\n"))
}

#[test]
fn who_shows_no_password_that_is_right_is_asked_for_one_and_goes_no_further() {
    let backend = Backend::mirror();
    let rig = rig(&backend, auth(Satisfy::All));

    let silent = rig.ask("GET /a HTTP/1.1\r\nHost: h\r\n\r\n");
    // alice:builder, carol:, mallory:wonderland, and no Base64.
    let wrong =
        ["YWxpY2U6YnVpbGRlcg==", "Y2Fyb2w6", "bWFsbG9yeTp3b25kZXJsYW5k", "!!"].map(|it| ask_as(&rig, it));

    for reply in wrong.iter().chain([&silent]) {
        assert_eq!(reply.status, 401);
        assert_eq!(reply.header("www-authenticate"), Some("Basic realm=\"who is it\""));
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn the_right_password_lets_in_again_and_again_and_stays_with_us() {
    let backend = Backend::mirror();
    let rig = rig(&backend, auth(Satisfy::All));

    for credentials in [ALICE, ALICE, BOB, ALICE] {
        let reply = ask_as(&rig, credentials);
        assert_eq!(reply.status, 200);
        assert!(!reply.text().to_lowercase().contains("authorization"), "{}", reply.text());
    }
}

#[test]
fn a_body_follows_its_password_and_the_connection_goes_on_after_a_refusal() {
    let backend = Backend::mirror();
    let rig = rig(&backend, auth(Satisfy::All));
    let mut client = rig.client();

    client.send("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
    let refused = client.reply();
    let head =
        format!("POST /a HTTP/1.1\r\nHost: h\r\nAuthorization: Basic {ALICE}\r\nContent-Length: 5\r\n\r\n");
    client.send(format!("{head}world"));
    let taken = client.reply();

    assert_eq!((refused.status, taken.status), (401, 200));
    assert!(taken.text().ends_with("world"), "{}", taken.text());
}

#[test]
fn a_password_is_enough_where_the_address_is_not_if_any_will_do() {
    let backend = Backend::mirror();
    let only = |addr: &str| {
        let allowed: AddressSet = Prefix::new(addr.parse().unwrap(), 8).into_iter().collect();
        Some(Access { denied: AddressSet::default(), allowed: Some(allowed) })
    };
    // Which addresses may enter, how many checks count, and what comes of no password and of the right one.
    let cases = [
        ("listed, all", "127.0.0.0", Satisfy::All, [401, 200]),
        ("listed, any", "127.0.0.0", Satisfy::Any, [200, 200]),
        ("not listed, all", "10.0.0.0", Satisfy::All, [403, 403]),
        ("not listed, any", "10.0.0.0", Satisfy::Any, [401, 200]),
    ];
    for (case, addr, satisfy, expected) in cases {
        let rig = rig(&backend, Policies { access: only(addr), ..auth(satisfy) });

        let silent = rig.ask("GET /a HTTP/1.1\r\nHost: h\r\n\r\n");

        assert_eq!([silent.status, ask_as(&rig, ALICE).status], expected, "{case}");
    }
}

#[test]
fn a_preflight_shows_nothing_and_the_origin_may_read_the_refusal() {
    let backend = Backend::mirror();
    let cors = Cors {
        origins: Origins::Any,
        methods: "GET".to_owned(),
        headers: "Authorization".to_owned(),
        credentials: false,
        expose: None,
        max_age: 1,
    };
    let rig = rig(&backend, Policies { cors: Some(cors), ..auth(Satisfy::All) });

    assert_eq!(rig.ask("OPTIONS /a HTTP/1.1\r\nHost: h\r\n\r\n").status, 204);
    let refused = rig.ask("GET /a HTTP/1.1\r\nHost: h\r\n\r\n");

    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("*")));
}

#[test]
fn a_host_says_only_to_those_it_lets_in_that_it_holds_nothing() {
    let backend = Backend::mirror();
    let mut l7 = to_with(
        &[backend.addr],
        Filters { policies: Some(Arc::new(auth(Satisfy::All))), ..Filters::default() },
    );
    l7.servers.edit(|_, server| {
        server.locations.iter_mut().for_each(|location| location.action = Action::DefaultBackend);
    });
    let rig = Rig::start(l7);

    let silent = rig.ask("GET /a HTTP/1.1\r\nHost: h\r\n\r\n");

    assert_eq!([silent.status, ask_as(&rig, ALICE).status], [401, 404]);
}

#[test]
fn what_is_explained_says_that_a_client_has_to_be_let_in_first() {
    let listed: AddressSet = Prefix::new([127, 0, 0, 0].into(), 8).into_iter().collect();
    let access = Access { denied: AddressSet::default(), allowed: Some(listed) };
    let told = |policies: Policies| {
        let filters = Filters { policies: Some(Arc::new(policies)), ..Filters::default() };
        let request = Request {
            scheme: Scheme::Http,
            host: "h".to_owned(),
            target: "/a".to_owned(),
            method: "GET".to_owned(),
            headers: Vec::new(),
            client: [127, 0, 0, 1].into(),
        };
        explain(
            &to_with(&["127.0.0.1:80".parse().expect("an address")], filters),
            None,
            &Default::default(),
            &request,
        )
    };

    let (all, any) = (told(auth(Satisfy::All)), told(auth(Satisfy::Any)));
    let by_address = told(Policies { access: Some(access), ..auth(Satisfy::Any) });

    assert_eq!(all.verdict, "once let in: proxied to default-echo-80 as GET /a");
    assert_eq!(any.verdict, all.verdict);
    assert_eq!(by_address.verdict, "proxied to default-echo-80 as GET /a");
    let satisfy = |steps: &[penstock::model::report::Step]| {
        steps.iter().find(|step| step.name == "satisfy").map(|step| step.detail.clone())
    };
    assert_eq!(satisfy(&any.steps).as_deref(), Some("one of these is enough"));
    assert_eq!(
        satisfy(&by_address.steps).as_deref(),
        Some("one of these is enough, or an address that is listed")
    );
}

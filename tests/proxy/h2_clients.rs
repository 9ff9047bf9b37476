//! HTTP/2 as clients speak it that share no code with the proxy: curl, nghttp and h2load.

use std::process::Command;

use penstock::model::l7::{Filters, Protocol};

use crate::rig::{Backend, Rig, to, to_with};

/// True if the program is there; `cargo xtask setup test` installs it.
fn has(program: &str) -> bool {
    lb_tests::tier::require("proxy", || match Command::new(program).arg("--version").output() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{program}: {error}")),
    })
}

/// Standard output of a program that succeeds.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect(program);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn curl_gets_http_2_over_tls_and_with_prior_knowledge() {
    if !has("curl") {
        return;
    }
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let https = format!("https://{}/x", rig.https);
    let http = format!("http://{}/x", rig.http);
    let with = ["-sSk", "--max-time", "20", "-w", "|%{http_version} %{http_code}"];
    let cases = [
        ("alpn", vec!["--http2", &https], "|2 200"),
        ("alpn without h2", vec!["--http1.1", &https], "|1.1 200"),
        ("prior knowledge", vec!["--http2-prior-knowledge", &http], "|2 200"),
        ("a body", vec!["--http2", "-d", "hello", &https], "hello|2 200"),
    ];
    for (case, args, ending) in cases {
        let text = run("curl", &[&with[..], &args].concat());
        assert!(text.ends_with(ending), "{case}: {text}");
    }
}

#[test]
fn curl_sends_a_body_of_unknown_length() {
    if !has("curl") {
        return;
    }
    let backend = Backend::start(|mut peer| {
        peer.head();
        let mut body = Vec::new();
        while !body.ends_with(b"0\r\n\r\n") {
            body.extend(peer.exactly(1));
        }
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
        peer.send(body);
    });
    let rig = Rig::start(to(&[backend.addr]));
    let args = ["-sSk", "--max-time", "20", "--http2", "-H", "Transfer-Encoding: chunked", "-d", "hello"];

    let text = run("curl", &[&args[..], &[&format!("https://{}/", rig.https)]].concat());

    assert!(text.contains("hello") && text.ends_with("0\r\n\r\n"), "{text}");
}

#[test]
fn http_2_over_tls_can_be_switched_off() {
    if !has("curl") {
        return;
    }
    let backend = Backend::mirror();
    let mut l7 = to(&[backend.addr]);
    l7.edge.tls.http2 = false;
    let rig = Rig::start(l7);
    let with = ["-sSk", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_version} %{http_code}"];

    let asked = run("curl", &[&with[..], &["--http2", &format!("https://{}/", rig.https)]].concat());

    assert_eq!(asked, "1.1 200");
}

#[test]
fn nghttp_gets_a_resource_and_its_priorities_are_borne() {
    if !has("nghttp") {
        return;
    }
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));

    let text = run("nghttp", &["--no-verify-peer", "-v", &format!("https://{}/x", rig.https)]);

    assert!(text.contains(":status: 200") && text.contains("GET /x HTTP/1.1"), "{text}");
}

#[test]
fn h2load_sees_every_request_answered() {
    if !has("h2load") {
        return;
    }
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));

    for uri in [format!("https://{}/x", rig.https), format!("http://{}/x", rig.http)] {
        let text = run("h2load", &["-n", "2000", "-c", "4", "-m", "50", &uri]);
        assert!(text.contains("2000 succeeded, 0 failed, 0 errored"), "{text}");
    }
}

/// nginx is the upstream: HTTP/2 by other people's code on that side, too.
#[test]
fn an_upstream_of_other_peoples_making_is_understood() {
    let version = Command::new("nginx").arg("-v").output();
    if !lb_tests::tier::require_by_name("nginx", || version.map(|_| ()).map_err(|error| error.to_string())) {
        return;
    }
    let root = tempfile::tempdir().expect("directory");
    let dir = root.path().display();
    std::fs::write(root.path().join("x"), vec![b'7'; 300_000]).expect("file");
    let addr = crate::rig::nobody();
    let temps: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/{kind};"))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log {dir}/log; events {{}}\n\
         http {{ access_log off; {temps} server {{ listen {addr} http2; root {dir}; }} }}"
    );
    let file = root.path().join("conf");
    std::fs::write(&file, config).expect("file");
    let mut server = Command::new("nginx")
        .arg("-e")
        .arg(root.path().join("log"))
        .arg("-c")
        .arg(&file)
        .spawn()
        .expect("nginx");
    let filters = Filters { protocol: Protocol::Grpc, max_body_bytes: None, ..Filters::default() };
    let rig = Rig::start(to_with(&[addr], filters));

    let reply = rig.ask_until("GET /x HTTP/1.1\r\nHost: a\r\n\r\n", 200);
    let again = rig.ask("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    let missing = rig.ask("GET /y HTTP/1.1\r\nHost: a\r\n\r\n");
    let _ = server.kill();
    let _ = server.wait();

    assert_eq!((reply.body.len(), again.body.len(), missing.status), (300_000, 300_000, 404));
}

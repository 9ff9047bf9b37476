//! Responses compressed on their way to clients that ask for it.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use penstock::model::l7::{Buffers, Compression, Filters, L7, Packing, ReadAhead};

use crate::h2_client;
use crate::rig::{Backend, Reply, Rig, to, to_with};

fn compressing(l7: L7) -> Rig {
    let packing = Packing { level: 4, min_bytes: 20, types: vec!["text/html".to_owned()] };
    let compression = Compression { gzip: Some(packing.clone()), brotli: Some(packing), without_gzip: None };
    Rig::start(L7 { compression: Some(Arc::new(compression)), ..l7 })
}

fn asking(encoding: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: h\r\nAccept-Encoding: {encoding}\r\n\r\n")
}

fn unpacked(encoding: &str, packed: &[u8]) -> String {
    let mut text = String::new();
    match encoding {
        "gzip" => flate2::read::GzDecoder::new(packed).read_to_string(&mut text),
        _ => brotli::Decompressor::new(packed, 4096).read_to_string(&mut text),
    }
    .expect("well packed");
    text
}

/// Text that packs well, of about so many bytes.
fn text(bytes: usize) -> String {
    (0..).map(|n| format!("<p>line {n}</p>\n")).take(bytes / 16).collect()
}

/// A backend that answers with this text, in each of the ways that a body can end.
fn telling(text: &str, framing: &'static str) -> Backend {
    let text = text.to_owned();
    Backend::start(move |mut peer| {
        while peer.head().is_some() {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nETag: \"1\"\r\n";
            let sent = match framing {
                "length" => format!("{head}Content-Length: {}\r\n\r\n{text}", text.len()),
                "chunks" => format!(
                    "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n0\r\nno colon\r\nX-Sum: 7\r\n\r\n",
                    text.len()
                ),
                _ => format!("{head}Connection: close\r\n\r\n{text}"),
            };
            if !peer.try_send(sent.as_bytes()) || framing == "close" {
                return;
            }
        }
    })
}

#[test]
fn every_framing_is_compressed_by_what_the_client_asked_for_and_connections_are_kept() {
    let content = text(100_000);
    for framing in ["length", "chunks", "close"] {
        let backend = telling(&content, framing);
        let rig = compressing(to(&[backend.addr]));
        let mut client = rig.client();
        for encoding in ["gzip", "br"] {
            client.send(asking(encoding));
            let Reply { head, mut body, .. } = client.reply();

            let case = format!("{framing} by {encoding}: {head}");
            if framing == "chunks" {
                assert!(body.ends_with(b"X-Sum: 7"), "{case}");
                body.truncate(body.len() - b"X-Sum: 7".len());
            }
            assert!(body.len() < content.len() / 3, "{case}: {}", body.len());
            assert!(unpacked(encoding, &body) == content, "{case}");
            let expected = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nVary: Accept-Encoding\r\nETag: W/\"1\"\r\n\
                 Content-Encoding: {encoding}\r\nTransfer-Encoding: chunked\r\nDate: "
            );
            assert!(head.starts_with(&expected), "{case}");
        }
        assert_eq!(backend.connections(), if framing == "close" { 2 } else { 1 }, "{framing}");
    }
}

#[test]
fn who_does_not_ask_or_asks_for_no_body_gets_none_compressed() {
    let content = text(1000);
    let backend = telling(&content, "length");
    let rig = compressing(to(&[backend.addr]));

    for encoding in ["identity", "gzip;q=0"] {
        let reply = rig.ask(&asking(encoding));

        let told = (reply.header("vary"), reply.header("etag"), reply.header("content-encoding"));
        assert_eq!(told, (Some("Accept-Encoding"), Some("\"1\""), None), "{encoding}");
        assert_eq!(reply.text(), content, "{encoding}");
    }
    let mut old = rig.client();
    old.send("GET / HTTP/1.0\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n");
    assert_eq!(old.reply().text(), content);
}

#[test]
fn the_head_alone_has_no_body_to_compress() {
    let backend =
        Backend::saying("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5000\r\n\r\n");
    let rig = compressing(to(&[backend.addr]));
    let mut client = rig.client();

    client.send("HEAD / HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n");
    let head = client.head().expect("a head");

    assert!(head.contains("Content-Length: 5000\r\nVary: Accept-Encoding\r\n"), "{head}");
}

#[test]
fn what_a_backend_sends_is_with_the_client_before_it_sends_more() {
    for encoding in ["gzip", "br"] {
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let gone = std::sync::Mutex::new(gone);
        let backend = Backend::start(move |mut peer| {
            peer.head();
            peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n");
            for event in 0..3 {
                peer.send(format!("9\r\nevent: {event}\n\r\n"));
                gone.lock().expect("one at a time").recv().expect("seen");
            }
            peer.send("0\r\n\r\n");
        });
        let rig = compressing(to(&[backend.addr]));
        let mut client = rig.client();
        client.send(asking(encoding));
        client.head().expect("a head");

        // Flushed, all that came so far can be unpacked without its end.
        let mut seen = Vec::new();
        let mut packed = Unpacker::new(encoding);
        for event in 0..3 {
            let wanted = format!("event: {event}\n");
            while !seen.ends_with(wanted.as_bytes()) {
                seen.extend(packed.take(&client.chunk()));
            }
            go.send(()).expect("the backend");
        }

        assert_eq!(String::from_utf8_lossy(&seen), "event: 0\nevent: 1\nevent: 2\n", "{encoding}");
    }
}

/// Unpacks as far as it can.
enum Unpacker {
    Gzip(Box<flate2::write::GzDecoder<Vec<u8>>>),
    Brotli(Box<brotli::DecompressorWriter<Vec<u8>>>),
}

impl Unpacker {
    fn new(encoding: &str) -> Self {
        match encoding {
            "gzip" => Self::Gzip(Box::new(flate2::write::GzDecoder::new(Vec::new()))),
            _ => Self::Brotli(Box::new(brotli::DecompressorWriter::new(Vec::new(), 4096))),
        }
    }

    fn take(&mut self, packed: &[u8]) -> Vec<u8> {
        match self {
            Self::Gzip(gzip) => {
                gzip.write_all(packed).and_then(|()| gzip.flush()).expect("well packed");
                std::mem::take(gzip.get_mut())
            }
            Self::Brotli(brotli) => {
                brotli.write_all(packed).and_then(|()| brotli.flush()).expect("well packed");
                std::mem::take(brotli.get_mut())
            }
        }
    }
}

#[test]
fn a_response_that_is_read_ahead_is_compressed_before_it_waits() {
    let content = text(3_000_000);
    let backend = telling(&content, "length");
    let response = ReadAhead { memory_bytes: 16 * 1024, file_bytes: 64 << 20, rate: None };
    let buffers = Buffers { response: Some(response), ..Buffers::default() };
    let rig = compressing(to_with(&[backend.addr], Filters { buffers, ..Filters::default() }));

    let reply = rig.ask(&asking("gzip"));

    assert!(unpacked("gzip", &reply.body) == content);
}

#[test]
fn a_response_that_is_cut_off_does_not_end_well() {
    let backend = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1000\r\n\r\n<p>");
    });
    let rig = compressing(to(&[backend.addr]));
    let mut client = rig.client();

    client.send(asking("gzip"));
    let sent = client.rest();

    assert!(!sent.ends_with(b"0\r\n\r\n"), "{}", sent.escape_ascii());
}

#[test]
fn a_request_body_that_waits_in_the_kernel_survives_the_compression_of_its_early_answer() {
    const LARGE: usize = 48 << 20;
    let body: Vec<u8> = (0..).flat_map(u32::to_be_bytes).take(LARGE).collect();
    let body = Arc::new(body);
    let (say, told) = std::sync::mpsc::channel::<()>();
    let (told, sent) = (std::sync::Mutex::new(told), Arc::clone(&body));
    let backend = Backend::start(move |mut peer| {
        peer.head();
        let told = told.lock().expect("one connection");
        // Nothing of the body is read before its client had to wait, nor before the answer is on its way.
        told.recv().expect("the client waits");
        peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n");
        told.recv().expect("the client has the head");
        let is_same = peer.exactly(LARGE) == *sent;
        peer.send(format!("5\r\n{is_same:<5}\r\n0\r\n\r\n"));
        peer.head().expect("another request by the same connection");
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond");
    });
    let rig = compressing(to(&[backend.addr]));
    let mut client = rig.client();

    client.send(format!(
        "POST / HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\nContent-Length: {LARGE}\r\n\r\n"
    ));
    let mut stream = client.stream.try_clone().expect("a descriptor");
    // A socket that takes nothing for so long has no room, nor has anything behind it.
    stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let mut written = 0;
    while let Ok(n @ 1..) = stream.write(&body[written..LARGE.min(written + 65_536)]) {
        written += n;
    }
    assert!(written < LARGE, "nothing held the client back");
    stream.set_write_timeout(None).expect("no timeout");
    let rest = std::thread::spawn(move || stream.write_all(&body[written..]).expect("room"));
    say.send(()).expect("the backend");
    let head = client.head().expect("a head");
    say.send(()).expect("the backend");

    let chunks = std::iter::from_fn(|| Some(client.chunk()).filter(|chunk| !chunk.is_empty()));
    let packed: Vec<u8> = chunks.flatten().collect();
    rest.join().expect("all of it is sent");
    assert!(head.contains("Content-Encoding: gzip\r\n"), "{head}");
    assert_eq!(unpacked("gzip", &packed), "true ");
    assert_eq!(rig.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n").text(), "second");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn http_2_clients_get_frames_of_it() {
    let content = text(200_000);
    let backend = telling(&content, "length");
    let rig = compressing(to(&[backend.addr]));
    let request =
        Request::get("http://a.example/").header("accept-encoding", "gzip, br").body(()).expect("request");

    let reply = h2_client::Client::connect(rig.http).ask(request, &[]).expect("a response");

    let header = |name: &str| reply.head.headers().get(name).and_then(|value| value.to_str().ok());
    assert_eq!((header("content-encoding"), header("content-length")), (Some("br"), None));
    assert!(unpacked("br", &reply.body) == content);
}

//! What endpoints are judged by, as far as clients have a part in it.

use std::sync::mpsc;
use std::time::Duration;

use penstock::model::upstream::Balance;

use crate::rig::{Backend, DEADLINE, Rig, length_of, to};

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
/// By how much one endpoint is slower than the other: longer than a busy machine stalls an answer.
const SLOWER: Duration = Duration::from_secs(1);

/// Answers with its name after so long, and tells of each head that came.
fn named(name: &'static str, after: Duration, heads: mpsc::Sender<&'static str>) -> Backend {
    Backend::start(move |mut peer| {
        while let Some(head) = peer.head() {
            let _ = heads.send(name);
            peer.exactly(length_of(&head));
            std::thread::sleep(after);
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()));
        }
    })
}

#[test]
fn an_endpoint_is_not_judged_by_how_slowly_a_client_sends_its_body() {
    let (heads, asked) = mpsc::channel();
    let quick = named("quick", Duration::ZERO, heads.clone());
    let slow = named("slow", SLOWER, heads);
    let mut l7 = to(&[quick.addr, slow.addr]);
    l7.upstreams.edit(|_, upstream| upstream.balance = Balance::PeakEwma);
    let rig = Rig::start(l7);
    let asks = |n: usize| (0..n).map(|_| rig.ask(GET).text()).collect::<Vec<_>>();
    // Both are known by then.
    asks(5);
    assert_eq!(asks(3), ["quick"; 3]);
    asked.try_iter().for_each(drop);

    let mut client = rig.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n12");
    assert_eq!(asked.recv_timeout(DEADLINE), Ok("quick"));
    // What is judged is time.
    std::thread::sleep(3 * SLOWER);
    client.send("34");
    assert_eq!(client.reply().text(), "quick");

    assert_eq!(asks(3), ["quick"; 3], "after a slow body");
}

//! The same of a request that is a stream of HTTP/2.

use std::future::{Future, poll_fn};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use super::{ALLOCATIONS, ALONE, LARGE, LARGE_MAX, REQUESTS, Rig, Trace, WARM_UP};

/// Most of them are the h2 crate's: its own map of the request's headers, ours of the response's.
const ALLOCATIONS_MAX: f64 = 8.1;

#[test]
fn a_request_of_http2_allocates_what_the_codec_does_and_nothing_large() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::start();
    with_client(&rig, async |mut client| {
        ask(&mut client, WARM_UP).await;

        let (before, large) = (ALLOCATIONS.load(Ordering::SeqCst), LARGE.load(Ordering::SeqCst));
        ask(&mut client, REQUESTS).await;
        let each = |now: u64, before: u64| (now - before) as f64 / f64::from(REQUESTS);
        let all = each(ALLOCATIONS.load(Ordering::SeqCst), before);
        let large = each(LARGE.load(Ordering::SeqCst), large);

        println!("{all:.3} allocations a request of HTTP/2, {large:.3} large ones");
        assert!(all <= ALLOCATIONS_MAX, "{all} allocations a request, {ALLOCATIONS_MAX} are allowed");
        assert!(large <= LARGE_MAX, "{large} large allocations a request, {LARGE_MAX} are allowed");
    });
}

#[test]
fn a_request_of_http2_takes_four_system_calls_and_its_share_of_waits() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::start();
    with_client(&rig, async |mut client| {
        ask(&mut client, WARM_UP).await;
        let Some(trace) = Trace::start() else { return };

        let begun = Instant::now();
        ask(&mut client, REQUESTS).await;
        let calls = trace.end();

        println!("{calls:?}");
        super::assert_four_calls(&calls, begun.elapsed());
    });
}

/// Runs `act` with a connection of HTTP/2 to the proxy, all on this thread.
fn with_client<F: Future<Output = ()>>(rig: &Rig, act: impl FnOnce(SendRequest<Bytes>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    let set = LocalSet::new();
    set.block_on(&runtime, async {
        let stream = TcpStream::connect(rig.addr).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        let (client, connection) = h2::client::handshake(stream).await.expect("http/2");
        tokio::task::spawn_local(connection);
        act(client).await;
    });
}

/// So many requests, one after the other.
async fn ask(client: &mut SendRequest<Bytes>, requests: u32) {
    for _ in 0..requests {
        poll_fn(|cx| client.poll_ready(cx)).await.expect("ready");
        let request = Request::get("http://shop.example.com/shop/cart?id=7").header("user-agent", "cost");
        let (response, _) = client.send_request(request.body(()).expect("a request"), true).expect("sent");
        let response = response.await.expect("an answer");
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        let mut received = Vec::new();
        while let Some(data) = body.data().await {
            received.extend_from_slice(&data.expect("its body"));
        }
        assert_eq!(received, b"0123456789");
    }
}

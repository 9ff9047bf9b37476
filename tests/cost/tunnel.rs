//! What the bytes of an upgraded connection cost.

use super::*;

/// More than one look at a connection finds.
const FLOOD: usize = 4 << 20;

#[test]
fn a_small_message_of_a_tunnel_takes_four_system_calls_also_after_a_flood() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = Rig::start();
    let mut client = rig.connect();
    client
        .write_all(
            b"GET /shop/tunnel HTTP/1.1\r\nHost: shop.example.com\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
        )
        .expect("sent");
    read_to(&mut client, b"\r\n\r\n");
    let mut writer = client.try_clone().expect("cloned");
    let flood = std::thread::spawn(move || {
        IS_OURS.set(true);
        writer.write_all(&vec![0; FLOOD]).expect("sent");
    });
    client.read_exact(&mut vec![0; FLOOD]).expect("all of it comes back");
    flood.join().expect("all of it was sent");
    let mut echo = |messages: u32| {
        for _ in 0..messages {
            client.write_all(b"0123456789").expect("sent");
            client.read_exact(&mut [0; 10]).expect("echoed");
        }
    };
    echo(WARM_UP);
    let Some(trace) = Trace::start() else { return };

    let begun = Instant::now();
    echo(REQUESTS);
    let took = begun.elapsed();
    let calls = trace.end();

    println!("{calls:?}");
    assert_four_calls(&calls, took);
}

//! Any bytes as a frame on the link, for the fuzz target.

use aws_lc_rs::hmac;

use super::frame::{BROADCAST, HEADER, answer, claim, question};
use super::heartbeat::{Heartbeat, key};

/// Never panics, and a heartbeat is read as what it was written from. Whoever knows the key may write what he likes,
/// so every frame is signed.
pub fn fuzz(bytes: &[u8]) {
    let _ = claim(bytes);
    if let Some(question) = question(bytes) {
        assert!(answer(BROADCAST, &question).len() >= HEADER);
    }
    let key = key(None);
    let mut frame = bytes.to_vec();
    if let Some(signed) = Heartbeat::signed(&frame) {
        let signature = hmac::sign(&key, signed);
        frame.truncate(HEADER + signed.len());
        frame.extend_from_slice(signature.as_ref());
    }
    let Some(heartbeat) = Heartbeat::of_frame(&frame, &key) else { return };
    let again = Heartbeat::of_frame(&heartbeat.to_frame(BROADCAST, &key), &key);
    let expected = Heartbeat { owns: first(&heartbeat.owns), serves: first(&heartbeat.serves), ..heartbeat };
    assert_eq!(again, Some(expected));
}

/// As many as are written.
fn first(tags: &std::collections::BTreeSet<u32>) -> std::collections::BTreeSet<u32> {
    tags.iter().take(super::heartbeat::NAMED).copied().collect()
}

//! Requests and answers as bytes, over whatever carries them.

use std::io::{Read, Write};

use crate::rig::{Reply, length_of};

/// Sends a request and reads its response.
pub fn ask(stream: &mut (impl Read + Write), request: &[u8], is_head: bool) -> Result<Reply, String> {
    // A request that is refused may not be read to its end.
    let sent = stream.write_all(request).and_then(|()| stream.flush());
    let mut read = Vec::new();
    let mut more = |read: &mut Vec<u8>| {
        let mut bytes = [0; 16 * 1024];
        let n = stream.read(&mut bytes).map_err(|error| format!("receive: {error}, sent: {sent:?}"))?;
        read.extend_from_slice(&bytes[..n]);
        Ok::<_, String>(n)
    };
    let end = loop {
        if let Some(at) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break at + 4;
        }
        if more(&mut read)? == 0 {
            return Err(format!("ended after {:?}", String::from_utf8_lossy(&read)));
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let mut body = read.split_off(end);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("no status")?;
    let mut reply = Reply { status, head, body: Vec::new() };
    if is_head || matches!(status, 101 | 204 | 304) {
        return Ok(reply);
    }
    if reply.header("content-length").is_some() {
        let length = length_of(&reply.head);
        while body.len() < length {
            if more(&mut body)? == 0 {
                return Err(format!("ended after {} of {length} bytes", body.len()));
            }
        }
        reply.body = body;
        return Ok(reply);
    }
    if reply.header("transfer-encoding").is_none() {
        while more(&mut body).is_ok_and(|n| n > 0) {}
        reply.body = body;
        return Ok(reply);
    }
    loop {
        while !body.windows(2).any(|bytes| bytes == b"\r\n") {
            if more(&mut body)? == 0 {
                return Err("ended before a chunk".to_owned());
            }
        }
        let at = body.windows(2).position(|bytes| bytes == b"\r\n").unwrap_or(0);
        let size = usize::from_str_radix(String::from_utf8_lossy(&body[..at]).trim(), 16)
            .map_err(|e| e.to_string())?;
        while body.len() < at + 2 + size + 2 {
            if more(&mut body)? == 0 {
                return Err("ended within a chunk".to_owned());
            }
        }
        reply.body.extend_from_slice(&body[at + 2..at + 2 + size]);
        body.drain(..at + size + 4);
        if size == 0 {
            return Ok(reply);
        }
    }
}

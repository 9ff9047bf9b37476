//! An HTTP/2 client that sends whatever frames it is told to, right or wrong.
//!
//! It shares no code with the proxy: frames are written byte by byte, header blocks as literals
//! without compression.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What a client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types.
#[expect(missing_docs, reason = "the names are the standard's")]
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags.
#[expect(missing_docs, reason = "the names are the standard's")]
pub mod flag {
    pub const END_STREAM: u8 = 1;
    pub const ACK: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream; 0 is the connection.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// How a stream, or the whole connection, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this status began.
    Status(u16),
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with this code.
    GoAway(u32),
    /// The connection closed without a word.
    Closed,
}

/// The client's end of a connection.
pub struct Frames {
    /// For what is no frame.
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Frames {
    /// Connects and says hello.
    pub fn connect(addr: SocketAddr, deadline: Duration) -> Self {
        let mut frames = Self::silent(addr, deadline);
        frames.send_raw(PREFACE);
        frames.send(kind::SETTINGS, 0, 0, &[]);
        frames
    }

    /// Connects and says nothing.
    pub fn silent(addr: SocketAddr, deadline: Duration) -> Self {
        Self::over(TcpStream::connect(addr).expect("connect"), deadline)
    }

    /// The rest of a connection, of whichever end.
    pub fn over(stream: TcpStream, deadline: Duration) -> Self {
        stream.set_read_timeout(Some(deadline)).expect("timeout");
        stream.set_write_timeout(Some(deadline)).expect("timeout");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, read: Vec::new() }
    }

    /// Sends bytes; false if the other side has gone.
    pub fn send_raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends a frame; false if the other side has gone.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.send_raw(&frame(kind, flags, stream, payload))
    }

    /// Sends a whole header block in one HEADERS frame.
    pub fn headers(&mut self, stream: u32, flags: u8, fields: &[(&str, &str)]) -> bool {
        self.send(kind::HEADERS, flags | flag::END_HEADERS, stream, &block(fields))
    }

    /// A GET without body.
    pub fn get(&mut self, stream: u32, path: &str) -> bool {
        self.headers(stream, flag::END_STREAM, &request("GET", path))
    }

    /// The next frame; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<Frame> {
        loop {
            if let Some(&[a, b, c, kind, flags, s0, s1, s2, s3]) = self.read.first_chunk() {
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                if self.read.len() >= 9 + length {
                    let payload = self.read[9..9 + length].to_vec();
                    self.read.drain(..9 + length);
                    return Some(Frame {
                        kind,
                        flags,
                        stream: u32::from_be_bytes([s0, s1, s2, s3]),
                        payload,
                    });
                }
            }
            let mut bytes = [0; 16 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(n) => self.read.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("read: {error}"),
            }
        }
    }

    /// The next frame of this type.
    pub fn until(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.receive()?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// What becomes of a stream.
    pub fn outcome(&mut self, stream: u32) -> Outcome {
        loop {
            let Some(frame) = self.receive() else { return Outcome::Closed };
            let code = |at: usize| {
                let bytes = frame.payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                u32::from_be_bytes(bytes.expect("a code"))
            };
            match frame.kind {
                // The graceful one names every stream there could be, and says nothing of ours.
                kind::GOAWAY if code(0) != 0x7fff_ffff => return Outcome::GoAway(code(4)),
                kind::RST_STREAM if frame.stream == stream => return Outcome::Reset(code(0)),
                kind::HEADERS if frame.stream == stream => return Outcome::Status(status(&frame.payload)),
                _ => {}
            }
        }
    }
}

/// A frame as bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The pseudo-headers of a request.
pub fn request<'a>(method: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [(":method", method), (":scheme", "http"), (":path", path), (":authority", "a.example")]
}

/// Header fields as literals, never indexed, never compressed.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(text.len(), &mut block);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A length of seven bits and more (RFC 7541 5.1).
fn integer(mut n: usize, out: &mut Vec<u8>) {
    if n < 127 {
        return out.push(n as u8);
    }
    out.push(127);
    n -= 127;
    while n >= 128 {
        out.push((n & 127) as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
}

/// The status at the start of a response's header block.
fn status(block: &[u8]) -> u16 {
    let block = match block {
        // A change of the table's size may stand in front.
        [first, rest @ ..] if first & 0xe0 == 0x20 => rest,
        block => block,
    };
    match block {
        [0x88, ..] => 200,
        [0x89, ..] => 204,
        [0x8a, ..] => 206,
        [0x8b, ..] => 304,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        [0x48 | 0x08 | 0x18, length, text @ ..] => {
            let text = text.get(..usize::from(length & 127)).expect("a value");
            let digits =
                if length & 128 == 0 { String::from_utf8_lossy(text).into_owned() } else { huffman(text) };
            digits.parse().expect("a status")
        }
        other => panic!("no status first: {other:?}"),
    }
}

/// Huffman-coded digits: 0, 1, 2 have five bits, the others six.
fn huffman(bytes: &[u8]) -> String {
    let mut bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |i| byte >> i & 1));
    let mut take = |n: usize| (0..n).try_fold(0u8, |code, _| Some(code << 1 | bits.next()?));
    let mut digits = String::new();
    while let Some(five) = take(5) {
        match five {
            0..=2 => digits.push((b'0' + five) as char),
            12..=15 => {
                let Some(last) = take(1) else { break };
                digits.push((b'0' + (five << 1 | last) - 22) as char);
            }
            _ => break,
        }
    }
    digits
}

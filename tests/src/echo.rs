//! Backends that say who they are: one small HTTP server, one TCP and one UDP echo. Blocking
//! threads, since a test has a handful of connections.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::thread;

use anyhow::{Context, Result};

/// Answers every request with the backend's name and what it saw, as `key: value` lines. A request
/// with `Upgrade` is switched and echoed, `/download/N` answers with N bytes.
pub fn http(addr: impl ToSocketAddrs, name: &str) -> Result<SocketAddr> {
    each_connection(addr, name, |name, stream| {
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(request) = Request::read(&mut reader)? {
            if request.header("upgrade").is_some() {
                return upgrade(reader, stream, &request);
            }
            answer(&mut stream.try_clone()?, name, &request)?;
        }
        Ok(())
    })
}

/// Greets each connection with `NAME\n`, then echoes.
pub fn tcp(addr: impl ToSocketAddrs, name: &str) -> Result<SocketAddr> {
    each_connection(addr, name, |name, mut stream| {
        stream.write_all(format!("{name}\n").as_bytes())?;
        std::io::copy(&mut stream.try_clone()?, &mut stream)?;
        Ok(())
    })
}

/// Answers each datagram with `NAME `, followed by the datagram.
pub fn udp(addr: impl ToSocketAddrs, name: &str) -> Result<SocketAddr> {
    let socket = UdpSocket::bind(addr).context("bind udp backend")?;
    let (bound, name) = (socket.local_addr()?, name.to_owned());
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let answer = [name.as_bytes(), b" ", buffer.get(..length).unwrap_or_default()].concat();
            let _ = socket.send_to(&answer, peer);
        }
    });
    Ok(bound)
}

fn each_connection(
    addr: impl ToSocketAddrs,
    name: &str,
    serve: fn(&str, TcpStream) -> Result<()>,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind(addr).context("bind tcp backend")?;
    let (bound, name) = (listener.local_addr()?, name.to_owned());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let name = name.clone();
            let _ = stream.set_nodelay(true);
            // A client that goes away in the middle is its own business.
            thread::spawn(move || serve(&name, stream));
        }
    });
    Ok(bound)
}

/// Head of a request; its body has been read and forgotten.
struct Request {
    line: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// `None` at the end of the connection.
    fn read(reader: &mut BufReader<TcpStream>) -> Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut request = Self { line: line.trim_end().to_owned(), headers: Vec::new() };
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let length = request.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
        Ok(Some(request))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }
}

fn answer(stream: &mut TcpStream, name: &str, request: &Request) -> Result<()> {
    if let Some(length) = request.target().split("/download/").nth(1).and_then(|n| n.parse::<u64>().ok()) {
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
        )?;
        std::io::copy(&mut std::io::repeat(b'x').take(length), stream)?;
        return Ok(());
    }
    let mut body = format!("backend: {name}\npath: {}\n", request.target());
    for (name, value) in &request.headers {
        body.push_str(&format!("{name}: {value}\n"));
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Backend: {name}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // One write: a head and a body in two segments would meet delayed acknowledgements.
    stream.write_all((head + &body).as_bytes())?;
    Ok(())
}

fn upgrade(mut reader: BufReader<TcpStream>, mut stream: TcpStream, request: &Request) -> Result<()> {
    let protocol = request.header("upgrade").unwrap_or("echo");
    write!(stream, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n")?;
    std::io::copy(&mut reader, &mut stream)?;
    Ok(())
}

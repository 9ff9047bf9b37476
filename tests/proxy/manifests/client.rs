//! A client of one host, which takes the steps of a case.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lb_tests::agent::eventually;

use super::answer::ask;
use super::stage::Stage;
use super::step::{Step, is_header, is_like};
use crate::rig::{DEADLINE, Reply};
use crate::tls_client::{Tls, config};

/// How long the one that has to fail may take to do so.
pub const SHORT: Duration = Duration::from_secs(3);

/// How long the one that has to succeed may take.
pub const LONG: Duration = DEADLINE;

/// A client of one host, through the steps of a case.
pub struct Client<'a> {
    pub stage: &'a Stage,
    pub host: String,
    /// Longest wait for one answer, and for a step to come right.
    pub patience: Duration,
    cookies: BTreeMap<String, String>,
    last: Option<Reply>,
    held: Vec<TcpStream>,
    /// Like no other client's: `@n@` in a step.
    number: usize,
}

/// Clients so far.
static CLIENTS: AtomicUsize = AtomicUsize::new(0);

impl<'a> Client<'a> {
    pub fn new(stage: &'a Stage, host: String, patience: Duration) -> Self {
        let number = CLIENTS.fetch_add(1, Ordering::Relaxed);
        Self { stage, host, patience, cookies: BTreeMap::new(), last: None, held: Vec::new(), number }
    }

    /// Takes the steps one after another; the error is what was not as it should be.
    pub fn take(&mut self, steps: &[Step]) -> Result<(), String> {
        for (number, step) in steps.iter().enumerate() {
            let started = Instant::now();
            loop {
                let outcome = (0..step.times.max(1)).try_for_each(|_| self.step(step));
                let Err(wrong) = outcome else { break };
                if !step.until || started.elapsed() > self.patience {
                    return Err(format!("step {}: {}: {wrong}", number + 1, step.send.trim()));
                }
                // A pause between questions, not a guess how long something takes.
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let request = self.request(step);
        let started = Instant::now();
        if step.hold {
            let mut stream = self.connect().map_err(|error| format!("hold: {error}"))?;
            stream.write_all(&request).map_err(|error| format!("hold: {error}"))?;
            self.held.push(stream);
            return self.recorded(step);
        }
        if let Some(wanted) = step.done {
            return self.unread(&request, wanted);
        }
        if let Some(wanted) = step.served {
            let served = self.served(&request).map_err(|error| error.to_string())?;
            return if served == wanted { Ok(()) } else { Err(format!("{served} served")) };
        }
        if let Some(wanted) = &step.alpn {
            let agreed = self.alpn(step)?;
            return if agreed == *wanted { Ok(()) } else { Err(format!("{agreed} agreed on")) };
        }
        if let Some(wanted) = step.resumed {
            let is_resumed = self.is_resumed(step)?;
            return if is_resumed == wanted { Ok(()) } else { Err(format!("resumed: {is_resumed}")) };
        }
        if let Some(wanted) = step.streams {
            let streams = self.streams().map_err(|error| error.to_string())?;
            return if streams == Some(wanted) { Ok(()) } else { Err(format!("{streams:?} at once")) };
        }
        let reply = self.exchange(step, &request);
        if step.handshake.is_some() {
            let is_refused = reply.as_ref().is_err_and(|wrong| wrong.starts_with("handshake: "));
            return if is_refused { Ok(()) } else { Err("hands were shaken".to_owned()) };
        }
        if step.silence {
            let has_ended = reply.as_ref().is_err_and(|wrong| !wrong.contains("temporarily unavailable"));
            return if has_ended { Ok(()) } else { Err(format!("no end: {reply:?}")) };
        }
        let reply = reply?;
        let wrong = self.compare(step, &reply, started.elapsed());
        let lines = reply.head.lines().filter_map(|line| line.split_once(": "));
        for (_, cookie) in lines.filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie")) {
            let pair = cookie.split(';').next().and_then(|pair| pair.split_once('='));
            self.cookies.extend(pair.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        let told = format!("{}{}", reply.head, reply.text().chars().take(1500).collect::<String>());
        self.last = Some(reply);
        wrong
            .and_then(|()| self.recorded(step))
            .and_then(|()| self.logged(step))
            .map_err(|wrong| format!("{wrong}\n{told}"))
    }

    fn fill_in(&self, text: &str) -> String {
        self.stage.fill_in(text, &self.host).replace("@n@", &format!("n{}-", self.number))
    }

    /// How many of five requests are answered before the connection ends.
    fn served(&self, request: &[u8]) -> std::io::Result<usize> {
        let request = String::from_utf8_lossy(request).replace("Connection: close\r\n", "");
        let mut stream = self.connect()?;
        Ok((0..5).take_while(|_| ask(&mut stream, request.as_bytes(), false).is_ok()).count())
    }

    /// Whether a backend has sent all of an answer that nobody reads. That it has not is known after a while alone.
    fn unread(&self, request: &[u8], wanted: bool) -> Result<(), String> {
        let mut stream = self.connect().map_err(|error| format!("connect: {error}"))?;
        stream.write_all(request).map_err(|error| format!("send: {error}"))?;
        let lines = String::from_utf8_lossy(request);
        let (line, host) = (lines.lines().next().unwrap_or_default(), format!("\r\nHost: {}\r\n", self.host));
        let is_it = |asked: &str| asked.starts_with(line) && asked.contains(&host);
        let is_sent = || self.stage.props.records.any_answered(is_it).then_some(());
        let wait = if wanted { self.patience } else { Duration::from_secs(1) };
        let is_sent = eventually(wait, is_sent).is_some();
        if is_sent == wanted { Ok(()) } else { Err(format!("sent: {is_sent}")) }
    }

    fn alpn(&self, step: &Step) -> Result<String, String> {
        let mut config = (*config(None, rustls::ALL_VERSIONS)).clone();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tls = self.handshake(step, config.into())?;
        Ok(tls
            .0
            .conn
            .alpn_protocol()
            .map_or("none".into(), |name| String::from_utf8_lossy(name).into_owned()))
    }

    fn is_resumed(&self, step: &Step) -> Result<bool, String> {
        let config = config(None, rustls::ALL_VERSIONS);
        let mut first = self.handshake(step, config.clone())?;
        // Tickets come with the answer.
        first.status(&self.host, "/");
        Ok(self.handshake(step, config)?.is_resumed())
    }

    /// What the first frame of an HTTP/2 connection says of `SETTINGS_MAX_CONCURRENT_STREAMS` (RFC 9113, 6.5).
    fn streams(&self) -> std::io::Result<Option<u32>> {
        let mut stream = self.connect()?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let mut settings = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut settings)?;
        let found = settings.chunks_exact(6).find(|setting| setting[..2] == [0, 3]);
        Ok(found.map(|setting| u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]])))
    }

    fn handshake(&self, step: &Step, config: Arc<rustls::ClientConfig>) -> Result<Tls, String> {
        let name = step.sni.as_ref().map_or(self.host.clone(), |name| self.fill_in(name));
        Tls::with(config, self.stage.agents.https, &name).map_err(|error| format!("handshake: {error}"))
    }

    fn request(&self, step: &Step) -> Vec<u8> {
        if !step.raw.is_empty() {
            return self.fill_in(&step.raw).into_bytes();
        }
        let text = self.fill_in(&step.send);
        let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
        let body = if step.body_bytes > 0 { vec![b'x'; step.body_bytes] } else { body.as_bytes().to_vec() };
        let mut lines: Vec<String> = head.lines().map(str::to_owned).collect();
        lines[0].push_str(" HTTP/1.1");
        let has = |lines: &[String], name: &str| {
            lines.iter().any(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))
        };
        if !has(&lines, "host") {
            lines.push(format!("Host: {}", self.host));
        }
        if !body.is_empty() && !has(&lines, "content-length") && !has(&lines, "transfer-encoding") {
            lines.push(format!("Content-Length: {}", body.len()));
        }
        if step.cookies && !self.cookies.is_empty() {
            let pairs: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            lines.push(format!("Cookie: {}", pairs.join("; ")));
        }
        if !step.ends_idle && !has(&lines, "connection") {
            lines.push("Connection: close".to_owned());
        }
        let before = self.fill_in(&step.before);
        [format!("{before}{}\r\n\r\n", lines.join("\r\n")).into_bytes(), body].concat()
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        self.connect_to(self.stage.agents.http)
    }

    fn connect_to(&self, addr: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        Ok(stream)
    }

    fn exchange(&self, step: &Step, request: &[u8]) -> Result<Reply, String> {
        let is_head = request.starts_with(b"HEAD ");
        if !step.tls {
            let addr = if step.admin { self.stage.agents.admin } else { self.stage.agents.http };
            let mut stream = self.connect_to(addr).map_err(|error| format!("connect: {error}"))?;
            let reply = ask(&mut stream, request, is_head)?;
            let ended = |mut stream: TcpStream| stream.read(&mut [0]).is_ok_and(|n| n == 0);
            return if step.ends_idle && !ended(stream) {
                Err("it does not end".to_owned())
            } else {
                Ok(reply)
            };
        }
        let identity = step.certificate.as_deref().map(|who| self.stage.props.identity(who));
        let versions = if step.tls12 { &[&rustls::version::TLS12][..] } else { rustls::ALL_VERSIONS };
        let config = config(identity, versions);
        let mut tls = self.handshake(step, config)?;
        tls.0.sock.set_read_timeout(Some(self.patience)).map_err(|error| error.to_string())?;
        if let Some(wanted) = &step.shows {
            let name = tls.common_name();
            if name != *wanted {
                return Err(format!("the certificate of {name}"));
            }
        }
        if let Some(wanted) = &step.group {
            let group = tls.0.conn.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name()));
            if group.as_ref() != Some(wanted) {
                return Err(format!("{group:?} instead of {wanted}"));
            }
        }
        if let Some(wanted) = &step.cipher {
            let cipher = tls.0.conn.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
            let cipher = cipher.unwrap_or_default();
            if !is_like(wanted, &cipher) {
                return Err(format!("{cipher} instead of {wanted}"));
            }
        }
        ask(&mut tls.0, request, is_head)
    }

    fn compare(&self, step: &Step, reply: &Reply, took: Duration) -> Result<(), String> {
        let text = reply.text();
        let fill = |line: &str| self.fill_in(line);
        let says = |wrong: bool, what: String| if wrong { Err(what) } else { Ok(()) };
        if let Some(status) = step.status {
            says(reply.status != status, format!("{} instead of {status}", reply.status))?;
        }
        for line in step.has.iter().map(|line| fill(line)) {
            says(!reply.head.lines().any(|it| is_header(&line, it)), format!("no header {line}"))?;
        }
        for name in &step.lacks {
            says(reply.header(name).is_some(), format!("a header {name}"))?;
        }
        for line in step.saw.iter().map(|line| fill(line)) {
            says(!text.lines().any(|it| is_header(&line, it)), format!("the backend did not see {line}"))?;
        }
        for start in step.hid.iter().map(|line| fill(line)) {
            let begins = |line: &str| line.to_ascii_lowercase().starts_with(&start.to_ascii_lowercase());
            says(text.lines().any(begins), format!("the backend saw {start}"))?;
        }
        if let Some(body) = step.body.as_ref().map(|body| fill(body)) {
            says(!is_like(&body, text.trim_end()), format!("another body than {body}"))?;
        }
        if let Some(length) = step.length {
            says(reply.body.len() != length, format!("{} bytes instead of {length}", reply.body.len()))?;
        }
        if let Some(most) = step.max_length {
            says(reply.body.len() > most, format!("{} bytes, more than {most}", reply.body.len()))?;
        }
        let backend = reply.header("x-backend").unwrap_or("none");
        if let Some(wanted) = &step.backend {
            says(!is_like(wanted, backend), format!("backend {backend} instead of {wanted}"))?;
        }
        let before = |name| self.last.as_ref().and_then(|last| last.header(name)).unwrap_or("none");
        if step.same_backend {
            says(before("x-backend") != backend, format!("{backend} after {}", before("x-backend")))?;
        }
        if step.other_backend {
            says(before("x-backend") == backend, format!("{backend} again"))?;
        }
        if step.same_cookie {
            let cookie = reply.header("set-cookie").unwrap_or("no cookie");
            says(before("set-cookie") != cookie, format!("{cookie} after {}", before("set-cookie")))?;
        }
        let most = step.takes_at_most.map(Duration::from_millis);
        says(most.is_some_and(|most| took > most), format!("after {took:?} only"))?;
        let least = Duration::from_millis(step.takes_at_least);
        says(took < least, format!("after {took:?} already"))
    }

    fn logged(&self, step: &Step) -> Result<(), String> {
        let agents = &self.stage.agents;
        let has = |log: String, line: &str| log.lines().any(|it| is_like(line, it));
        let (output, file) = (|| agents.read("out"), || agents.read("access.log"));
        let wanted: [(&Option<String>, &dyn Fn() -> String); 2] =
            [(&step.logged, &output), (&step.filed, &file)];
        for (line, log) in wanted {
            let Some(line) = line.as_ref().map(|line| self.fill_in(line)) else { continue };
            let found = eventually(self.patience / 5, || has(log(), &line).then_some(()));
            found.ok_or_else(|| format!("not logged: {line}"))?;
        }
        let Some(line) = step.unlogged.as_ref().map(|line| self.fill_in(line)) else { return Ok(()) };
        // That a line does not come is known after a while alone.
        let found = eventually(Duration::from_millis(500), || has(output(), &line).then_some(()));
        found.map_or(Ok(()), |()| Err(format!("logged: {line}")))
    }

    fn recorded(&self, step: &Step) -> Result<(), String> {
        let fill = |line: &String| self.fill_in(line);
        let lines: Vec<String> = step.recorded.iter().map(fill).collect();
        let without = step.unrecorded.as_ref().map(fill);
        let has_line = |request: &str, line: &str| request.lines().any(|it| is_header(line, it));
        let has = |request: &str| {
            let lacks = without.as_ref().is_none_or(|line| !has_line(request, line));
            lacks && lines.iter().all(|line| has_line(request, line))
        };
        let found = eventually(self.patience, || self.stage.props.records.any(has).then_some(()));
        found.ok_or_else(|| format!("no backend got {lines:?}"))
    }
}

//! What the head of an upstream's response comes to: the head for the client, and how the body is read and written.

use std::hint::cold_path;

use super::super::buffer::Scratch;
use super::super::compress::{self, Packing, Verdict};
use super::super::connection::Connection;
use super::super::h1::chunked::Decoder;
use super::super::h1::{Body, Response, Version};
use super::super::heads::{self, After};
use super::super::relay::Coding;
use super::{Exchange, Ready};

impl Exchange<'_, '_, '_, '_> {
    /// Decides how a response with this head goes on; also how long the head is.
    pub(super) fn ready(&self, response: &Response<'_, '_>) -> (Ready, usize) {
        let bodyless = self.outgoing.is_head || matches!(response.status, 204 | 304);
        let (body, coding) = match (bodyless, response.chunked, response.length) {
            (true, ..) => (Body::Length(0), Coding::Same),
            (false, true, _) if self.outgoing.version == Version::Http10 => {
                (Body::Chunked(Decoder::of_response()), Coding::Decoded)
            }
            (false, true, _) => (Body::Chunked(Decoder::of_response()), Coding::Same),
            (false, false, Some(length)) => (Body::Length(length), Coding::Same),
            (false, false, None) => (Body::UntilClose, Coding::Same),
        };
        let keep_upstream = response.persists && body != Body::UntilClose;
        let (verdict, packing) = self.packing(response, bodyless, &body);
        // Whoever understands chunks is told where it ends, and sees where it was cut off.
        let gets_chunks = body == Body::UntilClose
            && packing.is_none()
            && self.outgoing.version == Version::Http11
            && !self.connection.socket.is_stream();
        let packing = if gets_chunks { Some(Packing::chunks(body.clone())) } else { packing };
        let (body, coding) = match &packing {
            Some(_) => (Body::Chunked(Decoder::of_response()), Coding::Same),
            None => (body, coding),
        };
        // Where only the close can tell the end, the client's connection has to close, too. And
        // where the upload is not through, nobody knows where the next request would start.
        let delimited = body != Body::UntilClose && coding == Coding::Same;
        let is_read = self.upload.is_done() || self.replay.is_some();
        let after = match self.after {
            After::Keep if delimited && is_read && !self.connection.worker.is_draining() => After::Keep,
            _ => After::Close,
        };
        let mut head = Scratch::take();
        let Connection { client, edits, .. } = &*self.connection;
        heads::response(
            response,
            verdict,
            self.outgoing.version,
            client.own_scheme(),
            after,
            edits,
            &mut head,
        );
        if gets_chunks {
            cold_path();
            heads::add_chunks(&mut head);
        }
        let Response { status, streams, len, .. } = *response;
        let challenge = (status == 401 && self.outgoing.is_replaced(status)).then(|| challenge(response));
        (Ready { status, head, body, coding, after, keep_upstream, streams, challenge, packing }, len)
    }

    /// Whether the response is compressed, and with what.
    fn packing(
        &self,
        response: &Response<'_, '_>,
        bodyless: bool,
        body: &Body,
    ) -> (Verdict, Option<Box<Packing>>) {
        let Some(compression) = self.compression else { return (Verdict::Plain, None) };
        cold_path();
        let verdict = compress::judge(compression, self.outgoing.accepts, response, &self.connection.edits);
        let Verdict::Packed(algorithm) = verdict else { return (verdict, None) };
        let packing = match bodyless {
            true => None,
            false => Packing::new(compression, algorithm, response.length, body.clone()),
        };
        match packing {
            Some(packing) => (verdict, Some(packing)),
            None => (verdict.without_body(), None),
        }
    }
}

/// How the upstream wants to be told who the client is: whole lines.
#[cold]
fn challenge(response: &Response<'_, '_>) -> Scratch {
    let mut lines = Scratch::take();
    let named = response.block.named(|name| name.eq_ignore_ascii_case("www-authenticate"));
    for value in response.block.values(named) {
        for part in [b"WWW-Authenticate: ", value, b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    lines
}

//! Heads of a response, kept until its line is written: for `$sent_http_*`, `$upstream_http_*` and `$upstream_cookie_*`, and
//! where the format has one of them alone.

use super::super::buffer::Scratch;
use super::super::policy;
use super::super::route::Router;

/// The heads of one request's response.
pub(in crate::l7) struct Kept {
    /// What the client got.
    sent: Scratch,
    /// What the endpoint said that was asked last.
    answer: Scratch,
}

impl Default for Kept {
    fn default() -> Self {
        Self { sent: Scratch::take(), answer: Scratch::take() }
    }
}

impl Kept {
    /// Room for them, if the format asks for one.
    pub(in crate::l7) fn wanted(router: &Router) -> Option<Box<Self>> {
        let is_wanted = router.log.as_ref().is_some_and(|log| log.format.keeps_heads);
        is_wanted.then(Box::default)
    }

    /// The client gets this head, whatever follows it.
    pub(in crate::l7) fn sent(&mut self, head: &[u8]) {
        keep(head, &mut self.sent);
    }

    /// An endpoint is asked: what another one said counts no more.
    pub(in crate::l7) fn asks(&mut self) {
        self.answer.clear();
    }

    /// The endpoint answers with this head.
    pub(in crate::l7) fn answer(&mut self, head: &[u8]) {
        keep(head, &mut self.answer);
    }

    /// Values of a header that the client got.
    pub(super) fn sent_header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let found = header(&self.sent, name);
        // That a connection is kept is not said, but so.
        let stays =
            name == "connection" && !self.sent.is_empty() && header(&self.sent, name).next().is_none();
        found.chain(stays.then_some(&b"keep-alive"[..]))
    }

    /// Values of a header that the endpoint sent.
    pub(super) fn upstream_header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        header(&self.answer, name)
    }

    /// Value of a cookie that the endpoint set.
    pub(super) fn upstream_cookie(&self, name: &str) -> Option<&[u8]> {
        header(&self.answer, "set-cookie").find_map(|cookie| {
            let pair = cookie.split(|byte| *byte == b';').next()?.trim_ascii();
            policy::value_of(pair, name)
        })
    }
}

/// The head alone, of what may go on behind it.
fn keep(bytes: &[u8], kept: &mut Scratch) {
    const END: &[u8] = b"\r\n\r\n";
    let end = bytes.windows(END.len()).position(|end| end == END);
    kept.clear();
    kept.extend_from_slice(end.and_then(|end| bytes.get(..end)).unwrap_or(bytes));
}

/// Values of a header, whose name is lower case and has `-` where a variable has `_`.
fn header<'b>(head: &'b [u8], wanted: &str) -> impl Iterator<Item = &'b [u8]> {
    let is_wanted = |name: &[u8]| {
        name.len() == wanted.len()
            && name.iter().zip(wanted.bytes()).all(|(is, wanted)| match is {
                b'_' => wanted == b'-',
                is => is.eq_ignore_ascii_case(&wanted),
            })
    };
    head.split(|byte| *byte == b'\n').skip(1).filter_map(move |line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at_checked(colon)?;
        is_wanted(name).then(|| value.get(1..).unwrap_or_default().trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_heads_count_without_what_follows_them() {
        let mut kept = Kept::default();
        assert_eq!(kept.sent_header("connection").count(), 0, "nothing was sent");

        kept.answer(b"HTTP/1.1 502 Bad\r\nX-Old: 1\r\n\r\n");
        kept.asks();
        assert_eq!(kept.upstream_header("x-old").count(), 0);
        kept.answer(
            b"HTTP/1.1 200 OK\r\nX_Two: a\r\nx-two:b \r\nSet-Cookie: a=1\r\nset-cookie: sid=x=y; Path=/\r\n\r\n",
        );
        kept.sent(b"HTTP/1.1 200 OK\r\nVia: us\r\n\r\nX-Body: no\r\n\r\n");

        assert_eq!(kept.upstream_header("x-two").collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(kept.upstream_cookie("sid"), Some(&b"x=y"[..]));
        assert_eq!(kept.upstream_cookie("s"), None);
        assert_eq!(kept.sent_header("via").collect::<Vec<_>>(), [b"us"]);
        assert_eq!(kept.sent_header("x-body").count(), 0);
        assert_eq!(kept.sent_header("connection").collect::<Vec<_>>(), [b"keep-alive"]);
    }
}

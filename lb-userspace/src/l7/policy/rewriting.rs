//! Rewrites cookies and redirects of an upstream (`proxy-cookie-*`, `proxy-redirect-*`).

use super::super::h1::head::{Block, LineSet};
use super::super::variable::{self, Known};
use crate::model::l7::policy::{Rewriting, Swap};

/// What is swapped in the response to one request.
pub(super) struct Swaps {
    cookie_domain: Option<Pair>,
    cookie_path: Option<Pair>,
    redirect: Option<Pair>,
}

struct Pair {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Pair {
    fn of(swap: &Swap, known: Known<'_, '_, '_>) -> Self {
        let (mut from, mut to) = (Vec::new(), Vec::new());
        variable::fill_in(&swap.from, known, &mut from);
        variable::fill_in(&swap.to, known, &mut to);
        // A decoded path may hold line ends.
        to.retain(|byte| !matches!(byte, b'\r' | b'\n' | 0));
        Self { from, to }
    }

    /// The part is what is looked for, but for a dot in front and the case of its letters.
    fn whole(&self, part: &[u8], out: &mut Vec<u8>) {
        let (dot, domain) = match part.strip_prefix(b".") {
            Some(domain) => (&b"."[..], domain),
            None => (&b""[..], part),
        };
        let from = self.from.strip_prefix(b".").unwrap_or(&self.from);
        let to = self.to.strip_prefix(b".").unwrap_or(&self.to);
        out.extend_from_slice(dot);
        out.extend_from_slice(if domain.eq_ignore_ascii_case(from) { to } else { domain });
    }

    /// The part begins with it.
    fn start(&self, part: &[u8], out: &mut Vec<u8>) {
        match part.strip_prefix(self.from.as_slice()) {
            Some(rest) => {
                out.extend_from_slice(&self.to);
                out.extend_from_slice(rest);
            }
            None => out.extend_from_slice(part),
        }
    }
}

impl Swaps {
    pub(super) fn of(rewriting: &Rewriting, known: Known<'_, '_, '_>) -> Self {
        let Rewriting { cookie_domain, cookie_path, redirect } = rewriting;
        let pair = |swap: &Option<Swap>| swap.as_ref().map(|swap| Pair::of(swap, known));
        Self { cookie_domain: pair(cookie_domain), cookie_path: pair(cookie_path), redirect: pair(redirect) }
    }

    /// Lines that may have to be written anew.
    pub(super) fn lines(&self, block: &Block<'_, '_>) -> LineSet {
        let cookies = self.cookie_domain.is_some() || self.cookie_path.is_some();
        let redirects = self.redirect.is_some();
        block.named(|name| match name.len() {
            10 => cookies && name.eq_ignore_ascii_case("set-cookie"),
            7 => redirects && name.eq_ignore_ascii_case("refresh"),
            8 => redirects && name.eq_ignore_ascii_case("location"),
            _ => false,
        })
    }

    /// Writes those of the lines anew.
    pub(super) fn write(&self, block: &Block<'_, '_>, lines: LineSet, out: &mut Vec<u8>) {
        for (name, value) in block.chosen(lines) {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            match (name.len(), &self.redirect) {
                (10, _) => self.cookie(value, out),
                (8, Some(redirect)) => redirect.start(value, out),
                (_, Some(redirect)) => {
                    let at = value.windows(4).position(|url| url.eq_ignore_ascii_case(b"url="));
                    let (before, url) = value.split_at(at.map_or(value.len(), |at| at + 4));
                    out.extend_from_slice(before);
                    redirect.start(url, out);
                }
                (_, None) => out.extend_from_slice(value),
            }
            out.extend_from_slice(b"\r\n");
        }
    }

    /// The cookie itself stays as it is, and so does every other attribute.
    fn cookie(&self, value: &[u8], out: &mut Vec<u8>) {
        for (number, attribute) in value.split(|byte| *byte == b';').enumerate() {
            if number > 0 {
                out.push(b';');
            }
            let equals = attribute.iter().position(|byte| *byte == b'=').filter(|_| number > 0);
            let Some((name, text)) = equals.and_then(|at| attribute.split_at_checked(at + 1)) else {
                out.extend_from_slice(attribute);
                continue;
            };
            out.extend_from_slice(name);
            let is = |known: &[u8]| name.trim_ascii_start().eq_ignore_ascii_case(known);
            match (&self.cookie_domain, &self.cookie_path) {
                (Some(domain), _) if is(b"domain=") => domain.whole(text, out),
                (_, Some(path)) if is(b"path=") => path.start(text, out),
                _ => out.extend_from_slice(text),
            }
        }
    }
}

pub(super) fn explain(rewriting: &Rewriting) -> Vec<(&'static str, String)> {
    let Rewriting { cookie_domain, cookie_path, redirect } = rewriting;
    let whole = |Swap { from, to }: &Swap| format!("Domain={from} of a cookie becomes {to}");
    let start = |what: &str, Swap { from, to }: &Swap| {
        format!("{what} that begins with {from} begins with {to} instead")
    };
    let steps = [
        ("proxy-cookie-domain", cookie_domain.as_ref().map(whole)),
        ("proxy-cookie-path", cookie_path.as_ref().map(|swap| start("the Path of a cookie", swap))),
        ("proxy-redirect-from", redirect.as_ref().map(|swap| start("a Location or Refresh", swap))),
    ];
    steps.into_iter().filter_map(|(name, detail)| Some((name, detail?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::expression::Expression;

    fn pair(from: &str, to: &str) -> Option<Pair> {
        Some(Pair { from: from.into(), to: to.into() })
    }

    #[test]
    fn only_the_named_attributes_of_a_cookie_change() {
        let swaps = Swaps {
            cookie_domain: pair("internal.example", "www.example.com"),
            cookie_path: pair("/app/", "/"),
            redirect: None,
        };
        let cases = [
            ("a=b", "a=b"),
            ("a=b; Path=/app/x; HttpOnly", "a=b; Path=/x; HttpOnly"),
            ("a=b;path=/app/;domain=.Internal.Example", "a=b;path=/;domain=.www.example.com"),
            ("a=b; Domain=other.example; Path=/other", "a=b; Domain=other.example; Path=/other"),
            ("path=/app/; Secure", "path=/app/; Secure"),
            ("a=b; Domain=sub.internal.example", "a=b; Domain=sub.internal.example"),
        ];
        for (cookie, expected) in cases {
            let mut out = Vec::new();
            swaps.cookie(cookie.as_bytes(), &mut out);
            assert_eq!(String::from_utf8_lossy(&out), expected, "{cookie}");
        }
    }

    #[test]
    fn a_person_is_told_what_becomes_of_what() {
        let swap = |from: &str, to: &str| {
            let text = |text| Expression::parse(text).expect("known variables");
            Some(Swap { from: text(from), to: text(to) })
        };
        let (cookie_domain, redirect) = (swap("internal", "$host"), swap("http://pod/", "$scheme://$host/"));

        let steps = explain(&Rewriting { cookie_domain, cookie_path: swap("/app/", "/"), redirect });

        let told = |name, detail: &str| (name, detail.to_owned());
        let expected = [
            told("proxy-cookie-domain", "Domain=internal of a cookie becomes ${host}"),
            told("proxy-cookie-path", "the Path of a cookie that begins with /app/ begins with / instead"),
            told(
                "proxy-redirect-from",
                "a Location or Refresh that begins with http://pod/ begins with ${scheme}://${host}/ instead",
            ),
        ];
        assert_eq!(steps, expected);
        assert_eq!(explain(&Rewriting::default()), []);
    }
}

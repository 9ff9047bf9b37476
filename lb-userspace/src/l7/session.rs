//! The cookie that leads a client back to its endpoint, `<key>|<upstream>`.
//!
//! Pure but for [`of`], which reads the clock. A cookie means the same to every worker and every process, because it is read with what
//! all of them know: the name and the endpoints of the upstream. In persistent mode it is what
//! ingress-nginx makes of those, so sessions survive the move from there to here and back.

use std::collections::HashMap;
use std::hint::cold_path;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use md5::{Digest, Md5};

use super::balance::{Random, Ring, hash};
use super::buffer::Scratch;
use super::calendar::Moment;
use super::filters::Scheme;
use super::policy::Headers;
use super::route::{Labels, Route, UpstreamEntry};
use crate::model::session::{Affinity, Mode, OnFailure, SameSite, Secure, SessionCookie};
use crate::model::upstream::UpstreamName;

/// New keys that are tried for an endpoint which may be asked.
const DRAWS: usize = 20;

/// How the sessions of one upstream are kept.
#[derive(Debug)]
pub(super) struct Sessions {
    affinity: Affinity,
    /// Second part of its cookies.
    upstream: String,
    keys: Keys,
}

/// From the first part of a cookie to an endpoint, by its index.
#[derive(Debug)]
enum Keys {
    Balanced(Ring),
    Persistent {
        /// That of each endpoint.
        of: Vec<String>,
        to: HashMap<String, usize>,
    },
}

/// A session that begins, or moves: the first part of its cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key(Box<str>);

/// What a request brings along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cookie<'a> {
    key: &'a [u8],
    upstream: &'a [u8],
}

impl Sessions {
    pub(super) fn new(
        name: &UpstreamName,
        affinity: &Affinity,
        endpoints: &[SocketAddr],
        weights: &[u32],
    ) -> Self {
        let UpstreamName(name) = name;
        let keys = match affinity.mode {
            Mode::Balanced => Keys::Balanced(Ring::new(endpoints, weights)),
            Mode::Persistent => {
                let of: Vec<_> =
                    endpoints.iter().map(|endpoint| digest(&format!("{name}{endpoint}"))).collect();
                let to = of.iter().cloned().enumerate().map(|(index, key)| (key, index)).collect();
                Keys::Persistent { of, to }
            }
        };
        Self { affinity: affinity.clone(), upstream: digest(&format!("{}{name}", digest(name))), keys }
    }

    /// The request belongs to a session of this upstream, whatever became of the endpoint.
    pub(super) fn holds(&self, headers: &Headers<'_>) -> bool {
        self.cookie(headers).is_some_and(|cookie| cookie.upstream == self.upstream.as_bytes())
    }

    /// Where the session of the request is.
    pub(super) fn endpoint(&self, headers: &Headers<'_>) -> Option<usize> {
        let Cookie { key, .. } = self.cookie(headers)?;
        match &self.keys {
            Keys::Balanced(ring) => ring.from(hash(key)).next(),
            Keys::Persistent { to, .. } => to.get(std::str::from_utf8(key).ok()?).copied(),
        }
    }

    /// A cookie of this upstream goes before one that another left under the same name.
    fn cookie<'a>(&self, headers: &Headers<'a>) -> Option<Cookie<'a>> {
        let ours = |pair: &'a [u8]| parse(pair, &self.affinity.cookie.name);
        let of_upstream = |cookie: &Cookie<'_>| cookie.upstream == self.upstream.as_bytes();
        let own = headers.find_cookie(|pair| ours(pair).filter(of_upstream));
        own.or_else(|| headers.find_cookie(ours))
    }

    /// Whether a session whose endpoint failed moves on.
    pub(super) fn moves(&self) -> bool {
        self.affinity.on_failure == OnFailure::Move
    }

    /// Name of the cookie.
    pub(super) fn cookie_name(&self) -> &str {
        &self.affinity.cookie.name
    }

    /// Draws keys until one leads to an endpoint that is open; the last one drawn if none does.
    /// `None`: endpoints are not found by keys here, but keys by endpoints.
    pub(super) fn draw(&self, random: &Random, is_open: impl Fn(usize) -> bool) -> Option<(usize, Key)> {
        let Keys::Balanced(ring) = &self.keys else { return None };
        let mut drawn = None;
        for _ in 0..DRAWS {
            let key = format!("{:016x}", random.word());
            let index = ring.from(hash(key.as_bytes())).next()?;
            drawn = Some((index, Key(key.into())));
            if is_open(index) {
                break;
            }
        }
        drawn
    }

    /// The key of an endpoint, where it has one.
    pub(super) fn key(&self, index: usize) -> Option<Key> {
        match &self.keys {
            Keys::Balanced(_) => None,
            Keys::Persistent { of, .. } => of.get(index).map(|key| Key(key.as_str().into())),
        }
    }

    /// Whether sessions begin at this host and path.
    pub(super) fn begin_at(&self, host: &str, path: &str) -> bool {
        self.affinity.places.iter().any(|(known, at)| known == host && at == path)
    }

    /// The whole header line, with what [`Self::attributes`] wrote.
    pub(super) fn line(&self, key: &Key, attributes: &[u8], out: &mut Vec<u8>) {
        let (name, Key(key), upstream) = (self.cookie_name(), key, &self.upstream);
        let _ = write!(out, "Set-Cookie: {name}={key}|{upstream}");
        out.extend_from_slice(attributes);
        out.extend_from_slice(b"\r\n");
    }

    /// Everything behind the value. `path`: the location's; `now`: seconds since the epoch.
    pub(super) fn attributes(
        &self,
        path: &str,
        scheme: Scheme,
        headers: &Headers<'_>,
        now: u64,
        out: &mut Vec<u8>,
    ) {
        let SessionCookie { name: _, path: own, domain, expires, max_age, secure, same_site } =
            &self.affinity.cookie;
        out.extend_from_slice(b"; Path=");
        let path = own.as_deref().unwrap_or(path).bytes();
        out.extend(path.filter(|byte| !byte.is_ascii_control() && *byte != b';'));
        if let Some(seconds) = expires {
            out.extend_from_slice(b"; Expires=");
            Moment::of(now.saturating_add_signed(*seconds)).cookie_date(out);
        }
        if let Some(seconds) = max_age {
            let _ = write!(out, "; Max-Age={seconds}");
        }
        if let Some(domain) = domain {
            let _ = write!(out, "; Domain={domain}");
        }
        if *secure == Secure::Always || scheme == Scheme::Https {
            out.extend_from_slice(b"; Secure");
        }
        out.extend_from_slice(b"; HttpOnly");
        out.extend_from_slice(match same_site {
            None => b"",
            Some(SameSite::Strict) => b"; SameSite=Strict",
            Some(SameSite::Lax) => b"; SameSite=Lax",
            Some(SameSite::NoneIfUnderstood) if mistakes_none(headers) => b"",
            Some(SameSite::None | SameSite::NoneIfUnderstood) => b"; SameSite=None",
        });
    }
}

/// Where the request's session is, and the attributes of the cookie that it may get. `scheme`: of the
/// connection to us, whatever those in front say of theirs.
pub(super) fn of(
    upstream: Option<&UpstreamEntry>,
    route: &Route,
    headers: &Headers<'_>,
    scheme: Scheme,
) -> (Option<usize>, Option<Box<Scratch>>) {
    let Some(sessions) = upstream.and_then(|entry| entry.sessions.as_ref()) else { return (None, None) };
    cold_path();
    let endpoint = sessions.endpoint(headers);
    let may_begin = endpoint.is_none() || sessions.moves();
    let Labels { host, path, .. } = &*route.labels;
    let cookie = (may_begin && sessions.begin_at(host, path)).then(|| {
        let mut attributes = Scratch::take();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        sessions.attributes(path, scheme, headers, now, &mut attributes);
        Box::new(attributes)
    });
    (endpoint, cookie)
}

/// `name=key|upstream`, in quotes or not; a second part may be missing.
fn parse<'a>(pair: &'a [u8], name: &str) -> Option<Cookie<'a>> {
    let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    let mut parts = value.split(|byte| *byte == b'|');
    let key = parts.next().filter(|key| !key.is_empty())?;
    Some(Cookie { key, upstream: parts.next().unwrap_or_default() })
}

/// Browsers that take SameSite=None for Strict, or refuse the cookie: Chrome 40 to 69, everything on
/// iOS 12, Safari on macOS 10.14.
fn mistakes_none(headers: &Headers<'_>) -> bool {
    let agent = headers.first("user-agent").unwrap_or_default();
    let has = |words: &[u8]| agent.windows(words.len()).any(|part| part == words);
    let old_chrome = agent.windows(b"Chrome/50.".len()).any(|part| {
        matches!(part, [b'C', b'h', b'r', b'o', b'm', b'e', b'/', b'4'..=b'6', b'0'..=b'9', b'.'])
    });
    let ios_12 = has(b"CPU iPhone OS 12") || has(b"iPad; CPU OS 12");
    let old_safari = has(b"Macintosh") && has(b"Intel Mac OS X 10_14") && has(b"Safari") && !has(b"Chrome");
    old_chrome || ios_12 || old_safari
}

/// MD5 as hex. It disguises addresses that nobody should read; nothing depends on its strength.
fn digest(text: &str) -> String {
    let mut hex = Vec::with_capacity(32);
    for byte in Md5::digest(text.as_bytes()) {
        let _ = write!(hex, "{byte:02x}");
    }
    String::from_utf8(hex).unwrap_or_default()
}

#[cfg(test)]
mod tests;

//! A variant of an upstream that serves a part of its requests (`canary-*`).

use super::l7::Pattern;
use super::upstream::UpstreamName;

/// Who serves a part of an upstream's requests, and which part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// Serves them; without endpoints it is passed over.
    pub upstream: UpstreamName,
    /// Which requests.
    pub rules: Rules,
    /// Whether a session may change sides.
    pub sessions: Sessions,
}

/// What the session of a request means for its side (`affinity-canary-behavior`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sessions {
    /// It stays on the side where it began, whatever the rules say; the canary keeps sessions as its
    /// primary does.
    #[default]
    Stay,
    /// The rules decide about every request.
    DecidedAnew,
}

/// Which requests go to a canary: the first that decides, in this order. None of them: no request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// `canary-by-header*`.
    pub header: Option<HeaderRule>,
    /// `canary-by-cookie`: `always` or `never` decide.
    pub cookie: Option<String>,
    /// `canary-weight`, `canary-weight-total`.
    pub weight: Weight,
}

/// What a header of the request decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderRule {
    /// Name of the header.
    pub name: String,
    /// Which of its values.
    pub value: HeaderValue,
}

/// Values of a header that decide; on others the next rule is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderValue {
    /// `always` sends to the canary, `never` does not.
    AlwaysOrNever,
    /// This one sends to the canary, letter by letter.
    Equal(String),
    /// What this is found in sends to the canary.
    Found(Pattern),
    /// A pattern that does not compile: whoever sends the header stays with the primary.
    Unusable,
}

/// `part` of `of` requests, drawn at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    /// Nobody at 0, everybody from `of` on.
    pub part: u32,
    /// At least 100.
    pub of: u32,
}

impl Weight {
    /// ingress-nginx takes a smaller total for this one.
    pub const LEAST_TOTAL: u32 = 100;
}

impl Default for Weight {
    fn default() -> Self {
        Self { part: 0, of: Self::LEAST_TOTAL }
    }
}

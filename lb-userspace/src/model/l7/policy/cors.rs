//! `enable-cors` and `cors-*`.

/// Which origins may read the answers, and what they are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Who is allowed.
    pub origins: Origins,
    /// `Access-Control-Allow-Methods`.
    pub methods: String,
    /// `Access-Control-Allow-Headers`.
    pub headers: String,
    /// Whether `Access-Control-Allow-Credentials: true` is sent.
    pub credentials: bool,
    /// `Access-Control-Expose-Headers`.
    pub expose: Option<String>,
    /// `Access-Control-Max-Age`, seconds.
    pub max_age: i32,
}

/// Allowed origins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// `*`: also requests that name none.
    Any,
    /// Those that one of these takes; an empty list allows nobody.
    Listed(Vec<Origin>),
}

/// One entry of the list; lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// This one, or `null`.
    Exact(String),
    /// `scheme://*.domain[:port]`: exactly one label where the star is.
    OneLabel {
        /// Up to and with `://`.
        scheme: String,
        /// What follows the star, with its dot.
        rest: String,
    },
}

impl Origin {
    /// Whether the Origin header is meant; letters of both cases are one.
    pub fn takes(&self, origin: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => origin.eq_ignore_ascii_case(exact.as_bytes()),
            Self::OneLabel { scheme, rest } => {
                let Some((start, after)) = origin.split_at_checked(scheme.len()) else { return false };
                let Some(label) = after.len().checked_sub(rest.len()) else { return false };
                let Some((label, end)) = after.split_at_checked(label) else { return false };
                start.eq_ignore_ascii_case(scheme.as_bytes())
                    && end.eq_ignore_ascii_case(rest.as_bytes())
                    && !label.is_empty()
                    && label.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_compared_as_a_whole_and_a_star_is_one_label() {
        let exact = Origin::Exact("https://a.example.com:8443".to_owned());
        let below = Origin::OneLabel { scheme: "https://".to_owned(), rest: ".example.com".to_owned() };
        let cases = [
            (&exact, "https://a.example.com:8443", true),
            (&exact, "HTTPS://A.example.com:8443", true),
            (&exact, "https://a.example.com", false),
            (&exact, "http://a.example.com:8443", false),
            (&exact, "evil https://a.example.com:8443", false),
            (&below, "https://a.example.com", true),
            (&below, "https://A-1.Example.com", true),
            (&below, "https://a.b.example.com", false),
            (&below, "https://.example.com", false),
            (&below, "https://example.com", false),
            (&below, "https://a.example.com:8443", false),
            (&below, "http://a.example.com", false),
            (&below, "https://evil.com/.example.com", false),
            (&below, "https://a.example.com.evil.com", false),
            (&below, "", false),
        ];
        for (origin, text, expected) in cases {
            assert_eq!(origin.takes(text.as_bytes()), expected, "{origin:?} {text}");
        }
    }
}

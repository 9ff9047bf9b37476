//! How redirects of our own are written.

/// Of one location. Default: ingress-nginx's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectStyle {
    /// `http-redirect-code`: status of the redirect to https.
    pub status: u16,
    /// `preserve-trailing-slash`: the redirect to https keeps a slash at the end.
    pub keeps_slash: bool,
    /// `use-port-in-redirects`: redirects name our port.
    pub names_port: bool,
    /// `relative-redirects`: where nothing but the path changes, only that is sent.
    pub is_relative: bool,
}

impl Default for RedirectStyle {
    fn default() -> Self {
        Self { status: 308, keeps_slash: false, names_port: false, is_relative: false }
    }
}

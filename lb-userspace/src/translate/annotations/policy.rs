//! What the annotations of one Ingress come to, and what of it holds at a path.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::config::Settings;
use super::super::findings::About;
use super::super::upstreams::Reach;
use super::super::view::View;
use super::super::{checks, client_auth, mode};
use super::honour::honour;
use super::policies::{self, Source};
use super::redirects::Elsewhere;
use crate::model::ObjectName;
use crate::model::canary::{Rules, Sessions};
use crate::model::l7::{Buffers, FastCgi, Mode, Policies, RedirectStyle, TlsVersions};
use crate::model::session::Affinity;
use crate::model::upstream::{Balance, Protocol, Retry, UpstreamName};

/// What the annotations of one Ingress ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::translate) struct Policy {
    /// Something must fail closed: every location answers 503.
    pub denied: bool,
    /// What it has instead of an answer may be what guards its hosts, whose every location answers 503.
    pub closes_hosts: bool,
    /// It is a canary, and takes these requests.
    pub canary: Option<Rules>,
    pub use_regex: bool,
    pub mode: Mode,
    pub rewrite_target: Option<String>,
    pub ssl_redirect: bool,
    pub force_ssl_redirect: bool,
    /// How redirects of ours are written.
    pub redirects: Arc<RedirectStyle>,
    /// `no-tls-redirect-locations`: locations whose paths begin so are served over plain HTTP.
    pub plain: Vec<String>,
    pub app_root: Option<String>,
    /// `server-alias`, as written.
    pub aliases: Vec<String>,
    /// `from-to-www-redirect`.
    pub redirects_www: bool,
    /// `auth-tls-*`, where there is an `auth-tls-secret`.
    pub client_auth: Option<client_auth::Written>,
    pub ssl_ciphers: Option<String>,
    pub ssl_prefer_server_ciphers: Option<bool>,
    pub ssl_passthrough: bool,
    pub redirect: Option<Elsewhere>,
    pub connect_timeout: Option<Duration>,
    pub send_timeout: Option<Duration>,
    pub read_timeout: Option<Duration>,
    /// `proxy-body-size`, in bytes: 0 sets no limit, `None` leaves it to the ConfigMap.
    pub body_bytes: Option<u64>,
    pub buffers: Buffers,
    pub protocol: Protocol,
    pub fastcgi: Option<Arc<FastCgi>>,
    pub retry: Retry,
    pub proxy_ssl: Option<ProxySsl>,
    /// `load-balance`; `None` leaves it to others.
    pub load_balance: Option<Balance>,
    /// `upstream-hash-by`, which counts more.
    pub hash_by: Option<Balance>,
    /// `service-upstream`.
    pub reach: Reach,
    /// `upstream-keepalive-connections`.
    pub idle: Option<usize>,
    /// `upstream-health-check-*`.
    pub check: Option<checks::Written>,
    /// `affinity`, without the places where its cookie is handed out.
    pub affinity: Option<Affinity>,
    /// `affinity-canary-behavior`.
    pub at_canary: Sessions,
    pub logged: bool,
    /// `enable-rewrite-log`.
    pub logs_rewrites: bool,
    /// What the locations do beyond proxying.
    pub policies: Option<Arc<Policies>>,
    /// `default-backend`: a Service beside the Ingress.
    pub default_backend: Option<String>,
    /// The Service that is asked whether a request may go on, where it is one of ours.
    pub asks: Option<(ObjectName, u16)>,
    /// The Service that gets copies of requests, where it is one of ours.
    pub copies_to: Option<(ObjectName, u16)>,
    /// `no-auth-locations`: paths that begin so ask nobody to show anything.
    pub unguarded: Vec<String>,
}

/// `proxy-ssl-*`, which mean nothing without the Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::translate) struct ProxySsl {
    /// As written: `name` or `namespace/name`.
    pub secret: String,
    /// It may be of another namespace.
    pub crosses: bool,
    pub verify: bool,
    pub depth: u32,
    pub name: Option<String>,
    pub send_name: bool,
    pub versions: TlsVersions,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            denied: false,
            closes_hosts: false,
            canary: None,
            use_regex: false,
            mode: Mode::Compat,
            rewrite_target: None,
            ssl_redirect: true,
            force_ssl_redirect: false,
            redirects: Arc::default(),
            plain: Vec::new(),
            app_root: None,
            aliases: Vec::new(),
            redirects_www: false,
            client_auth: None,
            ssl_ciphers: None,
            ssl_prefer_server_ciphers: None,
            ssl_passthrough: false,
            redirect: None,
            connect_timeout: None,
            send_timeout: None,
            read_timeout: None,
            body_bytes: None,
            buffers: Buffers::default(),
            protocol: Protocol::Http,
            fastcgi: None,
            retry: Retry::default(),
            proxy_ssl: None,
            load_balance: None,
            hash_by: None,
            reach: Reach::Endpoints,
            idle: None,
            check: None,
            affinity: None,
            at_canary: Sessions::default(),
            logged: true,
            logs_rewrites: false,
            policies: None,
            default_backend: None,
            asks: None,
            copies_to: None,
            unguarded: Vec::new(),
        }
    }
}

impl Policy {
    /// The location of this path redirects to https, on a host that has TLS or has not.
    pub(in crate::translate) fn redirects_to_https(&self, path: &str, tls: bool) -> bool {
        let wants = self.force_ssl_redirect || (tls && self.ssl_redirect);
        wants && !self.plain.iter().any(|start| path.starts_with(start))
    }

    /// What the location of this path does beyond proxying.
    pub(in crate::translate) fn policies_at(&self, path: &str) -> Option<Arc<Policies>> {
        let policies = self.policies.as_ref()?;
        let is_guarded =
            policies.auth.is_some() && !self.unguarded.iter().any(|start| path.starts_with(start));
        if is_guarded || policies.auth.is_none() {
            return Some(Arc::clone(policies));
        }
        let open = Policies { auth: None, ..Policies::clone(policies) };
        (open != Policies::default()).then(|| Arc::new(open))
    }

    /// Who is asked whether a request may go on is asked at this upstream.
    pub(in crate::translate) fn ask_at(&mut self, upstream: UpstreamName) {
        let policies = self.policies.as_mut().map(Arc::make_mut);
        let auth = policies.and_then(|policies| policies.auth.as_mut());
        if let Some(external) = auth.and_then(|auth| auth.external.as_mut()) {
            external.upstream = Some(upstream);
        }
    }

    /// Errors are worded by this upstream, and it stands in for those without endpoints.
    pub(in crate::translate) fn errors_to(&mut self, upstream: UpstreamName) {
        let policies = Arc::make_mut(self.policies.get_or_insert_default());
        policies.errors.get_or_insert_default().backend = Some(upstream);
    }

    /// Errors are worded by the default backend of all.
    pub(in crate::translate) fn has_plain_error_pages(&self) -> bool {
        let errors = self.policies.as_ref().and_then(|policies| policies.errors.as_ref());
        errors.is_some_and(|errors| errors.backend.is_none())
    }

    /// Copies of requests go to this upstream.
    pub(in crate::translate) fn copy_to(&mut self, upstream: UpstreamName) {
        let policies = self.policies.as_mut().map(Arc::make_mut);
        if let Some(mirror) = policies.and_then(|policies| policies.mirror.as_mut()) {
            mirror.upstream = Some(upstream);
        }
    }

    /// That of a place without an Ingress.
    pub(in crate::translate) fn of_settings(
        settings: &Settings,
        objects: &View<'_>,
        about: &mut About<'_>,
    ) -> Self {
        let (mut policy, valid) = (Self::default(), BTreeMap::new());
        honour(&valid, settings, &mut policy);
        policy.mode = mode::of_settings(settings);
        let source = Source { valid: &valid, settings, objects, namespace: "", name: "", mode: policy.mode };
        policies::read(&source, &mut policy, about);
        policy
    }
}

//! TLS towards clients: what each name is offered, swapped under running connections.
//!
//! Most hosts share one configuration and differ in their certificate only. A host that asks for
//! client certificates or has ciphers of its own has a configuration of its own.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerSessionMemoryCache, StoresServerSessions,
};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::client_auth::Authority;
use super::kept_sessions::KeptSessions;
use super::tickets::{Scope, TicketKeys, Ticketer, Tickets};
use super::{Error, keys};
use crate::model::l7::{
    Aliases, Certificate, Cipher, CipherOrder, Ciphers, ClientAuth, Group, HostMatch, L7, Pattern,
    Resumption, Server, TlsPolicy, TlsVersions, Trust, UnknownName,
};
use crate::model::{ObjectName, Shared};

/// Name ingress-nginx's own stand-in certificate carries; scripts look for it.
const FAKE_NAME: &str = "Kubernetes Ingress Controller Fake Certificate";

/// The TLS side of every worker.
pub(super) struct Tls {
    fake: Arc<CertifiedKey>,
    tickets: Arc<Tickets>,
    current: RwLock<Arc<Published>>,
}

/// What clients are offered from the next handshake on. What a snapshot does not change is shared with the
/// one before.
pub(super) struct Published {
    /// Of which snapshot.
    of: L7,
    certificates: Arc<BySni>,
    /// What a host without settings of its own offers.
    base: Arc<ServerConfig>,
    /// Every host, by its name; with what it offers if that differs.
    exact: Arc<HashMap<String, Option<Own>>>,
    /// By the suffix after `*.`.
    wildcard: Arc<HashMap<String, Option<Own>>>,
    any: Option<Own>,
    unknown: UnknownName,
    /// Sessions that are kept here, by what they belong to.
    sessions: Sessions,
}

/// What one host offers.
#[derive(Clone)]
struct Own {
    config: Arc<ServerConfig>,
    authority: Option<Arc<Authority>>,
}

/// The answer to a ClientHello.
pub(super) enum Offer {
    /// The handshake goes on with this; its client is judged by the authority, if there is one.
    Handshake { config: Arc<ServerConfig>, authority: Option<Arc<Authority>> },
    /// There is no such name, and nothing is to be shown.
    UnknownName,
}

impl Tls {
    /// Ready to serve with a generated certificate until [`Tls::publish`].
    pub(super) fn new(inherited: Option<TicketKeys>) -> Result<Self, Error> {
        let fake = fake_certificate()?;
        let tickets = Arc::new(Tickets::new(inherited)?);
        let certificates = Arc::new(BySni::empty(&fake));
        let policy = TlsPolicy::default();
        let mut maker = Maker::new(&policy, &tickets, &certificates, Sessions::default());
        let base = maker.config(&Ciphers::default(), None).map_err(|error| Error::Tls(error.to_string()))?;
        let current = Published {
            of: L7::default(),
            certificates: Arc::clone(&certificates),
            base,
            exact: Arc::default(),
            wildcard: Arc::default(),
            any: None,
            unknown: UnknownName::Default,
            sessions: Sessions::new(),
        };
        Ok(Self { fake, tickets, current: RwLock::new(Arc::new(current)) })
    }

    /// For the process that takes over.
    pub(super) fn ticket_keys(&self) -> TicketKeys {
        self.tickets.keys()
    }

    /// What there is to offer now.
    pub(super) fn current(&self) -> Arc<Published> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves the certificates and authorities of a snapshot from the next handshake on. What rustls
    /// does not take (the translation checked it, so hardly ever) leaves a host to the default
    /// certificate, and closes one that asks for client certificates.
    pub(super) fn publish(&self, l7: &L7) {
        let before = self.current();
        let certificates = self.certificates(l7, &before);
        let policy = &l7.edge.tls;
        // Every configuration holds the certificates.
        let is_other = !Arc::ptr_eq(&certificates, &before.certificates) || *policy != before.of.edge.tls;
        let mut maker = Maker::new(policy, &self.tickets, &certificates, before.sessions.clone());
        maker.before = Some(&before);
        let (mut exact, mut wildcard, mut any) =
            (Arc::clone(&before.exact), Arc::clone(&before.wildcard), before.any.clone());
        let mut base = Arc::clone(&before.base);
        let none = Shared::default();
        let mut known = &before.of.servers;
        if is_other {
            match maker.config(&policy.ciphers, None) {
                Ok(config) => base = config,
                Err(error) => {
                    tracing::error!(%error, "tls settings refused by the tls library; those of before stay");
                }
            }
            ((exact, wildcard, any), known) = ((Arc::default(), Arc::default(), None), &none);
        }
        for change in l7.servers.changes(known) {
            let own = change.now.map(|server| maker.own(change.key, server));
            match change.key {
                HostMatch::Exact(name) => offer(&mut exact, name, own),
                HostMatch::Wildcard(suffix) => offer(&mut wildcard, suffix, own),
                HostMatch::Any => any = own.flatten(),
            }
        }
        let mut sessions = maker.used;
        if !is_other && !before.sessions.is_empty() {
            // Those of hosts that did not change. An authority that is gone takes its sessions with it.
            let authority = |own: &Own| own.authority.as_ref().map(|authority| authority.scope());
            let owns = exact.values().chain(wildcard.values()).chain([&any]).flatten();
            let scopes: HashSet<_> = owns.filter_map(authority).chain([Scope::default()]).collect();
            let kept = before.sessions.iter().filter(|((scope, _), _)| scopes.contains(scope));
            sessions.extend(kept.map(|(place, store)| (*place, Arc::clone(store))));
        }
        let (of, unknown) = (l7.clone(), policy.unknown_name);
        let next = Published { of, certificates, base, exact, wildcard, any, unknown, sessions };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    /// Those of before, as far as they are in the snapshot.
    fn certificates(&self, l7: &L7, before: &Published) -> Arc<BySni> {
        let L7 { certificates, default_certificate, .. } = &before.of;
        let mut next = Arc::clone(&before.certificates);
        if l7.certificates == *certificates && l7.default_certificate == *default_certificate {
            return next;
        }
        let by_sni = Arc::make_mut(&mut next);
        let default = l7.default_certificate.as_ref().and_then(|certificate| by_sni.parsed(certificate));
        by_sni.default = default.unwrap_or_else(|| Arc::clone(&self.fake));
        for change in l7.certificates.changes(certificates) {
            let key = change.now.and_then(|certificate| by_sni.parsed(certificate));
            match change.key {
                HostMatch::Exact(name) => place(&mut by_sni.exact, name, key),
                HostMatch::Wildcard(suffix) => place(&mut by_sni.wildcard, suffix, key),
                HostMatch::Any => {}
            }
        }
        let shown = by_sni.exact.values().chain(by_sni.wildcard.values()).chain([&by_sni.default]);
        let shown: HashSet<_> = shown.map(Arc::as_ptr).collect();
        by_sni.parsed.retain(|_, (_, key)| shown.contains(&Arc::as_ptr(key)));
        next
    }
}

/// Most hosts offer nothing of their own, before and after: then all of it stays shared.
fn offer(hosts: &mut Arc<HashMap<String, Option<Own>>>, name: &str, own: Option<Option<Own>>) {
    if !matches!((hosts.get(name), &own), (Some(None), Some(None)) | (None, None)) {
        place(Arc::make_mut(hosts), name, own);
    }
}

fn place<T>(map: &mut HashMap<String, T>, name: &str, value: Option<T>) {
    match value {
        Some(value) => drop(map.insert(name.to_owned(), value)),
        None => drop(map.remove(name)),
    }
}

impl Published {
    /// What a host offers that differs from what others do.
    fn own(&self, host: &HostMatch) -> Option<&Own> {
        match host {
            HostMatch::Exact(name) => self.exact.get(name)?.as_ref(),
            HostMatch::Wildcard(suffix) => self.wildcard.get(suffix)?.as_ref(),
            HostMatch::Any => self.any.as_ref(),
        }
    }

    /// The authority that a host has here.
    fn authority(&self, host: &HostMatch) -> Option<&Arc<Authority>> {
        self.own(host)?.authority.as_ref()
    }

    /// Whose alias the name is, as requests find it.
    fn aliased(&self, name: &str) -> Option<&HostMatch> {
        let Aliases { exact, below, patterns } = &self.of.aliases;
        let below = || name.match_indices('.').find_map(|(dot, _)| below.get(name.get(dot + 1..)?));
        let is_like = |(pattern, _): &&(Pattern, _)| pattern.regex().is_match(name.as_bytes());
        let pattern = || patterns.iter().find(is_like).map(|(_, host)| host);
        exact.get(name).or_else(below).or_else(pattern)
    }

    /// Exact name, alias, then a wildcard one label deep, then the default: as requests find their host.
    pub(super) fn offer(&self, name: Option<&str>) -> Offer {
        let known = name.and_then(|name| {
            let alias = || self.aliased(name).map(|host| self.own(host));
            let wildcard = || self.wildcard.get(name.split_once('.')?.1).map(Option::as_ref);
            self.exact.get(name).map(Option::as_ref).or_else(alias).or_else(wildcard)
        });
        let own = match known {
            Some(own) => own,
            None if self.unknown == UnknownName::Reject => return Offer::UnknownName,
            None => self.any.as_ref(),
        };
        match own.cloned() {
            Some(Own { config, authority }) => Offer::Handshake { config, authority },
            None => Offer::Handshake { config: Arc::clone(&self.base), authority: None },
        }
    }
}

/// Stored sessions by what they belong to; only where tickets are off.
type Sessions = HashMap<(Scope, usize), Arc<dyn StoresServerSessions>>;

/// Makes the configurations of one snapshot.
struct Maker<'p> {
    policy: &'p TlsPolicy,
    tickets: &'p Arc<Tickets>,
    certificates: &'p Arc<BySni>,
    /// The snapshot before, whose authorities need not be parsed again.
    before: Option<&'p Published>,
    /// Of the snapshot before, so that its sessions can still be resumed.
    sessions: Sessions,
    used: Sessions,
}

impl<'p> Maker<'p> {
    fn new(
        policy: &'p TlsPolicy,
        tickets: &'p Arc<Tickets>,
        certificates: &'p Arc<BySni>,
        sessions: Sessions,
    ) -> Self {
        Self { policy, tickets, certificates, before: None, sessions, used: Sessions::new() }
    }

    /// `None`: the host offers what all do.
    fn own(&mut self, host: &HostMatch, server: &Server) -> Option<Own> {
        let trust = match server.client_auth.as_deref() {
            Some(ClientAuth::Verify(verify)) => verify.trust.as_ref(),
            Some(ClientAuth::Unusable) | None => None,
        };
        if trust.is_none() && server.ciphers.is_none() {
            return None;
        }
        let ciphers = server.ciphers.as_ref().unwrap_or(&self.policy.ciphers);
        let authority = trust.map(|trust| self.authority(host, trust, ciphers));
        let failed = |error| {
            // Without an authority of its own every request of the host is answered 421: closed.
            tracing::warn!(%host, %error, "tls settings of a host refused by the tls library");
        };
        let config = self.config(ciphers, authority.as_ref()).map_err(failed).ok()?;
        Some(Own { config, authority })
    }

    /// As it was before, if nothing about it has changed.
    fn authority(&self, host: &HostMatch, trust: &Trust, ciphers: &Ciphers) -> Arc<Authority> {
        let known = self.before.and_then(|before| before.authority(host));
        match known.filter(|known| known.trust == *trust) {
            Some(known) => Arc::clone(known),
            None => Arc::new(Authority::new(host, trust, &provider(self.policy, ciphers))),
        }
    }

    fn config(
        &mut self,
        ciphers: &Ciphers,
        authority: Option<&Arc<Authority>>,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        let policy = self.policy;
        let builder = ServerConfig::builder_with_provider(Arc::new(provider(policy, ciphers)))
            .with_protocol_versions(versions(policy, ciphers))?;
        let builder = match authority {
            Some(authority) => builder.with_client_cert_verifier(authority.asking()),
            None => builder.with_no_client_auth(),
        };
        let resolver = Arc::clone(self.certificates) as Arc<dyn ResolvesServerCert>;
        let mut config = builder.with_cert_resolver(resolver);
        if policy.http2 {
            config.alpn_protocols.push(b"h2".to_vec());
        }
        config.alpn_protocols.extend([b"http/1.1".to_vec(), b"http/1.0".to_vec()]);
        config.ignore_client_order = ciphers.order == CipherOrder::Ours;
        let scope = authority.map_or_else(Scope::default, |authority| authority.scope());
        match policy.resumption {
            Resumption::Tickets => {
                let shared = policy.ticket_key.as_ref().map(|key| key.0.as_slice());
                let ticketer = Ticketer::new(self.tickets, shared, scope, policy.session_timeout);
                config.ticketer = Arc::new(ticketer);
                config.session_storage = Arc::new(NoServerSessionStorage {});
            }
            Resumption::Cache(size) => {
                let storage = self.storage(scope, size);
                config.session_storage = Arc::new(KeptSessions::new(storage, policy.session_timeout));
            }
            Resumption::Off => {
                config.session_storage = Arc::new(NoServerSessionStorage {});
                config.send_tls13_tickets = 0;
            }
        }
        Ok(Arc::new(config))
    }

    /// The sessions that were kept for this scope before, or an empty store.
    fn storage(&mut self, scope: Scope, size: usize) -> Arc<dyn StoresServerSessions> {
        let place = (scope, size);
        let known = self.sessions.get(&place).or_else(|| self.used.get(&place)).cloned();
        let storage = known.unwrap_or_else(|| ServerSessionMemoryCache::new(size));
        self.used.insert(place, Arc::clone(&storage));
        storage
    }
}

/// Suites of TLS 1.3, then those that are allowed of TLS 1.2. First the one that every client has
/// (RFC 8446 9.1), as among those of TLS 1.2: AES-256 costs a third more for each byte, and SHA-384, which no
/// processor of today's servers has an instruction for, a sixth of a handshake.
fn provider(policy: &TlsPolicy, ciphers: &Ciphers) -> CryptoProvider {
    use aws_lc_rs::{cipher_suite as suite, kx_group};
    let of_12 = ciphers.suites.iter().map(|cipher| match cipher {
        Cipher::EcdsaAes128 => suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        Cipher::RsaAes128 => suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        Cipher::EcdsaAes256 => suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        Cipher::RsaAes256 => suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        Cipher::EcdsaChaCha20 => suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        Cipher::RsaChaCha20 => suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    });
    let of_13 = [
        suite::TLS13_AES_128_GCM_SHA256,
        suite::TLS13_AES_256_GCM_SHA384,
        suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    let groups = policy.groups.iter().map(|group| match group {
        Group::X25519MlKem768 => kx_group::X25519MLKEM768,
        Group::X25519 => kx_group::X25519,
        Group::P256 => kx_group::SECP256R1,
        Group::P384 => kx_group::SECP384R1,
    });
    CryptoProvider {
        cipher_suites: of_13.into_iter().chain(of_12).collect(),
        kx_groups: groups.collect(),
        ..aws_lc_rs::default_provider()
    }
}

fn versions(policy: &TlsPolicy, ciphers: &Ciphers) -> &'static [&'static SupportedProtocolVersion] {
    static ONLY_12: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
    static ONLY_13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    match policy.versions {
        // No suite of TLS 1.2 is left: better none of it than one that was ruled out.
        _ if ciphers.suites.is_empty() => &ONLY_13,
        TlsVersions::Both => rustls::ALL_VERSIONS,
        TlsVersions::Tls12 => &ONLY_12,
        TlsVersions::Tls13 => &ONLY_13,
    }
}

/// Certificates of one snapshot.
#[derive(Clone)]
struct BySni {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By the suffix after `*.`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
    /// By their Secret, so that a change of one certificate parses one.
    parsed: HashMap<ObjectName, (Arc<Certificate>, Arc<CertifiedKey>)>,
}

impl BySni {
    fn empty(default: &Arc<CertifiedKey>) -> Self {
        Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            default: Arc::clone(default),
            parsed: HashMap::new(),
        }
    }

    /// The key as the library takes it, if it does.
    fn parsed(&mut self, certificate: &Arc<Certificate>) -> Option<Arc<CertifiedKey>> {
        if let Some((known, key)) = self.parsed.get(&certificate.secret)
            && known == certificate
        {
            return Some(Arc::clone(key));
        }
        let key = match keys::certified(certificate) {
            Ok(key) => Arc::new(key),
            Err(error) => {
                tracing::warn!(secret = %certificate.secret, %error, "certificate refused by the tls library");
                return None;
            }
        };
        self.parsed.insert(certificate.secret.clone(), (Arc::clone(certificate), Arc::clone(&key)));
        Some(key)
    }

    /// Exact name, then a wildcard one label deep, then the default.
    fn find(&self, sni: Option<&str>) -> &Arc<CertifiedKey> {
        let Some(name) = sni.map(|name| name.trim_end_matches('.').to_ascii_lowercase()) else {
            return &self.default;
        };
        let suffix = name.split_once('.').map(|(_, suffix)| suffix);
        self.exact
            .get(&name)
            .or_else(|| suffix.and_then(|suffix| self.wildcard.get(suffix)))
            .unwrap_or(&self.default)
    }
}

impl std::fmt::Debug for BySni {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BySni(..)")
    }
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.find(hello.server_name())))
    }
}

fn fake_certificate() -> Result<Arc<CertifiedKey>, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Tls(error.to_string());
    let key = KeyPair::generate().map_err(|e| failed(&e))?;
    let mut params = CertificateParams::new(vec!["ingress.local".to_owned()]).map_err(|e| failed(&e))?;
    params.distinguished_name.push(DnType::CommonName, FAKE_NAME);
    params.distinguished_name.push(DnType::OrganizationName, "Acme Co");
    let certificate = params.self_signed(&key).map_err(|e| failed(&e))?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| failed(&e))?;
    let chain = vec![certificate.der().clone()];
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map(Arc::new).map_err(|e| failed(&e))
}

//! Client certificates: asked for in the handshake, judged after it.
//!
//! The handshake only proves that the client holds the key of what it shows. Whether that is good
//! enough is judged for every connection, resumed ones included, by the authority of now, because
//! nginx answers a bad certificate with an HTTP status and not with an alert.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authorities::{Authorities, Naming, Purpose, Shown as Certificate};
use super::filters::Answer;
use super::heads;
use super::tickets::Scope;
use super::{keys, subject};
use crate::model::l7::{ClientAuth, Demand, HostMatch, Trust, VerifyClient};

/// Whom one host trusts, ready to judge.
#[derive(Debug)]
pub(super) struct Authority {
    pub(super) host: HostMatch,
    pub(super) trust: Trust,
    /// `None`: they could not be read, and the host is [closed](usable).
    authorities: Option<Authorities>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Authority {
    pub(super) fn new(host: &HostMatch, trust: &Trust, provider: &CryptoProvider) -> Self {
        let authorities = Authorities::new(&trust.ca_pem, &trust.crl_pem).ok();
        let algorithms = provider.signature_verification_algorithms;
        Self { host: host.clone(), trust: trust.clone(), authorities, algorithms }
    }

    /// What a session belongs to that was begun under this authority.
    pub(super) fn scope(&self) -> Scope {
        let Trust { secret, ca_pem, crl_pem, demand, depth } = &self.trust;
        let parts = [self.host.to_string(), secret.to_string(), format!("{demand:?} {depth}")];
        let [host, secret, rest] = parts.each_ref().map(String::as_bytes);
        Scope::of(&[host, secret, rest, ca_pem, crl_pem])
    }

    /// Asks for a certificate in the handshake and takes any.
    pub(super) fn asking(&self) -> Arc<dyn ClientCertVerifier> {
        let hints = self.authorities.as_ref().map(Authorities::subjects).unwrap_or_default();
        Arc::new(Asking { hints, algorithms: self.algorithms })
    }

    /// What there is to say about a client that showed this chain.
    pub(super) fn judge(self: &Arc<Self>, chain: &[CertificateDer<'_>], now: UnixTime) -> Identity {
        let authority = Arc::clone(self);
        let Some((leaf, intermediates)) = chain.split_first() else {
            let (subject, issuer) = (String::new(), String::new());
            return Identity {
                authority,
                verdict: Verdict::Nothing,
                subject,
                issuer,
                leaf: None,
                pem: OnceCell::new(),
            };
        };
        let verdict = self.verdict(leaf, intermediates, now);
        let (subject, issuer) = X509Certificate::from_der(leaf).map_or_else(
            |_| (String::new(), String::new()),
            |(_, parsed)| (subject::rfc2253(parsed.subject()), subject::rfc2253(parsed.issuer())),
        );
        let leaf = Some(leaf.clone().into_owned());
        Identity { authority, verdict, subject, issuer, leaf, pem: OnceCell::new() }
    }

    fn verdict(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Verdict {
        let Some(authorities) = &self.authorities else {
            return Verdict::Bad("unspecified certificate verification error", About::Certificate);
        };
        let depth = usize::from(self.trust.depth);
        let shown = Certificate {
            leaf,
            intermediates,
            purpose: Purpose::Client,
            naming: Naming::Alternative,
            depth,
            now,
            algorithms: self.algorithms,
        };
        match authorities.verify(&shown) {
            Ok(()) => Verdict::Good,
            Err(webpki::Error::UnknownIssuer | webpki::Error::MaximumPathDepthExceeded) => {
                let reason = where_it_ends(leaf, intermediates, depth, authorities);
                let about = if reason == NO_ROOT { About::Certificate } else { About::Authority };
                Verdict::Bad(reason, about)
            }
            Err(error) => Verdict::Bad(reason(&error), About::Certificate),
        }
    }
}

/// What a host demands of clients. Its authorities the translation has read already, so this hardly ever fails; then the host is closed,
/// over plain HTTP, too.
pub(super) fn usable(host: &HostMatch, auth: Option<&Arc<ClientAuth>>) -> Option<Arc<ClientAuth>> {
    let auth = auth?;
    if let ClientAuth::Verify(verify) = &**auth
        && let Some(trust) = &verify.trust
        && let Err(error) = Authorities::new(&trust.ca_pem, &trust.crl_pem)
    {
        let secret = &trust.secret;
        tracing::error!(%host, %secret, %error, "client authority refused; the host answers 403");
        return Some(Arc::new(ClientAuth::Unusable));
    }
    Some(Arc::clone(auth))
}

/// The chain ends in the bundle, at one that is no root. Not among what `optional_no_ca` overlooks.
const NO_ROOT: &str = "unable to get issuer certificate";

/// What OpenSSL says of a chain that leads to no authority. It follows as many certificates as the depth allows, and
/// the root beyond them.
fn where_it_ends(
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    depth: usize,
    authorities: &Authorities,
) -> &'static str {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return "certificate signature failure" };
    if leaf.subject() == leaf.issuer() {
        return "self-signed certificate";
    }
    let others = others.iter().filter_map(|other| X509Certificate::from_der(other).ok());
    let others: Vec<_> = others.map(|(_, other)| other).collect();
    let (mut top, mut is_alone) = (&leaf, true);
    for _ in 0..=depth {
        if authorities.has_between(top.issuer()) {
            return NO_ROOT;
        }
        let Some(next) = others.iter().find(|other| other.subject() == top.issuer()) else { break };
        if next.subject() == next.issuer() {
            return "self-signed certificate in certificate chain";
        }
        (top, is_alone) = (next, false);
    }
    if is_alone {
        return "unable to verify the first certificate";
    }
    "unable to get local issuer certificate"
}

/// OpenSSL's words, which upstreams may compare.
fn reason(error: &webpki::Error) -> &'static str {
    match error {
        webpki::Error::CertExpired { .. } | webpki::Error::InvalidCertValidity => "certificate has expired",
        webpki::Error::CertNotValidYet { .. } => "certificate is not yet valid",
        webpki::Error::CertRevoked => "certificate revoked",
        webpki::Error::UnknownRevocationStatus => "unable to get certificate CRL",
        webpki::Error::CrlExpired { .. } => "CRL has expired",
        webpki::Error::PathLenConstraintViolated => "path length constraint exceeded",
        webpki::Error::NameConstraintViolation => "permitted subtree violation",
        webpki::Error::UnsupportedCriticalExtension => "unhandled critical extension",
        webpki::Error::EndEntityUsedAsCa
        | webpki::Error::CaUsedAsEndEntity
        | webpki::Error::RequiredEkuNotFoundContext(_) => "unsuitable certificate purpose",
        _ => "certificate signature failure",
    }
}

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// Nobody vouches for it; itself it is in order.
    Authority,
    Certificate,
}

/// Outcome of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No certificate was shown.
    Nothing,
    /// Of the authority.
    Good,
    /// Why not.
    Bad(&'static str, About),
}

/// Who the client of a TLS connection is to the host that it named in its handshake.
#[derive(Debug)]
pub(super) struct Identity {
    authority: Arc<Authority>,
    verdict: Verdict,
    pub(super) subject: String,
    pub(super) issuer: String,
    leaf: Option<CertificateDer<'static>>,
    pem: OnceCell<String>,
}

impl Identity {
    /// The handshake was made with this host, under this trust.
    fn is_for(&self, host: &HostMatch, trust: &Trust) -> bool {
        self.authority.host == *host && self.authority.trust == *trust
    }

    /// `$ssl_client_verify`.
    pub(super) fn verify(&self) -> String {
        match self.verdict {
            Verdict::Nothing => "NONE".to_owned(),
            Verdict::Good => "SUCCESS".to_owned(),
            Verdict::Bad(reason, _) => format!("FAILED:{reason}"),
        }
    }

    /// `$ssl_client_escaped_cert`: the certificate as PEM, percent-encoded; empty without one.
    pub(super) fn escaped_pem(&self) -> &str {
        self.pem.get_or_init(|| self.leaf.as_ref().map(|leaf| escape(&pem(leaf))).unwrap_or_default())
    }

    /// What the host demands of clients is met.
    fn is_enough(&self, demand: Demand) -> bool {
        match (demand, self.verdict) {
            (_, Verdict::Good) => true,
            (Demand::Required, _) => false,
            (Demand::Optional, Verdict::Nothing) => true,
            (Demand::Optional, Verdict::Bad(..)) => false,
            (Demand::OptionalAnyAuthority, Verdict::Nothing | Verdict::Bad(_, About::Authority)) => true,
            (Demand::OptionalAnyAuthority, Verdict::Bad(_, About::Certificate)) => false,
        }
    }
}

/// What the handshake of a connection told of its client.
#[derive(Debug, Clone)]
pub(super) enum Session {
    /// There was none, or it was with somebody in front of us.
    Plain,
    /// With a host that asks for no certificate.
    Tls,
    /// With one that does.
    Identified(Rc<Identity>),
}

impl Session {
    /// For a decision.
    pub(super) fn shown(&self) -> Shown<'_> {
        match self {
            Self::Plain => Shown::Plain,
            Self::Tls => Shown::Nothing,
            Self::Identified(identity) => Shown::By(identity),
        }
    }

    /// Who the client is, where it was asked.
    pub(super) fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Identified(identity) => Some(identity),
            Self::Plain | Self::Tls => None,
        }
    }
}

/// Why a certificate is not enough, as the page of the answer says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// There is none.
    Missing,
    /// Nobody vouches for it.
    Bad,
}

impl Flaw {
    fn of(identity: &Identity) -> Self {
        match identity.verdict {
            Verdict::Nothing => Self::Missing,
            Verdict::Good | Verdict::Bad(..) => Self::Bad,
        }
    }

    /// The words of nginx.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "No required SSL certificate was sent",
            Self::Bad => "The SSL certificate error",
        }
    }
}

/// What is known of a client's certificate when a request is decided.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shown<'a> {
    /// The connection is not TLS, or somebody in front of us ended it.
    Plain,
    /// TLS with a host that asks for none.
    Nothing,
    /// TLS with a host that asked.
    By(&'a Identity),
    /// For explanations: whatever the host wants to see.
    Whatever,
}

/// What the upstream is told of a client's certificate, where its host has to do with any. What was shown to another
/// host says nothing to one that asks for none.
pub(super) fn told<'a>(host: Option<&ClientAuth>, session: &'a Session) -> Option<heads::Certificate<'a>> {
    let Some(ClientAuth::Verify(verify)) = host else { return None };
    let identity = match session {
        Session::Plain => return None,
        Session::Tls => None,
        Session::Identified(identity) => Some(&**identity).filter(|_| verify.trust.is_some()),
    };
    Some(heads::Certificate { identity, whole: verify.pass_certificate })
}

/// What becomes of a client that a host does not take, before any location.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused<'v> {
    Answered(Answer),
    /// For its certificate; the host may have a page that says so.
    Flawed(Flaw, Option<&'v str>),
}

/// Whether a client is refused.
pub(super) fn refuse<'v>(
    host: &HostMatch,
    verify: &'v VerifyClient,
    shown: Shown<'_>,
) -> Option<Refused<'v>> {
    let VerifyClient { trust, error_page, subject, pass_certificate: _ } = verify;
    let identity = match (shown, trust) {
        (Shown::Whatever, _) => return None,
        (Shown::By(identity), Some(trust)) if identity.is_for(host, trust) => Some(identity),
        // The handshake was with another host, or under an authority that has changed since: what
        // was shown there says nothing here. 421 has the client come again, by its right name.
        (Shown::By(_) | Shown::Nothing, Some(_)) => return Some(Refused::Answered(Answer::Status(421))),
        (Shown::Plain, _) | (_, None) => None,
    };
    if let (Some(identity), Some(trust)) = (identity, trust)
        && !identity.is_enough(trust.demand)
    {
        return Some(Refused::Flawed(Flaw::of(identity), error_page.as_deref()));
    }
    let name =
        identity.filter(|identity| identity.verdict == Verdict::Good).map_or("", |known| &known.subject);
    match subject {
        Some(pattern) if !pattern.regex().is_match(name.as_bytes()) => {
            Some(Refused::Answered(Answer::Status(403)))
        }
        _ => None,
    }
}

/// Whether a host answers nobody who came without TLS.
pub(super) fn is_closed_to_plain(verify: &VerifyClient, shown: Shown<'_>) -> bool {
    let required = verify.trust.as_ref().is_some_and(|trust| trust.demand == Demand::Required);
    required && matches!(shown, Shown::Plain)
}

fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in der.chunks(48) {
        STANDARD.encode_string(line, &mut text);
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// Percent-encodes everything but what RFC 3986 leaves unreserved.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + text.len() / 8);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// Takes whatever the client shows, if it holds the key to it.
#[derive(Debug)]
struct Asking {
    hints: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        keys::verify_12(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        keys::verify_13(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::model::l7::Pattern;

    fn host(name: &str) -> HostMatch {
        HostMatch::Exact(name.to_owned())
    }

    fn trust(demand: Demand) -> Trust {
        Trust {
            secret: ObjectName::new("default", "ca"),
            ca_pem: Vec::new(),
            crl_pem: Vec::new(),
            demand,
            depth: 1,
        }
    }

    fn identity(name: &str, demand: Demand, verdict: Verdict, subject: &str) -> Identity {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        Identity {
            authority: Arc::new(Authority::new(&host(name), &trust(demand), &provider)),
            verdict,
            subject: subject.to_owned(),
            issuer: String::new(),
            leaf: None,
            pem: OnceCell::new(),
        }
    }

    #[test]
    fn demands_are_met_or_answered() {
        use Demand::{Optional, OptionalAnyAuthority, Required};
        let stranger = Verdict::Bad("unable to get local issuer certificate", About::Authority);
        let expired = Verdict::Bad("certificate has expired", About::Certificate);
        let cases = [
            (Required, Verdict::Good, None),
            (Required, Verdict::Nothing, Some(Flaw::Missing)),
            (Required, stranger, Some(Flaw::Bad)),
            (Optional, Verdict::Nothing, None),
            (Optional, stranger, Some(Flaw::Bad)),
            (OptionalAnyAuthority, Verdict::Nothing, None),
            (OptionalAnyAuthority, stranger, None),
            (OptionalAnyAuthority, expired, Some(Flaw::Bad)),
        ];
        for (demand, verdict, flaw) in cases {
            let verify = VerifyClient {
                trust: Some(trust(demand)),
                error_page: None,
                pass_certificate: false,
                subject: None,
            };
            let identity = identity("a", demand, verdict, "CN=x");

            let answer = refuse(&host("a"), &verify, Shown::By(&identity));

            assert_eq!(answer, flaw.map(|flaw| Refused::Flawed(flaw, None)), "{demand:?} {verdict:?}");
        }
    }

    #[test]
    fn what_was_shown_to_another_host_or_under_another_trust_counts_for_nothing() {
        let verify = VerifyClient {
            trust: Some(trust(Demand::Optional)),
            error_page: None,
            pass_certificate: false,
            subject: None,
        };
        let elsewhere = identity("b", Demand::Optional, Verdict::Good, "CN=x");
        let before = identity("a", Demand::Required, Verdict::Good, "CN=x");

        for shown in [Shown::By(&elsewhere), Shown::By(&before), Shown::Nothing] {
            let answer = refuse(&host("a"), &verify, shown);
            assert_eq!(answer, Some(Refused::Answered(Answer::Status(421))), "{shown:?}");
        }
    }

    #[test]
    fn the_subject_has_to_match_and_is_empty_for_whom_nobody_vouches() {
        let verify = VerifyClient {
            trust: Some(trust(Demand::OptionalAnyAuthority)),
            error_page: None,
            pass_certificate: false,
            subject: Some(Pattern::subject("CN=admin").unwrap()),
        };
        let stranger = Verdict::Bad("unable to get local issuer certificate", About::Authority);
        let demand = Demand::OptionalAnyAuthority;
        let cases = [
            (identity("a", demand, Verdict::Good, "CN=admin,O=x"), None),
            (identity("a", demand, Verdict::Good, "CN=ADMIN"), Some(403)),
            (identity("a", demand, Verdict::Good, "CN=user"), Some(403)),
            (identity("a", demand, stranger, "CN=admin"), Some(403)),
        ];
        for (identity, status) in cases {
            let answer = refuse(&host("a"), &verify, Shown::By(&identity));
            assert_eq!(
                answer,
                status.map(|status| Refused::Answered(Answer::Status(status))),
                "{identity:?}"
            );
        }
        let plain = refuse(&host("a"), &verify, Shown::Plain);
        assert_eq!(plain, Some(Refused::Answered(Answer::Status(403))));
    }

    #[test]
    fn certificates_are_passed_as_escaped_pem() {
        assert_eq!(
            pem(&[0; 49]),
            format!("-----BEGIN CERTIFICATE-----\n{}\nAA==\n-----END CERTIFICATE-----\n", "A".repeat(64))
        );
        assert_eq!(escape("a b+/=\n"), "a%20b%2B%2F%3D%0A");
    }
}

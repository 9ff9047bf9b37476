//! Client certificates of a host (`auth-tls-*`): the Secret with the authority, checked to be
//! usable, and what is demanded. Whatever guards a host and cannot be honoured closes it.

use k8s_openapi::api::core::v1::Secret;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate, X509Extension};

use super::annotations::table::Value;
use super::annotations::{field, value};
use super::certificates::blocks;
use super::findings::{About, MISSING_SECRET, missing_secret};
use super::view::View;
use crate::model::ObjectName;
use crate::model::l7::{ClientAuth, Demand, Pattern, Trust, VerifyClient};

const BAD: &str = "bad-client-authority";
const NEEDED: &str = "the Secret needs the authority's certificate as ca.crt";
const LISTS: &str = "ca.crl needs complete lists, as openssl ca -gencrl makes them";

/// The `auth-tls-*` annotations of one Ingress, as written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Written {
    pub secret: String,
    /// It may be of another namespace.
    pub crosses: bool,
    pub verify_client: Option<String>,
    pub depth: Option<String>,
    pub error_page: Option<String>,
    pub pass_certificate: bool,
    pub match_cn: Option<String>,
}

/// What they come to; every doubt closes the host.
pub(super) fn read(
    written: &Written,
    namespace: &str,
    objects: &View<'_>,
    about: &mut About<'_>,
) -> ClientAuth {
    let Written { secret, crosses, verify_client, depth, error_page, pass_certificate, match_cn } = written;
    let mut unusable = |reason, name: &str, message: String, fix: &str| {
        about.error_fix(reason, field(name), message, fix);
        ClientAuth::Unusable
    };
    let parts = secret.split_once('/').filter(|_| value::check(Value::Reference, secret).is_ok());
    let secret = match parts {
        None => {
            let message = format!("{secret:?} names no Secret: every request of the host is answered 403");
            return unusable(BAD, "auth-tls-secret", message, "write namespace/name");
        }
        Some((other, _)) if other != namespace && !crosses => {
            let message =
                format!("{secret} is in another namespace: every request of the host is answered 403");
            return unusable(
                BAD,
                "auth-tls-secret",
                message,
                "copy the Secret to the namespace of the Ingress, or let Ingresses cross by allow-cross-namespace-resources",
            );
        }
        Some((namespace, name)) => ObjectName::new(namespace, name),
    };
    let Some(found) = objects.secrets.get(&secret) else {
        let message = format!("{}: every request of the host is answered 403", missing_secret(&secret));
        return unusable(MISSING_SECRET, "auth-tls-secret", message, NEEDED);
    };
    let (ca_pem, crl_pem) = match authority(&secret, &found.object) {
        Ok(authority) => authority,
        Err((message, fix)) => {
            let message = format!("{message}: every request of the host is answered 403");
            return unusable(BAD, "auth-tls-secret", message, fix);
        }
    };
    let subject = match match_cn.as_deref().map(pattern).transpose() {
        Ok(subject) => subject,
        Err(message) => {
            let message = format!("{message}: every request of the host is answered 403");
            return unusable(BAD, "auth-tls-match-cn", message, "write it as CN= and a pattern");
        }
    };
    let demand = match verify_client.as_deref() {
        Some("off") => None,
        Some("optional") => Some(Demand::Optional),
        Some("optional_no_ca") => Some(Demand::OptionalAnyAuthority),
        _ => Some(Demand::Required),
    };
    // As if it were not set where it is 0, as in ingress-nginx.
    let depth = depth.as_deref().and_then(|depth| depth.parse().ok()).filter(|depth: &u32| *depth > 0);
    let depth = depth.map_or(1, |depth| u8::try_from(depth).unwrap_or(u8::MAX));
    let error_page = error_page.clone().filter(|page| {
        let is_address = page.starts_with('/') || page.starts_with("http://") || page.starts_with("https://");
        if !is_address {
            let message = format!("{page:?} is neither a URL nor a path; refused clients get 400");
            about.warn("bad-annotation", field("auth-tls-error-page"), message, "");
        }
        is_address
    });
    let trust = demand.map(|demand| Trust { secret, ca_pem, crl_pem, demand, depth });
    let verify = VerifyClient { trust, error_page, pass_certificate: *pass_certificate, subject };
    ClientAuth::Verify(Box::new(verify))
}

/// `CN=` and a pattern, matched against the whole subject as nginx does.
fn pattern(text: &str) -> Result<Pattern, String> {
    if !text.starts_with("CN=") {
        return Err(format!("{text:?} does not start with CN="));
    }
    Pattern::subject(text).map_err(|error| format!("{text:?} is no pattern that can be used: {error}"))
}

/// What is wrong with a Secret, and how it is put right.
type Flaw = (String, &'static str);

/// `ca.crt` and, where there is one, `ca.crl`.
fn authority(name: &ObjectName, secret: &Secret) -> Result<(Vec<u8>, Vec<u8>), Flaw> {
    let entry = |key: &str| {
        let value = secret.data.as_ref().and_then(|data| data.get(key)).map(|value| value.0.clone());
        value.filter(|value| !value.is_empty())
    };
    let ca_pem = entry("ca.crt").ok_or_else(|| (format!("Secret {name} has no ca.crt"), NEEDED))?;
    let certificates = blocks(&ca_pem, "CERTIFICATE", |label| label == "CERTIFICATE");
    let certificates =
        certificates.map_err(|message| (format!("ca.crt of Secret {name} {message}"), NEEDED))?;
    if !certificates.iter().all(|der| X509Certificate::from_der(der).is_ok()) {
        return Err((format!("a certificate in ca.crt of Secret {name} does not parse"), NEEDED));
    }
    let Some(crl_pem) = entry("ca.crl") else { return Ok((ca_pem, Vec::new())) };
    let lists = blocks(&crl_pem, "X509 CRL", |label| label == "X509 CRL");
    let lists = lists.map_err(|message| (format!("ca.crl of Secret {name} {message}"), LISTS))?;
    for list in &lists {
        let Ok((_, list)) = CertificateRevocationList::from_der(list) else {
            return Err((format!("a list in ca.crl of Secret {name} does not parse"), LISTS));
        };
        if !list.extensions().iter().all(is_understood) {
            let message = format!(
                "a list in ca.crl of Secret {name} is a delta list, or has another critical extension"
            );
            return Err((message, LISTS));
        }
    }
    Ok((ca_pem, crl_pem))
}

/// Of a revocation list.
fn is_understood(extension: &X509Extension<'_>) -> bool {
    const NUMBER: &str = "2.5.29.20";
    const DISTRIBUTION_POINT: &str = "2.5.29.28";
    const AUTHORITY_KEY: &str = "2.5.29.35";
    let known = [NUMBER, DISTRIBUTION_POINT, AUTHORITY_KEY];
    !extension.critical || known.contains(&extension.oid.to_id_string().as_str())
}

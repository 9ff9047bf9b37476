//! `proxy-ssl-*`: what a Secret and the annotations around it mean for TLS towards upstreams.

use std::sync::Arc;

use super::annotations::{self, Unusable};
use super::certificates::{self, Certificates};
use super::view::View;
use crate::model::ObjectName;
use crate::model::l7::{Certificate, TlsVersions};
use crate::model::upstream::{UpstreamTls, Verify};

/// The annotations with their Secret read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ProxySsl {
    identity: Option<Arc<Certificate>>,
    /// Where verification is on: the authorities, PEM, and the longest chain.
    roots: Option<(Vec<u8>, u32)>,
    name: Option<String>,
    send_name: bool,
    versions: TlsVersions,
}

impl ProxySsl {
    /// Reads the Secret; the error says why it cannot be used.
    pub(super) fn read(
        asked: &annotations::ProxySsl,
        namespace: &str,
        objects: &View<'_>,
        certificates: &mut Certificates<'_>,
    ) -> Result<Self, Unusable> {
        const NAME: &str = "proxy-ssl-secret";
        let bad = |message| Unusable { name: NAME, reason: "bad-proxy-ssl-secret", message };
        let annotations::ProxySsl { secret, crosses, verify, depth, name, send_name, versions } = asked;
        let secret = match secret.split_once('/') {
            Some((other, _)) if other != namespace && !crosses => {
                return Err(bad(format!("Secret {secret} is of another namespace")));
            }
            Some((namespace, name)) => ObjectName::new(namespace, name),
            None => ObjectName::new(namespace, secret),
        };
        let Some(sourced) = objects.secrets.get(&secret) else {
            return Err(Unusable::without_secret(NAME, &secret));
        };
        let entry = |key: &str| {
            let data = sourced.object.data.as_ref().and_then(|data| data.get(key));
            data.map(|data| data.0.as_slice()).filter(|data| !data.is_empty())
        };
        let identity = match entry("tls.crt").or(entry("tls.key")) {
            Some(_) => Some(Arc::clone(&certificates.of(&secret).map_err(bad)?.certificate)),
            None => None,
        };
        let authorities = entry("ca.crt");
        if let Some(pem) = authorities {
            certificates::authorities(pem).map_err(|why| bad(format!("ca.crt of Secret {secret} {why}")))?;
        }
        let roots = match (verify, authorities) {
            (true, None) => return Err(bad(format!("Secret {secret} has no ca.crt to verify with"))),
            (true, Some(pem)) => Some((pem.to_vec(), *depth)),
            (false, _) => None,
        };
        let (name, send_name, versions) = (name.clone(), *send_name, *versions);
        Ok(Self { identity, roots, name, send_name, versions })
    }

    /// For the upstream of a Service. Where no name is given, its DNS name is the one that counts.
    pub(super) fn towards(&self, namespace: &str, service: &str) -> UpstreamTls {
        let Self { identity, roots, name, send_name, versions } = self;
        let name = name.clone().unwrap_or_else(|| format!("{service}.{namespace}.svc"));
        UpstreamTls {
            identity: identity.clone(),
            verify: roots.clone().map(|(roots_pem, depth)| Verify { roots_pem, name: name.clone(), depth }),
            server_name: send_name.then_some(name),
            versions: *versions,
        }
    }
}

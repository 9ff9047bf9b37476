//! A number that says whether two snapshots are the same, for the metric `config_hash`.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};

use crate::model::Snapshot;
use crate::model::l7::{ClientAuth, L7};

/// Of all that a snapshot says, by the text that tests compare and what that text does not show; as many bits as a
/// metric can show. No use against somebody who wants two to have the same.
pub(super) fn of(snapshot: &Snapshot) -> f64 {
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    let _ = write!(hash, "{snapshot:?}");
    secrets(&snapshot.l7, &mut |digest| hash.add(digest));
    (hash.0 >> 11) as f64
}

/// FNV-1a, which needs no memory for the text.
struct Fnv(u64);

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl Write for Fnv {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.add(text.as_bytes());
        Ok(())
    }
}

/// Keys, passwords, authorities and revocation lists: by digests that tell nothing of them, in the order of the
/// snapshot.
fn secrets(l7: &L7, tell: &mut dyn FnMut(&[u8])) {
    let L7 { servers, certificates, default_certificate, edge, .. } = l7;
    for certificate in certificates.values().chain(default_certificate.as_deref()) {
        tell(&digest(|tell| certificate.hidden(tell)));
    }
    if let Some(key) = &edge.tls.ticket_key {
        tell(&digest(|tell| tell(&key.0)));
    }
    // Many locations share what their Ingress says: what is known of an address is that of the same value.
    let mut known: HashMap<*const (), [u8; 32]> = HashMap::new();
    for server in servers.values() {
        if let Some(ClientAuth::Verify(verify)) = server.client_auth.as_deref()
            && let Some(trust) = &verify.trust
        {
            tell(&digest(|tell| trust.hidden(tell)));
        }
        for location in &server.locations {
            let filters = &location.filters;
            let tls = &filters.upstream_tls;
            tell(known.entry(Arc::as_ptr(tls).cast()).or_insert_with(|| digest(|tell| tls.hidden(tell))));
            if let Some(policies) = &filters.policies {
                let place = Arc::as_ptr(policies).cast::<()>();
                tell(known.entry(place).or_insert_with(|| digest(|tell| policies.hidden(tell))));
            }
        }
    }
}

/// Of parts, so that none runs into the next.
fn digest(hidden: impl FnOnce(&mut dyn FnMut(&[u8]))) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    hidden(&mut |part| {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    });
    context.finish().as_ref().try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::model::l7::policy::{Auth, Basic, Password, Satisfy, Users};
    use crate::model::l7::{
        Action, Certificate, Demand, HostMatch, Location, PathMatch, Policies, Server, Trust, UpstreamTls,
        VerifyClient,
    };
    use crate::model::upstream::Verify;

    /// A host with one of each.
    #[derive(Clone, Copy)]
    struct Hidden {
        password: &'static [u8],
        ca: &'static [u8],
        crl: &'static [u8],
        roots: &'static [u8],
        key: &'static [u8],
    }

    fn hash(hidden: Hidden) -> f64 {
        let Hidden { password, ca, crl, roots, key } = hidden;
        let trust = Trust {
            secret: ObjectName::new("default", "ca"),
            ca_pem: ca.to_vec(),
            crl_pem: crl.to_vec(),
            demand: Demand::Required,
            depth: 1,
        };
        let verify =
            VerifyClient { trust: Some(trust), error_page: None, pass_certificate: false, subject: None };
        let users = Users([(b"user".to_vec(), Password::Plain(password.to_vec()))].into());
        let auth = Auth {
            satisfy: Satisfy::All,
            basic: Some(Basic { realm: String::new(), users }),
            external: None,
        };
        let policies = Policies { auth: Some(auth), ..Policies::default() };
        let verify_upstream = Verify { roots_pem: roots.to_vec(), name: "up".to_owned(), depth: 1 };
        let tls = UpstreamTls { verify: Some(verify_upstream), ..UpstreamTls::default() };
        let filters = crate::model::l7::Filters {
            upstream_tls: Arc::new(tls),
            policies: Some(Arc::new(policies)),
            ..Default::default()
        };
        let location = Location {
            path: PathMatch::Prefix("/".to_owned()),
            path_label: "/".to_owned(),
            ingress: None,
            backend: None,
            action: Action::Deny,
            filters,
        };
        let server = Server {
            client_auth: Some(Arc::new(ClientAuth::Verify(Box::new(verify)))),
            locations: vec![location],
            ..Server::default()
        };
        let certificate = Certificate {
            secret: ObjectName::new("default", "tls"),
            chain_pem: Vec::new(),
            key_pem: key.to_vec(),
            not_after: 0,
            leaf: Default::default(),
        };
        let l7 = L7 {
            servers: [(HostMatch::Any, server)].into(),
            certificates: [(HostMatch::Any, certificate)].into(),
            ..L7::default()
        };
        of(&Snapshot { l7: Arc::new(l7), ..Snapshot::default() })
    }

    #[test]
    fn whatever_changes_changes_the_number_and_nothing_else_does() {
        let usual = Hidden { password: b"a", ca: b"a", crl: b"a", roots: b"a", key: b"a" };
        let others = [
            Hidden { password: b"b", ..usual },
            Hidden { ca: b"b", ..usual },
            Hidden { crl: b"b", ..usual },
            Hidden { ca: b"aa", crl: b"", ..usual },
            Hidden { roots: b"b", ..usual },
            Hidden { key: b"b", ..usual },
        ];

        assert_eq!(hash(usual), hash(usual));
        for (number, other) in others.into_iter().enumerate() {
            assert_ne!(hash(other), hash(usual), "case {number}");
        }
    }
}

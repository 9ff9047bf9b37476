//! Services that stand for a name elsewhere (`type: ExternalName`). Who has that name is asked later, by others.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Complaint, PortRef, Upstreams, care, find_port, ports};
use crate::model::l4::Protocol;
use crate::model::upstream::{External, Upstream};
use crate::model::{ObjectName, Severity};

impl Upstreams<'_> {
    /// What an ExternalName Service stands for.
    pub(super) fn external(
        &self,
        name: &ObjectName,
        service: &Service,
        port: &PortRef<'_>,
        protocol: Protocol,
    ) -> Result<Upstream, Complaint> {
        let refused = |reason, field, message: String, fix: &str| {
            Err(Complaint { severity: Severity::Error, reason, field, message, fix: fix.to_owned() })
        };
        if self.options.disable_external_names {
            let message = format!(
                "Service {name} is of type ExternalName, which --disable-svc-external-name turns off"
            );
            return refused("external-name-off", ".name", message, "");
        }
        let written =
            service.spec.as_ref().and_then(|spec| spec.external_name.as_deref()).unwrap_or_default();
        let host = written.trim().to_ascii_lowercase();
        let plain = host.trim_end_matches('.');
        // Where no port is listed, that of the Ingress is meant.
        let listed = ports(service, protocol).next().is_some();
        let number = match (find_port(service, port, protocol), port) {
            (Some(found), _) => match &found.target_port {
                Some(IntOrString::Int(number)) => Some(*number),
                Some(IntOrString::String(_)) => None,
                None => Some(found.port),
            },
            (None, PortRef::Number(number)) if !listed => Some(*number),
            (None, _) => None,
        };
        let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
        let Some(port) = number else {
            let message = format!("Service {name} has no such port, or one without a number");
            return refused("missing-port", ".port", message, "correct the port's name or number");
        };
        let addr: Option<IpAddr> = plain.parse().ok();
        let leads_back = addr
            .map(|addr| addr.to_canonical())
            .is_some_and(|addr| addr.is_loopback() || addr.is_unspecified());
        if leads_back || plain == "localhost" || plain.ends_with(".localhost") {
            let message =
                format!("Service {name} names this host itself ({written:?}), which is never asked");
            return refused("external-name-local", ".name", message, "name a host outside");
        }
        let care = care(&service.metadata);
        if let Some(addr) = addr {
            let endpoints = BTreeSet::from([SocketAddr::new(addr, port)]);
            return Ok(Upstream { endpoints, care, ..Upstream::default() });
        }
        let is_label = |label: &str| {
            let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            (1..=63).contains(&label.len()) && label.bytes().all(is_inner)
        };
        if plain.len() > 253 || !plain.split('.').all(is_label) {
            let message = format!("Service {name} has {written:?} for an external name, which is none");
            return refused("bad-external-name", ".name", message, "write a DNS name");
        }
        let external = Some(External { service: name.clone(), name: host, port, flaw: None });
        Ok(Upstream { external, care, ..Upstream::default() })
    }
}

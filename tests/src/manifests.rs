//! Kubernetes YAML as a test or the demo needs it, from the few values that matter.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

/// A Service of type LoadBalancer with one address.
pub struct LoadBalancer<'a> {
    /// Name.
    pub name: &'a str,
    /// Address clients connect to.
    pub vip: IpAddr,
    /// `TCP` or `UDP`.
    pub protocol: &'a str,
    /// Port clients connect to.
    pub port: u16,
    /// Port of the backends.
    pub target_port: u16,
    /// Forwarding mode: `nat` or `l2`.
    pub mode: &'a str,
}

impl LoadBalancer<'_> {
    /// The Service alone.
    pub fn yaml(&self) -> String {
        let Self { name, vip, protocol, port, target_port, mode } = self;
        let family = if vip.is_ipv4() { "IPv4" } else { "IPv6" };
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  annotations:\n    \
             penstock.dev/forwarding-mode: {mode}\nspec:\n  type: LoadBalancer\n  loadBalancerIP: \"{vip}\"\n  \
             ipFamilies: [{family}]\n  allocateLoadBalancerNodePorts: false\n  ports:\n  - name: main\n    \
             protocol: {protocol}\n    port: {port}\n    targetPort: {target_port}\n"
        )
    }

    /// The Service with backends of these addresses and weights.
    pub fn with_backends(&self, backends: &[(IpAddr, u16)]) -> String {
        let mut yaml = self.yaml();
        for (number, (addr, weight)) in backends.iter().enumerate() {
            let slice = Slice {
                name: &format!("{}-{number}", self.name),
                service: self.name,
                port_name: "main",
                protocol: self.protocol,
                endpoints: &[SocketAddr::new(*addr, self.target_port)],
                weight: *weight,
            };
            yaml.push_str("---\n");
            yaml.push_str(&slice.yaml());
        }
        yaml
    }
}

/// Endpoints of a Service; all have the port of the first.
pub struct Slice<'a> {
    /// Name.
    pub name: &'a str,
    /// Service it belongs to.
    pub service: &'a str,
    /// Port name; empty for the only, unnamed port.
    pub port_name: &'a str,
    /// `TCP` or `UDP`.
    pub protocol: &'a str,
    /// Addresses.
    pub endpoints: &'a [SocketAddr],
    /// Weight of each.
    pub weight: u16,
}

impl Slice<'_> {
    /// The EndpointSlice.
    pub fn yaml(&self) -> String {
        let Self { name, service, port_name, protocol, endpoints, weight } = self;
        let family = if endpoints.iter().all(SocketAddr::is_ipv4) { "IPv4" } else { "IPv6" };
        let port = endpoints.first().map_or(0, SocketAddr::port);
        let mut yaml = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  labels:\n    \
             kubernetes.io/service-name: {service}\n  annotations:\n    penstock.dev/weight: \"{weight}\"\n\
             addressType: {family}\nports:\n- name: \"{port_name}\"\n  protocol: {protocol}\n  port: {port}\nendpoints:\n"
        );
        for endpoint in *endpoints {
            yaml.push_str(&format!("- addresses: [\"{}\"]\n", endpoint.ip()));
        }
        yaml
    }
}

/// The Service whose address carries Ingress traffic.
pub fn ingress_service(vips: &[IpAddr]) -> String {
    let ingress: String = vips.iter().map(|vip| format!("    - ip: \"{vip}\"\n")).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: ingress-nginx-controller\n  namespace: ingress-nginx\nspec:\n  \
         type: LoadBalancer\n  allocateLoadBalancerNodePorts: false\n  ports:\n  - name: http\n    port: 80\n    \
         targetPort: http\n  - name: https\n    port: 443\n    targetPort: https\nstatus:\n  loadBalancer:\n    \
         ingress:\n{ingress}"
    )
}

/// An Ingress that sends every path of a host to a Service's port 80, with TLS from a Secret if named.
pub fn ingress(name: &str, host: &str, service: &str, secret: Option<&str>) -> String {
    let tls = secret.map_or_else(String::new, |secret| {
        format!("  tls:\n  - hosts: [\"{host}\"]\n    secretName: {secret}\n")
    });
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata:\n  name: {name}\n  annotations:\n    \
         nginx.ingress.kubernetes.io/ssl-redirect: \"false\"\nspec:\n  ingressClassName: nginx\n{tls}  rules:\n  \
         - host: \"{host}\"\n    http:\n      paths:\n      - path: /\n        pathType: Prefix\n        backend:\n          \
         service:\n            name: {service}\n            port:\n              number: 80\n"
    )
}

/// A ClusterIP Service with port 80 in front of `target_port`.
pub fn service(name: &str, target_port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  ports:\n  - port: 80\n    \
         targetPort: {target_port}\n"
    )
}

/// A certificate authority made for one run.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    /// A fresh one.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: rcgen::Issuer::new(params, key), pem })
    }

    /// Its certificate, for a client to trust.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A fresh certificate for a host or address, and its key.
    pub fn pair(&self, host: &str) -> Result<(String, String)> {
        let mut params = rcgen::CertificateParams::new([host.to_owned()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, host);
        let key = rcgen::KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    /// A `kubernetes.io/tls` Secret with a fresh certificate for a host.
    pub fn secret(&self, name: &str, host: &str) -> Result<String> {
        let (certificate, key) = self.pair(host)?;
        let indented = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
        Ok(format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: {name}\ntype: kubernetes.io/tls\nstringData:\n  \
             tls.crt: |\n{}  tls.key: |\n{}",
            indented(&certificate),
            indented(&key)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_is_yaml_that_the_agent_reads() {
        let dir = tempfile::tempdir().unwrap();
        let vip = "203.0.113.10".parse().unwrap();
        let service_of =
            LoadBalancer { name: "db", vip, protocol: "TCP", port: 5432, target_port: 5432, mode: "nat" };
        let documents = [
            service_of.with_backends(&[("10.0.0.1".parse().unwrap(), 1)]),
            ingress_service(&[vip]),
            ingress("web", "example.com", "web", Some("cert")),
            service("web", 8080),
            Authority::new("Test CA").unwrap().secret("cert", "example.com").unwrap(),
        ];
        std::fs::write(dir.path().join("all.yaml"), documents.join("---\n")).unwrap();

        let loaded = penstock::manifests::load(dir.path(), penstock::translate::ADMISSION).unwrap();

        assert_eq!(loaded.problems, []);
        assert_eq!(loaded.objects.services.len(), 3);
        assert_eq!(loaded.objects.secrets.len(), 1);
    }
}

//! A cluster of many Ingresses, as manifests.

use std::fmt::Write;

/// Objects of one kind in one text.
const PER_TEXT: usize = 5000;
/// Ingresses of one namespace.
const PER_NAMESPACE: usize = 50;

/// How large it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// Each with a host of its own, two paths and a Service.
    pub ingresses: usize,
}

impl Cluster {
    /// Every object, in texts that are small enough to be read.
    pub fn manifests(&self) -> Vec<String> {
        let mut texts = Vec::new();
        for first in (0..self.ingresses).step_by(PER_TEXT) {
            let range = first..self.ingresses.min(first + PER_TEXT);
            texts.push(range.clone().map(|index| self.ingress(index, "60")).collect());
            texts.push(range.clone().map(Self::service).collect());
            texts.push(range.map(Self::slice).collect());
        }
        texts
    }

    /// The Services alone.
    pub fn services(&self) -> Vec<String> {
        let all: Vec<_> = (0..self.ingresses).collect();
        all.chunks(PER_TEXT).map(|chunk| chunk.iter().map(|index| Self::service(*index)).collect()).collect()
    }

    /// The same Ingress where every request is sent on to this path.
    pub fn redirect(&self, index: usize, path: &str) -> String {
        let annotation =
            format!("    nginx.ingress.kubernetes.io/permanent-redirect: http://example.org{path}\nspec:");
        self.ingress(index, "60").replacen("spec:", &annotation, 1)
    }

    /// Host of an Ingress.
    pub fn host(index: usize) -> String {
        format!("app-{index}.example.com")
    }

    /// An Ingress with this `proxy-read-timeout`. One in ten rewrites, one in four has other settings.
    pub fn ingress(&self, index: usize, timeout: &str) -> String {
        let mut text = format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata:\n  name: app-{index}\n  namespace: ns-{}\n  annotations:\n    \
             nginx.ingress.kubernetes.io/proxy-read-timeout: \"{timeout}\"\n",
            index / PER_NAMESPACE
        );
        // Writing to a String cannot fail.
        if index.is_multiple_of(4) {
            let _ = write!(
                text,
                "    nginx.ingress.kubernetes.io/proxy-body-size: 50m\n    nginx.ingress.kubernetes.io/ssl-redirect: \"false\"\n"
            );
        }
        let rewrites = index.is_multiple_of(10);
        if rewrites {
            text.push_str("    nginx.ingress.kubernetes.io/rewrite-target: /$2\n");
        }
        let path = if rewrites { "/api(/|$)(.*)" } else { "/api" };
        let _ = write!(
            text,
            "spec:\n  ingressClassName: nginx\n  rules:\n  - host: {}\n    http:\n      paths:\n",
            Self::host(index)
        );
        for path in ["/", path] {
            let _ = write!(
                text,
                "      - path: {path}\n        pathType: ImplementationSpecific\n        backend: {{service: {{name: app-{index}, port: {{number: 80}}}}}}\n"
            );
        }
        text
    }

    fn service(index: usize) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: app-{index}, namespace: ns-{}}}\nspec:\n  ports: [{{port: 80, targetPort: 8080}}]\n",
            index / PER_NAMESPACE
        )
    }

    /// A slice with one endpoint on this host.
    pub fn slice_at(index: usize, port: u16) -> String {
        let text = Self::slice(index).replace("ports: [{port: 8080}]", &format!("ports: [{{port: {port}}}]"));
        let (head, _) = text.split_once("endpoints:").unwrap_or((&text, ""));
        format!("{head}endpoints: [{{addresses: [127.0.0.1]}}]\n")
    }

    /// The slice of an Ingress's Service. Its endpoints are addresses of this host that nobody listens at: what the
    /// bench asks before it is through goes no further.
    pub fn slice(index: usize) -> String {
        let (high, low) = (1 + index / 250, index % 250);
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: app-{index}\n  namespace: ns-{}\n  \
             labels: {{kubernetes.io/service-name: app-{index}}}\naddressType: IPv4\nports: [{{port: 8080}}]\n\
             endpoints: [{{addresses: [127.{high}.{low}.1]}}, {{addresses: [127.{high}.{low}.2]}}]\n",
            index / PER_NAMESPACE
        )
    }
}

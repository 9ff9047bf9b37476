//! The proxies in front of the backends, each from its own configuration.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process::Process;
use super::{BODY_BYTES, GRPC_PATH, HOST, OTHER_HOSTS, PROXY_CPU, backend, grpc};
use crate::agent::eventually;
use crate::manifests;

/// Longest wait for a server to answer.
const DEADLINE: Duration = Duration::from_secs(10);

const NGINX: &str = include_str!("../../bench/nginx.conf.in");
const NGINX_LUA: &str = include_str!("../../bench/nginx-lua.conf.in");
const HAPROXY: &str = include_str!("../../bench/haproxy.cfg.in");
const ENVOY: &str = include_str!("../../bench/envoy.yaml.in");
const TRAEFIK: &str = include_str!("../../bench/traefik.yaml.in");
const TRAEFIK_ROUTES: &str = include_str!("../../bench/traefik-routes.yaml.in");
/// Where Debian keeps nginx's modules.
const MODULES: &str = "/usr/lib/nginx/modules";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This project.
    Penstock,
    /// The measure of the others.
    Nginx,
    /// haproxy.
    Haproxy,
    /// envoy.
    Envoy,
    /// traefik.
    Traefik,
    /// nginx whose balancer is written in Lua, as ingress-nginx's is.
    NginxLua,
}

impl Kind {
    /// All of them, in the order of their turns.
    pub const ALL: [Self; 6] =
        [Self::Penstock, Self::Nginx, Self::Haproxy, Self::Envoy, Self::Traefik, Self::NginxLua];

    /// Name in the table and in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Penstock => "penstock",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Traefik => "traefik",
            Self::NginxLua => "nginx-lua",
        }
    }

    /// One of those that differ by tenths and not by factors.
    pub fn is_lean(self) -> bool {
        matches!(self, Self::Penstock | Self::Nginx | Self::Haproxy)
    }

    /// The program, if it is there.
    pub fn program(self) -> Option<PathBuf> {
        match self {
            Self::Penstock => crate::agent::binary().ok(),
            Self::Nginx | Self::Haproxy | Self::Envoy | Self::Traefik => find(self.name()),
            Self::NginxLua => {
                let module = Path::new(MODULES).join("ngx_http_lua_module.so");
                find("nginx").filter(|_| module.is_file())
            }
        }
    }

    /// Its own words about its version, on one line.
    pub fn version(self, program: &Path) -> String {
        let flag = match self {
            Self::Penstock | Self::Envoy => "--version",
            Self::Traefik => "version",
            Self::Nginx | Self::Haproxy | Self::NginxLua => "-v",
        };
        let Ok(output) = Command::new(program).arg(flag).output() else { return String::new() };
        // nginx says it on stderr.
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
    }
}

/// A proxy that answers.
pub struct Proxy {
    /// Which one.
    pub kind: Kind,
    /// Its processes.
    pub process: Process,
    /// Port for plain HTTP on 127.0.0.1.
    pub http: u16,
    /// Port for TLS.
    pub https: u16,
    access_log: PathBuf,
}

impl Proxy {
    /// Starts it in front of the backends, and waits until it passes on the answer of one.
    pub fn start(
        kind: Kind,
        program: &Path,
        backends: Backends,
        certificate: &Certificate,
        dir: &Path,
    ) -> Result<Self> {
        let [http, https, admin] = free_ports()?;
        let values = [
            ("DIR", dir.display().to_string()),
            ("HTTP", http.to_string()),
            ("HTTPS", https.to_string()),
            ("ADMIN", admin.to_string()),
            ("BACKEND", backends.http.to_string()),
            ("GRPC", backends.grpc.to_string()),
            ("MODULES", MODULES.to_owned()),
            ("HOSTS", other_hosts(kind, http, https)),
        ];
        let config = dir.join(format!("{}.conf", kind.name()));
        let log = dir.join(format!("{}.log", kind.name()));
        let access_log = dir.join(format!("{}.access.log", kind.name()));
        let at = |port: u16| format!("127.0.0.1:{port}");
        let path = config.display().to_string();
        let process = match kind {
            Kind::Penstock => {
                std::fs::create_dir_all(&config)?;
                std::fs::write(config.join("bench.yaml"), objects(backends, &access_log, certificate))?;
                let (http, https, admin) = (at(http), at(https), at(admin));
                let args = [
                    "run",
                    "--datapath",
                    "off",
                    "--workers",
                    "1",
                    "--manifests",
                    &path,
                    "--http",
                    &http,
                    "--https",
                    &https,
                    "--admin",
                    &admin,
                ];
                Process::start(PROXY_CPU, program, &args, &log)?
            }
            Kind::Nginx | Kind::NginxLua => {
                let template = if kind == Kind::Nginx { NGINX } else { NGINX_LUA };
                std::fs::write(&config, fill(template, &values))?;
                Process::start(PROXY_CPU, program, &["-e", "stderr", "-c", &path], &log)?
            }
            Kind::Haproxy => {
                std::fs::write(&config, fill(HAPROXY, &values))?;
                let hosts = [HOST.to_owned()].into_iter().chain((1..=OTHER_HOSTS).map(other_host));
                std::fs::write(
                    dir.join("hosts.map"),
                    hosts.map(|host| format!("{host} backend\n")).collect::<String>(),
                )?;
                Process::start(PROXY_CPU, program, &["-db", "-f", &path], &log)?
            }
            Kind::Envoy => {
                // By its name envoy tells in which language it is written.
                let path = config.with_extension("yaml");
                std::fs::write(&path, fill(ENVOY, &values))?;
                let path = path.display().to_string();
                let args =
                    ["-c", &path, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"];
                Process::start(PROXY_CPU, program, &args, &log)?
            }
            Kind::Traefik => {
                let path = config.with_extension("yaml");
                std::fs::write(&path, fill(TRAEFIK, &values))?;
                std::fs::write(dir.join("traefik-routes.yaml"), fill(TRAEFIK_ROUTES, &values))?;
                let path = format!("--configFile={}", path.display());
                let args = ["GOMAXPROCS=1", &program.display().to_string(), &path];
                Process::start(PROXY_CPU, Path::new("env"), &args, &log)?
            }
        };
        let mut proxy = Self { kind, process, http, https, access_log };
        wait_for(&mut proxy.process, http)?;
        Ok(proxy)
    }

    /// Empties its access log, so that a run does not fill the disk.
    pub fn forget_log(&self) {
        self.process.forget_log();
        let log = File::options().write(true).open(&self.access_log);
        let _ = log.and_then(|log| log.set_len(0));
    }
}

/// Ports of the backends.
#[derive(Debug, Clone, Copy)]
pub struct Backends {
    /// HTTP/1.1.
    pub http: u16,
    /// gRPC without TLS.
    pub grpc: u16,
}

impl Backends {
    /// Starts them, each on a thread of ours.
    pub fn start() -> Result<Self> {
        Ok(Self { http: backend::start()?, grpc: grpc::start()? })
    }
}

fn other_host(number: usize) -> String {
    format!("host-{number}.bench.example")
}

/// The hosts that nobody asks for, as each proxy is told of them.
fn other_hosts(kind: Kind, http: u16, https: u16) -> String {
    let one = |number| {
        let host = other_host(number);
        match kind {
            Kind::Nginx | Kind::NginxLua => format!(
                "    server {{\n        listen 127.0.0.1:{http};\n        listen 127.0.0.1:{https} ssl http2;\n        \
                 server_name {host};\n        location / {{ proxy_pass http://backend; }}\n    }}\n"
            ),
            Kind::Envoy => format!(
                "            - name: {host}\n              domains: [{host}]\n              routes: [{{match: {{prefix: /}}, \
                 route: {{cluster: backend}}}}]\n"
            ),
            Kind::Traefik => format!(
                "    host-{number}: {{rule: \"Host(`{host}`)\", entryPoints: [web], service: backend}}\n"
            ),
            // These are told otherwise: by Ingresses, by a map.
            Kind::Penstock | Kind::Haproxy => String::new(),
        }
    };
    (1..=OTHER_HOSTS).map(one).collect()
}

/// An ECDSA P-256 certificate for the host, as PEM.
pub struct Certificate {
    certificate: String,
    key: String,
}

impl Certificate {
    /// A fresh one, that signs itself, also as files for nginx and haproxy.
    pub fn new(dir: &Path) -> Result<Self> {
        let params = rcgen::CertificateParams::new([HOST.to_owned()])?;
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let made = Self { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() };
        made.write(dir)?;
        Ok(made)
    }

    /// The same as files, for a proxy in another directory.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let Self { certificate, key } = self;
        std::fs::write(dir.join("cert.pem"), certificate)?;
        std::fs::write(dir.join("key.pem"), key)?;
        std::fs::write(dir.join("both.pem"), format!("{certificate}{key}"))?;
        Ok(())
    }

    /// As a Secret of the name `cert`.
    pub fn secret(&self) -> String {
        let indented = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: cert\ntype: kubernetes.io/tls\nstringData:\n  \
             tls.crt: |\n{}  tls.key: |\n{}",
            indented(&self.certificate),
            indented(&self.key)
        )
    }
}

/// The program's file in PATH, or where Debian keeps servers.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into(), peers()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Where `cargo xtask setup bench` puts what Debian does not carry.
fn peers() -> PathBuf {
    crate::workspace().join("target/peers/bin")
}

/// What Penstock reads: the hosts, in front of the backends, with and without TLS, and the common log format.
fn objects(backends: Backends, access_log: &Path, certificate: &Certificate) -> String {
    let endpoints = [SocketAddr::from(([127, 0, 0, 1], backends.http))];
    let grpc_endpoints = [SocketAddr::from(([127, 0, 0, 1], backends.grpc))];
    let grpc = manifests::Slice {
        name: "grpc-1",
        service: "grpc",
        port_name: "",
        protocol: "TCP",
        endpoints: &grpc_endpoints,
        weight: 1,
    };
    let path = GRPC_PATH.rsplit_once('/').map_or(GRPC_PATH, |(service, _)| service);
    let grpc_ingress = manifests::ingress("grpc", HOST, "grpc", Some("cert"))
        .replace("- path: /\n", &format!("- path: {path}\n"))
        .replace(
            "  annotations:\n",
            "  annotations:\n    nginx.ingress.kubernetes.io/backend-protocol: GRPC\n",
        );
    let settings = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: ingress-nginx-controller\n  namespace: ingress-nginx\n\
         data:\n  generate-request-id: \"false\"\n  keep-alive-requests: \"1000000000\"\n  keep-alive: \"600\"\n  upstream-keepalive-connections: \"512\"\n  \
         upstream-keepalive-requests: \"1000000000\"\n  \
         ssl-protocols: TLSv1.3\n  ssl-ecdh-curve: X25519\n  ssl-session-tickets: \"false\"\n  \
         ssl-session-cache: \"false\"\n  access-log-path: {}\n  \
         log-format-upstream: '$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent'\n",
        access_log.display()
    );
    let others =
        (1..=OTHER_HOSTS).map(|n| manifests::ingress(&format!("other-{n}"), &other_host(n), "web", None));
    let slice = manifests::Slice {
        name: "web-1",
        service: "web",
        port_name: "",
        protocol: "TCP",
        endpoints: &endpoints,
        weight: 1,
    };
    [
        manifests::ingress("web", HOST, "web", Some("cert")),
        manifests::service("web", backends.http),
        slice.yaml(),
        certificate.secret(),
        manifests::service("grpc", backends.grpc),
        grpc.yaml(),
        grpc_ingress,
        settings,
    ]
    .into_iter()
    .chain(others)
    .collect::<Vec<_>>()
    .join("---\n")
}

/// Replaces each `@NAME@` by its value.
pub fn fill(template: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("@{name}@"), value))
}

/// Ports that were free just now; held together, so that they differ.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut ports = [0; N];
    let mut held = Vec::new();
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").context("bind a free port")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// Asks until the backend's answer comes back.
fn wait_for(process: &mut Process, port: u16) -> Result<()> {
    let mut last = String::from("no answer");
    let up = eventually(DEADLINE, || {
        if process.has_ended() {
            return Some(false);
        }
        match ask(port) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") && answer.len() > BODY_BYTES => {
                return Some(true);
            }
            Ok(answer) => last = answer.lines().next().unwrap_or("an empty answer").to_owned(),
            Err(error) => last = format!("{error:#}"),
        }
        None
    });
    match up {
        Some(true) => Ok(()),
        Some(false) => bail!("ended at once:\n{}", process.log()),
        None => bail!("not up after {DEADLINE:?} ({last}):\n{}", process.log()),
    }
}

fn ask(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_of_the_templates_is_filled() {
        let values = ["DIR", "HTTP", "HTTPS", "ADMIN", "BACKEND", "GRPC", "MODULES", "HOSTS"]
            .map(|name| (name, "1".to_owned()));

        for (case, template) in [
            ("nginx", NGINX),
            ("nginx-lua", NGINX_LUA),
            ("haproxy", HAPROXY),
            ("envoy", ENVOY),
            ("traefik", TRAEFIK),
            ("traefik-routes", TRAEFIK_ROUTES),
        ] {
            // envoy names types with an @.
            assert!(!fill(template, &values).replace("@type", "").contains('@'), "{case}");
        }
    }

    #[test]
    fn objects_are_read_without_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let certificate = Certificate::new(dir.path()).unwrap();
        let manifests = dir.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        std::fs::write(
            manifests.join("bench.yaml"),
            objects(Backends { http: 8080, grpc: 8081 }, Path::new("/log"), &certificate),
        )
        .unwrap();

        let loaded = penstock::manifests::load(&manifests, penstock::translate::ADMISSION).unwrap();

        assert_eq!(loaded.problems, []);
        assert_eq!(loaded.objects.secrets.len(), 1);
    }
}

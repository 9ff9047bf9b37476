//! The backend and the proxies in front of it, each from its own configuration.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process::Process;
use super::{BODY_BYTES, HOST, LOAD_CPU, PROXY_CPU};
use crate::agent::eventually;
use crate::manifests;

/// Longest wait for a server to answer.
const DEADLINE: Duration = Duration::from_secs(10);

const BACKEND: &str = include_str!("../../bench/backend.conf.in");
const NGINX: &str = include_str!("../../bench/nginx.conf.in");
const HAPROXY: &str = include_str!("../../bench/haproxy.cfg.in");

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This project.
    Penstock,
    /// The measure of the others.
    Nginx,
    /// haproxy.
    Haproxy,
}

impl Kind {
    /// All of them, in the order of their turns.
    pub const ALL: [Self; 3] = [Self::Penstock, Self::Nginx, Self::Haproxy];

    /// Name in the table and in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Penstock => "penstock",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    /// The program, if it is there.
    pub fn program(self) -> Option<PathBuf> {
        match self {
            Self::Penstock => crate::agent::binary().ok(),
            Self::Nginx | Self::Haproxy => find(self.name()),
        }
    }

    /// Its own words about its version, on one line.
    pub fn version(self, program: &Path) -> String {
        let flag = if self == Self::Penstock { "--version" } else { "-v" };
        let Ok(output) = Command::new(program).arg(flag).output() else { return String::new() };
        // nginx says it on stderr.
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned()
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
}

impl Proxy {
    /// Starts it in front of the backend at that port, and waits until it passes on the backend's answer.
    pub fn start(
        kind: Kind,
        program: &Path,
        backend: u16,
        certificate: &Certificate,
        dir: &Path,
    ) -> Result<Self> {
        let [http, https, admin] = free_ports()?;
        let values = [
            ("DIR", dir.display().to_string()),
            ("HTTP", http.to_string()),
            ("HTTPS", https.to_string()),
            ("BACKEND", backend.to_string()),
        ];
        let config = dir.join(format!("{}.conf", kind.name()));
        let log = dir.join(format!("{}.log", kind.name()));
        let at = |port: u16| format!("127.0.0.1:{port}");
        let path = config.display().to_string();
        let process = match kind {
            Kind::Penstock => {
                std::fs::create_dir_all(&config)?;
                std::fs::write(config.join("bench.yaml"), objects(backend, certificate))?;
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
            Kind::Nginx => {
                std::fs::write(&config, fill(NGINX, &values))?;
                Process::start(PROXY_CPU, program, &["-e", "stderr", "-c", &path], &log)?
            }
            Kind::Haproxy => {
                std::fs::write(&config, fill(HAPROXY, &values))?;
                Process::start(PROXY_CPU, program, &["-db", "-f", &path], &log)?
            }
        };
        let mut proxy = Self { kind, process, http, https };
        wait_for(&mut proxy.process, http)?;
        Ok(proxy)
    }
}

/// Starts nginx as the backend; its port.
pub fn start_backend(dir: &Path) -> Result<(Process, u16)> {
    let nginx = find("nginx").context("no nginx on this machine, which the backend is made of")?;
    let [port] = free_ports()?;
    let values =
        [("DIR", dir.display().to_string()), ("PORT", port.to_string()), ("BODY", "x".repeat(BODY_BYTES))];
    let config = dir.join("backend.conf");
    std::fs::write(&config, fill(BACKEND, &values))?;
    let args = ["-e", "stderr", "-c", &config.display().to_string()];
    let mut process = Process::start(LOAD_CPU, &nginx, &args, &dir.join("backend.log"))?;
    wait_for(&mut process, port)?;
    Ok((process, port))
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
        let certificate = params.self_signed(&key)?.pem();
        let key = key.serialize_pem();
        std::fs::write(dir.join("cert.pem"), &certificate)?;
        std::fs::write(dir.join("key.pem"), &key)?;
        std::fs::write(dir.join("both.pem"), format!("{certificate}{key}"))?;
        Ok(Self { certificate, key })
    }

    fn secret(&self) -> String {
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
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// What Penstock reads: one host, in front of one backend, with and without TLS.
fn objects(backend: u16, certificate: &Certificate) -> String {
    let endpoints = [SocketAddr::from(([127, 0, 0, 1], backend))];
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
        manifests::service("web", backend),
        slice.yaml(),
        certificate.secret(),
    ]
    .join("---\n")
}

/// Replaces each `@NAME@` by its value.
fn fill(template: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("@{name}@"), value))
}

/// Ports that were free just now; held together, so that they differ.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
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
        let values = ["DIR", "HTTP", "HTTPS", "BACKEND", "PORT", "BODY"].map(|name| (name, "1".to_owned()));

        for (case, template) in [("backend", BACKEND), ("nginx", NGINX), ("haproxy", HAPROXY)] {
            assert!(!fill(template, &values).contains('@'), "{case}");
        }
    }

    #[test]
    fn objects_are_read_without_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let certificate = Certificate::new(dir.path()).unwrap();
        let manifests = dir.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        std::fs::write(manifests.join("bench.yaml"), objects(8080, &certificate)).unwrap();

        let loaded = penstock::manifests::load(&manifests, |_, _| Vec::new()).unwrap();

        assert_eq!(loaded.problems, []);
        assert_eq!(loaded.objects.secrets.len(), 1);
    }
}

//! A real kube-apiserver with its etcd, on free ports of the loopback, with its state in a temporary
//! folder. It ends with the value, and with this process however that ends.
//!
//! One serves a whole run of the tier `cluster` (the program `with-apiserver` starts it): it takes
//! seconds to start and hundreds of megabytes. Tests keep apart by namespaces of their own.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::agent::eventually;
use crate::manifests::Authority;

/// Names the folder with `etcd` and `kube-apiserver`, by the custom of envtest.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// Names the kubeconfig of the server that a run of tests shares.
pub const KUBECONFIG: &str = "PENSTOCK_TEST_KUBECONFIG";

/// The administrator's token: what the harness itself uses.
const TOKEN: &str = "harness";
/// An idle machine takes four seconds.
const STARTS_WITHIN: Duration = Duration::from_secs(120);
/// Ports are free when they are chosen, and may be taken a moment later.
const ATTEMPTS: usize = 3;

/// What is written down of accounts in the cluster: who asked for what, and what became of it.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- {level: \
                     Metadata, userGroups: [\"system:serviceaccounts\"]}\n- {level: None}\n";

/// A running API server.
pub struct ApiServer {
    // In the order in which they have to end.
    server: Ended,
    etcd: Ended,
    /// URL of the store.
    clients: String,
    dir: tempfile::TempDir,
}

impl ApiServer {
    /// Starts one of the programs in `assets` and waits until it is ready.
    pub fn start(assets: &Path) -> Result<Self> {
        Self::start_with(assets, &[])
    }

    /// The same with more flags of kube-apiserver.
    pub fn start_with(assets: &Path, flags: &[&str]) -> Result<Self> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match Self::attempt(assets, flags) {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    fn attempt(assets: &Path, flags: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("penstock-apiserver-").tempdir()?;
        let [clients, peers, https] = free_ports()?;
        let (clients, peers) = (format!("http://127.0.0.1:{clients}"), format!("http://127.0.0.1:{peers}"));
        let url = format!("https://127.0.0.1:{https}");
        let at = |name: &str| dir.path().join(name);

        let authority = Authority::new("Test API server's CA")?;
        let (certificate, key) = authority.pair("127.0.0.1")?;
        fs::write(at("server.crt"), certificate)?;
        fs::write(at("server.key"), key)?;
        let accounts = rcgen::KeyPair::generate()?;
        fs::write(at("accounts.key"), accounts.serialize_pem())?;
        fs::write(at("accounts.pub"), accounts.public_key_pem())?;
        fs::write(at("tokens.csv"), format!("{TOKEN},harness,harness,\"system:masters\"\n"))?;
        fs::write(at("ca.crt"), authority.pem())?;
        fs::write(at("kubeconfig"), kubeconfig(&url, authority.pem(), TOKEN))?;
        fs::write(at("audit.yaml"), AUDIT)?;

        let mut etcd = program(assets, "etcd");
        etcd.arg("--data-dir").arg(at("etcd"));
        etcd.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        etcd.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        etcd.args(["--initial-cluster", &format!("default={peers}")]);
        // Nothing here has to outlive a power cut.
        etcd.arg("--unsafe-no-fsync");
        let etcd = Ended::spawn(etcd, &at("etcd.log"))?;

        let mut server = program(assets, "kube-apiserver");
        server.args(["--etcd-servers", &clients, "--bind-address", "127.0.0.1"]);
        server.args(["--advertise-address", "127.0.0.1", "--secure-port", &https.to_string()]);
        for (flag, name) in [
            ("--tls-cert-file", "server.crt"),
            ("--tls-private-key-file", "server.key"),
            ("--token-auth-file", "tokens.csv"),
            ("--service-account-key-file", "accounts.pub"),
            ("--service-account-signing-key-file", "accounts.key"),
            ("--audit-policy-file", "audit.yaml"),
            ("--audit-log-path", "audit.log"),
        ] {
            server.arg(flag).arg(at(name));
        }
        server.args(["--service-account-issuer", &url, "--authorization-mode", "RBAC"]);
        server.args(["--service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112", "--allow-privileged"]);
        // Nobody runs here who would make accounts and endpoints.
        server.args(["--disable-admission-plugins", "ServiceAccount", "--endpoint-reconciler-type", "none"]);
        if version(assets)?.starts_with("Kubernetes v1.20.") {
            // Whoever asks for a kind shall get the version that a server of today has.
            server.args(["--insecure-port", "0", "--runtime-config"]).arg(
                "extensions/v1beta1=false,networking.k8s.io/v1beta1=false,discovery.k8s.io/v1beta1=false,policy/v1beta1=false",
            );
        }
        server.args(flags);
        let server = Ended::spawn(server, &at("server.log"))?;

        let mut this = Self { server, etcd, clients, dir };
        this.wait_until_ready()?;
        Ok(this)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(client(&self.kubeconfig()))?;
        let ready = eventually(STARTS_WITHIN, || {
            if !self.server.is_running() || !self.etcd.is_running() {
                return Some(false);
            }
            let asked = http::Request::get("/readyz").body(Vec::new()).ok()?;
            runtime.block_on(client.request_text(asked)).ok().filter(|word| word == "ok").map(|_| true)
        });
        match ready {
            Some(true) => Ok(()),
            _ => bail!(
                "kube-apiserver did not start:\n{}\n{}",
                self.etcd.last_words(),
                self.server.last_words()
            ),
        }
    }

    /// Who the administrator is and where the server is.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// Has the store forget all versions but the newest ones.
    pub fn compact(&self) -> Result<()> {
        let config = Config::new(self.clients.parse()?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let store = Client::try_from(config)?;
            let asked = |path: &str, what: &serde_json::Value| {
                http::Request::post(path).body(what.to_string().into())
            };
            // Any key will do.
            let range = asked("/v3/kv/range", &serde_json::json!({"key": "AA=="}))?;
            let answer: serde_json::Value = store.request(range).await?;
            let revision = answer["header"]["revision"].as_str().context("a revision")?;
            let compaction =
                asked("/v3/kv/compaction", &serde_json::json!({"revision": revision, "physical": true}))?;
            store.request::<serde_json::Value>(compaction).await?;
            Ok(())
        })
    }

    /// What accounts in the cluster have asked of it so far, as `audit.k8s.io/v1` Events.
    pub fn audit(&self) -> Result<Vec<serde_json::Value>> {
        let text = fs::read_to_string(self.dir.path().join("audit.log"))?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

/// A kubeconfig for one user of one server.
pub fn kubeconfig(url: &str, authority_pem: &str, token: &str) -> String {
    use base64::Engine as _;
    let authority = base64::engine::general_purpose::STANDARD.encode(authority_pem);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: test\n  cluster: {{server: \"{url}\", \
         certificate-authority-data: {authority}}}\nusers:\n- name: test\n  user: {{token: \"{token}\"}}\ncontexts:\n- \
         name: test\n  context: {{cluster: test, user: test}}\ncurrent-context: test\n"
    )
}

/// A client as a kubeconfig describes it.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// `Kubernetes v1.20.2+…`
fn version(assets: &Path) -> Result<String> {
    let output = Command::new(assets.join("kube-apiserver")).arg("--version").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let held: Vec<TcpListener> =
        (0..N).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// The program, to end with the thread that starts it.
fn program(assets: &Path, name: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(assets.join(name));
    command
}

/// A process that ends when this does.
struct Ended {
    child: Child,
    log: PathBuf,
}

impl Ended {
    fn spawn(mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("start {command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

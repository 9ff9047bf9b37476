//! Why a command could not do what it was asked, with the exit code a script can rely on.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::{cluster, config, datapath, l7, manifests, takeover, webhook};

/// Failure of a command as a whole. Trouble with single objects is a
/// [`Problem`](crate::model::Problem), never this.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The question itself is wrong.
    #[error("{0}")]
    Usage(String),
    /// A flag, variable or the config file is refused.
    #[error(transparent)]
    Config(config::Error),
    /// The manifests cannot be read at all.
    #[error("--manifests: {0}")]
    Manifests(#[from] manifests::Error),
    /// What was named on the command line cannot be read.
    #[error("{0}")]
    Paths(manifests::Error),
    /// The cluster cannot be asked.
    #[error("cluster: {0}")]
    Cluster(#[from] cluster::Error),
    /// It did not say all that there is in time.
    #[error("cluster: {server} did not answer within {seconds} s: {wants}")]
    Silent {
        /// The API server.
        server: String,
        /// How long it was waited for.
        seconds: u64,
        /// What is missing, and why.
        wants: String,
    },
    /// No body could be put there.
    #[error("--temp-dir {}: {source}; name a directory that this user may write to", dir.display())]
    TempDir {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A listener of the proxy cannot be opened.
    #[error("listen: {0}")]
    Listen(#[from] l7::Error),
    /// The admin endpoint cannot be opened.
    #[error(
        "--admin {addr}: {source}{}",
        if source.kind() == std::io::ErrorKind::AddrInUse { "; another program listens there (`ss -ltnp` names it)" } else { "" }
    )]
    Admin {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The webhook cannot be opened.
    #[error("--validating-webhook {addr}: {source}")]
    Webhook {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The webhook's certificate is to be kept in a cluster, and there is none.
    #[error("--validating-webhook-configuration is an object of a cluster; --manifests follows none")]
    WebhookWithoutCluster,
    /// What it has to show is unusable.
    #[error("--validating-webhook-certificate: {0}")]
    WebhookCertificate(#[from] webhook::Error),
    /// The kernel part cannot start.
    #[error("datapath: {0}; --datapath off serves L7 without the kernel part")]
    Datapath(#[from] datapath::Error),
    /// What an agent left cannot be removed.
    #[error("{0}")]
    Detach(datapath::Error),
    /// The agent that runs is not taken over.
    #[error("--takeover: {0}")]
    Takeover(takeover::Error),
    /// No live agent answered.
    #[error("{0}")]
    Live(String),
    /// What was asked for cannot be written where it is to go.
    #[error("{to}: {source}")]
    Output {
        /// The file, or standard output.
        to: String,
        /// Why.
        source: std::io::Error,
    },
    /// The process itself lacks something, e.g. threads.
    #[error("runtime: {0}")]
    Runtime(std::io::Error),
}

impl StartError {
    /// Exit code of the process: 2 for a wrong question, from 64 on what was lacking to do it. Each command's help
    /// says those that it may end with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Config(_)
            | Self::TempDir { .. }
            | Self::WebhookWithoutCluster
            | Self::WebhookCertificate(_) => 64,
            Self::Manifests(_) | Self::Paths(_) | Self::Cluster(_) | Self::Silent { .. } => 65,
            Self::Listen(_) | Self::Admin { .. } | Self::Webhook { .. } => 66,
            Self::Datapath(_) | Self::Detach(_) => 67,
            Self::Live(_) => 68,
            Self::Runtime(_) => 69,
            Self::Takeover(_) => 70,
            Self::Output { .. } => 71,
        }
    }
}

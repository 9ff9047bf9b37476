//! Where the API server is and who we are there.

use std::path::PathBuf;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::Error;

/// How to reach the API server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// A kubeconfig; `None`: the account of the pod we are in.
    pub kubeconfig: Option<PathBuf>,
    /// In place of the server named there.
    pub server: Option<String>,
    /// In place of the authority named there.
    pub authority: Option<PathBuf>,
}

/// A way to the API server. Nothing was asked of it yet.
#[derive(Clone)]
pub struct Cluster {
    pub(super) client: Client,
    /// For people.
    server: String,
}

impl Cluster {
    /// Reads how to get there.
    pub async fn connect(access: &Access) -> Result<Self, Error> {
        let mut config = match (&access.kubeconfig, &access.server) {
            (Some(path), _) => {
                let read = Kubeconfig::read_from(path);
                let bad = |source| Error::Kubeconfig { path: path.clone(), source };
                let kubeconfig = read.map_err(bad)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(bad)?
            }
            // A proxy that says for us who we are, as `kubectl proxy`.
            (None, Some(server)) => match Config::incluster() {
                Ok(config) => config,
                Err(_) => Config::new(url(server)?),
            },
            (None, None) => Config::incluster().map_err(|error| Error::NoPod(error.to_string()))?,
        };
        if let Some(server) = &access.server {
            config.cluster_url = url(server)?;
        }
        if let Some(path) = &access.authority {
            std::fs::metadata(path).map_err(|source| Error::Authority { path: path.clone(), source })?;
            config.root_cert_file = Some(path.clone());
        }
        // What fails is counted and told here, and tried again here.
        config.default_retry = false;
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|error| Error::Client(error.to_string()))?;
        Ok(Self { client, server })
    }

    /// Where it is.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The namespace that we are in ourselves.
    pub fn own_namespace(&self) -> &str {
        self.client.default_namespace()
    }
}

fn url(text: &str) -> Result<http::Uri, Error> {
    let url: http::Uri = text.parse().map_err(|_| Error::Server(text.to_owned()))?;
    let whole = url.scheme().is_some() && url.authority().is_some();
    if whole { Ok(url) } else { Err(Error::Server(text.to_owned())) }
}

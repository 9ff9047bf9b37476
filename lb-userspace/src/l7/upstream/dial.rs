//! TLS to endpoints for who asks them how they are: the same as requests get, on connections of
//! his own.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::route::TlsEntry;
use super::client::{Client, client};
use crate::model::upstream::UpstreamTls;

/// Ways to speak TLS that are remembered, with their sessions. Beyond that all are forgotten, which
/// costs a handshake each.
const KNOWN_MAX: usize = 64;

/// Speaks TLS to endpoints, and HTTP/1.1 above it.
#[derive(Default)]
pub struct Dialer {
    known: Mutex<HashMap<TlsEntry, Arc<Client>>>,
}

impl Dialer {
    /// Encrypts a connection to an endpoint.
    pub async fn encrypt(
        &self,
        stream: TcpStream,
        endpoint: SocketAddr,
        tls: Arc<UpstreamTls>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let client = self.client(TlsEntry { tls, h2: false });
        let config = client.config.clone().ok_or(io::ErrorKind::InvalidInput)?;
        TlsConnector::from(config).connect(client.name(endpoint), stream).await
    }

    fn client(&self, entry: TlsEntry) -> Arc<Client> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX && !known.contains_key(&entry) {
            known.clear();
        }
        // Its id is for pools, where these connections never come.
        Arc::clone(known.entry(entry).or_insert_with_key(|entry| Arc::new(client(0, entry))))
    }
}

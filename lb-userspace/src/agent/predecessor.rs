//! The successor's side of a takeover: what the agent before us leaves, and when it may go.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::StartError;
use super::running::Running;
use super::successor::{place, stream_place, stream_role};
use crate::config::Config;
use crate::l7::{Inherited, InheritedStream, Place, TicketKeys};
use crate::model::health::Unwell;
use crate::model::l4::Listener;
use crate::takeover::{self, Document, Predecessor, Role, Socket, Unread};

/// How long the agent before us stands by once we serve.
const PROBATION: Duration = Duration::from_secs(3);

/// The agent before us, if there is one that we are to take over from.
#[derive(Default)]
pub(super) struct Before {
    predecessor: Option<Predecessor>,
    /// When it may go.
    until: Option<Instant>,
}

impl Before {
    /// Connects to it, where `--takeover` says so.
    pub(super) async fn find(config: &Config, unread: Option<Unread>) -> Result<Self, StartError> {
        if !config.takeover {
            return Ok(Self::default());
        }
        let Some(link) = takeover::connect(&config.run_dir).await.map_err(StartError::Takeover)? else {
            info!(run_dir = %config.run_dir.display(), "no agent is there to take over from");
            return Ok(Self::default());
        };
        let pid = link.peer().pid;
        let predecessor = Predecessor::meet(link, unread).await.map_err(StartError::Takeover)?;
        info!(pid, sockets = predecessor.sockets.len(), "taking over");
        Ok(Self { predecessor: Some(predecessor), until: None })
    }

    pub(super) fn is_there(&self) -> bool {
        self.predecessor.is_some()
    }

    /// Snapshots that were put in force before ours, and takeovers up to this one.
    pub(super) fn so_far(&self) -> (u64, u64) {
        self.predecessor
            .as_ref()
            .map_or((0, 0), |before| (before.state.generation, before.state.takeovers + 1))
    }

    /// Its last good versions of what we could not read.
    pub(super) fn documents(&mut self) -> Vec<Document> {
        self.predecessor.as_mut().map(|before| std::mem::take(&mut before.documents)).unwrap_or_default()
    }

    /// What its TLS sessions can be resumed by.
    pub(super) fn ticket_keys(&self) -> Option<TicketKeys> {
        TicketKeys::from_bytes(&self.predecessor.as_ref()?.state.tickets.0)
    }

    /// Whom its active checks found unwell.
    pub(super) fn unwell(&mut self) -> Unwell {
        let told = self.predecessor.as_mut().map(|before| std::mem::take(&mut before.state.unwell));
        told.and_then(|unwell| serde_json::from_value(unwell).ok()).unwrap_or_default()
    }

    /// Its listening sockets of the proxy, those of TCP and UDP services, and of the admin endpoint if that stays where it was.
    pub(super) fn sockets(
        &mut self,
        admin: SocketAddr,
    ) -> (Vec<Inherited>, Vec<InheritedStream>, Option<TcpListener>) {
        let (mut proxys, mut streams, mut admins) = (Vec::new(), Vec::new(), None);
        let sockets = self.predecessor.as_mut().map(|before| std::mem::take(&mut before.sockets));
        for Socket { role, fd } in sockets.into_iter().flatten() {
            match (place(role), stream_place(role)) {
                (Some(place), _) => proxys.push(Inherited { place, socket: fd.into() }),
                (None, Some(at)) => streams.push(InheritedStream { at, socket: fd }),
                (None, None) if role == Role::Admin(admin) => admins = Some(fd.into()),
                (None, None) => {}
            }
        }
        (proxys, streams, admins)
    }

    /// Has it let go of the kernel part, if it has one.
    pub(super) async fn let_go(&mut self) -> Result<(), StartError> {
        match &mut self.predecessor {
            Some(before) if before.state.datapath => match before.let_go().await {
                // It is gone, and so the kernel part is free.
                Err(takeover::Error::Ended) => Ok(()),
                answer => answer.map_err(StartError::Takeover),
            },
            _ => Ok(()),
        }
    }

    /// Tells it that we accept connections; it stands by from now on.
    pub(super) async fn serving(
        &mut self,
        agent: &Running,
        taken: &BTreeSet<Place>,
    ) -> Result<(), StartError> {
        let Some(before) = &mut self.predecessor else { return Ok(()) };
        let roles = taken.iter().map(|place| match place.listener {
            Listener::Http => Role::Http(place.wanted),
            Listener::Https => Role::Https(place.wanted),
        });
        let roles = roles.chain(agent.proxy.taken_streams().into_iter().map(stream_role));
        match before.serving(roles.collect()).await {
            Ok(counts) => {
                if !agent.proxy.add_counts(counts).await {
                    warn!("the counters of the agent before this one are of another kind, they begin anew");
                }
            }
            Err(takeover::Error::Ended) => warn!("the agent before this one has ended"),
            Err(error) => return Err(StartError::Takeover(error)),
        }
        self.until = Some(Instant::now() + PROBATION);
        Ok(())
    }

    /// Waits until it may go; for ever if there is none.
    pub(super) async fn probation(&self) {
        match self.until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    /// Lets it go now.
    pub(super) async fn settle(&mut self) {
        self.until = None;
        if let Some(before) = self.predecessor.take()
            && let Err(error) = before.settled().await
        {
            tracing::debug!(%error, "the agent before this one has ended");
        }
    }
}

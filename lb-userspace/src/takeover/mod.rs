//! What a running agent and its successor say to each other over a Unix socket, and the sockets
//! that pass from one to the other. What it means for the rooms, `agent` knows.
//!
//! ```text
//! successor                         predecessor
//! Hello ───────────────────────────>  serves on
//!       <─────────────────────────── Sockets ... Documents ... State
//! LetGo ───────────────────────────>  lets go of the kernel part
//!       <─────────────────────────── Gone
//! Serving ─────────────────────────>  accepts no more, its connections go on
//!       <─────────────────────────── Parked
//! Settled ─────────────────────────>  drains and ends
//! ```
//!
//! Both hold the same listening sockets all the while, so nothing in an accept queue is lost, and
//! if the link breaks before `Settled`, whoever is left serves alone.

mod link;
mod listener;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use link::{Link, Peer};
pub use listener::{Listener, connect};

/// Longest wait for an answer of the predecessor, which may be busy with a change.
const ANSWER: Duration = Duration::from_secs(60);

/// After so long somebody may wonder.
const PATIENCE: Duration = Duration::from_secs(3);

/// Bytes of documents in one message, before the last of them.
const DOCUMENTS: usize = 1 << 20;

/// Changes when a message changes its meaning; more fields alone do not.
const VERSION: u32 = 1;

/// Why a takeover does not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{call} {object}: {source}")]
    System {
        /// What was tried.
        call: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Another agent uses the socket.
    #[error("{}: another agent can be taken over there; give this one another --run-dir", path.display())]
    Occupied {
        /// The socket.
        path: PathBuf,
    },
    /// The other end belongs to somebody else.
    #[error("process {pid} belongs to user {uid}: only the same user or root takes part in a takeover")]
    Stranger {
        /// Its process.
        pid: i32,
        /// Its user.
        uid: u32,
    },
    /// The other end is gone.
    #[error("the other process ended")]
    Ended,
    /// The other end says nothing.
    #[error(
        "the running agent (process {pid}) does not answer; if it hangs, end it (`kill -9 {pid}`) and start without \
        --takeover: what is pinned forwards on"
    )]
    Silent {
        /// Its process.
        pid: i32,
    },
    /// The other end refuses.
    #[error("the running agent refuses: {0}")]
    Refused(String),
    /// The other end says what makes no sense here.
    #[error("the other process does not keep to the protocol: {0}")]
    Protocol(String),
}

/// What one end tells the other.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// First word of a successor.
    Hello {
        /// [`VERSION`] of who speaks.
        version: u32,
        /// What it would like to have documents for.
        #[serde(default)]
        unread: Option<Unread>,
        /// It knows what to do with sockets of TCP and UDP services.
        #[serde(default)]
        streams: bool,
    },
    /// Some of the listening sockets, which come with this.
    Sockets(Vec<Role>),
    /// Some of the documents that are in force, for a successor that asked for them.
    Documents(Vec<Document>),
    /// All the rest; ends the answer to `Hello`.
    State(Box<State>),
    /// The successor wants the kernel part.
    LetGo,
    /// It may have it.
    Gone,
    /// The successor accepts connections.
    Serving {
        /// The sockets that it accepts from.
        taken: Vec<Role>,
    },
    /// The predecessor has stopped accepting from those.
    Parked {
        /// All that the predecessor counted.
        counts: Value,
    },
    /// The successor needs the predecessor no more.
    Settled,
    /// From an agent that drains: what it counted since the last time. An exchange of its own.
    Counted(Value),
    /// It is accounted for.
    Noted,
    /// There will be no takeover.
    Refused(String),
}

/// What a listening socket is for. Sockets of one role share a port, one for each worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Plain HTTP at an address as it was asked for (port 0: any).
    Http(SocketAddr),
    /// TLS.
    Https(SocketAddr),
    /// The admin endpoint.
    Admin(SocketAddr),
    /// A port of a TCP service.
    Tcp(SocketAddr),
    /// One of a UDP service.
    Udp(SocketAddr),
}

/// What a successor cannot read where its documents are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// Where all of them are.
    pub source: String,
    /// Files, and directories with a `/` behind them.
    pub places: Vec<String>,
}

/// A document that is in force, though its file may say something else by now.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// File and place in it.
    pub origin: String,
    /// Since when the file says something else.
    pub since: Option<SystemTime>,
    /// Itself; nothing prints it.
    pub text: String,
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Document({})", self.origin)
    }
}

/// What a predecessor hands over beside its sockets.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Whether it runs a kernel part, which outlives it.
    pub datapath: bool,
    /// Snapshots that were put in force so far.
    pub generation: u64,
    /// Takeovers that led to this agent.
    pub takeovers: u64,
    /// Keys of TLS session tickets.
    pub tickets: Secret,
    /// Whom its active checks found unwell; a successor that does not understand it asks for itself.
    pub unwell: Value,
}

/// Bytes that nothing prints.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A listening socket on its way.
#[derive(Debug)]
pub struct Socket {
    /// What it is for.
    pub role: Role,
    /// Itself.
    pub fd: OwnedFd,
}

/// The agent before us, while it still serves or watches over us.
pub struct Predecessor {
    link: Link,
    /// Its listening sockets.
    pub sockets: Vec<Socket>,
    /// Its last good versions of what we could not read.
    pub documents: Vec<Document>,
    /// What else it hands over.
    pub state: State,
}

impl Predecessor {
    /// Asks the agent at the other end for what it has.
    pub async fn meet(mut link: Link, unread: Option<Unread>) -> Result<Self, Error> {
        link.send(&Message::Hello { version: VERSION, unread, streams: true }, &[]).await?;
        let (mut sockets, mut documents) = (Vec::new(), Vec::new());
        loop {
            match answer(&mut link).await? {
                (Message::Sockets(roles), fds) if roles.len() == fds.len() => {
                    sockets.extend(roles.into_iter().zip(fds).map(|(role, fd)| Socket { role, fd }));
                }
                (Message::Documents(some), _) => documents.extend(some),
                (Message::State(state), _) => {
                    return Ok(Self { link, sockets, documents, state: *state });
                }
                (other, _) => return Err(unexpected(other)),
            }
        }
    }

    /// Has it let go of the kernel part.
    pub async fn let_go(&mut self) -> Result<(), Error> {
        self.link.send(&Message::LetGo, &[]).await?;
        match answer(&mut self.link).await? {
            (Message::Gone, _) => Ok(()),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Tells it that connections to these sockets are accepted here. Returns what it counted.
    pub async fn serving(&mut self, taken: Vec<Role>) -> Result<Value, Error> {
        self.link.send(&Message::Serving { taken }, &[]).await?;
        match answer(&mut self.link).await? {
            (Message::Parked { counts }, _) => Ok(counts),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Lets it end.
    pub async fn settled(mut self) -> Result<(), Error> {
        self.link.send(&Message::Settled, &[]).await
    }
}

/// The agent that wants to take our place.
pub struct Successor {
    link: Link,
    /// What it would like to have documents for.
    pub unread: Option<Unread>,
    /// It knows what to do with sockets of TCP and UDP services.
    pub takes_streams: bool,
}

/// What an agent that connects wants.
pub enum Visit {
    /// To take our place.
    Successor(Successor),
    /// To have these counts accounted for.
    Counted(Counted),
}

/// Counts of an agent that drains, until they are accounted for.
pub struct Counted {
    link: Link,
    /// The counts.
    pub counts: Value,
}

impl Counted {
    /// Tells the other end that it need not keep them.
    pub async fn note(mut self) -> Result<(), Error> {
        self.link.send(&Message::Noted, &[]).await
    }
}

/// Hears what somebody who connected wants.
pub async fn hear(mut link: Link) -> Result<Visit, Error> {
    match link.receive().await? {
        (Message::Hello { version: VERSION, unread, streams }, _) => {
            Ok(Visit::Successor(Successor { link, unread, takes_streams: streams }))
        }
        (Message::Hello { version, .. }, _) => {
            let reason = format!("its takeovers have version {VERSION}, not {version}");
            link.send(&Message::Refused(reason.clone()), &[]).await?;
            Err(Error::Protocol(reason))
        }
        (Message::Counted(counts), _) => Ok(Visit::Counted(Counted { link, counts })),
        (other, _) => Err(unexpected(other)),
    }
}

/// Delivers counts to the agent that serves now.
pub async fn deliver(mut link: Link, counts: Value) -> Result<(), Error> {
    link.send(&Message::Counted(counts), &[]).await?;
    match answer(&mut link).await? {
        (Message::Noted, _) => Ok(()),
        (other, _) => Err(unexpected(other)),
    }
}

/// What a successor wants next.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// The kernel part.
    LetGo,
    /// That we stop accepting from these.
    Serving(Vec<Role>),
    /// Nothing more.
    Settled,
}

impl Successor {
    /// Its process.
    pub fn peer(&self) -> Peer {
        self.link.peer()
    }

    /// Hands over what we have.
    pub async fn welcome(
        &mut self,
        sockets: &[Socket],
        documents: Vec<Document>,
        state: State,
    ) -> Result<(), Error> {
        for some in sockets.chunks(link::FDS_MAX) {
            let roles = some.iter().map(|socket| socket.role).collect();
            let fds: Vec<_> = some.iter().map(|socket| std::os::fd::AsFd::as_fd(&socket.fd)).collect();
            self.link.send(&Message::Sockets(roles), &fds).await?;
        }
        let (mut some, mut length) = (Vec::new(), 0);
        for document in documents {
            length += document.text.len();
            some.push(document);
            if length >= DOCUMENTS {
                self.link.send(&Message::Documents(std::mem::take(&mut some)), &[]).await?;
                length = 0;
            }
        }
        if !some.is_empty() {
            self.link.send(&Message::Documents(some), &[]).await?;
        }
        self.link.send(&Message::State(Box::new(state)), &[]).await
    }

    /// Its next word.
    pub async fn wish(&mut self) -> Result<Wish, Error> {
        match self.link.receive().await?.0 {
            Message::LetGo => Ok(Wish::LetGo),
            Message::Serving { taken } => Ok(Wish::Serving(taken)),
            Message::Settled => Ok(Wish::Settled),
            other => Err(unexpected(other)),
        }
    }

    /// Gives it the kernel part.
    pub async fn gone(&mut self) -> Result<(), Error> {
        self.link.send(&Message::Gone, &[]).await
    }

    /// Leaves it alone with the sockets.
    pub async fn parked(&mut self, counts: Value) -> Result<(), Error> {
        self.link.send(&Message::Parked { counts }, &[]).await
    }

    /// Sends it away.
    pub async fn refuse(&mut self, reason: String) -> Result<(), Error> {
        self.link.send(&Message::Refused(reason), &[]).await
    }

    /// Waits until its process has let go of the link, whatever it says.
    pub async fn ended(&mut self) {
        while self.link.receive().await.is_ok() {}
    }
}

async fn answer(link: &mut Link) -> Result<(Message, Vec<OwnedFd>), Error> {
    answer_within(PATIENCE, ANSWER, link).await
}

/// Says that there is none after `patience`, and gives up after `longest`.
async fn answer_within(
    patience: Duration,
    longest: Duration,
    link: &mut Link,
) -> Result<(Message, Vec<OwnedFd>), Error> {
    let pid = link.peer().pid;
    let mut said = std::pin::pin!(link.receive());
    if let Ok(said) = tokio::time::timeout(patience, &mut said).await {
        return said;
    }
    tracing::warn!(pid, patience_s = longest.as_secs(), "the running agent does not answer yet");
    tokio::time::timeout(longest.saturating_sub(patience), said).await.unwrap_or(Err(Error::Silent { pid }))
}

fn unexpected(message: Message) -> Error {
    match message {
        Message::Refused(reason) => Error::Refused(reason),
        // Its name alone: the content may be large, or secret.
        other => {
            let name = serde_json::to_value(&other).unwrap_or_default();
            let name = match &name {
                Value::Object(fields) => fields.keys().next().cloned(),
                other => other.as_str().map(str::to_owned),
            };
            Error::Protocol(format!("{} was not expected", name.unwrap_or_default()))
        }
    }
}

#[cfg(test)]
mod tests;

//! The signals that end the process, or have it replaced. `agent` carries them out.

use std::io::IsTerminal as _;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Waits for signals.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    /// In a terminal, SIGHUP says that it is gone.
    in_terminal: bool,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// To end by the signal of this name: the first asks to finish what runs, the second to stop at
    /// once.
    End(&'static str),
    /// To have a new process take over.
    Replace,
}

impl Signals {
    /// Takes the signals over; must run before anything that should survive them starts.
    pub fn take_over() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            in_terminal: std::io::stderr().is_terminal(),
        })
    }

    /// The next one that arrives.
    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::End("SIGTERM"),
            _ = self.interrupt.recv() => Request::End("SIGINT"),
            _ = self.quit.recv() => Request::End("SIGQUIT"),
            _ = self.hangup.recv() => match self.in_terminal {
                true => Request::End("SIGHUP"),
                false => Request::Replace,
            },
        }
    }

    /// Name of the next one that asks to end.
    pub async fn end(&mut self) -> &'static str {
        loop {
            if let Request::End(name) = self.next().await {
                return name;
            }
        }
    }
}

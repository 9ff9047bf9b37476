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

/// Signals that end a process that does not know them. Rules for the rotation of nginx's logs send SIGUSR1, scripts
/// for its upgrade SIGUSR2.
const UNKNOWN: [(&str, i32); 6] = [
    ("SIGUSR1", libc::SIGUSR1),
    ("SIGUSR2", libc::SIGUSR2),
    ("SIGALRM", libc::SIGALRM),
    ("SIGIO", libc::SIGIO),
    ("SIGPROF", libc::SIGPROF),
    ("SIGVTALRM", libc::SIGVTALRM),
];

/// Says of a signal that nothing comes of it.
async fn ignore(name: &'static str, mut signal: Signal) {
    while signal.recv().await.is_some() {
        let fix = match name {
            "SIGUSR1" => "a log that was moved away is made anew without a signal",
            "SIGUSR2" => "SIGHUP has a new process take over",
            _ => "",
        };
        tracing::info!(signal = name, fix, "a signal that means nothing here");
    }
}

impl Signals {
    /// Takes the signals over; must run before anything that should survive them starts.
    pub fn take_over() -> std::io::Result<Self> {
        for (name, number) in UNKNOWN {
            tokio::spawn(ignore(name, signal(SignalKind::from_raw(number))?));
        }
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

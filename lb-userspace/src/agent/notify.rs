//! What the service manager is told (`sd_notify`), where there is one.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

/// The service manager's socket, if it gave us one.
#[derive(Debug, Clone, Default)]
pub(super) struct Notify(Option<PathBuf>);

impl Notify {
    pub(super) fn new(socket: Option<PathBuf>) -> Self {
        Self(socket)
    }

    /// Everything that was to be up is up.
    pub(super) fn ready(&self) {
        self.tell("READY=1\nSTATUS=serving");
    }

    /// A successor was started.
    pub(super) fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=a successor starts"));
    }

    /// It did not get anywhere.
    pub(super) fn kept(&self) {
        self.tell("READY=1\nSTATUS=serving; the last takeover failed, see the log");
    }

    /// It is the main process from now on. Only who was it until now may say so.
    pub(super) fn succeeded(&self, pid: i32) {
        self.tell(&format!("READY=1\nMAINPID={pid}\nSTATUS=serving"));
    }

    /// We end.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=draining");
    }

    fn tell(&self, words: &str) {
        let Some(path) = &self.0 else { return };
        if let Err(error) = send(path, words.as_bytes()) {
            tracing::warn!(socket = %path.display(), %error, "the service manager was not told");
        }
    }
}

fn send(path: &Path, words: &[u8]) -> io::Result<()> {
    let addr = match path.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(words, &addr).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_manager_hears_who_is_the_main_process() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bind");

        Notify::new(Some(path)).succeeded(42);

        let mut words = [0; 64];
        let length = manager.recv(&mut words).expect("told");
        assert_eq!(&words[..length], b"READY=1\nMAINPID=42\nSTATUS=serving");
    }
}

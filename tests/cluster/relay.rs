//! A way to the API server that can be cut, stalled and mended.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use lb_tests::netns::Host;

use crate::rig::Rig;

const LOOPBACK: (&str, u16) = ("127.0.0.1", 0);

/// Stays until the end of the process; the connections through it go with the agents.
pub struct Relay {
    shared: Arc<Shared>,
    kubeconfig: PathBuf,
    addr: SocketAddr,
    _dir: tempfile::TempDir,
}

struct Shared {
    way: Mutex<Way>,
    changed: Condvar,
    open: Mutex<Vec<TcpStream>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Connections break, and new ones are refused as soon as they are made.
    Cut,
    /// Connections stay and say nothing.
    Stalled,
}

impl Relay {
    /// In front of the test's API server, with a kubeconfig of its own.
    pub fn before(rig: &Rig) -> Self {
        Self::behind(TcpListener::bind(LOOPBACK).expect("bind"), rig)
    }

    /// The same on the loopback of a lab's host: a socket stays in the namespace where it was made, whoever
    /// accepts from it.
    pub fn on(host: &Host, rig: &Rig) -> Self {
        Self::behind(host.within(|| TcpListener::bind(LOOPBACK)).expect("bind"), rig)
    }

    fn behind(listener: TcpListener, rig: &Rig) -> Self {
        let text = std::fs::read_to_string(&rig.kubeconfig).expect("a kubeconfig");
        let (_, rest) = text.split_once("https://").expect("a server");
        let server: String = rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
        let target: SocketAddr = server.parse().expect("an address");
        let addr = listener.local_addr().expect("bound");
        let dir = tempfile::tempdir().expect("a directory");
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, text.replace(&server, &addr.to_string())).expect("writable");
        let shared =
            Arc::new(Shared { way: Mutex::new(Way::Open), changed: Condvar::new(), open: Mutex::default() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&accepting);
                thread::spawn(move || shared.serve(client, target));
            }
        });
        Self { shared, kubeconfig, addr, _dir: dir }
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn cut(&self) {
        self.shared.set(Way::Cut);
        for stream in lock(&self.shared.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn stall(&self) {
        self.shared.set(Way::Stalled);
    }

    pub fn mend(&self) {
        self.shared.set(Way::Open);
    }
}

impl Shared {
    fn set(&self, way: Way) {
        *lock(&self.way) = way;
        self.changed.notify_all();
    }

    fn serve(self: Arc<Self>, client: TcpStream, target: SocketAddr) {
        if *lock(&self.way) == Way::Cut {
            return;
        }
        let Ok(server) = TcpStream::connect(target) else { return };
        let both = [(&client, &server), (&server, &client)];
        let ways =
            both.map(|(from, to)| (from.try_clone().expect("a socket"), to.try_clone().expect("a socket")));
        lock(&self.open).extend([client, server]);
        for (from, to) in ways {
            let shared = Arc::clone(&self);
            thread::spawn(move || shared.copy(from, to));
        }
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = [0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            let way = lock(&self.way);
            let stalled = self.changed.wait_while(way, |way| *way == Way::Stalled);
            drop(stalled.unwrap_or_else(PoisonError::into_inner));
            if to.write_all(&bytes[..n]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Servers of HTTP/2 that tests play: connections are taken by a thread with a runtime of its own.

use std::net::{SocketAddr, TcpListener};

use tokio::net::TcpStream;

/// Serves each connection to this address in a task, for as long as the tests run; the address that was bound.
pub fn accept<F>(addr: SocketAddr, serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(addr).expect("bind");
    let addr = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("nonblocking");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
    });
    addr
}

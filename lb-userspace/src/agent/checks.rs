//! Active checks: the prober speaks TLS as the proxy does, and the proxy hears who is unwell.

use std::sync::Arc;

use tokio::sync::watch;

use crate::health::{Encrypt, Encrypting, Prober, Stream};
use crate::l7;
use crate::model::health::Unwell;
use crate::model::l7::L7;

/// Starts the prober, on the runtime that it is called from. `known` is what the agent before us found.
pub(super) fn start(desired: watch::Receiver<Arc<L7>>, known: Unwell, proxy: &Arc<l7::Running>) -> Prober {
    let dialer = Arc::new(l7::Dialer::default());
    let encrypt: Encrypt = Arc::new(move |stream, endpoint, tls| -> Encrypting {
        let dialer = Arc::clone(&dialer);
        Box::pin(async move {
            let stream = dialer.encrypt(stream, endpoint, tls).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    });
    // Balancers that start together should not ask together.
    let seed = u64::from(std::process::id())
        ^ std::time::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_nanos() as u64);
    let prober = Prober::start(desired, known, encrypt, seed);
    let (mut unwell, proxy) = (prober.unwell(), Arc::clone(proxy));
    tokio::spawn(async move {
        // Ends with the prober.
        while unwell.changed().await.is_ok() {
            let unwell = Arc::clone(&unwell.borrow_and_update());
            proxy.set_unwell(&unwell);
        }
    });
    prober
}

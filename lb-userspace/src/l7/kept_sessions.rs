//! TLS sessions that are kept here and not by their clients, where there are no tickets. rustls' store forgets by number
//! alone; here a session ends after its time as well.

use std::sync::Arc;
use std::time::Duration;

use rustls::server::StoresServerSessions;

use super::tickets::unix_now;

/// A store whose sessions last for so long. Several may share what is in one.
#[derive(Debug)]
pub(super) struct KeptSessions {
    store: Arc<dyn StoresServerSessions>,
    last: Duration,
}

impl KeptSessions {
    pub(super) fn new(store: Arc<dyn StoresServerSessions>, last: Duration) -> Self {
        Self { store, last }
    }

    fn put_at(&self, key: Vec<u8>, session: &[u8], now: u64) -> bool {
        self.store.put(key, [now.to_be_bytes().as_slice(), session].concat())
    }

    /// What of an entry is a session, while it lasts.
    fn lasting(&self, entry: &[u8], now: u64) -> Option<Vec<u8>> {
        let (since, session) = entry.split_first_chunk()?;
        let age = now.saturating_sub(u64::from_be_bytes(*since));
        (age <= self.last.as_secs()).then(|| session.to_vec())
    }
}

impl StoresServerSessions for KeptSessions {
    fn put(&self, key: Vec<u8>, session: Vec<u8>) -> bool {
        self.put_at(key, &session, unix_now())
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.lasting(&self.store.get(key)?, unix_now())
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.lasting(&self.store.take(key)?, unix_now())
    }

    fn can_cache(&self) -> bool {
        self.store.can_cache()
    }
}

#[cfg(test)]
mod tests {
    use rustls::server::ServerSessionMemoryCache;

    use super::*;

    #[test]
    fn a_session_ends_after_its_time() {
        let store = ServerSessionMemoryCache::new(8);
        let minute = KeptSessions::new(store.clone(), Duration::from_secs(60));
        let hour = KeptSessions::new(store, Duration::from_secs(3600));
        let now = unix_now();

        assert!(minute.put_at(b"old".to_vec(), b"session", now - 120));
        assert!(minute.put(b"fresh".to_vec(), b"session".to_vec()));

        assert_eq!(minute.get(b"old"), None);
        assert_eq!(minute.get(b"fresh"), Some(b"session".to_vec()));
        // Another snapshot has them last longer.
        assert_eq!(hour.get(b"old"), Some(b"session".to_vec()));
        assert_eq!(hour.take(b"old"), Some(b"session".to_vec()));
        assert_eq!(hour.take(b"old"), None);
    }
}

//! File descriptors: how many there may be, and what is done with them.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is not a connection: listeners, maps and links of the kernel, files, the admin port.
const OTHERS: u64 = 256;
/// A client, and the endpoint that it is passed on to.
const EACH: u64 = 2;

/// Raises the limit of the process to what it may raise it to, and returns it. Shells and containers begin with 1,024.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        // The kernel's own limit may be lower.
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// Client connections that one of so many workers may have, so that descriptors are left for their endpoints.
pub(super) fn connections(workers: usize) -> usize {
    share(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), workers)
}

fn share(limit: u64, workers: usize) -> usize {
    // Of few descriptors the others take a half.
    let free = limit.saturating_sub(OTHERS).max(limit / 2);
    usize::try_from(free / EACH).unwrap_or(usize::MAX).div_euclid(workers.max(1)).max(1)
}

/// The process, or the host, has no more.
pub(super) fn are_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_descriptors_are_left_for_endpoints() {
        assert_eq!(share(1024, 1), 384);
        assert_eq!(share(1024, 4), 96);
        assert_eq!(share(20_000, 2), 4936);
        assert_eq!(share(100, 1), 25);
        assert_eq!(share(3, 8), 1);
        assert!(share(u64::MAX, 1) > 1 << 40);
    }
}

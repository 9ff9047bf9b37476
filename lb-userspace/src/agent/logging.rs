//! The agent's own log, on standard error: what is let through, and that it never keeps the agent from its work.

use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::warn;
use tracing_subscriber::EnvFilter;

use crate::config;

/// Each attempt to reach an API server that fails is an error of that client, several times a second and without the
/// server's name, and so is each certificate that is not trusted one of who judges it; we tell ourselves what is not heard, once.
const USUAL: &str = "info,kube_client=off,rustls_platform_verifier=off";

/// Lines that could not be written.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Lines of the log that standard error did not take.
pub(super) fn lost_lines() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// As `PENSTOCK_LOG` says.
pub(super) fn start() {
    let written = config::log_directives();
    let filter = written.and_then(|written| written.map(|written| filter(&written)).transpose());
    let (filter, refused) = match filter {
        Ok(filter) => (filter, None),
        Err(error) => (None, Some(error)),
    };
    // Fails only when a test in the same process was first; its subscriber then stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|| EnvFilter::new(USUAL)))
        .with_ansi(io::stderr().is_terminal())
        // It would be told on standard error, too, and end the process where that is broken.
        .log_internal_errors(false)
        .with_writer(|| Lossy(io::stderr()))
        .try_init();
    if let Some(error) = refused {
        warn!(error, "PENSTOCK_LOG cannot be read, so the log is as without it");
    }
}

/// The error names what is no level and no target. A single word is read as a target by the library, which mutes all
/// others: `warning` would be the end of the log.
fn filter(written: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for word in written.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let is_level = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
        if !is_level && !word.contains(['=', '[']) && !word.starts_with("penstock") {
            return Err(format!("{word:?} is none of {}, and no target=level", LEVELS.join(", ")));
        }
    }
    EnvFilter::try_new(written).map_err(|error| error.to_string())
}

/// Takes everything; what its writer does not take is counted and gone. A reader that died and a full disk are no
/// reason to stop.
struct Lossy<W>(W);

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.write_all(bytes).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_does_not_mute_the_log() {
        for written in
            ["warn", "WARN", "info,kube_client=off", "penstock=debug", "penstock::l7=trace,error", ""]
        {
            filter(written).expect(written);
        }
        for written in ["warning", "trce", "info,notice", "penstock=loud", "nonsense=foo=bar"] {
            filter(written).expect_err(written);
        }
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let before = lost_lines();
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a device that is full");

        Lossy(full).write_all(b"a line\n").expect("taken");

        assert!(lost_lines() > before);
    }
}

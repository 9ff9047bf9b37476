//! The agent's own log, on standard error: what is let through, and that it never keeps the agent from its work.

use std::fs::File;
use std::io::{self, IsTerminal as _, Stderr, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{Level, Metadata, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

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
        .with_writer(StandardError { is_journal: is_journal() })
        .try_init();
    if let Some(error) = refused {
        warn!(error, "PENSTOCK_LOG cannot be read, so the log is as without it");
    }
}

/// What systemd's journal wants in front of an error to file it as one; nothing where standard error leads elsewhere.
pub(crate) fn error_mark() -> &'static str {
    if is_journal() { mark(Level::ERROR) } else { "" }
}

/// Whether standard error is the stream to the journal that systemd names; who redirects it still has the name.
fn is_journal() -> bool {
    let Some(named) = config::journal_stream() else { return false };
    let stream = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    stream.and_then(|stream| stream.metadata()).is_ok_and(|is| named == format!("{}:{}", is.dev(), is.ino()))
}

/// As sd-daemon(3) has it, so that `journalctl --priority warning` finds what is one.
fn mark(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

/// Where the log goes.
struct StandardError {
    is_journal: bool,
}

impl<'a> MakeWriter<'a> for StandardError {
    type Writer = Lossy<Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Lossy { writer: io::stderr(), mark: "" }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        let mark = if self.is_journal { mark(*meta.level()) } else { "" };
        Lossy { writer: io::stderr(), mark }
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
struct Lossy<W> {
    writer: W,
    /// In front of each line.
    mark: &'static str,
}

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = match self.mark {
            "" => self.writer.write_all(bytes),
            // At once, so that nobody's line comes between.
            mark => self.writer.write_all(&[mark.as_bytes(), bytes].concat()),
        };
        if taken.is_err() {
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

        Lossy { writer: full, mark: "" }.write_all(b"a line\n").expect("taken");

        assert!(lost_lines() > before);
    }

    #[test]
    fn a_line_to_the_journal_begins_with_its_level() {
        let mut journal = Vec::new();

        for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG] {
            Lossy { writer: &mut journal, mark: mark(level) }.write_all(b"a line\n").expect("taken");
        }

        assert_eq!(journal, b"<3>a line\n<4>a line\n<6>a line\n<7>a line\n");
    }
}

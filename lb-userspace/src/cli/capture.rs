//! `penstock capture`: what the kernel program shows of its packets, streamed from the live agent.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{ask_error, live, runtime};
use crate::admin;
use crate::agent::StartError;

#[derive(Debug, Args)]
#[command(
    after_help = "A packet is shown as it left, with its flow as it came; what is passed or dropped, as it \
    came. Traffic that is none of the balancer's is not shown: tcpdump sees it.\n\
    Examples:\n  penstock capture --verdict drop\n  \
    penstock capture --vip 203.0.113.10:443 --count 20\n  \
    penstock capture --host 198.51.100.7 --write flow.pcapng\n  \
    penstock capture --write - | wireshark -k -i -\n\
    Exit codes: 0 fine, 2 usage, 68 no live agent, or another capture runs, 71 packets cannot be written."
)]
pub(super) struct CaptureArgs {
    /// Only this verdict: a name of `penstock status` or its beginning and `*`, or pass, drop,
    /// send; repeatable
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    verdict: Vec<String>,
    /// Only packets from or to this VIP
    #[arg(long, value_name = "ADDR[:PORT]")]
    vip: Option<String>,
    /// Only packets from or to this client, backend or balancer
    #[arg(long, value_name = "ADDR")]
    host: Option<String>,
    /// End after this many
    #[arg(long, value_name = "N")]
    count: Option<String>,
    /// End after this long
    #[arg(long, value_name = "S")]
    seconds: Option<String>,
    /// One packet in this many of each CPU [default: 1]
    #[arg(long, value_name = "N")]
    sample: Option<String>,
    /// At most so many packets per second of each CPU; 0: all [default: 1000]
    #[arg(long, value_name = "PPS")]
    rate: Option<String>,
    /// Bytes shown of each packet, 14 to 512 [default: 96]
    #[arg(long, value_name = "BYTES")]
    snaplen: Option<String>,
    /// Write pcapng to this file (`-`: standard output) instead of lines of text
    #[arg(long, value_name = "FILE.pcapng")]
    write: Option<PathBuf>,
    /// Admin address of the live agent
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_ADMIN", default_value = "127.0.0.1:10254")]
    admin: String,
}

/// Writes until the agent, the count or Ctrl-C ends it.
pub(super) fn capture(args: CaptureArgs) -> Result<ExitCode, StartError> {
    use std::io::Write as _;
    let addr = live(&args.admin)?;
    let path = args.question();
    let mut out: Box<dyn std::io::Write> = match args.write.as_deref() {
        Some(file) if file != std::path::Path::new("-") => Box::new(
            std::fs::File::create(file)
                .map_err(|source| StartError::Output { to: format!("--write {}", file.display()), source })?,
        ),
        _ => Box::new(std::io::stdout()),
    };
    let interrupted = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    let write = |bytes: &[u8]| out.write_all(bytes).and_then(|()| out.flush());
    let streamed =
        runtime()?.block_on(admin::client::stream(addr, &path, admin::client::DEADLINE, interrupted, write));
    let summary = streamed.map_err(|error| match (error, &args.write) {
        (admin::client::Error::Output(source), Some(file)) => {
            StartError::Output { to: format!("--write {}", file.display()), source }
        }
        (error, _) => ask_error(error),
    })?;
    if !summary.is_empty() {
        let _ = writeln!(std::io::stderr(), "{summary}");
    }
    Ok(ExitCode::SUCCESS)
}

impl CaptureArgs {
    /// Path and query of the admin endpoint; the agent judges the values.
    fn question(&self) -> String {
        let mut path = "/capture?format=".to_owned();
        path.push_str(if self.write.is_some() { "pcapng" } else { "text" });
        let one = [
            ("vip", &self.vip),
            ("host", &self.host),
            ("count", &self.count),
            ("seconds", &self.seconds),
            ("sample", &self.sample),
            ("rate", &self.rate),
            ("snaplen", &self.snaplen),
        ];
        let one = one.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        for (name, value) in self.verdict.iter().map(|verdict| ("verdict", verdict)).chain(one) {
            path.push_str(&format!("&{name}={}", admin::percent_encode(value)));
        }
        path
    }
}

//! The command line: what can be asked, and how the answers and failures look in a terminal.
//! clap and the environment stop here; below are only [`crate::config`] values.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::agent::{self, StartError};
use crate::{admin, config};

mod capture;
mod check;
mod cluster;
mod explain;
pub mod flags;
mod meaning;
mod metering;
mod nginx;
mod run;
mod simulate;
mod started;
mod top;

/// Load balancer for Kubernetes edges and bare-metal hosts: L4 in the kernel by XDP, L7 and TLS
/// for the flows the kernel punts up.
#[derive(Debug, Parser)]
#[command(name = "penstock", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Balance and serve what the manifests of a directory or the objects of a cluster describe
    // A Deployment of ingress-nginx begins its arguments with the name of that binary.
    #[command(alias = run::INGRESS_NGINX, args_override_self = true)]
    Run(Box<run::RunArgs>),
    /// Say what becomes of every object that ingress-nginx served until now, and what to do about it
    Check(check::CheckArgs),
    /// Say where a URL or a flow goes, and why
    Explain(explain::ExplainArgs),
    /// Show VIPs, backends, routes, certificates and problems of the live agent
    Status(StatusArgs),
    /// Show the busiest VIPs and backends of the live agent, again and again
    Top(top::TopArgs),
    /// Remove what an agent that ended left in the kernel: programs, maps, local routes
    Detach(DetachArgs),
    /// Show packets that the kernel program forwarded, passed or dropped, which tcpdump cannot see
    Capture(capture::CaptureArgs),
    /// Try changes on simulated flows
    #[command(subcommand)]
    Simulate(simulate::SimulateCommand),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 answered, 2 usage, 68 no live agent, 71 the answer could not be written."
)]
struct StatusArgs {
    /// Admin address of the live agent
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_ADMIN", default_value = "127.0.0.1:10254")]
    admin: String,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Format::Text, alias = "output")]
    format: Format,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 nothing is left, 1 an interface still has the program, 2 usage, 67 an agent still runs, \
                  or no permission, 71 the answer could not be written."
)]
struct DetachArgs {
    /// Directory to search beside all BPF file systems that are mounted
    #[arg(long, value_name = "DIR", env = "PENSTOCK_BPFFS")]
    bpffs: Option<PathBuf>,
}

/// Parses the command line, does what it says, and tells how it went.
pub fn main() -> ExitCode {
    if nginx::is_meant() {
        return nginx::main(std::env::args().skip(1));
    }
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(*args),
        Command::Check(args) => check::check(args),
        Command::Explain(args) => explain::explain(args),
        Command::Status(args) => status(args),
        Command::Top(args) => top::top(args),
        Command::Detach(args) => detach(args),
        Command::Capture(args) => capture::capture(args),
        Command::Simulate(command) => simulate::simulate(command),
    };
    outcome.unwrap_or_else(|error| {
        // Standard error may be a pipe that nobody reads any more.
        let _ = writeln!(std::io::stderr(), "{}penstock: {error:#}", agent::error_mark());
        ExitCode::from(error.exit_code())
    })
}

fn detach(args: DetachArgs) -> Result<ExitCode, StartError> {
    if let Some(dir) = args.bpffs.as_deref().filter(|dir| !dir.is_dir()) {
        eprintln!("penstock: --bpffs {}: there is no such directory", dir.display());
    }
    let detached = agent::detach(args.bpffs.as_deref())?;
    print_out(&detached.to_string())?;
    Ok(if detached.left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn status(args: StatusArgs) -> Result<ExitCode, StartError> {
    let path = match args.format {
        Format::Text => "/status",
        Format::Json => "/status?format=json",
    };
    print_out(&(ask(&args.admin, path)?.trim_end().to_owned() + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> Result<tokio::runtime::Runtime, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(StartError::Runtime)
}

fn ask_error(error: admin::client::Error) -> StartError {
    match error {
        admin::client::Error::Refused(reason) => StartError::Usage(reason),
        admin::client::Error::Output(source) => {
            StartError::Output { to: "standard output".to_owned(), source }
        }
        other => StartError::Live(other.to_string()),
    }
}

fn ask(admin: &str, path: &str) -> Result<String, StartError> {
    runtime()?.block_on(admin::client::get(live(admin)?, path)).map_err(ask_error)
}

/// Where a live agent is asked; a wrong address is a wrong question, and nobody's configuration.
fn live(admin: &str) -> Result<SocketAddr, StartError> {
    config::listen_address("admin", admin).map_err(|error| StartError::Usage(error.to_string()))
}

/// Prints. That the reader (`| head`) has gone is no failure; whatever else loses a part of the text is.
fn print_out(text: &str) -> Result<(), StartError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(StartError::Output { to: "standard output".to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

//! `penstock simulate`: what a change would break.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::print_out;
use crate::agent::{StartError, offline};

#[derive(Debug, Subcommand)]
pub(super) enum SimulateCommand {
    /// Count the flows that changes break, for ours and other ways to balance
    Flows(FlowsArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 fine, 2 usage, 71 the outcomes cannot be written.")]
pub(super) struct FlowsArgs {
    /// Everything that looks like chance follows from it
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// What happens meanwhile: rollout, scale-up, lost-balancer, syn-flood; repeatable [default: each of them]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    scenario: Vec<String>,
    /// Places of each flow table, rounded up to a power of two
    #[arg(long, value_name = "COUNT", default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(8..=1_048_576))]
    flow_entries: u32,
    /// Flows of each run
    #[arg(long, value_name = "COUNT", default_value_t = 400_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    flows: u32,
    /// Print the outcomes as JSON
    #[arg(long)]
    json: bool,
    /// Draw them, too, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

pub(super) fn simulate(command: SimulateCommand) -> Result<ExitCode, StartError> {
    let SimulateCommand::Flows(FlowsArgs { seed, scenario, flow_entries, flows, json, plot }) = command;
    let simulation = offline::Simulation::new(seed, flows, flow_entries, &scenario)?;
    let unwritten =
        |file: &Path, source| StartError::Output { to: format!("--plot {}", file.display()), source };
    // Who cannot have the plot should not wait for it.
    let plot = plot
        .map(|file| File::create(&file).map_err(|error| unwritten(&file, error)).map(|open| (file, open)));
    let plot = plot.transpose()?;
    eprintln!(
        "{} runs of {flows} flows; this takes a minute or more, whatever their number",
        simulation.runs()
    );
    let simulated = simulation.run();
    if let Some((file, mut open)) = plot {
        open.write_all(simulated.svg.as_bytes()).map_err(|error| unwritten(&file, error))?;
    }
    print_out(if json { &simulated.json } else { &simulated.text })?;
    Ok(ExitCode::SUCCESS)
}

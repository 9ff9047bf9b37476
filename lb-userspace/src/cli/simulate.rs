//! `penstock simulate`: what a change would break.

use std::path::PathBuf;
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
pub(super) struct FlowsArgs {
    /// Everything that looks like chance follows from it
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Flows of each of the sixteen runs
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
    let SimulateCommand::Flows(FlowsArgs { seed, flows, json, plot }) = command;
    eprintln!("sixteen runs of {flows} flows; this takes a minute or more, whatever their number");
    let simulated = offline::simulate_flows(seed, flows);
    if let Some(file) = plot {
        std::fs::write(&file, &simulated.svg)
            .map_err(|error| StartError::Usage(format!("--plot {}: {error}", file.display())))?;
    }
    print_out(if json { &simulated.json } else { &simulated.text })?;
    Ok(ExitCode::SUCCESS)
}

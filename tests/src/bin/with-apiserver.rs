//! `with-apiserver COMMAND…`: runs a command beside a real kube-apiserver, whose kubeconfig is named
//! by `PENSTOCK_TEST_KUBECONFIG`, and ends as the command does. `KUBEBUILDER_ASSETS` names the folder
//! with the programs.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use lb_tests::apiserver::{ASSETS, ApiServer, KUBECONFIG};

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("with-apiserver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<u8> {
    let mut words = std::env::args_os().skip(1);
    let program = words.next().context("no command; give one, e.g. `bash`")?;
    let assets = std::env::var_os(ASSETS).map_or_else(|| "/usr/local/kubebuilder/bin".into(), PathBuf::from);
    let server = ApiServer::start(&assets)?;
    let status = Command::new(&program)
        .args(words)
        .env(KUBECONFIG, server.kubeconfig())
        // For a kubectl in there.
        .env("KUBECONFIG", server.kubeconfig())
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    drop(server);
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

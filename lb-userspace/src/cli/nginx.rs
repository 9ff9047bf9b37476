//! The binary by the name of `nginx`: what people ask the nginx in an ingress-nginx pod for (`nginx -T`, `nginx -t`)
//! is answered from the live agent.

use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

use super::{StartError, ask, print_out};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// `-T`: the configuration.
    Configuration,
    /// `-t`: whether it is without mistakes.
    Test,
    /// `-v`, `-V`.
    Version,
    /// Signals and everything else.
    Nothing,
}

/// Whether we were started by that name.
pub(super) fn is_meant() -> bool {
    let name = std::env::args_os().next();
    name.is_some_and(|name| Path::new(&name).file_name().is_some_and(|name| name == "nginx"))
}

/// Answers in the place of nginx.
pub(super) fn main(args: impl Iterator<Item = String>) -> ExitCode {
    let admin = std::env::var("PENSTOCK_ADMIN").unwrap_or_else(|_| "127.0.0.1:10254".to_owned());
    let answer = match asked(args) {
        Asked::Configuration => configuration(&admin),
        Asked::Test => test(&admin),
        Asked::Version => {
            eprintln!("nginx version: none; penstock/{}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Asked::Nothing => {
            eprintln!(
                "nginx: no nginx runs here; -T shows what is served, -t what is wrong, `penstock --help` the rest"
            );
            return ExitCode::FAILURE;
        }
    };
    answer.unwrap_or_else(|error| {
        eprintln!("nginx: {error:#}");
        ExitCode::from(error.exit_code())
    })
}

fn asked(args: impl Iterator<Item = String>) -> Asked {
    for arg in args {
        match arg.as_str() {
            "-T" => return Asked::Configuration,
            "-t" => return Asked::Test,
            "-v" | "-V" => return Asked::Version,
            "-q" => {}
            _ => return Asked::Nothing,
        }
    }
    Asked::Nothing
}

fn configuration(admin: &str) -> Result<ExitCode, StartError> {
    let status = ask(admin, "/status")?;
    print_out("# No nginx runs here, and no configuration file: this is what the live agent serves.\n")?;
    print_out(&(status.trim_end().to_owned() + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// As nginx does it on standard error; 1 where an object does not work.
fn test(admin: &str) -> Result<ExitCode, StartError> {
    let status: Value = serde_json::from_str(&ask(admin, "/status?format=json")?)
        .map_err(|error| StartError::Live(error.to_string()))?;
    let errors = errors(&status);
    if errors.is_empty() {
        eprintln!("nginx: every object is in force; see `penstock status`");
        return Ok(ExitCode::SUCCESS);
    }
    errors.iter().for_each(|error| eprintln!("nginx: [emerg] {error}"));
    Ok(ExitCode::FAILURE)
}

fn errors(status: &Value) -> Vec<String> {
    let problems = status["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
    let errors = problems.iter().filter(|problem| problem["severity"] == "error");
    let text = |problem: &Value, field: &str| problem[field].as_str().unwrap_or_default().to_owned();
    errors.map(|problem| format!("{}: {}", text(problem, "object"), text(problem, "message"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nginx_is_asked_for_is_understood() {
        let asked = |line: &str| asked(line.split_whitespace().map(str::to_owned));

        assert_eq!(asked("-T"), Asked::Configuration);
        assert_eq!(asked("-q -t"), Asked::Test);
        assert_eq!(asked("-V"), Asked::Version);
        assert_eq!(asked("-s reload"), Asked::Nothing);
        assert_eq!(asked(""), Asked::Nothing);
    }
}

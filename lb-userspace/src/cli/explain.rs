//! `penstock explain`: where a URL or a flow goes, asked of the live agent or of a directory.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::meaning::{MeaningArgs, meaning};
use super::{Format, ask, print_out};
use crate::admin;
use crate::agent::{self, StartError};
use crate::model::report::Explanation;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  penstock explain https://shop.example.com/cart -H 'X-Canary: true'\n  \
    penstock explain --flow 'tcp 198.51.100.7:40001 > 203.0.113.10:443'\n  \
    penstock explain http://shop.example.com/ --manifests ./manifests\n\
    Exit codes: 0 answered, 2 usage, 65 the manifests cannot be read, 68 no live agent, 71 the answer cannot be written.")]
pub(super) struct ExplainArgs {
    /// URL of a request, in place of --flow
    #[arg(required_unless_present = "flow", conflicts_with = "flow")]
    url: Option<String>,
    /// Header of the request; repeatable
    #[arg(short = 'H', long = "header", value_name = "'Name: value'", conflicts_with = "flow")]
    header: Vec<String>,
    /// Flow instead of a URL
    #[arg(long, value_name = "'tcp SRC:PORT > DST:PORT'")]
    flow: Option<String>,
    /// Answer from this directory instead of the live agent
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Key of the flow hash of the balancers in question (with --manifests and --flow)
    #[arg(long, value_name = "32 HEX DIGITS", env = "PENSTOCK_HASH_KEY", hide_env_values = true)]
    hash_key: Option<String>,
    /// Admin address of the live agent
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_ADMIN", default_value = "127.0.0.1:10254")]
    admin: String,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Format::Text, alias = "output")]
    format: Format,
    #[command(flatten)]
    meaning: MeaningArgs,
}

/// Prints the steps.
pub(super) fn explain(args: ExplainArgs) -> Result<ExitCode, StartError> {
    let explanation = match &args.manifests {
        Some(_) => explain_offline(&args)?,
        None => explain_live(&args)?,
    };
    print_out(&match args.format {
        Format::Text => render_explanation(&explanation),
        Format::Json => serde_json::to_string_pretty(&explanation).unwrap_or_default() + "\n",
    })?;
    Ok(ExitCode::SUCCESS)
}

fn explain_offline(args: &ExplainArgs) -> Result<Explanation, StartError> {
    let dir = args.manifests.as_deref().unwrap_or_else(|| std::path::Path::new("."));
    let meaning = meaning(args.meaning.clone())?;
    match (&args.url, &args.flow) {
        (Some(url), _) => agent::offline::explain_url(dir, &meaning, url, &headers(&args.header)?),
        (None, Some(flow)) => {
            let key = args
                .hash_key
                .as_deref()
                .map(str::parse)
                .transpose()
                .map_err(|reason: String| StartError::Usage(format!("--hash-key: {reason}")))?;
            agent::offline::explain_flow(dir, &meaning, key, flow)
        }
        (None, None) => Err(StartError::Usage("give a URL or --flow".to_owned())),
    }
}

fn explain_live(args: &ExplainArgs) -> Result<Explanation, StartError> {
    let headers = headers(&args.header)?;
    agent::offline::judge(args.url.as_deref(), &headers, args.flow.as_deref())?;
    let mut path = match (&args.url, &args.flow) {
        (Some(url), _) => format!("/explain?url={}", admin::percent_encode(url)),
        (None, flow) => {
            format!("/explain?flow={}", admin::percent_encode(flow.as_deref().unwrap_or_default()))
        }
    };
    for (name, value) in headers {
        path.push_str("&header=");
        path.push_str(&admin::percent_encode(&format!("{name}: {value}")));
    }
    let body = ask(&args.admin, &path)?;
    serde_json::from_str(&body)
        .map_err(|error| StartError::Live(format!("answer of {}: {error}", args.admin)))
}

fn headers(given: &[String]) -> Result<Vec<(String, String)>, StartError> {
    given
        .iter()
        .map(|header| match header.split_once(':') {
            Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
            None => Err(StartError::Usage(format!("-H {header:?}: allowed: 'Name: value'"))),
        })
        .collect()
}

/// An explanation as a person reads it: the question, the steps in a column, the verdict.
fn render_explanation(explanation: &Explanation) -> String {
    let width = explanation.steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
    let mut out = format!("{}\n", explanation.question);
    for step in &explanation.steps {
        let mut lines = step.detail.lines();
        out.push_str(&format!("  {:width$}  {}\n", step.name, lines.next().unwrap_or_default()));
        lines.for_each(|line| out.push_str(&format!("  {:width$}  {line}\n", "")));
    }
    out.push_str(&format!("=> {}\n", explanation.verdict));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::Step;

    #[test]
    fn an_explanation_lines_its_steps_up() {
        let step = |name: &str, detail: &str| Step { name: name.to_owned(), detail: detail.to_owned() };
        let explanation = Explanation {
            question: "GET http://a/".to_owned(),
            steps: vec![step("host", "a (exact)"), step("location", "/\nPrefix")],
            verdict: "200".to_owned(),
        };

        assert_eq!(
            render_explanation(&explanation),
            "GET http://a/\n  host      a (exact)\n  location  /\n            Prefix\n=> 200\n"
        );
    }
}

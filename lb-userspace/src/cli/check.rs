//! `penstock check`: the report of a migration, in the form and with the exit code that is asked for.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::meaning::{MeaningArgs, meaning};
use super::{print_out, started};
use crate::agent::offline::OwnNode;
use crate::agent::{self, StartError};
use crate::check::{Paint, Style, Verdict, render_json, render_junit, render_text};
use crate::config::{self, DatapathMode, Settings};

#[derive(Debug, Args)]
#[command(
    after_help = "Verdicts, from the best: identical (does what it does with ingress-nginx), ignored (as if it were \
    not there), differs (works, but not quite alike), needs-action (somebody has to put something right), refused (does \
    not work: its paths answer 503, or it does not enter).\n\
    Exit codes: 0 nothing reaches --fail-on, 1 something does, or standard input is empty, 2 usage, 65 a path cannot be read, 71 the report cannot be written.\n\
    Examples:\n  penstock check ./manifests\n  \
    kubectl get ingresses,services,endpointslices,configmaps -A -o yaml | penstock check -\n  \
    penstock check --cluster --kubeconfig ~/.kube/config\n  \
    penstock check ingress.yaml services.yaml --output junit > check.xml"
)]
pub(super) struct CheckArgs {
    /// Directories and files of Kubernetes manifests; `-` is standard input
    #[arg(value_name = "DIR|FILE|-", required_unless_present = "cluster", conflicts_with = "cluster")]
    paths: Vec<PathBuf>,
    /// Read the objects of a cluster instead, and write nothing to it
    #[arg(long)]
    cluster: bool,
    /// File that says where the API server is and who we are there [default: ~/.kube/config, else
    /// the pod's own account]
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Read the objects of this namespace alone [default: of all]
    #[arg(long, value_name = "NAMESPACE", requires = "cluster", conflicts_with = "paths")]
    watch_namespace: Option<String>,
    /// How long the API server may take to tell everything
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400),
          requires = "cluster", conflicts_with = "paths")]
    timeout: u64,
    /// Whether there is to be a kernel part, which serves TCP and UDP ports beside http and https in another way than
    /// the proxy [default: auto]
    #[arg(long, value_enum, value_name = "MODE", env = "PENSTOCK_DATAPATH")]
    datapath: Option<DatapathMode>,
    /// How to print the report
    #[arg(long, short, value_enum, default_value_t = Output::Text, alias = "format")]
    output: Output,
    /// The best verdict that is a failure
    #[arg(long, value_enum, value_name = "VERDICT", default_value_t = FailOn::NeedsAction)]
    fail_on: FailOn,
    /// Tell what identical objects bring about, too
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    meaning: MeaningArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
    Junit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Ignored,
    Differs,
    NeedsAction,
    Refused,
    Never,
}

impl FailOn {
    fn threshold(self) -> Option<Verdict> {
        match self {
            Self::Ignored => Some(Verdict::Ignored),
            Self::Differs => Some(Verdict::Differs),
            Self::NeedsAction => Some(Verdict::NeedsAction),
            Self::Refused => Some(Verdict::Refused),
            Self::Never => None,
        }
    }
}

/// Prints the report.
pub(super) fn check(args: CheckArgs) -> Result<ExitCode, StartError> {
    let datapath = args.datapath.unwrap_or(DatapathMode::Auto);
    let reads_stdin = args.paths.iter().any(|path| path.as_os_str() == "-");
    let own = if args.meaning.names_node() { OwnNode::Named } else { OwnNode::Guessed };
    let report = if args.cluster {
        let settings = Settings {
            // Not that they are read: what is read is said by --cluster.
            manifests: Some(PathBuf::new()),
            kubeconfig: args.kubeconfig.or_else(own_kubeconfig),
            watch_namespace: args.watch_namespace,
            ..args.meaning.into_settings()
        };
        let config = config::resolve(settings, None).map_err(StartError::Config)?;
        let patience = Duration::from_secs(args.timeout);
        agent::offline::check_cluster(&config.cluster, &config.translate, datapath, own, patience)?
    } else {
        let files = agent::offline::read(&args.paths)?;
        let controllers = files.controllers();
        let started: Vec<_> = controllers.iter().map(started::judged).collect();
        let adopted = controllers.first().and_then(|first| started::adopted(&args.meaning, first));
        let (as_meant, hint) = match adopted {
            Some((adopted, hint)) => (args.meaning.or(adopted), Some(hint)),
            None => (args.meaning, None),
        };
        let mut report = agent::offline::check(files, &meaning(as_meant)?, datapath, own, &started);
        report.hints.extend(hint);
        report
    };
    let threshold = args.fail_on.threshold();
    print_out(&match args.output {
        Output::Text => render_text(&report, Style { paint: paint(), all: args.verbose }),
        Output::Json => render_json(&report),
        Output::Junit => render_junit(&report, threshold),
    })?;
    // What was to write there has failed.
    let is_cut_off = report.objects.is_empty() && reads_stdin;
    let fails = is_cut_off || threshold.is_some_and(|threshold| report.reaches(threshold));
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Where kubectl looks for it.
fn own_kubeconfig() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("HOME")?).join(".kube/config");
    path.is_file().then_some(path)
}

/// Colours on a terminal that does not refuse them.
fn paint() -> Paint {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if wanted && std::io::stdout().is_terminal() { Paint::Colour } else { Paint::Plain }
}

//! The one table of ingress-nginx's flags, and what becomes of each here. Those without meaning here
//! are made of it, so that the arguments of an existing Deployment start Penstock unchanged; so is the
//! page of the documentation.

use std::str::FromStr;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, CommandFactory as _, FromArgMatches};

use super::Cli;
use crate::config::IdleFlag;
use Fate::{Honoured, Idle};
use Takes::{Switch, Value};

/// One flag of ingress-nginx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// As on the command line, without the dashes.
    pub name: &'static str,
    /// What may follow it.
    pub takes: Takes,
    /// What becomes of it.
    pub fate: Fate,
}

/// What may follow a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing, or `=` and a boolean.
    Switch,
    /// A value, behind `=` or a blank.
    Value,
}

/// What becomes of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It does here what it does there.
    Honoured,
    /// It has no meaning here; what does its work.
    Idle(&'static str),
}

/// All of them, by what they are about.
#[rustfmt::skip]
pub const TABLE: &[Flag] = &[
    flag("http-port", Value, Honoured),
    flag("https-port", Value, Honoured),
    flag("healthz-host", Value, Honoured),
    flag("healthz-port", Value, Honoured),
    flag("health-check-path", Value, Honoured),
    flag("health-check-timeout", Value, Idle("/healthz asks nobody, so it answers at once")),
    flag("default-server-port", Value, Idle("the proxy itself answers requests that no rule takes")),
    flag("status-port", Value, Idle("agent and proxy are one process and need no port between them")),
    flag("stream-port", Value, Idle("agent and proxy are one process and need no port between them")),
    flag("ssl-passthrough-proxy-port", Value, Idle("the TLS listener reads the name in the ClientHello itself")),

    flag("ingress-class", Value, Honoured),
    flag("ingress-class-by-name", Switch, Honoured),
    flag("controller-class", Value, Honoured),
    flag("watch-ingress-without-class", Switch, Honoured),
    flag("configmap", Value, Honoured),
    flag("tcp-services-configmap", Value, Honoured),
    flag("udp-services-configmap", Value, Honoured),
    flag("default-backend-service", Value, Honoured),
    flag("default-ssl-certificate", Value, Honoured),
    flag("enable-ssl-passthrough", Switch, Honoured),
    flag("enable-ssl-chain-completion", Switch, Idle("chains are sent as their Secrets have them")),
    flag("disable-catch-all", Switch, Honoured),
    flag("disable-svc-external-name", Switch, Honoured),
    flag("annotations-prefix", Value, Honoured),
    flag("enable-annotation-validation", Switch, Idle("annotations are always judged")),
    flag("deep-inspect", Switch, Idle("the webhook always refuses such hosts and paths; nothing of an Ingress becomes configuration here")),
    flag("enable-topology-aware-routing", Switch, Honoured),

    flag("apiserver-host", Value, Honoured),
    flag("certificate-authority", Value, Honoured),
    flag("kubeconfig", Value, Honoured),
    flag("watch-namespace", Value, Honoured),
    flag("watch-namespace-selector", Value, Honoured),
    flag("sync-period", Value, Idle("objects are watched, so nothing is read anew by the clock")),
    flag("sync-rate-limit", Value, Idle("a change is in force at once, because nothing is reloaded")),
    flag("publish-service", Value, Honoured),
    flag("publish-status-address", Value, Honoured),
    flag("report-node-internal-ip-address", Switch, Honoured),
    flag("update-status", Switch, Honoured),
    flag("update-status-on-shutdown", Switch, Honoured),
    flag("status-update-interval", Value, Honoured),
    flag("election-id", Value, Honoured),
    flag("election-ttl", Value, Honoured),
    flag("disable-leader-election", Switch, Honoured),
    flag("disable-sync-events", Switch, Honoured),

    flag("validating-webhook", Value, Honoured),
    flag("validating-webhook-certificate", Value, Honoured),
    flag("validating-webhook-key", Value, Honoured),
    flag("disable-full-test", Switch, Idle("there is no configuration of nginx to test; every object is judged")),

    flag("enable-metrics", Switch, Honoured),
    flag("metrics-per-host", Switch, Honoured),
    flag("metrics-per-undefined-host", Switch, Honoured),
    flag("report-status-classes", Switch, Honoured),
    flag("exclude-socket-metrics", Value, Honoured),
    flag("time-buckets", Value, Honoured),
    flag("length-buckets", Value, Honoured),
    flag("size-buckets", Value, Honoured),
    flag("bucket-factor", Value, Idle("histograms have buckets of fixed bounds: --time-buckets, --length-buckets, --size-buckets")),
    flag("max-buckets", Value, Idle("histograms have buckets of fixed bounds: --time-buckets, --length-buckets, --size-buckets")),
    flag("monitor-max-batch-size", Value, Idle("workers count requests themselves and send nobody batches")),

    flag("shutdown-grace-period", Value, Honoured),
    flag("post-shutdown-grace-period", Value, Honoured),

    flag("dynamic-configuration-retries", Value, Idle("the proxy reads a new snapshot from memory, which cannot fail")),
    flag("internal-logger-address", Value, Idle("everything logs to the standard error, and requests as access-log-path says")),
    flag("profiling", Switch, Idle("perf shows where time goes")),
    flag("profiler-address", Value, Idle("perf shows where time goes")),
    flag("profiler-port", Value, Idle("perf shows where time goes")),
    flag("maxmind-edition-ids", Value, Idle("addresses are not looked up: $geoip2_* are empty")),
    flag("maxmind-license-key", Value, Idle("addresses are not looked up: $geoip2_* are empty")),
    flag("maxmind-mirror", Value, Idle("addresses are not looked up: $geoip2_* are empty")),
    flag("maxmind-retries-count", Value, Idle("addresses are not looked up: $geoip2_* are empty")),
    flag("maxmind-retries-timeout", Value, Idle("addresses are not looked up: $geoip2_* are empty")),

    flag("v", Value, Idle(LOG)),
    flag("vmodule", Value, Idle(LOG)),
    flag("stderrthreshold", Value, Idle(LOG)),
    flag("log_backtrace_at", Value, Idle(LOG)),
    flag("log_dir", Value, Idle(STDERR)),
    flag("log_file", Value, Idle(STDERR)),
    flag("log_file_max_size", Value, Idle(STDERR)),
    flag("logtostderr", Switch, Idle(STDERR)),
    flag("alsologtostderr", Switch, Idle(STDERR)),
    flag("one_output", Switch, Idle(STDERR)),
    flag("add_dir_header", Switch, Idle(STDERR)),
    flag("skip_headers", Switch, Idle(STDERR)),
    flag("skip_log_headers", Switch, Idle(STDERR)),
];

const LOG: &str = "PENSTOCK_LOG says how much is logged, as in PENSTOCK_LOG=debug";
const STDERR: &str = "the log goes to the standard error, in one form";

const fn flag(name: &'static str, takes: Takes, fate: Fate) -> Flag {
    Flag { name, takes, fate }
}

/// Flags that were given and change nothing.
#[derive(Debug, Default)]
pub(super) struct IdleArgs(Vec<IdleFlag>);

impl IdleArgs {
    pub(super) fn into_given(self) -> Vec<IdleFlag> {
        self.0
    }
}

impl Args for IdleArgs {
    fn augment_args(command: Command) -> Command {
        let idle = TABLE.iter().filter(|flag| matches!(flag.fate, Idle(_)));
        command.args(idle.map(|Flag { name, takes, .. }| {
            let arg = Arg::new(*name).long(*name).hide(true).action(ArgAction::Append);
            let arg = if name.len() == 1 { arg.short(name.chars().next()) } else { arg };
            match takes {
                Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
                Value => arg.num_args(1).allow_hyphen_values(true),
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for IdleArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let is_given = |id: &str| {
            matches!(matches.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
        };
        let given = TABLE.iter().filter_map(|Flag { name, fate, .. }| match fate {
            Honoured => None,
            Idle(instead) => is_given(name).then_some((name, *instead)),
        });
        Ok(Self(given.map(|(name, instead)| IdleFlag { name, instead }).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A boolean as Go reads it.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("allowed: true, false".to_owned()),
    }
}

/// A port, which is refused with what is allowed, as the next ones.
pub(super) fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "allowed: a port, up to 65535".to_owned())
}

/// So many of something.
pub(super) fn count<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "allowed: a whole number".to_owned())
}

/// So many seconds.
pub(super) fn seconds<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "allowed: a whole number of seconds, without a unit".to_owned())
}

/// What `--help` says of a flag of `penstock run`; `None`: it has none of this name to show.
pub fn help(name: &str) -> Option<String> {
    shown().into_iter().find(|(shown, _)| shown == name).map(|(_, help)| help)
}

/// The flags of `penstock run` that `--help` shows, in its order, and what it says of each.
pub fn shown() -> Vec<(String, String)> {
    let command = Cli::command();
    let Some(run) = command.find_subcommand("run") else { return Vec::new() };
    let args = run.get_arguments().filter(|arg| !arg.is_hide_set());
    args.filter_map(|arg| {
        Some((arg.get_long()?.to_owned(), arg.get_help().map(ToString::to_string).unwrap_or_default()))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Command as Asked;

    /// Those of the command line that people script against.
    const SCRIPTED: &str = "publish-service publish-status-address update-status update-status-on-shutdown \
        election-id election-ttl disable-leader-election controller-class ingress-class ingress-class-by-name \
        watch-ingress-without-class watch-namespace watch-namespace-selector configmap tcp-services-configmap \
        udp-services-configmap default-backend-service default-ssl-certificate default-server-port http-port \
        https-port healthz-port healthz-host health-check-path status-port stream-port \
        ssl-passthrough-proxy-port enable-ssl-passthrough validating-webhook validating-webhook-certificate \
        validating-webhook-key disable-catch-all disable-svc-external-name enable-metrics metrics-per-host \
        metrics-per-undefined-host report-status-classes exclude-socket-metrics time-buckets length-buckets \
        size-buckets bucket-factor max-buckets monitor-max-batch-size status-update-interval \
        report-node-internal-ip-address disable-full-test profiling enable-topology-aware-routing \
        enable-annotation-validation annotations-prefix disable-sync-events deep-inspect \
        shutdown-grace-period post-shutdown-grace-period sync-rate-limit sync-period maxmind-license-key \
        maxmind-edition-ids v";

    fn idle_of(args: &[&str]) -> Vec<&'static str> {
        let parsed = Cli::try_parse_from(["penstock"].iter().chain(args)).expect("accepted");
        let Asked::Run(args) = parsed.command else { panic!("run") };
        args.into_parts().1.into_iter().map(|flag| flag.name).collect()
    }

    #[test]
    fn the_table_has_what_people_script_against_and_nothing_twice() {
        let mut names: Vec<_> = TABLE.iter().map(|flag| flag.name).collect();
        for name in SCRIPTED.split_whitespace() {
            assert!(names.contains(&name), "{name}");
        }

        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
    }

    #[test]
    fn a_flag_is_shown_where_it_has_a_meaning() {
        for Flag { name, fate, .. } in TABLE {
            assert_eq!(help(name).is_some(), !matches!(fate, Idle(_)), "{name}");
        }
    }

    #[test]
    fn every_flag_is_accepted_as_pflag_would() {
        for Flag { name, takes, fate } in TABLE {
            let value = match *name {
                "http-port" | "https-port" | "healthz-port" => "8080",
                "status-update-interval" | "shutdown-grace-period" | "post-shutdown-grace-period" => "5",
                _ => "-x",
            };
            let joined = match takes {
                Switch => format!("--{name}=False"),
                Value => format!("--{name}={value}"),
            };
            let mut given = vec![vec![joined.as_str(), joined.as_str()]];
            let long = format!("--{name}");
            given.push(match takes {
                Switch => vec![long.as_str()],
                Value if matches!(fate, Idle(_)) => vec![long.as_str(), value],
                Value => vec![long.as_str(), "5"],
            });
            for args in given {
                let idle = idle_of(&[&["run", "--manifests", "m"], args.as_slice()].concat());

                let expected: &[&str] = if matches!(fate, Honoured) { &[] } else { &[name] };
                assert_eq!(idle, expected, "{args:?}");
            }
        }
    }

    #[test]
    fn what_is_no_number_is_refused_with_what_is_allowed() {
        for (flag, expected) in [
            ("--grace-seconds=5m", "allowed: a whole number of seconds, without a unit"),
            ("--drain-seconds=-1", "allowed: a whole number of seconds, without a unit"),
            ("--status-update-interval=1s", "allowed: a whole number of seconds, without a unit"),
            ("--flow-entries=x", "allowed: a whole number"),
            ("--workers=many", "allowed: a whole number"),
            ("--http-port=65536", "allowed: a port, up to 65535"),
        ] {
            let refused = Cli::try_parse_from(["penstock", "run", flag]).expect_err(flag).to_string();

            assert!(refused.contains(expected), "{flag}: {refused}");
        }
    }

    #[test]
    fn the_arguments_of_a_deployment_of_ingress_nginx_start_penstock() {
        let args = [
            "/nginx-ingress-controller",
            "--publish-service=ingress-nginx/ingress-nginx-controller",
            "--election-id=ingress-nginx-leader",
            "--controller-class=k8s.io/ingress-nginx",
            "--ingress-class=nginx",
            "--configmap=ingress-nginx/ingress-nginx-controller",
            "--watch-ingress-without-class=true",
            "--enable-metrics=false",
            "-v=2",
        ];

        assert!(idle_of(&args).contains(&"v"));
    }
}

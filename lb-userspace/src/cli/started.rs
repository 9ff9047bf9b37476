//! The arguments of a workload that runs ingress-nginx, read as the command line would read them.

use clap::{Args as _, Command, FromArgMatches as _, Parser as _};

use super::Cli;
use super::flags::{Fate, Flag, TABLE, Takes};
use super::meaning::MeaningArgs;
use crate::check::{Controller, FlagFate, Started, StartedFlag};

/// A flag as it is written: in one argument, or with its value in the next.
struct Written {
    field: String,
    /// `--name=value` or `--name`.
    text: String,
    name: String,
    /// The argument is in the table.
    known: Option<Flag>,
}

/// What becomes of each flag.
pub(super) fn judged(controller: &Controller) -> Started {
    let flags = written(controller).into_iter().map(|written| {
        let fate = fate(&written);
        StartedFlag { field: written.field, text: written.text, fate }
    });
    Started { id: controller.id.clone(), flags: flags.collect() }
}

fn fate(written: &Written) -> FlagFate {
    let Some(flag) = written.known else { return FlagFate::Unknown };
    match flag.fate {
        Fate::Idle(instead) => FlagFate::Idle(instead),
        // The pod knows what it stands for.
        Fate::Honoured if written.text.contains("$(") => FlagFate::Honoured(flag.name),
        Fate::Honoured => {
            match Cli::try_parse_from(["penstock", "run", "--manifests", ".", written.text.as_str()]) {
                Ok(_) => FlagFate::Honoured(flag.name),
                Err(error) => {
                    let text = error.to_string();
                    let first = text.lines().next().unwrap_or_default();
                    FlagFate::Refused(first.strip_prefix("error: ").unwrap_or(first).to_owned())
                }
            }
        }
    }
}

/// Those flags that decide what objects mean, unless `given` says otherwise, and what to tell about that.
pub(super) fn adopted(given: &MeaningArgs, controller: &Controller) -> Option<(MeaningArgs, String)> {
    let command = MeaningArgs::augment_args(Command::new("flags").no_binary_name(true));
    let means = |written: &Written| {
        let is_long = command.get_arguments().any(|arg| arg.get_long() == Some(written.name.as_str()));
        is_long && !written.text.contains("$(") && matches!(fate(written), FlagFate::Honoured(_))
    };
    let mut texts: Vec<String> = Vec::new();
    for written in written(controller).into_iter().filter(means) {
        // As with pflag, the last one counts.
        texts.retain(|text| text.split('=').next() != written.text.split('=').next());
        texts.push(written.text);
    }
    let matches = command.try_get_matches_from(&texts).ok()?;
    let found = MeaningArgs::from_arg_matches(&matches).ok()?;
    let is_news = !texts.is_empty() && given.clone().or(found.clone()) != *given;
    let id = &controller.id;
    let hint = format!(
        "judged as {} {}/{} starts ingress-nginx: {}; flags of this command come first",
        id.kind,
        id.namespace,
        id.name,
        texts.join(" ")
    );
    is_news.then_some((found, hint))
}

fn written(controller: &Controller) -> Vec<Written> {
    let mut found = Vec::new();
    let mut arguments = controller.arguments.iter().peekable();
    while let Some((field, argument)) = arguments.next() {
        let (name, value) = argument.split_once('=').map_or((argument.as_str(), None), |(n, v)| (n, Some(v)));
        let name = name.trim_start_matches('-').to_owned();
        let known = TABLE.iter().find(|flag| flag.name == name).copied();
        let mut text = argument.clone();
        if let (None, Some(Takes::Value)) = (value, known.map(|flag| flag.takes))
            && let Some((_, value)) = arguments.next()
        {
            text = format!("{text}={value}");
        }
        found.push(Written { field: field.clone(), text, name, known });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(arguments: &[&str]) -> Controller {
        let arguments = arguments.iter().enumerate().map(|(i, text)| (i.to_string(), (*text).to_owned()));
        Controller { id: Default::default(), arguments: arguments.collect() }
    }

    #[test]
    fn every_flag_is_judged() {
        let arguments = [
            "--configmap=edge/c",
            "--tcp-services-configmap",
            "edge/tcp",
            "-v=2",
            "--http-port=x",
            "--nonsense",
            "--publish-service=$(WHO)/x",
        ];

        let Started { id: _, flags } = judged(&controller(&arguments));

        let told: Vec<_> = flags.iter().map(|flag| (flag.field.as_str(), flag.text.as_str())).collect();
        let expected = [
            ("0", "--configmap=edge/c"),
            ("1", "--tcp-services-configmap=edge/tcp"),
            ("3", "-v=2"),
            ("4", "--http-port=x"),
            ("5", "--nonsense"),
            ("6", "--publish-service=$(WHO)/x"),
        ];
        assert_eq!(told, expected);
        assert_eq!(flags[0].fate, FlagFate::Honoured("configmap"));
        assert!(matches!(flags[2].fate, FlagFate::Idle(_)), "{:?}", flags[2]);
        assert!(matches!(flags[3].fate, FlagFate::Refused(_)), "{:?}", flags[3]);
        assert_eq!(flags[4].fate, FlagFate::Unknown);
    }

    #[test]
    fn what_objects_mean_is_taken_from_it_unless_it_is_given() {
        let nothing = MeaningArgs::default();
        let arguments = ["--configmap=a/b", "--configmap=edge/c", "--v=2", "--watch-ingress-without-class"];
        let controller = controller(&arguments);

        let (found, hint) = adopted(&nothing, &controller).expect("news");

        assert!(hint.contains(": --configmap=edge/c --watch-ingress-without-class;"), "{hint}");
        assert_eq!(adopted(&nothing.or(found), &controller), None);
    }
}

//! How ingress-nginx was started: its flags, by what becomes of each here.
//!
//! What a flag is only the command line knows; this finds the workloads, and words what is known.

use super::{Finding, Verdict};
use crate::model::ObjectId;
use crate::objects::Bystander;

/// A workload that runs ingress-nginx.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// The workload.
    pub id: ObjectId,
    /// Its flags by their field, as they are written.
    pub arguments: Vec<(String, String)>,
}

/// The same, with what becomes of its flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The workload.
    pub id: ObjectId,
    /// Its flags in their order.
    pub flags: Vec<StartedFlag>,
}

/// One of its flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedFlag {
    /// Where it stands.
    pub field: String,
    /// As it is written.
    pub text: String,
    /// What becomes of it.
    pub fate: FlagFate,
}

/// What becomes of a flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlagFate {
    /// The same as there; its name.
    Honoured(&'static str),
    /// Accepted, and without meaning here; what does its work.
    Idle(&'static str),
    /// Nobody knows it.
    Unknown,
    /// Its value is none that could be used, and why.
    Refused(String),
}

/// Workloads that run ingress-nginx, by program or image.
pub fn controllers(bystanders: &[Bystander]) -> Vec<Controller> {
    let of_workload = |bystander: &Bystander| {
        let runs = |(_, text): &(String, String)| text.ends_with("/nginx-ingress-controller");
        let ours = bystander.containers.iter().find(|container| {
            container.image.contains("ingress-nginx/controller") || container.arguments.iter().any(runs)
        })?;
        let program = ours.arguments.iter().position(runs).map_or(0, |place| place + 1);
        let flags = ours.arguments.iter().skip(program).skip_while(|(_, text)| !text.starts_with('-'));
        Some(Controller { id: bystander.id.clone(), arguments: flags.cloned().collect() })
    };
    bystanders.iter().filter_map(of_workload).collect()
}

impl Started {
    /// Flags that do here what they did there.
    pub(super) fn honoured(&self) -> Vec<&'static str> {
        let honoured = self.flags.iter().filter_map(|flag| match flag.fate {
            FlagFate::Honoured(name) => Some(name),
            _ => None,
        });
        honoured.collect()
    }

    /// What is to be said of the others.
    pub(super) fn findings(&self) -> impl Iterator<Item = Finding> {
        self.flags.iter().filter_map(StartedFlag::finding)
    }
}

impl StartedFlag {
    fn finding(&self) -> Option<Finding> {
        let Self { field, text, fate } = self;
        let name = text.split_once('=').map_or(text.as_str(), |(name, _)| name);
        let (verdict, reason, message, fix) = match fate {
            FlagFate::Honoured("watch-namespace" | "watch-namespace-selector") => (
                Verdict::Identical,
                "narrower",
                format!("{text}: this report is about objects of all namespaces"),
                "",
            ),
            FlagFate::Honoured(_) => return None,
            FlagFate::Idle(instead) => {
                let message = format!("{name} is accepted and changes nothing: {instead}");
                (Verdict::Ignored, "idle-flag", message, "")
            }
            FlagFate::Unknown => (
                Verdict::NeedsAction,
                "unknown-flag",
                format!("{name} is no flag of ingress-nginx, and penstock would not start with it"),
                "leave it out",
            ),
            FlagFate::Refused(why) => (
                Verdict::NeedsAction,
                "bad-flag",
                format!("penstock would not start with it: {why}"),
                "correct the value",
            ),
        };
        Some(Finding { verdict, reason, field: field.clone(), message, fix: fix.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::NOW;
    use super::super::{Input, Style, render_text, report};
    use super::*;
    use crate::manifests::Files;
    use crate::translate::{self, Options};

    const DEPLOYMENT: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: c, namespace: edge}\n\
        spec:\n  template:\n    spec:\n      containers:\n      - image: other:1\n        args: [--x]\n      \
        - image: any:1\n        command: [/usr/bin/dumb-init, --]\n        \
          args: [/nginx-ingress-controller, --configmap=edge/c, --v=2, --gone]\n";

    #[test]
    fn the_flags_of_a_controller_are_judged_and_it_is_no_object_that_nobody_reads() {
        let files = Files::of_text("a.yaml", DEPLOYMENT.as_bytes());
        let bystanders = files.bystanders();
        let [controller] = &controllers(&bystanders)[..] else { panic!("{bystanders:?}") };
        let fates =
            [FlagFate::Honoured("configmap"), FlagFate::Idle("something else does"), FlagFate::Unknown];
        let flags = controller.arguments.iter().zip(fates);
        let flags =
            flags.map(|((field, text), fate)| StartedFlag { field: field.clone(), text: text.clone(), fate });
        let started = [Started { id: controller.id.clone(), flags: flags.collect() }];
        let loaded = files.load(translate::ADMISSION);
        let options = Options::default();

        let report = report(&Input {
            objects: &loaded.objects,
            options: &options,
            translated: &translate::translate(&loaded.objects, &options),
            load_problems: &loaded.problems,
            bystanders: &bystanders,
            started: &started,
            now: NOW,
        });

        let text = render_text(&report, Style::default());
        let (_, told) = text.split_once("Deployment edge/c  (a.yaml#1)\n").expect("told");
        assert_eq!(
            told,
            "    runs ingress-nginx; penstock takes the same flags\n    honoured: configmap\n    \
             ! needs action: spec.template.spec.containers[1].args[3]: --gone is no flag of ingress-nginx, and penstock would not start with it [unknown-flag]\n        \
             fix: leave it out\n    \
             - ignored: spec.template.spec.containers[1].args[2]: --v is accepted and changes nothing: something else does [idle-flag]\n"
        );
    }
}

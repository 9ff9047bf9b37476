//! What the translation cannot or need not say: how ingress-nginx read the same, what shows only
//! when objects are looked at together, and what was never more than a belief.
//!
//! Each trap is one function over the [`World`]; the list below is all there are.

mod canary;
mod certificates;
mod circles;
mod companions;
mod exposure;
mod metrics;
mod prefixes;
mod regexes;
mod secrets;
mod services;
mod shared;
mod snippets;
mod streams;
mod variables;
mod world;

use super::{Finding, Input, Verdict};
use crate::model::ObjectId;
use crate::translate;
pub use metrics::METRICS;
pub use prefixes::UNREAD_PREFIX;
use world::World;

/// All traps, in no order that matters.
const TRAPS: &[fn(&World<'_>, &mut Caught)] = &[
    prefixes::misspelt,
    snippets::of_ingresses,
    snippets::of_the_config_map,
    regexes::flipped_hosts,
    regexes::shadowed_paths,
    regexes::rewrites_to_itself,
    regexes::missing_groups,
    circles::app_roots,
    circles::redirects,
    regexes::patterns_of_annotations,
    canary::shared_upstream,
    shared::balancing,
    shared::host_settings,
    exposure::answers_before_auth,
    exposure::spoofable_address,
    exposure::client_certificates_over_http,
    exposure::handed_on_unopened,
    exposure::asks_nobody,
    exposure::unescaped_sign_in,
    certificates::flaws,
    secrets::password_hashes,
    variables::unknown,
    services::limits_per_balancer,
    services::client_address,
    services::ports_by_target,
    services::named_metrics_port,
    streams::unnamed,
    streams::forwarded,
    metrics::unknown,
    companions::orphaned_webhook,
    companions::scaled_controller,
    companions::default_classes,
];

/// Whether a trap says better what a problem of the same field says.
pub(super) fn replaces(trap: &str, problem: &str) -> bool {
    trap == problem
        || (trap == "snippet"
            && matches!(problem, "ignored-snippet" | "no-effect" | "refused-annotation" | "refused-key"))
}

/// Whether the annotation that a trap is about does nothing, and so neither do those that only go with it.
pub(super) fn idles(trap: &str) -> bool {
    matches!(trap, "asks-nobody" | "handed-on-unopened")
}

/// Everything that is caught, by object.
pub(super) fn find(input: &Input<'_>) -> Vec<(ObjectId, Finding)> {
    let world = World::new(input);
    let mut caught = Caught(Vec::new());
    for trap in TRAPS {
        trap(&world, &mut caught);
    }
    let Some(renamed) = translate::renamed(input.options) else { return caught.0 };
    let as_written = |finding: Finding| Finding {
        field: renamed.field(finding.field),
        message: renamed.text(&finding.message),
        fix: renamed.text(&finding.fix),
        ..finding
    };
    caught.0.into_iter().map(|(id, finding)| (id, as_written(finding))).collect()
}

/// Collects what is caught.
struct Caught(Vec<(ObjectId, Finding)>);

impl Caught {
    /// ingress-nginx does the same, though perhaps not what its author thinks.
    fn note(
        &mut self,
        id: &ObjectId,
        reason: &'static str,
        field: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.say(id, Verdict::Identical, reason, field.into(), message.into(), fix.into());
    }

    /// Works in another way than with ingress-nginx.
    fn differs(
        &mut self,
        id: &ObjectId,
        reason: &'static str,
        field: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.say(id, Verdict::Differs, reason, field.into(), message.into(), fix.into());
    }

    /// Somebody has to do something.
    fn needs_action(
        &mut self,
        id: &ObjectId,
        reason: &'static str,
        field: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.say(id, Verdict::NeedsAction, reason, field.into(), message.into(), fix.into());
    }

    fn say(
        &mut self,
        id: &ObjectId,
        verdict: Verdict,
        reason: &'static str,
        field: String,
        message: String,
        fix: String,
    ) {
        self.0.push((id.clone(), Finding { verdict, reason, field, message, fix }));
    }
}

/// `a, b and 3 more`.
fn listed<T: ToString>(items: &[T]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<_> = items.iter().take(SHOWN).map(ToString::to_string).collect();
    match items.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

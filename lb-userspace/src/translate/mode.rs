//! Whether an Ingress means to the letter what it means to ingress-nginx, or what its author would
//! rather have meant (`penstock-mode: strict`): patterns match a path as a whole and tell `a` from `A`, are
//! what ImplementationSpecific paths of an Ingress that asks for patterns are, and change no other path of the
//! host; who asks too often is told so (429). What it means for a request stands at [`Mode`].

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::config::Settings;
use super::ours;
use crate::model::l7::Mode;

/// Key of the ConfigMap with the default of the annotation.
pub const KEY: &str = "penstock-mode";
/// Values of both.
pub(super) const WORDS: [&str; 2] = ["compat", "strict"];

/// That of an Ingress; a word that is none counts as absent.
pub(super) fn of(metadata: &ObjectMeta, settings: &Settings) -> Mode {
    of_words(metadata, settings.text(KEY))
}

/// The same, by the value of the ConfigMap's key.
pub fn of_words(metadata: &ObjectMeta, usual: Option<&str>) -> Mode {
    let own = ours::text(metadata, ours::READING).filter(|text| WORDS.contains(text));
    named(own.or(usual))
}

/// That of what has no Ingress.
pub(super) fn of_settings(settings: &Settings) -> Mode {
    named(settings.text(KEY))
}

fn named(word: Option<&str>) -> Mode {
    if word == Some("strict") { Mode::Strict } else { Mode::Compat }
}

/// Value of the annotation.
pub(super) fn check(text: &str) -> Result<(), String> {
    if WORDS.contains(&text) { Ok(()) } else { Err(format!("{text:?} is neither compat nor strict")) }
}

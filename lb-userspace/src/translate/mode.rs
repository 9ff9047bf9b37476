//! Whether an Ingress means to the letter what it means to ingress-nginx, or what its author would
//! rather have meant (`penstock-mode: strict`).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::config::Settings;
use super::ours;

/// Key of the ConfigMap with the default of the annotation.
pub(super) const KEY: &str = "penstock-mode";
/// Values of both.
pub(super) const WORDS: [&str; 2] = ["compat", "strict"];

/// How an Ingress is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mode {
    /// As ingress-nginx does.
    #[default]
    Compat,
    /// Patterns match a path as a whole and tell `a` from `A`; they are what ImplementationSpecific
    /// paths of an Ingress that asks for patterns are, and change no other path of the host. Who asks
    /// too often is told so (429), and a TLS client gets only the host that it shook hands with (421).
    Strict,
}

impl Mode {
    /// Of an Ingress; a word that is none counts as absent.
    pub(super) fn of(metadata: &ObjectMeta, settings: &Settings) -> Self {
        let own = ours::text(metadata, ours::READING).filter(|text| WORDS.contains(text));
        match own.or_else(|| settings.text(KEY)) {
            Some("strict") => Self::Strict,
            _ => Self::Compat,
        }
    }
}

/// Value of the annotation.
pub(super) fn check(text: &str) -> Result<(), String> {
    if WORDS.contains(&text) { Ok(()) } else { Err(format!("{text:?} is neither compat nor strict")) }
}

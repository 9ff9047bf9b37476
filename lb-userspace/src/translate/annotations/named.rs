//! Annotations by their names: which an object has, what is none, how problems name one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::config::table::row as key;
use super::super::findings::About;
use super::table::{Annotation, Status, TABLE, Value};
use super::{meant, removed};

/// Prefix of all of them; those under another `--annotations-prefix` are renamed where they come in.
pub const PREFIX: &str = "nginx.ingress.kubernetes.io";

/// Annotations of the table that are set, [as read](as_read); an alias only while its proper name is empty.
pub fn known(metadata: &ObjectMeta) -> impl Iterator<Item = (&'static Annotation, &str)> {
    let all = metadata.annotations.as_ref();
    let is_set = move |name: &str| {
        let text = all.and_then(|all| all.get(&format!("{PREFIX}/{name}")));
        text.is_some_and(|text| !text.trim().is_empty())
    };
    all.into_iter().flatten().filter_map(move |(name, text)| {
        let row = row(short_name(name)?)?;
        let text = read_by(row, text);
        let shadowed = match row.name {
            "whitelist-source-range" => is_set("allowlist-source-range"),
            "limit-whitelist" => is_set("limit-allowlist"),
            _ => false,
        };
        (!text.is_empty() && !shadowed).then_some((row, text))
    })
}

/// What of a text counts as the value of an annotation, by its name without the prefix; empty where it is not set.
pub fn as_read<'t>(short: &str, text: &'t str) -> &'t str {
    row(short).map_or(text.trim(), |row| read_by(row, text))
}

/// Texts are trimmed. Booleans and numbers are not: Go's ParseBool and Atoi take no blanks, and what ingress-nginx
/// refuses may not open anything here. What is refused in any case opens nothing, and counts as it is meant.
fn read_by<'t>(row: &Annotation, text: &'t str) -> &'t str {
    match (row.value, text.trim()) {
        (_, trimmed) if row.status == Status::Refused => trimmed,
        (Value::Bool | Value::Int | Value::From(_) | Value::ErrorStatus, trimmed) if !trimmed.is_empty() => {
            text
        }
        (_, trimmed) => trimmed,
    }
}

/// Name without the prefix; `None` where it has another.
fn short_name(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)?.strip_prefix('/')
}

pub(super) fn row(short: &str) -> Option<&'static Annotation> {
    TABLE.iter().find(|row| row.name == short)
}

/// Says which annotations there are none of.
pub(super) fn unknown(metadata: &ObjectMeta, about: &mut About<'_>) {
    for name in metadata.annotations.iter().flatten().map(|(name, _)| name) {
        let Some(short) = short_name(name).filter(|short| row(short).is_none()) else { continue };
        if let Some(fix) = removed::successor(short) {
            let message = "ingress-nginx has no such annotation any more; ignored";
            about.warn("removed-annotation", field(short), message, fix);
            continue;
        }
        let fix = match key(short) {
            Some(key) => format!("{} is a key of the ConfigMap, for all Ingresses", key.name),
            None => meant(short, TABLE.iter().map(|row| row.name)),
        };
        about.warn("unknown-annotation", field(short), "no such annotation; ignored", fix);
    }
}

/// Field of an annotation, as problems name it.
pub(in crate::translate) fn field(name: &str) -> String {
    format!("metadata.annotations.{PREFIX}/{name}")
}

/// Names of the annotations of an object that are honoured, for `check`.
pub(in crate::translate) fn honoured(metadata: &ObjectMeta) -> Vec<&'static str> {
    let set: Vec<_> = known(metadata).map(|(row, _)| row).collect();
    let counts = |row: &&Annotation| match row.status {
        Status::With(other) => is_honoured(other) && set.iter().any(|row| row.name == other),
        status => status == Status::Honoured,
    };
    set.iter().copied().filter(counts).map(|row| row.name).collect()
}

pub(super) fn is_honoured(name: &str) -> bool {
    row(name).is_some_and(|row| match row.status {
        Status::With(other) => is_honoured(other),
        status => status == Status::Honoured,
    })
}

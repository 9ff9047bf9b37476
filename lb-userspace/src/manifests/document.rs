//! One document: text to typed object, or the reason why not.

use std::sync::Arc;

use k8s_openapi::ByteString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::split::{self, Part};
use crate::model::{ObjectId, ObjectName, Problem, Severity};
use crate::objects::{Key, Kind, Object, file_of};

/// Documents (or list items) in one file; a separator storm stops here.
const MAX_DOCUMENTS: usize = 20_000;
const MAX_UNKNOWN_FIELDS: usize = 20;

/// One object, or what should have been one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// File, document and list position, e.g. `shop/ingress.yaml#2`.
    pub origin: Arc<str>,
    pub outcome: Outcome,
    /// Findings, whatever the outcome.
    pub problems: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    Object(Object),
    /// Broken; the key where the text told it.
    Broken(Option<Key>),
    /// Nothing for us.
    Ignored,
}

/// All entries of a file; an error where the file as a whole cannot be read as text.
pub(super) fn read_file(file: &str, bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| format!("not UTF-8 text (byte {} is invalid)", error.valid_up_to()))?;
    let mut entries = Vec::new();
    if file.to_ascii_lowercase().ends_with(".json") {
        read_json(file, text, &mut entries);
        return Ok(entries);
    }
    let parts = split::documents(text);
    if parts.len() > MAX_DOCUMENTS {
        return Err(format!("holds {} documents, more than {MAX_DOCUMENTS}", parts.len()));
    }
    for part in parts {
        read_yaml(file, &part, &mut entries);
    }
    Ok(entries)
}

/// Every object of a file with its origin, whatever its kind; without what cannot be read.
pub(super) fn each_value(file: &str, text: &str, see: &mut dyn FnMut(&str, Value)) {
    if file.to_ascii_lowercase().ends_with(".json") {
        if let Ok(value) = json(text) {
            flatten(&format!("{file}#1"), value, see);
        }
        return;
    }
    for part in split::documents(text).into_iter().take(MAX_DOCUMENTS) {
        if let Ok(value) = serde_saphyr::from_str_with_options(part.text, yaml_options()) {
            flatten(&format!("{file}#{}", part.number), value, see);
        }
    }
}

fn flatten(origin: &str, mut value: Value, see: &mut dyn FnMut(&str, Value)) {
    let items = match &mut value {
        Value::Array(items) => std::mem::take(items),
        Value::Object(fields) => match fields.get_mut("items") {
            Some(Value::Array(items)) => std::mem::take(items),
            _ => return see(origin, value),
        },
        _ => return,
    };
    for (index, item) in items.into_iter().enumerate() {
        flatten(&format!("{origin}.items[{index}]"), item, see);
    }
}

fn read_json(file: &str, text: &str, entries: &mut Vec<Entry>) {
    if text.trim().is_empty() {
        return;
    }
    let origin = format!("{file}#1");
    match json(text) {
        Ok(Value::Array(items)) => read_items(&origin, "", items, entries),
        Ok(value) => read_value(origin, value, entries),
        Err(error) => entries.push(broken_syntax(origin, text, error)),
    }
}

/// A value takes a multiple of what it is written in, so they are counted first.
fn json(text: &str) -> Result<Value, String> {
    let (mut nodes, mut in_string, mut is_escaped) = (1, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_string,
            b'"' => in_string = !in_string,
            b',' | b':' | b'[' | b'{' if !in_string => nodes += 1,
            _ => {}
        }
    }
    if nodes > MAX_NODES {
        return Err(format!("more than {MAX_NODES} values and names"));
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn read_yaml(file: &str, part: &Part<'_>, entries: &mut Vec<Entry>) {
    let origin = format!("{file}#{}", part.number);
    match serde_saphyr::from_str_with_options::<Value>(part.text, yaml_options()) {
        Ok(Value::Null) => {}
        Ok(Value::Array(items)) => read_items(&origin, "", items, entries),
        Ok(value) => read_value(origin, value, entries),
        Err(error) => {
            let message = yaml_message(&error, part.lines_before);
            entries.push(broken_syntax(origin, part.text, message));
        }
    }
}

/// Room for a List of some ten thousand objects.
const MAX_NODES: usize = 4_000_000;

/// The same room, and none for an alias bomb.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        // `n` and `y` are names, as in Kubernetes, not the booleans of YAML 1.1.
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_events: MAX_NODES,
            max_nodes: MAX_NODES,
            max_depth: 64,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
    }
}

/// The parser's message in one line, with the line of the file instead of the document's.
fn yaml_message(error: &serde_saphyr::Error, lines_before: usize) -> String {
    let text = error.without_snippet().render();
    let first = text.lines().next().unwrap_or_default();
    let Some(location) = error.location() else { return first.to_owned() };
    let line = location.line() as usize + lines_before;
    // Both spellings of a position that the parser uses are the document's; ours is the file's.
    let stripped = first.strip_prefix("error: ").unwrap_or(first);
    let message = match stripped.split_once(": ") {
        Some((position, rest)) if position.starts_with("line ") => rest,
        _ => stripped.rsplit_once(" at line ").map_or(stripped, |(message, _)| message),
    };
    // What a program could do about a key that is there twice is none of the reader's business.
    let message = message.replace(", set DuplicateKeyPolicy in Options if acceptable", "");
    format!("line {line}, column {}: {message}", location.column())
}

fn broken_syntax(origin: String, text: &str, message: String) -> Entry {
    let key = guess_key(text);
    let problem = Problem {
        object: key.as_ref().map_or_else(|| unnamed(&origin), |key| key.id(&origin)),
        severity: Severity::Error,
        reason: "syntax",
        field: String::new(),
        message,
        fix: String::new(),
    };
    Entry { origin: origin.into(), outcome: Outcome::Broken(key), problems: vec![problem] }
}

fn unnamed(origin: &str) -> ObjectId {
    ObjectId { origin: origin.to_owned(), ..ObjectId::default() }
}

/// Identity of a document that does not parse, by the lines people write it in. Only used to keep
/// the right last good version, so a wrong guess costs nothing but precision.
fn guess_key(text: &str) -> Option<Key> {
    let mut kind = None;
    let mut name = None;
    let mut namespace = None;
    let mut in_metadata = false;
    let mut metadata_indent = None;
    for line in text.lines() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        let Some((field, value)) = trimmed.split_once(':') else { continue };
        let value = value.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        if indent == 0 {
            in_metadata = field == "metadata";
            metadata_indent = None;
            if field == "kind" {
                kind = Kind::ALL.into_iter().find(|kind| kind.to_string() == value);
            }
        } else if in_metadata && *metadata_indent.get_or_insert(indent) == indent {
            match field {
                "name" => name = Some(value.to_owned()),
                "namespace" => namespace = Some(value.to_owned()),
                _ => {}
            }
        }
    }
    let kind = kind?;
    Some(key(kind, name.filter(|name| !name.is_empty())?, namespace))
}

fn key(kind: Kind, name: String, namespace: Option<String>) -> Key {
    let namespace = if kind.is_namespaced() {
        namespace.filter(|namespace| !namespace.is_empty()).unwrap_or_else(|| "default".to_owned())
    } else {
        String::new()
    };
    Key { kind, name: ObjectName { namespace, name } }
}

/// What another program makes objects of.
struct Source {
    severity: Severity,
    message: &'static str,
    /// What to read in its place.
    fix: &'static str,
}

const VALUES: Source = Source {
    severity: Severity::Warning,
    message: "values of a chart are not read",
    fix: "read what the chart makes of them: helm template NAME CHART --values FILE | penstock check -",
};

/// Beside what it names, which is read as it is written.
const KUSTOMIZATION: Source = Source {
    severity: Severity::Info,
    message: "what kustomize changes is not read here, only the files of the directory",
    fix: "read what comes of it: kustomize build DIR | penstock check -",
};

/// By kind, or where there is none by the name of the file: `values.yaml`, `values-edge.yaml`, `edge.values.yml` of a chart,
/// `kustomization.yaml`, which may leave its kind out.
fn source(origin: &str, value: &Value, kind: &str, group: &str) -> Option<Source> {
    if kind == "Kustomization" && group == "kustomize.config.k8s.io" {
        return Some(KUSTOMIZATION);
    }
    if !kind.is_empty() || !group.is_empty() || !value.is_object() {
        return None;
    }
    let file = file_of(origin);
    let name = file.rsplit('/').next().unwrap_or_default();
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
    let is_values = stem == "values" || stem.starts_with("values-") || name.contains(".values.");
    match stem {
        "kustomization" => Some(KUSTOMIZATION),
        _ => is_values.then_some(VALUES),
    }
}

fn read_items(origin: &str, item_kind: &str, items: Vec<Value>, entries: &mut Vec<Entry>) {
    for (index, mut item) in items.into_iter().enumerate() {
        // Items of a typed list (`IngressList`) may leave their kind out.
        if let (false, Some(fields)) = (item_kind.is_empty(), item.as_object_mut())
            && !fields.contains_key("kind")
            && let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.to_string() == item_kind)
        {
            fields.insert("kind".to_owned(), Value::from(item_kind));
            fields.entry("apiVersion").or_insert_with(|| Value::from(kind.api_version()));
        }
        read_value(format!("{origin}.items[{index}]"), item, entries);
    }
}

pub(super) fn read_value(origin: String, mut value: Value, entries: &mut Vec<Entry>) {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind_name) = (text("apiVersion"), text("kind"));
    if let Some(item_kind) = kind_name.strip_suffix("List")
        && value.get("items").is_some_and(Value::is_array)
    {
        if let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) {
            read_items(&origin, item_kind, items, entries);
        }
        return;
    }
    if entries.len() >= MAX_DOCUMENTS {
        return;
    }
    let metadata = value.get("metadata");
    let metadata_text = |field: &str| metadata?.get(field)?.as_str().map(str::to_owned);
    let (name, namespace) = (metadata_text("name"), metadata_text("namespace"));
    let (group, _) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    let kind = Kind::ALL.into_iter().find(|kind| kind.to_string() == kind_name && is_group_of(*kind, group));
    let id = ObjectId {
        kind: kind_name.clone(),
        namespace: match kind {
            Some(kind) => key(kind, String::new(), namespace.clone()).name.namespace,
            None => namespace.clone().unwrap_or_default(),
        },
        name: name.clone().unwrap_or_default(),
        origin: origin.clone(),
    };
    let problem = |severity, reason, field: &str, message: String, fix: String| Problem {
        object: id.clone(),
        severity,
        reason,
        field: field.to_owned(),
        message,
        fix,
    };

    let Some(kind) = kind else {
        let source = source(&origin, &value, &kind_name, group)
            .filter(|_| kind_name.is_empty() == api_version.is_empty());
        let problem = if let Some(Source { severity, message, fix }) = source {
            problem(severity, "kind-not-read", "", message.to_owned(), fix.to_owned())
        } else if kind_name.is_empty() || api_version.is_empty() {
            problem(
                Severity::Error,
                "not-an-object",
                if kind_name.is_empty() { "kind" } else { "apiVersion" },
                "not a Kubernetes object: kind or apiVersion is missing".to_owned(),
                String::new(),
            )
        } else if kind_name == "Endpoints" && api_version == "v1" {
            problem(
                Severity::Warning,
                "kind-not-read",
                "kind",
                "Endpoints are not read".to_owned(),
                "write a discovery.k8s.io/v1 EndpointSlice labelled kubernetes.io/service-name".to_owned(),
            )
        } else {
            problem(
                Severity::Info,
                "kind-not-read",
                "kind",
                format!("{kind_name} ({api_version}) is not read by penstock"),
                String::new(),
            )
        };
        let outcome =
            if problem.severity == Severity::Error { Outcome::Broken(None) } else { Outcome::Ignored };
        entries.push(Entry { origin: origin.into(), outcome, problems: vec![problem] });
        return;
    };

    let broken_key = name.clone().map(|name| key(kind, name, namespace));
    if api_version != kind.api_version() {
        let problem = problem(
            Severity::Error,
            "wrong-api-version",
            "apiVersion",
            format!("{api_version} {kind} is not served any more"),
            format!("rewrite it as {}", kind.api_version()),
        );
        entries.push(Entry {
            origin: origin.into(),
            outcome: Outcome::Broken(broken_key),
            problems: vec![problem],
        });
        return;
    }
    if name.is_none_or(|name| name.is_empty()) {
        let generated = value.pointer("/metadata/generateName").is_some();
        let problem = problem(
            Severity::Error,
            "missing-name",
            "metadata.name",
            "the object has no name".to_owned(),
            if generated {
                "generateName needs an API server; write a name".to_owned()
            } else {
                String::new()
            },
        );
        entries.push(Entry {
            origin: origin.into(),
            outcome: Outcome::Broken(None),
            problems: vec![problem],
        });
        return;
    }
    let (outcome, problems) = match typed(kind, value) {
        Ok((object, unknown)) => {
            let warn = |field: String| {
                problem(
                    Severity::Warning,
                    "unknown-field",
                    &field,
                    format!("{kind} has no such field; it is ignored"),
                    "check spelling and indentation".to_owned(),
                )
            };
            (Outcome::Object(object), unknown.into_iter().map(warn).collect())
        }
        Err(error) => {
            let field = error.path().to_string();
            let message = error.inner().to_string();
            let fix = if message.contains("expected a string") && !message.contains("map") {
                "put the value in quotes".to_owned()
            } else {
                String::new()
            };
            let field = if field == "." { "" } else { &field };
            (Outcome::Broken(broken_key), vec![problem(Severity::Error, "schema", field, message, fix)])
        }
    };
    entries.push(Entry { origin: origin.into(), outcome, problems });
}

/// Groups in which a kind of this name is ours, present or past; a Knative `Service` is not.
fn is_group_of(kind: Kind, group: &str) -> bool {
    match kind {
        Kind::Ingress | Kind::IngressClass => matches!(group, "networking.k8s.io" | "extensions"),
        Kind::EndpointSlice => group == "discovery.k8s.io",
        Kind::Service | Kind::Secret | Kind::ConfigMap | Kind::Node => group.is_empty(),
    }
}

type TypeError = serde_path_to_error::Error<serde_json::Error>;

/// The object and the fields that its kind does not have.
fn typed(kind: Kind, mut value: Value) -> Result<(Object, Vec<String>), TypeError> {
    if let (true, Some(metadata)) =
        (kind.is_namespaced(), value.get_mut("metadata").and_then(Value::as_object_mut))
        && metadata.get("namespace").is_none_or(|namespace| namespace.is_null() || namespace == "")
    {
        metadata.insert("namespace".to_owned(), Value::from("default"));
    }
    Ok(match kind {
        Kind::Ingress => read_as(value, |object| Object::Ingress(Arc::new(object)))?,
        Kind::IngressClass => read_as(value, |object| Object::IngressClass(Arc::new(object)))?,
        Kind::Service => read_as(value, |object| Object::Service(Arc::new(object)))?,
        Kind::EndpointSlice => read_as(value, |object| Object::EndpointSlice(Arc::new(object)))?,
        Kind::ConfigMap => read_as(value, |object| Object::ConfigMap(Arc::new(object)))?,
        Kind::Node => read_as(value, |object| Object::Node(Arc::new(object)))?,
        Kind::Secret => {
            unwrap_base64_lines(&mut value);
            let (mut object, unknown) = read_as(value, |object| Object::Secret(Arc::new(object)))?;
            merge_string_data(&mut object);
            (object, unknown)
        }
    })
}

fn read_as<T: DeserializeOwned + Serialize>(
    value: Value,
    wrap: fn(T) -> Object,
) -> Result<(Object, Vec<String>), TypeError> {
    let object: T = serde_path_to_error::deserialize(&value)?;
    let mut unknown = Vec::new();
    if let Ok(known) = serde_json::to_value(&object) {
        unknown_fields(&value, &known, "", &mut unknown);
    }
    Ok((wrap(object), unknown))
}

/// Fields that were written but did not survive reading: typos, wrong indentation.
fn unknown_fields(written: &Value, known: &Value, path: &str, unknown: &mut Vec<String>) {
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => {
            for (name, value) in written {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match known.get(name) {
                    Some(known) => unknown_fields(value, known, &path, unknown),
                    None if value.is_null() || unknown.len() >= MAX_UNKNOWN_FIELDS => {}
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(written), Value::Array(known)) => {
            for (index, (written, known)) in written.iter().zip(known).enumerate() {
                unknown_fields(written, known, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

/// Base64 wrapped over lines, as `base64` prints it and Kubernetes reads it.
fn unwrap_base64_lines(value: &mut Value) {
    let Some(data) = value.get_mut("data").and_then(Value::as_object_mut) else { return };
    for value in data.values_mut() {
        if let Value::String(text) = value {
            text.retain(|character| !character.is_ascii_whitespace());
        }
    }
}

/// `stringData` wins over `data`, as the API server does it.
fn merge_string_data(object: &mut Object) {
    let Object::Secret(secret) = object else { return };
    let secret = Arc::make_mut(secret);
    if let Some(texts) = secret.string_data.take() {
        let data = secret.data.get_or_insert_default();
        data.extend(texts.into_iter().map(|(name, text)| (name, ByteString(text.into_bytes()))));
    }
}

//! `admission.k8s.io/v1` AdmissionReview, read and written.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::model::review::Review;

/// The API server cuts a longer warning off.
const LONGEST_WARNING: usize = 256;
/// And leaves out what all of them together have beyond 4096 bytes.
const MOST_WARNINGS: usize = 15;
/// Values that a question may have. An Ingress has at most 1.5 MB, of which a path takes some ten bytes a value, and
/// comes twice; in memory a value takes up to some 300 bytes.
const MOST_VALUES: usize = 400_000;
/// Reasons that are told; the rest is counted.
const MOST_REASONS: usize = 20;

/// What is asked.
#[derive(Debug, PartialEq)]
pub(super) struct Question {
    /// Given back in the answer.
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// `None`: nothing is to be stored.
    pub(super) ingress: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AdmissionReview {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<AdmissionRequest>,
}

#[derive(Deserialize)]
struct AdmissionRequest {
    #[serde(default)]
    uid: String,
    kind: Kind,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    operation: String,
    object: Option<Value>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    kind: String,
}

/// `Err` says what is wrong with the question.
pub(super) fn read(body: &[u8]) -> Result<Question, String> {
    if values(body) > MOST_VALUES {
        return Err(format!("more than {MOST_VALUES} values"));
    }
    let review: AdmissionReview =
        serde_json::from_slice(body).map_err(|error| format!("not an AdmissionReview: {error}"))?;
    if review.api_version != "admission.k8s.io/v1" || review.kind != "AdmissionReview" {
        return Err("only admission.k8s.io/v1 AdmissionReview is answered".to_owned());
    }
    let request = review.request.ok_or("the AdmissionReview holds no request")?;
    let AdmissionRequest { uid, kind, name, namespace, operation, object } = request;
    if !is_uid(&uid) {
        return Err("request.uid: 1 to 64 letters, digits and dashes".to_owned());
    }
    let Kind { group, version, kind } = kind;
    if (group.as_str(), version.as_str(), kind.as_str()) != ("networking.k8s.io", "v1", "Ingress") {
        return Err("request.kind: only networking.k8s.io/v1 Ingress is judged".to_owned());
    }
    let stores = matches!(operation.as_str(), "CREATE" | "UPDATE");
    let ingress = object.filter(|object| stores && !object.is_null());
    if stores && ingress.is_none() {
        return Err(format!("request.object: a {operation} has one"));
    }
    Ok(Question { uid, namespace, name, ingress })
}

/// For the fuzz target: what is to be stored is there, and what is written back is harmless.
pub fn fuzz(bytes: &[u8]) {
    if let Ok(question) = read(bytes) {
        assert!(is_uid(&question.uid));
        assert!(!question.ingress.is_some_and(|ingress| ingress.is_null()));
    }
}

/// How many values this JSON has, or a few more: each but the first of something stands behind a comma, and the first
/// behind what opens.
fn values(json: &[u8]) -> usize {
    let mut values = 1;
    let (mut in_text, mut is_escaped) = (false, false);
    for &byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_text,
            b'"' => in_text = !in_text,
            b',' | b'[' | b'{' if !in_text => values += 1,
            _ => {}
        }
    }
    values
}

/// It is written back; the API server makes UUIDs.
fn is_uid(uid: &str) -> bool {
    (1..=64).contains(&uid.len()) && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The answer as JSON.
pub(super) fn answer(uid: &str, review: &Review) -> String {
    let Review { refused, warnings } = review;
    let mut response = json!({ "uid": uid, "allowed": refused.is_empty() });
    if !refused.is_empty() {
        let mut message = refused.iter().take(MOST_REASONS).cloned().collect::<Vec<_>>().join("\n");
        if refused.len() > MOST_REASONS {
            message.push_str(&format!("\nand {} more", refused.len() - MOST_REASONS));
        }
        response["status"] = json!({ "message": message });
    }
    if !warnings.is_empty() {
        response["warnings"] = warnings.iter().take(MOST_WARNINGS).map(|text| short(text)).collect();
    }
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
        .to_string()
}

fn short(warning: &str) -> &str {
    let mut end = warning.len().min(LONGEST_WARNING);
    while !warning.is_char_boundary(end) {
        end -= 1;
    }
    warning.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(edit: impl Fn(&mut Value)) -> Result<Question, String> {
        let mut review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
                "kind": {"group": "networking.k8s.io", "version": "v1", "kind": "Ingress"},
                "name": "web", "namespace": "shop", "operation": "CREATE",
                "object": {"metadata": {"name": "web"}},
            },
        });
        edit(&mut review);
        read(review.to_string().as_bytes())
    }

    #[test]
    fn what_is_stored_is_read_and_what_is_removed_is_let_go() {
        let created = question(|_| {}).expect("read");
        assert_eq!(created.ingress, Some(json!({"metadata": {"name": "web"}})));
        assert_eq!((created.namespace.as_str(), created.name.as_str()), ("shop", "web"));

        let removed = question(|review| {
            review["request"]["operation"] = json!("DELETE");
            review["request"]["object"] = Value::Null;
        });
        assert_eq!(removed.expect("read").ingress, None);
    }

    #[test]
    fn what_cannot_be_answered_is_refused_with_its_reason() {
        type Edit = fn(&mut Value);
        let cases: [(Edit, &str); 6] = [
            (|review| review["apiVersion"] = json!("admission.k8s.io/v1beta1"), "v1 AdmissionReview"),
            (|review| review["request"] = Value::Null, "no request"),
            (|review| review["request"]["uid"] = json!(""), "request.uid"),
            (|review| review["request"]["uid"] = json!("a\r\nb"), "request.uid"),
            (|review| review["request"]["kind"]["kind"] = json!("Pod"), "request.kind"),
            (|review| review["request"]["object"] = Value::Null, "request.object"),
        ];
        for (edit, words) in cases {
            let refused = question(edit).expect_err(words);
            assert!(refused.contains(words), "{refused}");
        }
        assert!(read(b"").is_err());
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(read(deep.as_bytes()).is_err());
    }

    #[test]
    fn values_are_counted_outside_of_text() {
        for (json, expected) in [
            ("1", 1),
            ("[]", 2),
            (r#"{"a":1,"b":[1,2]}"#, 5),
            (r#"{"a,[{":",[\",[{","b":2}"#, 3),
            (r#"["\\",1]"#, 3),
        ] {
            assert_eq!(values(json.as_bytes()), expected, "{json}");
        }
    }

    /// 9 MB of these would be a tree of almost a gigabyte.
    #[test]
    fn a_question_of_many_small_values_is_refused_before_it_is_read() {
        let of = |count: usize| {
            let object = format!("[{}0]", "{\"\":0},".repeat(count));
            let review = question_text().replace("\"OBJECT\"", &object);
            read(review.as_bytes())
        };
        assert!(of(100_000).is_ok());
        assert!(of(1_000_000).unwrap_err().contains("more than 400000 values"));
    }

    fn question_text() -> String {
        json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "u-1",
                "kind": {"group": "networking.k8s.io", "version": "v1", "kind": "Ingress"},
                "operation": "CREATE",
                "object": "OBJECT",
            },
        })
        .to_string()
    }

    #[test]
    fn an_answer_has_its_reasons_and_short_warnings() {
        let review =
            Review { refused: vec!["a".to_owned(), "b".to_owned()], warnings: vec!["é".repeat(300)] };

        let answer: Value = serde_json::from_str(&answer("u-1", &review)).expect("JSON");

        assert_eq!(
            answer,
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {
                "uid": "u-1", "allowed": false, "status": {"message": "a\nb"}, "warnings": ["é".repeat(128)],
            }})
        );
    }
}

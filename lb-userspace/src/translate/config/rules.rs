//! Keys that say which Ingresses are served at all: how risky their annotations may
//! be, which words they may not hold, what a path may look like.

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::networking::v1::Ingress;

use super::super::annotations::table::{Risk, Status};
use super::super::annotations::{self, PREFIX};
use super::super::findings::{About, Findings};
use super::keys::Keys;
use crate::model::{ObjectId, ObjectName, Problem};
use crate::objects::{Judge, Map, Object};

/// What an Ingress has to keep to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    risk: Risk,
    words: Vec<String>,
    paths: Paths,
}

/// What Exact and Prefix paths may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paths {
    /// Letters, digits, `.`, `_`, `-` and `/`.
    Plain,
    /// What the API server lets pass.
    Any,
}

impl Rules {
    pub(super) fn read(keys: &mut Keys<'_>) -> Self {
        let risk = keys.parsed("annotations-risk-level", "Low, Medium, High or Critical", Risk::named);
        let words = keys.text("annotation-value-word-blocklist").unwrap_or_default();
        let words = words.split(',').map(str::trim).filter(|word| !word.is_empty());
        Self {
            risk: risk.unwrap_or(Risk::High),
            words: words.map(str::to_owned).collect(),
            paths: match keys.boolean("strict-validate-path-type") {
                Some(false) => Paths::Any,
                _ => Paths::Plain,
            },
        }
    }

    fn judge(&self, ingress: &Ingress, about: &mut About<'_>) {
        for (row, _) in annotations::known(&ingress.metadata) {
            // What is refused for what it is closes its paths; that is told where it is read.
            if row.risk > self.risk && row.status != Status::Refused {
                let message = format!(
                    "is of risk {:?}, above annotations-risk-level {:?}; this version of the Ingress is not served",
                    row.risk, self.risk
                );
                let fix = format!("remove it, or raise annotations-risk-level to {:?}", row.risk);
                about.error_fix("risky-annotation", annotations::field(row.name), message, fix);
            }
        }
        let texts = ingress.metadata.annotations.iter().flatten();
        for (name, text) in texts.filter(|(name, _)| name.starts_with(PREFIX)) {
            if let Some(word) = self.words.iter().find(|word| text.contains(word.as_str())) {
                let message = format!(
                    "holds {word:?}, which annotation-value-word-blocklist forbids; this version of the Ingress is not served"
                );
                about.error("forbidden-word", format!("metadata.annotations.{name}"), message);
            }
        }
        if self.paths == Paths::Any {
            return;
        }
        let rules = ingress.spec.iter().flat_map(|spec| spec.rules.iter().flatten());
        for (index, rule) in rules.enumerate() {
            for (path_index, entry) in rule.http.iter().flat_map(|http| &http.paths).enumerate() {
                let path = entry.path.as_deref().unwrap_or_default();
                if !matches!(entry.path_type.as_str(), "Exact" | "Prefix") || is_plain(path) {
                    continue;
                }
                let field = format!("spec.rules[{index}].http.paths[{path_index}].path");
                let message = format!(
                    "{path:?} holds other characters than letters, digits and ._-/, which pathType {} does not allow; this version of the Ingress is not served",
                    entry.path_type
                );
                let fix = "set pathType: ImplementationSpecific, or strict-validate-path-type: \"false\" in the ConfigMap";
                about.error_fix("strict-path", field, message, fix);
            }
        }
    }
}

fn is_plain(path: &str) -> bool {
    path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte))
}

/// What the ConfigMaps in force demand of an Ingress before it may replace its last version.
pub(in crate::translate) fn judge(
    config_maps: &Map<ObjectName, ConfigMap>,
    flag: Option<&ObjectName>,
) -> Judge {
    let (id, mut unheard) = (ObjectId::default(), Findings::default());
    let empty = ConfigMap::default();
    let object = super::chosen(config_maps, flag).map_or(&empty, |(_, sourced)| &sourced.object);
    let rules = Rules::read(&mut Keys::new(object, unheard.about(&id)));
    Box::new(move |object: &Object, id: &ObjectId| -> Vec<Problem> {
        let mut findings = Findings::default();
        if let Object::Ingress(ingress) = object {
            rules.judge(ingress, &mut findings.about(id));
        }
        findings.into_sorted()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::objects::{Key, Kind, Sourced};

    type Data = [(&'static str, &'static str)];

    /// Reasons for which an Ingress is refused under these keys.
    fn reasons(data: &[(&str, &str)], annotation: (&str, &str), path: (&str, &str)) -> Vec<&'static str> {
        let map = serde_json::json!({
            "metadata": {"name": "ingress-nginx-controller", "namespace": "ingress-nginx"},
            "data": data.iter().copied().collect::<BTreeMap<_, _>>(),
        });
        let map: ConfigMap = serde_json::from_value(map).expect("a ConfigMap");
        let name = ObjectName::new("ingress-nginx", "ingress-nginx-controller");
        let maps = Map::unit(name, Sourced { object: Arc::new(map), origin: "".into() });
        let backend = serde_json::json!({"service": {"name": "a", "port": {"number": 80}}});
        let ingress = serde_json::json!({
            "metadata": {"name": "a", "annotations": {format!("{PREFIX}/{}", annotation.0): annotation.1}},
            "spec": {"rules": [{"http": {"paths": [{"path": path.1, "pathType": path.0, "backend": backend}]}}]},
        });
        let ingress = Object::Ingress(Arc::new(serde_json::from_value(ingress).expect("an Ingress")));
        let id = Key { kind: Kind::Ingress, name: ObjectName::new("default", "a") }.id("");

        judge(&maps, None)(&ingress, &id).into_iter().map(|problem| problem.reason).collect()
    }

    #[test]
    fn annotations_above_the_risk_level_refuse_their_ingress() {
        let root = ("Prefix", "/");
        let auth = ("auth-url", "https://a.example.com");
        let cases: [(&Data, _, &[&str]); 6] = [
            (&[], auth, &[]),
            (&[("annotations-risk-level", "Medium")], auth, &["risky-annotation"]),
            (&[("annotations-risk-level", "medium")], ("rewrite-target", "/a"), &[]),
            (&[("annotations-risk-level", "Low")], ("rewrite-target", "/a"), &["risky-annotation"]),
            (&[("annotations-risk-level", "Lowest")], auth, &[]),
            (&[], ("server-snippet", "a b;"), &[]),
        ];
        for (data, annotation, expected) in cases {
            assert_eq!(reasons(data, annotation, root), expected, "{data:?} {annotation:?}");
        }
    }

    #[test]
    fn forbidden_words_refuse_their_ingress() {
        let data = [("annotation-value-word-blocklist", "load_module, lua_ ,")];

        let forbidden = reasons(&data, ("rewrite-target", "/lua_x"), ("Prefix", "/"));
        assert_eq!(forbidden, ["forbidden-word"]);
        assert!(reasons(&data, ("rewrite-target", "/lua"), ("Prefix", "/")).is_empty());
    }

    #[test]
    fn patterns_need_a_path_type_that_allows_them() {
        let none = ("rewrite-target", "/a");
        let off = [("strict-validate-path-type", "false")];
        let cases: [(&Data, _, &[&str]); 5] = [
            (&[], ("Prefix", "/a(/|$)"), &["strict-path"]),
            (&[], ("Exact", "/a~b"), &["strict-path"]),
            (&[], ("ImplementationSpecific", "/a(/|$)"), &[]),
            (&[], ("Prefix", "/.well-known/acme-challenge/A_b-c"), &[]),
            (&off, ("Prefix", "/a(/|$)"), &[]),
        ];
        for (data, path, expected) in cases {
            assert_eq!(reasons(data, none, path), expected, "{data:?} {path:?}");
        }
    }
}

//! `--annotations-prefix`: annotations of Ingresses under another prefix than the usual one. The two prefixes change
//! places where an object comes in, and again in what is said about it: between the two nobody has to know.

use std::sync::Arc;

use super::Object;
use crate::model::Problem;

/// In front of an annotation's name in the field of a problem.
const FIELD: &str = "metadata.annotations.";

/// Two prefixes that change places. What was under the usual one is then under the other, which nobody reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renamed {
    /// Read by the code.
    usual: String,
    /// Written in the objects.
    written: String,
}

impl Renamed {
    /// Both without their slash.
    pub fn new(usual: &str, written: &str) -> Self {
        Self { usual: format!("{usual}/"), written: format!("{written}/") }
    }

    /// An Ingress with its annotations renamed; any other object as it is.
    pub fn object(&self, object: Object) -> Object {
        let Object::Ingress(ingress) = &object else { return object };
        let concerns = |name: &String| name.starts_with(&self.usual) || name.starts_with(&self.written);
        if !ingress.metadata.annotations.iter().flatten().any(|(name, _)| concerns(name)) {
            return object;
        }
        let mut ingress = (**ingress).clone();
        let annotations = ingress.metadata.annotations.take().unwrap_or_default();
        let renamed = annotations.into_iter().map(|(name, value)| (self.name(&name).unwrap_or(name), value));
        ingress.metadata.annotations = Some(renamed.collect());
        Object::Ingress(Arc::new(ingress))
    }

    /// A problem in the words of who wrote the object.
    pub fn problem(&self, mut problem: Problem) -> Problem {
        problem.field = self.field(problem.field);
        problem.message = self.text(&problem.message);
        problem.fix = self.text(&problem.fix);
        problem
    }

    /// So too the field of a problem.
    pub fn field(&self, field: String) -> String {
        let name = field.strip_prefix(FIELD).and_then(|name| self.name(name));
        name.map_or(field, |name| format!("{FIELD}{name}"))
    }

    /// So too a sentence. A prefix is one where it begins a word.
    pub fn text(&self, text: &str) -> String {
        let mut renamed = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            let begins = !renamed.ends_with(|c: char| c.is_ascii_alphanumeric() || "-.".contains(c));
            match self.pair(rest).filter(|_| begins) {
                Some((known, other)) => {
                    renamed.push_str(other);
                    rest = rest.get(known.len()..).unwrap_or_default();
                }
                None => {
                    renamed.push(next);
                    rest = rest.get(next.len_utf8()..).unwrap_or_default();
                }
            }
        }
        renamed
    }

    /// `None`: it has neither prefix.
    fn name(&self, name: &str) -> Option<String> {
        let (known, other) = self.pair(name)?;
        Some(format!("{other}{}", name.strip_prefix(known)?))
    }

    /// The prefix that the text begins with, and the one that takes its place.
    fn pair(&self, text: &str) -> Option<(&str, &str)> {
        let Self { usual, written } = self;
        [(usual, written), (written, usual)]
            .into_iter()
            .find(|(known, _)| text.starts_with(known.as_str()))
            .map(|(known, other)| (known.as_str(), other.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_change_places_where_a_word_begins() {
        let renamed = Renamed::new("nginx.ingress.kubernetes.io", "ingress.kubernetes.io");
        let cases = [
            ("write nginx.ingress.kubernetes.io/a", "write ingress.kubernetes.io/a"),
            ("(ingress.kubernetes.io/a)", "(nginx.ingress.kubernetes.io/a)"),
            ("my.ingress.kubernetes.io/a \u{e9}", "my.ingress.kubernetes.io/a \u{e9}"),
            ("ingress.kubernetes.io is a prefix", "ingress.kubernetes.io is a prefix"),
        ];
        for (text, expected) in cases {
            assert_eq!(renamed.text(text), expected);
        }
        let field = |name: &str| renamed.field(format!("metadata.annotations.{name}"));
        assert_eq!(field("nginx.ingress.kubernetes.io/a"), "metadata.annotations.ingress.kubernetes.io/a");
        assert_eq!(renamed.field("data.a".to_owned()), "data.a");
    }

    #[test]
    fn what_is_renamed_twice_is_what_it_was() {
        let renamed = Renamed::new("nginx.ingress.kubernetes.io", "mine.example");
        let ingress = serde_json::json!({"metadata": {"name": "a", "annotations": {
            "nginx.ingress.kubernetes.io/a": "1", "mine.example/b": "2", "penstock.dev/mode": "strict",
        }}});
        let object = Object::Ingress(Arc::new(serde_json::from_value(ingress).expect("an Ingress")));

        let once = renamed.object(object.clone());

        let names: Vec<_> = once.metadata().annotations.iter().flatten().map(|(name, _)| name).collect();
        assert_eq!(names, ["mine.example/a", "nginx.ingress.kubernetes.io/b", "penstock.dev/mode"]);
        assert_eq!(renamed.object(once), object);
    }
}

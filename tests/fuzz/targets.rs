//! What is fed: every parser of what comes from the network or the cluster.

use penstock::l7::{explain, fuzz};
use penstock::manifests;
use penstock::model::l7::log::{Escape, Format};
use penstock::model::l7::{L7, Pattern};
use penstock::translate::{self, Options};

/// A parser that is fed. It panics where it breaks its own rules.
pub struct Target {
    /// Its corpus is in the folder of this name.
    pub name: &'static str,
    pub run: fuzz::Target,
}

/// All there are.
pub fn targets() -> Vec<Target> {
    let others: [(_, fuzz::Target); 7] = [
        ("dns", penstock::dns::fuzz),
        ("link", penstock::announce::fuzz),
        ("webhook", penstock::webhook::fuzz),
        ("pattern", pattern),
        ("log-format", log_format),
        ("manifest", manifest),
        ("explain", explain),
    ];
    fuzz::TARGETS.into_iter().chain(others).map(|(name, run)| Target { name, run }).collect()
}

fn explain(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(request) = penstock::agent::question::parse(&text, &[]) {
        explain::explain(&L7::default(), None, &Default::default(), &request);
    }
}

/// A pattern, and behind a line feed a path. What says that it compiles does, and what is looked at before it turns no
/// match away.
fn pattern(bytes: &[u8]) {
    let (source, path) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len()));
    let source = String::from_utf8_lossy(source);
    for build in [Pattern::anchored, Pattern::unanchored, Pattern::whole, Pattern::subject] {
        if let Ok(pattern) = build(&source) {
            let path = path.get(1..).unwrap_or_default();
            assert_eq!(pattern.is_match(path), pattern.regex().is_match(path), "{pattern:?}");
        }
    }
}

fn log_format(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for escape in [Escape::Default, Escape::Json, Escape::None] {
        Format::compile(&text, escape);
    }
}

/// Objects as somebody may apply them, translated. Nothing of them may cost more than the object that holds it.
fn manifest(bytes: &[u8]) {
    let options = Options::default();
    let loaded = manifests::load_text("fuzz.yaml", bytes, translate::admission(&options));
    translate::translate(&loaded.objects, &options);
}

//! Shared builders for the tests of every tier.

pub mod agent;
pub mod apiserver;
pub mod bench_control;
pub mod bench_l4;
pub mod bench_l7;
pub mod classifier;
pub mod echo;
pub mod h2_frames;
pub mod helm;
pub mod icmp;
pub mod manifests;
pub mod netns;
pub mod packet;
pub mod raw;
pub mod shape;
pub mod tier;
pub mod tls;
pub mod training;
pub mod world;

use std::path::{Path, PathBuf};

/// Top of the workspace. Cargo says at run time where a package is; what is compiled in is another workspace where the
/// target folder was copied.
pub fn workspace() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).parent().unwrap_or(Path::new(".")).to_path_buf()
}

#[cfg(test)]
mod documents;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lb_common::Verdict;
    use lb_common::verdict::Event;
    use penstock::translate::{Status, TABLE};

    #[test]
    fn the_page_about_ingress_names_every_annotation_that_is_honoured() {
        let page = include_str!("../../docs/ingress.md");

        let honoured = TABLE.iter().filter(|annotation| annotation.status == Status::Honoured);
        let missing: Vec<_> =
            honoured.filter(|annotation| !page.contains(&format!("`{}`", annotation.name))).collect();

        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_page_about_metrics_names_every_metric_of_our_own() {
        let page = include_str!("../../docs/metrics.md");
        let sources = super::workspace().join("lb-userspace/src");
        let rooms = std::fs::read_dir(&sources).expect("the sources").flatten();
        let rooms = rooms.filter_map(|room| Some(room.path().file_stem()?.to_str()?.to_owned()));
        let rooms: BTreeSet<_> = rooms.chain(["announced".to_owned()]).collect();
        let mut names = BTreeSet::new();
        let mut folders = vec![sources];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("the sources").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(text) = std::fs::read_to_string(path) {
                    let words = text.split('"').filter(|word| {
                        // Programs of the kernel part are called so, too, and by one word.
                        let named = word.strip_prefix("penstock_").and_then(|rest| rest.split_once('_'));
                        named.is_some_and(|(room, _)| rooms.contains(room))
                            && word
                                .bytes()
                                .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'_')
                    });
                    names.extend(words.map(str::to_owned));
                }
            }
        }

        let missing: Vec<_> = names.iter().filter(|name| !page.contains(&format!("`{name}`"))).collect();

        assert!(names.len() > 40, "{names:?}");
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_page_about_services_names_every_annotation_of_our_own() {
        let page = include_str!("../../docs/services.md");
        let source = include_str!("../../lb-userspace/src/translate/ours.rs");

        let named = source.lines().filter(|line| line.starts_with("pub(super) const "));
        let names: Vec<_> = named.filter_map(|line| line.split('"').nth(1)).collect();
        let missing: Vec<_> = names.iter().filter(|name| !page.contains(&format!("`{name}`"))).collect();

        assert!(names.len() > 10, "{names:?}");
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_page_about_metrics_names_every_verdict_and_event() {
        let page = include_str!("../../docs/metrics.md");

        // What is not ours is counted by nobody.
        let verdicts =
            Verdict::ALL.iter().filter(|verdict| **verdict != Verdict::NotOurs).map(|it| it.as_str());
        let names = verdicts.chain(Event::ALL.iter().map(|event| event.as_str()));
        let missing: Vec<_> = names.filter(|name| !page.contains(&format!("`{name}`"))).collect();

        assert!(missing.is_empty(), "{missing:?}");
    }
}

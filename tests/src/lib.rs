//! Shared builders for the tests of every tier.

pub mod agent;
pub mod apiserver;
pub mod bench_control;
pub mod bench_l4;
pub mod bench_l7;
pub mod echo;
pub mod h2_frames;
pub mod icmp;
pub mod manifests;
pub mod netns;
pub mod packet;
pub mod raw;
pub mod shape;
pub mod tier;
pub mod tls;
pub mod world;

#[cfg(test)]
mod documents;

#[cfg(test)]
mod tests {
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

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
pub mod world;

#[cfg(test)]
mod documents;

#[cfg(test)]
mod tests {
    use penstock::translate::{Status, TABLE};

    #[test]
    fn the_page_about_ingress_names_every_annotation_that_is_honoured() {
        let page = include_str!("../../docs/ingress.md");

        let honoured = TABLE.iter().filter(|annotation| annotation.status == Status::Honoured);
        let missing: Vec<_> =
            honoured.filter(|annotation| !page.contains(&format!("`{}`", annotation.name))).collect();

        assert!(missing.is_empty(), "{missing:?}");
    }
}

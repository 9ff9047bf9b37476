//! Annotations under a prefix that nobody reads.

use super::Caught;
use super::world::World;
use crate::translate::{PREFIX, TABLE};

/// Prefixes of other controllers and of former times; what stands under them is none of ours.
const FOREIGN: [&str; 4] = ["nginx.org", "nginx.com", "ingress.kubernetes.io", "haproxy.org"];

/// Reason of what is not read because `--annotations-prefix` is another.
pub const UNREAD_PREFIX: &str = "unread-prefix";

/// A known annotation under a prefix that only looks like ours: `ngnix.ingress.kubernetes.io/…`,
/// or one of another controller.
pub(super) fn misspelt(world: &World<'_>, caught: &mut Caught) {
    for ingress in &world.ingresses {
        let Some(sourced) = world.objects.ingresses.get(ingress.name) else { continue };
        for name in sourced.object.metadata.annotations.iter().flatten().map(|(name, _)| name) {
            let Some((prefix, short)) = name.split_once('/').filter(|(prefix, _)| *prefix != PREFIX) else {
                continue;
            };
            let is_known = TABLE.iter().any(|row| row.name == short);
            let field = format!("metadata.annotations.{name}");
            // The two have changed places on the way in.
            let written = world.options.annotations_prefix.as_deref();
            if let Some(written) = written.filter(|written| is_known && prefix == *written) {
                let message =
                    format!("not read: annotations begin with {written} here, by --annotations-prefix");
                let fix = format!("write {PREFIX}/{short}, if it is to have an effect");
                caught.note(&ingress.id, UNREAD_PREFIX, field, message, fix);
            } else if FOREIGN.contains(&prefix) {
                let fix = match is_known {
                    true => format!("write {PREFIX}/{short}"),
                    false => format!("look for what does the same among {PREFIX}/*"),
                };
                let message = "belongs to another controller; ingress-nginx never read it either";
                caught.note(&ingress.id, "foreign-annotation", field, message, fix);
            } else if is_known && is_near(prefix) {
                let message = "the prefix is misspelt, so it never had an effect";
                let fix = format!("write {PREFIX}/{short}, if it is to have one now");
                caught.needs_action(&ingress.id, "misspelt-prefix", field, message, fix);
            }
        }
    }
}

/// Nearly the letters of our prefix, in nearly any order: cheaper than an edit distance and as good.
fn is_near(prefix: &str) -> bool {
    let count = |text: &str| {
        let mut counts = [0_i32; 256];
        text.bytes().for_each(|byte| {
            if let Some(count) = counts.get_mut(usize::from(byte)) {
                *count += 1;
            }
        });
        counts
    };
    let (ours, theirs) = (count(PREFIX), count(prefix));
    ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs()).sum::<i32>() <= 3
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{caught, ingress};

    #[test]
    fn a_prefix_with_a_typo_or_of_another_controller_is_named() {
        let annotations = "
            ngnix.ingress.kubernetes.io/ssl-redirect: 'true'
            nginx.ingress.kubernets.io/rewrite-target: /
            nginx.org/client-max-body-size: 1m
            cert-manager.io/cluster-issuer: a
            nginx.ingress.kubernetes.io/ssl-redirect: 'true'";

        let found = caught(&ingress("a", annotations), &["misspelt-prefix", "foreign-annotation"]);

        assert_eq!(
            found,
            [
                "needs action: nginx.ingress.kubernets.io/rewrite-target [misspelt-prefix]",
                "needs action: ngnix.ingress.kubernetes.io/ssl-redirect [misspelt-prefix]",
                "identical: nginx.org/client-max-body-size [foreign-annotation]",
            ]
        );
    }
}

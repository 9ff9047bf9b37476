//! Variables of nginx in annotations.

use super::Caught;
use super::world::{World, field};
use crate::model::expression::Expression;

/// Annotations whose values may hold variables of a request.
const WITH_VARIABLES: [&str; 8] = [
    "auth-url",
    "auth-signin",
    "auth-request-redirect",
    "auth-cache-key",
    "mirror-target",
    "mirror-host",
    "upstream-hash-by",
    "upstream-vhost",
];
/// What holds a variable that does not exist here cannot be filled in.
pub(super) fn unknown(world: &World<'_>, caught: &mut Caught) {
    for ingress in &world.ingresses {
        for name in WITH_VARIABLES {
            let Some(text) = ingress.text(name) else { continue };
            let unknown = Expression::unknown(text);
            if !unknown.is_empty() {
                let names: Vec<_> = unknown.iter().map(|name| format!("${name}")).collect();
                let message = format!("{} does not exist here", super::listed(&names));
                let fix = "use one of ingress-nginx's own variables, or write the value out";
                caught.needs_action(&ingress.id, "unknown-variable", field(name), message, fix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{ingress, messages};

    #[test]
    fn variables_that_do_not_exist_are_named() {
        let annotations = "
            nginx.ingress.kubernetes.io/auth-url: https://auth.example.com/$host/$geoip_country/$made_up
            nginx.ingress.kubernetes.io/auth-signin: https://auth.example.com/?rd=$escaped_request_uri";

        assert_eq!(
            messages(&ingress("a", annotations), &["unknown-variable"]),
            ["$geoip_country, $made_up does not exist here"]
        );
    }
}

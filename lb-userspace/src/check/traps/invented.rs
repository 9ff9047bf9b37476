//! Annotations that people use and ingress-nginx never had.

use super::Caught;
use super::world::{World, field};
use crate::translate::{Status, TABLE};

const INVENTED: [(&str, &str); 3] = [
    ("upstream-health-check-path", "from now on endpoints are probed, and one that fails gets no requests"),
    ("upstream-health-check-interval", "from now on it says how often endpoints are probed"),
    ("upstream-keepalive-connections", "from now on it bounds the idle connections to each endpoint"),
];

/// They did nothing there and do something here.
pub(super) fn never_existed(world: &World<'_>, caught: &mut Caught) {
    for (name, effect) in INVENTED {
        let works = TABLE
            .iter()
            .any(|row| row.name == name && matches!(row.status, Status::Honoured | Status::With(_)));
        for ingress in world.ingresses.iter().filter(|ingress| works && ingress.text(name).is_some()) {
            let message =
                format!("ingress-nginx has no such annotation, so it had no effect until now; {effect}");
            caught.differs(
                &ingress.id,
                "takes-effect-now",
                field(name),
                message,
                "remove it to keep what was",
            );
        }
    }
}

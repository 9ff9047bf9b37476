//! Who words the errors of an Ingress: `default-backend`, else the default backend
//! of all.

use super::super::Options;
use super::super::annotations::{self, Policy};
use super::super::classes::Served;
use super::super::findings::About;
use super::super::upstreams::Upstreams;
use crate::model::ObjectName;

pub(super) fn add(
    served: &Served<'_>,
    policy: &mut Policy,
    options: &Options,
    upstreams: &mut Upstreams<'_>,
    about: &mut About<'_>,
) {
    const LIST: &str = "custom-http-errors";
    let Served { name, ingress, .. } = served;
    if let Some(service) = policy.default_backend.take() {
        let service = ObjectName::new(&name.namespace, service);
        let field = annotations::field("default-backend");
        if let Some(upstream) = upstreams.of_default_backend(&service, &field, about) {
            policy.errors_to(upstream);
        }
    }
    let has_list = annotations::known(&ingress.metadata).any(|(row, _)| row.name == LIST);
    if has_list && policy.has_plain_error_pages() && options.default_backend_service.is_none() {
        let message = "nobody is there to word errors: clients are answered 404 instead";
        let fix = "name a Service by default-backend, or start with --default-backend-service";
        about.warn("no-error-backend", annotations::field(LIST), message, fix);
    }
}

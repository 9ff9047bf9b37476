//! What a redirect says of its request.

use super::super::digits::addr;
use super::super::path;
use super::super::route::bare_host;
use super::super::variable as variables;
use super::Asked;
use crate::model::expression::Variable;

/// Appends it.
pub(super) fn put(
    variable: &Variable,
    asked: &Asked<'_>,
    path: &[u8],
    query: Option<&[u8]>,
    out: &mut Vec<u8>,
) {
    match variable {
        Variable::RequestUri => out.extend_from_slice(asked.target),
        Variable::EscapedRequestUri => path::escape_component(asked.target, out),
        Variable::Uri => path::escape_path(path, out),
        Variable::Args => out.extend_from_slice(query.unwrap_or_default()),
        Variable::Host => out.extend(bare_host(asked.named).iter().map(u8::to_ascii_lowercase)),
        Variable::BestHost => out.extend_from_slice(asked.named),
        Variable::Scheme | Variable::AccessScheme => out.extend_from_slice(asked.scheme.as_str().as_bytes()),
        Variable::RemoteAddr => addr(asked.client, out),
        Variable::RequestMethod => out.extend_from_slice(asked.method.as_bytes()),
        Variable::Argument(name) => {
            out.extend_from_slice(variables::argument(query.unwrap_or_default(), name).unwrap_or_default());
        }
        Variable::Cookie(name) => {
            let cookies = asked.headers.first("cookie").unwrap_or_default();
            out.extend_from_slice(variables::cookie(cookies, name).unwrap_or_default());
        }
        Variable::Header(name) => {
            let found = asked.headers.find(|line| variables::is_header(line, name));
            out.extend_from_slice(found.unwrap_or_default());
        }
        // The translation lets no others in.
        _ => {}
    }
}

//! Headers that a ConfigMap holds, one an entry.

use k8s_openapi::api::core::v1::ConfigMap;

use super::annotations::value;
use super::view::View;
use crate::model::ObjectName;
use crate::model::l7::policy::Header;

/// What delimits messages or belongs to one connection; nobody may set it.
const OURS: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The ConfigMap called `reference`, `name` or `namespace/name`, as somebody in `namespace` may name it; the
/// error says why it cannot be used.
pub(super) fn find<'a>(
    reference: &str,
    namespace: &str,
    crosses: bool,
    objects: &View<'a>,
) -> Result<(ObjectName, &'a ConfigMap), String> {
    let name = match reference.split_once('/') {
        Some((other, _)) if other != namespace && !crosses => {
            return Err(format!("ConfigMap {reference} is of another namespace"));
        }
        Some((namespace, name)) => ObjectName::new(namespace, name),
        None => ObjectName::new(namespace, reference),
    };
    match objects.config_maps.get(&name) {
        Some(sourced) => Ok((name, &sourced.object)),
        None => Err(format!("ConfigMap {name} does not exist, or no version of it was usable")),
    }
}

/// The headers of such a ConfigMap, all of them good.
pub(super) fn read(
    reference: &str,
    namespace: &str,
    crosses: bool,
    objects: &View<'_>,
) -> Result<Vec<Header>, String> {
    let (name, config_map) = find(reference, namespace, crosses, objects)?;
    let mut headers: Vec<Header> = Vec::new();
    for (header, text) in config_map.data.iter().flatten() {
        let header = one(header, text).map_err(|why| format!("ConfigMap {name}: {why}"))?;
        // Keys may differ in case alone; then the last counts.
        headers.retain(|known| !known.name.eq_ignore_ascii_case(&header.name));
        headers.push(header);
    }
    Ok(headers)
}

/// May be set at all.
pub(super) fn is_settable(name: &str) -> bool {
    value::is_header_name(name) && !delimits(name)
}

/// Messages would fall apart without it.
pub(super) fn delimits(name: &str) -> bool {
    OURS.iter().any(|ours| ours.eq_ignore_ascii_case(name))
}

/// An entry of such a ConfigMap. Line breaks at the ends of a value are YAML's, not its author's.
pub(super) fn one(name: &str, text: &str) -> Result<Header, String> {
    let text = text.trim();
    if !value::is_header_name(name) {
        return Err(format!("{name:?} is no name of a header"));
    }
    if delimits(name) {
        return Err(format!("{name} delimits messages; it cannot be set"));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("the value of {name} holds a control character"));
    }
    Ok(Header { name: name.to_owned(), value: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_can_neither_end_its_line_nor_delimit_a_message() {
        let cases = [
            ("X-A", "b c", true),
            ("x_a", "$ stays", true),
            ("X-A", "b\n", true),
            ("X-A", "b\r\nSet-Cookie: c=d", false),
            ("X A", "b", false),
            ("X-A:", "b", false),
            ("", "b", false),
            ("Content-Length", "0", false),
            ("transfer-encoding", "chunked", false),
        ];
        for (name, text, expected) in cases {
            assert_eq!(one(name, text).is_ok(), expected, "{name:?} {text:?}");
        }
    }
}

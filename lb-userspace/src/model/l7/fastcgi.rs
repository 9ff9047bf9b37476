//! What a FastCGI application is told of a request: parameters made of text and variables, as nginx's
//! `fastcgi_param` has them.

use std::collections::BTreeMap;

use super::log::{Early, Escape, Format, Part};

/// Where scripts live unless `DOCUMENT_ROOT` says otherwise: nginx's own, in ingress-nginx's image.
pub const DOCUMENT_ROOT: &str = "/usr/local/nginx/html";

/// nginx's parameters, and `SCRIPT_FILENAME`, without which PHP finds nothing. `CONTENT_LENGTH` and
/// `HTTP_*` come from the head that is sent.
const DEFAULTS: [(&str, &str); 19] = [
    ("CONTENT_TYPE", "$content_type"),
    ("DOCUMENT_ROOT", DOCUMENT_ROOT),
    ("DOCUMENT_URI", "$document_uri"),
    ("GATEWAY_INTERFACE", "CGI/1.1"),
    ("HTTPS", "$https"),
    ("QUERY_STRING", "$query_string"),
    ("REDIRECT_STATUS", "200"),
    ("REMOTE_ADDR", "$remote_addr"),
    ("REMOTE_PORT", "$remote_port"),
    ("REQUEST_METHOD", "$request_method"),
    ("REQUEST_SCHEME", "$scheme"),
    ("REQUEST_URI", "$request_uri"),
    ("SCRIPT_FILENAME", "$document_root$fastcgi_script_name"),
    ("SCRIPT_NAME", "$fastcgi_script_name"),
    ("SERVER_ADDR", "$server_addr"),
    ("SERVER_NAME", "$server_name"),
    ("SERVER_PORT", "$server_port"),
    ("SERVER_PROTOCOL", "$server_protocol"),
    // Applications ask it whether rewriting is at hand, and know this answer.
    ("SERVER_SOFTWARE", "nginx"),
];

/// Parameters that nobody may set: the first frames the body, the second would be taken for a setting
/// of the application's host (CVE-2016-5385).
pub const RESERVED: [&str; 2] = ["CONTENT_LENGTH", "HTTP_PROXY"];

/// How requests of a location are put to a FastCGI application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FastCgi {
    /// `fastcgi-index`: appended to the script's name where that ends in `/`; may be empty.
    pub index: String,
    /// Every parameter but those of the request's head.
    pub params: BTreeMap<String, Vec<Part>>,
}

impl Default for FastCgi {
    fn default() -> Self {
        Self::new(String::new(), &BTreeMap::new()).0
    }
}

impl FastCgi {
    /// The default parameters and in their place, or beside them, a location's own. Also what those need
    /// and nobody knows when a request is sent. [`RESERVED`] ones are left out.
    pub fn new(index: String, own: &BTreeMap<String, String>) -> (Self, Vec<String>) {
        let mut lacking = Vec::new();
        let mut compile = |name: &str, text: &str| {
            let (format, unknown) = Format::compile(text, Escape::None);
            lacking.extend(unknown.into_iter().map(|variable| format!("{name} needs ${variable}")));
            if format.parts.iter().any(|part| matches!(part, Part::Late(_))) {
                lacking.push(format!("{name} needs what only the response tells"));
            }
            format.parts
        };
        let defaults = DEFAULTS.iter().filter(|(name, _)| !own.contains_key(*name)).copied();
        let own = own.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let all = defaults.chain(own).filter(|(name, _)| !RESERVED.contains(name));
        let mut params: BTreeMap<String, Vec<Part>> =
            all.map(|(name, text)| (name.to_owned(), compile(name, text))).collect();
        // `$document_root` follows the parameter, so that the script's file does, too.
        let mut root = params.remove("DOCUMENT_ROOT").unwrap_or_default();
        put_root(&mut root, &[Part::Text(DOCUMENT_ROOT.to_owned())]);
        params.values_mut().for_each(|parts| put_root(parts, &root));
        params.insert("DOCUMENT_ROOT".to_owned(), root);
        // Applications take it for verified (RFC 3875 4.1.11), so nobody may just say it.
        params.entry("REMOTE_USER".to_owned()).or_insert_with(|| vec![Part::Early(Early::VerifiedUser)]);
        (Self { index, params }, lacking)
    }
}

/// Puts `root` where `$document_root` stands.
fn put_root(parts: &mut Vec<Part>, root: &[Part]) {
    let is_root = |part: &Part| *part == Part::Early(Early::DocumentRoot);
    if parts.iter().any(is_root) {
        let old = std::mem::take(parts);
        for part in old {
            if is_root(&part) { parts.extend_from_slice(root) } else { parts.push(part) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_default_parameters_are_all_known() {
        let (fastcgi, lacking) = FastCgi::new(String::new(), &BTreeMap::new());

        assert_eq!(lacking, Vec::<String>::new());
        assert_eq!(fastcgi.params.len(), DEFAULTS.len() + 1);
        assert_eq!(fastcgi.params["REMOTE_USER"], [Part::Early(Early::VerifiedUser)]);
        let script = [Part::Text(DOCUMENT_ROOT.to_owned()), Part::Early(Early::ScriptName)];
        assert_eq!(fastcgi.params["SCRIPT_FILENAME"], script);
    }

    #[test]
    fn own_parameters_take_the_place_of_others_and_the_document_root_follows() {
        let own = own(&[("DOCUMENT_ROOT", "/srv"), ("APP", "x$arg_a"), ("HTTP_PROXY", "http://evil")]);

        let (fastcgi, lacking) = FastCgi::new("index.php".to_owned(), &own);

        assert_eq!(lacking, Vec::<String>::new());
        let text = |text: &str| Part::Text(text.to_owned());
        assert_eq!(fastcgi.params["SCRIPT_FILENAME"], [text("/srv"), Part::Early(Early::ScriptName)]);
        assert_eq!(fastcgi.params["APP"], [text("x"), Part::Early(Early::Argument("a".to_owned()))]);
        assert!(!fastcgi.params.contains_key("HTTP_PROXY"));
    }

    #[test]
    fn what_is_not_known_when_a_request_is_sent_is_named() {
        let own = own(&[("A", "$status"), ("B", "$nobody"), ("DOCUMENT_ROOT", "$document_root/x")]);

        let (fastcgi, lacking) = FastCgi::new(String::new(), &own);

        assert_eq!(lacking, ["A needs what only the response tells", "B needs $nobody"]);
        let root = [Part::Text(DOCUMENT_ROOT.to_owned()), Part::Text("/x".to_owned())];
        assert_eq!(fastcgi.params["DOCUMENT_ROOT"], root);
    }
}

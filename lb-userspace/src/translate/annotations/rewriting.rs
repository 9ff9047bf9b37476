//! `proxy-cookie-domain`, `proxy-cookie-path`, `proxy-redirect-from` and `-to`.

use super::super::findings::About;
use super::field;
use super::policies::Source;
use crate::model::expression::Expression;
use crate::model::l7::policy::{Rewriting, Swap};

const FROM: &str = "proxy-redirect-from";
/// What `default` looks for: the name by which ingress-nginx itself calls every upstream, plain and encrypted.
const OWN_NAMES: [&str; 2] = ["http://upstream_balancer/", "https://upstream_balancer/"];

pub(super) fn read(source: &Source<'_>, about: &mut About<'_>) -> Option<Rewriting> {
    let mut words = |name: &str| {
        let text = source.text(name).filter(|text| *text != "off")?;
        let mut words = text.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(from), Some(to), None) => swap(name, from, to, about),
            _ => {
                let message = format!("{text:?} is neither off nor two words");
                about.warn("bad-annotation", field(name), message, "it is ignored");
                None
            }
        }
    };
    let (cookie_domain, cookie_path) = (words("proxy-cookie-domain"), words("proxy-cookie-path"));
    let named = |name: &str| source.text(name).filter(|text| *text != "off");
    let redirect = match (named(FROM), named("proxy-redirect-to")) {
        (Some("default"), _) => {
            let is_tls =
                matches!(source.text("backend-protocol"), Some(text) if text.eq_ignore_ascii_case("HTTPS"));
            swap(FROM, if is_tls { OWN_NAMES[1] } else { OWN_NAMES[0] }, "/", about)
        }
        (Some(from), Some(to)) => swap(FROM, from, to, about),
        (Some(_), None) if source.valid.contains_key(FROM) => {
            about.info("no-effect", field(FROM), "has no effect without proxy-redirect-to", "");
            None
        }
        _ => None,
    };
    let rewriting = Rewriting { cookie_domain, cookie_path, redirect };
    (rewriting != Rewriting::default()).then_some(rewriting)
}

fn swap(name: &str, from: &str, to: &str, about: &mut About<'_>) -> Option<Swap> {
    if from.starts_with('~') {
        let message = "patterns are not honoured, only text is; it is ignored";
        about.warn("not-yet", field(name), message, "");
        return None;
    }
    match (Expression::parse(from), Expression::parse(to)) {
        (Ok(from), Ok(to)) => Some(Swap { from, to }),
        (Err(message), _) | (_, Err(message)) => {
            about.warn("unknown-variable", field(name), message, "it is ignored");
            None
        }
    }
}

//! `proxy-cookie-domain`, `proxy-cookie-path`, `proxy-redirect-from` and `-to`.

use super::super::findings::About;
use super::field;
use super::policies::Source;
use crate::model::expression::{Expression, Part};
use crate::model::l7::policy::{Rewriting, Swap};

const FROM: &str = "proxy-redirect-from";
const TO: &str = "proxy-redirect-to";
/// What `default` looks for: the name by which ingress-nginx itself calls every upstream, plain and encrypted.
const OWN_NAMES: [&str; 2] = ["http://upstream_balancer/", "https://upstream_balancer/"];

pub(super) fn read(source: &Source<'_>, about: &mut About<'_>) -> Option<Rewriting> {
    let mut words = |name: &str| {
        let text = source.text(name).filter(|text| *text != "off")?;
        match pair(text) {
            Ok(swap) => Some(swap),
            Err(unusable) => unusable.tell(name, about),
        }
    };
    let (cookie_domain, cookie_path) = (words("proxy-cookie-domain"), words("proxy-cookie-path"));
    let named = |name: &str| source.text(name).filter(|text| *text != "off");
    let mut filled = |name: &str, text: &str| match filled(text) {
        Ok(filled) => Some(filled),
        Err(unusable) => unusable.tell(name, about),
    };
    let redirect = match (named(FROM), named(TO)) {
        (Some("default"), _) => {
            let is_tls =
                matches!(source.text("backend-protocol"), Some(text) if text.eq_ignore_ascii_case("HTTPS"));
            let from = if is_tls { OWN_NAMES[1] } else { OWN_NAMES[0] };
            let literal = |text: &str| Expression(vec![Part::Literal(text.to_owned())]);
            Some(Swap { from: literal(from), to: literal("/") })
        }
        (Some(from), Some(to)) => {
            let (from, to) = (filled(FROM, from), filled(TO, to));
            from.zip(to).map(|(from, to)| Swap { from, to })
        }
        (Some(_), None) if source.valid.contains_key(FROM) => {
            about.info("no-effect", field(FROM), "has no effect without proxy-redirect-to", "");
            None
        }
        _ => None,
    };
    let rewriting = Rewriting { cookie_domain, cookie_path, redirect };
    (rewriting != Rewriting::default()).then_some(rewriting)
}

/// Whether a value of the ConfigMap's keys of these names can be used.
pub(in crate::translate) fn check(key: &str, text: &str) -> Result<(), String> {
    match (key, text) {
        (_, "off") | (FROM, "default") => Ok(()),
        (FROM | TO, text) => filled(text).map(drop).map_err(|unusable| unusable.message),
        (_, text) => pair(text).map(drop).map_err(|unusable| unusable.message),
    }
}

/// Text that nothing can be replaced by, and why not.
struct Unusable {
    reason: &'static str,
    message: String,
}

impl Unusable {
    fn tell<T>(self, name: &str, about: &mut About<'_>) -> Option<T> {
        about.warn(self.reason, field(name), format!("{}; it is ignored", self.message), "");
        None
    }
}

/// What is replaced and what by.
fn pair(text: &str) -> Result<Swap, Unusable> {
    let mut words = text.split_ascii_whitespace();
    let (Some(from), Some(to), None) = (words.next(), words.next(), words.next()) else {
        let message = format!("{text:?} is neither off nor two words");
        return Err(Unusable { reason: "bad-annotation", message });
    };
    Ok(Swap { from: filled(from)?, to: filled(to)? })
}

fn filled(text: &str) -> Result<Expression, Unusable> {
    if text.starts_with('~') {
        let message = format!("{text:?}: patterns are not honoured, only text is");
        return Err(Unusable { reason: "not-yet", message });
    }
    Expression::parse(text)
        .map_err(|message| Unusable { reason: "unknown-variable", message: format!("{text:?}: {message}") })
}

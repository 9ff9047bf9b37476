//! `proxy-cookie-domain`, `proxy-cookie-path`, `proxy-redirect-from` and `-to`.

use super::super::findings::About;
use super::field;
use super::policies::Source;
use crate::model::expression::Expression;
use crate::model::l7::policy::{Rewriting, Swap};

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
    let named = |name: &str| source.text(name).filter(|text| !matches!(*text, "off" | "default"));
    let redirect = match (named("proxy-redirect-from"), named("proxy-redirect-to")) {
        (Some(from), Some(to)) => swap("proxy-redirect-from", from, to, about),
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

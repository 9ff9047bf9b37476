//! Redirects of ours: where to, by which status, and how they are written.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::super::findings::About;
use super::{field, value};
use crate::model::l7::RedirectStyle;

/// Where everything is sent, in the words of an annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::translate) struct Elsewhere {
    /// Name of the annotation.
    pub by: &'static str,
    pub status: u16,
    pub url: String,
}

/// The temporary one counts more.
pub(super) fn elsewhere<'t>(text: &impl Fn(&str) -> Option<&'t str>) -> Option<Elsewhere> {
    let all = [("temporal-redirect", TEMPORAL), ("permanent-redirect", PERMANENT)];
    let (by, code, url) = all.iter().find_map(|(by, code)| Some((*by, code, text(by)?)))?;
    Some(Elsewhere { by, status: code.of(text), url: url.to_owned() })
}

/// Says which statuses do not count.
pub(super) fn tell(valid: &BTreeMap<&str, &str>, about: &mut About<'_>) {
    for code in [TEMPORAL, PERMANENT] {
        code.tell(valid, about);
    }
}

/// That of others, where nothing else is asked for.
pub(super) fn style<'t>(
    text: &impl Fn(&str) -> Option<&'t str>,
    usual: &Arc<RedirectStyle>,
) -> Arc<RedirectStyle> {
    let is_on = |name: &str| text(name).and_then(value::boolean).unwrap_or(false);
    let style = RedirectStyle {
        status: text("http-redirect-code").and_then(|code| code.parse().ok()).unwrap_or(usual.status),
        keeps_slash: is_on("preserve-trailing-slash"),
        names_port: is_on("use-port-in-redirects"),
        is_relative: is_on("relative-redirects"),
    };
    if style == **usual { Arc::clone(usual) } else { Arc::new(style) }
}

/// Status of a redirect.
struct RedirectCode {
    name: &'static str,
    legal: RangeInclusive<u16>,
    usual: u16,
}

const TEMPORAL: RedirectCode = RedirectCode { name: "temporal-redirect-code", legal: 300..=307, usual: 302 };
const PERMANENT: RedirectCode =
    RedirectCode { name: "permanent-redirect-code", legal: 300..=308, usual: 301 };

impl RedirectCode {
    fn of<'t>(&self, text: &impl Fn(&str) -> Option<&'t str>) -> u16 {
        let code = text(self.name).and_then(|text| text.parse().ok());
        code.filter(|code| self.legal.contains(code)).unwrap_or(self.usual)
    }

    /// One that is no status of this redirect does not count.
    fn tell(&self, valid: &BTreeMap<&str, &str>, about: &mut About<'_>) {
        let Self { name, legal, usual } = self;
        let Some(text) = valid.get(name) else { return };
        if !text.parse().is_ok_and(|code| legal.contains(&code)) {
            let message =
                format!("{text} is not between {} and {}; {usual} is answered", legal.start(), legal.end());
            about.warn("bad-annotation", field(name), message, "");
        }
    }
}

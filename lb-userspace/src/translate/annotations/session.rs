//! `affinity`, `affinity-mode` and the cookie that keeps a client on one endpoint.

use std::collections::{BTreeMap, BTreeSet};

use super::super::findings::About;
use super::{field, value};
use crate::model::canary::Sessions;
use crate::model::session::{Affinity, Mode, OnFailure, SameSite, Secure, SessionCookie};

/// `None` where no affinity is asked for. Where its cookie is handed out is said by who knows.
pub(super) fn read(valid: &BTreeMap<&str, &str>, about: &mut About<'_>) -> Option<Affinity> {
    let text = |name: &str| valid.get(name).copied();
    text("affinity")?;
    let is = |name: &str, word: &str| text(name) == Some(word);
    let is_on = |name: &str| text(name).and_then(value::boolean) == Some(true);
    let seconds = |name: &str| text(name).and_then(|text| text.parse().ok());
    let usual = SessionCookie::default();
    let same_site = match text("session-cookie-samesite").map(str::to_ascii_lowercase).as_deref() {
        Some("strict") => Some(SameSite::Strict),
        Some("lax") => Some(SameSite::Lax),
        Some(_) if is_on("session-cookie-conditional-samesite-none") => Some(SameSite::NoneIfUnderstood),
        Some(_) => Some(SameSite::None),
        None => None,
    };
    let cookie = SessionCookie {
        name: text("session-cookie-name").map_or(usual.name, str::to_owned),
        path: path(text("session-cookie-path"), about),
        domain: text("session-cookie-domain").map(str::to_owned),
        expires: seconds("session-cookie-expires"),
        max_age: seconds("session-cookie-max-age"),
        secure: if is_on("session-cookie-secure") { Secure::Always } else { Secure::OverTls },
        same_site,
    };
    if matches!(same_site, Some(SameSite::None | SameSite::NoneIfUnderstood))
        && cookie.secure == Secure::OverTls
    {
        let message =
            "browsers refuse the cookie of a request over plain HTTP: SameSite=None asks for Secure";
        let fix = "set session-cookie-secure: \"true\", if TLS ends in front of this proxy";
        about.info("samesite-without-secure", field("session-cookie-samesite"), message, fix);
    }
    Some(Affinity {
        mode: if is("affinity-mode", "persistent") { Mode::Persistent } else { Mode::Balanced },
        cookie,
        on_failure: match is_on("session-cookie-change-on-failure") {
            true => OnFailure::Move,
            false => OnFailure::Stay,
        },
        places: BTreeSet::new(),
    })
}

/// `affinity-canary-behavior`, which counts on either of the two Ingresses.
pub(super) fn at_canary(valid: &BTreeMap<&str, &str>) -> Sessions {
    match valid.get("affinity-canary-behavior") {
        Some(&"legacy") => Sessions::DecidedAnew,
        _ => Sessions::Stay,
    }
}

/// What could end the attribute is refused.
fn path(text: Option<&str>, about: &mut About<'_>) -> Option<String> {
    let text = text?;
    let is_legal = |byte: u8| byte.is_ascii_graphic() && !b";,\"\\".contains(&byte);
    if text.starts_with('/') && text.bytes().all(is_legal) {
        return Some(text.to_owned());
    }
    let message = format!("{text:?} is no path of a cookie");
    about.warn("bad-annotation", field("session-cookie-path"), message, "the default is used");
    None
}

//! `fastcgi-*`: the index and a ConfigMap of parameters for a FastCGI upstream. A parameter may be what an
//! application relies on to refuse somebody, so what cannot be had as written closes the locations. And
//! requests are read whole before they are sent, unless that is switched off.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::findings::About;
use super::super::header_map;
use super::policies::Source;
use super::{Policy, buffers, field};
use crate::model::l7::fastcgi::RESERVED;
use crate::model::l7::{FastCgi, Protocol};

const INDEX: &str = "fastcgi-index";
const PARAMS: &str = "fastcgi-params-configmap";
const BUFFERING: &str = "proxy-request-buffering";

/// Fills in [`Policy::fastcgi`]; what is unusable closes the locations.
pub(super) fn complete(source: &Source<'_>, policy: &mut Policy, about: &mut About<'_>) {
    let streams = source.text(BUFFERING).is_some_and(|text| text.eq_ignore_ascii_case("off"));
    if policy.protocol == Protocol::FastCgi && policy.buffers.request.is_none() && !streams {
        // As nginx: CGI has to be told how long a body is, and a slow client holds up no process.
        policy.buffers.request = Some(buffers::of_a_request(&|name: &str| source.text(name)));
    }
    match read(source, policy.protocol, about) {
        Ok(fastcgi) => policy.fastcgi = fastcgi.map(Arc::new),
        Err(message) => {
            policy.denied = true;
            let fix = "its locations answer 503 until it is corrected";
            about.error_fix("unusable-policy", field(PARAMS), message, fix);
        }
    }
}

/// What a FastCGI upstream is told; `None` for another one.
fn read(source: &Source<'_>, protocol: Protocol, about: &mut About<'_>) -> Result<Option<FastCgi>, String> {
    if protocol != Protocol::FastCgi {
        for name in [INDEX, PARAMS].into_iter().filter(|name| source.valid.contains_key(name)) {
            about.info("no-effect", field(name), "has no effect without backend-protocol FCGI", "");
        }
        return Ok(None);
    }
    let own = match source.valid.get(PARAMS) {
        None => BTreeMap::new(),
        Some(reference) => own(reference, source)?,
    };
    for reserved in RESERVED {
        if own.get(reserved).is_some_and(|value| !value.is_empty()) {
            about.warn("reserved-parameter", field(PARAMS), format!("{reserved} cannot be set; ignored"), "");
        }
    }
    let index = source.valid.get(INDEX).copied().unwrap_or_default();
    let (fastcgi, lacking) = FastCgi::new(index.to_owned(), &own);
    match lacking.first() {
        None => Ok(Some(fastcgi)),
        Some(lacking) => Err(format!("parameter {lacking}, which is not known when a request is sent")),
    }
}

/// What the ConfigMap holds.
fn own(reference: &str, source: &Source<'_>) -> Result<BTreeMap<String, String>, String> {
    let (name, config_map) = header_map::find(reference, source.namespace, source.crosses(), source.objects)?;
    let data = config_map.data.clone().unwrap_or_default();
    for (key, value) in &data {
        if !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
            return Err(format!("{key:?} in ConfigMap {name} is no name of a parameter"));
        }
        if value.contains(char::is_control) {
            return Err(format!("{key} in ConfigMap {name} holds a control character"));
        }
    }
    Ok(data)
}

//! `auth-type` with the Secret that it needs, and `satisfy`.

use super::super::findings::About;
use super::super::passwords::{self, Form};
use super::policies::{Source, Unusable};
use super::{external_auth, field};
use crate::model::ObjectName;
use crate::model::l7::policy::{Auth, Basic, Satisfy};

/// Who has to show something; what cannot be read closes the locations.
pub(super) fn read(source: &Source<'_>, about: &mut About<'_>) -> Result<Option<Auth>, Unusable> {
    let basic = basic(source, about)?;
    let satisfy = match source.text("satisfy") {
        Some("any") => Satisfy::Any,
        _ => Satisfy::All,
    };
    let external = external_auth::read(source, about)?;
    let asks = basic.is_some() || external.is_some();
    Ok(asks.then_some(Auth { satisfy, basic, external }))
}

/// Beginnings of paths that ask nobody to show anything.
pub(super) fn unguarded(source: &Source<'_>) -> Vec<String> {
    let listed = source.settings.text("no-auth-locations").unwrap_or("/.well-known/acme-challenge");
    listed.split(',').map(str::trim).filter(|start| !start.is_empty()).map(str::to_owned).collect()
}

fn basic(source: &Source<'_>, about: &mut About<'_>) -> Result<Option<Basic>, Unusable> {
    let unusable = |name, message: String| Err(Unusable::new(name, message));
    match source.text("auth-type") {
        None => return Ok(None),
        Some("basic") => {}
        Some(text) => {
            return unusable(
                "auth-type",
                format!("{text:?} is not spoken, as MD5 protects no password; use basic"),
            );
        }
    }
    let Some(reference) = source.text("auth-secret") else {
        return unusable("auth-secret", "auth-type needs a Secret with the passwords".to_owned());
    };
    let name = match reference.split_once('/') {
        Some((other, _)) if other != source.namespace && !source.crosses() => {
            return unusable("auth-secret", format!("Secret {reference} is of another namespace"));
        }
        Some((namespace, name)) => ObjectName::new(namespace, name),
        None => ObjectName::new(source.namespace, reference),
    };
    let Some(sourced) = source.objects.secrets.get(&name) else {
        return Err(Unusable::without_secret("auth-secret", &name));
    };
    let form = match source.text("auth-secret-type") {
        Some("auth-map") => Form::Map,
        _ => Form::File,
    };
    let Some(read) = passwords::read(&sourced.object, form) else {
        return unusable("auth-secret", format!("Secret {name} has no key auth"));
    };
    if !read.weak.is_empty() {
        let message =
            format!("whoever reads Secret {name} has, or soon finds, the password of {}", some(&read.weak));
        about.warn("weak-password", field("auth-secret"), message, "write them anew with htpasswd -B");
    }
    if !read.unusable.is_empty() {
        let who = some(&read.unusable);
        let message = format!("the password in Secret {name} cannot be read, and is answered 401, of {who}");
        about.warn("unusable-password", field("auth-secret"), message, "write it anew with htpasswd -B");
    }
    let realm = source.text("auth-realm").unwrap_or_default().to_owned();
    Ok(Some(Basic { realm, users: read.users }))
}

/// A few of the names.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

//! Certificates that clients refuse, or will soon: judged anew as time passes, told in the log, by `status`, `explain`
//! and metrics.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::desired::{State, log_new};
use crate::model::l7::{Certificate, L7, days};
use crate::model::report::{Explanation, Step};
use crate::model::{Problem, Problems, Severity};
use crate::objects::{Key, Kind};

/// How often the clock is looked at.
const INTERVAL: Duration = Duration::from_secs(60);
/// Least pause between two judgements: where much changes, most of it is about something else.
const PAUSE: Duration = Duration::from_secs(1);

/// What is wrong with them, from now on.
pub(super) fn watch(mut state: watch::Receiver<Arc<State>>) -> watch::Receiver<Problems> {
    let judge = |state: &mut watch::Receiver<Arc<State>>| problems(&state.borrow_and_update(), now());
    let first = judge(&mut state);
    log_new(&Problems::new(), &first);
    let (tell, told) = watch::channel(first);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tell.closed() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
            tokio::select! {
                () = tell.closed() => return,
                changed = state.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let found = judge(&mut state);
            log_new(&tell.borrow(), &found);
            tell.send_replace(found);
        }
    });
    told
}

/// Seconds since the epoch.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs() as i64)
}

fn problems(state: &State, now: i64) -> Problems {
    let of_each = state.snapshot.l7.certificates_by_secret().into_iter().flat_map(|(secret, certificate)| {
        let origin = state.objects.secrets.get(secret).map(|sourced| &*sourced.origin);
        let object = Key { kind: Kind::Secret, name: secret.clone() }.id(origin.unwrap_or_default());
        certificate.flaws(now).into_iter().map(move |flaw| Problem {
            object: object.clone(),
            severity: flaw.severity,
            reason: flaw.reason,
            field: "data.tls.crt".to_owned(),
            message: flaw.message,
            fix: flaw.fix.to_owned(),
        })
    });
    of_each.map(Arc::new).collect()
}

/// When a certificate is over, for a table.
pub(super) fn expiry(certificate: &Certificate, now: i64) -> String {
    match certificate.not_after - now {
        left @ ..0 => format!("over since {}", days(-left)),
        left => days(left),
    }
}

/// Reasons why a host may have the default certificate.
const REASONS: [&str; 4] =
    ["bad-certificate", "certificate-of-other-host", "default-certificate", "host-without-tls"];

/// Says first which certificate a client gets that asks for this host.
pub(super) fn explain(explanation: &mut Explanation, l7: &L7, problems: &Problems, host: &str, now: i64) {
    let name = name_of(host);
    if l7.passthrough.contains_key(&name) {
        return;
    }
    let told = |certificate: &Certificate| {
        let flaws = certificate.flaws(now).into_iter().filter(|flaw| flaw.severity != Severity::Info);
        let flaws: Vec<String> = flaws.map(|flaw| flaw.message).collect();
        let end = if flaws.is_empty() { String::new() } else { format!("; {}", flaws.join("; ")) };
        format!(
            "Secret {}, {}{end}",
            certificate.secret,
            match certificate.not_after - now {
                ..0 => "over".to_owned(),
                left => format!("good for {}", days(left)),
            }
        )
    };
    let detail = match l7.certificate_of(&name) {
        Some((host, certificate)) => format!("that of {host}: {}", told(certificate)),
        None => {
            let default = match &l7.default_certificate {
                Some(certificate) => format!("the default certificate: {}", told(certificate)),
                None => {
                    "the default certificate, which this agent made itself and no client trusts".to_owned()
                }
            };
            let about = |problem: &Problem| {
                REASONS.contains(&problem.reason)
                    && problem.message.split([' ', ':', ',']).any(|word| word == name)
            };
            let why = problems.iter().find(|problem| about(problem)).map_or_else(
                || "no Ingress brings one for this host".to_owned(),
                |problem| format!("{}: {}", problem.object, problem.message),
            );
            format!("{default}; because {why}")
        }
    };
    explanation.steps.insert(0, Step { name: "certificate".to_owned(), detail });
}

/// As a client sends it in its hello.
fn name_of(host: &str) -> String {
    let bare = match host.rsplit_once(':') {
        Some((bare, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => bare,
        _ => host,
    };
    bare.trim_end_matches('.').to_ascii_lowercase()
}

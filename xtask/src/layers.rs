//! Which room may see what: a text scan against the tables below. ARCHITECTURE.md says why.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Rooms of the agent and the rooms each may import.
#[rustfmt::skip]
const ROOMS: &[(&str, &[&str])] = &[
    ("announce",  &["allowance", "model"]),
    ("model",     &[]),
    ("objects",   &["model", "panics"]),
    ("manifests", &["model", "objects"]),
    ("allowance", &[]),
    ("backoff",   &[]),
    ("panics",    &[]),
    ("cluster",   &["allowance", "backoff", "model", "objects"]),
    ("translate", &["model", "objects", "panics"]),
    ("check",     &["model", "objects", "translate"]),
    ("capture",   &["model"]),
    ("datapath",  &["model"]),
    ("l7",        &["model", "panics"]),
    ("health",    &["model"]),
    ("export",    &["backoff", "model"]),
    ("health_port", &["accept", "model"]),
    ("dns",       &["model"]),
    ("accept",    &[]),
    ("admin",     &["accept", "model", "panics"]),
    ("webhook",   &["accept", "model", "panics"]),
    ("drain",     &["model"]),
    ("takeover",  &["model"]),
    ("config",    &["model"]),
    ("agent",     &["admin", "announce", "capture", "check", "cluster", "config", "datapath", "dns", "drain", "export", "health", "health_port",
                    "l7", "manifests", "model", "objects", "panics", "takeover", "translate", "webhook"]),
    ("cli",       &["admin", "agent", "check", "config", "model"]),
    ("main",      &["agent", "cli", "config"]),
    ("lib",       &[]),
];

/// Words that mark a foreign library or a privilege, and the rooms of the agent (or the other
/// crates) where they may stand.
#[rustfmt::skip]
const ONLY_IN: &[(&str, &[&str])] = &[
    ("aya::",          &["datapath"]),
    ("aya_obj::",      &["datapath"]),
    ("rtnetlink::",    &["datapath"]),
    ("nix::",          &["announce", "l7"]),
    ("k8s_openapi::",  &["objects", "manifests", "translate", "check", "cluster"]),
    ("kube::",         &["cluster"]),
    ("h2::",           &["export", "l7"]),
    ("rustls::",       &["l7", "admin", "webhook"]),
    ("tokio_rustls::", &["l7", "admin", "webhook"]),
    ("prost::",        &["export"]),
    ("hyper::",        &["l7", "admin", "cli", "webhook"]),
    ("clap::",         &["cli", "config", "main", "xtask"]),
    ("env::var",       &["cli", "config", "main", "xtask"]),
    ("anyhow::",       &["cli", "agent", "main", "xtask"]),
    ("unsafe",         &["lb-ebpf", "datapath/mmap"]),
    ("data_end",       &["lb-ebpf/src/packet"]),
    ("btf_map",        &["lb-ebpf/src/maps", "lb-ebpf/src/fragment", "lb-ebpf/src/former", "lb-ebpf/src/room", "lb-ebpf/src/bench"]),
];

/// Rooms, and files of others, that stay pure: no clock, no runtime, no files, no logging.
#[rustfmt::skip]
const PURE: &[&str] = &[
    "model", "translate", "objects", "check", "capture", "allowance",
    "announce/election", "announce/formers", "announce/frame", "announce/heartbeat", "announce/segment",
    "datapath/plan", "datapath/walk", "dns/message", "health/checks", "l7/filters",
];
#[rustfmt::skip]
const IMPURE: &[&str] = &["tokio::", "std::fs", "TcpStream", "UdpSocket", "SystemTime::now", "Instant::now", "tracing::"];

const LONGEST_FILE: usize = 600;

/// Scans the sources and prints every violation.
pub fn run() -> Result<()> {
    let top = crate::workspace();
    let mut files = Vec::new();
    for dir in ["lb-common/src", "lb-ebpf/src", "lb-userspace/src", "xtask/src", "tests"] {
        collect(&top.join(dir), &mut files)?;
    }
    let mut violations = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let path = file.strip_prefix(&top).unwrap_or(file).to_string_lossy().into_owned();
        violations.extend(scan(&path, &text));
    }
    if !violations.is_empty() {
        bail!("{} violations\n{}", violations.len(), violations.join("\n"));
    }
    Ok(())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Violations in one file; its tests may do as they like.
fn scan(path: &str, text: &str) -> Vec<String> {
    if path.ends_with("/tests.rs") || path.contains("/tests/") || path == "xtask/src/layers.rs" {
        return Vec::new();
    }
    let (code, mut found) = (before_tests(text), Vec::new());
    if code.len() > LONGEST_FILE {
        found.push(format!("{path}: {} lines without tests; look for the second idea", code.len()));
    }
    if path.starts_with("tests/") {
        return found;
    }
    // `l7/route` and the room `l7` in the agent, `lb-common/src/csum` elsewhere.
    let place = path.strip_prefix("lb-userspace/src/").unwrap_or(path).trim_end_matches(".rs");
    let room = place.split('/').next().unwrap_or(place);
    let allowed = ROOMS.iter().find(|(name, _)| *name == room).map(|(_, allowed)| *allowed);
    if allowed.is_none() && path.starts_with("lb-userspace/") {
        found.push(format!("{path}: room `{room}` is not in the table of xtask/src/layers.rs"));
    }
    let within =
        |outer: &str| place.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let is_pure = PURE.iter().any(|outer| within(outer));
    for (number, line) in statements(&code) {
        let mut refuse = |why: String| found.push(format!("{path}:{number}: {why}"));
        for (word, places) in ONLY_IN.iter().filter(|(word, _)| has_word(&line, word)) {
            if !places.iter().any(|allowed| place.starts_with(allowed)) {
                refuse(format!("`{word}` belongs to {} only", places.join(", ")));
            }
        }
        for word in IMPURE.iter().filter(|word| is_pure && has_word(&line, word)) {
            refuse(format!("`{word}` in what is pure"));
        }
        let imported = imports(&line).into_iter().chain(import_from_below(place, &line));
        for other in imported.filter(|other| ROOMS.iter().any(|(name, _)| name == other)) {
            if other != room && allowed.is_some_and(|allowed| !allowed.contains(&other)) {
                refuse(format!("room `{room}` may not import `{other}`"));
            }
        }
    }
    found
}

/// Lines with their numbers, without comments; a list that goes on over several is one.
fn statements(code: &[&str]) -> Vec<(usize, String)> {
    let (mut statements, mut open) = (Vec::<(usize, String)>::new(), false);
    for (number, line) in code.iter().enumerate() {
        let line = line.split("//").next().unwrap_or(line);
        match statements.last_mut() {
            Some((_, statement)) if open => statement.push_str(line),
            _ => statements.push((number + 1, line.to_owned())),
        }
        open = statements.last().is_some_and(|(_, statement)| {
            let list = statement.rsplit_once("crate::{").map(|(_, list)| list);
            list.is_some_and(|list| list.matches('{').count() >= list.matches('}').count())
        });
    }
    statements
}

/// Lines up to the inline tests, which stand last in a file.
fn before_tests(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let end =
        lines.windows(2).position(|pair| pair[0].starts_with("#[cfg(test)]") && pair[1].starts_with("mod "));
    lines[..end.unwrap_or(lines.len())].to_vec()
}

/// Rooms named by `crate::room` or `crate::{room, room::x}` in a line.
fn imports(line: &str) -> Vec<&str> {
    let mut rooms = Vec::new();
    for rest in line.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            rooms.push(first_word(rest));
            continue;
        };
        let (mut depth, mut begins) = (0_usize, 0);
        for (at, c) in list.char_indices() {
            let ends = depth == 0 && matches!(c, ',' | '}');
            if ends {
                rooms.push(first_word(list[begins..at].trim_start()));
                begins = at + 1;
            }
            match c {
                '{' => depth += 1,
                '}' if ends => break,
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    rooms
}

/// A room named by as many `super::` as lead from a file to the crate.
fn import_from_below<'l>(place: &str, line: &'l str) -> Option<&'l str> {
    let depth = place.split('/').filter(|part| *part != "mod").count();
    let up = "super::".repeat(depth);
    line.find(&up).map(|at| first_word(&line[at + up.len()..]))
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("")
}

/// Whether `word` stands in the line and does not merely end a longer word or path.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let after = line[at + word.len()..].chars().next();
        !line[..at].ends_with(part)
            && !line[..at].ends_with("crate::")
            && (word.ends_with("::") || !after.is_some_and(part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_crosses_a_line_is_found() {
        for (case, path, text) in [
            ("sibling room", "lb-userspace/src/l7/route.rs", "use crate::datapath::plan;"),
            (
                "sibling room in a list of several lines",
                "lb-userspace/src/admin.rs",
                "use crate::{\n    model::{l4, report},\n    l7::tls,\n};",
            ),
            (
                "sibling room from below",
                "lb-userspace/src/l7/h1/head.rs",
                "use super::super::super::datapath::plan;",
            ),
            (
                "sibling room from a mod.rs",
                "lb-userspace/src/l7/h1/mod.rs",
                "use super::super::datapath::plan;",
            ),
            ("logging in a pure file", "lb-userspace/src/announce/segment.rs", "tracing::info!();"),
            ("a packet's end", "lb-ebpf/src/parse.rs", "let end = ctx.data_end();"),
            ("a map", "lb-ebpf/src/parse.rs", "#[btf_map]"),
            ("unsafe on the wire", "lb-common/src/csum.rs", "unsafe { x() }"),
            ("sibling room in braces", "lb-userspace/src/admin.rs", "use crate::{model::l4, l7::tls};"),
            ("full path in code", "lb-userspace/src/l7/mod.rs", "let x = crate::translate::translate(&o);"),
            ("aya outside the datapath", "lb-userspace/src/agent.rs", "use aya::Ebpf;"),
            (
                "Kubernetes beyond translate",
                "lb-userspace/src/l7/mod.rs",
                "use k8s_openapi::api::core::v1::Secret;",
            ),
            ("environment below main", "lb-userspace/src/l7/mod.rs", "let v = std::env::var(\"X\");"),
            ("unsafe", "lb-userspace/src/l7/mod.rs", "    unsafe { *p }"),
            ("clock in a pure room", "lb-userspace/src/translate/mod.rs", "let now = SystemTime::now();"),
            ("unknown room", "lb-userspace/src/utils.rs", "fn help() {}"),
        ] {
            assert_eq!(scan(path, text).len(), 1, "{case}");
        }
        assert_eq!(scan("lb-common/src/lib.rs", &"\n".repeat(LONGEST_FILE + 1)).len(), 1, "too long");
    }

    #[test]
    fn what_keeps_the_rules_is_left_alone() {
        for (case, path, text) in [
            ("downwards", "lb-userspace/src/l7/route.rs", "use crate::model::l7::L7;"),
            ("own room", "lb-userspace/src/l7/route.rs", "use crate::l7::tls;"),
            ("agent glues", "lb-userspace/src/agent.rs", "use crate::{datapath, l7, model::Snapshot};"),
            ("in a comment", "lb-userspace/src/l7/mod.rs", "// unlike aya::Ebpf this is not unsafe"),
            (
                "in the tests",
                "lb-userspace/src/l7/mod.rs",
                "#[cfg(test)]\nmod tests {\n use crate::datapath;\n}",
            ),
            (
                "part of a word",
                "lb-userspace/src/l7/mod.rs",
                "#![deny(unsafe_code)] use tokio_rustls::server; fn x() {}",
            ),
            ("one's own module of that name", "lb-userspace/src/l7/mod.rs", "self.h2::x"),
        ] {
            assert_eq!(scan(path, text), Vec::<String>::new(), "{case}");
        }
    }
}

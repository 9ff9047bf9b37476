//! The report as JUnit XML, which every CI system shows: one test per object.

use std::fmt::Write;

use super::{Finding, ObjectReport, Report, Verdict};

/// One test case per object; it fails from `threshold` on, and counts as skipped where the object
/// is ignored.
pub fn render_junit(report: &Report, threshold: Option<Verdict>) -> String {
    let fails = |object: &&ObjectReport| fails(object, threshold);
    let failures = report.objects.iter().filter(fails).count();
    let skipped = report.objects.iter().filter(|object| !fails(object) && is_skipped(object)).count();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "<testsuite name=\"penstock check\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\">",
        report.objects.len()
    );
    for object in &report.objects {
        let _ = test_case(&mut out, object, threshold);
    }
    out.push_str("</testsuite>\n");
    out
}

fn fails(object: &ObjectReport, threshold: Option<Verdict>) -> bool {
    threshold.is_some_and(|threshold| object.verdict >= threshold)
}

fn is_skipped(object: &ObjectReport) -> bool {
    object.verdict == Verdict::Ignored
}

fn test_case(out: &mut String, object: &ObjectReport, threshold: Option<Verdict>) -> std::fmt::Result {
    let ObjectReport { kind, namespace, name, origin, verdict, findings, .. } = object;
    let class = if kind.is_empty() { "file" } else { kind };
    let slash = if namespace.is_empty() { "" } else { "/" };
    let name = if kind.is_empty() { origin.clone() } else { format!("{namespace}{slash}{name}") };
    write!(out, "  <testcase classname=\"{}\" name=\"{}\"", escape(class), escape(&name))?;
    let file = origin.split('#').next().unwrap_or_default();
    if !file.is_empty() {
        write!(out, " file=\"{}\"", escape(file))?;
    }
    if findings.is_empty() {
        return writeln!(out, "/>");
    }
    writeln!(out, ">")?;
    let text: String = findings.iter().map(line).collect();
    let element = match verdict {
        _ if fails(object, threshold) => "failure",
        Verdict::Ignored => "skipped",
        _ => "system-out",
    };
    let message = findings.first().map(|finding| finding.message.as_str()).unwrap_or_default();
    match element {
        "system-out" => writeln!(out, "    <system-out>{}</system-out>", escape(&text))?,
        _ => writeln!(
            out,
            "    <{element} message=\"{}: {}\">{}</{element}>",
            verdict.word(),
            escape(message),
            escape(&text)
        )?,
    }
    writeln!(out, "  </testcase>")
}

fn line(finding: &Finding) -> String {
    let Finding { verdict, reason, field, message, fix } = finding;
    let colon = if field.is_empty() { "" } else { ": " };
    let fix = if fix.is_empty() { String::new() } else { format!("\n  fix: {fix}") };
    format!("{}: {field}{colon}{message} [{reason}]{fix}\n", verdict.word())
}

/// For text and attributes. Characters that XML 1.0 cannot hold at all become `?`.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(char),
            '\u{fffe}' | '\u{ffff}' => out.push('?'),
            char if char.is_control() => out.push('?'),
            char => out.push(char),
        }
    }
    out
}

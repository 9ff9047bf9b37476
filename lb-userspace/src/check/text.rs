//! The report for people: how it stands first, then what somebody has to do, the worst first, and
//! what needs no reading in one line.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::{Finding, ObjectReport, Report, Verdict, traps};

/// Width that lists are broken at.
const WIDTH: usize = 100;
/// Names shown of each kind that needs no reading.
const NAMES: usize = 12;
const ANNOTATION: &str = "metadata.annotations.";
const PREFIX: &str = "nginx.ingress.kubernetes.io/";

/// How the report looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// Colours or none.
    pub paint: Paint,
    /// Tell of identical objects, too, what they bring about.
    pub all: bool,
}

/// Whether a terminal shows colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Paint {
    /// Text alone.
    #[default]
    Plain,
    /// ANSI escape sequences.
    Colour,
}

impl Paint {
    fn of(self, text: &str, code: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }

    fn verdict(self, verdict: Verdict, text: &str) -> String {
        let code = match verdict {
            Verdict::Refused => "31",
            Verdict::NeedsAction => "33",
            Verdict::Differs => "36",
            Verdict::Ignored => "2",
            Verdict::Identical => "32",
        };
        self.of(text, code)
    }

    fn bold(self, text: &str) -> String {
        self.of(text, "1")
    }

    fn dim(self, text: &str) -> String {
        self.of(text, "2")
    }
}

/// The whole report as text.
pub fn render_text(report: &Report, style: Style) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = render(&mut out, &printable(report), style);
    out
}

/// Without what would move a terminal's cursor, or its colours: names and keys are anybody's.
fn printable(report: &Report) -> Report {
    let mut report = report.clone();
    for object in &mut report.objects {
        let ObjectReport { kind, namespace, name, origin, verdict: _, effects, honoured: _, findings } =
            object;
        for text in [kind, namespace, name, origin].into_iter().chain(effects) {
            escape(text);
        }
        for Finding { verdict: _, reason: _, field, message, fix } in findings {
            for text in [field, message, fix] {
                escape(text);
            }
        }
    }
    report
}

fn escape(text: &mut String) {
    let moves = |c: char| c.is_control() && c != '\n';
    if text.contains(moves) {
        let escaped = |c: char| if moves(c) { c.escape_default().to_string() } else { c.to_string() };
        *text = text.chars().map(escaped).collect();
    }
}

fn render(out: &mut String, report: &Report, style: Style) -> fmt::Result {
    let Report { summary, hints, objects } = report;
    if objects.is_empty() {
        return writeln!(out, "nothing found");
    }
    writeln!(out, "{}", style.paint.bold(&counted(objects.len(), "object")))?;
    for verdict in Verdict::WORST_FIRST {
        let Some(count) = summary.get(&verdict) else { continue };
        let line = format!("{} {count:>5} {:12}", verdict.symbol(), verdict.word());
        writeln!(out, "  {} {}", style.paint.verdict(verdict, &line), verdict.meaning())?;
    }
    for hint in hints {
        writeln!(out, "\nNote: {hint}.")?;
    }
    for verdict in Verdict::WORST_FIRST {
        let mut of_verdict: Vec<_> = objects.iter().filter(|object| object.verdict == verdict).collect();
        // What routes requests first; the order of the files otherwise.
        of_verdict.sort_by_key(|object| object.kind != "Ingress");
        section(out, verdict, &of_verdict, style)?;
    }
    Ok(())
}

fn section(out: &mut String, verdict: Verdict, objects: &[&ObjectReport], style: Style) -> fmt::Result {
    if objects.is_empty() {
        return Ok(());
    }
    let title = verdict.word();
    writeln!(
        out,
        "\n{}",
        style.paint.verdict(verdict, &format!("── {title} {}", "─".repeat(60 - title.len())))
    )?;
    let needs_no_reading = |object: &&ObjectReport| !style.all && object.findings.is_empty();
    let (quiet, told): (Vec<&ObjectReport>, Vec<_>) = objects.iter().copied().partition(needs_no_reading);
    for object in told {
        match (verdict, object.findings.as_slice()) {
            (Verdict::Ignored, [finding]) if object.effects.is_empty() => {
                one_line(out, object, finding, style)?
            }
            _ => block(out, object, style)?,
        }
    }
    names(out, &quiet)
}

fn one_line(out: &mut String, object: &ObjectReport, finding: &Finding, style: Style) -> fmt::Result {
    write!(out, "{}: {}", title(object, style), finding.message)?;
    writeln!(out, "{}", tag(finding, style))?;
    fix(out, finding)
}

fn block(out: &mut String, object: &ObjectReport, style: Style) -> fmt::Result {
    let ObjectReport { effects, honoured, findings, .. } = object;
    writeln!(out, "{}", title(object, style))?;
    for line in effects {
        writeln!(out, "    {line}")?;
    }
    if !honoured.is_empty() {
        wrapped(out, "    honoured: ", honoured.iter().copied())?;
    }
    for finding in findings {
        let Finding { verdict, message, .. } = finding;
        let word = if *verdict == Verdict::Identical { "note" } else { verdict.word() };
        let word = style.paint.verdict(*verdict, &format!("{} {word}", verdict.symbol()));
        let field = short(finding);
        let colon = if field.is_empty() { "" } else { ": " };
        writeln!(out, "    {word}: {}{colon}{message}{}", style.paint.bold(field), tag(finding, style))?;
        fix(out, finding)?;
    }
    Ok(())
}

fn title(object: &ObjectReport, style: Style) -> String {
    let ObjectReport { kind, namespace, name, origin, .. } = object;
    if kind.is_empty() {
        return style.paint.bold(origin);
    }
    let slash = if namespace.is_empty() { "" } else { "/" };
    let title = style.paint.bold(&format!("{kind} {namespace}{slash}{name}"));
    if origin.is_empty() { title } else { format!("{title}  {}", style.paint.dim(&format!("({origin})"))) }
}

fn tag(finding: &Finding, style: Style) -> String {
    style.paint.dim(&format!(" [{}]", finding.reason))
}

fn fix(out: &mut String, finding: &Finding) -> fmt::Result {
    let mut lines = finding.fix.lines();
    if let Some(first) = lines.next() {
        writeln!(out, "        fix: {first}")?;
    }
    lines.try_for_each(|line| writeln!(out, "             {line}"))
}

/// An annotation by the name that people know it by, but where the prefix is what matters.
fn short(finding: &Finding) -> &str {
    let field = finding.field.as_str();
    if finding.reason == traps::UNREAD_PREFIX {
        return field.strip_prefix(ANNOTATION).unwrap_or(field);
    }
    let annotation = field.strip_prefix(ANNOTATION);
    annotation.map_or(field, |name| name.strip_prefix(PREFIX).unwrap_or(name))
}

/// Objects that need no reading, by kind.
fn names(out: &mut String, objects: &[&ObjectReport]) -> fmt::Result {
    let mut by_kind: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ObjectReport { kind, namespace, name, .. } in objects {
        let slash = if namespace.is_empty() { "" } else { "/" };
        by_kind.entry(kind).or_default().push(format!("{namespace}{slash}{name}"));
    }
    for (kind, names) in by_kind {
        let more = names.len().saturating_sub(NAMES);
        let shown = names.iter().take(NAMES).map(String::as_str);
        let more = (more > 0).then(|| format!("and {more} more"));
        wrapped(out, &format!("{kind}: "), shown.chain(more.as_deref()))?;
    }
    Ok(())
}

/// A list behind a lead, broken where a line is full.
fn wrapped<'a>(out: &mut String, lead: &str, items: impl Iterator<Item = &'a str>) -> fmt::Result {
    let mut column = lead.len();
    write!(out, "{lead}")?;
    for (index, item) in items.enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        if index > 0 && column + comma.len() + item.len() > WIDTH {
            write!(out, ",\n{}{item}", " ".repeat(lead.len()))?;
            column = lead.len() + item.len();
        } else {
            write!(out, "{comma}{item}")?;
            column += comma.len() + item.len();
        }
    }
    writeln!(out)
}

fn counted(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

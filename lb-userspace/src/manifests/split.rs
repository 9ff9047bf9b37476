//! Cuts a YAML stream into documents before any parser sees it, so that a syntax error costs one
//! document instead of the rest of the file.
//!
//! YAML forbids `---` at the start of a line inside any scalar (YAML 1.2.2, 9.1.2), so cutting by
//! lines cannot cut a value.

/// One document of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    /// Position in the file, from 1, counting documents that hold something.
    pub number: usize,
    /// Lines of the file before `text`; a parser's line 1 is this plus 1.
    pub lines_before: usize,
    /// The document without its markers.
    pub text: &'a str,
}

/// Documents that hold more than comments, in order.
pub(super) fn documents(stream: &str) -> Vec<Part<'_>> {
    let stream = stream.strip_prefix('\u{feff}').unwrap_or(stream);
    let mut parts = Vec::new();
    let mut start = 0;
    let mut lines_before = 0;
    let mut offset = 0;
    for (line_number, line) in stream.split_inclusive('\n').enumerate() {
        if is_marker(line, "---") {
            push(&mut parts, lines_before, &stream[start..offset]);
            // What follows the marker on its line belongs to the document: `--- {a: b}`.
            start = offset + 3;
            lines_before = line_number;
        } else if is_marker(line, "...") {
            push(&mut parts, lines_before, &stream[start..offset]);
            start = offset + line.len();
            lines_before = line_number + 1;
        }
        offset += line.len();
    }
    push(&mut parts, lines_before, &stream[start..]);
    parts
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn push<'a>(parts: &mut Vec<Part<'a>>, lines_before: usize, text: &'a str) {
    let holds_something = text.lines().any(|line| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#') && !line.starts_with('%')
    });
    if holds_something {
        parts.push(Part { number: parts.len() + 1, lines_before, text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_at_markers_and_skips_documents_of_comments() {
        let cases = [
            ("one without marker", "a: 1\n", vec![(1, 0, "a: 1\n")]),
            ("leading marker", "---\na: 1\n", vec![(1, 0, "\na: 1\n")]),
            ("two", "a: 1\n---\nb: 2\n", vec![(1, 0, "a: 1\n"), (2, 1, "\nb: 2\n")]),
            ("comment only between", "a: 1\n---\n# x\n---\nb: 2", vec![(1, 0, "a: 1\n"), (2, 3, "\nb: 2")]),
            (
                "windows line ends",
                "a: 1\r\n---\r\nb: 2\r\n",
                vec![(1, 0, "a: 1\r\n"), (2, 1, "\r\nb: 2\r\n")],
            ),
            ("content on the marker's line", "--- {a: 1}\n", vec![(1, 0, " {a: 1}\n")]),
            (
                "end marker and directive",
                "a: 1\n...\n%YAML 1.2\n---\nb: 2\n",
                vec![(1, 0, "a: 1\n"), (2, 3, "\nb: 2\n")],
            ),
            ("dashes inside a block scalar", "a: |\n  ---\n  x\n", vec![(1, 0, "a: |\n  ---\n  x\n")]),
            ("longer dashes are no marker", "a: 1\n----\n", vec![(1, 0, "a: 1\n----\n")]),
            ("nothing", "\n# only this\n", vec![]),
        ];
        for (case, stream, expected) in cases {
            let parts: Vec<_> = documents(stream)
                .into_iter()
                .map(|part| (part.number, part.lines_before, part.text))
                .collect();

            assert_eq!(parts, expected, "{case}");
        }
    }
}

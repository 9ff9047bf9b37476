//! The name that was probably meant.

/// The nearest of the names, if it is near enough to have been meant.
pub(in crate::translate) fn nearest<'a>(
    short: &str,
    names: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let (distance, name) = names.map(|name| (distance(short, name), name)).min()?;
    (distance <= 1 + short.len() / 5).then_some(name)
}

/// Directives of nginx that are written as annotations and keys, and have other names there.
const OF_NGINX: [(&str, &str); 2] = [
    ("client-max-body-size", "did you mean proxy-body-size?"),
    ("proxy-buffers", "did you mean proxy-buffers-number and proxy-buffer-size?"),
];

/// What was probably meant by a name that is none of these.
pub(in crate::translate) fn meant<'a>(short: &str, names: impl Iterator<Item = &'a str>) -> String {
    let of_nginx = OF_NGINX.iter().find(|(name, _)| *name == short).map(|(_, meant)| (*meant).to_owned());
    let near = || nearest(short, names).map(|name| format!("did you mean {name}?"));
    of_nginx.or_else(near).unwrap_or_default()
}

/// Levenshtein distance, by rows.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, left) in left.chars().enumerate() {
        let mut diagonal = index;
        let mut previous = index + 1;
        for (cell, right) in row.iter_mut().skip(1).zip(&right) {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = *cell;
            previous = replaced.min(previous + 1).min(*cell + 1);
            *cell = previous;
        }
        if let Some(first) = row.first_mut() {
            *first = index + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        let cases = [
            ("", "", 0),
            ("a", "", 1),
            ("ssl-redirct", "ssl-redirect", 1),
            ("abc", "acb", 2),
            ("kitten", "sitting", 3),
        ];
        for (left, right, expected) in cases {
            assert_eq!(distance(left, right), expected, "{left} {right}");
        }
    }
}

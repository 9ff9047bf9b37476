//! From slices to the table and the JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::load::{Case, Slice};
use super::proxy::Kind;

/// Slices of one case: each round has the valid ones of the proxies that took part.
pub type Round = Vec<(Kind, Slice)>;

/// Medians of one proxy in one case.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    case: Case,
    kind: Kind,
    /// What the case compares, of each valid slice, in order.
    slices: Vec<f64>,
    rounds: usize,
    median: Slice,
    /// The same over that of nginx in the same round.
    ratio: Option<Spread>,
}

/// Median and both ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// In the middle.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

/// One row for each proxy that has a valid slice.
pub fn rows(case: Case, rounds: &[Round]) -> Vec<Row> {
    let rows = Kind::ALL.into_iter().filter_map(|kind| {
        let slices: Vec<Slice> = rounds.iter().filter_map(|round| of(round, kind)).collect();
        let median = |value: fn(&Slice) -> f64| spread(slices.iter().map(value)).map(|spread| spread.median);
        let ratios = rounds
            .iter()
            .filter_map(|round| Some(case.figure(&of(round, kind)?) / case.figure(&of(round, Kind::Nginx)?)));
        Some(Row {
            case,
            kind,
            slices: slices.iter().map(|slice| case.figure(slice)).collect(),
            rounds: rounds.len(),
            median: Slice {
                rps: median(|slice| slice.rps)?,
                per_cpu_s: median(|slice| slice.per_cpu_s)?,
                busy: median(|slice| slice.busy)?,
                others: median(|slice| slice.others)?,
                p50_us: median(|slice| slice.p50_us)?,
                p99_us: median(|slice| slice.p99_us)?,
            },
            ratio: spread(ratios),
        })
    });
    rows.collect()
}

/// The table, for people.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<17} {:<10} {:>9} {:>11}  {:<20} {:>5} {:>6} {:>8} {:>8}  {}\n",
        "case",
        "proxy",
        "req/s",
        "req/CPU-s",
        "of nginx [min..max]",
        "CPU",
        "others",
        "p50 us",
        "p99 us",
        "slices"
    );
    let mut last = None;
    for Row { case, kind, slices, rounds, median, ratio } in rows {
        if last.is_some_and(|last| last != *case) {
            text.push('\n');
        }
        last = Some(*case);
        let ratio = ratio.map_or_else(
            || "-".to_owned(),
            |Spread { median, min, max }| format!("{median:.2} [{min:.2}..{max:.2}]"),
        );
        let Slice { rps, per_cpu_s, busy, others, p50_us, p99_us } = median;
        let _ = writeln!(
            text,
            "{:<17} {:<10} {rps:>9.0} {per_cpu_s:>11.0}  {ratio:<20} {:>4.0}% {:>5.0}% {p50_us:>8.0} {p99_us:>8.0}  {}/{rounds}",
            case.name,
            kind.name(),
            busy * 100.0,
            others * 100.0,
            slices.len(),
        );
    }
    text
}

/// Were the proxies nearly alone on their CPU? Otherwise the numbers say little.
pub fn quiet(rows: &[Row]) -> bool {
    rows.iter().all(|row| row.median.others <= 0.15)
}

/// The list, for programs; [`plot`] draws from it. Medians, `[min, median, max]` of the ratio, and what each slice gave.
///
/// [`plot`]: super::plot
pub fn json(rows: &[Row]) -> Vec<Value> {
    rows.iter()
        .map(|Row { case, kind, median, ratio, slices, .. }| {
            let two = |value: f64| (value * 100.0).round() / 100.0;
            json!({
                "case": case.name,
                "proxy": kind.name(),
                "rps": median.rps.round() as u64,
                "per_cpu_s": median.per_cpu_s.round() as u64,
                "p50_us": median.p50_us.round() as u64,
                "p99_us": median.p99_us.round() as u64,
                "of_nginx": ratio.map(|ratio| [ratio.min, ratio.median, ratio.max].map(two)),
                "slices": slices.iter().map(|slice| slice.round() as u64).collect::<Vec<_>>(),
            })
        })
        .collect()
}

fn of(round: &Round, kind: Kind) -> Option<Slice> {
    round.iter().find(|(of, _)| *of == kind).map(|(_, slice)| *slice)
}

/// `None` of nothing. The median of an even number is between the two in the middle.
fn spread(values: impl Iterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (min, max) = (*values.first()?, *values.last()?);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get((values.len() - 1) / 2)?;
    Some(Spread { median: f64::midpoint(lower, upper), min, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(per_cpu_s: f64) -> Slice {
        Slice { rps: 10.0 * per_cpu_s, per_cpu_s, busy: 1.0, others: 0.0, p50_us: 5.0, p99_us: 9.0 }
    }

    #[test]
    fn the_median_is_the_middle() {
        for (case, values, expected) in [
            ("odd", vec![3.0, 1.0, 2.0], Some(Spread { median: 2.0, min: 1.0, max: 3.0 })),
            ("even", vec![4.0, 1.0, 2.0, 3.0], Some(Spread { median: 2.5, min: 1.0, max: 4.0 })),
            ("none", vec![], None),
        ] {
            assert_eq!(spread(values.into_iter()), expected, "{case}");
        }
    }

    #[test]
    fn the_ratio_is_taken_within_a_round_that_has_both() {
        // The machine slowed down to a half in the second round, and nginx missed the third.
        let rounds = [
            vec![(Kind::Penstock, slice(120.0)), (Kind::Nginx, slice(100.0))],
            vec![(Kind::Penstock, slice(60.0)), (Kind::Nginx, slice(50.0))],
            vec![(Kind::Penstock, slice(500.0))],
        ];

        let rows = rows(Case::ALL[0], &rounds);

        let [penstock, nginx] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!(penstock.ratio, Some(Spread { median: 1.2, min: 1.2, max: 1.2 }));
        assert_eq!((penstock.slices.len(), penstock.rounds, penstock.median.per_cpu_s), (3, 3, 120.0));
        assert_eq!((nginx.slices.len(), nginx.median.per_cpu_s), (2, 75.0));
    }

    #[test]
    fn by_the_clock_latency_is_compared() {
        let late = |p99_us| Slice { p99_us, ..slice(100.0) };
        let paced = Case::ALL.into_iter().find(|case| case.is_paced()).unwrap();

        let rows = rows(paced, &[vec![(Kind::Penstock, late(50.0)), (Kind::Nginx, late(100.0))]]);

        assert_eq!(rows[0].ratio, Some(Spread { median: 0.5, min: 0.5, max: 0.5 }));
    }

    #[test]
    fn json_is_a_list_of_medians() {
        let rows = rows(Case::ALL[2], &[vec![(Kind::Haproxy, slice(2.0))]]);

        let expected = json!([
            {"case": "close-1k", "proxy": "haproxy", "rps": 20, "per_cpu_s": 2, "p50_us": 5, "p99_us": 9,
             "of_nginx": null, "slices": [2]}
        ]);
        assert_eq!(Value::from(json(&rows)), expected);
    }
}

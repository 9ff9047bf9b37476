//! The JSON as a picture: one group of bars for each case, each bar the ratio to nginx. What is better
//! when it is more and what is better when it is less stand apart.

use std::fmt::Write as _;

use serde_json::Value;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 150.0;
const BAR: f64 = 12.0;
const GAP: f64 = 14.0;
/// Ratios beyond this are cut off, and say so.
const RATIO_MAX: f64 = 4.0;
const SCALE: f64 = (WIDTH - LEFT - 120.0) / RATIO_MAX;

/// One proxy in one case.
struct Bar<'v> {
    case: &'v str,
    proxy: &'v str,
    ratio: f64,
}

impl<'v> Bar<'v> {
    /// `None` where nginx is missing.
    fn read(row: &'v Value) -> Option<Self> {
        let ratio = row.get("of_nginx")?.get(1)?.as_f64()?;
        Some(Self { case: row.get("case")?.as_str()?, proxy: row.get("proxy")?.as_str()?, ratio })
    }

    /// Latency and memory.
    fn is_better_small(&self) -> bool {
        self.case.starts_with("p99-") || self.case.starts_with("idle-")
    }
}

/// An SVG with a white ground, readable without style sheets.
pub fn svg(rows: &[Value]) -> String {
    let (less, more): (Vec<_>, Vec<_>) = rows.iter().filter_map(Bar::read).partition(Bar::is_better_small);
    let (mut body, mut y) = (String::new(), 18.0);
    for (title, bars) in [
        ("Requests per second of CPU time, nginx = 1: more is better", more),
        ("Latency at a fixed rate, and memory, nginx = 1: less is better", less),
    ] {
        if !bars.is_empty() {
            y = section(title, &bars, y, &mut body);
        }
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n",
    )
}

/// Draws from `y` on; where the next one begins.
fn section(title: &str, bars: &[Bar<'_>], y: f64, body: &mut String) -> f64 {
    let _ = writeln!(body, "<text x=\"8\" y=\"{y:.0}\" font-size=\"13\">{title}</text>");
    let top = y + 10.0;
    let mut y = top + GAP;
    let mut last = None;
    for Bar { case, proxy, ratio } in bars {
        if last != Some(case) {
            y += if last.is_some() { GAP } else { 0.0 };
            let _ = writeln!(body, "<text x=\"8\" y=\"{:.0}\" font-weight=\"bold\">{case}</text>", y + 10.0);
            last = Some(case);
        }
        let colour = if *proxy == "penstock" { "#1f6f8b" } else { "#b8c4c8" };
        let (shown, more) = (ratio.min(RATIO_MAX), if *ratio > RATIO_MAX { "+" } else { "" });
        let _ = writeln!(
            body,
            "<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"{:.0}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.0}\">{proxy} {ratio:.2}{more}</text>",
            shown * SCALE,
            BAR - 2.0,
            LEFT + shown * SCALE + 4.0,
            y + 9.0,
        );
        y += BAR;
    }
    let line = LEFT + SCALE;
    let _ = writeln!(
        body,
        "<line x1=\"{line:.1}\" y1=\"{top:.0}\" x2=\"{line:.1}\" y2=\"{y:.0}\" stroke=\"#555\" \
         stroke-dasharray=\"3 3\"/>"
    );
    y + 2.0 * GAP
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_better_small_stands_apart() {
        let rows = [
            json!({"case": "p99-half-rate", "proxy": "penstock", "of_nginx": [0.5, 0.75, 1.0]}),
            json!({"case": "close-1k", "proxy": "penstock", "of_nginx": [1.0, 1.25, 1.5]}),
            json!({"case": "close-1k", "proxy": "envoy", "of_nginx": null}),
        ];

        let svg = svg(&rows);

        let at = |text: &str| svg.find(text).unwrap_or_else(|| panic!("no {text:?} in {svg}"));
        assert!(at("more is better") < at("penstock 1.25") && at("penstock 1.25") < at("less is better"));
        assert!(at("less is better") < at("penstock 0.75"));
        assert!(!svg.contains("envoy"), "{svg}");
    }
}

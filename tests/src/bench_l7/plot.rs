//! The table as a picture: one group of bars for each case, each bar the ratio to nginx.

use std::fmt::Write as _;

use super::summary::Row;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 150.0;
const BAR: f64 = 12.0;
const GAP: f64 = 14.0;
/// Ratios beyond this are cut off, and say so.
const RATIO_MAX: f64 = 4.0;

/// An SVG with a white ground, readable without style sheets.
pub fn svg(rows: &[Row]) -> String {
    let scale = (WIDTH - LEFT - 120.0) / RATIO_MAX;
    let mut body = String::new();
    let mut y = 40.0;
    let mut last = None;
    for row in rows {
        let Some(ratio) = row.ratio() else { continue };
        if last != Some(row.case()) {
            y += if last.is_some() { GAP } else { 0.0 };
            let _ = writeln!(
                body,
                "<text x=\"8\" y=\"{:.0}\" font-weight=\"bold\">{}</text>",
                y + 10.0,
                row.case()
            );
            last = Some(row.case());
        }
        let colour = if row.proxy() == "penstock" { "#1f6f8b" } else { "#b8c4c8" };
        let more = if ratio.median > RATIO_MAX { "+" } else { "" };
        let _ = writeln!(
            body,
            "<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"{:.0}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.0}\">{} {:.2}{more}</text>",
            ratio.median.min(RATIO_MAX) * scale,
            BAR - 2.0,
            LEFT + ratio.median.min(RATIO_MAX) * scale + 4.0,
            y + 9.0,
            row.proxy(),
            ratio.median,
        );
        y += BAR;
    }
    let line = LEFT + scale;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"18\" font-size=\"13\">Requests per second of CPU time, nginx = 1</text>\n{body}\
         <line x1=\"{line:.1}\" y1=\"28\" x2=\"{line:.1}\" y2=\"{y:.0}\" stroke=\"#555\" stroke-dasharray=\"3 3\"/>\n</svg>\n",
        height = y + GAP,
    )
}

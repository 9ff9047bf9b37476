//! Draws the outcomes as bars, by hand: an SVG of a few kilobytes needs no library.

use super::{Outcome, Scenario, Scheme};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 50.0;
const FLOOR: f64 = 300.0;
const BAR: f64 = 38.0;
const COLOURS: [&str; 4] = ["#b8433d", "#d99a3b", "#3a6ea5", "#2b8a66"];

/// An SVG: broken flows that were not idle, by scenario and scheme, on a logarithmic scale.
pub fn svg(outcomes: &[Outcome]) -> String {
    let most = outcomes.iter().map(|outcome| outcome.broken - outcome.idle).max().unwrap_or(0);
    let decades = f64::from(most.max(9) + 1).log10().ceil();
    let height = |count: f64| (FLOOR - TOP) * (1.0 + count).log10() / decades;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">Flows broken although their backend lives and they \
         were not idle (logarithmic)</text>\n"
    );
    for decade in 0..=decades as u32 {
        let count = if decade == 0 { 0 } else { 10u32.pow(decade) };
        let y = FLOOR - height(f64::from(count));
        svg += &format!(
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{count}</text>\n",
            WIDTH - 10.0,
            LEFT - 6.0,
            y + 4.0
        );
    }
    for (group, scenario) in Scenario::ALL.into_iter().enumerate() {
        let start = LEFT + 15.0 + group as f64 * (BAR * 4.0 + 40.0);
        for (column, scheme) in Scheme::ALL.into_iter().enumerate() {
            let found = outcomes.iter().find(|it| it.scenario == scenario && it.scheme == scheme);
            let Some(outcome) = found else { continue };
            let count = outcome.broken - outcome.idle;
            let (x, high) = (start + column as f64 * BAR, height(f64::from(count)));
            let colour = COLOURS.get(column).copied().unwrap_or("#000000");
            svg += &format!(
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{}\" height=\"{high:.1}\" fill=\"{colour}\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{count}</text>\n",
                FLOOR - high,
                BAR - 4.0,
                x + BAR / 2.0 - 2.0,
                FLOOR - high - 4.0
            );
        }
        svg += &format!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
            start + 2.0 * BAR,
            FLOOR + 18.0,
            scenario.name()
        );
    }
    for (column, scheme) in Scheme::ALL.into_iter().enumerate() {
        let x = LEFT + 15.0 + column as f64 * 180.0;
        let colour = COLOURS.get(column).copied().unwrap_or("#000000");
        svg += &format!(
            "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\n\
             <text x=\"{}\" y=\"{}\">{}</text>\n",
            FLOOR + 34.0,
            x + 18.0,
            FLOOR + 44.0,
            scheme.name()
        );
    }
    svg + "</svg>\n"
}

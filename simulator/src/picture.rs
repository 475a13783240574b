//! A run as a picture: queue, capacity and occupancy over time, one line for each policy. Plain SVG.

use std::fmt::Write;

use crate::report::{Report, Sample};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const PANEL: f64 = 170.0;
const GAP: f64 = 46.0;
const TOP: f64 = 64.0;
/// Told apart with the usual kinds of colour blindness (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];

struct Panel {
    title: &'static str,
    value: fn(&Sample) -> f64,
    /// The top of the scale, when it does not follow from the values.
    most: Option<f64>,
}

const PANELS: [Panel; 4] = [
    Panel { title: "jobs waiting", value: |sample| sample.queued as f64, most: None },
    Panel { title: "capacity, cores", value: |sample| sample.capacity, most: None },
    Panel { title: "allocated, cores", value: |sample| sample.allocated, most: None },
    Panel { title: "occupancy, % of the cores", value: occupancy, most: Some(100.0) },
];

fn occupancy(sample: &Sample) -> f64 {
    if sample.capacity > 0.0 { 100.0 * sample.allocated / sample.capacity } else { 0.0 }
}

/// Draws the runs over one another.
pub fn draw(title: &str, reports: &[Report]) -> String {
    let height = TOP + PANELS.len() as f64 * (PANEL + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, LEFT, 20.0, "start", title, "#222222");
    legend(&mut svg, reports);
    let end = reports.iter().flat_map(|report| &report.samples).map(|sample| sample.time).fold(1.0, f64::max);
    for (index, panel) in PANELS.iter().enumerate() {
        draw_panel(&mut svg, panel, TOP + 20.0 + index as f64 * (PANEL + GAP), end, reports);
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String, reports: &[Report]) {
    let mut x = LEFT;
    for (report, colour) in reports.iter().zip(COLOURS.iter().cycle()) {
        line(svg, [x, 40.0, x + 18.0, 40.0], colour, 3.0);
        text(svg, x + 24.0, 44.0, "start", &report.policy, "#222222");
        x += 44.0 + 7.0 * report.policy.chars().count() as f64;
    }
}

fn draw_panel(svg: &mut String, panel: &Panel, top: f64, end: f64, reports: &[Report]) {
    let samples = reports.iter().flat_map(|report| &report.samples);
    let most = panel.most.unwrap_or_else(|| samples.map(panel.value).fold(1.0, f64::max));
    let (width, bottom) = (WIDTH - LEFT - RIGHT, top + PANEL);
    text(svg, LEFT, top - 6.0, "start", panel.title, "#222222");
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let y = bottom - share * PANEL;
        line(svg, [LEFT, y, WIDTH - RIGHT, y], "#dddddd", 1.0);
        text(svg, LEFT - 6.0, y + 4.0, "end", &number(share * most), "#666666");
        let x = LEFT + share * width;
        text(svg, x, bottom + 15.0, "middle", &format!("{:.1} h", share * end / 3600.0), "#666666");
    }
    for (report, colour) in reports.iter().zip(COLOURS.iter().cycle()) {
        let mut points = String::new();
        for sample in &report.samples {
            let x = LEFT + sample.time / end * width;
            let y = bottom - ((panel.value)(sample) / most).min(1.0) * PANEL;
            let _ = write!(points, "{x:.1},{y:.1} ");
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.2\" stroke-opacity=\"0.85\"/>",
            points.trim_end()
        );
    }
}

fn number(value: f64) -> String {
    if value >= 10.0 || value == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn line(svg: &mut String, [x1, y1, x2, y2]: [f64; 4], colour: &str, width: f64) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str, colour: &str) {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{escaped}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_a_line_for_each_policy_in_each_panel() {
        let sample = |time| Sample { time, queued: 3, instances: 2, capacity: 8.0, allocated: 6.0 };
        let report = |policy: &str| Report {
            policy: policy.to_owned(),
            cost: 1.0,
            wait_mean: 0.0,
            wait_p50: 0.0,
            wait_p95: 0.0,
            wait_p99: 0.0,
            missed: 0.0,
            cpu_occupancy: 0.75,
            gpu_occupancy: 0.0,
            launches: 1,
            flaps: 0,
            short_lived: 0,
            interruptions: 0,
            refusals: 0,
            samples: vec![sample(0.0), sample(3600.0)],
        };
        let svg = draw("a < b", &[report("thrift"), report("karpenter")]);
        assert_eq!(svg.matches("<polyline").count(), 2 * PANELS.len());
        assert!(svg.contains("a &lt; b") && svg.contains(">karpenter</text>") && svg.contains("1.0 h"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(draw("nothing", &[]).ends_with("</svg>\n"));
    }
}

//! What was measured, with the target beside it.

use std::fmt::Write;

/// One line of the report.
struct Figure {
    what: String,
    value: String,
    target: String,
    met: Option<bool>,
}

/// The report.
#[derive(Default)]
pub(crate) struct Figures {
    lines: Vec<Figure>,
}

impl Figures {
    /// A figure that has a target it must not exceed.
    pub(crate) fn at_most(&mut self, what: &str, value: f64, limit: f64, unit: &str) {
        self.lines.push(Figure {
            what: what.to_owned(),
            value: format!("{value:.2}{unit}"),
            target: format!("≤ {limit}{unit}"),
            met: Some(value <= limit),
        });
    }

    /// A figure to know.
    pub(crate) fn note(&mut self, what: &str, value: impl Into<String>) {
        self.lines.push(Figure {
            what: what.to_owned(),
            value: value.into(),
            target: String::new(),
            met: None,
        });
    }

    /// As a Markdown table.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from("| measured | value | target | met |\n| --- | --- | --- | --- |\n");
        for figure in &self.lines {
            let met = figure.met.map_or("", |met| if met { "yes" } else { "**no**" });
            // Writing to a String does not fail.
            let _: Result<(), std::fmt::Error> =
                writeln!(table, "| {} | {} | {} | {met} |", figure.what, figure.value, figure.target);
        }
        table
    }
}

/// The middle of a series (the mean of the two middle ones), which must not be empty.
pub(crate) fn median(mut series: Vec<f64>) -> f64 {
    series.sort_by(f64::total_cmp);
    let middle = series.len() / 2;
    if series.len() % 2 == 1 { series[middle] } else { f64::midpoint(series[middle - 1], series[middle]) }
}

/// The value below which `percent` of a series lies.
pub(crate) fn percentile(mut series: Vec<f64>, percent: usize) -> f64 {
    series.sort_by(f64::total_cmp);
    series[(series.len() * percent / 100).min(series.len() - 1)]
}

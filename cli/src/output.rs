//! What commands print on stdout: tables for people, the API's JSON for programs. Everything else goes to stderr.

use std::io::Write;

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use telecine_domain::time::Timestamp;

use crate::failure::{Exit, Failure};

/// The form of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Tables for people; their columns may change.
    #[default]
    Table,
    /// The API's JSON, for programs.
    Json,
}

impl Format {
    /// Prints `value` as JSON, or the table that `table` makes of it.
    ///
    /// # Errors
    /// When stdout is closed or full.
    pub(crate) fn print<T: Serialize>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self {
            Self::Table => line(&table(value)),
            Self::Json => {
                let text = serde_json::to_string_pretty(value);
                line(&text.map_err(|error| {
                    Failure::new(Exit::Failed, format!("cannot be written as JSON: {error}"))
                })?)
            }
        }
    }
}

/// Prints one line (or several) on stdout. A closed pipe (`| head`) is no error: there is nobody to tell.
///
/// # Errors
/// When stdout is full.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Tells the person something on stderr.
pub(crate) fn note(text: &str) {
    // Nobody is left to tell when stderr itself fails.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A table of rows under headings.
pub(crate) fn rows<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings);
    for row in rows {
        table.add_row(row.map(|cell| printable(&cell)));
    }
    trimmed(&table)
}

/// A table of names and values; empty values are left out.
pub(crate) fn fields(fields: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([name.to_owned(), printable(&value)]);
    }
    trimmed(&table)
}

/// What is there, or `-`.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A time as `2026-11-22 15:04:05`, UTC.
pub(crate) fn time(at: Timestamp) -> String {
    at.to_string().chars().take(19).map(|c| if c == 'T' { ' ' } else { c }).collect()
}

/// Object keys and log texts come from outside: control characters must not reach the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

fn trimmed(table: &Table) -> String {
    let text = table.to_string();
    let lines: Vec<&str> =
        text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_and_hostile_names_harmless() {
        let text = rows(["ID", "NAME"], [["1".to_owned(), "\u{1b}[31mred".to_owned()]]);
        assert_eq!(text, "ID  NAME\n1   \u{fffd}[31mred");
        assert_eq!(fields([("id", "1".to_owned()), ("gone", String::new())]), "id  1");
    }
}

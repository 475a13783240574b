//! `telecine doctor`: checks this machine and says how to mend what is wrong.
//!
//! A check fails when jobs cannot run, and warns when they run worse than they could; only failures make the exit code
//! 1. Every finding that is not fine says what to do.

mod checks;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::cli::Global;
use crate::connection;
use crate::failure::{Exit, Failure};
use crate::output;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  telecine doctor --data ./data\n  telecine doctor -o json\n\nExit codes: 0 nothing is broken, 1 something is."
)]
pub(crate) struct Arguments {
    /// Address on which the API shall listen
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Address on which the manager shall listen
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    manager_listen: SocketAddr,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// As it should be.
    Fine,
    /// Works, worse than it could.
    Warning,
    /// Jobs cannot run.
    Broken,
}

/// One check and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was checked.
    pub check: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// How to mend it; empty when it is fine.
    pub mend: String,
}

impl Finding {
    fn fine(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fine, found: found.into(), mend: String::new() }
    }

    fn warning(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, found: found.into(), mend: mend.into() }
    }

    fn broken(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Broken, found: found.into(), mend: mend.into() }
    }
}

/// Checks the machine.
///
/// # Errors
/// When there is no data folder to check.
pub(crate) async fn run(global: &Global, arguments: Arguments) -> Result<ExitCode, Failure> {
    let data = connection::data_folder(global.data.as_deref())?;
    let findings = vec![
        checks::docker().await,
        checks::fuse().await,
        checks::user(),
        checks::kernel(),
        checks::memory(),
        checks::disk(&data).await,
        checks::open_files(),
        checks::clock(),
        checks::port("API port", "--listen", arguments.listen).await,
        checks::port("manager port", "--manager-listen", arguments.manager_listen).await,
    ];
    global.output.print(&findings, |findings| table(findings))?;
    let broken = findings.iter().any(|finding| finding.verdict == Verdict::Broken);
    Ok(if broken { ExitCode::from(Exit::Failed as u8) } else { ExitCode::SUCCESS })
}

fn table(findings: &[Finding]) -> String {
    let mark = |verdict| match verdict {
        Verdict::Fine => "ok",
        Verdict::Warning => "warning",
        Verdict::Broken => "BROKEN",
    };
    let rows = findings
        .iter()
        .map(|finding| [mark(finding.verdict).to_owned(), finding.check.to_owned(), finding.found.clone()]);
    let mut text = output::rows(["RESULT", "CHECK", "FOUND"], rows);
    let mends = findings.iter().filter(|finding| !finding.mend.is_empty());
    for (index, finding) in mends.enumerate() {
        text += if index == 0 { "\n\nWhat to do:" } else { "" };
        text += &format!("\n  {}: {}", finding.check, finding.mend);
    }
    text
}

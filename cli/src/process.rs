//! What every process of Telecine sets up once: the TLS provider, the runtime, the log.

use std::future::Future;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::ValueEnum;
use telecine_domain::time::Timestamp;
use tracing_subscriber::EnvFilter;

use crate::failure::{Exit, Failure};

/// The form of the log, which goes to stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Runs one command to its end on a runtime of its own.
///
/// # Errors
/// The command's failure.
pub(crate) fn run(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    install_tls_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failed, format!("no runtime: {error}")))?;
    let result = runtime.block_on(command);
    // Blocking threads (a read of stdin, a lock) must not keep an ended command alive.
    runtime.shutdown_background();
    result
}

/// One TLS provider for the whole process, whatever a dependency would choose.
pub(crate) fn install_tls_provider() {
    // An error means that one is installed already, which is all that is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Starts the log on stderr. `filter` is a tracing filter such as `info,telecine_manager=debug`; the environment
/// variable TELECINE_LOG wins over it.
///
/// # Errors
/// When the filter cannot be read.
pub(crate) fn start_log(format: LogFormat, filter: &str) -> Result<(), Failure> {
    let chosen = std::env::var("TELECINE_LOG").unwrap_or_else(|_| filter.to_owned());
    let filter = EnvFilter::try_new(&chosen)
        .map_err(|error| Failure::usage(format!("`{chosen}` is not a log filter: {error}")))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let subscriber = subscriber.with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => subscriber.with_target(false).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::new(Exit::Failed, format!("the log cannot be started: {error}")))
}

/// What time it is.
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

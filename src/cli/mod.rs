//! The command line: one file per command. The only place that prints to stdout and decides exit codes.
mod bench;
mod chat;
mod inspect;
mod loading;
mod models;
mod pull;
mod serve;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::config::{Cli, Command};

/// Parses the arguments and runs the command. Exit code 0: done; 1: failed, with one line on stderr saying why; 2: the
/// arguments are wrong.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(e) = crate::telemetry::init(cli.log_format, &cli.log) {
        return failed(&anyhow::Error::new(e));
    }
    match run(cli.command) {
        Ok(code) => code,
        Err(e) => failed(&e),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {}", one_line(error));
    ExitCode::FAILURE
}

/// An error and its causes. Many errors, this crate's and others', already say their cause: once is enough.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Writes a line to stdout. A reader that has gone (`wick models | head -1`) is no error; a full disk is.
fn say(text: impl Display) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing to stdout"),
    }
}

/// Threads for everything but the model: few, since the CPU belongs to the engine's thread and its pool. Where that pool has
/// but two cores, a second thread, which the first wakes at every step, would take both from it and not one.
#[must_use]
pub fn workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if cores > 2 { 2 } else { 1 }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build()?;
    let code = runtime.block_on(async {
        match command {
            Command::Serve(args) => serve::run(args).await,
            Command::Pull(args) => pull::run(args).await,
            Command::Models(args) => models::run(&args),
            Command::Chat(args) => chat::run(args).await,
            Command::Inspect(args) => inspect::run(args).await,
            Command::Bench(args) => bench::run(*args).await,
            Command::Key(args) => serve::new_key(&args),
        }
    })?;
    // Background work (a blocking tokenization of a request that is gone) must not hold the exit back.
    runtime.shutdown_background();
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::HubError;

    #[test]
    fn a_cause_is_said_once() {
        let full = || std::io::Error::from_raw_os_error(28);
        let error = HubError::Io { doing: "writing", path: "/x".into(), source: full() };
        assert_eq!(one_line(&error.into()), format!("writing /x: {}", full()));
        let wrapped = anyhow::Error::from(full()).context("pulling");
        assert_eq!(one_line(&wrapped), format!("pulling: {}", full()));
    }
}

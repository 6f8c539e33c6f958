//! `wick bench`: the engine alone, or HTTP load on any OpenAI-compatible server.
mod engine;
mod load;
mod report;
mod workload;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use super::loading::plan_model;
use super::say;
use crate::config::BenchArgs;
use crate::runner::large_pages;

pub(super) async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match args.load.url.as_deref() {
        Some(url) => {
            let known = crate::hub::known_context(&args.model, &args.fetch.options())?;
            let report = load::run(url, &args.model, &args.load, known).await?;
            show(&report, args.json.as_deref())?;
            Ok(if report.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        None => engine_alone(args).await,
    }
}

async fn engine_alone(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let planned = plan_model(&args.model, &args.engine, &args.fetch).await?;
    let report = tokio::task::spawn_blocking(move || {
        let mut runner = planned.load()?;
        large_pages::move_now();
        let runs = runner.describe();
        let mut rows = Vec::new();
        for &batch in &args.batch {
            let case = engine::Case { batch, prefill: args.prefill, decode: args.decode };
            rows.push(engine::measure(&mut runner, planned.scheduler, case, args.repeat.get())?);
        }
        show(&engine::EngineReport { model: planned.alias, runs, rows }, args.json.as_deref())
    });
    report.await.context("the benchmark")??;
    Ok(ExitCode::SUCCESS)
}

/// The table goes to stdout, unless the JSON does.
fn show<R: Serialize + std::fmt::Display>(report: &R, json: Option<&Path>) -> anyhow::Result<()> {
    match json {
        Some(path) if path == Path::new("-") => say(serde_json::to_string_pretty(report)?)?,
        Some(path) => {
            say(report)?;
            std::fs::write(path, serde_json::to_vec_pretty(report)?)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        None => say(report)?,
    }
    Ok(())
}

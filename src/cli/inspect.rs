//! `wick inspect`: what a model's files hold, and the decoder or encoder they become.
use std::process::ExitCode;

use super::say;
use crate::config::InspectArgs;
use crate::encoder::{EncoderSpec, is_encoder};
use crate::weights::Description;
use crate::{hub, weights};

pub(super) async fn run(args: InspectArgs) -> anyhow::Result<ExitCode> {
    let model = hub::resolve(&args.model, &args.fetch.options()).await?;
    let mut description = weights::describe(&model.path)?;
    let mut encoder = None;
    if is_encoder(&model.path) {
        match EncoderSpec::read(&model.path) {
            Ok(spec) => (encoder, description.problem) = (Some(spec), None),
            Err(problem) => description.problem = Some(problem.to_string()),
        }
    }
    if args.json {
        say(serde_json::to_string_pretty(&description)?)?;
    } else {
        print(&description)?;
        if let Some(encoder) = &encoder {
            say(encoder)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the files hold, then the decoder.
fn print(d: &Description) -> anyhow::Result<()> {
    const MIB: f64 = 1024.0 * 1024.0;
    say(format_args!(
        "{}, architecture {}, {} tensors, {:.1} MiB",
        d.format,
        d.architecture,
        d.tensor_count,
        d.total_bytes as f64 / MIB
    ))?;
    for t in &d.types {
        say(format_args!("  {:<6} {:>4} tensors {:>10.1} MiB", t.ty, t.tensors, t.bytes as f64 / MIB))?;
    }
    if let Some(problem) = &d.problem {
        say(format_args!("wick cannot serve it: {problem}"))?;
    }
    if let Some(spec) = &d.spec {
        say(format_args!("{spec}"))?;
    }
    Ok(())
}

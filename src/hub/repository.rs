//! `hf:ORG/REPO[:FILE]`, without a catalogue entry: one GGUF file, or all that a safetensors model needs. The hub's list of
//! files says what each must be; the list is of one commit, which the files are fetched from too.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::digest::{Digest, FileSpec};
use super::fetch::{Origin, obtain};
use super::hugging_face::Repo;
use super::store::{self, ModelDir};
use super::{FetchOptions, HubError, LocalModel, SourceError};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Finds or fetches the model. `offline`: no connection may be made, because of this.
///
/// # Errors
/// See [`HubError`].
pub async fn resolve(
    model: &str,
    rest: &str,
    options: &FetchOptions,
    offline: Option<&'static str>,
) -> Result<LocalModel, HubError> {
    let (repo_name, file) = rest.split_once(':').map_or((rest, None), |(r, f)| (r, Some(f)));
    let no_source = |reason: String| HubError::NoSource { name: model.to_owned(), reasons: vec![reason] };
    let mut repo = Repo::new(repo_name, None).map_err(|e| no_source(e.to_string()))?;
    let folder = format!("hf--{}", repo_name.replace('/', "--"));
    let mut dir = ModelDir::new(&store::cache_dir(options.cache_dir.as_deref())?, &folder);
    let local = |path: PathBuf| LocalModel { alias: rest.replace(':', "/"), path, licence: None, aliases: Vec::new() };
    if let Some(path) = complete(&dir, file)? {
        return Ok(local(path));
    }
    if let Some(because) = offline {
        let unknown = || HubError::Offline { name: model.to_owned(), because };
        let held = repo.cached_files();
        choose(&held, file).map_err(|_| unknown())?;
        let _lock = dir.lock()?;
        return match take(&dir, &repo, &held, file, true).await {
            Ok(path) => Ok(local(path)),
            Err(SourceError::Local(e)) => Err(e),
            Err(SourceError::Source(_)) => Err(unknown()),
        };
    }
    let _lock = dir.lock()?;
    // The process that held the lock may have fetched it.
    if let Some(path) = complete(&dir, file)? {
        return Ok(local(path));
    }
    let taken = match list(&mut repo).await {
        Ok(listed) => take(&dir, &repo, &listed, file, false).await,
        Err(reason) => {
            // What other tools have fetched is as good as what the hub would say now.
            let held = repo.cached_files();
            if choose(&held, file).is_ok() {
                tracing::warn!("hub {repo_name}: {reason}; looking into the Hugging Face cache");
                take(&dir, &repo, &held, file, true).await
            } else {
                Err(reason)
            }
        }
    };
    taken.map(local).map_err(|e| match e {
        SourceError::Local(e) => e,
        SourceError::Source(reason) => no_source(format!("hub {repo_name}: {reason}")),
    })
}

async fn list(repo: &mut Repo) -> Result<Vec<FileSpec>, SourceError> {
    repo.pin().await?;
    repo.list().await
}

/// Brings what the model needs of `listed` into its folder; where the model then is.
async fn take(
    dir: &ModelDir,
    repo: &Repo,
    listed: &[FileSpec],
    file: Option<&str>,
    offline: bool,
) -> Result<PathBuf, SourceError> {
    let mut wanted = choose(listed, file).map_err(SourceError::because)?;
    let mut at = 0;
    while let Some(spec) = wanted.get(at) {
        match dir.is_verified(&spec.name, &spec.digest) {
            Ok(true) => {}
            other => {
                // Another digest: the repository has changed since it was fetched, or the file here has.
                match other {
                    Err(HubError::WrongDigest { .. }) => forget_markers(dir),
                    other => drop(other?),
                }
                obtain(dir, &Origin::Hub { repo, file: &spec.name, offline }, spec).await?;
            }
        }
        at += 1;
        if wanted[at - 1].name == INDEX {
            let more = shards(dir, listed)?;
            wanted.extend(more);
        }
    }
    let target = match wanted.as_slice() {
        [one] if one.name.ends_with(".gguf") || file.is_some() => Some(one.name.clone()),
        _ => None,
    };
    let files = wanted.into_iter().map(|f| (f.name, f.digest)).collect();
    let marker = Marker { target, files };
    marker.write(dir, file)?;
    Ok(marker.place(dir))
}

/// What a complete model consists of. Written last: without it, some file of the repository may be missing.
#[derive(Serialize, Deserialize)]
struct Marker {
    /// The model is this file; else it is the folder.
    target: Option<String>,
    files: Vec<(String, Digest)>,
}

impl Marker {
    fn path(dir: &ModelDir, file: Option<&str>) -> PathBuf {
        dir.file(&file.map_or(".complete".to_owned(), |f| format!("{f}.complete")))
    }

    fn write(&self, dir: &ModelDir, file: Option<&str>) -> Result<(), HubError> {
        let path = Self::path(dir, file);
        let io = |source: std::io::Error| HubError::Io { doing: "writing", path: path.clone(), source };
        let json = serde_json::to_vec(self).map_err(|e| io(e.into()))?;
        std::fs::write(&path, json).map_err(io)
    }

    fn place(&self, dir: &ModelDir) -> PathBuf {
        self.target.as_ref().map_or_else(|| dir.path().to_owned(), |name| dir.file(name))
    }
}

/// Where the model is, if it was fetched to the end and all its files are still what they were.
fn complete(dir: &ModelDir, file: Option<&str>) -> Result<Option<PathBuf>, HubError> {
    let noted = std::fs::read(Marker::path(dir, file)).ok();
    let Some(marker) = noted.and_then(|json| serde_json::from_slice::<Marker>(&json).ok()) else { return Ok(None) };
    for (name, digest) in &marker.files {
        if !dir.is_verified(name, digest)? {
            return Ok(None);
        }
    }
    Ok(Some(marker.place(dir)))
}

/// A file is about to be replaced: what counted on it is no longer complete.
fn forget_markers(dir: &ModelDir) {
    let Ok(entries) = std::fs::read_dir(dir.path()) else { return };
    for entry in entries.flatten().filter(|e| e.file_name().to_string_lossy().ends_with(".complete")) {
        let _ = std::fs::remove_file(entry.path());
    }
}

/// Which files of a repository make the model. Names with folders in them are left out: no supported layout has any. Of
/// weights in several files, it is the index that is chosen; `shards` says which it names.
fn choose(listed: &[FileSpec], file: Option<&str>) -> Result<Vec<FileSpec>, String> {
    let top: Vec<&FileSpec> =
        listed.iter().filter(|f| !f.name.contains(['/', '\\']) && !f.name.starts_with('.')).collect();
    let ggufs: Vec<&str> = top.iter().map(|f| f.name.as_str()).filter(|p| p.ends_with(".gguf")).collect();
    if let Some(name) = file {
        let found = top.iter().find(|f| f.name == name);
        return found.map(|f| vec![(*f).clone()]).ok_or_else(|| {
            format!("the repository has no file `{name}` at its top level; GGUF files there: {}", list_or_none(&ggufs))
        });
    }
    let has = |name: &str| top.iter().any(|f| f.name == name);
    if has("config.json") && top.iter().any(|f| f.name.ends_with(".safetensors")) {
        const NEEDED: &[&str] = &[
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "chat_template.jinja",
            "chat_template.json",
            "modules.json",
            "sentence_bert_config.json",
        ];
        let weights = [SINGLE, INDEX].into_iter().find(|name| has(name));
        let weights =
            weights.ok_or_else(|| format!("the repository's safetensors are neither {SINGLE} nor in an {INDEX}"))?;
        let wanted = |f: &&FileSpec| NEEDED.contains(&f.name.as_str()) || f.name == weights;
        let mut files: Vec<FileSpec> = top.iter().copied().filter(wanted).cloned().collect();
        if has("modules.json") {
            // The settings of a sentence transformer's modules lie in a folder for each.
            let settings = |f: &&FileSpec| f.name.split_once('/').is_some_and(|(_, name)| name == "config.json");
            files.extend(listed.iter().filter(settings).filter(|f| !f.name.starts_with('.')).cloned());
        }
        return Ok(files);
    }
    match ggufs.as_slice() {
        [one] => Ok(top.iter().filter(|f| f.name == *one).map(|f| (*f).clone()).collect()),
        [] => Err("the repository holds neither safetensors with a config.json nor a GGUF file".to_owned()),
        many => Err(format!(
            "the repository holds several GGUF files; name one, as in hf:ORG/REPO:{}. There are: {}",
            many[0],
            many.join(", ")
        )),
    }
}

/// The files that the fetched index names.
fn shards(dir: &ModelDir, listed: &[FileSpec]) -> Result<Vec<FileSpec>, SourceError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let path = dir.file(INDEX);
    let json = std::fs::read(&path).map_err(|source| HubError::Io { doing: "reading", path, source })?;
    let index: Index =
        serde_json::from_slice(&json).map_err(|e| SourceError::because(format!("{INDEX} is not sound: {e}")))?;
    let names: std::collections::BTreeSet<&String> = index.weight_map.values().collect();
    let found = names.into_iter().map(|name| {
        let spec =
            listed.iter().find(|f| f.name == *name && name.ends_with(".safetensors") && !name.contains(['/', '\\']));
        spec.cloned().ok_or_else(|| SourceError::because(format!("{INDEX} names `{name}`, which the repository lacks")))
    });
    found.collect()
}

fn list_or_none(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f(name: &str) -> FileSpec {
        FileSpec { name: name.to_owned(), bytes: 1, digest: Digest::Sha256("0".repeat(64)) }
    }

    fn names(v: &[FileSpec]) -> Vec<&str> {
        v.iter().map(|f| f.name.as_str()).collect()
    }

    #[test]
    fn a_repository_is_one_gguf_or_safetensors() {
        assert_eq!(names(&choose(&[f("a.gguf"), f("README.md")], None).unwrap()), ["a.gguf"]);
        let many = choose(&[f("a.gguf"), f("b.gguf")], None).unwrap_err();
        assert!(many.contains("hf:ORG/REPO:a.gguf") && many.contains("b.gguf"));
        assert_eq!(names(&choose(&[f("a.gguf"), f("b.gguf")], Some("b.gguf")).unwrap()), ["b.gguf"]);
        assert!(choose(&[f("a.gguf")], Some("c.gguf")).unwrap_err().contains("a.gguf"));
        let st = [
            f("config.json"),
            f("model.safetensors"),
            f("tokenizer.json"),
            f("pytorch_model.bin"),
            f("onnx/model.onnx"),
        ];
        assert_eq!(names(&choose(&st, None).unwrap()), ["config.json", "model.safetensors", "tokenizer.json"]);
        let sentences = [&st[..], &[f("modules.json"), f("1_Pooling/config.json"), f("../config.json")]].concat();
        let wanted = ["config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"];
        assert_eq!(names(&choose(&sentences, None).unwrap()), wanted);
        assert!(choose(&[f("x.bin")], None).is_err());
        assert!(choose(&[f("../../etc/passwd.gguf")], None).is_err());
    }

    #[test]
    fn weights_are_taken_once() {
        let shard = |n: usize| f(&format!("model-0000{n}-of-00002.safetensors"));
        let both = [f("config.json"), shard(1), shard(2), f(INDEX), f("consolidated.safetensors")];
        assert_eq!(names(&choose(&both, None).unwrap()), ["config.json", INDEX]);
        let all = [&both[..], &[f(SINGLE)]].concat();
        assert_eq!(names(&choose(&all, None).unwrap()), ["config.json", SINGLE]);
        let neither = [f("config.json"), f("consolidated.safetensors")];
        assert!(choose(&neither, None).unwrap_err().contains(INDEX));

        let t = tempfile::tempdir().unwrap();
        let mut d = ModelDir::new(t.path(), "m");
        let _lock = d.lock().unwrap();
        let index = |name: &str| format!(r#"{{"weight_map": {{"a": "{}", "b": "{name}"}}}}"#, shard(1).name);
        std::fs::write(d.file(INDEX), index(&shard(2).name)).unwrap();
        assert_eq!(shards(&d, &both).unwrap(), [shard(1), shard(2)]);
        for bad in ["other.safetensors", "config.json", "../x.safetensors"] {
            std::fs::write(d.file(INDEX), index(bad)).unwrap();
            assert!(shards(&d, &both).unwrap_err().to_string().contains(bad));
        }
    }
}

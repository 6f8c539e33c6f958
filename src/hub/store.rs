//! The cache folder: partial files, verification, and the atomic step from "being fetched" to "there".
//!
//! A model lives in `<cache>/models/<name>/<file>`. While it is fetched it is `<file>.partial`, beside a `.lock` that
//! makes a second pull of the same model wait instead of writing into the same file; where the file system has no locks,
//! each process has a partial file of its own instead, which a later pull cannot go on with. Only a file whose digest was
//! right gets its final name. `<file>.verified` remembers size, modification time and digest, so that a later start
//! need not read the whole file again to trust it.
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::HubError;
use super::digest::Digest;

/// The folder for fetched models: `explicit`, else `$WICK_CACHE`, else the platform's cache folder + `wick`.
///
/// # Errors
/// None of them is known (no home directory).
pub fn cache_dir(explicit: Option<&Path>) -> Result<PathBuf, HubError> {
    if let Some(dir) = explicit {
        return Ok(dir.to_owned());
    }
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("WICK_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("wick")))
        .or_else(|| {
            let home = std::env::home_dir()?;
            let base = if cfg!(target_os = "macos") { home.join("Library/Caches") } else { home.join(".cache") };
            Some(base.join("wick"))
        })
        .ok_or(HubError::NoCacheDir)
}

/// The folder of one model in the cache.
#[derive(Debug, Clone)]
pub struct ModelDir {
    dir: PathBuf,
    /// What is between a file's name and the kind of a file of the fetch: nothing, or the process where there is no lock.
    infix: String,
}

/// Holds a model's folder against other processes until dropped.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verified {
    size: u64,
    modified_ns: u128,
    #[serde(flatten)]
    digest: Digest,
}

impl ModelDir {
    #[must_use]
    pub fn new(cache: &Path, name: &str) -> Self {
        Self { dir: cache.join("models").join(name), infix: String::new() }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A file that only the fetch of `name` uses: `<name>.<kind>`, or one of this process alone where there is no lock.
    #[must_use]
    pub fn scratch(&self, name: &str, kind: &str) -> PathBuf {
        self.dir.join(format!("{name}{}.{kind}", self.infix))
    }

    /// Whether no other process writes here: false where the file system has no locks.
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        self.infix.is_empty()
    }

    /// Creates the folder and takes its lock, waiting (and saying so) while another process holds it. A file system without
    /// locks is no error: this process then keeps to files of its own.
    ///
    /// # Errors
    /// The folder or the lock file cannot be made (read-only, full disk).
    pub fn lock(&mut self) -> Result<DirLock, HubError> {
        let io = |doing| {
            let path = self.dir.clone();
            move |source| HubError::Io { doing, path, source }
        };
        std::fs::create_dir_all(&self.dir).map_err(io("creating the model's cache folder"))?;
        let path = self.dir.join(".lock");
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(io("opening the lock in"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                eprintln!("another process is fetching this model; waiting for it");
                file.lock().map_err(io("locking"))?;
            }
            Err(std::fs::TryLockError::Error(reason)) => self.keep_apart(&reason),
        }
        Ok(DirLock { _file: file })
    }

    /// From now on, files of the fetch are this process's own.
    fn keep_apart(&mut self, reason: &std::io::Error) {
        tracing::debug!(folder = %self.dir.display(), %reason, "no lock to be had");
        self.infix = format!(".{}", std::process::id());
    }

    /// Whether `name` is there and is the file with this digest. Reads the file only if it changed since it was last
    /// verified.
    ///
    /// # Errors
    /// The file is there but its digest is another: it is not touched, the error says what to do.
    pub fn is_verified(&self, name: &str, digest: &Digest) -> Result<bool, HubError> {
        self.is_verified_at(&self.file(name), name, digest)
    }

    /// The same for a file that lies elsewhere; what was verified is remembered here under `name`.
    ///
    /// # Errors
    /// As `is_verified`.
    pub fn is_verified_at(&self, path: &Path, name: &str, digest: &Digest) -> Result<bool, HubError> {
        let Ok(meta) = std::fs::metadata(path) else { return Ok(false) };
        let now = stamp(&meta, digest);
        let noted = std::fs::read(self.stamp_path(name)).ok().and_then(|b| serde_json::from_slice::<Verified>(&b).ok());
        if noted.as_ref() == Some(&now) {
            return Ok(true);
        }
        let found = digest.of_file(path)?;
        if found != *digest {
            return Err(HubError::WrongDigest { path: path.to_owned(), expected: digest.clone(), found });
        }
        self.note_verified(path, name, digest);
        Ok(true)
    }

    fn stamp_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.verified"))
    }

    /// A missing stamp only costs a second look, so failing to write it is not an error.
    fn note_verified(&self, path: &Path, name: &str, digest: &Digest) {
        if let Ok(meta) = std::fs::metadata(path)
            && let Ok(json) = serde_json::to_vec(&stamp(&meta, digest))
        {
            let _ = std::fs::write(self.stamp_path(name), json);
        }
    }

    /// Opens `<name>.partial` to append to; what a killed pull left is kept.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn partial(&self, name: &str) -> Result<Partial, HubError> {
        let path = self.scratch(name, "partial");
        let io = |source| HubError::Io { doing: "opening", path: path.clone(), source };
        // A file may lie in a folder below the model's.
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        let mut file = File::options().create(true).read(true).write(true).truncate(false).open(&path).map_err(io)?;
        let len = file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(Partial { file, path, len, kept: len })
    }

    /// Checks the partial file's digest and gives it its final name.
    ///
    /// # Errors
    /// A wrong digest removes the partial file, so that the next pull starts afresh.
    pub fn finish(&self, partial: Partial, name: &str, digest: &Digest) -> Result<PathBuf, HubError> {
        let Partial { file, path, .. } = partial;
        file.sync_all().map_err(|source| HubError::Io { doing: "writing", path: path.clone(), source })?;
        drop(file);
        let found = digest.of_file(&path)?;
        if found != *digest {
            let _ = std::fs::remove_file(&path);
            return Err(HubError::WrongDigest { path, expected: digest.clone(), found });
        }
        let target = self.file(name);
        std::fs::rename(&path, &target).map_err(|source| HubError::Io { doing: "renaming", path, source })?;
        self.note_verified(&target, name, digest);
        Ok(target)
    }
}

/// A file on its way.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    len: u64,
    /// Of its bytes, those that were there when it was opened.
    kept: u64,
}

impl Partial {
    /// Bytes that are there.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it holds bytes of an earlier pull, which may have been those of another file.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.kept > 0
    }

    /// Cuts the file back to `len` bytes.
    ///
    /// # Errors
    /// The file system refused.
    pub fn truncate(&mut self, len: u64) -> Result<(), HubError> {
        let len = len.min(self.len);
        let cut = |f: &mut File| f.set_len(len).and_then(|()| f.seek(SeekFrom::Start(len)).map(|_| ()));
        cut(&mut self.file).map_err(|source| HubError::Io { doing: "writing", path: self.path.clone(), source })?;
        self.len = len;
        self.kept = self.kept.min(len);
        Ok(())
    }

    /// Appends.
    ///
    /// # Errors
    /// The disk is full or failed. What was written before stays and a later pull goes on from there.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(|source| HubError::Io {
            doing: "writing",
            path: self.path.clone(),
            source,
        })?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

fn stamp(meta: &std::fs::Metadata, digest: &Digest) -> Verified {
    let modified_ns = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
    Verified { size: meta.len(), modified_ns, digest: digest.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC_HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn abc() -> Digest {
        Digest::Sha256(ABC_HEX.to_owned())
    }

    fn dir() -> (tempfile::TempDir, ModelDir) {
        let t = tempfile::tempdir().unwrap();
        let d = ModelDir::new(t.path(), "m");
        (t, d)
    }

    #[test]
    fn a_killed_pull_is_resumed_and_verified() {
        let (_t, mut d) = dir();
        let _lock = d.lock().unwrap();
        d.partial("f").unwrap().append(b"ab").unwrap();
        assert!(!d.is_verified("f", &abc()).unwrap(), "a partial file is not the file");
        let mut p = d.partial("f").unwrap();
        assert_eq!(p.len(), 2);
        p.append(b"c").unwrap();
        let path = d.finish(p, "f", &abc()).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"abc");
        assert!(d.is_verified("f", &abc()).unwrap());
    }

    #[test]
    fn a_wrong_digest_is_refused_and_forgotten() {
        let (_t, mut d) = dir();
        let _lock = d.lock().unwrap();
        let mut p = d.partial("f").unwrap();
        p.append(b"abd").unwrap();
        assert!(matches!(d.finish(p, "f", &abc()), Err(HubError::WrongDigest { .. })));
        assert!(!d.file("f").exists());
        assert!(d.partial("f").unwrap().is_empty());
    }

    #[test]
    fn a_file_changed_after_verification_is_noticed() {
        let (_t, mut d) = dir();
        let _lock = d.lock().unwrap();
        let mut p = d.partial("f").unwrap();
        p.append(b"abc").unwrap();
        d.finish(p, "f", &abc()).unwrap();
        std::fs::write(d.file("f"), b"abcd").unwrap();
        assert!(matches!(d.is_verified("f", &abc()), Err(HubError::WrongDigest { .. })));
    }

    #[test]
    fn truncate_goes_back_to_a_known_point() {
        let (_t, mut d) = dir();
        let _lock = d.lock().unwrap();
        let mut p = d.partial("f").unwrap();
        p.append(b"abXX").unwrap();
        p.truncate(2).unwrap();
        p.append(b"c").unwrap();
        d.finish(p, "f", &abc()).unwrap();
    }

    #[test]
    fn without_a_lock_processes_keep_apart() {
        let (_t, mut d) = dir();
        let _lock = d.lock().unwrap();
        d.partial("f").unwrap().append(b"another process's").unwrap();
        d.keep_apart(&std::io::Error::from(std::io::ErrorKind::Unsupported));
        let mut p = d.partial("f").unwrap();
        assert!(p.is_empty() && !d.is_exclusive());
        p.append(b"abc").unwrap();
        d.finish(p, "f", &abc()).unwrap();
        assert_eq!(std::fs::read(d.file("f")).unwrap(), b"abc");
    }

    #[test]
    fn what_was_verified_is_remembered_for_either_kind_of_digest() {
        let (_t, mut d) = dir();
        let _lock = d.lock().unwrap();
        for digest in [abc(), Digest::GitBlob("f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f".to_owned())] {
            std::fs::write(d.file("f"), b"abc").unwrap();
            assert!(d.is_verified("f", &digest).unwrap());
            let noted: Verified = serde_json::from_slice(&std::fs::read(d.stamp_path("f")).unwrap()).unwrap();
            assert_eq!(noted.digest, digest);
        }
    }

    #[test]
    fn the_lock_excludes_a_second_holder() {
        let (_t, mut d) = dir();
        let lock = d.lock().unwrap();
        let other = File::options().write(true).open(d.path().join(".lock")).unwrap();
        assert!(matches!(other.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
        drop(lock);
        assert!(other.try_lock().is_ok());
    }
}

//! The cache folder: partial files, verification, and the atomic step from "being fetched" to "there".
//!
//! A model lives in `<cache>/models/<name>/<file>`. While it is fetched it is `<file>.partial`, beside a `.lock` that
//! makes a second pull of the same model wait instead of writing into the same file. Only a file whose digest was
//! right gets its final name. `<file>.verified` remembers size, modification time and digest, so that a later start
//! need not read the whole file again to trust it.
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::HubError;

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
    sha256: String,
}

impl ModelDir {
    #[must_use]
    pub fn new(cache: &Path, name: &str) -> Self {
        Self { dir: cache.join("models").join(name) }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Creates the folder and takes its lock, waiting (and saying so) while another process holds it.
    ///
    /// # Errors
    /// The folder or the lock file cannot be made (read-only, full disk).
    pub fn lock(&self) -> Result<DirLock, HubError> {
        let io = |doing| {
            let path = self.dir.clone();
            move |source| HubError::Io { doing, path, source }
        };
        std::fs::create_dir_all(&self.dir).map_err(io("creating the model's cache folder"))?;
        let path = self.dir.join(".lock");
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(io("opening the lock in"))?;
        if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
            eprintln!("another process is fetching this model; waiting for it");
            file.lock().map_err(io("locking"))?;
        }
        Ok(DirLock { _file: file })
    }

    /// Whether `name` is there and is the file with this digest and size. Reads the file only if it changed since it
    /// was last verified.
    ///
    /// # Errors
    /// The file is there but its digest is another: it is not touched, the error says what to do.
    pub fn is_verified(&self, name: &str, sha256: &str) -> Result<bool, HubError> {
        let path = self.file(name);
        let Ok(meta) = std::fs::metadata(&path) else { return Ok(false) };
        let now = stamp(&meta, sha256);
        let noted = std::fs::read(self.stamp_path(name)).ok().and_then(|b| serde_json::from_slice::<Verified>(&b).ok());
        if noted.as_ref() == Some(&now) {
            return Ok(true);
        }
        let found = sha256_of(&path)?;
        if found != sha256 {
            return Err(HubError::WrongDigest { path, expected: sha256.to_owned(), found });
        }
        self.note_verified(name, sha256);
        Ok(true)
    }

    fn stamp_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.verified"))
    }

    /// A missing stamp only costs a second look, so failing to write it is not an error.
    fn note_verified(&self, name: &str, sha256: &str) {
        if let Ok(meta) = std::fs::metadata(self.file(name))
            && let Ok(json) = serde_json::to_vec(&stamp(&meta, sha256))
        {
            let _ = std::fs::write(self.stamp_path(name), json);
        }
    }

    /// Opens `<name>.partial` to append to; what a killed pull left is kept.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn partial(&self, name: &str) -> Result<Partial, HubError> {
        let path = self.dir.join(format!("{name}.partial"));
        let io = |source| HubError::Io { doing: "opening", path: path.clone(), source };
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(io)?;
        let len = file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(Partial { file, path, len })
    }

    /// Checks the partial file's digest (when one is known) and gives it its final name.
    ///
    /// # Errors
    /// A wrong digest removes the partial file, so that the next pull starts afresh.
    pub fn finish(&self, partial: Partial, name: &str, sha256: Option<&str>) -> Result<PathBuf, HubError> {
        let Partial { file, path, .. } = partial;
        file.sync_all().map_err(|source| HubError::Io { doing: "writing", path: path.clone(), source })?;
        drop(file);
        let found = sha256_of(&path)?;
        if let Some(expected) = sha256
            && expected != found
        {
            let _ = std::fs::remove_file(&path);
            return Err(HubError::WrongDigest { path, expected: expected.to_owned(), found });
        }
        let target = self.file(name);
        std::fs::rename(&path, &target).map_err(|source| HubError::Io { doing: "renaming", path, source })?;
        self.note_verified(name, &found);
        Ok(target)
    }
}

/// A file on its way.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    len: u64,
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

    /// Cuts the file back to `len` bytes.
    ///
    /// # Errors
    /// The file system refused.
    pub fn truncate(&mut self, len: u64) -> Result<(), HubError> {
        let len = len.min(self.len);
        let cut = |f: &mut File| f.set_len(len).and_then(|()| f.seek(SeekFrom::Start(len)).map(|_| ()));
        cut(&mut self.file).map_err(|source| HubError::Io { doing: "writing", path: self.path.clone(), source })?;
        self.len = len;
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

fn stamp(meta: &std::fs::Metadata, sha256: &str) -> Verified {
    let modified_ns = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
    Verified { size: meta.len(), modified_ns, sha256: sha256.to_owned() }
}

/// SHA-256 of a file, lower-case hex.
///
/// # Errors
/// The file cannot be read.
pub fn sha256_of(path: &Path) -> Result<String, HubError> {
    let io = |source| HubError::Io { doing: "reading", path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(io)?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        use std::fmt::Write as _;
        let _ = write!(s, "{b:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn dir() -> (tempfile::TempDir, ModelDir) {
        let t = tempfile::tempdir().unwrap();
        let d = ModelDir::new(t.path(), "m");
        (t, d)
    }

    #[test]
    fn a_killed_pull_is_resumed_and_verified() {
        let (_t, d) = dir();
        let _lock = d.lock().unwrap();
        d.partial("f").unwrap().append(b"ab").unwrap();
        assert!(!d.is_verified("f", ABC).unwrap(), "a partial file is not the file");
        let mut p = d.partial("f").unwrap();
        assert_eq!(p.len(), 2);
        p.append(b"c").unwrap();
        let path = d.finish(p, "f", Some(ABC)).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"abc");
        assert!(d.is_verified("f", ABC).unwrap());
    }

    #[test]
    fn a_wrong_digest_is_refused_and_forgotten() {
        let (_t, d) = dir();
        let _lock = d.lock().unwrap();
        let mut p = d.partial("f").unwrap();
        p.append(b"abd").unwrap();
        assert!(matches!(d.finish(p, "f", Some(ABC)), Err(HubError::WrongDigest { .. })));
        assert!(!d.file("f").exists());
        assert!(d.partial("f").unwrap().is_empty());
    }

    #[test]
    fn a_file_changed_after_verification_is_noticed() {
        let (_t, d) = dir();
        let _lock = d.lock().unwrap();
        let mut p = d.partial("f").unwrap();
        p.append(b"abc").unwrap();
        d.finish(p, "f", Some(ABC)).unwrap();
        std::fs::write(d.file("f"), b"abcd").unwrap();
        assert!(matches!(d.is_verified("f", ABC), Err(HubError::WrongDigest { .. })));
    }

    #[test]
    fn truncate_goes_back_to_a_known_point() {
        let (_t, d) = dir();
        let _lock = d.lock().unwrap();
        let mut p = d.partial("f").unwrap();
        p.append(b"abXX").unwrap();
        p.truncate(2).unwrap();
        p.append(b"c").unwrap();
        d.finish(p, "f", Some(ABC)).unwrap();
    }

    #[test]
    fn the_lock_excludes_a_second_holder() {
        let (_t, d) = dir();
        let lock = d.lock().unwrap();
        let other = File::options().write(true).open(d.path().join(".lock")).unwrap();
        assert!(matches!(other.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
        drop(lock);
        assert!(other.try_lock().is_ok());
    }
}

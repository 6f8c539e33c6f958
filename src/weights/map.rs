//! Memory-mapped files, and small JSON files read whole.
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::LoadError;

/// Maps a regular, non-empty file for reading.
#[expect(unsafe_code)]
pub(crate) fn map_file(path: &Path) -> Result<Arc<Mmap>, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(LoadError::malformed(path, "not a regular file"));
    }
    if meta.len() == 0 {
        return Err(LoadError::malformed(path, "the file is empty; fetch it again"));
    }
    // SAFETY: the map is read-only and private to this process, and every access is bounds-checked against its length.
    // What remains is the contract of every mapped model: nobody truncates the file while it is served (wick's own cache
    // replaces files by renaming, which leaves the mapped inode alone).
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    Ok(Arc::new(map))
}

/// Tells the system that a part of a map is not needed for now: its pages leave memory and come back from the file if read again.
#[cfg_attr(unix, expect(unsafe_code))]
pub(crate) fn release(map: &Mmap, bytes: Range<usize>) {
    // SAFETY: the map is read-only and backed by a file, so that the pages that come back have the contents they had.
    #[cfg(unix)]
    unsafe {
        // Advice: nothing is lost if the system does not take it.
        let _ = map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, bytes.len());
    }
    #[cfg(not(unix))]
    let _ = (map, bytes);
}

/// Reads a JSON file of at most `max_bytes`.
pub(crate) fn read_json(path: &Path, max_bytes: u64) -> Result<serde_json::Value, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(io)?.len();
    if len > max_bytes {
        return Err(LoadError::malformed(
            path,
            format!("{len} bytes; wick reads at most {max_bytes} bytes of such a file"),
        ));
    }
    let bytes = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&bytes).map_err(|e| LoadError::malformed(path, format!("not valid JSON: {e}")))
}

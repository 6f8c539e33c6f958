//! GGUF (v2, v3, little-endian): header and metadata, read from a memory map.
//!
//! The layout is that of ggml's `docs/gguf.md`. The header is hostile input: every count, length and offset is checked against
//! what the file can still hold before anything is allocated for it, strings are stored without an allocation each, and the
//! header's length is bounded, so memory stays within a small factor of the header's size.
mod header;
mod source;
mod value;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::types::TypeInfo;
use super::{LoadError, MappedBytes};
pub(crate) use source::open;
pub(crate) use value::shortest;
pub use value::{GgufArray, GgufValue, Strings};

/// A tensor's place in a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// ggml's name (`blk.0.attn_q.weight`).
    pub name: String,
    /// Dimensions, slowest first: `[rows, cols]` (GGUF itself stores them the other way round).
    pub shape: Vec<usize>,
    pub(crate) ty: TypeInfo,
    /// From the start of the file, in bytes.
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl GgufTensor {
    /// ggml's name of the element type (`Q4_K`).
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        self.ty.name
    }

    /// Size in bytes.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.len
    }
}

/// An opened GGUF file: its metadata and the places of its tensors.
pub struct GgufFile {
    path: PathBuf,
    version: u32,
    map: Option<Arc<Mmap>>,
    metadata: BTreeMap<String, GgufValue>,
    tensors: Vec<GgufTensor>,
}

impl GgufFile {
    /// Maps the file and reads its header.
    ///
    /// # Errors
    /// `Io` if the file cannot be mapped; `Malformed` (with the field and the byte where it went wrong) or `UnknownType` if
    /// the header is not a sound GGUF header.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let map = super::map::map_file(path)?;
        let mut file = Self::from_bytes(&map, path)?;
        // A vocabulary is megabytes, and has been copied.
        super::map::release(&map, 0..file.tensors.iter().map(|t| t.start).min().unwrap_or(map.len()));
        file.map = Some(map);
        Ok(file)
    }

    /// Reads a header from the bytes of a whole file; tensor contents are checked for place and size, not read.
    /// `path` is for messages.
    ///
    /// # Errors
    /// As `open`.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, LoadError> {
        let header = header::parse(bytes).map_err(|e| match e {
            header::HeaderError::Malformed(reason) => LoadError::malformed(path, reason),
            header::HeaderError::UnknownType { name, found } => LoadError::UnknownType { name, found },
        })?;
        Ok(Self {
            path: path.to_owned(),
            version: header.version,
            map: None,
            metadata: header.metadata,
            tensors: header.tensors,
        })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// GGUF version, 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata, by key.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<String, GgufValue> {
        &self.metadata
    }

    /// All tensors, in the order of the header.
    #[must_use]
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The tensor ggml calls `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// The metadata value of `key`.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(key)
    }

    /// A string; `Ok(None)` if the key is absent.
    ///
    /// # Errors
    /// `Malformed`, naming the key, if the value has another type. So do all `get_…`.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.typed(key, "a string", GgufValue::as_str)
    }

    /// A non-negative integer of any width.
    ///
    /// # Errors
    /// See `get_str`.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, LoadError> {
        self.typed(key, "a non-negative integer", GgufValue::as_u64)
    }

    /// A token id.
    ///
    /// # Errors
    /// See `get_str`.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>, LoadError> {
        self.typed(key, "a 32-bit non-negative integer", |v| v.as_u64().and_then(|n| u32::try_from(n).ok()))
    }

    /// A float (f32 or f64) or an integer.
    ///
    /// # Errors
    /// See `get_str`.
    pub fn get_f64(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, "a number", GgufValue::as_f64)
    }

    /// A boolean.
    ///
    /// # Errors
    /// See `get_str`.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.typed(key, "a boolean", GgufValue::as_bool)
    }

    /// An array of strings (`tokenizer.ggml.tokens`, `…merges`).
    ///
    /// # Errors
    /// See `get_str`.
    pub fn get_strings(&self, key: &str) -> Result<Option<&Strings>, LoadError> {
        self.typed(key, "an array of strings", |v| match v {
            GgufValue::Array(GgufArray::Str(a)) => Some(a),
            _ => None,
        })
    }

    /// An array of f32 (`tokenizer.ggml.scores`).
    ///
    /// # Errors
    /// See `get_str`.
    pub fn get_f32s(&self, key: &str) -> Result<Option<&[f32]>, LoadError> {
        self.typed(key, "an array of f32", |v| match v {
            GgufValue::Array(GgufArray::F32(a)) => Some(a.as_slice()),
            _ => None,
        })
    }

    /// An array of i32 (`tokenizer.ggml.token_type`).
    ///
    /// # Errors
    /// See `get_str`.
    pub fn get_i32s(&self, key: &str) -> Result<Option<&[i32]>, LoadError> {
        self.typed(key, "an array of i32", |v| match v {
            GgufValue::Array(GgufArray::I32(a)) => Some(a.as_slice()),
            _ => None,
        })
    }

    /// `general.architecture`.
    ///
    /// # Errors
    /// `Malformed` if it is missing or no string.
    pub fn architecture(&self) -> Result<&str, LoadError> {
        self.get_str("general.architecture")?
            .ok_or_else(|| LoadError::malformed(&self.path, "metadata key `general.architecture` is missing"))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| {
            LoadError::malformed(
                &self.path,
                format!("metadata key `{key}` is {}, but must be {wanted}", value.type_name()),
            )
        })
    }

    /// The values of a small dense tensor.
    pub(crate) fn tensor_f32(&self, tensor: &GgufTensor) -> Result<Vec<f32>, LoadError> {
        let bytes = self.tensor_bytes(tensor);
        let values = bytes.as_ref().and_then(|b| super::store::to_f32(tensor.ty, b.as_slice()));
        values.ok_or_else(|| LoadError::UnknownType { name: tensor.name.clone(), found: tensor.ty.name.to_owned() })
    }

    /// The bytes of a tensor, borrowed from the map. `None` for a file read by `from_bytes`.
    pub(crate) fn tensor_bytes(&self, tensor: &GgufTensor) -> Option<MappedBytes> {
        let map = self.map.as_ref()?;
        Some(MappedBytes::File { map: Arc::clone(map), start: tensor.start, len: tensor.len })
    }
}

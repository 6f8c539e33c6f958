//! safetensors: one file, or shards listed in an index.
//!
//! The `safetensors` crate parses headers (contiguous offsets, sizes that fit their shapes, the file fully covered); what it
//! leaves open is checked here: the header's size, names given twice, offsets beyond the file (with which its sums overflow),
//! empty tensors, and the index.
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserializer as _, Error as _, IgnoredAny, MapAccess, Visitor};
use wick_kernels::QuantType;

use super::map::{map_file, read_json};
use super::store::{Convention, Entry, TensorStore};
use super::types::TypeInfo;
use super::{LoadError, MappedBytes, ModelFiles, WeightSource, names};
use crate::model::config::HfConfig;

/// Largest header read, in bytes: a thousand times that of a real shard.
const HEADER_BYTES_MAX: usize = 32 << 20;
/// Largest index read, in bytes.
const INDEX_BYTES_MAX: u64 = 32 << 20;
/// Largest rank of a tensor.
const RANK_MAX: usize = 8;

/// A tensor's place in a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafeTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub(crate) dtype: Dtype,
    /// From the start of the file, in bytes.
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl SafeTensor {
    /// Where its bytes are, from the start of the file.
    #[must_use]
    pub fn byte_range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// A tensor with its bytes.
pub(crate) struct Stored {
    pub(crate) tensor: SafeTensor,
    pub(crate) bytes: MappedBytes,
}

/// Reads the header of the safetensors file that `bytes` is the whole of; `path` is for messages.
///
/// # Errors
/// `Malformed` if the header is not sound.
pub fn parse_header(bytes: &[u8], path: &Path) -> Result<Vec<SafeTensor>, LoadError> {
    let bad = |reason: String| LoadError::malformed(path, reason);
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(bad(format!("not a safetensors file: only {} bytes", bytes.len())));
    };
    let header_len = match usize::try_from(u64::from_le_bytes(*length)) {
        Ok(n) if n <= HEADER_BYTES_MAX => n,
        _ => {
            return Err(bad(format!(
                "not a safetensors file: its header would have {} bytes, more than {HEADER_BYTES_MAX}",
                u64::from_le_bytes(*length)
            )));
        }
    };
    let data = 8 + header_len;
    let header = bytes.get(8..data).ok_or_else(|| {
        bad(format!("the file ends inside its header ({} of {data} bytes); fetch it again", bytes.len()))
    })?;
    let places = places(header).map_err(|e| bad(format!("its header is not sound: {e}")))?;
    if let Some(name) = places.twice {
        return Err(bad(format!("tensor `{name}` is there twice")));
    }
    if places.end > (bytes.len() - data) as u64 {
        return Err(bad(format!(
            "damaged or truncated safetensors file: its header speaks of {} bytes of data and {} are there; fetch it again",
            places.end,
            bytes.len() - data
        )));
    }
    let (_, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|e| bad(format!("damaged or truncated safetensors file ({e}); fetch it again")))?;
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        if info.shape.contains(&0) || info.shape.len() > RANK_MAX {
            return Err(bad(format!("tensor `{name}` has shape {:?}", info.shape)));
        }
        let (start, end) = info.data_offsets;
        let place = data.checked_add(start).zip(end.checked_sub(start)).filter(|_| end <= bytes.len() - data);
        let (start, len) = place.ok_or_else(|| bad(format!("tensor `{name}` reaches beyond the end of the file")))?;
        tensors.push(SafeTensor { name, shape: info.shape.clone(), dtype: info.dtype, start, len });
    }
    tensors.sort_by_key(|t| t.start);
    Ok(tensors)
}

/// What is looked at before the crate reads a header.
#[derive(Default)]
struct Places {
    /// The first key that is there twice (the crate would keep the last and say nothing).
    twice: Option<String>,
    /// The largest offset that any tensor names.
    end: u64,
}

/// Of a tensor's description, what is looked at.
#[derive(serde::Deserialize)]
struct Offsets {
    data_offsets: Option<(u64, u64)>,
}

/// Reads the keys and offsets of a header. What else is wrong with it, the crate says.
fn places(json: &[u8]) -> Result<Places, serde_json::Error> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = Places;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut seen = BTreeSet::new();
            let mut places = Places::default();
            while let Some(key) = map.next_key::<String>()? {
                if key == "__metadata__" {
                    map.next_value::<IgnoredAny>()?;
                } else if let Some((_, end)) = map.next_value::<Offsets>()?.data_offsets {
                    places.end = places.end.max(end);
                }
                if places.twice.is_none() && seen.contains(&key) {
                    places.twice = Some(key);
                } else {
                    seen.insert(key);
                }
            }
            Ok(places)
        }
    }
    let text = std::str::from_utf8(json).map_err(serde_json::Error::custom)?;
    serde_json::Deserializer::from_str(text).deserialize_map(Keys)
}

/// All tensors of a folder, by name, mapped.
pub(crate) fn read_folder(folder: &Path) -> Result<BTreeMap<String, Stored>, LoadError> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    let mut stored = BTreeMap::new();
    if single.is_file() {
        read_shard(&single, &mut stored)?;
        return Ok(stored);
    }
    if !index.is_file() {
        return Err(LoadError::malformed(folder, "neither model.safetensors nor model.safetensors.index.json is here"));
    }
    let wanted = read_index(&index)?;
    let shards: BTreeSet<&String> = wanted.values().collect();
    for shard in shards {
        let path = folder.join(shard);
        let held = read_shard(&path, &mut stored)?;
        for (tensor, _) in wanted.iter().filter(|(_, file)| *file == shard) {
            if !held.contains(tensor) {
                return Err(LoadError::malformed(
                    &path,
                    format!("lacks tensor `{tensor}`, which {} puts there", index.display()),
                ));
            }
        }
    }
    Ok(stored)
}

/// Adds one file's tensors; returns their names.
fn read_shard(path: &Path, stored: &mut BTreeMap<String, Stored>) -> Result<BTreeSet<String>, LoadError> {
    let map = map_file(path)?;
    let mut names = BTreeSet::new();
    for tensor in parse_header(&map, path)? {
        let bytes = MappedBytes::File { map: Arc::clone(&map), start: tensor.start, len: tensor.len };
        names.insert(tensor.name.clone());
        let name = tensor.name.clone();
        if stored.insert(name.clone(), Stored { tensor, bytes }).is_some() {
            return Err(LoadError::malformed(path, format!("tensor `{name}` is in another shard too")));
        }
    }
    Ok(names)
}

/// The index: tensor → shard. Shards are plain file names, beside the index.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, LoadError> {
    let json = read_json(path, INDEX_BYTES_MAX)?;
    let entries = json.get("weight_map").and_then(serde_json::Value::as_object);
    let entries = entries.ok_or_else(|| LoadError::malformed(path, "`weight_map` is missing or no object"))?;
    let mut wanted = BTreeMap::new();
    for (tensor, file) in entries {
        let plain = file.as_str().filter(|f| Path::new(f).file_name().is_some_and(|n| n == *f));
        let Some(file) = plain else {
            return Err(LoadError::malformed(
                path,
                format!("tensor `{tensor}` is said to be in {file}, which is no plain file name"),
            ));
        };
        wanted.insert(tensor.clone(), file.to_owned());
    }
    Ok(wanted)
}

const PREFIX: &str = "model.";
const EMBEDDING: &str = "model.embed_tokens.weight";
const OUTPUT: &str = "lm_head.weight";

/// Whether the output matrix is the embedding, as transformers decides it: if the configuration says so, unless the file
/// has both and they differ.
pub(crate) fn is_tied(configured: bool, stored: &BTreeMap<String, Stored>) -> bool {
    let same = |a: &Stored, b: &Stored| {
        (a.tensor.dtype, &a.tensor.shape) == (b.tensor.dtype, &b.tensor.shape)
            && a.bytes.as_slice() == b.bytes.as_slice()
    };
    let both = stored.get(EMBEDDING).zip(stored.get(OUTPUT));
    configured
        && both.is_none_or(|(embedding, output)| {
            let same = same(embedding, output);
            embedding.bytes.release_all();
            output.bytes.release_all();
            same
        })
}

/// Opens a folder of safetensors.
pub(crate) fn open(folder: &Path) -> Result<ModelFiles, LoadError> {
    let mut config = HfConfig::from_json(&folder.join("config.json"))?;
    let mut stored = with_prefix(read_folder(folder)?);
    config.tie_word_embeddings = is_tied(config.tie_word_embeddings, &stored);
    // One matrix under two names; like transformers, take it under the name that is there.
    if config.tie_word_embeddings
        && let Some(output) = stored.remove(OUTPUT)
    {
        stored.entry(EMBEDDING.to_owned()).or_insert(output);
    }
    let mut weights = store(stored, names::is_ignorable)?;
    if config.embedding.is_some() {
        weights = weights.without_output();
    }
    Ok(ModelFiles { config, weights: Box::new(weights), gguf: None })
}

/// The tensors under the names of a model with an output matrix: one saved without has no `model.` before them.
fn with_prefix(stored: BTreeMap<String, Stored>) -> BTreeMap<String, Stored> {
    let is_bare = EMBEDDING.strip_prefix(PREFIX).is_some_and(|bare| stored.contains_key(bare));
    if !is_bare || stored.contains_key(EMBEDDING) {
        return stored;
    }
    let named = |name: String| if name == OUTPUT { name } else { format!("{PREFIX}{name}") };
    stored.into_iter().map(|(name, tensor)| (named(name), tensor)).collect()
}

/// Opens the tensors of a folder of safetensors; those that the model has no use for are left out.
pub(crate) fn open_tensors(
    folder: &Path,
    is_unused: impl Fn(&str) -> bool,
) -> Result<Box<dyn WeightSource>, LoadError> {
    Ok(Box::new(store(read_folder(folder)?, is_unused)?))
}

fn store(stored: BTreeMap<String, Stored>, is_unused: impl Fn(&str) -> bool) -> Result<TensorStore, LoadError> {
    let mut entries = BTreeMap::new();
    for (name, Stored { tensor, bytes }) in stored {
        if is_unused(&name) {
            continue;
        }
        let ty = match tensor.dtype {
            Dtype::F32 => QuantType::F32,
            Dtype::F16 => QuantType::F16,
            Dtype::BF16 => QuantType::BF16,
            other => return Err(LoadError::UnknownType { name, found: format!("{other:?}") }),
        };
        entries.insert(name, Entry { ty: TypeInfo::of(ty), shape: tensor.shape, bytes, interleaved_heads: None });
    }
    Ok(TensorStore::new(entries, Convention::HuggingFace))
}

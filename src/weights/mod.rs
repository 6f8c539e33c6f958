//! Weight files as named tensors. Formats (GGUF, safetensors) end here: above, there are only `Matrix` and f32 vectors.
mod describe;
pub mod gguf;
mod map;
pub mod matrix;
mod names;
pub mod safetensors;
mod store;
mod types;

pub use describe::{Description, TypeBytes, describe};
pub(crate) use map::read_json;
pub use matrix::{MappedBytes, MappedMatrix, Matrix};
pub(crate) use safetensors::open_tensors;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use crate::model::config::HfConfig;
use crate::model::spec::NormWeight;

/// Why a model's files cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {reason}")]
    Malformed { path: PathBuf, reason: String },
    #[error("the model lacks tensor `{name}`")]
    MissingTensor { name: String },
    #[error("tensor `{name}` has shape {found:?}, but the configuration asks for {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("tensors that the model does not use: {}", names.join(", "))]
    LeftOver { names: Vec<String> },
    #[error("tensor `{name}` has type {found}, which wick does not load")]
    UnknownType { name: String, found: String },
    #[error("tensor `{name}` is asked for twice; that is a bug in wick, please report it")]
    TakenTwice { name: String },
    #[error("unknown architecture `{found}`; wick knows: {}", known.join(", "))]
    UnknownArchitecture { found: String, known: Vec<&'static str> },
    #[error("model configuration: {0}")]
    Config(String),
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl LoadError {
    pub(crate) fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), reason: reason.into() }
    }
}

/// A set of named tensors; names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), whatever the format.
/// Each tensor is taken at most once; `finish` reports what nobody took.
pub trait WeightSource: Send {
    /// Takes matrix `name`, `[rows (out), cols (in)]`, placed for `device`.
    ///
    /// # Errors
    /// `MissingTensor`, `Shape`, `TakenTwice`, or Candle's when the device has no memory left.
    fn matrix(&self, name: &str, rows: usize, cols: usize, device: &Device) -> Result<Matrix, LoadError>;
    /// Takes a vector as f32 `[len]` on `device` (biases).
    ///
    /// # Errors
    /// As `matrix`, and `UnknownType` for a vector in a block format.
    fn vector(&self, name: &str, len: usize, device: &Device) -> Result<Tensor, LoadError>;
    /// Takes a norm weight as the factor to multiply with: for `OnePlus` the stored weight plus one, unless the format has added it already (GGUF).
    ///
    /// # Errors
    /// As `vector`.
    fn norm(&self, name: &str, len: usize, kind: NormWeight, device: &Device) -> Result<Tensor, LoadError>;
    /// Whether there is such a tensor, taken or not.
    fn contains(&self, name: &str) -> bool;
    /// The weights' share of the memory plan; `packed`: matrices are packed for products as they are loaded.
    fn memory(&self, packed: bool) -> WeightMemory;
    /// Ends the taking.
    ///
    /// # Errors
    /// `LeftOver` with the names of the tensors nobody took (known non-weights such as rope frequencies excepted).
    fn finish(&self) -> Result<(), LoadError>;
}

/// The memory that weights take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightMemory {
    /// All of it.
    pub bytes: u64,
    pub form: WeightForm,
}

/// In which form weights are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightForm {
    /// Read from the mapped file. `copied`: bytes of tensors that are copied to be put in order, and so count twice.
    Mapped { copied: u64 },
    /// Packed; the file's pages are given back.
    Packed,
}

/// An opened model: its configuration and its weights.
pub struct ModelFiles {
    pub config: HfConfig,
    pub weights: Box<dyn WeightSource>,
    /// The GGUF file, if it is one: its header has the tokenizer too, and takes as much memory.
    pub gguf: Option<gguf::GgufFile>,
}

/// Opens a model: a GGUF file, a folder with `config.json` and safetensors, or a folder with exactly one GGUF file.
/// Weights are mapped, not read; `config.tie_word_embeddings` says what the file holds (an output matrix or none).
///
/// # Errors
/// `Malformed` if there is no model at `path`, else whatever the format's reader or the configuration reports.
pub fn open(path: &Path) -> Result<ModelFiles, LoadError> {
    match locate(path)? {
        Located::Gguf(file) => gguf::open(&file),
        Located::Safetensors(folder) => safetensors::open(&folder),
    }
}

/// What kind of model lies at a path.
pub(crate) enum Located {
    Gguf(PathBuf),
    /// The folder.
    Safetensors(PathBuf),
}

pub(crate) fn locate(path: &Path) -> Result<Located, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(io)?.is_dir() {
        if path.extension().is_some_and(|e| e == "safetensors" || e == "json") {
            return Err(LoadError::malformed(
                path,
                "give the folder that holds the safetensors and config.json, not one of its files",
            ));
        }
        return Ok(Located::Gguf(path.to_owned()));
    }
    if path.join("config.json").is_file() {
        return Ok(Located::Safetensors(path.to_owned()));
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if file.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            files.push(file);
        }
    }
    files.sort();
    match files.as_slice() {
        [one] => Ok(Located::Gguf(one.clone())),
        [] => Err(LoadError::malformed(path, "no model here: neither config.json nor a .gguf file")),
        many => {
            let names: Vec<_> = many.iter().filter_map(|f| f.file_name()).map(|n| n.to_string_lossy()).collect();
            Err(LoadError::malformed(
                path,
                format!("{} GGUF files ({}); name one of them", many.len(), names.join(", ")),
            ))
        }
    }
}

//! What `wick inspect` shows of a model, servable or not.
use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::gguf::GgufFile;
use super::{LoadError, Located, locate, safetensors};
use crate::model::config::HfConfig;
use crate::model::registry;
use crate::model::spec::DecoderSpec;

/// A model's files, described.
#[derive(Debug, Clone, Serialize)]
pub struct Description {
    /// `GGUF v3` or `safetensors`.
    pub format: String,
    /// The file's own name for its architecture.
    pub architecture: String,
    pub tensor_count: usize,
    /// Bytes of all tensors.
    pub total_bytes: u64,
    /// By type, most bytes first.
    pub types: Vec<TypeBytes>,
    /// GGUF metadata or the fields of config.json; long strings and arrays are abbreviated.
    pub metadata: BTreeMap<String, Value>,
    pub tensors: Vec<TensorLine>,
    /// The normalised configuration; `None` if wick cannot serve the model.
    pub config: Option<HfConfig>,
    /// What wick would run; `None` if wick cannot serve the model.
    pub spec: Option<DecoderSpec>,
    /// Why wick cannot serve the model.
    pub problem: Option<String>,
}

/// How much of a model has one type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TypeBytes {
    /// `Q4_K`, `BF16` …
    #[serde(rename = "type")]
    pub ty: String,
    pub tensors: usize,
    pub bytes: u64,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorLine {
    /// As the file names it.
    pub name: String,
    #[serde(rename = "type")]
    pub ty: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    pub bytes: u64,
}

/// Describes the model at `path` (a GGUF file or a folder, as for `open`). A model of an architecture that wick does not
/// know is described too; `problem` then says so.
///
/// # Errors
/// If the files themselves cannot be read or are damaged.
pub fn describe(path: &Path) -> Result<Description, LoadError> {
    match locate(path)? {
        Located::Gguf(file) => describe_gguf(&file),
        Located::Safetensors(folder) => describe_safetensors(&folder),
    }
}

fn describe_gguf(path: &Path) -> Result<Description, LoadError> {
    let file = GgufFile::open(path)?;
    let tensors = file.tensors().iter().map(|t| TensorLine {
        name: t.name.clone(),
        ty: t.type_name().to_owned(),
        shape: t.shape.clone(),
        bytes: t.byte_len() as u64,
    });
    Ok(assemble(
        format!("GGUF v{}", file.version()),
        file.architecture()?.to_owned(),
        tensors.collect(),
        file.entries().iter().map(|(k, v)| (k.clone(), v.summary())).collect(),
        HfConfig::from_gguf(&file),
    ))
}

fn describe_safetensors(folder: &Path) -> Result<Description, LoadError> {
    let json = folder.join("config.json");
    let metadata = match super::read_json(&json, crate::model::config::CONFIG_BYTES_MAX)? {
        Value::Object(fields) => fields.into_iter().collect::<BTreeMap<_, _>>(),
        _ => return Err(LoadError::malformed(&json, "not a JSON object")),
    };
    let stored = safetensors::read_folder(folder)?;
    let config = HfConfig::from_json(&json).map(|mut c| {
        c.tie_word_embeddings = safetensors::is_tied(c.tie_word_embeddings, &stored);
        c
    });
    let tensors = stored.into_values().map(|s| TensorLine {
        name: s.tensor.name,
        ty: format!("{:?}", s.tensor.dtype),
        shape: s.tensor.shape,
        bytes: s.tensor.len as u64,
    });
    let architecture = metadata.get("model_type").and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let tensors: Vec<_> = tensors.collect();
    Ok(assemble("safetensors".to_owned(), architecture, tensors, metadata, config))
}

fn assemble(
    format: String,
    architecture: String,
    tensors: Vec<TensorLine>,
    metadata: BTreeMap<String, Value>,
    config: Result<HfConfig, LoadError>,
) -> Description {
    let mut by_type: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for t in &tensors {
        let sum = by_type.entry(&t.ty).or_default();
        *sum = (sum.0 + 1, sum.1 + t.bytes);
    }
    let mut types: Vec<_> =
        by_type.into_iter().map(|(ty, (tensors, bytes))| TypeBytes { ty: ty.to_owned(), tensors, bytes }).collect();
    types.sort_by_key(|t| std::cmp::Reverse(t.bytes));
    let served = config.and_then(|c| registry::spec(&c).map(|s| (c, s)));
    let (config, spec, problem) = match served {
        Ok((config, spec)) => (Some(config), Some(spec), None),
        Err(e) => (None, None, Some(e.to_string())),
    };
    Description {
        format,
        architecture,
        tensor_count: tensors.len(),
        total_bytes: tensors.iter().map(|t| t.bytes).sum(),
        types,
        metadata,
        tensors,
        config,
        spec,
        problem,
    }
}

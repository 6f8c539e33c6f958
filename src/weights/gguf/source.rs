//! A GGUF file as a model: tensors under Hugging Face names, llama's rope rows put back in order.
use std::collections::BTreeMap;
use std::path::Path;

use super::GgufFile;
use crate::model::config::HfConfig;
use crate::weights::store::{Convention, Entry, TensorStore};
use crate::weights::{LoadError, ModelFiles, names};

/// Per-dimension factors of Llama 3's rope scaling: configuration stored as a tensor (`HfConfig::from_gguf` reads it).
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Opens a GGUF model.
pub(crate) fn open(path: &Path) -> Result<ModelFiles, LoadError> {
    let file = GgufFile::open(path)?;
    let config = HfConfig::from_gguf(&file)?;
    let architecture = file.architecture()?;
    let gemma = architecture == "gemma3";
    let interleaved = architecture == "llama";

    let mut entries = BTreeMap::new();
    for tensor in file.tensors() {
        if interleaved && tensor.name == ROPE_FACTORS {
            continue;
        }
        // A name wick does not know stays as it is: `finish` reports it.
        let name = names::to_hf(&tensor.name, gemma).unwrap_or_else(|| tensor.name.clone());
        let heads = if !interleaved {
            None
        } else if name.contains(".self_attn.q_proj.") {
            Some(config.num_attention_heads)
        } else if name.contains(".self_attn.k_proj.") {
            Some(config.num_key_value_heads)
        } else {
            None
        };
        let rows = heads.map(|h| h * config.head_dim);
        if rows.is_some_and(|r| tensor.shape.first() != Some(&r)) {
            let mut expected = tensor.shape.clone();
            expected.splice(..1, rows);
            return Err(LoadError::Shape { name: tensor.name.clone(), found: tensor.shape.clone(), expected });
        }
        let bytes = file.tensor_bytes(tensor).expect("a file from `open` without a map is a bug");
        let entry = Entry { ty: tensor.ty, shape: tensor.shape.clone(), bytes, interleaved_heads: heads };
        if entries.insert(name.clone(), entry).is_some() {
            return Err(LoadError::malformed(path, format!("two tensors mean `{name}`")));
        }
    }
    let mut weights = TensorStore::new(entries, Convention::Ggml { gemma });
    if config.embedding.is_some() {
        weights = weights.without_output();
    }
    Ok(ModelFiles { config, weights: Box::new(weights), gguf: Some(file) })
}

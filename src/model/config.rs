//! A model's configuration, normalised once from config.json or GGUF metadata. Below this, nobody reads raw JSON.
mod gguf;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::embedding::{self, EmbeddingSpec};
use crate::weights::LoadError;

/// Largest `config.json` read, in bytes.
pub(crate) const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Bounds on sizes: far above any model, low enough that products of them fit in a `usize`.
const WIDTH_MAX: usize = 1 << 20;
const HEADS_MAX: usize = 1 << 12;
const HEAD_DIM_MAX: usize = 1 << 12;
const LAYERS_MAX: usize = 1 << 10;
const VOCAB_MAX: usize = 1 << 24;
const CONTEXT_MAX: usize = 1 << 30;

/// `config.json` as Hugging Face writes it; GGUF metadata is translated into the same fields.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct HfConfig {
    /// `model_type`: `llama`, `mistral`, `qwen2`, `qwen3`, `gemma3_text`.
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    /// As the file has it: false when it holds an output matrix, whatever config.json says (`weights::open` sets this).
    pub tie_word_embeddings: bool,
    /// How the rows become a vector, of a model that embeds.
    pub embedding: Option<EmbeddingSpec>,
    /// Tokens of the longest input, where files beside config.json set a bound.
    pub input_max: Option<usize>,
    /// Everything else, by its config.json name (rope parameters, windows, biases …).
    pub extra: BTreeMap<String, Value>,
}

impl HfConfig {
    /// Reads and checks a `config.json`, and what lies beside it in the folder of a model that embeds.
    ///
    /// # Errors
    /// `Io` or `Malformed` if the file is not readable JSON, `UnknownArchitecture` if wick has no such `model_type`,
    /// `Config` naming the key that is missing, of the wrong type or out of range.
    pub fn from_json(path: &Path) -> Result<Self, LoadError> {
        match crate::weights::read_json(path, CONFIG_BYTES_MAX)? {
            Value::Object(fields) => {
                let mut config = Self::from_fields(fields.into_iter().collect())?;
                if let Some(folder) = path.parent()
                    && let Some(embedding) = embedding::read_modules(folder, config.hidden_size)?
                {
                    config.embedding = Some(embedding);
                    config.input_max = Some(embedding::tokens_max(folder, config.max_position_embeddings)?);
                }
                Ok(config)
            }
            _ => Err(LoadError::malformed(path, "not a JSON object")),
        }
    }

    /// From the fields of a config.json object.
    pub(crate) fn from_fields(fields: BTreeMap<String, Value>) -> Result<Self, LoadError> {
        // Until the end, `extra` holds every field: the typed getters read from it.
        let mut c = Self { extra: fields, ..Self::default() };
        c.model_type = c.str("model_type")?.ok_or_else(|| missing("model_type"))?.to_owned();
        // Before anything else, so that a foreign configuration is called foreign rather than incomplete.
        super::registry::find(&c.model_type)?;
        c.hidden_size = c.required("hidden_size")?;
        c.intermediate_size = c.required("intermediate_size")?;
        c.num_hidden_layers = c.required("num_hidden_layers")?;
        c.num_attention_heads = c.required("num_attention_heads")?;
        c.num_key_value_heads = c.usize("num_key_value_heads")?.unwrap_or(c.num_attention_heads);
        c.vocab_size = c.required("vocab_size")?;
        c.max_position_embeddings = c.required("max_position_embeddings")?;
        c.rms_norm_eps = c.f64("rms_norm_eps")?.ok_or_else(|| missing("rms_norm_eps"))?;
        c.head_dim = match c.usize("head_dim")? {
            Some(d) => d,
            None if c.num_attention_heads > 0 && c.hidden_size.is_multiple_of(c.num_attention_heads) => {
                c.hidden_size / c.num_attention_heads
            }
            None => {
                return Err(bad(
                    "num_attention_heads",
                    &format!("is {}, which does not divide hidden_size {}", c.num_attention_heads, c.hidden_size),
                ));
            }
        };
        // transformers leaves the key out when it has the class's default: true for Gemma, false for the others.
        c.tie_word_embeddings = c.bool("tie_word_embeddings")?.unwrap_or(c.model_type == "gemma3_text");
        for key in [
            "model_type",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "max_position_embeddings",
            "rms_norm_eps",
            "tie_word_embeddings",
        ] {
            c.extra.remove(key);
        }
        c.validate()?;
        Ok(c)
    }

    /// Checks what every architecture relies on.
    fn validate(&self) -> Result<(), LoadError> {
        for (key, value, max) in [
            ("hidden_size", self.hidden_size, WIDTH_MAX),
            ("intermediate_size", self.intermediate_size, WIDTH_MAX),
            ("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX),
            ("num_attention_heads", self.num_attention_heads, HEADS_MAX),
            ("num_key_value_heads", self.num_key_value_heads, HEADS_MAX),
            ("head_dim", self.head_dim, HEAD_DIM_MAX),
            ("vocab_size", self.vocab_size, VOCAB_MAX),
            ("max_position_embeddings", self.max_position_embeddings, CONTEXT_MAX),
        ] {
            if value == 0 || value > max {
                return Err(bad(key, &format!("is {value}, but must be from 1 to {max}")));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(bad(
                "num_key_value_heads",
                &format!(
                    "is {}, which does not divide num_attention_heads {}",
                    self.num_key_value_heads, self.num_attention_heads
                ),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(bad("head_dim", &format!("is {}, but rope needs an even number", self.head_dim)));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(bad("rms_norm_eps", &format!("is {}, but must be between 0 and 1", self.rms_norm_eps)));
        }
        Ok(())
    }

    /// A field that is there and not null.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.extra.get(key).filter(|v| !v.is_null())
    }

    /// Whether the key is there, be it null.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.extra.contains_key(key)
    }

    /// A number.
    ///
    /// # Errors
    /// `Config` naming the key if it has another type. So do all typed getters; null counts as absent.
    pub fn f64(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A non-negative integer.
    ///
    /// # Errors
    /// See `f64`.
    pub fn usize(&self, key: &str) -> Result<Option<usize>, LoadError> {
        self.typed(key, "a non-negative integer", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// A boolean.
    ///
    /// # Errors
    /// See `f64`.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string.
    ///
    /// # Errors
    /// See `f64`.
    pub fn str(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A list of strings.
    ///
    /// # Errors
    /// See `f64`.
    pub fn strs(&self, key: &str) -> Result<Option<Vec<&str>>, LoadError> {
        self.typed(key, "a list of strings", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    fn required(&self, key: &str) -> Result<usize, LoadError> {
        self.usize(key)?.ok_or_else(|| missing(key))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| bad(key, &format!("is {}, but must be {wanted}", shown(value))))
    }
}

/// An error about one key.
pub(crate) fn bad(key: &str, what: &str) -> LoadError {
    LoadError::Config(format!("`{key}` {what}"))
}

/// A value for a message: its beginning if it is long.
pub(crate) fn shown(value: &Value) -> String {
    const SHOWN_CHARS: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= SHOWN_CHARS {
        text
    } else {
        text.chars().take(SHOWN_CHARS).chain("…".chars()).collect()
    }
}

fn missing(key: &str) -> LoadError {
    LoadError::Config(format!("`{key}` is missing"))
}

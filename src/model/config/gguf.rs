//! GGUF metadata → the fields of config.json.
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{HfConfig, bad};
use crate::model::embedding::{EmbeddingSpec, Pooling};
use crate::model::{arch, registry};
use crate::weights::LoadError;
use crate::weights::gguf::{GgufFile, GgufTensor, shortest};

/// Metadata that says nothing about what the model computes.
const DESCRIPTIVE: [&str; 4] =
    ["vocab_size", "rope.scaling.finetuned", "attention.value_length", "rope.scaling.original_context_length"];

/// Metadata keys (after `ARCH.`) that are translated, and their config.json names.
const TRANSLATED: [(&str, &str); 10] = [
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("context_length", "max_position_embeddings"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("rope.freq_base", "rope_theta"),
    ("attention.sliding_window", "sliding_window"),
];

/// Metadata keys with a rule of their own below.
const OTHERS: [&str; 11] = [
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "rope.freq_base_swa",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "expert_count",
    "attention.causal",
    "pooling_type",
];

impl HfConfig {
    /// Translates and checks the metadata of a GGUF file. What GGUF leaves to the tensors (biases, a tied output matrix, the
    /// vocabulary's size, Llama 3's rope factors) is read from them.
    ///
    /// # Errors
    /// `UnknownArchitecture`, `Malformed` naming a metadata key of the wrong type, `Config` naming the key that is missing,
    /// out of range or has no meaning for wick.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        let found = file.architecture()?;
        let architecture = registry::find_gguf(found)?;
        let key = |k: &str| format!("{found}.{k}");
        refuse(file, found)?;

        let mut fields = BTreeMap::from([("model_type".to_owned(), json!(architecture.model_type))]);
        for (gguf, hf) in TRANSLATED {
            if let Some(value) = number(file, &key(gguf))? {
                fields.insert(hf.to_owned(), value);
            }
        }
        for (gguf, hf) in [
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ] {
            if let Some(value) = number(file, &key(gguf))? {
                fields.insert(hf.to_owned(), value);
            }
        }
        if let Some(value) = number(file, &key("attention.sliding_window_pattern"))? {
            fields.insert("sliding_window_pattern".to_owned(), value);
        }
        if let Some(value) = number(file, &key("rope.freq_base_swa"))? {
            fields.insert("rope_local_base_freq".to_owned(), value);
        }
        if let Some(scaling) = rope_scaling(file, found)? {
            fields.insert("rope_scaling".to_owned(), scaling);
        }
        if found == "llama" && fields.contains_key("sliding_window") {
            // ggml has no name for Mistral: a llama with windows.
            fields.insert("model_type".to_owned(), json!("mistral"));
        }
        let embedding = file
            .tensor("token_embd.weight")
            .ok_or_else(|| LoadError::MissingTensor { name: "token_embd.weight".to_owned() })?;
        fields.insert("vocab_size".to_owned(), json!(embedding.shape[0]));
        fields.insert("tie_word_embeddings".to_owned(), json!(file.tensor("output.weight").is_none()));
        for (tensor, field) in [
            ("blk.0.attn_q.bias", "attention_bias"),
            ("blk.0.attn_output.bias", "attention_out_bias"),
            ("blk.0.ffn_gate.bias", "mlp_bias"),
        ] {
            fields.insert(field.to_owned(), json!(file.tensor(tensor).is_some()));
        }
        fields.insert("hidden_act".to_owned(), json!(architecture.gguf_act));

        let mut config = Self::from_fields(fields)?;
        config.embedding = pooled(file, &key("pooling_type"))?;
        for k in ["rope.dimension_count", "attention.value_length"] {
            if let Some(n) = file.get_u64(&key(k))?
                && n != config.head_dim as u64
            {
                return Err(bad(&key(k), &format!("is {n}, but wick needs the head size {}", config.head_dim)));
            }
        }
        if found == "gemma3" {
            config.extra.insert("query_pre_attn_scalar".to_owned(), json!(arch::gemma3::gguf_query_scalar(&config)));
        }
        if found == "llama"
            && let Some(tensor) = file.tensor("rope_freqs.weight")
        {
            let factors = rope_factors(file, tensor, config.head_dim / 2)?;
            config.extra.insert("rope_freq_factors".to_owned(), json!(factors));
        }
        Ok(config)
    }
}

/// Refuses what would make the model compute something else than wick does, and says which keys it does not know.
fn refuse(file: &GgufFile, arch: &str) -> Result<(), LoadError> {
    if file.get_u64("split.count")?.is_some_and(|n| n > 1) {
        return Err(LoadError::malformed(
            file.path(),
            "one part of a split GGUF model; join the parts with `llama-gguf-split --merge` first",
        ));
    }
    if let Some(n) = file.get_u64(&format!("{arch}.expert_count"))?
        && n > 0
    {
        return Err(bad(
            &format!("{arch}.expert_count"),
            &format!("is {n}: a mixture of experts; wick runs dense models"),
        ));
    }
    if file.get_bool(&format!("{arch}.attention.causal"))? == Some(false) {
        return Err(bad(&format!("{arch}.attention.causal"), "is false: an encoder; wick runs decoders"));
    }
    let prefix = format!("{arch}.");
    for name in file.entries().keys().filter_map(|k| k.strip_prefix(&prefix)) {
        let known = DESCRIPTIVE.contains(&name) || OTHERS.contains(&name) || TRANSLATED.iter().any(|(g, _)| *g == name);
        if !known {
            tracing::warn!(file = %file.path().display(), "metadata key `{prefix}{name}` is unknown to wick and has no effect");
        }
    }
    Ok(())
}

/// How a model that embeds pools its rows, by llama.cpp's numbers; `None`: the model generates. Vectors are scaled to length 1, as
/// llama.cpp does it for every model.
fn pooled(file: &GgufFile, key: &str) -> Result<Option<EmbeddingSpec>, LoadError> {
    let pooling = match file.get_u64(key)? {
        None | Some(0) => return Ok(None),
        Some(1) => Pooling::Mean,
        Some(2) => Pooling::Cls,
        Some(3) => Pooling::Last,
        Some(4) => return Err(bad(key, "is 4: the model ranks; wick's rerankers are encoders")),
        Some(other) => return Err(bad(key, &format!("is {other}; wick knows 0 to 3: none, mean, cls, last"))),
    };
    Ok(Some(EmbeddingSpec { pooling, normalize: true }))
}

/// `rope.scaling.*`, or the older `rope.scale_linear`, as a `rope_scaling` object.
fn rope_scaling(file: &GgufFile, arch: &str) -> Result<Option<Value>, LoadError> {
    let factor = file.get_f64(&format!("{arch}.rope.scaling.factor"))?;
    let linear = file.get_f64(&format!("{arch}.rope.scale_linear"))?;
    Ok(match file.get_str(&format!("{arch}.rope.scaling.type"))? {
        Some("none") => None,
        Some(kind) => Some(json!({ "rope_type": kind, "factor": factor })),
        // llama.cpp reads a factor without a type as linear.
        None => factor.or(linear).map(|f| json!({ "rope_type": "linear", "factor": f })),
    })
}

/// An integer or float as JSON; floats in their shortest form, so that 1e-6 stays 1e-6.
fn number(file: &GgufFile, key: &str) -> Result<Option<Value>, LoadError> {
    use crate::weights::gguf::GgufValue;
    Ok(match file.metadata(key) {
        Some(GgufValue::F32(v)) if v.is_finite() => Some(json!(shortest(*v))),
        Some(GgufValue::F32(v)) => return Err(bad(key, &format!("is {v}"))),
        Some(value) if value.as_array().is_some() => {
            return Err(bad(key, "differs from layer to layer, which no architecture of wick's has"));
        }
        Some(value) if value.as_u64().is_some() => Some(json!(value.as_u64())),
        _ => match file.get_f64(key)? {
            Some(v) if !v.is_finite() => return Err(bad(key, &format!("is {v}"))),
            v => v.map(|v| json!(v)),
        },
    })
}

/// Llama 3's factors: frequency `i` is divided by factor `i`.
fn rope_factors(file: &GgufFile, tensor: &GgufTensor, len: usize) -> Result<Vec<f32>, LoadError> {
    if tensor.shape != [len] {
        return Err(LoadError::Shape { name: tensor.name.clone(), found: tensor.shape.clone(), expected: vec![len] });
    }
    let values = file.tensor_f32(tensor)?;
    match values.iter().find(|f| !(f.is_finite() && **f > 0.0)) {
        Some(f) => Err(bad(&tensor.name, &format!("holds {f}; factors are positive"))),
        None => Ok(values),
    }
}

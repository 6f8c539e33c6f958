//! Gemma 3, text only (`Gemma3ForCausalLM`; the files with images wrap it under other tensor names).
//!
//! Differs from Llama:
//! - norms multiply with 1 + weight, and stand before *and* after attention and feed-forward;
//! - q and k are normed per head before rope;
//! - token embeddings are scaled by √hidden;
//! - five layers with a sliding window and a local rope base (10,000) alternate with one that sees everything and has the
//!   global base (1,000,000, divided linearly by 8 in the larger models);
//! - attention is scaled by `query_pre_attn_scalar`, not by the head size;
//! - GELU (tanh form), a tied output matrix, room for soft caps (null in all published models).
use serde_json::Value;

use super::rope::{self, RopeParameters};
use super::{attention_bias, dense, norm, rsqrt, set_windows};
use crate::model::config::{HfConfig, bad};
use crate::model::spec::{DecoderSpec, NormPlacement, NormWeight, RopeSpec};
use crate::weights::LoadError;

const GLOBAL_THETA: f64 = 1_000_000.0;
const LOCAL_THETA: f64 = 10_000.0;
/// Every sixth layer is global.
const PATTERN: usize = 6;
/// `query_pre_attn_scalar` where the configuration has none.
const QUERY_SCALAR: f64 = 256.0;
/// Layers of the 27B model, the only one whose attention scale is not that of its head size.
const LAYERS_27B: usize = 62;

/// The specification of a Gemma 3.
///
/// # Errors
/// `Config` for rope types and activations that wick does not compute, and for a missing window.
pub fn spec(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    // The wiring without rope, which Gemma spells in ways of its own.
    let mut plain = config.clone();
    for key in ["rope_parameters", "rope_scaling", "rope_theta"] {
        plain.extra.remove(key);
    }
    let mut spec = dense(&plain)?;
    spec.embed_scale = sqrt(config.hidden_size);
    spec.final_norm = norm(config, NormWeight::OnePlus);
    spec.final_softcap = softcap(config, "final_logit_softcapping")?;

    let pattern = config.usize("sliding_window_pattern")?.unwrap_or(PATTERN);
    if pattern == 0 {
        return Err(bad("sliding_window_pattern", "is 0"));
    }
    let window = config.usize("sliding_window")?.ok_or_else(|| bad("sliding_window", "is missing"))?;
    set_windows(config, &mut spec.layers, window, |i| !(i + 1).is_multiple_of(pattern))?;

    let (global, local) = ropes(config)?;
    let (bias, scale) = (attention_bias(config)?, rsqrt(query_scalar(config)?));
    let attn_softcap = softcap(config, "attn_logit_softcapping")?;
    for layer in &mut spec.layers {
        layer.norms = NormPlacement::Sandwich;
        layer.norm = norm(config, NormWeight::OnePlus);
        layer.attn.qk_norm = Some(norm(config, NormWeight::OnePlus));
        layer.attn.bias = bias;
        layer.attn.scale = scale;
        layer.attn.softcap = attn_softcap;
        layer.attn.rope = if layer.attn.window.is_some() { local.clone() } else { global.clone() };
    }
    Ok(spec)
}

/// The global and the local rope: `rope_parameters` by layer type (transformers 5), else `rope_theta` with `rope_scaling`, and
/// `rope_local_base_freq`.
fn ropes(config: &HfConfig) -> Result<(RopeSpec, RopeSpec), LoadError> {
    let global_theta = config.f64("rope_theta")?.unwrap_or(GLOBAL_THETA);
    let local_theta = config.f64("rope_local_base_freq")?.unwrap_or(LOCAL_THETA);
    let nested = config.value("rope_parameters");
    if nested.is_some_and(|n| n.get("full_attention").is_none() && n.get("sliding_attention").is_none()) {
        return Err(bad("rope_parameters", "has neither full_attention nor sliding_attention"));
    }
    let part = |name: &str| nested.and_then(|n| n.get(name)).filter(|v| !v.is_null());
    let read = |key: &str, object: Option<&Value>, theta| match object {
        Some(object) => RopeParameters::from_object(config, key, object, theta),
        None => RopeParameters::plain(theta),
    };
    let scaling = config.value("rope_scaling").filter(|_| nested.is_none());
    let global = read("rope_parameters.full_attention", part("full_attention").or(scaling), global_theta)?;
    let local = read("rope_parameters.sliding_attention", part("sliding_attention"), local_theta)?;
    Ok((rope::spec(config, &global)?, rope::spec(config, &local)?))
}

/// What attention's scale is the inverse root of.
fn query_scalar(config: &HfConfig) -> Result<f64, LoadError> {
    match config.f64("query_pre_attn_scalar")?.unwrap_or(QUERY_SCALAR) {
        n if n.is_finite() && n > 0.0 => Ok(n),
        n => Err(bad("query_pre_attn_scalar", &format!("is {n}, but must be positive"))),
    }
}

/// The scalar of a GGUF file, which does not store it: llama.cpp tells the 27B model, whose scale is not that of its head
/// size, by its number of layers, and so does this.
pub(crate) fn gguf_query_scalar(config: &HfConfig) -> usize {
    if config.num_hidden_layers == LAYERS_27B {
        config.hidden_size / config.num_attention_heads
    } else {
        config.head_dim
    }
}

#[expect(clippy::cast_possible_truncation)]
fn softcap(config: &HfConfig, key: &str) -> Result<Option<f32>, LoadError> {
    match config.f64(key)? {
        Some(cap) if !(cap > 0.0 && cap.is_finite()) => Err(bad(key, &format!("is {cap}, but must be positive"))),
        cap => Ok(cap.map(|c| c as f32)),
    }
}

/// transformers takes the root as a double and casts it to the embedding's type: f32 in the reference.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
fn sqrt(n: usize) -> f32 {
    (n as f64).sqrt() as f32
}

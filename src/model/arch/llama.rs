//! Llama 2 and 3.x (`SmolLM2` is such a model).
//!
//! This is the wiring the other architectures are compared with: RMS norms before attention and feed-forward, grouped-query
//! attention with rope on whole heads, a SiLU-gated feed-forward. `attention_bias` puts a bias on all four projections,
//! `mlp_bias` on all three. Llama 3.1 and later scale the rope frequencies.
use super::{attention_bias, dense};
use crate::model::config::HfConfig;
use crate::model::spec::DecoderSpec;
use crate::weights::LoadError;

/// The specification of a Llama.
///
/// # Errors
/// `Config` for rope types and activations that wick does not compute.
pub fn spec(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let mut spec = dense(config)?;
    let bias = attention_bias(config)?;
    for layer in &mut spec.layers {
        layer.attn.bias = bias;
    }
    Ok(spec)
}

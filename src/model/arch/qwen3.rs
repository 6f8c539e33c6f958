//! Qwen3, dense.
//!
//! Differs from Llama: an RMS norm on each head of q and k before rope, and a head size of its own (`head_dim`, not
//! hidden / heads). Differs from Qwen2: no biases unless `attention_bias` says so (then on all four projections).
use super::{attention_bias, dense, norm, qwen2};
use crate::model::config::HfConfig;
use crate::model::spec::{DecoderSpec, NormWeight};
use crate::weights::LoadError;

/// The specification of a Qwen3.
///
/// # Errors
/// `Config` for rope types and activations that wick does not compute, and for windows without a size.
pub fn spec(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let mut spec = dense(config)?;
    let bias = attention_bias(config)?;
    for layer in &mut spec.layers {
        layer.attn.bias = bias;
        layer.attn.qk_norm = Some(norm(config, NormWeight::Plain));
    }
    qwen2::windows(config, &mut spec)?;
    Ok(spec)
}

//! Qwen2 and Qwen2.5 (Coder, Math …), dense.
//!
//! Differs from Llama: q, k and v have a bias, the output projection has none. With `use_sliding_window`, the layers from
//! `max_window_layers` on have a window; every published model switches it off, and GGUF does not store it.
use super::{dense, set_windows};
use crate::model::config::{HfConfig, bad};
use crate::model::spec::{AttnBias, DecoderSpec};
use crate::weights::LoadError;

/// `sliding_window` of transformers' `Qwen2Config` and `Qwen3Config`.
const WINDOW_DEFAULT: usize = 4096;

/// The specification of a Qwen2.
///
/// # Errors
/// `Config` for rope types and activations that wick does not compute, and for windows without a size.
pub fn spec(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let mut spec = dense(config)?;
    for layer in &mut spec.layers {
        layer.attn.bias = AttnBias::Qkv;
    }
    windows(config, &mut spec)?;
    Ok(spec)
}

/// The windows of Qwen2 and Qwen3.
pub(super) fn windows(config: &HfConfig, spec: &mut DecoderSpec) -> Result<(), LoadError> {
    if config.bool("use_sliding_window")? != Some(true) {
        return Ok(());
    }
    // Explicitly null, it is no window; left out, it is transformers' default.
    let window = match config.usize("sliding_window")? {
        Some(window) => window,
        None if config.has("sliding_window") => return Ok(()),
        None => WINDOW_DEFAULT,
    };
    let first = match (config.usize("max_window_layers")?, config.value("layer_types")) {
        (Some(first), _) => first,
        (None, Some(_)) => 0,
        (None, None) => return Err(bad("max_window_layers", "is missing, and use_sliding_window is true")),
    };
    set_windows(config, &mut spec.layers, window, |i| i >= first)
}

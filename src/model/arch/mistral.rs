//! Mistral 7B and its dense relatives.
//!
//! Differs from Llama: no biases, and every layer may have a sliding window (v0.1: 4096; later versions: `null`).
use super::{dense, set_windows};
use crate::model::config::HfConfig;
use crate::model::spec::DecoderSpec;
use crate::weights::LoadError;

/// The specification of a Mistral.
///
/// # Errors
/// `Config` for rope types and activations that wick does not compute.
pub fn spec(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let mut spec = dense(config)?;
    if let Some(window) = config.usize("sliding_window")? {
        set_windows(config, &mut spec.layers, window, |_| true)?;
    }
    Ok(spec)
}

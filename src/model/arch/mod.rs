//! One file per architecture: configuration → specification.
pub mod gemma3;
pub mod llama;
pub mod mistral;
pub mod qwen2;
pub mod qwen3;
pub(crate) mod rope;

#[cfg(test)]
mod tests;

use super::config::{HfConfig, bad, shown};
use super::spec::{Act, AttnBias, AttnSpec, DecoderSpec, FfnSpec, LayerSpec, Norm, NormPlacement, NormWeight};
use crate::weights::LoadError;

/// Llama's wiring: what the others start from and change.
#[expect(clippy::cast_precision_loss)]
pub(crate) fn dense(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let norm = norm(config, NormWeight::Plain);
    let rope = rope::spec(config, &rope::RopeParameters::read(config)?)?;
    let layer = LayerSpec {
        attn: AttnSpec {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: rsqrt(config.head_dim as f64),
            bias: AttnBias::None,
            qk_norm: None,
            rope,
            window: None,
            softcap: None,
        },
        ffn: FfnSpec {
            inner: config.intermediate_size,
            act: act(config)?,
            bias: config.bool("mlp_bias")?.unwrap_or(false),
        },
        norms: NormPlacement::Pre,
        norm,
    };
    Ok(DecoderSpec {
        hidden: config.hidden_size,
        vocab: config.vocab_size,
        max_context: config.max_position_embeddings,
        embed_scale: 1.0,
        tie_embeddings: config.tie_word_embeddings,
        final_norm: norm,
        final_softcap: None,
        embedding: None,
        layers: vec![layer; config.num_hidden_layers],
    })
}

/// 1/√n as transformers has it: a double, rounded once.
#[expect(clippy::cast_possible_truncation)]
pub(crate) fn rsqrt(n: f64) -> f32 {
    n.powf(-0.5) as f32
}

#[expect(clippy::cast_possible_truncation)]
pub(crate) fn norm(config: &HfConfig, weight: NormWeight) -> Norm {
    Norm { eps: config.rms_norm_eps as f32, weight }
}

/// Which projections have a bias, where one flag governs all four (`attention_out_bias` is what GGUF's tensors say of the last).
pub(crate) fn attention_bias(config: &HfConfig) -> Result<AttnBias, LoadError> {
    let qkv = config.bool("attention_bias")?.unwrap_or(false);
    let out = config.bool("attention_out_bias")?.unwrap_or(qkv);
    match (qkv, out) {
        (false, false) => Ok(AttnBias::None),
        (true, false) => Ok(AttnBias::Qkv),
        (true, true) => Ok(AttnBias::Qkvo),
        (false, true) => Err(bad("attention_out_bias", "is true without attention_bias, which wick does not run")),
    }
}

/// The gated feed-forward's activation.
pub(crate) fn act(config: &HfConfig) -> Result<Act, LoadError> {
    // Gemma's key is `hidden_activation`; where it also has `hidden_act`, transformers ignores that one.
    let key = if config.value("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    match config.str(key)? {
        Some("gelu_pytorch_tanh") => Ok(Act::GeluTanh),
        None if config.model_type == "gemma3_text" => Ok(Act::GeluTanh),
        Some("silu") | None => Ok(Act::Silu),
        Some(other) => Err(bad(key, &format!("is {other}; wick runs silu and gelu_pytorch_tanh"))),
    }
}

/// Sets the window of each layer: from `layer_types` if the configuration lists them, else where `slides` says.
pub(crate) fn set_windows(
    config: &HfConfig,
    layers: &mut [LayerSpec],
    window: usize,
    slides: impl Fn(usize) -> bool,
) -> Result<(), LoadError> {
    if window == 0 {
        return Err(bad("sliding_window", "is 0, but a query must see its own position"));
    }
    let types = config.strs("layer_types")?;
    if let Some(types) = &types
        && types.len() != layers.len()
    {
        return Err(bad("layer_types", &format!("has {} entries for {} layers", types.len(), layers.len())));
    }
    for (i, layer) in layers.iter_mut().enumerate() {
        let sliding = match types.as_ref().map(|t| t[i]) {
            None => slides(i),
            Some("sliding_attention") => true,
            Some("full_attention") => false,
            Some(other) => {
                return Err(bad(
                    "layer_types",
                    &format!(
                        "has {} for layer {i}; wick runs sliding_attention and full_attention",
                        shown(&other.into())
                    ),
                ));
            }
        };
        layer.attn.window = sliding.then_some(window);
    }
    Ok(())
}

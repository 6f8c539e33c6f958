//! Tensor names: Hugging Face's and ggml's.

/// Tensors outside the layers.
const GLOBAL: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// Modules of a layer, after `model.layers.N.` and `blk.N.`; `.weight` or `.bias` follows.
const LAYER: [(&str, &str); 10] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The norm before the feed-forward, where there are two norms a layer.
const PRE_NORMS: [(&str, &str); 1] = [("post_attention_layernorm", "ffn_norm")];

/// Gemma's norms around attention and feed-forward. The same Hugging Face name means another place than above.
const SANDWICH_NORMS: [(&str, &str); 3] = [
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

fn layer_modules(gemma: bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    let norms: &[_] = if gemma { &SANDWICH_NORMS } else { &PRE_NORMS };
    LAYER.iter().chain(norms).copied()
}

/// The Hugging Face name of a ggml tensor; `None` if wick knows none.
pub(crate) fn to_hf(gguf: &str, gemma: bool) -> Option<String> {
    if let Some((hf, _)) = GLOBAL.iter().find(|(_, g)| *g == gguf) {
        return Some((*hf).to_owned());
    }
    let (layer, rest) = gguf.strip_prefix("blk.")?.split_once('.')?;
    let (module, kind) = layer_tensor(layer, rest)?;
    let (hf, _) = layer_modules(gemma).find(|(_, g)| *g == module)?;
    Some(format!("model.layers.{layer}.{hf}.{kind}"))
}

/// The ggml name of a Hugging Face tensor; `None` if wick knows none.
pub(crate) fn to_gguf(hf: &str, gemma: bool) -> Option<String> {
    if let Some((_, gguf)) = GLOBAL.iter().find(|(h, _)| *h == hf) {
        return Some((*gguf).to_owned());
    }
    let (layer, rest) = hf.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = layer_tensor(layer, rest)?;
    let (_, gguf) = layer_modules(gemma).find(|(h, _)| *h == module)?;
    Some(format!("blk.{layer}.{gguf}.{kind}"))
}

/// Splits `module.weight` or `module.bias`, of layer number `layer` (in its only spelling, without leading zeros).
fn layer_tensor<'a>(layer: &str, rest: &'a str) -> Option<(&'a str, &'a str)> {
    if layer.parse::<u32>().ok()?.to_string() != layer {
        return None;
    }
    rest.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))
}

/// Tensors in safetensors files that are no weights: rope frequencies, which old versions of transformers saved and the
/// configuration determines.
pub(crate) fn is_ignorable(hf: &str) -> bool {
    hf.ends_with(".rotary_emb.inv_freq")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for gemma in [false, true] {
            for (hf, gguf) in layer_modules(gemma) {
                for kind in ["weight", "bias"] {
                    let (hf, gguf) = (format!("model.layers.17.{hf}.{kind}"), format!("blk.17.{gguf}.{kind}"));
                    assert_eq!(to_hf(&gguf, gemma).as_ref(), Some(&hf));
                    assert_eq!(to_gguf(&hf, gemma), Some(gguf));
                }
            }
        }
        for (hf, gguf) in GLOBAL {
            assert_eq!((to_hf(gguf, false).as_deref(), to_gguf(hf, true).as_deref()), (Some(hf), Some(gguf)));
        }
    }

    #[test]
    fn gemma_calls_another_place_post_attention() {
        assert_eq!(
            to_hf("blk.0.ffn_norm.weight", false).as_deref(),
            Some("model.layers.0.post_attention_layernorm.weight")
        );
        assert_eq!(
            to_hf("blk.0.ffn_norm.weight", true).as_deref(),
            Some("model.layers.0.pre_feedforward_layernorm.weight")
        );
    }

    #[test]
    fn strangers_have_no_name() {
        for name in [
            "blk.0.ffn_gate_exps.weight",
            "blk.x.attn_q.weight",
            "blk.00.attn_q.weight",
            "blk.0.attn_q.scale",
            "blk.",
            "v.blk",
        ] {
            assert_eq!(to_hf(name, false), None, "{name}");
        }
    }
}

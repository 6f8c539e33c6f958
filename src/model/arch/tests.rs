//! The specification of every architecture, from the configurations that real models are published with.
#![allow(clippy::float_cmp, clippy::cast_precision_loss, clippy::cast_possible_truncation)]

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::model::config::HfConfig;
use crate::model::registry;
use crate::model::spec::DecoderSpec;
use crate::weights::LoadError;

fn try_spec(json: Value) -> Result<DecoderSpec, LoadError> {
    let Value::Object(fields) = json else { panic!("not an object") };
    registry::spec(&HfConfig::from_fields(fields.into_iter().collect::<BTreeMap<_, _>>())?)
}

fn spec(json: Value) -> DecoderSpec {
    try_spec(json).unwrap()
}

fn with(mut base: Value, changes: Value) -> Value {
    let (Value::Object(fields), Value::Object(changes)) = (&mut base, changes) else { panic!("not objects") };
    fields.extend(changes);
    base
}

fn llama_3_1_8b() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128_000, "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131_072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-5, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500_000.0, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "vocab_size": 128_256
    })
}

fn llama_2_7b() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
        "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": null, "tie_word_embeddings": false,
        "vocab_size": 32000
    })
}

fn mistral_7b_v0_1() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": false, "vocab_size": 32000
    })
}

fn qwen2_5_0_5b() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
        "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
        "sliding_window": 32768, "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151_936
    })
}

fn qwen3_0_6b() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": null,
        "rope_theta": 1_000_000, "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false,
        "vocab_size": 151_936
    })
}

fn gemma_3_1b() -> Value {
    json!({
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": null,
        "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
        "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
        "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1_000_000, "sliding_window": 512,
        "sliding_window_pattern": 6, "vocab_size": 262_144
    })
}

/// As transformers 5 writes it: layer types listed, rope parameters by layer type.
fn gemma_3_270m() -> Value {
    let types: Vec<_> = (1..=18).map(|i| if i % 6 == 0 { "full_attention" } else { "sliding_attention" }).collect();
    json!({
        "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"], "attention_bias": false,
        "attn_logit_softcapping": null, "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 640, "intermediate_size": 2048, "layer_types": types, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
        "rope_parameters": {"full_attention": {"rope_theta": 1_000_000.0, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}, "sliding_window": 512,
        "use_bidirectional_attention": false, "vocab_size": 262_144
    })
}

#[test]
fn llama_3_1_8b_is_this() {
    insta::assert_snapshot!(spec(llama_3_1_8b()), @r"
    hidden 4096, vocabulary 128256, context 131072, embeddings × 1, output own, final norm 1e-5
    layers 0..=31: 32 query / 8 key heads of 128, q·k × 0.088388346; rope of 128 (1 … 3.068926e-7); sees all; Silu feed-forward 14336; Pre norms 1e-5
    ");
}

#[test]
fn llama_2_7b_is_this() {
    insta::assert_snapshot!(spec(llama_2_7b()), @r"
    hidden 4096, vocabulary 32000, context 4096, embeddings × 1, output own, final norm 1e-5
    layers 0..=31: 32 query / 32 key heads of 128, q·k × 0.088388346; rope of 128 (1 … 1.1547819e-4); sees all; Silu feed-forward 11008; Pre norms 1e-5
    ");
}

#[test]
fn mistral_7b_is_this() {
    insta::assert_snapshot!(spec(mistral_7b_v0_1()), @r"
    hidden 4096, vocabulary 32000, context 32768, embeddings × 1, output own, final norm 1e-5
    layers 0..=31: 32 query / 8 key heads of 128, q·k × 0.088388346; rope of 128 (1 … 1.1547819e-4); window 4096; Silu feed-forward 14336; Pre norms 1e-5
    ");
    let v0_3 = with(mistral_7b_v0_1(), json!({"sliding_window": null, "rope_theta": 1_000_000.0, "vocab_size": 32768}));
    insta::assert_snapshot!(spec(v0_3), @r"
    hidden 4096, vocabulary 32768, context 32768, embeddings × 1, output own, final norm 1e-5
    layers 0..=31: 32 query / 8 key heads of 128, q·k × 0.088388346; rope of 128 (1 … 1.2409378e-6); sees all; Silu feed-forward 14336; Pre norms 1e-5
    ");
}

#[test]
fn qwen2_5_0_5b_is_this() {
    insta::assert_snapshot!(spec(qwen2_5_0_5b()), @r"
    hidden 896, vocabulary 151936, context 32768, embeddings × 1, output tied, final norm 1e-6
    layers 0..=23: 14 query / 2 key heads of 64, q·k × 0.125; rope of 64 (1 … 1.5399265e-6); sees all; bias Qkv; Silu feed-forward 4864; Pre norms 1e-6
    ");
}

#[test]
fn qwen3_0_6b_is_this() {
    insta::assert_snapshot!(spec(qwen3_0_6b()), @r"
    hidden 1024, vocabulary 151936, context 40960, embeddings × 1, output tied, final norm 1e-6
    layers 0..=27: 16 query / 8 key heads of 128, q·k × 0.088388346; rope of 128 (1 … 1.2409378e-6); sees all; q and k normed (1e-6); Silu feed-forward 3072; Pre norms 1e-6
    ");
}

#[test]
fn gemma_3_is_this() {
    insta::assert_snapshot!(spec(gemma_3_1b()), @r"
    hidden 1152, vocabulary 262144, context 32768, embeddings × 33.941124, output tied, final norm 1e-6 (1 + weight)
    layers 0..=4: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.0746078e-4); window 512; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 6912; Sandwich norms 1e-6 (1 + weight)
    layers 5..=5: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.1139739e-6); sees all; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 6912; Sandwich norms 1e-6 (1 + weight)
    layers 6..=10: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.0746078e-4); window 512; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 6912; Sandwich norms 1e-6 (1 + weight)
    layers 11..=11: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.1139739e-6); sees all; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 6912; Sandwich norms 1e-6 (1 + weight)
    layers 12..=16: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.0746078e-4); window 512; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 6912; Sandwich norms 1e-6 (1 + weight)
    layers 17..=17: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.1139739e-6); sees all; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 6912; Sandwich norms 1e-6 (1 + weight)
    layers 18..=22: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.0746078e-4); window 512; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 6912; Sandwich norms 1e-6 (1 + weight)
    layers 23..=23: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.1139739e-6); sees all; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 6912; Sandwich norms 1e-6 (1 + weight)
    layers 24..=25: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.0746078e-4); window 512; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 6912; Sandwich norms 1e-6 (1 + weight)
    ");
    insta::assert_snapshot!(spec(gemma_3_270m()), @r"
    hidden 640, vocabulary 262144, context 32768, embeddings × 25.298222, output tied, final norm 1e-6 (1 + weight)
    layers 0..=4: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.0746078e-4); window 512; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 2048; Sandwich norms 1e-6 (1 + weight)
    layers 5..=5: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.1139739e-6); sees all; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 2048; Sandwich norms 1e-6 (1 + weight)
    layers 6..=10: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.0746078e-4); window 512; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 2048; Sandwich norms 1e-6 (1 + weight)
    layers 11..=11: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.1139739e-6); sees all; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 2048; Sandwich norms 1e-6 (1 + weight)
    layers 12..=16: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.0746078e-4); window 512; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 2048; Sandwich norms 1e-6 (1 + weight)
    layers 17..=17: 4 query / 1 key heads of 256, q·k × 0.0625; rope of 256 (1 … 1.1139739e-6); sees all; q and k normed (1e-6 (1 + weight)); GeluTanh feed-forward 2048; Sandwich norms 1e-6 (1 + weight)
    ");
}

#[test]
fn every_architecture_runs_with_transformers_5s_rope_parameters() {
    for (old, new) in [
        (
            llama_3_1_8b(),
            json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500_000.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"}),
        ),
        (mistral_7b_v0_1(), json!({"rope_theta": 10000.0, "rope_type": "default"})),
        (qwen2_5_0_5b(), json!({"rope_theta": 1e6, "rope_type": "default"})),
        (qwen3_0_6b(), json!({"rope_theta": 1e6, "rope_type": "default"})),
    ] {
        let changed = with(old.clone(), json!({"rope_theta": null, "rope_scaling": null, "rope_parameters": new}));
        assert_eq!(spec(changed), spec(old));
    }
}

#[test]
fn the_older_key_type_means_rope_type() {
    let scaled = |key: &str| spec(with(llama_2_7b(), json!({"rope_scaling": {key: "linear", "factor": 4.0}})));
    assert_eq!(scaled("type"), scaled("rope_type"));
    assert_eq!(scaled("type").layers[0].attn.rope.inv_freq[0], 0.25);
}

const LLAMA_3_BITS: [u32; 9] = [
    0x3f80_0000,
    0x3f50_8ac1,
    0x3b52_7720,
    0x3b0d_fd06,
    0x3ab3_d11d,
    0x39a3_f108,
    0x38c8_6886,
    0x38a3_418d,
    0x34a4_c2ff,
];

/// Bits from transformers 5 (`LlamaRotaryEmbedding(config).inv_freq`): kept, on the ramp, divided.
#[test]
fn llama_3_frequencies_are_transformers_to_the_bit() {
    let freqs = &spec(llama_3_1_8b()).layers[0].attn.rope.inv_freq;
    let bits: Vec<u32> = [0, 1, 28, 29, 30, 33, 35, 36, 63].iter().map(|&i: &usize| freqs[i].to_bits()).collect();
    assert_eq!(bits, LLAMA_3_BITS);
}

#[test]
fn ggufs_rope_factors_divide_the_frequencies() {
    let plain = spec(llama_2_7b()).layers[0].attn.rope.inv_freq.clone();
    let factors: Vec<f32> = (1..=64).map(|i| i as f32).collect();
    let scaled = spec(with(llama_2_7b(), json!({"rope_freq_factors": factors})));
    assert_eq!(scaled.layers[0].attn.rope.inv_freq[9], plain[9] / 10.0);
}

#[test]
fn windows_follow_the_configuration() {
    let windows = |json| spec(json).layers.iter().map(|l| l.attn.window).collect::<Vec<_>>();
    let on = json!({"use_sliding_window": true, "sliding_window": 100, "max_window_layers": 2, "num_hidden_layers": 4});
    assert_eq!(windows(with(qwen2_5_0_5b(), on.clone())), [None, None, Some(100), Some(100)]);
    let mut unsaid = with(qwen2_5_0_5b(), on.clone());
    unsaid["sliding_window"] = json!(null);
    assert_eq!(windows(unsaid.clone()), [None; 4]);
    unsaid.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(windows(unsaid), [None, None, Some(4096), Some(4096)]);
    let listed = json!({"layer_types": ["sliding_attention", "full_attention", "full_attention", "full_attention"]});
    assert_eq!(windows(with(with(qwen3_0_6b(), on), listed)), [Some(100), None, None, None]);
}

#[test]
fn biases_follow_the_configuration() {
    insta::assert_snapshot!(
        spec(with(llama_2_7b(), json!({"attention_bias": true, "mlp_bias": true, "num_hidden_layers": 1}))).layers[0],
        @"32 query / 32 key heads of 128, q·k × 0.088388346; rope of 128 (1 … 1.1547819e-4); sees all; bias Qkvo; Silu feed-forward 11008 with bias; Pre norms 1e-5"
    );
}

#[test]
fn gemmas_global_rope_may_be_scaled() {
    let old = spec(with(gemma_3_1b(), json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}})));
    assert_eq!((old.layers[5].attn.rope.inv_freq[0], old.layers[0].attn.rope.inv_freq[0]), (0.125, 1.0));
}

#[test]
fn what_wick_does_not_compute_is_refused_by_name() {
    for (config, changes, message) in [
        (
            llama_2_7b(),
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
            "`rope_scaling.rope_type` is \"yarn\"; wick computes default, linear and llama3",
        ),
        (
            llama_2_7b(),
            json!({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}),
            "`rope_parameters.rope_type` is \"dynamic\"",
        ),
        (llama_2_7b(), json!({"rope_scaling": {"type": "longrope"}}), "\"longrope\""),
        (llama_2_7b(), json!({"rope_scaling": {"type": "linear"}}), "`rope_scaling.factor` is missing"),
        (llama_2_7b(), json!({"rope_scaling": {"type": "linear", "factor": 0.0}}), "`rope_scaling.factor` is 0"),
        (llama_2_7b(), json!({"rope_scaling": 3}), "`rope_scaling` is 3, but must be an object"),
        (llama_2_7b(), json!({"rope_theta": 1e300}), "`rope_theta` is 1"),
        (llama_2_7b(), json!({"rope_theta": -1}), "`rope_theta` is -1"),
        (llama_2_7b(), json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor` is 0.5"),
        (llama_2_7b(), json!({"hidden_act": "relu"}), "`hidden_act` is relu"),
        (llama_2_7b(), json!({"architectures": ["LlamaForSequenceClassification"]}), "LlamaForSequenceClassification"),
        (mistral_7b_v0_1(), json!({"sliding_window": 0}), "`sliding_window` is 0"),
        (gemma_3_270m(), json!({"layer_types": ["full_attention"]}), "`layer_types` has 1 entries for 18 layers"),
        (gemma_3_1b(), json!({"use_bidirectional_attention": true}), "`use_bidirectional_attention` is true"),
        (llama_2_7b(), json!({"is_causal": false}), "`is_causal` is false"),
        (llama_2_7b(), json!({"architectures": ["LlamaModel"]}), "LlamaModel where modules.json says how it embeds"),
        (gemma_3_1b(), json!({"architectures": ["Gemma3ForConditionalGeneration"]}), "wick runs Gemma3ForCausalLM"),
        (gemma_3_1b(), json!({"final_logit_softcapping": -3.0}), "`final_logit_softcapping` is -3"),
        (gemma_3_1b(), json!({"query_pre_attn_scalar": 0}), "`query_pre_attn_scalar` is 0"),
        (
            llama_2_7b(),
            json!({"model_type": "mixtral"}),
            "unknown architecture `mixtral`; wick knows: llama, mistral, qwen2, qwen3, gemma3_text",
        ),
        (llama_2_7b(), json!({"model_type": "gemma3", "text_config": {}}), "unknown architecture `gemma3`"),
    ] {
        let error = try_spec(with(config, changes.clone())).expect_err(&changes.to_string()).to_string();
        assert!(error.contains(message), "{changes}: {error}");
    }
}

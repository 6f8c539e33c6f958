//! A GGUF model as a Hugging Face checkpoint: safetensors and config.json.
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::Device;
use half::{bf16, f16};
use serde_json::{Map, Value, json};
use wick::model::config::HfConfig;
use wick::model::spec::NormWeight;
use wick::weights::{Matrix, ModelFiles, WeightSource};
use wick_kernels::QuantType;

/// Writes model.safetensors and config.json of a Llama into `folder`: each weight as the float that its block means, rounded to
/// what `rounded` can hold and stored as `stored` (F32, F16 or BF16).
pub fn to_safetensors(gguf: &Path, folder: &Path, stored: QuantType, rounded: QuantType) {
    let ModelFiles { config, weights, .. } = wick::weights::open(gguf).unwrap();
    assert_eq!(config.model_type, "llama", "other families have other tensors");
    assert!(config.tie_word_embeddings, "there is no lm_head to write");
    std::fs::write(folder.join("config.json"), config_json(&config).to_string()).unwrap();

    let tensors = tensors(&config);
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in &tensors {
        let start = end;
        end += shape.iter().product::<usize>() * stored.block_bytes();
        header.insert(name.clone(), json!({"dtype": stored.name(), "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::new(std::fs::File::create(folder.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    for (name, shape) in &tensors {
        let values = values(weights.as_ref(), name, shape).into_iter().map(|v| round(v, rounded));
        let bytes: Vec<u8> = values.flat_map(|v| stored_bytes(v, stored)).collect();
        file.write_all(&bytes).unwrap();
    }
    file.flush().unwrap();
    weights.finish().expect("every tensor was written");
}

fn round(value: f32, to: QuantType) -> f32 {
    match to {
        QuantType::F16 => f16::from_f32(value).to_f32(),
        QuantType::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

fn stored_bytes(value: f32, as_: QuantType) -> Vec<u8> {
    match as_ {
        QuantType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        QuantType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

fn config_json(config: &HfConfig) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.extra["rope_theta"],
        "tie_word_embeddings": true,
    })
}

/// Names and shapes, in the order of the file.
fn tensors(config: &HfConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let layer = [
        ("input_layernorm", vec![hidden]),
        ("self_attn.q_proj", vec![queries, hidden]),
        ("self_attn.k_proj", vec![keys, hidden]),
        ("self_attn.v_proj", vec![keys, hidden]),
        ("self_attn.o_proj", vec![hidden, queries]),
        ("post_attention_layernorm", vec![hidden]),
        ("mlp.gate_proj", vec![inner, hidden]),
        ("mlp.up_proj", vec![inner, hidden]),
        ("mlp.down_proj", vec![hidden, inner]),
    ];
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden])];
    for number in 0..config.num_hidden_layers {
        all.extend(layer.iter().map(|(name, shape)| (format!("model.layers.{number}.{name}.weight"), shape.clone())));
    }
    all.push(("model.norm.weight".to_owned(), vec![hidden]));
    all
}

fn values(weights: &dyn WeightSource, name: &str, shape: &[usize]) -> Vec<f32> {
    match *shape {
        [len] => weights.norm(name, len, NormWeight::Plain, &Device::Cpu).unwrap().to_vec1().unwrap(),
        [rows, cols] => {
            let Matrix::Mapped(matrix) = weights.matrix(name, rows, cols, &Device::Cpu).unwrap() else {
                panic!("{name} is not in memory")
            };
            let mut values = vec![0.0; rows * cols];
            wick_kernels::dequantize(matrix.ty, matrix.bytes.as_slice(), &mut values);
            values
        }
        _ => panic!("{name} has shape {shape:?}"),
    }
}

//! How much memory loading takes.
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::json;

use crate::process::Server;

const HIDDEN: usize = 512;
const INNER: usize = 1024;

/// Writes a Llama of two layers with F16 weights, whose embedding is its output matrix too; returns the weights' bytes.
fn checkpoint(folder: &Path, vocab: usize) -> u64 {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-tokenizer");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixtures.join(name), folder.join(name)).unwrap();
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float16",
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, HIDDEN])];
    for layer in 0..2 {
        for (name, shape) in [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN / 2, HIDDEN]),
            ("self_attn.v_proj", vec![HIDDEN / 2, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]}));
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::new(File::create(folder.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    // Small numbers of either sign, no two rows the same.
    for i in 0..end / 2 {
        let value = half::f16::from_f32(((i * 7919 % 1009) as f32 - 504.0) / 16_384.0);
        file.write_all(&value.to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
    end as u64
}

/// The most memory that a server of a model has held until it served, in bytes.
async fn peak(folder: &Path) -> u64 {
    let folder = folder.to_str().unwrap();
    let server = Server::start(&[folder, "--offline", "--threads", "2", "--context", "256"]).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_else(|| panic!("{status}"));
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// What the program itself takes cancels out between two models that only differ in their number of tokens, and so do caches that no token
/// has filled.
#[tokio::test]
#[cfg_attr(not(target_os = "linux"), ignore = "the peak is read from Linux's /proc")]
async fn the_peak_while_loading_is_the_weights_and_little_more() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [small, large] =
        [(&folders[0], 1 << 12), (&folders[1], 80 << 10)].map(|(f, vocab)| checkpoint(f.path(), vocab));
    let [with_small, with_large] = [peak(folders[0].path()).await, peak(folders[1].path()).await];
    let (more, weights) = (with_large.saturating_sub(with_small), large - small);
    assert!(
        more <= weights + weights * 15 / 100,
        "{} MiB more weights take {} MiB more at the peak",
        weights >> 20,
        more >> 20
    );
    assert!(more >= weights / 2, "the weights were not loaded: {with_small} and {with_large} bytes");
}

#![allow(clippy::float_cmp, clippy::cast_precision_loss, clippy::cast_possible_truncation)]

use serde_json::{Value, json};

use super::HfConfig;
use crate::model::embedding::{EmbeddingSpec, Pooling};
use crate::model::registry;
use crate::weights::LoadError;
use crate::weights::gguf::GgufFile;
use crate::weights::gguf::writer::{Writer, tiny_llama};

fn base() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 100, "max_position_embeddings": 512, "rms_norm_eps": 1e-5
    })
}

fn read(json: &Value) -> Result<HfConfig, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, json.to_string()).unwrap();
    HfConfig::from_json(&path)
}

fn gguf(writer: &Writer) -> Result<HfConfig, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, writer.bytes()).unwrap();
    HfConfig::from_gguf(&GgufFile::open(&path).unwrap())
}

#[test]
fn what_is_left_out_has_hugging_faces_defaults() {
    let config = read(&base()).unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim, config.tie_word_embeddings), (4, 16, false));
    let mut gemma = base();
    gemma["model_type"] = json!("gemma3_text");
    assert!(read(&gemma).unwrap().tie_word_embeddings);
}

#[test]
fn errors_name_the_key() {
    for (key, value, message) in [
        ("hidden_size", Value::Null, "`hidden_size` is missing"),
        ("hidden_size", json!(0), "`hidden_size` is 0, but must be from 1 to"),
        ("hidden_size", json!(-64), "`hidden_size` is -64, but must be a non-negative integer"),
        ("hidden_size", json!("64"), "`hidden_size` is \"64\""),
        ("hidden_size", json!(66), "`num_attention_heads` is 4, which does not divide hidden_size 66"),
        ("hidden_size", json!(1u64 << 40), "`hidden_size` is 1099511627776, but must be from 1 to 1048576"),
        ("num_attention_heads", json!(0), "`num_attention_heads`"),
        ("num_key_value_heads", json!(3), "`num_key_value_heads` is 3, which does not divide num_attention_heads 4"),
        ("num_key_value_heads", json!(0), "`num_key_value_heads` is 0"),
        ("num_hidden_layers", json!(100_000), "`num_hidden_layers` is 100000"),
        ("head_dim", json!(15), "`head_dim` is 15, but rope needs an even number"),
        ("vocab_size", json!(0), "`vocab_size` is 0"),
        ("max_position_embeddings", json!(u64::MAX), "`max_position_embeddings`"),
        ("rms_norm_eps", json!(0.0), "`rms_norm_eps` is 0"),
        ("rms_norm_eps", Value::Null, "`rms_norm_eps` is missing"),
        ("tie_word_embeddings", json!("yes"), "`tie_word_embeddings` is \"yes\", but must be true or false"),
        ("model_type", Value::Null, "`model_type` is missing"),
        ("model_type", json!("bert"), "unknown architecture `bert`"),
    ] {
        let mut config = base();
        config[key] = value.clone();
        let error = read(&config).expect_err(key).to_string();
        assert!(error.contains(message), "{key} = {value}: {error}");
    }
}

#[test]
fn a_file_that_is_no_object_is_malformed() {
    assert!(matches!(read(&json!([1])), Err(LoadError::Malformed { .. })));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, b"{\"a\": ").unwrap();
    assert!(HfConfig::from_json(&path).unwrap_err().to_string().contains("not valid JSON"));
    assert!(matches!(HfConfig::from_json(&folder.path().join("none.json")), Err(LoadError::Io { .. })));
}

#[test]
fn gguf_metadata_become_the_same_fields() {
    let config = gguf(&tiny_llama()).unwrap();
    assert_eq!(config.model_type, "llama");
    assert_eq!((config.hidden_size, config.intermediate_size, config.num_hidden_layers), (8, 16, 2));
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (2, 1, 4));
    assert_eq!((config.vocab_size, config.max_position_embeddings, config.tie_word_embeddings), (10, 64, true));
    assert_eq!(config.rms_norm_eps, 1e-5);
    assert_eq!(config.value("rope_theta"), Some(&json!(10_000.0)));
    assert_eq!(config.value("attention_bias"), Some(&json!(false)));
}

#[test]
fn gguf_tensors_tell_what_metadata_do_not() {
    let file = tiny_llama()
        .f32_tensor("output.weight", &[8, 10], 0.0)
        .f32_tensor("blk.0.attn_q.bias", &[8], 0.0)
        .f32_tensor("rope_freqs.weight", &[2], 1.0);
    let config = gguf(&file).unwrap();
    assert!(!config.tie_word_embeddings);
    assert_eq!(config.value("attention_bias"), Some(&json!(true)));
    assert_eq!(config.value("rope_freq_factors"), Some(&json!([1.0, 2.0])));
}

#[test]
fn a_gguf_llama_with_windows_is_a_mistral() {
    let config = gguf(&tiny_llama().u32("llama.attention.sliding_window", 32)).unwrap();
    assert_eq!((config.model_type.as_str(), config.value("sliding_window")), ("mistral", Some(&json!(32))));
}

#[test]
fn gguf_that_computes_something_else_is_refused() {
    let linear = gguf(&tiny_llama().f32("llama.rope.scaling.factor", 4.0)).unwrap();
    assert_eq!(linear.value("rope_scaling"), Some(&json!({"rope_type": "linear", "factor": 4.0})));
    for (writer, message) in [
        (tiny_llama().u32("llama.expert_count", 8), "`llama.expert_count` is 8: a mixture of experts"),
        (tiny_llama().u32("llama.attention.value_length", 8), "`llama.attention.value_length` is 8"),
        (tiny_llama().raw("llama.attention.causal", 7, &[0]), "`llama.attention.causal` is false"),
        (tiny_llama().raw("split.count", 2, &[3, 0]), "one part of a split GGUF model"),
        (
            tiny_llama().str("llama.attention.key_length", "4"),
            "`llama.attention.key_length` is a string, but must be a number",
        ),
        (
            tiny_llama().strs("llama.attention.key_length", &["4"]),
            "`llama.attention.key_length` differs from layer to layer",
        ),
        (tiny_llama().raw("llama.attention.sliding_window", 6, &f32::NAN.to_le_bytes()), "is NaN"),
        (tiny_llama().f32_tensor("rope_freqs.weight", &[2], 0.0), "`rope_freqs.weight` holds 0"),
        (tiny_llama().f32_tensor("rope_freqs.weight", &[3], 1.0), "`rope_freqs.weight` has shape [3]"),
        (Writer::new().str("general.architecture", "mamba"), "unknown architecture `mamba`"),
        (Writer::new(), "`general.architecture` is missing"),
    ] {
        let error = gguf(&writer).expect_err(message).to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn a_pooling_type_makes_a_gguf_model_embed() {
    let pooling = |number| gguf(&tiny_llama().u32("llama.pooling_type", number)).map(|config| config.embedding);
    let of = |pooling| Some(EmbeddingSpec { pooling, normalize: true });
    assert_eq!(pooling(0).unwrap(), None);
    assert_eq!(pooling(1).unwrap(), of(Pooling::Mean));
    assert_eq!(pooling(2).unwrap(), of(Pooling::Cls));
    assert_eq!(pooling(3).unwrap(), of(Pooling::Last));
    assert!(pooling(4).unwrap_err().to_string().contains("`llama.pooling_type` is 4: the model ranks"));
    assert!(pooling(9).unwrap_err().to_string().contains("`llama.pooling_type` is 9"));
}

#[test]
fn modules_beside_the_configuration_make_a_model_embed() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, json: Value| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, json.to_string()).unwrap();
    };
    let read = || HfConfig::from_json(&folder.path().join("config.json"));
    let mut config = base();
    config["architectures"] = json!(["LlamaModel"]);
    write("config.json", config);
    assert!(registry::spec(&read().unwrap()).is_err(), "nothing says how it embeds");
    write("modules.json", json!([{"type": "s.Transformer", "path": ""}, {"type": "s.Pooling", "path": "1_Pooling"}]));
    write("1_Pooling/config.json", json!({"word_embedding_dimension": 64, "pooling_mode_lasttoken": true}));
    let spec = registry::spec(&read().unwrap()).unwrap();
    assert_eq!(spec.embedding, Some(EmbeddingSpec { pooling: Pooling::Last, normalize: false }));
    assert_eq!((spec.max_context, spec.row_width()), (512, 64));
    assert!(spec.to_string().contains("output none, final norm 1e-5; vectors are the last token's row"), "{spec}");
    write("sentence_bert_config.json", json!({"max_seq_length": 100}));
    assert_eq!(registry::spec(&read().unwrap()).unwrap().max_context, 100);
    write("modules.json", json!([{"type": "s.Transformer"}, {"type": "s.Pooling"}, {"type": "s.Dense"}]));
    assert!(read().unwrap_err().to_string().contains("`s.Dense`"));
}

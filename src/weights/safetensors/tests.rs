use std::path::Path;

use candle_core::Device;
use half::{bf16, f16};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::parse_header;
use crate::model::spec::NormWeight;
use crate::weights::{LoadError, Matrix, describe, open};

/// A file from its header and data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// A file of tensors: name, dtype, shape, bytes.
fn tensors(list: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in list {
        let start = data.len();
        data.extend(bytes);
        header.insert((*name).to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
    }
    file(&Value::Object(header).to_string(), &data)
}

fn ones(n: usize) -> Vec<u8> {
    1.0f32.to_le_bytes().repeat(n)
}

fn error(bytes: &[u8]) -> String {
    parse_header(bytes, Path::new("model.safetensors")).expect_err("no error").to_string()
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "gemma3_text", "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": 3, "max_position_embeddings": 16, "rms_norm_eps": 1e-6, "sliding_window": 4
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn open_error(files: &[(&str, &[u8])]) -> String {
    open(folder(files).path()).err().expect("no error").to_string()
}

#[test]
fn every_dense_type_is_read_and_norms_get_their_one() {
    let f16s: Vec<u8> = (0..4u8).flat_map(|i| f16::from_f32(i.into()).to_le_bytes()).collect();
    let bf16s: Vec<u8> = (0..4u8).flat_map(|i| bf16::from_f32(i.into()).to_le_bytes()).collect();
    let bytes = tensors(&[
        ("model.norm.weight", "F32", &[4], ones(4)),
        ("a.bias", "F16", &[4], f16s),
        ("b.bias", "BF16", &[4], bf16s),
        ("model.embed_tokens.weight", "F32", &[3, 4], ones(12)),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", "F64", &[1], vec![0; 8]),
    ]);
    let folder = folder(&[("model.safetensors", &bytes)]);
    let model = open(folder.path()).unwrap();
    let vector = |name| model.weights.vector(name, 4, &Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!((vector("a.bias"), vector("b.bias")), (vec![0., 1., 2., 3.], vec![0., 1., 2., 3.]));
    let norm = model.weights.norm("model.norm.weight", 4, NormWeight::OnePlus, &Device::Cpu).unwrap();
    assert_eq!(norm.to_vec1::<f32>().unwrap(), [2.0; 4]);
    assert!(model.config.tie_word_embeddings);
    assert!(model.weights.finish().unwrap_err().to_string().ends_with("use: model.embed_tokens.weight"));
    let Matrix::Mapped(m) = model.weights.matrix("model.embed_tokens.weight", 3, 4, &Device::Cpu).unwrap() else {
        panic!()
    };
    assert_eq!((m.rows, m.cols, m.bytes.as_slice()), (3, 4, ones(12).as_slice()));
    model.weights.finish().unwrap();
    assert_eq!(describe(folder.path()).unwrap().types.len(), 4);
}

/// As transformers does: both matrices, if the file has two that differ; else the one there is.
#[test]
fn an_output_matrix_in_the_file_is_used_if_it_is_another() {
    let embedding = ("model.embed_tokens.weight", "F32", [3, 4].as_slice(), ones(12));
    let output = |bytes| ("lm_head.weight", "F32", [3, 4].as_slice(), bytes);
    let opened = |list: &[(&str, &str, &[usize], Vec<u8>)]| {
        let folder = folder(&[("model.safetensors", &tensors(list))]);
        let model = open(folder.path()).unwrap();
        let has = |name| model.weights.contains(name);
        let described = describe(folder.path()).unwrap();
        assert_eq!(described.tensors.len(), list.len());
        (model.config.tie_word_embeddings, has("model.embed_tokens.weight"), has("lm_head.weight"))
    };
    assert_eq!(opened(std::slice::from_ref(&embedding)), (true, true, false));
    assert_eq!(opened(&[embedding.clone(), output(vec![0; 48])]), (false, true, true));
    assert_eq!(opened(&[embedding, output(ones(12))]), (true, true, false));
    assert_eq!(opened(&[output(ones(12))]), (true, true, false));
}

#[test]
fn other_types_are_named() {
    let bytes = tensors(&[("x", "I64", &[1], vec![0; 8])]);
    assert_eq!(open_error(&[("model.safetensors", &bytes)]), "tensor `x` has type I64, which wick does not load");
}

#[test]
fn broken_headers_are_named() {
    let sound = tensors(&[("a", "F32", &[2], ones(2)), ("b", "F32", &[2], ones(2))]);
    assert!(error(b"abc").contains("only 3 bytes"));
    assert!(error(&[0xff; 16]).contains("its header would have 18446744073709551615 bytes"));
    assert!(error(&sound[..40]).contains("the file ends inside its header"));
    assert!(error(&sound[..sound.len() - 1]).contains("fetch it again"));
    assert!(error(&[sound.as_slice(), &[0]].concat()).contains("fetch it again"));
    for (header, bytes, message) in [
        ("[]", 0, "not sound"),
        (r#"{"a": 3}"#, 0, "not sound"),
        (
            r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#,
            4,
            "tensor `a` is there twice",
        ),
        (r#"{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}"#, 0, "tensor `a` has shape [0]"),
        (r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}"#, 4, "damaged"),
        (r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#, 8, "damaged"),
        (
            r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#,
            4,
            "damaged",
        ),
        (r#"{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}}"#, 0, "damaged"),
        (r#"{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}"#, 4, "damaged"),
    ] {
        let error = error(&file(header, &vec![0; bytes]));
        assert!(error.contains(message), "{header}: {error}");
    }
}

/// Offsets whose sum with the header's length overflows inside the crate.
#[test]
fn offsets_beyond_the_file_are_refused() {
    let share = usize::MAX / 8;
    let mut header = serde_json::Map::new();
    for i in 0..8 {
        let end = if i == 7 { usize::MAX - 7 } else { (i + 1) * share };
        let entry = json!({"dtype": "U8", "shape": [end - i * share], "data_offsets": [i * share, end]});
        header.insert(format!("t{i}"), entry);
    }
    let error = error(&file(&Value::Object(header).to_string(), &[]));
    assert!(error.contains("damaged") && error.contains("0 are there"), "{error}");
}

#[test]
fn shards_are_read_through_their_index() {
    let first = tensors(&[("a", "F32", &[1], ones(1))]);
    let second = tensors(&[("b", "F32", &[1], ones(1)), ("stray", "F32", &[1], ones(1))]);
    let index = json!({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}).to_string();
    let folder = folder(&[
        ("1.safetensors", &first),
        ("2.safetensors", &second),
        ("model.safetensors.index.json", index.as_bytes()),
    ]);
    let model = open(folder.path()).unwrap();
    for name in ["a", "b"] {
        model.weights.vector(name, 1, &Device::Cpu).unwrap();
    }
    assert!(matches!(model.weights.finish(), Err(LoadError::LeftOver { names }) if names == ["stray"]));
}

#[test]
fn broken_indexes_are_named() {
    let shard = tensors(&[("a", "F32", &[1], ones(1))]);
    let with = |map: Value, files: &[(&str, &[u8])]| {
        let index = json!({"weight_map": map}).to_string();
        let mut all = vec![("model.safetensors.index.json", index.as_bytes())];
        all.extend(files);
        open_error(&all)
    };
    assert!(with(json!({"a": "2.safetensors"}), &[]).contains("2.safetensors: "));
    let lacks = with(json!({"a": "1.safetensors", "b": "1.safetensors"}), &[("1.safetensors", &shard)]);
    assert!(lacks.contains("1.safetensors: lacks tensor `b`"), "{lacks}");
    let twice = with(
        json!({"a": "1.safetensors", "b": "2.safetensors"}),
        &[("1.safetensors", &shard), ("2.safetensors", &shard)],
    );
    assert!(twice.contains("tensor `a` is in another shard too"), "{twice}");
    for stranger in ["../a.safetensors", "/etc/passwd", "..", "x/y", ""] {
        assert!(with(json!({"a": stranger}), &[]).contains("no plain file name"), "{stranger}");
    }
    assert!(with(json!({"a": 3}), &[]).contains("no plain file name"));
    assert!(with(json!([]), &[]).contains("`weight_map` is missing or no object"));
    assert!(open_error(&[]).contains("neither model.safetensors nor model.safetensors.index.json"));
}

proptest! {
    #[test]
    fn damaged_headers_never_panic(cut in 0usize..200, flips in prop::collection::vec((0usize..400, 0u8..8), 0..5)) {
        let mut bytes = tensors(&[("a", "F32", &[2], ones(2)), ("b", "BF16", &[2, 2], vec![0; 8])]);
        for (at, bit) in flips {
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        for t in parse_header(&bytes, Path::new("x")).unwrap_or_default() {
            prop_assert!(t.start + t.len <= bytes.len());
        }
    }
}

#[test]
fn tensors_of_a_model_without_an_output_matrix_have_no_prefix() {
    let bytes = tensors(&[("embed_tokens.weight", "F32", &[3, 4], ones(12)), ("norm.weight", "F32", &[4], ones(4))]);
    let model = open(folder(&[("model.safetensors", &bytes)]).path()).unwrap();
    assert!(model.weights.contains("model.embed_tokens.weight") && model.weights.contains("model.norm.weight"));
    assert!(!model.weights.contains("embed_tokens.weight"));
}

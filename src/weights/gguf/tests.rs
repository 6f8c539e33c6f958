#![allow(clippy::float_cmp, clippy::cast_precision_loss, clippy::cast_possible_truncation)]

use std::path::{Path, PathBuf};

use candle_core::Device;
use proptest::prelude::*;

use super::writer::{Writer, string, tiny_llama};
use super::{GgufArray, GgufFile, GgufValue};
use crate::model::spec::NormWeight;
use crate::weights::{LoadError, MappedBytes, Matrix, ModelFiles, WeightForm, WeightMemory, WeightSource, open};

fn parse(bytes: &[u8]) -> Result<GgufFile, LoadError> {
    GgufFile::from_bytes(bytes, Path::new("test.gguf"))
}

fn error(bytes: &[u8]) -> String {
    parse(bytes).err().expect("no error").to_string()
}

/// A file in a folder that lives as long as the test.
fn on_disk(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn opened(writer: &Writer) -> (tempfile::TempDir, ModelFiles) {
    let (folder, path) = on_disk(&writer.bytes());
    let model = open(&path).unwrap();
    (folder, model)
}

fn f32s(matrix: &Matrix) -> Vec<f32> {
    let Matrix::Mapped(m) = matrix else { panic!("not on the CPU") };
    m.bytes.as_slice().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Takes what a llama of two layers takes.
fn take_all(weights: &dyn WeightSource) -> Result<(), LoadError> {
    let cpu = &Device::Cpu;
    weights.matrix("model.embed_tokens.weight", 10, 8, cpu)?;
    weights.norm("model.norm.weight", 8, NormWeight::Plain, cpu)?;
    for i in 0..2 {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            weights.norm(&format!("model.layers.{i}.{norm}.weight"), 8, NormWeight::Plain, cpu)?;
        }
        for (name, rows, cols) in [
            ("self_attn.q_proj", 8, 8),
            ("self_attn.k_proj", 4, 8),
            ("self_attn.v_proj", 4, 8),
            ("self_attn.o_proj", 8, 8),
            ("mlp.gate_proj", 16, 8),
            ("mlp.up_proj", 16, 8),
            ("mlp.down_proj", 8, 16),
        ] {
            weights.matrix(&format!("model.layers.{i}.{name}.weight"), rows, cols, cpu)?;
        }
    }
    weights.finish()
}

#[test]
fn metadata_of_every_type_are_read() {
    let nested =
        [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes(), &0u32.to_le_bytes(), &2u64.to_le_bytes(), &[7, 8]]
            .concat();
    let writer = Writer::new()
        .raw("u8", 0, &[200])
        .raw("i8", 1, &[255])
        .raw("u16", 2, &[1, 1])
        .raw("i16", 3, &[255, 255])
        .u32("u32", 5)
        .raw("i32", 5, &(-5i32).to_le_bytes())
        .f32("f32", 1e-6)
        .raw("bool", 7, &[1])
        .str("str", "grüße")
        .strs("strs", &["a", "", "ü"])
        .raw("u64", 10, &u64::MAX.to_le_bytes())
        .raw("i64", 11, &(-1i64).to_le_bytes())
        .raw("f64", 12, &0.5f64.to_le_bytes())
        .raw("nested", 9, &nested);
    let file = parse(&writer.bytes()).unwrap();
    assert_eq!(
        (file.get_u64("u8").unwrap(), file.get_u64("u16").unwrap(), file.get_u32("u32").unwrap()),
        (Some(200), Some(257), Some(5))
    );
    assert_eq!(file.metadata("i8"), Some(&GgufValue::I8(-1)));
    assert_eq!(file.metadata("i16"), Some(&GgufValue::I16(-1)));
    assert_eq!(file.metadata("i32"), Some(&GgufValue::I32(-5)));
    assert_eq!(file.metadata("i64"), Some(&GgufValue::I64(-1)));
    assert_eq!((file.get_u64("u64").unwrap(), file.get_f64("f64").unwrap()), (Some(u64::MAX), Some(0.5)));
    assert_eq!((file.get_bool("bool").unwrap(), file.get_str("str").unwrap()), (Some(true), Some("grüße")));
    assert_eq!(file.get_strings("strs").unwrap().unwrap().iter().collect::<Vec<_>>(), ["a", "", "ü"]);
    assert_eq!(file.metadata("nested"), Some(&GgufValue::Array(GgufArray::Array(vec![GgufArray::U8(vec![7, 8])]))));
    assert_eq!(file.metadata("f32").unwrap().summary(), serde_json::json!(1e-6));
    assert_eq!(file.metadata("strs").unwrap().summary(), serde_json::json!("3 strings"));
    assert_eq!(file.get_str("absent").unwrap(), None);
    assert!(file.get_str("u32").unwrap_err().to_string().contains("metadata key `u32` is a u32, but must be a string"));
    assert!(file.get_u32("u64").is_err() && file.get_u64("i8").is_err() && file.get_f32s("strs").is_err());
}

#[test]
fn version_2_and_other_alignments_are_read() {
    let mut writer = tiny_llama().u32("general.alignment", 64);
    (writer.version, writer.alignment) = (2, 64);
    let (bytes, start) = writer.build();
    let file = parse(&bytes).unwrap();
    assert_eq!((file.version(), file.tensors()[0].start), (2, start));
    assert_eq!(file.tensor("token_embd.weight").unwrap().shape, [10, 8]);
}

#[test]
fn foreign_files_are_named() {
    let versioned = |v| {
        let mut writer = Writer::new();
        writer.version = v;
        error(&writer.bytes())
    };
    assert!(error(b"GGML").contains("does not begin with `GGUF`"));
    assert!(error(b"").contains("does not begin with `GGUF`"));
    assert!(versioned(1).contains("version 1 is not read"));
    assert!(versioned(4).contains("version 4 is unknown"));
    assert!(versioned(3u32.swap_bytes()).contains("big-endian"));
}

#[test]
fn broken_metadata_are_named() {
    let huge = u64::MAX.to_le_bytes();
    let array = |ty: u32, count: u64| [&ty.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let mut deep = Vec::new();
    (0..6).for_each(|_| deep.extend(array(9, 1)));
    for (writer, message) in [
        (Writer::new().raw("k", 8, &huge), "metadata key `k` (byte"),
        (Writer::new().raw("k", 9, &array(4, u64::MAX)), "more than the rest of the file can hold"),
        (Writer::new().raw("k", 9, &array(8, 1 << 40)), "more than the rest of the file can hold"),
        (Writer::new().raw("k", 9, &deep), "metadata key `k` nests arrays more than 4 deep"),
        (Writer::new().raw("k", 9, &array(77, 0)), "metadata key `k` is an array of the unknown type 77"),
        (Writer::new().raw("k", 13, &[]), "metadata key `k` has the unknown value type 13"),
        (Writer::new().raw("k", 7, &[2]), "metadata key `k` is a boolean of value 2"),
        (Writer::new().raw("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]), "is not UTF-8"),
        (Writer::new().u32("k", 1).u32("k", 1), "metadata key `k` is there twice"),
        (Writer::new().u32("general.alignment", 0), "`general.alignment` is 0"),
        (Writer::new().u32("general.alignment", 24), "`general.alignment` is 24, but must be a power of two"),
        (Writer::new().u32("general.alignment", 1 << 31), "`general.alignment`"),
        (Writer::new().str("general.alignment", "32"), "`general.alignment`"),
    ] {
        let error = error(&writer.bytes());
        assert!(error.contains(message), "{message}: {error}");
    }
}

#[test]
fn broken_tensors_are_named() {
    let moved = |offset| {
        let mut writer = Writer::new().f32_tensor("a", &[8], 0.0).f32_tensor("b", &[16], 0.0);
        writer.offset = Some((1, offset));
        writer
    };
    for (writer, message) in [
        (Writer::new().tensor("t", &[8], 23, vec![0; 64]), "tensor `t` has type IQ4_XS, which wick does not load"),
        (Writer::new().tensor("t", &[8], 99, vec![0; 64]), "tensor `t` has type ggml type 99"),
        (Writer::new().tensor("t", &[8, 0], 0, vec![]), "tensor `t` has a dimension of size 0"),
        (Writer::new().tensor("t", &[1; 5], 0, vec![0; 4]), "tensor `t` has 5 dimensions"),
        (Writer::new().tensor("t", &[], 0, vec![0; 64]), "tensor `t` has 0 dimensions"),
        (Writer::new().tensor("t", &[33], 2, vec![0; 64]), "no whole Q4_0 blocks"),
        (
            Writer::new().tensor("t", &[1 << 40, 1 << 40], 0, vec![]),
            "tensor `t` of shape [1099511627776, 1099511627776] is too large",
        ),
        (Writer::new().tensor("t", &[1 << 20], 0, vec![0; 64]), "tensor `t` (4194304 bytes at offset 0"),
        (Writer::new().f32_tensor("t", &[8], 0.0).f32_tensor("t", &[8], 0.0), "tensor `t` is there twice"),
        (moved(0), "tensors `a` and `b` overlap at byte"),
        (moved(8), "tensor `b` begins at offset 8, which is no multiple of the alignment 32"),
        (moved(1 << 40), "tensor `b` (64 bytes at offset 1099511627776"),
        (moved(u64::MAX - 31), "tensor `b`"),
    ] {
        let error = error(&writer.bytes());
        assert!(error.contains(message), "{message}: {error}");
    }
}

#[test]
fn counts_beyond_the_file_are_refused_before_anything_is_read() {
    for at in [8, 16] {
        let mut bytes = Writer::new().u32("k", 1).bytes();
        bytes[at..at + 8].copy_from_slice(&(u64::MAX / 32).to_le_bytes());
        assert!(error(&bytes).contains("more than the rest of the file can hold"));
    }
}

#[test]
fn every_truncation_is_an_error_that_says_so() {
    let (bytes, start) = tiny_llama().build();
    for len in 0..bytes.len() {
        let error = error(&bytes[..len]);
        assert!(len < 4 || error.contains("fetch it again") || error.contains("can hold"), "{len}: {error}");
    }
    assert!(error(&bytes[..start]).contains("reaches beyond the end of the file"));
}

#[test]
fn a_whole_model_is_taken() {
    let (_folder, model) = opened(&tiny_llama());
    take_all(&*model.weights).unwrap();
    let stored = 4 * (80 + 8 + 2 * (2 * 8 + 2 * 64 + 2 * 32 + 3 * 128));
    let copied = 4 * 2 * (64 + 32); // q and k of both layers
    let expected = WeightMemory { bytes: stored + copied, form: WeightForm::Mapped { copied } };
    assert_eq!(model.weights.memory(false), expected);
    assert!(crate::model::registry::spec(&model.config).unwrap().tie_embeddings);
}

#[test]
fn llamas_q_and_k_rows_come_back_in_half_split_order() {
    let (_folder, model) = opened(&tiny_llama());
    let rows = |name, count| {
        let m = model.weights.matrix(name, count, 8, &Device::Cpu).unwrap();
        f32s(&m).chunks(8).map(|r| r[0] / 8.0).collect::<Vec<_>>()
    };
    assert_eq!(rows("model.layers.0.self_attn.q_proj.weight", 8), [0., 2., 1., 3., 4., 6., 5., 7.]);
    assert_eq!(rows("model.layers.0.self_attn.k_proj.weight", 4), [0., 2., 1., 3.]);
    assert_eq!(rows("model.layers.0.self_attn.v_proj.weight", 4), [0., 1., 2., 3.]);
}

#[test]
fn only_rewritten_matrices_are_copied() {
    let (_folder, model) = opened(&tiny_llama());
    let owned = |name| match model.weights.matrix(name, 8, 8, &Device::Cpu).unwrap() {
        Matrix::Mapped(m) => matches!(m.bytes, MappedBytes::Owned(_)),
        _ => panic!("not on the CPU"),
    };
    assert!(owned("model.layers.0.self_attn.q_proj.weight"));
    assert!(!owned("model.layers.0.self_attn.o_proj.weight"));
}

#[test]
fn left_over_missing_and_misshapen_tensors_are_named_as_the_file_names_them() {
    let (_folder, model) =
        opened(&tiny_llama().f32_tensor("blk.0.attn_qkv.weight", &[8], 0.0).f32_tensor("blk.1.attn_q.bias", &[8], 0.0));
    let left = take_all(&*model.weights).unwrap_err().to_string();
    assert_eq!(left, "tensors that the model does not use: blk.0.attn_qkv.weight, blk.1.attn_q.bias");
    let missing = model.weights.matrix("model.layers.7.mlp.up_proj.weight", 1, 1, &Device::Cpu).err().unwrap();
    assert_eq!(missing.to_string(), "the model lacks tensor `blk.7.ffn_up.weight`");
    let twice = model.weights.matrix("model.embed_tokens.weight", 10, 8, &Device::Cpu).err().unwrap();
    assert!(matches!(twice, LoadError::TakenTwice { .. }));

    let (_folder, model) = opened(&tiny_llama());
    let shape = model.weights.matrix("model.layers.0.mlp.up_proj.weight", 8, 16, &Device::Cpu).err().unwrap();
    assert!(
        shape.to_string().contains("`blk.0.ffn_up.weight` has shape [16, 8], but the configuration asks for [8, 16]")
    );
    let (_folder, path) = on_disk(&Writer::new().str("general.architecture", "llama").bytes());
    assert!(matches!(open(&path), Err(LoadError::MissingTensor { name }) if name == "token_embd.weight"));
}

#[test]
fn gemmas_norms_are_not_raised_twice() {
    let names = ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"];
    let mut writer = Writer::new()
        .str("general.architecture", "gemma3")
        .u32("gemma3.block_count", 1)
        .u32("gemma3.context_length", 64)
        .u32("gemma3.embedding_length", 8)
        .u32("gemma3.feed_forward_length", 16)
        .u32("gemma3.attention.head_count", 2)
        .u32("gemma3.attention.head_count_kv", 1)
        .u32("gemma3.attention.key_length", 8)
        .u32("gemma3.attention.sliding_window", 16)
        .f32("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
        .f32_tensor("token_embd.weight", &[8, 10], 0.0);
    for (i, name) in names.iter().enumerate() {
        writer = writer.f32_tensor(&format!("blk.0.{name}.weight"), &[8], 10.0 * i as f32);
    }
    let (_folder, model) = opened(&writer);
    let first = |name: &str| {
        let norm =
            model.weights.norm(&format!("model.layers.0.{name}.weight"), 8, NormWeight::OnePlus, &Device::Cpu).unwrap();
        norm.to_vec1::<f32>().unwrap()[0]
    };
    let hf = ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"];
    assert_eq!(hf.map(first), [0.0, 10.0, 20.0, 30.0]);
    let spec = crate::model::registry::spec(&model.config).unwrap();
    assert_eq!(
        (spec.layers[0].attn.head_dim, spec.layers[0].attn.window, spec.layers[0].attn.scale),
        (8, Some(16), 8f32.powf(-0.5))
    );
}

#[test]
fn llama_3s_rope_factors_are_configuration() {
    let (_folder, model) = opened(&tiny_llama().f32_tensor("rope_freqs.weight", &[2], 1.0));
    let spec = crate::model::registry::spec(&model.config).unwrap();
    assert_eq!(spec.layers[0].attn.rope.inv_freq, [1.0, 0.01 / 2.0]);
    take_all(&*model.weights).unwrap();
}

#[test]
fn a_folder_with_one_gguf_file_is_a_model() {
    let (folder, path) = on_disk(&tiny_llama().bytes());
    assert!(open(folder.path()).is_ok());
    std::fs::copy(&path, folder.path().join("other.gguf")).unwrap();
    let two = open(folder.path()).err().unwrap().to_string();
    assert!(two.contains("2 GGUF files (model.gguf, other.gguf); name one of them"), "{two}");
    let empty = tempfile::tempdir().unwrap();
    assert!(open(empty.path()).err().unwrap().to_string().contains("no model here"));
    assert!(matches!(open(&empty.path().join("none.gguf")), Err(LoadError::Io { .. })));
    std::fs::write(empty.path().join("empty.gguf"), b"").unwrap();
    assert!(open(empty.path()).err().unwrap().to_string().contains("the file is empty"));
}

#[test]
fn inspection_describes_servable_and_foreign_files() {
    let (_folder, path) = on_disk(&tiny_llama().bytes());
    let d = crate::weights::describe(&path).unwrap();
    assert_eq!((d.format.as_str(), d.architecture.as_str(), d.tensor_count), ("GGUF v3", "llama", 20));
    assert_eq!((d.types[0].ty.as_str(), d.types[0].bytes, d.problem), ("F32", d.total_bytes, None));
    assert!(d.spec.is_some() && d.config.is_some());
    let (_folder, path) = on_disk(&Writer::new().str("general.architecture", "mamba").bytes());
    let d = crate::weights::describe(&path).unwrap();
    assert!(d.spec.is_none() && d.problem.unwrap().contains("unknown architecture `mamba`"));
}

/// A sparse file costs its author nothing, so its length bounds nothing.
#[test]
fn a_header_has_a_limit_however_long_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse.gguf");
    let open = |tensors: u64, entries: u64, list: u64| {
        let mut head =
            [b"GGUF".as_slice(), &3u32.to_le_bytes(), &tensors.to_le_bytes(), &entries.to_le_bytes()].concat();
        head.extend(string("k"));
        head.extend(9u32.to_le_bytes());
        head.extend(8u32.to_le_bytes());
        head.extend(list.to_le_bytes());
        std::fs::write(&path, head).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(8 << 30).unwrap();
        GgufFile::open(&path).err().expect("no error").to_string()
    };
    let error = open(0, 1, 1 << 29);
    assert!(error.contains("is 536870912, more than the rest of the file can hold"), "{error}");
    assert!(open(0, 1 << 20, 0).contains("1048576 metadata entries; wick reads at most"));
    assert!(open(1 << 20, 1, 0).contains("1048576 tensors; wick reads at most"));
}

proptest! {
    /// Whatever a header says, reading it ends, with a result; what is kept never exceeds a small multiple of the file.
    #[test]
    fn damaged_headers_never_panic(
        cut in 0usize..2000,
        flips in prop::collection::vec((0usize..2000, 0u8..8), 0..6),
        numbers in prop::collection::vec((0usize..400, prop_oneof![Just(u64::MAX), Just(1u64 << 63), Just(1 << 32), any::<u64>()]), 0..2),
    ) {
        let mut bytes = tiny_llama().strs("tokens", &["a", "b", "c"]).bytes();
        for (at, bit) in flips {
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
        }
        for (at, n) in numbers {
            bytes[at..at + 8].copy_from_slice(&n.to_le_bytes());
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Ok(file) = parse(&bytes) {
            for t in file.tensors() {
                prop_assert!(t.start + t.len <= bytes.len());
            }
            let _ = crate::model::config::HfConfig::from_gguf(&file).and_then(|c| crate::model::registry::spec(&c));
        }
    }

    /// Any bytes after the magic number.
    #[test]
    fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300), counts in any::<(u8, u8)>()) {
        let mut bytes = [b"GGUF".as_slice(), &3u32.to_le_bytes(), &u64::from(counts.0 % 4).to_le_bytes(), &u64::from(counts.1 % 4).to_le_bytes()].concat();
        bytes.extend(string("k"));
        bytes.extend(tail);
        let _ = parse(&bytes);
    }
}

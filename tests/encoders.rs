//! Encoders against their references: tiny checkpoints made by `transformers`, and all-MiniLM-L6-v2 by `sentence-transformers`.
#[path = "support/models.rs"]
mod models;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use models::{golden, pulled};
use serde_json::Value;
use wick::encoder::{self, EncoderInput, EncoderModel, EncoderRunner};
use wick::ops::ExecContext;
use wick::text::TextTools;
use wick_kernels::{Cpu, Isa, Precision, ThreadPool};

/// Largest difference of a value of a tiny model, in float32 on both sides.
const TOLERANCE: f64 = 2e-5;
/// The same where matrices and activations are rounded to 8 bits. The matrices are random, which is harder than trained ones.
const ROUNDED_TOLERANCE: f64 = 0.05;

const EMBEDDERS: [&str; 3] = ["bert-mean", "bert-cls", "xlm-roberta-max"];
const RERANKERS: [&str; 2] = ["bert-reranker", "xlm-roberta-reranker"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/encoders").join(name)
}

fn context(isa: Isa, threads: usize, activations: Precision) -> ExecContext {
    let pool = Arc::new(ThreadPool::new(NonZeroUsize::new(threads).unwrap()));
    ExecContext::cpu(Cpu { isa, pool }, activations)
}

fn load(path: &Path, cx: ExecContext) -> EncoderModel {
    let files = encoder::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    EncoderModel::load(&files, cx).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What the reference computed: inputs, and the vector or the number of each.
struct Expected {
    inputs: Vec<EncoderInput>,
    values: Vec<Vec<f64>>,
}

/// Reads a golden file and holds the tokens that wick finds against those of the reference.
fn expected(file: &str, model: &Path) -> Expected {
    let golden = golden(&format!("encoders/{file}"));
    let tokenizer = TextTools::load(model, None).unwrap().tokenizer;
    let query = golden["query"].as_str().filter(|query| !query.is_empty());
    let (mut inputs, mut values) = (Vec::new(), Vec::new());
    for case in golden["cases"].as_array().unwrap() {
        let text = tokenizer.encode(case["text"].as_str().unwrap(), false).unwrap();
        let input = match query {
            None => EncoderInput::text(tokenizer.frame(&text)),
            Some(query) => {
                let (ids, second) = tokenizer.frame_pair(&tokenizer.encode(query, false).unwrap(), &text).unwrap();
                EncoderInput { ids, second }
            }
        };
        assert_eq!(input.ids, serde_json::from_value::<Vec<u32>>(case["ids"].clone()).unwrap(), "{}", case["text"]);
        inputs.push(input);
        values.push(match &case["embedding"] {
            Value::Null => vec![case["score"].as_f64().unwrap()],
            vector => serde_json::from_value(vector.clone()).unwrap(),
        });
    }
    assert!(inputs.len() >= 8);
    Expected { inputs, values }
}

fn distance(got: &[Vec<f32>], want: &[Vec<f64>]) -> f64 {
    assert_eq!(got.len(), want.len());
    let pairs = got.iter().zip(want).flat_map(|(got, want)| {
        assert_eq!(got.len(), want.len());
        got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).abs())
    });
    pairs.fold(0.0, f64::max)
}

/// The largest 1 - cosine.
fn cosine_distance(got: &[Vec<f32>], want: &[Vec<f64>]) -> f64 {
    let one = |(got, want): (&Vec<f32>, &Vec<f64>)| {
        let dot: f64 = got.iter().zip(want).map(|(a, b)| f64::from(*a) * b).sum();
        let (a, b): (f64, f64) =
            (got.iter().map(|v| f64::from(*v).powi(2)).sum(), want.iter().map(|v| v.powi(2)).sum());
        1.0 - dot / (a * b).sqrt()
    };
    got.iter().zip(want).map(one).fold(0.0, f64::max)
}

#[test]
fn tiny_encoders_compute_what_transformers_computes() {
    for name in EMBEDDERS.into_iter().chain(RERANKERS) {
        let expected = expected(&format!("{name}/expected.json"), &folder(name));
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let mut exact = load(&folder(name), context(isa, 2, Precision::Exact));
            let far = distance(&exact.run(&expected.inputs).unwrap(), &expected.values);
            assert!(far < TOLERANCE, "{name} {isa:?}: {far:e}");
            let mut rounded = load(&folder(name), context(isa, 2, Precision::Int8));
            let far = distance(&rounded.run(&expected.inputs).unwrap(), &expected.values);
            assert!(far < ROUNDED_TOLERANCE, "{name} {isa:?}, rounded: {far:e}");
        }
        let mut reference = load(&folder(name), ExecContext::reference(Device::Cpu));
        let far = distance(&reference.run(&expected.inputs).unwrap(), &expected.values);
        assert!(far < TOLERANCE, "{name}, candle's operations: {far:e}");
    }
}

#[test]
fn every_tiny_encoder_in_the_repository_is_compared() {
    let entries = std::fs::read_dir(folder("")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<String> =
        entries.filter(|path| path.is_dir()).map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect();
    found.sort();
    let mut known: Vec<&str> = EMBEDDERS.into_iter().chain(RERANKERS).collect();
    known.sort_unstable();
    assert_eq!(found, known);
}

/// Alone or among others, on any number of threads: the same bits.
#[test]
fn results_do_not_depend_on_batch_mates() {
    for name in ["bert-mean", "bert-cls", "xlm-roberta-reranker"] {
        let inputs = expected(&format!("{name}/expected.json"), &folder(name)).inputs;
        for activations in [Precision::Exact, Precision::Int8] {
            let mut one = load(&folder(name), context(Isa::detect(), 1, activations));
            let alone: Vec<Vec<f32>> =
                inputs.iter().map(|input| one.run(std::slice::from_ref(input)).unwrap().remove(0)).collect();
            let mut three = load(&folder(name), context(Isa::detect(), 3, activations));
            assert_eq!(three.run(&inputs).unwrap(), alone, "{name} {activations:?}");
            let backwards: Vec<EncoderInput> = inputs.iter().rev().cloned().collect();
            let mut turned = three.run(&backwards).unwrap();
            turned.reverse();
            assert_eq!(turned, alone, "{name} {activations:?} backwards");
        }
    }
}

#[test]
fn an_id_beyond_the_vocabulary_fails_the_batch_and_nothing_else() {
    let mut model = load(&folder("bert-cls"), context(Isa::detect(), 2, Precision::Int8));
    let vocab = model.spec().vocab as u32;
    assert!(model.run(&[EncoderInput::text(vec![1, vocab])]).is_err());
    let too_long = EncoderInput::text(vec![1; model.spec().positions + 1]);
    assert!(model.run(&[too_long]).is_err());
    assert_eq!(model.run(&[EncoderInput::text(vec![1, 2])]).unwrap().len(), 1);
}

#[test]
fn all_minilm_l6_v2_agrees_with_sentence_transformers() {
    let path = pulled("all-minilm-l6-v2");
    let expected = expected("all-minilm-l6-v2.json", &path);
    assert!(expected.inputs.len() >= 20);
    for (activations, most) in [(Precision::Exact, 1e-6), (Precision::Int8, 1e-3)] {
        let mut model = load(&path, context(Isa::detect(), 2, activations));
        let far = cosine_distance(&model.run(&expected.inputs).unwrap(), &expected.values);
        println!("all-minilm-l6-v2, {activations:?}: 1 - cosine at most {far:.2e}");
        assert!(far < most, "{activations:?}: {far:e}");
    }
}

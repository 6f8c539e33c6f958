//! Tiny checkpoints made by `transformers`, loaded from their files like any model: the same logits, the same greedy tokens.
use std::path::{Path, PathBuf};

use serde_json::Value;
use wick::runner::ModelRunner;

use crate::harness::{Driver, options};

/// Largest |ours - transformers'| / (1 + |transformers'|) of a logit, f32 arithmetic and cache on both sides. The weights' standard
/// deviation is 0.3, which makes logits of up to a few tens.
const LOGIT_TOLERANCE: f32 = 1e-4;
/// Largest difference of a token's log-probability.
const LOGPROB_TOLERANCE: f64 = 5e-4;

/// Every family wick knows, and what it knows of shards, stored types and rope scaling.
const CHECKPOINTS: [&str; 12] = [
    "gemma3",
    "gemma3-linear-rope",
    "llama",
    "llama-bf16",
    "llama-f16",
    "llama-linear-rope",
    "llama-sharded",
    "llama3-rope",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny")
}

fn driver(checkpoint: &str) -> Driver {
    let files = wick::weights::open(&folder().join(checkpoint)).unwrap_or_else(|e| panic!("{checkpoint}: {e}"));
    let options = options();
    Driver::new(ModelRunner::load(&files, &options).unwrap_or_else(|e| panic!("{checkpoint}: {e}")), &options)
}

fn cases(checkpoint: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join(checkpoint).join("expected.json")).unwrap();
    let mut expected: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(expected["cases"].take()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

fn logprob(row: &[f32], id: u32) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&v| (f64::from(v) - max).exp()).sum();
    f64::from(row[id as usize]) - max - sum.ln()
}

#[test]
fn every_checkpoint_is_tested() {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.join("expected.json").exists()).collect();
    found.sort();
    let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, CHECKPOINTS);
}

#[test]
fn logits_and_logprobs_are_those_of_transformers() {
    for checkpoint in CHECKPOINTS {
        let mut driver = driver(checkpoint);
        for case in cases(checkpoint) {
            let prompt = ids(&case["prompt_ids"]);
            let rows = driver.rows_of(&prompt, &[prompt.len()]);
            let what = format!("{checkpoint}, {} tokens", prompt.len());
            let expected = numbers(&case["last_logits"]);
            let last = rows.last().unwrap();
            assert_eq!(last.len(), expected.len(), "{what}");
            for (i, (&got, &want)) in last.iter().zip(&expected).enumerate() {
                let want = want as f32;
                assert!(
                    (got - want).abs() <= LOGIT_TOLERANCE * (1.0 + want.abs()),
                    "{what}: logit {i} is {got}, not {want}"
                );
            }
            let known = numbers(&case["prompt_logprobs"]);
            assert_eq!(known.len(), prompt.len() - 1, "{what}");
            for (i, want) in known.iter().enumerate() {
                let got = logprob(&rows[i], prompt[i + 1]);
                assert!((got - want).abs() <= LOGPROB_TOLERANCE, "{what}: log-probability {i} is {got}, not {want}");
            }
        }
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for checkpoint in CHECKPOINTS {
        let mut driver = driver(checkpoint);
        for case in cases(checkpoint) {
            let (prompt, expected) = (ids(&case["prompt_ids"]), ids(&case["ids"]));
            assert_eq!(driver.greedy(&prompt, expected.len()), expected, "{checkpoint}, {} tokens", prompt.len());
        }
    }
}

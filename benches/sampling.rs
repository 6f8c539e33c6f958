//! What sampling one token costs, by vocabulary and by how sure the model is.
//!
//! `cargo bench --bench sampling`
use std::sync::Arc;

use divan::Bencher;
use wick::sampling::{Sampler, SamplingParams};

/// Vocabularies of SmolLM2, Qwen 2.5 and Gemma 3.
const VOCABS: [usize; 3] = [49_152, 151_936, 262_144];

fn main() {
    divan::main();
}

fn uniform(vocab: usize) -> impl Iterator<Item = f32> {
    (0..vocab as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32)
}

/// Every token about as likely as every other: a high temperature, or a model that knows nothing.
fn flat(vocab: usize) -> Vec<f32> {
    uniform(vocab).map(|x| x * 0.5).collect()
}

/// Logits over a range of 8.
fn spread(vocab: usize) -> Vec<f32> {
    uniform(vocab).map(|x| x * 8.0).collect()
}

/// A few thousand likely tokens and a long tail, as between two sentences.
fn unsure(vocab: usize) -> Vec<f32> {
    uniform(vocab).map(|x| -(1.0 + x * vocab as f32).ln() * 0.9).collect()
}

/// One token has most of the mass.
fn sure(vocab: usize) -> Vec<f32> {
    let mut row = spread(vocab);
    row[17] = 24.0;
    row
}

fn sample(bencher: Bencher<'_, '_>, row: &[f32], params: SamplingParams) {
    let mut sampler = Sampler::new(Arc::new(params), &[1, 2, 3]);
    let mut index = 0;
    bencher.with_inputs(|| row.to_vec()).bench_local_refs(|row| {
        index += 1;
        sampler.sample(row, index, &[])
    });
}

fn top_p(bencher: Bencher<'_, '_>, row: &[f32]) {
    sample(bencher, row, SamplingParams { temperature: 0.7, top_p: 0.9, ..SamplingParams::default() });
}

#[divan::bench(args = VOCABS)]
fn greedy(bencher: Bencher<'_, '_>, vocab: usize) {
    sample(bencher, &spread(vocab), SamplingParams { temperature: 0.0, ..SamplingParams::default() });
}

#[divan::bench(args = VOCABS)]
fn greedy_with_20_logprobs(bencher: Bencher<'_, '_>, vocab: usize) {
    let params = SamplingParams { temperature: 0.0, logprobs: Some(20), ..SamplingParams::default() };
    sample(bencher, &spread(vocab), params);
}

#[divan::bench(args = VOCABS)]
fn temperature(bencher: Bencher<'_, '_>, vocab: usize) {
    sample(bencher, &spread(vocab), SamplingParams { temperature: 0.7, ..SamplingParams::default() });
}

#[divan::bench(args = VOCABS)]
fn top_p_flat(bencher: Bencher<'_, '_>, vocab: usize) {
    top_p(bencher, &flat(vocab));
}

#[divan::bench(args = VOCABS)]
fn top_p_spread(bencher: Bencher<'_, '_>, vocab: usize) {
    top_p(bencher, &spread(vocab));
}

#[divan::bench(args = VOCABS)]
fn top_p_unsure(bencher: Bencher<'_, '_>, vocab: usize) {
    top_p(bencher, &unsure(vocab));
}

#[divan::bench(args = VOCABS)]
fn top_p_sure(bencher: Bencher<'_, '_>, vocab: usize) {
    top_p(bencher, &sure(vocab));
}

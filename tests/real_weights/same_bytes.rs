//! One request, one output: whoever shares its batch, however its prompt is cut, whatever the cache holds.
use std::path::Path;
use std::sync::Arc;

use wick::engine::GenerationRequest;
use wick::sampling::SamplingParams;
use wick_kernels::Precision;

use crate::harness::{BLOCK_SIZE, Engine, Output, Setup, request};
use crate::models::{golden, pulled};

const NEW_TOKENS: usize = 16;
/// Alternatives whose log-probabilities are compared.
const TOP: u8 = 5;

/// Token ids of real text.
fn text() -> Vec<u32> {
    let file = golden("logits/smollm2-135m.json");
    let cases = file["cases"].as_array().unwrap();
    let long = cases.iter().find(|case| case["name"] == "very_long").unwrap();
    long["prompt_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The requests whose outputs are compared: two greedy ones and two that are drawn, each with a seed of its own.
fn subjects() -> Vec<GenerationRequest> {
    let text = text();
    let prompts = [&text[..78], &text[100..161], &text[200..295], &text[300..379]];
    let subject = |(i, prompt): (usize, &&[u32])| {
        let mut subject = request(prompt, NEW_TOKENS, TOP);
        if i % 2 == 1 {
            let drawn = SamplingParams { temperature: 1.0, seed: 7 + i as u64, ..(*subject.params).clone() };
            subject.params = Arc::new(drawn);
        }
        subject
    };
    prompts.iter().enumerate().map(subject).collect()
}

/// `count` other requests, of other lengths, some drawn; some begin as a subject does.
fn mates(count: usize) -> Vec<GenerationRequest> {
    let text = text();
    let mate = |i: usize| {
        let start = if i.is_multiple_of(5) { 100 } else { 13 * i + 5 };
        let mut mate = request(&text[start..start + 20 + (7 * i) % 37], 6 + i % 12, TOP);
        if i.is_multiple_of(3) {
            let drawn = SamplingParams { temperature: 0.8, top_p: 0.9, seed: i as u64, ..(*mate.params).clone() };
            mate.params = Arc::new(drawn);
        }
        mate
    };
    (0..count).map(mate).collect()
}

/// Blocks that the prompts of `requests` fill, the last ones partly.
fn prompt_blocks(requests: &[GenerationRequest]) -> usize {
    requests.iter().map(|request| request.prompt.len().div_ceil(BLOCK_SIZE)).sum()
}

/// Every bit that a client could see.
pub type Bits = Vec<(u32, u32, Vec<(u32, u32)>)>;

/// What the subjects get from an engine.
pub fn subjects_bits(engine: &Engine) -> Vec<Bits> {
    engine.run(subjects()).iter().map(bits).collect()
}

fn bits(output: &Output) -> Bits {
    assert_eq!(output.ids.len(), NEW_TOKENS);
    let tokens = output.ids.iter().zip(&output.logprobs);
    tokens
        .map(|(&id, found)| {
            assert_eq!(found.top.len(), usize::from(TOP));
            let top = found.top.iter().map(|&(id, logprob)| (id, logprob.to_bits()));
            (id, found.logprob.to_bits(), top.collect())
        })
        .collect()
}

struct Expected(Vec<Bits>);

impl Expected {
    fn same(&self, outputs: &[Output], how: &str) {
        assert_eq!(outputs.len(), self.0.len());
        for (subject, (output, expected)) in outputs.iter().zip(&self.0).enumerate() {
            let found = bits(output);
            if let Some(at) = (0..NEW_TOKENS).find(|&at| found[at] != expected[at]) {
                let (found, expected) = (&found[at], &expected[at]);
                panic!("subject {subject}, {how}: token {at} is {found:x?}, but alone it was {expected:x?}");
            }
        }
    }
}

/// Runs the subjects in one batch with mates around them.
fn run_among(engine: &Engine, mates: Vec<GenerationRequest>) -> Vec<Output> {
    let before = mates.len();
    let mut outputs = engine.run(mates.into_iter().chain(subjects()).collect());
    outputs.split_off(before)
}

#[test]
fn a_request_gets_the_same_bytes_however_it_is_run() {
    same_bytes(Setup::default());
}

#[test]
fn a_request_gets_the_same_bytes_with_8_bit_activations() {
    same_bytes(Setup { activations: Precision::Int8, ..Setup::default() });
}

fn same_bytes(setup: Setup) {
    let model = pulled("smollm2-135m");
    let expected = {
        let engine = Engine::start(&model, Setup { threads: 1, prefix_cache: false, speculation: false, ..setup });
        let outputs = engine.run_alone(&subjects());
        assert_eq!(engine.widest_step(), 1);
        Expected(outputs.iter().map(bits).collect())
    };
    assert!(expected.0.iter().all(|one| expected.0.iter().filter(|other| *other == one).count() == 1));

    alone(&model, setup, &expected);
    in_batches(&model, setup, &expected);
    preempted(&model, setup, &expected);
}

fn alone(model: &Path, setup: Setup, expected: &Expected) {
    for (threads, chunk) in [(2, 16), (1, 64), (2, 512)] {
        let how = format!("alone, {threads} threads, chunks of {chunk}");
        let engine = Engine::start(model, Setup { threads, chunk, ..setup });
        let cold = engine.run_alone(&subjects());
        assert!(cold.iter().all(|output| output.cached_tokens == 0), "{how}: the cache was not cold");
        expected.same(&cold, &format!("{how}, cache cold"));
        let warm = engine.run_alone(&subjects());
        assert!(warm.iter().all(|output| output.cached_tokens >= 3 * BLOCK_SIZE), "{how}: the cache was not warm");
        expected.same(&warm, &format!("{how}, cache warm"));
    }
}

fn in_batches(model: &Path, setup: Setup, expected: &Expected) {
    for (batch, chunk, threads) in [(8, 16, 2), (8, 512, 1), (32, 64, 2)] {
        let how = format!("in a batch of {batch}, chunks of {chunk}, {threads} threads");
        let engine = Engine::start(model, Setup { threads, chunk, ..setup });
        let outputs = run_among(&engine, mates(batch - subjects().len()));
        // Short mates may have ended before the last prompt is through; the batch is still much wider than one.
        assert!(engine.widest_step() > batch / 2, "{how}: no step was wider than {}", engine.widest_step());
        expected.same(&outputs, &how);
    }
}

fn preempted(model: &Path, setup: Setup, expected: &Expected) {
    // The scheduler admits a prompt only beside a spare block for each running sequence. Here all four are admitted at once,
    // and soon each needs its spare block: there are three.
    let num_blocks = prompt_blocks(&subjects()) + subjects().len() - 1;
    for prefix_cache in [false, true] {
        let how = format!("with {num_blocks} blocks for all, prefix cache {prefix_cache}");
        let setup = Setup { num_blocks, prefix_cache, chunk: 512, threads: 2, ..setup };
        let engine = Engine::start(model, setup);
        let outputs = engine.run(subjects());
        assert!(engine.stats().scheduler.preemptions > 0, "{how}: nothing was preempted");
        expected.same(&outputs, &how);
    }
}

//! Guessed tokens on a real model: fewer steps, the same bytes.
use std::sync::Arc;

use wick::engine::GenerationRequest;
use wick::sampling::SamplingParams;
use wick::text::TextTools;

use crate::harness::{Engine, Output, Setup, request};
use crate::models::pulled;
use crate::same_bytes::Bits;

/// A text that a model goes on repeating.
const TEXT: &str =
    "def area(width, height):\n    \"\"\"The area of a rectangle.\"\"\"\n    return width * height\n\n\n";

const NEW_TOKENS: usize = 96;

fn requests() -> Vec<GenerationRequest> {
    let text = TextTools::load(&pulled("smollm2-135m"), None).unwrap();
    let prompt = text.tokenizer.encode_with_special(&TEXT.repeat(3), true).unwrap();
    let drawn = |seed| {
        let mut drawn = request(&prompt, NEW_TOKENS, 3);
        let params = SamplingParams { temperature: 0.8, top_p: 0.95, seed, ..(*drawn.params).clone() };
        drawn.params = Arc::new(params);
        drawn
    };
    let mut penalised = request(&prompt, NEW_TOKENS, 3);
    let params = SamplingParams { frequency_penalty: 0.1, repetition_penalty: 1.05, ..(*penalised.params).clone() };
    penalised.params = Arc::new(params);
    vec![request(&prompt, NEW_TOKENS, 3), drawn(1), drawn(2), penalised]
}

#[test]
fn guesses_change_no_bit_of_what_a_client_sees() {
    let model = pulled("smollm2-135m");
    let bits = |outputs: Vec<Output>| -> Vec<Bits> {
        let tokens = |output: &Output| {
            let tokens = output.ids.iter().zip(&output.logprobs);
            let top = |top: &[(u32, f32)]| top.iter().map(|&(id, logprob)| (id, logprob.to_bits())).collect();
            tokens.map(|(&id, found)| (id, found.logprob.to_bits(), top(&found.top))).collect()
        };
        outputs.iter().map(tokens).collect()
    };
    let plain = {
        let engine = Engine::start(&model, Setup { speculation: false, ..Setup::default() });
        let outputs = bits(engine.run_alone(&requests()));
        assert_eq!(engine.stats().scheduler.drafted_tokens, 0);
        outputs
    };
    assert!(plain.iter().all(|output| output.len() == NEW_TOKENS));
    let engine = Engine::start(&model, Setup::default());
    let mut accepted = Vec::new();
    for (request, plain) in requests().into_iter().zip(&plain) {
        let before = engine.stats();
        assert_eq!(bits(engine.run(vec![request])), std::slice::from_ref(plain), "request {} alone", accepted.len());
        let after = engine.stats();
        accepted.push(after.scheduler.accepted_tokens - before.scheduler.accepted_tokens);
        println!("{NEW_TOKENS} tokens in {} steps", after.steps - before.steps);
    }
    assert!(accepted[0] > 30 && accepted[1] + accepted[2] > 2, "{accepted:?} guesses were right");
    assert_eq!(bits(engine.run(requests())), plain, "together");
}

//! Answers of a real model under a grammar: valid at any temperature and seed, and the same whatever is computed beside them.
use std::sync::Arc;

use wick::engine::GenerationRequest;
use wick::grammar::{GrammarCompiler, GrammarSource};
use wick::sampling::SamplingParams;
use wick::text::{ChatInput, Detokenizer, TextTools};

use crate::harness::{Engine, Output, Setup, request};
use crate::models::pulled;
use crate::schemas;

const NEW_TOKENS: usize = 192;

/// Every schema at temperature 0 and, with several seeds, at 1.5.
fn requests(text: &TextTools, vocab: usize) -> Vec<(String, serde_json::Value, GenerationRequest)> {
    let compiler = GrammarCompiler::new(&text.tokenizer, vocab).unwrap();
    let mut requests = Vec::new();
    for (name, schema) in schemas::all() {
        let source = GrammarSource::JsonSchema { schema: schema.to_string(), compact: false };
        let grammar = compiler.compile(&source).unwrap();
        let said = format!("Answer in JSON that follows this schema: {schema}");
        let messages = vec![serde_json::json!({"role": "user", "content": said})];
        let input = ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() };
        let prompt = text.encode_chat(&input).unwrap();
        for (temperature, seed) in [(0.0, 0), (1.5, 1), (1.5, 2), (1.5, 3)] {
            let mut request = request(&prompt, NEW_TOKENS, 1);
            let params = SamplingParams { temperature, seed, ..(*request.params).clone() };
            request.params = Arc::new(params);
            request.limits.stop_tokens = text.tokenizer.stop_ids().into();
            request.grammar = Some(grammar.clone());
            requests.push((format!("{name}, temperature {temperature}, seed {seed}"), schema.clone(), request));
        }
    }
    requests
}

#[test]
fn answers_validate_and_do_not_depend_on_the_batch_or_on_guesses() {
    let model = pulled("smollm2-135m");
    let text = TextTools::load(&model, None).unwrap();
    let cases = requests(&text, text.tokenizer.vocab_size());
    let requests: Vec<GenerationRequest> = cases.iter().map(|(.., request)| request.clone()).collect();
    let answer = |output: &Output| {
        let mut detokenizer = Detokenizer::continuing(&text.tokenizer);
        let shown: String = output.ids.iter().map(|&id| detokenizer.push(id)).collect();
        shown + &detokenizer.finish()
    };
    let together = {
        let engine = Engine::start(&model, Setup { speculation: false, ..Setup::default() });
        engine.run(requests.clone())
    };
    let mut whole = 0;
    for ((name, schema, _), output) in cases.iter().zip(&together) {
        if output.ids.len() < NEW_TOKENS {
            schemas::assert_valid(schema, &answer(output), name);
            whole += 1;
        }
    }
    println!("{whole} of {} answers ended within {NEW_TOKENS} tokens", together.len());
    assert!(whole * 10 > together.len() * 7, "only {whole} of {} answers ended", together.len());

    let guessing = Engine::start(&model, Setup::default());
    // One in three, each alone: guesses are made for few sequences at once.
    for (at, request) in requests.iter().enumerate().step_by(3) {
        let alone = guessing.run(vec![request.clone()]);
        assert_eq!(alone[0].ids, together[at].ids, "{}", cases[at].0);
    }
    let counters = guessing.stats().scheduler;
    println!("{} of {} guesses were right", counters.accepted_tokens, counters.drafted_tokens);
}

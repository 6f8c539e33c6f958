//! What following a grammar costs beside the forward pass: compiling it, and the mask of each token, over the tokens of a
//! cached model (151,936 of Qwen 2.5, which `wick pull qwen2.5-coder-0.5b` fetches; the tests do, too).
//!
//! `cargo bench --bench grammar`; masks are counted in items: one is one token.
use std::sync::{Arc, OnceLock};

use divan::Bencher;
use divan::counter::ItemsCount;
use wick::grammar::{Constraint, Grammar, GrammarCompiler, GrammarSource};
use wick::hub::{self, FetchOptions};
use wick::sampling::{Sampler, SamplingParams, TokenMask};
use wick::text::{TextTools, Tokenizer};

const MODEL: &str = "qwen2.5-coder-0.5b";

const FINDINGS: &str = r#"{"type": "object", "properties": {"summary": {"type": "string"}, "findings": {"type": "array",
    "items": {"type": "object", "properties": {"file": {"type": "string"}, "line": {"type": "integer", "minimum": 1},
    "severity": {"enum": ["info", "warning", "error"]}, "text": {"type": "string"}},
    "required": ["file", "line", "severity", "text"], "additionalProperties": false}}},
    "required": ["summary", "findings"], "additionalProperties": false}"#;

const ANSWER: &str = r#"{"summary": "Two places divide by a value that may be zero, and one ignores an error.", "findings": [
  {"file": "src/area.rs", "line": 17, "severity": "error", "text": "`height` is not checked: a zero here panics in release builds, too."},
  {"file": "src/lib.rs", "line": 120, "severity": "warning", "text": "The result of `write!` is dropped. \"Let\" is not enough."}]}"#;

fn main() {
    divan::main();
}

struct Model {
    tokenizer: Arc<Tokenizer>,
    compiler: GrammarCompiler,
}

fn model() -> &'static Model {
    static MODEL_ONCE: OnceLock<Model> = OnceLock::new();
    MODEL_ONCE.get_or_init(|| {
        let options = FetchOptions { offline: true, ..FetchOptions::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let local = runtime.block_on(hub::resolve(MODEL, &options)).expect("run `wick pull qwen2.5-coder-0.5b` first");
        let tokenizer = TextTools::load(&local.path, None).expect("its tokenizer").tokenizer;
        let compiler = GrammarCompiler::new(&tokenizer, tokenizer.vocab_size()).expect("its tokens have bytes");
        Model { tokenizer, compiler }
    })
}

fn source(name: &str) -> GrammarSource {
    match name {
        "schema" => GrammarSource::JsonSchema { schema: FINDINGS.to_owned(), compact: false },
        "object" => GrammarSource::json_object(),
        "choice" => GrammarSource::Choice(vec!["approve".to_owned(), "request changes".to_owned()]),
        _ => GrammarSource::Regex(r"(?s:.)*".to_owned()),
    }
}

fn grammar(name: &str) -> Arc<Grammar> {
    model().compiler.compile(&source(name)).expect("it compiles")
}

#[divan::bench(args = ["schema", "object", "choice", "text"])]
fn compile(bencher: Bencher<'_, '_>, name: &str) {
    let source = source(name);
    let compiler = &model().compiler;
    bencher.bench_local(|| compiler.compile(&source));
}

/// A whole answer: a mask and an accepted token for each of its tokens. The first answers of a grammar also find its states.
#[divan::bench(args = ["schema", "object", "text"])]
fn masks(bencher: Bencher<'_, '_>, name: &str) {
    let grammar = grammar(name);
    let ids = model().tokenizer.encode(ANSWER, false).expect("it can be tokenized");
    let stops: Arc<[u32]> = model().tokenizer.stop_ids().into();
    bencher.counter(ItemsCount::new(ids.len())).bench_local(|| {
        let mut constraint = Constraint::new(grammar.clone(), stops.clone());
        for &id in &ids {
            constraint.allowed().expect("the answer follows the grammar");
            constraint.accept(id).expect("the answer follows the grammar");
        }
    });
}

/// Greedy sampling with and without a mask that allows half of the tokens.
#[divan::bench(args = [false, true])]
fn sampling(bencher: Bencher<'_, '_>, masked: bool) {
    let vocab = model().tokenizer.vocab_size();
    let row: Vec<f32> = (0..vocab as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6).collect();
    let words = vec![0x5555_5555u32; vocab.div_ceil(32)];
    let mask = masked.then(|| TokenMask::new(&words));
    let mut sampler = Sampler::new(Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }), &[]);
    bencher.with_inputs(|| row.clone()).bench_local_refs(|row| sampler.sample_within(row, 0, &[], mask));
}

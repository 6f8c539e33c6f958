//! Grammars over real tokenizers: random walks along what is allowed, as a model at any temperature would take them, end in
//! texts that an independent validator accepts.
#[path = "support/models.rs"]
mod models;
#[path = "support/schemas.rs"]
mod schemas;

use std::sync::Arc;

use models::pulled;
use wick::grammar::{Constraint, Grammar, GrammarCompiler, GrammarSource};
use wick::text::{Detokenizer, TextTools, Tokenizer};

/// Byte-level, byte-level with normalisation, SentencePiece with byte fallback.
const ALIASES: [&str; 3] = ["smollm2-135m", "qwen2.5-coder-0.5b", "gemma-3-270m"];
const TOKENS_MAX: usize = 400;

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

fn ids(words: &[u32]) -> Vec<u32> {
    let bits = |(at, word): (u32, &u32)| {
        let word = *word;
        (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 32 + bit)
    };
    (0..).zip(words).flat_map(bits).collect()
}

/// Walks to the end of the grammar, or gives up. Prefers what ends the text soon, at times, so that many walks end.
fn walk(grammar: &Arc<Grammar>, tokenizer: &Arc<Tokenizer>, dice: &mut Dice) -> Option<String> {
    let mut constraint = Constraint::new(grammar.clone(), tokenizer.stop_ids().into());
    let mut text = Detokenizer::continuing(tokenizer);
    let mut shown = String::new();
    for _ in 0..TOKENS_MAX {
        let mut allowed = ids(constraint.allowed().unwrap());
        if dice.below(3) > 0 {
            let closes = |id: &&u32| {
                tokenizer.stop_ids().contains(id)
                    || tokenizer
                        .token_bytes(**id)
                        .is_some_and(|bytes| matches!(bytes, b"\"" | b"}" | b"]" | b"\"}" | b","))
            };
            let closing: Vec<u32> = allowed.iter().filter(closes).copied().collect();
            allowed = if closing.is_empty() { allowed } else { closing };
        }
        let id = allowed[dice.below(allowed.len())];
        if tokenizer.stop_ids().contains(&id) {
            return Some(shown + &text.finish());
        }
        shown.push_str(&text.push(id));
        if constraint.accept(id).unwrap() {
            return Some(shown + &text.finish());
        }
    }
    None
}

#[test]
fn walks_over_real_tokenizers_end_in_valid_json() {
    for alias in ALIASES {
        let tokenizer = TextTools::load(&pulled(alias), None).unwrap().tokenizer;
        let compiler = GrammarCompiler::new(&tokenizer, tokenizer.vocab_size()).unwrap();
        for (name, schema) in schemas::all() {
            let source = GrammarSource::JsonSchema { schema: schema.to_string(), compact: false };
            let grammar = compiler.compile(&source).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut ended = 0;
            for seed in 0..16 {
                let Some(text) = walk(&grammar, &tokenizer, &mut Dice(seed)) else { continue };
                schemas::assert_valid(&schema, &text, &format!("{alias}, {name}, {seed}"));
                ended += 1;
            }
            assert!(ended >= 4, "{alias}, {name}: only {ended} walks of 16 ended");
        }
    }
}

/// Whatever tokens a text comes in, the grammar takes it.
#[test]
fn every_tokenization_of_a_valid_text_is_allowed() {
    let text = r#"{"name": "Zoë \"Z\" 日本 😀", "age": 41, "tags": ["a", "b c"], "note": null}"#;
    for alias in ALIASES {
        let tokenizer = TextTools::load(&pulled(alias), None).unwrap().tokenizer;
        let compiler = GrammarCompiler::new(&tokenizer, tokenizer.vocab_size()).unwrap();
        let source = GrammarSource::JsonSchema { schema: schemas::person().to_string(), compact: false };
        let grammar = compiler.compile(&source).unwrap();
        let words: Vec<&[u8]> =
            (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.token_bytes(id).unwrap_or_default()).collect();
        for seed in 0..8 {
            let mut dice = Dice(seed);
            let mut constraint = Constraint::new(grammar.clone(), tokenizer.stop_ids().into());
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                let fits = |id: &u32| {
                    let word = words[*id as usize];
                    !word.is_empty() && rest.starts_with(word) && !tokenizer.is_control(*id)
                };
                let allowed = ids(constraint.allowed().unwrap());
                let fitting: Vec<u32> = allowed.into_iter().filter(fits).collect();
                assert!(!fitting.is_empty(), "{alias}: stuck before {:?}", String::from_utf8_lossy(rest));
                let id = fitting[dice.below(fitting.len())];
                rest = &rest[words[id as usize].len()..];
                assert_eq!(constraint.accept(id).unwrap(), rest.is_empty(), "{alias}");
            }
        }
    }
}

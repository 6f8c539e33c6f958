//! Sequences that follow a grammar, among others that do not: the same bytes always, and failures of their own.
use regex_automata::meta::Regex;

use super::*;
use crate::grammar::{Grammar, GrammarCompiler, GrammarSource};
use crate::text::Tokenizer;

/// Over the bytes below [`VOCAB`], which are the tokens of these tests.
const PATTERNS: [&str; 5] =
    [r"(\((\+|,){2,6}\)!)+", r"#[!-/]{10,30}#", r"(\+\+|\*\*){3}(,,)?", r"[ -/]*", r#"("[#-/]{0,9}"( |,))*-"#];

fn compiler() -> GrammarCompiler {
    GrammarCompiler::new(&Tokenizer::tiny(), VOCAB).unwrap()
}

fn regex(compiler: &GrammarCompiler, pattern: &str) -> Arc<Grammar> {
    compiler.compile(&GrammarSource::Regex(pattern.to_owned())).unwrap()
}

fn text(ids: &[u32]) -> String {
    ids.iter().map(|&id| char::from(u8::try_from(id).unwrap())).collect()
}

/// Requests of all kinds, two of three with a grammar, and which pattern each follows.
fn requests() -> Vec<(GenerationRequest, Option<usize>)> {
    let compiler = compiler();
    let grammars: Vec<_> = PATTERNS.iter().map(|pattern| regex(&compiler, pattern)).collect();
    let with_grammar = |(i, mut request): (usize, GenerationRequest)| {
        let pattern = (i % 3 > 0).then_some(i / 3 % PATTERNS.len());
        request.grammar = pattern.map(|pattern| grammars[pattern].clone());
        if pattern.is_some() {
            request.limits.max_new_tokens += 20;
            // No pattern has them.
            request.limits.stop_tokens = if i % 2 == 0 { Arc::new([1, 2]) } else { Arc::new([]) };
        }
        (request, pattern)
    };
    varied_requests(75).into_iter().enumerate().map(with_grammar).collect()
}

#[tokio::test]
async fn answers_match_and_no_byte_depends_on_the_batch_or_on_guesses() {
    let (requests, patterns): (Vec<_>, Vec<_>) = requests().into_iter().unzip();
    let alone = run_each_on(repeating_engine, &requests).await;
    let (mut whole, mut cut) = (0, 0);
    for ((transcript, request), pattern) in alone.iter().zip(&requests).zip(&patterns) {
        let Some(pattern) = pattern else { continue };
        let mut ids = transcript.ids();
        match transcript.reason {
            FinishReason::Length => {
                cut += 1;
                continue;
            }
            FinishReason::StopToken(stop) => assert_eq!(ids.pop(), Some(stop)),
            FinishReason::Complete => {}
        }
        whole += 1;
        let matches = Regex::new(&format!("^(?:{})$", PATTERNS[*pattern])).unwrap();
        assert!(matches.is_match(&text(&ids)), "{:?} {} {:?}", text(&ids), PATTERNS[*pattern], request.params);
    }
    assert!(whole > 15 && cut > 3, "{whole} answers were whole, {cut} cut");

    assert_same_in_any_company(&alone, &requests).await;
}

#[tokio::test]
async fn a_complete_grammar_ends_the_sequence_with_its_last_token() {
    let engine = engine(config());
    let mut request = request(&[5, 6, 7], 30);
    request.grammar = Some(regex(&compiler(), r"\(!{3}\)"));
    for min_tokens in [0, 20] {
        request.params = Arc::new(SamplingParams { min_tokens, ..SamplingParams::default() });
        let (transcript, usage) = read(submit_one(&engine, request.clone())).await.unwrap();
        assert_eq!((text(&transcript.ids()).as_str(), transcript.reason), ("(!!!)", FinishReason::Complete));
        assert_eq!(usage.completion_tokens, 5);
    }
    // The limit is reached with the last token: the answer is whole all the same.
    for (limit, reason) in [(5, FinishReason::Complete), (4, FinishReason::Length)] {
        request.limits.max_new_tokens = limit;
        let (transcript, _) = read(submit_one(&engine, request.clone())).await.unwrap();
        assert_eq!((transcript.ids().len(), transcript.reason), (limit, reason));
    }
    assert_eq!(engine.stats().gauges.blocks_used, 0);
}

#[tokio::test]
async fn stop_tokens_come_only_where_the_text_is_complete() {
    let engine = engine(config());
    let mut request = request(&[5, 6, 7], 60);
    request.grammar = Some(regex(&compiler(), r"(!!!)*"));
    request.limits.stop_tokens = Arc::new([1]);
    let biased = SamplingParams { logit_bias: [(1, 100.0)].into(), ..SamplingParams::default() };
    for (min_tokens, length) in [(0, 1), (1, 4), (3, 4), (4, 7), (10, 13)] {
        request.params = Arc::new(SamplingParams { min_tokens, ..biased.clone() });
        let (transcript, _) = read(submit_one(&engine, request.clone())).await.unwrap();
        assert_eq!((transcript.ids().len(), transcript.reason), (length, FinishReason::StopToken(1)), "{min_tokens}");
    }
    // No bias and no ban is stronger than the grammar.
    request.params = Arc::new(SamplingParams { logit_bias: [(33, -100.0), (9, 100.0)].into(), ..biased });
    request.limits.stop_tokens = Arc::new([]);
    let (transcript, _) = read(submit_one(&engine, request)).await.unwrap();
    assert_eq!((transcript.ids(), transcript.reason), (vec![33; 60], FinishReason::Length));
}

#[tokio::test]
async fn a_grammar_that_gets_stuck_fails_its_sequence_alone() {
    let compiler = compiler();
    let engine = engine(config());
    let mut stuck = request(&[1, 2], 30);
    // `0` is no token here.
    stuck.grammar = Some(regex(&compiler, r"(!{4}0)+"));
    let mut well = request(&[3, 4], 30);
    well.grammar = Some(regex(&compiler, r"[!-/]*"));
    let streams: Vec<_> = [&well, &stuck, &request(&[5, 6], 30), &stuck].map(|r| submit_one(&engine, r.clone())).into();
    let mut outcomes = Vec::new();
    for stream in streams {
        outcomes.push(read(stream).await);
    }
    for (outcome, fails) in outcomes.iter().zip([false, true, false, true]) {
        match outcome {
            Err(failure) => assert!(fails && matches!(failure, EngineFailure::Grammar(_)), "{failure}"),
            Ok((transcript, _)) => assert_eq!((fails, transcript.ids().len()), (false, 30)),
        }
    }
    let stats = engine.stats();
    assert_eq!((stats.failed, stats.failed_steps, stats.gauges.blocks_used), (2, 0, 0));
}

#[tokio::test]
async fn failed_steps_lose_no_mask_of_others() {
    let (engine, gate) = gated_engine(config(), WIDE);
    let compiler = compiler();
    let mut constrained = request(&[1, 2], 3);
    constrained.grammar = Some(regex(&compiler, r"!{3}"));
    for verdict in [Verdict::Fail, Verdict::Panic, Verdict::LoseRow] {
        let lost = submit_one(&engine, constrained.clone());
        gate.entered();
        gate.give(verdict);
        assert!(matches!(read(lost).await, Err(EngineFailure::Step { .. })));
        let next = submit_one(&engine, constrained.clone());
        for _ in 0..3 {
            gate.entered();
            gate.give(Verdict::Run);
        }
        assert_eq!(text(&read(next).await.unwrap().0.ids()), "!!!");
    }
}

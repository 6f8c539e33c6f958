//! Thoughts that are cut off: where the budget says, and the same bytes always.
use super::*;
use crate::grammar::{GrammarCompiler, GrammarSource, ThoughtBudget};
use crate::text::Tokenizer;

/// Of bytes below [`VOCAB`], which are the tokens of these tests.
const MARKS: (&str, &str) = ("(", ")!)");

/// Requests of all kinds, three of four with a budget, and some of these with a grammar.
fn requests() -> Vec<GenerationRequest> {
    let tokenizer = Tokenizer::tiny();
    let compiler = GrammarCompiler::new(&tokenizer, VOCAB).unwrap();
    let any = compiler.compile(&GrammarSource::Regex("[ -/]*".to_owned())).unwrap();
    let with_budget = |(i, mut request): (usize, GenerationRequest)| {
        if i % 4 > 0 {
            // Some are spent at once, some never.
            let tokens = [0, 1, 6, 17, 60][i % 5];
            let budget = ThoughtBudget::new(tokens, i % 8 != 5, MARKS, Arc::clone(&tokenizer)).unwrap();
            request.thoughts = Some(Arc::new(budget));
            request.grammar = (i % 6 == 1).then(|| Arc::clone(&any));
            request.limits.max_new_tokens += 20;
            request.limits.stop_tokens = Arc::new([]);
        }
        request
    };
    varied_requests(72).into_iter().enumerate().map(with_budget).collect()
}

#[tokio::test]
async fn thoughts_end_in_time_and_no_byte_depends_on_the_batch_or_on_guesses() {
    let requests = requests();
    let alone = run_each_on(repeating_engine, &requests).await;
    let end: Vec<u32> = MARKS.1.bytes().map(u32::from).collect();
    let mut cut = 0;
    for (i, transcript) in alone.iter().enumerate().filter(|(i, _)| i % 4 > 0 && i % 8 != 5) {
        let (ids, budget) = (transcript.ids(), [0, 1, 6, 17, 60][i % 5]);
        match ids.windows(3).position(|part| part == end) {
            Some(at) => {
                assert!(at <= budget, "request {i}: {at} tokens of thoughts");
                cut += usize::from(at == budget);
            }
            None => assert!(ids.len() < budget + 3, "request {i} thinks for {} tokens", ids.len()),
        }
    }
    assert!(cut > 25, "{cut} were cut off");

    assert_same_in_any_company(&alone, &requests).await;
}

/// What a grammar does not allow is not forced.
#[tokio::test]
async fn a_grammar_goes_before_a_budget() {
    let tokenizer = Tokenizer::tiny();
    let compiler = GrammarCompiler::new(&tokenizer, VOCAB).unwrap();
    let mut request = request(&[5, 6, 7], 20);
    request.grammar = Some(compiler.compile(&GrammarSource::Regex("[#-']{9}".to_owned())).unwrap());
    request.thoughts = Some(Arc::new(ThoughtBudget::new(2, true, MARKS, tokenizer).unwrap()));
    let engine = engine(config());
    let (transcript, _) = read(submit_one(&engine, request)).await.unwrap();
    assert_eq!((transcript.ids().len(), transcript.reason), (9, FinishReason::Complete));
}

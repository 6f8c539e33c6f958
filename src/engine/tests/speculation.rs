//! Guesses change when tokens come, never which.
use super::*;

#[tokio::test]
async fn guesses_change_no_token_and_no_log_probability() {
    let requests: Vec<_> = varied_requests(64)
        .into_iter()
        .map(|mut request| {
            request.limits.max_new_tokens += 30;
            request
        })
        .collect();
    let alone = run_each_on(repeating_engine, &requests).await;
    let longest = requests.iter().map(|r| r.prompt.len() + r.limits.max_new_tokens).max().unwrap();
    let guessing = SchedulerConfig { speculation: true, ..config() };
    let (mut accepted, mut rejected) = (0, 0);
    for shape in [
        guessing,
        SchedulerConfig { running_max: 1, ..guessing },
        SchedulerConfig { running_max: 3, batched_tokens_max: 9, prefill_chunk_max: 3, logit_rows_max: 2, ..guessing },
        SchedulerConfig { running_max: 4, prefix_cache: false, ..guessing },
        SchedulerConfig { num_blocks: longest.div_ceil(4), running_max: 4, ..guessing },
        SchedulerConfig { num_blocks: longest.div_ceil(4), running_max: 4, prefix_cache: false, ..guessing },
    ] {
        let engine = repeating_engine(shape);
        assert_same(&alone, &run_together(&engine, &requests).await, &format!("with guesses, {shape:?}"));
        assert_same(&alone, &run_together(&engine, &requests).await, &format!("with guesses, cache warm, {shape:?}"));
        let stats = engine.stats();
        assert_eq!(stats.gauges.blocks_used, 0);
        assert!(stats.scheduler.preemptions > 0 || shape.num_blocks == config().num_blocks);
        accepted += stats.scheduler.accepted_tokens;
        rejected += stats.scheduler.drafted_tokens - stats.scheduler.accepted_tokens;
    }
    assert!(accepted > 500 && rejected > 50, "{accepted} guesses were right, {rejected} wrong");
}

#[tokio::test]
async fn every_guess_that_was_computed_is_told_with_the_token_that_decided_it() {
    let engine = repeating_engine(SchedulerConfig { speculation: true, ..config() });
    let mut told = Guesses::default();
    let mut tokens = 0;
    for seed in 0..12 {
        let mut request = request(&[seed as u32, 3, 1, 4], 90);
        let temperature = if seed % 2 == 0 { 0.0 } else { 0.4 };
        request.params = Arc::new(SamplingParams { temperature, seed, ..SamplingParams::default() });
        let mut stream = submit_one(&engine, request);
        while let Some(event) = stream.next().await {
            if let SeqEvent::Token(_, guesses) = event {
                assert!(guesses.accepted == 0 || guesses == Guesses { accepted: 1, rejected: 0 });
                told.accepted += guesses.accepted;
                told.rejected += guesses.rejected;
                tokens += 1;
            }
        }
    }
    let stats = engine.stats();
    let counted = stats.scheduler;
    assert_eq!((told.accepted + told.rejected) as u64, counted.drafted_tokens);
    assert_eq!(told.accepted as u64, counted.accepted_tokens);
    assert_eq!((tokens, stats.generation_tokens, stats.prompt_tokens), (12 * 90, 12 * 90, 12 * 4));
    assert!(told.accepted > 200 && told.rejected > 0, "{told:?}");
    assert_eq!(stats.steps, 12 * 90 - counted.accepted_tokens, "each right guess saves a step");
}

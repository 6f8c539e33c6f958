//! The engine over a fake model: same bytes always, nothing lost, every failure contained.
mod embedding;
mod grammar;
mod harness;
mod speculation;
mod thoughts;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use harness::*;

use super::*;
use crate::runner::{Logits, RunnerError};
use crate::sampling::SamplingParams;
use crate::scheduler::{SchedulerOutput, SeqId};

/// Sampling for a request with this seed panics.
pub(super) const POISON: u64 = 0xdead;

#[tokio::test]
async fn same_bytes_alone_and_together_chunked_cached_and_preempted() {
    let requests = varied_requests(64);
    let alone = run_alone(&requests).await;
    for (request, transcript) in requests.iter().zip(&alone) {
        let positions = if request.prompt_logprobs.is_some() { request.prompt.len() - 1 } else { 0 };
        assert_eq!(transcript.prompt.len(), positions, "each prompt position is reported once");
    }

    let together = engine(config());
    assert_same(&alone, &run_together(&together, &requests).await, "in one batch, cache cold");
    let hits = together.stats().scheduler.prefix_hit_tokens;
    assert_same(&alone, &run_together(&together, &requests).await, "in one batch, cache warm");
    assert!(together.stats().scheduler.prefix_hit_tokens > hits, "the cache was used");

    for (batched_tokens_max, prefill_chunk_max, logit_rows_max) in [(3, 1, 1), (7, 3, 2), (32, 5, 4), (512, 512, 512)] {
        let chunked = engine(SchedulerConfig {
            batched_tokens_max,
            prefill_chunk_max,
            logit_rows_max,
            running_max: 5,
            ..config()
        });
        assert_same(&alone, &run_together(&chunked, &requests).await, "in other chunks");
    }

    let longest = requests.iter().map(|r| r.prompt.len() + r.limits.max_new_tokens).max().unwrap();
    for prefix_cache in [false, true] {
        let tiny = SchedulerConfig { num_blocks: longest.div_ceil(4), prefix_cache, ..config() };
        let preempting = engine(tiny);
        assert_same(&alone, &run_together(&preempting, &requests).await, "with preemption");
        let stats = preempting.stats();
        assert!(stats.scheduler.preemptions > 10, "{} preemptions", stats.scheduler.preemptions);
        assert_eq!(stats.gauges.blocks_used, 0);
    }
}

#[tokio::test]
async fn seeds_make_the_difference() {
    let engine = engine(config());
    let with_seed = |seed| {
        let mut request = request(&[5, 6, 7], 30);
        request.params = Arc::new(SamplingParams { seed, ..SamplingParams::default() });
        request
    };
    let requests: Vec<_> = [1, 2, 1].map(with_seed).into();
    let transcripts = run_together(&engine, &requests).await;
    assert_eq!(transcripts[0], transcripts[2]);
    assert_ne!(transcripts[0], transcripts[1]);
}

#[tokio::test]
async fn a_stop_token_is_delivered_and_counted_and_then_the_end() {
    let engine = engine(config());
    let (free, usage) = read(submit_one(&engine, request(&[1, 2, 3], 12))).await.unwrap();
    assert_eq!((free.reason, usage.completion_tokens, usage.prompt_tokens), (FinishReason::Length, 12, 3));
    let stop = free.ids()[4];
    let first = free.ids().iter().position(|&id| id == stop).unwrap();
    let mut stopping = request(&[1, 2, 3], 12);
    stopping.limits.stop_tokens = Arc::new([stop]);
    let (stopped, usage) = read(submit_one(&engine, stopping)).await.unwrap();
    assert_eq!(stopped.reason, FinishReason::StopToken(stop));
    assert_eq!(stopped.ids(), free.ids()[..=first]);
    assert_eq!(usage.completion_tokens, first + 1);
}

#[tokio::test]
async fn a_repeated_prompt_comes_from_the_cache() {
    let engine = engine(config());
    let prompt: Vec<u32> = (0..33).collect();
    let (cold, first) = read(submit_one(&engine, request(&prompt, 3))).await.unwrap();
    let (warm, second) = read(submit_one(&engine, request(&prompt, 3))).await.unwrap();
    assert_eq!((first.cached_tokens, second.cached_tokens), (0, 32));
    assert_eq!(cold, warm);
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.generation_tokens, stats.finished), (66, 6, 2));
}

#[tokio::test]
async fn streams_dropped_at_any_time_free_everything() {
    let engine = engine(SchedulerConfig { num_blocks: 60, ..config() });
    let mut dice = Dice(5);
    let requests = varied_requests(500);
    let mut tasks = Vec::new();
    for request in requests {
        let mut stream = submit_one(&engine, request);
        let events = dice.below(20);
        tasks.push(tokio::spawn(async move {
            for _ in 0..events {
                if stream.next().await.is_none() {
                    return;
                }
            }
        }));
        if dice.below(8) == 0 {
            tokio::task::yield_now().await;
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    engine.wait_idle().await;
    let stats = engine.stats();
    assert_eq!((stats.gauges.blocks_used, stats.gauges.running, stats.gauges.waiting), (0, 0, 0));
    assert_eq!((stats.queued_sequences, stats.queued_tokens), (0, 0));
    assert_eq!(stats.finished + stats.aborted, 500);
    assert!(stats.aborted > 100 && stats.finished > 0, "{stats:?}");
    let alone = run_alone(&[request(&[4, 4], 9)]).await;
    assert_eq!(run_together(&engine, &[request(&[4, 4], 9)]).await, alone, "the engine is as good as new");
}

#[tokio::test]
async fn a_dropped_stream_frees_its_blocks_within_one_step() {
    let (engine, gate) = gated_engine(config(), WIDE);
    let mut streams = engine.submit(vec![request(&[1; 9], 20), request(&[2; 5], 20)]).unwrap();
    let other = streams.remove(1);
    assert_eq!(gate.entered(), [SeqId(0), SeqId(1)]);
    drop(streams);
    gate.give(Verdict::Run);
    assert_eq!(gate.entered(), [SeqId(1)], "the next step is without it");
    let stats = engine.stats();
    assert_eq!((stats.aborted, stats.gauges.running), (1, 1));
    assert_eq!(stats.gauges.blocks_used, 2, "5 tokens of the other one");
    drop(gate);
    assert_eq!(read(other).await.unwrap().1.completion_tokens, 20);
}

#[tokio::test]
async fn a_dropped_stream_that_waits_never_runs() {
    let (engine, gate) = gated_engine(SchedulerConfig { running_max: 1, ..config() }, WIDE);
    let runs = submit_one(&engine, request(&[1; 3], 3));
    gate.entered();
    let waits = engine.submit(vec![request(&[2; 3], 3), request(&[3; 3], 3)]).unwrap();
    gate.give(Verdict::Run);
    gate.entered();
    assert_eq!((engine.stats().queued_sequences, engine.stats().gauges.waiting), (2, 2));
    drop(waits);
    gate.give(Verdict::Run);
    gate.entered();
    assert_eq!((engine.stats().queued_sequences, engine.stats().gauges.waiting, engine.stats().aborted), (0, 0, 2));
    drop(gate);
    read(runs).await.unwrap();
    assert_eq!(engine.stats().prompt_tokens, 3);
}

#[tokio::test]
async fn a_full_queue_refuses_with_the_numbers() {
    let (engine, gate) = gated_engine(config(), QueueLimits { sequences_max: 3, tokens_max: 10 });
    let refused = |requests: Vec<GenerationRequest>| match engine.submit(requests) {
        Err(SubmitError::QueueFull { waiting_sequences, waiting_tokens, retry_after }) => {
            assert!((1..=60).contains(&retry_after.as_secs()));
            (waiting_sequences, waiting_tokens)
        }
        other => panic!("expected a full queue, got {other:?}"),
    };
    let mut streams = engine.submit(vec![request(&[1; 4], 2), request(&[2; 4], 2)]).unwrap();
    gate.entered();
    assert_eq!(refused(vec![request(&[3; 4], 1)]), (2, 8), "too many tokens");
    assert_eq!(refused(vec![request(&[3; 1], 1), request(&[4; 1], 1)]), (2, 8), "all or nothing");
    streams.extend(engine.submit(vec![request(&[3; 2], 2)]).unwrap());
    assert_eq!(refused(vec![request(&[4; 1], 1)]), (3, 10), "too many sequences");
    assert_eq!((engine.stats().queued_sequences, engine.stats().queued_tokens), (1, 10));
    gate.give(Verdict::Run);
    gate.entered();
    assert_eq!(
        (engine.stats().queued_sequences, engine.stats().queued_tokens),
        (0, 2),
        "prompts computed count no more"
    );
    drop(gate);
    for stream in streams {
        read(stream).await.unwrap();
    }
    // Whoever has seen the end finds room, and a request larger than the bound is not refused for ever.
    let large = submit_one(&engine, request(&[1; 12], 1));
    read(large).await.unwrap();
}

#[tokio::test]
async fn bad_requests_are_refused_with_the_numbers() {
    let engine = engine(SchedulerConfig { num_blocks: 20, ..config() });
    let refused = |request| engine.submit(vec![harness::request(&[1], 1), request]).unwrap_err();
    assert_eq!(refused(request(&[], 1)), SubmitError::EmptyPrompt);
    assert_eq!(refused(request(&[1, 48], 1)), SubmitError::TokenOutOfRange { token: 48, vocab: 48 });
    assert_eq!(refused(request(&[1; 128], 1)), SubmitError::TooLong { needed: 129, context_max: 128 });
    assert_eq!(refused(request(&[1; 28], 101)), SubmitError::TooLong { needed: 129, context_max: 128 });
    let endless = SubmitError::TooLong { needed: usize::MAX, context_max: 128 };
    assert_eq!(refused(request(&[1; 28], usize::MAX)), endless);
    assert_eq!(refused(request(&[1; 40], 42)), SubmitError::NeverFits { needed: 21, total: 20 });
    let mut biased = request(&[1], 1);
    biased.params = Arc::new(SamplingParams { logit_bias: [(1, 1.0), (99, 1.0)].into(), ..SamplingParams::default() });
    assert_eq!(refused(biased), SubmitError::TokenOutOfRange { token: 99, vocab: 48 });
    assert_eq!(engine.stats().steps, 0, "nothing of a refused group runs");
    // The largest that fits: the last token generated needs no slot.
    assert_eq!(read(submit_one(&engine, request(&[1; 40], 41))).await.unwrap().1.completion_tokens, 41);
    assert!(engine.submit(Vec::new()).unwrap().is_empty());
}

#[tokio::test]
async fn a_failed_step_fails_its_sequences_and_no_others() {
    let alone = run_alone(&[request(&[7, 8], 6)]).await;
    for (verdict, text) in [
        (Verdict::Fail, "the test wants it to fail"),
        (Verdict::Panic, "it panicked: the test wants it to panic"),
        (Verdict::LoseRow, "the runner returned 0 values in rows of 48, expected 1 rows of 48"),
    ] {
        let (engine, gate) = gated_engine(config(), WIDE);
        let doomed = submit_one(&engine, request(&[1, 2, 3, 4, 5], 10));
        gate.entered();
        let spared = submit_one(&engine, request(&[7, 8], 6));
        gate.give(verdict);
        match read(doomed).await {
            Err(EngineFailure::Step { message }) => assert!(message.contains(text), "{message}"),
            other => panic!("expected a failed step, got {other:?}"),
        }
        drop(gate);
        assert_eq!(read(spared).await.unwrap().0, alone[0]);
        engine.wait_idle().await;
        let stats = engine.stats();
        assert_eq!((stats.failed_steps, stats.failed, stats.finished), (1, 1, 1));
        assert_eq!((stats.gauges.blocks_used, stats.queued_tokens), (0, 0));
        assert!(engine.is_healthy());
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_sampled_fails_alone() {
    let requests = [request(&[7, 8], 6), request(&[1; 9], 6), request(&[9, 4, 4], 6)];
    let alone = run_alone(&requests).await;
    let (engine, gate) = gated_engine(config(), WIDE);
    let mut poisoned = requests.clone().to_vec();
    let params = SamplingParams { seed: POISON, ..SamplingParams::default() };
    poisoned[1].params = Arc::new(params);
    poisoned[1].prompt_logprobs = Some(1);
    let mut streams = engine.submit(poisoned).unwrap();
    assert_eq!(gate.entered(), [SeqId(0), SeqId(1), SeqId(2)], "all in one step");
    drop(gate);
    match read(streams.remove(1)).await {
        Err(EngineFailure::Step { message }) => assert!(message.contains("the test poisons a request"), "{message}"),
        other => panic!("expected a failure, got {other:?}"),
    }
    for (stream, alone) in streams.into_iter().zip([&alone[0], &alone[2]]) {
        assert_eq!(read(stream).await.unwrap().0, *alone);
    }
    engine.wait_idle().await;
    let stats = engine.stats();
    assert_eq!((stats.failed_steps, stats.failed, stats.finished, stats.gauges.blocks_used), (0, 1, 2, 0));
    assert_eq!((stats.queued_tokens, engine.is_healthy()), (0, true));
}

#[tokio::test]
async fn choices_of_one_prompt_compute_it_once() {
    let engine = engine(config());
    let prompt: Vec<u32> = (0..40).collect();
    let choice = |seed| {
        let mut choice = request(&prompt, 5);
        choice.params = Arc::new(SamplingParams { seed, ..SamplingParams::default() });
        choice
    };
    let streams = engine.submit((1..=4).map(choice).collect()).unwrap();
    for stream in streams {
        read(stream).await.unwrap();
    }
    // The last block is each one's own, since its last row is sampled from; the last token generated is not computed.
    let stats = engine.stats();
    assert_eq!(stats.scheduler.computed_tokens, 40 + 3 * 4 + 4 * 4);
    assert_eq!(stats.scheduler.prefix_hit_tokens, 3 * 36);
}

#[tokio::test]
async fn a_tenant_that_fills_slots_and_queue_does_not_lock_others_out() {
    let config = SchedulerConfig { running_max: 4, ..config() };
    let mut greedy: Vec<_> = (0..12).map(|i| request(&[i, 1], 100)).collect();
    greedy.iter_mut().for_each(|r| r.tenant = 1);
    let mut modest = request(&[3, 4, 5], 4);
    modest.tenant = 2;
    let alone = run_alone(&[greedy.clone(), vec![modest.clone()]].concat()).await;

    let (engine, gate) = gated_engine(config, QueueLimits { sequences_max: 12, tokens_max: 100 });
    let streams: Vec<_> = greedy.iter().map(|r| submit_one(&engine, r.clone())).collect();
    for _ in 0..20 {
        gate.entered();
        gate.give(Verdict::Run);
    }
    gate.entered();
    assert!(matches!(engine.submit(vec![greedy[0].clone()]), Err(SubmitError::QueueFull { .. })));
    let load = engine.load(1);
    assert_eq!((load.sequences_left, load.limits.sequences_max), (0, 12));
    assert!(load.empty_in > Some(Duration::ZERO));
    assert_eq!((engine.load(2).sequences_left, engine.load(2).tokens_left), (4, 100));
    let modest = submit_one(&engine, modest);
    assert_eq!(engine.load(2).sequences_left, 3);
    gate.give(Verdict::Run);
    assert!(gate.entered().contains(&SeqId(12)), "it is in the next step");
    for _ in 0..4 {
        gate.give(Verdict::Run);
        gate.entered();
    }
    assert_eq!(read(modest).await.unwrap().0, alone[12]);
    assert_eq!(engine.stats().finished, 1, "and ended before all others");
    drop(gate);
    for (stream, alone) in streams.into_iter().zip(&alone) {
        assert_eq!(read(stream).await.unwrap().0, *alone, "the one that made way is the same");
    }
    engine.wait_idle().await;
    assert_eq!(engine.stats().scheduler.yields, 1);
    assert_eq!(engine.load(1).empty_in, Some(Duration::ZERO));
    engine.drain();
    assert_eq!((engine.load(1).sequences_left, engine.load(1).tokens_left), (0, 0));
}

#[tokio::test]
async fn a_broken_invariant_fails_everything_and_is_reported() {
    let watcher = Arc::new(Watcher { panic_at_step: Some(3), ..Watcher::default() });
    let (runner, gate) = gated_model(&config());
    let engine = EngineHandle::spawn_observed(runner, config(), WIDE, Some(watcher.clone())).unwrap();
    let running = submit_one(&engine, request(&[1, 2, 3], 10));
    for _ in 0..2 {
        gate.entered();
        gate.give(Verdict::Run);
    }
    gate.entered();
    assert!(engine.is_healthy());
    let waiting = submit_one(&engine, request(&[4], 10));
    gate.give(Verdict::Run);
    assert_eq!(read(running).await.unwrap_err(), EngineFailure::Stopped);
    let mut waiting = waiting;
    assert_eq!(waiting.next().await, Some(SeqEvent::Failed(EngineFailure::Stopped)));
    tokio::time::timeout(Duration::from_mins(1), engine.failed()).await.expect("main is told");
    assert!(!engine.is_healthy());
    assert_eq!(engine.submit(vec![request(&[1], 1)]).unwrap_err(), SubmitError::Stopped);
    engine.wait_idle().await;
    assert_eq!(engine.stats().queued_tokens, 0);
    let reports = watcher.reports.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    assert_eq!(reports.iter().map(|r| (r.tokens, r.sampled)).collect::<Vec<_>>(), [(3, 1), (1, 1), (1, 1)]);
}

#[tokio::test]
async fn draining_lets_running_sequences_finish() {
    let (engine, gate) = gated_engine(config(), WIDE);
    let running = submit_one(&engine, request(&[1, 2, 3], 10));
    gate.entered();
    engine.clone().drain();
    assert_eq!(engine.submit(vec![request(&[1], 1)]).unwrap_err(), SubmitError::Draining);
    let idle = engine.wait_idle();
    tokio::pin!(idle);
    tokio::select! {
        biased;
        () = &mut idle => panic!("a sequence is running"),
        () = std::future::ready(()) => {}
    }
    drop(gate);
    idle.await;
    // Idle means that every event has been sent: reading the stream needs no more waiting.
    let mut running = running.events;
    let events = std::iter::from_fn(|| running.try_recv().ok()).count();
    assert_eq!(events, 12, "Started, 10 tokens, Finished");
}

/// Tells when the engine thread has dropped its runner.
struct LastWords(Box<dyn Runner>, mpsc::Sender<()>);

impl Runner for LastWords {
    fn execute(&mut self, step: &SchedulerOutput) -> Result<Logits, RunnerError> {
        self.0.execute(step)
    }

    fn vocab(&self) -> usize {
        self.0.vocab()
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        let _ = self.1.send(());
    }
}

#[tokio::test]
async fn the_thread_ends_after_the_last_handle_and_the_last_sequence() {
    let (runner, gate) = gated_model(&config());
    let (dropped, ended) = mpsc::channel();
    let engine = EngineHandle::spawn(Box::new(LastWords(runner, dropped)), config(), WIDE).unwrap();
    let stream = submit_one(&engine, request(&[1, 2, 3], 10));
    gate.entered();
    drop(engine);
    assert!(ended.try_recv().is_err(), "a sequence is running");
    drop(gate);
    assert_eq!(read(stream).await.unwrap().1.completion_tokens, 10);
    ended.recv_timeout(Duration::from_mins(1)).expect("the thread ends");
}

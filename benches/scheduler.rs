//! What scheduling a step and committing it costs. Sampling is in `sampling.rs`.
//!
//! `cargo bench --bench scheduler`
use std::sync::Arc;

use divan::Bencher;
use wick::kv::CacheSalt;
use wick::scheduler::{NewSequence, ScheduledSeq, Scheduler, SchedulerConfig, SeqId, StopLimits};

fn main() {
    divan::main();
}

fn config(running_max: usize) -> SchedulerConfig {
    SchedulerConfig {
        block_size: 16,
        num_blocks: 64 * 1024,
        batched_tokens_max: 512,
        prefill_chunk_max: 128,
        running_max,
        context_max: 1 << 20,
        logit_rows_max: 64,
        prefix_cache: true,
        speculation: true,
    }
}

/// A scheduler with `n` sequences that decode, each with its own context of 256 tokens.
fn decoding(n: usize) -> Scheduler {
    let mut scheduler = Scheduler::new(config(n));
    for id in 0..n as u64 {
        let prompt: Arc<[u32]> = (0..256).map(|t| (t + id as u32 * 7919) % 50_000).collect();
        let limits = StopLimits { max_new_tokens: 1 << 19, stop_tokens: Arc::new([]) };
        let seq =
            NewSequence { id: SeqId(id), prompt, limits, salt: CacheSalt(0), prompt_logits: false, tenant: id % 3 };
        scheduler.add(seq).expect("the prompt fits");
    }
    loop {
        let step = scheduler.schedule();
        let decodes = step.seqs.len() == n && step.seqs.iter().all(|s| s.tokens.len() == 1);
        commit(&mut scheduler, &step);
        if decodes {
            return scheduler;
        }
    }
}

fn commit(scheduler: &mut Scheduler, step: &wick::scheduler::SchedulerOutput) {
    let token = |s: &ScheduledSeq| if s.sample { vec![s.start as u32 % 50_000] } else { Vec::new() };
    let sampled: Vec<_> = step.seqs.iter().map(token).collect();
    scheduler.commit(step, &sampled);
}

/// What it costs a sequence of 40,000 prompt tokens to be committed with its first token: without guesses, and with them,
/// for which everything that the prompt says is indexed.
#[divan::bench(args = [false, true])]
fn first_token_after_40_000(bencher: Bencher<'_, '_>, speculation: bool) {
    let ready = || {
        let mut scheduler = Scheduler::new(SchedulerConfig {
            batched_tokens_max: 40_000,
            speculation,
            prefix_cache: false,
            ..config(1)
        });
        let prompt: Arc<[u32]> = (0..40_000u32).map(|t| t.wrapping_mul(2_654_435_761) >> 17).collect();
        let limits = StopLimits { max_new_tokens: 1 << 10, stop_tokens: Arc::new([]) };
        let seq = NewSequence { id: SeqId(0), prompt, limits, salt: CacheSalt(0), prompt_logits: false, tenant: 0 };
        scheduler.add(seq).expect("the prompt fits");
        let step = scheduler.schedule();
        (scheduler, step)
    };
    bencher.with_inputs(ready).bench_local_values(|(mut scheduler, step)| {
        commit(&mut scheduler, &step);
        scheduler
    });
}

/// One decode step of `n` sequences: schedule and commit.
#[divan::bench(args = [1, 8, 32, 64])]
fn decode_step(bencher: Bencher<'_, '_>, n: usize) {
    let mut scheduler = decoding(n);
    bencher.bench_local(move || {
        let step = scheduler.schedule();
        commit(&mut scheduler, &step);
    });
}

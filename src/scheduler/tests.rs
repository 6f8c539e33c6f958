//! Exact plans, block ids and orders of small cases. Random ones are in `tests/scheduler_sim.rs`.
mod fairness;
mod sessions;
mod speculation;

use super::*;
use crate::kv::{BlockId, CacheSalt};

fn config() -> SchedulerConfig {
    SchedulerConfig {
        block_size: 4,
        num_blocks: 64,
        batched_tokens_max: 32,
        prefill_chunk_max: 8,
        running_max: 16,
        context_max: 200,
        logit_rows_max: 5,
        prefix_cache: true,
        speculation: false,
    }
}

fn new(id: u64, prompt: impl IntoIterator<Item = u32>, max_new_tokens: usize) -> NewSequence {
    NewSequence {
        id: SeqId(id),
        prompt: prompt.into_iter().collect(),
        limits: StopLimits { max_new_tokens, stop_tokens: [99].into() },
        salt: CacheSalt(0),
        prompt_logits: false,
        tenant: 0,
    }
}

/// (sequence, start, length, samples) of each part.
fn shape(step: &SchedulerOutput) -> Vec<(u64, usize, usize, bool)> {
    step.seqs.iter().map(|s| (s.id.0, s.start, s.tokens.len(), s.sample)).collect()
}

fn block_ids(step: &SchedulerOutput, at: usize) -> Vec<u32> {
    step.seqs[at].blocks.iter().map(|b| b.0).collect()
}

/// Commits a step in which every sampling sequence gets the token 50, and no guess is right.
fn commit(scheduler: &mut Scheduler, step: &SchedulerOutput) -> Vec<SeqUpdate> {
    let sampled: Vec<_> = step.seqs.iter().map(|s| if s.sample { vec![50] } else { vec![] }).collect();
    let updates = scheduler.commit(step, &sampled);
    scheduler.check_invariants().unwrap();
    updates
}

fn run(scheduler: &mut Scheduler) -> SchedulerOutput {
    let step = scheduler.schedule();
    scheduler.check_invariants().unwrap();
    commit(scheduler, &step);
    step
}

#[test]
fn a_lone_prompt_uses_the_whole_budget_then_decodes() {
    let mut s = Scheduler::new(config());
    s.add(new(1, 0..40, 3)).unwrap();
    let step = run(&mut s);
    assert_eq!(shape(&step), [(1, 0, 32, false)]);
    assert_eq!((step.seqs[0].logits, step.seqs[0].cached_tokens), (LogitRows::None, Some(0)));
    assert_eq!(block_ids(&step, 0), [0, 1, 2, 3, 4, 5, 6, 7]);
    let step = run(&mut s);
    assert_eq!(shape(&step), [(1, 32, 8, true)]);
    assert_eq!((step.seqs[0].logits, step.seqs[0].cached_tokens), (LogitRows::Last, None));
    assert_eq!(shape(&run(&mut s)), [(1, 40, 1, true)]);
    let step = s.schedule();
    assert_eq!(shape(&step), [(1, 41, 1, true)]);
    let update = SeqUpdate { id: SeqId(1), token: Some(50), finish: Some(FinishReason::Length) };
    assert_eq!(commit(&mut s, &step), [update]);
    assert!(s.is_idle());
    assert_eq!((s.gauges().blocks_used, s.counters().computed_tokens), (0, 42));
    assert!(s.schedule().is_empty());
}

#[test]
fn prompts_share_one_chunk_while_others_decode() {
    let mut s = Scheduler::new(config());
    s.add(new(1, 0..3, 50)).unwrap();
    run(&mut s);
    s.add(new(2, 100..130, 5)).unwrap();
    s.add(new(3, 200..205, 5)).unwrap();
    // The oldest and the shortest take turns: nobody waits for the long one to end.
    assert_eq!(shape(&run(&mut s)), [(1, 3, 1, true), (2, 0, 4, false), (3, 0, 4, false)]);
    assert_eq!(shape(&run(&mut s)), [(1, 4, 1, true), (3, 4, 1, true), (2, 4, 8, false)]);
    assert_eq!(shape(&run(&mut s)), [(1, 5, 1, true), (3, 5, 1, true), (2, 12, 8, false)]);
}

#[test]
fn tenants_take_turns() {
    let mut s = Scheduler::new(SchedulerConfig { running_max: 1, prefix_cache: false, ..config() });
    for id in 0..6 {
        s.add(NewSequence { tenant: 7, ..new(id, 0..10, 1) }).unwrap();
    }
    for id in 10..12 {
        s.add(NewSequence { tenant: 8, ..new(id, 0..10, 1) }).unwrap();
    }
    let order: Vec<u64> = (0..8).map(|_| run(&mut s).seqs[0].id.0).collect();
    assert_eq!(order, [0, 10, 1, 11, 2, 3, 4, 5]);
}

#[test]
fn a_long_prompt_is_not_overtaken_for_ever() {
    for running_max in 1..4 {
        let mut s = Scheduler::new(SchedulerConfig { running_max, prefix_cache: false, ..config() });
        s.add(new(0, 0..100, 1)).unwrap();
        let mut steps = 0;
        while s.seqs.contains_key(&SeqId(0)) {
            // Short prompts keep coming, more than one step can hold.
            for id in 0..4 {
                s.add(new(1 + steps * 4 + id, 0..10, 2)).unwrap();
            }
            run(&mut s);
            steps += 1;
            assert!(steps < 60, "starved with {running_max} running");
        }
    }
}

#[test]
fn a_repeated_prompt_is_computed_from_its_last_full_block() {
    let mut s = Scheduler::new(config());
    s.add(new(1, 0..12, 2)).unwrap();
    run(&mut s);
    run(&mut s);
    // All 12 tokens are cached; the last block is computed again because its last row is needed.
    s.add(new(2, 0..12, 2)).unwrap();
    let step = run(&mut s);
    assert_eq!((shape(&step), step.seqs[0].cached_tokens), (vec![(2, 8, 4, true)], Some(8)));
    assert_eq!(block_ids(&step, 0)[..2], [0, 1]);
    run(&mut s);
    // The first turn's output is part of the second turn's prefix: 0..12, 50 and three more make 4 blocks.
    s.add(new(3, (0..12).chain([50, 50, 7, 8]), 1)).unwrap();
    assert_eq!(run(&mut s).seqs[0].cached_tokens, Some(12));
    s.add(NewSequence { salt: CacheSalt(1), ..new(4, 0..12, 1) }).unwrap();
    assert_eq!(run(&mut s).seqs[0].cached_tokens, Some(0));
    assert_eq!((s.counters().prefix_queried_tokens, s.counters().prefix_hit_tokens), (12 + 12 + 16 + 12, 8 + 12));
}

#[test]
fn generated_blocks_are_published() {
    let mut s = Scheduler::new(config());
    s.add(new(1, 0..6, 4)).unwrap();
    (0..4).for_each(|_| drop(run(&mut s)));
    s.add(new(2, (0..6).chain([50, 50, 50, 50]), 1)).unwrap();
    assert_eq!(run(&mut s).seqs[0].cached_tokens, Some(8));
}

#[test]
fn siblings_wait_for_one_prefill() {
    let mut s = Scheduler::new(config());
    for id in 0..3 {
        s.add(new(id, 0..37, 2)).unwrap();
    }
    assert_eq!(shape(&run(&mut s)), [(0, 0, 32, false)]);
    assert_eq!((s.gauges().running, s.gauges().waiting), (1, 2));
    assert_eq!(shape(&run(&mut s)), [(0, 32, 5, true)]);
    let step = run(&mut s);
    assert_eq!(shape(&step), [(0, 37, 1, true), (1, 36, 1, true), (2, 36, 1, true)]);
    assert_eq!(step.seqs[2].cached_tokens, Some(36));
    assert_eq!(block_ids(&step, 1)[..9], block_ids(&step, 2)[..9]);
    assert_ne!(block_ids(&step, 1)[9], block_ids(&step, 2)[9]);
}

#[test]
fn waiters_go_on_when_the_owner_is_gone() {
    for fail in [false, true] {
        let mut s = Scheduler::new(config());
        for id in 0..3 {
            s.add(new(id, 0..37, 2)).unwrap();
        }
        let step = s.schedule();
        assert_eq!(shape(&step), [(0, 0, 32, false)]);
        if fail {
            assert_eq!(s.fail_step(&step), [SeqId(0)]);
        } else {
            s.abort(SeqId(0));
        }
        s.check_invariants().unwrap();
        assert_eq!(s.gauges().blocks_used, 0);
        // Nothing of the first was published.
        let next = s.schedule();
        assert_eq!((shape(&next), next.seqs[0].cached_tokens), (vec![(1, 0, 32, false)], Some(0)));
        assert_eq!(commit(&mut s, &step), []);
        commit(&mut s, &next);
        s.abort(SeqId(1));
        // The next owner got further before it went: 8 of its blocks are there.
        let step = s.schedule();
        assert_eq!((shape(&step), step.seqs[0].cached_tokens), (vec![(2, 32, 5, true)], Some(32)));
    }
}

#[test]
fn the_youngest_is_preempted_and_comes_back_to_its_cached_blocks() {
    let mut s = Scheduler::new(SchedulerConfig { num_blocks: 6, ..config() });
    s.add(new(1, 0..7, 9)).unwrap();
    s.add(new(2, 100..107, 9)).unwrap();
    assert_eq!(shape(&run(&mut s)), [(1, 0, 7, true), (2, 0, 7, true)]);
    run(&mut s);
    let step = run(&mut s);
    assert_eq!((block_ids(&step, 0), block_ids(&step, 1)), (vec![0, 1, 4], vec![2, 3, 5]));
    (0..3).for_each(|_| drop(run(&mut s)));
    // At position 12 the older needs a fourth block. The younger has two full blocks cached and a partial one.
    let step = run(&mut s);
    assert_eq!(step.preempted, [SeqId(2)]);
    assert_eq!((shape(&step), block_ids(&step, 0)), (vec![(1, 12, 1, true)], vec![0, 1, 4, 5]));
    let mut steps = 0;
    let back = loop {
        let step = run(&mut s);
        steps += 1;
        if let Some(part) = step.seqs.iter().find(|p| p.id == SeqId(2)) {
            break part.clone();
        }
    };
    assert!(steps > 1 && s.counters().preemptions == 1);
    assert_eq!((back.start, back.blocks[..2].to_vec()), (8, vec![BlockId(2), BlockId(3)]));
    assert_eq!(back.cached_tokens, None);
}

#[test]
fn blocks_are_taken_from_the_youngest_only() {
    let mut s = Scheduler::new(SchedulerConfig { num_blocks: 6, prefix_cache: false, ..config() });
    // Ends of blocks are reached by the middle one first, then the youngest, then the oldest.
    for (id, prompt_len, max_new_tokens) in [(1, 1, 9), (2, 3, 9), (3, 2, 9)] {
        s.add(new(id, 0..prompt_len, max_new_tokens)).unwrap();
    }
    (0..6).for_each(|_| drop(run(&mut s)));
    assert_eq!((s.gauges().blocks_used, s.counters().preemptions), (6, 0));
    let step = run(&mut s);
    assert_eq!((step.preempted, s.gauges().running), (vec![SeqId(3)], 2));
    // Alone with older ones, a sequence that finds no block waits instead of taking one.
    let mut s = Scheduler::new(SchedulerConfig { num_blocks: 4, prefix_cache: false, ..config() });
    s.add(new(1, 0..1, 8)).unwrap();
    s.add(new(2, 0..4, 6)).unwrap();
    let steps: Vec<usize> = (0..9).map(|_| run(&mut s).seqs.len()).collect();
    assert_eq!(steps, [2, 2, 2, 2, 2, 1, 1, 1, 1]);
    assert!(s.is_idle() && s.counters().preemptions == 0);
}

#[test]
fn prompt_logits_are_delivered_once_per_position() {
    let mut s = Scheduler::new(config());
    s.add(new(1, 0..14, 1)).unwrap();
    run(&mut s);
    s.add(NewSequence { prompt_logits: true, ..new(2, 0..14, 2) }).unwrap();
    // Nothing is taken from the cache; a step has at most 5 rows.
    let step = run(&mut s);
    assert_eq!((shape(&step), step.seqs[0].cached_tokens), (vec![(2, 0, 5, false)], Some(0)));
    assert_eq!(step.seqs[0].logits, LogitRows::All);
    assert_eq!(shape(&run(&mut s)), [(2, 5, 5, false)]);
    s.preempt(SeqId(2));
    s.check_invariants().unwrap();
    // Positions 0..8 come from the cache, 8 and 9 are computed again without rows, and rows go on from 10.
    let step = run(&mut s);
    assert_eq!((shape(&step), step.seqs[0].logits), (vec![(2, 8, 2, false)], LogitRows::None));
    let step = run(&mut s);
    assert_eq!((shape(&step), step.seqs[0].logits), (vec![(2, 10, 4, true)], LogitRows::All));
    let step = run(&mut s);
    assert_eq!((shape(&step), step.seqs[0].logits), (vec![(2, 14, 1, true)], LogitRows::Last));
    assert_eq!(s.counters().prefix_queried_tokens, 14);
}

#[test]
fn a_prompt_that_does_not_fit_yet_is_overtaken_by_its_own_length_only() {
    let mut s = Scheduler::new(SchedulerConfig { num_blocks: 16, prefix_cache: false, ..config() });
    s.add(new(1, 0..31, 9)).unwrap();
    run(&mut s);
    s.add(new(2, 100..132, 1)).unwrap();
    let mut started = Vec::new();
    for id in 3..40 {
        s.add(new(id, 0..8, 1)).unwrap();
        let step = run(&mut s);
        let mut together: Vec<u64> = step.seqs.iter().filter(|p| p.cached_tokens.is_some()).map(|p| p.id.0).collect();
        together.sort_unstable();
        started.append(&mut together);
    }
    // Four prompts of 8 tokens go past the one of 32 (they fit beside the first, which it does not) and no more.
    assert_eq!(started[..5], [3, 4, 5, 6, 2]);
}

#[test]
fn what_cannot_run_is_rejected() {
    let mut s = Scheduler::new(SchedulerConfig { num_blocks: 10, context_max: 60, ..config() });
    assert_eq!(s.add(new(1, [], 1)), Err(Rejected::EmptyPrompt));
    assert_eq!(s.add(new(1, 0..60, 1)), Err(Rejected::TooLong { needed: 61, context_max: 60 }));
    assert_eq!(s.add(new(1, 0..41, 1)), Err(Rejected::NeverFits { needed: 11, total: 10 }));
    assert_eq!(s.add(new(1, 0..10, usize::MAX)), Err(Rejected::NeverFits { needed: 15, total: 10 }));
    assert!(s.is_idle());
    s.add(new(1, 0..10, 31)).unwrap();
    assert!(!s.is_idle());
}

#[test]
fn sequences_end_by_stop_token_and_by_context() {
    let mut s = Scheduler::new(SchedulerConfig { context_max: 12, ..config() });
    s.add(new(1, 0..10, 100)).unwrap();
    run(&mut s);
    let step = s.schedule();
    assert_eq!(commit(&mut s, &step)[0].finish, Some(FinishReason::Length));
    s.add(new(2, 0..10, 100)).unwrap();
    let step = s.schedule();
    let updates = s.commit(&step, &[vec![99]]);
    assert_eq!(updates, [SeqUpdate { id: SeqId(2), token: Some(99), finish: Some(FinishReason::StopToken(99)) }]);
    assert!(s.is_idle());
}

#[test]
fn a_sequence_that_generates_nothing_ends_with_its_prompt() {
    let mut s = Scheduler::new(SchedulerConfig { context_max: 40, num_blocks: 10, ..config() });
    assert_eq!(s.add(new(1, 0..41, 0)), Err(Rejected::TooLong { needed: 41, context_max: 40 }));
    s.add(new(1, 0..40, 0)).unwrap();
    let step = s.schedule();
    assert_eq!((shape(&step), step.seqs[0].logits), (vec![(1, 0, 32, false)], LogitRows::None));
    assert_eq!(commit(&mut s, &step), []);
    let step = s.schedule();
    assert_eq!((shape(&step), step.seqs[0].logits), (vec![(1, 32, 8, false)], LogitRows::Last));
    assert_eq!(commit(&mut s, &step), [SeqUpdate { id: SeqId(1), token: None, finish: Some(FinishReason::Length) }]);
    assert!(s.is_idle());
    // Its blocks are there for the next, which computes but its last token. Every row may be wanted, too.
    s.add(new(2, 0..37, 0)).unwrap();
    assert_eq!(shape(&run(&mut s)), [(2, 36, 1, false)]);
    s.add(NewSequence { prompt_logits: true, ..new(3, 0..7, 0) }).unwrap();
    let step = run(&mut s);
    assert_eq!((shape(&step), step.seqs[0].logits), (vec![(3, 0, 5, false)], LogitRows::All));
    let step = run(&mut s);
    assert_eq!((shape(&step), step.seqs[0].logits), (vec![(3, 5, 2, false)], LogitRows::All));
    assert!(s.is_idle());
}

#[test]
fn a_step_in_flight_is_left_alone() {
    let mut s = Scheduler::new(config());
    s.add(new(1, 0..3, 4)).unwrap();
    let first = s.schedule();
    assert!(s.schedule().is_empty());
    // The id is given to another sequence while the step runs: the step's result is not its result.
    s.abort(SeqId(1));
    s.add(new(1, 5..8, 4)).unwrap();
    assert_eq!(commit(&mut s, &first), []);
    assert_eq!(shape(&run(&mut s)), [(1, 0, 3, true)]);
    s.abort(SeqId(42));
    s.abort(SeqId(1));
    assert!(s.is_idle());
}

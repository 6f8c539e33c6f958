//! Which guesses are planned, and what becomes of right and wrong ones.
use super::*;
use crate::scheduler::speculate::ROWS_MAX;

fn guessing() -> SchedulerConfig {
    SchedulerConfig { speculation: true, logit_rows_max: 64, ..config() }
}

/// Commits a step in which every sampling sequence gets what `truth` says, as far as that was guessed and one more.
fn commit_as(s: &mut Scheduler, step: &SchedulerOutput, truth: impl Fn(u64, usize) -> u32) -> Vec<SeqUpdate> {
    let sampled = |part: &ScheduledSeq| {
        let mut tokens = Vec::new();
        if part.sample {
            let next = part.start + part.known();
            tokens.push(truth(part.id.0, next));
            for (&guess, position) in part.drafted().iter().zip(next + 1..) {
                if tokens.last() != Some(&guess) {
                    break;
                }
                tokens.push(truth(part.id.0, position));
            }
        }
        tokens
    };
    let sampled: Vec<_> = step.seqs.iter().map(sampled).collect();
    let updates = s.commit(step, &sampled);
    s.check_invariants().unwrap();
    updates
}

/// Steps until `steps` have run or nothing is left; guesses in the last of them.
fn run_as(s: &mut Scheduler, steps: usize, truth: impl Fn(u64, usize) -> u32 + Copy) -> usize {
    let mut drafts = 0;
    for _ in 0..steps {
        let step = s.schedule();
        s.check_invariants().unwrap();
        drafts = step.seqs.iter().map(|part| part.drafts).sum();
        commit_as(s, &step, truth);
    }
    drafts
}

/// Tokens of a text that repeats itself every ten.
fn decimal(_: u64, position: usize) -> u32 {
    position as u32 % 10
}

#[test]
fn right_guesses_are_kept_and_wrong_ones_leave_no_trace() {
    let mut s = Scheduler::new(guessing());
    s.add(new(1, (0..10).chain(0..4), 60)).unwrap();
    let step = s.schedule();
    assert_eq!((shape(&step), step.seqs[0].drafts), (vec![(1, 0, 14, true)], 0));
    commit_as(&mut s, &step, decimal);
    // 0 1 2 3 4 stood before: 5 and 6 are worth their rows, as long as nothing is known of this sequence.
    let step = s.schedule();
    let part = &step.seqs[0];
    assert_eq!((shape(&step), part.tokens.as_slice(), part.drafts), (vec![(1, 14, 3, true)], &[4, 5, 6][..], 2));
    assert_eq!((part.logits, part.blocks.len()), (LogitRows::All, 5));
    let updates: Vec<u32> = commit_as(&mut s, &step, decimal).iter().filter_map(|update| update.token).collect();
    assert_eq!(updates, [5, 6, 7]);
    let step = s.schedule();
    let drafts = step.seqs[0].drafts;
    assert!(step.seqs[0].start == 17 && drafts > 2, "more is guessed after right guesses");
    // The first guess is right, the others are not.
    let updates = commit_as(&mut s, &step, |_, position| if position == 18 { 8 } else { 70 });
    assert_eq!(updates.iter().filter_map(|update| update.token).collect::<Vec<_>>(), [8, 70]);
    let view = s.running_views().next().unwrap();
    assert_eq!((view.computed, &view.tokens[14..]), (19, &[4, 5, 6, 7, 8, 70][..]));
    assert_eq!((view.blocks.len(), view.published), (5, 4), "the blocks of wrong guesses are given back");
    let counters = s.counters();
    assert_eq!((counters.drafted_tokens, counters.accepted_tokens), (2 + drafts as u64, 3));
    assert_eq!(counters.computed_tokens, 14 + 3 + 1 + drafts as u64);
}

#[test]
fn without_speculation_nothing_is_guessed() {
    let mut s = Scheduler::new(config());
    s.add(new(1, (0..10).chain(0..4), 60)).unwrap();
    assert_eq!(run_as(&mut s, 30, decimal), 0);
    assert_eq!(s.counters().drafted_tokens, 0);
}

#[test]
fn a_draft_ends_before_the_sequence_does() {
    // 14 tokens of prompt, the rest generated; the last one is never computed.
    for (max_new_tokens, context_max, stop) in [(12, 200, None), (100, 26, None), (100, 200, Some(25))] {
        let mut s = Scheduler::new(SchedulerConfig { context_max, ..guessing() });
        s.add(new(1, (0..10).chain(0..4), max_new_tokens)).unwrap();
        // 99 is the stop token; it takes the place of a 5 that would be guessed.
        let truth = |_, position| if stop == Some(position) { 99 } else { position as u32 % 10 };
        let mut tokens = Vec::new();
        let mut finish = None;
        let mut steps = 0;
        while !s.is_idle() {
            let step = s.schedule();
            assert!(step.seqs[0].start + step.seqs[0].tokens.len() < 26 || stop.is_some());
            for update in commit_as(&mut s, &step, truth) {
                assert!(finish.is_none());
                tokens.extend(update.token);
                finish = update.finish;
            }
            steps += 1;
        }
        assert_eq!((tokens.len(), steps < 8), (12, true));
        assert_eq!(finish, Some(if stop.is_some() { FinishReason::StopToken(99) } else { FinishReason::Length }));
    }
    // A stop token that is guessed is left to the sampler.
    let mut s = Scheduler::new(guessing());
    s.add(new(1, [0, 1, 2, 3, 4, 99, 0, 1, 2, 3], 60)).unwrap();
    run_as(&mut s, 1, |_, _| 4);
    assert_eq!(s.schedule().seqs[0].drafts, 0);
}

#[test]
fn guesses_take_only_blocks_that_are_free() {
    // Two sequences with 5 blocks each, and one block more. The first has room for position 19 and guesses up to 21.
    for (other_len, drafts) in [(18, 3), (20, 1)] {
        let shape = SchedulerConfig { num_blocks: 11, batched_tokens_max: 64, prefix_cache: false, ..guessing() };
        let mut s = Scheduler::new(shape);
        s.add(new(1, (0..10).chain(0..8), 20)).unwrap();
        s.add(new(2, 100..100 + other_len, 20)).unwrap();
        let truth = |id, position| if id == 1 { position as u32 % 10 } else { 500 + position as u32 };
        run_as(&mut s, 1, truth);
        assert_eq!(s.gauges().blocks_used, 10);
        let step = s.schedule();
        let parts: Vec<_> = step.seqs.iter().map(|part| (part.id.0, part.start, part.drafts)).collect();
        assert_eq!(parts, [(1, 18, drafts), (2, other_len as usize, 0)]);
        assert!(step.preempted.is_empty());
        assert_eq!(s.gauges().blocks_used, 11, "the last one is the other's if that needs it");
        commit_as(&mut s, &step, |_, _| 70);
        assert_eq!(s.gauges().blocks_used, if other_len == 20 { 11 } else { 10 }, "it is not kept for wrong guesses");
    }
}

/// Guesses per sequence in a step of `n` sequences whose guesses have all been right, where a step costs `fixed` rows before its first.
fn drafts_in_batch_of(n: u64, fixed: f32) -> usize {
    let mut s = Scheduler::new(SchedulerConfig {
        num_blocks: 2000,
        batched_tokens_max: 512,
        logit_rows_max: 512,
        ..guessing()
    });
    s.set_fixed_rows(fixed);
    for id in 0..n {
        s.add(NewSequence { salt: CacheSalt(id), ..new(id, (0..10).chain(0..4), 180) }).unwrap();
    }
    run_as(&mut s, 12, decimal) / n as usize
}

#[test]
fn the_wider_the_batch_the_fewer_guesses() {
    let drafts: Vec<usize> = [1, 2, 4, 8, 40].map(|n| drafts_in_batch_of(n, 4.0)).into();
    assert!(drafts.is_sorted_by(|a, b| a > b), "{drafts:?}");
    assert!(drafts[0] >= 8 && drafts[3] <= 4 && drafts[4] == 0, "{drafts:?}");
}

#[test]
fn the_more_a_step_costs_anyway_the_more_guesses() {
    let drafts: Vec<usize> = [1.0, 4.0, 20.0, 1e9].map(|fixed| drafts_in_batch_of(8, fixed)).into();
    assert!(drafts.is_sorted() && drafts[0] == drafts[1] && drafts[2] > drafts[1], "{drafts:?}");
    assert_eq!(8 * (drafts[3] + 1), ROWS_MAX, "{drafts:?}");
}

#[test]
fn a_sequence_that_is_always_guessed_wrong_is_soon_left_alone() {
    let mut s = Scheduler::new(SchedulerConfig { context_max: 2000, num_blocks: 1000, ..guessing() });
    s.add(new(1, [1, 2, 100, 1, 2, 101, 1], 1500)).unwrap();
    // After 1 and 2 always comes something new, and so the 1 2 after it: nothing is ever guessed right.
    run_as(&mut s, 900, |_, position| match position % 3 {
        0 => 1,
        1 => 2,
        _ => 100 + position as u32,
    });
    assert!(s.counters().accepted_tokens == 0 && s.counters().drafted_tokens < 6, "{:?}", s.counters());
}

#[test]
fn guesses_leave_prompts_their_tokens_and_their_rows() {
    let mut s = Scheduler::new(SchedulerConfig { batched_tokens_max: 10, logit_rows_max: 7, ..guessing() });
    s.add(new(1, (0..10).chain(0..4), 100)).unwrap();
    let drafts = run_as(&mut s, 8, decimal);
    assert_eq!(drafts, 7, "as many as there are rows of logits");
    s.add(new(2, 100..140, 1)).unwrap();
    let step = s.schedule();
    let parts: Vec<_> = step.seqs.iter().map(|part| (part.id.0, part.known(), part.drafts)).collect();
    assert_eq!(parts, [(1, 1, 1), (2, 8, 0)], "a chunk of 8, and what is left of 10");
    commit_as(&mut s, &step, decimal);
    s.abort(SeqId(2));
    s.add(NewSequence { prompt_logits: true, ..new(3, 100..140, 1) }).unwrap();
    let step = s.schedule();
    let parts: Vec<_> = step.seqs.iter().map(|part| (part.id.0, part.known(), part.drafts)).collect();
    assert_eq!(parts, [(1, 1, 0), (3, 7, 0)], "all rows of logits go to who asked for them");
}

//! Who waits for whom: prompts of one tenant beside each other, and tenants beside each other.
use super::*;

/// A server's shape: steps of at most 128 prompt tokens beside decodes, and memory enough.
fn server() -> SchedulerConfig {
    SchedulerConfig {
        block_size: 16,
        num_blocks: 8192,
        batched_tokens_max: 512,
        prefill_chunk_max: 128,
        running_max: 64,
        context_max: 40_000,
        ..config()
    }
}

/// Ids of the short prompts that keep coming.
const SHORT: u64 = 1000;

/// The steps, counted from its arrival, in which a prompt of 303 tokens gets its first tokens and its last ones. One
/// sequence decodes, a prompt of 30,000 tokens is being computed, and `short` prompts of 20 tokens come with every step.
/// Those of
/// `before` came in the steps before, and `x` says what the 303 tokens are.
fn steps_of(short: u64, before: Vec<NewSequence>, x: impl IntoIterator<Item = u32>) -> (usize, usize) {
    let mut s = Scheduler::new(server());
    s.add(new(1, [7], 2000)).unwrap();
    run(&mut s);
    s.add(new(2, 1_000_000..1_030_000, 1)).unwrap();
    run(&mut s);
    let mut next = SHORT;
    let mut come = |s: &mut Scheduler| {
        for _ in 0..short {
            let first = 2_000_000 + next as u32 * 20;
            s.add(new(next, first..first + 20, 1)).unwrap();
            next += 1;
        }
        run(s)
    };
    for other in before {
        s.add(other).unwrap();
        come(&mut s);
    }
    s.add(new(9, x, 1)).unwrap();
    let steps: Vec<usize> = (0..600)
        .map(|step| (step, come(&mut s)))
        .filter(|(_, plan)| plan.seqs.iter().any(|part| part.id == SeqId(9)))
        .map(|(step, _)| step)
        .collect();
    (steps.first().copied().unwrap_or(usize::MAX), steps.last().copied().unwrap_or(usize::MAX))
}

#[test]
fn a_middling_prompt_gets_on_between_long_and_short_ones() {
    let x = || 500_000..500_303;
    let quiet = steps_of(0, vec![], x());
    assert!(quiet.0 == 0 && quiet.1 <= 5, "{quiet:?} without short ones");
    let one = steps_of(1, vec![], x());
    assert!(one.0 <= 1 && one.1 <= 12, "{one:?} with one short prompt per step");
    let two = steps_of(2, vec![], x());
    assert!(two.0 <= 4 && two.1 <= 40, "{two:?} with two");
}

#[test]
fn a_prompt_that_waits_for_another_ones_blocks_lends_it_its_place() {
    // The prefix of 300 tokens is shared with a prompt of 20,000 that came before, and others of 1,000 are shorter.
    let shared = || 600_000..600_300u32;
    let owner = new(3, shared().chain(700_000..719_700), 1);
    let others = (0..2).map(|i| new(20 + i, 800_000 + i as u32 * 1000..801_000 + i as u32 * 1000, 1));
    let before = std::iter::once(owner).chain(others).collect();
    let (first, last) = steps_of(1, before, shared().chain([1, 2, 3]));
    assert!(first <= 12 && last <= first + 1, "waited {first} steps for the shared prefix, ended after {last}");
}

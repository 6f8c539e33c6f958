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

fn of_tenant(tenant: u64, sequence: NewSequence) -> NewSequence {
    NewSequence { tenant, salt: CacheSalt(tenant), ..sequence }
}

fn running_of(s: &Scheduler, tenant: u64) -> usize {
    s.running_views().filter(|view| s.seqs[&view.id].tenant == tenant).count()
}

/// A scheduler in which tenant 1 has `n` sequences that generate 2,000 tokens each, after `steps` steps.
fn busy(n: u64, steps: usize, config: SchedulerConfig) -> Scheduler {
    let mut s = Scheduler::new(config);
    for id in 0..n {
        s.add(of_tenant(1, new(id, [7, id as u32], 2000))).unwrap();
    }
    (0..steps).for_each(|_| drop(run(&mut s)));
    s
}

#[test]
fn a_tenant_that_waits_gets_its_share_of_the_slots() {
    let mut s = busy(64, 20, server());
    assert_eq!(running_of(&s, 1), 64);
    s.add(of_tenant(2, new(100, 0..20, 5))).unwrap();
    let step = run(&mut s);
    assert!(step.seqs.iter().any(|part| part.id == SeqId(100)), "it starts at once");
    assert_eq!((step.preempted, s.counters().preemptions, s.counters().yields), (vec![SeqId(63)], 1, 1));
    (0..5).for_each(|_| drop(run(&mut s)));
    // The slot goes back, and what the sequence had computed is still there but for a part of a block.
    let computed = s.counters().computed_tokens;
    let step = run(&mut s);
    assert!(step.seqs.iter().any(|part| part.id == SeqId(63)) && running_of(&s, 1) == 64);
    assert!(s.counters().computed_tokens - computed < 64 + 16);
    assert_eq!(s.counters().yields, 1);
}

#[test]
fn slots_are_shared_out_once_and_not_over_and_over() {
    let mut s = busy(100, 20, server());
    for id in 100..200 {
        s.add(of_tenant(2, new(id, [9, id as u32], 2000))).unwrap();
    }
    for _ in 0..400 {
        run(&mut s);
        assert!(running_of(&s, 1) + running_of(&s, 2) == 64, "slots are not left empty");
    }
    assert_eq!((running_of(&s, 1), running_of(&s, 2), s.counters().yields), (32, 32, 32));
    // A third one comes with one request: it costs one preemption, and another when the sequence comes back, at most.
    s.add(of_tenant(3, new(300, 0..20, 5))).unwrap();
    let started = (0..3).any(|_| run(&mut s).seqs.iter().any(|part| part.id == SeqId(300)));
    (0..100).for_each(|_| drop(run(&mut s)));
    assert!(started && s.counters().yields <= 34, "{} yields", s.counters().yields);
    assert_eq!((running_of(&s, 1), running_of(&s, 2)), (32, 32));
}

#[test]
fn a_sequence_that_just_started_does_not_yield() {
    let mut s = busy(64, 1, server());
    for id in 100..400 {
        // A tenant of many small requests: each of tenant 1's sequences that makes way has run for a while before.
        s.add(of_tenant(2, new(id, 0..20, 1))).unwrap();
    }
    let mut ran = vec![1; 64];
    for _ in 0..200 {
        let step = run(&mut s);
        for id in &step.preempted {
            assert!(std::mem::take(&mut ran[id.0 as usize]) >= 16, "{id:?} had just started");
        }
        for part in step.seqs.iter().filter(|part| part.id.0 < 64) {
            ran[part.id.0 as usize] += 1;
        }
    }
    assert!(s.counters().yields > 0);
}

#[test]
fn one_tenant_alone_never_yields() {
    let mut s = busy(200, 300, SchedulerConfig { running_max: 8, ..server() });
    assert_eq!((s.counters().yields, s.counters().preemptions), (0, 0));
    (0..10).for_each(|id| s.add(of_tenant(1, new(300 + id, 0..20, 1))).unwrap());
    (0..50).for_each(|_| drop(run(&mut s)));
    assert_eq!(s.counters().yields, 0);
}

#[test]
fn a_tenant_that_waits_gets_its_share_of_the_memory() {
    // Memory for 24 of tenant 1's sequences at most, and for 9: then some are always preempted.
    for num_blocks in [3000, 1000, 300] {
        let mut s = busy(64, 400, SchedulerConfig { num_blocks, ..server() });
        s.add(of_tenant(2, new(100, 0..20, 40))).unwrap();
        let steps: Vec<u64> = (0..100).filter(|_| run(&mut s).seqs.iter().any(|part| part.id == SeqId(100))).collect();
        assert!(steps[0] <= 2 && steps.len() == 40, "{num_blocks} blocks: {steps:?}");
        assert!(s.counters().yields <= 3, "{} made way", s.counters().yields);
    }
}

#[test]
fn a_large_sequence_is_not_kept_out_by_another_tenants_small_ones() {
    // Two thirds of the memory for one of tenant 1; tenant 2 would keep its half of it for ever.
    let mut s = Scheduler::new(SchedulerConfig { num_blocks: 300, prefix_cache: false, ..server() });
    let mut next = 100;
    let mut come = |s: &mut Scheduler| {
        while s.seqs.values().filter(|seq| seq.tenant == 2).count() < 40 {
            s.add(of_tenant(2, new(next, 0..60, 40))).unwrap();
            next += 1;
        }
        run(s)
    };
    (0..50).for_each(|_| drop(come(&mut s)));
    s.add(of_tenant(1, new(1, 0..3200, 50))).unwrap();
    let mut steps = 0;
    while s.seqs.contains_key(&SeqId(1)) {
        come(&mut s);
        steps += 1;
        assert!(steps < 300, "starved");
    }
}

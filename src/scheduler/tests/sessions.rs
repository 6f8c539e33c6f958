//! Sessions: what their next turns find in the cache when memory is short.
use super::*;
use crate::kv::PrefixEnd;

/// Runs a sequence to its end: how many tokens of its prompt were cached, and its tokens.
fn complete(s: &mut Scheduler, sequence: NewSequence) -> (usize, Vec<u32>) {
    let (id, mut tokens) = (sequence.id, sequence.prompt.to_vec());
    tokens.extend(std::iter::repeat_n(50, sequence.limits.max_new_tokens));
    s.add(sequence).unwrap();
    let mut cached = None;
    while s.seqs.contains_key(&id) {
        let step = run(s);
        cached = cached.or(step.seqs.iter().find(|part| part.id == id).and_then(|part| part.cached_tokens));
    }
    (cached.unwrap(), tokens)
}

#[test]
fn turns_of_interleaved_sessions_find_all_that_came_before() {
    // Three sessions of up to 70 tokens, with room for little else.
    let mut s = Scheduler::new(SchedulerConfig { num_blocks: 64, ..config() });
    let mut ids = 0..;
    let mut next = |prompt: Vec<u32>| new(ids.next().unwrap(), prompt, 6);
    for dead in 0..20 {
        complete(&mut s, next((0..30).map(|i| 1000 * dead + i).collect()));
    }
    let mut sessions = [Vec::new(), Vec::new(), Vec::new()];
    for turn in 0..6 {
        for (which, session) in (100..).zip(&mut sessions) {
            // A tool's result, or what the user says; and beside it somebody who never comes back.
            let before = session.len();
            session.extend((0..5).map(|i| 1000 * which + 10 * turn + i));
            let (cached, tokens) = complete(&mut s, next(session.clone()));
            // The last token that was generated has never been computed.
            assert_eq!(cached, before.saturating_sub(1) / 4 * 4, "turn {turn} of session {which}");
            *session = tokens;
        }
        complete(&mut s, next(vec![90_000 + turn; 6]));
    }
}

#[test]
fn what_does_not_fit_is_lost_from_its_end() {
    let mut s = Scheduler::new(SchedulerConfig { num_blocks: 15, ..config() });
    let prompt = |which: u32| (0..40).map(move |i| 100 * which + i);
    complete(&mut s, new(1, prompt(1), 1));
    complete(&mut s, new(2, prompt(2), 1));
    // 15 blocks less the 10 of the second: half of the first is left.
    assert_eq!(complete(&mut s, new(3, prompt(1), 1)).0, 20);
}

/// A prompt that is cached to its last token computes its last block once more. What follows must not hang on the older
/// of the two blocks, which is forgotten first.
#[test]
fn a_session_does_not_lose_a_block_in_its_middle() {
    let mut s = Scheduler::new(SchedulerConfig { num_blocks: 8, ..config() });
    complete(&mut s, new(1, 0..8, 1));
    let (cached, tokens) = complete(&mut s, new(2, 0..8, 9));
    assert_eq!(cached, 4);
    complete(&mut s, new(3, 100..120, 1));
    assert_eq!(complete(&mut s, new(4, tokens, 1)).0, 12, "all but its last block");
}

#[test]
fn explanations_are_of_what_was_cached_before() {
    let mut s = Scheduler::new(SchedulerConfig { num_blocks: 8, ..config() });
    complete(&mut s, new(1, 0..20, 1));
    // Its own blocks take the place of those that it is compared with.
    s.add(new(2, (0..10).chain(200..218), 1)).unwrap();
    s.explain(SeqId(2));
    assert_eq!(s.closest(SeqId(2)), None);
    s.schedule();
    let closest = s.closest(SeqId(2)).unwrap();
    assert_eq!((closest.tokens, closest.end), (10, PrefixEnd::Differs));
    s.add(new(3, 0..20, 1)).unwrap();
    assert_eq!(s.closest(SeqId(3)), None, "nobody asked");
    let mut off = Scheduler::new(SchedulerConfig { prefix_cache: false, ..config() });
    complete(&mut off, new(1, 0..20, 1));
    off.add(new(2, 0..20, 1)).unwrap();
    off.explain(SeqId(2));
    off.schedule();
    let closest = off.closest(SeqId(2)).unwrap();
    assert_eq!((closest.tokens, closest.end), (0, PrefixEnd::OfCached), "nothing is cached");
}

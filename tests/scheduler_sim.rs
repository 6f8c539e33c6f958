//! Random schedules over tiny pools and a vocabulary of two, checked against the run of each sequence alone.
//!
//! A fake model keeps token ids as its KV and computes the next token from the context it reads back through the block
//! tables. Whatever is added, aborted, failed, preempted and guessed, every output must be what the sequence yields alone;
//! and after every step the books must balance. Small vocabularies and pools make prefixes, evictions and collisions
//! frequent. In some worlds the next token follows from the last few alone, so that outputs repeat themselves and most
//! guesses are right.
//!
//! `WICK_SIM_STEPS` sets the number of steps; `WICK_SIM_SEED` replays one world, as a failure prints it.
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use wick::kv::{BlockId, CacheSalt};
use wick::runner::{Logits, Runner};
use wick::scheduler::{
    FinishReason, LogitRows, NewSequence, ScheduledSeq, Scheduler, SchedulerConfig, SchedulerOutput, SeqId, StopLimits,
};
use wick::testing::{FakeOptions, FakeRunner, NextToken, generate, greedy, next_token};

const VOCAB: usize = 2;
const DEFAULT_STEPS: u64 = 2_500_000;
/// Sequences in the scheduler at once.
const LIVE_MAX: usize = 12;

/// Xorshift (Marsaglia 2003) with a multiplied output.
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d | 1)
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    /// Uniform in `low..=high`.
    fn range(&mut self, low: usize, high: usize) -> usize {
        low + usize::try_from(self.next() % (high - low + 1) as u64).expect("smaller than a usize")
    }
    fn token(&mut self) -> u32 {
        u32::from(self.percent(50))
    }
    fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }
}

/// What the test knows about a sequence that is in the scheduler.
struct Live {
    new: NewSequence,
    output: Vec<u32>,
    /// Prompt positions whose rows were delivered.
    rows: usize,
    started: bool,
    added_at: u64,
}

#[derive(Default)]
struct Totals {
    steps: u64,
    finished: u64,
    aborted: u64,
    failed: u64,
    preemptions: u64,
    yields: u64,
    hit_tokens: u64,
    accepted: u64,
    rejected: u64,
    latency_max: u64,
}

struct World {
    rng: Rng,
    scheduler: Scheduler,
    runner: FakeRunner,
    live: BTreeMap<SeqId, Live>,
    /// Earlier prompts with their outputs, to start from.
    histories: Vec<Vec<u32>>,
    /// Steps that were executed and neither committed nor failed, with their results.
    outstanding: VecDeque<(SchedulerOutput, Option<Logits>)>,
    next_id: u64,
    tenants: usize,
    /// The next token follows from so many last ones; 0: from all.
    memory: usize,
    /// Steps scheduled before the first of them is committed.
    depth: usize,
    /// Tokens that a sequence wants.
    output: (usize, usize),
    abort_chance: u64,
    fail_chance: u64,
    totals: Totals,
    /// For the check of sharing: per block, a sequence that has it in its table.
    holders: Vec<Option<usize>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let block_size = rng.range(1, 4);
        // Where there is memory enough, slots are what sequences contend for, and they hold them long.
        let roomy = rng.percent(15);
        let num_blocks = if roomy { rng.range(100, 200) } else { rng.range(3, 24) };
        let config = SchedulerConfig {
            block_size,
            num_blocks,
            batched_tokens_max: rng.range(1, 24),
            prefill_chunk_max: rng.range(1, 8),
            running_max: rng.range(1, 8),
            context_max: rng.range(2, 48),
            logit_rows_max: rng.range(1, 6),
            prefix_cache: rng.percent(90),
            speculation: rng.percent(75),
        };
        let memory = if rng.percent(50) { rng.range(2, 5) } else { 0 };
        let next = (memory > 0).then(|| -> NextToken { Box::new(move |context| remembering(context, memory)) });
        let options = FakeOptions { next, ..FakeOptions::default() };
        // From every hash colliding with every other to none.
        let hash_mask = [0, 1, 0xf, u64::MAX, u64::MAX, u64::MAX][rng.range(0, 5)];
        Self {
            scheduler: Scheduler::with_hash_mask(config, hash_mask),
            runner: FakeRunner::with_options(VOCAB, block_size, num_blocks, options),
            memory,
            live: BTreeMap::new(),
            histories: Vec::new(),
            outstanding: VecDeque::new(),
            next_id: 0,
            tenants: rng.range(1, 3),
            depth: if rng.percent(20) { 2 } else { 1 },
            output: if roomy { (20, 46) } else { (1, 24) },
            abort_chance: [0, 1, 10][rng.range(0, 2)],
            fail_chance: [0, 1, 5][rng.range(0, 2)],
            totals: Totals::default(),
            holders: vec![None; num_blocks],
            rng,
        }
    }

    /// `steps` steps under load, then until idle.
    fn run(mut self, steps: u64) -> Totals {
        let depth = self.depth;
        while self.totals.steps < steps {
            let room = LIVE_MAX.saturating_sub(self.live.len());
            if room > 0 && self.rng.percent(40) {
                self.add(room);
            }
            self.maybe_abort();
            self.step();
            self.maybe_abort();
            while self.outstanding.len() >= depth || (!self.outstanding.is_empty() && self.rng.percent(30)) {
                self.finish_step();
            }
        }
        while !self.outstanding.is_empty() {
            self.finish_step();
        }
        while !self.scheduler.is_idle() {
            self.step();
            self.finish_step();
        }
        assert!(self.live.is_empty(), "the scheduler lost sequences");
        assert_eq!(self.scheduler.gauges().blocks_used, 0, "blocks leaked");
        let counters = self.scheduler.counters();
        self.totals.preemptions = counters.preemptions;
        self.totals.yields = counters.yields;
        self.totals.hit_tokens = counters.prefix_hit_tokens;
        self.totals.accepted = counters.accepted_tokens;
        self.totals.rejected = counters.drafted_tokens - counters.accepted_tokens;
        assert!(self.scheduler.config().speculation || counters.drafted_tokens == 0);
        assert!(counters.prefix_hit_tokens <= counters.prefix_queried_tokens);
        self.totals
    }

    /// Adds a sequence, or several with the same prompt.
    fn add(&mut self, room: usize) {
        let config = *self.scheduler.config();
        let mut prompt = Vec::new();
        if !self.histories.is_empty() && self.rng.percent(60) {
            let at = self.rng.range(0, self.histories.len() - 1);
            let keep = self.rng.range(0, self.histories[at].len());
            prompt.extend_from_slice(&self.histories[at][..keep]);
        }
        let more_max = if self.rng.percent(20) { 40 } else { 6 };
        let more = self.rng.range(0, more_max);
        prompt.extend((0..more).map(|_| self.rng.token()));
        let siblings = if self.rng.percent(20) { self.rng.range(2, 4).min(room) } else { 1 };
        let mut tenant = self.rng.range(1, self.tenants) as u64;
        if self.output.0 > 1 && self.rng.percent(90) {
            // One fills all slots before another comes.
            tenant = 1 + self.totals.steps / 60 % self.tenants as u64;
        }
        let prompt_logits = self.rng.percent(15);
        for _ in 0..siblings {
            let stop_tokens = if self.rng.percent(20) { vec![self.rng.token()] } else { Vec::new() };
            let max_new_tokens = self.rng.range(self.output.0, self.output.1);
            // Some generate nothing.
            let max_new_tokens = if self.next_id % 8 == 7 { 0 } else { max_new_tokens };
            let new = NewSequence {
                id: SeqId(self.next_id),
                prompt: prompt.as_slice().into(),
                limits: StopLimits { max_new_tokens, stop_tokens: stop_tokens.into() },
                salt: CacheSalt(tenant),
                prompt_logits,
                tenant,
            };
            self.next_id += 1;
            let longest = (prompt.len() + new.limits.max_new_tokens).min(config.context_max);
            let one = max_new_tokens.min(1);
            let fits = !prompt.is_empty()
                && prompt.len() + one <= config.context_max
                && (longest - one).div_ceil(config.block_size) <= config.num_blocks;
            assert_eq!(self.scheduler.add(new.clone()).is_ok(), fits, "{new:?} in {config:?}");
            if fits {
                let live = Live { new, output: Vec::new(), rows: 0, started: false, added_at: self.totals.steps };
                self.live.insert(live.new.id, live);
            }
        }
    }

    fn maybe_abort(&mut self) {
        if !self.rng.percent(self.abort_chance) || self.live.is_empty() {
            return;
        }
        let at = self.rng.range(0, self.live.len() - 1);
        if let Some(id) = self.live.keys().nth(at).copied() {
            self.scheduler.abort(id);
            self.live.remove(&id);
            self.totals.aborted += 1;
            self.check_books();
        }
    }

    /// Schedules and executes a step.
    fn step(&mut self) {
        self.totals.steps += 1;
        let awaited: Vec<SeqId> = self.outstanding.iter().flat_map(|(step, _)| &step.seqs).map(|p| p.id).collect();
        let decodes: Vec<SeqId> = self
            .scheduler
            .running_views()
            .filter(|v| v.tokens.len() - v.computed == 1 && !awaited.contains(&v.id))
            .map(|v| v.id)
            .filter(|id| self.live[id].new.limits.max_new_tokens > 0)
            .filter(|id| !self.live[id].new.prompt_logits || self.live[id].rows == self.live[id].new.prompt.len())
            .collect();
        let running: Vec<SeqId> = self.scheduler.running_views().map(|v| v.id).collect();
        let yields = self.scheduler.counters().yields;
        let step = self.scheduler.schedule();
        let yielded = usize::try_from(self.scheduler.counters().yields - yields).expect("a small number");
        for (at, preempted) in step.preempted.iter().enumerate() {
            let spared = running.iter().filter(|id| !awaited.contains(id) && !step.preempted.contains(id));
            // The oldest stays; without other tenants the youngest goes.
            assert!(running.iter().min() < Some(preempted), "{preempted:?} was preempted, but is the oldest");
            let alone = self.tenants == 1;
            assert!(!alone || at >= yielded, "{preempted:?} made way for its own tenant");
            assert!(!alone || spared.max() < Some(preempted), "{preempted:?} was preempted before a younger sequence");
        }
        assert!(!step.is_empty() || self.live.is_empty() || !awaited.is_empty(), "nothing runs but sequences wait");
        assert!(step.seqs.iter().all(|p| !awaited.contains(&p.id)), "a sequence is in two steps at once");
        // Who made way and is let in again at once counts as a prompt.
        let decodes: Vec<_> = decodes.into_iter().filter(|id| !step.preempted.contains(id)).collect();
        self.check_limits(&step, &decodes);
        self.check_books();
        for part in &step.seqs {
            self.check_part(part);
        }
        if self.rng.percent(self.fail_chance) {
            self.runner.fail_next_step();
        }
        let logits = self.runner.execute(&step);
        if let Some(fault) = self.runner.fault() {
            panic!("{fault}");
        }
        self.outstanding.push_back((step, logits.ok()));
    }

    fn check_limits(&self, step: &SchedulerOutput, decodes: &[SeqId]) {
        let config = self.scheduler.config();
        assert!(step.total_tokens() <= config.batched_tokens_max, "over budget");
        assert!(self.scheduler.gauges().running <= config.running_max);
        let rows_of = |p: &ScheduledSeq| if p.drafts > 0 { p.drafts } else { p.tokens.len() };
        let rows = step.seqs.iter().filter(|p| p.logits == LogitRows::All).map(rows_of).sum::<usize>();
        assert!(rows <= config.logit_rows_max, "{rows} rows of logits");
        let (decoding, prompts): (Vec<_>, Vec<_>) = step.seqs.iter().partition(|p| decodes.contains(&p.id));
        let prompt_tokens: usize = prompts.iter().map(|p| p.known()).sum();
        assert!(decoding.is_empty() || prompt_tokens <= config.prefill_chunk_max, "prompts stall decodes");
        let mut ids: Vec<SeqId> = step.seqs.iter().map(|p| p.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), step.seqs.len(), "a sequence is in a step twice");
    }

    fn check_part(&mut self, part: &ScheduledSeq) {
        let block_size = self.scheduler.config().block_size;
        let live = self.live.get_mut(&part.id).expect("only live sequences are scheduled");
        let known = live.new.prompt.len() + live.output.len();
        let end = part.start + part.known();
        assert!(part.known() > 0 && end <= known);
        let token_at = |i: usize| *live.new.prompt.get(i).unwrap_or_else(|| &live.output[i - live.new.prompt.len()]);
        assert!((part.start..end).map(token_at).eq(part.tokens[..part.known()].iter().copied()), "wrong tokens");
        assert_eq!(part.sample, end == known && live.new.limits.max_new_tokens > 0);
        assert_eq!(
            part.cached_tokens.is_some(),
            !live.started,
            "cached tokens are reported once, with the first chunk"
        );
        live.started = true;
        if let Some(cached) = part.cached_tokens {
            assert!(cached == part.start && cached < live.new.prompt.len() && (cached == 0 || !live.new.prompt_logits));
        }
        if part.drafts > 0 {
            assert!(part.known() == 1 && part.sample && part.logits == LogitRows::All, "only decodes are guessed");
            let limit =
                (live.new.prompt.len() + live.new.limits.max_new_tokens).min(self.scheduler.config().context_max);
            assert!(known + part.drafts < limit, "the last guess would be the end, so that its row is of no use");
        } else if part.logits != LogitRows::All {
            assert_eq!(part.logits == LogitRows::Last, end == known);
        }
        for position in part.start..end + part.drafts {
            let block = part.blocks[position / block_size];
            assert_eq!(self.scheduler.kv().pool().ref_count(block), 1, "a shared block would be written");
        }
    }

    /// Commits the oldest outstanding step, or fails it if its execution failed.
    fn finish_step(&mut self) {
        let Some((step, logits)) = self.outstanding.pop_front() else { return };
        let Some(logits) = logits else {
            let failed = self.scheduler.fail_step(&step);
            for part in &step.seqs {
                assert_eq!(self.live.remove(&part.id).is_some(), failed.contains(&part.id), "wrong sequences failed");
            }
            self.totals.failed += failed.len() as u64;
            self.check_books();
            return;
        };
        self.take_prompt_rows(&step, &logits);
        let updates = self.scheduler.commit(&step, &greedy(&step, &logits));
        let mut updated: Vec<SeqId> = updates.iter().map(|u| u.id).collect();
        updated.dedup();
        let ends = |p: &&ScheduledSeq| {
            let Some(live) = self.live.get(&p.id) else { return false };
            p.sample || live.new.limits.max_new_tokens == 0 && p.start + p.tokens.len() == live.new.prompt.len()
        };
        assert!(step.seqs.iter().filter(ends).map(|p| p.id).eq(updated), "updates do not match the step");
        for update in updates {
            let live = self.live.get_mut(&update.id).expect("updates are for live sequences");
            live.output.extend(update.token);
            if let Some(reason) = update.finish {
                self.check_finished(update.id, reason);
            }
        }
        self.check_books();
    }

    /// Every prompt position's row comes once, in order, and is the row of that context.
    fn take_prompt_rows(&mut self, step: &SchedulerOutput, logits: &Logits) {
        let mut rows = logits.data.chunks_exact(VOCAB);
        for part in &step.seqs {
            let count = match part.logits {
                LogitRows::None => 0,
                LogitRows::Last => 1,
                LogitRows::All => part.tokens.len(),
            };
            let mine: Vec<&[f32]> = rows.by_ref().take(count).collect();
            let Some(live) = self.live.get_mut(&part.id).filter(|_| part.logits == LogitRows::All && part.drafts == 0)
            else {
                continue;
            };
            assert!(
                live.new.prompt_logits && live.rows == part.start,
                "rows of positions {} again or too late",
                part.start
            );
            let expected = |i: usize| alone(&live.new.prompt[..=part.start + i], 1, self.memory)[0];
            let best = |row: &[f32]| u32::from(row[1] > row[0]);
            assert!(mine.iter().enumerate().all(|(i, row)| best(row) == expected(i)), "wrong rows");
            live.rows += count;
        }
        assert!(rows.next().is_none());
    }

    /// Steps from `add` to the end of a sequence that waits for its turn, and does not starve, in the slowest case: one
    /// sequence runs at a time and computes one token in a step. All others are older; its tenant has the turn once in
    /// `tenants`, and the oldest of a tenant gets every second token of the tenant. A quarter is added for what preempted
    /// sequences compute again: an allowance, not a bound. Of the 31,000 worlds of 25 million steps one (21150, a single
    /// tenant whose memory holds one sequence) takes 2 % longer.
    fn patience(&self) -> u64 {
        (LIVE_MAX * 2 * self.tenants * self.scheduler.config().context_max * self.depth * 5 / 4) as u64
    }

    fn check_finished(&mut self, id: SeqId, reason: FinishReason) {
        let live = self.live.remove(&id).expect("only live sequences finish");
        let prompt = &live.new.prompt;
        let room = self.scheduler.config().context_max - prompt.len();
        let mut alone = alone(prompt, live.new.limits.max_new_tokens.min(room), self.memory);
        let mut expected = FinishReason::Length;
        if let Some(at) = alone.iter().position(|t| live.new.limits.stop_tokens.contains(t)) {
            expected = FinishReason::StopToken(alone[at]);
            alone.truncate(at + 1);
        }
        assert_eq!((&live.output, reason), (&alone, expected), "{id:?} did not get what it gets alone");
        assert_eq!(live.rows, if live.new.prompt_logits { prompt.len() } else { 0 }, "rows of the prompt");
        let latency = self.totals.steps - live.added_at;
        self.totals.latency_max = self.totals.latency_max.max(latency);
        let patience = self.patience();
        assert!(
            latency <= patience,
            "{id:?} took {latency} steps, at most {patience} can be explained: it starved in {:?}",
            self.scheduler.config()
        );
        self.totals.finished += 1;
        let history = prompt.iter().chain(&alone).copied().collect();
        if self.histories.len() < 6 {
            self.histories.push(history);
        } else {
            let at = self.rng.range(0, 5);
            self.histories[at] = history;
        }
    }

    /// References, free lists and places add up, and blocks are shared only as published, equal prefixes of equal salt.
    fn check_books(&mut self) {
        if let Err(broken) = self.scheduler.check_invariants() {
            panic!("{broken}");
        }
        let gauges = self.scheduler.gauges();
        assert_eq!(gauges.waiting + gauges.running, self.live.len(), "sequences got lost or stayed");
        let block_size = self.scheduler.config().block_size;
        let views: Vec<_> = self.scheduler.running_views().collect();
        self.holders.fill(None);
        for (index, view) in views.iter().enumerate() {
            for (at, &BlockId(block)) in view.blocks.iter().enumerate() {
                let Some(other) = self.holders[block as usize].replace(index) else { continue };
                let other = &views[other];
                let end = (at + 1) * block_size;
                let same = other.blocks.get(at) == Some(&BlockId(block))
                    && view.published.min(other.published) > at
                    && view.computed.min(other.computed) >= end
                    && view.tokens[..end] == other.tokens[..end]
                    && self.live[&view.id].new.salt == self.live[&other.id].new.salt;
                assert!(same, "{:?} and {:?} share block {block} at {at} without reason", view.id, other.id);
            }
        }
    }
}

/// The next token of a model that knows the last `memory` ones only.
fn remembering(context: &[u32], memory: usize) -> u32 {
    next_token(&context[context.len().saturating_sub(memory)..], VOCAB)
}

/// What a prompt yields when nothing else is there.
fn alone(prompt: &[u32], count: usize, memory: usize) -> Vec<u32> {
    if memory == 0 {
        return generate(prompt, count, VOCAB);
    }
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        tokens.push(remembering(&tokens, memory));
    }
    tokens.split_off(prompt.len())
}

/// Prints how to replay a world that fails.
struct OnPanic(u64);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with WICK_SIM_SEED={}", self.0);
        }
    }
}

/// Most worlds are short, since their shapes differ; some last, since starvation takes time.
fn run_world(seed: u64) -> Totals {
    let _guard = OnPanic(seed);
    World::new(seed).run(if seed.is_multiple_of(50) { 20_000 } else { 400 })
}

fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn any_schedule_yields_what_each_sequence_yields_alone() {
    if let Some(seed) = number_from_env("WICK_SIM_SEED") {
        run_world(seed);
        return;
    }
    let wanted = number_from_env("WICK_SIM_STEPS").unwrap_or(DEFAULT_STEPS);
    let (next_seed, done) = (AtomicU64::new(1), AtomicU64::new(0));
    let worker = || {
        let mut sum = Totals::default();
        while done.load(Ordering::Relaxed) < wanted {
            let world = run_world(next_seed.fetch_add(1, Ordering::Relaxed));
            done.fetch_add(world.steps, Ordering::Relaxed);
            sum.add(&world);
        }
        sum
    };
    let start = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut sum = Totals::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            sum.add(&worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    println!(
        "{} steps in {:.1?}: {} sequences finished, {} aborted, {} failed, {} preemptions, {} of them for another \
         tenant, {} cached tokens, {} guesses right and {} wrong, at most {} steps from add to end",
        sum.steps,
        start.elapsed(),
        sum.finished,
        sum.aborted,
        sum.failed,
        sum.preemptions,
        sum.yields,
        sum.hit_tokens,
        sum.accepted,
        sum.rejected,
        sum.latency_max
    );
    // The simulation must have met what it is for.
    assert!(sum.steps >= wanted);
    for (what, count) in [
        ("finished", sum.finished),
        ("aborted", sum.aborted),
        ("failed", sum.failed),
        ("preemptions", sum.preemptions),
        ("cached tokens", sum.hit_tokens),
        ("right guesses", sum.accepted),
        ("wrong guesses", sum.rejected),
    ] {
        assert!(count >= wanted / 1000, "only {count} {what} in {wanted} steps");
    }
    assert!(sum.yields >= wanted / 5000, "only {} made way for another tenant in {wanted} steps", sum.yields);
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.finished += other.finished;
        self.aborted += other.aborted;
        self.failed += other.failed;
        self.preemptions += other.preemptions;
        self.yields += other.yields;
        self.hit_tokens += other.hit_tokens;
        self.accepted += other.accepted;
        self.rejected += other.rejected;
        self.latency_max = self.latency_max.max(other.latency_max);
    }
}

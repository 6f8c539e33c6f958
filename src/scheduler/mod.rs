//! Continuous batching under one token budget. Pure: no tensors, clocks, channels, locks or randomness.
//!
//! [`Scheduler`] owns all sequences. This file takes them in and takes a step's results; `plan` decides what a step
//! computes; `queue` says who is next; `shares` divides slots and memory between tenants; `pending` lets a sequence wait
//! for a block that another one is computing; `draft` guesses next tokens and `speculate` decides which are worth a row.
mod check;
mod draft;
pub mod output;
mod pending;
mod plan;
mod queue;
pub mod sequence;
mod shares;
mod speculate;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

pub use output::{LogitRows, ScheduledSeq, SchedulerOutput, SeqUpdate};
pub use sequence::{FinishReason, NewSequence, SeqId, StopLimits};

use crate::kv::{BlockTable, ClosestPrefix, KvManager, PrefixId};
use pending::PendingBlocks;
use queue::WaitQueue;
use sequence::{Place, Sequence};

/// Limits of the scheduler and the shape of the block pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Tokens per KV block.
    pub block_size: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Tokens computed in one step, over all sequences.
    pub batched_tokens_max: usize,
    /// Prompt tokens computed in one step while other sequences decode, over all prompts: bounds the time between the
    /// decodes' tokens. Without decodes, prompts may use the whole of `batched_tokens_max`.
    pub prefill_chunk_max: usize,
    /// Sequences running at once (at most `batched_tokens_max` of them do).
    pub running_max: usize,
    /// Tokens of one sequence, prompt and output.
    pub context_max: usize,
    /// Rows of logits in one step for sequences that ask for all rows (prompt log-probabilities).
    pub logit_rows_max: usize,
    /// Share full blocks between sequences of equal salt.
    pub prefix_cache: bool,
    /// Guess next tokens where that is likely to pay; see [`ScheduledSeq::drafts`]. Changes no output.
    pub speculation: bool,
}

/// Why a sequence cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("the sequence needs {needed} tokens but the context holds {context_max}")]
    TooLong { needed: usize, context_max: usize },
    #[error("the sequence needs {needed} KV blocks but the pool has {total}")]
    NeverFits { needed: usize, total: usize },
}

/// Counters for metrics; all monotonic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerCounters {
    /// Sequences that lost their blocks, for whatever reason.
    pub preemptions: u64,
    /// Of those, the ones that made way for another tenant.
    pub yields: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queried_tokens: u64,
    /// Prompt tokens found there.
    pub prefix_hit_tokens: u64,
    /// Guesses included.
    pub computed_tokens: u64,
    /// Guesses that were computed.
    pub drafted_tokens: u64,
    /// Of those, the ones that turned out right.
    pub accepted_tokens: u64,
}

/// Gauges for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerGauges {
    pub waiting: usize,
    pub running: usize,
    pub blocks_used: usize,
    pub blocks_total: usize,
}

/// The scheduler: `add`/`abort` sequences, then `schedule` → run the step → `commit` (or `fail_step`).
///
/// A sequence that is part of a step which has neither committed nor failed is left out of further steps and is not
/// preempted.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    kv: KvManager,
    seqs: HashMap<SeqId, Sequence>,
    /// Those that may hold blocks, with their ages, oldest first.
    running: Vec<(u64, SeqId)>,
    queue: WaitQueue,
    pending: PendingBlocks,
    /// The sequence that is next to be admitted as soon as it fits; see `plan`.
    blocked: Option<SeqId>,
    next_age: u64,
    /// Steps planned.
    steps: u64,
    counters: SchedulerCounters,
    /// What a step costs beside its rows, in rows.
    fixed_rows: f32,
}

impl Scheduler {
    /// Limits of zero count as one (`num_blocks` may be zero: then nothing fits).
    #[must_use]
    pub fn new(config: SchedulerConfig) -> Self {
        Self::with_hash_mask(config, u64::MAX)
    }

    /// Keeps only these bits of block hashes, so that tests can provoke collisions.
    #[doc(hidden)]
    #[must_use]
    pub fn with_hash_mask(mut config: SchedulerConfig, hash_mask: u64) -> Self {
        config.block_size = config.block_size.max(1);
        config.batched_tokens_max = config.batched_tokens_max.max(1);
        config.prefill_chunk_max = config.prefill_chunk_max.max(1);
        config.logit_rows_max = config.logit_rows_max.max(1);
        // With no more running sequences than tokens in a step, decodes can never use up what a running prompt needs.
        config.running_max = config.running_max.clamp(1, config.batched_tokens_max);
        Self {
            kv: KvManager::new(config.num_blocks, config.block_size, hash_mask),
            config,
            seqs: HashMap::new(),
            running: Vec::new(),
            queue: WaitQueue::default(),
            pending: PendingBlocks::default(),
            blocked: None,
            next_age: 0,
            steps: 0,
            counters: SchedulerCounters::default(),
            fixed_rows: speculate::FIXED_ROWS,
        }
    }

    #[must_use]
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Queues a sequence.
    ///
    /// # Errors
    /// When it could never run, or never to its end: see [`Rejected`].
    ///
    /// # Panics
    /// When a sequence with this id is still there.
    pub fn add(&mut self, new: NewSequence) -> Result<(), Rejected> {
        let context_max = self.config.context_max;
        if new.prompt.is_empty() {
            return Err(Rejected::EmptyPrompt);
        }
        let (prompt, most) = (new.prompt.len(), new.limits.max_new_tokens);
        let least = prompt.saturating_add(most.min(1));
        if least > context_max {
            return Err(Rejected::TooLong { needed: least, context_max });
        }
        // The last generated token is never computed, so it needs no room.
        let longest = prompt.saturating_add(most).min(context_max) - most.min(1);
        let (needed, total) = (self.kv.blocks_for(longest), self.config.num_blocks);
        if needed > total {
            return Err(Rejected::NeverFits { needed, total });
        }

        let mut seq = Sequence::new(new, self.next_age);
        self.next_age += 1;
        seq.estimate = estimate(&mut self.kv, &self.config, &mut seq);
        self.queue.join(seq.tenant);
        self.queue.insert(&seq);
        let replaced = self.seqs.insert(seq.id, seq);
        assert!(replaced.is_none(), "adding a sequence twice is a bug");
        Ok(())
    }

    /// Has a sequence that has not started compared with what is cached when it starts: see [`Self::closest`].
    pub fn explain(&mut self, id: SeqId) {
        if let Some(seq) = self.seqs.get_mut(&id) {
            seq.explain = true;
        }
    }

    /// How far the prompt of a sequence that was to be explained goes along with what was cached when it started.
    #[must_use]
    pub fn closest(&self, id: SeqId) -> Option<ClosestPrefix> {
        self.seqs.get(&id)?.closest
    }

    /// Forgets a sequence, wherever it is, and frees its blocks. Unknown ids are ignored (it may have just finished).
    pub fn abort(&mut self, id: SeqId) {
        self.remove(id);
    }

    /// Sets [`SchedulerConfig::prefill_chunk_max`] for the steps to come; at least one token. How a prompt is cut into
    /// chunks changes no output.
    pub fn set_prefill_chunk(&mut self, tokens: usize) {
        self.config.prefill_chunk_max = tokens.max(1);
    }

    /// What a step costs beside its rows, in rows, for the steps to come: see `speculate`. Which guesses are computed changes no output.
    /// Fewer than a step of one sequence is known to cost are not believed.
    pub fn set_fixed_rows(&mut self, rows: f32) {
        self.fixed_rows = rows.max(speculate::FIXED_ROWS);
    }

    /// Takes the step's results: `sampled[i]` belongs to `step.seqs[i]` and is empty where `sample` was not set. Where it
    /// was, it has the guesses that turned out right and then one more token. Publishes the blocks the step filled.
    /// Sequences aborted in between are skipped.
    ///
    /// # Panics
    /// When `sampled` does not fit the step.
    pub fn commit(&mut self, step: &SchedulerOutput, sampled: &[Vec<u32>]) -> Vec<SeqUpdate> {
        assert_eq!(sampled.len(), step.seqs.len(), "results of another step are a bug");
        let mut updates = Vec::new();
        for (part, sampled) in step.seqs.iter().zip(sampled) {
            if !self.is_in_flight(part) {
                continue;
            }
            assert_eq!(!sampled.is_empty(), part.sample, "a sampling sequence without a token is a bug");
            let accepted = sampled.len().saturating_sub(1);
            assert!(part.drafted().starts_with(&sampled[..accepted]), "accepting what was not guessed is a bug");
            let mut finish = None;
            let seq = self.seqs.get_mut(&part.id).expect("checked to be in flight, else it is a bug");
            for &token in sampled {
                assert!(finish.is_none(), "a token after the end is a bug");
                finish = seq.push(token, self.config.context_max);
                updates.push(SeqUpdate { id: part.id, token: Some(token), finish });
            }
            if !seq.generates() && part.start + part.known() == seq.prompt_len {
                finish = Some(FinishReason::Length);
                updates.push(SeqUpdate { id: part.id, token: None, finish });
            }
            self.publish_computed(part, accepted);
            if finish.is_some() {
                self.remove(part.id);
            } else if part.sample && self.config.speculation {
                self.look_ahead(part.id);
            }
        }
        updates
    }

    /// The step failed: its sequences are removed, their blocks freed, nothing is published. Returns their ids.
    pub fn fail_step(&mut self, step: &SchedulerOutput) -> Vec<SeqId> {
        let failed: Vec<SeqId> = step.seqs.iter().filter(|part| self.is_in_flight(part)).map(|part| part.id).collect();
        for &id in &failed {
            self.remove(id);
        }
        failed
    }

    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.seqs.is_empty()
    }

    #[must_use]
    pub fn counters(&self) -> SchedulerCounters {
        self.counters
    }

    #[must_use]
    pub fn gauges(&self) -> SchedulerGauges {
        SchedulerGauges {
            waiting: self.seqs.len() - self.running.len(),
            running: self.running.len(),
            blocks_used: self.kv.pool().used_len(),
            blocks_total: self.kv.pool().total(),
        }
    }

    /// Whether this part of a step is still awaited: its sequence was not aborted (nor its id given to another since).
    fn is_in_flight(&self, part: &ScheduledSeq) -> bool {
        self.seqs.get(&part.id).is_some_and(|s| s.in_flight == part.known() && s.computed == part.start)
    }

    /// A part of a step has committed: its tokens and its `accepted` guesses have KV, and the blocks they filled may be
    /// shared. What the other guesses left behind is overwritten before it is read.
    fn publish_computed(&mut self, part: &ScheduledSeq, accepted: usize) {
        let Self { config, kv, seqs, pending, counters, .. } = self;
        let seq = seqs.get_mut(&part.id).expect("checked to be in flight, else it is a bug");
        seq.computed += seq.in_flight + accepted;
        seq.in_flight = 0;
        counters.computed_tokens += part.tokens.len() as u64;
        if part.drafts > 0 {
            counters.drafted_tokens += part.drafts as u64;
            counters.accepted_tokens += accepted as u64;
            // Blocks that only wrong guesses needed are not kept from others.
            kv.shrink(&mut seq.table, kv.blocks_for(seq.computed));
        }
        if part.logits == LogitRows::All {
            seq.rows_delivered = seq.computed;
        }
        if !config.prefix_cache {
            return;
        }
        let mut woken = Vec::new();
        if seq.computed / config.block_size > seq.hashes.len() {
            kv.extend_hashes(seq.salt, &seq.tokens[..seq.computed], &mut seq.hashes);
        }
        while (seq.published + 1) * config.block_size <= seq.computed {
            let at = seq.published;
            let tokens = &seq.tokens[at * config.block_size..(at + 1) * config.block_size];
            seq.prefix = kv.publish(&mut seq.table, at, seq.prefix, seq.hashes[at], tokens);
            seq.published += 1;
            pending.resolve(seq.id, seq.hashes[at], &mut woken);
        }
        self.wake(&woken);
    }

    /// Those who waited for a block are queued again, in their old place.
    fn wake(&mut self, woken: &[SeqId]) {
        for id in woken {
            if let Some(seq) = self.seqs.get_mut(id) {
                seq.place = Place::Queued;
                self.queue.insert(seq);
            }
        }
    }

    /// Takes a running sequence's blocks; it will be computed again. Its full blocks stay in the prefix cache until they
    /// are needed, so that is often cheap.
    fn preempt(&mut self, id: SeqId) {
        self.make_wait(id, true);
    }

    /// Takes a running sequence's blocks and queues it: before all that wait, if it is to come back `first`, or among them.
    fn make_wait(&mut self, id: SeqId, first: bool) {
        self.stop_running(id);
        self.counters.preemptions += 1;
        let seq = self.seqs.get_mut(&id).expect("a running sequence is known, else it is a bug");
        seq.lost_at = seq.lost_at.max(seq.computed);
        seq.computed = 0;
        seq.published = 0;
        seq.prefix = PrefixId::Root(seq.salt);
        seq.preempted = first;
        seq.place = Place::Queued;
        seq.estimate = estimate(&mut self.kv, &self.config, seq);
        self.queue.insert(seq);
    }

    /// Frees a running sequence's blocks and lets go those who wait for what it will not compute.
    fn stop_running(&mut self, id: SeqId) {
        let seq = self.seqs.get_mut(&id).expect("a running sequence is known, else it is a bug");
        let at = self.running.partition_point(|&(age, _)| age < seq.age);
        self.running.remove(at);
        self.queue.stop_running(seq.tenant);
        self.kv.release(std::mem::take::<BlockTable>(&mut seq.table));
        let mut woken = Vec::new();
        for &hash in &seq.hashes[seq.published.min(seq.hashes.len())..] {
            self.pending.resolve(id, hash, &mut woken);
        }
        self.wake(&woken);
    }

    fn remove(&mut self, id: SeqId) {
        let Some(seq) = self.seqs.get(&id) else { return };
        match seq.place {
            Place::Running => self.stop_running(id),
            Place::Queued => self.queue.remove(seq),
            Place::Parked(hash) => self.pending.stop_waiting(hash, id),
        }
        if self.blocked == Some(id) {
            self.blocked = None;
        }
        if let Some(seq) = self.seqs.remove(&id) {
            self.queue.leave(seq.tenant);
        }
    }
}

/// Tokens of a sequence that waits which it would compute if it were admitted now.
fn estimate(kv: &mut KvManager, config: &SchedulerConfig, seq: &mut Sequence) -> usize {
    if !config.prefix_cache {
        return seq.tokens.len();
    }
    kv.extend_hashes(seq.salt, &seq.tokens, &mut seq.hashes);
    let usable = &seq.hashes[..seq.reusable() / config.block_size];
    seq.tokens.len() - kv.count_prefix(seq.salt, usable, &seq.tokens) * config.block_size
}

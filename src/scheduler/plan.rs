//! `Scheduler::schedule`: what the next step computes.
//!
//! There is no prefill phase and no decode phase: every sequence has tokens without KV, and a step computes some of them
//! under one budget. The order is: sequences that are one token behind (decodes), then preempted ones come back, then
//! prompts, running and waiting alike, share what is left as [`super::queue`] orders them. Before all that, a sequence may
//! have to make way for another tenant's: see [`super::shares`]. After all that, decodes may get guesses of their next
//! tokens: see [`super::speculate`].
//!
//! Memory: a sequence that finds no free block takes one from the youngest sequence younger than itself (with an exception
//! between tenants, see [`super::shares`]), so the oldest always gets on and there is no livelock. To make that rare, a
//! sequence is admitted only when its known tokens fit beside what the running ones still need. A prompt refused for that
//! reason may be overtaken by prompts that fit, but only by as many tokens as it has itself; then nobody is admitted
//! before it.
use std::collections::HashMap;
use std::ops::Range;

use super::pending::Waiter;
use super::queue::{Candidate, Slots};
use super::sequence::{Place, Sequence};
use super::{LogitRows, ScheduledSeq, Scheduler, SchedulerOutput, SeqId};
use crate::kv::BlockTable;

/// Waiting sequences refused in one step before admission gives up until the next.
const REFUSALS_MAX: usize = 4;

/// A step while it is being put together.
#[derive(Debug)]
pub(super) struct Plan {
    /// Tokens per sequence, in the order of the step.
    pub parts: Vec<(SeqId, usize)>,
    /// Guesses of what follows them, for some.
    pub drafts: HashMap<SeqId, Vec<u32>>,
    budget: usize,
    prompt_budget: usize,
    pub logit_rows: usize,
    prompts: Vec<Candidate>,
    refused: Vec<SeqId>,
    pub preempted: Vec<SeqId>,
}

#[derive(Debug)]
pub(super) enum Admission {
    Admitted,
    /// Another sequence computes its next block: it waits for that.
    Parked,
    /// Not enough free blocks.
    Refused,
}

impl Scheduler {
    /// Plans one step; empty when nothing can run.
    ///
    /// A lone prompt may use the whole `batched_tokens_max`; while others decode, all prompts together get at most
    /// `prefill_chunk_max` tokens, which bounds how long a step, and so the time between their tokens, can be.
    /// O(scheduled sequences + running sequences + tenants), besides the blocks and tokens that are handed out.
    pub fn schedule(&mut self) -> SchedulerOutput {
        let mut plan = Plan {
            parts: Vec::with_capacity(self.running.len()),
            drafts: HashMap::new(),
            budget: self.config.batched_tokens_max,
            prompt_budget: 0,
            logit_rows: self.config.logit_rows_max,
            prompts: Vec::new(),
            refused: Vec::new(),
            preempted: Vec::new(),
        };
        self.steps += 1;
        self.share_out(&mut plan);
        let yielded = plan.preempted.len();
        self.plan_decodes(&mut plan);
        plan.prompt_budget =
            if plan.parts.is_empty() { plan.budget } else { plan.budget.min(self.config.prefill_chunk_max) };
        self.collect_prompts(&mut plan);
        if plan.preempted.len() == yielded {
            self.readmit_preempted(&mut plan);
        }
        self.plan_prompts(&mut plan);
        if self.config.speculation {
            self.speculate(&mut plan);
        }
        self.finish(plan)
    }

    fn plan_decodes(&mut self, plan: &mut Plan) {
        let mut at = 0;
        // Preemption removes sequences younger than this one, which stand behind it.
        while at < self.running.len() && plan.budget > 0 {
            let (age, id) = self.running[at];
            at += 1;
            let seq = &self.seqs[&id];
            if seq.in_flight > 0 || !self.decodes(seq) {
                continue;
            }
            let (tenant, end) = (seq.tenant, seq.computed + 1);
            if self.make_room(id, age, end - 1..end, plan) == 1 {
                plan.parts.push((id, 1));
                plan.budget -= 1;
                self.queue.charge(tenant, 1);
            }
        }
    }

    fn readmit_preempted(&mut self, plan: &mut Plan) {
        while self.free_slots() > 0 {
            let Some(id) = self.queue.first_preempted() else { return };
            match self.admit(id) {
                Admission::Admitted => plan.prompts.push(self.candidate(id)),
                Admission::Parked => {}
                Admission::Refused => return,
            }
        }
    }

    fn collect_prompts(&mut self, plan: &mut Plan) {
        for &(_, id) in &self.running {
            let seq = &self.seqs[&id];
            if seq.in_flight == 0 && !self.decodes(seq) {
                plan.prompts.push(self.candidate(id));
            }
        }
    }

    /// In the step that admits it, a sequence counts as a prompt, even if the cache has all of it but one token.
    fn decodes(&self, seq: &Sequence) -> bool {
        seq.is_decode() && seq.admitted_in != self.steps
    }

    fn candidate(&self, id: SeqId) -> Candidate {
        let seq = &self.seqs[&id];
        let (age, length) = (seq.age, seq.missing());
        // Whoever waits for this one's blocks lends it its place, or a short prompt that shares a prefix with a long one
        // would wait as if it were long itself.
        let rank = self.pending.waiting_for(id).iter().fold((age, length), |(a, l), w| (a.min(w.age), l.min(w.length)));
        Candidate { id, tenant: seq.tenant, age, length, rank }
    }

    /// Shares the prompt budget out in portions of half of it, so that at least two prompts get on in a step.
    fn plan_prompts(&mut self, plan: &mut Plan) {
        self.queue.limit_lag(2 * self.config.batched_tokens_max as u64);
        let portion = plan.prompt_budget.div_ceil(2).max(self.config.block_size);
        if let Some(id) = self.blocked
            && plan.prompt_budget > 0
            && self.free_slots() > 0
            && self.queue.first_preempted().is_none()
        {
            self.try_waiting(id, plan);
        }
        while plan.prompt_budget > 0 {
            let may_admit = plan.refused.len() < REFUSALS_MAX && self.may_overtake();
            let slots = Slots { free: if may_admit { self.free_slots() } else { 0 }, all: self.config.running_max };
            let Some(pick) = self.queue.pick(&plan.prompts, slots, &plan.refused) else { return };
            let id = pick.candidate.id;
            if self.seqs[&id].place != Place::Running {
                match self.try_waiting(id, plan) {
                    Admission::Admitted => {}
                    Admission::Parked => continue,
                    Admission::Refused => {
                        self.queue.pass_turn(&pick);
                        continue;
                    }
                }
            }
            // Looked up, since admission may have found a part of it in the cache.
            let Some(candidate) = plan.prompts.iter().find(|c| c.id == id).copied() else { continue };
            let tokens = self.grow(&candidate, portion, plan);
            plan.prompt_budget -= tokens;
            self.queue.charge(candidate.tenant, tokens);
            self.queue.end_turn(&pick, tokens, portion);
            if let Some(at) = plan.prompts.iter().position(|c| c.id == id) {
                plan.prompts[at].length -= tokens;
                plan.prompts[at].rank.1 = plan.prompts[at].rank.1.min(plan.prompts[at].length);
                if tokens == 0 || plan.prompts[at].length == 0 {
                    plan.prompts.swap_remove(at);
                }
            }
        }
    }

    pub(super) fn free_slots(&self) -> usize {
        self.config.running_max - self.running.len()
    }

    /// Whether those who wait in the queue may be admitted before the blocked one; nobody is before the preempted ones.
    pub(super) fn may_overtake(&self) -> bool {
        let door_open = self.blocked.and_then(|id| self.seqs.get(&id)).is_none_or(|b| b.overtaken < b.tokens.len());
        door_open && self.queue.first_preempted().is_none()
    }

    /// Blocks that running sequences still need for the tokens they know, and one each for those they will generate.
    pub(super) fn promised(&self) -> usize {
        let running = self.running.iter().map(|(_, id)| &self.seqs[id]);
        running.map(|s| self.kv.blocks_for(s.tokens.len()).saturating_sub(s.table.len()) + 1).sum()
    }

    /// Tries to admit a waiting sequence and remembers who was refused and who went past it.
    fn try_waiting(&mut self, id: SeqId, plan: &mut Plan) -> Admission {
        let admission = self.admit(id);
        match admission {
            Admission::Admitted => {
                plan.prompts.push(self.candidate(id));
                let tokens = self.seqs[&id].tokens.len();
                if let Some(blocked) = self.blocked.and_then(|id| self.seqs.get_mut(&id)) {
                    blocked.overtaken += tokens;
                }
            }
            Admission::Parked => {}
            Admission::Refused => {
                plan.refused.push(id);
                self.blocked.get_or_insert(id);
            }
        }
        admission
    }

    /// Moves a queued sequence to the running ones with what the prefix cache has of it, or says why not.
    pub(super) fn admit(&mut self, id: SeqId) -> Admission {
        let promised = self.promised();
        let Self { config, kv, seqs, running, queue, pending, steps, .. } = self;
        let seq = seqs.get_mut(&id).expect("a queued sequence is known, else it is a bug");
        let mut found = None;
        if config.prefix_cache {
            kv.extend_hashes(seq.salt, &seq.tokens, &mut seq.hashes);
            let usable = &seq.hashes[..seq.reusable() / config.block_size];
            let hit = kv.take_prefix(seq.salt, usable, &seq.tokens);
            if let Some(hash) = pending.last_of_run(&usable[hit.blocks.len()..]) {
                kv.release(BlockTable::from_prefix(hit.blocks));
                queue.remove(seq);
                pending.wait(Waiter { id, hash, age: seq.age, length: seq.estimate });
                seq.place = Place::Parked(hash);
                if self.blocked == Some(id) {
                    self.blocked = None;
                }
                return Admission::Parked;
            }
            found = Some(hit);
        }
        let hits = found.as_ref().map_or(0, |f| f.blocks.len());
        let needed = kv.blocks_for(seq.tokens.len()) - hits;
        if !running.is_empty() && kv.pool().free_len() < needed + promised {
            if let Some(found) = found {
                kv.release(BlockTable::from_prefix(found.blocks));
            }
            return Admission::Refused;
        }

        if seq.explain && !seq.started {
            // Now: blocks for its own tokens may take the place of what it is compared with.
            seq.closest = Some(kv.closest(seq.salt, &seq.hashes, &seq.tokens));
        }
        queue.remove(seq);
        if self.blocked == Some(id) {
            self.blocked = None;
        }
        queue.start_running(seq.tenant);
        seq.place = Place::Running;
        seq.admitted_in = *steps;
        seq.preempted = false;
        if let Some(found) = found {
            seq.prefix = found.prefix;
            seq.table = BlockTable::from_prefix(found.blocks);
            pending.register(id, &seq.hashes[hits..]);
        }
        seq.published = hits;
        seq.computed = hits * config.block_size;
        let at = running.partition_point(|&(age, _)| age < seq.age);
        running.insert(at, (seq.age, id));
        Admission::Admitted
    }

    /// Plans up to `portion` more tokens of a running prompt; returns how many it got.
    fn grow(&mut self, candidate: &Candidate, portion: usize, plan: &mut Plan) -> usize {
        let seq = &self.seqs[&candidate.id];
        let at = plan.parts.iter().position(|&(id, _)| id == candidate.id);
        let start = seq.computed + at.map_or(0, |at| plan.parts[at].1);
        // One chunk has rows for all of its tokens or for none.
        let wants_rows = seq.wants_rows_at(seq.computed);
        let mut tokens = portion.min(plan.prompt_budget).min(candidate.length);
        if wants_rows {
            tokens = tokens.min(plan.logit_rows);
        } else if seq.wants_rows_at(seq.rows_delivered) {
            // Computing again, after a preemption, what was delivered before: rows begin with the next chunk.
            tokens = tokens.min(seq.rows_delivered - start);
        }
        if tokens == 0 {
            return 0;
        }
        let tokens = self.make_room(candidate.id, candidate.age, start..start + tokens, plan);
        if tokens > 0 {
            if wants_rows {
                plan.logit_rows -= tokens;
            }
            // Looked up again: making room may have removed others.
            match plan.parts.iter_mut().find(|(id, _)| *id == candidate.id) {
                Some(part) => part.1 += tokens,
                None => plan.parts.push((candidate.id, tokens)),
            }
        }
        tokens
    }

    /// Gives a sequence blocks for the tokens at `range`, or for as many of them as there are blocks; returns how many.
    /// Only when that would be none, younger sequences are preempted, the youngest first.
    fn make_room(&mut self, id: SeqId, age: u64, range: Range<usize>, plan: &mut Plan) -> usize {
        let needed = self.kv.blocks_for(range.end);
        loop {
            let seq = self.seqs.get_mut(&id).expect("a running sequence is known, else it is a bug");
            while seq.table.len() < needed {
                let Some(block) = self.kv.alloc() else { break };
                seq.table.push(block);
            }
            let room = (seq.table.len() * self.config.block_size).min(range.end);
            if room > range.start || !self.preempt_younger(id, age, plan) {
                return room.saturating_sub(range.start);
            }
        }
    }

    /// Preempts a sequence that is younger than `id`, of age `age`, and not in flight.
    fn preempt_younger(&mut self, id: SeqId, age: u64, plan: &mut Plan) -> bool {
        let Some(id) = self.youngest_to_preempt(id, age) else { return false };
        // What it was given of the budget in this step is not returned: too rare to be worth it.
        plan.parts.retain(|(other, _)| *other != id);
        plan.prompts.retain(|c| c.id != id);
        plan.preempted.push(id);
        self.preempt(id);
        true
    }

    fn finish(&mut self, mut plan: Plan) -> SchedulerOutput {
        let mut step = SchedulerOutput { seqs: Vec::with_capacity(plan.parts.len()), preempted: plan.preempted };
        for (id, tokens) in plan.parts {
            let seq = self.seqs.get_mut(&id).expect("a planned sequence is known, else it is a bug");
            seq.in_flight = tokens;
            let (start, end) = (seq.computed, seq.computed + tokens);
            let last = end == seq.tokens.len();
            let sample = last && seq.generates();
            let drafts = plan.drafts.remove(&id).unwrap_or_default();
            let logits = match (seq.wants_rows_at(start) || !drafts.is_empty(), last) {
                (true, _) => LogitRows::All,
                (false, true) => LogitRows::Last,
                (false, false) => LogitRows::None,
            };
            // Not noted at admission: a sequence may be admitted, preempted and admitted again before it starts.
            let cached_tokens = (!seq.started).then_some(start);
            seq.started = true;
            if let Some(cached) = cached_tokens
                && self.config.prefix_cache
                && !seq.prompt_logits
            {
                self.counters.prefix_queried_tokens += seq.prompt_len as u64;
                self.counters.prefix_hit_tokens += cached as u64;
            }
            step.seqs.push(ScheduledSeq {
                id,
                start,
                tokens: [&seq.tokens[start..end], &drafts].concat(),
                drafts: drafts.len(),
                blocks: seq.table.as_slice().to_vec(),
                logits,
                sample,
                cached_tokens,
            });
        }
        step
    }
}

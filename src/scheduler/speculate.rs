//! Which guesses a step computes.
//!
//! A step costs as much as some rows of tokens do, `F`, before its first row: reading the weights and the cached keys and values,
//! which all rows of a sequence share. Its worth is the tokens it is expected to give. So a guess is worth its row if the chance
//! that it is right is more than the tokens that the step gives per row of cost already:
//!
//! ```text
//! chance > margin · expected tokens / (F + rows)
//! ```
//!
//! With one sequence and a short context that is more than 1 in 5. With each further sequence, and with each further guess, it rises;
//! with long contexts it falls, since a guess reads what its sequence reads anyway. Rows of prompts count on neither side: they are
//! there anyway. What `F` is depends on the machine, the model and the contexts: the engine learns it
//! ([`Scheduler::set_fixed_rows`]).
//!
//! Guesses come last and get what is left: rows of the budgets, and free blocks, which are given back after the step
//! unless the guesses were right. So they displace no prompt and nobody's KV.
use super::Scheduler;
use super::SeqId;
use super::plan::Plan;

/// `F` as long as nothing was learnt. On two cores of a Zen 4 it is 4 to 7 for smollm2-135m with short contexts and about 3 for
/// qwen2.5-coder-0.5b (`wick bench`); too small a figure only makes guesses more cautious.
pub(super) const FIXED_ROWS: f32 = 4.0;
/// What a guess must promise beyond breaking even: the costs are estimates.
const MARGIN: f32 = 1.1;
/// Rows of decodes and guesses in a step, beyond which there are no guesses: others wait for the step's end.
pub(super) const ROWS_MAX: usize = 96;
/// Guesses of one sequence in one step.
const DRAFT_MAX: usize = 16;

/// A sequence that may get (more) guesses.
struct Bidder {
    id: SeqId,
    draft: Vec<u32>,
    /// At most.
    room: usize,
    /// The next guess.
    token: u32,
    /// The chance that it and all before it are right.
    chance: f32,
}

impl Scheduler {
    /// Adds guesses to the plan. The order in which they are given rows is that of their chances, ties to the older.
    /// O(decodes × guesses).
    pub(super) fn speculate(&mut self, plan: &mut Plan) {
        let mut tokens = 0.0;
        let mut rows = self.fixed_rows;
        let mut decodes = 0;
        let mut bidders = Vec::new();
        for &(id, count) in &plan.parts {
            let seq = &self.seqs[&id];
            if count != 1 || !seq.is_decode() {
                continue;
            }
            tokens += 1.0;
            rows += 1.0;
            decodes += 1;
            let room = seq.drafts_max(self.config.context_max).min(DRAFT_MAX);
            let mut bidder = Bidder { id, draft: Vec::new(), room, token: 0, chance: 1.0 };
            if self.next_guess(&mut bidder) {
                bidders.push(bidder);
            }
        }
        let planned: usize = plan.parts.iter().map(|(_, count)| count).sum();
        let mut left = (self.config.batched_tokens_max - planned).min(plan.logit_rows);
        left = left.min(ROWS_MAX.saturating_sub(decodes));
        while left > 0 {
            let best = bidders.iter().enumerate().rev().max_by(|(_, a), (_, b)| a.chance.total_cmp(&b.chance));
            let Some(at) = best.filter(|(_, b)| b.chance * rows > MARGIN * tokens).map(|(at, _)| at) else { break };
            let bidder = &mut bidders[at];
            let guessed = self.find_room(bidder.id, bidder.draft.len() + 2);
            if guessed {
                bidder.draft.push(bidder.token);
                tokens += bidder.chance;
                rows += 1.0;
                left -= 1;
            }
            if !guessed || !self.next_guess(&mut bidders[at]) {
                let Bidder { id, draft, .. } = bidders.remove(at);
                plan.drafts.insert(id, draft);
            }
        }
        plan.drafts.extend(bidders.into_iter().map(|b| (b.id, b.draft)));
        plan.drafts.retain(|_, draft| !draft.is_empty());
    }

    /// Puts up the guess after the draft so far. A token that would end the sequence is none: rows behind it are of no use.
    fn next_guess(&self, bidder: &mut Bidder) -> bool {
        let seq = &self.seqs[&bidder.id];
        let Some(drafter) = seq.drafter.as_ref().filter(|_| bidder.draft.len() < bidder.room) else { return false };
        let Some((token, chance)) = drafter.guess(&seq.tokens, bidder.draft.len()) else { return false };
        bidder.token = token;
        bidder.chance *= chance;
        !seq.limits.stop_tokens.contains(&token)
    }

    /// Sees to it that the sequence has blocks for so many tokens after those that are computed, from free blocks only.
    fn find_room(&mut self, id: SeqId, tokens: usize) -> bool {
        let Some(seq) = self.seqs.get_mut(&id) else { return false };
        let needed = self.kv.blocks_for(seq.computed + tokens);
        while seq.table.len() < needed {
            let Some(block) = self.kv.alloc() else { return false };
            seq.table.push(block);
        }
        true
    }

    /// A sequence got tokens and goes on: what may follow them?
    pub(super) fn look_ahead(&mut self, id: SeqId) {
        let Some(seq) = self.seqs.get_mut(&id) else { return };
        match &mut seq.drafter {
            Some(drafter) => drafter.follow(&seq.tokens),
            None => seq.drafter = Some(super::draft::Drafter::new(&seq.tokens)),
        }
    }
}

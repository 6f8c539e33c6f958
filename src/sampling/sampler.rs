//! The pipeline of one sequence.
use std::sync::Arc;

use super::logprobs::RawLogprobs;
use super::processors::{EditedRow, TokensSeen};
use super::{LogitRow, SampledToken, SamplingParams, TokenMask, draw, rng, softmax};

/// What a sequence's sampler remembers between tokens: the tokens seen, for the penalties. Rebuilt from tokens alone.
#[derive(Debug, Clone)]
pub struct Sampler {
    pub params: Arc<SamplingParams>,
    /// `None` without penalties.
    seen: Option<TokensSeen>,
}

impl Sampler {
    /// `prompt`: the prompt's tokens (counted by the repetition penalty only, as the reference does).
    #[must_use]
    pub fn new(params: Arc<SamplingParams>, prompt: &[u32]) -> Self {
        let seen = TokensSeen::for_params(&params, prompt);
        Self { params, seen }
    }

    /// The sampler of a sequence that has already generated `output`: equal to one that sampled those tokens.
    #[must_use]
    pub fn resumed(params: Arc<SamplingParams>, prompt: &[u32], output: &[u32]) -> Self {
        let mut sampler = Self::new(params, prompt);
        for &token in output {
            sampler.remember(token);
        }
        sampler
    }

    /// Counts a generated token.
    fn remember(&mut self, token: u32) {
        if let Some(seen) = &mut self.seen {
            seen.generated(token);
        }
    }

    /// Picks the token for output position `output_index` (0 = first generated token) and remembers it.
    /// `row`: raw logits, `[vocab]`; left unchanged unless transformed. `stop_tokens`: banned while
    /// `output_index < params.min_tokens`.
    ///
    /// In a row without finite logits the lowest id that is not banned is picked, and 0 if all are banned.
    pub fn sample<'a>(
        &mut self,
        row: impl Into<LogitRow<'a>>,
        output_index: usize,
        stop_tokens: &[u32],
    ) -> SampledToken {
        self.sample_within(row, output_index, stop_tokens, None)
    }

    /// As [`Self::sample`], among the tokens of a grammar's mask. Where it allows nothing but stop tokens they are not
    /// banned.
    pub fn sample_within<'a>(
        &mut self,
        row: impl Into<LogitRow<'a>>,
        output_index: usize,
        stop_tokens: &[u32],
        mask: Option<TokenMask<'_>>,
    ) -> SampledToken {
        let (params, row) = (&*self.params, row.into());
        let raw = params.logprobs.map(|top| RawLogprobs::of(row.view(), usize::from(top)));
        let must_end = || mask.is_some_and(|mask| mask.allows_only(stop_tokens, row.len()));
        let banned = if output_index < params.min_tokens && !must_end() { stop_tokens } else { &[] };

        let mut row = EditedRow::new(row);
        row.bias(&params.logit_bias);
        if let Some(seen) = &self.seen {
            row.penalise(params, seen);
        }
        // Last, so that no bias and no NaN survives the bans.
        row.ban(banned);
        if let Some(mask) = mask {
            row.keep_only(mask);
        }

        let picked = if params.is_greedy() {
            softmax::argmax(row.view())
        } else {
            draw::draw(row.view(), params, rng::uniform(params.seed, output_index as u64))
        };
        let vocab = row.view().logits.len() as u32;
        let possible = |id: &u32| !banned.contains(id) && mask.is_none_or(|mask| mask.allows(*id));
        let id = picked.or_else(|| (0..vocab).find(possible)).unwrap_or(0);
        let logprobs = raw.map(|raw| raw.with_chosen(row.raw(id)));
        self.remember(id);
        SampledToken { id, logprobs }
    }
}

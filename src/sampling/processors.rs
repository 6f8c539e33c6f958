//! Transformations of single logits that also change what greedy decoding picks: bans, bias and penalties.
use std::collections::HashMap;

use super::row::View;
use super::{LogitRow, SamplingParams, TokenMask};

/// A row of logits being changed in a few places, with the raw values of the places changed.
pub(super) struct EditedRow<'a> {
    row: LogitRow<'a>,
    /// (id, raw logit) of every change, in order; an id may occur again after its first change.
    changes: Vec<(u32, f32)>,
}

impl<'a> EditedRow<'a> {
    pub(super) fn new(row: LogitRow<'a>) -> Self {
        Self { row, changes: Vec::new() }
    }

    pub(super) fn view(&self) -> View<'_> {
        self.row.view()
    }

    /// The logit of `id` before any change.
    pub(super) fn raw(&self, id: u32) -> f32 {
        match self.changes.iter().find(|(changed, _)| *changed == id) {
            Some(&(_, raw)) => raw,
            None => self.row.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY),
        }
    }

    /// Ids outside the row have no logit to change.
    fn edit(&mut self, id: u32, change: impl FnOnce(f32) -> f32) {
        if let Some(before) = self.row.change(id, change) {
            self.changes.push((id, before));
        }
    }

    /// Makes `tokens` impossible.
    pub(super) fn ban(&mut self, tokens: &[u32]) {
        for &id in tokens {
            self.edit(id, |_| f32::NEG_INFINITY);
        }
    }

    /// Makes all tokens impossible that `mask` does not allow. [`Self::raw`] no longer knows what their logits were.
    pub(super) fn keep_only(&mut self, mask: TokenMask<'_>) {
        mask.apply(self.row.lower());
    }

    /// Adds every bias to its logit.
    pub(super) fn bias(&mut self, bias: &[(u32, f32)]) {
        for &(id, bias) in bias {
            self.edit(id, |x| x + bias);
        }
    }

    /// Repetition, then frequency, then presence penalty. Tokens are independent of each other, so the order in which
    /// the map yields them does not matter.
    pub(super) fn penalise(&mut self, params: &SamplingParams, seen: &TokensSeen) {
        for (&id, &generated) in &seen.0 {
            self.edit(id, |x| {
                let mut x = if x > 0.0 { x / params.repetition_penalty } else { x * params.repetition_penalty };
                if generated > 0 {
                    x -= params.frequency_penalty * generated as f32;
                    x -= params.presence_penalty;
                }
                x
            });
        }
    }
}

/// The tokens of a sequence, each with how often it was generated (0: it stands in the prompt only).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TokensSeen(HashMap<u32, u32>);

impl TokensSeen {
    /// `None` when no penalty would read it. The prompt counts for the repetition penalty only.
    #[expect(clippy::float_cmp, reason = "neutral values are exact")]
    pub(super) fn for_params(params: &SamplingParams, prompt: &[u32]) -> Option<Self> {
        params.has_penalties().then(|| {
            let prompt = if params.repetition_penalty == 1.0 { &[] } else { prompt };
            Self(prompt.iter().map(|&id| (id, 0)).collect())
        })
    }

    pub(super) fn generated(&mut self, token: u32) {
        *self.0.entry(token).or_insert(0) += 1;
    }
}

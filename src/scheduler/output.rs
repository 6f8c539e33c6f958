//! One step as plain data.
use super::{FinishReason, SeqId};
use crate::kv::BlockId;

/// Which rows of logits a scheduled chunk needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    None,
    /// The chunk's last token.
    Last,
    /// Every token of the chunk.
    All,
}

/// A sequence's part in a step: compute `tokens`, which stand at positions `start..start + tokens.len()`.
///
/// With `drafts`, the last so many of the tokens are guesses, and every row is wanted: what is sampled from the row before
/// a guess decides whether the guess was right, and with the first wrong one the rest is void.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledSeq {
    pub id: SeqId,
    pub start: usize,
    pub tokens: Vec<u32>,
    /// How many of `tokens`, the last ones, are guesses; 0 unless the sequence decodes.
    pub drafts: usize,
    /// The sequence's block table, covering at least `start + tokens.len()` tokens.
    pub blocks: Vec<BlockId>,
    pub logits: LogitRows,
    /// The chunk has the last known token of a sequence that generates: a new token is to be sampled from its row, and one more
    /// from the row of each guess that turns out right.
    pub sample: bool,
    /// Prompt tokens taken from the prefix cache when the sequence was (first) admitted. Set in its first chunk only.
    pub cached_tokens: Option<usize>,
}

impl ScheduledSeq {
    /// Tokens that the sequence has for certain; `known..` are guesses.
    #[must_use]
    pub fn known(&self) -> usize {
        self.tokens.len() - self.drafts
    }

    /// The guesses.
    #[must_use]
    pub fn drafted(&self) -> &[u32] {
        &self.tokens[self.known()..]
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SchedulerOutput {
    pub seqs: Vec<ScheduledSeq>,
    /// Sequences that lost their blocks in this step and will be recomputed later.
    pub preempted: Vec<SeqId>,
}

impl SchedulerOutput {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }
    /// Tokens computed in this step, guesses included.
    #[must_use]
    pub fn total_tokens(&self) -> usize {
        self.seqs.iter().map(|s| s.tokens.len()).sum()
    }
}

/// What a committed step gave a sequence: a token (a step whose guesses were right gives several, in order), or the end of one that
/// generates nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeqUpdate {
    pub id: SeqId,
    pub token: Option<u32>,
    pub finish: Option<FinishReason>,
}

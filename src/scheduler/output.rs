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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledSeq {
    pub id: SeqId,
    pub start: usize,
    pub tokens: Vec<u32>,
    /// The sequence's block table, covering at least `start + tokens.len()` tokens.
    pub blocks: Vec<BlockId>,
    pub logits: LogitRows,
    /// The chunk ends at the last known token: a new token is to be sampled from its last row.
    pub sample: bool,
    /// Prompt tokens taken from the prefix cache when the sequence was (first) admitted. Set in its first chunk only.
    pub cached_tokens: Option<usize>,
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
    /// Tokens computed in this step.
    #[must_use]
    pub fn total_tokens(&self) -> usize {
        self.seqs.iter().map(|s| s.tokens.len()).sum()
    }
}

/// What a committed step means for a sequence that sampled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeqUpdate {
    pub id: SeqId,
    pub token: u32,
    pub finish: Option<FinishReason>,
}

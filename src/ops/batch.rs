//! What a step computes, as index lists: built by the runner on the host, read by the ops.
use std::cell::OnceCell;
use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use wick_kernels::SeqSpan;

/// A list of indices: a slice for the CPU kernels, uploaded once on first use for everyone else.
#[derive(Debug, Clone, Default)]
pub struct Indices {
    host: Vec<u32>,
    device: OnceCell<Tensor>,
}

impl Indices {
    #[must_use]
    pub fn new(host: Vec<u32>) -> Self {
        Self { host, device: OnceCell::new() }
    }

    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        &self.host
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.host.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.host.is_empty()
    }

    /// The indices as a u32 tensor `[len]` on `device`.
    ///
    /// # Errors
    /// The upload failed.
    pub fn tensor(&self, device: &Device) -> Result<&Tensor> {
        if let Some(tensor) = self.device.get() {
            return Ok(tensor);
        }
        let tensor = Tensor::from_slice(&self.host, self.host.len(), device)?;
        Ok(self.device.get_or_init(|| tensor))
    }
}

/// One sequence's rows in the batch and its blocks in the cache.
#[derive(Debug, Clone)]
pub struct SeqRange {
    /// First row of the sequence's chunk.
    pub q_start: usize,
    /// Rows of the chunk.
    pub q_len: usize,
    /// Tokens that the chunk's last row sees, itself included.
    pub context_len: usize,
    /// The sequence's block table, as a range of [`ForwardBatch::block_ids`].
    pub blocks: Range<usize>,
}

/// One step: `total_tokens` rows, sequence after sequence.
#[derive(Debug, Clone, Default)]
pub struct ForwardBatch {
    /// Token ids `[total_tokens]`, all below the vocabulary's size.
    pub input_ids: Indices,
    /// Position of each token in its sequence.
    pub positions: Indices,
    /// Where each token's K and V go: `block · block_size + offset`.
    pub slots: Indices,
    pub seqs: Vec<SeqRange>,
    /// All block tables, one after another.
    pub block_ids: Vec<u32>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Indices,
}

impl ForwardBatch {
    #[must_use]
    pub fn total_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// The block table of `seq`.
    #[must_use]
    pub fn blocks_of(&self, seq: &SeqRange) -> &[u32] {
        &self.block_ids[seq.blocks.clone()]
    }

    /// The sequences as the attention kernel takes them.
    pub(super) fn spans(&self) -> Vec<SeqSpan<'_>> {
        self.seqs
            .iter()
            .map(|s| SeqSpan {
                q_start: s.q_start,
                q_len: s.q_len,
                context_len: s.context_len,
                blocks: self.blocks_of(s),
            })
            .collect()
    }
}

//! What a step computes, as index lists: built by the runner on the host, read by the ops.
use std::cell::OnceCell;
use std::ops::Range;

use candle_core::{Device, Result, Tensor, bail};
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
    /// Rows whose logits are wanted, ascending: of each sequence none, or its last ones.
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

    /// What attention needs to know to compute only the rows whose logits are wanted, side by side.
    ///
    /// # Errors
    /// They are not the last rows of their sequences.
    pub fn wanted(&self) -> Result<Self> {
        let mut wanted = Self { block_ids: self.block_ids.clone(), ..Self::default() };
        let mut rows = self.logit_rows.as_slice();
        let mut q_start = 0;
        for seq in &self.seqs {
            let end = seq.q_start + seq.q_len;
            let q_len = rows.partition_point(|&row| (row as usize) < end);
            let (own, others) = rows.split_at(q_len);
            rows = others;
            if own.first().is_some_and(|&first| first as usize + q_len != end) {
                bail!("rows {own:?} have logits, which are not the last ones of {seq:?}")
            }
            if q_len > 0 {
                wanted.seqs.push(SeqRange { q_start, q_len, ..seq.clone() });
                q_start += q_len;
            }
        }
        Ok(wanted)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_rows_are_the_last_of_their_sequences() {
        let seq = |q_start, q_len, context_len| SeqRange { q_start, q_len, context_len, blocks: q_start..q_start + 1 };
        let batch = |rows: &[u32]| ForwardBatch {
            seqs: vec![seq(0, 4, 9), seq(4, 1, 30), seq(5, 3, 3)],
            block_ids: (0..8).collect(),
            logit_rows: Indices::new(rows.into()),
            ..ForwardBatch::default()
        };
        let shape = |rows: &[u32]| {
            let wanted = batch(rows).wanted()?;
            Ok::<_, candle_core::Error>(
                wanted.seqs.iter().map(|s| (s.q_start, s.q_len, s.context_len)).collect::<Vec<_>>(),
            )
        };
        assert_eq!(shape(&[]).unwrap(), []);
        assert_eq!(shape(&[3, 6, 7]).unwrap(), [(0, 1, 9), (1, 2, 3)]);
        assert_eq!(shape(&[0, 1, 2, 3, 4, 5, 6, 7]).unwrap(), [(0, 4, 9), (4, 1, 30), (5, 3, 3)]);
        for other in [&[2][..], &[1, 3], &[4, 5]] {
            assert!(shape(other).unwrap_err().to_string().contains("not the last ones"));
        }
    }
}

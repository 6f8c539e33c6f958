//! Attention over a cache of bfloat16 pairs, for instruction sets that multiply and add two of them at once: twice the speed of floats, and 8
//! bits of precision for queries, keys, values and softmax weights. Scores, sums and everything between spans are floats.
//!
//! A pair is a `u32` whose low half comes first. Queries and keys are paired by dimension, weights and values by key, so that a register
//! holds several keys, or several dimensions, and nothing is summed across it.

use super::span::{Piece, SPAN, Visible};

/// Pairs of keys in a span.
pub const SPAN_PAIRS: usize = SPAN / 2;

/// The kernels of an instruction set.
pub struct PairKernels {
    /// Rounds a head of a query times `scale`; pair `i` goes to `out[i * stride]`.
    pub take_query: unsafe fn(q: &[f32], scale: f32, out: &mut [u32], stride: usize),
    /// A few query rows against one span.
    pub attend: unsafe fn(&mut PairRows<'_>),
}

/// Some query rows against one span.
pub struct PairRows<'a> {
    /// The rows' queries, `[head_dim / 2, rows]`.
    pub q: &'a [u32],
    /// The cache, as [`KvSlice::Bf16`](crate::cpu::kv::KvSlice::Bf16) has it.
    pub k: &'a [u32],
    pub v: &'a [u32],
    pub head_dim: usize,
    pub block_size: usize,
    /// In order, without gaps, all keys that some row sees. Each begins at a multiple of `PIECE` keys: pair i of its dimensions is at
    /// `k + i * block_size + key` of `self.k`, pair j of its values at `v + j * head_dim` of `self.v`.
    pub pieces: &'a [Piece],
    /// Pieces that are wanted next: they are asked for while these are computed. May be empty.
    pub ahead: &'a [Piece],
    /// Of each row, 1..=`ROWS` of them.
    pub visible: &'a [Visible],
    pub softcap: Option<f32>,
    /// `SCORES` floats.
    pub scores: &'a mut [f32],
    /// `ROWS * SPAN_PAIRS` pairs.
    pub weights: &'a mut [u32],
    /// What the rows get from the span: see [`super::span::state_len`].
    pub state: &'a mut [f32],
}

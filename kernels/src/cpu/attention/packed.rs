//! Attention that reads a cache of packed values as it is, for instruction sets that multiply and add several values of a lane at once:
//! pairs of 16-bit integers at twice the speed of floats, quads of bytes from half as much memory.
//!
//! A pair or a quad is a `u32` whose low end comes first. Queries and keys are packed by dimension, weights and values by key, so that a
//! register holds several keys, or several dimensions, and nothing is summed across it. Everything between spans is floats.

use super::span::{PIECE, Piece, SCORES, Visible};

/// The kernels of an instruction set for one form of cache. Blocks and heads are multiples of `PIECE`.
pub struct PackedAttention {
    /// Most query rows that are computed together.
    pub rows: usize,
    /// Words that the query of a head takes.
    pub query_words: fn(head_dim: usize) -> usize,
    /// Words of [`PackedRows::scratch`].
    pub scratch_words: fn(head_dim: usize) -> usize,
    /// Packs a head of a query times `scale`; word `i` goes to `out[i * stride]`.
    pub take_query: unsafe fn(q: &[f32], scale: f32, out: &mut [u32], stride: usize),
    /// A few query rows against one span.
    pub attend: unsafe fn(&mut PackedRows<'_>),
}

/// K or V.
#[derive(Clone, Copy)]
pub struct PackedSlice<'a> {
    /// Pairs or quads.
    pub words: &'a [u32],
    /// See [`KvSlice::I16`](crate::cpu::kv::KvSlice::I16) and [`KvSlice::I8`](crate::cpu::kv::KvSlice::I8).
    pub scales: &'a [f32],
}

/// Some query rows against one span.
pub struct PackedRows<'a> {
    /// The rows' queries, `[query_words, rows]`.
    pub q: &'a [u32],
    /// The whole cache.
    pub k: PackedSlice<'a>,
    pub v: PackedSlice<'a>,
    pub head_dim: usize,
    pub block_size: usize,
    /// In order, without gaps, all keys that some row sees. Each begins at a multiple of `PIECE` keys: word i of its dimensions is at
    /// `k + i * block_size + key` of the keys, word j of its values at `v + j * head_dim` of the values.
    pub pieces: &'a [Piece],
    /// Pieces that are wanted next: they are asked for while these are computed. May be empty.
    pub ahead: &'a [Piece],
    /// Of each row, 1..=[`PackedAttention::rows`] of them.
    pub visible: &'a [Visible],
    pub softcap: Option<f32>,
    /// `SCORES` floats.
    pub scores: &'a mut [f32],
    /// `scratch_words`: for weights, and what else the kernels need.
    pub scratch: &'a mut [u32],
    /// What the rows get from the span: see [`super::span::state_len`].
    pub state: &'a mut [f32],
}

/// Pieces of the next span that are asked for beside one of a span: more than one, because a sequence's last span is often short.
pub const AHEAD: usize = 2;

impl PackedRows<'_> {
    /// # Panics
    /// If buffers are not as `kernels` want them, or a piece is outside a cache that has `values` of them in a word and `scales` for a token.
    pub fn check(&self, kernels: &PackedAttention, values: usize, scales: usize) {
        let (rows, head_dim) = (self.visible.len(), self.head_dim);
        let fits = self.scores.len() >= SCORES
            && self.scratch.len() >= (kernels.scratch_words)(head_dim)
            && self.q.len() == (kernels.query_words)(head_dim) * rows
            && head_dim.is_multiple_of(PIECE)
            && self.state.len() == rows * (2 + head_dim)
            && self.pieces.iter().all(|piece| {
                piece.k + (head_dim / values - 1) * self.block_size + PIECE <= self.k.words.len()
                    && piece.v + PIECE / values * head_dim <= self.v.words.len()
                    && piece.scales + (scales - 1) * self.block_size + PIECE
                        <= self.k.scales.len().min(self.v.scales.len())
                    && piece.first.is_multiple_of(PIECE)
            });
        assert!(fits, "attention: buffers of the wrong size: this is a bug");
    }

    /// The piece that is asked for as number `n` beside piece `index`.
    #[inline(always)]
    pub fn beside(&self, index: usize, n: usize) -> Option<&Piece> {
        self.ahead.get(n * self.pieces.len() + index)
    }

    /// How many pieces are asked for beside each, at most.
    #[inline(always)]
    pub fn asked(&self) -> usize {
        self.ahead.len().div_ceil(self.pieces.len()).min(AHEAD)
    }
}

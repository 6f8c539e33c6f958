//! Causal attention over a paged KV cache.
//!
//! The keys of a sequence are cut into spans at fixed positions. For each span a query row has a softmax state of its own: a maximum, the
//! sum of weights and the weighted values; the states are added up in the order of spans ("online softmax", Milakov and Gimelshein 2018, as
//! in FlashAttention; spread over threads as in Flash-Decoding, Dao and others 2023). What a row gets depends on its position and its
//! context only, so chunking, batch, threads and the size of a block never change its bits.

pub mod packed;
mod plan;
pub(crate) mod span;

use super::Cpu;
use super::dispatch::KernelTable;
use super::kv::{self, KvLayout, KvSlice, QuadPiece};
use super::shared::SharedSlice;
use half::f16;
use half::slice::HalfFloatSliceExt;
use packed::{PackedAttention, PackedRows, PackedSlice};
use plan::{Item, Plan, Tile};
use span::{PIECE, Piece, ROWS, ROWS_MAX, SCORES, SPAN, SpanKv, SpanRows, Visible, state_len};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

/// One sequence of a batch.
#[derive(Clone, Copy, Debug)]
pub struct SeqSpan<'a> {
    /// Its first row in `q`.
    pub q_start: usize,
    /// Its query rows in this step.
    pub q_len: usize,
    /// Tokens in the cache, these rows included: the last row has position `context_len - 1`.
    pub context_len: usize,
    /// Its blocks in order; at least `ceil(context_len / block_size)`.
    pub blocks: &'a [u32],
}

/// The inputs of [`paged_attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// Queries, `[tokens, heads, head_dim]`.
    pub q: &'a [f32],
    /// Keys of all layers.
    pub k: KvSlice<'a>,
    /// Values of all layers.
    pub v: KvSlice<'a>,
    /// Where this layer's are.
    pub layout: KvLayout,
    /// Query heads, a multiple of the KV heads.
    pub heads: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Sliding window: the row at position i sees the keys j with `i - window < j <= i`.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// The sequences in the order of their rows; rows of `q` that belong to none are left as they are in `out`.
    pub seqs: &'a [SeqSpan<'a>],
}

/// Buffers of [`paged_attention`] that stay between calls.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    lanes: Vec<Mutex<Lane>>,
    plan: Plan,
    /// States of the tiles that are split, a span after another.
    states: Vec<f32>,
}

/// What one thread needs.
#[derive(Debug, Default)]
struct Lane {
    /// Queries of a tile times the scale: of each group of rows `[head_dim, rows]`.
    q: Vec<f32>,
    /// Copies of keys, `[head_dim, PIECE]` a piece, and of values, `[head_dim rounded up]` a key.
    k: Vec<f32>,
    v: Vec<f32>,
    /// Of the span at hand, and of the one behind it if it need not be copied.
    pieces: Vec<Piece>,
    ahead: Vec<Piece>,
    scores: Vec<f32>,
    part: Vec<f32>,
    total: Vec<f32>,
    /// Where attention reads a packed cache as it is: see [`PackedRows`].
    q_packed: Vec<u32>,
    scratch: Vec<u32>,
}

/// Attention of every sequence's query rows over its cached keys and values; grouped queries, causal. `out` is laid out as `args.q`.
///
/// # Panics
/// If the lengths do not fit together, a block is outside the cache, or two sequences claim the same row.
pub fn paged_attention(cpu: &Cpu, args: &AttentionArgs<'_>, out: &mut [f32], scratch: &mut AttentionScratch) {
    check(args, out.len());
    let AttentionScratch { lanes, plan, states } = scratch;
    plan.fill(args, cpu.pool.lanes(usize::MAX));
    if states.len() < plan.state_floats() {
        states.resize(plan.state_floats(), 0.0);
    }
    if lanes.len() < plan.lanes() {
        lanes.resize_with(plan.lanes(), Mutex::default);
    }
    let table = cpu.isa.table();
    let task = Task {
        table,
        packed: packed(table, args),
        args,
        plan,
        out: SharedSlice::new(out),
        states: SharedSlice::new(states),
    };
    let share = |lane| task.plan.share(lane);
    cpu.pool.share_out(plan.lanes(), share, |thread, items| {
        let mut lane = lanes[thread].lock().unwrap_or_else(PoisonError::into_inner);
        lane.ahead.clear();
        let take = || items.take().map(|item| &task.plan.items()[item]);
        let mut following = None;
        while let Some(item) = following.take().or_else(take) {
            // Known early, its first keys come from memory meanwhile. The last ones are left to whoever is free.
            if items.left() > 1 {
                following = take();
            }
            task.run(item, following, &mut lane);
        }
    });
}

/// The kernels that read the cache as it is, if it is packed and there are such.
fn packed(table: &KernelTable, args: &AttentionArgs<'_>) -> Option<&'static PackedAttention> {
    let KvLayout { head_dim, block_size, .. } = args.layout;
    match (args.k, args.v) {
        (KvSlice::I16 { .. }, KvSlice::I16 { .. }) => table.shorts,
        (KvSlice::I8 { .. }, KvSlice::I8 { .. }) => {
            table.quads.filter(|_| head_dim.is_multiple_of(PIECE) && block_size.is_multiple_of(PIECE))
        }
        _ => None,
    }
}

fn check(args: &AttentionArgs<'_>, out: usize) {
    let (heads, layout) = (args.heads, args.layout);
    let KvLayout { kv_heads, head_dim, block_size, .. } = layout;
    layout.check("attention");
    assert!(heads > 0 && heads.is_multiple_of(kv_heads), "attention: {heads} heads over {kv_heads} KV heads");
    let width = heads * head_dim;
    assert!(
        args.q.len() == out && out.is_multiple_of(width),
        "attention: q and out have {} and {out} values, rows have {width}",
        args.q.len()
    );
    assert!(args.window != Some(0), "attention: a window of 0 sees no key");
    let blocks = args.k.len().min(args.v.len()) / layout.values();
    let tokens = out / width;
    for (cache, name) in [(&args.k, "K"), (&args.v, "V")] {
        match cache {
            KvSlice::F32(_) | KvSlice::F16(_) => {}
            KvSlice::I16 { .. } => kv::check_pairs(head_dim, block_size),
            KvSlice::I8 { .. } => kv::check_quads(head_dim, block_size),
        }
        if let KvSlice::I16 { scales, .. } | KvSlice::I8 { scales, .. } = cache {
            let wanted = cache.len() / head_dim * cache.scales(head_dim);
            assert!(scales.len() == wanted, "attention: the {name} cache has {} scales, not {wanted}", scales.len());
        }
    }
    let mut free = 0;
    for span in args.seqs {
        let end = span.q_start.checked_add(span.q_len).filter(|&end| end <= tokens);
        let Some(end) = end else { panic!("attention: rows {}+{} of {tokens}", span.q_start, span.q_len) };
        assert!(span.q_start >= free, "attention: two sequences claim the same row, or they are not in order");
        free = end;
        assert!(
            span.q_len <= span.context_len,
            "attention: {} query rows in a context of {}",
            span.q_len,
            span.context_len
        );
        let needed = span.context_len.div_ceil(block_size);
        assert!(
            span.blocks.len() >= needed,
            "attention: {} blocks for a context of {}",
            span.blocks.len(),
            span.context_len
        );
        assert!(
            span.blocks[..needed].iter().all(|&b| (b as usize) < blocks),
            "attention: a block is outside the cache of {blocks}"
        );
    }
}

/// First key that the row at `position` sees.
fn first_key(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |w| (position + 1).saturating_sub(w))
}

/// Where the states of a tile's rows over a span go.
enum To<'a> {
    /// To the lane's total: the first.
    Total,
    /// To the lane's total, added to what is there.
    Sum,
    /// To here, until those of the tile's other spans are known.
    Slice(&'a mut [f32]),
}

/// Everything that the threads share.
struct Task<'a> {
    table: &'static KernelTable,
    /// If attention reads the cache as it is.
    packed: Option<&'static PackedAttention>,
    args: &'a AttentionArgs<'a>,
    plan: &'a Plan,
    out: SharedSlice<'a, f32>,
    states: SharedSlice<'a, f32>,
}

impl Task<'_> {
    /// Computes an item; the thread goes on with `following`.
    fn run(&self, item: &Item, following: Option<&Item>, lane: &mut Lane) {
        let tile = &self.plan.tiles()[item.tile];
        let width = self.args.layout.head_dim.next_multiple_of(PIECE);
        let floats = state_len(tile.len(self.args), width);
        self.take_queries(tile, lane);
        lane.scores.resize(SCORES, 0.0);
        lane.part.resize(state_len(self.most_rows(), width), 0.0);
        lane.total.resize(floats, 0.0);
        let following = following.map(|item| (&self.plan.tiles()[item.tile], item.spans.start));
        let after = |span: usize| if span + 1 < item.spans.end { Some((tile, span + 1)) } else { following };
        let Some(split) = &item.split else {
            for span in item.spans.clone() {
                let to = if span == item.spans.start { To::Total } else { To::Sum };
                self.attend(tile, span, after(span), lane, to);
            }
            return self.finish(tile, lane);
        };
        let first_span = tile.spans(self.args).start;
        let state_at = |span: usize| split.states + (span - first_span) * floats;
        for span in item.spans.clone() {
            // SAFETY: a tile's span belongs to one item, and nobody reads it before the last item of the tile is done.
            let states = unsafe { self.states.slice(state_at(span), floats) };
            self.attend(tile, span, after(span), lane, To::Slice(states));
        }
        // Whoever comes last adds up what all have left: the others' writes are released by their subtraction and acquired by this one.
        if self.plan.pending(split).fetch_sub(1, Ordering::AcqRel) == 1 {
            for span in tile.spans(self.args) {
                // SAFETY: all items of the tile are done.
                let states = unsafe { self.states.slice(state_at(span), floats) };
                if span == first_span {
                    lane.total.copy_from_slice(states);
                    continue;
                }
                for (first, rows) in self.groups(tile) {
                    let at = state_len(first, width)..state_len(first + rows, width);
                    let mut visible = [(0, 0); ROWS_MAX];
                    self.visible(tile, span, first, &mut visible[..rows]);
                    // SAFETY: the table is this processor's.
                    unsafe { (self.table.fold)(&mut lane.total[at.clone()], &states[at], &visible[..rows]) };
                }
            }
            self.finish(tile, lane);
        }
    }

    /// Most query rows that the kernel computes together.
    fn most_rows(&self) -> usize {
        self.packed.map_or(ROWS, |packed| packed.rows)
    }

    /// Cuts the rows of a tile into groups that are computed together, as even as they go: the first row and the number of rows of each.
    fn groups(&self, tile: &Tile) -> impl Iterator<Item = (usize, usize)> + use<> {
        let rows = tile.len(self.args);
        let count = rows.div_ceil(self.most_rows());
        (0..count).map(move |i| (i * rows / count, (i + 1) * rows / count - i * rows / count))
    }

    /// Scales and reorders the queries of a tile.
    fn take_queries(&self, tile: &Tile, lane: &mut Lane) {
        let d = self.args.layout.head_dim;
        let len = tile.len(self.args);
        let words = self.packed.map_or(0, |packed| (packed.query_words)(d));
        match self.packed {
            Some(_) => lane.q_packed.resize(len * words, 0),
            None => lane.q.resize(len * d, 0.0),
        }
        for (first, rows) in self.groups(tile) {
            for r in 0..rows {
                let at = tile.row_at(self.args, first + r);
                let q = &self.args.q[at..at + d];
                if let Some(packed) = self.packed {
                    let out = &mut lane.q_packed[first * words..(first + rows) * words];
                    // SAFETY: the table is this processor's.
                    unsafe { (packed.take_query)(q, self.args.scale, &mut out[r..], rows) }
                } else {
                    let packed = &mut lane.q[first * d..(first + rows) * d];
                    for (to, q) in packed[r..].iter_mut().step_by(rows).zip(q) {
                        *to = q * self.args.scale;
                    }
                }
            }
        }
    }

    /// The keys of a span that the rows of a tile from `first` on see.
    fn visible(&self, tile: &Tile, span: usize, first: usize, visible: &mut [Visible]) {
        let start = span * SPAN;
        for (seen, position) in visible.iter_mut().zip(tile.positions(self.args, first)) {
            let (low, high) = (first_key(self.args.window, position).max(start), (position + 1).min(start + SPAN));
            *seen = if low < high { (low - start, high - start) } else { (0, 0) };
        }
    }

    /// Computes the states of a tile's rows over one span. `next`: what the thread computes after it.
    fn attend(&self, tile: &Tile, span: usize, next: Option<(&Tile, usize)>, lane: &mut Lane, mut to: To<'_>) {
        let d = self.args.layout.head_dim;
        let width = d.next_multiple_of(PIECE);
        let Lane { q, k, v, pieces, ahead, scores, part, total, q_packed, scratch } = lane;
        let (k_fits, v_fits) = self.readable();
        std::mem::swap(pieces, ahead);
        if pieces.is_empty() {
            self.find(tile, span, pieces);
        }
        ahead.clear();
        if let Some((tile, span)) = next.filter(|_| k_fits && v_fits) {
            self.find(tile, span, ahead);
            // A line of each, for its page's address, which takes a virtual machine long: the kernel asks for the others. Integers' values it asks for
            // itself.
            for piece in ahead.iter() {
                self.args.k.ask(piece.k);
                if self.packed.is_none() {
                    self.args.v.ask(piece.v);
                }
            }
        }
        let mut kv = SpanKv {
            k: self.args.k,
            k_stride: self.args.layout.block_size,
            v: self.args.v,
            v_stride: d,
            pieces: &[],
            ahead: &[],
        };
        if !k_fits {
            self.copy_keys(pieces, k);
            (kv.k, kv.k_stride) = (KvSlice::F32(k), PIECE);
        }
        if !v_fits {
            self.copy_values(pieces, v);
            (kv.v, kv.v_stride) = (KvSlice::F32(v), width);
        }
        (kv.pieces, kv.ahead) = (pieces, ahead);
        let words = self.packed.map_or(0, |packed| (packed.query_words)(d));
        scratch.resize(self.packed.map_or(0, |packed| (packed.scratch_words)(d)), 0);
        for (first, rows) in self.groups(tile) {
            let mut visible = [(0, 0); ROWS_MAX];
            let visible = &mut visible[..rows];
            self.visible(tile, span, first, visible);
            let at = state_len(first, width)..state_len(first + rows, width);
            let state = match &mut to {
                To::Sum if visible.iter().all(|(low, high)| low == high) => continue,
                To::Sum => &mut part[..state_len(rows, width)],
                To::Total => &mut total[at.clone()],
                To::Slice(states) => &mut states[at.clone()],
            };
            let softcap = self.args.softcap;
            // SAFETY: the table is this processor's; `check` has seen that the blocks are inside the cache.
            unsafe {
                if let Some(packed) = self.packed {
                    (packed.attend)(&mut PackedRows {
                        q: &q_packed[first * words..(first + rows) * words],
                        k: packed_slice(kv.k),
                        v: packed_slice(kv.v),
                        head_dim: d,
                        block_size: self.args.layout.block_size,
                        pieces: kv.pieces,
                        ahead: kv.ahead,
                        visible,
                        softcap,
                        scores,
                        scratch,
                        state,
                    });
                } else {
                    let q = &q[first * d..(first + rows) * d];
                    (self.table.attend)(&mut SpanRows { q, kv, visible, softcap, scores, state });
                }
                if let To::Sum = to {
                    (self.table.fold)(&mut total[at], &part[..state_len(rows, width)], visible);
                }
            }
            // Asked for once.
            kv.ahead = &[];
        }
    }

    /// Whether the kernel can read keys and values where they are. Other sizes of blocks and heads, and formats that it is slow to read, are
    /// copied.
    fn readable(&self) -> (bool, bool) {
        let wide = |cache: &KvSlice<'_>| match cache {
            KvSlice::F32(_) => true,
            KvSlice::F16(_) => self.table.attends_halves,
            KvSlice::I16 { .. } | KvSlice::I8 { .. } => self.packed.is_some(),
        };
        let AttentionArgs { layout: KvLayout { head_dim, block_size, .. }, k, v, .. } = self.args;
        (block_size.is_multiple_of(PIECE) && wide(k), head_dim.is_multiple_of(PIECE) && wide(v))
    }

    /// Finds the keys and values of a span that rows of a tile see, in the cache. Slots behind the context may hold anything: their keys are
    /// scored only beside others, and the scores are dropped.
    fn find(&self, tile: &Tile, span: usize, pieces: &mut Vec<Piece>) {
        let layout = self.args.layout;
        let KvLayout { head_dim: d, block_size, .. } = layout;
        let (start, keys) = (span * SPAN, tile.keys(self.args));
        let blocks = self.args.seqs[tile.seq].blocks;
        let end = keys.end.min(start + SPAN);
        let mut position = keys.start.max(start) / PIECE * PIECE;
        // Divided once: that takes as long as all else here.
        let (mut index, mut offset) = (position / block_size, position % block_size);
        while position < end {
            let len = PIECE.min(block_size - offset).min(end - position);
            let head_block = layout.head_block(blocks[index] as usize, tile.kv_head);
            let block = head_block * block_size * d;
            pieces.push(Piece {
                // Packed keys lie as close as others: it is the dimensions that are fewer.
                k: block / self.args.k.packed() + offset,
                v: (block + offset * d) / self.args.v.packed(),
                scales: head_block * block_size * self.args.k.scales(d) + offset,
                first: position - start,
                len,
            });
            (position, offset) = (position + len, offset + len);
            if offset == block_size {
                (index, offset) = (index + 1, 0);
            }
        }
    }

    /// Copies the keys of pieces as floats, `[head_dim, PIECE]` a piece, and points the pieces there.
    fn copy_keys(&self, pieces: &mut [Piece], to: &mut Vec<f32>) {
        let AttentionArgs { layout: KvLayout { head_dim, block_size, .. }, ref k, .. } = *self.args;
        let size = PIECE * head_dim;
        to.resize(to.len().max(pieces.len() * size), 0.0);
        for (n, (piece, to)) in pieces.iter_mut().zip(to.chunks_exact_mut(size)).enumerate() {
            if let KvSlice::I8 { quads, scales } = k {
                let from = QuadPiece { quads: &quads[piece.k..], scales: &scales[piece.scales..], block_size };
                // SAFETY: the table is this processor's.
                unsafe { (self.table.widen_keys)(from, piece.len, to) }
            } else if let KvSlice::I16 { pairs, scales } = k {
                for (i, to) in to.chunks_exact_mut(PIECE).enumerate() {
                    let pairs = &pairs[piece.k + i / 2 * block_size..][..piece.len];
                    kv::widen_shorts(pairs, i % 2 == 1, scales[piece.scales..].iter().copied(), to);
                }
            } else {
                for (i, to) in to.chunks_exact_mut(PIECE).enumerate() {
                    widen(k, piece.k + i * block_size, &mut to[..piece.len]);
                }
            }
            piece.k = n * size;
        }
    }

    /// Copies the values of pieces as floats, [`PIECE`] rows for each, and points the pieces there.
    fn copy_values(&self, pieces: &mut [Piece], to: &mut Vec<f32>) {
        let AttentionArgs { layout: KvLayout { head_dim, block_size, .. }, ref v, .. } = *self.args;
        let width = head_dim.next_multiple_of(PIECE);
        let size = PIECE * width;
        to.resize(to.len().max(pieces.len() * size), 0.0);
        for (n, (piece, to)) in pieces.iter_mut().zip(to.chunks_exact_mut(size)).enumerate() {
            if let KvSlice::I8 { quads, scales } = v {
                let from = QuadPiece { quads: &quads[piece.v..], scales: &scales[piece.scales..], block_size };
                // SAFETY: the table is this processor's.
                unsafe { (self.table.widen_values)(from, head_dim, width, &mut to[..piece.len * width]) }
            } else if let KvSlice::I16 { pairs, scales } = v {
                for (j, to) in to.chunks_exact_mut(width).take(piece.len).enumerate() {
                    let pairs = &pairs[piece.v + j / 2 * head_dim..][..head_dim];
                    kv::widen_shorts(pairs, j % 2 == 1, std::iter::repeat(scales[piece.scales + j]), to);
                }
            } else {
                for (j, to) in to.chunks_exact_mut(width).take(piece.len).enumerate() {
                    widen(v, piece.v + j * head_dim, &mut to[..head_dim]);
                }
            }
            piece.v = n * size;
        }
    }

    /// Divides by the sums.
    fn finish(&self, tile: &Tile, lane: &Lane) {
        let d = self.args.layout.head_dim;
        let width = d.next_multiple_of(PIECE);
        for (first, rows) in self.groups(tile) {
            let state = &lane.total[state_len(first, width)..state_len(first + rows, width)];
            for r in 0..rows {
                // SAFETY: a row's head belongs to one tile (`check` refused overlapping sequences), and a tile is finished once.
                let y = unsafe { self.out.slice(tile.row_at(self.args, first + r), d) };
                let inverse = 1.0 / state[rows + r];
                for (y, a) in y.iter_mut().zip(&state[2 * rows + r * width..]) {
                    *y = a * inverse;
                }
            }
        }
    }
}

fn packed_slice(cache: KvSlice<'_>) -> PackedSlice<'_> {
    match cache {
        KvSlice::I16 { pairs: words, scales } | KvSlice::I8 { quads: words, scales } => PackedSlice { words, scales },
        KvSlice::F32(_) | KvSlice::F16(_) => unreachable!("these caches are not packed"),
    }
}

/// Values of a cache from `at` on as floats.
fn widen(cache: &KvSlice<'_>, at: usize, to: &mut [f32]) {
    match cache {
        KvSlice::F32(s) => to.copy_from_slice(&s[at..at + to.len()]),
        KvSlice::F16(s) => {
            let s: &[f16] = &s[at..at + to.len()];
            s.convert_to_f32_slice(to);
        }
        KvSlice::I16 { .. } | KvSlice::I8 { .. } => unreachable!("these caches have kernels of their own"),
    }
}

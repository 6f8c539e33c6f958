//! Causal attention over a paged KV cache.
//!
//! A query row walks the KV blocks of its sequence in order and keeps a running maximum, sum and weighted value ("online softmax",
//! Milakov and Gimelshein 2018, as in FlashAttention). What it does with a block depends on its own position and the block size only, so
//! chunking, batch and threads never change its bits.

use super::Cpu;
use super::kv::KvSlice;
use super::math;
use super::shared::SharedSlice;
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Keys scored at a time; scores are padded to a multiple of it.
pub(crate) const KEYS: usize = 8;
/// Query rows (over all heads of a KV head) that share one conversion of a KV block.
const TILE: usize = 32;

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
    /// Keys, `[num_blocks, kv_heads, block_size, head_dim]`.
    pub k: KvSlice<'a>,
    /// Values, laid out as the keys.
    pub v: KvSlice<'a>,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values in a head.
    pub head_dim: usize,
    /// Tokens in a cache block.
    pub block_size: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Sliding window: the row at position i sees the keys j with `i - window < j <= i`.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// The sequences; rows of `q` that belong to none are left as they are in `out`.
    pub seqs: &'a [SeqSpan<'a>],
}

/// Buffers of [`paged_attention`] that stay between calls.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    lanes: Vec<Mutex<Lane>>,
    tiles: Vec<Tile>,
}

/// What one thread needs.
#[derive(Debug, Default)]
struct Lane {
    k: Vec<f32>,
    v: Vec<f32>,
    scores: Vec<f32>,
    acc: Vec<f32>,
    state: Vec<RowState>,
}

/// Running softmax of one query row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowState {
    max: f32,
    sum: f32,
}

/// Consecutive query rows of one sequence, for one KV head.
#[derive(Clone, Copy, Debug)]
struct Tile {
    seq: usize,
    kv_head: usize,
    row: usize,
    rows: usize,
}

/// One query row against one KV block.
pub struct RowBlock<'a> {
    pub(crate) q: &'a [f32],
    /// The block's keys and values for the row's KV head, `[block_size, head_dim]`.
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    /// Visible keys of the block: `low..high`, not empty.
    pub(crate) low: usize,
    pub(crate) high: usize,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    /// `block_size` rounded up to a multiple of [`KEYS`].
    pub(crate) scores: &'a mut [f32],
    pub(crate) acc: &'a mut [f32],
    pub(crate) state: &'a mut RowState,
}

/// What an instruction set brings to [`attend`].
pub(crate) trait Dots {
    /// `a * b + c`, fused or not.
    fn madd(a: f32, b: f32, c: f32) -> f32;
    /// `out[i]` = q . key `first + min(i, last)`, for 8 keys.
    ///
    /// # Safety
    /// The processor has the instruction set; the keys `first..=first + last` are inside `k`.
    unsafe fn dot_keys(q: &[f32], k: &[f32], first: usize, last: usize, out: &mut [f32; KEYS]);
}

/// Folds one block into a row's running softmax. Inlined into each instruction set.
///
/// # Safety
/// The processor has the instruction set of `D`.
#[inline(always)]
pub(crate) unsafe fn attend<D: Dots>(b: &mut RowBlock<'_>) {
    let d = b.q.len();
    let from = b.low / KEYS * KEYS;
    let to = b.high.div_ceil(KEYS) * KEYS;
    let keys = b.k.len() / d;
    let mut block_max = f32::NEG_INFINITY;
    for first in (from..to).step_by(KEYS) {
        let mut s = [0.0; KEYS];
        // SAFETY: `first < high <= keys`, so the clamped keys are inside `k`.
        unsafe { D::dot_keys(b.q, b.k, first, (keys - 1 - first).min(KEYS - 1), &mut s) };
        for s in &mut s {
            *s *= b.scale;
        }
        if let Some(cap) = b.softcap {
            for s in &mut s {
                *s = cap * math::tanh(*s / cap);
            }
        }
        for (i, s) in s.iter_mut().enumerate() {
            if first + i < b.low || first + i >= b.high {
                *s = f32::NEG_INFINITY;
            }
            // A NaN score stays: the row's result is NaN then, not a plausible number.
            block_max = if *s > block_max || s.is_nan() { *s } else { block_max };
        }
        b.scores[first..first + KEYS].copy_from_slice(&s);
    }
    let max = if block_max > b.state.max || block_max.is_nan() { block_max } else { b.state.max };
    // The first block has an empty state (maximum -inf): e^-inf = 0.
    let correction = math::exp(b.state.max - max);
    let mut lanes = [0.0f32; KEYS];
    for p in b.scores[from..to].as_chunks_mut::<KEYS>().0 {
        // Arrays of their own: the compiler only vectorises so short a loop where nothing can overlap.
        let (s, mut e) = (*p, [0.0; KEYS]);
        for (e, s) in e.iter_mut().zip(s) {
            *e = math::exp(s - max);
        }
        for (lane, e) in lanes.iter_mut().zip(e) {
            *lane += e;
        }
        *p = e;
    }
    for width in [4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    b.state.sum = b.state.sum * correction + lanes[0];
    b.state.max = max;
    if correction != 1.0 {
        for a in b.acc.iter_mut() {
            *a *= correction;
        }
    }
    // Four keys in one pass over the accumulators, then single keys: the order of additions is the keys' own either way.
    let acc = &mut b.acc[..d];
    let mut j = b.low;
    while j + 4 <= b.high {
        let p = &b.scores[j..j + 4];
        let v = &b.v[j * d..(j + 4) * d];
        let (v0, v) = v.split_at(d);
        let (v1, v) = v.split_at(d);
        let (v2, v3) = v.split_at(d);
        for i in 0..d {
            let a = D::madd(p[0], v0[i], acc[i]);
            let a = D::madd(p[1], v1[i], a);
            let a = D::madd(p[2], v2[i], a);
            acc[i] = D::madd(p[3], v3[i], a);
        }
        j += 4;
    }
    while j < b.high {
        let (p, v) = (b.scores[j], &b.v[j * d..(j + 1) * d]);
        for (a, &v) in acc.iter_mut().zip(v) {
            *a = D::madd(p, v, *a);
        }
        j += 1;
    }
}

/// Attention of every sequence's query rows over its cached keys and values; grouped queries, causal. `out` is laid out as `args.q`.
///
/// # Panics
/// If the lengths do not fit together, a block is outside the cache, or two sequences claim the same row.
pub fn paged_attention(cpu: &Cpu, args: &AttentionArgs<'_>, out: &mut [f32], scratch: &mut AttentionScratch) {
    check(args, out.len());
    let group = args.heads / args.kv_heads;
    let tile_rows = (TILE / group).max(1);
    scratch.tiles.clear();
    for (seq, span) in args.seqs.iter().enumerate() {
        // The last rows have the longest context: they come first, so that no long tile is left to one thread at the end.
        for row in (0..span.q_len).step_by(tile_rows).rev() {
            let rows = tile_rows.min(span.q_len - row);
            scratch.tiles.extend((0..args.kv_heads).map(|kv_head| Tile { seq, kv_head, row, rows }));
        }
    }
    let lanes = cpu.pool.threads().min(scratch.tiles.len());
    if scratch.lanes.len() < lanes {
        scratch.lanes.resize_with(lanes, Mutex::default);
    }
    let AttentionScratch { lanes: buffers, tiles } = &*scratch;
    let next = AtomicUsize::new(0);
    let out = SharedSlice::new(out);
    let task = |lane: usize| {
        let mut buffers = buffers[lane].lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(tile) = tiles.get(next.fetch_add(1, Ordering::Relaxed)) {
            attend_tile(cpu, args, tile, &mut buffers, &out);
        }
    };
    cpu.pool.run(lanes, &task);
}

fn check(args: &AttentionArgs<'_>, out: usize) {
    let AttentionArgs { heads, kv_heads, head_dim, block_size, .. } = *args;
    assert!(
        kv_heads > 0 && head_dim > 0 && block_size > 0 && heads.is_multiple_of(kv_heads),
        "attention: {heads} heads over {kv_heads} KV heads of {head_dim} in blocks of {block_size}"
    );
    let width = heads * head_dim;
    assert!(
        args.q.len() == out && out.is_multiple_of(width),
        "attention: q and out have {} and {out} values, rows have {width}",
        args.q.len()
    );
    assert!(args.window != Some(0), "attention: a window of 0 sees no key");
    let block = kv_heads * block_size * head_dim;
    let blocks = args.k.len().min(args.v.len()) / block;
    let tokens = out / width;
    let mut end = vec![false; tokens];
    for span in args.seqs {
        let inside = span.q_start.checked_add(span.q_len).is_some_and(|e| e <= tokens);
        assert!(inside, "attention: rows {}+{} of {tokens}", span.q_start, span.q_len);
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
        for taken in &mut end[span.q_start..span.q_start + span.q_len] {
            assert!(!std::mem::replace(taken, true), "attention: two sequences claim the same row");
        }
    }
}

fn attend_tile(cpu: &Cpu, args: &AttentionArgs<'_>, tile: &Tile, lane: &mut Lane, out: &SharedSlice<'_, f32>) {
    let AttentionArgs { heads, kv_heads, head_dim: d, block_size, .. } = *args;
    let attend = cpu.isa.table().attend;
    let span = &args.seqs[tile.seq];
    let group = heads / kv_heads;
    let first_position = span.context_len - span.q_len + tile.row;
    let Lane { k, v, scores, acc, state } = lane;
    scores.resize(block_size.next_multiple_of(KEYS), 0.0);
    acc.clear();
    acc.resize(tile.rows * group * d, 0.0);
    state.clear();
    state.resize(tile.rows * group, RowState { max: f32::NEG_INFINITY, sum: 0.0 });
    let first_key = |position: usize| args.window.map_or(0, |w| (position + 1).saturating_sub(w));
    let last_position = first_position + tile.rows - 1;
    for index in first_key(first_position) / block_size..=last_position / block_size {
        let start = index * block_size;
        // Slots behind the context may hold anything: they are neither read nor converted.
        let filled = block_size.min(span.context_len - start);
        let at = (span.blocks[index] as usize * kv_heads + tile.kv_head) * block_size * d;
        let k = floats(args.k, at, filled * d, k);
        let v = floats(args.v, at, filled * d, v);
        for row in 0..tile.rows {
            let position = first_position + row;
            let low = first_key(position).max(start);
            let high = (position + 1).min(start + filled);
            if low >= high {
                continue;
            }
            for h in 0..group {
                let i = row * group + h;
                let q = ((span.q_start + tile.row + row) * heads + tile.kv_head * group + h) * d;
                let mut block = RowBlock {
                    q: &args.q[q..q + d],
                    k,
                    v,
                    low: low - start,
                    high: high - start,
                    scale: args.scale,
                    softcap: args.softcap,
                    scores,
                    acc: &mut acc[i * d..(i + 1) * d],
                    state: &mut state[i],
                };
                // SAFETY: the table is this processor's.
                unsafe { attend(&mut block) };
            }
        }
    }
    for row in 0..tile.rows {
        for h in 0..group {
            let i = row * group + h;
            let at = ((span.q_start + tile.row + row) * heads + tile.kv_head * group + h) * d;
            // SAFETY: a row's head belongs to one tile: `check` refused overlapping sequences.
            let y = unsafe { out.slice(at, d) };
            let inverse = 1.0 / state[i].sum;
            for (y, &a) in y.iter_mut().zip(&acc[i * d..(i + 1) * d]) {
                *y = a * inverse;
            }
        }
    }
}

/// `len` values from `at` as floats: in place, or widened to `buffer`.
fn floats<'b>(cache: KvSlice<'b>, at: usize, len: usize, buffer: &'b mut Vec<f32>) -> &'b [f32] {
    match cache {
        KvSlice::F32(s) => &s[at..at + len],
        KvSlice::F16(s) => {
            let s: &[f16] = &s[at..at + len];
            buffer.resize(len, 0.0);
            s.convert_to_f32_slice(buffer);
            buffer
        }
    }
}

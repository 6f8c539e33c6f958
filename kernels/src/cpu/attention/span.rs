//! One span of keys against a few query rows: written once, for the registers of any instruction set.
//!
//! Scores: the keys of a block are stored with the key as the fastest index, so a register holds one dimension of several keys, a query's
//! value is broadcast, and nothing is ever summed across a register. Values: a register holds several dimensions of one key, and the key's
//! weight is broadcast. Each score and each output is one chain of multiply-adds in the order of dimensions or keys, whatever else is
//! computed beside it.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

use crate::cpu::kv::KvSlice;
use crate::cpu::math;
use half::f16;

/// Keys whose softmax is computed at once, with one maximum. Spans begin at multiples of it.
pub const SPAN: usize = 128;
/// Keys in a row of a [`Piece`]; the widths of values and sums are padded to a multiple of it.
pub const PIECE: usize = 16;
/// Most query rows that are computed together, with floats.
pub const ROWS: usize = 6;
/// Most query rows that any kernel computes together.
pub const ROWS_MAX: usize = 12;
/// Floats between the scores of two rows: a piece of few keys is written with what lies behind it.
pub const STRIDE: usize = SPAN + PIECE;
/// Floats for the scores of [`ROWS_MAX`] rows.
pub const SCORES: usize = ROWS_MAX * STRIDE;

/// ln 2 in two parts; a whole number of up to 8 bits times the first is exact.
pub const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// Coefficients of e^r, from r^7 down.
pub const TAYLOR: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
/// Below it e^x counts as 0.
pub const SMALLEST: f32 = -87.0;

/// Consecutive keys of a span that lie in one block.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Where its keys begin in [`SpanKv::k`]: dimension i of key j is at `k + i * k_stride + j`, and `PIECE` values can be read there.
    pub k: usize,
    /// Where its values begin in [`SpanKv::v`]: dimension i of key j is at `v + j * v_stride + i`.
    pub v: usize,
    /// Where its scales begin, of keys as of values, in a cache that has such: those of group i are at `scales + i * block_size`.
    pub scales: usize,
    /// Its first key, counted from the beginning of the span.
    pub first: usize,
    /// Its keys, 1..=`PIECE`.
    pub len: usize,
}

/// Keys and values of a span, for one KV head.
#[derive(Clone, Copy, Debug)]
pub struct SpanKv<'a> {
    pub k: KvSlice<'a>,
    pub k_stride: usize,
    pub v: KvSlice<'a>,
    pub v_stride: usize,
    /// In order, without gaps, all keys that some row sees.
    pub pieces: &'a [Piece],
    /// Pieces of the same slices that are wanted next: they are asked for while these are computed. May be empty.
    pub ahead: &'a [Piece],
}

/// The keys of a span that a row sees, `low..high`; empty where it sees none.
pub type Visible = (usize, usize);

/// The keys between the first and the last that some row sees.
pub(crate) fn seen(visible: &[Visible]) -> Option<Visible> {
    let seen = visible.iter().filter(|(low, high)| low < high);
    seen.copied().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

/// Calls what is written for a number of rows that the compiler knows: one of the numbers behind it, 1..=[`ROWS`] if there are none.
macro_rules! by_rows {
    ($b:expr, $rows:ident => $call:expr) => {
        by_rows!($b, $rows => $call, [1, 2, 3, 4, 5, 6])
    };
    ($b:expr, $rows:ident => $call:expr, [$($n:literal),*]) => {
        match $b.visible.len() {
            $($n => {
                const $rows: usize = $n;
                $call
            })*
            n => unreachable!("{n} rows at once: this is a bug"),
        }
    };
}
pub(crate) use by_rows;

/// Some query rows against one span.
pub struct SpanRows<'a> {
    /// The rows' queries times the scale, `[head_dim, rows]`.
    pub q: &'a [f32],
    pub kv: SpanKv<'a>,
    /// Of each row, 1..=[`ROWS`] of them.
    pub visible: &'a [Visible],
    pub softcap: Option<f32>,
    /// [`SCORES`] floats.
    pub scores: &'a mut [f32],
    /// What the rows get from the span: see [`state_len`].
    pub state: &'a mut [f32],
}

/// Floats of the softmax state of `rows` rows: the maximum of each, then the sum of weights of each, then the weighted values of each,
/// `width` (a multiple of [`PIECE`]) floats a row.
pub const fn state_len(rows: usize, width: usize) -> usize {
    rows * (2 + width)
}

/// The state before any key: a maximum below every score, but not infinite, so that differences with it are numbers.
pub fn empty_state(rows: usize, state: &mut [f32]) {
    state[..rows].fill(f32::MIN);
    state[rows..].fill(0.0);
}

/// Floats in registers of one size.
///
/// # Safety
/// All functions need a processor with the instruction set; pointers are good for `LEN` values, aligned to theirs.
pub(crate) trait Vector {
    /// A register.
    type Reg: Copy;
    /// Floats in a register: a divisor of [`PIECE`].
    const LEN: usize;
    unsafe fn splat(x: f32) -> Self::Reg;
    unsafe fn load(at: *const f32) -> Self::Reg;
    unsafe fn load_half(at: *const f16) -> Self::Reg;
    unsafe fn store(at: *mut f32, x: Self::Reg);
    /// Asks for memory that will be read soon; any address.
    unsafe fn prefetch<T>(at: *const T);
    unsafe fn add(a: Self::Reg, b: Self::Reg) -> Self::Reg;
    unsafe fn mul(a: Self::Reg, b: Self::Reg) -> Self::Reg;
    /// `a * b + c`, fused or not.
    unsafe fn madd(a: Self::Reg, b: Self::Reg, c: Self::Reg) -> Self::Reg;
    /// The larger; either if one is NaN.
    unsafe fn max(a: Self::Reg, b: Self::Reg) -> Self::Reg;
    /// e^x for x <= 0 to about 1e-7 relative, exactly 1 at 0 and exactly 0 below -87 and at minus infinity; NaN stays.
    unsafe fn exp(x: Self::Reg) -> Self::Reg;
    /// The sum of a register, always in the same order.
    unsafe fn total(x: Self::Reg) -> f32;
    /// The largest value of a register.
    unsafe fn largest(x: Self::Reg) -> f32;
}

/// A type of cached values.
trait Element: Copy {
    /// # Safety
    /// As for [`Vector`].
    unsafe fn load<V: Vector>(at: *const Self) -> V::Reg;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(at: *const f32) -> V::Reg {
        // SAFETY: the caller's promise.
        unsafe { V::load(at) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(at: *const f16) -> V::Reg {
        // SAFETY: the caller's promise.
        unsafe { V::load_half(at) }
    }
}

/// Computes the state of some rows over one span; `W` registers of sums a row. Inlined into each instruction set.
///
/// # Safety
/// The processor has the instruction set of `V`; the pieces are inside the slices, the buffers as long as documented.
#[inline(always)]
pub(crate) unsafe fn attend<V: Vector, const W: usize>(b: &mut SpanRows<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        by_rows!(b, R => rows::<V, R, W>(b));
    }
}

#[inline(always)]
unsafe fn rows<V: Vector, const R: usize, const W: usize>(b: &mut SpanRows<'_>) {
    empty_state(R, b.state);
    let Some((from, to)) = seen(b.visible) else { return };
    // SAFETY: the caller's promise; every key in `from..to` is in a piece.
    unsafe {
        match b.kv.k {
            KvSlice::F32(k) => score_all::<V, f32, R, W>(k.as_ptr(), b, from, to),
            KvSlice::F16(k) => score_all::<V, f16, R, W>(k.as_ptr(), b, from, to),
            KvSlice::I16 { .. } | KvSlice::I8 { .. } => unreachable!("other keys are widened before"),
        }
        for r in 0..R {
            let (low, high) = b.visible[r];
            if low < high {
                (b.state[r], b.state[R + r]) =
                    soften::<V>(&mut b.scores[r * STRIDE..(r + 1) * STRIDE], (low, high), b.softcap);
            }
        }
        match b.kv.v {
            KvSlice::F32(v) => weigh_all::<V, f32, R, W>(v.as_ptr(), b),
            KvSlice::F16(v) => weigh_all::<V, f16, R, W>(v.as_ptr(), b),
            KvSlice::I16 { .. } | KvSlice::I8 { .. } => unreachable!("other values are widened before"),
        }
    }
}

/// Scores of all rows for the keys `from..to`, and for some around them.
#[inline(always)]
unsafe fn score_all<V: Vector, T: Element, const R: usize, const W: usize>(
    k: *const T,
    b: &mut SpanRows<'_>,
    from: usize,
    to: usize,
) {
    let per = PIECE / V::LEN;
    let pieces = b.kv.pieces;
    let skipped = pieces.iter().take_while(|p| p.first + p.len <= from).count();
    let used = pieces.iter().take_while(|p| p.first < to).count();
    let (mut at, end) = (skipped * per, used * per);
    // SAFETY: the registers at..end are those of pieces.
    unsafe {
        while at + W <= end {
            score::<V, T, R, W>(k, b, at);
            at += W;
        }
        while at < end {
            score::<V, T, R, 1>(k, b, at);
            at += 1;
        }
    }
}

/// Scores of all rows for the `W` registers of keys from register `first` on.
#[inline(always)]
unsafe fn score<V: Vector, T: Element, const R: usize, const W: usize>(
    k: *const T,
    b: &mut SpanRows<'_>,
    first: usize,
) {
    let per = PIECE / V::LEN;
    let mut keys = [k; W];
    let mut to = [0; W];
    for w in 0..W {
        let (piece, part) = (b.kv.pieces[(first + w) / per], (first + w) % per * V::LEN);
        keys[w] = k.wrapping_add(piece.k + part);
        to[w] = piece.first + part;
    }
    let stride = b.kv.k_stride;
    let mut ahead = keys;
    for w in 0..W {
        if let Some(piece) = b.kv.ahead.get((first + w) / per) {
            ahead[w] = k.wrapping_add(piece.k + (first + w) % per * V::LEN);
        }
    }
    // SAFETY: a piece has `PIECE` readable values for each dimension; a row of scores has room for a piece at any key of the span.
    unsafe {
        let mut sums = [[V::splat(0.0); W]; R];
        for q in b.q.chunks_exact(R) {
            let mut x = [V::splat(0.0); W];
            for w in 0..W {
                x[w] = T::load::<V>(keys[w]);
                keys[w] = keys[w].wrapping_add(stride);
            }
            if !b.kv.ahead.is_empty() {
                for w in 0..W {
                    V::prefetch(ahead[w]);
                    ahead[w] = ahead[w].wrapping_add(stride);
                }
            }
            for r in 0..R {
                let q = V::splat(q[r]);
                for w in 0..W {
                    sums[r][w] = V::madd(q, x[w], sums[r][w]);
                }
            }
        }
        let scores = b.scores.as_mut_ptr();
        for r in 0..R {
            // In the order of keys: what a short piece writes behind its keys is overwritten by the next.
            for w in 0..W {
                V::store(scores.add(r * STRIDE + to[w]), sums[r][w]);
            }
        }
    }
}

/// Caps the scores that a row sees, and makes those of `from..to` that it does not see minus infinity: their weight is exactly 0, so that the
/// row's sum does not depend on where its vectors begin and end.
#[inline(always)]
pub(crate) fn blind(scores: &mut [f32], (low, high): Visible, from: usize, to: usize, softcap: Option<f32>) {
    let (low, high) = if low < high { (low, high) } else { (to, to) };
    if let Some(cap) = softcap {
        scores[low..high].iter_mut().for_each(|s| *s = cap * math::tanh(*s / cap));
    }
    scores[from..low].fill(f32::NEG_INFINITY);
    scores[high..to].fill(f32::NEG_INFINITY);
}

/// Turns the scores of the keys `low..high` of one row into weights, e^(score - maximum), and returns the maximum and the weights' sum.
///
/// # Safety
/// The processor has the instruction set of `V`; `scores` has [`STRIDE`] floats, and `low < high <= SPAN`.
#[inline(always)]
unsafe fn soften<V: Vector>(scores: &mut [f32], (low, high): Visible, softcap: Option<f32>) -> (f32, f32) {
    let (from, to) = (low / PIECE * PIECE, high.next_multiple_of(PIECE));
    blind(scores, (low, high), from, to, softcap);
    let s = scores.as_mut_ptr();
    // SAFETY: from..to is inside the row.
    unsafe {
        let mut max = V::splat(f32::MIN);
        for at in (from..to).step_by(V::LEN) {
            max = V::max(max, V::load(s.add(at)));
        }
        // A NaN score may or may not end up here: either way its weight is NaN, and so is the row's result.
        let max = V::largest(max);
        let (minus_max, mut sum) = (V::splat(-max), V::splat(0.0));
        for at in (from..to).step_by(V::LEN) {
            let weight = V::exp(V::add(V::load(s.add(at)), minus_max));
            sum = V::add(sum, weight);
            V::store(s.add(at), weight);
        }
        (max, V::total(sum))
    }
}

/// Adds up the weighted values of every row's own keys, in their order: a key that a row does not see is not even multiplied by 0, which
/// would let an infinite value through.
#[inline(always)]
unsafe fn weigh_all<V: Vector, T: Element, const R: usize, const W: usize>(v: *const T, b: &mut SpanRows<'_>) {
    let low = b.visible.iter().map(|v| v.0).fold(0, usize::max);
    let high = b.visible.iter().map(|v| v.1).fold(SPAN, usize::min);
    // Keys that all rows see are weighed for all rows at once, those before and behind row by row.
    let (low, high) = if low < high { (low, high) } else { (SPAN, SPAN) };
    for (start, end, together) in [(0, low, false), (low, high, true), (high, SPAN, false)] {
        // SAFETY: the caller's promise.
        unsafe {
            if together {
                weigh_columns::<V, T, R, W>(v, b, 0, start, end);
                continue;
            }
            for r in 0..R {
                let (from, to) = b.visible[r];
                weigh_columns::<V, T, 1, W>(v, b, r, from.max(start), to.min(end));
            }
        }
    }
}

/// Adds the weighted values of the keys `from..to` to `N` rows, first to last.
#[inline(always)]
unsafe fn weigh_columns<V: Vector, T: Element, const N: usize, const W: usize>(
    v: *const T,
    b: &mut SpanRows<'_>,
    row: usize,
    from: usize,
    to: usize,
) {
    if from >= to {
        return;
    }
    let rows = b.visible.len();
    let width = b.state.len() / rows - 2;
    let mut column = 0;
    // SAFETY: columns are inside a row of values, which is `width` wide or wider.
    unsafe {
        while column + W * V::LEN <= width {
            weigh::<V, T, N, W>(v, b, row, column, from, to);
            column += W * V::LEN;
        }
        while column < width {
            weigh::<V, T, N, 1>(v, b, row, column, from, to);
            column += V::LEN;
        }
    }
}

#[inline(always)]
unsafe fn weigh<V: Vector, T: Element, const N: usize, const W: usize>(
    v: *const T,
    b: &mut SpanRows<'_>,
    row: usize,
    column: usize,
    from: usize,
    to: usize,
) {
    let rows = b.visible.len();
    let width = b.state.len() / rows - 2;
    let stride = b.kv.v_stride;
    let weights = b.scores[row * STRIDE..].as_ptr();
    let out = b.state[2 * rows + row * width + column..].as_mut_ptr();
    // SAFETY: the keys from..to have weights and are in pieces, `column` and the W registers behind it are inside a row.
    unsafe {
        let mut sums = [[V::splat(0.0); W]; N];
        for r in 0..N {
            for w in 0..W {
                sums[r][w] = V::load(out.add(r * width + w * V::LEN));
            }
        }
        for (index, piece) in b.kv.pieces.iter().enumerate() {
            let ahead = b.kv.ahead.get(index).map_or(0, |ahead| ahead.v.wrapping_sub(piece.v));
            let (first, end) = (from.max(piece.first), to.min(piece.first + piece.len));
            let mut values = v.wrapping_add(piece.v + first.saturating_sub(piece.first) * stride + column);
            for key in first..end {
                let mut x = [V::splat(0.0); W];
                for w in 0..W {
                    x[w] = T::load::<V>(values.add(w * V::LEN));
                }
                if ahead != 0 {
                    for w in 0..W {
                        V::prefetch(values.wrapping_add(ahead.wrapping_add(w * V::LEN)));
                    }
                }
                values = values.wrapping_add(stride);
                for r in 0..N {
                    let p = V::splat(*weights.add(r * STRIDE + key));
                    for w in 0..W {
                        sums[r][w] = V::madd(p, x[w], sums[r][w]);
                    }
                }
            }
        }
        for r in 0..N {
            for w in 0..W {
                V::store(out.add(r * width + w * V::LEN), sums[r][w]);
            }
        }
    }
}

/// Adds the state of a span to that of all spans before it; `visible` as for [`SpanRows`], rows that saw nothing stay as they are.
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn fold<V: Vector>(total: &mut [f32], part: &[f32], visible: &[Visible]) {
    const LANES: usize = ROWS_MAX.next_multiple_of(PIECE);
    let rows = visible.len();
    let width = total.len() / rows - 2;
    assert!(rows <= ROWS_MAX && part.len() == total.len(), "attention: states of different shapes: this is a bug");
    let mut max = [0.0; ROWS_MAX];
    let (mut old, mut new) = ([0.0; LANES], [0.0; LANES]);
    for r in 0..rows {
        // Comparisons with NaN: see `soften`.
        max[r] = if part[r] > total[r] { part[r] } else { total[r] };
        (old[r], new[r]) = (total[r] - max[r], part[r] - max[r]);
    }
    for factors in [&mut old, &mut new] {
        for at in (0..rows).step_by(V::LEN) {
            // SAFETY: a register's floats from there on are among the lanes.
            unsafe { V::store(factors[at..].as_mut_ptr(), V::exp(V::load(factors[at..].as_ptr()))) }
        }
    }
    for r in (0..rows).filter(|&r| visible[r].0 < visible[r].1) {
        total[r] = max[r];
        total[rows + r] = total[rows + r] * old[r] + part[rows + r] * new[r];
        let at = 2 * rows + r * width;
        let (to, from) = (&mut total[at..at + width], &part[at..at + width]);
        // SAFETY: the width is a multiple of `PIECE`.
        unsafe {
            let (old, new) = (V::splat(old[r]), V::splat(new[r]));
            for i in (0..width).step_by(V::LEN) {
                let to = to.as_mut_ptr().add(i);
                V::store(to, V::madd(V::load(to), old, V::mul(V::load(from.as_ptr().add(i)), new)));
            }
        }
    }
}

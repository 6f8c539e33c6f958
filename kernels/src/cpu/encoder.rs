//! What encoders (BERT and its kin) need beside products: layer normalisation, activations that nothing gates, and attention in which
//! every token of a sequence sees every other.
//!
//! Biases are added here, by whoever reads a product's rows next: they never take a pass of their own. A row's result depends on the row
//! (and, in attention, on its sequence) only.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays at once

use super::Cpu;
use super::elementwise::PIECE;
use super::math;
use super::shared::SharedSlice;
use std::sync::{Mutex, PoisonError};

/// Values that are summed side by side: the order of a sum is the same in all instruction sets.
const WIDTH: usize = 16;
/// Query rows that share the keys they load.
const ROWS: usize = 4;

/// An activation of single values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pointwise {
    /// GELU by the error function.
    Gelu,
    /// GELU in its tanh form.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x * sigmoid(x).
    Silu,
    /// tanh(x).
    Tanh,
}

/// The kernels of one instruction set.
pub struct EncoderKernels {
    /// Normalises a row in place: `x`, `weight`, `shift`, `eps`.
    pub layer_norm: unsafe fn(&mut [f32], &[f32], &[f32], f32),
    /// Adds the bias to each row of its length, and applies the activation: `bias`, `x`.
    pub activate: unsafe fn(Pointwise, &[f32], &mut [f32]),
    /// One head of one sequence.
    pub attend: unsafe fn(&mut FullHead<'_>),
}

/// `x = norm(x + bias + residual) * weight + shift`, row by row, where a norm has mean 0 and variance 1 (Ba and others 2016).
///
/// # Panics
/// If the lengths do not fit together.
pub fn add_layer_norm(
    cpu: &Cpu,
    x: &mut [f32],
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    weight: &[f32],
    shift: &[f32],
    eps: f32,
) {
    let d = weight.len();
    assert!(
        d > 0 && x.len().is_multiple_of(d) && shift.len() == d && bias.is_none_or(|bias| bias.len() == d),
        "add_layer_norm: rows of {d} values do not fit {} values, a shift of {} and bias {:?}",
        x.len(),
        shift.len(),
        bias.map(<[f32]>::len)
    );
    assert!(
        residual.is_none_or(|residual| residual.len() == x.len()),
        "add_layer_norm: the residual is not as long as x, which has {} values",
        x.len()
    );
    let table = cpu.isa.table();
    let rows = x.len() / d;
    let x = SharedSlice::new(x);
    cpu.for_pieces(rows, PIECE / d, |start, end| {
        for r in start..end {
            // SAFETY: rows are disjoint and each belongs to one piece; the table is this processor's.
            unsafe {
                let row = x.slice(r * d, d);
                if let Some(bias) = bias {
                    (table.add)(row, bias);
                }
                if let Some(residual) = residual {
                    (table.add)(row, &residual[r * d..(r + 1) * d]);
                }
                (table.encoder.layer_norm)(row, weight, shift, eps);
            }
        }
    });
}

/// `x = act(x + bias)` for each row of `bias.len()` values.
///
/// # Panics
/// If `x` is no whole number of rows.
pub fn bias_activation(cpu: &Cpu, act: Pointwise, bias: &[f32], x: &mut [f32]) {
    let d = bias.len();
    assert!(
        d > 0 && x.len().is_multiple_of(d),
        "bias_activation: {} values are no whole number of rows of {d}",
        x.len()
    );
    let table = cpu.isa.table();
    let rows = x.len() / d;
    let x = SharedSlice::new(x);
    cpu.for_pieces(rows, (PIECE / 2).div_ceil(d), |start, end| {
        // SAFETY: pieces are disjoint; the table is this processor's.
        unsafe { (table.encoder.activate)(act, bias, x.slice(start * d, (end - start) * d)) }
    });
}

/// The inputs of [`full_attention`].
#[derive(Clone, Copy, Debug)]
pub struct FullAttentionArgs<'a> {
    /// Queries, keys and values before their biases, `[tokens, heads * head_dim]` each; sequence after sequence.
    pub qkv: [&'a [f32]; 3],
    /// Their biases.
    pub bias: [&'a [f32]; 3],
    /// Heads.
    pub heads: usize,
    /// Values in a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Tokens of each sequence.
    pub lengths: &'a [usize],
}

/// Buffers of [`full_attention`] that stay between calls.
#[derive(Debug, Default)]
pub struct FullAttentionScratch {
    lanes: Vec<Mutex<Lane>>,
}

/// What one thread needs: one head of one sequence.
#[derive(Debug, Default)]
struct Lane {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
}

/// One head of one sequence of `keys` tokens, as the kernels take it.
pub struct FullHead<'a> {
    /// Queries times the scale, in tiles of [`ROWS`] rows: `[dim, ROWS]` each.
    q: &'a [f32],
    /// Keys, `[dim, keys rounded up]`.
    k: &'a [f32],
    /// Values, `[keys, dim rounded up]`.
    v: &'a [f32],
    keys: usize,
    dim: usize,
    /// Room for `[ROWS, keys rounded up]`.
    scores: &'a mut [f32],
    /// `[tiles * ROWS, dim rounded up]`.
    out: &'a mut [f32],
}

/// Softmax attention within each sequence, without a mask. `out` is `[tokens, heads * head_dim]`.
///
/// # Panics
/// If the lengths do not fit together.
pub fn full_attention(cpu: &Cpu, args: &FullAttentionArgs<'_>, out: &mut [f32], scratch: &mut FullAttentionScratch) {
    let width = args.heads * args.head_dim;
    let tokens: usize = args.lengths.iter().sum();
    assert!(
        width > 0 && args.bias.iter().all(|bias| bias.len() == width),
        "full_attention: {} heads of {} values do not fit the biases",
        args.heads,
        args.head_dim
    );
    assert!(
        args.qkv.iter().all(|x| x.len() == tokens * width) && out.len() == tokens * width,
        "full_attention: q, k, v and out do not have {tokens} rows of {width} values"
    );
    let starts: Vec<usize> = args.lengths.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect();
    let table = cpu.isa.table();
    let tasks = starts.len() * args.heads;
    let lanes = &mut scratch.lanes;
    if lanes.len() < cpu.pool.threads() {
        lanes.resize_with(cpu.pool.threads(), Mutex::default);
    }
    let out = SharedSlice::new(out);
    cpu.pool.for_each(tasks, |lane, task| {
        let mut lane = lanes[lane].lock().unwrap_or_else(PoisonError::into_inner);
        let (seq, head) = (task / args.heads, task % args.heads);
        let (start, keys) = (starts[seq], args.lengths[seq]);
        let mut work = lane.fill(args, start, keys, head);
        // SAFETY: the table is this processor's.
        unsafe { (table.encoder.attend)(&mut work) }
        let padded = args.head_dim.next_multiple_of(WIDTH);
        for (r, row) in work.out.chunks_exact(padded).take(keys).enumerate() {
            let at = (start + r) * width + head * args.head_dim;
            // SAFETY: a head of a row belongs to one task.
            unsafe { out.slice(at, args.head_dim) }.copy_from_slice(&row[..args.head_dim]);
        }
    });
}

impl Lane {
    /// Copies one head of the sequence whose rows begin at `start`, with biases, into the order that the kernels read.
    fn fill(&mut self, args: &FullAttentionArgs<'_>, start: usize, keys: usize, head: usize) -> FullHead<'_> {
        let dim = args.head_dim;
        let (columns, width, tiles) = (keys.next_multiple_of(WIDTH), dim.next_multiple_of(WIDTH), keys.div_ceil(ROWS));
        self.q.clear();
        self.q.resize(tiles * ROWS * dim, 0.0);
        self.k.clear();
        self.k.resize(columns * dim, 0.0);
        self.v.clear();
        self.v.resize(keys * width, 0.0);
        self.scores.resize(self.scores.len().max(ROWS * columns), 0.0);
        self.out.resize(self.out.len().max(tiles * ROWS * width), 0.0);
        let all = args.heads * dim;
        for r in 0..keys {
            let at = (start + r) * all + head * dim;
            let [q, k, v] = args.qkv.map(|x| &x[at..at + dim]);
            let [q_bias, k_bias, v_bias] = args.bias.map(|bias| &bias[head * dim..(head + 1) * dim]);
            let tile = &mut self.q[r / ROWS * ROWS * dim..][..ROWS * dim];
            for ((to, q), bias) in tile.chunks_exact_mut(ROWS).zip(q).zip(q_bias) {
                to[r % ROWS] = (q + bias) * args.scale;
            }
            for ((to, k), bias) in self.k.chunks_exact_mut(columns).zip(k).zip(k_bias) {
                to[r] = k + bias;
            }
            for ((to, v), bias) in self.v[r * width..].iter_mut().zip(v).zip(v_bias) {
                *to = v + bias;
            }
        }
        FullHead {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            keys,
            dim,
            scores: &mut self.scores[..ROWS * columns],
            out: &mut self.out[..tiles * ROWS * width],
        }
    }
}

/// `a * b + c`, in one rounding where the instruction set has it.
#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Inlined into each instruction set.
#[inline(always)]
pub(crate) fn attend_head<const FUSED: bool>(head: &mut FullHead<'_>) {
    let FullHead { q, k, v, keys, dim, .. } = *head;
    let (columns, width) = (keys.next_multiple_of(WIDTH), dim.next_multiple_of(WIDTH));
    for (q, out) in q.chunks_exact(ROWS * dim).zip(head.out.chunks_exact_mut(ROWS * width)) {
        score::<FUSED>(q, k, columns, head.scores);
        let mut inverse = [0.0; ROWS];
        for (row, inverse) in head.scores.chunks_exact_mut(columns).zip(&mut inverse) {
            *inverse = 1.0 / exponentials(row, keys);
        }
        weigh::<FUSED>(head.scores, columns, v, width, keys, inverse, out);
    }
}

/// The scores of a tile of queries with all keys.
#[inline(always)]
fn score<const FUSED: bool>(q: &[f32], k: &[f32], columns: usize, scores: &mut [f32]) {
    for at in (0..columns).step_by(WIDTH) {
        let mut sums = [[0.0f32; WIDTH]; ROWS];
        for (q, k) in q.as_chunks::<ROWS>().0.iter().zip(k.chunks_exact(columns)) {
            let k = &k[at..at + WIDTH];
            for r in 0..ROWS {
                for l in 0..WIDTH {
                    sums[r][l] = multiply_add::<FUSED>(q[r], k[l], sums[r][l]);
                }
            }
        }
        for r in 0..ROWS {
            scores[r * columns + at..][..WIDTH].copy_from_slice(&sums[r]);
        }
    }
}

/// Turns the scores of a row into e^(score - highest) and returns their sum; what is behind the last key becomes 0.
#[inline(always)]
fn exponentials(row: &mut [f32], keys: usize) -> f32 {
    row[keys..].fill(f32::NEG_INFINITY);
    let chunks = row.as_chunks_mut::<WIDTH>().0;
    let mut highest = [f32::NEG_INFINITY; WIDTH];
    for chunk in chunks.iter() {
        for l in 0..WIDTH {
            highest[l] = if chunk[l] > highest[l] { chunk[l] } else { highest[l] };
        }
    }
    let highest = highest.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    let mut sums = [0.0f32; WIDTH];
    for chunk in chunks {
        for l in 0..WIDTH {
            chunk[l] = math::exp(chunk[l] - highest);
            sums[l] += chunk[l];
        }
    }
    total(&mut sums)
}

/// The weighted sums of the values.
#[inline(always)]
fn weigh<const FUSED: bool>(
    weights: &[f32],
    columns: usize,
    v: &[f32],
    width: usize,
    keys: usize,
    inverse: [f32; ROWS],
    out: &mut [f32],
) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|r| &weights[r * columns..r * columns + keys]);
    let [a, b, c, d] = rows;
    for at in (0..width).step_by(WIDTH) {
        let mut sums = [[0.0f32; WIDTH]; ROWS];
        for ((((v, &a), &b), &c), &d) in v.chunks_exact(width).zip(a).zip(b).zip(c).zip(d) {
            let (v, p) = (&v[at..at + WIDTH], [a, b, c, d]);
            for r in 0..ROWS {
                for l in 0..WIDTH {
                    sums[r][l] = multiply_add::<FUSED>(p[r], v[l], sums[r][l]);
                }
            }
        }
        for r in 0..ROWS {
            for (y, sum) in out[r * width + at..][..WIDTH].iter_mut().zip(sums[r]) {
                *y = sum * inverse[r];
            }
        }
    }
}

/// The sum of the lanes, in halves.
#[inline(always)]
fn total(lanes: &mut [f32; WIDTH]) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// The sum of `f` of each value, in [`WIDTH`] lanes.
#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; WIDTH];
    let (chunks, rest) = x.as_chunks::<WIDTH>();
    for chunk in chunks {
        for l in 0..WIDTH {
            lanes[l] += f(chunk[l]);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane += f(v);
    }
    total(&mut lanes)
}

/// Inlined into each instruction set.
#[inline(always)]
pub(crate) fn layer_norm_row(x: &mut [f32], weight: &[f32], shift: &[f32], eps: f32) {
    let count = x.len() as f32;
    let mean = sum_of(x, |v| v) / count;
    let variance = sum_of(x, |v| (v - mean) * (v - mean)) / count;
    let factor = 1.0 / (variance + eps).sqrt();
    for ((y, &w), &s) in x.iter_mut().zip(weight).zip(shift) {
        *y = (*y - mean) * factor * w + s;
    }
}

/// Inlined into each instruction set.
#[inline(always)]
pub(crate) fn activate_rows(act: Pointwise, bias: &[f32], x: &mut [f32]) {
    match act {
        Pointwise::Gelu => each(bias, x, math::gelu),
        Pointwise::GeluTanh => each(bias, x, math::gelu_tanh),
        Pointwise::Relu => each(bias, x, |v| if v < 0.0 { 0.0 } else { v }),
        Pointwise::Silu => each(bias, x, math::silu),
        Pointwise::Tanh => each(bias, x, math::tanh),
    }
}

#[inline(always)]
fn each(bias: &[f32], x: &mut [f32], f: impl Fn(f32) -> f32) {
    for row in x.chunks_exact_mut(bias.len()) {
        for (y, b) in row.iter_mut().zip(bias) {
            *y = f(*y + b);
        }
    }
}

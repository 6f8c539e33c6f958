//! Normalisation and gated activations.

use super::Cpu;
use super::math;
use super::shared::SharedSlice;

/// Values a task should have at least: a parallel region costs a few microseconds when threads are parked.
pub(crate) const PIECE: usize = 4 * 1024;

/// The activation of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
}

/// RMS normalisation of each row of `weight.len()` values: `out = x / sqrt(mean(x^2) + eps) * weight`.
///
/// # Panics
/// If `x` is no whole number of rows, or `out` is not as long as `x`.
pub fn rms_norm(cpu: &Cpu, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let d = weight.len();
    let rows = rows("rms_norm", x.len(), d);
    assert!(out.len() == x.len(), "rms_norm: out has {} values, x has {}", out.len(), x.len());
    let table = cpu.isa.table();
    let out = SharedSlice::new(out);
    cpu.for_pieces(rows, PIECE / d.max(1), move |start, end| {
        for r in start..end {
            // SAFETY: rows are disjoint and each belongs to one piece; the table is this processor's.
            unsafe { (table.rms_norm)(&x[r * d..(r + 1) * d], weight, eps, out.slice(r * d, d)) }
        }
    });
}

/// `residual += x`, then the RMS normalisation of `residual` to `out`.
///
/// # Panics
/// If the lengths do not fit together, as in [`rms_norm`].
pub fn add_rms_norm(cpu: &Cpu, residual: &mut [f32], x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let d = weight.len();
    let rows = rows("add_rms_norm", x.len(), d);
    assert!(
        out.len() == x.len() && residual.len() == x.len(),
        "add_rms_norm: residual, x and out have {}, {} and {} values",
        residual.len(),
        x.len(),
        out.len()
    );
    let table = cpu.isa.table();
    let (residual, out) = (SharedSlice::new(residual), SharedSlice::new(out));
    cpu.for_pieces(rows, PIECE / d.max(1), move |start, end| {
        for r in start..end {
            // SAFETY: rows are disjoint and each belongs to one piece; the table is this processor's.
            unsafe {
                let row = residual.slice(r * d, d);
                (table.add)(row, &x[r * d..(r + 1) * d]);
                (table.rms_norm)(row, weight, eps, out.slice(r * d, d));
            }
        }
    });
}

/// `out = act(gate) * up`, value by value.
///
/// # Panics
/// If the three have different lengths.
pub fn gated_activation(cpu: &Cpu, act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(
        gate.len() == up.len() && gate.len() == out.len(),
        "gated_activation: gate, up and out have {}, {} and {} values",
        gate.len(),
        up.len(),
        out.len()
    );
    let table = cpu.isa.table();
    let len = out.len();
    let out = SharedSlice::new(out);
    // In whole vectors.
    const WIDTH: usize = 64;
    cpu.for_pieces(len.div_ceil(WIDTH), PIECE / 2 / WIDTH, move |start, end| {
        let (start, end) = (start * WIDTH, len.min(end * WIDTH));
        // SAFETY: pieces are disjoint; the table is this processor's.
        unsafe { (table.gated)(act, &gate[start..end], &up[start..end], out.slice(start, end - start)) }
    });
}

fn rows(what: &str, len: usize, d: usize) -> usize {
    assert!(d > 0 && len.is_multiple_of(d), "{what}: {len} values are no whole number of rows of {d}");
    len / d
}

/// Mean of the squares, summed in 16 interleaved lanes: the order is fixed by the row's length. Inlined into each instruction set.
#[inline(always)]
pub(crate) fn mean_square(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = x.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += v * v;
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane += v * v;
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0] / x.len() as f32
}

/// Inlined into each instruction set.
#[inline(always)]
pub(crate) fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let factor = 1.0 / (mean_square(x) + eps).sqrt();
    for ((y, &v), &w) in out.iter_mut().zip(x).zip(weight) {
        *y = v * factor * w;
    }
}

#[inline(always)]
pub(crate) fn add_row(to: &mut [f32], x: &[f32]) {
    for (y, &v) in to.iter_mut().zip(x) {
        *y += v;
    }
}

#[inline(always)]
pub(crate) fn gated_row(act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match act {
        Activation::Silu => {
            for ((y, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *y = math::silu(g) * u;
            }
        }
        Activation::GeluTanh => {
            for ((y, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *y = math::gelu_tanh(g) * u;
            }
        }
    }
}

#[inline(always)]
pub(crate) fn sin_cos_row(angles: &[f32], cos: &mut [f32], sin: &mut [f32]) {
    for ((&a, c), s) in angles.iter().zip(cos).zip(sin) {
        (*s, *c) = math::sin_cos(a);
    }
}

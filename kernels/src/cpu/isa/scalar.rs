//! The kernels in plain Rust: for processors without a table of their own, and the reference for the others.
//!
//! Sums are kept in 8 lanes as a 256-bit register would hold them, so that compilers vectorise them and that the integer parts are
//! exactly those of AVX2; only fused multiply-adds make the two differ.

mod attend;
mod floats;
mod packed;

use crate::cpu::dispatch::{FloatKernels, KernelTable, PackedKernels, TILE_ROWS, WeightRows};
use crate::cpu::elementwise::{add_row, gated_row, rms_norm_row, sin_cos_row};
use crate::cpu::encoder::{EncoderKernels, activate_rows, attend_head, layer_norm_row};
use crate::cpu::kv::{round_key, round_value, widen_keys, widen_values};
use crate::cpu::math::ROUND;
use crate::cpu::panel::{ACT_MAX, ActPanel, GROUP, GROUPS, PANEL, SMALLEST_AMAX, WeightPanel, unpack_panel};
use crate::cpu::quant::{Mins, QuantType, dequantize};
use crate::cpu::refine::peaks_of_rows;
use crate::cpu::rope::rotate_head;

/// 32-bit lanes of the sums.
pub const LANES: usize = 8;

/// The scalar table. Its functions are `unsafe` by type only: they run on any processor.
pub const TABLE: KernelTable = KernelTable {
    quantize,
    dot_blocks,
    unpack,
    dot_panels,
    // SAFETY (of the closures' bodies): they need no processor feature.
    attend: attend::attend,
    fold: attend::fold,
    attends_halves: false,
    shorts: None,
    quads: None,
    widen_keys: |from, len, out| widen_keys(from, len, out),
    widen_values: |from, head_dim, width, out| widen_values(from, head_dim, width, out),
    round_key: |key, pairs, stride| round_key(key, pairs, stride),
    round_value: |value, high, pairs| round_value(value, high, pairs),
    rms_norm: |x, w, eps, out| rms_norm_row(x, w, eps, out),
    add: |to, x| add_row(to, x),
    gated: |act, gate, up, out| gated_row(act, gate, up, out),
    sin_cos: |angles, cos, sin| sin_cos_row(angles, cos, sin),
    rotate: |head, cos, sin| rotate_head(head, cos, sin),
    encoder: EncoderKernels {
        layer_norm: |x, weight, shift, eps| layer_norm_row(x, weight, shift, eps),
        activate: |act, bias, x| activate_rows(act, bias, x),
        attend: |head| attend_head::<false>(head),
    },
    packed: PACKED,
    floats: FloatKernels {
        dot: floats::dot,
        widen: |halves, out| dequantize(QuantType::F16, halves, out),
        pairs: None,
    },
};

pub const PACKED: PackedKernels = PackedKernels {
    root_mean_squares: packed::root_mean_squares,
    quantize: packed::quantize,
    dot: packed::dot,
    peaks: peaks_of_rows,
};

fn quantize(x: &[f32], out: &mut [ActPanel]) {
    for (x, panel) in x.chunks(PANEL).zip(out) {
        if x.len() < PANEL {
            *panel = ActPanel::default();
        }
        for (g, x) in x.chunks(GROUP).enumerate() {
            // Among non-negative floats the order is that of their bits, with NaN above infinity: nothing not finite slips through.
            let amax = f32::from_bits(x.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff)));
            let q = &mut panel.q[g * GROUP..(g + 1) * GROUP];
            q.fill(0);
            let scale = if amax.is_finite() { amax / ACT_MAX } else { f32::NAN };
            let scale = if amax < SMALLEST_AMAX { 0.0 } else { scale };
            if scale > 0.0 {
                let inverse = ACT_MAX / amax;
                for (q, &v) in q.iter_mut().zip(x) {
                    *q = (v * inverse + ROUND - ROUND) as i16;
                }
            }
            let (first, second) = q.split_at(GROUP / 2);
            let (a, b): (i32, i32) =
                (first.iter().map(|&q| i32::from(q)).sum(), second.iter().map(|&q| i32::from(q)).sum());
            panel.scale[g] = scale;
            panel.sum16[2 * g] = scale * a as f32;
            panel.sum16[2 * g + 1] = scale * b as f32;
            panel.sum32[g] = scale * (a + b) as f32;
        }
    }
}

/// Bytes of one panel of a row.
fn panel_bytes(ty: QuantType) -> usize {
    PANEL / ty.block_len() * ty.block_bytes()
}

/// Groups of the panel that begins at value `at` of a row of `cols`.
fn groups_at(cols: usize, at: usize) -> usize {
    (cols - at).min(PANEL) / GROUP
}

fn unpack(w: &WeightRows<'_>, out: &mut [WeightPanel]) {
    let panels = w.cols.div_ceil(PANEL);
    for (row, out) in w.data.chunks_exact(w.row_bytes).zip(out.chunks_exact_mut(panels)) {
        for (p, (bytes, panel)) in row.chunks(panel_bytes(w.ty)).zip(out).enumerate() {
            unpack_panel(w.ty, bytes, groups_at(w.cols, p * PANEL), panel);
        }
    }
}

/// The lanes of one output element.
#[derive(Clone, Copy, Default)]
struct Sums {
    dot: [f32; LANES],
    min: [f32; LANES],
}

impl Sums {
    fn add(&mut self, mins: Mins, w: &WeightPanel, a: &ActPanel, groups: usize) {
        for g in 0..groups {
            let (w_q, a_q) = (&w.q[g * GROUP..(g + 1) * GROUP], &a.q[g * GROUP..(g + 1) * GROUP]);
            let factor = w.d[g] * a.scale[g];
            for lane in 0..LANES {
                // At most 4 * 4096 * 32767 in magnitude: no overflow.
                let mut sum = 0i32;
                for i in [2 * lane, 2 * lane + 1, 16 + 2 * lane, 17 + 2 * lane] {
                    sum += i32::from(w_q[i]) * i32::from(a_q[i]);
                }
                self.dot[lane] += sum as f32 * factor;
            }
        }
        for g in 0..GROUPS {
            match mins {
                Mins::None => {}
                Mins::Per32 => self.min[g] += w.min[g] * a.sum32[g],
                Mins::Per16 => {
                    self.min[g] += w.min[g] * a.sum16[g];
                    self.min[g] += w.min[g + GROUPS] * a.sum16[g + GROUPS];
                }
            }
        }
    }

    fn total(&self) -> f32 {
        total(std::array::from_fn(|i| self.dot[i] + self.min[i]))
    }
}

/// Sum of 8 lanes in halves.
fn total(mut lanes: [f32; LANES]) -> f32 {
    for width in [4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

fn dot_blocks(w: &WeightRows<'_>, acts: &[&[ActPanel]], out: &mut [f32]) {
    let mut panel = WeightPanel::default();
    for (row, out) in w.data.chunks_exact(w.row_bytes).zip(out.chunks_exact_mut(acts.len())) {
        let mut sums = [Sums::default(); TILE_ROWS];
        for (p, bytes) in row.chunks(panel_bytes(w.ty)).enumerate() {
            let groups = groups_at(w.cols, p * PANEL);
            unpack_panel(w.ty, bytes, groups, &mut panel);
            for (sums, acts) in sums.iter_mut().zip(acts) {
                sums.add(w.ty.mins(), &panel, &acts[p], groups);
            }
        }
        for (y, sums) in out.iter_mut().zip(&sums) {
            *y = sums.total();
        }
    }
}

fn dot_panels(ty: QuantType, cols: usize, w: &[WeightPanel], acts: &[&[ActPanel]], out: &mut [f32]) {
    let panels = cols.div_ceil(PANEL);
    for (row, out) in w.chunks_exact(panels).zip(out.chunks_exact_mut(acts.len())) {
        for (y, acts) in out.iter_mut().zip(acts) {
            let mut sums = Sums::default();
            for (p, (w, a)) in row.iter().zip(*acts).enumerate() {
                sums.add(ty.mins(), w, a, groups_at(cols, p * PANEL));
            }
            *y = sums.total();
        }
    }
}

/// 8 interleaved sums, then the values of an incomplete eighth one by one.
fn dot_floats(w: &[f32], x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (w_chunks, x_chunks) = (w.chunks_exact(LANES), x.chunks_exact(LANES));
    let rest = w_chunks.remainder().iter().zip(x_chunks.remainder());
    for (w, x) in w_chunks.zip(x_chunks) {
        for lane in 0..LANES {
            lanes[lane] += w[lane] * x[lane];
        }
    }
    rest.fold(total(lanes), |sum, (w, x)| sum + w * x)
}

/// Dot products of rows of floats with 1..=[`TILE_ROWS`] rows of activations of the same length.
pub fn dot_wide(w: &[f32], x: &[&[f32]], out: &mut [f32]) {
    let cols = x[0].len();
    for (row, out) in w.chunks_exact(cols).zip(out.chunks_exact_mut(x.len())) {
        for (y, x) in out.iter_mut().zip(x) {
            *y = dot_floats(row, x);
        }
    }
}

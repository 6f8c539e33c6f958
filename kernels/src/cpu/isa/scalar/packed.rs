//! Packed products in plain Rust: the reference, to the bit, for the other instruction sets.

use crate::cpu::elementwise::mean_square;
use crate::cpu::math::ROUND;
use crate::cpu::packed::{
    ActTile, COARSE_MAX, FINE_MAX, Field, GROUP, GroupSource, LANES, Packing, Strip, WIDEST_TILE, group_bytes, has_min,
    low_bytes, two_scales,
};
use crate::cpu::panel::SMALLEST_AMAX;

/// The root of the mean square of a row, summed in 16 lanes.
pub fn root_mean_square(x: &[f32]) -> f32 {
    mean_square(x).sqrt()
}

/// Quantises groups of a tile.
pub fn quantize(source: &GroupSource<'_>, groups: &mut [u8], low: &mut [u8]) {
    let height = source.height;
    let low = low.chunks_exact_mut(low_bytes(height));
    for (g, (out, low)) in groups.chunks_exact_mut(group_bytes(height)).zip(low).enumerate() {
        out.fill(0);
        let largest = |x: &[f32]| f32::from_bits(largest_bits(x));
        let fine_rows = source.rows(g).zip(source.limits).map(|(x, &limit)| largest(x) > limit);
        let fine = fine_rows.clone().any(|fine| fine);
        out[Field::Fine.at(height)] = u8::from(fine);
        if fine {
            low.fill(0);
        }
        for (r, (x, fine_row)) in source.rows(g).zip(fine_rows).enumerate() {
            let (mut q, mut scale) = quantize_group(x, if fine_row { FINE_MAX } else { COARSE_MAX });
            if fine && !fine_row {
                q = q.map(|q| 256 * q);
                scale /= 256.0;
            }
            for (i, &q) in q.iter().enumerate() {
                let high = if fine { (q + 128) >> 8 } else { q };
                out[r * GROUP + i] = high as u8;
                if fine {
                    low[r * GROUP + i] = (q - 256 * high) as u8;
                }
            }
            let (a, b): (i32, i32) = (q[..GROUP / 2].iter().sum(), q[GROUP / 2..].iter().sum());
            let mut put = |field: Field, bytes: [u8; 4]| {
                out[field.at(height) + 4 * r..][..4].copy_from_slice(&bytes);
            };
            put(Field::Scale, scale.to_le_bytes());
            put(Field::ScaledSum, (scale * (a + b) as f32).to_le_bytes());
            put(Field::Sum, (-8 * (a + b)).to_le_bytes());
            put(Field::FirstHalf, (-8 * a).to_le_bytes());
            put(Field::SecondHalf, (-8 * b).to_le_bytes());
        }
    }
}

/// Among non-negative floats the order is that of their bits, with NaN above infinity: nothing not finite slips through.
fn largest_bits(x: &[f32]) -> u32 {
    x.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff))
}

/// 32 values as integers up to `max` and their scale, which is NaN if one of them is not finite: the row's results are NaN then.
fn quantize_group(x: &[f32], max: f32) -> ([i32; GROUP], f32) {
    let amax = f32::from_bits(largest_bits(x));
    let scale = if amax.is_finite() { amax / max } else { f32::NAN };
    let scale = if amax < SMALLEST_AMAX { 0.0 } else { scale };
    let mut q = [0; GROUP];
    if scale > 0.0 {
        let inverse = max / amax;
        for (q, &v) in q.iter_mut().zip(x) {
            *q = (v * inverse + ROUND - ROUND) as i32;
        }
    }
    (q, scale)
}

/// The products of a strip with a tile: `out[16 * row + lane]`.
pub fn dot(strip: &Strip<'_>, acts: &ActTile<'_>, out: &mut [f32]) {
    let Some(Packing { offset, .. }) = Packing::of(strip.ty) else {
        panic!("a strip of {} is a bug", strip.ty.name());
    };
    let halves = if two_scales(strip.ty) { 2 } else { 1 };
    let width = GROUP / halves;
    for lane in 0..LANES {
        let mut sums = [0.0f32; WIDEST_TILE];
        for g in 0..strip.groups {
            let group = strip.row_group(lane, g);
            for (row, sum) in sums[..acts.height].iter_mut().enumerate() {
                let scale = f32::from_le_bytes(acts.field(g, row, Field::Scale));
                for half in 0..halves {
                    // At most 32 * 255 * 32639 in magnitude, with offset or without: no overflow.
                    let dot: i32 = (half * width..(half + 1) * width)
                        .map(|i| (i32::from(group.q[i]) - i32::from(offset)) * acts.value(g, row, i))
                        .sum();
                    *sum = (dot as f32).mul_add(group.d[half] * scale, *sum);
                }
                if has_min(strip.ty) {
                    let total = f32::from_le_bytes(acts.field(g, row, Field::ScaledSum));
                    *sum = group.min.mul_add(total, *sum);
                }
            }
        }
        for (row, sum) in sums[..acts.height].iter().enumerate() {
            out[LANES * row + lane] = *sum;
        }
    }
}

//! Packed products in plain Rust: the reference, to the bit, for the other instruction sets.

use crate::cpu::math::ROUND;
use crate::cpu::packed::{
    ActTile, Field, GROUP, GroupSource, LANES, Packing, Precision, Strip, WIDEST_TILE, group_bytes, has_min, two_scales,
};
use crate::cpu::panel::SMALLEST_AMAX;

/// Quantises groups of a tile.
pub fn quantize(source: &GroupSource<'_>, out: &mut [u8]) {
    let (parts, height) = (source.precision.parts(), source.height);
    for (g, out) in out.chunks_exact_mut(group_bytes(parts, height)).enumerate() {
        out.fill(0);
        for (r, x) in source.rows(g).enumerate() {
            let (q, scale) = quantize_group(x, source.precision);
            let bytes = &mut out[r * GROUP * parts..(r + 1) * GROUP * parts];
            for (i, &q) in q.iter().enumerate() {
                match source.precision {
                    Precision::Int8 => bytes[i] = q as u8,
                    Precision::Exact => {
                        let high = (q + 128) >> 8;
                        bytes[i] = high as u8;
                        bytes[i + GROUP] = (q - 256 * high) as u8;
                    }
                }
            }
            let (a, b): (i32, i32) = (q[..GROUP / 2].iter().sum(), q[GROUP / 2..].iter().sum());
            let mut put = |field: Field, bytes: [u8; 4]| {
                out[field.at(parts, height) + 4 * r..][..4].copy_from_slice(&bytes);
            };
            put(Field::Scale, scale.to_le_bytes());
            put(Field::ScaledSum, (scale * (a + b) as f32).to_le_bytes());
            put(Field::Sum, (-8 * (a + b)).to_le_bytes());
            put(Field::FirstHalf, (-8 * a).to_le_bytes());
            put(Field::SecondHalf, (-8 * b).to_le_bytes());
        }
    }
}

/// 32 values as integers and their scale, which is NaN if one of them is not finite: the row's results are NaN then.
fn quantize_group(x: &[f32], precision: Precision) -> ([i32; GROUP], f32) {
    // Among non-negative floats the order is that of their bits, with NaN above infinity: nothing not finite slips through.
    let amax = f32::from_bits(x.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff)));
    let scale = if amax.is_finite() { amax / precision.max() } else { f32::NAN };
    let scale = if amax < SMALLEST_AMAX { 0.0 } else { scale };
    let mut q = [0; GROUP];
    if scale > 0.0 {
        let inverse = precision.max() / amax;
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

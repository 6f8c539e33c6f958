//! Quantising activations to tiles: the same arithmetic, to the bit, as the scalar table's.

use crate::cpu::elementwise::mean_square;
use crate::cpu::packed::{
    COARSE_MAX, FINE_MAX, Field, GROUP, GroupSource, WIDEST_TILE, all_fine, group_bytes, low_bytes,
};
use crate::cpu::panel::SMALLEST_AMAX;
use std::arch::x86_64::*;

/// The root of the mean square of a row, summed in 16 lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn root_mean_square(x: &[f32]) -> f32 {
    mean_square(x).sqrt()
}

/// Quantises groups of a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn quantize(source: &GroupSource<'_>, groups: &mut [u8], low: &mut [u8]) {
    let height = source.height;
    let low = low.chunks_exact_mut(low_bytes(height));
    // Rows that the source does not have stay zeros.
    let mut rows = [Row::ZERO; WIDEST_TILE];
    for (g, (out, low)) in groups.chunks_exact_mut(group_bytes(height)).zip(low).enumerate() {
        let mut fine = 0u32;
        for (r, ((row, x), &limit)) in rows.iter_mut().zip(source.rows(g)).zip(source.limits).enumerate() {
            *row = quantize_row(x.first_chunk().expect("a group of fewer values is a bug"), limit);
            fine |= u32::from(row.fine) << r;
        }
        // `dot` multiplies the low bytes of a few rows one by one.
        if 2 * fine.count_ones() as usize > height {
            fine = all_fine(height);
        }
        let (high, fields) = out.split_at_mut(height * GROUP);
        fields[Field::Fine.at(height) - height * GROUP..].copy_from_slice(&fine.to_le_bytes());
        for (r, row) in rows[..height].iter().enumerate() {
            let high: &mut [u8; GROUP] = high[r * GROUP..].first_chunk_mut().expect("a group of fewer bytes is a bug");
            let (mut scale, mut sums) = (row.scale, row.sums);
            if row.fine {
                let low = low[r * GROUP..].first_chunk_mut().expect("a group of fewer bytes is a bug");
                store(row.q.map(|q| _mm512_srai_epi32::<8>(_mm512_add_epi32(q, _mm512_set1_epi32(128)))), high);
                store(row.q, low);
            } else {
                store(row.q, high);
                if fine >> r & 1 == 1 {
                    low[r * GROUP..(r + 1) * GROUP].fill(0);
                    scale /= 256.0;
                    sums = sums.map(|sum| 256 * sum);
                }
            }
            let [a, b] = sums;
            let mut put = |field: Field, bytes: [u8; 4]| {
                fields[field.at(height) - height * GROUP + 4 * r..][..4].copy_from_slice(&bytes);
            };
            put(Field::Scale, scale.to_le_bytes());
            put(Field::ScaledSum, (scale * (a + b) as f32).to_le_bytes());
            put(Field::Sum, (-8 * (a + b)).to_le_bytes());
            put(Field::FirstHalf, (-8 * a).to_le_bytes());
            put(Field::SecondHalf, (-8 * b).to_le_bytes());
        }
    }
}

/// One row's 32 values of a group as integers.
#[derive(Clone, Copy)]
struct Row {
    q: [__m512i; 2],
    scale: f32,
    /// Sums of both halves.
    sums: [i32; 2],
    fine: bool,
}

impl Row {
    // SAFETY: 64 bytes are a vector.
    const ZERO: Row = Row {
        q: unsafe { std::mem::transmute::<[u8; 128], [__m512i; 2]>([0; 128]) },
        scale: 0.0,
        sums: [0; 2],
        fine: false,
    };
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn quantize_row(x: &[f32; GROUP], limit: f32) -> Row {
    // SAFETY: loads of 16 of the 32 values.
    let x = unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))] };
    let magnitude = |x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
    let largest = _mm512_max_epi32(magnitude(x[0]), magnitude(x[1]));
    let amax = f32::from_bits(_mm512_reduce_max_epi32(largest) as u32);
    let fine = amax > limit;
    let max = if fine { FINE_MAX } else { COARSE_MAX };
    let scale = if amax.is_finite() { amax / max } else { f32::NAN };
    let scale = if amax < SMALLEST_AMAX { 0.0 } else { scale };
    if scale > 0.0 {
        let inverse = _mm512_set1_ps(max / amax);
        let q = x.map(|x| _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)));
        Row { q, scale, sums: q.map(|q| _mm512_reduce_add_epi32(q)), fine }
    } else {
        Row { scale, fine, ..Row::ZERO }
    }
}

/// The low bytes of 32 values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn store(q: [__m512i; 2], out: &mut [u8; GROUP]) {
    let bytes = _mm256_set_m128i(_mm512_cvtepi32_epi8(q[1]), _mm512_cvtepi32_epi8(q[0]));
    // SAFETY: 32 bytes.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) }
}

//! Quantising activations to tiles: the same arithmetic, to the bit, as the scalar table's.

use crate::cpu::packed::{Field, GROUP, GroupSource, Precision, group_bytes};
use crate::cpu::panel::SMALLEST_AMAX;
use std::arch::x86_64::*;

/// Quantises groups of a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn quantize(source: &GroupSource<'_>, out: &mut [u8]) {
    match source.precision {
        Precision::Int8 => groups::<1>(source, out),
        Precision::Exact => groups::<2>(source, out),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn groups<const P: usize>(source: &GroupSource<'_>, out: &mut [u8]) {
    let height = source.height;
    let max = source.precision.max();
    for (g, out) in out.chunks_exact_mut(group_bytes(P, height)).enumerate() {
        let mut rows = source.rows(g);
        for r in 0..height {
            let (q, fields) = out.split_at_mut(height * GROUP * P);
            let q = &mut q[r * GROUP * P..(r + 1) * GROUP * P];
            let (scale, [a, b]) = match rows.next() {
                Some(x) => group::<P>(x.first_chunk().expect("a group of fewer values is a bug"), max, q),
                None => {
                    q.fill(0);
                    (0.0, [0, 0])
                }
            };
            let mut put = |field: Field, bytes: [u8; 4]| {
                fields[field.at(0, height) + 4 * r..][..4].copy_from_slice(&bytes);
            };
            put(Field::Scale, scale.to_le_bytes());
            put(Field::ScaledSum, (scale * (a + b) as f32).to_le_bytes());
            put(Field::Sum, (-8 * (a + b)).to_le_bytes());
            put(Field::FirstHalf, (-8 * a).to_le_bytes());
            put(Field::SecondHalf, (-8 * b).to_le_bytes());
        }
    }
}

/// Quantises 32 values: their scale, and the sums of both halves.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn group<const P: usize>(x: &[f32; GROUP], max: f32, q: &mut [u8]) -> (f32, [i32; 2]) {
    // SAFETY: loads of 16 of the 32 values.
    let x = unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))] };
    let magnitude = |x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
    let largest = _mm512_max_epi32(magnitude(x[0]), magnitude(x[1]));
    let amax = f32::from_bits(_mm512_reduce_max_epi32(largest) as u32);
    let scale = if amax.is_finite() { amax / max } else { f32::NAN };
    let scale = if amax < SMALLEST_AMAX { 0.0 } else { scale };
    if scale > 0.0 {
        let inverse = _mm512_set1_ps(max / amax);
        let mut sums = [0; 2];
        for half in 0..2 {
            let values = _mm512_cvtps_epi32(_mm512_mul_ps(x[half], inverse));
            sums[half] = _mm512_reduce_add_epi32(values);
            let mut store = |part: usize, values| {
                let to = &mut q[part * GROUP + 16 * half..][..16];
                // SAFETY: 16 bytes.
                unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(values)) }
            };
            if P == 1 {
                store(0, values);
            } else {
                store(0, _mm512_srai_epi32::<8>(_mm512_add_epi32(values, _mm512_set1_epi32(128))));
                store(1, values);
            }
        }
        (scale, sums)
    } else {
        q.fill(0);
        (scale, [0, 0])
    }
}

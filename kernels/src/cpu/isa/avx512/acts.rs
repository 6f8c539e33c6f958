//! Quantising activations to tiles: the same arithmetic, to the bit, as the scalar table's.

use crate::cpu::elementwise::mean_square;
use crate::cpu::packed::{COARSE_MAX, FINE_MAX, Field, GROUP, GroupSource, all_fine, group_bytes, low_bytes};
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
    let mut scales = Scales::zero();
    for (g, (out, low)) in groups.chunks_exact_mut(group_bytes(height)).zip(low).enumerate() {
        let (high, fields) = out.split_at_mut(height * GROUP);
        let (high_rows, low_rows) = (high.as_chunks_mut::<GROUP>().0, low.as_chunks_mut::<GROUP>().0);
        let (mut fine, mut rows) = (0u32, 0);
        for (x, &limit) in source.rows(g).zip(source.limits) {
            let x = x.first_chunk().expect("a group of fewer values is a bug");
            fine |=
                u32::from(quantize_row(x, limit, rows, &mut scales, &mut high_rows[rows], &mut low_rows[rows])) << rows;
            rows += 1;
        }
        // Rows that the source does not have are zeros; their scales have never been anything else.
        high_rows[rows..].as_flattened_mut().fill(0);
        let mut widened = 0;
        // `dot` multiplies the low bytes of a few rows one by one.
        if 2 * fine.count_ones() as usize > height {
            widened = all_fine(height) & !fine;
            for (_, low) in low_rows.iter_mut().enumerate().filter(|(row, _)| widened >> row & 1 == 1) {
                low.fill(0);
            }
            fine = all_fine(height);
        }
        scales.store(widened as u16, height, fields);
        fields[Field::Fine.at(height) - height * GROUP..].copy_from_slice(&fine.to_le_bytes());
    }
}

/// What a group has beside the bytes, for each row in a lane. In registers: a load of what 16 stores have just written would wait for them.
struct Scales {
    scale: __m512,
    /// Sums of both halves.
    first: __m512i,
    second: __m512i,
}

impl Scales {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn zero() -> Scales {
        Scales { scale: _mm512_setzero_ps(), first: _mm512_setzero_si512(), second: _mm512_setzero_si512() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn set(&mut self, row: usize, scale: f32, [first, second]: [__m512i; 2]) {
        let lane = 1 << row;
        self.scale = _mm512_mask_mov_ps(self.scale, lane, _mm512_set1_ps(scale));
        self.first = _mm512_mask_mov_epi32(self.first, lane, first);
        self.second = _mm512_mask_mov_epi32(self.second, lane, second);
    }

    /// Writes the fields behind the bytes of a group. Rows in `widened` are fine without being so: their values stand for 256 times as much.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn store(&self, widened: u16, height: usize, fields: &mut [u8]) {
        let &Scales { scale, first, second } = self;
        let scale = _mm512_mask_mul_ps(scale, widened, scale, _mm512_set1_ps(1.0 / 256.0));
        let first = _mm512_mask_slli_epi32::<8>(first, widened, first);
        let second = _mm512_mask_slli_epi32::<8>(second, widened, second);
        let sum = _mm512_add_epi32(first, second);
        let times_minus_8 = |v| _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<3>(v));
        let mut put = |field: Field, v| {
            let at = fields[field.at(height) - height * GROUP..][..4 * height].as_mut_ptr();
            // SAFETY: `height` lanes, 4 bytes each.
            unsafe { _mm512_mask_storeu_epi32(at.cast(), ((1u32 << height) - 1) as u16, v) }
        };
        put(Field::Scale, _mm512_castps_si512(scale));
        put(Field::ScaledSum, _mm512_castps_si512(_mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum))));
        put(Field::Sum, times_minus_8(sum));
        put(Field::FirstHalf, times_minus_8(first));
        put(Field::SecondHalf, times_minus_8(second));
    }
}

/// One row's 32 values of a group as integers, and their scale and sums in lane `row`. Whether they are fine.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn quantize_row(
    x: &[f32; GROUP],
    limit: f32,
    row: usize,
    scales: &mut Scales,
    high: &mut [u8; GROUP],
    low: &mut [u8; GROUP],
) -> bool {
    // SAFETY: loads of 16 of the 32 values.
    let x = unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))] };
    let magnitude = |x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
    let largest = _mm512_max_epi32(magnitude(x[0]), magnitude(x[1]));
    let amax = f32::from_bits(_mm512_reduce_max_epi32(largest) as u32);
    let fine = amax > limit;
    let max = if fine { FINE_MAX } else { COARSE_MAX };
    let scale = if amax.is_finite() { amax / max } else { f32::NAN };
    let scale = if amax < SMALLEST_AMAX { 0.0 } else { scale };
    // Zeros, also where a value is no number.
    let (inverse, lanes) = if scale > 0.0 { (max / amax, 0xffff) } else { (0.0, 0) };
    let q = x.map(|x| _mm512_maskz_cvtps_epi32(lanes, _mm512_mul_ps(x, _mm512_set1_ps(inverse))));
    let sums = if fine {
        store(bytes(q.map(|q| _mm512_srai_epi32::<8>(_mm512_add_epi32(q, _mm512_set1_epi32(128))))), high);
        store(bytes(q), low);
        q.map(|q| _mm512_set1_epi32(_mm512_reduce_add_epi32(q)))
    } else {
        store(bytes(q), high);
        sums(bytes(q))
    };
    scales.set(row, scale, sums);
    fine
}

/// The low bytes of 32 values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn bytes(q: [__m512i; 2]) -> __m256i {
    _mm256_set_m128i(_mm512_cvtepi32_epi8(q[1]), _mm512_cvtepi32_epi8(q[0]))
}

/// The sums of both halves of 32 signed bytes, in all lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn sums(bytes: __m256i) -> [__m512i; 2] {
    // Sums of 8 bytes without sign, which 128 more makes them.
    let eights = _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
    let sixteens = _mm256_add_epi32(eights, _mm256_shuffle_epi32::<0b01_00_11_10>(eights));
    let halves = [_mm256_castsi256_si128(sixteens), _mm256_extracti128_si256::<1>(sixteens)];
    halves.map(|half| _mm512_sub_epi32(_mm512_broadcastd_epi32(half), _mm512_set1_epi32(16 * 128)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn store(bytes: __m256i, out: &mut [u8; GROUP]) {
    // SAFETY: 32 bytes.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) }
}

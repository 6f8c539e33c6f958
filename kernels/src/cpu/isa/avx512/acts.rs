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

/// Quantises groups of a tile: what is one number for each row is computed for all rows at once, a row in a lane.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn quantize(source: &GroupSource<'_>, groups: &mut [u8], low: &mut [u8]) {
    let height = source.height;
    let rows = source.limits.len();
    assert!(rows <= height && height <= WIDEST_TILE, "a tile of {height} rows with {rows} limits is a bug");
    // SAFETY: as many floats as there are lanes in the mask.
    let limits = unsafe { _mm512_maskz_loadu_ps(all_fine(rows) as u16, source.limits.as_ptr()) };
    let low = low.chunks_exact_mut(low_bytes(height));
    for (g, (out, low)) in groups.chunks_exact_mut(group_bytes(height)).zip(low).enumerate() {
        let (high, fields) = out.split_at_mut(height * GROUP);
        let (high_rows, low_rows) = (high.as_chunks_mut::<GROUP>().0, low.as_chunks_mut::<GROUP>().0);
        let scales = Scales::of(largest(source, g), limits);
        let mut fine = u32::from(scales.fine);
        let mut sums = if fine == all_fine(rows) { Sums::zero() } else { coarse(source, g, &scales, high_rows) };
        let mut rest = fine;
        while rest != 0 {
            let row = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let (high, low) = (&mut high_rows[row], &mut low_rows[row]);
            sums.set(row, fine_row(source.row(g, row), scales.inverses[row], high, low));
        }
        // Rows that the source does not have are zeros.
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
        store_fields(scales.scale, &sums, widened as u16, height, fields);
        fields[Field::Fine.at(height) - height * GROUP..].copy_from_slice(&fine.to_le_bytes());
    }
}

/// The largest magnitudes of the rows of a group, a row in a lane, compared as the bits of floats: what is no number is the largest.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn largest(source: &GroupSource<'_>, g: usize) -> __m512 {
    let mut largest = _mm512_setzero_si512();
    for first in (0..source.limits.len()).step_by(4) {
        let m = [0, 1, 2, 3].map(|i| magnitudes(source, g, first + i));
        // Each step halves what is left of a row and puts two rows side by side.
        let two = |a, b| _mm512_max_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (a, b) = (two(m[0], m[1]), two(m[2], m[3]));
        let four = _mm512_max_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        let four = _mm512_max_epi32(four, _mm512_shuffle_i32x4::<0b01_00_11_10>(four, four));
        let four = _mm512_max_epi32(four, _mm512_shuffle_i32x4::<0b10_11_00_01>(four, four));
        largest = _mm512_mask_mov_epi32(largest, 0xf << first, four);
    }
    _mm512_castsi512_ps(largest)
}

/// The larger of the magnitudes of each two of a row's values of a group; zeros if there is no such row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn magnitudes(source: &GroupSource<'_>, g: usize, row: usize) -> __m512i {
    if row >= source.limits.len() {
        return _mm512_setzero_si512();
    }
    let x = load(source.row(g, row));
    let magnitude = |x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
    _mm512_max_epi32(magnitude(x[0]), magnitude(x[1]))
}

/// How the rows of a group are rounded, a row in a lane.
struct Scales {
    scale: __m512,
    /// What values are multiplied by; 0 if they all become 0, also where one is no number.
    inverses: [f32; 16],
    fine: u16,
}

impl Scales {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn of(largest: __m512, limits: __m512) -> Scales {
        let fine = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(largest, limits);
        let max = _mm512_mask_mov_ps(_mm512_set1_ps(COARSE_MAX), fine, _mm512_set1_ps(FINE_MAX));
        let finite = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(largest, _mm512_set1_ps(f32::INFINITY));
        let tiny = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(largest, _mm512_set1_ps(SMALLEST_AMAX));
        let scale = _mm512_mask_div_ps(_mm512_set1_ps(f32::NAN), finite, largest, max);
        let scale = _mm512_maskz_mov_ps(!tiny, scale);
        let some = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(scale, _mm512_setzero_ps());
        let mut inverses = [0.0; 16];
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(inverses.as_mut_ptr(), _mm512_maskz_div_ps(some, max, largest)) };
        Scales { scale, inverses, fine }
    }
}

/// The sums of both halves of each row of a group, a row in a lane.
struct Sums {
    first: __m512i,
    second: __m512i,
}

impl Sums {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn zero() -> Sums {
        Sums { first: _mm512_setzero_si512(), second: _mm512_setzero_si512() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn set(&mut self, row: usize, [first, second]: [i32; 2]) {
        let lane = 1 << row;
        self.first = _mm512_mask_mov_epi32(self.first, lane, _mm512_set1_epi32(first));
        self.second = _mm512_mask_mov_epi32(self.second, lane, _mm512_set1_epi32(second));
    }
}

/// Rounds the rows of a group to 8 bits; those that are fine come out as anything.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn coarse(source: &GroupSource<'_>, g: usize, scales: &Scales, high: &mut [[u8; GROUP]]) -> Sums {
    let mut sums = Sums::zero();
    for first in (0..source.limits.len()).step_by(4) {
        let m = [0, 1, 2, 3].map(|i| coarse_row(source, g, first + i, scales, high));
        let two = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (a, b) = (two(m[0], m[1]), two(m[2], m[3]));
        let four = _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
        let lanes = 0xf << first;
        sums.first = _mm512_mask_broadcast_i32x4(sums.first, lanes, _mm256_castsi256_si128(four));
        sums.second = _mm512_mask_broadcast_i32x4(sums.second, lanes, _mm256_extracti128_si256::<1>(four));
    }
    sums
}

/// Rounds a row's 32 values of a group to 8 bits and returns sums of four each; zeros if there is no such row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn coarse_row(source: &GroupSource<'_>, g: usize, row: usize, scales: &Scales, high: &mut [[u8; GROUP]]) -> __m256i {
    if row >= source.limits.len() {
        return _mm256_setzero_si256();
    }
    let inverse = _mm512_set1_ps(scales.inverses[row]);
    // What is no number becomes a number whose low byte is 0.
    let q = bytes(load(source.row(g, row)).map(|x| _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse))));
    store(q, &mut high[row]);
    _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), q)
}

/// Rounds a row's 32 values of a group to 16 bits; the sums of both halves are one sum, of all.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn fine_row(x: &[f32], inverse: f32, high: &mut [u8; GROUP], low: &mut [u8; GROUP]) -> [i32; 2] {
    let lanes = if inverse > 0.0 { 0xffff } else { 0 };
    let q = load(x).map(|x| _mm512_maskz_cvtps_epi32(lanes, _mm512_mul_ps(x, _mm512_set1_ps(inverse))));
    store(bytes(q.map(|q| _mm512_srai_epi32::<8>(_mm512_add_epi32(q, _mm512_set1_epi32(128))))), high);
    store(bytes(q), low);
    q.map(|q| _mm512_reduce_add_epi32(q))
}

/// Writes the fields behind the bytes of a group. Rows in `widened` are fine without being so: their values stand for 256 times as much.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn store_fields(scale: __m512, sums: &Sums, widened: u16, height: usize, fields: &mut [u8]) {
    let scale = _mm512_mask_mul_ps(scale, widened, scale, _mm512_set1_ps(1.0 / 256.0));
    let first = _mm512_mask_slli_epi32::<8>(sums.first, widened, sums.first);
    let second = _mm512_mask_slli_epi32::<8>(sums.second, widened, sums.second);
    let sum = _mm512_add_epi32(first, second);
    let minus = |v| _mm512_sub_epi32(_mm512_setzero_si512(), v);
    let (less, first, second) = (minus(sum), minus(first), minus(second));
    let mut put = |field: Field, v| {
        let at = fields[field.at(height) - height * GROUP..][..4 * height].as_mut_ptr();
        // SAFETY: `height` lanes, 4 bytes each.
        unsafe { _mm512_mask_storeu_epi32(at.cast(), all_fine(height) as u16, v) }
    };
    put(Field::Scale, _mm512_castps_si512(scale));
    put(Field::ScaledSum, _mm512_castps_si512(_mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum))));
    put(Field::Sum8, _mm512_slli_epi32::<3>(less));
    put(Field::Sum16, _mm512_slli_epi32::<4>(less));
    put(Field::Sum128, _mm512_slli_epi32::<7>(less));
    put(Field::FirstHalf, _mm512_slli_epi32::<5>(first));
    put(Field::SecondHalf, _mm512_slli_epi32::<5>(second));
}

/// The values of a group of a row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load(x: &[f32]) -> [__m512; 2] {
    let x: &[f32; GROUP] = x.first_chunk().expect("a group of fewer values is a bug");
    // SAFETY: loads of 16 of the 32 values.
    unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))] }
}

/// The low bytes of 32 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn bytes(q: [__m512i; 2]) -> __m256i {
    _mm256_set_m128i(_mm512_cvtepi32_epi8(q[1]), _mm512_cvtepi32_epi8(q[0]))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn store(bytes: __m256i, out: &mut [u8; GROUP]) {
    // SAFETY: 32 bytes.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) }
}

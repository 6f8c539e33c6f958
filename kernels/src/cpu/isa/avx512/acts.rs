//! Quantising activations to tiles: the same arithmetic, to the bit, as the scalar table's.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

use crate::cpu::packed::{
    COARSE_MAX, FINE_MAX, Field, GROUP, GroupSource, Sum, WIDEST_TILE, all_fine, aside_bytes, group_bytes,
};
use crate::cpu::panel::SMALLEST_AMAX;
use std::arch::x86_64::*;

/// Floats of a register.
const WIDTH: usize = 16;
/// Rows of which a register has 4 values each, once they are reduced.
const QUAD: usize = 4;
/// A tile's rows in whole quads.
const ROWS: usize = WIDEST_TILE;
const _: () = assert!(ROWS == 3 * QUAD && ROWS <= WIDTH);

/// The roots of the mean squares of rows, each summed in 16 lanes: 4 rows at a time, since a sum waits for the one before.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn root_mean_squares(x: &[f32], cols: usize, out: &mut [f32]) {
    assert!(cols.is_multiple_of(WIDTH) && x.len() == cols * out.len(), "rows of {cols} values: this is a bug");
    let (quads, rest) = out.as_chunks_mut::<QUAD>();
    let (x, last) = x.split_at(quads.len() * QUAD * cols);
    for (out, x) in quads.iter_mut().zip(x.chunks_exact(QUAD * cols)) {
        // SAFETY: 4 rows of `cols` values, a multiple of 16.
        *out = unsafe { squares::<QUAD>(x.as_ptr(), cols) };
    }
    for (out, x) in rest.iter_mut().zip(last.chunks_exact(cols)) {
        // SAFETY: a row of as many.
        [*out] = unsafe { squares::<1>(x.as_ptr(), cols) };
    }
}

/// The roots of the mean squares of `R` rows.
///
/// # Safety
/// `R` rows of `cols` floats, a multiple of 16, are readable at `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn squares<const R: usize>(x: *const f32, cols: usize) -> [f32; R] {
    let mut sums = [_mm512_setzero_ps(); R];
    for at in (0..cols).step_by(WIDTH) {
        for r in 0..R {
            // SAFETY: the caller's promise.
            let x = unsafe { _mm512_loadu_ps(x.add(r * cols + at)) };
            // Rounded twice, as the reference does.
            sums[r] = _mm512_add_ps(sums[r], _mm512_mul_ps(x, x));
        }
    }
    sums.map(|sum| {
        // Halves on halves.
        let sum = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum));
        let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
        let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
        let sum = _mm_add_ss(sum, _mm_shuffle_ps::<1>(sum, sum));
        (_mm_cvtss_f32(sum) / cols as f32).sqrt()
    })
}

/// Quantises groups of a tile: what is one number for each row is computed for all rows at once, a row in a lane.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn quantize(source: &GroupSource<'_>, groups: &mut [u8], aside: &mut [u8]) {
    match source.height {
        1 => quantize_rows::<1>(source, groups, aside),
        2 => quantize_rows::<2>(source, groups, aside),
        3 => quantize_rows::<3>(source, groups, aside),
        4 => quantize_rows::<4>(source, groups, aside),
        6 => quantize_rows::<6>(source, groups, aside),
        8 => quantize_rows::<8>(source, groups, aside),
        10 => quantize_rows::<10>(source, groups, aside),
        12 => quantize_rows::<12>(source, groups, aside),
        height => panic!("a tile of {height} rows: this is a bug"),
    }
}

/// [`quantize`] for a tile of `R` rows. One function for each height: its loops over rows are unrolled.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn quantize_rows<const R: usize>(source: &GroupSource<'_>, groups: &mut [u8], aside: &mut [u8]) {
    let rows = source.limits.len();
    assert!(rows <= R && R <= ROWS, "a tile of {R} rows with {rows} limits is a bug");
    // SAFETY: as many floats as there are lanes in the mask.
    let limits = unsafe { _mm512_maskz_loadu_ps(all_fine(rows) as u16, source.limits.as_ptr()) };
    let aside = aside.chunks_exact_mut(aside_bytes(R));
    for (g, (out, aside)) in groups.chunks_exact_mut(group_bytes(R)).zip(aside).enumerate() {
        // Rows that the source does not have are zeros.
        let mut x = [&[0.0; GROUP]; R];
        for (x, row) in x.iter_mut().zip(source.rows(g)) {
            *x = row.first_chunk().expect("a group of fewer values is a bug");
        }
        let (high, fields) = out.split_at_mut(R * GROUP);
        let (low, beside) = aside.split_at_mut(R * GROUP);
        let (high_rows, low_rows) = (high.as_chunks_mut::<GROUP>().0, low.as_chunks_mut::<GROUP>().0);
        let scales = Scales::of(largest(&x), limits);
        let mut fine = u32::from(scales.fine);
        let mut sums = if fine == all_fine(rows) {
            high_rows[rows..].as_flattened_mut().fill(0);
            Sums::zero()
        } else {
            coarse(&x, &scales, high_rows)
        };
        let mut rest = scales.none;
        while rest != 0 {
            let row = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            high_rows[row].fill(0);
            sums.set(row, [0, 0]);
        }
        let mut rest = fine;
        while rest != 0 {
            let row = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let (high, low) = (&mut high_rows[row], &mut low_rows[row]);
            sums.set(row, fine_row(x[row], scales.inverses[row], high, low));
        }
        let mut widened = 0;
        // `dot` multiplies the low bytes of a few rows one by one.
        if 2 * fine.count_ones() as usize > R {
            widened = all_fine(R) & !fine;
            for (_, low) in low_rows.iter_mut().enumerate().filter(|(row, _)| widened >> row & 1 == 1) {
                low.fill(0);
            }
            fine = all_fine(R);
        }
        store_fields::<R>(scales.scale, &sums, widened as u16, fields, source.sums.then_some(beside));
        fields[Field::Fine.at(R) - R * GROUP..].copy_from_slice(&fine.to_le_bytes());
    }
}

/// The largest magnitudes of the rows of a group, a row in a lane, compared as the bits of floats: what is no number is the largest.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn largest<const R: usize>(x: &[&[f32; GROUP]; R]) -> __m512 {
    let mut magnitudes = [_mm512_setzero_si512(); ROWS];
    for r in 0..R {
        let [a, b] = load(x[r]).map(|x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX)));
        magnitudes[r] = _mm512_max_epi32(a, b);
    }
    // Each step halves what is left of a row and puts two rows side by side: first inside of 128 bits,
    let mut quads = [_mm512_setzero_si512(); 4];
    for n in 0..R.div_ceil(QUAD) {
        let two = |a, b| _mm512_max_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let m = &magnitudes[n * QUAD..(n + 1) * QUAD];
        let (a, b) = (two(m[0], m[1]), two(m[2], m[3]));
        quads[n] = _mm512_max_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    // then across.
    let two = |a, b| {
        let (low, high) = (_mm512_shuffle_i32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b));
        _mm512_max_epi32(low, high)
    };
    let (a, b) = (two(quads[0], quads[1]), two(quads[2], quads[3]));
    let (even, odd) = (_mm512_shuffle_i32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b));
    _mm512_castsi512_ps(_mm512_max_epi32(even, odd))
}

/// How the rows of a group are rounded, a row in a lane.
struct Scales {
    scale: __m512,
    /// What values are multiplied by; 0 if they all become 0.
    inverses: [f32; WIDTH],
    fine: u16,
    /// Rows in which a value is no number, or infinite: their scale is NaN.
    none: u16,
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
        let mut inverses = [0.0; WIDTH];
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(inverses.as_mut_ptr(), _mm512_maskz_div_ps(some, max, largest)) };
        Scales { scale, inverses, fine, none: !finite }
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

/// Rounds the rows of a group to 8 bits, two at a time; those that are fine, or have no scale, come out as anything.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn coarse<const R: usize>(x: &[&[f32; GROUP]; R], scales: &Scales, high: &mut [[u8; GROUP]]) -> Sums {
    // Of 4 values of one half of a row each: of the first row in 8 lanes, of the second in the others.
    let mut fours = [_mm512_setzero_si512(); 2 * QUAD];
    for (n, high) in high.chunks_mut(2).enumerate() {
        let row = |r: usize| {
            let inverse = _mm512_set1_ps(scales.inverses[r]);
            let [a, b] = load(x[r]).map(|x| _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)));
            _mm512_packs_epi32(a, b)
        };
        let a = row(2 * n);
        let b = if high.len() == 2 { row(2 * n + 1) } else { _mm512_setzero_si512() };
        // Packing goes by 128 bits: 4 values of each of the four halves.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let q = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b));
        let mask = if high.len() == 2 { u64::MAX } else { u64::from(u32::MAX) };
        // SAFETY: as many bytes as the mask has bits.
        unsafe { _mm512_mask_storeu_epi8(high.as_flattened_mut().as_mut_ptr().cast(), mask, q) };
        fours[n] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), q);
    }
    // Of each 128 bits, half a row, one sum: [rows 0, 2, 4, 6 first][the same second][rows 1, 3, 5, 7 first][second].
    let totals = |f: &[__m512i]| {
        let two = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (a, b) = (two(f[0], f[1]), two(f[2], f[3]));
        _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
    };
    let lower = totals(&fours[..QUAD]);
    let upper = if R > 2 * QUAD { totals(&fours[QUAD..]) } else { _mm512_setzero_si512() };
    let order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 16, 24, 17, 25, 18, 26, 19, 27);
    let second = _mm512_add_epi32(order, _mm512_set1_epi32(QUAD as i32));
    Sums {
        first: _mm512_permutex2var_epi32(lower, order, upper),
        second: _mm512_permutex2var_epi32(lower, second, upper),
    }
}

/// Rounds a row's 32 values of a group to 16 bits; the sums of both halves are one sum, of all.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn fine_row(x: &[f32; GROUP], inverse: f32, high: &mut [u8; GROUP], low: &mut [u8; GROUP]) -> [i32; 2] {
    let lanes = if inverse > 0.0 { 0xffff } else { 0 };
    let q = load(x).map(|x| _mm512_maskz_cvtps_epi32(lanes, _mm512_mul_ps(x, _mm512_set1_ps(inverse))));
    store(q.map(|q| _mm512_srai_epi32::<8>(_mm512_add_epi32(q, _mm512_set1_epi32(128)))), high);
    store(q, low);
    q.map(|q| _mm512_reduce_add_epi32(q))
}

/// Writes the fields behind the bytes of a group, and the sums beside it where they are wanted. Rows in `widened` are fine without being
/// so: their values stand for 256 times as much.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn store_fields<const R: usize>(
    scale: __m512,
    sums: &Sums,
    widened: u16,
    fields: &mut [u8],
    beside: Option<&mut [u8]>,
) {
    let scale = _mm512_mask_mul_ps(scale, widened, scale, _mm512_set1_ps(1.0 / 256.0));
    let first = _mm512_mask_slli_epi32::<8>(sums.first, widened, sums.first);
    let second = _mm512_mask_slli_epi32::<8>(sums.second, widened, sums.second);
    let sum = _mm512_add_epi32(first, second);
    let put = |bytes: &mut [u8], at: usize, v| {
        let at = bytes[at - R * GROUP..][..4 * R].as_mut_ptr();
        // SAFETY: `R` lanes, 4 bytes each.
        unsafe { _mm512_mask_storeu_epi32(at.cast(), all_fine(R) as u16, v) }
    };
    put(fields, Field::Scale.at(R), _mm512_castps_si512(scale));
    put(fields, Field::ScaledSum.at(R), _mm512_castps_si512(_mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum))));
    if let Some(beside) = beside {
        let minus = |v| _mm512_sub_epi32(_mm512_setzero_si512(), v);
        let (less, first, second) = (minus(sum), minus(first), minus(second));
        put(beside, Sum::Of8.at(R), _mm512_slli_epi32::<3>(less));
        put(beside, Sum::Of16.at(R), _mm512_slli_epi32::<4>(less));
        put(beside, Sum::Of128.at(R), _mm512_slli_epi32::<7>(less));
        put(beside, Sum::FirstHalf.at(R), _mm512_slli_epi32::<5>(first));
        put(beside, Sum::SecondHalf.at(R), _mm512_slli_epi32::<5>(second));
    }
}

/// The values of a group of a row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load(x: &[f32; GROUP]) -> [__m512; 2] {
    // SAFETY: loads of 16 of the 32 values.
    unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(WIDTH))] }
}

/// Writes the low bytes of 32 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn store(q: [__m512i; 2], out: &mut [u8; GROUP]) {
    let bytes = _mm256_set_m128i(_mm512_cvtepi32_epi8(q[1]), _mm512_cvtepi32_epi8(q[0]));
    // SAFETY: 32 bytes.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) }
}

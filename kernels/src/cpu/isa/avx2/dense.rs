//! Dot products with float weights: one register of 8 sums for each output, then the values of an incomplete eighth one by one.

use super::total;
use crate::cpu::dispatch::WeightRows;
use crate::cpu::quant::QuantType;
use std::arch::x86_64::*;

/// A float format: how 8 values, or one, are read.
trait Float {
    const BYTES: usize;
    /// # Safety
    /// 8 values are readable at `p`, the processor has AVX2 and F16C.
    unsafe fn eight(p: *const u8) -> __m256;
    /// # Safety
    /// One value is readable at `p`, the processor has AVX2 and F16C.
    unsafe fn one(p: *const u8) -> f32;
}

struct F32;
struct F16;
struct Bf16;

impl Float for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn eight(p: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(p.cast()) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<f32>().read_unaligned() }
    }
}

impl Float for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn eight(p: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(p.cast::<u16>().read_unaligned())))) }
    }
}

impl Float for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn eight(p: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        f32::from_bits(u32::from(unsafe { p.cast::<u16>().read_unaligned() }) << 16)
    }
}

/// `W` weight rows by `R` activation rows.
///
/// # Safety
/// `W` rows of `cols` values are readable at `w`, `row_bytes` apart; `x` and `out` have `R` and `W * R` elements; AVX2, FMA and F16C.
#[inline(always)]
unsafe fn tile<T: Float, const W: usize, const R: usize>(
    w: *const u8,
    row_bytes: usize,
    cols: usize,
    x: &[&[f32]],
    out: &mut [f32],
) {
    // SAFETY: offsets stay inside rows of `cols` values.
    unsafe {
        let rows: [*const u8; W] = std::array::from_fn(|j| w.add(j * row_bytes));
        let xs: [*const f32; R] = std::array::from_fn(|r| x[r].as_ptr());
        let mut sums = [[_mm256_setzero_ps(); R]; W];
        let whole = cols / 8 * 8;
        let mut at = 0;
        while at < whole {
            let mut weights = [_mm256_setzero_ps(); W];
            for j in 0..W {
                weights[j] = T::eight(rows[j].add(at * T::BYTES));
            }
            for r in 0..R {
                let v = _mm256_loadu_ps(xs[r].add(at));
                for j in 0..W {
                    sums[j][r] = _mm256_fmadd_ps(weights[j], v, sums[j][r]);
                }
            }
            at += 8;
        }
        for j in 0..W {
            for r in 0..R {
                let mut sum = total(sums[j][r]);
                for i in whole..cols {
                    sum = T::one(rows[j].add(i * T::BYTES)).mul_add(*xs[r].add(i), sum);
                }
                out[j * R + r] = sum;
            }
        }
    }
}

/// All rows of `data`, in tiles of `W` rows and then single ones.
///
/// # Safety
/// AVX2, FMA and F16C.
#[inline(always)]
unsafe fn rows<T: Float, const W: usize, const R: usize>(data: &[u8], row_bytes: usize, x: &[&[f32]], out: &mut [f32]) {
    let cols = x[0].len();
    assert!(
        row_bytes == cols * T::BYTES && x.iter().all(|x| x.len() == cols),
        "rows of one product differ in length: this is a bug"
    );
    let count = data.len() / row_bytes;
    assert!(out.len() == count * R && x.len() == R, "a tile's output has the wrong size: this is a bug");
    let pairs = count / W * W;
    for j in (0..pairs).step_by(W) {
        // SAFETY: rows j..j + W are inside `data`.
        unsafe { tile::<T, W, R>(data.as_ptr().add(j * row_bytes), row_bytes, cols, x, &mut out[j * R..(j + W) * R]) }
    }
    for j in pairs..count {
        // SAFETY: row j is inside `data`.
        unsafe { tile::<T, 1, R>(data.as_ptr().add(j * row_bytes), row_bytes, cols, x, &mut out[j * R..(j + 1) * R]) }
    }
}

/// # Safety
/// AVX2, FMA and F16C.
#[inline(always)]
unsafe fn by_rows<T: Float>(data: &[u8], row_bytes: usize, x: &[&[f32]], out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match x.len() {
            1 => rows::<T, 4, 1>(data, row_bytes, x, out),
            2 => rows::<T, 4, 2>(data, row_bytes, x, out),
            3 => rows::<T, 2, 3>(data, row_bytes, x, out),
            4 => rows::<T, 2, 4>(data, row_bytes, x, out),
            n => panic!("a tile of {n} activation rows: this is a bug"),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn dot_dense(w: &WeightRows<'_>, x: &[&[f32]], out: &mut [f32]) {
    // SAFETY: this function is compiled for, and only called with, the features needed.
    unsafe {
        match w.ty {
            QuantType::F32 => by_rows::<F32>(w.data, w.row_bytes, x, out),
            QuantType::F16 => by_rows::<F16>(w.data, w.row_bytes, x, out),
            QuantType::BF16 => by_rows::<Bf16>(w.data, w.row_bytes, x, out),
            ty => panic!("{} is no float format: this is a bug", ty.name()),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn dot_wide(w: &[f32], x: &[&[f32]], out: &mut [f32]) {
    // SAFETY: floats are readable as bytes; the features as above.
    unsafe {
        let data = std::slice::from_raw_parts(w.as_ptr().cast::<u8>(), size_of_val(w));
        by_rows::<F32>(data, 4 * x[0].len(), x, out);
    }
}

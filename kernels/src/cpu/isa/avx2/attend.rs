//! Attention, 8 keys or dimensions in a register.

use super::total;
use crate::cpu::attention::span::{self, SpanRows, Vector, Visible};
use crate::cpu::kv::{self, QuadPiece};
use half::f16;
use std::arch::x86_64::*;

/// 2 registers of sums for each of up to 6 rows, 2 of keys or values and one that is broadcast: 15 of the 16.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn attend(rows: &mut SpanRows<'_>) {
    // SAFETY: this function is compiled for, and only called with, the features that `Avx2` needs.
    unsafe { span::attend::<Avx2, 2>(rows) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn fold(total: &mut [f32], part: &[f32], visible: &[Visible]) {
    // SAFETY: as above.
    unsafe { span::fold::<Avx2>(total, part, visible) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn widen_keys(from: QuadPiece<'_>, len: usize, out: &mut [f32]) {
    kv::widen_keys(from, len, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn widen_values(from: QuadPiece<'_>, head_dim: usize, width: usize, out: &mut [f32]) {
    kv::widen_values(from, head_dim, width, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn round_key(key: &[f32], pairs: &mut [u32], stride: usize) -> f32 {
    kv::round_key(key, pairs, stride)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn round_value(value: &[f32], high: bool, pairs: &mut [u32]) -> f32 {
    kv::round_value(value, high, pairs)
}

/// 256-bit registers.
struct Avx2;

impl Vector for Avx2 {
    type Reg = __m256;
    const LEN: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY (here and below): the caller vouches for the features and the pointers.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(at) }
    }

    #[inline(always)]
    unsafe fn load_half(at: *const f16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }

    #[inline(always)]
    unsafe fn store(at: *mut f32, x: __m256) {
        unsafe { _mm256_storeu_ps(at, x) }
    }

    #[inline(always)]
    unsafe fn prefetch<T>(at: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn madd(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }

    /// x = n ln 2 + r with |r| <= ln 2 / 2, then the Taylor polynomial of degree 7 times 2^n.
    #[inline(always)]
    unsafe fn exp(x: __m256) -> __m256 {
        unsafe {
            let n = _mm256_round_ps::<8>(_mm256_mul_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E)));
            let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(span::LN_2[0]), x);
            let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(span::LN_2[1]), r);
            let mut p = _mm256_set1_ps(span::TAYLOR[0]);
            for c in &span::TAYLOR[1..] {
                p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
            }
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            let y = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)));
            // "Not less than" also holds for NaN.
            _mm256_and_ps(y, _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(span::SMALLEST)))
        }
    }

    #[inline(always)]
    unsafe fn total(x: __m256) -> f32 {
        unsafe { total(x) }
    }

    #[inline(always)]
    unsafe fn largest(x: __m256) -> f32 {
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }
}

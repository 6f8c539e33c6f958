//! Attention, 16 keys or dimensions in a register.

use crate::cpu::attention::span::{self, SpanRows, Vector, Visible};
use crate::cpu::kv::{self, QuadPiece};
use half::f16;
use std::arch::x86_64::*;

/// 4 registers of sums for each of up to 6 rows, 4 of keys or values and one that is broadcast: 29 of the 32.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub fn attend(rows: &mut SpanRows<'_>) {
    // SAFETY: this function is compiled for, and only called with, the features that `Avx512` needs.
    unsafe { span::attend::<Avx512, 4>(rows) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub fn fold(total: &mut [f32], part: &[f32], visible: &[Visible]) {
    // SAFETY: as above.
    unsafe { span::fold::<Avx512>(total, part, visible) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub fn widen_keys(from: QuadPiece<'_>, len: usize, out: &mut [f32]) {
    kv::widen_keys(from, len, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub fn widen_values(from: QuadPiece<'_>, head_dim: usize, width: usize, out: &mut [f32]) {
    kv::widen_values(from, head_dim, width, out);
}

/// 512-bit registers.
pub(super) struct Avx512;

impl Vector for Avx512 {
    type Reg = __m512;
    const LEN: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY (here and below): the caller vouches for the features and the pointers.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(at) }
    }

    #[inline(always)]
    unsafe fn load_half(at: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn store(at: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(at, x) }
    }

    #[inline(always)]
    unsafe fn prefetch<T>(at: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn madd(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    /// x = n ln 2 + r with |r| <= ln 2 / 2, then the Taylor polynomial of degree 7 times 2^n.
    #[inline(always)]
    unsafe fn exp(x: __m512) -> __m512 {
        unsafe {
            let n = _mm512_roundscale_ps::<8>(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(span::LN_2[0]), x);
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(span::LN_2[1]), r);
            let mut p = _mm512_set1_ps(span::TAYLOR[0]);
            for c in &span::TAYLOR[1..] {
                p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
            }
            // "Not less than" also holds for NaN.
            let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(span::SMALLEST));
            _mm512_maskz_scalef_ps(kept, p, n)
        }
    }

    #[inline(always)]
    unsafe fn total(x: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(x) }
    }

    #[inline(always)]
    unsafe fn largest(x: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(x) }
    }
}

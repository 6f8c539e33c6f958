//! Products with packed floats on 512-bit registers: fused multiply-adds, and for BF16 `vdpbf16ps`, twice as many an instruction.

use crate::cpu::floats::{CHUNK, FloatPairs};
use crate::cpu::isa::floats::{self, Bfloats, Floats, Format, Halves, MultiplyAdd, float_dot};
use std::arch::x86_64::*;
use std::mem::transmute;

float_dot!(
    /// The products of a strip with a tile of floats.
    dot, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", Zmm, 2, [1, 2, 3, 4, 6, 8, 10, 12; 12],
    { F32 => Floats, F16 => Halves, BF16 => Bfloats }, |cols: usize| cols
);

float_dot!(
    /// The products of a BF16 strip with a tile of pairs.
    dot_pairs, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c", Zmm, 2,
    [1, 2, 3, 4, 6, 8, 10, 12; 12], { BF16 => Pairs }, |cols: usize| cols.div_ceil(2)
);

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub fn widen(halves: &[u8], out: &mut [f32]) {
    // SAFETY: the features are those that this function is compiled for and called with.
    unsafe { floats::widen::<Zmm>(halves, out) }
}

/// The kernels for pairs. They need AVX-512 F, BW, DQ, VL and BF16.
pub static PAIRS: FloatPairs = FloatPairs { round, dot: dot_pairs };

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn round(x: &[f32], out: &mut [u32], stride: usize) {
    for (i, out) in out.chunks_mut(stride).enumerate() {
        // SAFETY: masked loads of what is left of the row, and of nothing behind it.
        let half = |first: usize| unsafe {
            let left = x.len().saturating_sub(first).min(16);
            _mm512_maskz_loadu_ps(((1_u32 << left) - 1) as u16, x.as_ptr().wrapping_add(first))
        };
        let out = &mut out[..CHUNK];
        // SAFETY: 16 words; all bits are words.
        unsafe {
            let pairs = _mm512_cvtne2ps_pbh(half(2 * CHUNK * i + 16), half(2 * CHUNK * i));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), transmute::<__m512bh, __m512i>(pairs));
        }
    }
}

/// 512-bit registers of floats.
struct Zmm;

// SAFETY (of all bodies): AVX-512 F and addresses as they should be are the caller's promise.
impl MultiplyAdd for Zmm {
    const LANES: usize = 16;
    type Float = __m512;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn broadcast(at: *const u32) -> __m512 {
        unsafe { _mm512_set1_ps(*at.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn words(at: *const u8) -> __m512 {
        unsafe { _mm512_loadu_ps(at.cast()) }
    }
    #[inline(always)]
    unsafe fn halves(at: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
    #[inline(always)]
    unsafe fn lower(at: *const u8) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(at.cast()))) }
    }
    #[inline(always)]
    unsafe fn upper(at: *const u8) -> __m512 {
        unsafe {
            let mask = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(at.cast()), mask))
        }
    }
    #[inline(always)]
    unsafe fn store(v: __m512, at: *mut f32) {
        unsafe { _mm512_storeu_ps(at, v) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// BF16 as it is: words are pairs, and a product is that of both.
struct Pairs;

impl Format<Zmm> for Pairs {
    const UNIT: usize = 4;
    #[inline(always)]
    unsafe fn weights(at: *const u8, _: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { Zmm::words(at) }
    }
    #[inline(always)]
    unsafe fn multiply_add(weights: __m512, acts: __m512, sum: __m512) -> __m512 {
        // SAFETY: the caller's promise, of AVX-512 BF16 too; all bits are bfloat16s.
        unsafe { _mm512_dpbf16_ps(sum, transmute::<__m512, __m512bh>(weights), transmute::<__m512, __m512bh>(acts)) }
    }
}

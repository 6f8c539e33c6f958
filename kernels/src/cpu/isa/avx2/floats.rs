//! Products with packed floats on 256-bit registers.

use super::packed::Ymm;
use crate::cpu::isa::floats::{self, Bfloats, Floats, Halves, MultiplyAdd, float_dot};
use crate::cpu::isa::packed::Vector;
use std::arch::x86_64::*;

float_dot!(
    /// The products of a strip with a tile of floats.
    dot, "avx2,fma,f16c", Ymm, 4, [1, 2, 3; 3],
    { F32 => Floats, F16 => Halves, BF16 => Bfloats }, |cols: usize| cols
);

#[target_feature(enable = "avx2,fma,f16c")]
pub fn widen(halves: &[u8], out: &mut [f32]) {
    // SAFETY: the features are those that this function is compiled for and called with.
    unsafe { floats::widen::<Ymm>(halves, out) }
}

// SAFETY (of all bodies): AVX2, FMA and F16C and addresses as they should be are the caller's promise.
impl MultiplyAdd for Ymm {
    const LANES: usize = 8;
    type Float = __m256;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn broadcast(at: *const u32) -> __m256 {
        unsafe { _mm256_broadcast_ss(&*at.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { <Ymm as Vector>::fma(a, b, c) }
    }
    #[inline(always)]
    unsafe fn words(at: *const u8) -> __m256 {
        unsafe { _mm256_loadu_ps(at.cast()) }
    }
    #[inline(always)]
    unsafe fn halves(at: *const u8) -> __m256 {
        unsafe { <Ymm as Vector>::halves(at) }
    }
    #[inline(always)]
    unsafe fn lower(at: *const u8) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(at.cast()))) }
    }
    #[inline(always)]
    unsafe fn upper(at: *const u8) -> __m256 {
        unsafe {
            let mask = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(at.cast()), mask))
        }
    }
    #[inline(always)]
    unsafe fn store(v: __m256, at: *mut f32) {
        unsafe { <Ymm as Vector>::store(v, at) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { <Ymm as Vector>::prefetch(at) }
    }
}

//! Products with packed matrices on 256-bit registers.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays at once

use crate::cpu::dispatch::PackedKernels;
use crate::cpu::isa::packed::{self, Dots, FIRST, Quants, SECOND, Vector, WHOLE, four, step, steps, tile::packed_dot};
use crate::cpu::packed::{GROUP, GroupSource};
use crate::cpu::refine::peaks_of_rows;
use crate::cpu::shared::Rows;
use std::arch::x86_64::*;

/// The AVX2 kernels.
pub const PACKED: PackedKernels = PackedKernels { root_mean_squares, quantize, dot, peaks };

#[target_feature(enable = "avx2,fma,f16c")]
fn root_mean_squares(x: &[f32], cols: usize, out: &mut [f32]) {
    packed::acts::root_mean_squares(x, cols, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn quantize(source: &GroupSource<'_>, groups: &mut [u8], aside: &mut [u8]) {
    packed::acts::quantize::<true>(source, groups, aside);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn peaks(products: &Rows<'_>, lanes: usize, peaks: Rows<'_>) {
    peaks_of_rows(products, lanes, peaks);
}

packed_dot!("avx2,fma,f16c", Pairs, 2);

/// 256-bit registers.
pub struct Ymm;

// SAFETY (of all bodies): AVX2, FMA and F16C and readable addresses are the caller's promise.
impl Vector for Ymm {
    const LANES: usize = 8;
    type Int = __m256i;
    type Float = __m256;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256i {
        unsafe { _mm256_load_si256(at.cast()) }
    }
    #[inline(always)]
    unsafe fn byte(value: u8) -> __m256i {
        unsafe { _mm256_set1_epi8(value as i8) }
    }
    #[inline(always)]
    unsafe fn word(value: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn float(value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn and(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn xor(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_xor_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn right16<const N: i32>(v: __m256i) -> __m256i {
        unsafe { _mm256_srli_epi16::<N>(v) }
    }
    #[inline(always)]
    unsafe fn left32<const N: i32>(v: __m256i) -> __m256i {
        unsafe { _mm256_slli_epi32::<N>(v) }
    }
    #[inline(always)]
    unsafe fn add32(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn to_float(v: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn negate(v: __m256) -> __m256 {
        unsafe { _mm256_xor_ps(v, _mm256_set1_ps(-0.0)) }
    }
    #[inline(always)]
    unsafe fn halves(at: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
    #[inline(always)]
    unsafe fn unsigned(at: *const u8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()))) }
    }
    #[inline(always)]
    unsafe fn signed(at: *const u8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))) }
    }
    #[inline(always)]
    unsafe fn store(v: __m256, at: *mut f32) {
        unsafe { _mm256_storeu_ps(at, v) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// Products by `vpmaddubsw`: sums of two products in 16 bits. They are added up in 16 bits for as many steps as fit, with activations down
/// to -128: 8 steps of 4-bit weights (8 * 2 * 15 * 128 = 30,720), 4 of 5-bit ones (31,744), 2 of 6-bit ones (32,256). Bytes do not fit
/// even once and are taken as two nibbles. 16-bit activations are multiplied by `vpmaddwd` with the even and then the odd weights of a
/// step, widened: at most 32 * 255 * 32,512 in magnitude.
pub struct Pairs;

impl Dots for Pairs {
    type V = Ymm;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn coarse<Q: Quants, const R: usize, const B: usize, const PART: u8>(
        q: *const u8,
        acts: *const u8,
        sums: &mut [[__m256i; B]; R],
    ) {
        // Some steps whose sums fit 16 bits, times a factor; `of` takes the bits of a step that are multiplied.
        macro_rules! run {
            ($steps:tt, $factor:literal, $of:expr) => {
                let mut pairs = [[_mm256_setzero_si256(); B]; R];
                steps!(J in $steps => {
                    let mut w = step::<Pairs, Q, B>(q, J);
                    for b in 0..B {
                        w[b] = $of(w[b]);
                    }
                    for r in 0..R {
                        let a = four::<Ymm>(acts.add(r * GROUP + 4 * J));
                        for b in 0..B {
                            pairs[r][b] = _mm256_add_epi16(pairs[r][b], _mm256_maddubs_epi16(w[b], a));
                        }
                    }
                });
                for r in 0..R {
                    for b in 0..B {
                        let wide = _mm256_madd_epi16(pairs[r][b], _mm256_set1_epi16($factor));
                        sums[r][b] = _mm256_add_epi32(sums[r][b], wide);
                    }
                }
            };
            ($steps:tt) => {
                run!($steps, 1, all)
            };
        }
        // SAFETY: the caller's promise.
        unsafe {
            match (Q::BITS, PART) {
                (4, WHOLE) => {
                    run!([0, 4, 1, 5, 2, 6, 3, 7]);
                }
                (5, WHOLE) => {
                    run!([0, 4, 1, 5]);
                    run!([2, 6, 3, 7]);
                }
                (8, WHOLE) => {
                    run!([0, 1, 2, 3, 4, 5, 6, 7], 16, high_nibbles);
                    run!([0, 1, 2, 3, 4, 5, 6, 7], 1, low_nibbles);
                }
                (4..=6, FIRST) => {
                    run!([0, 1]);
                    run!([2, 3]);
                }
                (4..=6, SECOND) => {
                    run!([4, 5]);
                    run!([6, 7]);
                }
                _ => panic!("a part of {} bits: this is a bug", Q::BITS),
            }
        }
    }

    #[inline(always)]
    unsafe fn fine<Q: Quants, const R: usize, const B: usize, const PART: u8>(
        q: *const u8,
        high: *const u8,
        low: *const u8,
        sums: &mut [[__m256i; B]; R],
    ) {
        macro_rules! multiply {
            ($acts:ident, $steps:tt) => {
                steps!(J in $steps => {
                    let values = step::<Pairs, Q, B>(q, J);
                    multiply!($acts, J, values, even_bytes, 0);
                    multiply!($acts, J, values, odd_bytes, 4);
                });
            };
            ($acts:ident, $j:ident, $values:ident, $of:ident, $at:literal) => {
                let mut w = $values;
                for b in 0..B {
                    w[b] = $of(w[b]);
                }
                for r in 0..R {
                    let a = four::<Ymm>($acts.add(r * GROUP + $j % 4 * 8 + $at));
                    for b in 0..B {
                        sums[r][b] = _mm256_add_epi32(sums[r][b], _mm256_madd_epi16(w[b], a));
                    }
                }
            };
        }
        // SAFETY: the caller's promise.
        unsafe {
            if PART != SECOND {
                multiply!(high, [0, 1, 2, 3]);
            }
            if PART != FIRST {
                multiply!(low, [4, 5, 6, 7]);
            }
        }
    }
}

#[inline(always)]
unsafe fn all(v: __m256i) -> __m256i {
    v
}

/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn low_nibbles(v: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_and_si256(v, _mm256_set1_epi8(15)) }
}

/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn high_nibbles(v: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { low_nibbles(_mm256_srli_epi16::<4>(v)) }
}

/// Bytes 0 and 2 of each lane.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn even_bytes(v: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_and_si256(v, _mm256_set1_epi16(255)) }
}

/// Bytes 1 and 3 of each lane.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn odd_bytes(v: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_srli_epi16::<8>(v) }
}

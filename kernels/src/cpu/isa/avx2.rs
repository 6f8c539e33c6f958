//! The kernels for AVX2 with FMA and F16C.
//!
//! Functions of the table carry `#[target_feature]`; the helpers they are made of are `#[inline(always)]`, so that the compiler builds them
//! for the same features. Normalisation, activations and sines are the plain Rust of the scalar table, vectorised 8 wide: same bits.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

mod dense;
mod formats;
pub mod packed;
mod panels;
mod quantized;

use crate::cpu::attention::{Dots, KEYS, RowBlock, attend};
use crate::cpu::dispatch::KernelTable;
use crate::cpu::elementwise::{Activation, add_row, gated_row, rms_norm_row, sin_cos_row};
use std::arch::x86_64::*;

/// The AVX2 table. Its functions need a processor with AVX2, FMA and F16C.
pub const TABLE: KernelTable = KernelTable {
    quantize: quantized::quantize,
    dot_blocks: quantized::dot_blocks,
    unpack: quantized::unpack,
    dot_panels: panels::dot_panels,
    dot_dense: dense::dot_dense,
    dot_wide: dense::dot_wide,
    attend: attend_avx2,
    rms_norm,
    add,
    gated,
    sin_cos,
    packed: packed::PACKED,
};

#[target_feature(enable = "avx2,fma,f16c")]
fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    rms_norm_row(x, weight, eps, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn add(to: &mut [f32], x: &[f32]) {
    add_row(to, x);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn gated(act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    gated_row(act, gate, up, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn sin_cos(angles: &[f32], cos: &mut [f32], sin: &mut [f32]) {
    sin_cos_row(angles, cos, sin);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn attend_avx2(block: &mut RowBlock<'_>) {
    // SAFETY: this function is compiled for, and only called with, the features that `Avx2` needs.
    unsafe { attend::<Avx2>(block) }
}

/// The dot products of attention, 8 keys at a time.
struct Avx2;

impl Dots for Avx2 {
    #[inline(always)]
    fn madd(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    unsafe fn dot_keys(q: &[f32], k: &[f32], first: usize, last: usize, out: &mut [f32; KEYS]) {
        let d = q.len();
        assert!(
            (first + last + 1) * d <= k.len(),
            "keys {first}..={} are outside the block: this is a bug",
            first + last
        );
        // SAFETY: the caller vouches for the features; key `first + min(i, last)` is inside `k` by the assertion.
        unsafe {
            let keys: [*const f32; KEYS] = std::array::from_fn(|i| k.as_ptr().add((first + i.min(last)) * d));
            let mut sums = [_mm256_setzero_ps(); KEYS];
            let whole = d / 8 * 8;
            for at in (0..whole).step_by(8) {
                let q = _mm256_loadu_ps(q.as_ptr().add(at));
                for i in 0..KEYS {
                    sums[i] = _mm256_fmadd_ps(q, _mm256_loadu_ps(keys[i].add(at)), sums[i]);
                }
            }
            _mm256_storeu_ps(out.as_mut_ptr(), totals(sums));
            for (i, y) in out.iter_mut().enumerate() {
                for at in whole..d {
                    *y = q[at].mul_add(*keys[i].add(at), *y);
                }
            }
        }
    }
}

/// The sums of 8 registers, each over its 8 lanes, all in the same order.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn totals(v: [__m256; 8]) -> __m256 {
    // SAFETY: the caller vouches for the features.
    unsafe {
        let a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
        let b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
        _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
    }
}

/// Sum of 8 lanes in halves.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn total(v: __m256) -> f32 {
    // SAFETY: the caller vouches for the features.
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }
}

//! The kernels for AVX2 with FMA and F16C.
//!
//! Functions of the table carry `#[target_feature]`; the helpers they are made of are `#[inline(always)]`, so that the compiler builds them
//! for the same features. Normalisation, activations and sines are the plain Rust of the scalar table, vectorised 8 wide: same bits.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

mod attend;
mod floats;
mod formats;
pub mod packed;
mod panels;
mod quantized;

use crate::cpu::dispatch::{FloatKernels, KernelTable};
use crate::cpu::elementwise::{Activation, add_row, gated_row, rms_norm_row, sin_cos_row};
use crate::cpu::encoder::{EncoderKernels, FullHead, Pointwise, activate_rows, attend_head, layer_norm_row};
use crate::cpu::rope::rotate_head;
use std::arch::x86_64::*;

/// The AVX2 table. Its functions need a processor with AVX2, FMA and F16C.
pub const TABLE: KernelTable = KernelTable {
    quantize: quantized::quantize,
    dot_blocks: quantized::dot_blocks,
    unpack: quantized::unpack,
    dot_panels: panels::dot_panels,
    attend: attend::attend,
    fold: attend::fold,
    attends_halves: true,
    shorts: None,
    quads: None,
    widen_keys: attend::widen_keys,
    widen_values: attend::widen_values,
    round_key: attend::round_key,
    round_value: attend::round_value,
    rms_norm,
    add,
    gated,
    sin_cos,
    rotate,
    encoder: EncoderKernels { layer_norm, activate, attend: attend_full },
    packed: packed::PACKED,
    floats: FloatKernels { dot: floats::dot, widen: floats::widen, pairs: None },
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
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    rotate_head(head, cos, sin);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn layer_norm(x: &mut [f32], weight: &[f32], shift: &[f32], eps: f32) {
    layer_norm_row(x, weight, shift, eps);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn activate(act: Pointwise, bias: &[f32], x: &mut [f32]) {
    activate_rows(act, bias, x);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn attend_full(head: &mut FullHead<'_>) {
    attend_head::<true>(head);
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

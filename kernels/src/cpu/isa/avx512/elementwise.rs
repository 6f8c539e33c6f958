//! Norms, activations, rotations and the attention of encoders: the plain Rust of the scalar table, vectorised 16 wide. Same bits, but
//! for attention, which is AVX2's (with fused operations).

use crate::cpu::elementwise::{Activation, add_row, gated_row, rms_norm_row, sin_cos_row};
use crate::cpu::encoder::{FullHead, Pointwise, activate_rows, attend_head, layer_norm_row};
use crate::cpu::rope::rotate_head;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    rms_norm_row(x, weight, eps, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn add(to: &mut [f32], x: &[f32]) {
    add_row(to, x);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn gated(act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    gated_row(act, gate, up, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn sin_cos(angles: &[f32], cos: &mut [f32], sin: &mut [f32]) {
    sin_cos_row(angles, cos, sin);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    rotate_head(head, cos, sin);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn layer_norm(x: &mut [f32], weight: &[f32], shift: &[f32], eps: f32) {
    layer_norm_row(x, weight, shift, eps);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn activate(act: Pointwise, bias: &[f32], x: &mut [f32]) {
    activate_rows(act, bias, x);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn attend_full(head: &mut FullHead<'_>) {
    attend_head::<true>(head);
}

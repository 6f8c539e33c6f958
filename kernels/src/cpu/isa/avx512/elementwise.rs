//! Norms, activations and rotations: the plain Rust of the scalar table, vectorised 16 wide. Same bits.

use crate::cpu::elementwise::{Activation, add_row, gated_row, rms_norm_row, sin_cos_row};
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

//! The middle of a gated feed-forward: `act(gate) · up`.
use candle_core::{Result, Tensor};
use wick_kernels::Activation;

use super::context::ExecContext;
use super::slices::{f32_slice, tensor};

/// `act(gate) · up`, element by element; both `[tokens, inner]`.
///
/// # Errors
/// The shapes differ, or candle failed.
pub fn gated_activation(cx: &ExecContext, act: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let Some(kernels) = cx.kernels() else { return reference(act, gate, up) };
    let mut out = vec![0.0; gate.elem_count()];
    wick_kernels::gated_activation(&kernels.cpu, act, &f32_slice(gate)?, &f32_slice(up)?, &mut out);
    tensor(out, gate.shape())
}

fn reference(act: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match act {
        Activation::Silu => gate.silu()? * up,
        Activation::GeluTanh => gate.gelu()? * up, // candle's `gelu` is the tanh form
    }
}

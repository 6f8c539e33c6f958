//! The gated feed-forward block: `down(act(gate(x)) · up(x))`.
use candle_core::{Result, Tensor};
use wick_kernels::{Activation, gated_activation, packed_gated_matmul};

use super::context::{CpuKernels, ExecContext};
use super::matmul::{self, Projection, cpu_shape, project};
use super::slices::{f32_slice, tensor};
use crate::weights::Matrix;

/// The matrices of a block, and what is done to the gate.
pub struct GatedFeedForward<'a> {
    pub gate: Projection<'a>,
    pub up: Projection<'a>,
    pub down: Projection<'a>,
    pub act: Activation,
}

/// Rows that go through the block together. What is between the products of 96 rows stays in the caches; fewer would walk the weights
/// more often. A multiple of the kernels' tile.
const ROWS: usize = 96;

/// Applies the block to `x` `[tokens, hidden]`; returns `[tokens, hidden]`. `x` is taken by value, for its memory, and must not be shared.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn gated_feed_forward(cx: &ExecContext, ffn: &GatedFeedForward, x: Tensor) -> Result<Tensor> {
    let Some(kernels) = cx.kernels() else { return reference(ffn, &x) };
    let (tokens, hidden) = x.dims2()?;
    let width = cpu_shape(ffn.down.weight)?.0;
    let mut out = kernels.buffer(tokens * width);
    {
        let x = f32_slice(&x)?;
        let chunks = x.chunks(ROWS * hidden.max(1)).zip(out.chunks_mut(ROWS * width.max(1)));
        chunks.into_iter().try_for_each(|(x, out)| some_rows(kernels, ffn, x, hidden, out))?;
    }
    kernels.recycle(x);
    tensor(out, (tokens, width))
}

fn some_rows(kernels: &CpuKernels, ffn: &GatedFeedForward, x: &[f32], hidden: usize, out: &mut [f32]) -> Result<()> {
    let inner = cpu_shape(ffn.gate.weight)?.0;
    let len = x.len() / hidden * inner;
    let mut gated = kernels.buffer(len);
    match (ffn.gate, ffn.up) {
        (
            Projection { weight: Matrix::Packed(gate), bias: None },
            Projection { weight: Matrix::Packed(up), bias: None },
        ) if gate.cols() == hidden && (up.rows(), up.cols()) == (inner, hidden) => {
            let (tokens, scratch) = (x.len() / hidden, &mut kernels.packed.borrow_mut());
            let CpuKernels { cpu, activations, .. } = kernels;
            packed_gated_matmul(cpu, ffn.act, [gate, up], x, tokens, &mut gated, scratch, *activations);
        }
        _ => {
            let (mut gate, mut up) = (kernels.buffer(len), kernels.buffer(len));
            project(kernels, &[ffn.gate, ffn.up], x, hidden, &mut [&mut gate, &mut up])?;
            gated_activation(&kernels.cpu, ffn.act, &gate, &up, &mut gated);
            kernels.give_back(gate);
            kernels.give_back(up);
        }
    }
    project(kernels, &[ffn.down], &gated, inner, &mut [out])?;
    kernels.give_back(gated);
    Ok(())
}

fn reference(ffn: &GatedFeedForward, x: &Tensor) -> Result<Tensor> {
    let outs = matmul::reference(&[ffn.gate, ffn.up], x)?;
    let (gate, up) = (&outs[0], &outs[1]);
    let gated = match ffn.act {
        Activation::Silu => gate.silu()? * up,
        Activation::GeluTanh => gate.gelu()? * up, // candle's `gelu` is the tanh form
    };
    Ok(matmul::reference(&[ffn.down], &gated?)?.swap_remove(0))
}

//! Products with weight matrices.
use candle_core::{DType, Device, Module, Result, Tensor, bail, quantized::QMatMul};

use super::context::{CpuKernels, ExecContext};
use super::slices::{f32_slice, tensor};
use crate::weights::{MappedMatrix, Matrix};

/// `y = x · weightᵀ (+ bias)`, with `weight` `[out, in]` and `bias` `[out]`.
#[derive(Clone, Copy)]
pub struct Projection<'a> {
    pub weight: &'a Matrix,
    pub bias: Option<&'a Tensor>,
}

/// Applies several projections to one `x` `[tokens, in]`; returns one `[tokens, out_i]` each. As a group, because the kernels then
/// prepare `x` once and run one parallel region: q/k/v and gate/up.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn matmul(cx: &ExecContext, projections: &[Projection], x: &Tensor) -> Result<Vec<Tensor>> {
    match cx.kernels() {
        Some(kernels) => cpu(kernels, projections, x),
        None => reference(projections, x),
    }
}

fn cpu(kernels: &CpuKernels, projections: &[Projection], x: &Tensor) -> Result<Vec<Tensor>> {
    let (tokens, _) = x.dims2()?;
    let weights = projections.iter().map(|p| mapped(p.weight)).collect::<Result<Vec<_>>>()?;
    let mut outs = product(kernels, &weights, x)?;
    for (out, projection) in outs.iter_mut().zip(projections) {
        if let Some(bias) = projection.bias {
            let bias = f32_slice(bias)?;
            for row in out.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b);
            }
        }
    }
    outs.into_iter().zip(&weights).map(|(out, w)| tensor(out, (tokens, w.rows))).collect()
}

/// `x · wᵀ` for every `w`, as plain rows.
pub(super) fn product(kernels: &CpuKernels, weights: &[&MappedMatrix], x: &Tensor) -> Result<Vec<Vec<f32>>> {
    let (tokens, width) = x.dims2()?;
    if let Some(w) = weights.iter().find(|w| w.cols != width) {
        bail!("a matrix of {} x {} cannot be applied to rows of {width} values", w.rows, w.cols)
    }
    let mut outs: Vec<Vec<f32>> = weights.iter().map(|w| vec![0.0; tokens * w.rows]).collect();
    if tokens > 0 {
        let x = f32_slice(x)?;
        let refs: Vec<_> = weights.iter().map(|w| w.as_ref()).collect();
        let mut slices: Vec<&mut [f32]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
        wick_kernels::matmul(&kernels.cpu, &refs, &x, tokens, &mut slices, &mut kernels.matmul.borrow_mut());
    }
    Ok(outs)
}

/// The CPU form of a matrix.
pub(super) fn mapped(matrix: &Matrix) -> Result<&MappedMatrix> {
    match matrix {
        Matrix::Mapped(m) => Ok(m),
        Matrix::Dense(_) | Matrix::Quantized(_) => bail!("an accelerator's matrix reached the CPU kernels"),
    }
}

pub(super) fn reference(projections: &[Projection], x: &Tensor) -> Result<Vec<Tensor>> {
    projections
        .iter()
        .map(|p| {
            let y = product_reference(p.weight, x)?;
            match p.bias {
                Some(bias) => y.broadcast_add(bias),
                None => Ok(y),
            }
        })
        .collect()
}

/// `x · weightᵀ` in f32, from any form of the matrix.
pub(super) fn product_reference(weight: &Matrix, x: &Tensor) -> Result<Tensor> {
    match weight {
        Matrix::Mapped(m) => x.matmul(&dequantized(m, x.device())?.t()?),
        Matrix::Dense(w) => x.to_dtype(w.dtype())?.matmul(&w.t()?)?.to_dtype(DType::F32),
        Matrix::Quantized(w) => QMatMul::from_arc(w.clone())?.forward(x),
    }
}

/// A mapped matrix as a dense f32 tensor `[rows, cols]`.
pub(super) fn dequantized(matrix: &MappedMatrix, device: &Device) -> Result<Tensor> {
    let mut values = vec![0.0; matrix.rows * matrix.cols];
    wick_kernels::dequantize(matrix.ty, matrix.bytes.as_slice(), &mut values);
    Tensor::from_vec(values, (matrix.rows, matrix.cols), device)
}

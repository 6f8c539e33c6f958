//! Products with weight matrices.
use candle_core::{DType, Device, Error, Module, Result, Tensor, bail, quantized::QMatMul};
use wick_kernels::{FloatMatrix, PackedMatrix, Precision, float_matmul, packed_matmul};

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
/// prepare `x` once and run one parallel region: q/k/v and gate/up. `x` is taken by value, for its memory, and must not be shared.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn matmul(cx: &ExecContext, projections: &[Projection], x: Tensor) -> Result<Vec<Tensor>> {
    let Some(kernels) = cx.kernels() else { return reference(projections, &x) };
    let (tokens, width) = x.dims2()?;
    let sizes = projections.iter().map(|p| Ok(cpu_shape(p.weight)?.0)).collect::<Result<Vec<_>>>()?;
    let mut outs: Vec<Vec<f32>> = sizes.iter().map(|rows| kernels.buffer(tokens * rows)).collect();
    let mut views: Vec<&mut [f32]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
    project(kernels, projections, &f32_slice(&x)?, width, &mut views)?;
    kernels.recycle(x);
    outs.into_iter().zip(sizes).map(|(out, rows)| tensor(out, (tokens, rows))).collect()
}

/// All projections of the rows of `x`, with biases, to plain rows.
pub(super) fn project(
    kernels: &CpuKernels,
    projections: &[Projection],
    x: &[f32],
    width: usize,
    outs: &mut [&mut [f32]],
) -> Result<()> {
    let weights: Vec<&Matrix> = projections.iter().map(|p| p.weight).collect();
    product(kernels, &weights, x, width, outs, kernels.activations)?;
    for (out, projection) in outs.iter_mut().zip(projections) {
        if let Some(bias) = projection.bias {
            let bias = f32_slice(bias)?;
            for row in out.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b);
            }
        }
    }
    Ok(())
}

/// `x · wᵀ` for every `w`, as plain rows. Packed matrices, packed floats and those in the file's form take a product each.
pub(super) fn product(
    kernels: &CpuKernels,
    weights: &[&Matrix],
    x: &[f32],
    width: usize,
    outs: &mut [&mut [f32]],
    activations: Precision,
) -> Result<()> {
    for w in weights {
        let (rows, cols) = cpu_shape(w)?;
        if cols != width {
            bail!("a matrix of {rows} x {cols} cannot be applied to rows of {width} values")
        }
    }
    let tokens = x.len() / width.max(1);
    if tokens == 0 {
        return Ok(());
    }
    let (mut packed, mut packed_outs) = (vec![], vec![]);
    let (mut floats, mut float_outs) = (vec![], vec![]);
    let (mut mapped, mut mapped_outs) = (vec![], vec![]);
    for (w, out) in weights.iter().zip(outs) {
        match w {
            Matrix::Packed(w) => {
                packed.push(&**w);
                packed_outs.push(&mut **out);
            }
            Matrix::Floats(w) => {
                floats.push(&**w);
                float_outs.push(&mut **out);
            }
            Matrix::Mapped(w) => {
                mapped.push(w.as_ref());
                mapped_outs.push(&mut **out);
            }
            Matrix::Dense(_) | Matrix::Quantized(_) => return Err(misplaced()),
        }
    }
    let cpu = &kernels.cpu;
    packed_matmul(cpu, &packed, x, tokens, &mut packed_outs, &mut kernels.packed.borrow_mut(), activations);
    float_matmul(cpu, &floats, x, tokens, &mut float_outs, &mut kernels.floats.borrow_mut(), activations);
    wick_kernels::matmul(cpu, &mapped, x, tokens, &mut mapped_outs, &mut kernels.matmul.borrow_mut());
    Ok(())
}

/// Rows and columns of a matrix in a form for the CPU.
pub(super) fn cpu_shape(matrix: &Matrix) -> Result<(usize, usize)> {
    match matrix {
        Matrix::Mapped(m) => Ok((m.rows, m.cols)),
        Matrix::Packed(m) => Ok((m.rows(), m.cols())),
        Matrix::Floats(m) => Ok((m.rows(), m.cols())),
        Matrix::Dense(_) | Matrix::Quantized(_) => Err(misplaced()),
    }
}

pub(super) fn misplaced() -> Error {
    Error::msg("an accelerator's matrix reached the CPU kernels")
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
        Matrix::Packed(m) => x.matmul(&unpacked(m, x.device())?.t()?),
        Matrix::Floats(m) => x.matmul(&widened(m, x.device())?.t()?),
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

/// A packed matrix as a dense f32 tensor `[rows, cols]`.
pub(super) fn unpacked(matrix: &PackedMatrix, device: &Device) -> Result<Tensor> {
    by_rows((matrix.rows(), matrix.cols()), device, |row, values| matrix.row(row, values))
}

/// A packed matrix of floats as a dense f32 tensor `[rows, cols]`.
pub(super) fn widened(matrix: &FloatMatrix, device: &Device) -> Result<Tensor> {
    by_rows((matrix.rows(), matrix.cols()), device, |row, values| matrix.row(row, values))
}

fn by_rows((rows, cols): (usize, usize), device: &Device, fill: impl Fn(usize, &mut [f32])) -> Result<Tensor> {
    let mut values = vec![0.0; rows * cols];
    for (row, values) in values.chunks_exact_mut(cols.max(1)).enumerate() {
        fill(row, values);
    }
    Tensor::from_vec(values, (rows, cols), device)
}

//! The output matrix: the last op, and the way back to the host.
use candle_core::{Result, Tensor};
use wick_kernels::Precision;

use super::context::ExecContext;
use super::matmul::{cpu_shape, product, product_reference};
use super::slices::f32_slice;
use crate::weights::Matrix;

/// Logits of the normed rows `x` `[rows, hidden]` on the host, `rows · vocab` values; with a `softcap`, `cap · tanh(logit / cap)`.
/// `x` is taken by value, for its memory, and must not be shared. The values are many: give their memory back with
/// [`ExecContext::give_back`].
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn logits(cx: &ExecContext, matrix: &Matrix, x: Tensor, softcap: Option<f32>) -> Result<Vec<f32>> {
    let Some(kernels) = cx.kernels() else { return reference(matrix, &x, softcap) };
    let (rows, width) = x.dims2()?;
    // Errors of `x` show in the log-probabilities undamped here, and a prompt needs one row of this product: always the finest rounding.
    let mut values = kernels.buffer(rows * cpu_shape(matrix)?.0);
    product(kernels, &[matrix], &f32_slice(&x)?, width, &mut [&mut values], Precision::Exact)?;
    kernels.recycle(x);
    if let Some(cap) = softcap {
        for value in &mut values {
            *value = cap * (*value / cap).tanh();
        }
    }
    Ok(values)
}

fn reference(matrix: &Matrix, x: &Tensor, softcap: Option<f32>) -> Result<Vec<f32>> {
    let logits = product_reference(matrix, x)?;
    let logits = match softcap {
        Some(cap) => ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?,
        None => logits,
    };
    logits.flatten_all()?.to_vec1()
}

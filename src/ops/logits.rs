//! The output matrix: the last op, and the way back to the host.
use candle_core::{Result, Tensor};
use wick_kernels::Precision;

use super::context::ExecContext;
use super::matmul::{product, product_reference};
use crate::weights::Matrix;

/// Logits of the normed rows `x` `[rows, hidden]` on the host, `rows · vocab` values; with a `softcap`, `cap · tanh(logit / cap)`.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn logits(cx: &ExecContext, matrix: &Matrix, x: &Tensor, softcap: Option<f32>) -> Result<Vec<f32>> {
    let Some(kernels) = cx.kernels() else { return reference(matrix, x, softcap) };
    // Errors of `x` show in the log-probabilities undamped here, and a prompt needs one row of this product: always the finest rounding.
    let mut values = product(kernels, &[matrix], x, Precision::Exact)?.swap_remove(0);
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

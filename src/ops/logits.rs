//! The output matrix: the last op, and the way back to the host.
use candle_core::{Result, Tensor};
use wick_kernels::{Precision, float_refine, packed_refine};

use super::context::ExecContext;
use super::matmul::{cpu_shape, product, product_reference};
use super::slices::f32_slice;
use crate::weights::Matrix;

/// How far below the row's largest a logit may be to be computed with the finest activations where others are not: a token there has at most
/// 1/55 of the most likely one's probability.
const REFINED_BELOW_MAX: f32 = 4.0;

/// Logits of the normed rows `x` `[rows, hidden]` on the host, `rows · vocab` values; with a `softcap`, `cap · tanh(logit / cap)`.
/// `x` is taken by value, for its memory, and must not be shared. The values are many: give their memory back with
/// [`ExecContext::give_back`].
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn logits(cx: &ExecContext, matrix: &Matrix, x: Tensor, softcap: Option<f32>) -> Result<Vec<f32>> {
    let Some(kernels) = cx.kernels() else { return reference(matrix, &x, softcap) };
    let (rows, width) = x.dims2()?;
    let mut values = kernels.logits_buffer(rows * cpu_shape(matrix)?.0);
    let rows_of_x = f32_slice(&x)?;
    product(kernels, &[matrix], &rows_of_x, width, &mut [&mut values], kernels.activations)?;
    // Errors of `x` show in the log-probabilities undamped here: likely tokens get the finest rounding.
    let (cpu, activations) = (&kernels.cpu, kernels.activations);
    match matrix {
        Matrix::Packed(w) if activations != Precision::Exact => {
            let scratch = &mut kernels.packed.borrow_mut();
            packed_refine(cpu, w, &rows_of_x, rows, &mut values, scratch, REFINED_BELOW_MAX);
        }
        Matrix::Floats(w) => {
            let scratch = &mut kernels.floats.borrow_mut();
            float_refine(cpu, w, &rows_of_x, rows, &mut values, scratch, activations, REFINED_BELOW_MAX);
        }
        _ => {}
    }
    drop(rows_of_x);
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

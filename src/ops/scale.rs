//! Factors on the columns of rows.
use candle_core::{Result, Tensor};

use super::context::ExecContext;
use super::slices::{f32_slice, with_f32_mut};

/// Multiplies the columns of `x`, `[tokens, columns]`, by `factors`, `[columns]`. On the CPU in place, so it is taken by value and must not be
/// shared.
///
/// # Errors
/// The numbers of columns differ, or candle failed.
pub fn scale_columns(cx: &ExecContext, x: Tensor, factors: &Tensor) -> Result<Tensor> {
    let (_, columns) = x.dims2()?;
    if columns != factors.dims1()? {
        candle_core::bail!("{columns} columns and {} factors", factors.dims1()?)
    }
    if cx.kernels().is_none() {
        return x.broadcast_mul(factors);
    }
    let factors = f32_slice(factors)?;
    with_f32_mut(&x, |x| {
        for row in x.chunks_exact_mut(columns) {
            row.iter_mut().zip(factors.iter()).for_each(|(x, factor)| *x *= factor);
        }
    })?;
    Ok(x)
}

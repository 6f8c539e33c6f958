//! Root-mean-square norms.
use candle_core::{D, Result, Tensor};

use super::context::ExecContext;
use super::slices::{f32_slice, tensor, with_f32_mut};

/// `x / sqrt(mean(x²) + eps) · weight` over the last dimension; `x` `[.., width]`, `weight` `[width]`.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn rms_norm(cx: &ExecContext, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let Some(kernels) = cx.kernels() else { return reference(x, weight, eps) };
    let mut out = kernels.buffer(x.elem_count());
    wick_kernels::rms_norm(&kernels.cpu, &f32_slice(x)?, &f32_slice(weight)?, eps, &mut out);
    tensor(out, x.shape())
}

/// Norms `x` and lets it go: it is taken by value, for its memory, and must not be shared.
///
/// # Errors
/// As [`rms_norm`].
pub fn rms_norm_owned(cx: &ExecContext, x: Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let out = rms_norm(cx, &x, weight, eps)?;
    cx.recycle(x);
    Ok(out)
}

/// Adds `x` to the residual stream and norms the sum: returns the new residual and its norm. On the CPU the residual is updated in place
/// and the memory of `x` used again, so both are taken by value and must not be shared.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn add_rms_norm(
    cx: &ExecContext,
    residual: Tensor,
    x: Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    let Some(kernels) = cx.kernels() else {
        let sum = (residual + x)?;
        let normed = reference(&sum, weight, eps)?;
        return Ok((sum, normed));
    };
    let mut out = kernels.buffer(x.elem_count());
    {
        let (x_values, weight) = (f32_slice(&x)?, f32_slice(weight)?);
        with_f32_mut(&residual, |r| wick_kernels::add_rms_norm(&kernels.cpu, r, &x_values, &weight, eps, &mut out))?;
    }
    let normed = tensor(out, x.shape())?;
    kernels.recycle(x);
    Ok((residual, normed))
}

pub(super) fn reference(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean_square + f64::from(eps))?.sqrt()?)?.broadcast_mul(weight)
}

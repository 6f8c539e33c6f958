//! Rotary position embedding (Su et al., 2021, arXiv:2104.09864), half-split pairing: dimension `i` turns with `i + rotary_dim / 2`.
use candle_core::{D, DType, Result, Tensor};

use super::batch::Indices;
use super::context::ExecContext;
use super::slices::with_f32_mut;

/// How far each pair of dimensions turns per position.
#[derive(Debug, Clone)]
pub struct RopeParams {
    /// Leading dimensions of a head that turn; the others pass.
    pub rotary_dim: usize,
    /// `rotary_dim / 2` inverse frequencies.
    pub inv_freq: Vec<f32>,
    /// Factor on cos and sin.
    pub mscale: f32,
}

/// Turns every head of `x` `[tokens, heads · head_dim]` by its token's position. On the CPU in place, so `x` is taken by value and must
/// not be shared.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn rope(cx: &ExecContext, x: Tensor, head_dim: usize, params: &RopeParams, positions: &Indices) -> Result<Tensor> {
    let Some(kernels) = cx.kernels() else { return reference(&x, head_dim, params, positions) };
    let (_, width) = x.dims2()?;
    with_f32_mut(&x, |values| {
        let (dim, freq) = (params.rotary_dim, &params.inv_freq);
        let heads = width / head_dim;
        wick_kernels::rope(
            &kernels.cpu,
            values,
            heads,
            head_dim,
            dim,
            width,
            positions.as_slice(),
            freq,
            params.mscale,
        );
    })?;
    Ok(x)
}

fn reference(x: &Tensor, head_dim: usize, params: &RopeParams, positions: &Indices) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    let half = params.rotary_dim / 2;
    let positions = positions.tensor(x.device())?.to_dtype(DType::F32)?.reshape((tokens, 1))?;
    let inv_freq = Tensor::from_slice(&params.inv_freq, (1, half), x.device())?;
    let angles = positions.broadcast_mul(&inv_freq)?.reshape((tokens, 1, half))?;
    let scale = f64::from(params.mscale);
    let (cos, sin) = ((angles.cos()? * scale)?, (angles.sin()? * scale)?);

    let heads = x.reshape((tokens, width / head_dim, head_dim))?;
    let first = heads.narrow(D::Minus1, 0, half)?;
    let second = heads.narrow(D::Minus1, half, half)?;
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    let mut parts = vec![turned_first, turned_second];
    if params.rotary_dim < head_dim {
        parts.push(heads.narrow(D::Minus1, params.rotary_dim, head_dim - params.rotary_dim)?);
    }
    Tensor::cat(&parts, D::Minus1)?.reshape((tokens, width))
}

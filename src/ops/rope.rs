//! Rotary position embedding (Su et al., 2021, arXiv:2104.09864), half-split pairing: dimension `i` turns with `i + rotary_dim / 2`.
use candle_core::{D, DType, Result, Tensor, bail};
use wick_kernels::Heads;

use super::batch::Indices;
use super::context::ExecContext;
use super::norm;
use super::slices::{f32_slice, with_f32_mut};

/// How far each pair of dimensions turns per position.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeParams {
    /// Leading dimensions of a head that turn; the others pass.
    pub rotary_dim: usize,
    /// `rotary_dim / 2` inverse frequencies.
    pub inv_freq: Vec<f32>,
    /// Factor on cos and sin.
    pub mscale: f32,
}

/// By which angles the tokens of a step turn: the same for every layer with the same [`RopeParams`].
pub struct Rotation(Angles);

enum Angles {
    Kernels(wick_kernels::Rotation),
    /// Cosines and sines `[tokens, 1, rotary_dim / 2]`.
    Tensors {
        cos: Tensor,
        sin: Tensor,
    },
}

/// Cosines and sines for the tokens at `positions`.
///
/// # Errors
/// Candle failed.
pub fn rotation(cx: &ExecContext, params: &RopeParams, positions: &Indices) -> Result<Rotation> {
    if let Some(kernels) = cx.kernels() {
        let RopeParams { inv_freq, mscale, .. } = params;
        let angles = wick_kernels::Rotation::new(&kernels.cpu, positions.as_slice(), inv_freq, *mscale);
        return Ok(Rotation(Angles::Kernels(angles)));
    }
    let (tokens, half) = (positions.len(), params.rotary_dim / 2);
    let positions = positions.tensor(cx.device())?.to_dtype(DType::F32)?.reshape((tokens, 1))?;
    let inv_freq = Tensor::from_slice(&params.inv_freq, (1, half), cx.device())?;
    let angles = positions.broadcast_mul(&inv_freq)?.reshape((tokens, 1, half))?;
    let scale = f64::from(params.mscale);
    Ok(Rotation(Angles::Tensors { cos: (angles.cos()? * scale)?, sin: (angles.sin()? * scale)? }))
}

/// A norm that each head goes through before it turns.
#[derive(Clone, Copy)]
pub struct HeadNorm<'a> {
    /// `[head_dim]`.
    pub weight: &'a Tensor,
    pub eps: f32,
}

/// Norms every head of q and of k, both `[tokens, heads · head_dim]`, where there is a norm, and turns it by its token's angles. On the
/// CPU in place, so both are taken by value and must not be shared.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn rotate_heads(
    cx: &ExecContext,
    (q, k): (Tensor, Tensor),
    head_dim: usize,
    norms: Option<(HeadNorm, HeadNorm)>,
    rotation: &Rotation,
) -> Result<(Tensor, Tensor)> {
    let (q_norm, k_norm) = norms.unzip();
    match (cx.kernels(), &rotation.0) {
        (Some(kernels), Angles::Kernels(rotation)) => {
            let (tokens, _) = q.dims2()?;
            let q_weight = q_norm.map(|n| f32_slice(n.weight)).transpose()?;
            let k_weight = k_norm.map(|n| f32_slice(n.weight)).transpose()?;
            with_f32_mut(&q, |q| {
                with_f32_mut(&k, |k| {
                    let q = Heads { x: q, norm: q_weight.as_deref().zip(q_norm.map(|n| n.eps)) };
                    let k = Heads { x: k, norm: k_weight.as_deref().zip(k_norm.map(|n| n.eps)) };
                    wick_kernels::rotate_heads(&kernels.cpu, &mut [q, k], head_dim, tokens, rotation);
                })
            })??;
            Ok((q, k))
        }
        (None, Angles::Tensors { cos, sin }) => {
            Ok((reference(&q, head_dim, q_norm, cos, sin)?, reference(&k, head_dim, k_norm, cos, sin)?))
        }
        _ => bail!("angles of another context"),
    }
}

fn reference(x: &Tensor, head_dim: usize, head_norm: Option<HeadNorm>, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    let half = cos.dim(D::Minus1)?;
    let mut heads = x.reshape((tokens, width / head_dim, head_dim))?;
    if let Some(HeadNorm { weight, eps }) = head_norm {
        heads = norm::reference(&heads, weight, eps)?;
    }
    let first = heads.narrow(D::Minus1, 0, half)?;
    let second = heads.narrow(D::Minus1, half, half)?;
    let turned_first = (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?;
    let turned_second = (second.broadcast_mul(cos)? + first.broadcast_mul(sin)?)?;
    let mut parts = vec![turned_first, turned_second];
    if 2 * half < head_dim {
        parts.push(heads.narrow(D::Minus1, 2 * half, head_dim - 2 * half)?);
    }
    Tensor::cat(&parts, D::Minus1)?.reshape((tokens, width))
}

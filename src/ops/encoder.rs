//! What encoders need beside the decoders' ops. Biases are added by the op that reads a product next, so products here have none.
use candle_core::{D, Result, Tensor, bail};
use wick_kernels::{FullAttentionArgs, Pointwise, Precision};

use super::batch::Indices;
use super::context::{CpuKernels, ExecContext};
use super::embedding::{look_up, reference as embedding_reference};
use super::matmul::{cpu_shape, product, product_reference};
use super::slices::{f32_slice, tensor, with_f32_mut};
use crate::weights::Matrix;

/// The sum of one row of each table for each token, in the tables' order: f32 `[tokens, hidden]`.
///
/// # Errors
/// The lists have different lengths, an id is beyond its table, or candle failed.
pub fn sum_embeddings(cx: &ExecContext, tables: &[(&Matrix, &[u32])]) -> Result<Tensor> {
    let [(first, ids), more @ ..] = tables else { bail!("there is no table to look up in") };
    if more.iter().any(|(_, other)| other.len() != ids.len()) {
        bail!("every table wants one id for each token")
    }
    let Some(kernels) = cx.kernels() else {
        let rows = |(table, ids): &(&Matrix, &[u32])| embedding_reference(cx, table, &Indices::new(ids.to_vec()), 1.0);
        return more.iter().try_fold(rows(&tables[0])?, |sum, table| sum + rows(table)?);
    };
    let (_, cols) = cpu_shape(first)?;
    let (mut out, mut row) = (kernels.buffer(ids.len() * cols), vec![0.0; cols]);
    for (at, out) in out.chunks_exact_mut(cols).enumerate() {
        look_up(first, ids[at], out)?;
        for (table, ids) in more {
            look_up(table, ids[at], &mut row)?;
            out.iter_mut().zip(&row).for_each(|(sum, value)| *sum += value);
        }
    }
    tensor(out, (ids.len(), cols))
}

/// How finely the inputs of an encoder's products are rounded.
fn precision(kernels: &CpuKernels) -> Precision {
    match kernels.activations {
        Precision::Int8 | Precision::Mixed => Precision::Mixed,
        Precision::Exact => Precision::Exact,
    }
}

/// A layer norm's parameters.
#[derive(Clone, Copy)]
pub struct LayerNormParams<'a> {
    /// `[width]`.
    pub weight: &'a Tensor,
    /// `[width]`.
    pub shift: &'a Tensor,
    pub eps: f32,
}

/// `x · weightᵀ` for each weight; `x` `[tokens, in]` stays with the caller.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn products(cx: &ExecContext, weights: &[&Matrix], x: &Tensor) -> Result<Vec<Tensor>> {
    let Some(kernels) = cx.kernels() else {
        return weights.iter().map(|weight| product_reference(weight, x)).collect();
    };
    let (tokens, width) = x.dims2()?;
    let sizes = weights.iter().map(|weight| Ok(cpu_shape(weight)?.0)).collect::<Result<Vec<_>>>()?;
    let mut outs: Vec<Vec<f32>> = sizes.iter().map(|rows| kernels.buffer(tokens * rows)).collect();
    let mut views: Vec<&mut [f32]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
    product(kernels, weights, &f32_slice(x)?, width, &mut views, precision(kernels))?;
    outs.into_iter().zip(sizes).map(|(out, rows)| tensor(out, (tokens, rows))).collect()
}

/// The norm of `x + bias + residual`. Both tensors are taken by value, for their memory, and must not be shared.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn add_layer_norm(
    cx: &ExecContext,
    x: Tensor,
    bias: Option<&Tensor>,
    residual: Option<Tensor>,
    norm: LayerNormParams,
) -> Result<Tensor> {
    let Some(kernels) = cx.kernels() else {
        let x = bias.map_or_else(|| Ok(x.clone()), |bias| x.broadcast_add(bias))?;
        let x = residual.map_or_else(|| Ok(x.clone()), |residual| &x + residual)?;
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x.broadcast_div(&(variance + f64::from(norm.eps))?.sqrt()?)?;
        return x.broadcast_mul(norm.weight)?.broadcast_add(norm.shift);
    };
    {
        let bias = bias.map(f32_slice).transpose()?;
        let added = residual.as_ref().map(f32_slice).transpose()?;
        let (weight, shift) = (f32_slice(norm.weight)?, f32_slice(norm.shift)?);
        let (bias, added) = (bias.as_deref(), added.as_deref());
        let cpu = &kernels.cpu;
        with_f32_mut(&x, |x| wick_kernels::add_layer_norm(cpu, x, bias, added, &weight, &shift, norm.eps))?;
    }
    if let Some(residual) = residual {
        kernels.recycle(residual);
    }
    Ok(x)
}

/// `act(x + bias)`. `x` is taken by value, for its memory, and must not be shared.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn bias_activation(cx: &ExecContext, act: Pointwise, bias: &Tensor, x: Tensor) -> Result<Tensor> {
    let Some(kernels) = cx.kernels() else { return activation_reference(act, &x.broadcast_add(bias)?) };
    let bias = f32_slice(bias)?;
    with_f32_mut(&x, |x| wick_kernels::bias_activation(&kernels.cpu, act, &bias, x))?;
    Ok(x)
}

fn activation_reference(act: Pointwise, x: &Tensor) -> Result<Tensor> {
    match act {
        Pointwise::Gelu => x.gelu_erf(),
        Pointwise::GeluTanh => x.gelu(), // candle's `gelu` is the tanh form
        Pointwise::Relu => x.relu(),
        Pointwise::Silu => x.silu(),
        Pointwise::Tanh => x.tanh(),
    }
}

/// The matrices of a feed-forward block, without the bias of the second one.
pub struct FeedForward<'a> {
    pub up: &'a Matrix,
    pub up_bias: &'a Tensor,
    pub act: Pointwise,
    pub down: &'a Matrix,
}

/// Rows that go through the block together, as in [`super::gated_feed_forward`].
const ROWS: usize = 96;

/// `act(x · upᵀ + bias) · downᵀ`; `x` `[tokens, hidden]` stays with the caller.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn feed_forward(cx: &ExecContext, ffn: &FeedForward, x: &Tensor) -> Result<Tensor> {
    let Some(kernels) = cx.kernels() else {
        let up = product_reference(ffn.up, x)?.broadcast_add(ffn.up_bias)?;
        return product_reference(ffn.down, &activation_reference(ffn.act, &up)?);
    };
    let (tokens, hidden) = x.dims2()?;
    let width = cpu_shape(ffn.down)?.0;
    let mut out = kernels.buffer(tokens * width);
    let x = f32_slice(x)?;
    let chunks = x.chunks(ROWS * hidden.max(1)).zip(out.chunks_mut(ROWS * width.max(1)));
    chunks.into_iter().try_for_each(|(x, out)| some_rows(kernels, ffn, x, hidden, out))?;
    tensor(out, (tokens, width))
}

fn some_rows(kernels: &CpuKernels, ffn: &FeedForward, x: &[f32], hidden: usize, out: &mut [f32]) -> Result<()> {
    let inner = cpu_shape(ffn.up)?.0;
    let mut up = kernels.buffer(x.len() / hidden * inner);
    product(kernels, &[ffn.up], x, hidden, &mut [&mut up], precision(kernels))?;
    wick_kernels::bias_activation(&kernels.cpu, ffn.act, &f32_slice(ffn.up_bias)?, &mut up);
    product(kernels, &[ffn.down], &up, inner, &mut [out], precision(kernels))?;
    kernels.give_back(up);
    Ok(())
}

/// Shape of an encoder's attention.
#[derive(Debug, Clone, Copy)]
pub struct FullAttentionShape<'a> {
    pub heads: usize,
    pub head_dim: usize,
    /// Tokens of each sequence: together the rows of the batch.
    pub lengths: &'a [usize],
}

/// Attention in which each token sees all of its sequence; scores are divided by the root of `head_dim`. `qkv` are products
/// without their biases, `[tokens, heads · head_dim]` each, taken by value for their memory; they must not be shared.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn full_attention(
    cx: &ExecContext,
    qkv: [Tensor; 3],
    bias: [&Tensor; 3],
    shape: FullAttentionShape,
) -> Result<Tensor> {
    let FullAttentionShape { heads, head_dim, lengths } = shape;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let Some(kernels) = cx.kernels() else { return attention_reference(&qkv, bias, shape, scale) };
    let (tokens, width) = qkv[0].dims2()?;
    let mut out = kernels.buffer(tokens * width);
    {
        let [q, k, v] = &qkv;
        let (q, k, v) = (f32_slice(q)?, f32_slice(k)?, f32_slice(v)?);
        let (qb, kb, vb) = (f32_slice(bias[0])?, f32_slice(bias[1])?, f32_slice(bias[2])?);
        let args = FullAttentionArgs { qkv: [&q, &k, &v], bias: [&qb, &kb, &vb], heads, head_dim, scale, lengths };
        wick_kernels::full_attention(&kernels.cpu, &args, &mut out, &mut kernels.full_attention.borrow_mut());
    }
    qkv.into_iter().for_each(|x| kernels.recycle(x));
    tensor(out, (tokens, width))
}

fn attention_reference(qkv: &[Tensor; 3], bias: [&Tensor; 3], shape: FullAttentionShape, scale: f32) -> Result<Tensor> {
    let mut outs = Vec::with_capacity(shape.lengths.len());
    let mut start = 0;
    for &n in shape.lengths {
        let head = |i: usize| -> Result<Tensor> {
            let rows = qkv[i].narrow(0, start, n)?.broadcast_add(bias[i])?;
            rows.reshape((n, shape.heads, shape.head_dim))?.transpose(0, 1)?.contiguous()
        };
        let (q, k, v) = (head(0)?, head(1)?, head(2)?);
        let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? * f64::from(scale))?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        let out = weights.matmul(&v)?.transpose(0, 1)?.contiguous()?;
        outs.push(out.reshape((n, shape.heads * shape.head_dim))?);
        start += n;
    }
    Tensor::cat(&outs, 0)
}

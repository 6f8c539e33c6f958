//! Causal attention over the paged KV cache.
use candle_core::{D, DType, Result, Tensor, bail};
use wick_kernels::AttentionArgs;

use super::batch::{ForwardBatch, SeqRange};
use super::context::{CpuKernels, ExecContext};
use super::kv::LayerKv;
use super::slices::{f32_slice, tensor};

/// What attention does with scores; the shapes of K and V are the cache's.
#[derive(Debug, Clone, Copy)]
pub struct AttentionParams {
    /// Query heads, a multiple of the KV heads.
    pub heads: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// A query sees its own position and the `window - 1` before it.
    pub window: Option<usize>,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// Attention of every row of `q` `[tokens, heads · head_dim]` to its own sequence's cached context, itself included: the step's keys and
/// values must have been written. Returns `[tokens, heads · head_dim]`. `q` is taken by value, for its memory, and must not be shared.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn paged_attention(
    cx: &ExecContext,
    q: Tensor,
    kv: &LayerKv<'_>,
    params: AttentionParams,
    batch: &ForwardBatch,
) -> Result<Tensor> {
    let shape = kv.shape();
    if q.dims2()?.1 != params.heads * shape.head_dim
        || params.heads == 0
        || !params.heads.is_multiple_of(shape.kv_heads)
    {
        bail!("queries {:?} do not split into {} heads over a cache {shape:?}", q.shape(), params.heads)
    }
    for seq in &batch.seqs {
        let blocks = batch.blocks_of(seq);
        let fits = blocks.len() * shape.block_size >= seq.context_len && seq.q_len <= seq.context_len;
        if !fits || blocks.iter().any(|&b| b as usize >= shape.num_blocks) {
            bail!("a block table of {} blocks does not hold {seq:?} in a cache {shape:?}", blocks.len())
        }
    }
    match cx.kernels() {
        Some(kernels) => cpu(kernels, q, kv, params, batch),
        None => reference(&q, kv, params, batch),
    }
}

fn cpu(
    kernels: &CpuKernels,
    q: Tensor,
    kv: &LayerKv<'_>,
    params: AttentionParams,
    batch: &ForwardBatch,
) -> Result<Tensor> {
    let (k, v) = kv.slices()?;
    let q_values = f32_slice(&q)?;
    let seqs = batch.spans();
    let args = AttentionArgs {
        q: &q_values,
        k,
        v,
        layout: kv.layout(),
        heads: params.heads,
        scale: params.scale,
        window: params.window,
        softcap: params.softcap,
        seqs: &seqs,
    };
    // Every row belongs to a sequence, so all of it is written.
    let mut out = kernels.buffer(q_values.len());
    wick_kernels::paged_attention(&kernels.cpu, &args, &mut out, &mut kernels.attention.borrow_mut());
    drop(q_values);
    let out = tensor(out, q.shape())?;
    kernels.recycle(q);
    Ok(out)
}

fn reference(q: &Tensor, kv: &LayerKv<'_>, params: AttentionParams, batch: &ForwardBatch) -> Result<Tensor> {
    let outs = batch.seqs.iter().map(|seq| one_sequence(q, kv, params, batch, seq)).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&outs, 0)
}

fn one_sequence(
    q: &Tensor,
    kv: &LayerKv<'_>,
    params: AttentionParams,
    batch: &ForwardBatch,
    seq: &SeqRange,
) -> Result<Tensor> {
    let shape = kv.shape();
    let (k_cache, v_cache) = kv.tensors()?;
    let used = seq.context_len.div_ceil(shape.block_size);
    let blocks = Tensor::from_slice(&batch.blocks_of(seq)[..used], used, q.device())?;
    // [used, kv_heads, block_size, head_dim] → [kv_heads, context, head_dim]
    let context = |cache: &Tensor| -> Result<Tensor> {
        let picked = cache.index_select(&blocks, 0)?.to_dtype(DType::F32)?.transpose(0, 1)?.contiguous()?;
        let merged = picked.reshape((shape.kv_heads, used * shape.block_size, shape.head_dim))?;
        merged.narrow(1, 0, seq.context_len)?.contiguous()
    };
    let (k, v) = (context(k_cache)?, context(v_cache)?);

    let group = params.heads / shape.kv_heads;
    let rows = q.narrow(0, seq.q_start, seq.q_len)?.reshape((seq.q_len, shape.kv_heads, group, shape.head_dim))?;
    let rows =
        rows.permute((1, 2, 0, 3))?.contiguous()?.reshape((shape.kv_heads, group * seq.q_len, shape.head_dim))?;
    let mut scores = (rows.matmul(&k.t()?)? * f64::from(params.scale))?;
    if let Some(cap) = params.softcap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    let hidden = Tensor::from_vec(hidden_keys(seq, params.window), (1, 1, seq.q_len, seq.context_len), q.device())?;
    let scores = scores.reshape((shape.kv_heads, group, seq.q_len, seq.context_len))?.broadcast_add(&hidden)?;
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    let weights = weights.reshape((shape.kv_heads, group * seq.q_len, seq.context_len))?;
    let out = weights.matmul(&v)?.reshape((shape.kv_heads, group, seq.q_len, shape.head_dim))?;
    out.permute((2, 0, 1, 3))?.contiguous()?.reshape((seq.q_len, params.heads * shape.head_dim))
}

/// 0 where the query (row) sees the key (column), -inf where it does not: `[q_len, context_len]`.
fn hidden_keys(seq: &SeqRange, window: Option<usize>) -> Vec<f32> {
    let first = seq.context_len - seq.q_len;
    let mut values = Vec::with_capacity(seq.q_len * seq.context_len);
    for query in first..seq.context_len {
        let oldest = window.map_or(0, |w| (query + 1).saturating_sub(w));
        values.extend((0..seq.context_len).map(
            |key| {
                if (oldest..=query).contains(&key) { 0.0 } else { f32::NEG_INFINITY }
            },
        ));
    }
    values
}

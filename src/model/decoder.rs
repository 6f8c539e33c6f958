//! The forward pass of every dense decoder, driven by [`DecoderSpec`] alone: it asks for no architecture's name.
//!
//! ```text
//! tokens → embedding · scale ─┬─ norm → attention ─(norm)─┬─ norm → feed-forward ─(norm)─┬─ … → norm → output matrix → logits
//!                             └───────── residual ────────┴────────── residual ──────────┘
//! ```
//! The norms in brackets exist where the layer's norms are `Sandwich`. Each addition to the residual is fused with the norm that follows.
use candle_core::{Result, Tensor};

use super::spec::{DecoderSpec, LayerSpec, NormPlacement, RopeSpec};
use crate::nn::{Attention, Embedding, Mlp, RmsNorm};
use crate::ops::{self, ExecContext, ForwardBatch, PagedKv, Peaks, RopeParams};
use crate::weights::{LoadError, Matrix, WeightSource};

/// A loaded model.
pub struct Decoder {
    spec: DecoderSpec,
    embedding: Embedding,
    /// The different ways in which layers rotate their heads: one, or one for windowed layers and one for the others.
    ropes: Vec<RopeParams>,
    layers: Vec<Layer>,
    final_norm: RmsNorm,
    /// Output matrix `[vocab, hidden]`; `None`: the normed rows are the result.
    output: Option<Matrix>,
}

struct Layer {
    attention_norm: RmsNorm,
    /// Index of its way among the model's.
    rope: usize,
    attention: Attention,
    mlp_norm: RmsNorm,
    mlp: Mlp,
    sandwich: Option<Sandwich>,
}

/// Norms of what attention and feed-forward give, before it is added to the residual.
struct Sandwich {
    after_attention: RmsNorm,
    after_mlp: RmsNorm,
}

impl Decoder {
    /// Takes every tensor that `spec` asks for, by its Hugging Face name, and nothing else.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the source has tensors that the model does not use.
    pub fn load(
        spec: DecoderSpec,
        source: &dyn WeightSource,
        cx: &ExecContext,
    ) -> std::result::Result<Self, LoadError> {
        let table = (spec.vocab, spec.hidden);
        let mut embedding = Embedding::load(source, "model.embed_tokens", table, spec.embed_scale, cx)?;
        let mut ropes = Vec::new();
        let layers = spec.layers.iter().enumerate().map(|(i, layer)| {
            let rope = index_of(&mut ropes, &layer.attn.rope);
            Layer::load(source, &format!("model.layers.{i}"), spec.hidden, layer, rope, cx)
        });
        let layers = layers.collect::<std::result::Result<Vec<_>, _>>()?;
        let final_norm = RmsNorm::load(source, "model.norm", spec.hidden, spec.final_norm, cx)?;
        let output = if spec.embedding.is_some() {
            None
        } else if spec.tie_embeddings {
            if source.contains("lm_head.weight") {
                // Some checkpoints save the tied matrix twice; like the reference we read the embeddings only.
                source.matrix("lm_head.weight", spec.vocab, spec.hidden, cx.device())?;
            }
            Some(embedding.place(cx))
        } else {
            Some(cx.place(source.matrix("lm_head.weight", spec.vocab, spec.hidden, cx.device())?))
        };
        source.finish()?;
        Ok(Self { spec, embedding, ropes, layers, final_norm, output })
    }

    #[must_use]
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Computes the batch, writes its keys and values to `kv` and returns the logits of `batch.logit_rows` on the
    /// host, `[logit_rows, vocab]` row after row, and their peaks (of a model that embeds the normed rows, `[logit_rows, hidden]`). Of
    /// other rows the last layer computes keys and values alone.
    ///
    /// # Errors
    /// The batch does not fit the model or the cache, or the device failed. The cache then holds garbage in the batch's slots.
    pub fn forward(&self, cx: &ExecContext, batch: &ForwardBatch, kv: &mut PagedKv) -> Result<(Vec<f32>, Peaks)> {
        if kv.shape().layers != self.layers.len() {
            candle_core::bail!("a KV cache of {} layers for a model of {}", kv.shape().layers, self.layers.len())
        }
        let rotations = self.ropes.iter().map(|rope| ops::rotation(cx, rope, &batch.positions));
        let rotations = rotations.collect::<Result<Vec<_>>>()?;
        let mut residual = self.embedding.forward(cx, &batch.input_ids)?;
        let mut pending: Option<Tensor> = None;
        for (i, layer) in self.layers.iter().enumerate() {
            let normed;
            (residual, normed) = add_and_norm(cx, residual, pending.take(), &layer.attention_norm)?;
            let mut q = layer.attention.project(cx, normed, batch, &rotations[layer.rope], kv.layer(i))?;
            let mut wanted = None;
            if i + 1 == self.layers.len() {
                if batch.logit_rows.is_empty() {
                    return Ok((Vec::new(), Peaks::default()));
                }
                if batch.logit_rows.len() < batch.total_tokens() {
                    q = ops::gather_rows(cx, q, &batch.logit_rows)?;
                    residual = ops::gather_rows(cx, residual, &batch.logit_rows)?;
                    wanted = Some(batch.wanted()?);
                }
            }
            let attended = layer.attention.attend(cx, q, wanted.as_ref().unwrap_or(batch), &kv.layer(i))?;
            let out;
            (residual, out) = layer.feed_forward(cx, residual, attended)?;
            pending = Some(out);
        }
        let (residual, normed) = add_and_norm(cx, residual, pending, &self.final_norm)?;
        cx.recycle(residual);
        match &self.output {
            Some(output) => ops::logits(cx, output, normed, self.spec.final_softcap),
            None => {
                let rows = normed.flatten_all()?.to_vec1()?;
                cx.recycle(normed);
                Ok((rows, Peaks::default()))
            }
        }
    }
}

/// Index of `rope` among the different ones seen so far.
fn index_of(ropes: &mut Vec<RopeParams>, rope: &RopeSpec) -> usize {
    let RopeSpec { rotary_dim, ref inv_freq, mscale } = *rope;
    let rope = RopeParams { rotary_dim, inv_freq: inv_freq.clone(), mscale };
    ropes.iter().position(|seen| *seen == rope).unwrap_or_else(|| {
        ropes.push(rope);
        ropes.len() - 1
    })
}

/// Adds what a block gave (nothing before the first layer) to the residual and norms the sum: (residual, norm).
fn add_and_norm(
    cx: &ExecContext,
    residual: Tensor,
    pending: Option<Tensor>,
    norm: &RmsNorm,
) -> Result<(Tensor, Tensor)> {
    if let Some(x) = pending {
        return norm.forward_add(cx, residual, x);
    }
    let normed = norm.forward(cx, &residual)?;
    Ok((residual, normed))
}

impl Layer {
    fn load(
        source: &dyn WeightSource,
        name: &str,
        hidden: usize,
        spec: &LayerSpec,
        rope: usize,
        cx: &ExecContext,
    ) -> std::result::Result<Self, LoadError> {
        let norm = |part: &str| RmsNorm::load(source, &format!("{name}.{part}"), hidden, spec.norm, cx);
        // Hugging Face's `post_attention_layernorm` stands before the feed-forward in a pre-norm layer, and after attention in a sandwich.
        let (mlp_norm, sandwich) = match spec.norms {
            NormPlacement::Pre => (norm("post_attention_layernorm")?, None),
            NormPlacement::Sandwich => {
                let after_attention = norm("post_attention_layernorm")?;
                let after_mlp = norm("post_feedforward_layernorm")?;
                (norm("pre_feedforward_layernorm")?, Some(Sandwich { after_attention, after_mlp }))
            }
        };
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            rope,
            attention: Attention::load(source, &format!("{name}.self_attn"), hidden, &spec.attn, cx)?,
            mlp_norm,
            mlp: Mlp::load(source, &format!("{name}.mlp"), hidden, &spec.ffn, cx)?,
            sandwich,
        })
    }

    /// From attention's output to the feed-forward's: (residual with attention added, what is still to be added).
    fn feed_forward(&self, cx: &ExecContext, residual: Tensor, attended: Tensor) -> Result<(Tensor, Tensor)> {
        let attended = match &self.sandwich {
            Some(norms) => norms.after_attention.forward_owned(cx, attended)?,
            None => attended,
        };
        let (residual, normed) = self.mlp_norm.forward_add(cx, residual, attended)?;
        let out = self.mlp.forward(cx, normed)?;
        let out = match &self.sandwich {
            Some(norms) => norms.after_mlp.forward_owned(cx, out)?,
            None => out,
        };
        Ok((residual, out))
    }
}

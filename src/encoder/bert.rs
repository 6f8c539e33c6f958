//! BERT's encoder (Devlin and others 2018, arXiv:1810.04805) and RoBERTa's, which is the same with other positions (Liu and others
//! 2019, arXiv:1907.11692; XLM-R: Conneau and others 2019, arXiv:1911.02116).
use candle_core::{Result, Tensor};

use super::config::EncoderSpec;
use crate::ops::{self, ExecContext, FeedForward, FullAttentionShape, LayerNormParams};
use crate::weights::{LoadError, Matrix, WeightSource};

/// Sequences without padding, one after another.
#[derive(Debug, Clone, Default)]
pub struct EncoderBatch {
    pub ids: Vec<u32>,
    pub positions: Vec<u32>,
    pub segments: Vec<u32>,
    /// Tokens of each sequence.
    pub lengths: Vec<usize>,
}

struct Dense {
    weight: Matrix,
    bias: Tensor,
}

struct Norm {
    weight: Tensor,
    shift: Tensor,
    eps: f32,
}

struct Layer {
    qkv: [Dense; 3],
    attention_out: Dense,
    attention_norm: Norm,
    up: Dense,
    down: Dense,
    norm: Norm,
}

/// Embeddings and layers.
pub struct Bert {
    words: Matrix,
    positions: Matrix,
    segments: Matrix,
    norm: Norm,
    layers: Vec<Layer>,
    spec: EncoderSpec,
}

/// Takes tensors of a model and names what it took them for.
pub(super) struct Loader<'a> {
    pub(super) source: &'a dyn WeightSource,
    pub(super) cx: &'a ExecContext,
}

impl Loader<'_> {
    fn dense(&self, name: &str, outputs: usize, inputs: usize) -> std::result::Result<Dense, LoadError> {
        let weight = self.source.matrix(&format!("{name}.weight"), outputs, inputs, self.cx.device())?;
        let bias = self.source.vector(&format!("{name}.bias"), outputs, self.cx.device())?;
        Ok(Dense { weight: self.cx.place_rounded(weight)?, bias })
    }

    fn norm(&self, name: &str, width: usize, eps: f32) -> std::result::Result<Norm, LoadError> {
        let vector = |kind: &str| self.source.vector(&format!("{name}.{kind}"), width, self.cx.device());
        Ok(Norm { weight: vector("weight")?, shift: vector("bias")?, eps })
    }
}

impl Norm {
    fn params(&self) -> LayerNormParams<'_> {
        LayerNormParams { weight: &self.weight, shift: &self.shift, eps: self.eps }
    }
}

impl Bert {
    /// Takes the tensors below `prefix` (`""`, `bert.`, `roberta.`).
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub(super) fn load(spec: &EncoderSpec, prefix: &str, loader: &Loader) -> std::result::Result<Self, LoadError> {
        let (hidden, inner, eps) = (spec.hidden, spec.inner, spec.eps);
        let table = |name: &str, rows: usize| {
            let name = format!("{prefix}embeddings.{name}_embeddings.weight");
            loader.source.matrix(&name, rows, hidden, loader.cx.device())
        };
        let layer = |index: usize| {
            let name = |part: &str| format!("{prefix}encoder.layer.{index}.{part}");
            Ok(Layer {
                qkv: [
                    loader.dense(&name("attention.self.query"), hidden, hidden)?,
                    loader.dense(&name("attention.self.key"), hidden, hidden)?,
                    loader.dense(&name("attention.self.value"), hidden, hidden)?,
                ],
                attention_out: loader.dense(&name("attention.output.dense"), hidden, hidden)?,
                attention_norm: loader.norm(&name("attention.output.LayerNorm"), hidden, eps)?,
                up: loader.dense(&name("intermediate.dense"), inner, hidden)?,
                down: loader.dense(&name("output.dense"), hidden, inner)?,
                norm: loader.norm(&name("output.LayerNorm"), hidden, eps)?,
            })
        };
        Ok(Self {
            words: table("word", spec.vocab)?,
            positions: table("position", spec.positions)?,
            segments: table("token_type", spec.segments)?,
            norm: loader.norm(&format!("{prefix}embeddings.LayerNorm"), hidden, eps)?,
            layers: (0..spec.layers).map(layer).collect::<std::result::Result<_, LoadError>>()?,
            spec: spec.clone(),
        })
    }

    /// The last layer's rows, `[tokens, hidden]`.
    ///
    /// # Errors
    /// An id or a position is beyond its table, or as the ops.
    pub fn forward(&self, cx: &ExecContext, batch: &EncoderBatch) -> Result<Tensor> {
        let mut x = {
            let _turn = cx.turn();
            // In transformers' order: float sums are not associative.
            let tables: [(&Matrix, &[u32]); 3] =
                [(&self.words, &batch.ids), (&self.segments, &batch.segments), (&self.positions, &batch.positions)];
            ops::add_layer_norm(cx, ops::sum_embeddings(cx, &tables)?, None, None, self.norm.params())?
        };
        let shape = FullAttentionShape {
            heads: self.spec.heads,
            head_dim: self.spec.hidden / self.spec.heads,
            lengths: &batch.lengths,
        };
        for layer in &self.layers {
            // A turn lasts a layer: the steps of a model that generates beside this one wait no longer than that.
            let _turn = cx.turn();
            x = layer.forward(cx, x, shape, self.spec.act)?;
        }
        Ok(x)
    }
}

impl Layer {
    fn forward(&self, cx: &ExecContext, x: Tensor, shape: FullAttentionShape, act: ops::Pointwise) -> Result<Tensor> {
        let [q, k, v] = &self.qkv;
        let qkv = ops::products(cx, &[&q.weight, &k.weight, &v.weight], &x)?;
        let qkv: [Tensor; 3] = qkv.try_into().expect("another number of products than of matrices is a bug");
        let attended = ops::full_attention(cx, qkv, [&q.bias, &k.bias, &v.bias], shape)?;
        let mut out = ops::products(cx, &[&self.attention_out.weight], &attended)?;
        cx.recycle(attended);
        let out = out.swap_remove(0);
        let x = ops::add_layer_norm(cx, out, Some(&self.attention_out.bias), Some(x), self.attention_norm.params())?;
        let ffn = FeedForward { up: &self.up.weight, up_bias: &self.up.bias, act, down: &self.down.weight };
        let out = ops::feed_forward(cx, &ffn, &x)?;
        ops::add_layer_norm(cx, out, Some(&self.down.bias), Some(x), self.norm.params())
    }
}

/// A dense layer, tanh and a projection to one number, for rows of single tokens. Small: always in the weights' own precision.
pub(super) struct ScoreLayers {
    dense: Dense,
    out: Dense,
}

impl ScoreLayers {
    /// Takes `{dense}.{weight,bias}` and `{out}.{weight,bias}`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub(super) fn load(dense: &str, out: &str, hidden: usize, loader: &Loader) -> std::result::Result<Self, LoadError> {
        let exact = |name: &str, outputs: usize| {
            let weight = loader.source.matrix(&format!("{name}.weight"), outputs, hidden, loader.cx.device())?;
            let bias = loader.source.vector(&format!("{name}.bias"), outputs, loader.cx.device())?;
            Ok::<_, LoadError>(Dense { weight, bias })
        };
        Ok(Self { dense: exact(dense, hidden)?, out: exact(out, 1)? })
    }

    /// One number a row of `x` `[rows, hidden]`.
    ///
    /// # Errors
    /// As the ops.
    pub(super) fn forward(&self, cx: &ExecContext, x: &Tensor) -> Result<Vec<f32>> {
        let _turn = cx.turn();
        let dense = ops::products(cx, &[&self.dense.weight], x)?.swap_remove(0);
        let dense = ops::bias_activation(cx, ops::Pointwise::Tanh, &self.dense.bias, dense)?;
        let out = ops::products(cx, &[&self.out.weight], &dense)?.swap_remove(0);
        out.broadcast_add(&self.out.bias)?.flatten_all()?.to_vec1()
    }
}

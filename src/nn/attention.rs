//! The attention block: projections, norms of q and k, rope, cache, attention, output projection.
use candle_core::{Result, Tensor};

use super::key_units::KeyUnits;
use super::linear::{Linear, LinearShape};
use super::norm::RmsNorm;
use crate::model::spec::{AttnBias, AttnSpec};
use crate::ops::{self, AttentionParams, ExecContext, ForwardBatch, LayerKv, Rotation};
use crate::weights::{LoadError, WeightSource};

pub struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// Norms of each head of q and of k.
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    /// For caches that round the dimensions of a key together.
    key_units: Option<KeyUnits>,
    params: AttentionParams,
    head_dim: usize,
}

impl Attention {
    /// Takes `{name}.{q,k,v,o}_proj` and, if the spec asks for them, `{name}.{q,k}_norm`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(
        source: &dyn WeightSource,
        name: &str,
        hidden: usize,
        spec: &AttnSpec,
        cx: &ExecContext,
    ) -> std::result::Result<Self, LoadError> {
        let (q_width, kv_width) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let (qkv_bias, o_bias) = match spec.bias {
            AttnBias::None => (false, false),
            AttnBias::Qkv => (true, false),
            AttnBias::Qkvo => (true, true),
        };
        let linear = |part: &str, inputs, outputs, bias| {
            Linear::load(source, &format!("{name}.{part}"), LinearShape { inputs, outputs, bias }, cx)
        };
        let head_norm = |part: &str, norm| RmsNorm::load(source, &format!("{name}.{part}"), spec.head_dim, norm, cx);
        let k = linear("k_proj", hidden, kv_width, qkv_bias)?;
        Ok(Self {
            key_units: KeyUnits::of(&k, spec)?,
            q: linear("q_proj", hidden, q_width, qkv_bias)?,
            k,
            v: linear("v_proj", hidden, kv_width, qkv_bias)?,
            o: linear("o_proj", q_width, hidden, o_bias)?,
            qk_norm: match spec.qk_norm {
                Some(norm) => Some((head_norm("q_norm", norm)?, head_norm("k_norm", norm)?)),
                None => None,
            },
            params: AttentionParams {
                heads: spec.heads,
                scale: spec.scale,
                window: spec.window,
                softcap: spec.softcap,
            },
            head_dim: spec.head_dim,
        })
    }

    /// Writes the step's keys and values; gives its queries: `x` `[tokens, hidden]`, not shared → `[tokens, heads · head_dim]`.
    ///
    /// # Errors
    /// As the ops it calls.
    pub fn project(
        &self,
        cx: &ExecContext,
        x: Tensor,
        batch: &ForwardBatch,
        rotation: &Rotation,
        mut kv: LayerKv<'_>,
    ) -> Result<Tensor> {
        let [q, k, v] = Linear::forward_group(cx, [&self.q, &self.k, &self.v], x)?;
        let norms = self.qk_norm.as_ref().map(|(q, k)| (q.of_heads(), k.of_heads()));
        let mut qk = ops::rotate_heads(cx, (q, k), self.head_dim, norms, rotation)?;
        if let Some(units) = self.key_units.as_ref().filter(|_| kv.rounds_together()) {
            qk = units.apply(cx, qk)?;
        }
        let (q, k) = qk;
        ops::write_kv(cx, k, v, &batch.slots, &mut kv)?;
        Ok(q)
    }

    /// Attention of the queries of the batch's rows, whose keys and values must have been written, all of them: sequences of one step may share
    /// blocks that one of them is filling. → `[rows, hidden]`.
    ///
    /// # Errors
    /// As the ops it calls.
    pub fn attend(&self, cx: &ExecContext, q: Tensor, batch: &ForwardBatch, kv: &LayerKv<'_>) -> Result<Tensor> {
        let attended = ops::paged_attention(cx, q, kv, self.params, batch)?;
        self.o.forward(cx, attended)
    }
}

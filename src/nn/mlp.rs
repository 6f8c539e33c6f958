//! The gated feed-forward block: `down(act(gate(x)) · up(x))`.
use candle_core::{Result, Tensor};

use super::linear::{Linear, LinearShape};
use crate::model::spec::{Act, FfnSpec};
use crate::ops::{self, Activation, ExecContext, GatedFeedForward};
use crate::weights::{LoadError, WeightSource};

pub struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    act: Activation,
}

impl Mlp {
    /// Takes `{name}.gate_proj`, `{name}.up_proj` and `{name}.down_proj`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(
        source: &dyn WeightSource,
        name: &str,
        hidden: usize,
        spec: &FfnSpec,
        cx: &ExecContext,
    ) -> std::result::Result<Self, LoadError> {
        let into = LinearShape { inputs: hidden, outputs: spec.inner, bias: spec.bias };
        let back = LinearShape { inputs: spec.inner, outputs: hidden, bias: spec.bias };
        let act = match spec.act {
            Act::Silu => Activation::Silu,
            Act::GeluTanh => Activation::GeluTanh,
        };
        Ok(Self {
            gate: Linear::load(source, &format!("{name}.gate_proj"), into, cx)?,
            up: Linear::load(source, &format!("{name}.up_proj"), into, cx)?,
            down: Linear::load(source, &format!("{name}.down_proj"), back, cx)?,
            act,
        })
    }

    /// `x` `[tokens, hidden]`, not shared → `[tokens, hidden]`.
    ///
    /// # Errors
    /// As [`ops::gated_feed_forward`].
    pub fn forward(&self, cx: &ExecContext, x: Tensor) -> Result<Tensor> {
        let [gate, up, down] = [&self.gate, &self.up, &self.down].map(Linear::projection);
        ops::gated_feed_forward(cx, &GatedFeedForward { gate, up, down, act: self.act }, x)
    }
}

//! A root-mean-square norm with its weight.
use candle_core::{Result, Tensor};

use crate::model::spec::Norm;
use crate::ops::{self, ExecContext, HeadNorm};
use crate::weights::{LoadError, WeightSource};

pub struct RmsNorm {
    /// The factor to multiply with: "one plus weight" has been added up when loading.
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Takes `{name}.weight` `[width]`.
    ///
    /// # Errors
    /// The tensor is missing or has another shape.
    pub fn load(
        source: &dyn WeightSource,
        name: &str,
        width: usize,
        norm: Norm,
        cx: &ExecContext,
    ) -> std::result::Result<Self, LoadError> {
        let weight = source.norm(&format!("{name}.weight"), width, norm.weight, cx.device())?;
        Ok(Self { weight, eps: norm.eps })
    }

    /// Norms the last dimension of `x`.
    ///
    /// # Errors
    /// As [`ops::rms_norm`].
    pub fn forward(&self, cx: &ExecContext, x: &Tensor) -> Result<Tensor> {
        ops::rms_norm(cx, x, &self.weight, self.eps)
    }

    /// Norms the last dimension of `x`, which is not shared.
    ///
    /// # Errors
    /// As [`ops::rms_norm`].
    pub fn forward_owned(&self, cx: &ExecContext, x: Tensor) -> Result<Tensor> {
        ops::rms_norm_owned(cx, x, &self.weight, self.eps)
    }

    /// As a norm of heads: the weight has `head_dim` values.
    pub fn of_heads(&self) -> HeadNorm<'_> {
        HeadNorm { weight: &self.weight, eps: self.eps }
    }

    /// Adds `x` to the residual and norms the sum: (new residual, norm).
    ///
    /// # Errors
    /// As [`ops::add_rms_norm`].
    pub fn forward_add(&self, cx: &ExecContext, residual: Tensor, x: Tensor) -> Result<(Tensor, Tensor)> {
        ops::add_rms_norm(cx, residual, x, &self.weight, self.eps)
    }
}

//! A root-mean-square norm with its weight.
use candle_core::{Result, Tensor};

use crate::model::spec::Norm;
use crate::ops::{self, ExecContext};
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

    /// Norms each head of `x` `[tokens, heads · head_dim]` by itself; the weight has `head_dim` values.
    ///
    /// # Errors
    /// As [`ops::rms_norm`].
    pub fn forward_heads(&self, cx: &ExecContext, x: &Tensor) -> Result<Tensor> {
        let head_dim = self.weight.dims1()?;
        let (tokens, width) = x.dims2()?;
        self.forward(cx, &x.reshape((tokens * width / head_dim, head_dim))?)?.reshape((tokens, width))
    }

    /// Adds `x` to the residual and norms the sum: (new residual, norm).
    ///
    /// # Errors
    /// As [`ops::add_rms_norm`].
    pub fn forward_add(&self, cx: &ExecContext, residual: Tensor, x: &Tensor) -> Result<(Tensor, Tensor)> {
        ops::add_rms_norm(cx, residual, x, &self.weight, self.eps)
    }
}

//! A linear layer.
use candle_core::{Result, Tensor};

use crate::ops::{self, ExecContext, Projection};
use crate::weights::{LoadError, Matrix, WeightSource};

/// `y = x · weightᵀ (+ bias)`.
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

/// Shape of a linear layer.
#[derive(Debug, Clone, Copy)]
pub struct LinearShape {
    pub inputs: usize,
    pub outputs: usize,
    pub bias: bool,
}

impl Linear {
    /// Takes `{name}.weight` `[outputs, inputs]` and, if the shape says so, `{name}.bias` `[outputs]`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(
        source: &dyn WeightSource,
        name: &str,
        shape: LinearShape,
        cx: &ExecContext,
    ) -> std::result::Result<Self, LoadError> {
        let weight = cx.place(source.matrix(&format!("{name}.weight"), shape.outputs, shape.inputs, cx.device())?);
        let bias =
            if shape.bias { Some(source.vector(&format!("{name}.bias"), shape.outputs, cx.device())?) } else { None };
        Ok(Self { weight, bias })
    }

    /// `x` `[tokens, inputs]`, not shared → `[tokens, outputs]`.
    ///
    /// # Errors
    /// As [`ops::matmul()`].
    pub fn forward(&self, cx: &ExecContext, x: Tensor) -> Result<Tensor> {
        let [y] = Self::forward_group(cx, [self], x)?;
        Ok(y)
    }

    /// Several layers on one input, as one product.
    ///
    /// # Errors
    /// As [`ops::matmul()`].
    pub fn forward_group<const N: usize>(cx: &ExecContext, group: [&Self; N], x: Tensor) -> Result<[Tensor; N]> {
        let outs = ops::matmul(cx, &group.map(Self::projection), x)?;
        Ok(outs.try_into().expect("one output per projection, anything else is a bug"))
    }

    /// What is added to every row, `[outputs]`.
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The layer as ops take it.
    pub fn projection(&self) -> Projection<'_> {
        Projection { weight: &self.weight, bias: self.bias.as_ref() }
    }
}

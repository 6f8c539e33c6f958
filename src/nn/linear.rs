//! A linear layer.
use candle_core::{Device, Result, Tensor};

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
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let weight = source.matrix(&format!("{name}.weight"), shape.outputs, shape.inputs, device)?;
        let bias = if shape.bias { Some(source.vector(&format!("{name}.bias"), shape.outputs, device)?) } else { None };
        Ok(Self { weight, bias })
    }

    /// `x` `[tokens, inputs]` → `[tokens, outputs]`.
    ///
    /// # Errors
    /// As [`ops::matmul()`].
    pub fn forward(&self, cx: &ExecContext, x: &Tensor) -> Result<Tensor> {
        let [y] = Self::forward_group(cx, [self], x)?;
        Ok(y)
    }

    /// Several layers on one input, as one product.
    ///
    /// # Errors
    /// As [`ops::matmul()`].
    pub fn forward_group<const N: usize>(cx: &ExecContext, group: [&Self; N], x: &Tensor) -> Result<[Tensor; N]> {
        let projections = group.map(|layer| Projection { weight: &layer.weight, bias: layer.bias.as_ref() });
        let outs = ops::matmul(cx, &projections, x)?;
        Ok(outs.try_into().expect("one output per projection, anything else is a bug"))
    }
}

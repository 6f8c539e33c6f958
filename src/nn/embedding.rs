//! Token embeddings and the output matrix, which may be the same one.
use candle_core::{Result, Tensor};

use crate::ops::{self, ExecContext, Indices};
use crate::weights::{LoadError, Matrix, WeightSource};

/// The embedding matrix `[vocab, hidden]`.
pub struct Embedding {
    table: Matrix,
    scale: f32,
}

impl Embedding {
    /// Takes `{name}.weight`; looked-up rows are multiplied by `scale`.
    ///
    /// # Errors
    /// The tensor is missing or has another shape.
    pub fn load(
        source: &dyn WeightSource,
        name: &str,
        (vocab, hidden): (usize, usize),
        scale: f32,
        cx: &ExecContext,
    ) -> std::result::Result<Self, LoadError> {
        Ok(Self { table: source.matrix(&format!("{name}.weight"), vocab, hidden, cx.device())?, scale })
    }

    /// Token ids → `[ids, hidden]`.
    ///
    /// # Errors
    /// As [`ops::embedding()`].
    pub fn forward(&self, cx: &ExecContext, ids: &Indices) -> Result<Tensor> {
        ops::embedding(cx, &self.table, ids, self.scale)
    }

    /// Places the matrix for products as well and returns it, for a model whose output matrix it is too.
    pub fn place(&mut self, cx: &ExecContext) -> Matrix {
        self.table = cx.place(self.table.clone());
        self.table.clone()
    }
}

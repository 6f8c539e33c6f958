//! Picks rows out of a batch.
use candle_core::{Result, Tensor, bail};

use super::batch::Indices;
use super::context::ExecContext;
use super::slices::{f32_slice, tensor};

/// Rows `rows` of `x` `[tokens, width]`, in that order. A list as long as `x` means every row: `x` itself comes back.
///
/// # Errors
/// A row is beyond `x`, or candle failed.
pub fn gather_rows(cx: &ExecContext, x: Tensor, rows: &Indices) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    if rows.len() == tokens {
        return Ok(x);
    }
    if cx.kernels().is_none() {
        return x.index_select(rows.tensor(cx.device())?, 0);
    }
    let values = f32_slice(&x)?;
    let mut out = Vec::with_capacity(rows.len() * width);
    for &row in rows.as_slice() {
        let row = row as usize;
        if row >= tokens {
            bail!("row {row} is beyond the batch's {tokens}")
        }
        out.extend_from_slice(&values[row * width..(row + 1) * width]);
    }
    drop(values);
    cx.recycle(x);
    tensor(out, (rows.len(), width))
}

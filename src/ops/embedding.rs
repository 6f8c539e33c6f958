//! Rows of the embedding matrix.
use candle_core::{DType, Result, Tensor, bail};

use super::batch::Indices;
use super::context::ExecContext;
use super::matmul::{cpu_shape, dequantized, misplaced, unpacked, widened};
use super::slices::tensor;
use crate::weights::Matrix;

/// Looks `ids` up in `table` `[vocab, hidden]`: f32 `[ids, hidden]`, times `scale`. Only the rows asked for are dequantized.
///
/// # Errors
/// An id is beyond the table, or candle failed.
pub fn embedding(cx: &ExecContext, table: &Matrix, ids: &Indices, scale: f32) -> Result<Tensor> {
    let Some(kernels) = cx.kernels() else { return reference(cx, table, ids, scale) };
    let (_, cols) = cpu_shape(table)?;
    let mut out = kernels.buffer(ids.len() * cols);
    for (row, &id) in out.chunks_exact_mut(cols).zip(ids.as_slice()) {
        look_up(table, id, row)?;
        if scale != 1.0 {
            for value in row {
                *value *= scale;
            }
        }
    }
    tensor(out, (ids.len(), cols))
}

/// Row `id` of a table in a form for the CPU.
pub(super) fn look_up(table: &Matrix, id: u32, out: &mut [f32]) -> Result<()> {
    let ((rows, _), id) = (cpu_shape(table)?, id as usize);
    if id >= rows {
        bail!("token {id} is beyond the {rows} rows of the embedding matrix")
    }
    match table {
        Matrix::Mapped(m) => {
            let bytes = m.bytes.as_slice();
            let row_bytes = bytes.len() / rows;
            wick_kernels::dequantize(m.ty, &bytes[id * row_bytes..(id + 1) * row_bytes], out);
        }
        Matrix::Packed(m) => m.row(id, out),
        Matrix::Floats(m) => m.row(id, out),
        Matrix::Dense(_) | Matrix::Quantized(_) => return Err(misplaced()),
    }
    Ok(())
}

pub(super) fn reference(cx: &ExecContext, table: &Matrix, ids: &Indices, scale: f32) -> Result<Tensor> {
    let ids = ids.tensor(cx.device())?;
    let rows = match table {
        Matrix::Mapped(m) => dequantized(m, cx.device())?.index_select(ids, 0)?,
        Matrix::Packed(m) => unpacked(m, cx.device())?.index_select(ids, 0)?,
        Matrix::Floats(m) => widened(m, cx.device())?.index_select(ids, 0)?,
        Matrix::Dense(t) => t.index_select(ids, 0)?.to_dtype(DType::F32)?,
        Matrix::Quantized(t) => t.embedding(ids)?.to_dtype(DType::F32)?,
    };
    if scale == 1.0 { Ok(rows) } else { rows * f64::from(scale) }
}

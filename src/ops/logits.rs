//! The output matrix: the last op, and the way back to the host.
use candle_core::{Result, Tensor};
use wick_kernels::{
    FloatMatrix, PackedMatrix, Precision, float_refine, packed_matmul_with_peaks, packed_refine, peaks_of,
};

use super::context::ExecContext;
use super::matmul::{cpu_shape, product, product_reference};
use super::slices::f32_slice;
use crate::weights::Matrix;

/// How far below the row's largest a logit may be to be computed with the finest activations where others are not: a token there has at most
/// 1/55 of the most likely one's probability.
const REFINED_BELOW_MAX: f32 = 4.0;

/// The largest logits of runs of rows.
#[derive(Debug, Clone, Default)]
pub struct Peaks {
    /// Of each run of each row, NaN passed over; empty where they are not known.
    pub values: Vec<f32>,
    /// Logits of a run; a row's last may have fewer.
    pub run: usize,
}

/// Logits of the normed rows `x` `[rows, hidden]` on the host, `rows · vocab` values; with a `softcap`, `cap · tanh(logit / cap)`; and
/// their peaks, so that who looks for the largest need not read them all. `x` is taken by value, for its memory, and must not be
/// shared. The values are many: give their memory back with [`ExecContext::give_back`].
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn logits(cx: &ExecContext, matrix: &Matrix, x: Tensor, softcap: Option<f32>) -> Result<(Vec<f32>, Peaks)> {
    let Some(kernels) = cx.kernels() else { return Ok((reference(matrix, &x, softcap)?, Peaks::default())) };
    let (rows, width) = x.dims2()?;
    let (vocab, cols) = cpu_shape(matrix)?;
    let mut values = kernels.logits_buffer(rows * vocab);
    let rows_of_x = f32_slice(&x)?;
    let peaks = |run: usize| Peaks { values: kernels.buffer(rows * vocab.div_ceil(run)), run };
    // Errors of `x` show in the log-probabilities undamped here: likely tokens get the finest rounding.
    let (cpu, activations) = (&kernels.cpu, kernels.activations);
    let mut peaks = match matrix {
        Matrix::Packed(w) if cols == width => {
            let (mut peaks, scratch) = (peaks(PackedMatrix::PEAK_OF), &mut kernels.packed.borrow_mut());
            let x = &rows_of_x;
            packed_matmul_with_peaks(cpu, w, x, rows, (&mut values, &mut peaks.values), scratch, activations);
            if activations != Precision::Exact {
                packed_refine(cpu, w, x, rows, (&mut values, &mut peaks.values), scratch, REFINED_BELOW_MAX);
            }
            peaks
        }
        Matrix::Floats(w) if cols == width => {
            product(kernels, &[matrix], &rows_of_x, width, &mut [&mut values], activations)?;
            let (mut peaks, scratch) = (peaks(FloatMatrix::PEAK_OF), &mut kernels.floats.borrow_mut());
            let out = (&mut values[..], &mut peaks.values[..]);
            float_refine(cpu, w, &rows_of_x, rows, out, scratch, activations, REFINED_BELOW_MAX);
            peaks
        }
        _ => {
            product(kernels, &[matrix], &rows_of_x, width, &mut [&mut values], activations)?;
            Peaks::default()
        }
    };
    drop(rows_of_x);
    kernels.recycle(x);
    if let Some(cap) = softcap {
        for value in &mut values {
            *value = cap * (*value / cap).tanh();
        }
        // Taken anew: a rounded tanh need not keep the order of what lies close.
        if peaks.run > 0 {
            peaks_of(cpu, (vocab, peaks.run), &values, &mut peaks.values);
        }
    }
    Ok((values, peaks))
}

fn reference(matrix: &Matrix, x: &Tensor, softcap: Option<f32>) -> Result<Vec<f32>> {
    let logits = product_reference(matrix, x)?;
    let logits = match softcap {
        Some(cap) => ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?,
        None => logits,
    };
    logits.flatten_all()?.to_vec1()
}

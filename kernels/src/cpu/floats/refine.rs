//! Exact products where activations were rounded.

use super::matmul::{Form, Tile, prepare};
use super::{CHUNK, FloatMatrix, FloatScratch, FloatTile, STRIP};
use crate::cpu::Cpu;
use crate::cpu::packed::Precision;
use crate::cpu::product;
use crate::cpu::refine::{peaks_of, refine};
use crate::cpu::shared::Rows;

/// As [`packed_refine`](crate::packed_refine), for products of [`super::float_matmul`] at `precision`: where that has rounded activations,
/// those near the largest of their row are computed again with all their bits. `peaks` gets for each row the largest product of each
/// [`FloatMatrix::PEAK_OF`] in a row of the output.
///
/// # Panics
/// If the lengths do not fit together.
#[allow(clippy::too_many_arguments)] // those of `packed_refine` and the precision
pub fn float_refine(
    cpu: &Cpu,
    w: &FloatMatrix,
    x: &[f32],
    m: usize,
    (out, peaks): (&mut [f32], &mut [f32]),
    scratch: &mut FloatScratch,
    precision: Precision,
    margin: f32,
) {
    let shape = [(w.rows(), w.cols())].into_iter();
    let Some(cols) = product::columns("float_refine", shape, x, m, &mut [&mut *out]) else { return peaks.fill(0.0) };
    peaks_of(cpu, (w.rows(), STRIP), out, peaks);
    if Form::of(cpu, w.ty(), precision) == Form::Floats {
        return;
    }
    let dot = cpu.isa.table().floats.dot;
    // Rows want different strips: a tile each.
    let words = cols.next_multiple_of(CHUNK);
    scratch.tiles.clear();
    scratch.tiles.extend((0..m).map(|row| Tile { first_row: row, rows: 1, height: 1, at: row * words }));
    prepare(cpu, Form::Floats, x, cols, &mut scratch.words, &scratch.tiles);
    let acts = &scratch.words;
    refine(cpu, (w.rows(), STRIP), (out, peaks), &mut scratch.order, margin, &|row, strip, out| {
        let tile = FloatTile { height: 1, words: &acts[row * words..(row + 1) * words] };
        let mut products = [0.0; STRIP];
        // SAFETY: the table is this processor's.
        unsafe { dot(&w.strip(strip), &tile, Rows::contiguous(&mut products, STRIP)) }
        out.copy_from_slice(&products[..out.len()]);
    });
}

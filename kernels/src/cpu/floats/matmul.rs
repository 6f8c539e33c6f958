//! Products of activations with packed floats, from one row to thousands.

use super::{CHUNK, FloatDot, FloatMatrix, FloatStrip, FloatTile, STRIP};
use crate::cpu::Cpu;
use crate::cpu::memory::Lines;
use crate::cpu::packed::{Precision, WIDEST_TILE, cut};
use crate::cpu::product;
use crate::cpu::quant::QuantType;
use crate::cpu::shared::SharedSlice;
use crate::cpu::strips::{Strips, for_tickets};
use std::sync::{Mutex, PoisonError};

/// Bytes of activations of one parallel region: they are walked once for each ticket, or strip, and should stay in the shared cache.
const CHUNK_BYTES: usize = 2 << 20;
/// Tiles from which on a strip of F16 is widened once for all of them, not by each.
const WIDENED_FOR: usize = 4;
/// Values that one piece of the region that prepares activations takes, at least.
const PREPARE_PIECE: usize = 16 * 1024;

/// Buffers of [`float_matmul`] that stay between calls.
#[derive(Default)]
pub struct FloatScratch {
    pub(super) words: Vec<u32>,
    pub(super) tiles: Vec<Tile>,
    /// A strip for each thread.
    lanes: Vec<Mutex<Lines>>,
    /// Room for [`super::float_refine`].
    pub(super) order: Vec<f32>,
}

impl std::fmt::Debug for FloatScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FloatScratch({} words)", self.words.len())
    }
}

/// One tile of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub first_row: usize,
    pub rows: usize,
    pub height: usize,
    /// Where its words begin.
    pub at: usize,
}

/// What activations become for a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// They stay floats.
    Floats,
    /// Pairs of bfloat16.
    Pairs,
}

impl Form {
    /// That for products with matrices of `ty`.
    pub fn of(cpu: &Cpu, ty: QuantType, precision: Precision) -> Form {
        let rounds = ty == QuantType::BF16 && precision != Precision::Exact;
        if rounds && cpu.isa.table().floats.pairs.is_some() { Form::Pairs } else { Form::Floats }
    }

    /// Words of a row of `cols` activations.
    fn words(self, cols: usize) -> usize {
        match self {
            Form::Floats => cols,
            Form::Pairs => cols.div_ceil(2),
        }
    }
}

/// `outs[i][r * ws[i].rows() + j]` = row `j` of `ws[i]` . row `r` of `x`, for `x` of `m` rows. All matrices have the same number of columns.
///
/// Sums are floats, column after column. Where the instruction set multiplies pairs of bfloat16, activations are rounded to it for BF16
/// matrices, unless `precision` is exact; everywhere else they are multiplied as they are, and all instruction sets give the same bits.
///
/// # Panics
/// If the lengths do not fit together.
pub fn float_matmul(
    cpu: &Cpu,
    ws: &[&FloatMatrix],
    x: &[f32],
    m: usize,
    outs: &mut [&mut [f32]],
    scratch: &mut FloatScratch,
    precision: Precision,
) {
    let shapes = ws.iter().map(|w| (w.rows(), w.cols()));
    let Some(cols) = product::columns("float_matmul", shapes, x, m, outs) else { return };
    let outs: Vec<SharedSlice<'_, f32>> = outs.iter_mut().map(|out| SharedSlice::new(out)).collect();
    for form in [Form::Floats, Form::Pairs] {
        let taken = ws.iter().copied().zip(&outs).filter(|(w, _)| Form::of(cpu, w.ty(), precision) == form);
        let (ws, outs): (Vec<_>, Vec<_>) = taken.unzip();
        if ws.is_empty() {
            continue;
        }
        let chunk = (CHUNK_BYTES / (4 * form.words(cols)) / WIDEST_TILE).max(4) * WIDEST_TILE;
        for start in (0..m).step_by(chunk) {
            let x = &x[start * cols..(start + chunk).min(m) * cols];
            let row_words = form.words(cols).next_multiple_of(CHUNK);
            plan(x.len() / cols, row_words, &mut scratch.tiles);
            prepare(cpu, form, x, cols, &mut scratch.words, &scratch.tiles);
            multiply(cpu, form, &ws, &outs, scratch, start);
        }
    }
}

/// Cuts `rows` rows of `row_words` words into tiles.
fn plan(rows: usize, row_words: usize, tiles: &mut Vec<Tile>) {
    tiles.clear();
    let mut at = 0;
    for (first_row, rows, height) in cut(rows) {
        tiles.push(Tile { first_row, rows, height, at });
        at += height * row_words;
    }
}

/// Fills tiles from the rows `x`.
pub(super) fn prepare(cpu: &Cpu, form: Form, x: &[f32], cols: usize, words: &mut Vec<u32>, tiles: &[Tile]) {
    let row_words = form.words(cols).next_multiple_of(CHUNK);
    let end = tiles.last().map_or(0, |last| last.at + last.height * row_words);
    if words.len() < end {
        words.resize(end, 0);
    }
    let words = SharedSlice::new(words);
    let pairs = cpu.isa.table().floats.pairs;
    cpu.for_pieces(tiles.len(), PREPARE_PIECE.div_ceil(WIDEST_TILE * cols), |start, end| {
        for tile in &tiles[start..end] {
            let stride = tile.height * CHUNK;
            // SAFETY: tiles are disjoint and each belongs to one piece.
            let words = unsafe { words.slice(tile.at, tile.height * row_words) };
            for r in 0..tile.height {
                let row = tile.first_row + r;
                let x = if r < tile.rows { &x[row * cols..(row + 1) * cols] } else { &[] };
                let words = &mut words[r * CHUNK..];
                match pairs {
                    // SAFETY: the table is this processor's.
                    Some(pairs) if form == Form::Pairs => unsafe { (pairs.round)(x, words, stride) },
                    _ => spread(x, words, stride),
                }
            }
        }
    });
}

/// The bits of a row, in chunks that begin `stride` words apart; what it does not fill is zero.
fn spread(x: &[f32], out: &mut [u32], stride: usize) {
    let mut chunks = x.chunks(CHUNK);
    for out in out.chunks_mut(stride) {
        let chunk = chunks.next().unwrap_or(&[]);
        let (filled, rest) = out[..CHUNK].split_at_mut(chunk.len());
        filled.iter_mut().zip(chunk).for_each(|(word, x)| *word = x.to_bits());
        rest.fill(0);
    }
}

/// All products of the tiles in the scratch, whose first row is row `first_row` of the outputs.
fn multiply(
    cpu: &Cpu,
    form: Form,
    ws: &[&FloatMatrix],
    outs: &[&SharedSlice<'_, f32>],
    scratch: &mut FloatScratch,
    first_row: usize,
) {
    let FloatScratch { words, tiles, lanes, .. } = scratch;
    lanes.resize_with(lanes.len().max(cpu.pool.threads()), Mutex::default);
    let (words, tiles, lanes) = (&*words, &*tiles, &*lanes);
    let kernels = &cpu.isa.table().floats;
    let dot: FloatDot = match kernels.pairs {
        Some(pairs) if form == Form::Pairs => pairs.dot,
        _ => kernels.dot,
    };
    let strips: Vec<&Strips<STRIP>> = ws.iter().map(|w| &w.strips).collect();
    for_tickets(cpu, &strips, tiles.len(), |lane, i, range, taken| {
        let (matrix, out, tiles) = (ws[i], outs[i], &tiles[taken]);
        let row_words = form.words(matrix.cols()).next_multiple_of(CHUNK);
        let product = |strip: &FloatStrip<'_>, s: usize, tile: &Tile| {
            let words = &words[tile.at..tile.at + tile.height * row_words];
            let acts = FloatTile { height: tile.height, words };
            let rows = (first_row + tile.first_row, tile.rows, tile.height);
            // SAFETY: the table is this processor's; an output element belongs to one row of one strip, and that to one ticket.
            unsafe { matrix.strips.put(s, rows, out, |out| dot(strip, &acts, out)) }
        };
        if matrix.ty() == QuantType::F16 && tiles.len() >= WIDENED_FOR {
            let mut wide = lanes[lane].lock().unwrap_or_else(PoisonError::into_inner);
            for s in range {
                let strip = matrix.strip(s).widened(kernels.widen, &mut wide);
                tiles.iter().for_each(|tile| product(&strip, s, tile));
            }
        } else {
            for tile in tiles {
                range.clone().for_each(|s| product(&matrix.strip(s), s, tile));
            }
        }
    });
}

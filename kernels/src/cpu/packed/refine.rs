//! Exact products where they matter: among the largest.

use super::acts::{ActTile, Precision, TilePlan, tile_bytes};
use super::matmul::quantize_tiles;
use super::{GROUP, LANES, PackedMatrix, PackedScratch};
use crate::cpu::Cpu;
use crate::cpu::product;
use crate::cpu::shared::{Rows, SharedSlice};

/// Most strips of a row that are computed again. Where more come near the largest, the row is flat: no single one of them matters much.
const STRIPS_MAX: usize = 32;

/// Computes those of the products `out` of [`super::packed_matmul`] again that are near the largest of their row, with 16-bit activations:
/// for each row of `x` the strips of `w` whose largest product is less than `margin` below the row's. For logits: a token's
/// probability is as right as its logit, and nearly all probability is near the largest. Costs a small part of a product.
///
/// A row's result depends on nothing but that row; what is computed again has the bits of [`Precision::Exact`].
///
/// # Panics
/// If the lengths do not fit together.
pub fn packed_refine(
    cpu: &Cpu,
    w: &PackedMatrix,
    x: &[f32],
    m: usize,
    out: &mut [f32],
    scratch: &mut PackedScratch,
    margin: f32,
) {
    let Some(k) = product::columns("packed_refine", [(w.rows, w.cols)].into_iter(), x, m, &mut [&mut *out]) else {
        return;
    };
    if w.rows == 0 {
        return;
    }
    let kernels = &cpu.isa.table().packed;
    let groups = k / GROUP;
    let bytes = tile_bytes(1, groups);
    // Rows want different strips: a tile each.
    let tiles = (0..m).map(|row| TilePlan { first_row: row, rows: 1, height: 1, at: row * bytes });
    scratch.tiles.clear();
    scratch.tiles.extend(tiles);
    quantize_tiles(cpu, kernels, x, k, Precision::Exact, scratch);
    let strips = w.strips();
    scratch.peaks.resize(2 * m * strips, 0.0);
    let acts = scratch.acts.bytes();
    let (peaks, out) = (SharedSlice::new(&mut scratch.peaks), SharedSlice::new(out));
    cpu.for_pieces(m, 1, &|start, end| {
        for row in start..end {
            // SAFETY: what belongs to a row is touched by the piece that has it.
            let (peaks, out) = unsafe { (peaks.slice(2 * row * strips, 2 * strips), out.slice(row * w.rows, w.rows)) };
            let (peaks, order) = peaks.split_at_mut(strips);
            let tile = ActTile::new(1, groups, &acts[row * bytes..(row + 1) * bytes]);
            let mut products = [0.0; LANES];
            let limit = limit(out, peaks, order, margin);
            for (s, _) in peaks.iter().enumerate().filter(|&(_, &peak)| peak >= limit) {
                // SAFETY: the table is this processor's.
                unsafe { (kernels.dot)(&w.strip(s), &tile, Rows::contiguous(&mut products, LANES)) }
                let out = &mut out[s * LANES..w.rows.min((s + 1) * LANES)];
                out.copy_from_slice(&products[..out.len()]);
            }
        }
    });
}

/// From where on a strip's largest product makes it worth computing again. `peaks` gets these, for each strip; `order` is room for as many.
fn limit(products: &[f32], peaks: &mut [f32], order: &mut [f32], margin: f32) -> f32 {
    for (peak, products) in peaks.iter_mut().zip(products.chunks(LANES)) {
        *peak = largest(products);
    }
    let limit = largest(peaks) - margin;
    if peaks.iter().filter(|&&peak| peak >= limit).count() <= STRIPS_MAX {
        return limit;
    }
    order.copy_from_slice(peaks);
    *order.select_nth_unstable_by(STRIPS_MAX - 1, |a, b| b.total_cmp(a)).1
}

/// The largest value; those that are no numbers are passed over.
fn largest(values: &[f32]) -> f32 {
    const WIDTH: usize = 8;
    // As many maxima side by side as the compiler likes to make vectors of.
    let mut lanes = [f32::NEG_INFINITY; WIDTH];
    let (chunks, rest) = values.as_chunks::<WIDTH>();
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

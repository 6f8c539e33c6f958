//! Exact products where they matter: among the largest.

use super::acts::{ActTile, Precision, TilePlan, tile_bytes};
use super::matmul::{Source, quantize_tiles};
use super::{GROUP, LANES, PackedMatrix, PackedScratch, Turn};
use crate::cpu::Cpu;
use crate::cpu::product;
use crate::cpu::refine::refine;
use crate::cpu::shared::Rows;

/// Computes those of the products `out` of [`super::packed_matmul_with_peaks`] again that are near the largest of their row, with 16-bit
/// activations: for each row of `x` the strips of `w` whose largest product is less than `margin` below the row's. For logits: a token's
/// probability is as right as its logit, and nearly all probability is near the largest. Costs a small part of a product. `peaks` are
/// those of `out`, before and after.
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
    (out, peaks): (&mut [f32], &mut [f32]),
    scratch: &mut PackedScratch,
    margin: f32,
) {
    let Some(k) = product::columns("packed_refine", [(w.rows(), w.cols())].into_iter(), x, m, &mut [&mut *out]) else {
        return;
    };
    let kernels = &cpu.isa.table().packed;
    let groups = k / GROUP;
    let bytes = tile_bytes(1, groups);
    // Rows want different strips: a tile each.
    let tiles = (0..m).map(|row| TilePlan { first_row: row, rows: 1, height: 1, at: row * bytes });
    scratch.tiles.clear();
    scratch.tiles.extend(tiles);
    let source = Source { x, cols: k, precision: Precision::Exact, sums: w.has_offset() };
    quantize_tiles(cpu, kernels, source, scratch);
    let acts = scratch.acts.bytes();
    refine(cpu, (w.rows(), LANES), (out, peaks), &mut scratch.order, margin, &|row, strip, out| {
        let tile = ActTile::new(1, groups, &acts[row * bytes..(row + 1) * bytes]);
        let mut products = [0.0; LANES];
        // SAFETY: the table is this processor's.
        unsafe { (kernels.dot)(&w.strip(strip, Turn::ONLY), &tile, Rows::contiguous(&mut products, LANES)) }
        out.copy_from_slice(&products[..out.len()]);
    });
}

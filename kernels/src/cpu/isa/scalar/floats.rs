//! Products with packed floats in plain Rust: the reference, to the bit, for the other instruction sets.

use crate::cpu::floats::{CHUNK, FloatStrip, FloatTile, STRIP};
use crate::cpu::packed::WIDEST_TILE;
use crate::cpu::shared::Rows;

/// The products of a strip with a tile of floats.
pub fn dot(strip: &FloatStrip<'_>, acts: &FloatTile<'_>, out: Rows<'_>) {
    assert!(out.shape() == (acts.height, STRIP), "products of the wrong size: this is a bug");
    let mut sums = [[0.0f32; STRIP]; WIDEST_TILE];
    let mut weights = vec![0.0; strip.cols];
    for lane in 0..STRIP {
        strip.row(lane, &mut weights);
        for (words, weights) in acts.words.chunks_exact(acts.height * CHUNK).zip(weights.chunks(CHUNK)) {
            for (words, sums) in words.chunks_exact(CHUNK).zip(&mut sums) {
                for (word, w) in words.iter().zip(weights) {
                    sums[lane] = w.mul_add(f32::from_bits(*word), sums[lane]);
                }
            }
        }
    }
    out.fill(&sums[..acts.height]);
}

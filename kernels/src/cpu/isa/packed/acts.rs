//! Quantising activations to tiles in plain Rust, for compilers to vectorise: the reference, to the bit, for all instruction sets.

use crate::cpu::elementwise::mean_square;
use crate::cpu::math::ROUND;
use crate::cpu::packed::{
    COARSE_MAX, FINE_MAX, Field, GROUP, GroupSource, Sum, WIDEST_TILE, all_fine, aside_bytes, group_bytes,
};
use crate::cpu::panel::SMALLEST_AMAX;

/// The roots of the mean squares of rows. Inlined into each instruction set.
#[inline(always)]
pub fn root_mean_squares(x: &[f32], cols: usize, out: &mut [f32]) {
    x.chunks_exact(cols).zip(out).for_each(|(row, out)| *out = mean_square(row).sqrt());
}

/// Quantises groups of a tile. Inlined into each instruction set.
///
/// `WORDS` lays out a fine group for a kernel that multiplies 16-bit values: not as high and low bytes but as 16-bit words, 4 for each step
/// in the order 0, 2, 1, 3, the first 4 steps in place of the high bytes and the others in place of the low ones.
#[inline(always)]
pub fn quantize<const WORDS: bool>(source: &GroupSource<'_>, groups: &mut [u8], aside: &mut [u8]) {
    let height = source.height;
    let aside = aside.chunks_exact_mut(aside_bytes(height));
    // Rows that the source does not have stay zeros.
    let mut rows = [Row::ZERO; WIDEST_TILE];
    for (g, (out, aside)) in groups.chunks_exact_mut(group_bytes(height)).zip(aside).enumerate() {
        let mut fine = false;
        for ((row, x), &limit) in rows.iter_mut().zip(source.rows(g)).zip(source.limits) {
            *row = quantize_row(x.first_chunk().expect("a group of fewer values is a bug"), limit);
            fine |= row.fine;
        }
        let (high, fields) = out.split_at_mut(height * GROUP);
        let which = if fine { all_fine(height) } else { 0 };
        fields[Field::Fine.at(height) - height * GROUP..].copy_from_slice(&which.to_le_bytes());
        let high = high.as_chunks_mut::<GROUP>().0;
        let (low, sums) = aside.split_at_mut(height * GROUP);
        let low = low.as_chunks_mut::<GROUP>().0;
        for (r, ((row, high), low)) in rows.iter().zip(high).zip(low).enumerate() {
            let (mut scale, [mut a, mut b]) = (row.scale, row.sums);
            if fine && !row.fine {
                // Times 256, exactly.
                scale /= 256.0;
                (a, b) = (256 * a, 256 * b);
            }
            if fine && WORDS {
                let factor = if row.fine { 1 } else { 256 };
                let (first, second) = row.q.split_at(GROUP / 2);
                for (q, words) in [(first, high), (second, low)] {
                    for (q, words) in q.as_chunks::<4>().0.iter().zip(words.as_chunks_mut::<8>().0) {
                        for (i, word) in [0, 2, 1, 3].into_iter().zip(words.as_chunks_mut::<2>().0) {
                            *word = ((factor * q[i]) as i16).to_le_bytes();
                        }
                    }
                }
            } else if row.fine {
                for ((&q, high), low) in row.q.iter().zip(high).zip(low) {
                    *high = ((q + 128) >> 8) as u8;
                    *low = q as u8;
                }
            } else {
                for (&q, high) in row.q.iter().zip(high) {
                    *high = q as u8;
                }
                if fine {
                    low.fill(0);
                }
            }
            let put = |bytes: &mut [u8], at: usize, value: [u8; 4]| {
                bytes[at - height * GROUP + 4 * r..][..4].copy_from_slice(&value);
            };
            put(fields, Field::Scale.at(height), scale.to_le_bytes());
            put(fields, Field::ScaledSum.at(height), (scale * (a + b) as f32).to_le_bytes());
            if source.sums {
                put(sums, Sum::Of8.at(height), (-8 * (a + b)).to_le_bytes());
                put(sums, Sum::Of16.at(height), (-16 * (a + b)).to_le_bytes());
                put(sums, Sum::Of128.at(height), (-128 * (a + b)).to_le_bytes());
                put(sums, Sum::FirstHalf.at(height), (-32 * a).to_le_bytes());
                put(sums, Sum::SecondHalf.at(height), (-32 * b).to_le_bytes());
            }
        }
    }
}

/// One row's 32 values of a group as integers.
#[derive(Clone, Copy)]
struct Row {
    q: [i32; GROUP],
    /// NaN if a value is not finite: the row's results are NaN then.
    scale: f32,
    /// Sums of both halves.
    sums: [i32; 2],
    fine: bool,
}

impl Row {
    const ZERO: Row = Row { q: [0; GROUP], scale: 0.0, sums: [0; 2], fine: false };
}

#[inline(always)]
fn quantize_row(x: &[f32; GROUP], limit: f32) -> Row {
    // Among non-negative floats the order is that of their bits, with NaN above infinity: nothing not finite slips through.
    let amax = f32::from_bits(x.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff)));
    let fine = amax > limit;
    let max = if fine { FINE_MAX } else { COARSE_MAX };
    let scale = if amax.is_finite() { amax / max } else { f32::NAN };
    let scale = if amax < SMALLEST_AMAX { 0.0 } else { scale };
    let mut row = Row { scale, fine, ..Row::ZERO };
    if scale > 0.0 {
        let inverse = max / amax;
        for (q, &v) in row.q.iter_mut().zip(x) {
            // SAFETY: a finite value of at most FINE_MAX and a bit in magnitude.
            *q = unsafe { (v * inverse + ROUND - ROUND).to_int_unchecked() };
        }
        let (first, second) = row.q.split_at(GROUP / 2);
        row.sums = [first.iter().sum(), second.iter().sum()];
    }
    row
}

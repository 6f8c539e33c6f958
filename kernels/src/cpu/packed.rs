//! Weight matrices packed at load for 8-bit integer dot products.
//!
//! 16 rows of a matrix make a *strip*: one row for each 32-bit lane of a 512-bit register. A strip is a run of *records*: the scales of
//! one or more groups of 32 columns, then the quants of each, all in whole lines of 64 bytes. So a product with one row, which
//! memory bounds, walks through a matrix line by line, and one pointer says what it will want next; hardware's prefetching alone follows
//! that on some processors, and on none as well with scales apart. The 32 values of a group are 8 *steps* of 4: a step of a strip is 64 bytes,
//! 4 unsigned values for each of the 16 rows, which is what one `vpdpbusd` multiplies with 4 activations; narrower registers take a step in
//! parts. Bits stay as few as the file has: as many lines as a value has bits hold a group's steps. As many steps as there are lines lie in
//! the lines' low bits, which one instruction takes out, and the others, in pieces, in the bits that are left ([`pieces`]):
//!
//! | formats | quants of a group | scales |
//! |---|---|---|
//! | Q4_0, Q4_1, Q4_K | 4 lines, `FOUR_BITS` | `d` (and `min`) as f16 |
//! | Q5_0, Q5_1, Q5_K | 5 lines, `FIVE_BITS` | the same |
//! | Q6_K | 6 lines, `SIX_BITS` | `d` as f16, two i8 sub-scales |
//! | Q8_0 | 8 lines, one for each step | `d` as f16 |
//!
//! Q4_K and Q5_K keep their integer sub-scales and sub-minimums, as bytes: 2.8% larger than the file; Q6_K is 1% larger, all others have the
//! file's size.
//! Symmetric formats are stored with their offset added (8, 16, 32 or 128), which the products take away again, exactly, with the sum of
//! the activations. The last strip of a matrix whose rows are no multiple of 16 is filled with zeros.

mod acts;
mod matmul;
mod pack;
mod pieces;
mod refine;

pub use acts::{
    ActTile, COARSE_MAX, FINE_MAX, Field, GroupSource, Precision, Sum, WIDEST_TILE, all_fine, aside_bytes, cut,
    group_bytes,
};
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) use matmul::matmul_with;
pub use matmul::{PackedScratch, packed_gated_matmul, packed_matmul, packed_matmul_with_peaks};
pub use refine::packed_refine;

use super::quant::QuantType;
use super::strips::Strips;
use half::f16;
use pieces::{EIGHT_BITS, FIVE_BITS, FOUR_BITS, Piece, SIX_BITS};
use std::fmt;

/// Rows of a strip.
pub const LANES: usize = 16;
/// Columns that share a scale.
pub const GROUP: usize = 32;
/// Steps of 4 columns in a group.
pub const STEPS: usize = GROUP / 4;
/// Bytes of one step of a strip.
pub const LINE: usize = 4 * LANES;

/// How a format is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Bits of a value, and lines of a group.
    pub bits: usize,
    /// Where they are.
    pub pieces: &'static [Piece],
    /// What was added to the quants to make them unsigned.
    pub offset: u8,
    /// Groups of a record. The last record of a strip may have fewer, but has the scales' full size.
    pub record_groups: usize,
    /// Bytes of a record's scales, whole lines.
    pub scale_bytes: usize,
}

impl Packing {
    /// How `ty` is packed; `None` for formats that are multiplied as they are.
    pub fn of(ty: QuantType) -> Option<Packing> {
        let (pieces, offset, record_groups, scale_bytes) = match ty {
            // d of one group, then of the other.
            QuantType::Q4_0 => (FOUR_BITS, 8, 2, LINE),
            QuantType::Q5_0 => (FIVE_BITS, 16, 2, LINE),
            QuantType::Q8_0 => (EIGHT_BITS, 128, 2, LINE),
            // d, then the minimum.
            QuantType::Q4_1 => (FOUR_BITS, 0, 1, LINE),
            QuantType::Q5_1 => (FIVE_BITS, 0, 1, LINE),
            // d and dmin, then for each group the sub-scales and the sub-minimums.
            QuantType::Q4K => (FOUR_BITS, 0, 8, 5 * LINE),
            QuantType::Q5K => (FIVE_BITS, 0, 8, 5 * LINE),
            // d and as many unused bytes, then for each group the sub-scales of its two halves.
            QuantType::Q6K => (SIX_BITS, 32, 8, 5 * LINE),
            QuantType::F32 | QuantType::F16 | QuantType::BF16 | QuantType::Q2K | QuantType::Q3K | QuantType::Q8K => {
                return None;
            }
        };
        Some(Packing {
            bits: pieces.iter().map(|piece| piece.bits).sum::<usize>() / STEPS,
            pieces,
            offset,
            record_groups,
            scale_bytes,
        })
    }

    /// Bytes of the quants of one group of a strip.
    pub fn quant_bytes(self) -> usize {
        self.bits * LINE
    }

    /// Bytes of a whole record.
    pub fn record_bytes(self) -> usize {
        self.scale_bytes + self.record_groups * self.quant_bytes()
    }

    /// Bytes of a strip of `groups` groups, whole lines.
    pub fn strip_bytes(self, groups: usize) -> Option<usize> {
        let scales = groups.div_ceil(self.record_groups).checked_mul(self.scale_bytes)?;
        groups.checked_mul(self.quant_bytes())?.checked_add(scales)
    }
}

/// A weight matrix in packed form; owns its bytes.
pub struct PackedMatrix {
    packing: Packing,
    strips: Strips<LANES>,
}

impl fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedMatrix({:?})", self.strips)
    }
}

/// 16 rows of a packed matrix.
#[derive(Clone, Copy)]
pub struct Strip<'a> {
    pub ty: QuantType,
    /// Groups of a row.
    pub groups: usize,
    /// Its records, at a multiple of 64.
    pub records: &'a [u8],
    /// See [`Strip::asked`].
    pub turn: Turn,
}

/// Which of the tiles that a strip is multiplied with, one after the other, it is now.
#[derive(Clone, Copy)]
pub struct Turn {
    pub number: usize,
    pub of: usize,
}

impl Turn {
    /// There is one tile.
    pub const ONLY: Turn = Turn { number: 0, of: 1 };
}

impl Strip<'_> {
    /// What to ask for beside the products of each group: so many lines, those of the first group so far behind the strip's beginning. Each
    /// turn asks for its part of the next strip: the first alone would want more than memory gives, and the others nothing. `None` for a
    /// tile alone, which asks for what it will soon use itself.
    pub fn asked(&self) -> Option<(usize, usize)> {
        let Turn { number, of } = self.turn;
        let lines = self.records.len().div_ceil(LINE * of * self.groups.max(1));
        (of > 1).then_some((self.records.len() + number * lines * LINE * self.groups, lines))
    }
}

/// One group of one row, as plain numbers: value `i` is `d[i / 16] * (q[i] - offset) + min`.
#[derive(Clone, Copy)]
pub struct RowGroup {
    pub q: [u8; GROUP],
    /// Scale of each half; the same twice where the format has one for 32 values.
    pub d: [f32; 2],
    pub min: f32,
}

impl PackedMatrix {
    /// Consecutive outputs of which [`packed_matmul_with_peaks`] tells the largest.
    pub const PEAK_OF: usize = LANES;

    /// Bytes that a matrix of this shape takes when packed; `None` if its format is not packed, or its rows are no whole number of blocks.
    pub fn bytes_for(ty: QuantType, rows: usize, cols: usize) -> Option<usize> {
        let packing = Packing::of(ty)?;
        ty.row_bytes(cols)?;
        packing.strip_bytes(cols / GROUP)?.checked_mul(rows.div_ceil(LANES))
    }

    /// The format of the matrix it was packed from.
    pub fn ty(&self) -> QuantType {
        self.strips.ty
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.strips.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.strips.cols
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.strips.bytes()
    }

    /// Whether something was added to its quants.
    fn has_offset(&self) -> bool {
        self.packing.offset > 0
    }

    fn strip(&self, index: usize, turn: Turn) -> Strip<'_> {
        Strip { ty: self.ty(), groups: self.cols() / GROUP, records: self.strips.strip(index), turn }
    }

    /// Row `row` as floats: equal to what [`super::quant::dequantize`] makes of the matrix it was packed from.
    ///
    /// # Panics
    /// If there is no such row, or `out` has not as many values as the matrix has columns.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let (strip, lane) = self.strips.place(row, out);
        let strip = self.strip(strip, Turn::ONLY);
        for (g, out) in out.chunks_exact_mut(GROUP).enumerate() {
            let group = strip.row_group(lane, g);
            for (i, y) in out.iter_mut().enumerate() {
                let product = group.d[i / 16] * f32::from(i16::from(group.q[i]) - i16::from(self.packing.offset));
                *y = if has_min(self.ty()) { product + group.min } else { product };
            }
        }
    }
}

/// Whether a format's groups have a minimum.
pub fn has_min(ty: QuantType) -> bool {
    matches!(ty, QuantType::Q4_1 | QuantType::Q5_1 | QuantType::Q4K | QuantType::Q5K)
}

/// Whether a format's groups have a scale for each half.
pub fn two_scales(ty: QuantType) -> bool {
    ty == QuantType::Q6K
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

impl Strip<'_> {
    /// Group `g` of the row in `lane`.
    pub fn row_group(&self, lane: usize, g: usize) -> RowGroup {
        let packing = Packing::of(self.ty).expect("a strip of a format that is not packed is a bug");
        let record = &self.records[g / packing.record_groups * packing.record_bytes()..];
        let i = g % packing.record_groups;
        let quants = &record[packing.scale_bytes + i * packing.quant_bytes()..][..packing.quant_bytes()];
        // The 4 values of a step are the bytes of a word.
        let word = |line: usize| {
            let at = line * LINE + 4 * lane;
            u32::from_le_bytes([quants[at], quants[at + 1], quants[at + 2], quants[at + 3]])
        };
        let mut steps = [0; STEPS];
        for piece in packing.pieces {
            steps[piece.step] |= (word(piece.line) >> piece.at & piece.mask()) << piece.to;
        }
        let mut q = [0; GROUP];
        for (q, step) in q.as_chunks_mut::<4>().0.iter_mut().zip(steps) {
            *q = step.to_le_bytes();
        }
        let half = |slot: usize| half_at(record, (slot * LANES + lane) * 2);
        let sub = |slot: usize| record[LINE + (2 * i + slot) * LANES + lane];
        match self.ty {
            QuantType::Q4K | QuantType::Q5K => {
                RowGroup { q, d: [half(0) * f32::from(sub(0)); 2], min: -(half(1) * f32::from(sub(1))) }
            }
            QuantType::Q6K => {
                let [a, b] = [sub(0), sub(1)].map(|s| half(0) * f32::from(s as i8));
                RowGroup { q, d: [a, b], min: 0.0 }
            }
            ty if has_min(ty) => RowGroup { q, d: [half(0); 2], min: half(1) },
            _ => RowGroup { q, d: [half(i); 2], min: 0.0 },
        }
    }
}

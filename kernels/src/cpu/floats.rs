//! Matrices of plain floats (F32, F16, BF16), packed at load.
//!
//! 32 rows of a matrix make a *strip*: a few registers, with a row for each lane. A strip is its rows transposed in units of 32 bits: one F32
//! column, or two of BF16, which is what `vdpbf16ps` multiplies with two activations; F16, which is widened by an instruction that wants
//! its values side by side, in units of 16. The 32 units of the same columns make a line. The last strip of a matrix whose rows are no
//! multiple of 32 is filled with zeros, and so is the last unit of BF16 rows of an odd number of columns.
//!
//! Nothing is rounded: it takes the bytes of the file.

mod matmul;
mod refine;

pub use matmul::{FloatScratch, float_matmul};
pub use refine::float_refine;

use super::Cpu;
use super::matmul::MatrixRef;
use super::memory::Lines;
use super::quant::{QuantType, dequantize};
use super::shared::Rows;
use super::strips::Strips;
use std::fmt;
use std::ops::Range;

/// Rows of a strip.
pub const STRIP: usize = 32;
/// Words of a row of activations that lie side by side.
pub const CHUNK: usize = 16;

/// Bytes of a unit of `ty`: `None` for block formats.
const fn unit(ty: QuantType) -> Option<usize> {
    match ty {
        QuantType::F32 | QuantType::BF16 => Some(4),
        QuantType::F16 => Some(2),
        _ => None,
    }
}

/// A matrix of floats in packed form; owns its bytes.
pub struct FloatMatrix {
    strips: Strips<STRIP>,
}

impl fmt::Debug for FloatMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FloatMatrix({:?})", self.strips)
    }
}

/// 32 rows of a matrix.
#[derive(Clone, Copy)]
pub struct FloatStrip<'a> {
    pub ty: QuantType,
    pub cols: usize,
    /// Lines, at a multiple of 64.
    pub lines: &'a [u8],
}

/// Some rows of activations: for each 16 words of theirs a row's words after the other's, the last ones filled up with zeros.
#[derive(Clone, Copy)]
pub struct FloatTile<'a> {
    /// Rows, rows of zeros included.
    pub height: usize,
    /// Bits of floats, or pairs of bfloat16 with the first in the lower half.
    pub words: &'a [u32],
}

/// Products of strips with tiles of floats: fused multiply-adds, column by column, the same bits in all instruction sets.
pub type FloatDot = unsafe fn(strip: &FloatStrip<'_>, acts: &FloatTile<'_>, out: Rows<'_>);

/// Turns half-precision floats into as many floats.
pub type Widen = unsafe fn(halves: &[u8], out: &mut [f32]);

/// Products of BF16 strips with pairs of activations rounded to BF16, where the instruction set has them. Sums are floats; denormals count
/// as zero.
pub struct FloatPairs {
    /// Rounds a row: `out[i / 16 * stride + i % 16]` gets pair `i`.
    pub round: unsafe fn(x: &[f32], out: &mut [u32], stride: usize),
    /// The products of a strip with a tile of pairs.
    pub dot: FloatDot,
}

impl FloatMatrix {
    /// Consecutive outputs of which [`float_refine`] tells the largest.
    pub const PEAK_OF: usize = STRIP;

    /// Bytes that a matrix of this shape takes when packed; `None` for block formats.
    pub fn bytes_for(ty: QuantType, rows: usize, cols: usize) -> Option<usize> {
        Self::strip_bytes(ty, cols)?.checked_mul(rows.div_ceil(STRIP))
    }

    fn strip_bytes(ty: QuantType, cols: usize) -> Option<usize> {
        let unit = unit(ty)?;
        ty.row_bytes(cols)?.checked_next_multiple_of(unit)?.checked_mul(STRIP)
    }

    /// Packs `w`, on all threads; `None` for block formats. `done` as for [`crate::PackedMatrix::pack`].
    ///
    /// # Panics
    /// If the bytes are not those of a matrix of this shape.
    pub fn pack(cpu: &Cpu, w: MatrixRef<'_>, done: &(dyn Fn(Range<usize>) + Sync)) -> Option<FloatMatrix> {
        let (unit, strip_bytes) = (unit(w.ty)?, Self::strip_bytes(w.ty, w.cols)?);
        let fill = |rows: &[u8], row_bytes: usize, strip: &mut [u8]| match unit {
            2 => transpose::<2>(rows, row_bytes, strip),
            _ => transpose::<4>(rows, row_bytes, strip),
        };
        let strips = Strips::pack(cpu, w, strip_bytes, fill, done);
        Some(FloatMatrix { strips })
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

    fn strip(&self, index: usize) -> FloatStrip<'_> {
        FloatStrip { ty: self.ty(), cols: self.cols(), lines: self.strips.strip(index) }
    }

    /// Row `row` as floats.
    ///
    /// # Panics
    /// If there is no such row, or `out` has not as many values as the matrix has columns.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let (strip, lane) = self.strips.place(row, out);
        self.strip(strip).row(lane, out);
    }
}

impl FloatStrip<'_> {
    /// An F16 strip as one of F32, in `room`: the order is the same.
    fn widened<'a>(&self, widen: Widen, room: &'a mut Lines) -> FloatStrip<'a> {
        let values = self.cols * STRIP;
        if room.bytes().len() < 4 * values {
            *room = Lines::zeroed(4 * values);
        }
        // SAFETY: the table is this processor's.
        unsafe { widen(self.lines, &mut room.floats_mut()[..values]) }
        FloatStrip { ty: QuantType::F32, cols: self.cols, lines: &room.bytes()[..4 * values] }
    }

    /// The row in `lane` as floats.
    pub fn row(&self, lane: usize, out: &mut [f32]) {
        /// Values that are put together at a time.
        const PIECE: usize = 64;
        let unit = unit(self.ty).expect("a strip of a block format is a bug");
        let mut lines = self.lines.chunks_exact(STRIP * unit).map(|line| &line[lane * unit..(lane + 1) * unit]);
        let mut bytes = [0; 4 * PIECE];
        let size = self.ty.block_bytes();
        for out in out.chunks_mut(PIECE) {
            let bytes = &mut bytes[..(out.len() * size).next_multiple_of(unit)];
            bytes.chunks_exact_mut(unit).zip(&mut lines).for_each(|(to, from)| to.copy_from_slice(from));
            dequantize(self.ty, &bytes[..out.len() * size], out);
        }
    }
}

/// Up to 32 rows to lines of units of `UNIT` bytes.
fn transpose<const UNIT: usize>(rows: &[u8], row_bytes: usize, strip: &mut [u8]) {
    /// Units of a row that are taken at a time: the lines stay in the first-level cache while all rows are.
    const PIECE: usize = 32;
    let piece_bytes = PIECE * UNIT;
    for (at, lines) in (0..row_bytes).step_by(piece_bytes).zip(strip.chunks_mut(PIECE * STRIP * UNIT)) {
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            let units = &row[at..row_bytes.min(at + piece_bytes)];
            let (whole, rest) = units.as_chunks::<UNIT>();
            for (line, unit) in lines.chunks_exact_mut(STRIP * UNIT).zip(whole) {
                line[lane * UNIT..(lane + 1) * UNIT].copy_from_slice(unit);
            }
            if !rest.is_empty() {
                let at = whole.len() * STRIP * UNIT + lane * UNIT;
                lines[at..at + rest.len()].copy_from_slice(rest);
            }
        }
    }
}

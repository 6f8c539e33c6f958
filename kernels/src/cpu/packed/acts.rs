//! Activations as the packed kernels read them.
//!
//! The rows of a call are cut into tiles. A tile holds, for each group of 32 columns, its rows' quants side by side, then their scales and
//! sums: everything a kernel needs for a group lies at a fixed distance from one pointer that only moves forward.

use super::GROUP;

/// How finely activations are rounded, with one scale for each 32 values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// To 8 bits: an error of up to 1/254 of the largest of the 32 values.
    Int8,
    /// To 16 bits, as a high and a low byte: twice the multiplications, 1/256 of the error.
    Exact,
}

/// Most rows of a tile, in any precision.
pub const WIDEST_TILE: usize = 12;

impl Precision {
    /// Bytes of a quantised activation.
    pub fn parts(self) -> usize {
        match self {
            Precision::Int8 => 1,
            Precision::Exact => 2,
        }
    }

    /// Largest magnitude of a quantised activation: with `high = (q + 128) >> 8` both bytes are signed.
    pub fn max(self) -> f32 {
        match self {
            Precision::Int8 => 127.0,
            Precision::Exact => 32512.0,
        }
    }

    /// The heights of tiles that kernels exist for, in rising order. A product of some other number of rows has rows of zeros at the end.
    pub fn heights(self) -> &'static [usize] {
        match self {
            Precision::Int8 => &[1, 2, 3, 4, 6, 8, 10, WIDEST_TILE],
            Precision::Exact => &[1, 2, 4, 6],
        }
    }

    /// Where the first tile of `rows` rows ends, and its height.
    fn first_tile(self, rows: usize) -> (usize, usize) {
        let heights = self.heights();
        let highest = heights[heights.len() - 1];
        let taken = match rows {
            _ if rows <= highest => rows,
            // A tile of one to three rows unpacks weights for little: two middling ones do better.
            _ if rows - highest < 4 => rows.div_ceil(2),
            _ => highest,
        };
        let height = heights.iter().copied().find(|&height| height >= taken).unwrap_or(highest);
        (taken, height)
    }
}

/// Bytes of one group of a tile: for each row its quants (all high bytes before all low ones), scale, `scale * sum`, and three exact sums
/// times -8: of the group, and of its halves. The last are i32, from which a shift makes what a format's offset adds to a product.
pub const fn group_bytes(parts: usize, height: usize) -> usize {
    height * (GROUP * parts + 5 * 4)
}

/// A part of a tile's fields behind the quants.
#[derive(Clone, Copy)]
pub enum Field {
    Scale,
    ScaledSum,
    Sum,
    FirstHalf,
    SecondHalf,
}

impl Field {
    /// Where the field's values begin in a group.
    pub const fn at(self, parts: usize, height: usize) -> usize {
        height * (GROUP * parts + 4 * self as usize)
    }
}

/// Some rows of activations, quantised.
#[derive(Clone, Copy)]
pub struct ActTile<'a> {
    pub precision: Precision,
    /// Rows, rows of zeros included.
    pub height: usize,
    /// A group after the other, at a multiple of 4.
    pub data: &'a [u8],
}

impl ActTile<'_> {
    /// Field `field` of `row` in group `g`, as its 4 bytes.
    pub fn field(&self, g: usize, row: usize, field: Field) -> [u8; 4] {
        let parts = self.precision.parts();
        let at = g * group_bytes(parts, self.height) + field.at(parts, self.height) + 4 * row;
        [self.data[at], self.data[at + 1], self.data[at + 2], self.data[at + 3]]
    }

    /// Value `i` of `row` in group `g`.
    pub fn value(&self, g: usize, row: usize, i: usize) -> i32 {
        let parts = self.precision.parts();
        let at = g * group_bytes(parts, self.height) + row * GROUP * parts + i;
        let byte = |at: usize| i32::from(self.data[at] as i8);
        match self.precision {
            Precision::Int8 => byte(at),
            Precision::Exact => byte(at) * 256 + byte(at + GROUP),
        }
    }
}

/// What to quantise: the same columns of the rows of a tile.
#[derive(Clone, Copy)]
pub struct GroupSource<'a> {
    /// Whole rows of `cols` values; fewer than `height` leave rows of zeros.
    pub x: &'a [f32],
    pub cols: usize,
    /// The first group to take.
    pub first: usize,
    pub precision: Precision,
    pub height: usize,
}

impl<'a> GroupSource<'a> {
    /// Group `g`, counted from the first, of each row.
    pub fn rows(&self, g: usize) -> impl Iterator<Item = &'a [f32]> {
        let at = (self.first + g) * GROUP;
        self.x.chunks_exact(self.cols).map(move |row| &row[at..at + GROUP])
    }
}

/// One tile of a call.
#[derive(Clone, Copy, Debug)]
pub struct TilePlan {
    pub first_row: usize,
    pub rows: usize,
    pub height: usize,
    /// Where its bytes begin.
    pub at: usize,
}

/// Cuts `m` rows of `groups` groups into tiles; also the bytes of all.
pub fn tiles(precision: Precision, m: usize, groups: usize, plans: &mut Vec<TilePlan>) -> usize {
    plans.clear();
    let (mut first_row, mut at) = (0, 0);
    while first_row < m {
        let (rows, height) = precision.first_tile(m - first_row);
        plans.push(TilePlan { first_row, rows, height, at });
        first_row += rows;
        at += groups * group_bytes(precision.parts(), height);
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_row_once() {
        for precision in [Precision::Int8, Precision::Exact] {
            let mut plans = Vec::new();
            for m in 0..70 {
                let bytes = tiles(precision, m, 3, &mut plans);
                let mut row = 0;
                for plan in &plans {
                    assert_eq!(plan.first_row, row);
                    assert!(plan.rows > 0 && plan.rows <= plan.height && precision.heights().contains(&plan.height));
                    row += plan.rows;
                }
                assert_eq!(row, m);
                assert_eq!(bytes, plans.iter().map(|p| 3 * group_bytes(precision.parts(), p.height)).sum::<usize>());
            }
        }
    }
}

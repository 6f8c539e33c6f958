//! Activations as the packed kernels read them.
//!
//! The rows of a call are cut into tiles. A tile holds, for each group of 32 columns, its rows' quants side by side, then their scales and
//! sums: everything a kernel needs for a group lies at a fixed distance from one pointer that only moves forward.

use super::GROUP;
/// How finely activations are rounded, with one scale for each 32 values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// To 8 bits, but to 16 where the largest of the 32 values stands far out of its row: those few groups make most of the error.
    Int8,
    /// The same for more groups: a quarter of them, for encoders, whose results have nowhere to even out.
    Mixed,
    /// To 16 bits: twice the multiplications, 1/256 of the error.
    Exact,
}

/// Most rows of a tile.
pub const WIDEST_TILE: usize = 12;

/// The heights of tiles that kernels exist for, in rising order. A product of some other number of rows has rows of zeros at the end.
pub const HEIGHTS: [usize; 8] = [1, 2, 3, 4, 6, 8, 10, WIDEST_TILE];

/// Largest magnitude of a quantised activation in 8 bits.
pub const COARSE_MAX: f32 = 127.0;

/// Largest magnitude in 16 bits: with `high = (q + 128) >> 8` both bytes are signed.
pub const FINE_MAX: f32 = 32512.0;

impl Precision {
    /// How many times the root mean square of its row a group's largest magnitude must exceed to be rounded to 16 bits. Of bell-shaped
    /// values one in a group reaches 2 to 3 times; with 8, on real models, 2 to 5% of the groups are fine, and the error of the
    /// log-probabilities is half of what 8 bits alone give. With 3.5, the vectors of all-MiniLM-L6-v2 are as near as with 16 bits for all: what
    /// is left is the error of its rounded weights.
    pub fn fine_above(self) -> f32 {
        match self {
            Precision::Int8 => 8.0,
            Precision::Mixed => 3.5,
            Precision::Exact => 0.0,
        }
    }
}

/// Cuts `rows` rows into tiles: the first row of each, its rows, and its height.
pub fn cut(rows: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let left = rows - first;
        let taken = match left {
            0 => return None,
            _ if left <= WIDEST_TILE => left,
            // A tile of one to four rows unpacks weights for little: two middling ones do better.
            _ if left - WIDEST_TILE <= 4 => left.div_ceil(2),
            _ => WIDEST_TILE,
        };
        let height = HEIGHTS.into_iter().find(|&height| height >= taken).unwrap_or(WIDEST_TILE);
        first += taken;
        Some((first - taken, taken, height))
    })
}

/// Bytes of one group of a tile: for each row its high bytes and the fields that all formats need; and which rows have low bytes.
///
/// Low bytes have the rows whose group is fine; or all of them, where kernels make more of that: the values of the others are multiplied by
/// 256 then, and their scale is divided by it, both exactly, so that a row's products do not depend on the tile.
pub const fn group_bytes(height: usize) -> usize {
    Field::Fine.at(height) + 4
}

/// [`Field::Fine`] of a group in which all rows have low bytes.
pub const fn all_fine(height: usize) -> u32 {
    (1 << height) - 1
}

/// Bytes that a group has beside: low bytes and sums. They are behind all groups of the tile, since few are ever touched: they stay out of
/// the caches.
pub const fn aside_bytes(height: usize) -> usize {
    height * (GROUP + 4 * 5)
}

/// A part of a group behind the high bytes.
#[derive(Clone, Copy)]
pub enum Field {
    Scale,
    /// Scale times sum.
    ScaledSum,
    /// One for the group: a u32, in which bit `r` says whether row `r` has low bytes.
    Fine,
}

impl Field {
    /// Where the field's values begin in a group.
    pub const fn at(self, height: usize) -> usize {
        height * (GROUP + 4 * self as usize)
    }
}

/// A part of what a group has beside, behind the low bytes: what an offset of the weights adds to a product, minus that times the sum of
/// the activations, exactly (i32). Only where [`GroupSource::sums`] asks for it.
#[derive(Clone, Copy)]
pub enum Sum {
    Of8,
    Of16,
    Of128,
    /// Of each half, for an offset of 32.
    FirstHalf,
    SecondHalf,
}

impl Sum {
    /// What `offset` adds to a product of a whole group.
    pub const fn of(offset: u32) -> Sum {
        match offset {
            8 => Sum::Of8,
            16 => Sum::Of16,
            _ => Sum::Of128,
        }
    }

    /// Where its values begin.
    pub const fn at(self, height: usize) -> usize {
        height * (GROUP + 4 * self as usize)
    }
}

/// Some rows of activations, quantised.
#[derive(Clone, Copy)]
pub struct ActTile<'a> {
    /// Rows, rows of zeros included.
    pub height: usize,
    /// A group after the other, at a multiple of 4.
    pub groups: &'a [u8],
    /// What they have beside.
    pub aside: &'a [u8],
}

impl<'a> ActTile<'a> {
    /// The tile of `groups` groups whose bytes are `data`.
    pub fn new(height: usize, groups: usize, data: &'a [u8]) -> Self {
        let (groups, aside) = data.split_at(groups * group_bytes(height));
        ActTile { height, groups, aside }
    }

    /// Field `field` of `row` in group `g`, as its 4 bytes.
    pub fn field(&self, g: usize, row: usize, field: Field) -> [u8; 4] {
        let at = g * group_bytes(self.height) + field.at(self.height) + 4 * row;
        [self.groups[at], self.groups[at + 1], self.groups[at + 2], self.groups[at + 3]]
    }

    /// The values of `row` in group `g`: at most 32639 in magnitude.
    pub fn values(&self, g: usize, row: usize, out: &mut [i16; GROUP]) {
        let bytes = |bytes: &'a [u8], group_bytes: usize| &bytes[g * group_bytes + row * GROUP..][..GROUP];
        let high = bytes(self.groups, group_bytes(self.height));
        if u32::from_le_bytes(self.field(g, 0, Field::Fine)) >> row & 1 == 0 {
            out.iter_mut().zip(high).for_each(|(out, &high)| *out = i16::from(high as i8));
        } else {
            let low = bytes(self.aside, aside_bytes(self.height));
            for ((out, &high), &low) in out.iter_mut().zip(high).zip(low) {
                *out = 256 * i16::from(high as i8) + i16::from(low as i8);
            }
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
    pub height: usize,
    /// For each row the magnitude above which a group is fine.
    pub limits: &'a [f32],
    /// Whether the weights have offsets.
    pub sums: bool,
}

impl<'a> GroupSource<'a> {
    /// Group `g`, counted from the first, of each row.
    pub fn rows(&self, g: usize) -> impl Iterator<Item = &'a [f32]> + Clone + use<'a> {
        let source = *self;
        (0..self.x.len() / self.cols).map(move |row| source.row(g, row))
    }

    /// Group `g`, counted from the first, of a row.
    pub fn row(&self, g: usize, row: usize) -> &'a [f32] {
        &self.x[row * self.cols + (self.first + g) * GROUP..][..GROUP]
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

/// Bytes of a tile.
pub const fn tile_bytes(height: usize, groups: usize) -> usize {
    groups * (group_bytes(height) + aside_bytes(height))
}

/// Cuts `m` rows of `groups` groups into tiles, whose bytes follow each other.
pub fn tiles(m: usize, groups: usize, plans: &mut Vec<TilePlan>) {
    plans.clear();
    let mut at = 0;
    for (first_row, rows, height) in cut(m) {
        plans.push(TilePlan { first_row, rows, height, at });
        at += tile_bytes(height, groups);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_row_once() {
        let mut plans = Vec::new();
        for m in 0..70 {
            tiles(m, 3, &mut plans);
            for threads in [1, 2, 64] {
                assert!(crate::cpu::strips::blocks(plans.len(), threads) <= plans.len().max(1));
            }
            let (mut row, mut bytes) = (0, 0);
            for plan in &plans {
                assert_eq!((plan.first_row, plan.at), (row, bytes));
                assert!(plan.rows > 0 && plan.rows <= plan.height && HEIGHTS.contains(&plan.height));
                row += plan.rows;
                bytes += tile_bytes(plan.height, 3);
            }
            assert_eq!(row, m);
        }
    }
}

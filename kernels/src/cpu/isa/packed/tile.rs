//! The products of a strip with a tile of activations.
//!
//! A tile is cut into passes of as many rows as the registers hold. For each group of a pass, a step of the strip is unpacked once and
//! multiplied with every row. Then the sums become floats and are multiplied into the row's accumulator: lanes are rows of the matrix, so
//! nothing is ever summed across them, and a row's bits depend on no other row.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

use super::{Dots, FIRST, Quants, SECOND, Scales, Vector, WHOLE, four};
use crate::cpu::isa::{AHEAD, next_pass};
use crate::cpu::packed::{ActTile, Field, GROUP, LANES, LINE, Strip, Sum, aside_bytes, group_bytes};
use crate::cpu::shared::Rows;

/// Where a strip and some rows of a tile are.
pub struct Pass {
    groups: usize,
    records: *const u8,
    /// Height of the tile, and the first row to take.
    height: usize,
    row: usize,
    acts: *const u8,
    aside: *const u8,
    out: *mut f32,
    stride: usize,
    /// See [`Strip::asked`].
    asked: Option<(usize, usize)>,
}

impl Pass {
    /// The whole tile, as checked as it can be.
    ///
    /// # Panics
    /// If the sizes do not fit together.
    pub fn new<Q: Quants, S: Scales>(strip: &Strip<'_>, acts: &ActTile<'_>, out: Rows<'_>) -> Pass {
        let (groups, height) = (strip.groups, acts.height);
        let fits = strip.records.len() == groups.div_ceil(S::GROUPS) * S::BYTES + groups * Q::BYTES
            && strip.records.as_ptr().addr().is_multiple_of(LINE)
            && acts.groups.len() == groups * group_bytes(height)
            && acts.aside.len() == groups * aside_bytes(height)
            && acts.groups.as_ptr().addr().is_multiple_of(4)
            && acts.aside.as_ptr().addr().is_multiple_of(4)
            && out.shape() == (height, LANES);
        assert!(fits, "a strip or a tile has the wrong size: this is a bug");
        Pass {
            groups,
            records: strip.records.as_ptr(),
            height,
            row: 0,
            acts: acts.groups.as_ptr(),
            aside: acts.aside.as_ptr(),
            out: out.at(),
            stride: out.stride(),
            asked: strip.asked(),
        }
    }

    /// The next rows to take, behind the `taken` ones.
    pub fn next(&mut self, taken: usize, most: usize) -> Option<usize> {
        self.row += taken;
        next_pass(self.height - self.row, most)
    }
}

/// What the sums of a row begin with, which lies at `at` unless there is no offset.
///
/// # Safety
/// As for [`four`].
#[inline(always)]
unsafe fn begin<D: Dots>(offset: u32, at: *const u8) -> <D::V as Vector>::Int {
    // SAFETY: the caller's promise.
    unsafe { if offset == 0 || D::SIGNED && offset == 128 { D::V::word(0) } else { four::<D::V>(at) } }
}

/// `R` rows of activations with 16 rows of weights in `B` registers.
///
/// # Safety
/// The pass has `R` more rows and is of `Q` and its `S`; the processor has the instructions of `D`.
#[inline(always)]
pub unsafe fn rows<D: Dots, Q: Quants, S: Scales, const R: usize, const B: usize>(pass: &Pass) {
    const { assert!(B * D::V::LANES == LANES) };
    let &Pass { groups, records, height, row, acts, aside, out, stride, asked } = pass;
    let (mut wanted, lines) = asked.map_or((records, 0), |(offset, lines)| (records.wrapping_add(offset), lines));
    // SAFETY: `Pass::new` has checked the sizes: groups and records begin at multiples of their sizes. Prefetched addresses may lie anywhere.
    unsafe {
        let mut sums = [[D::V::float(0.0); B]; R];
        for g in 0..groups {
            let i = g % S::GROUPS;
            let record = records.add(g / S::GROUPS * (S::BYTES + S::GROUPS * Q::BYTES));
            let q = record.add(S::BYTES + i * Q::BYTES);
            let group = acts.add(g * group_bytes(height));
            if asked.is_none() {
                for at in (0..Q::BYTES).step_by(LINE) {
                    D::V::prefetch(q.wrapping_add(AHEAD + at));
                }
            } else if row == 0 {
                for _ in 0..lines {
                    D::V::prefetch(wanted);
                    wanted = wanted.wrapping_add(LINE);
                }
            }
            let high = group.add(row * GROUP);
            let aside = aside.add(g * aside_bytes(height));
            let low = aside.add(row * GROUP);
            let sum = |sum: Sum, r: usize| aside.add(sum.at(height) + 4 * (row + r));
            let field = |field: Field, r: usize| group.add(field.at(height) + 4 * (row + r));
            let fine = *group.add(Field::Fine.at(height)).cast::<u32>() != 0;
            // Products of the first half, where each half has a scale.
            let mut halves = [[D::V::float(0.0); B]; R];
            // The steps of a part of the group with one scale: offset, products, sum.
            macro_rules! add {
                ($part:literal, $steps:expr, $sum:expr) => {
                    let mut dots = [[D::V::word(0); B]; R];
                    for r in 0..R {
                        dots[r] = [begin::<D>(S::OFFSET, sum($sum, r)); B];
                    }
                    if fine {
                        D::fine::<Q, R, B, { $steps }>(q, high, low, &mut dots);
                    } else {
                        D::coarse::<Q, R, B, { $steps }>(q, high, &mut dots);
                    }
                    let mut d = [D::V::float(0.0); B];
                    for b in 0..B {
                        d[b] = S::scale::<D::V>(record, i, $part, b * D::V::LANES);
                    }
                    for r in 0..R {
                        let scale = D::V::float(*field(Field::Scale, r).cast::<f32>());
                        for b in 0..B {
                            let dot = D::V::to_float(dots[r][b]);
                            if S::PARTS == 1 {
                                sums[r][b] = D::V::fma(dot, D::V::mul(d[b], scale), sums[r][b]);
                            } else if $part == 0 {
                                halves[r][b] = D::V::mul(dot, d[b]);
                            } else {
                                sums[r][b] = D::V::fma(D::V::fma(dot, d[b], halves[r][b]), scale, sums[r][b]);
                            }
                        }
                    }
                };
            }
            if S::PARTS == 1 {
                add!(0, WHOLE, Sum::of(S::OFFSET));
            } else {
                add!(0, FIRST, Sum::FirstHalf);
                add!(1, SECOND, Sum::SecondHalf);
            }
            if S::MIN {
                let mut min = [D::V::float(0.0); B];
                for b in 0..B {
                    min[b] = S::min::<D::V>(record, i, b * D::V::LANES);
                }
                for r in 0..R {
                    let sum = D::V::float(*field(Field::ScaledSum, r).cast::<f32>());
                    for b in 0..B {
                        sums[r][b] = D::V::fma(min[b], sum, sums[r][b]);
                    }
                }
            }
        }
        for r in 0..R {
            for b in 0..B {
                D::V::store(sums[r][b], out.add((row + r) * stride + b * D::V::LANES));
            }
        }
    }
}

/// The function `dot` of a table, compiled for the features that `$dots` needs; a register holds 1 / `$blocks` of a strip's lanes.
macro_rules! packed_dot {
    ($features:literal, $dots:ty, $blocks:literal) => {
        /// One function for each format and number of rows, so that each is compiled on its own.
        #[inline(never)]
        #[target_feature(enable = $features)]
        fn rows_of<Q: packed::Quants, S: packed::Scales, const R: usize>(pass: &packed::tile::Pass) {
            // SAFETY: `dot_of` passes a format's own quants and scales and as many rows as are left, and the features are those that this
            // function is compiled for and called with.
            unsafe { packed::tile::rows::<$dots, Q, S, R, $blocks>(pass) }
        }

        #[target_feature(enable = $features)]
        fn dot_of<Q: packed::Quants, S: packed::Scales>(
            strip: &crate::cpu::packed::Strip<'_>,
            acts: &crate::cpu::packed::ActTile<'_>,
            out: crate::cpu::shared::Rows<'_>,
        ) {
            let mut pass = packed::tile::Pass::new::<Q, S>(strip, acts, out);
            let mut rows = 0;
            while let Some(next) = pass.next(rows, <$dots as packed::Dots>::ROWS) {
                rows = next;
                match rows {
                    1 => rows_of::<Q, S, 1>(&pass),
                    2 => rows_of::<Q, S, 2>(&pass),
                    3 => rows_of::<Q, S, 3>(&pass),
                    4 => rows_of::<Q, S, 4>(&pass),
                    5 => rows_of::<Q, S, 5>(&pass),
                    6 => rows_of::<Q, S, 6>(&pass),
                    rows => panic!("a pass of {rows} rows: this is a bug"),
                }
            }
        }

        #[target_feature(enable = $features)]
        pub fn dot(
            strip: &crate::cpu::packed::Strip<'_>,
            acts: &crate::cpu::packed::ActTile<'_>,
            out: crate::cpu::shared::Rows<'_>,
        ) {
            use crate::cpu::quant::QuantType;
            use packed::{Affine, AffineK, EightBits, FiveBits, FourBits, HalvesK, SixBits, Symmetric};
            match strip.ty {
                QuantType::Q4_0 => dot_of::<FourBits, Symmetric<8>>(strip, acts, out),
                QuantType::Q4_1 => dot_of::<FourBits, Affine>(strip, acts, out),
                QuantType::Q5_0 => dot_of::<FiveBits, Symmetric<16>>(strip, acts, out),
                QuantType::Q5_1 => dot_of::<FiveBits, Affine>(strip, acts, out),
                QuantType::Q8_0 => dot_of::<EightBits, Symmetric<128>>(strip, acts, out),
                QuantType::Q4K => dot_of::<FourBits, AffineK>(strip, acts, out),
                QuantType::Q5K => dot_of::<FiveBits, AffineK>(strip, acts, out),
                QuantType::Q6K => dot_of::<SixBits, HalvesK>(strip, acts, out),
                ty => panic!("{} is not packed: this is a bug", ty.name()),
            }
        }
    };
}
pub(in crate::cpu::isa) use packed_dot;

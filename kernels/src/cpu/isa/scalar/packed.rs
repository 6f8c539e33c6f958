//! Packed products in plain Rust: the reference, to the bit, for the other instruction sets.

use crate::cpu::isa::packed::acts;
use crate::cpu::packed::{ActTile, Field, GROUP, GroupSource, LANES, Packing, Strip, WIDEST_TILE, has_min, two_scales};
use crate::cpu::shared::Rows;
use std::ops::Range;

/// The roots of the mean squares of rows, each summed in 16 lanes.
pub fn root_mean_squares(x: &[f32], cols: usize, out: &mut [f32]) {
    acts::root_mean_squares(x, cols, out);
}

/// Quantises groups of a tile.
pub fn quantize(source: &GroupSource<'_>, groups: &mut [u8], aside: &mut [u8]) {
    acts::quantize::<false>(source, groups, aside);
}

/// The products of a strip with a tile.
pub fn dot(strip: &Strip<'_>, acts: &ActTile<'_>, out: Rows<'_>) {
    assert!(out.shape() == (acts.height, LANES), "products of the wrong size: this is a bug");
    let Some(Packing { offset, .. }) = Packing::of(strip.ty) else {
        panic!("a strip of {} is a bug", strip.ty.name());
    };
    let mut sums = [[0.0f32; LANES]; WIDEST_TILE];
    for g in 0..strip.groups {
        let mut values = [[0i16; GROUP]; WIDEST_TILE];
        for (row, values) in values[..acts.height].iter_mut().enumerate() {
            acts.values(g, row, values);
        }
        for lane in 0..LANES {
            let group = strip.row_group(lane, g);
            let w = group.q.map(|q| i16::from(q) - i16::from(offset));
            for (row, (values, sums)) in values[..acts.height].iter().zip(&mut sums).enumerate() {
                let sum = &mut sums[lane];
                let scale = f32::from_le_bytes(acts.field(g, row, Field::Scale));
                // At most 32 * 255 * 32639 in magnitude, with offset or without: no overflow.
                let dot = |columns: Range<usize>| -> f32 {
                    let products = w[columns.clone()].iter().zip(&values[columns]);
                    products.map(|(&w, &a)| i32::from(w) * i32::from(a)).sum::<i32>() as f32
                };
                if two_scales(strip.ty) {
                    let (first, second) = (dot(0..GROUP / 2), dot(GROUP / 2..GROUP));
                    *sum = second.mul_add(group.d[1], first * group.d[0]).mul_add(scale, *sum);
                } else {
                    *sum = dot(0..GROUP).mul_add(group.d[0] * scale, *sum);
                }
                if has_min(strip.ty) {
                    let total = f32::from_le_bytes(acts.field(g, row, Field::ScaledSum));
                    *sum = group.min.mul_add(total, *sum);
                }
            }
        }
    }
    out.fill(&sums[..acts.height]);
}

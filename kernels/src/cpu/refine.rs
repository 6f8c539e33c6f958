//! Exact products where they matter: among the largest.

use super::Cpu;
use super::shared::{Rows, SharedSlice};

/// Most strips of a row that are computed again. Where more come near the largest, the row is flat: no single one of them matters much.
const STRIPS_MAX: usize = 32;

/// For each row of `rows` products in `out` computes the strips again, of `lanes` products, whose largest is less than `margin` below the
/// row's: `compute(row, strip, products)`. `peaks` has the largest of each strip, before and after; `order` stays between calls.
pub fn refine(
    cpu: &Cpu,
    (rows, lanes): (usize, usize),
    (out, peaks): (&mut [f32], &mut [f32]),
    order: &mut Vec<f32>,
    margin: f32,
    compute: &(dyn Fn(usize, usize, &mut [f32]) + Sync),
) {
    if rows == 0 {
        return;
    }
    let (m, strips) = (out.len() / rows, rows.div_ceil(lanes));
    assert!(peaks.len() == m * strips, "refine: {} peaks of {m} rows of {strips} strips", peaks.len());
    order.resize(m * strips, 0.0);
    let (peaks, order, out) = (SharedSlice::new(peaks), SharedSlice::new(order), SharedSlice::new(out));
    cpu.for_pieces(m, 1, |start, end| {
        for row in start..end {
            // SAFETY: what belongs to a row is touched by the piece that has it.
            let (peaks, order) = unsafe { (peaks.slice(row * strips, strips), order.slice(row * strips, strips)) };
            let limit = limit(peaks, order, margin);
            for (s, peak) in peaks.iter_mut().enumerate().filter(|(_, peak)| **peak >= limit) {
                let at = s * lanes;
                // SAFETY: as above.
                let products = unsafe { out.slice(row * rows + at, lanes.min(rows - at)) };
                compute(row, s, products);
                *peak = largest(products);
            }
        }
    });
}

/// The largest of each `lanes` in a row of the products `out`, of which `rows` are a row; those that are no numbers are passed over.
///
/// # Panics
/// If there are not as many `peaks`.
pub fn peaks_of(cpu: &Cpu, (rows, lanes): (usize, usize), out: &[f32], peaks: &mut [f32]) {
    if rows == 0 {
        return;
    }
    let (m, strips) = (out.len() / rows, rows.div_ceil(lanes));
    assert!(peaks.len() == m * strips, "peaks_of: {} peaks of {m} rows of {strips} strips", peaks.len());
    let peaks = SharedSlice::new(peaks);
    cpu.for_pieces(m, 1, |start, end| {
        for row in start..end {
            // SAFETY: what belongs to a row is touched by the piece that has it.
            let peaks = unsafe { peaks.slice(row * strips, strips) };
            for (peak, products) in peaks.iter_mut().zip(out[row * rows..][..rows].chunks(lanes)) {
                *peak = largest(products);
            }
        }
    });
}

/// The largest of the first `lanes` products of each row, to the first column of as many rows of `peaks`.
pub fn peaks_of_rows(products: &Rows<'_>, lanes: usize, mut peaks: Rows<'_>) {
    for r in 0..peaks.shape().0 {
        peaks.set(r, largest(&products.row(r)[..lanes]));
    }
}

/// From where on a strip's largest product makes it worth computing again; `order` is room for as many as there are strips.
fn limit(peaks: &[f32], order: &mut [f32], margin: f32) -> f32 {
    let limit = largest(peaks) - margin;
    if peaks.iter().filter(|&&peak| peak >= limit).count() <= STRIPS_MAX {
        return limit;
    }
    order.copy_from_slice(peaks);
    *order.select_nth_unstable_by(STRIPS_MAX - 1, |a, b| b.total_cmp(a)).1
}

/// The largest value; those that are no numbers are passed over.
pub fn largest(values: &[f32]) -> f32 {
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
    for width in [4, 2, 1] {
        for i in 0..width {
            lanes[i] = larger(lanes[i], lanes[i + width]);
        }
    }
    rest.iter().fold(lanes[0], |a, &b| larger(a, b))
}

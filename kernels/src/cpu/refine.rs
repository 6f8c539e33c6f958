//! Exact products where they matter: among the largest.

use super::Cpu;
use super::shared::SharedSlice;

/// Most strips of a row that are computed again. Where more come near the largest, the row is flat: no single one of them matters much.
const STRIPS_MAX: usize = 32;

/// For each row of `rows` products in `out` computes the strips again, of `lanes` products, whose largest is less than `margin` below the
/// row's: `compute(row, strip, products)`. `peaks` stays between calls.
pub fn refine(
    cpu: &Cpu,
    (rows, lanes): (usize, usize),
    out: &mut [f32],
    peaks: &mut Vec<f32>,
    margin: f32,
    compute: &(dyn Fn(usize, usize, &mut [f32]) + Sync),
) {
    if rows == 0 {
        return;
    }
    let (m, strips) = (out.len() / rows, rows.div_ceil(lanes));
    // For each row the largest product of each strip, twice.
    peaks.resize(2 * m * strips, 0.0);
    let (peaks, out) = (SharedSlice::new(peaks), SharedSlice::new(out));
    cpu.for_pieces(m, 1, |start, end| {
        for row in start..end {
            // SAFETY: what belongs to a row is touched by the piece that has it.
            let (peaks, out) = unsafe { (peaks.slice(2 * row * strips, 2 * strips), out.slice(row * rows, rows)) };
            let (peaks, order) = peaks.split_at_mut(strips);
            let limit = limit(out, lanes, peaks, order, margin);
            for (s, _) in peaks.iter().enumerate().filter(|&(_, &peak)| peak >= limit) {
                compute(row, s, &mut out[s * lanes..rows.min((s + 1) * lanes)]);
            }
        }
    });
}

/// From where on a strip's largest product makes it worth computing again. `peaks` gets these, for each strip; `order` is room for as many.
fn limit(products: &[f32], lanes: usize, peaks: &mut [f32], order: &mut [f32], margin: f32) -> f32 {
    for (peak, products) in peaks.iter_mut().zip(products.chunks(lanes)) {
        *peak = largest(products);
    }
    let limit = largest(peaks) - margin;
    if peaks.iter().filter(|&&peak| peak >= limit).count() <= STRIPS_MAX {
        return limit;
    }
    order.copy_from_slice(peaks);
    *order.select_nth_unstable_by(STRIPS_MAX - 1, |a, b| b.total_cmp(a)).1
}

/// The largest value; those that are no numbers are passed over.
fn largest(values: &[f32]) -> f32 {
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
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

//! Maximum, arg-max and sums of exponentials over one row of logits.
//!
//! The loops keep `LANES` independent partial results, which the compiler turns into vector instructions. Rust neither
//! reorders nor fuses floating-point operations, so the bits are the same with any vector width.

use super::row::View;

pub(super) const LANES: usize = 16;
/// Logits whose weights are summed together; `draw` finds the chunk first and the token in it second.
pub(super) const CHUNK: usize = 512;

/// The largest logit as it stands (plus infinity included); minus infinity for a row without numbers. NaN is skipped.
fn largest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (groups, rest) = row.as_chunks::<LANES>();
    for group in groups {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |max, x| if x > max { x } else { max })
}

/// The largest logit of a row as it stands, and the first run that has it: its first id and its logits. `None` when no logit is above
/// minus infinity.
#[expect(clippy::float_cmp, reason = "looks for the very value that was found")]
fn best_run(row: View<'_>) -> Option<(f32, usize, &[f32])> {
    // The first run with the greatest bound: if it holds that, no other holds more, nor as much before it.
    let bound = largest(row.bounds());
    let favourite = row.runs().nth(row.bounds().iter().position(|&b| b == bound)?)?;
    let mut best = (largest(favourite.2), favourite.0, favourite.2);
    if best.0 < bound {
        for (start, bound, run) in row.runs().filter(|run| run.0 != favourite.0) {
            let beats = |x: f32| x > best.0 || x == best.0 && start < best.1;
            if beats(bound) {
                let max = largest(run);
                if beats(max) {
                    best = (max, start, run);
                }
            }
        }
    }
    (best.0 > f32::NEG_INFINITY).then_some(best)
}

/// The largest logit with plus infinity read as the largest finite number; `None` when no logit is above minus infinity.
pub(super) fn max(row: View<'_>) -> Option<f32> {
    best_run(row).map(|(max, ..)| max.min(f32::MAX))
}

/// Lowest id among the largest logits; `None` when no logit is above minus infinity.
#[expect(clippy::float_cmp, reason = "looks for the very value that was found")]
pub(super) fn argmax(row: View<'_>) -> Option<u32> {
    let (max, start, run) = best_run(row)?;
    run.iter().position(|&x| x == max).map(|at| (start + at) as u32)
}

/// Below this, [`exp`] is 0.
const LOWEST: f32 = -87.0;

/// e^x for x <= 0, to about one unit in the last place; 0 below -87 (where f32 gets subnormal) and for NaN.
///
/// Written out so that it vectorises and gives the same bits on every platform: x = n ln 2 + r with |r| <= ln 2 / 2,
/// ln 2 split in two for an exact first product, and the Taylor series of e^r up to r^7 (its error is below 6e-9).
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x >= LOWEST { x } else { LOWEST };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    // The low mantissa bits of `shifted` hold n in two's complement. It is in -126..=0, so n + 127 is a valid exponent
    // field and 2^n a normal number. (A cast of n to an integer would saturate, which does not vectorise.)
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x >= LOWEST { series * power } else { 0.0 }
}

/// Unnormalised probabilities: e^((x - max) / temperature), 0 below `floor`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights {
    pub(super) max: f32,
    pub(super) inverse_temperature: f32,
    /// Smallest logit that keeps its weight; minus infinity keeps all.
    pub(super) floor: f32,
}

impl Weights {
    /// Weight of one logit, in [0, 1]; 0 for NaN and minus infinity.
    #[inline]
    pub(super) fn of(&self, x: f32) -> f32 {
        let finite = if x > self.max { self.max } else { x };
        let weight = exp((finite - self.max) * self.inverse_temperature);
        if x >= self.floor { weight } else { 0.0 }
    }

    /// Whether the weight of this logit is above 0.
    #[inline]
    pub(super) fn keeps(&self, x: f32) -> bool {
        let finite = if x > self.max { self.max } else { x };
        // Both are computed, so that a loop over a row has no branches.
        (x >= self.floor) & ((finite - self.max) * self.inverse_temperature >= LOWEST)
    }

    /// Sum of the weights of up to [`CHUNK`] logits: per lane in order of position, then the lanes in order.
    pub(super) fn sum(&self, chunk: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (groups, rest) = chunk.as_chunks::<LANES>();
        for group in groups {
            // Two plain loops: the compiler vectorises them, unlike `group.map(..)`.
            let mut weights = [0.0f32; LANES];
            for (weight, &x) in weights.iter_mut().zip(group) {
                *weight = self.of(x);
            }
            for (lane, &weight) in lanes.iter_mut().zip(&weights) {
                *lane += f64::from(weight);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(self.of(x));
        }
        lanes.into_iter().sum()
    }

    /// Sum of the weights of a row, chunk by chunk; `chunk_sums` receives each chunk's share.
    pub(super) fn total(&self, row: &[f32], chunk_sums: &mut Vec<f64>) -> f64 {
        chunk_sums.clear();
        chunk_sums.extend(row.chunks(CHUNK).map(|chunk| self.sum(chunk)));
        chunk_sums.iter().sum()
    }
}

/// ln of the sum of e^x over the row; `None` when no logit is above minus infinity.
pub(super) fn log_sum_exp(row: View<'_>) -> Option<f64> {
    let max = max(row)?;
    let weights = Weights { max, inverse_temperature: 1.0, floor: f32::NEG_INFINITY };
    let total: f64 = row.logits.chunks(CHUNK).map(|chunk| weights.sum(chunk)).sum();
    Some(f64::from(max) + total.ln())
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the limits are exact")]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_double_precision() {
        let mut worst = 0.0f64;
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2e-7, "relative error {worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-87.5), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::NAN), 0.0);
    }

    #[test]
    fn argmax_takes_the_lowest_of_equals_and_skips_nan() {
        assert_eq!(argmax((&[]).into()), None);
        assert_eq!(argmax((&[f32::NAN; 40]).into()), None);
        assert_eq!(argmax((&[f32::NEG_INFINITY; 3]).into()), None);
        assert_eq!(argmax((&[f32::NAN, -0.0, 0.0]).into()), Some(1));
        let mut row = vec![0.0; 100];
        (row[17], row[33], row[99]) = (2.0, 2.0, 2.0);
        assert_eq!(argmax((&row).into()), Some(17));
        row[64] = f32::INFINITY;
        assert_eq!(argmax((&row).into()), Some(64));
    }

    #[test]
    fn log_sum_exp_agrees_with_double_precision() {
        let row: Vec<f32> = (0..50_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6 - 12.0).collect();
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let exact = f64::from(max) + row.iter().map(|&x| f64::from(x - max).exp()).sum::<f64>().ln();
        assert!((log_sum_exp((&row).into()).unwrap() - exact).abs() < 1e-7);
        assert_eq!(log_sum_exp((&[f32::NEG_INFINITY]).into()), None);
        assert!(log_sum_exp((&[f32::INFINITY, 1.0, f32::NAN]).into()).unwrap().is_finite());
    }
}

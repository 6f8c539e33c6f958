//! `top_p` on a row without a few clear favourites, without sorting it.
//!
//! What is wanted is a token at which a running sum of weights, taken in order of falling logit, passes a bound: once to
//! find the last token of the nucleus, once to draw from it. The row is dealt into bins of falling logit with the sum of
//! each one's weights; the running sum over the bins finds the bin that holds the token, and only that one is looked into:
//! dealt into bins again while it is large, and sorted when it is small.
//!
//! Bins, sums and their order are functions of the row and the parameters, so the same row gives the same token.
use super::select::Candidate;
use super::softmax::{LANES, Weights};

const BINS: usize = 2048;
/// As many candidates as are sorted rather than dealt into bins again.
const SORTED_MAX: usize = 1024;

/// Deals logits into [`BINS`] bins of equal width. Monotone: a larger logit never has a higher bin.
#[derive(Debug, Clone, Copy)]
struct Bins {
    largest: f32,
    per_unit: f32,
}

impl Bins {
    /// `None` when all logits are equal or too close together (or too far apart) to tell bins from each other.
    fn between(smallest: f32, largest: f32) -> Option<Self> {
        let per_unit = (BINS - 1) as f32 / (largest - smallest);
        (per_unit > 0.0 && per_unit.is_finite()).then_some(Self { largest, per_unit })
    }

    #[inline]
    fn of(self, x: f32) -> u32 {
        /// Adding 2^23 leaves the nearest integer in the low mantissa bits (a cast would saturate, which is slow).
        const ROUND: f32 = 8_388_608.0;
        let place = ((self.largest - x) * self.per_unit).clamp(0.0, (BINS - 1) as f32);
        (place + ROUND).to_bits() & (BINS - 1) as u32
    }
}

/// A row dealt into bins.
pub(super) struct BinnedRow<'a> {
    row: &'a [f32],
    weights: &'a Weights,
    bins: Option<Bins>,
    sums: Vec<f64>,
}

impl<'a> BinnedRow<'a> {
    pub(super) fn new(row: &'a [f32], weights: &'a Weights) -> Self {
        let bins = Bins::between(smallest(row, weights), weights.max);
        let mut sums = vec![0.0; BINS];
        if let Some(bins) = bins {
            let (groups, rest) = row.as_chunks::<LANES>();
            for group in groups {
                // Plain loops over arrays, which the compiler vectorises.
                let (mut places, mut shares) = ([0u32; LANES], [0.0f32; LANES]);
                for ((place, share), &x) in places.iter_mut().zip(&mut shares).zip(group) {
                    *place = bins.of(x);
                    *share = weights.of(x);
                }
                for (&place, &share) in places.iter().zip(&shares) {
                    sums[place as usize % BINS] += f64::from(share);
                }
            }
            for &x in rest {
                sums[bins.of(x) as usize] += f64::from(weights.of(x));
            }
        }
        Self { row, weights, bins, sums }
    }

    /// Draws with the uniform number `u` from the shortest prefix, in order of falling logit, whose mass reaches `target`.
    pub(super) fn pick(&self, target: f64, u: f64) -> Option<u32> {
        let (last, mass) = self.first(|sum| sum >= target)?;
        let (picked, _) = self.first(|sum| sum > u * mass)?;
        // Rounding may leave the sum just beyond the end.
        Some(picked.max(last).id())
    }

    /// The first token, in order of falling logit, at which the sum of the weights so far is `reached`, and that sum. The
    /// last token with a weight where rounding leaves the bound beyond the end.
    fn first(&self, reached: impl Fn(f64) -> bool) -> Option<(Candidate, f64)> {
        let (mut items, mut below) = match self.bins {
            Some(bins) => {
                let (bin, below) = crossing(&self.sums, 0.0, &reached);
                (self.items_of(bins, bin), below)
            }
            None => (self.items(0, self.row).collect(), 0.0),
        };
        while items.len() > SORTED_MAX
            && let Some(bins) = range(&items).and_then(|(smallest, largest)| Bins::between(smallest, largest))
        {
            let mut sums = vec![0.0; BINS];
            for item in &items {
                sums[bins.of(item.logit()) as usize] += f64::from(self.weights.of(item.logit()));
            }
            let bin;
            (bin, below) = crossing(&sums, below, &reached);
            items.retain(|item| bins.of(item.logit()) == bin);
        }
        items.sort_unstable_by(|a, b| b.cmp(a));
        let mut sum = below;
        let mut last = None;
        for item in items {
            sum += f64::from(self.weights.of(item.logit()));
            last = Some((item, sum));
            if reached(sum) {
                break;
            }
        }
        last
    }

    fn items_of(&self, bins: Bins, bin: u32) -> Vec<Candidate> {
        let mut items = Vec::new();
        for (start, group) in (0..).step_by(LANES).zip(self.row.chunks(LANES)) {
            // Most groups have none: a loop without branches finds out.
            if group.iter().fold(false, |any, &x| any | (bins.of(x) == bin)) {
                items.extend(self.items(start, group).filter(|item| bins.of(item.logit()) == bin));
            }
        }
        items
    }

    /// The tokens of `part`, which starts at id `start`, that have a weight.
    fn items(&self, start: u32, part: &[f32]) -> impl Iterator<Item = Candidate> {
        let ids = (start..).zip(part);
        ids.filter(|&(_, &x)| self.weights.keeps(x)).map(|(id, &x)| Candidate::new(x, id))
    }
}

/// The bin in which the running sum, from `below` on, is `reached`, and the sum before it; the last bin that holds
/// anything where rounding leaves the bound beyond the end.
fn crossing(sums: &[f64], below: f64, reached: impl Fn(f64) -> bool) -> (u32, f64) {
    let (mut found, mut sum) = ((0, below), below);
    for (bin, &share) in (0..).zip(sums).filter(|&(_, &share)| share > 0.0) {
        found = (bin, sum);
        sum += share;
        if reached(sum) {
            break;
        }
    }
    found
}

/// The smallest logit that has a weight.
fn smallest(row: &[f32], weights: &Weights) -> f32 {
    let mut lanes = [weights.max; LANES];
    for group in row.chunks(LANES) {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            *lane = if x < *lane && weights.keeps(x) { x } else { *lane };
        }
    }
    lanes.into_iter().fold(weights.max, f32::min)
}

fn range(items: &[Candidate]) -> Option<(f32, f32)> {
    Some((items.iter().min()?.logit(), items.iter().max()?.logit()))
}

#[cfg(test)]
mod tests {
    use super::super::select;
    use super::*;
    use proptest::prelude::*;

    /// Rows whose tokens are spread, crowded, equal, or out of all proportion; longer than what is sorted at once.
    fn rows() -> impl Strategy<Value = Vec<f32>> {
        let crowd = |width: f32| prop::collection::vec((0.0f32..1.0).prop_map(move |x| 1.0 + x * width), 2500..4000);
        let far = prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3.0, -90.0, 1e30, f32::MIN]);
        let base = prop_oneof![crowd(8.0), crowd(0.01), crowd(2e-6), crowd(0.0)];
        (base, prop::collection::vec((far, any::<prop::sample::Index>()), 0..4)).prop_map(|(mut row, far)| {
            for (x, at) in far {
                let at = at.index(row.len());
                row[at] = x;
            }
            row
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_pick_is_the_one_of_the_sorted_row(
            row in rows(), temperature in 0.05f32..20.0, p in 0.01f64..1.0, u in 0.0f64..1.0, floor in prop::bool::ANY,
        ) {
            let max = super::super::softmax::max((&row).into()).unwrap();
            let floor = if floor { max - 0.5 } else { f32::NEG_INFINITY };
            let weights = Weights { max, inverse_temperature: 1.0 / temperature, floor };
            let mut sorted = Vec::new();
            select::largest((&row).into(), row.len(), floor, &mut sorted);
            let mut sum = 0.0;
            let sums: Vec<f64> = sorted.iter().map(|c| { sum += f64::from(weights.of(c.logit())); sum }).collect();
            let target = p * sum;
            let last = sums.partition_point(|&sum| sum < target);
            let wanted = u * sums[last];

            let id = BinnedRow::new(&row, &weights).pick(target, u).unwrap();
            let at = sorted.iter().position(|c| c.id() == id).unwrap();
            let before = if at == 0 { 0.0 } else { sums[at - 1] };
            // Where a bound is met within rounding, either side is right.
            let near = 1e-11 * sum;
            prop_assert!(before - near <= wanted && wanted <= sums[at] + near && before - near <= target, "{} at {}", id, at);
            prop_assert!(weights.of(sorted[at].logit()) > 0.0);
        }
    }
}

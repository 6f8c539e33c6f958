//! The random pick: temperature, `min_p`, `top_k`, `top_p`, then a draw by the cumulative distribution.
use super::SamplingParams;
use super::nucleus::BinnedRow;
use super::row::View;
use super::select::{self, Candidate};
use super::softmax::{self, CHUNK, Weights};

/// Candidates first tried for `top_p` alone; a model that is sure of itself needs far fewer.
const NUCLEUS_FIRST: usize = 64;
/// Tried next, where the first ones hold at least half of what is wanted.
const NUCLEUS_SECOND: usize = 1024;

/// Picks a token of `row` with the uniform number `u` in [0, 1); `None` when no logit is above minus infinity.
///
/// The temperature must not be greedy. `top_p` is a share of what `min_p` and `top_k` left.
pub(super) fn draw(view: View<'_>, params: &SamplingParams, u: f64) -> Option<u32> {
    let max = softmax::max(view)?;
    let row = view.logits;
    // A weight is e^((x - max) / T) and the largest is 1, so min_p is a bound on x.
    let floor = if params.min_p > 0.0 {
        (f64::from(max) + f64::from(params.temperature.min(1e30)) * f64::from(params.min_p.min(1.0)).ln()) as f32
    } else {
        f32::NEG_INFINITY
    };
    let weights = Weights { max, inverse_temperature: 1.0 / params.temperature, floor };
    let top_k = (params.top_k > 0 && (params.top_k as usize) < row.len()).then_some(params.top_k as usize);
    let top_p = (params.top_p < 1.0).then_some(f64::from(params.top_p));
    match (top_k, top_p) {
        (None, None) => from_row(row, &weights, u),
        (Some(k), top_p) => {
            let mut candidates = Vec::new();
            select::largest(view, k, floor, &mut candidates);
            let kept = Kept::new(&candidates, &weights);
            let target = top_p.unwrap_or(1.0) * kept.mass();
            kept.nucleus(target).pick(u)
        }
        (None, Some(p)) => from_nucleus(view, &weights, p, u),
    }
}

/// From the whole row: find the chunk by the sums, then the token in it.
fn from_row(row: &[f32], weights: &Weights, u: f64) -> Option<u32> {
    let mut sums = Vec::new();
    let target = u * weights.total(row, &mut sums);
    let mut below = 0.0;
    // The last chunk with any weight stands in where rounding leaves the target just beyond the end.
    let mut found = None;
    for (index, &sum) in sums.iter().enumerate() {
        if sum > 0.0 {
            found = Some((index, below));
        }
        below += sum;
        if below > target {
            break;
        }
    }
    let (index, mut below) = found?;
    let start = index * CHUNK;
    let mut last = None;
    for (id, &x) in row.iter().enumerate().skip(start).take(CHUNK) {
        let weight = f64::from(weights.of(x));
        if weight > 0.0 {
            last = Some(id as u32);
            below += weight;
            if below > target {
                break;
            }
        }
    }
    last
}

/// `top_p` alone: a few favourites if they hold the share `p` of the row's mass, else the row in bins.
fn from_nucleus(view: View<'_>, weights: &Weights, p: f64, u: f64) -> Option<u32> {
    let row = view.logits;
    let target = p * weights.total(row, &mut Vec::new());
    let mut candidates = Vec::new();
    for k in [NUCLEUS_FIRST, NUCLEUS_SECOND] {
        select::largest(view, k, weights.floor, &mut candidates);
        let kept = Kept::new(&candidates, weights);
        if kept.mass() >= target || candidates.len() < k {
            return kept.nucleus(target).pick(u);
        }
        if kept.mass() < target / 2.0 {
            break;
        }
    }
    BinnedRow::new(row, weights).pick(target, u)
}

/// Candidates, most likely first, with the cumulative sums of their weights.
struct Kept<'a> {
    candidates: &'a [Candidate],
    cumulative: Vec<f64>,
}

impl<'a> Kept<'a> {
    fn new(candidates: &'a [Candidate], weights: &Weights) -> Self {
        let mut sum = 0.0;
        let cumulative = candidates.iter().map(|c| {
            sum += f64::from(weights.of(c.logit()));
            sum
        });
        Self { candidates, cumulative: cumulative.collect() }
    }

    fn mass(&self) -> f64 {
        self.cumulative.last().copied().unwrap_or(0.0)
    }

    /// The shortest prefix whose mass reaches `target`; everything when nothing does.
    fn nucleus(mut self, target: f64) -> Self {
        let len = (self.cumulative.partition_point(|&sum| sum < target) + 1).min(self.candidates.len());
        self.candidates = &self.candidates[..len];
        self.cumulative.truncate(len);
        self
    }

    fn pick(&self, u: f64) -> Option<u32> {
        let target = u * self.mass();
        let index = self.cumulative.partition_point(|&sum| sum <= target);
        // Rounding may leave the target at the end; weights that underflowed to 0 are never picked.
        let end = self.cumulative.partition_point(|&sum| sum < self.mass());
        self.candidates.get(index.min(end)).map(|c| c.id())
    }
}

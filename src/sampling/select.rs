//! Selection of the largest logits without sorting the vocabulary.

use super::row::View;

/// A logit and its id as one integer that orders like (logit ascending, id descending): the largest candidate is the most
/// likely token, and among equals the one with the lower id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate(u64);

impl Candidate {
    /// `logit` must not be NaN; plus infinity is read as the largest finite number.
    pub(super) fn new(logit: f32, id: u32) -> Self {
        // Adding zero turns -0.0 into 0.0: the two are equal.
        let bits = (logit.min(f32::MAX) + 0.0).to_bits();
        let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Self(u64::from(ordered) << 32 | u64::from(!id))
    }

    pub(super) fn id(self) -> u32 {
        !(self.0 as u32)
    }

    pub(super) fn logit(self) -> f32 {
        let ordered = (self.0 >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }
}

/// Puts the `k` largest logits of `row` that are at least `floor` (and above minus infinity) into `out`, largest first.
///
/// One pass over the row with a buffer of 2 `k`: once it is full, the smaller half goes and the `k`-th largest so far
/// becomes the bar, which few of the remaining logits pass. Runs that are known to hold none that does are not read.
pub(super) fn largest(row: View<'_>, k: usize, floor: f32, out: &mut Vec<Candidate>) {
    out.clear();
    let k = k.min(row.logits.len());
    if k == 0 {
        return;
    }
    let room = (2 * k).max(64);
    let mut bar = f32::NEG_INFINITY;
    for (start, bound, run) in row.runs() {
        if bound <= bar || bound < floor {
            continue;
        }
        for (id, &x) in (start..).zip(run) {
            // Strictly above: an equal logit further on has a higher id and loses.
            if x > bar && x >= floor {
                out.push(Candidate::new(x, id as u32));
                if out.len() == room {
                    bar = keep_largest(out, k);
                }
            }
        }
    }
    if out.len() > k {
        keep_largest(out, k);
    }
    out.sort_unstable_by(|a, b| b.cmp(a));
}

/// Truncates to the `k` largest, in any order, and returns the smallest logit among them.
fn keep_largest(candidates: &mut Vec<Candidate>, k: usize) -> f32 {
    let (_, kth, _) = candidates.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
    let bar = kth.logit();
    candidates.truncate(k);
    bar
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "values must come back exactly")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn candidates_order_by_logit_then_by_lower_id() {
        let logits = [f32::MIN, -3.5, -1e-40, 0.0, 1e-40, 2.0, f32::MAX];
        for (i, &a) in logits.iter().enumerate() {
            assert_eq!(Candidate::new(a, 7).logit(), a);
            assert_eq!(Candidate::new(a, 7).id(), 7);
            assert!(Candidate::new(a, 7) > Candidate::new(a, 8));
            for &b in &logits[..i] {
                assert!(Candidate::new(a, 9) > Candidate::new(b, 0));
            }
        }
        assert_eq!(Candidate::new(-0.0, 1), Candidate::new(0.0, 1));
    }

    proptest! {
        #[test]
        fn selection_equals_a_full_sort(row in prop::collection::vec(-4i8..4, 0..400), k in 0usize..300, floor in -5i8..5) {
            let row: Vec<f32> = row.into_iter().map(f32::from).collect();
            let floor = f32::from(floor);
            let mut sorted: Vec<u32> = (0..row.len() as u32).filter(|&id| row[id as usize] >= floor).collect();
            sorted.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
            sorted.truncate(k);
            let mut out = Vec::new();
            largest((&row).into(), k, floor, &mut out);
            prop_assert_eq!(out.iter().map(|c| c.id()).collect::<Vec<_>>(), sorted);
        }
    }
}

//! A row of logits with what is known of it before it is read.
use std::ops::Deref;

/// A row of logits. Of runs of it may be known what none of their logits is above: whoever looks for the largest then passes over nearly
/// all of a vocabulary unread.
#[derive(Debug)]
pub struct LogitRow<'a> {
    logits: &'a mut [f32],
    bounds: &'a mut [f32],
    run: usize,
}

impl<'a> LogitRow<'a> {
    /// `bounds`: for each `run` (more than none) of `logits`, in order, a number that no logit of the run is above, NaN passed over.
    ///
    /// # Panics
    /// If there are not as many bounds as runs.
    #[must_use]
    pub fn bounded(logits: &'a mut [f32], bounds: &'a mut [f32], run: usize) -> Self {
        assert!(bounds.len() == logits.len().div_ceil(run), "{} bounds of runs of {run} are a bug", bounds.len());
        Self { logits, bounds, run }
    }

    /// The logits alone, to do anything with.
    #[must_use]
    pub fn into_logits(self) -> &'a mut [f32] {
        self.logits
    }

    pub(super) fn view(&self) -> View<'_> {
        View { logits: self.logits, bounds: self.bounds, run: self.run }
    }

    /// Changes one logit, and returns what it was; `None` if there is none with this id.
    pub(super) fn change(&mut self, id: u32, change: impl FnOnce(f32) -> f32) -> Option<f32> {
        let logit = self.logits.get_mut(id as usize)?;
        let before = std::mem::replace(logit, change(*logit));
        if let Some(bound) = self.bounds.get_mut(id as usize / self.run)
            && *logit > *bound
        {
            *bound = *logit;
        }
        Some(before)
    }

    /// The logits, of which none may become larger.
    pub(super) fn lower(&mut self) -> &mut [f32] {
        self.logits
    }
}

/// Nothing is known of it.
impl<'a, T: AsMut<[f32]> + ?Sized> From<&'a mut T> for LogitRow<'a> {
    fn from(logits: &'a mut T) -> Self {
        Self { logits: logits.as_mut(), bounds: &mut [], run: usize::MAX }
    }
}

impl Deref for LogitRow<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.logits
    }
}

/// A row as it is read.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) logits: &'a [f32],
    bounds: &'a [f32],
    run: usize,
}

impl<'a> View<'a> {
    /// Of each run, a number that none of its logits is above. One run, if nothing is known of the row.
    pub(super) fn bounds(self) -> &'a [f32] {
        if self.bounds.is_empty() { &[f32::INFINITY] } else { self.bounds }
    }

    /// Runs in order: the first id, the bound, the logits.
    pub(super) fn runs(self) -> impl Iterator<Item = (usize, f32, &'a [f32])> {
        let runs = self.logits.chunks(self.run).zip(self.bounds()).enumerate();
        runs.map(move |(at, (logits, bound))| (at * self.run, *bound, logits))
    }
}

impl<'a, T: AsRef<[f32]> + ?Sized> From<&'a T> for View<'a> {
    fn from(logits: &'a T) -> Self {
        Self { logits: logits.as_ref(), bounds: &[], run: usize::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{select, softmax};
    use super::*;
    use proptest::prelude::*;

    fn logit() -> impl Strategy<Value = f32> {
        prop_oneof![8 => (-40i8..40).prop_map(|x| f32::from(x) / 4.0), 1 => Just(f32::NEG_INFINITY), 1 => Just(f32::NAN)]
    }

    proptest! {
        /// Bounds may be tight or loose, and edits raise and lower what they bound.
        #[test]
        fn bounds_change_no_answer(
            mut logits in prop::collection::vec(logit(), 1..200),
            slack in prop::collection::vec(0u8..3, 200),
            edits in prop::collection::vec((0u32..220, -20i8..20), 0..8),
            run in 1usize..40,
            k in 1usize..30,
        ) {
            let tight = logits.chunks(run).map(|run| run.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a }));
            let mut bounds: Vec<f32> = tight.zip(slack).map(|(bound, slack)| bound + f32::from(slack)).collect();
            let mut plain = logits.clone();
            let mut row = LogitRow::bounded(&mut logits, &mut bounds, run);
            let mut plain = LogitRow::from(&mut plain);
            for (id, by) in edits {
                let change = |x| x + f32::from(by);
                let [a, b] = [row.change(id, change), plain.change(id, change)];
                prop_assert_eq!(a.map(f32::to_bits), b.map(f32::to_bits));
            }
            prop_assert_eq!(softmax::argmax(row.view()), softmax::argmax(plain.view()));
            prop_assert_eq!(softmax::max(row.view()), softmax::max(plain.view()));
            for floor in [f32::NEG_INFINITY, 1.0] {
                let [mut a, mut b] = [vec![], vec![]];
                select::largest(row.view(), k, floor, &mut a);
                select::largest(plain.view(), k, floor, &mut b);
                prop_assert_eq!(a, b);
            }
        }
    }
}

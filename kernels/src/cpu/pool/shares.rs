//! The items of a region, shared out to its threads.

use super::Lane;
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of a [`Taken`] that count items.
const COUNT: u32 = 24;
/// More items than a share has.
const ALL: u64 = (1 << COUNT) - 1;

/// The number of the region after number `region`: never 0, which no thread has been in.
pub(super) fn after(region: u64) -> u64 {
    if region + 1 < 1 << (u64::BITS - COUNT) { region + 1 } else { 1 }
}

/// How much of a thread's share is taken: a region's number, and the items that were taken in it. No one has to set it to zero where a region
/// begins, which would take its cache line from the thread that needs it: in any region but its own it counts nothing.
#[derive(Debug, Default)]
pub(super) struct Taken(AtomicU64);

impl Taken {
    fn count(word: u64, region: u64) -> usize {
        if word >> COUNT == region { (word & ALL) as usize } else { 0 }
    }

    /// The number of the next item, if the share, of `len` items, has one that nobody has taken. Writes nothing otherwise.
    fn next(&self, region: u64, len: usize) -> Option<usize> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let count = Self::count(word, region);
            if count >= len {
                return None;
            }
            let more = region << COUNT | (count as u64 + 1);
            match self.0.compare_exchange_weak(word, more, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(count),
                Err(now) => word = now,
            }
        }
    }

    /// Takes the first item before any other thread knows of the region.
    pub(super) fn begin(&self, region: u64) {
        self.0.store(region << COUNT | 1, Ordering::Relaxed);
    }

    /// Drops what is left of a share.
    pub(super) fn drop_rest(&self, region: u64) {
        self.0.store(region << COUNT | ALL, Ordering::Relaxed);
    }
}

/// The items of a region as one of its threads sees them: its own share, in order, then what is left of the others'.
pub(crate) struct Items<'a, S> {
    /// The threads that have a share.
    pub(super) lanes: &'a [Lane],
    pub(super) region: u64,
    pub(super) lane: usize,
    /// Whether the thread has its share's first item without asking, see [`Taken::begin`]: the caller has, so that it need not wait until all
    /// that it has written has reached the others.
    pub(super) begun: Cell<bool>,
    /// The share of each thread.
    pub(super) share: S,
}

impl<S: Fn(usize) -> Range<usize>> Items<'_, S> {
    /// The next item for this thread; `None` if all are taken.
    ///
    /// # Panics
    /// If a share has 2^24 items or more.
    pub(crate) fn take(&self) -> Option<usize> {
        (self.lane..self.lanes.len()).chain(0..self.lane).find_map(|lane| {
            let share = (self.share)(lane);
            if self.begun.replace(false) && !share.is_empty() {
                return Some(share.start);
            }
            if lane == 0 && share.len() <= 1 {
                // The caller has begun: not even looked at.
                return None;
            }
            assert!(share.len() < ALL as usize, "{} items in a share: this is a bug", share.len());
            self.lanes[lane].taken.next(self.region, share.len()).map(|item| share.start + item)
        })
    }

    /// Items of this thread's own share that nobody has taken.
    pub(crate) fn left(&self) -> usize {
        let word = self.lanes[self.lane].taken.0.load(Ordering::Relaxed);
        (self.share)(self.lane).len().saturating_sub(Taken::count(word, self.region))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_other_shares_is_taken_too() {
        let lanes = [0; 3].map(|_| Lane::default());
        for region in [after(0), after(1), after(1 << 39), after((1 << 40) - 1)] {
            lanes[0].taken.begin(region);
            let threads = [0, 1, 2].map(|lane| {
                let share = |lane: usize| [0..2, 2..2, 2..5][lane].clone();
                Items { lanes: &lanes, region, lane, begun: Cell::new(lane == 0), share }
            });
            assert_eq!(threads.each_ref().map(Items::left), [1, 0, 3]);
            assert_eq!((threads[2].take(), threads[0].take()), (Some(2), Some(0)));
            let rest: Vec<_> = std::iter::from_fn(|| threads[1].take()).collect();
            assert_eq!(rest, [3, 4, 1], "the next thread's first");
            assert!(threads.iter().all(|thread| thread.take().is_none() && thread.left() == 0));
        }
    }

    #[test]
    fn what_is_dropped_is_not_taken() {
        let lanes = [0; 2].map(|_| Lane::default());
        let share = |lane: usize| 3 * lane..3 * lane + 3;
        let thread = Items { lanes: &lanes, region: 7, lane: 0, begun: Cell::new(false), share };
        lanes[0].taken.drop_rest(7);
        assert_eq!((thread.left(), thread.take()), (0, Some(3)));
        lanes[1].taken.drop_rest(7);
        assert!(thread.take().is_none());
    }
}

//! What byte-pair encoders have in common: of all pairs of neighbours that can be merged the most urgent is, until none can.
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A part of the text, and those beside it.
struct Place<T> {
    /// `None`: merged into its left neighbour.
    part: Option<T>,
    prev: usize,
    next: usize,
}

const NONE: usize = usize::MAX;

/// Two neighbours that can be merged.
struct Candidate<T, U> {
    urgency: U,
    /// The place of the left one.
    at: usize,
    /// The two as they were when they became neighbours.
    parts: (T, T),
    whole: T,
}

impl<T, U: Ord> Ord for Candidate<T, U> {
    /// The most urgent first, then the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.urgency.cmp(&other.urgency).then_with(|| other.at.cmp(&self.at))
    }
}

impl<T, U: Ord> PartialOrd for Candidate<T, U> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T, U: Ord> PartialEq for Candidate<T, U> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T, U: Ord> Eq for Candidate<T, U> {}

/// Merges neighbours among `parts`. `join`: what two of them become and how urgent that is, if they can be merged. O(n log n).
pub(super) fn merge<T: Copy + PartialEq, U: Ord>(
    parts: impl Iterator<Item = T>,
    join: impl Fn(T, T) -> Option<(U, T)>,
) -> impl Iterator<Item = T> {
    let mut places: Vec<Place<T>> = Vec::with_capacity(parts.size_hint().0);
    for (at, part) in parts.enumerate() {
        places.push(Place { part: Some(part), prev: at.checked_sub(1).unwrap_or(NONE), next: at + 1 });
    }
    if let Some(last) = places.last_mut() {
        last.next = NONE;
    }
    let candidate = |places: &[Place<T>], at: usize, next: usize| {
        let parts = (places.get(at)?.part?, places.get(next)?.part?);
        join(parts.0, parts.1).map(|(urgency, whole)| Candidate { urgency, at, parts, whole })
    };
    let mut queue: BinaryHeap<_> = (1..places.len()).filter_map(|next| candidate(&places, next - 1, next)).collect();
    while let Some(Candidate { at, parts, whole, .. }) = queue.pop() {
        let Place { part: Some(left), prev, next } = places[at] else { continue };
        let Some(Place { part: Some(right), next: after, .. }) = places.get(next) else { continue };
        // One of the two has been merged since. As the `tokenizers` crate does it, what they become is what counts.
        if (left, *right) != parts && join(left, *right).is_none_or(|(_, now)| now != whole) {
            continue;
        }
        let after = *after;
        places[next].part = None;
        places[at].part = Some(whole);
        places[at].next = after;
        if let Some(place) = places.get_mut(after) {
            place.prev = at;
        }
        queue.extend(candidate(&places, prev, at));
        queue.extend(candidate(&places, at, after));
    }
    places.into_iter().filter_map(|place| place.part)
}

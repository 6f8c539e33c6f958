//! Who is computed next: one input of each request in turn, until a batch is full. So a request of one text waits for one batch, not
//! for the thousand texts of the request before it.
use std::collections::VecDeque;

/// A request in the queue: what its inputs' results belong to, and the inputs that no batch has taken yet.
struct Waiting<R, I> {
    request: R,
    inputs: VecDeque<(usize, I)>,
}

/// Requests in the order of their turns. `R`: a request, `I`: one of its inputs.
pub(super) struct RoundRobin<R, I> {
    waiting: VecDeque<Waiting<R, I>>,
}

/// An input in a batch, and which one of its request's it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken<R, I> {
    pub(super) request: R,
    pub(super) index: usize,
    pub(super) input: I,
}

impl<R: Clone, I> RoundRobin<R, I> {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, request: R, inputs: Vec<I>) {
        self.waiting.push_back(Waiting { request, inputs: inputs.into_iter().enumerate().collect() });
    }

    /// Takes the next batch: inputs of at most `cost_max` together, or a single one of any cost. Requests that `is_gone` are dropped and
    /// returned second, with their inputs' cost.
    pub(super) fn next_batch(
        &mut self,
        cost_max: usize,
        cost: impl Fn(&I) -> usize,
        is_gone: impl Fn(&R) -> bool,
    ) -> (Vec<Taken<R, I>>, usize) {
        let (mut batch, mut used, mut dropped) = (Vec::new(), 0, 0);
        while let Some(mut turn) = self.waiting.pop_front() {
            if is_gone(&turn.request) {
                dropped += turn.inputs.iter().map(|(_, input)| cost(input)).sum::<usize>();
                continue;
            }
            let Some((index, input)) = turn.inputs.pop_front() else { continue };
            let price = cost(&input);
            if !batch.is_empty() && used + price > cost_max {
                // It stays the next one, so that a long input cannot be passed by short ones for ever.
                turn.inputs.push_front((index, input));
                self.waiting.push_front(turn);
                break;
            }
            used += price;
            batch.push(Taken { request: turn.request.clone(), index, input });
            if !turn.inputs.is_empty() {
                self.waiting.push_back(turn);
            }
        }
        (batch, dropped)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(batch: &[Taken<u32, usize>]) -> Vec<(u32, usize)> {
        batch.iter().map(|t| (t.request, t.index)).collect()
    }

    #[test]
    fn requests_take_turns() {
        let mut queue = RoundRobin::new();
        queue.push(1, vec![2; 5]);
        queue.push(2, vec![3]);
        queue.push(3, vec![1, 4]);
        let mut next = || taken(&queue.next_batch(8, |cost| *cost, |_| false).0);
        assert_eq!(next(), [(1, 0), (2, 0), (3, 0), (1, 1)]);
        assert_eq!(next(), [(3, 1), (1, 2), (1, 3)], "the input that did not fit comes first");
        assert_eq!(next(), [(1, 4)]);
        assert!(queue.is_empty());
    }

    #[test]
    fn an_input_beyond_the_bound_goes_alone_and_requests_that_are_gone_take_no_part() {
        let mut queue = RoundRobin::new();
        queue.push(1, vec![100, 1]);
        queue.push(2, vec![1, 1]);
        queue.push(3, vec![1]);
        let (batch, dropped) = queue.next_batch(8, |cost| *cost, |request| *request == 2);
        assert_eq!((taken(&batch), dropped), (vec![(1, 0)], 2));
        let (batch, dropped) = queue.next_batch(8, |cost| *cost, |request| *request == 2);
        assert_eq!((taken(&batch), dropped), (vec![(3, 0), (1, 1)], 0));
    }

    proptest! {
        /// Every input comes once, in its request's order, in batches within the bound.
        #[test]
        fn nothing_is_lost_or_repeated(requests in prop::collection::vec(prop::collection::vec(1_usize..20, 1..9), 0..9)) {
            let mut queue = RoundRobin::new();
            for (id, inputs) in requests.iter().enumerate() {
                queue.push(id, inputs.clone());
            }
            let mut seen = vec![Vec::new(); requests.len()];
            while !queue.is_empty() {
                let (batch, dropped) = queue.next_batch(16, |cost| *cost, |_| false);
                prop_assert_eq!(dropped, 0);
                let total: usize = batch.iter().map(|t| t.input).sum();
                prop_assert!(!batch.is_empty() && (total <= 16 || batch.len() == 1));
                for t in batch {
                    prop_assert_eq!(t.index, seen[t.request].len());
                    seen[t.request].push(t.input);
                }
            }
            prop_assert_eq!(seen, requests);
        }
    }
}

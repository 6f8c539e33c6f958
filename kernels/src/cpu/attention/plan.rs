//! How attention is spread over threads: nothing here changes a bit of the result.

use super::span::{PIECE, SPAN, state_len};
use super::{AttentionArgs, first_key};
use std::ops::Range;
use std::sync::atomic::AtomicUsize;

/// Query rows (tokens times heads of a KV head) that share one walk through the keys, if there is enough else to do for all threads.
const TILE: usize = 48;
/// Items for each thread: enough that a thread which is slowed down leaves work to the others, and that the last of them do not keep the
/// others waiting for long.
const ITEMS: usize = 8;
/// What a span costs beside its rows, in rows: reading the keys and values.
const SPAN_COST: usize = 8;

/// Consecutive tokens of one sequence, with the query heads of one KV head: its rows are token by token, head by head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub(super) seq: usize,
    pub(super) kv_head: usize,
    token: usize,
    tokens: usize,
}

impl Tile {
    /// Its rows.
    pub(super) fn len(&self, args: &AttentionArgs<'_>) -> usize {
        self.tokens * (args.heads / args.layout.kv_heads)
    }

    /// Where a row begins in `q` and `out`.
    pub(super) fn row_at(&self, args: &AttentionArgs<'_>, row: usize) -> usize {
        let group = args.heads / args.layout.kv_heads;
        let token = args.seqs[self.seq].q_start + self.token + row / group;
        (token * args.heads + self.kv_head * group + row % group) * args.layout.head_dim
    }

    /// The position of its first token in its sequence.
    fn first_position(&self, args: &AttentionArgs<'_>) -> usize {
        let seq = &args.seqs[self.seq];
        seq.context_len - seq.q_len + self.token
    }

    /// The positions of its rows from `row` on in their sequence. Divided once: that takes longer than all else for a row.
    pub(super) fn positions(&self, args: &AttentionArgs<'_>, row: usize) -> impl Iterator<Item = usize> + use<> {
        let group = args.heads / args.layout.kv_heads;
        let first = self.first_position(args) + row / group;
        let mut head = row % group;
        std::iter::successors(Some(first), move |position| {
            head = if head + 1 == group { 0 } else { head + 1 };
            Some(position + usize::from(head == 0))
        })
    }

    /// The keys that its rows see.
    pub(super) fn keys(&self, args: &AttentionArgs<'_>) -> Range<usize> {
        let first = self.first_position(args);
        first_key(args.window, first)..first + self.tokens
    }

    /// The spans of these keys.
    pub(super) fn spans(&self, args: &AttentionArgs<'_>) -> Range<usize> {
        let keys = self.keys(args);
        keys.start / SPAN..keys.end.div_ceil(SPAN)
    }
}

/// Some spans of a tile: what a thread takes at once.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) tile: usize,
    pub(super) spans: Range<usize>,
    /// If other items have the tile's other spans.
    pub(super) split: Option<Split>,
    /// What it and all before it cost, in rows.
    cost_so_far: usize,
}

/// What the items of a split tile have in common.
#[derive(Clone, Debug)]
pub(super) struct Split {
    /// Where the states of its first span begin.
    pub(super) states: usize,
    pending: usize,
}

/// The tiles and items of one call.
#[derive(Debug, Default)]
pub(super) struct Plan {
    tiles: Vec<Tile>,
    /// In the order of their rows.
    items: Vec<Item>,
    /// For each split tile the items that are not done.
    pending: Vec<AtomicUsize>,
    states: usize,
    /// Where each thread's share of the items ends.
    ends: Vec<usize>,
}

impl Plan {
    pub(super) fn tiles(&self) -> &[Tile] {
        &self.tiles
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }

    /// Threads that have a share of the items.
    pub(super) fn lanes(&self) -> usize {
        self.ends.len()
    }

    /// The items of a thread: equally expensive runs of them, so that a sequence is computed, by and large, on the core that computes its
    /// rows in the operations before and after.
    pub(super) fn share(&self, lane: usize) -> Range<usize> {
        lane.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[lane]
    }

    /// Items of a split tile that are not done.
    pub(super) fn pending(&self, split: &Split) -> &AtomicUsize {
        &self.pending[split.pending]
    }

    /// Floats that the states of split tiles take.
    pub(super) fn state_floats(&self) -> usize {
        self.states
    }

    /// Plans one call on `threads` threads.
    pub(super) fn fill(&mut self, args: &AttentionArgs<'_>, threads: usize) {
        let group = args.heads / args.layout.kv_heads;
        let wanted = if threads > 1 { threads * ITEMS } else { 1 };
        // Small tiles read the keys more often, but keep more threads busy.
        let mut rows = TILE;
        while self.cut(args, (rows / group).max(1)) < wanted && rows > TILE / 4 {
            rows /= 2;
        }
        let cost = |tile: &Tile, spans: usize| (tile.len(args) + SPAN_COST) * spans;
        let whole = |tile: &Tile| cost(tile, tile.spans(args).len());
        let share = self.tiles.iter().map(whole).sum::<usize>().div_ceil(wanted).max(1);
        let width = args.layout.head_dim.next_multiple_of(PIECE);
        self.items.clear();
        self.pending.clear();
        let mut cost_so_far = 0;
        self.states = 0;
        for (index, tile) in self.tiles.iter().enumerate() {
            let spans = tile.spans(args);
            let parts =
                if threads > 1 && whole(tile) > 2 * share { whole(tile).div_ceil(share).min(spans.len()) } else { 1 };
            let split = (parts > 1).then_some(Split { states: self.states, pending: self.pending.len() });
            if parts > 1 {
                self.states += spans.len() * state_len(tile.len(args), width);
                self.pending.push(AtomicUsize::new(parts));
            }
            for part in 0..parts {
                let at = |part: usize| spans.start + part * spans.len() / parts;
                let spans = at(part)..at(part + 1);
                cost_so_far += cost(tile, spans.len());
                self.items.push(Item { tile: index, spans, split: split.clone(), cost_so_far });
            }
        }
        let lanes = threads.min(self.items.len());
        let end = |lane| self.items.partition_point(|item| item.cost_so_far * lanes <= cost_so_far * lane);
        self.ends.clear();
        self.ends.extend((1..=lanes).map(end));
    }

    /// Cuts the sequences into tiles of up to `tokens` tokens and returns their number.
    fn cut(&mut self, args: &AttentionArgs<'_>, tokens: usize) -> usize {
        self.tiles.clear();
        for (seq, span) in args.seqs.iter().enumerate() {
            for token in (0..span.q_len).step_by(tokens) {
                let tokens = tokens.min(span.q_len - token);
                self.tiles.extend((0..args.layout.kv_heads).map(|kv_head| Tile { seq, kv_head, token, tokens }));
            }
        }
        self.tiles.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::attention::SeqSpan;
    use crate::cpu::kv::{KvLayout, KvSlice};

    /// Sequences of some query rows in a context.
    fn plan(seqs: &[(usize, usize)], threads: usize) -> Plan {
        let mut q_start = 0;
        let spans: Vec<_> = seqs
            .iter()
            .map(|&(q_len, context_len)| {
                q_start += q_len;
                SeqSpan { q_start: q_start - q_len, q_len, context_len, blocks: &[] }
            })
            .collect();
        let args = AttentionArgs {
            q: &[],
            k: KvSlice::F32(&[]),
            v: KvSlice::F32(&[]),
            layout: KvLayout { layers: 1, layer: 0, kv_heads: 3, head_dim: 64, block_size: 16 },
            heads: 9,
            scale: 1.0,
            window: None,
            softcap: None,
            seqs: &spans,
        };
        let mut plan = Plan::default();
        plan.fill(&args, threads);
        plan
    }

    #[test]
    fn shares_cover_all_items_and_cost_the_same_but_for_an_item() {
        let batches: [&[(usize, usize)]; 6] = [
            &[(1, 1)],
            &[(1, 40_000)],
            &[(512, 512)],
            &[(1, 300); 32],
            &[(128, 4096), (1, 10), (1, 20_000), (1, 10)],
            &[(1, 10), (1, 10), (200, 200), (1, 5000)],
        ];
        for (seqs, threads) in batches.into_iter().flat_map(|seqs| [1, 2, 3, 8].map(|threads| (seqs, threads))) {
            let plan = plan(seqs, threads);
            let costs = |range: Range<usize>| -> Vec<usize> {
                let before = |i: usize| i.checked_sub(1).map_or(0, |i| plan.items()[i].cost_so_far);
                range.map(|i| plan.items()[i].cost_so_far - before(i)).collect()
            };
            let all = costs(0..plan.items().len());
            let (total, largest) = (all.iter().sum::<usize>(), all.iter().max().copied().unwrap_or(0));
            let mut start = 0;
            for share in (0..plan.lanes()).map(|lane| plan.share(lane)) {
                assert_eq!(share.start, start, "{seqs:?} on {threads} threads");
                start = share.end;
                let cost: usize = costs(share).iter().sum();
                assert!(cost <= total / threads + largest, "{cost} of {total} on {threads} threads: {seqs:?}");
            }
            assert_eq!(start, plan.items().len(), "{seqs:?} on {threads} threads");
        }
    }
}

//! Blocks that running sequences are going to compute, and who waits for them.
//!
//! Without it, `n` choices of one prompt that arrive together would prefill it `n` times, because blocks are shared only
//! once their step has committed. An entry lives until its block is published or its owner stops running, whatever the
//! reason; both hand the waiters back, so nobody waits for a block that nobody computes.
use std::collections::HashMap;

use super::SeqId;
use crate::kv::BlockHash;

#[derive(Debug, Default)]
pub(super) struct PendingBlocks {
    by_hash: HashMap<BlockHash, Pending>,
}

#[derive(Debug)]
struct Pending {
    owner: SeqId,
    waiters: Vec<SeqId>,
}

impl PendingBlocks {
    /// `owner` is going to compute these blocks; those that another sequence already computes stay that one's.
    pub fn register(&mut self, owner: SeqId, hashes: &[BlockHash]) {
        for &hash in hashes {
            self.by_hash.entry(hash).or_insert(Pending { owner, waiters: Vec::new() });
        }
    }

    /// If the first of `hashes` is being computed: the last block in a row that the same owner computes. Waiting for
    /// that one, rather than the first, wakes a sequence once instead of after each of the owner's chunks.
    pub fn last_of_run(&self, hashes: &[BlockHash]) -> Option<BlockHash> {
        let owner = self.by_hash.get(hashes.first()?)?.owner;
        hashes.iter().copied().take_while(|hash| self.by_hash.get(hash).is_some_and(|p| p.owner == owner)).last()
    }

    pub fn wait(&mut self, hash: BlockHash, waiter: SeqId) {
        self.by_hash.get_mut(&hash).expect("waiting for a block that is not pending is a bug").waiters.push(waiter);
    }

    pub fn stop_waiting(&mut self, hash: BlockHash, waiter: SeqId) {
        if let Some(pending) = self.by_hash.get_mut(&hash) {
            pending.waiters.retain(|&id| id != waiter);
        }
    }

    /// The block is published, or `owner` will not compute it: those who waited for it go on.
    pub fn resolve(&mut self, owner: SeqId, hash: BlockHash, woken: &mut Vec<SeqId>) {
        if self.by_hash.get(&hash).is_some_and(|p| p.owner == owner) {
            woken.extend(self.by_hash.remove(&hash).into_iter().flat_map(|p| p.waiters));
        }
    }

    /// Every pending block's owner and waiters, for the checks of invariants.
    pub fn iter(&self) -> impl Iterator<Item = (BlockHash, SeqId, &[SeqId])> {
        self.by_hash.iter().map(|(&hash, p)| (hash, p.owner, p.waiters.as_slice()))
    }
}

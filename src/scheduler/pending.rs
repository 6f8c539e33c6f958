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
    /// Who computes each block.
    owners: HashMap<BlockHash, SeqId>,
    /// By owner. Owners for whom nobody waits have no entry.
    waiters: HashMap<SeqId, Vec<Waiter>>,
}

/// A sequence that waits for a block of another one, and what orders it among prompts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiter {
    pub id: SeqId,
    pub hash: BlockHash,
    pub age: u64,
    pub length: usize,
}

impl PendingBlocks {
    /// `owner` is going to compute these blocks; those that another sequence already computes stay that one's.
    pub fn register(&mut self, owner: SeqId, hashes: &[BlockHash]) {
        for &hash in hashes {
            self.owners.entry(hash).or_insert(owner);
        }
    }

    /// If the first of `hashes` is being computed: the last block in a row that the same owner computes. Waiting for
    /// that one, rather than the first, wakes a sequence once instead of after each of the owner's chunks.
    pub fn last_of_run(&self, hashes: &[BlockHash]) -> Option<BlockHash> {
        let owner = self.owners.get(hashes.first()?)?;
        hashes.iter().copied().take_while(|hash| self.owners.get(hash) == Some(owner)).last()
    }

    pub fn wait(&mut self, waiter: Waiter) {
        let owner = self.owners.get(&waiter.hash).expect("waiting for a block that is not pending is a bug");
        self.waiters.entry(*owner).or_default().push(waiter);
    }

    pub fn stop_waiting(&mut self, hash: BlockHash, waiter: SeqId) {
        if let Some(owner) = self.owners.get(&hash)
            && let Some(waiters) = self.waiters.get_mut(owner)
        {
            waiters.retain(|w| w.id != waiter);
            if waiters.is_empty() {
                self.waiters.remove(owner);
            }
        }
    }

    /// The block is published, or `owner` will not compute it: those who waited for it go on.
    pub fn resolve(&mut self, owner: SeqId, hash: BlockHash, woken: &mut Vec<SeqId>) {
        if self.owners.get(&hash) != Some(&owner) {
            return;
        }
        self.owners.remove(&hash);
        if let Some(waiters) = self.waiters.get_mut(&owner) {
            woken.extend(waiters.extract_if(.., |w| w.hash == hash).map(|w| w.id));
            if waiters.is_empty() {
                self.waiters.remove(&owner);
            }
        }
    }

    /// Those who wait for blocks of `owner`.
    pub fn waiting_for(&self, owner: SeqId) -> &[Waiter] {
        self.waiters.get(&owner).map_or(&[], Vec::as_slice)
    }

    /// Every pending block and its owner, for the checks of invariants.
    pub fn iter(&self) -> impl Iterator<Item = (BlockHash, SeqId)> {
        self.owners.iter().map(|(&hash, &owner)| (hash, owner))
    }

    /// Every waiter with the sequence it waits for, for the checks of invariants.
    pub fn all_waiters(&self) -> impl Iterator<Item = (SeqId, &Waiter)> {
        self.waiters.iter().flat_map(|(&owner, waiters)| waiters.iter().map(move |w| (owner, w)))
    }
}

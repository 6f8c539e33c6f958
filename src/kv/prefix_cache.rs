//! Finds the block that already holds the KV of a prefix.
//!
//! The KV of a block depends on every token before it, so blocks are found by a hash chained over all full blocks from
//! the start of the sequence (the scheme of vLLM and nano-vllm). The hash only *finds* a candidate. A hit also needs
//! equal tokens and an equal [`PrefixId`] of the block before; prefix ids are never reused, so by induction a hit has
//! the same salt and the same tokens from position 0, and a collision of hashes can never serve another prompt's KV.
use std::collections::HashMap;

use super::{BlockId, CacheSalt};

/// Hash of a prefix that ends at a block boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash(u64);

/// Identity of a prefix that ends at a block boundary, exact where [`BlockHash`] is probable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrefixId {
    /// No tokens.
    Root(CacheSalt),
    /// The prefix that ends with a published block's content; numbers are given once.
    Published(u64),
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: BlockHash,
    parent: PrefixId,
    id: u64,
}

#[derive(Debug)]
pub struct PrefixCache {
    block_size: usize,
    hash_mask: u64,
    by_hash: HashMap<BlockHash, BlockId>,
    /// What a block holds, if it was published since it was last handed out. It ends with the last block that ever was: blocks
    /// are handed out in ascending order, and a large cache that is little used takes no memory for the others.
    entries: Vec<Option<Entry>>,
    /// `[num_blocks, block_size]`; meaningful where `entries` is `Some`.
    tokens: Vec<u32>,
    next_id: u64,
}

impl PrefixCache {
    /// `hash_mask` is all ones except in tests, which provoke collisions with fewer bits.
    #[must_use]
    pub fn new(num_blocks: usize, block_size: usize, hash_mask: u64) -> Self {
        Self {
            block_size,
            hash_mask,
            by_hash: HashMap::with_capacity(num_blocks),
            entries: Vec::with_capacity(num_blocks),
            tokens: vec![0; num_blocks * block_size],
            next_id: 0,
        }
    }

    /// Hash of the empty prefix.
    #[must_use]
    pub fn root_hash(&self, salt: CacheSalt) -> BlockHash {
        BlockHash(mix(salt.0, 0x51ed_270b_9f3a_6c15) & self.hash_mask)
    }

    /// Hash of the prefix `parent` followed by a block of `tokens`.
    #[must_use]
    pub fn child_hash(&self, parent: BlockHash, tokens: &[u32]) -> BlockHash {
        let mut hash = parent.0;
        for &token in tokens {
            hash = mix(hash, u64::from(token));
        }
        BlockHash(hash & self.hash_mask)
    }

    /// The block that holds `tokens` after the prefix `parent`, and the identity of the longer prefix.
    #[must_use]
    pub fn get(&self, parent: PrefixId, hash: BlockHash, tokens: &[u32]) -> Option<(BlockId, PrefixId)> {
        let block = *self.by_hash.get(&hash)?;
        let entry = self.entry(block)?;
        let same = entry.parent == parent && &self.tokens[self.range(block)] == tokens;
        same.then_some((block, PrefixId::Published(entry.id)))
    }

    /// Makes `block`, which holds `tokens` after the prefix `parent`, findable, and returns the findable block and the
    /// longer prefix's identity. When another block already holds the same, that one stays the findable one. When the hash
    /// belongs to other content (a collision, or a block whose prefix was evicted), the newer content replaces it.
    pub fn publish(
        &mut self,
        block: BlockId,
        parent: PrefixId,
        hash: BlockHash,
        tokens: &[u32],
    ) -> (BlockId, PrefixId) {
        debug_assert_eq!(tokens.len(), self.block_size, "publishing a partial block is a bug");
        if let Some(found) = self.get(parent, hash, tokens) {
            return found;
        }
        if let Some(&other) = self.by_hash.get(&hash) {
            self.forget(other);
        }
        self.forget(block);
        let id = self.next_id;
        self.next_id += 1;
        self.by_hash.insert(hash, block);
        if self.entries.len() <= block.index() {
            self.entries.resize(block.index() + 1, None);
        }
        self.entries[block.index()] = Some(Entry { hash, parent, id });
        let range = self.range(block);
        self.tokens[range].copy_from_slice(tokens);
        (block, PrefixId::Published(id))
    }

    /// Of the cached blocks that follow the prefix `parent`: how many of its first tokens `tokens` begins with, for the one
    /// with the most. `None`: there are none. O(blocks).
    #[must_use]
    pub fn closest_child(&self, parent: PrefixId, tokens: &[u32]) -> Option<usize> {
        let blocks = self.entries.iter().zip(self.tokens.chunks_exact(self.block_size));
        let children = blocks.filter(|(entry, _)| entry.is_some_and(|entry| entry.parent == parent));
        children.map(|(_, held)| held.iter().zip(tokens).take_while(|(a, b)| a == b).count()).max()
    }

    /// The cached blocks, each with the cached block before it if there is one. O(blocks), for checks.
    pub(super) fn links(&self) -> impl Iterator<Item = (BlockId, Option<BlockId>)> {
        let named = || (0..).map(BlockId).zip(&self.entries).filter_map(|(block, entry)| Some((block, (*entry)?)));
        let by_id: HashMap<u64, BlockId> = named().map(|(block, entry)| (entry.id, block)).collect();
        named().map(move |(block, entry)| {
            let parent = match entry.parent {
                PrefixId::Root(_) => None,
                PrefixId::Published(id) => by_id.get(&id).copied(),
            };
            (block, parent)
        })
    }

    /// Whether hashes are whole, so that no two contents meet in one.
    pub(super) fn has_whole_hashes(&self) -> bool {
        self.hash_mask == u64::MAX
    }

    /// The block's content is about to be overwritten.
    pub fn forget(&mut self, block: BlockId) {
        if let Some(entry) = self.entries.get_mut(block.index()).and_then(Option::take) {
            self.by_hash.remove(&entry.hash);
        }
    }

    #[must_use]
    pub fn contains(&self, block: BlockId) -> bool {
        self.entry(block).is_some()
    }

    fn entry(&self, block: BlockId) -> Option<Entry> {
        self.entries.get(block.index()).copied().flatten()
    }

    fn range(&self, block: BlockId) -> std::ops::Range<usize> {
        let start = block.index() * self.block_size;
        start..start + self.block_size
    }
}

/// One round of a multiply-and-fold hash: the two halves of a 128-bit product carry every input bit into every output bit.
fn mix(state: u64, value: u64) -> u64 {
    let product = u128::from(state ^ 0x9e37_79b9_7f4a_7c15) * u128::from(value.wrapping_add(0xd6e8_feb8_6659_fd93));
    #[allow(clippy::cast_possible_truncation, reason = "folding the halves is the point")]
    let (low, high) = (product as u64, (product >> 64) as u64);
    (low ^ high).rotate_left(23).wrapping_mul(0xff51_afd7_ed55_8ccd)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: PrefixId = PrefixId::Root(CacheSalt(1));

    fn hashes(cache: &PrefixCache, salt: u64, tokens: &[u32]) -> Vec<BlockHash> {
        let mut parent = cache.root_hash(CacheSalt(salt));
        let blocks = tokens.chunks_exact(2);
        blocks.map(|block| (parent = cache.child_hash(parent, block), parent).1).collect()
    }

    #[test]
    fn a_block_is_found_after_its_own_prefix_only() {
        let mut cache = PrefixCache::new(4, 2, u64::MAX);
        let h = hashes(&cache, 1, &[5, 6, 7, 8]);
        assert_eq!(cache.get(ROOT, h[0], &[5, 6]), None);
        let (_, first) = cache.publish(BlockId(3), ROOT, h[0], &[5, 6]);
        let (_, second) = cache.publish(BlockId(0), first, h[1], &[7, 8]);
        assert_eq!(cache.get(ROOT, h[0], &[5, 6]), Some((BlockId(3), first)));
        assert_eq!(cache.get(first, h[1], &[7, 8]), Some((BlockId(0), second)));
        assert_eq!(cache.get(first, h[1], &[7, 9]), None, "other tokens");
        assert_eq!(cache.get(ROOT, h[1], &[7, 8]), None, "another prefix");
        assert_eq!(cache.get(PrefixId::Root(CacheSalt(2)), h[0], &[5, 6]), None, "another salt");
        assert_ne!(hashes(&cache, 2, &[5, 6]), h[..1]);
        cache.forget(BlockId(3));
        assert_eq!(cache.get(ROOT, h[0], &[5, 6]), None);
        assert!(!cache.contains(BlockId(3)) && cache.contains(BlockId(0)));
    }

    #[test]
    fn a_duplicate_leaves_the_first_block_findable() {
        let mut cache = PrefixCache::new(4, 2, u64::MAX);
        let h = hashes(&cache, 1, &[5, 6]);
        let first = cache.publish(BlockId(0), ROOT, h[0], &[5, 6]);
        assert_eq!(cache.publish(BlockId(1), ROOT, h[0], &[5, 6]), first);
        assert_eq!(cache.get(ROOT, h[0], &[5, 6]), Some(first));
        assert!(!cache.contains(BlockId(1)));
    }

    #[test]
    fn colliding_hashes_never_serve_other_content() {
        let mut cache = PrefixCache::new(4, 2, 0);
        let h = hashes(&cache, 1, &[5, 6])[0];
        let (_, first) = cache.publish(BlockId(0), ROOT, h, &[5, 6]);
        assert_eq!(cache.get(ROOT, h, &[6, 5]), None);
        // The child has the same hash and, here, the same tokens: only the prefix tells them apart.
        assert_eq!(cache.get(first, h, &[5, 6]), None);
        let (_, child) = cache.publish(BlockId(1), first, h, &[5, 6]);
        assert_ne!(child, first);
        assert_eq!(cache.get(ROOT, h, &[5, 6]), None, "replaced");
        // The prefix comes back under a new identity: what hung on the old one stays unreachable.
        let (_, again) = cache.publish(BlockId(2), ROOT, h, &[5, 6]);
        assert_ne!(again, first);
        assert_eq!(cache.get(again, h, &[5, 6]), None);
    }

    #[test]
    fn order_and_length_of_tokens_change_the_hash() {
        let cache = PrefixCache::new(1, 2, u64::MAX);
        let mut seen = std::collections::HashSet::new();
        for a in 0..100 {
            for b in 0..100 {
                assert!(seen.insert(hashes(&cache, 0, &[a, b])[0]), "{a} {b}");
            }
        }
        for salt in 1..1000 {
            assert!(seen.insert(hashes(&cache, salt, &[0, 0])[0]), "salt {salt}");
        }
    }
}

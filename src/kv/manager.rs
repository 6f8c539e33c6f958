//! The block pool and the prefix cache as one: a block that is handed out again is first forgotten by the cache.
use super::block_pool::Retention;
use super::{BlockHash, BlockId, BlockPool, BlockTable, CacheSalt, PrefixCache, PrefixId};

/// The longest cached prefix of a sequence. Its blocks are retained for the caller.
#[derive(Debug, PartialEq, Eq)]
pub struct PrefixMatch {
    pub blocks: Vec<BlockId>,
    pub prefix: PrefixId,
}

/// How far a sequence goes along with the cached text that is closest to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosestPrefix {
    /// Leading tokens that both have.
    pub tokens: usize,
    pub end: PrefixEnd,
}

/// What comes after the tokens that a sequence and the cached text closest to it both have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixEnd {
    /// Another token in each of them.
    Differs,
    /// The cached text ends; the sequence goes on.
    OfCached,
    /// The sequence ends: all of it is cached.
    OfSequence,
}

#[derive(Debug)]
pub struct KvManager {
    pool: BlockPool,
    cache: PrefixCache,
    block_size: usize,
}

impl KvManager {
    /// `hash_mask`: see [`PrefixCache::new`].
    #[must_use]
    pub fn new(num_blocks: usize, block_size: usize, hash_mask: u64) -> Self {
        Self {
            pool: BlockPool::new(num_blocks),
            cache: PrefixCache::new(num_blocks, block_size, hash_mask),
            block_size,
        }
    }

    /// The pool, to look at.
    #[must_use]
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Blocks that hold `tokens` tokens.
    #[must_use]
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Appends the hashes of the full blocks of `tokens` that `hashes` does not have yet.
    pub fn extend_hashes(&self, salt: CacheSalt, tokens: &[u32], hashes: &mut Vec<BlockHash>) {
        let mut parent = hashes.last().copied().unwrap_or_else(|| self.cache.root_hash(salt));
        for block in tokens.chunks_exact(self.block_size).skip(hashes.len()) {
            parent = self.cache.child_hash(parent, block);
            hashes.push(parent);
        }
    }

    /// How many leading blocks of `tokens` are cached, of the first `hashes.len()`. Takes nothing.
    #[must_use]
    pub fn count_prefix(&self, salt: CacheSalt, hashes: &[BlockHash], tokens: &[u32]) -> usize {
        self.walk(salt, hashes, tokens).count()
    }

    /// Retains the cached leading blocks of `tokens`, of the first `hashes.len()`.
    pub fn take_prefix(&mut self, salt: CacheSalt, hashes: &[BlockHash], tokens: &[u32]) -> PrefixMatch {
        let mut found = PrefixMatch { blocks: Vec::new(), prefix: PrefixId::Root(salt) };
        for (block, prefix) in self.walk(salt, hashes, tokens) {
            found.blocks.push(block);
            found.prefix = prefix;
        }
        for &block in &found.blocks {
            self.pool.retain(block);
        }
        found
    }

    fn walk(&self, salt: CacheSalt, hashes: &[BlockHash], tokens: &[u32]) -> impl Iterator<Item = (BlockId, PrefixId)> {
        let blocks = hashes.iter().zip(tokens.chunks_exact(self.block_size));
        blocks.scan(PrefixId::Root(salt), |parent, (&hash, tokens)| {
            let hit = self.cache.get(*parent, hash, tokens)?;
            *parent = hit.1;
            Some(hit)
        })
    }

    /// Hands out a block; the content that was freed the longest ago is lost. `None`: all blocks are held.
    pub fn alloc(&mut self) -> Option<BlockId> {
        let block = self.pool.alloc()?;
        self.cache.forget(block);
        Some(block)
    }

    /// Compares a sequence with all that is cached, to the token; `hashes` are those of all its full blocks. O(all blocks).
    #[must_use]
    pub fn closest(&self, salt: CacheSalt, hashes: &[BlockHash], tokens: &[u32]) -> ClosestPrefix {
        let (mut prefix, mut same) = (PrefixId::Root(salt), 0);
        for (_, longer) in self.walk(salt, hashes, tokens) {
            prefix = longer;
            same += self.block_size;
        }
        let rest = &tokens[same..];
        let more = self.cache.closest_child(prefix, rest);
        let end = match more {
            _ if more.unwrap_or(0) == rest.len() => PrefixEnd::OfSequence,
            Some(_) => PrefixEnd::Differs,
            None => PrefixEnd::OfCached,
        };
        ClosestPrefix { tokens: same + more.unwrap_or(0), end }
    }

    /// Makes the block at `at` of a table, filled by a committed step, findable. See [`PrefixCache::publish`]. Where another
    /// block is the findable one, it takes the place of the table's own. So whoever holds a cached block also holds the
    /// cached blocks before it, and they are evicted after it.
    pub fn publish(
        &mut self,
        table: &mut BlockTable,
        at: usize,
        parent: PrefixId,
        hash: BlockHash,
        tokens: &[u32],
    ) -> PrefixId {
        let own = table.as_slice()[at];
        let (found, prefix) = self.cache.publish(own, parent, hash, tokens);
        if found != own {
            self.pool.retain(found);
            let own = table.replace(at, found);
            self.pool.release(own, Retention::Discard);
        }
        prefix
    }

    /// Checks that a cached block is evicted before the cached block that it follows, as far as no hashes collide: then a
    /// sequence loses its end before its beginning, and no block is kept that cannot be found. O(blocks).
    ///
    /// # Errors
    /// The first pair in another order: that is a bug.
    pub fn check_eviction_order(&self) -> Result<(), String> {
        let mut place = vec![usize::MAX; self.pool.total()];
        for (at, block) in self.pool.free_order().enumerate() {
            place[block.index()] = at;
        }
        let broken = self.cache.links().find(|(block, before)| {
            let before = before.map_or(usize::MAX, |before| place[before.index()]);
            // Held blocks are in no place: they are evicted after all others.
            place[block.index()] > before
        });
        match broken.filter(|_| self.cache.has_whole_hashes()) {
            None => Ok(()),
            Some((block, before)) => Err(format!("{before:?} is evicted before {block:?}, which follows it")),
        }
    }

    /// Gives back what a table has beyond `blocks` blocks.
    pub fn shrink(&mut self, table: &mut BlockTable, blocks: usize) {
        if table.len() > blocks {
            let rest = table.split_off(blocks);
            self.release(rest);
        }
    }

    /// Gives a table's references back, last block first, so that the tail of a cached prefix is evicted before its head.
    pub fn release(&mut self, table: BlockTable) {
        for block in table.into_blocks().into_iter().rev() {
            let retention = if self.cache.contains(block) { Retention::Keep } else { Retention::Discard };
            self.pool.release(block, retention);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: CacheSalt = CacheSalt(7);

    /// Computes and publishes `tokens` in fresh blocks; the last block may be partial.
    fn fill(kv: &mut KvManager, tokens: &[u32]) -> BlockTable {
        fill_by(kv, 2, tokens)
    }

    fn fill_by(kv: &mut KvManager, block_size: usize, tokens: &[u32]) -> BlockTable {
        let mut hashes = Vec::new();
        kv.extend_hashes(SALT, tokens, &mut hashes);
        let mut table = BlockTable::default();
        let mut prefix = PrefixId::Root(SALT);
        for (i, chunk) in tokens.chunks(block_size).enumerate() {
            let block = kv.alloc().expect("room");
            table.push(block);
            if chunk.len() == block_size {
                prefix = kv.publish(&mut table, i, prefix, hashes[i], chunk);
            }
        }
        table
    }

    fn take(kv: &mut KvManager, salt: CacheSalt, tokens: &[u32]) -> Vec<u32> {
        let mut hashes = Vec::new();
        kv.extend_hashes(salt, tokens, &mut hashes);
        assert_eq!(kv.count_prefix(salt, &hashes, tokens), {
            let found = kv.take_prefix(salt, &hashes, tokens);
            let len = found.blocks.len();
            kv.release(BlockTable::from_prefix(found.blocks));
            len
        });
        kv.take_prefix(salt, &hashes, tokens).blocks.iter().map(|b| b.0).collect()
    }

    #[test]
    fn the_tail_of_a_prefix_is_evicted_before_its_head() {
        let mut kv = KvManager::new(5, 2, u64::MAX);
        let table = fill(&mut kv, &[1, 2, 3, 4, 5, 6, 7]);
        kv.release(table);
        // Block 3 was partial, so worthless; 4 was never used; then the prefix from its end.
        let order: Vec<u32> = kv.pool().free_order().map(|b| b.0).collect();
        assert_eq!(order, [3, 4, 2, 1, 0]);
        let evicting: Vec<_> = (0..3).filter_map(|_| kv.alloc()).collect();
        assert_eq!(evicting, [BlockId(3), BlockId(4), BlockId(2)]);
        assert_eq!(take(&mut kv, SALT, &[1, 2, 3, 4, 5, 6]), [0, 1]);
        assert_eq!(kv.alloc(), None);
    }

    #[test]
    fn a_second_block_with_the_same_content_gives_way() {
        let mut kv = KvManager::new(6, 2, u64::MAX);
        let first = fill(&mut kv, &[1, 2, 3, 4]);
        kv.release(first);
        // Computes all of it again, as a prompt that is cached as a whole does with its last block, and goes on.
        let second = fill(&mut kv, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(second.as_slice(), [0, 1, 2].map(BlockId), "its own blocks were of no use, and one was used again");
        assert_eq!(kv.pool().free_len(), 3);
        kv.check_eviction_order().unwrap();
        kv.release(second);
        kv.check_eviction_order().unwrap();
        let order: Vec<u32> = kv.pool().free_order().map(|b| b.0).collect();
        assert_eq!(order, [3, 4, 5, 2, 1, 0], "from the longest prefix's end to its beginning");
    }

    #[test]
    fn the_closest_cached_text_is_compared_to_the_token() {
        let mut kv = KvManager::new(16, 4, u64::MAX);
        for tokens in [&[1, 2, 3, 4, 5, 6, 7, 8, 9][..], &[1, 2, 3, 4, 5, 6, 0, 0], &[7, 7, 7, 7]] {
            let table = fill_by(&mut kv, 4, tokens);
            kv.release(table);
        }
        let closest = |salt: CacheSalt, tokens: &[u32]| {
            let mut hashes = Vec::new();
            kv.extend_hashes(salt, tokens, &mut hashes);
            let ClosestPrefix { tokens, end } = kv.closest(salt, &hashes, tokens);
            (tokens, end)
        };
        assert_eq!(closest(SALT, &[1, 2, 3, 4, 5, 6, 7, 9]), (7, PrefixEnd::Differs));
        assert_eq!(closest(SALT, &[1, 2, 3, 4, 5, 6, 0, 9, 1]), (7, PrefixEnd::Differs), "the other one is closer");
        assert_eq!(closest(SALT, &[1, 2, 3, 4, 9, 9, 9, 9, 9]), (4, PrefixEnd::Differs));
        assert_eq!(closest(SALT, &[7, 7, 1]), (2, PrefixEnd::Differs));
        assert_eq!(closest(SALT, &[9]), (0, PrefixEnd::Differs));
        assert_eq!(closest(SALT, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 9]), (8, PrefixEnd::OfCached), "whole blocks are cached");
        assert_eq!(closest(SALT, &[7, 7, 7, 7, 7]), (4, PrefixEnd::OfCached));
        for whole in [&[1, 2, 3, 4, 5, 6][..], &[1, 2, 3, 4], &[1, 2, 3, 4, 5, 6, 7, 8]] {
            assert_eq!(closest(SALT, whole), (whole.len(), PrefixEnd::OfSequence));
        }
        assert_eq!(closest(CacheSalt(8), &[1, 2, 3]), (0, PrefixEnd::OfCached), "another tenant's is not compared");
    }

    #[test]
    fn a_prefix_is_shared_within_its_salt_only() {
        let mut kv = KvManager::new(8, 2, u64::MAX);
        let table = fill(&mut kv, &[1, 2, 3, 4]);
        assert_eq!(take(&mut kv, SALT, &[1, 2, 3, 4, 9, 9]), [0, 1]);
        assert_eq!((kv.pool().ref_count(BlockId(0)), kv.pool().ref_count(BlockId(1))), (2, 2));
        assert_eq!(take(&mut kv, SALT, &[1, 2, 9, 9]), [0]);
        assert_eq!(take(&mut kv, SALT, &[1, 2, 3]), [0], "only full blocks are found");
        assert_eq!(take(&mut kv, SALT, &[3, 4]), [0u32; 0], "only from the start");
        assert_eq!(take(&mut kv, CacheSalt(8), &[1, 2]), [0u32; 0]);
        assert_eq!(kv.pool().used_len(), table.len());
    }

    #[test]
    fn hashes_extend_without_recomputing() {
        let kv = KvManager::new(1, 2, u64::MAX);
        let (mut whole, mut grown) = (Vec::new(), Vec::new());
        kv.extend_hashes(SALT, &[1, 2, 3, 4, 5], &mut whole);
        kv.extend_hashes(SALT, &[1, 2, 3], &mut grown);
        assert_eq!(grown.len(), 1);
        kv.extend_hashes(SALT, &[1, 2, 3, 4, 5], &mut grown);
        assert_eq!((whole.len(), &whole), (2, &grown));
        assert_eq!((kv.blocks_for(0), kv.blocks_for(2), kv.blocks_for(3)), (0, 1, 2));
    }
}

//! Reference counts of all blocks and the list of free ones, least recently used first.
//!
//! The free list is threaded through two flat arrays by index, so `alloc`, `retain` and `release` are O(1), also for a
//! block in the middle of the list (a prefix hit on a block nobody holds takes it from there). A free block keeps its
//! content until it is handed out again; therefore this list's order is the eviction order of the prefix cache.
use super::BlockId;

/// Where a block that lost its last holder goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Its content can be found again: it is reused after everything that was freed before it.
    Keep,
    /// Its content is of no use: it is reused first.
    Discard,
}

#[derive(Debug)]
pub struct BlockPool {
    refs: Vec<u32>,
    /// Neighbours in the circular free list; the entry after the last block is the list's sentinel.
    prev: Vec<u32>,
    next: Vec<u32>,
    free: usize,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks, handed out in ascending order at first.
    ///
    /// # Panics
    /// When `num_blocks` does not leave room for the sentinel in a `u32`.
    #[must_use]
    pub fn new(num_blocks: usize) -> Self {
        let sentinel = u32::try_from(num_blocks).expect("a pool of 2^32 blocks is a bug");
        let len = sentinel.checked_add(1).expect("a pool of 2^32 blocks is a bug");
        Self {
            refs: vec![0; num_blocks],
            prev: (0..len).map(|i| if i == 0 { sentinel } else { i - 1 }).collect(),
            next: (0..len).map(|i| if i == sentinel { 0 } else { i + 1 }).collect(),
            free: num_blocks,
        }
    }

    /// Hands out the least recently used free block with one reference, or `None` when all are held.
    pub fn alloc(&mut self) -> Option<BlockId> {
        let block = BlockId(self.next[self.refs.len()]);
        if block.index() == self.refs.len() {
            return None;
        }
        self.unlink(block);
        self.refs[block.index()] = 1;
        Some(block)
    }

    /// Adds a reference; a free block leaves the free list.
    pub fn retain(&mut self, block: BlockId) {
        if self.refs[block.index()] == 0 {
            self.unlink(block);
        }
        self.refs[block.index()] += 1;
    }

    /// Takes a reference back; the last one frees the block.
    ///
    /// # Panics
    /// When nobody holds the block: a double free would give one block to two sequences.
    pub fn release(&mut self, block: BlockId, retention: Retention) {
        let refs = &mut self.refs[block.index()];
        assert!(*refs > 0, "releasing the free block {block:?} is a bug");
        *refs -= 1;
        if *refs == 0 {
            let sentinel = BlockId(u32::try_from(self.refs.len()).expect("checked by `new`, else it is a bug"));
            match retention {
                Retention::Keep => self.link_between(block, self.prev[sentinel.index()], sentinel.0),
                Retention::Discard => self.link_between(block, sentinel.0, self.next[sentinel.index()]),
            }
        }
    }

    #[must_use]
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.refs[block.index()]
    }
    #[must_use]
    pub fn free_len(&self) -> usize {
        self.free
    }
    #[must_use]
    pub fn used_len(&self) -> usize {
        self.refs.len() - self.free
    }
    #[must_use]
    pub fn total(&self) -> usize {
        self.refs.len()
    }
    /// The free blocks in the order in which they will be handed out. O(free), for tests.
    pub fn free_order(&self) -> impl Iterator<Item = BlockId> + '_ {
        let sentinel = self.refs.len();
        let mut at = self.next[sentinel] as usize;
        std::iter::from_fn(move || {
            let block = BlockId(u32::try_from(at).ok().filter(|_| at != sentinel)?);
            at = self.next[at] as usize;
            Some(block)
        })
    }

    fn unlink(&mut self, block: BlockId) {
        let (prev, next) = (self.prev[block.index()], self.next[block.index()]);
        self.next[prev as usize] = next;
        self.prev[next as usize] = prev;
        self.free -= 1;
    }

    fn link_between(&mut self, block: BlockId, prev: u32, next: u32) {
        self.next[prev as usize] = block.0;
        self.prev[next as usize] = block.0;
        self.prev[block.index()] = prev;
        self.next[block.index()] = next;
        self.free += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(pool: &BlockPool) -> Vec<u32> {
        pool.free_order().map(|b| b.0).collect()
    }

    #[test]
    fn hands_out_in_order_until_empty() {
        let mut pool = BlockPool::new(3);
        assert_eq!(order(&pool), [0, 1, 2]);
        assert_eq!([pool.alloc(), pool.alloc(), pool.alloc()], [0, 1, 2].map(|i| Some(BlockId(i))));
        assert_eq!(pool.alloc(), None);
        assert_eq!((pool.free_len(), pool.used_len(), pool.total()), (0, 3, 3));
        assert_eq!(BlockPool::new(0).alloc(), None);
    }

    #[test]
    fn freed_blocks_are_reused_least_recently_used_first() {
        let mut pool = BlockPool::new(4);
        let blocks: Vec<_> = (0..3).filter_map(|_| pool.alloc()).collect();
        pool.release(blocks[2], Retention::Keep);
        pool.release(blocks[0], Retention::Keep);
        assert_eq!(order(&pool), [3, 2, 0]);
        pool.release(blocks[1], Retention::Discard);
        assert_eq!(order(&pool), [1, 3, 2, 0]);
        pool.retain(BlockId(2));
        assert_eq!(order(&pool), [1, 3, 0]);
        pool.retain(BlockId(2));
        pool.release(BlockId(2), Retention::Keep);
        assert_eq!((pool.ref_count(BlockId(2)), order(&pool)), (1, vec![1, 3, 0]));
        pool.release(BlockId(2), Retention::Keep);
        assert_eq!((order(&pool), pool.free_len()), (vec![1, 3, 0, 2], 4));
    }

    #[test]
    #[should_panic(expected = "releasing the free block")]
    fn a_double_free_is_caught() {
        let mut pool = BlockPool::new(1);
        pool.release(BlockId(0), Retention::Keep);
    }
}

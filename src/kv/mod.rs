//! Bookkeeping of the paged KV cache: which block holds what, and who uses it. Pure: no tensors, clocks, channels or locks.
//!
//! [`KvManager`] is what the scheduler uses; it ties the ref-counted [`BlockPool`] to the [`PrefixCache`].
pub mod block_pool;
pub mod block_table;
pub mod manager;
pub mod prefix_cache;

pub use block_pool::BlockPool;
pub use block_table::BlockTable;
pub use manager::{ClosestPrefix, KvManager, PrefixEnd, PrefixMatch};
pub use prefix_cache::{BlockHash, PrefixCache, PrefixId};

/// Index of a block in the device's KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    /// The id as an index into per-block arrays.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Separates prefix caches: blocks are shared only between sequences of equal salt (one per tenant).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CacheSalt(pub u64);

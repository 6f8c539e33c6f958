//! A sequence's list of blocks: block `i` holds the KV of tokens `i * block_size ..`.
use super::BlockId;

/// Append-only while a step of its sequence runs: an entry, once given, never changes, so a step that was planned earlier
/// stays true. Between steps, blocks that were given for guesses may go, and a block may give way to another one that holds
/// the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
}

impl BlockTable {
    /// A table that starts with blocks found in the prefix cache.
    #[must_use]
    pub fn from_prefix(blocks: Vec<BlockId>) -> Self {
        Self { blocks }
    }
    pub fn push(&mut self, block: BlockId) {
        self.blocks.push(block);
    }
    /// Takes the last blocks off, so that `len` are left; they are for the one who gives them back.
    #[must_use]
    pub fn split_off(&mut self, len: usize) -> Self {
        Self { blocks: self.blocks.split_off(len.min(self.blocks.len())) }
    }
    /// Puts `block` in the place of the one at `at`, which is for the one who gives it back.
    #[must_use]
    pub fn replace(&mut self, at: usize, block: BlockId) -> BlockId {
        std::mem::replace(&mut self.blocks[at], block)
    }
    /// The references the table held, for the one who gives them back.
    #[must_use]
    pub fn into_blocks(self) -> Vec<BlockId> {
        self.blocks
    }
    #[must_use]
    pub fn as_slice(&self) -> &[BlockId] {
        &self.blocks
    }
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}

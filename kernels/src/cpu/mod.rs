//! What every kernel is handed: an instruction set and a pool of threads.

pub mod attention;
pub mod dispatch;
pub mod elementwise;
pub mod encoder;
pub mod floats;
mod isa;
pub mod kv;
mod large_pages;
pub mod math;
pub mod matmul;
pub mod memory;
pub mod packed;
pub mod panel;
pub mod pool;
mod product;
pub mod quant;
pub mod refine;
pub mod rope;
mod shared;
mod strips;

use dispatch::Isa;
use pool::ThreadPool;
use std::sync::Arc;

/// The processor as the kernels see it. Created once, passed to every kernel.
#[derive(Debug)]
pub struct Cpu {
    /// The instruction set whose kernels run.
    pub isa: Isa,
    /// The threads the kernels spread over; several models may share them.
    pub pool: Arc<ThreadPool>,
}

impl Cpu {
    /// Runs `body(start, end)` over `0..items` in pieces of about `piece` items, all nearly equal. Small work stays on the calling thread.
    /// Bodies must not depend on how the range is cut.
    pub(crate) fn for_pieces(&self, items: usize, piece: usize, body: impl Fn(usize, usize) + Sync) {
        let pieces = items.div_ceil(piece.max(1));
        // As many for each thread: their shares are equal then, and the same in regions over the same rows.
        let pieces = if pieces > 1 { pieces.next_multiple_of(self.pool.threads()).min(items) } else { pieces };
        self.pool.for_each(pieces, move |_, i| body(items * i / pieces, items * (i + 1) / pieces));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;
    use std::sync::Mutex;

    fn cpu(threads: usize) -> Cpu {
        Cpu { isa: Isa::detect(), pool: Arc::new(ThreadPool::new(NonZeroUsize::new(threads).unwrap())) }
    }

    #[test]
    fn pieces_are_equal_and_cover_everything() {
        for (threads, items, piece) in [(1, 9, 4), (2, 9, 4), (2, 32, 7), (3, 100, 1), (4, 3, 1), (2, 5, 0), (2, 5, 9)]
        {
            let pieces = Mutex::new(Vec::new());
            cpu(threads).for_pieces(items, piece, |start, end| {
                pieces.lock().unwrap().push((start, end));
            });
            let mut pieces = pieces.into_inner().unwrap();
            pieces.sort_unstable();
            let mut at = 0;
            for &(start, end) in &pieces {
                assert!(start == at && end > start, "{pieces:?} of {items}");
                at = end;
            }
            assert_eq!(at, items);
            let sizes = || pieces.iter().map(|(start, end)| end - start);
            assert!(sizes().max().unwrap_or(0) <= sizes().min().unwrap_or(0) + 1, "{pieces:?}");
        }
    }
}

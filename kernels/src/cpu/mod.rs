//! What every kernel is handed: an instruction set and a pool of threads.

pub mod attention;
pub mod dispatch;
pub mod elementwise;
pub mod encoder;
pub mod floats;
mod isa;
pub mod kv;
pub mod math;
pub mod matmul;
pub mod memory;
pub mod packed;
pub mod panel;
pub mod pool;
mod product;
pub mod quant;
mod refine;
pub mod rope;
mod shared;
mod strips;

use dispatch::Isa;
use pool::ThreadPool;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    pub(crate) fn for_pieces(&self, items: usize, piece: usize, body: &(dyn Fn(usize, usize) + Sync)) {
        let pieces = items.div_ceil(piece.max(1));
        // As many for each thread: their shares are equal then, and the same in regions over the same rows.
        let pieces = if pieces > 1 { pieces.next_multiple_of(self.pool.threads()).min(items) } else { pieces };
        self.for_each(pieces, &|_, i| body(items * i / pieces, items * (i + 1) / pieces));
    }

    /// Runs `body(lane, item)` for each of `0..items`, once, where `lane` is the thread's number. Each thread has its own share, in order:
    /// what follows upon another in memory, and the same part of the items in one region as in the next. When it has done its own it takes
    /// from the others'.
    pub(crate) fn for_each(&self, items: usize, body: &(dyn Fn(usize, usize) + Sync)) {
        let lanes = self.pool.threads().min(items);
        if lanes <= 1 {
            (0..items).for_each(|item| body(0, item));
            return;
        }
        let shares: Vec<Share> = (0..lanes)
            .map(|lane| Share { next: AtomicUsize::new(items * lane / lanes), end: items * (lane + 1) / lanes })
            .collect();
        self.pool.run(lanes, &|lane| {
            for share in shares[lane..].iter().chain(&shares[..lane]) {
                loop {
                    let item = share.next.fetch_add(1, Ordering::Relaxed);
                    if item >= share.end {
                        break;
                    }
                    body(lane, item);
                }
            }
        });
    }
}

/// A thread's share of a region's items, in a cache line of its own.
#[repr(align(64))]
struct Share {
    next: AtomicUsize,
    end: usize,
}

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

/// The processor as the kernels see it. Created once, passed to every kernel.
#[derive(Debug)]
pub struct Cpu {
    /// The instruction set whose kernels run.
    pub isa: Isa,
    /// The threads the kernels spread over; several models may share them.
    pub pool: Arc<ThreadPool>,
}

impl Cpu {
    /// Runs `body(start, end)` over `0..items` in pieces of about `piece` items (the last may be shorter). Small work stays on the
    /// calling thread. Bodies must not depend on how the range is cut.
    pub(crate) fn for_pieces(&self, items: usize, piece: usize, body: &(dyn Fn(usize, usize) + Sync)) {
        let piece = piece.max(1);
        let pieces = items.div_ceil(piece);
        if pieces <= 1 {
            if items > 0 {
                body(0, items);
            }
            return;
        }
        self.pool.run(pieces, &|i| body(i * piece, ((i + 1) * piece).min(items)));
    }
}

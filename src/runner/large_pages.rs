//! Weights move into large pages once they are loaded.
//!
//! Loaded into small ones, a model has its first token sooner; in large ones its steps are 2 to 4% faster
//! (`kernels/src/cpu/memory.rs` says why, for both).
use std::sync::Arc;
use std::time::{Duration, Instant};

use wick_kernels::{ThreadPool, move_to_large_page};

/// The first request of a server that was waited for comes at once: it finds the pool's threads free.
const START: Duration = Duration::from_millis(100);
/// Between two pages while steps run, in times of what a page takes: half a millisecond, but many where memory is new to the machine. So
/// of steps long enough to count hardly one in a hundred waits for a page.
const BUSY: u32 = 300;
/// Between two pages while nothing runs: a step that comes meanwhile waits for one page.
const IDLE: Duration = Duration::from_millis(1);

/// Moves all there are, in a thread of its own, between steps.
pub fn move_in_background(pool: Arc<ThreadPool>) {
    let thread = std::thread::Builder::new().name("wick-pages".into()).spawn(move || {
        std::thread::sleep(START);
        loop {
            let busy = pool.is_taken();
            let turn = pool.turn();
            let begin = Instant::now();
            if !move_to_large_page() {
                return;
            }
            let took = begin.elapsed();
            drop(turn);
            std::thread::sleep(if busy { BUSY * took } else { IDLE });
        }
    });
    if let Err(error) = thread {
        tracing::warn!(%error, "the system refuses a thread: weights stay in small pages, which is a few percent slower");
    }
}

/// The same at once, for who wants to know how fast steps are then.
pub fn move_now() {
    while move_to_large_page() {}
}

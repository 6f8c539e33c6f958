//! One table of kernels for each instruction set.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(target_arch = "x86_64")]
pub mod avxvnni;
mod floats;
#[cfg(target_arch = "aarch64")]
pub mod neondot;
mod packed;
pub mod scalar;

/// How far ahead a tile alone asks for weights (two or three do it in turns, [`crate::cpu::packed::Strip::asked`]), into the first-level
/// cache. Several rows work on a line for so long that the hardware's prefetching
/// falls behind; one or two walk through records of lines so unevenly that it does not keep up. Measured on an Emerald Rapids, weights in
/// memory, as many times as fast as without: 1.6 to 3.8 with one row (8 KiB is as good, 2 KiB less), on all tables. On a Zen 4, rows
/// 4 / 8 / 12: 1.15 / 1.3 / 1.25; 2 KiB does nearly as well, into the second-level cache does not. Weights in the cache: no difference.
const AHEAD: usize = 4096;

/// Asks for the first [`AHEAD`] bytes of a run of weights, into the first-level cache: whoever has something else to do first need not wait
/// for them.
pub fn prefetch(weights: &[u8]) {
    weights.chunks(64).take(AHEAD / 64).for_each(|line| prefetch_line(line.as_ptr()));
}

/// Asks for a line, any address, into the first-level cache. On x86-64; elsewhere the hardware's own prefetching has to do.
pub fn prefetch_line<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// How many of the `left` rows of a tile the next pass takes: as many as `most` allows, in passes of about the same size. `None` when the
/// tile is done.
fn next_pass(left: usize, most: usize) -> Option<usize> {
    (left > 0).then(|| left.div_ceil(left.div_ceil(most)))
}

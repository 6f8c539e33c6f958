//! What the allocator holds.
use std::ptr::null_mut;

/// Gives memory that has been freed back to the system, which the allocator (jemalloc, where it is the program's) would keep for a while:
/// for what comes next when something large has been made that needed much in between.
pub fn give_back_freed() {
    // SAFETY: a call by name, without values in or out. It fails for no name of jemalloc's; if it did, the memory would only come back later.
    unsafe {
        // 4096 stands for all arenas.
        tikv_jemalloc_sys::mallctl(c"arena.4096.purge".as_ptr(), null_mut(), null_mut(), null_mut(), 0);
    }
}

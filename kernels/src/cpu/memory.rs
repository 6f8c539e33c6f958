//! Memory for weights: huge pages, which matrices share.
//!
//! A step reads all weights. With pages of 4 KiB each 64 lines end at a page that, more often than not, no translation is cached for: a
//! walk through the page tables (in a virtual machine through two of them), and a break in the hardware's prefetching. With pages of 2 MiB
//! both are rare. Where the system has no huge pages, or none left, this memory is as good as any other.

use memmap2::{MmapMut, MmapOptions};
use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a cache line, which all parts begin at.
const LINE: usize = 64;
/// Bytes of a huge page on x86-64, and on Arm with small pages of 4 KiB.
const HUGE: usize = 2 << 20;
/// Least bytes of a region: matrices of a small model are smaller than a huge page. What is never written to costs addresses only.
const REGION_BYTES: usize = 64 << 20;

/// Bytes that begin at a cache line, zeros at first. No one has touched them: the system clears a page for the thread that first writes to it.
/// A region goes back to the system with the last of its parts, but for the newest one, of which more may be taken.
pub struct Memory {
    _map: Arc<MmapMut>,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the bytes are this one's own.
unsafe impl Send for Memory {}
// SAFETY: they change through a mutable reference only.
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` bytes.
    pub fn zeroed(len: usize) -> Memory {
        /// The region that still has room.
        static REGION: Mutex<Option<Region>> = Mutex::new(None);
        let mut current = REGION.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = current.as_mut().and_then(|region| region.take(len)) {
            return memory;
        }
        let region = current.insert(Region::new(len));
        region.take(len).expect("a region without room for what it was made for is a bug")
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the map lives as long as this, and no other has this part of it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Fresh memory, of which parts are taken.
struct Region {
    map: Arc<MmapMut>,
    /// What has not been taken.
    rest: NonNull<u8>,
    len: usize,
}

// SAFETY: the rest is this region's own.
unsafe impl Send for Region {}

impl Region {
    /// Room for `bytes`.
    fn new(bytes: usize) -> Region {
        let mapped = bytes.max(REGION_BYTES).saturating_add(HUGE);
        let Ok(mut map) = MmapOptions::new().len(mapped).map_anon() else {
            handle_alloc_error(Layout::from_size_align(mapped, LINE).unwrap_or(Layout::new::<u8>()))
        };
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let skipped = map.as_ptr().align_offset(HUGE);
        let rest = NonNull::from(&mut map[skipped..]).cast();
        Region { map: Arc::new(map), rest, len: mapped - skipped }
    }

    /// `len` bytes, if there are so many left.
    fn take(&mut self, len: usize) -> Option<Memory> {
        let lines = len.checked_next_multiple_of(LINE).filter(|&lines| lines <= self.len)?;
        let start = self.rest;
        // SAFETY: there are as many bytes left.
        self.rest = unsafe { start.add(lines) };
        self.len -= lines;
        Some(Memory { _map: self.map.clone(), start, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_begin_at_lines_are_zero_and_do_not_overlap() {
        let sizes = [1, 64, 65, 0, HUGE + 1, REGION_BYTES + 1, 100];
        let mut parts = sizes.map(Memory::zeroed);
        for (part, size) in parts.iter_mut().zip(sizes) {
            assert_eq!(part.len(), size);
            assert!(part.as_ptr().addr().is_multiple_of(LINE));
            assert!(part.iter().all(|&b| b == 0));
            part.fill(size as u8 ^ 0x55);
        }
        for (part, size) in parts.iter().zip(sizes) {
            assert!(part.iter().all(|&b| b == size as u8 ^ 0x55), "{size} bytes were written to by another");
        }
    }
}

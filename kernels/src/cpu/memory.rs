//! Memory that begins at lines of the cache: for weights, the KV cache, and for what kernels write in between.
//!
//! A step reads all weights, and keys and values from everywhere in the cache. With pages of 4 KiB each 64 lines end at a page that, more
//! often than not, no translation is cached for: a walk through the page tables (in a virtual machine through two of them), and a break in
//! the hardware's prefetching. So both lie in the large pages that Linux has for those who ask. The cache's are large when they are first
//! written to. Weights are loaded into small pages, which are quicker to come by: a virtual machine's host has often taken back what large
//! ones were made of, and gives it again in pieces of 4 KiB. They move into large ones later ([`move_to_large_page`]); their chunks
//! hold matrices one behind the other, because one alone may be smaller than such a page.

use super::Cpu;
use super::large_pages::{self, LARGE_PAGE};
use super::pool::lock;
use super::shared::SharedSlice;
use half::f16;
use memmap2::MmapMut;
use std::alloc::{Layout, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, Weak};

/// Bytes of a chunk: many large pages of 2 MiB. A block of half of that or more has one of its own.
const CHUNK: usize = 32 << 20;
/// Blocks begin at a multiple of this, and so do chunks at one of a large page.
const ALIGN: usize = 64;
/// Most bytes that a thread fills at a time (or one part).
const PIECE: usize = 2 << 20;
const ALL: &str = "a fresh chunk has what it was made for: anything else is a bug";

/// Where the next small block comes from. It is given back when all of its blocks are.
static CURRENT: Mutex<Weak<Chunk>> = Mutex::new(Weak::new());
/// Chunks of weights whose pages are small as yet, each from a byte on.
static SMALL: Mutex<Vec<(Weak<Chunk>, usize)>> = Mutex::new(Vec::new());

/// Bytes of the system, zero at first, parts of which are handed out once.
struct Chunk {
    /// The first large page, `skipped` bytes into the map.
    start: *mut u8,
    skipped: usize,
    len: usize,
    used: Mutex<usize>,
    map: MmapMut,
}

// SAFETY: the memory is reached by the blocks that own parts of it only.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// `len` bytes, a multiple of [`ALIGN`], in small pages.
    fn new(len: usize) -> Chunk {
        let size = len.checked_add(LARGE_PAGE).expect("a matrix of 2^64 bytes is a bug");
        let Ok(mut map) = MmapMut::map_anon(size) else {
            handle_alloc_error(Layout::from_size_align(size, ALIGN).unwrap_or(Layout::new::<u8>()))
        };
        let base = map.as_mut_ptr();
        let skipped = base.addr().next_multiple_of(LARGE_PAGE) - base.addr();
        Chunk { start: base.wrapping_add(skipped), skipped, len, used: Mutex::new(0), map }
    }

    /// The same for weights, which will move into large ones.
    fn of_weights(len: usize) -> Arc<Chunk> {
        let chunk = Arc::new(Chunk::new(len));
        lock(&SMALL).push((Arc::downgrade(&chunk), 0));
        chunk
    }

    /// Has what is touched from now on, from the byte `from` on, lie in large pages. False: the system has none.
    fn advise_large(&self, from: usize) -> bool {
        large_pages::advise(&self.map, self.skipped + from..self.skipped + self.len)
    }

    /// The next `len` bytes, if there are as many.
    fn take(self: &Arc<Self>, len: usize) -> Option<Block> {
        let mut used = lock(&self.used);
        let end = used.checked_add(len).filter(|&end| end <= self.len)?;
        let at = std::mem::replace(&mut *used, end);
        Some(Block { at: self.start.wrapping_add(at), len, _chunk: self.clone() })
    }
}

/// A part of a chunk, which it keeps.
pub struct Block {
    at: *mut u8,
    len: usize,
    _chunk: Arc<Chunk>,
}

// SAFETY: a block is the only one that reaches its bytes.
unsafe impl Send for Block {}
// SAFETY: as above; shared, they are only read.
unsafe impl Sync for Block {}

impl Block {
    /// `bytes` bytes of a chunk of weights, or some more, all zero, from a multiple of 64 on.
    fn zeroed(bytes: usize) -> Block {
        let len = round_up(bytes);
        if len >= CHUNK / 2 {
            return Chunk::of_weights(len).take(len).expect(ALL);
        }
        let mut current = lock(&CURRENT);
        if let Some(block) = current.upgrade().and_then(|chunk| chunk.take(len)) {
            return block;
        }
        let chunk = Chunk::of_weights(CHUNK);
        *current = Arc::downgrade(&chunk);
        chunk.take(len).expect(ALL)
    }

    /// The same of a chunk of its own, in large pages from the byte `large_from` on, where it has as many.
    fn large(bytes: usize, large_from: usize) -> Block {
        let chunk = Arc::new(Chunk::new(round_up(bytes)));
        if large_from < chunk.len {
            // Where the system does not take the advice, pages are small.
            chunk.advise_large(large_from);
        }
        let len = chunk.len;
        chunk.take(len).expect(ALL)
    }

    /// `parts` parts of `part_bytes` bytes, a few at a time handed to `fill` as zeros. A part is first touched by the thread that fills it:
    /// the system's clearing of fresh pages, a good part of the work, is spread with the rest.
    pub fn filled(
        cpu: &Cpu,
        parts: usize,
        part_bytes: usize,
        fill: &(dyn Fn(Range<usize>, &mut [u8]) + Sync),
    ) -> Block {
        let mut block = Block::zeroed(part_bytes.checked_mul(parts).expect("a matrix of 2^64 bytes is a bug"));
        let shared = SharedSlice::new(block.bytes_mut());
        let piece = parts.div_ceil(8 * cpu.pool.threads()).min(PIECE / part_bytes.max(1)).max(1);
        cpu.for_pieces(parts, piece, |start, end| {
            // SAFETY: pieces are disjoint.
            fill(start..end, unsafe { shared.slice(start * part_bytes, (end - start) * part_bytes) });
        });
        block
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as many are in the chunk, initialised by the system or since, and belong to this block.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

fn round_up(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(ALIGN).expect("a matrix of 2^64 bytes is a bug")
}

/// Moves another 2 MiB of the weights that lie in small pages into a large one, where the system has those: less than a millisecond's work,
/// but several where a virtual machine's host has to find the memory. Weights can be read meanwhile; whoever does may wait as long.
/// False: nothing is left to move.
pub fn move_to_large_page() -> bool {
    let mut small = lock(&SMALL);
    while let Some((chunk, from)) = small.last_mut() {
        let (at, chunk) = (*from, chunk.upgrade());
        *from += LARGE_PAGE;
        // What a large page would not be full of stays where it is.
        if let Some(chunk) = chunk
            && at + LARGE_PAGE <= *lock(&chunk.used)
        {
            // Where no page can be moved at once, the system may still do it in its own time, which the advice allows.
            let advised = at > 0 || chunk.advise_large(0);
            if advised && large_pages::allowed() && large_pages::collapse(chunk.start.wrapping_add(at)) {
                return true;
            }
        }
        small.pop();
    }
    false
}

/// Numbers for which all bits are values, zeros being zero.
pub trait Plain: Copy + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! plain {
    ($($number:ty),*) => {
        $(impl sealed::Sealed for $number {}
        impl Plain for $number {})*
    };
}
plain!(f32, f16, u32, i8);

/// Numbers that are all zero at first, in large pages where the system has them. A page takes memory once it is written to.
pub struct Pages<T> {
    block: Block,
    len: usize,
    /// Bytes before which all large pages have been touched.
    touched: usize,
    numbers: PhantomData<T>,
}

impl<T: Plain> Pages<T> {
    /// `len` zeros.
    #[must_use]
    pub fn zeroed(len: usize) -> Pages<T> {
        Pages::in_large_pages_from(0, len)
    }

    /// The same for what is often little: the first pages are small.
    #[must_use]
    pub fn zeroed_small_first(len: usize) -> Pages<T> {
        Pages::in_large_pages_from(LARGE_PAGE, len)
    }

    fn in_large_pages_from(byte: usize, len: usize) -> Pages<T> {
        let bytes = len.checked_mul(size_of::<T>()).expect("a cache of 2^64 bytes is a bug");
        Pages { block: Block::large(bytes, byte), len, touched: 0, numbers: PhantomData }
    }

    /// The next large page that nobody has touched, if it is among those of the first `soon` numbers. The first `used` of them, or fewer, are
    /// all that has been written to.
    pub fn untouched(&mut self, used: usize, soon: usize) -> Option<Untouched<'_>> {
        let next = self.touched.max((used * size_of::<T>()).next_multiple_of(LARGE_PAGE));
        let is_soon = next < soon.min(self.len) * size_of::<T>();
        self.touched = if is_soon { next + LARGE_PAGE } else { next };
        // A number is as many bytes, for which all bits are values.
        is_soon.then(|| Untouched(&mut self.block.bytes_mut()[next]))
    }
}

/// A page whose memory the system gives when it is first written to.
pub struct Untouched<'a>(&'a mut u8);

impl Untouched<'_> {
    /// Waits for the memory now. What is there stays.
    pub fn touch(self) {
        let byte = &raw mut *self.0;
        // SAFETY: this is the only reference to it. The compiler must not leave the write out.
        unsafe { byte.write_volatile(byte.read()) };
    }
}

impl<T: Plain> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the block has room for as many, begins at a multiple of 64, and all its bits are values of a plain number.
        unsafe { std::slice::from_raw_parts(self.block.at.cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.block.at.cast(), self.len) }
    }
}

/// 64 bytes that begin at a multiple of 64.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; ALIGN]);

/// Bytes that begin at a multiple of 64.
#[derive(Default)]
pub struct Lines(Box<[Line]>);

impl Lines {
    /// At least `bytes` bytes, all zero.
    pub fn zeroed(bytes: usize) -> Lines {
        // SAFETY: a line is bytes, for which zero is a value.
        Lines(unsafe { Box::<[Line]>::new_zeroed_slice(bytes.div_ceil(ALIGN)).assume_init() })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: lines are bytes without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * ALIGN) }
    }

    pub fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: lines are 16 floats each, at a multiple of their size, for which all bits are values.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * ALIGN / 4) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * ALIGN) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zeros_that_can_be_written() {
        let mut pages = Pages::<f16>::zeroed(3 * CHUNK + 1);
        assert_eq!(pages.len(), 3 * CHUNK + 1);
        assert!(pages.iter().all(|x| x.to_bits() == 0));
        pages[3 * CHUNK] = f16::ONE;
        assert_eq!(pages[3 * CHUNK], f16::ONE);
        assert!(Pages::<u32>::zeroed(0).is_empty());
    }

    #[test]
    fn pages_are_touched_ahead_one_at_a_time() {
        const PER_PAGE: usize = LARGE_PAGE / 4;
        let mut pages = Pages::<u32>::zeroed(4 * PER_PAGE + 5);
        let mut touch = |used, soon| pages.untouched(used, soon).map(Untouched::touch).is_some();
        assert!(!touch(0, 0));
        assert!(!touch(1, PER_PAGE), "the first page is in use");
        assert!(touch(1, PER_PAGE + 1));
        assert!(!touch(1, 2 * PER_PAGE));
        assert!(touch(1, usize::MAX) && touch(1, usize::MAX), "one after the other");
        assert!(touch(3 * PER_PAGE, usize::MAX), "the last one is not whole");
        assert!(!touch(3 * PER_PAGE, usize::MAX));
        assert!(!touch(4 * PER_PAGE + 5, usize::MAX));
        assert!(pages.iter().all(|&x| x == 0));
    }

    #[test]
    fn blocks_are_zero_aligned_and_apart() {
        let mut blocks: Vec<Block> = [0, 1, 64, 100_000, CHUNK / 2 - 1, CHUNK / 2 + 1, CHUNK - 5, 3 * CHUNK]
            .into_iter()
            .map(|bytes| {
                let mut block = Block::zeroed(bytes);
                assert!(block.bytes().len() >= bytes && block.at.addr().is_multiple_of(ALIGN));
                assert!(block.bytes().iter().all(|&b| b == 0));
                block.bytes_mut().fill(0xff);
                block
            })
            .collect();
        // As many as there are, while they are read and after: the bytes stay.
        while move_to_large_page() {
            assert!(blocks.iter().all(|block| block.bytes().iter().step_by(1021).all(|&b| b == 0xff)));
        }
        assert!(blocks.iter().all(|block| block.bytes().iter().all(|&b| b == 0xff)));
        blocks.sort_by_key(|block| block.at);
        assert!(blocks.windows(2).all(|pair| pair[0].at.addr() + pair[0].len <= pair[1].at.addr()));
    }
}

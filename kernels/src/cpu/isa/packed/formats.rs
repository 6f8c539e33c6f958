//! The packed formats, taken apart: quants one step at a time, scales one group at a time.

use super::Vector;
use crate::cpu::packed::{LANES, LINE};

/// Where the quants of a format are.
pub trait Quants {
    /// Bytes of one group of a strip.
    const BYTES: usize;
    /// Bits of a value.
    const BITS: u32;
    /// Step `j` (a constant at each call) of the group at `q`: 4 unsigned values in each lane. A `q` further on in the first line gives
    /// the lanes that begin there.
    ///
    /// # Safety
    /// A group's bytes are readable at `q`, which is a multiple of a register's size, and so are `V`'s instructions executable.
    unsafe fn step<V: Vector>(q: *const u8, j: usize) -> V::Int;
}

/// Bits of every byte of line `n` of the group at `q`: those of `mask`, from where they are `RIGHT` bits further up.
///
/// # Safety
/// As for [`Quants::step`].
#[inline(always)]
unsafe fn bits<V: Vector, const RIGHT: i32>(q: *const u8, n: usize, mask: u8) -> V::Int {
    // SAFETY: the caller's promise.
    unsafe {
        let line = V::load(q.add(n * LINE));
        V::and(if RIGHT == 0 { line } else { V::right16::<RIGHT>(line) }, V::byte(mask))
    }
}

/// Q4_0, Q4_1, Q4_K.
pub struct FourBits;

impl Quants for FourBits {
    const BYTES: usize = 4 * LINE;
    const BITS: u32 = 4;

    #[inline(always)]
    unsafe fn step<V: Vector>(q: *const u8, j: usize) -> V::Int {
        // SAFETY: the caller's promise.
        unsafe { if j < 4 { bits::<V, 0>(q, j, 15) } else { bits::<V, 4>(q, j - 4, 15) } }
    }
}

/// Q5_0, Q5_1, Q5_K.
pub struct FiveBits;

impl Quants for FiveBits {
    const BYTES: usize = 5 * LINE;
    const BITS: u32 = 5;

    #[inline(always)]
    unsafe fn step<V: Vector>(q: *const u8, j: usize) -> V::Int {
        // SAFETY: the caller's promise.
        unsafe {
            match j {
                0..5 => bits::<V, 0>(q, j, 31),
                5 => V::or(bits::<V, 5>(q, 0, 7), bits::<V, 2>(q, 1, 24)),
                6 => V::or(bits::<V, 5>(q, 2, 7), bits::<V, 2>(q, 3, 24)),
                _ => V::or(V::or(bits::<V, 5>(q, 4, 7), bits::<V, 4>(q, 1, 8)), bits::<V, 3>(q, 3, 16)),
            }
        }
    }
}

/// Q6_K.
pub struct SixBits;

impl Quants for SixBits {
    const BYTES: usize = 6 * LINE;
    const BITS: u32 = 6;

    #[inline(always)]
    unsafe fn step<V: Vector>(q: *const u8, j: usize) -> V::Int {
        // SAFETY: the caller's promise.
        unsafe {
            let q = q.add(j / 4 * 3 * LINE);
            match j % 4 {
                3 => V::or(V::or(bits::<V, 6>(q, 0, 3), bits::<V, 4>(q, 1, 12)), bits::<V, 2>(q, 2, 48)),
                j => bits::<V, 0>(q, j, 63),
            }
        }
    }
}

/// Q8_0.
pub struct EightBits;

impl Quants for EightBits {
    const BYTES: usize = 8 * LINE;
    const BITS: u32 = 8;

    #[inline(always)]
    unsafe fn step<V: Vector>(q: *const u8, j: usize) -> V::Int {
        // SAFETY: the caller's promise.
        unsafe { V::load(q.add(j * LINE)) }
    }
}

/// Where the scales of a format are: at the beginning of a record.
pub trait Scales {
    /// Groups of a record.
    const GROUPS: usize;
    /// Bytes of a record's scales.
    const BYTES: usize;
    /// Scales of a group: one, or one for each half.
    const PARTS: usize;
    /// Whether a group has a minimum.
    const MIN: bool;
    /// What was added to the quants.
    const OFFSET: u32;
    /// Scale `part` of group `i` of a record for the rows in the lanes from `lane`.
    ///
    /// # Safety
    /// The scales of a record are readable at `record`, and `V`'s instructions executable.
    unsafe fn scale<V: Vector>(record: *const u8, i: usize, part: usize, lane: usize) -> V::Float;
    /// The minimum of group `i`; only where there is one.
    ///
    /// # Safety
    /// As for `scale`.
    unsafe fn min<V: Vector>(record: *const u8, i: usize, lane: usize) -> V::Float;
}

/// Q4_0, Q5_0, Q8_0: a scale for each group.
pub struct Symmetric<const OFFSET: u32>;

impl<const OFFSET: u32> Scales for Symmetric<OFFSET> {
    const GROUPS: usize = 2;
    const BYTES: usize = LINE;
    const PARTS: usize = 1;
    const MIN: bool = false;
    const OFFSET: u32 = OFFSET;

    #[inline(always)]
    unsafe fn scale<V: Vector>(record: *const u8, i: usize, _: usize, lane: usize) -> V::Float {
        // SAFETY: the caller's promise.
        unsafe { V::halves(record.add(2 * (i * LANES + lane))) }
    }

    #[inline(always)]
    unsafe fn min<V: Vector>(_: *const u8, _: usize, _: usize) -> V::Float {
        // SAFETY: the caller's promise.
        unsafe { V::float(0.0) }
    }
}

/// Q4_1, Q5_1: a scale and a minimum for each group.
pub struct Affine;

impl Scales for Affine {
    const GROUPS: usize = 1;
    const BYTES: usize = LINE;
    const PARTS: usize = 1;
    const MIN: bool = true;
    const OFFSET: u32 = 0;

    #[inline(always)]
    unsafe fn scale<V: Vector>(record: *const u8, _: usize, _: usize, lane: usize) -> V::Float {
        // SAFETY: the caller's promise.
        unsafe { V::halves(record.add(2 * lane)) }
    }

    #[inline(always)]
    unsafe fn min<V: Vector>(record: *const u8, _: usize, lane: usize) -> V::Float {
        // SAFETY: the caller's promise.
        unsafe { V::halves(record.add(2 * (LANES + lane))) }
    }
}

/// Q4_K, Q5_K: a scale and a minimum for 8 groups, and small integers to multiply them with for each.
pub struct AffineK;

impl Scales for AffineK {
    const GROUPS: usize = 8;
    const BYTES: usize = 5 * LINE;
    const PARTS: usize = 1;
    const MIN: bool = true;
    const OFFSET: u32 = 0;

    #[inline(always)]
    unsafe fn scale<V: Vector>(record: *const u8, i: usize, _: usize, lane: usize) -> V::Float {
        // SAFETY: the caller's promise.
        unsafe { V::mul(V::halves(record.add(2 * lane)), V::unsigned(record.add(LINE + 2 * i * LANES + lane))) }
    }

    #[inline(always)]
    unsafe fn min<V: Vector>(record: *const u8, i: usize, lane: usize) -> V::Float {
        // SAFETY: the caller's promise.
        unsafe {
            let sub = V::unsigned(record.add(LINE + (2 * i + 1) * LANES + lane));
            V::negate(V::mul(V::halves(record.add(2 * (LANES + lane))), sub))
        }
    }
}

/// Q6_K: a scale for 8 groups, and signed integers to multiply it with for each half group.
pub struct HalvesK;

impl Scales for HalvesK {
    const GROUPS: usize = 8;
    const BYTES: usize = 5 * LINE;
    const PARTS: usize = 2;
    const MIN: bool = false;
    const OFFSET: u32 = 32;

    #[inline(always)]
    unsafe fn scale<V: Vector>(record: *const u8, i: usize, part: usize, lane: usize) -> V::Float {
        // SAFETY: the caller's promise.
        unsafe { V::mul(V::halves(record.add(2 * lane)), V::signed(record.add(LINE + (2 * i + part) * LANES + lane))) }
    }

    #[inline(always)]
    unsafe fn min<V: Vector>(_: *const u8, _: usize, _: usize) -> V::Float {
        // SAFETY: the caller's promise.
        unsafe { V::float(0.0) }
    }
}

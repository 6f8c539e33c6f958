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

/// The 4 low bits of step `j`, from lines of nibbles.
///
/// # Safety
/// As for [`Quants::step`].
#[inline(always)]
unsafe fn nibbles<V: Vector>(q: *const u8, j: usize) -> V::Int {
    // SAFETY: the caller's promise.
    unsafe {
        let both = V::load(q.add(j % 4 * LINE));
        let low = if j < 4 { both } else { V::right16::<4>(both) };
        V::and(low, V::byte(15))
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
        unsafe { nibbles::<V>(q, j) }
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
            let bits = V::load(q);
            let fifth = match j {
                0 => V::left16::<4>(bits),
                1 => V::left16::<3>(bits),
                2 => V::left16::<2>(bits),
                3 => V::left16::<1>(bits),
                4 => bits,
                5 => V::right16::<1>(bits),
                6 => V::right16::<2>(bits),
                _ => V::right16::<3>(bits),
            };
            V::or(nibbles::<V>(q.add(LINE), j), V::and(fifth, V::byte(16)))
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
            let bits = V::load(q.add(j / 4 * 5 * LINE));
            let upper = match j % 4 {
                0 => V::left16::<4>(bits),
                1 => V::left16::<2>(bits),
                2 => bits,
                _ => V::right16::<2>(bits),
            };
            V::or(nibbles::<V>(q.add(LINE), j), V::and(upper, V::byte(48)))
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

//! The packed formats, taken apart: quants one step at a time, scales one group at a time.

use crate::cpu::packed::{LANES, LINE};
use std::arch::x86_64::*;

/// Where the quants of a format are.
pub trait Quants {
    /// Bytes of one group.
    const BYTES: usize;
    /// Step `j` (a constant at each call) of the group at `q`: 4 unsigned values in each lane.
    ///
    /// # Safety
    /// A group's bytes are readable at `q`, which is a multiple of 64; AVX-512 F and BW.
    unsafe fn step(q: *const u8, j: usize) -> __m512i;
}

/// # Safety
/// 64 bytes are readable at `at`, a multiple of 64; AVX-512 F.
#[inline(always)]
unsafe fn line(at: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_load_si512(at.cast()) }
}

/// Bits of every byte of line `n` of the group at `q`: those of `mask`, from where they are `RIGHT` bits further up.
///
/// # Safety
/// The line is readable, `q` a multiple of 64; AVX-512 F and BW.
#[inline(always)]
unsafe fn bits<const RIGHT: u32>(q: *const u8, n: usize, mask: i8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_and_si512(_mm512_srli_epi16::<RIGHT>(line(q.add(n * LINE))), _mm512_set1_epi8(mask)) }
}

/// # Safety
/// AVX-512 F.
#[inline(always)]
unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_or_si512(a, b) }
}

/// Q4_0, Q4_1, Q4_K.
pub struct FourBits;

impl Quants for FourBits {
    const BYTES: usize = 4 * LINE;

    #[inline(always)]
    unsafe fn step(q: *const u8, j: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { if j < 4 { bits::<0>(q, j, 15) } else { bits::<4>(q, j - 4, 15) } }
    }
}

/// Q5_0, Q5_1, Q5_K.
pub struct FiveBits;

impl Quants for FiveBits {
    const BYTES: usize = 5 * LINE;

    #[inline(always)]
    unsafe fn step(q: *const u8, j: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            match j {
                0..5 => bits::<0>(q, j, 31),
                5 => or(bits::<5>(q, 0, 7), bits::<2>(q, 1, 24)),
                6 => or(bits::<5>(q, 2, 7), bits::<2>(q, 3, 24)),
                _ => or(or(bits::<5>(q, 4, 7), bits::<4>(q, 1, 8)), bits::<3>(q, 3, 16)),
            }
        }
    }
}

/// Q6_K.
pub struct SixBits;

impl Quants for SixBits {
    const BYTES: usize = 6 * LINE;

    #[inline(always)]
    unsafe fn step(q: *const u8, j: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let q = q.add(j / 4 * 3 * LINE);
            match j % 4 {
                3 => or(or(bits::<6>(q, 0, 3), bits::<4>(q, 1, 12)), bits::<2>(q, 2, 48)),
                j => bits::<0>(q, j, 63),
            }
        }
    }
}

/// Q8_0.
pub struct EightBits;

impl Quants for EightBits {
    const BYTES: usize = 8 * LINE;

    #[inline(always)]
    unsafe fn step(q: *const u8, j: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { line(q.add(j * LINE)) }
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
    /// What the groups of a record share.
    type Shared: Copy;
    /// What the groups share.
    ///
    /// # Safety
    /// The scales of a record are readable at `record`; AVX-512 F.
    unsafe fn shared(record: *const u8) -> Self::Shared;
    /// Scale `part` of group `i` of a record.
    ///
    /// # Safety
    /// As for `shared`, and the record has such a group.
    unsafe fn scale(shared: Self::Shared, record: *const u8, i: usize, part: usize) -> __m512;
    /// The minimum of group `i`; only where there is one.
    ///
    /// # Safety
    /// As for `scale`.
    unsafe fn min(shared: Self::Shared, record: *const u8, i: usize) -> __m512;
}

/// # Safety
/// 32 bytes are readable at `at`; AVX-512 F.
#[inline(always)]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

/// # Safety
/// 16 bytes are readable at `at`; AVX-512 F.
#[inline(always)]
unsafe fn unsigned(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()))) }
}

/// # Safety
/// As for [`unsigned`].
#[inline(always)]
unsafe fn signed(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
}

/// Q4_0, Q5_0, Q8_0: a scale for each group.
pub struct Symmetric<const OFFSET: u32>;

impl<const OFFSET: u32> Scales for Symmetric<OFFSET> {
    const GROUPS: usize = 2;
    const BYTES: usize = LINE;
    const PARTS: usize = 1;
    const MIN: bool = false;
    const OFFSET: u32 = OFFSET;
    type Shared = ();

    #[inline(always)]
    unsafe fn shared(_: *const u8) {}

    #[inline(always)]
    unsafe fn scale((): (), record: *const u8, i: usize, _: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { halves(record.add(2 * i * LANES)) }
    }

    #[inline(always)]
    unsafe fn min((): (), _: *const u8, _: usize) -> __m512 {
        // SAFETY: AVX-512 F, the caller's promise.
        unsafe { _mm512_setzero_ps() }
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
    type Shared = ();

    #[inline(always)]
    unsafe fn shared(_: *const u8) {}

    #[inline(always)]
    unsafe fn scale((): (), record: *const u8, _: usize, _: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { halves(record) }
    }

    #[inline(always)]
    unsafe fn min((): (), record: *const u8, _: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { halves(record.add(2 * LANES)) }
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
    /// The scale, and minus the minimum.
    type Shared = (__m512, __m512);

    #[inline(always)]
    unsafe fn shared(record: *const u8) -> (__m512, __m512) {
        // SAFETY: the caller's promise.
        unsafe { (halves(record), _mm512_xor_ps(halves(record.add(2 * LANES)), _mm512_set1_ps(-0.0))) }
    }

    #[inline(always)]
    unsafe fn scale((d, _): Self::Shared, record: *const u8, i: usize, _: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_mul_ps(d, unsigned(record.add(LINE + 2 * i * LANES))) }
    }

    #[inline(always)]
    unsafe fn min((_, min): Self::Shared, record: *const u8, i: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_mul_ps(min, unsigned(record.add(LINE + (2 * i + 1) * LANES))) }
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
    type Shared = __m512;

    #[inline(always)]
    unsafe fn shared(record: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { halves(record) }
    }

    #[inline(always)]
    unsafe fn scale(d: __m512, record: *const u8, i: usize, part: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_mul_ps(d, signed(record.add(LINE + (2 * i + part) * LANES))) }
    }

    #[inline(always)]
    unsafe fn min(_: __m512, _: *const u8, _: usize) -> __m512 {
        // SAFETY: AVX-512 F, the caller's promise.
        unsafe { _mm512_setzero_ps() }
    }
}

//! How each format's blocks become registers of 16-bit weights, scales and minimums. The layouts are explained where the plain Rust
//! unpacks them, in [`crate::cpu::panel`].

use crate::cpu::panel::{GROUPS, scales_q3k, scales_q45k};
use crate::cpu::quant::Mins;
use std::arch::asm;
use std::arch::x86_64::*;

/// What is worked out once for a panel.
#[derive(Clone, Copy)]
pub struct Prepared {
    /// Scale of each group.
    pub d: __m256,
    /// Offsets, of groups (first register) or of half groups.
    pub min: [__m256; 2],
    /// Integer scale of each half group, multiplied into the weights (Q2_K, Q3_K, Q6_K).
    pub scale: [i16; 16],
}

/// All zero.
pub const NOTHING: Prepared = {
    // SAFETY: every bit pattern is a valid register of floats.
    let zero: __m256 = unsafe { std::mem::transmute([0.0f32; GROUPS]) };
    Prepared { d: zero, min: [zero; 2], scale: [0; 16] }
};

/// A format of quantised weights.
pub trait Format {
    /// Its minimums.
    const MINS: Mins;
    /// Bytes of a whole panel.
    const PANEL_BYTES: usize;
    /// Bytes from a group to the next, where groups are alike; part panels need it.
    const GROUP_BYTES: usize = 0;
    /// Whether four rows, not two, share one row of activations: faster where unpacking takes few registers.
    const FOUR_ROWS: bool = false;

    /// Reads the scales and minimums of a panel's first `groups` groups; those of the others are zero.
    ///
    /// # Safety
    /// A panel of `groups` groups is readable at `p`; AVX2 and F16C.
    unsafe fn prepare(p: *const u8, groups: usize) -> Prepared;

    /// The weights of group `G`: values 0..16 and 16..32.
    ///
    /// # Safety
    /// Group `G` of a panel at `p` is readable, `prepared` is the panel's; AVX2.
    unsafe fn group<const G: usize>(p: *const u8, prepared: &Prepared) -> [__m256i; 2];
}

/// An expression for each half of a group. No closures here: the compiler would build their bodies without AVX2.
macro_rules! both_halves {
    ($h:ident => $body:expr) => {
        [
            {
                const $h: usize = 0;
                $body
            },
            {
                const $h: usize = 1;
                $body
            },
        ]
    };
}

/// # Safety
/// Two bytes are readable at `p`.
#[inline(always)]
unsafe fn u16_at(p: *const u8) -> i16 {
    // SAFETY: the caller's promise.
    unsafe { p.cast::<i16>().read_unaligned() }
}

/// # Safety
/// Two bytes are readable at `p`; F16C.
#[inline(always)]
unsafe fn half_at(p: *const u8) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16_at(p) as u16)))) }
}

/// The first two bytes of each block, `stride` (at least 16) bytes apart, as half-precision numbers; zeros behind the first `groups`.
///
/// # Safety
/// `groups` blocks are readable; AVX2 and F16C.
#[inline(always)]
unsafe fn halves(p: *const u8, stride: usize, groups: usize) -> __m256 {
    // SAFETY: the caller's promise; a load of 16 bytes stays inside its block.
    unsafe {
        let bits = if groups == GROUPS {
            // Loads and a tree of shuffles: half the work of eight insertions.
            let a = _mm_unpacklo_epi16(block16(p, stride, 0), block16(p, stride, 1));
            let b = _mm_unpacklo_epi16(block16(p, stride, 2), block16(p, stride, 3));
            let c = _mm_unpacklo_epi16(block16(p, stride, 4), block16(p, stride, 5));
            let d = _mm_unpacklo_epi16(block16(p, stride, 6), block16(p, stride, 7));
            _mm_unpacklo_epi64(_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d))
        } else {
            let mut some = [0i16; GROUPS];
            for (g, value) in some.iter_mut().enumerate().take(groups) {
                *value = u16_at(p.add(g * stride));
            }
            _mm_loadu_si128(some.as_ptr().cast())
        };
        _mm256_cvtph_ps(bits)
    }
}

/// The first and the second two bytes of each block, as [`halves`] reads the first.
///
/// # Safety
/// `groups` blocks are readable; AVX2 and F16C.
#[inline(always)]
unsafe fn pairs_of_halves(p: *const u8, stride: usize, groups: usize) -> [__m256; 2] {
    // SAFETY: the caller's promise; a load of 16 bytes stays inside its block.
    unsafe {
        if groups < GROUPS {
            return [halves(p, stride, groups), halves(p.add(2), stride, groups)];
        }
        let a = _mm_unpacklo_epi32(block16(p, stride, 0), block16(p, stride, 1));
        let b = _mm_unpacklo_epi32(block16(p, stride, 2), block16(p, stride, 3));
        let c = _mm_unpacklo_epi32(block16(p, stride, 4), block16(p, stride, 5));
        let d = _mm_unpacklo_epi32(block16(p, stride, 6), block16(p, stride, 7));
        let apart = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        let low = _mm_shuffle_epi8(_mm_unpacklo_epi64(a, b), apart);
        let high = _mm_shuffle_epi8(_mm_unpacklo_epi64(c, d), apart);
        [_mm256_cvtph_ps(_mm_unpacklo_epi64(low, high)), _mm256_cvtph_ps(_mm_unpackhi_epi64(low, high))]
    }
}

/// The first 16 bytes of block `g`.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn block16(p: *const u8, stride: usize, g: usize) -> __m128i {
    // SAFETY: the caller's promise.
    unsafe { _mm_loadu_si128(p.add(g * stride).cast()) }
}

/// 16 bytes widened to 16-bit numbers without sign.
///
/// # Safety
/// 16 bytes are readable at `p`; AVX2.
#[inline(always)]
unsafe fn bytes(p: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { opaque(_mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast()))) }
}

/// `v`, with its origin hidden from the compiler: it would otherwise mask and shift the 16 bytes first and widen them afterwards, from a
/// register, which takes the one port for crossing lanes; widening while loading is as cheap as a load.
#[inline]
#[target_feature(enable = "avx2")]
fn opaque(mut v: __m256i) -> __m256i {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inlateout(ymm_reg) v, options(pure, nomem, nostack, preserves_flags)) };
    v
}

/// 16 signed bytes widened.
///
/// # Safety
/// 16 bytes are readable at `p`; AVX2.
#[inline(always)]
unsafe fn signed(p: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())) }
}

/// `v >> n` in 16-bit lanes; `n` is a constant after inlining.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn shift_right(v: __m256i, n: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_srl_epi16(v, _mm_cvtsi32_si128(n as i32)) }
}

/// `v << n` in 16-bit lanes; `n` is a constant after inlining.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn shift_left(v: __m256i, n: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_sll_epi16(v, _mm_cvtsi32_si128(n as i32)) }
}

/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn only_d(d: __m256) -> Prepared {
    // SAFETY: the caller's promise.
    unsafe { Prepared { d, min: [_mm256_setzero_ps(); 2], scale: [0; 16] } }
}

/// 16 nibbles in the low and 16 in the high halves of 16 bytes.
///
/// # Safety
/// 16 bytes are readable at `p`; AVX2.
#[inline(always)]
unsafe fn nibbles(p: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let b = bytes(p);
        [_mm256_and_si256(b, _mm256_set1_epi16(15)), _mm256_srli_epi16::<4>(b)]
    }
}

/// All bits of a lane set where bit `lane` of `bits` is clear.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn clear_bits(bits: i16) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let lane = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, i16::MIN);
        _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(bits), lane), _mm256_setzero_si256())
    }
}

/// The formats with blocks of 32 values: bytes of a block, minimums, how a panel is prepared, how a block is read.
macro_rules! legacy {
    ($name:ident, $bytes:expr, $mins:expr, |$block:ident| $read:expr) => {
        pub struct $name;
        impl Format for $name {
            const MINS: Mins = $mins;
            const PANEL_BYTES: usize = GROUPS * $bytes;
            const GROUP_BYTES: usize = $bytes;
            const FOUR_ROWS: bool = $bytes <= 20;
            #[inline(always)]
            unsafe fn prepare(p: *const u8, groups: usize) -> Prepared {
                // SAFETY: the caller's promise; scale and minimum are the first two and next two bytes of a block.
                unsafe {
                    if matches!($mins, Mins::Per32) {
                        let [d, min] = pairs_of_halves(p, $bytes, groups);
                        Prepared { d, min: [min, _mm256_setzero_ps()], scale: [0; 16] }
                    } else {
                        only_d(halves(p, $bytes, groups))
                    }
                }
            }
            #[inline(always)]
            unsafe fn group<const G: usize>(p: *const u8, _: &Prepared) -> [__m256i; 2] {
                // SAFETY: the caller's promise.
                unsafe {
                    let $block = p.add(G * $bytes);
                    $read
                }
            }
        }
    };
}

legacy!(Q4_0, 18, Mins::None, |block| {
    let [low, high] = nibbles(block.add(2));
    let eight = _mm256_set1_epi16(8);
    [_mm256_sub_epi16(low, eight), _mm256_sub_epi16(high, eight)]
});
legacy!(Q4_1, 20, Mins::Per32, |block| nibbles(block.add(4)));
legacy!(Q8_0, 34, Mins::None, |block| [signed(block.add(2)), signed(block.add(18))]);
legacy!(Q5_0, 22, Mins::None, |block| {
    // A clear fifth bit means q - 16: the upper twelve bits set.
    let [low, high] = nibbles(block.add(6));
    let minus16 = _mm256_set1_epi16(-16);
    [
        _mm256_or_si256(low, _mm256_and_si256(clear_bits(u16_at(block.add(2))), minus16)),
        _mm256_or_si256(high, _mm256_and_si256(clear_bits(u16_at(block.add(4))), minus16)),
    ]
});
legacy!(Q5_1, 24, Mins::Per32, |block| {
    let [low, high] = nibbles(block.add(8));
    let sixteen = _mm256_set1_epi16(16);
    [
        _mm256_or_si256(low, _mm256_andnot_si256(clear_bits(u16_at(block.add(4))), sixteen)),
        _mm256_or_si256(high, _mm256_andnot_si256(clear_bits(u16_at(block.add(6))), sixteen)),
    ]
});

/// The low 8 bytes as floats.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn wide(v: __m128i) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)) }
}

/// Scales and minimums of Q4_K and Q5_K.
///
/// # Safety
/// 16 bytes are readable at `p`; AVX2 and F16C.
#[inline(always)]
unsafe fn prepare_q45k(p: *const u8) -> Prepared {
    // SAFETY: the caller's promise.
    unsafe {
        let (scale, min) = scales_q45k(std::slice::from_raw_parts(p.add(4), 12));
        let mut prepared =
            only_d(_mm256_mul_ps(_mm256_set1_ps(half_at(p)), wide(_mm_loadl_epi64(scale.as_ptr().cast()))));
        // The sign is put on the product's one factor: multiplication rounds symmetrically.
        prepared.min[0] = _mm256_mul_ps(_mm256_set1_ps(-half_at(p.add(2))), wide(_mm_loadl_epi64(min.as_ptr().cast())));
        prepared
    }
}

/// The nibbles of group `g` of Q4_K and Q5_K: groups come in pairs, low and high halves of 32 bytes.
///
/// # Safety
/// 128 bytes are readable at `p`; AVX2.
#[inline(always)]
unsafe fn nibbles_k(p: *const u8, g: usize) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let at = p.add(g / 2 * 32);
        let (low, high) = (bytes(at), bytes(at.add(16)));
        if g.is_multiple_of(2) {
            let mask = _mm256_set1_epi16(15);
            [_mm256_and_si256(low, mask), _mm256_and_si256(high, mask)]
        } else {
            [_mm256_srli_epi16::<4>(low), _mm256_srli_epi16::<4>(high)]
        }
    }
}

pub struct Q4K;
impl Format for Q4K {
    const MINS: Mins = Mins::Per32;
    const PANEL_BYTES: usize = 144;
    #[inline(always)]
    unsafe fn prepare(p: *const u8, _: usize) -> Prepared {
        // SAFETY: the caller's promise.
        unsafe { prepare_q45k(p) }
    }
    #[inline(always)]
    unsafe fn group<const G: usize>(p: *const u8, _: &Prepared) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe { nibbles_k(p.add(16), G) }
    }
}

pub struct Q5K;
impl Format for Q5K {
    const MINS: Mins = Mins::Per32;
    const PANEL_BYTES: usize = 176;
    #[inline(always)]
    unsafe fn prepare(p: *const u8, _: usize) -> Prepared {
        // SAFETY: the caller's promise.
        unsafe { prepare_q45k(p) }
    }
    #[inline(always)]
    unsafe fn group<const G: usize>(p: *const u8, _: &Prepared) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let [low, high] = nibbles_k(p.add(48), G);
            // Bit G of each byte moves to bit 4.
            let fifth = both_halves!(H => {
                let b = bytes(p.add(16 + 16 * H));
                let moved = if G <= 4 { shift_left(b, 4 - G.min(4)) } else { shift_right(b, G.max(4) - 4) };
                _mm256_and_si256(moved, _mm256_set1_epi16(16))
            });
            [_mm256_or_si256(low, fifth[0]), _mm256_or_si256(high, fifth[1])]
        }
    }
}

pub struct Q2K;
impl Format for Q2K {
    const MINS: Mins = Mins::Per16;
    const PANEL_BYTES: usize = 84;
    #[inline(always)]
    unsafe fn prepare(p: *const u8, _: usize) -> Prepared {
        // SAFETY: the caller's promise.
        unsafe {
            let packed = _mm_loadu_si128(p.cast());
            let low = _mm_set1_epi8(15);
            let min = _mm_and_si128(_mm_srli_epi16::<4>(packed), low);
            let dmin = _mm256_set1_ps(-half_at(p.add(82)));
            let mut prepared = only_d(_mm256_set1_ps(half_at(p.add(80))));
            prepared.min = [_mm256_mul_ps(dmin, wide(min)), _mm256_mul_ps(dmin, wide(_mm_srli_si128::<8>(min)))];
            _mm256_storeu_si256(prepared.scale.as_mut_ptr().cast(), _mm256_cvtepu8_epi16(_mm_and_si128(packed, low)));
            prepared
        }
    }
    #[inline(always)]
    unsafe fn group<const G: usize>(p: *const u8, prepared: &Prepared) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let at = p.add(16 + G / 4 * 32);
            both_halves!(H => {
                let q = _mm256_and_si256(shift_right(bytes(at.add(16 * H)), 2 * (G % 4)), _mm256_set1_epi16(3));
                _mm256_mullo_epi16(q, _mm256_set1_epi16(prepared.scale[2 * G + H]))
            })
        }
    }
}

pub struct Q3K;
impl Format for Q3K {
    const MINS: Mins = Mins::None;
    const PANEL_BYTES: usize = 110;
    #[inline(always)]
    unsafe fn prepare(p: *const u8, _: usize) -> Prepared {
        // SAFETY: the caller's promise.
        unsafe {
            let mut prepared = only_d(_mm256_set1_ps(half_at(p.add(108))));
            prepared.scale = scales_q3k(std::slice::from_raw_parts(p.add(96), 12));
            prepared
        }
    }
    #[inline(always)]
    unsafe fn group<const G: usize>(p: *const u8, prepared: &Prepared) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let at = p.add(32 + G / 4 * 32);
            both_halves!(H => {
                let low = _mm256_and_si256(shift_right(bytes(at.add(16 * H)), 2 * (G % 4)), _mm256_set1_epi16(3));
                // Bit G of the mask moves to bit 2; where it is clear the value is 4 less.
                let mask = bytes(p.add(16 * H));
                let moved = if G <= 2 { shift_left(mask, 2 - G.min(2)) } else { shift_right(mask, G.max(2) - 2) };
                let high = _mm256_and_si256(moved, _mm256_set1_epi16(4));
                let q = _mm256_sub_epi16(_mm256_or_si256(low, high), _mm256_set1_epi16(4));
                _mm256_mullo_epi16(q, _mm256_set1_epi16(prepared.scale[2 * G + H]))
            })
        }
    }
}

pub struct Q6K;
impl Format for Q6K {
    const MINS: Mins = Mins::None;
    const PANEL_BYTES: usize = 210;
    #[inline(always)]
    unsafe fn prepare(p: *const u8, _: usize) -> Prepared {
        // SAFETY: the caller's promise.
        unsafe {
            let mut prepared = only_d(_mm256_set1_ps(half_at(p.add(208))));
            _mm256_storeu_si256(prepared.scale.as_mut_ptr().cast(), signed(p.add(192)));
            prepared
        }
    }
    #[inline(always)]
    unsafe fn group<const G: usize>(p: *const u8, prepared: &Prepared) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let (half, part) = (G / 4, G % 4);
            both_halves!(H => {
                let low = bytes(p.add(half * 64 + part % 2 * 32 + 16 * H));
                let low = if part < 2 { _mm256_and_si256(low, _mm256_set1_epi16(15)) } else { _mm256_srli_epi16::<4>(low) };
                // Bits 2 * part and 2 * part + 1 move to bits 4 and 5.
                let high = bytes(p.add(128 + half * 32 + 16 * H));
                let moved = if part <= 2 { shift_left(high, 4 - 2 * part.min(2)) } else { shift_right(high, 2) };
                let q = _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi16(48)));
                let q = _mm256_sub_epi16(q, _mm256_set1_epi16(32));
                _mm256_mullo_epi16(q, _mm256_set1_epi16(prepared.scale[2 * G + H]))
            })
        }
    }
}

pub struct Q8K;
impl Format for Q8K {
    const MINS: Mins = Mins::None;
    const PANEL_BYTES: usize = 292;
    #[inline(always)]
    unsafe fn prepare(p: *const u8, _: usize) -> Prepared {
        // SAFETY: the caller's promise.
        unsafe { only_d(_mm256_set1_ps(p.cast::<f32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn group<const G: usize>(p: *const u8, _: &Prepared) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        unsafe { [signed(p.add(4 + G * 32)), signed(p.add(20 + G * 32))] }
    }
}

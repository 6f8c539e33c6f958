//! The products of a strip with a tile of activations.
//!
//! For each group, a step of the strip is unpacked once and multiplied with every row of the tile: `vpdpbusd` with 4 activations that are
//! broadcast while they are loaded. Low bytes take a second pass: over all rows, or over each of the few that have some. Offsets of symmetric formats are what the sums begin with. Then the sums become floats and are
//! multiplied into the row's accumulator: lanes are rows of the matrix, so nothing is ever summed across them.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

use super::formats::{Affine, AffineK, EightBits, FiveBits, FourBits, HalvesK, Quants, Scales, SixBits, Symmetric};
use crate::cpu::isa::AHEAD;
use crate::cpu::packed::{ActTile, Field, GROUP, LANES, LINE, Strip, Sum, all_fine, aside_bytes, group_bytes};
use crate::cpu::quant::QuantType;
use crate::cpu::shared::Rows;
use std::arch::x86_64::*;

/// Runs a macro body with the numbers of four steps as constants.
macro_rules! steps {
    ($j:ident in [$($n:literal),*] => $body:block) => {
        $({
            const $j: usize = $n;
            $body
        })*
    };
}

/// A 32-bit value in every lane.
///
/// # Safety
/// 4 bytes are readable at `at`, a multiple of 4; AVX-512 F.
#[inline(always)]
unsafe fn broadcast(at: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_set1_epi32(*at.cast::<i32>()) }
}

/// # Safety
/// As for [`broadcast`].
#[inline(always)]
unsafe fn broadcast_float(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_set1_ps(*at.cast::<f32>()) }
}

/// What the sums of a row begin with, which lies at `at` unless there is no offset.
///
/// # Safety
/// As for [`broadcast`].
#[inline(always)]
unsafe fn begin(offset: u32, at: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { if offset == 0 { _mm512_setzero_si512() } else { broadcast(at) } }
}

/// `R` rows of activations with 16 rows of weights.
///
/// # Safety
/// `groups` groups of `Q` in records with their `S` are readable at `records` (a multiple of 64), as many groups of a tile of `R` rows at `acts` and what they have beside at `aside` (multiples of 4), and 16 floats are writable at `out` and every `stride` after it, for `R` rows; AVX-512 F, BW and VNNI.
#[inline(always)]
unsafe fn tile<Q: Quants, S: Scales, const R: usize>(
    groups: usize,
    records: *const u8,
    acts: *const u8,
    aside: *const u8,
    out: *mut f32,
    stride: usize,
    asked: Option<(usize, usize)>,
) {
    let (mut wanted, lines) = asked.map_or((records, 0), |(offset, lines)| (records.wrapping_add(offset), lines));
    // SAFETY: groups and records begin at multiples of their sizes; prefetched addresses may lie anywhere.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); R];
        for first in (0..groups).step_by(S::GROUPS) {
            let record = records.add(first / S::GROUPS * (S::BYTES + S::GROUPS * Q::BYTES));
            let shared = S::shared(record);
            // Most of a long record's scales are used only later: touched here, in their order, they do not break the stream.
            for at in (LINE..S::BYTES).step_by(LINE) {
                _mm_prefetch::<_MM_HINT_T0>(record.add(at).cast());
            }
            for i in 0..S::GROUPS.min(groups - first) {
                let g = first + i;
                let q = record.add(S::BYTES + i * Q::BYTES);
                let a = acts.add(g * group_bytes(R));
                let field = |field: Field, r: usize| a.add(field.at(R) + 4 * r);
                let fine = *field(Field::Fine, 0).cast::<u32>();
                let low = aside.add(g * aside_bytes(R));
                let sum = |sum: Sum, r: usize| low.add(sum.at(R) + 4 * r);
                if lines == 0 {
                    for at in (0..Q::BYTES).step_by(LINE) {
                        _mm_prefetch::<_MM_HINT_T0>(q.wrapping_add(AHEAD + at).cast());
                    }
                }
                // Into the second-level cache: the first is for what is at hand.
                for _ in 0..lines {
                    _mm_prefetch::<_MM_HINT_T1>(wanted.cast());
                    wanted = wanted.wrapping_add(LINE);
                }
                let mut dots = [_mm512_setzero_si512(); R];
                // Products of the first half, where each half has a scale.
                let mut halves = [_mm512_setzero_ps(); R];
                // In the order of pairs that share a line of nibbles, where the whole group has one scale.
                macro_rules! multiply {
                    ($bytes:expr, [$($steps:literal),*]) => {
                        let bytes = $bytes;
                        steps!(J in [$($steps),*] => {
                            let w = Q::step(q, J);
                            for r in 0..R {
                                dots[r] = _mm512_dpbusd_epi32(dots[r], w, broadcast(bytes.add(r * GROUP + 4 * J)));
                            }
                        });
                    };
                }
                // The steps of a part of the group with one scale: high bytes, low bytes if there are some, offset, sum.
                macro_rules! add {
                    ($part:literal, $sum:expr, $steps:tt) => {
                        if fine == 0 {
                            for r in 0..R {
                                dots[r] = begin(S::OFFSET, sum($sum, r));
                            }
                            multiply!(a, $steps);
                        } else if fine == all_fine(R) {
                            dots = [_mm512_setzero_si512(); R];
                            multiply!(a, $steps);
                            for r in 0..R {
                                dots[r] =
                                    _mm512_add_epi32(_mm512_slli_epi32::<8>(dots[r]), begin(S::OFFSET, sum($sum, r)));
                            }
                            multiply!(low, $steps);
                        } else {
                            dots = [_mm512_setzero_si512(); R];
                            multiply!(a, $steps);
                            // In memory, so that a row can be chosen by number; the sums stay in registers.
                            let mut lows = [_mm512_setzero_si512(); R];
                            let mut rest = fine;
                            while rest != 0 {
                                let r = rest.trailing_zeros() as usize;
                                rest &= rest - 1;
                                let mut dot = _mm512_setzero_si512();
                                steps!(J in $steps => {
                                    dot = _mm512_dpbusd_epi32(dot, Q::step(q, J), broadcast(low.add(r * GROUP + 4 * J)));
                                });
                                lows[r] = dot;
                            }
                            for r in 0..R {
                                let whole = 0u16.wrapping_sub((fine >> r & 1) as u16);
                                let high = _mm512_mask_slli_epi32::<8>(dots[r], whole, dots[r]);
                                dots[r] = _mm512_add_epi32(_mm512_add_epi32(high, begin(S::OFFSET, sum($sum, r))), lows[r]);
                            }
                        }
                        let d = S::scale(shared, record, i, $part);
                        for r in 0..R {
                            let (dot, scale) = (_mm512_cvtepi32_ps(dots[r]), broadcast_float(field(Field::Scale, r)));
                            if S::PARTS == 1 {
                                sums[r] = _mm512_fmadd_ps(dot, _mm512_mul_ps(d, scale), sums[r]);
                            } else if $part == 0 {
                                halves[r] = _mm512_mul_ps(dot, d);
                            } else {
                                sums[r] = _mm512_fmadd_ps(_mm512_fmadd_ps(dot, d, halves[r]), scale, sums[r]);
                            }
                        }
                    };
                }
                if S::PARTS == 1 {
                    add!(0, Sum::of(S::OFFSET), [0, 4, 1, 5, 2, 6, 3, 7]);
                } else {
                    add!(0, Sum::FirstHalf, [0, 1, 2, 3]);
                    add!(1, Sum::SecondHalf, [4, 5, 6, 7]);
                }
                if S::MIN {
                    let min = S::min(shared, record, i);
                    for r in 0..R {
                        sums[r] = _mm512_fmadd_ps(min, broadcast_float(field(Field::ScaledSum, r)), sums[r]);
                    }
                }
            }
        }
        for r in 0..R {
            _mm512_storeu_ps(out.add(r * stride), sums[r]);
        }
    }
}

/// One function for each format and height, so that each is compiled on its own.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn tile_of<Q: Quants, S: Scales, const R: usize>(strip: &Strip<'_>, acts: &ActTile<'_>, out: Rows<'_>) {
    let groups = strip.groups;
    let fits = strip.records.len() == groups.div_ceil(S::GROUPS) * S::BYTES + groups * Q::BYTES
        && strip.records.as_ptr().addr().is_multiple_of(LINE)
        && acts.groups.len() == groups * group_bytes(R)
        && acts.aside.len() == groups * aside_bytes(R)
        && acts.groups.as_ptr().addr().is_multiple_of(4)
        && acts.aside.as_ptr().addr().is_multiple_of(4)
        && out.shape() == (R, LANES);
    assert!(fits, "a strip or a tile has the wrong size: this is a bug");
    // SAFETY: the sizes are those needed, and so are the features this function is compiled for and called with.
    unsafe {
        tile::<Q, S, R>(
            groups,
            strip.records.as_ptr(),
            acts.groups.as_ptr(),
            acts.aside.as_ptr(),
            out.at(),
            out.stride(),
            strip.asked(),
        )
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn dot_of<Q: Quants, S: Scales>(strip: &Strip<'_>, acts: &ActTile<'_>, out: Rows<'_>) {
    match acts.height {
        1 => tile_of::<Q, S, 1>(strip, acts, out),
        2 => tile_of::<Q, S, 2>(strip, acts, out),
        3 => tile_of::<Q, S, 3>(strip, acts, out),
        4 => tile_of::<Q, S, 4>(strip, acts, out),
        6 => tile_of::<Q, S, 6>(strip, acts, out),
        8 => tile_of::<Q, S, 8>(strip, acts, out),
        10 => tile_of::<Q, S, 10>(strip, acts, out),
        12 => tile_of::<Q, S, 12>(strip, acts, out),
        height => panic!("a tile of {height} rows: this is a bug"),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn dot(strip: &Strip<'_>, acts: &ActTile<'_>, out: Rows<'_>) {
    match strip.ty {
        QuantType::Q4_0 => dot_of::<FourBits, Symmetric<8>>(strip, acts, out),
        QuantType::Q4_1 => dot_of::<FourBits, Affine>(strip, acts, out),
        QuantType::Q5_0 => dot_of::<FiveBits, Symmetric<16>>(strip, acts, out),
        QuantType::Q5_1 => dot_of::<FiveBits, Affine>(strip, acts, out),
        QuantType::Q8_0 => dot_of::<EightBits, Symmetric<128>>(strip, acts, out),
        QuantType::Q4K => dot_of::<FourBits, AffineK>(strip, acts, out),
        QuantType::Q5K => dot_of::<FiveBits, AffineK>(strip, acts, out),
        QuantType::Q6K => dot_of::<SixBits, HalvesK>(strip, acts, out),
        ty => panic!("{} is not packed: this is a bug", ty.name()),
    }
}

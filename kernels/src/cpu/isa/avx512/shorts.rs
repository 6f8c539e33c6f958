//! Attention over pairs of 16-bit integers: `vpdpwssd`, which multiplies and adds two for each of 16 lanes, at the rate of the products with
//! weights (`vdpbf16ps` has a quarter of it on Intel's processors).
//!
//! Queries and softmax weights become integers, too. All are so small ([`KEY_NORM`], [`VALUE_MAX`]) that the products of a head, and those of
//! a span, add up exactly in 32 bits.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

use super::integers::{ask_for_scales, factors, in_registers, pieces, soften};
use crate::cpu::attention::packed::{AHEAD, PackedAttention, PackedRows};
use crate::cpu::attention::span::{PIECE, ROWS_MAX, SPAN, STRIDE, by_rows, empty_state, seen};
use crate::cpu::kv::{KEY_NORM, VALUE_MAX, norm, scale_of};
use std::arch::x86_64::*;

/// The kernels. They need AVX-512 F, BW, DQ, VL and VNNI.
pub static SHORTS: PackedAttention = PackedAttention { rows: ROWS_MAX, query_words, scratch_words, take_query, attend };

/// Pairs of keys in a span, each with a pair of weights.
const SPAN_PAIRS: usize = SPAN / 2;
/// Largest softmax weight, and what the weights of a span may add up to: times the largest value it is below 2^31, half a unit for
/// each key included.
const WEIGHT_MAX: f32 = 32767.0;
const WEIGHTS_MAX: f32 = 524_288.0;
const _: () = assert!((WEIGHTS_MAX as u64 + SPAN as u64 / 2) * VALUE_MAX as u64 <= i32::MAX as u64);

/// Pairs of dimensions, and what a unit of them stands for.
fn query_words(head_dim: usize) -> usize {
    head_dim / 2 + 1
}

/// The weights of each row, and one row's factors.
fn scratch_words(_: usize) -> usize {
    ROWS_MAX * SPAN_PAIRS + SPAN
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn take_query(q: &[f32], scale: f32, out: &mut [u32], stride: usize) {
    let mut squares = _mm512_setzero_ps();
    for q in q.as_chunks::<PIECE>().0 {
        // SAFETY: 64 bytes.
        let x = _mm512_mul_ps(unsafe { _mm512_loadu_ps(q.as_ptr()) }, _mm512_set1_ps(scale));
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    let (out, step) = out.split_at_mut(q.len() / 2 * stride);
    step[0] = round(q, scale, _mm512_reduce_add_ps(squares).sqrt(), out, stride).to_bits();
}

/// [`crate::cpu::kv::round_key`], to the bit.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub fn round_key(key: &[f32], pairs: &mut [u32], stride: usize) -> f32 {
    round(key, 1.0, norm(key), pairs, stride)
}

/// Rounds a head times `scale`, which has this norm, to pairs with a norm of [`KEY_NORM`], every `stride`th of `pairs`, and returns what a unit
/// stands for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn round(x: &[f32], scale: f32, norm: f32, pairs: &mut [u32], stride: usize) -> f32 {
    let (step, inverse) = scale_of(norm, KEY_NORM);
    let words = x.len() / PIECE * PIECE / 2;
    // Once for all: a check for each word takes as long as the rest.
    assert!(words == 0 || (words - 1) * stride < pairs.len(), "a head's pairs do not fit: this is a bug");
    let mut to = pairs.as_mut_ptr();
    for x in x.as_chunks::<PIECE>().0 {
        // SAFETY: 64 bytes.
        let x = _mm512_mul_ps(unsafe { _mm512_loadu_ps(x.as_ptr()) }, _mm512_set1_ps(scale));
        let n = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse))));
        let mut rounded = [0_u32; PIECE / 2];
        // SAFETY: 32 bytes; every word has its place.
        unsafe {
            _mm256_storeu_si256(rounded.as_mut_ptr().cast(), n);
            for pair in rounded {
                *to = pair;
                to = to.wrapping_add(stride);
            }
        }
    }
    step
}

/// [`crate::cpu::kv::round_value`], to the bit.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub fn round_value(value: &[f32], high: bool, pairs: &mut [u32]) -> f32 {
    let pieces = value.as_chunks::<PIECE>().0;
    let mut largest = _mm512_setzero_si512();
    for x in pieces {
        // SAFETY: 64 bytes.
        let bits = unsafe { _mm512_loadu_si512(x.as_ptr().cast()) };
        // As bits: what is no number is the largest.
        largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(i32::MAX)));
    }
    let largest = f32::from_bits(_mm512_reduce_max_epi32(largest).cast_unsigned());
    let (step, inverse) = scale_of(largest, VALUE_MAX);
    // Every second 16 bits.
    let mask = if high { 0xaaaa_aaaa } else { 0x5555_5555 };
    for (x, pairs) in pieces.iter().zip(pairs.as_chunks_mut::<PIECE>().0) {
        // SAFETY: 64 bytes each.
        unsafe {
            let n = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), _mm512_set1_ps(inverse)));
            let n = if high { _mm512_slli_epi32::<16>(n) } else { n };
            _mm512_mask_storeu_epi16(pairs.as_mut_ptr().cast(), mask, n);
        }
    }
    step
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn attend(b: &mut PackedRows<'_>) {
    b.check(&SHORTS, 2, 1);
    // SAFETY: this function is compiled for, and only called with, the features that it needs.
    unsafe {
        by_rows!(b, R => rows::<R>(b), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }
}

#[inline(always)]
unsafe fn rows<const R: usize>(b: &mut PackedRows<'_>) {
    let Some((from, to)) = seen(b.visible) else { return empty_state(R, b.state) };
    // SAFETY: the caller's promise.
    unsafe {
        let (begin, end) = pieces(b, (from, to));
        in_registers!(index in (begin, end), R, W => score::<R, W>(b, index));
        let units = weights::<R>(b, (from / PIECE * PIECE, to.next_multiple_of(PIECE)));
        in_registers!(column in (0, b.head_dim / PIECE), R, W => weigh::<R, W>(b, column * PIECE, begin, end, &units));
    }
}

/// Scores of all rows for the keys of `W` pieces from number `first` on.
#[inline(always)]
unsafe fn score<const R: usize, const W: usize>(b: &mut PackedRows<'_>, first: usize) {
    let (base, scales) = (b.k.words.as_ptr(), b.k.scales.as_ptr());
    let asked = b.asked();
    let mut keys = [base; W];
    let mut ahead = [[base; W]; AHEAD];
    for w in 0..W {
        let own = &b.pieces[first + w];
        keys[w] = base.wrapping_add(own.k);
        for n in 0..AHEAD {
            let wanted = b.beside(first + w, n).unwrap_or(own);
            ahead[n][w] = base.wrapping_add(wanted.k);
            if n < asked {
                // SAFETY: the caller's promise.
                unsafe { ask_for_scales(b, wanted, 1) }
            }
        }
    }
    let (pairs, steps) = b.q.split_at(b.head_dim / 2 * R);
    let scores = b.scores.as_mut_ptr();
    // SAFETY: the caller's promise: each piece has `PIECE` readable keys.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); W]; R];
        for q in pairs.as_chunks::<R>().0 {
            let mut x = [_mm512_setzero_si512(); W];
            for w in 0..W {
                x[w] = _mm512_loadu_si512(keys[w].cast());
                keys[w] = keys[w].wrapping_add(b.block_size);
            }
            for n in 0..AHEAD {
                if n < asked {
                    for w in 0..W {
                        _mm_prefetch::<_MM_HINT_T1>(ahead[n][w].cast());
                        ahead[n][w] = ahead[n][w].wrapping_add(b.block_size);
                    }
                }
            }
            for r in 0..R {
                let q = _mm512_set1_epi32(q[r].cast_signed());
                for w in 0..W {
                    sums[r][w] = _mm512_dpwssd_epi32(sums[r][w], x[w], q);
                }
            }
        }
        for w in 0..W {
            let piece = &b.pieces[first + w];
            let scale = _mm512_loadu_ps(scales.add(piece.scales));
            for r in 0..R {
                let scale = _mm512_mul_ps(scale, _mm512_set1_ps(f32::from_bits(steps[r])));
                let score = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][w]), scale);
                _mm512_storeu_ps(scores.add(r * STRIDE + piece.first), score);
            }
        }
    }
}

/// Makes integers of the softmax weights of all rows for the keys `from..to`, whole pieces, times the scales of their values; returns what
/// one times a value of 1 stands for, of each row.
///
/// # Safety
/// As for [`soften`].
#[inline(always)]
unsafe fn weights<const R: usize>(b: &mut PackedRows<'_>, (from, to): (usize, usize)) -> [f32; R] {
    let mut units = [0.0; R];
    // SAFETY: the caller's promise; from..to is inside a span, and the last words of the scratch are for factors.
    unsafe {
        soften::<R>(b, from, to);
        let (weights, shares) = b.scratch.split_at_mut(ROWS_MAX * SPAN_PAIRS);
        let (weights, shares) = (weights.as_mut_ptr(), shares.as_mut_ptr().cast::<f32>());
        let scores = b.scores.as_ptr();
        let mut largest = 0.0;
        for r in 0..R {
            if r == 0 || b.visible[r] != b.visible[r - 1] {
                largest = factors(b, 0, 1.0, b.visible[r], (from, to), shares);
            }
            // As many bits as the sum leaves room for.
            let most = (WEIGHTS_MAX / b.state[R + r]).min(WEIGHT_MAX);
            units[r] = largest / most;
            let most = _mm512_set1_ps(most);
            // Two pieces at a time; what they have beside from..to is not used.
            let round = |at: usize| {
                let share = _mm512_mul_ps(_mm512_loadu_ps(shares.add(at)), most);
                _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(scores.add(r * STRIDE + at)), share))
            };
            for at in (from / (2 * PIECE) * (2 * PIECE)..to).step_by(2 * PIECE) {
                // Packed by 128 bits.
                let n = _mm512_packs_epi32(round(at), round(at + PIECE));
                let n = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), n);
                _mm512_storeu_si512(weights.add(r * SPAN_PAIRS + at / 2).cast(), n);
            }
        }
    }
    units
}

/// Adds up the weighted values of all rows over the pieces `begin..end`, for the dimensions of `W` registers from `column` on.
#[inline(always)]
unsafe fn weigh<const R: usize, const W: usize>(
    b: &mut PackedRows<'_>,
    column: usize,
    begin: usize,
    end: usize,
    units: &[f32; R],
) {
    let width = b.head_dim;
    let weights = b.scratch.as_ptr();
    // SAFETY: the pieces' keys have weights; `column` and the W registers behind it are inside a row.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); W]; R];
        for index in begin..end {
            let piece = &b.pieces[index];
            let mut ahead = [0; AHEAD];
            for n in 0..AHEAD {
                ahead[n] = b.beside(index, n).map_or(0, |wanted| wanted.v.wrapping_sub(piece.v));
            }
            let mut values = b.v.words.as_ptr().wrapping_add(piece.v + column);
            for pair in piece.first / 2..(piece.first + PIECE) / 2 {
                let mut x = [_mm512_setzero_si512(); W];
                for w in 0..W {
                    x[w] = _mm512_loadu_si512(values.add(w * PIECE).cast());
                }
                for n in 0..AHEAD {
                    if ahead[n] != 0 {
                        for w in 0..W {
                            _mm_prefetch::<_MM_HINT_T1>(values.wrapping_add(ahead[n].wrapping_add(w * PIECE)).cast());
                        }
                    }
                }
                values = values.wrapping_add(width);
                for r in 0..R {
                    let weight = _mm512_set1_epi32((*weights.add(r * SPAN_PAIRS + pair)).cast_signed());
                    for w in 0..W {
                        sums[r][w] = _mm512_dpwssd_epi32(sums[r][w], x[w], weight);
                    }
                }
            }
        }
        for r in 0..R {
            let out = b.state[2 * R + r * width + column..].as_mut_ptr();
            let unit = _mm512_set1_ps(units[r]);
            for w in 0..W {
                _mm512_storeu_ps(out.add(w * PIECE), _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][w]), unit));
            }
        }
    }
}

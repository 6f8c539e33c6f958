//! Attention over quads of bytes: `vpdpbusd`, which multiplies and adds four for each of 16 lanes.
//!
//! Keys and values stay the integers that the cache holds. Queries and softmax weights become integers of 16 bits, a high and a low byte
//! that are multiplied one after the other: what they lose is far below what the cache has lost. So the sums of a group of dimensions, and of
//! the weighted values of a span, are exact.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

use super::integers::{self, ask_for_scales, factors, in_registers, pieces};
use crate::cpu::attention::packed::{AHEAD, PackedAttention, PackedRows};
use crate::cpu::attention::span::{PIECE, ROWS, SPAN, STRIDE, by_rows, empty_state, seen};
use crate::cpu::kv::{KV_GROUP, groups, scale_of};
use crate::cpu::packed::FINE_MAX;
use std::arch::x86_64::*;

/// The kernels. They need AVX-512 F, BW, DQ, VL and VNNI.
pub static QUADS: PackedAttention = PackedAttention { rows: ROWS, query_words, scratch_words, take_query, attend };

/// Quads of a group of dimensions, and of a span of keys.
const GROUP_QUADS: usize = KV_GROUP / 4;
const SPAN_QUADS: usize = SPAN / 4;
/// Largest softmax weight in 16 bits; times the largest value and the keys of a span it is below 2^31.
const WEIGHT_MAX: f32 = 65535.0;

/// The high bytes, the low bytes, and of each group what the keys' sign adds to its sum, and its scale.
fn query_words(head_dim: usize) -> usize {
    head_dim / 2 + 2 * groups(head_dim)
}

/// Each row's weights: of each group the high bytes, then the low ones. Behind them one row's factors. (First, sums of a group for a piece of
/// keys in 4 registers a row, which are as large as one group's weights.)
fn scratch_words(head_dim: usize) -> usize {
    (ROWS * 2 * SPAN_QUADS + SPAN) * groups(head_dim)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn take_query(q: &[f32], scale: f32, out: &mut [u32], stride: usize) {
    let (quads, groups) = (q.len() / 4, groups(q.len()));
    for (g, q) in q.chunks(KV_GROUP).enumerate() {
        // SAFETY: masked loads of what is left of the slice.
        let x = [0, 16].map(|first| unsafe {
            let left = q.len().saturating_sub(first).min(16);
            let x = _mm512_maskz_loadu_ps(((1_u32 << left) - 1) as u16, q.as_ptr().wrapping_add(first));
            _mm512_mul_ps(x, _mm512_set1_ps(scale))
        });
        let magnitude = |x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
        // As bits: what is no number is the largest.
        let largest = _mm512_reduce_max_epi32(_mm512_max_epi32(magnitude(x[0]), magnitude(x[1])));
        let (step, inverse) = scale_of(f32::from_bits(largest.cast_unsigned()), FINE_MAX);
        let n = x.map(|x| _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse))));
        let high = n.map(|n| _mm512_srai_epi32::<8>(_mm512_add_epi32(n, _mm512_set1_epi32(128))));
        for (bytes, first) in [(high, 0), (n, quads)] {
            let mut words = [0_u32; GROUP_QUADS];
            let bytes = _mm256_set_m128i(_mm512_cvtepi32_epi8(bytes[1]), _mm512_cvtepi32_epi8(bytes[0]));
            // SAFETY: 32 bytes.
            unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), bytes) };
            let places = out[(first + g * GROUP_QUADS) * stride..].iter_mut().step_by(stride);
            places.zip(&words[..q.len() / 4]).for_each(|(to, word)| *to = *word);
        }
        // Keys are multiplied as bytes without a sign, 128 too large.
        let sum = _mm512_reduce_add_epi32(_mm512_add_epi32(n[0], n[1]));
        out[(2 * quads + g) * stride] = sum.wrapping_mul(-128).cast_unsigned();
        out[(2 * quads + groups + g) * stride] = step.to_bits();
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn attend(b: &mut PackedRows<'_>) {
    b.check(&QUADS, 4, groups(b.head_dim));
    // SAFETY: this function is compiled for, and only called with, the features that it needs.
    unsafe {
        by_rows!(b, R => rows::<R>(b));
    }
}

#[inline(always)]
unsafe fn rows<const R: usize>(b: &mut PackedRows<'_>) {
    let Some((from, to)) = seen(b.visible) else { return empty_state(R, b.state) };
    // SAFETY: the caller's promise.
    unsafe {
        let (begin, end) = pieces(b, (from, to));
        in_registers!(index in (begin, end), R, W => score::<R, W>(b, index));
        soften::<R>(b, from / PIECE * PIECE, to.next_multiple_of(PIECE));
        for g in 0..groups(b.head_dim) {
            if b.head_dim - g * KV_GROUP >= KV_GROUP {
                weigh::<R, 2>(b, g, begin, end);
            } else {
                weigh::<R, 1>(b, g, begin, end);
            }
        }
    }
}

/// Scores of all rows for the keys of `W` pieces from number `first` on.
#[inline(always)]
unsafe fn score<const R: usize, const W: usize>(b: &mut PackedRows<'_>, first: usize) {
    let (quads, groups) = (b.head_dim / 4, groups(b.head_dim));
    let (base, scales) = (b.k.words.as_ptr(), b.k.scales.as_ptr());
    let asked = b.asked();
    let mut ahead = [[base; W]; AHEAD];
    for w in 0..W {
        let own = &b.pieces[first + w];
        for n in 0..AHEAD {
            let wanted = b.beside(first + w, n).unwrap_or(own);
            ahead[n][w] = base.wrapping_add(wanted.k);
            if n < asked {
                // SAFETY: the caller's promise.
                unsafe { ask_for_scales(b, wanted, groups) }
            }
        }
    }
    let (bytes, rest) = b.q.split_at(2 * quads * R);
    let (bytes, rest) = (bytes.as_chunks::<R>().0, rest.as_chunks::<R>().0);
    let scores = b.scores.as_mut_ptr();
    // SAFETY: the caller's promise: each piece has `PIECE` readable keys.
    unsafe {
        for g in 0..groups {
            let dims = g * GROUP_QUADS..quads.min((g + 1) * GROUP_QUADS);
            let mut sums = [[_mm512_setzero_si512(); W]; R];
            for (low, bytes) in [(false, &bytes[..quads]), (true, &bytes[quads..])] {
                for i in dims.clone() {
                    let mut x = [_mm512_setzero_si512(); W];
                    for w in 0..W {
                        let key = base.wrapping_add(b.pieces[first + w].k + i * b.block_size);
                        // As bytes without a sign.
                        x[w] = _mm512_xor_si512(_mm512_loadu_si512(key.cast()), _mm512_set1_epi8(i8::MIN));
                    }
                    for n in 0..AHEAD {
                        if !low && n < asked {
                            for w in 0..W {
                                _mm_prefetch::<_MM_HINT_T1>(ahead[n][w].cast());
                                ahead[n][w] = ahead[n][w].wrapping_add(b.block_size);
                            }
                        }
                    }
                    for r in 0..R {
                        let q = _mm512_set1_epi32(bytes[i][r].cast_signed());
                        for w in 0..W {
                            sums[r][w] = _mm512_dpbusd_epi32(sums[r][w], x[w], q);
                        }
                    }
                }
                if !low {
                    for r in 0..R {
                        for w in 0..W {
                            sums[r][w] = _mm512_slli_epi32::<8>(sums[r][w]);
                        }
                    }
                }
            }
            // Through memory: the registers are then named by numbers that the compiler knows.
            let dots = b.scratch.as_mut_ptr();
            for r in 0..R {
                for w in 0..W {
                    _mm512_storeu_si512(dots.add((r * W + w) * PIECE).cast(), sums[r][w]);
                }
            }
            let (signs, steps) = (&rest[g], &rest[groups + g]);
            for r in 0..R {
                let (sign, step) =
                    (_mm512_set1_epi32(signs[r].cast_signed()), _mm512_set1_ps(f32::from_bits(steps[r])));
                for w in 0..W {
                    let piece = &b.pieces[first + w];
                    let dot = _mm512_add_epi32(_mm512_loadu_si512(dots.add((r * W + w) * PIECE).cast()), sign);
                    let step = _mm512_mul_ps(_mm512_loadu_ps(scales.add(piece.scales + g * b.block_size)), step);
                    let at = scores.add(r * STRIDE + piece.first);
                    let so_far = if g == 0 { _mm512_setzero_ps() } else { _mm512_loadu_ps(at) };
                    _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), step, so_far));
                }
            }
        }
    }
}

/// Makes weights of the scores of all rows for the keys `from..to`, whole pieces, times the scale of the key's values, in 16 bits of the
/// largest such scale that the row sees. The row's values begin as what their sums are to be multiplied by.
///
/// # Safety
/// As for [`integers::soften`].
#[inline(always)]
unsafe fn soften<const R: usize>(b: &mut PackedRows<'_>, from: usize, to: usize) {
    // SAFETY: the caller's promise; the last words of the scratch are for factors.
    unsafe {
        integers::soften::<R>(b, from, to);
        for g in 0..groups(b.head_dim) {
            let mut unit = 0.0;
            for r in 0..R {
                if r == 0 || b.visible[r] != b.visible[r - 1] {
                    let to_factors = b.scratch[ROWS * 2 * SPAN_QUADS * groups(b.head_dim)..].as_mut_ptr().cast();
                    let range = (from, to);
                    unit = factors(b, g * b.block_size, WEIGHT_MAX, b.visible[r], range, to_factors) / WEIGHT_MAX;
                }
                round(b, r, g, from, to);
                b.state[2 * R + r * b.head_dim + g * KV_GROUP] = unit;
            }
        }
    }
}

/// Rounds the weights of a row for a group, times their factors, to a high and a low byte.
#[inline(always)]
unsafe fn round(b: &mut PackedRows<'_>, r: usize, g: usize, from: usize, to: usize) {
    let groups = groups(b.head_dim);
    let (weights, factors) = b.scratch.split_at_mut(ROWS * 2 * SPAN_QUADS * groups);
    let factors = factors.as_ptr().cast::<f32>();
    let high = weights[(r * groups + g) * 2 * SPAN_QUADS..][..2 * SPAN_QUADS].as_mut_ptr();
    let low = high.wrapping_add(SPAN_QUADS);
    let scores = b.scores[r * STRIDE..][..SPAN].as_ptr();
    // SAFETY: from..to is inside a span.
    unsafe {
        for at in (from..to).step_by(PIECE) {
            let weight = _mm512_mul_ps(_mm512_loadu_ps(scores.add(at)), _mm512_loadu_ps(factors.add(at)));
            let n = _mm512_cvtps_epi32(weight);
            _mm_storeu_si128(high.add(at / 4).cast(), _mm512_cvtepi32_epi8(_mm512_srli_epi32::<8>(n)));
            _mm_storeu_si128(low.add(at / 4).cast(), _mm512_cvtepi32_epi8(n));
        }
    }
}

/// Adds up the weighted values of a group of up to 32 dimensions, `W` registers, for all rows, over the pieces `begin..end`.
#[inline(always)]
unsafe fn weigh<const R: usize, const W: usize>(b: &mut PackedRows<'_>, g: usize, begin: usize, end: usize) {
    let width = b.head_dim;
    let row_words = groups(width) * 2 * SPAN_QUADS;
    let weights = b.scratch[g * 2 * SPAN_QUADS..].as_ptr();
    // SAFETY: the pieces' keys have weights, and the W registers of a group are inside a row.
    unsafe {
        let mut high = [[_mm512_setzero_si512(); W]; R];
        let mut low = high;
        for index in begin..end {
            let piece = &b.pieces[index];
            let mut ahead = [0; AHEAD];
            for n in 0..AHEAD {
                ahead[n] = b.beside(index, n).map_or(0, |wanted| wanted.v.wrapping_sub(piece.v));
            }
            let mut values = b.v.words.as_ptr().wrapping_add(piece.v + g * KV_GROUP);
            for quad in piece.first / 4..(piece.first + PIECE) / 4 {
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
                    let at = weights.add(r * row_words + quad);
                    let high_bytes = _mm512_set1_epi32((*at).cast_signed());
                    let low_bytes = _mm512_set1_epi32((*at.add(SPAN_QUADS)).cast_signed());
                    for w in 0..W {
                        high[r][w] = _mm512_dpbusd_epi32(high[r][w], high_bytes, x[w]);
                        low[r][w] = _mm512_dpbusd_epi32(low[r][w], low_bytes, x[w]);
                    }
                }
            }
        }
        for r in 0..R {
            let out = b.state[2 * R + r * width + g * KV_GROUP..].as_mut_ptr();
            let unit = _mm512_set1_ps(*out);
            for w in 0..W {
                let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[r][w]), low[r][w]);
                _mm512_storeu_ps(out.add(w * PIECE), _mm512_mul_ps(_mm512_cvtepi32_ps(sum), unit));
            }
        }
    }
}

//! Attention over pairs of bfloat16: `vdpbf16ps`, which multiplies and adds two for each of 16 lanes.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

use super::attend::Avx512;
use crate::cpu::attention::packed::{AHEAD, PackedAttention, PackedRows};
use crate::cpu::attention::span::{PIECE, ROWS, SPAN, STRIDE, Vector, blind, by_rows, empty_state, seen};
use std::arch::x86_64::*;
use std::mem::transmute;

/// The kernels. They need AVX-512 F, BW, DQ, VL and BF16.
pub static PAIRS: PackedAttention =
    PackedAttention { query_words: |head_dim| head_dim / 2, scratch_words: |_| ROWS * SPAN_PAIRS, take_query, attend };

/// Pairs of keys in a span, each with a pair of weights.
const SPAN_PAIRS: usize = SPAN / 2;

/// Registers of sums of a row: with 6 rows, 4 of keys or values and one that is broadcast, 29 of the 32.
const WIDE: usize = 4;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn take_query(q: &[f32], scale: f32, out: &mut [u32], stride: usize) {
    let scale = _mm512_set1_ps(scale);
    for (at, q) in q.chunks(32).enumerate() {
        // SAFETY: masked loads of what is left of the slice.
        let half = |first: usize| unsafe {
            let left = q.len().saturating_sub(first).min(16);
            _mm512_mul_ps(_mm512_maskz_loadu_ps(((1_u32 << left) - 1) as u16, q.as_ptr().wrapping_add(first)), scale)
        };
        let mut pairs = [0_u32; 16];
        // SAFETY: 64 bytes; all bits are integers.
        unsafe {
            _mm512_storeu_si512(
                pairs.as_mut_ptr().cast(),
                transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(half(16), half(0))),
            )
        };
        let places = out[16 * at * stride..].iter_mut().step_by(stride);
        places.zip(&pairs[..q.len().div_ceil(2)]).for_each(|(to, pair)| *to = *pair);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn attend(b: &mut PackedRows<'_>) {
    b.check(&PAIRS, 2);
    // SAFETY: this function is compiled for, and only called with, the features that it needs.
    unsafe {
        by_rows!(b, R => rows::<R>(b));
    }
}

#[inline(always)]
unsafe fn rows<const R: usize>(b: &mut PackedRows<'_>) {
    empty_state(R, b.state);
    let Some((from, to)) = seen(b.visible) else { return };
    // SAFETY: the caller's promise.
    unsafe {
        let first = b.pieces[0].first / PIECE;
        let (mut index, end) = (from / PIECE - first, to.div_ceil(PIECE) - first);
        while index + WIDE <= end {
            score::<R, WIDE>(b, index);
            index += WIDE;
        }
        while index < end {
            score::<R, 1>(b, index);
            index += 1;
        }
        soften::<R>(b, from / PIECE * PIECE, to.next_multiple_of(PIECE));
        // Pairs that all rows see are weighed for all rows at once, those before and behind row by row.
        let low = b.visible.iter().map(|v| v.0).fold(0, usize::max).div_ceil(2);
        let high = b.visible.iter().map(|v| v.1).fold(SPAN, usize::min) / 2;
        let (low, high) = if low < high { (low, high) } else { (SPAN_PAIRS, SPAN_PAIRS) };
        for r in 0..R {
            weigh_columns::<1, true>(b, r, 0, low);
        }
        weigh_columns::<R, false>(b, 0, low, high);
        for r in 0..R {
            weigh_columns::<1, true>(b, r, high, SPAN_PAIRS);
        }
    }
}

/// Scores of all rows for the keys of `W` pieces from number `first` on.
#[inline(always)]
unsafe fn score<const R: usize, const W: usize>(b: &mut PackedRows<'_>, first: usize) {
    let base = b.k.words.as_ptr();
    let mut keys = [base; W];
    let mut ahead = [[base; W]; AHEAD];
    for w in 0..W {
        let own = &b.pieces[first + w];
        keys[w] = base.wrapping_add(own.k);
        for n in 0..AHEAD {
            ahead[n][w] = base.wrapping_add(b.beside(first + w, n).unwrap_or(own).k);
        }
    }
    let asked = b.asked();
    // SAFETY: the caller's promise: each piece has `PIECE` readable keys.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); W]; R];
        for q in b.q.chunks_exact(R) {
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
                    sums[r][w] = multiply_add(x[w], q, sums[r][w]);
                }
            }
        }
        let scores = b.scores.as_mut_ptr();
        for r in 0..R {
            for w in 0..W {
                _mm512_storeu_ps(scores.add(r * STRIDE + b.pieces[first + w].first), sums[r][w]);
            }
        }
    }
}

/// `sum + a . b` in each lane, of two bfloat16s.
///
/// # Safety
/// AVX-512 BF16.
#[inline(always)]
unsafe fn multiply_add(a: __m512i, b: __m512i, sum: __m512) -> __m512 {
    // SAFETY: the caller's promise; all bits are bfloat16s.
    unsafe { _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)) }
}

/// Makes weights of the scores of all rows for the keys `from..to`, whole pieces: e^(score - the row's largest), rounded, and the sums of what
/// is left of them. Keys that a row does not see have the weight 0. All rows side by side: each is a chain of operations that wait for each
/// other.
///
/// # Safety
/// As for [`attend`]; `from..to` holds all keys that some row sees.
#[inline(always)]
unsafe fn soften<const R: usize>(b: &mut PackedRows<'_>, from: usize, to: usize) {
    for (scores, &visible) in b.scores.chunks_exact_mut(STRIDE).zip(b.visible) {
        blind(scores, visible, from, to, b.softcap);
    }
    let scores = b.scores.as_ptr();
    let weights: *mut u32 = b.scratch.as_mut_ptr();
    // SAFETY: from..to is inside the rows of scores and of weights.
    unsafe {
        let mut max = [_mm512_set1_ps(f32::MIN); R];
        for at in (from..to).step_by(PIECE) {
            for r in 0..R {
                max[r] = _mm512_max_ps(max[r], _mm512_loadu_ps(scores.add(r * STRIDE + at)));
            }
        }
        // A NaN score may or may not end up here: either way its weight is NaN, and so is the row's result.
        for r in 0..R {
            b.state[r] = _mm512_reduce_max_ps(max[r]);
            max[r] = _mm512_set1_ps(b.state[r]);
        }
        let mut sums = [_mm512_setzero_ps(); R];
        for at in (from..to).step_by(PIECE) {
            for r in 0..R {
                let weight = Avx512::exp(_mm512_sub_ps(_mm512_loadu_ps(scores.add(r * STRIDE + at)), max[r]));
                let rounded = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(weight));
                _mm256_storeu_si256(weights.add(r * SPAN_PAIRS + at / 2).cast(), rounded);
                let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(rounded));
                sums[r] = _mm512_add_ps(sums[r], _mm512_castsi512_ps(wide));
            }
        }
        for r in 0..R {
            b.state[R + r] = _mm512_reduce_add_ps(sums[r]);
        }
    }
}

/// Adds the weighted values of the pairs `from..to` to `N` rows, first to last. `PARTLY`: of the one row's own keys only.
#[inline(always)]
unsafe fn weigh_columns<const N: usize, const PARTLY: bool>(
    b: &mut PackedRows<'_>,
    row: usize,
    from: usize,
    to: usize,
) {
    let (low, high) = b.visible[row];
    let (from, to) = if PARTLY { (from.max(low / 2), to.min(high.div_ceil(2))) } else { (from, to) };
    if from >= to || PARTLY && low >= high {
        return;
    }
    let width = b.head_dim;
    let mut column = 0;
    // SAFETY: columns are inside a row of values.
    unsafe {
        while column + WIDE * PIECE <= width {
            weigh::<N, WIDE, PARTLY>(b, row, column, from, to);
            column += WIDE * PIECE;
        }
        while column < width {
            weigh::<N, 1, PARTLY>(b, row, column, from, to);
            column += PIECE;
        }
    }
}

#[inline(always)]
unsafe fn weigh<const N: usize, const W: usize, const PARTLY: bool>(
    b: &mut PackedRows<'_>,
    row: usize,
    column: usize,
    from: usize,
    to: usize,
) {
    let rows = b.visible.len();
    let width = b.head_dim;
    let (low, high) = b.visible[row];
    let weights = &b.scratch[row * SPAN_PAIRS..];
    let out = b.state[2 * rows + row * width + column..].as_mut_ptr();
    // SAFETY: the pairs from..to have weights and are in pieces, `column` and the W registers behind it are inside a row.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); W]; N];
        for r in 0..N {
            for w in 0..W {
                sums[r][w] = _mm512_loadu_ps(out.add(r * width + w * PIECE));
            }
        }
        for (index, piece) in b.pieces.iter().enumerate() {
            let mut ahead = [0; AHEAD];
            for n in 0..AHEAD {
                ahead[n] = b.beside(index, n).map_or(0, |wanted| wanted.v.wrapping_sub(piece.v));
            }
            let start = piece.first / 2;
            let (first, end) = (from.max(start), to.min(start + PIECE / 2));
            let mut values = b.v.words.as_ptr().wrapping_add(piece.v + first.saturating_sub(start) * width + column);
            for pair in first..end {
                let mut x = [_mm512_setzero_si512(); W];
                for w in 0..W {
                    x[w] = _mm512_loadu_si512(values.add(w * PIECE).cast());
                    if PARTLY {
                        // A key that the row does not see is not even multiplied by 0, which would let an infinite value through.
                        let sees = |key: usize| low <= key && key < high;
                        let mask = if sees(2 * pair) { 0x5555_5555 } else { 0 }
                            | if sees(2 * pair + 1) { 0xaaaa_aaaa } else { 0 };
                        x[w] = _mm512_maskz_mov_epi16(mask, x[w]);
                    }
                }
                for n in 0..AHEAD {
                    if ahead[n] != 0 {
                        for w in 0..W {
                            _mm_prefetch::<_MM_HINT_T1>(values.wrapping_add(ahead[n].wrapping_add(w * PIECE)).cast());
                        }
                    }
                }
                values = values.wrapping_add(width);
                for r in 0..N {
                    let p = _mm512_set1_epi32(weights[r * SPAN_PAIRS + pair].cast_signed());
                    for w in 0..W {
                        sums[r][w] = multiply_add(x[w], p, sums[r][w]);
                    }
                }
            }
        }
        for r in 0..N {
            for w in 0..W {
                _mm512_storeu_ps(out.add(r * width + w * PIECE), sums[r][w]);
            }
        }
    }
}

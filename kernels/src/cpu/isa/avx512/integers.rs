//! What attention over bytes and over pairs of integers has in common: softmax weights that become integers, too.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

use super::attend::Avx512;
use crate::cpu::attention::packed::PackedRows;
use crate::cpu::attention::span::{PIECE, Piece, STRIDE, Vector, Visible, blind};
use std::arch::x86_64::*;

/// Calls what is written for a number of registers that the compiler knows, from the first number to the last: 4 of them at a time, then 2,
/// then 1. With 6 rows of sums, 4 of keys or values and one that is broadcast, 29 of the 32 are taken.
macro_rules! in_registers {
    ($at:ident in $range:expr, $width:ident => $call:expr) => {{
        let (mut $at, end) = $range;
        in_registers!(@ 4, $at, end, $width, $call);
        in_registers!(@ 2, $at, end, $width, $call);
        in_registers!(@ 1, $at, end, $width, $call);
    }};
    (@ $n:literal, $at:ident, $end:ident, $width:ident, $call:expr) => {
        while $end - $at >= $n {
            const $width: usize = $n;
            $call;
            $at += $n;
        }
    };
}
pub(super) use in_registers;

/// The numbers of the pieces that hold the keys `from..to`: the first, and the one behind the last.
#[inline(always)]
pub fn pieces(b: &PackedRows<'_>, (from, to): Visible) -> (usize, usize) {
    let first = b.pieces[0].first / PIECE;
    (from / PIECE - first, to.div_ceil(PIECE) - first)
}

/// Asks for the `count` scales of a token's keys and values, for all tokens of a piece.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
pub unsafe fn ask_for_scales(b: &PackedRows<'_>, piece: &Piece, count: usize) {
    for scales in [b.k.scales, b.v.scales] {
        for g in 0..count {
            // SAFETY: any address may be asked for.
            unsafe {
                _mm_prefetch::<_MM_HINT_T1>(scales.as_ptr().wrapping_add(piece.scales + g * b.block_size).cast());
            }
        }
    }
}

/// Makes weights of the scores of all rows for the keys `from..to`, whole pieces, in their place: e^(score - the row's largest), and 0 for keys
/// that a row does not see. Leaves the largest scores and the sums of the weights in the state. All rows side by side: each is a chain of
/// operations that wait for each other.
///
/// # Safety
/// AVX-512 F, BW, DQ and VL; `b` is checked and has `R` rows; `from..to` holds all keys that some row sees.
#[inline(always)]
pub unsafe fn soften<const R: usize>(b: &mut PackedRows<'_>, from: usize, to: usize) {
    for (scores, &visible) in b.scores.chunks_exact_mut(STRIDE).zip(b.visible) {
        blind(scores, visible, from, to, b.softcap);
    }
    let scores = b.scores.as_mut_ptr();
    // SAFETY: from..to is inside the rows of scores.
    unsafe {
        let mut max = [_mm512_set1_ps(f32::MIN); R];
        for at in (from..to).step_by(PIECE) {
            for r in 0..R {
                max[r] = _mm512_max_ps(max[r], _mm512_loadu_ps(scores.add(r * STRIDE + at)));
            }
        }
        // A NaN score may or may not end up here: either way its weight is NaN, and so are the row's sum and result.
        for r in 0..R {
            b.state[r] = _mm512_reduce_max_ps(max[r]);
            max[r] = _mm512_set1_ps(b.state[r]);
        }
        let mut sums = [_mm512_setzero_ps(); R];
        for at in (from..to).step_by(PIECE) {
            for r in 0..R {
                let at = scores.add(r * STRIDE + at);
                let weight = Avx512::exp(_mm512_sub_ps(_mm512_loadu_ps(at), max[r]));
                sums[r] = _mm512_add_ps(sums[r], weight);
                _mm512_storeu_ps(at, weight);
            }
        }
        for r in 0..R {
            b.state[R + r] = _mm512_reduce_add_ps(sums[r]);
        }
    }
}

/// Writes to `to_factors`, for the keys `from..to`, what their weights are multiplied by to become integers: the scales of their values, which
/// lie at `offset` of a piece's, over the largest that is visible, times `most`; 0 for keys that are not. Returns the largest scale.
///
/// # Safety
/// As for [`soften`]; the scales are inside the cache, `to_factors` has as many floats as a span has keys.
#[inline(always)]
pub unsafe fn factors(
    b: &PackedRows<'_>,
    offset: usize,
    most: f32,
    (low, high): Visible,
    (from, to): (usize, usize),
    to_factors: *mut f32,
) -> f32 {
    let first = b.pieces[0].first / PIECE;
    // SAFETY: the caller's promise.
    unsafe {
        let scales = |at: usize| {
            let piece = &b.pieces[at / PIECE - first];
            let (skipped, end) = (low.saturating_sub(at).min(16), high.saturating_sub(at).min(16));
            let mask = ((1_u32 << end) - 1) & !((1_u32 << skipped) - 1);
            _mm512_maskz_loadu_ps(mask as u16, b.v.scales.as_ptr().wrapping_add(piece.scales + offset))
        };
        // As bits: none is negative, and what is no number is the largest.
        let mut largest = _mm512_setzero_si512();
        for at in (from..to).step_by(PIECE) {
            largest = _mm512_max_epi32(largest, _mm512_castps_si512(scales(at)));
        }
        let largest = f32::from_bits(_mm512_reduce_max_epi32(largest).cast_unsigned());
        let inverse = if largest == 0.0 { 0.0 } else { most / largest };
        for at in (from..to).step_by(PIECE) {
            _mm512_storeu_ps(to_factors.add(at), _mm512_mul_ps(scales(at), _mm512_set1_ps(inverse)));
        }
        largest
    }
}

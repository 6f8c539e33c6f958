//! What attention over bytes and over pairs of integers has in common: softmax weights that become integers, too.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

use crate::cpu::attention::packed::PackedRows;
use crate::cpu::attention::span::{PIECE, Piece, SMALLEST, STRIDE, Visible, blind};
use crate::cpu::isa::prefetch_line;
use crate::cpu::math::ROUND;
use std::arch::x86_64::*;

/// Calls what is written for a number of registers that the compiler knows, from the first number to the last: 4 of them at a time, then 2,
/// then 1. With 6 rows of sums, 4 of keys or values and one that is broadcast, 29 of the 32 are taken; with more rows, 2 at a time.
macro_rules! in_registers {
    ($at:ident in $range:expr, $rows:ident, $width:ident => $call:expr) => {{
        let (mut $at, end) = $range;
        if $rows <= 6 {
            in_registers!(@ 4, $at, end, $width, $call);
        }
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
/// that a row does not see. Leaves the largest scores and the sums of the weights in the state.
///
/// # Safety
/// AVX-512 F, BW, DQ and VL; `b` is checked and has `R` rows; `from..to` holds all keys that some row sees.
#[inline(always)]
pub unsafe fn soften<const R: usize>(b: &mut PackedRows<'_>, from: usize, to: usize) {
    for (scores, &visible) in b.scores.chunks_exact_mut(STRIDE).zip(b.visible) {
        blind(scores, visible, from, to, b.softcap);
    }
    // Where they are can be looked up beside the softmax. Asked for with the keys they would hold up those.
    for piece in b.ahead {
        prefetch_line(b.v.words.as_ptr().wrapping_add(piece.v));
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
        for r in 0..R {
            let mut sum = _mm512_setzero_ps();
            for at in (from..to).step_by(PIECE) {
                let at = scores.add(r * STRIDE + at);
                let weight = exp(_mm512_sub_ps(_mm512_loadu_ps(at), max[r]));
                sum = _mm512_add_ps(sum, weight);
                _mm512_storeu_ps(at, weight);
            }
            b.state[R + r] = _mm512_reduce_add_ps(sum);
        }
    }
}

/// e^x for x <= 0 to 5e-7 relative, for weights that become integers of 16 bits: exactly 1 at 0 and exactly 0 below -87 and at minus infinity;
/// NaN stays. x = n ln 2 + r with |r| <= ln 2 / 2; the polynomial's (e^r - 1) / r is interpolated at the Chebyshev nodes.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
unsafe fn exp(x: __m512) -> __m512 {
    const TERMS: [f32; 6] = [0.008_363_173, 0.041_875_646, 0.166_665_78, 0.499_993_7, 1.0, 1.0];
    // SAFETY: the caller's promise.
    unsafe {
        // Rounded by a sum whose last bit is 1: half of what an instruction for it costs. What is too small for that is not kept.
        let rounded = _mm512_fmadd_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E), _mm512_set1_ps(ROUND));
        let n = _mm512_sub_ps(rounded, _mm512_set1_ps(ROUND));
        let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(std::f32::consts::LN_2), x);
        let mut p = _mm512_set1_ps(TERMS[0]);
        for c in &TERMS[1..] {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
        }
        // "Not less than" also holds for NaN.
        let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(SMALLEST));
        _mm512_maskz_scalef_ps(kept, p, n)
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
            let scales = scales(at);
            _mm512_storeu_ps(to_factors.add(at), scales);
            largest = _mm512_max_epi32(largest, _mm512_castps_si512(scales));
        }
        let largest = f32::from_bits(_mm512_reduce_max_epi32(largest).cast_unsigned());
        let inverse = if largest == 0.0 { 0.0 } else { most / largest };
        for at in (from..to).step_by(PIECE) {
            let to = to_factors.add(at);
            _mm512_storeu_ps(to, _mm512_mul_ps(_mm512_loadu_ps(to), _mm512_set1_ps(inverse)));
        }
        largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[target_feature(enable = "avx512f")]
    fn exp_of(x: f32) -> f32 {
        // SAFETY: the feature that this function is compiled for, and called with.
        _mm512_cvtss_f32(unsafe { exp(_mm512_set1_ps(x)) })
    }

    #[test]
    fn exp_is_accurate_and_saturates() {
        if !is_x86_feature_detected!("avx512f") {
            return;
        }
        // SAFETY: the processor has it.
        let exp = |x| unsafe { exp_of(x) };
        for i in 0..87_000 {
            let x = i as f32 / -1000.0;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() < 5e-7 * want, "exp({x}) = {}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([exp(f32::NEG_INFINITY), exp(f32::MIN), exp(-87.1)], [0.0; 3]);
        assert!(exp(f32::NAN).is_nan());
    }
}

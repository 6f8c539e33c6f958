//! Dot products of weight panels that were unpacked before with tiles of activation rows.
//!
//! The arithmetic of each output is that of [`super::quantized`], bit for bit: products of a group in 8 integer lanes, one fused
//! multiply-add with the group's two scales, minimums in a sum of their own, one total at the end. What differs is the order in which
//! outputs take turns: two weight rows share every load of activations, and the loop over groups stays a loop, so that eight sums, two
//! groups of weights and one of activations are all that lives in the sixteen registers.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

use super::total;
use crate::cpu::panel::{ActPanel, GROUP, GROUPS, PANEL, WeightPanel};
use crate::cpu::quant::{Mins, QuantType};
use std::arch::x86_64::*;

/// Products of minimums and sums of activations: `sums[j][r]` over all panels.
///
/// # Safety
/// Each of `w` and `a` points to `panels` panels; AVX2 and FMA.
#[inline(always)]
unsafe fn minimums<const PER16: bool, const W: usize, const R: usize>(
    w: &[*const WeightPanel; W],
    a: &[*const ActPanel; R],
    panels: usize,
) -> [[__m256; R]; W] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); R]; W];
        for p in 0..panels {
            for j in 0..W {
                let min = (*w[j].add(p)).min.as_ptr();
                for r in 0..R {
                    let a = a[r].add(p);
                    if PER16 {
                        let halves = (*a).sum16.as_ptr();
                        sums[j][r] = _mm256_fmadd_ps(_mm256_loadu_ps(min), _mm256_loadu_ps(halves), sums[j][r]);
                        sums[j][r] = _mm256_fmadd_ps(
                            _mm256_loadu_ps(min.add(GROUPS)),
                            _mm256_loadu_ps(halves.add(GROUPS)),
                            sums[j][r],
                        );
                    } else {
                        let groups = (*a).sum32.as_ptr();
                        sums[j][r] = _mm256_fmadd_ps(_mm256_loadu_ps(min), _mm256_loadu_ps(groups), sums[j][r]);
                    }
                }
            }
        }
        sums
    }
}

/// `W` weight rows by `R` activation rows.
///
/// # Safety
/// Each of `w` and `a` points to `ceil(cols / 256)` panels; AVX2 and FMA.
#[inline(always)]
unsafe fn tile<const W: usize, const R: usize>(
    mins: Mins,
    w: &[*const WeightPanel; W],
    a: &[*const ActPanel; R],
    cols: usize,
    out: &mut [f32],
) {
    // SAFETY: panel p is inside every row; stores go to `factors`.
    unsafe {
        let panels = cols.div_ceil(PANEL);
        let mins = match mins {
            Mins::None => [[_mm256_setzero_ps(); R]; W],
            Mins::Per32 => minimums::<false, W, R>(w, a, panels),
            Mins::Per16 => minimums::<true, W, R>(w, a, panels),
        };
        let mut dots = [[_mm256_setzero_ps(); R]; W];
        let mut factors = [[[0.0f32; GROUPS]; R]; W];
        for p in 0..panels {
            let groups = (cols - p * PANEL).min(PANEL) / GROUP;
            for j in 0..W {
                let d = _mm256_loadu_ps((*w[j].add(p)).d.as_ptr());
                for r in 0..R {
                    let factor = _mm256_mul_ps(d, _mm256_loadu_ps((*a[r].add(p)).scale.as_ptr()));
                    _mm256_storeu_ps(factors[j][r].as_mut_ptr(), factor);
                }
            }
            for g in 0..groups {
                let mut weights = [[_mm256_setzero_si256(); 2]; W];
                for j in 0..W {
                    let q = (*w[j].add(p)).q.as_ptr().add(g * GROUP);
                    weights[j] = [_mm256_load_si256(q.cast()), _mm256_load_si256(q.add(16).cast())];
                }
                for r in 0..R {
                    let q = (*a[r].add(p)).q.as_ptr().add(g * GROUP);
                    let (low, high) = (_mm256_load_si256(q.cast()), _mm256_load_si256(q.add(16).cast()));
                    for j in 0..W {
                        let low = _mm256_madd_epi16(weights[j][0], low);
                        let high = _mm256_madd_epi16(weights[j][1], high);
                        let dot = _mm256_cvtepi32_ps(_mm256_add_epi32(low, high));
                        dots[j][r] = _mm256_fmadd_ps(dot, _mm256_broadcast_ss(&factors[j][r][g]), dots[j][r]);
                    }
                }
            }
        }
        for j in 0..W {
            for r in 0..R {
                out[j * R + r] = total(_mm256_add_ps(dots[j][r], mins[j][r]));
            }
        }
    }
}

/// All weight rows against `R` activation rows, two weight rows at a time.
#[target_feature(enable = "avx2,fma,f16c")]
fn rows<const R: usize>(mins: Mins, cols: usize, w: &[WeightPanel], acts: &[&[ActPanel]], out: &mut [f32]) {
    let panels = cols.div_ceil(PANEL);
    let count = w.len() / panels;
    assert!(out.len() == count * R && acts.len() == R, "a tile's output has the wrong size: this is a bug");
    assert!(acts.iter().all(|a| a.len() >= panels), "a row of activations is too short: this is a bug");
    let mut a = [std::ptr::null(); R];
    for r in 0..R {
        a[r] = acts[r].as_ptr();
    }
    for (out, w) in out.chunks_mut(2 * R).zip(w.chunks(2 * panels)) {
        // SAFETY: a chunk holds one or two whole rows; this function is compiled for the features needed.
        unsafe {
            if out.len() == 2 * R {
                tile::<2, R>(mins, &[w.as_ptr(), w.as_ptr().add(panels)], &a, cols, out);
            } else {
                tile::<1, R>(mins, &[w.as_ptr()], &a, cols, out);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn dot_panels(ty: QuantType, cols: usize, w: &[WeightPanel], acts: &[&[ActPanel]], out: &mut [f32]) {
    match acts.len() {
        1 => rows::<1>(ty.mins(), cols, w, acts, out),
        2 => rows::<2>(ty.mins(), cols, w, acts, out),
        3 => rows::<3>(ty.mins(), cols, w, acts, out),
        4 => rows::<4>(ty.mins(), cols, w, acts, out),
        n => panic!("a tile of {n} activation rows: this is a bug"),
    }
}

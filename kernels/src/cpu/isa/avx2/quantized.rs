//! Integer dot products: one tile code for all formats.
//!
//! For each 32 values, 16-bit weights times 16-bit activations give 8 sums of 4 products, which become floats, are multiplied by the
//! product of the two scales and added to the output's 8 lanes. Minimums are a dot product of their own, over groups.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

use super::formats::{self, Format};
use super::total;
use crate::cpu::dispatch::WeightRows;
use crate::cpu::panel::{ACT_MAX, ActPanel, GROUP, GROUPS, PANEL, SMALLEST_AMAX, WeightPanel};
use crate::cpu::quant::{Mins, QuantType};
use std::arch::asm;
use std::arch::x86_64::*;

/// Runs a macro body with each of the eight group numbers as a constant.
macro_rules! each_group {
    ($g:ident => $body:expr) => {{
        {
            const $g: usize = 0;
            $body
        }
        {
            const $g: usize = 1;
            $body
        }
        {
            const $g: usize = 2;
            $body
        }
        {
            const $g: usize = 3;
            $body
        }
        {
            const $g: usize = 4;
            $body
        }
        {
            const $g: usize = 5;
            $body
        }
        {
            const $g: usize = 6;
            $body
        }
        {
            const $g: usize = 7;
            $body
        }
    }};
}

/// The 8 sums of 4 products each of a group.
///
/// # Safety
/// 32 aligned values are readable at `a`; AVX2.
#[inline(always)]
unsafe fn products(w: [__m256i; 2], a: *const i16) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm256_madd_epi16(w[0], _mm256_load_si256(a.cast()));
        let high = _mm256_madd_epi16(w[1], _mm256_load_si256(a.add(16).cast()));
        _mm256_cvtepi32_ps(_mm256_add_epi32(low, high))
    }
}

/// `W` weight rows by `R` activation rows.
///
/// # Safety
/// `W` rows of `cols` values in `F`'s blocks are readable at `w`, `row_bytes` apart; each of the `R` rows of `acts` has
/// `ceil(cols / 256)` panels; AVX2, FMA and F16C.
#[inline(always)]
unsafe fn tile<F: Format, const W: usize, const R: usize>(
    w: *const u8,
    row_bytes: usize,
    cols: usize,
    acts: &[&[ActPanel]],
    out: &mut [f32],
) {
    // SAFETY: panel p of a row begins p * F::PANEL_BYTES behind its start and holds as many groups as `cols` leaves.
    unsafe {
        let mut dots = [[_mm256_setzero_ps(); R]; W];
        let mut mins = [[_mm256_setzero_ps(); R]; W];
        let mut factors = [[[0.0f32; GROUPS]; R]; W];
        let rows: [*const ActPanel; R] = std::array::from_fn(|r| acts[r].as_ptr());
        for p in 0..cols.div_ceil(PANEL) {
            let groups = (cols - p * PANEL).min(PANEL) / GROUP;
            let blocks: [*const u8; W] = std::array::from_fn(|j| w.add(j * row_bytes + p * F::PANEL_BYTES));
            if R == 1 {
                // Blocks come from memory here: ask for the same place of the next tile. The address may lie behind the matrix, which a
                // prefetch never minds. On Zen 3 it makes Q8_0 1.6 times as fast, Q4_1 1.35 times.
                for block in blocks {
                    for line in (0..F::PANEL_BYTES).step_by(64) {
                        _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(W * row_bytes + line).cast());
                    }
                }
            }
            let mut prepared = [formats::NOTHING; W];
            for j in 0..W {
                prepared[j] = F::prepare(blocks[j], groups);
            }
            for j in 0..W {
                for r in 0..R {
                    let a = rows[r].add(p);
                    let factor = _mm256_mul_ps(prepared[j].d, _mm256_loadu_ps((*a).scale.as_ptr()));
                    _mm256_storeu_ps(factors[j][r].as_mut_ptr(), factor);
                    match F::MINS {
                        Mins::None => {}
                        Mins::Per32 => {
                            mins[j][r] =
                                _mm256_fmadd_ps(prepared[j].min[0], _mm256_loadu_ps((*a).sum32.as_ptr()), mins[j][r])
                        }
                        Mins::Per16 => {
                            let sums = (*a).sum16.as_ptr();
                            mins[j][r] = _mm256_fmadd_ps(prepared[j].min[0], _mm256_loadu_ps(sums), mins[j][r]);
                            mins[j][r] =
                                _mm256_fmadd_ps(prepared[j].min[1], _mm256_loadu_ps(sums.add(GROUPS)), mins[j][r]);
                        }
                    }
                }
            }
            // Behind this line the factors and scales are read from memory: broadcasts while loading are cheap, and broadcasts from the
            // registers in which they were worked out, which the compiler prefers, take the one port for crossing lanes.
            asm!("/* {0} {1} */", in(reg) &factors, in(reg) &prepared, options(nostack, preserves_flags));
            if groups == GROUPS {
                each_group!(G => {
                    for j in 0..W {
                        let weights = F::group::<G>(blocks[j], &prepared[j]);
                        for r in 0..R {
                            let dot = products(weights, (*rows[r].add(p)).q.as_ptr().add(G * GROUP));
                            dots[j][r] = _mm256_fmadd_ps(dot, _mm256_broadcast_ss(&factors[j][r][G]), dots[j][r]);
                        }
                    }
                });
            } else {
                for g in 0..groups {
                    for j in 0..W {
                        // Part panels only exist in formats whose groups are alike: group g is group 0 of a later address.
                        let weights = F::group::<0>(blocks[j].add(g * F::GROUP_BYTES), &prepared[j]);
                        for r in 0..R {
                            let dot = products(weights, (*rows[r].add(p)).q.as_ptr().add(g * GROUP));
                            dots[j][r] = _mm256_fmadd_ps(dot, _mm256_broadcast_ss(&factors[j][r][g]), dots[j][r]);
                        }
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

/// All rows of `data`, in tiles of `W` rows and then single ones.
///
/// # Safety
/// AVX2, FMA and F16C; `data` holds whole rows.
#[inline(always)]
unsafe fn rows<F: Format, const W: usize, const R: usize>(
    data: &[u8],
    row_bytes: usize,
    cols: usize,
    acts: &[&[ActPanel]],
    out: &mut [f32],
) {
    let count = data.len() / row_bytes;
    assert!(out.len() == count * R && acts.len() == R, "a tile's output has the wrong size: this is a bug");
    assert!(acts.iter().all(|a| a.len() >= cols.div_ceil(PANEL)), "a row of activations is too short: this is a bug");
    let whole = count / W * W;
    for j in (0..whole).step_by(W) {
        // SAFETY: rows j..j + W are inside `data`.
        unsafe {
            tile::<F, W, R>(data.as_ptr().add(j * row_bytes), row_bytes, cols, acts, &mut out[j * R..(j + W) * R])
        }
    }
    for j in whole..count {
        // SAFETY: row j is inside `data`.
        unsafe {
            tile::<F, 1, R>(data.as_ptr().add(j * row_bytes), row_bytes, cols, acts, &mut out[j * R..(j + 1) * R])
        }
    }
}

/// One function for each format, so that each is compiled on its own.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn blocks_of<F: Format>(w: &WeightRows<'_>, acts: &[&[ActPanel]], out: &mut [f32]) {
    // SAFETY: this function is compiled for, and only called with, the features needed.
    unsafe {
        match acts.len() {
            1 if F::FOUR_ROWS => rows::<F, 4, 1>(w.data, w.row_bytes, w.cols, acts, out),
            1 => rows::<F, 2, 1>(w.data, w.row_bytes, w.cols, acts, out),
            2 => rows::<F, 1, 2>(w.data, w.row_bytes, w.cols, acts, out),
            3 => rows::<F, 1, 3>(w.data, w.row_bytes, w.cols, acts, out),
            4 => rows::<F, 1, 4>(w.data, w.row_bytes, w.cols, acts, out),
            n => panic!("a tile of {n} activation rows: this is a bug"),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn dot_blocks(w: &WeightRows<'_>, acts: &[&[ActPanel]], out: &mut [f32]) {
    match w.ty {
        QuantType::Q4_0 => blocks_of::<formats::Q4_0>(w, acts, out),
        QuantType::Q4_1 => blocks_of::<formats::Q4_1>(w, acts, out),
        QuantType::Q5_0 => blocks_of::<formats::Q5_0>(w, acts, out),
        QuantType::Q5_1 => blocks_of::<formats::Q5_1>(w, acts, out),
        QuantType::Q8_0 => blocks_of::<formats::Q8_0>(w, acts, out),
        QuantType::Q2K => blocks_of::<formats::Q2K>(w, acts, out),
        QuantType::Q3K => blocks_of::<formats::Q3K>(w, acts, out),
        QuantType::Q4K => blocks_of::<formats::Q4K>(w, acts, out),
        QuantType::Q5K => blocks_of::<formats::Q5K>(w, acts, out),
        QuantType::Q6K => blocks_of::<formats::Q6K>(w, acts, out),
        QuantType::Q8K => blocks_of::<formats::Q8K>(w, acts, out),
        QuantType::F32 | QuantType::F16 | QuantType::BF16 => panic!("{} has no blocks: this is a bug", w.ty.name()),
    }
}

/// # Safety
/// 32 aligned values are writable at `q`; AVX2.
#[inline(always)]
unsafe fn store(q: *mut i16, weights: [__m256i; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        _mm256_store_si256(q.cast(), weights[0]);
        _mm256_store_si256(q.add(16).cast(), weights[1]);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_of<F: Format>(w: &WeightRows<'_>, out: &mut [WeightPanel]) {
    let panels = w.cols.div_ceil(PANEL);
    for (row, out) in w.data.chunks_exact(w.row_bytes).zip(out.chunks_exact_mut(panels)) {
        for (p, panel) in out.iter_mut().enumerate() {
            let groups = (w.cols - p * PANEL).min(PANEL) / GROUP;
            // SAFETY: panel p of the row holds `groups` groups; stores go to a panel's own arrays, which are aligned; the features as above.
            unsafe {
                let block = row.as_ptr().add(p * F::PANEL_BYTES);
                let prepared = F::prepare(block, groups);
                _mm256_storeu_ps(panel.d.as_mut_ptr(), prepared.d);
                _mm256_storeu_ps(panel.min.as_mut_ptr(), prepared.min[0]);
                _mm256_storeu_ps(panel.min.as_mut_ptr().add(GROUPS), prepared.min[1]);
                let q = panel.q.as_mut_ptr();
                if groups == GROUPS {
                    each_group!(G => store(q.add(G * GROUP), F::group::<G>(block, &prepared)));
                } else {
                    for g in 0..groups {
                        store(q.add(g * GROUP), F::group::<0>(block.add(g * F::GROUP_BYTES), &prepared));
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn unpack(w: &WeightRows<'_>, out: &mut [WeightPanel]) {
    match w.ty {
        QuantType::Q4_0 => unpack_of::<formats::Q4_0>(w, out),
        QuantType::Q4_1 => unpack_of::<formats::Q4_1>(w, out),
        QuantType::Q5_0 => unpack_of::<formats::Q5_0>(w, out),
        QuantType::Q5_1 => unpack_of::<formats::Q5_1>(w, out),
        QuantType::Q8_0 => unpack_of::<formats::Q8_0>(w, out),
        QuantType::Q2K => unpack_of::<formats::Q2K>(w, out),
        QuantType::Q3K => unpack_of::<formats::Q3K>(w, out),
        QuantType::Q4K => unpack_of::<formats::Q4K>(w, out),
        QuantType::Q5K => unpack_of::<formats::Q5K>(w, out),
        QuantType::Q6K => unpack_of::<formats::Q6K>(w, out),
        QuantType::Q8K => unpack_of::<formats::Q8K>(w, out),
        QuantType::F32 | QuantType::F16 | QuantType::BF16 => panic!("{} has no blocks: this is a bug", w.ty.name()),
    }
}

/// The same arithmetic, to the bit, as the scalar table's.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn quantize(x: &[f32], out: &mut [ActPanel]) {
    for (x, panel) in x.chunks(PANEL).zip(out) {
        if x.len() < PANEL {
            *panel = ActPanel::default();
        }
        for (g, x) in x.chunks_exact(GROUP).enumerate() {
            // SAFETY: `x` has 32 values, and the panel's group 32 aligned places.
            unsafe { quantize_group(x.as_ptr(), g, panel) }
        }
    }
}

/// # Safety
/// 32 values are readable at `x`; AVX2.
#[inline(always)]
unsafe fn quantize_group(x: *const f32, g: usize, panel: &mut ActPanel) {
    // SAFETY: the caller's promise; stores go to the panel's own arrays.
    unsafe {
        // Loops over arrays, no closures: the compiler would build their bodies without AVX2.
        let x = [_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8)), _mm256_loadu_ps(x.add(16)), _mm256_loadu_ps(x.add(24))];
        let mut m = _mm256_setzero_si256();
        for v in x {
            m = _mm256_max_epi32(m, _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(i32::MAX)));
        }
        let m = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256::<1>(m));
        let m = _mm_max_epi32(m, _mm_shuffle_epi32::<0b01_00_11_10>(m));
        let m = _mm_max_epi32(m, _mm_shuffle_epi32::<0b10_11_00_01>(m));
        let amax = f32::from_bits(_mm_cvtsi128_si32(m) as u32);
        let scale = if amax.is_finite() { amax / ACT_MAX } else { f32::NAN };
        let scale = if amax < SMALLEST_AMAX { 0.0 } else { scale };
        let q = panel.q.as_mut_ptr().add(g * GROUP);
        let mut sums = [0i32; 2];
        if scale > 0.0 {
            let inverse = _mm256_set1_ps(ACT_MAX / amax);
            for half in 0..2 {
                let first = _mm256_cvtps_epi32(_mm256_mul_ps(x[2 * half], inverse));
                let second = _mm256_cvtps_epi32(_mm256_mul_ps(x[2 * half + 1], inverse));
                let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(first, second));
                _mm256_store_si256(q.add(16 * half).cast(), packed);
                let s = _mm256_madd_epi16(packed, _mm256_set1_epi16(1));
                let s = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256::<1>(s));
                let s = _mm_add_epi32(s, _mm_shuffle_epi32::<0b01_00_11_10>(s));
                let s = _mm_add_epi32(s, _mm_shuffle_epi32::<0b10_11_00_01>(s));
                sums[half] = _mm_cvtsi128_si32(s);
            }
        } else {
            q.write_bytes(0, GROUP);
        }
        panel.scale[g] = scale;
        panel.sum16[2 * g] = scale * sums[0] as f32;
        panel.sum16[2 * g + 1] = scale * sums[1] as f32;
        panel.sum32[g] = scale * (sums[0] + sums[1]) as f32;
    }
}

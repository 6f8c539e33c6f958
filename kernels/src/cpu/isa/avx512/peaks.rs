//! The largest of each row of a strip's products.

use crate::cpu::packed::LANES;
use crate::cpu::refine::peaks_of_rows;
use crate::cpu::shared::Rows;
use std::arch::x86_64::*;

/// Rows that are looked at together.
const ROWS: usize = 4;

/// See [`crate::cpu::dispatch::PackedKernels::peaks`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub fn peaks(products: &Rows<'_>, lanes: usize, peaks: Rows<'_>) {
    let (rows, _) = peaks.shape();
    assert!(rows <= products.shape().0 && lanes <= products.shape().1, "{rows} peaks of fewer rows: this is a bug");
    if lanes < LANES {
        return peaks_of_rows(products, lanes, peaks);
    }
    for first in (0..rows).step_by(ROWS) {
        // Of the last rows some are looked at twice.
        let row = |r: usize| (first + r).min(rows - 1);
        // SAFETY: the rows have as many products.
        let load = |r: usize| unsafe { _mm512_loadu_ps(products.at().add(row(r) * products.stride())) };
        for (r, peak) in largest([load(0), load(1), load(2), load(3)]).into_iter().enumerate() {
            // SAFETY: there is a peak for each row.
            unsafe { *peaks.at().add(row(r) * peaks.stride()) = peak };
        }
    }
}

/// The largest of each register; numbers that are none are passed over.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn largest(rows: [__m512; ROWS]) -> [f32; ROWS] {
    // Where the first is no number, the second is taken.
    let none = _mm512_set1_ps(f32::NEG_INFINITY);
    let [a, b, c, d] = rows.map(|row| _mm512_max_ps(row, none));
    // Each step puts halves of two registers side by side: a part of 128 bits holds a, b, a, b, then a, b, c, d.
    let ab = _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_max_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let [ab, cd] = [_mm512_castps_pd(ab), _mm512_castps_pd(cd)];
    let [low, high] = [_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd)];
    let abcd = _mm512_max_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    let abcd = _mm256_max_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps::<1>(abcd));
    let abcd = _mm_max_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps::<1>(abcd));
    let mut out = [0.0; ROWS];
    // SAFETY: there are as many.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), abcd) };
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_the_scalar_tables() {
        if !crate::Isa::Avx512Vnni.available() {
            return;
        }
        const HEIGHT: usize = 12;
        let mut products = [[0.0f32; LANES + 3]; HEIGHT];
        for (i, x) in products.as_flattened_mut().iter_mut().enumerate() {
            *x = ((i * 7919 + 13) % 1009) as f32 - 900.0;
            if i % 5 == 0 {
                *x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i / 5 % 3];
            }
        }
        products[7] = [f32::NAN; LANES + 3];
        let products = Rows::contiguous(products.as_flattened_mut(), LANES + 3);
        for (rows, lanes) in (0..=HEIGHT).flat_map(|rows| [(rows, LANES), (rows, 5)]) {
            let [mut ours, mut scalar] = [[7.0f32; 2 * HEIGHT]; 2];
            // SAFETY: the processor has the table.
            unsafe { peaks(&products, lanes, Rows::contiguous(&mut ours[..2 * rows], 2)) };
            peaks_of_rows(&products, lanes, Rows::contiguous(&mut scalar[..2 * rows], 2));
            assert_eq!(ours, scalar, "{rows} rows of {lanes}");
        }
    }
}

//! The kernels for AVX-VNNI: products with packed matrices by `vpdpbusd` on 256-bit registers, and AVX2's kernels for everything else.

use super::avx2;
use super::avx2::packed::Ymm;
use super::packed::{self, Fours, tile::packed_dot};
use crate::cpu::dispatch::{KernelTable, PackedKernels};
use crate::cpu::packed::GroupSource;
use std::arch::x86_64::*;

/// The AVX-VNNI table. Its functions need a processor with AVX-VNNI beside AVX2, FMA and F16C.
pub static TABLE: KernelTable =
    KernelTable { packed: PackedKernels { quantize, dot, ..avx2::packed::PACKED }, ..avx2::TABLE };

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn quantize(source: &GroupSource<'_>, groups: &mut [u8], aside: &mut [u8]) {
    packed::acts::quantize::<false>(source, groups, aside);
}

packed_dot!("avx2,fma,f16c,avxvnni", Vnni, 2);

/// `vpdpbusd` as AVX-VNNI encodes it.
struct Vnni;

impl Fours for Vnni {
    type V = Ymm;
    const SIGNED: bool = false;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn dot(sum: __m256i, w: __m256i, a: __m256i) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_dpbusd_avx_epi32(sum, w, a) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::cpu::dispatch::Isa;
    use crate::cpu::isa::scalar;
    use crate::cpu::matmul::MatrixRef;
    use crate::cpu::packed::{PackedMatrix, PackedScratch, Precision, matmul_with};
    use crate::cpu::pool::ThreadPool;
    use crate::cpu::quant::QuantType;
    use std::num::NonZeroUsize;

    packed_dot!("avx2,fma,f16c,avx512vl,avx512vnni", Evex, 2);

    /// The same instruction as AVX-512 VL and VNNI encode it, so that a processor without AVX-VNNI can test the code around it.
    struct Evex;

    impl Fours for Evex {
        type V = Ymm;
        const SIGNED: bool = Vnni::SIGNED;
        const ROWS: usize = Vnni::ROWS;

        #[inline(always)]
        unsafe fn dot(sum: __m256i, w: __m256i, a: __m256i) -> __m256i {
            // SAFETY: the caller's promise.
            unsafe { _mm256_dpbusd_epi32(sum, w, a) }
        }
    }

    #[test]
    fn the_other_encoding_gives_the_scalar_tables_bits() {
        if !Isa::Avx512Vnni.available() {
            // Nothing to test the stand-in on. Where AVX-VNNI is, tests/packed.rs tests the real one.
            return;
        }
        let evex = PackedKernels { dot, ..scalar::PACKED };
        let cpu = Cpu { isa: Isa::Scalar, pool: ThreadPool::new(NonZeroUsize::MIN).into() };
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u32
        };
        let (rows, k) = (37, 512);
        for ty in QuantType::ALL.into_iter().filter(|&ty| PackedMatrix::bytes_for(ty, rows, k).is_some()) {
            let row_bytes = ty.row_bytes(k).expect("whole blocks");
            let mut data: Vec<u8> = (0..rows * row_bytes).map(|_| random() as u8).collect();
            for block in data.chunks_exact_mut(ty.block_bytes()) {
                // Where half-precision scales have their exponents: below 2, never infinite.
                for at in [1, 3, 209].into_iter().filter(|&at| at < ty.block_bytes()) {
                    block[at] &= 0xbf;
                }
            }
            let w = PackedMatrix::pack(&cpu, MatrixRef { ty, rows, cols: k, data: &data }, &|_| {})
                .expect("a format that is packed");
            for m in 1..=30 {
                // Some values stand far out, so that 8-bit groups and 16-bit ones meet.
                let x: Vec<f32> = (0..m * k)
                    .map(|i| (random() % 2001) as f32 / 1000.0 - 1.0 + if i % 131 == 7 { 60.0 } else { 0.0 })
                    .collect();
                for precision in [Precision::Int8, Precision::Exact] {
                    let product = |kernels: &PackedKernels| {
                        let mut out = vec![f32::NAN; m * rows];
                        let mut scratch = PackedScratch::default();
                        matmul_with(&cpu, kernels, &[&w], &x, m, &mut [&mut out], &mut scratch, precision);
                        out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                    };
                    assert_eq!(product(&evex), product(&scalar::PACKED), "{} {precision:?} m={m}", ty.name());
                }
            }
        }
    }
}

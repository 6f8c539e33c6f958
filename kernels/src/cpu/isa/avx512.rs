//! The kernels for AVX-512 with VNNI: products with packed matrices, attention, and AVX2's kernels for everything else.

mod acts;
mod attend;
mod dot;
mod formats;

use super::avx2;
use crate::cpu::dispatch::{KernelTable, PackedKernels};

/// The AVX-512 table. Its functions need a processor with AVX-512 F, BW, DQ, VL and VNNI beside AVX2, FMA and F16C.
pub static TABLE: KernelTable = KernelTable {
    attend: attend::attend,
    fold: attend::fold,
    packed: PackedKernels { quantize: acts::quantize, dot: dot::dot },
    ..avx2::TABLE
};

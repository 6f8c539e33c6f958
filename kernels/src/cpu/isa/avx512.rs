//! The kernels for AVX-512 with VNNI; AVX2's for floats in the file's form.

mod acts;
mod attend;
mod dot;
mod elementwise;
mod floats;
mod formats;
mod integers;
mod peaks;
mod quads;
mod shorts;

use super::avx2;
use crate::cpu::dispatch::{FloatKernels, KernelTable, PackedKernels};
use crate::cpu::encoder::EncoderKernels;

/// The AVX-512 table. Its functions need a processor with AVX-512 F, BW, DQ, VL and VNNI beside AVX2, FMA and F16C.
pub const TABLE: KernelTable = KernelTable {
    attend: attend::attend,
    fold: attend::fold,
    shorts: Some(&shorts::SHORTS),
    quads: Some(&quads::QUADS),
    widen_keys: attend::widen_keys,
    widen_values: attend::widen_values,
    round_key: shorts::round_key,
    round_value: shorts::round_value,
    rms_norm: elementwise::rms_norm,
    add: elementwise::add,
    gated: elementwise::gated,
    sin_cos: elementwise::sin_cos,
    rotate: elementwise::rotate,
    encoder: EncoderKernels {
        layer_norm: elementwise::layer_norm,
        activate: elementwise::activate,
        attend: elementwise::attend_full,
    },
    packed: PackedKernels {
        root_mean_squares: acts::root_mean_squares,
        quantize: acts::quantize,
        dot: dot::dot,
        peaks: peaks::peaks,
    },
    floats: FloatKernels { dot: floats::dot, widen: floats::widen, pairs: None },
    ..avx2::TABLE
};

/// The same with BF16's dot products for BF16 matrices.
pub static BF16_TABLE: KernelTable =
    KernelTable { floats: FloatKernels { pairs: Some(&floats::PAIRS), ..TABLE.floats }, ..TABLE };

//! The instruction sets, and the table of kernels each one has.

use super::attention::packed::PackedAttention;
use super::attention::span::{SpanRows, Visible};
use super::elementwise::Activation;
use super::encoder::EncoderKernels;
use super::floats::{FloatDot, FloatPairs, Widen};
use super::isa;
use super::kv::QuadPiece;
use super::packed::{ActTile, GroupSource, Strip};
use super::panel::{ActPanel, WeightPanel};
use super::quant::QuantType;
use super::shared::Rows;
use std::fmt;

/// An instruction set that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust, any processor. Also the reference the others are tested against.
    Scalar,
    /// 64-bit Arm with the dot product extension.
    NeonDot,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// The same with AVX-VNNI: integer dot products in 256 bits, for processors that have no AVX-512.
    AvxVnni,
    /// AVX2 with AVX-512 F, BW, DQ and VL, and VNNI's integer dot products.
    Avx512Vnni,
    /// The same with BF16's dot products, for BF16 matrices.
    Avx512Bf16,
}

/// Why an instruction set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IsaError {
    /// No instruction set of this name exists.
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// This processor does not have it.
    Unavailable {
        /// The instruction set asked for.
        isa: Isa,
    },
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IsaError::Unknown { name } => write!(f, "unknown instruction set '{name}'")?,
            IsaError::Unavailable { isa } => {
                write!(f, "this processor does not support the instruction set '{}'", isa.name())?
            }
        }
        let names: Vec<&str> = Isa::ALL.iter().filter(|isa| isa.available()).map(|isa| isa.name()).collect();
        write!(f, "; choose one of: {}", names.join(", "))
    }
}

impl std::error::Error for IsaError {}

/// Whether the processor is Intel's. An Emerald Rapids begins a `vdpbf16ps` every two cycles: half as many products as its float multiply-adds
/// (a Zen 4 has twice as many).
#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

impl Isa {
    /// Every instruction set, from the plainest to the fastest.
    pub const ALL: [Isa; 6] = [Isa::Scalar, Isa::NeonDot, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Vnni, Isa::Avx512Bf16];

    /// The fastest instruction set of this processor.
    pub fn detect() -> Isa {
        let pays = |isa: &Isa| *isa != Isa::Avx512Bf16 || !is_intel();
        Isa::ALL.into_iter().rev().filter(pays).find(|isa| isa.available()).unwrap_or(Isa::Scalar)
    }

    /// Whether this processor can run it.
    pub fn available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(not(target_arch = "aarch64"))]
            Isa::NeonDot => false,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                Isa::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Isa::Avx512Vnni.available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni | Isa::Avx512Bf16 => false,
        }
    }

    /// The instruction set called `name`.
    ///
    /// # Errors
    /// [`IsaError::Unknown`] for a name that is none, [`IsaError::Unavailable`] when this processor lacks it.
    pub fn from_name(name: &str) -> Result<Isa, IsaError> {
        let isa = Isa::ALL
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| IsaError::Unknown { name: name.to_owned() })?;
        if isa.available() { Ok(isa) } else { Err(IsaError::Unavailable { isa }) }
    }

    /// Its name, as [`Isa::from_name`] reads it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::NeonDot => "neondot",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Whether it has kernels for packed matrices that are faster than those for matrices as they are in the file. (All instruction sets
    /// can multiply packed matrices; in plain Rust it takes twice as long.)
    pub fn packs(self) -> bool {
        self != Isa::Scalar
    }

    /// Whether it multiplies pairs of 16-bit integers, so that a cache of them is the fastest for attention.
    pub fn shorts(self) -> bool {
        matches!(self, Isa::Avx512Vnni | Isa::Avx512Bf16)
    }

    /// Its kernels.
    ///
    /// # Panics
    /// If this processor lacks it: an `Isa` can be named in source without a check, and running its kernels would be undefined.
    pub(crate) fn table(self) -> &'static KernelTable {
        assert!(self.available(), "{}", IsaError::Unavailable { isa: self });
        match self {
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => &isa::neondot::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &isa::avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => &isa::avxvnni::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => &isa::avx512::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => &isa::avx512::BF16_TABLE,
            _ => &isa::scalar::TABLE,
        }
    }
}

/// Rows of a weight matrix, as blocks of `ty`.
#[derive(Clone, Copy)]
pub struct WeightRows<'a> {
    pub ty: QuantType,
    /// Values in a row.
    pub cols: usize,
    pub row_bytes: usize,
    /// `rows * row_bytes` bytes, any alignment.
    pub data: &'a [u8],
}

/// Most activation rows that one tile takes.
pub const TILE_ROWS: usize = 4;

/// The kernels of one instruction set. A function here may only be called on a processor that has the instruction set, which
/// [`Isa::table`] checks once; that is what makes them `unsafe`.
pub struct KernelTable {
    /// Quantises one row of activations to `ceil(len / 256)` panels.
    pub quantize: unsafe fn(x: &[f32], out: &mut [ActPanel]),
    /// Integer dot products straight from the blocks: `out[j * acts.len() + r]` = weight row `j` . activation row `r`, for
    /// 1..=[`TILE_ROWS`] activation rows.
    pub dot_blocks: unsafe fn(w: &WeightRows<'_>, acts: &[&[ActPanel]], out: &mut [f32]),
    /// Unpacks weight rows to panels, `ceil(cols / 256)` a row.
    pub unpack: unsafe fn(w: &WeightRows<'_>, out: &mut [WeightPanel]),
    /// The same dot products from the unpacked form of rows of `ty`. Same bits as `dot_blocks`.
    #[allow(clippy::type_complexity)] // the arguments of a tile, named once
    pub dot_panels: unsafe fn(ty: QuantType, cols: usize, w: &[WeightPanel], acts: &[&[ActPanel]], out: &mut [f32]),
    /// A few query rows against one span of keys.
    pub attend: unsafe fn(&mut SpanRows<'_>),
    /// Adds the softmax state of one span to that of the spans before it.
    pub fold: unsafe fn(total: &mut [f32], part: &[f32], visible: &[Visible]),
    /// Whether `attend` reads half precision as fast as floats: it gets floats otherwise.
    pub attends_halves: bool,
    /// Attention on pairs of 16-bit integers, where that is faster than to widen them.
    pub shorts: Option<&'static PackedAttention>,
    /// Attention on quads of bytes, where that is faster than to widen them.
    pub quads: Option<&'static PackedAttention>,
    /// See [`super::kv::widen_keys`].
    pub widen_keys: unsafe fn(from: QuadPiece<'_>, len: usize, out: &mut [f32]),
    /// See [`super::kv::widen_values`].
    pub widen_values: unsafe fn(from: QuadPiece<'_>, head_dim: usize, width: usize, out: &mut [f32]),
    /// See [`super::kv::round_key`].
    pub round_key: unsafe fn(key: &[f32], pairs: &mut [u32], stride: usize) -> f32,
    /// See [`super::kv::round_value`].
    pub round_value: unsafe fn(value: &[f32], high: bool, pairs: &mut [u32]) -> f32,
    /// One row of RMS normalisation: `x`, `weight`, `eps`, `out`.
    pub rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    /// `residual += x`.
    pub add: unsafe fn(&mut [f32], &[f32]),
    /// `out = act(gate) * up`.
    pub gated: unsafe fn(Activation, &[f32], &[f32], &mut [f32]),
    /// Cosines and sines of angles (plain f32 radians below 2^20).
    pub sin_cos: unsafe fn(angles: &[f32], cos: &mut [f32], sin: &mut [f32]),
    /// Rotates the pairs `(i, i + cos.len())` of a head by angles given as cosines and sines.
    pub rotate: unsafe fn(head: &mut [f32], cos: &[f32], sin: &[f32]),
    /// What encoders need beside products.
    pub encoder: EncoderKernels,
    /// Products with packed matrices.
    pub packed: PackedKernels,
    /// Products with packed floats.
    pub floats: FloatKernels,
}

/// The kernels for packed matrices of floats.
pub struct FloatKernels {
    /// The products of 32 rows of a matrix with a tile of floats.
    pub dot: FloatDot,
    /// Widens strips of F16.
    pub widen: Widen,
    /// Those with pairs of bfloat16, where there are such.
    pub pairs: Option<&'static FloatPairs>,
}

/// The kernels for packed matrices. All instruction sets give the same bits.
pub struct PackedKernels {
    /// The roots of the mean squares of rows of `cols` values, a multiple of 16, each summed in 16 lanes.
    pub root_mean_squares: unsafe fn(x: &[f32], cols: usize, out: &mut [f32]),
    /// Quantises some groups of a tile of activations; `groups` has [`super::packed::group_bytes`] for each, `aside` has
    /// [`super::packed::aside_bytes`], which are written only as far as there are low bytes and sums. Only the table's own `dot` knows how
    /// the values of a fine group are laid out.
    pub quantize: unsafe fn(source: &GroupSource<'_>, groups: &mut [u8], aside: &mut [u8]),
    /// The products of 16 rows of a matrix with a tile, to as many rows of 16 columns.
    pub dot: unsafe fn(strip: &Strip<'_>, acts: &ActTile<'_>, out: Rows<'_>),
    /// The largest of the first `lanes` products of each row, for as many rows as there are peaks; those that are no numbers are passed over.
    pub peaks: unsafe fn(products: &Rows<'_>, lanes: usize, peaks: Rows<'_>),
}

//! The kernels for 64-bit Arm with the dot product extension (Armv8.2): products with packed matrices by `sdot`, those with packed floats by
//! fused multiply-adds, and plain Rust for everything else.

use super::floats::{self, Bfloats, Floats, Halves, MultiplyAdd, float_dot};
use super::packed::{self, Fours, Vector, tile::packed_dot};
use super::scalar;
use crate::cpu::dispatch::{FloatKernels, KernelTable, PackedKernels};
use std::arch::aarch64::*;
use std::arch::asm;

/// The table. Its functions need a processor with the dot product extension.
pub static TABLE: KernelTable = KernelTable {
    packed: PackedKernels { dot, ..scalar::PACKED },
    floats: FloatKernels { dot: dot_floats, widen, pairs: None },
    ..scalar::TABLE
};

packed_dot!("neon,dotprod", Signed, 4);

float_dot!(
    /// The products of a strip with a tile of floats.
    dot_floats, "neon,dotprod", Neon, 8, [1, 2, 3; 3],
    { F32 => Floats, F16 => Halves, BF16 => Bfloats }, |cols: usize| cols
);

#[target_feature(enable = "neon,dotprod")]
fn widen(halves: &[u8], out: &mut [f32]) {
    // SAFETY: the features are those that this function is compiled for and called with.
    unsafe { floats::widen::<Neon>(halves, out) }
}

/// 128-bit registers.
struct Neon;

// SAFETY (of all bodies): readable and writable addresses are the caller's promise; every 64-bit Arm processor has NEON.
impl Vector for Neon {
    const LANES: usize = 4;
    type Int = int32x4_t;
    type Float = float32x4_t;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> int32x4_t {
        unsafe { vreinterpretq_s32_u8(vld1q_u8(at)) }
    }
    #[inline(always)]
    unsafe fn byte(value: u8) -> int32x4_t {
        unsafe { vreinterpretq_s32_u8(vdupq_n_u8(value)) }
    }
    #[inline(always)]
    unsafe fn word(value: i32) -> int32x4_t {
        unsafe { vdupq_n_s32(value) }
    }
    #[inline(always)]
    unsafe fn float(value: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    unsafe fn and(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vandq_s32(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vorrq_s32(a, b) }
    }
    #[inline(always)]
    unsafe fn xor(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { veorq_s32(a, b) }
    }
    #[inline(always)]
    unsafe fn right16<const N: i32>(v: int32x4_t) -> int32x4_t {
        unsafe { vreinterpretq_s32_u16(vshrq_n_u16::<N>(vreinterpretq_u16_s32(v))) }
    }
    #[inline(always)]
    unsafe fn left32<const N: i32>(v: int32x4_t) -> int32x4_t {
        unsafe { vshlq_n_s32::<N>(v) }
    }
    #[inline(always)]
    unsafe fn add32(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vaddq_s32(a, b) }
    }
    #[inline(always)]
    unsafe fn to_float(v: int32x4_t) -> float32x4_t {
        unsafe { vcvtq_f32_s32(v) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn negate(v: float32x4_t) -> float32x4_t {
        unsafe { vnegq_f32(v) }
    }
    #[inline(always)]
    unsafe fn halves(at: *const u8) -> float32x4_t {
        // The intrinsic needs the type f16, which is not stable yet.
        unsafe {
            let halves = vld1_u8(at);
            let floats: float32x4_t;
            asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) floats, in(vreg) halves, options(pure, nomem, nostack, preserves_flags));
            floats
        }
    }
    #[inline(always)]
    unsafe fn unsigned(at: *const u8) -> float32x4_t {
        unsafe {
            let bytes = vcreate_u8(u64::from(at.cast::<u32>().read_unaligned()));
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn signed(at: *const u8) -> float32x4_t {
        unsafe {
            let bytes = vcreate_s8(u64::from(at.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn store(v: float32x4_t, at: *mut f32) {
        unsafe { vst1q_f32(at, v) }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {
        // The intrinsic is not stable yet; these processors find streams by themselves.
    }
}

// SAFETY (of all bodies): as above.
impl MultiplyAdd for Neon {
    const LANES: usize = 4;
    type Float = float32x4_t;

    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        unsafe { vdupq_n_f32(0.0) }
    }
    #[inline(always)]
    unsafe fn broadcast(at: *const u32) -> float32x4_t {
        unsafe { vld1q_dup_f32(at.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { <Neon as Vector>::fma(a, b, c) }
    }
    #[inline(always)]
    unsafe fn words(at: *const u8) -> float32x4_t {
        unsafe { vreinterpretq_f32_u8(vld1q_u8(at)) }
    }
    #[inline(always)]
    unsafe fn halves(at: *const u8) -> float32x4_t {
        unsafe { <Neon as Vector>::halves(at) }
    }
    #[inline(always)]
    unsafe fn lower(at: *const u8) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_u8(vld1q_u8(at)))) }
    }
    #[inline(always)]
    unsafe fn upper(at: *const u8) -> float32x4_t {
        unsafe {
            let words = vreinterpretq_u32_u8(vld1q_u8(at));
            vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xffff_0000)))
        }
    }
    #[inline(always)]
    unsafe fn store(v: float32x4_t, at: *mut f32) {
        unsafe { <Neon as Vector>::store(v, at) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { <Neon as Vector>::prefetch(at) }
    }
}

/// `sdot`: all bytes have signs. Weights of up to 6 bits are the same numbers with one, and those of 8 bits lose their offset.
struct Signed;

impl Fours for Signed {
    type V = Neon;
    const SIGNED: bool = true;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn dot(mut sum: int32x4_t, w: int32x4_t, a: int32x4_t) -> int32x4_t {
        // SAFETY: the caller's promise. The intrinsic is not stable yet.
        unsafe {
            asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) w, in(vreg) a, options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }
}

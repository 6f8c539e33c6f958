//! Products with packed matrices, written once for registers of 4 and 8 lanes: what an instruction set adds is [`Vector`], its
//! instructions under common names, and [`Dots`], how it multiplies bytes. AVX-512 has a tile of its own, which fits its 32 wide registers.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

pub mod acts;
mod formats;
pub mod tile;

pub use formats::{Affine, AffineK, EightBits, FiveBits, FourBits, HalvesK, Quants, Scales, SixBits, Symmetric};

use crate::cpu::packed::GROUP;

/// Instructions on registers of [`Vector::LANES`] 32-bit lanes. Each needs a processor that has them, which is what makes them `unsafe`;
/// addresses are readable (or writable) for as many bytes as are named.
pub trait Vector {
    /// 32-bit lanes of a register.
    const LANES: usize;
    /// A register of integers.
    type Int: Copy;
    /// A register of floats.
    type Float: Copy;

    /// `4 * LANES` bytes at a multiple of as many.
    unsafe fn load(at: *const u8) -> Self::Int;
    /// A byte in every byte.
    unsafe fn byte(value: u8) -> Self::Int;
    /// An integer in every lane.
    unsafe fn word(value: i32) -> Self::Int;
    /// A float in every lane.
    unsafe fn float(value: f32) -> Self::Float;
    unsafe fn and(a: Self::Int, b: Self::Int) -> Self::Int;
    unsafe fn or(a: Self::Int, b: Self::Int) -> Self::Int;
    unsafe fn xor(a: Self::Int, b: Self::Int) -> Self::Int;
    /// `v >> N` in unsigned lanes of 16 bits.
    unsafe fn right16<const N: i32>(v: Self::Int) -> Self::Int;
    /// `v << N` in lanes of 32 bits.
    unsafe fn left32<const N: i32>(v: Self::Int) -> Self::Int;
    /// Wrapping sums of lanes of 32 bits.
    unsafe fn add32(a: Self::Int, b: Self::Int) -> Self::Int;
    /// The nearest floats.
    unsafe fn to_float(v: Self::Int) -> Self::Float;
    unsafe fn mul(a: Self::Float, b: Self::Float) -> Self::Float;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;
    unsafe fn negate(v: Self::Float) -> Self::Float;
    /// `LANES` half-precision floats, at any address.
    unsafe fn halves(at: *const u8) -> Self::Float;
    /// `LANES` bytes without sign, at any address.
    unsafe fn unsigned(at: *const u8) -> Self::Float;
    /// `LANES` bytes with sign, at any address.
    unsafe fn signed(at: *const u8) -> Self::Float;
    /// To `4 * LANES` bytes at any address.
    unsafe fn store(v: Self::Float, at: *mut f32);
    /// Asks for the line at `at`, which may be any address.
    unsafe fn prefetch(at: *const u8);
}

/// How an instruction set multiplies bytes.
pub trait Dots {
    /// Its registers.
    type V: Vector;
    /// Whether it takes the offset-128 bytes of Q8_0 as signed ones, without the offset.
    const SIGNED: bool = false;
    /// Most rows of activations that fit its registers beside a strip.
    const ROWS: usize;

    /// Adds to `sums[r][b]` the products of the steps of `PART` of a group with the 8-bit activations of row `r`: the strip's lanes from
    /// `b * LANES`, exactly.
    ///
    /// # Safety
    /// As for [`Quants::step`]; 32 bytes of each of the `R` rows are readable at `acts`.
    unsafe fn coarse<Q: Quants, const R: usize, const B: usize, const PART: u8>(
        q: *const u8,
        acts: *const u8,
        sums: &mut [[<Self::V as Vector>::Int; B]; R],
    );

    /// The same with 16-bit activations, as the table's `quantize` lays them out.
    ///
    /// # Safety
    /// As for [`Quants::step`]; 32 bytes of each of the `R` rows are readable at `high` and at `low`.
    unsafe fn fine<Q: Quants, const R: usize, const B: usize, const PART: u8>(
        q: *const u8,
        high: *const u8,
        low: *const u8,
        sums: &mut [[<Self::V as Vector>::Int; B]; R],
    );
}

/// All steps of a group.
pub const WHOLE: u8 = 0;
/// Steps 0 to 3.
pub const FIRST: u8 = 1;
/// Steps 4 to 7.
pub const SECOND: u8 = 2;

/// Runs a macro body with the numbers of some steps as constants.
macro_rules! steps {
    ($j:ident in [$($n:literal),*] => $body:block) => {
        $({
            const $j: usize = $n;
            $body
        })*
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use steps;

/// Instruction sets that add the products of 4 bytes of each lane to a 32-bit sum.
pub trait Fours {
    /// Its registers.
    type V: Vector;
    /// As [`Dots::SIGNED`].
    const SIGNED: bool;
    /// As [`Dots::ROWS`].
    const ROWS: usize;

    /// `sum + w . a` in each lane, of weights 0 to 255 (-128 to 127 if `SIGNED`) and activations -128 to 127.
    ///
    /// # Safety
    /// The processor has the instruction.
    unsafe fn dot(
        sum: <Self::V as Vector>::Int,
        w: <Self::V as Vector>::Int,
        a: <Self::V as Vector>::Int,
    ) -> <Self::V as Vector>::Int;
}

impl<F: Fours> Dots for F {
    type V = F::V;
    const SIGNED: bool = F::SIGNED;
    const ROWS: usize = F::ROWS;

    #[inline(always)]
    unsafe fn coarse<Q: Quants, const R: usize, const B: usize, const PART: u8>(
        q: *const u8,
        acts: *const u8,
        sums: &mut [[<Self::V as Vector>::Int; B]; R],
    ) {
        macro_rules! multiply {
            ($steps:tt) => {
                steps!(J in $steps => {
                    let w = step::<F, Q, B>(q, J);
                    for r in 0..R {
                        let a = four::<F::V>(acts.add(r * GROUP + 4 * J));
                        for b in 0..B {
                            sums[r][b] = F::dot(sums[r][b], w[b], a);
                        }
                    }
                });
            };
        }
        // SAFETY: the caller's promise.
        unsafe {
            match PART {
                // In the order of pairs that share a line of nibbles.
                WHOLE => {
                    multiply!([0, 4, 1, 5, 2, 6, 3, 7]);
                }
                FIRST => {
                    multiply!([0, 1, 2, 3]);
                }
                _ => {
                    multiply!([4, 5, 6, 7]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn fine<Q: Quants, const R: usize, const B: usize, const PART: u8>(
        q: *const u8,
        high: *const u8,
        low: *const u8,
        sums: &mut [[<Self::V as Vector>::Int; B]; R],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut upper = [[F::V::word(0); B]; R];
            Self::coarse::<Q, R, B, PART>(q, high, &mut upper);
            for r in 0..R {
                for b in 0..B {
                    sums[r][b] = F::V::add32(sums[r][b], F::V::left32::<8>(upper[r][b]));
                }
            }
            Self::coarse::<Q, R, B, PART>(q, low, sums);
        }
    }
}

/// Step `j` (a constant at each call) of a whole strip.
///
/// # Safety
/// As for [`Quants::step`].
#[inline(always)]
pub unsafe fn step<D: Dots, Q: Quants, const B: usize>(q: *const u8, j: usize) -> [<D::V as Vector>::Int; B] {
    // SAFETY: the caller's promise. A loop, no closure: the compiler would build its body without the instruction set.
    unsafe {
        let mut w = [D::V::byte(0); B];
        for b in 0..B {
            w[b] = Q::step::<D::V>(q.add(b * 4 * D::V::LANES), j);
            if D::SIGNED && Q::BITS == 8 {
                w[b] = D::V::xor(w[b], D::V::byte(128));
            }
        }
        w
    }
}

/// 4 activations in every lane.
///
/// # Safety
/// 4 bytes are readable at `at`, a multiple of 4.
#[inline(always)]
pub unsafe fn four<V: Vector>(at: *const u8) -> V::Int {
    // SAFETY: the caller's promise.
    unsafe { V::word(*at.cast::<i32>()) }
}

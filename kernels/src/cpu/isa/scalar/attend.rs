//! Attention in plain Rust, in arrays that a compiler may keep in registers.

use super::{LANES, total};
use crate::cpu::attention::span::{self, SpanRows, Vector, Visible};
use crate::cpu::math;
use half::f16;

pub fn attend(rows: &mut SpanRows<'_>) {
    // SAFETY: arrays need no processor feature.
    unsafe { span::attend::<Plain, 1>(rows) }
}

pub fn fold(to: &mut [f32], part: &[f32], visible: &[Visible]) {
    // SAFETY: as above.
    unsafe { span::fold::<Plain>(to, part, visible) }
}

/// Arrays of 8 floats.
struct Plain;

impl Vector for Plain {
    type Reg = [f32; LANES];
    const LEN: usize = LANES;

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; LANES] {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> [f32; LANES] {
        // SAFETY (here and below): the caller vouches for the pointers; an array is aligned as its elements.
        unsafe { at.cast::<[f32; LANES]>().read() }
    }

    #[inline(always)]
    unsafe fn load_half(at: *const f16) -> [f32; LANES] {
        unsafe { at.cast::<[f16; LANES]>().read() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn store(at: *mut f32, x: [f32; LANES]) {
        unsafe { at.cast::<[f32; LANES]>().write(x) }
    }

    #[inline(always)]
    unsafe fn prefetch<T>(_: *const T) {}

    #[inline(always)]
    unsafe fn add(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn mul(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn madd(a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn max(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    unsafe fn exp(x: [f32; LANES]) -> [f32; LANES] {
        x.map(math::exp)
    }

    #[inline(always)]
    unsafe fn total(x: [f32; LANES]) -> f32 {
        total(x)
    }

    #[inline(always)]
    unsafe fn largest(x: [f32; LANES]) -> f32 {
        x.into_iter().fold(f32::MIN, |a, b| if a > b { a } else { b })
    }
}

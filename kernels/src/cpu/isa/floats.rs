//! Products with packed floats, written once: what an instruction set adds is [`MultiplyAdd`].
//!
//! A tile is cut into passes of as many rows as the registers hold. For each column, a line of the strip is widened once and multiplied with
//! every row of a pass. Lanes are rows of the matrix: nothing is ever summed across them, and a row's bits depend on no other row.

#![allow(clippy::needless_range_loop)] // an index addresses several arrays and pointers at once

use crate::cpu::floats::{CHUNK, FloatStrip, FloatTile, STRIP};
use crate::cpu::isa::{AHEAD, next_pass};
use crate::cpu::packed::LINE;
use crate::cpu::shared::Rows;

/// Instructions on registers of floats. Each needs a processor that has them, which is what makes them `unsafe`; addresses are readable
/// (or writable) for as many bytes as a register holds, or half of it for `halves`.
pub trait MultiplyAdd {
    /// Lanes of a register.
    const LANES: usize;
    /// A register.
    type Float: Copy;

    unsafe fn zero() -> Self::Float;
    /// A word in every lane.
    unsafe fn broadcast(at: *const u32) -> Self::Float;
    /// `a * b + c`.
    unsafe fn multiply_add(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;
    /// Words as they are.
    unsafe fn words(at: *const u8) -> Self::Float;
    /// Half-precision floats.
    unsafe fn halves(at: *const u8) -> Self::Float;
    /// The bfloat16s in the lower halves of words.
    unsafe fn lower(at: *const u8) -> Self::Float;
    /// Those in their upper halves.
    unsafe fn upper(at: *const u8) -> Self::Float;
    unsafe fn store(v: Self::Float, at: *mut f32);
    /// Asks for the line of the cache at `at`, which may be any address.
    unsafe fn prefetch(at: *const u8);
}

/// How a format's lines are multiplied.
pub trait Format<V: MultiplyAdd> {
    /// Bytes of a unit.
    const UNIT: usize;
    /// Words of activations that a line is multiplied with.
    const WORDS: usize = 1;

    /// Weights for word `word` of a line, from the unit at `at` on.
    ///
    /// # Safety
    /// As for the instructions of `V`; `word < WORDS`.
    unsafe fn weights(at: *const u8, word: usize) -> V::Float;

    /// `weights * acts + sum`.
    ///
    /// # Safety
    /// The processor has the instruction.
    #[inline(always)]
    unsafe fn multiply_add(weights: V::Float, acts: V::Float, sum: V::Float) -> V::Float {
        // SAFETY: the caller's promise.
        unsafe { V::multiply_add(weights, acts, sum) }
    }
}

/// F32.
pub struct Floats;
/// F16.
pub struct Halves;
/// BF16, widened.
pub struct Bfloats;

impl<V: MultiplyAdd> Format<V> for Floats {
    const UNIT: usize = 4;
    #[inline(always)]
    unsafe fn weights(at: *const u8, _: usize) -> V::Float {
        // SAFETY: the caller's promise.
        unsafe { V::words(at) }
    }
}

impl<V: MultiplyAdd> Format<V> for Halves {
    const UNIT: usize = 2;
    #[inline(always)]
    unsafe fn weights(at: *const u8, _: usize) -> V::Float {
        // SAFETY: the caller's promise.
        unsafe { V::halves(at) }
    }
}

impl<V: MultiplyAdd> Format<V> for Bfloats {
    const UNIT: usize = 4;
    const WORDS: usize = 2;
    #[inline(always)]
    unsafe fn weights(at: *const u8, word: usize) -> V::Float {
        // SAFETY: the caller's promise.
        unsafe { if word == 0 { V::lower(at) } else { V::upper(at) } }
    }
}

/// Where a strip and some rows of a tile are.
pub struct Pass {
    /// Words of a row of activations.
    words: usize,
    lines: *const u8,
    /// Height of the tile, and the first row to take.
    height: usize,
    row: usize,
    acts: *const u32,
    out: *mut f32,
    stride: usize,
}

impl Pass {
    /// The whole tile, as checked as it can be.
    ///
    /// # Panics
    /// If the sizes do not fit together.
    pub fn new<V: MultiplyAdd, F: Format<V>>(
        words: usize,
        strip: &FloatStrip<'_>,
        acts: &FloatTile<'_>,
        out: Rows<'_>,
    ) -> Pass {
        let height = acts.height;
        let fits = strip.lines.len() == words.div_ceil(F::WORDS) * STRIP * F::UNIT
            && strip.lines.as_ptr().addr().is_multiple_of(LINE)
            && acts.words.len() == words.next_multiple_of(CHUNK) * height
            && out.shape() == (height, STRIP);
        assert!(fits, "a strip or a tile has the wrong size: this is a bug");
        Pass {
            words,
            lines: strip.lines.as_ptr(),
            height,
            row: 0,
            acts: acts.words.as_ptr(),
            out: out.at(),
            stride: out.stride(),
        }
    }

    /// The next rows to take, behind the `taken` ones.
    pub fn next(&mut self, taken: usize, most: usize) -> Option<usize> {
        self.row += taken;
        next_pass(self.height - self.row, most)
    }
}

/// `R` rows of activations with the strip's lanes in `B` registers.
///
/// # Safety
/// The pass has `R` more rows and is of `F`; the processor has the instructions of `V`.
#[inline(always)]
pub unsafe fn rows<V: MultiplyAdd, F: Format<V>, const R: usize, const B: usize>(pass: &Pass) {
    const { assert!(B * V::LANES == STRIP && CHUNK.is_multiple_of(F::WORDS)) };
    let &Pass { words, lines, height, row, acts, out, stride } = pass;
    let line_bytes = STRIP * F::UNIT;
    // SAFETY: `Pass::new` has checked the sizes. Prefetched addresses may lie anywhere.
    unsafe {
        let mut sums = [[V::zero(); B]; R];
        let mut line = lines;
        let mut acts = acts.add(row * CHUNK);
        // The products of one word of a line. A macro, no closure: the compiler would build its body without the instruction set.
        macro_rules! add {
            ($line:expr, $word:expr, $acts:expr) => {
                let (line, word, acts) = ($line, $word, $acts);
                let at = |b: usize| line.wrapping_add(b * V::LANES * F::UNIT);
                // Registers are held for the fewer of both.
                if R < B {
                    let mut a = [V::zero(); R];
                    for r in 0..R {
                        a[r] = V::broadcast(acts.add(r * CHUNK));
                    }
                    for b in 0..B {
                        let w = F::weights(at(b), word);
                        for r in 0..R {
                            sums[r][b] = F::multiply_add(w, a[r], sums[r][b]);
                        }
                    }
                } else {
                    let mut w = [V::zero(); B];
                    for b in 0..B {
                        w[b] = F::weights(at(b), word);
                    }
                    for r in 0..R {
                        let a = V::broadcast(acts.add(r * CHUNK));
                        for b in 0..B {
                            sums[r][b] = F::multiply_add(w[b], a, sums[r][b]);
                        }
                    }
                }
            };
        }
        for _ in 0..words / CHUNK {
            for i in 0..CHUNK / F::WORDS {
                for at in (0..line_bytes).step_by(LINE) {
                    V::prefetch(line.wrapping_add(AHEAD + at));
                }
                for word in 0..F::WORDS {
                    add!(line, word, acts.add(i * F::WORDS + word));
                }
                line = line.add(line_bytes);
            }
            acts = acts.add(height * CHUNK);
        }
        for i in 0..words % CHUNK {
            add!(line.add(i / F::WORDS * line_bytes), i % F::WORDS, acts.add(i));
        }
        for r in 0..R {
            for b in 0..B {
                V::store(sums[r][b], out.add((row + r) * stride + b * V::LANES));
            }
        }
    }
}

/// Turns half-precision floats into as many floats.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
pub unsafe fn widen<V: MultiplyAdd>(halves: &[u8], out: &mut [f32]) {
    assert!(
        halves.len() == 2 * out.len() && out.len().is_multiple_of(V::LANES),
        "a strip of the wrong size: this is a bug"
    );
    for at in (0..out.len()).step_by(V::LANES) {
        // SAFETY: a register's values from `at` on are inside, and so are their halves.
        unsafe { V::store(V::halves(halves.as_ptr().add(2 * at)), out.as_mut_ptr().add(at)) }
    }
}

/// A function of a table, `$name`, compiled for the features that `$v` needs: it has `$blocks` registers for a strip, and passes of as many
/// rows as are listed, of which the last is the most. `$formats` says how a strip's type is multiplied, and by how many words of a row.
macro_rules! float_dot {
    ($(#[$doc:meta])* $name:ident, $features:literal, $v:ty, $blocks:literal, [$($rows:literal),*; $most:literal],
     { $($ty:ident => $format:ident),* }, $words:expr) => {
        $(#[$doc])*
        #[target_feature(enable = $features)]
        pub fn $name(
            strip: &crate::cpu::floats::FloatStrip<'_>,
            acts: &crate::cpu::floats::FloatTile<'_>,
            out: crate::cpu::shared::Rows<'_>,
        ) {
            use crate::cpu::isa::floats::{Format, Pass, rows};
            /// One function for each format and number of rows, so that each is compiled on its own.
            #[inline(never)]
            #[target_feature(enable = $features)]
            fn rows_of<F: Format<$v>, const R: usize>(pass: &Pass) {
                // SAFETY: `dot_of` passes as many rows as are left, and the features are those that this function is compiled for and
                // called with.
                unsafe { rows::<$v, F, R, $blocks>(pass) }
            }

            #[target_feature(enable = $features)]
            fn dot_of<F: Format<$v>>(mut pass: Pass) {
                let mut taken = 0;
                while let Some(next) = pass.next(taken, $most) {
                    taken = next;
                    match taken {
                        $($rows => rows_of::<F, $rows>(&pass),)*
                        rows => panic!("a pass of {rows} rows: this is a bug"),
                    }
                }
            }

            let words = $words(strip.cols);
            match strip.ty {
                $(crate::cpu::quant::QuantType::$ty => {
                    dot_of::<$format>(Pass::new::<$v, $format>(words, strip, acts, out));
                })*
                ty => panic!("{} is no float format of this product: this is a bug", ty.name()),
            }
        }
    };
}
pub(in crate::cpu::isa) use float_dot;

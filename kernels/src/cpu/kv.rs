//! The KV cache: K is `[num_blocks, layers, kv_heads, head_dim, block_size]`, V `[num_blocks, layers, kv_heads, block_size, head_dim]`.
//!
//! What a sequence has cached lies in a few places of all layers, so that large pages are filled by few sequences
//! ([`crate::Pages`]). A vector register holds one dimension of several keys, or several dimensions of one value: attention never sums across
//! a register.

use super::Cpu;
use super::attention::span::PIECE as KEYS;
use super::dispatch::KernelTable;
use super::isa::prefetch_line;
use super::math::ROUND;
use super::packed::LINE;
use super::shared::SharedSlice;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Dimensions of a head that share a scale in an 8-bit cache; the last ones may be fewer.
pub const KV_GROUP: usize = 32;

/// What the tokens of a block and the dimensions of a head must be a multiple of in a cache of pairs.
pub const KV_PIECE: usize = KEYS;

/// What they must be a multiple of in an 8-bit cache.
pub const KV_QUAD: usize = 4;

/// The norm of a 16-bit key or query, in its units: no product of two is 2^31 or more, nor the product of any of their dimensions (Cauchy and
/// Schwarz), and no dimension is beyond 16 bits.
pub(crate) const KEY_NORM: f32 = 32000.0;

/// Largest magnitude of a 16-bit value, in its units: leaves room for the weights of a span.
pub(crate) const VALUE_MAX: f32 = 4095.0;

/// How a cache is laid out, and the layer that a call is about.
#[derive(Clone, Copy, Debug)]
pub struct KvLayout {
    /// Layers whose keys and values share the cache's blocks.
    pub layers: usize,
    /// One of them.
    pub layer: usize,
    /// Key and value heads of each layer.
    pub kv_heads: usize,
    /// Values in a head.
    pub head_dim: usize,
    /// Tokens in a block.
    pub block_size: usize,
}

impl KvLayout {
    /// Values of K, or of V, in a block.
    pub(crate) fn values(self) -> usize {
        self.layers * self.kv_heads * self.head_dim * self.block_size
    }

    /// The head of the layer in a block, counted through all blocks, layers and heads.
    pub(crate) fn head_block(self, block: usize, head: usize) -> usize {
        (block * self.layers + self.layer) * self.kv_heads + head
    }

    pub(crate) fn check(self, what: &str) {
        assert!(
            self.values() > 0 && self.layer < self.layers,
            "{what}: no such layer, or nothing in a block: {self:?}"
        );
    }
}

/// K or V, to read.
#[derive(Clone, Copy, Debug)]
pub enum KvSlice<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision: half the memory; values beyond 65504 become infinite.
    F16(&'a [f16]),
    /// Integers times the scale of their head, 2 bytes a value and 4 a head. Keys have a norm of 32000, values are up to 4095 large: products
    /// of them add up in 32 bits. A head that is not finite is NaN. Where the instruction set multiplies pairs of them, attention does, with
    /// queries and softmax weights that are such integers, too.
    I16 {
        /// Two integers each, the first in the low half: K `[num_blocks, layers, kv_heads, head_dim / 2, block_size]` with two dimensions in
        /// a pair, V `[num_blocks, layers, kv_heads, block_size / 2, head_dim]` with two tokens. Blocks have a multiple of [`KV_PIECE`]
        /// tokens, heads one of as many dimensions.
        pairs: &'a [u32],
        /// `[num_blocks, layers, kv_heads, block_size]`.
        scales: &'a [f32],
    },
    /// Integers of -127 to 127 times the scale of their group of [`KV_GROUP`] dimensions: 1.125 bytes a value. Where a group has a value that
    /// is not finite, all are NaN. Where the instruction set multiplies bytes, attention does, with queries and softmax weights of 16 bits.
    I8 {
        /// Four integers each, the first in the lowest byte: K `[num_blocks, layers, kv_heads, head_dim / 4, block_size]` with four
        /// dimensions in a quad, V `[num_blocks, layers, kv_heads, block_size / 4, head_dim]` with four tokens. Heads have a multiple of
        /// [`KV_QUAD`] dimensions, blocks one of as many tokens.
        quads: &'a [u32],
        /// `[num_blocks, layers, kv_heads, groups, block_size]`.
        scales: &'a [f32],
    },
}

/// K or V, to write.
#[derive(Debug)]
pub enum KvSliceMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Half precision, rounded to nearest even.
    F16(&'a mut [f16]),
    /// See [`KvSlice::I16`]; rounded to nearest even.
    I16 {
        /// The integers.
        pairs: &'a mut [u32],
        /// Their scales.
        scales: &'a mut [f32],
    },
    /// See [`KvSlice::I8`]; rounded to nearest even.
    I8 {
        /// The integers.
        quads: &'a mut [u32],
        /// Their scales.
        scales: &'a mut [f32],
    },
}

impl KvSlice<'_> {
    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        match self {
            KvSlice::F32(s) => s.len(),
            KvSlice::F16(s) => s.len(),
            KvSlice::I16 { pairs, .. } => self.packed() * pairs.len(),
            KvSlice::I8 { quads, .. } => self.packed() * quads.len(),
        }
    }

    /// Values that lie in one element.
    pub(crate) fn packed(&self) -> usize {
        match self {
            KvSlice::F32(_) | KvSlice::F16(_) => 1,
            KvSlice::I16 { .. } => 2,
            KvSlice::I8 { .. } => 4,
        }
    }

    /// Asks for the line with this element.
    pub(crate) fn ask(&self, at: usize) {
        match self {
            KvSlice::F32(s) => prefetch_line(s.as_ptr().wrapping_add(at)),
            KvSlice::F16(s) => prefetch_line(s.as_ptr().wrapping_add(at)),
            KvSlice::I16 { pairs: words, .. } | KvSlice::I8 { quads: words, .. } => {
                prefetch_line(words.as_ptr().wrapping_add(at))
            }
        }
    }

    /// Scales of a head's key, or of its value.
    pub(crate) fn scales(&self, head_dim: usize) -> usize {
        match self {
            KvSlice::F32(_) | KvSlice::F16(_) => 0,
            KvSlice::I16 { .. } => 1,
            KvSlice::I8 { .. } => groups(head_dim),
        }
    }
}

/// Scales of a head.
pub(crate) const fn groups(head_dim: usize) -> usize {
    head_dim.div_ceil(KV_GROUP)
}

/// 8-bit keys or values of one head in one block, from some token on (for values a multiple of [`KV_QUAD`]).
#[derive(Clone, Copy)]
pub struct QuadPiece<'a> {
    /// Dimensions 4i.. of key j are at `i * block_size + j`, dimension i of values 4j.. at `j * head_dim + i`.
    pub quads: &'a [u32],
    /// The scale of group i of token j is at `i * block_size + j`.
    pub scales: &'a [f32],
    pub block_size: usize,
}

/// Widens `len` keys, up to [`KEYS`]. `out` is `[head_dim, KEYS]`.
#[inline(always)]
pub(crate) fn widen_keys(from: QuadPiece<'_>, len: usize, out: &mut [f32]) {
    let QuadPiece { quads, scales, block_size } = from;
    for (i, out) in out.as_chunks_mut::<{ 4 * KEYS }>().0.iter_mut().enumerate() {
        let (quads, scales) = (&quads[i * block_size..], &scales[4 * i / KV_GROUP * block_size..]);
        for (byte, out) in out.as_chunks_mut::<KEYS>().0.iter_mut().enumerate() {
            match (quads.first_chunk::<KEYS>(), scales.first_chunk::<KEYS>()) {
                // Of a known length: registers.
                (Some(quads), Some(scales)) if len == KEYS => widen(quads, byte, scales, out),
                _ => widen(&quads[..len], byte, &scales[..len], &mut out[..len]),
            }
        }
    }
}

/// Widens a byte of each quad.
#[inline(always)]
fn widen(quads: &[u32], byte: usize, scales: &[f32], out: &mut [f32]) {
    for ((out, &quad), &scale) in out.iter_mut().zip(quads).zip(scales) {
        *out = f32::from((quad >> (8 * byte)) as i8) * scale;
    }
}

/// Widens values to rows of `width` floats, of which the first `head_dim` are written.
#[inline(always)]
pub(crate) fn widen_values(from: QuadPiece<'_>, head_dim: usize, width: usize, out: &mut [f32]) {
    let QuadPiece { quads, scales, block_size } = from;
    for (j, out) in out.chunks_exact_mut(width).enumerate() {
        let row = &quads[j / 4 * head_dim..][..head_dim];
        for (g, (row, out)) in row.chunks(KV_GROUP).zip(out[..head_dim].chunks_mut(KV_GROUP)).enumerate() {
            let scale = scales[g * block_size + j];
            for (out, &quad) in out.iter_mut().zip(row) {
                *out = f32::from((quad >> (j % 4 * 8)) as i8) * scale;
            }
        }
    }
}

/// Widens the low or the high integers of pairs, each with its scale.
pub(crate) fn widen_shorts(pairs: &[u32], high: bool, scales: impl Iterator<Item = f32>, out: &mut [f32]) {
    for ((out, &pair), scale) in out.iter_mut().zip(pairs).zip(scales) {
        *out = f32::from((pair >> (16 * u32::from(high))) as i16) * scale;
    }
}

pub(crate) fn check_pairs(head_dim: usize, block_size: usize) {
    assert!(
        head_dim.is_multiple_of(KEYS) && block_size.is_multiple_of(KEYS),
        "a cache of pairs: heads of {head_dim} in blocks of {block_size}, but both must be multiples of {KEYS}"
    );
}

pub(crate) fn check_quads(head_dim: usize, block_size: usize) {
    assert!(
        head_dim.is_multiple_of(KV_QUAD) && block_size.is_multiple_of(KV_QUAD),
        "an 8-bit cache: heads of {head_dim} in blocks of {block_size}, but both must be multiples of {KV_QUAD}"
    );
}

/// The largest magnitude.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    // Their order is that of their bits, with infinity and NaN on top.
    let bits = x.iter().fold(0, |m, v| m.max(v.abs().to_bits().cast_signed()));
    f32::from_bits(bits.cast_unsigned())
}

/// The root of the sum of squares of a multiple of [`KEYS`] values, summed in as many lanes.
#[inline(always)]
pub(crate) fn norm(x: &[f32]) -> f32 {
    let mut lanes = [0.0; KEYS];
    for x in x.as_chunks::<KEYS>().0 {
        lanes.iter_mut().zip(x).for_each(|(lane, x)| *lane += x * x);
    }
    lanes.iter().sum::<f32>().sqrt()
}

/// The scale of values of some size that are rounded to integers of the size `to`, and its inverse.
#[inline(always)]
pub(crate) fn scale_of(size: f32, to: f32) -> (f32, f32) {
    let scale = size / to;
    if !size.is_finite() {
        (f32::NAN, 0.0)
    } else if scale < 1e-30 {
        // So small that the scale has few bits, or its inverse overflows: counts as zero.
        (0.0, 0.0)
    } else {
        (scale, to / size)
    }
}

/// The 16-bit integer nearest to `x` times the inverse of a scale, ties to even; 0 where `x` is not finite.
#[inline(always)]
fn nearest(x: f32, inverse: f32) -> u16 {
    // The low bits of such a sum are the integer's.
    const { assert!(ROUND.to_bits() as u16 == 0) };
    (x * inverse + ROUND).to_bits() as u16
}

/// Rounds a head's key to pairs of 16-bit integers, every `stride`th of `pairs`; returns their scale. Inlined into each instruction set.
#[inline(always)]
pub(crate) fn round_key(key: &[f32], pairs: &mut [u32], stride: usize) -> f32 {
    let (scale, inverse) = scale_of(norm(key), KEY_NORM);
    let mut at = 0;
    for x in key.as_chunks::<KEYS>().0 {
        let rounded = x.map(|x| nearest(x, inverse));
        for n in rounded.as_chunks::<2>().0 {
            pairs[at] = u32::from(n[0]) | u32::from(n[1]) << 16;
            at += stride;
        }
    }
    scale
}

/// Rounds a head's value to 16-bit integers, the high or the low ones of `pairs`; returns their scale. Inlined into each instruction set.
#[inline(always)]
pub(crate) fn round_value(value: &[f32], high: bool, pairs: &mut [u32]) -> f32 {
    let shift = 16 * u32::from(high);
    let (scale, inverse) = scale_of(largest(value), VALUE_MAX);
    for (pair, &x) in pairs.iter_mut().zip(value) {
        *pair = *pair & !(0xffff << shift) | u32::from(nearest(x, inverse)) << shift;
    }
    scale
}

/// Rounds the values of a group to 8 bits; returns their scale.
fn quantize(x: &[f32], out: &mut [i8; KV_GROUP]) -> f32 {
    let (scale, inverse) = scale_of(largest(x), 127.0);
    for (out, x) in out.iter_mut().zip(x) {
        *out = nearest(*x, inverse) as i8;
    }
    scale
}

/// Where a token's head goes.
#[derive(Clone, Copy)]
struct Place {
    /// See [`KvLayout::head_block`].
    head_block: usize,
    /// The slot in the block.
    offset: usize,
    block_size: usize,
}

impl Place {
    /// The scales of the token's `groups` groups.
    ///
    /// # Safety
    /// As for [`Target::store_key`].
    unsafe fn scales<'a>(self, of: &'a SharedSlice<'_, f32>, groups: usize) -> impl Iterator<Item = &'a mut f32> {
        let Place { head_block, offset, block_size } = self;
        // SAFETY: the caller's promise.
        let scales = unsafe { of.slice(head_block * block_size * groups + offset, (groups - 1) * block_size + 1) };
        scales.iter_mut().step_by(block_size)
    }
}

impl Place {
    /// Asks for the lines of a head's key or value in a cache with `packed` values in an element.
    fn ask<T>(self, cache: &SharedSlice<'_, T>, packed: usize, keys: bool, head_dim: usize) {
        let Place { head_block, offset, block_size } = self;
        let start = head_block * block_size * head_dim / packed;
        let line = LINE / size_of::<T>();
        if keys {
            (0..head_dim / packed).for_each(|i| prefetch_line(cache.address(start + i * block_size + offset)));
        } else {
            let start = start + offset / packed * head_dim;
            (0..head_dim).step_by(line).for_each(|i| prefetch_line(cache.address(start + i)));
        }
    }
}

enum Target<'a> {
    F32(SharedSlice<'a, f32>),
    F16(SharedSlice<'a, f16>),
    I16 { pairs: SharedSlice<'a, u32>, scales: SharedSlice<'a, f32> },
    I8 { quads: SharedSlice<'a, u32>, scales: SharedSlice<'a, f32> },
}

impl<'a> Target<'a> {
    fn new(slice: KvSliceMut<'a>, block: usize, head_dim: usize, name: &str) -> (Self, usize) {
        let check_scales = |scales: &[f32], len: usize, each: usize| {
            assert!(
                scales.len() == len / head_dim * each,
                "write_kv: the {name} cache has {} scales for {len} values in heads of {head_dim}",
                scales.len()
            );
        };
        let (target, len) = match slice {
            KvSliceMut::F32(s) => {
                let len = s.len();
                (Target::F32(SharedSlice::new(s)), len)
            }
            KvSliceMut::F16(s) => {
                let len = s.len();
                (Target::F16(SharedSlice::new(s)), len)
            }
            KvSliceMut::I16 { pairs, scales } => {
                let len = 2 * pairs.len();
                check_scales(scales, len, 1);
                (Target::I16 { pairs: SharedSlice::new(pairs), scales: SharedSlice::new(scales) }, len)
            }
            KvSliceMut::I8 { quads, scales } => {
                let len = 4 * quads.len();
                check_scales(scales, len, groups(head_dim));
                (Target::I8 { quads: SharedSlice::new(quads), scales: SharedSlice::new(scales) }, len)
            }
        };
        assert!(
            len.is_multiple_of(block),
            "write_kv: the {name} cache has {len} values, no whole number of blocks of {block}"
        );
        (target, len)
    }

    /// Asks for the memory of a head's key or value, which is in no cache as a rule; on a key's way to so many lines a core waits for each few.
    fn ask(&self, keys: bool, place: Place, head_dim: usize) {
        match self {
            Target::F32(s) => place.ask(s, 1, keys, head_dim),
            Target::F16(s) => place.ask(s, 1, keys, head_dim),
            Target::I16 { pairs, .. } => place.ask(pairs, 2, keys, head_dim),
            Target::I8 { quads, .. } => place.ask(quads, 4, keys, head_dim),
        }
    }

    /// Stores a head's value.
    ///
    /// # Safety
    /// The table is this processor's. No other thread may touch the head's part of the block.
    unsafe fn store_value(&self, table: &KernelTable, place: Place, row: &[f32]) {
        let token = place.head_block * place.block_size + place.offset;
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Target::F32(s) => s.slice(token * row.len(), row.len()).copy_from_slice(row),
                Target::F16(s) => s.slice(token * row.len(), row.len()).convert_from_f32_slice(row),
                Target::I16 { pairs, scales } => {
                    let pairs = pairs.slice(token / 2 * row.len(), row.len());
                    scales.slice(token, 1)[0] = (table.round_value)(row, token % 2 == 1, pairs);
                }
                Target::I8 { quads, scales } => {
                    let shift = token % 4 * 8;
                    let quads = quads.slice(token / 4 * row.len(), row.len());
                    let scales = place.scales(scales, groups(row.len()));
                    for ((row, quads), scale) in row.chunks(KV_GROUP).zip(quads.chunks_mut(KV_GROUP)).zip(scales) {
                        let mut bytes = [0; KV_GROUP];
                        *scale = quantize(row, &mut bytes);
                        for (quad, byte) in quads.iter_mut().zip(bytes) {
                            *quad = *quad & !(0xff << shift) | u32::from(byte.cast_unsigned()) << shift;
                        }
                    }
                }
            }
        }
    }

    /// Stores a head's key: each dimension `block_size` behind the one before it.
    ///
    /// # Safety
    /// The table is this processor's. No other thread may touch the head's part of the block.
    unsafe fn store_key(&self, table: &KernelTable, place: Place, row: &[f32]) {
        let Place { head_block, offset, block_size: stride } = place;
        let at = head_block * stride * row.len() + offset;
        let len = (row.len() - 1) * stride + 1;
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Target::F32(s) => {
                    for (to, &x) in s.slice(at, len).iter_mut().step_by(stride).zip(row) {
                        *to = x;
                    }
                }
                Target::F16(s) => {
                    let mut to = s.slice(at, len).iter_mut().step_by(stride);
                    // Converted together: one value at a time takes a call each.
                    for row in row.chunks(64) {
                        let mut halves = [f16::ZERO; 64];
                        halves[..row.len()].convert_from_f32_slice(row);
                        for (half, to) in halves[..row.len()].iter().zip(to.by_ref()) {
                            *to = *half;
                        }
                    }
                }
                Target::I16 { pairs, scales } => {
                    let at = head_block * stride * (row.len() / 2) + offset;
                    let pairs = pairs.slice(at, (row.len() / 2 - 1) * stride + 1);
                    scales.slice(head_block * stride + offset, 1)[0] = (table.round_key)(row, pairs, stride);
                }
                Target::I8 { quads, scales } => {
                    let at = head_block * stride * (row.len() / 4) + offset;
                    let mut to = quads.slice(at, (row.len() / 4 - 1) * stride + 1).iter_mut().step_by(stride);
                    let scales = place.scales(scales, groups(row.len()));
                    for (row, scale) in row.chunks(KV_GROUP).zip(scales) {
                        let mut bytes = [0; KV_GROUP];
                        *scale = quantize(row, &mut bytes);
                        let quads = bytes.as_chunks::<4>().0.iter().take(row.len() / 4);
                        quads
                            .zip(to.by_ref())
                            .for_each(|(bytes, to)| *to = u32::from_le_bytes(bytes.map(i8::cast_unsigned)));
                    }
                }
            }
        }
    }
}

/// Values that a task of [`write_kv`] has at least: a key is stored to many lines, none of which is in a cache.
const STORED: usize = 1024;

/// Stores the keys and values of some tokens, both `[tokens, kv_heads, head_dim]`; token `t` goes to slot `slots[t]`, which is
/// `block * block_size + offset in the block`. If two tokens name one slot, the later wins.
///
/// # Panics
/// If the lengths do not fit together or a slot is outside the cache.
pub fn write_kv(
    cpu: &Cpu,
    k: &[f32],
    v: &[f32],
    slots: &[u32],
    layout: KvLayout,
    k_cache: KvSliceMut<'_>,
    v_cache: KvSliceMut<'_>,
) {
    layout.check("write_kv");
    let KvLayout { kv_heads, head_dim, block_size, .. } = layout;
    let width = kv_heads * head_dim;
    let block = layout.values();
    assert!(
        k.len() == slots.len() * width && v.len() == k.len(),
        "write_kv: k and v have {} and {} values for {} tokens of {width}",
        k.len(),
        v.len(),
        slots.len()
    );
    for cache in [&k_cache, &v_cache] {
        match cache {
            KvSliceMut::F32(_) | KvSliceMut::F16(_) => {}
            KvSliceMut::I16 { .. } => check_pairs(head_dim, block_size),
            KvSliceMut::I8 { .. } => check_quads(head_dim, block_size),
        }
    }
    let (k_cache, k_len) = Target::new(k_cache, block, head_dim, "K");
    let (v_cache, v_len) = Target::new(v_cache, block, head_dim, "V");
    let capacity = k_len.min(v_len) / block * block_size;
    if let Some(slot) = slots.iter().find(|&&slot| slot as usize >= capacity) {
        panic!("write_kv: slot {slot} is outside a cache of {capacity} tokens");
    }
    let table = cpu.isa.table();
    let block_of = |t: usize| slots[t] as usize / block_size;
    // A block's tokens stay on one thread, in order; those that follow each other, on the thread that has their rows elsewhere.
    let mut runs: Vec<usize> = (0..slots.len()).filter(|&t| t == 0 || block_of(t) != block_of(t - 1)).collect();
    let mut blocks: Vec<usize> = runs.iter().map(|&t| block_of(t)).collect();
    blocks.sort_unstable();
    if blocks.windows(2).any(|pair| pair[0] == pair[1]) {
        runs.truncate(1);
    }
    let places = |t: usize| {
        let (block, offset) = (block_of(t), slots[t] as usize % block_size);
        (0..kv_heads).map(move |head| Place { head_block: layout.head_block(block, head), offset, block_size })
    };
    let ask = |run: usize| {
        for place in places(runs[run]) {
            k_cache.ask(true, place, head_dim);
            v_cache.ask(false, place, head_dim);
        }
    };
    cpu.for_pieces(runs.len(), STORED / (2 * width), |start, end| {
        ask(start);
        for run in start..end {
            if run + 1 < end {
                ask(run + 1);
            }
            let tokens = runs[run]..runs.get(run + 1).map_or(slots.len(), |&next| next);
            for t in tokens {
                for (head, place) in places(t).enumerate() {
                    let from = t * width + head * head_dim;
                    // SAFETY: a block's part of the cache is touched by the one piece that holds its run; the table is this processor's.
                    unsafe {
                        k_cache.store_key(table, place, &k[from..from + head_dim]);
                        v_cache.store_value(table, place, &v[from..from + head_dim]);
                    }
                }
            }
        }
    });
}

//! The KV cache: K is `[num_blocks, layers, kv_heads, head_dim, block_size]`, V `[num_blocks, layers, kv_heads, block_size, head_dim]`.
//!
//! What a sequence has cached lies in a few places of all layers, so that large pages are filled by few sequences
//! ([`crate::Pages`]). A vector register holds one dimension of several keys, or several dimensions of one value: attention never sums across
//! a register.

use super::Cpu;
use super::attention::span::PIECE as KEYS;
use super::math::ROUND;
use super::shared::SharedSlice;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Dimensions of a head that share a scale in an 8-bit cache; the last ones may be fewer.
pub const KV_GROUP: usize = 32;

/// What the tokens of a block and the dimensions of a head must be a multiple of in a cache of bfloat16 pairs.
pub const KV_PIECE: usize = KEYS;

/// What they must be a multiple of in an 8-bit cache.
pub const KV_QUAD: usize = 4;

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
    /// Pairs of bfloat16, the first in the low half: K `[num_blocks, layers, kv_heads, head_dim / 2, block_size]` with two dimensions in a
    /// pair, V `[num_blocks, layers, kv_heads, block_size / 2, head_dim]` with two tokens in a pair. Blocks have a multiple of [`KV_PIECE`]
    /// tokens, heads one of as many dimensions. Where the instruction set multiplies such pairs ([`crate::Isa::Avx512Bf16`]), attention does, and rounds queries and
    /// softmax weights to bfloat16 too.
    Bf16(&'a [u32]),
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
    /// See [`KvSlice::Bf16`]; rounded to nearest even.
    Bf16(&'a mut [u32]),
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
            KvSlice::Bf16(s) => self.packed() * s.len(),
            KvSlice::I8 { quads, .. } => self.packed() * quads.len(),
        }
    }

    /// Values that lie in one element.
    pub(crate) fn packed(&self) -> usize {
        match self {
            KvSlice::F32(_) | KvSlice::F16(_) => 1,
            KvSlice::Bf16(_) => 2,
            KvSlice::I8 { .. } => 4,
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

/// The bits of the nearest bfloat16, ties to even; NaN stays NaN.
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

/// Widens the low or the high halves of pairs.
pub(crate) fn widen_halves(pairs: &[u32], high: bool, out: &mut [f32]) {
    for (out, &pair) in out.iter_mut().zip(pairs) {
        *out = f32::from_bits(if high { pair & 0xffff_0000 } else { pair << 16 });
    }
}

pub(crate) fn check_pairs(head_dim: usize, block_size: usize) {
    assert!(
        head_dim.is_multiple_of(KEYS) && block_size.is_multiple_of(KEYS),
        "a bfloat16 cache: heads of {head_dim} in blocks of {block_size}, but both must be multiples of {KEYS}"
    );
}

pub(crate) fn check_quads(head_dim: usize, block_size: usize) {
    assert!(
        head_dim.is_multiple_of(KV_QUAD) && block_size.is_multiple_of(KV_QUAD),
        "an 8-bit cache: heads of {head_dim} in blocks of {block_size}, but both must be multiples of {KV_QUAD}"
    );
}

/// Rounds the values of a group to 8 bits; returns their scale.
fn quantize(x: &[f32], out: &mut [i8; KV_GROUP]) -> f32 {
    // Among magnitudes the order is that of their bits, with infinity and NaN on top.
    let amax = f32::from_bits(x.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff)));
    if !amax.is_finite() {
        return f32::NAN;
    }
    let scale = amax / 127.0;
    // A magnitude so small that its scale has few bits, or whose inverse overflows, counts as zero.
    if scale < 1e-30 {
        return 0.0;
    }
    let inverse = 127.0 / amax;
    for (out, x) in out.iter_mut().zip(x) {
        *out = (x * inverse + ROUND - ROUND) as i8;
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

enum Target<'a> {
    F32(SharedSlice<'a, f32>),
    F16(SharedSlice<'a, f16>),
    Bf16(SharedSlice<'a, u32>),
    I8 { quads: SharedSlice<'a, u32>, scales: SharedSlice<'a, f32> },
}

impl<'a> Target<'a> {
    fn new(slice: KvSliceMut<'a>, block: usize, head_dim: usize, name: &str) -> (Self, usize) {
        let (target, len) = match slice {
            KvSliceMut::F32(s) => {
                let len = s.len();
                (Target::F32(SharedSlice::new(s)), len)
            }
            KvSliceMut::F16(s) => {
                let len = s.len();
                (Target::F16(SharedSlice::new(s)), len)
            }
            KvSliceMut::Bf16(s) => {
                let len = 2 * s.len();
                (Target::Bf16(SharedSlice::new(s)), len)
            }
            KvSliceMut::I8 { quads, scales } => {
                let len = 4 * quads.len();
                assert!(
                    scales.len() == len / head_dim * groups(head_dim),
                    "write_kv: the {name} cache has {} scales for {len} values in heads of {head_dim}",
                    scales.len()
                );
                (Target::I8 { quads: SharedSlice::new(quads), scales: SharedSlice::new(scales) }, len)
            }
        };
        assert!(
            len.is_multiple_of(block),
            "write_kv: the {name} cache has {len} values, no whole number of blocks of {block}"
        );
        (target, len)
    }

    /// Stores a head's value.
    ///
    /// # Safety
    /// No other thread may touch the head's part of the block.
    unsafe fn store_value(&self, place: Place, row: &[f32]) {
        let token = place.head_block * place.block_size + place.offset;
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Target::F32(s) => s.slice(token * row.len(), row.len()).copy_from_slice(row),
                Target::F16(s) => s.slice(token * row.len(), row.len()).convert_from_f32_slice(row),
                Target::Bf16(s) => {
                    let shift = token % 2 * 16;
                    for (pair, &x) in s.slice(token / 2 * row.len(), row.len()).iter_mut().zip(row) {
                        *pair = *pair & !(0xffff << shift) | bf16_bits(x) << shift;
                    }
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
    /// No other thread may touch the head's part of the block.
    unsafe fn store_key(&self, place: Place, row: &[f32]) {
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
                Target::Bf16(s) => {
                    let at = head_block * stride * (row.len() / 2) + offset;
                    let pairs = s.slice(at, (row.len() / 2 - 1) * stride + 1);
                    for (pair, x) in pairs.iter_mut().step_by(stride).zip(row.as_chunks::<2>().0) {
                        *pair = bf16_bits(x[0]) | bf16_bits(x[1]) << 16;
                    }
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
    if matches!((&k_cache, &v_cache), (KvSliceMut::Bf16(_), _) | (_, KvSliceMut::Bf16(_))) {
        check_pairs(head_dim, block_size);
    }
    if matches!((&k_cache, &v_cache), (KvSliceMut::I8 { .. }, _) | (_, KvSliceMut::I8 { .. })) {
        check_quads(head_dim, block_size);
    }
    let (k_cache, k_len) = Target::new(k_cache, block, head_dim, "K");
    let (v_cache, v_len) = Target::new(v_cache, block, head_dim, "V");
    let capacity = k_len.min(v_len) / block * block_size;
    if let Some(slot) = slots.iter().find(|&&slot| slot as usize >= capacity) {
        panic!("write_kv: slot {slot} is outside a cache of {capacity} tokens");
    }
    // Heads, not tokens, are spread over threads: two tokens of one slot then stay in order.
    let piece = STORED / (slots.len() * head_dim).max(1);
    cpu.for_pieces(2 * kv_heads, piece, move |start, end| {
        for item in start..end {
            let (head, keys) = (item / 2, item % 2 == 0);
            for (t, &slot) in slots.iter().enumerate() {
                let (b, offset) = (slot as usize / block_size, slot as usize % block_size);
                let from = t * width + head * head_dim;
                let place = Place { head_block: layout.head_block(b, head), offset, block_size };
                // SAFETY: a head's keys (or values) in the cache are touched by the one piece that holds them.
                unsafe {
                    if keys {
                        k_cache.store_key(place, &k[from..from + head_dim]);
                    } else {
                        v_cache.store_value(place, &v[from..from + head_dim]);
                    }
                }
            }
        }
    });
}

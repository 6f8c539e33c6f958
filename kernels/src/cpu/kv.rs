//! The KV cache of one layer: K is `[num_blocks, kv_heads, head_dim, block_size]`, V `[num_blocks, kv_heads, block_size, head_dim]`.
//!
//! So a vector register holds one dimension of several keys, or several dimensions of one value: attention never sums across a register.

use super::Cpu;
use super::elementwise::PIECE;
use super::shared::SharedSlice;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// K or V of one layer, to read.
#[derive(Clone, Copy, Debug)]
pub enum KvSlice<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision: half the memory; values beyond 65504 become infinite.
    F16(&'a [f16]),
}

/// K or V of one layer, to write.
#[derive(Debug)]
pub enum KvSliceMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Half precision, rounded to nearest even.
    F16(&'a mut [f16]),
}

impl KvSlice<'_> {
    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        match self {
            KvSlice::F32(s) => s.len(),
            KvSlice::F16(s) => s.len(),
        }
    }
}

enum Target<'a> {
    F32(SharedSlice<'a, f32>),
    F16(SharedSlice<'a, f16>),
}

impl<'a> Target<'a> {
    fn new(slice: KvSliceMut<'a>, block: usize, name: &str) -> (Self, usize) {
        let (target, len) = match slice {
            KvSliceMut::F32(s) => {
                let len = s.len();
                (Target::F32(SharedSlice::new(s)), len)
            }
            KvSliceMut::F16(s) => {
                let len = s.len();
                (Target::F16(SharedSlice::new(s)), len)
            }
        };
        assert!(
            len.is_multiple_of(block),
            "write_kv: the {name} cache has {len} values, no whole number of blocks of {block}"
        );
        (target, len)
    }

    /// Stores a row of values, one after another.
    ///
    /// # Safety
    /// No other thread may touch `at..at + row.len()`.
    unsafe fn store(&self, at: usize, row: &[f32]) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Target::F32(s) => s.slice(at, row.len()).copy_from_slice(row),
                Target::F16(s) => s.slice(at, row.len()).convert_from_f32_slice(row),
            }
        }
    }

    /// Stores a row, value i at `at + i * stride`.
    ///
    /// # Safety
    /// No other thread may touch anything from the first to the last of these places.
    unsafe fn scatter(&self, at: usize, stride: usize, row: &[f32]) {
        let Some(last) = row.len().checked_sub(1) else { return };
        let len = last * stride + 1;
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
            }
        }
    }
}

/// Stores the keys and values of some tokens, both `[tokens, kv_heads, head_dim]`; token `t` goes to slot `slots[t]`, which is
/// `block * block_size + offset in the block`. If two tokens name one slot, the later wins.
///
/// # Panics
/// If the lengths do not fit together or a slot is outside the cache.
#[allow(clippy::too_many_arguments)] // a kernel's shape is its arguments
pub fn write_kv(
    cpu: &Cpu,
    k: &[f32],
    v: &[f32],
    slots: &[u32],
    kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    k_cache: KvSliceMut<'_>,
    v_cache: KvSliceMut<'_>,
) {
    let width = kv_heads * head_dim;
    let block = width * block_size;
    assert!(block > 0, "write_kv: {kv_heads} heads of {head_dim} in blocks of {block_size}");
    assert!(
        k.len() == slots.len() * width && v.len() == k.len(),
        "write_kv: k and v have {} and {} values for {} tokens of {width}",
        k.len(),
        v.len(),
        slots.len()
    );
    let (k_cache, k_len) = Target::new(k_cache, block, "K");
    let (v_cache, v_len) = Target::new(v_cache, block, "V");
    let capacity = k_len.min(v_len) / width;
    if let Some(slot) = slots.iter().find(|&&slot| slot as usize >= capacity) {
        panic!("write_kv: slot {slot} is outside a cache of {capacity} tokens");
    }
    // Heads, not tokens, are spread over threads: two tokens of one slot then stay in order.
    let piece = (PIECE / (slots.len() * head_dim).max(1)).max(1);
    cpu.for_pieces(kv_heads, piece, &|start, end| {
        for (t, &slot) in slots.iter().enumerate() {
            let (b, offset) = (slot as usize / block_size, slot as usize % block_size);
            for head in start..end {
                let from = t * width + head * head_dim;
                let block = (b * kv_heads + head) * block_size * head_dim;
                // SAFETY: a head's part of the cache is touched by the one piece that holds the head.
                unsafe {
                    k_cache.scatter(block + offset, block_size, &k[from..from + head_dim]);
                    v_cache.store(block + offset * head_dim, &v[from..from + head_dim]);
                }
            }
        }
    });
}

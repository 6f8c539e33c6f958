//! The device's side of the paged KV cache: K and V of every layer. Which block belongs to whom is `kv/`'s business.
use crate::model::spec::DecoderSpec;
use crate::ops::{ExecContext, KvDtype, KvShape, PagedKv};
use crate::weights::LoadError;

/// K and V of every layer, in blocks. Allocated once; on the CPU the system hands out the pages
/// zeroed on first use, so a large pool costs memory only as it fills.
///
/// Layers with a sliding window keep their whole context too: all layers then share one block table, and a block that the prefix cache
/// still holds stays complete for whoever finds it.
///
/// # Errors
/// The layers' keys have different shapes, or the device has no room for them.
pub fn paged_kv(
    cx: &ExecContext,
    spec: &DecoderSpec,
    num_blocks: usize,
    block_size: usize,
    dtype: KvDtype,
) -> Result<PagedKv, LoadError> {
    let mut shapes = spec.layers.iter().map(|layer| (layer.attn.kv_heads, layer.attn.head_dim));
    let (kv_heads, head_dim) = shapes.next().unwrap_or_default();
    if let Some(other) = shapes.find(|&shape| shape != (kv_heads, head_dim)) {
        return Err(LoadError::Config(format!(
            "layers with {kv_heads} key heads of {head_dim} and with {} of {}: wick serves models whose layers are alike in this",
            other.0, other.1
        )));
    }
    let shape = KvShape { num_blocks, layers: spec.layers.len(), kv_heads, block_size, head_dim };
    Ok(PagedKv::new(cx, shape, dtype)?)
}

/// Bytes that one token takes in the cache, over all layers.
#[must_use]
pub fn bytes_per_token(spec: &DecoderSpec, dtype: KvDtype) -> u64 {
    spec.layers.iter().map(|layer| (2 * layer.attn.kv_heads * dtype.head_bytes(layer.attn.head_dim)) as u64).sum()
}

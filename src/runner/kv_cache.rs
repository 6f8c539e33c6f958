//! The device's side of the paged KV cache: K and V of every layer. Which block belongs to whom is `kv/`'s business.
use crate::model::spec::DecoderSpec;
use crate::ops::{ExecContext, KvDtype, LayerKv, LayerKvShape};

/// K and V of every layer, in blocks. Allocated once; on the CPU the system hands out the pages
/// zeroed on first use, so a large pool costs memory only as it fills.
///
/// Layers with a sliding window keep their whole context too: all layers then share one block table, and a block that the prefix cache
/// still holds stays complete for whoever finds it.
pub struct KvCache {
    layers: Vec<LayerKv>,
    dtype: KvDtype,
}

impl KvCache {
    /// # Errors
    /// The device has no room for it.
    pub fn new(
        cx: &ExecContext,
        spec: &DecoderSpec,
        num_blocks: usize,
        block_size: usize,
        dtype: KvDtype,
    ) -> candle_core::Result<Self> {
        let layers = spec.layers.iter().map(|layer| {
            let (kv_heads, head_dim) = (layer.attn.kv_heads, layer.attn.head_dim);
            LayerKv::new(cx, LayerKvShape { num_blocks, kv_heads, block_size, head_dim }, dtype)
        });
        Ok(Self { layers: layers.collect::<candle_core::Result<_>>()?, dtype })
    }

    #[must_use]
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// One entry per layer.
    pub fn layers_mut(&mut self) -> &mut [LayerKv] {
        &mut self.layers
    }
}

/// Bytes that one token takes in the cache, over all layers.
#[must_use]
pub fn bytes_per_token(spec: &DecoderSpec, dtype: KvDtype) -> u64 {
    spec.layers.iter().map(|layer| (2 * layer.attn.kv_heads * dtype.head_bytes(layer.attn.head_dim)) as u64).sum()
}

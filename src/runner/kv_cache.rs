//! The size of the paged KV cache ([`PagedKv`](crate::ops::PagedKv)). Which block belongs to whom is `kv/`'s business.
use crate::model::spec::DecoderSpec;
use crate::ops::{KvDtype, KvShape};
use crate::weights::LoadError;

/// K and V of every layer, in blocks.
///
/// Layers with a sliding window keep their whole context too: all layers then share one block table, and a block that the prefix cache
/// still holds stays complete for whoever finds it.
///
/// # Errors
/// The layers' keys have different shapes.
pub fn kv_shape(spec: &DecoderSpec, num_blocks: usize, block_size: usize) -> Result<KvShape, LoadError> {
    let mut shapes = spec.layers.iter().map(|layer| (layer.attn.kv_heads, layer.attn.head_dim));
    let (kv_heads, head_dim) = shapes.next().unwrap_or_default();
    if let Some((other_heads, other_dim)) = shapes.find(|&shape| shape != (kv_heads, head_dim)) {
        return Err(LoadError::Config(format!(
            "some layers have {kv_heads} key heads of {head_dim} and others {other_heads} of {other_dim}: wick serves models whose layers \
             are alike in this"
        )));
    }
    Ok(KvShape { num_blocks, layers: spec.layers.len(), kv_heads, block_size, head_dim })
}

/// Bytes that one token takes in the cache, over all layers.
#[must_use]
pub fn bytes_per_token(spec: &DecoderSpec, dtype: KvDtype) -> u64 {
    spec.layers.iter().map(|layer| (2 * layer.attn.kv_heads * dtype.head_bytes(layer.attn.head_dim)) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::testing::base_spec;

    #[test]
    fn layers_must_be_alike() {
        let mut spec = base_spec();
        let shape = kv_shape(&spec, 5, 16).unwrap();
        assert_eq!((shape.layers, shape.num_blocks, shape.block_size), (spec.layers.len(), 5, 16));
        let last = spec.layers.last_mut().unwrap();
        last.attn.kv_heads += 1;
        assert!(
            kv_shape(&spec, 5, 16)
                .unwrap_err()
                .to_string()
                .contains("some layers have 2 key heads of 16 and others 3 of 16")
        );
    }
}

//! The seam between candle tensors and the kernels.
//!
//! One file per op. Each has two arms: the CPU arm takes slices out of the tensors and calls `wick-kernels`; `reference()` is written in
//! candle's generic operations only. The reference is what CUDA and Metal run until they have a kernel, and it is the oracle of the tests:
//! [`ExecContext::reference`] runs a whole model through it on any device.
//!
//! Activations are f32 and *ragged*: `[total_tokens, width]`, all sequences of a step one after another, without padding or masks. On
//! the CPU arm every output row depends on its own input row only, bit for bit, whatever else is in the batch.
//!
//! An op that takes a tensor by value uses its memory again, for itself or for the next op's output: the tensor must not be shared.
pub mod attention;
pub mod batch;
pub mod context;
pub mod embedding;
pub mod encoder;
pub mod feed_forward;
pub mod gather;
pub mod kv;
pub mod logits;
pub mod matmul;
pub mod norm;
pub mod rope;
mod scale;
mod slices;
#[cfg(test)]
mod tests;

pub use attention::{AttentionParams, paged_attention};
pub use batch::{ForwardBatch, Indices, SeqRange};
pub use context::ExecContext;
pub use embedding::embedding;
pub use encoder::{
    FeedForward, FullAttentionShape, LayerNormParams, add_layer_norm, bias_activation, feed_forward, full_attention,
    products, sum_embeddings,
};
pub use feed_forward::{GatedFeedForward, gated_feed_forward};
pub use gather::gather_rows;
pub use kv::{KvDtype, KvShape, LayerKv, PagedKv, write_kv};
pub use logits::{Peaks, logits};
pub use matmul::{Projection, matmul};
pub use norm::{add_rms_norm, rms_norm, rms_norm_owned};
pub use rope::{HeadNorm, RopeParams, Rotation, rotate_heads, rotation};
pub use scale::scale_columns;
pub use wick_kernels::{Activation, Pointwise};

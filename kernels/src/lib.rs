//! CPU kernels of wick: slices in, slices out.
//!
//! The crate knows nothing of tensors, models or files. Every function is safe, checks the lengths it is given and panics with a message
//! when they do not fit together (callers guarantee shapes). All `unsafe` code of the project lives here.
//!
//! **Batch invariance.** The order in which an output element is summed depends on the shape of its own row and on the instruction set,
//! never on the number of rows, the tile a row falls into, the number of threads or the thread that runs it. The same row gives the same
//! bits in any batch.
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(missing_docs)]

mod allocator;
mod cpu;

pub use allocator::give_back_freed;
pub use cpu::Cpu;
pub use cpu::attention::{AttentionArgs, AttentionScratch, SeqSpan, paged_attention};
pub use cpu::dispatch::{Isa, IsaError};
pub use cpu::elementwise::{Activation, add_rms_norm, gated_activation, rms_norm};
pub use cpu::encoder::{
    FullAttentionArgs, FullAttentionScratch, Pointwise, add_layer_norm, bias_activation, full_attention,
};
pub use cpu::floats::{FloatMatrix, FloatScratch, float_matmul, float_refine};
pub use cpu::kv::{KV_GROUP, KV_PIECE, KV_QUAD, KvLayout, KvSlice, KvSliceMut, write_kv};
pub use cpu::matmul::{MatmulScratch, MatrixRef, matmul};
pub use cpu::memory::{Pages, Plain, Untouched, move_to_large_page};
pub use cpu::packed::{
    PackedMatrix, PackedScratch, Precision, packed_gated_matmul, packed_matmul, packed_matmul_with_peaks, packed_refine,
};
pub use cpu::pool::{ThreadPool, Turn};
pub use cpu::quant::{QuantType, dequantize};
pub use cpu::refine::peaks_of;
pub use cpu::rope::{Heads, Rotation, rotate_heads};

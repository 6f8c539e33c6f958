//! Blocks of a decoder, over `ops/`: each loads its weights by name and runs on whatever device its context has.
pub mod attention;
pub mod embedding;
mod key_units;
pub mod linear;
pub mod mlp;
pub mod norm;

pub use attention::Attention;
pub use embedding::Embedding;
pub use linear::Linear;
pub use mlp::Mlp;
pub use norm::RmsNorm;

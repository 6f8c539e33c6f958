//! Decoder models: a typed, per-layer specification and one forward pass over it.
pub mod arch;
pub mod config;
pub mod decoder;
pub mod embedding;
pub mod registry;
pub mod spec;

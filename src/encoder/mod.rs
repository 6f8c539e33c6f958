//! Encoder models: texts to vectors (embeddings), pairs of texts to numbers (reranking). No cache, no scheduler.
//!
//! One thread owns the model, as the engine's does ([`service`]). Inputs of many requests share a batch (`queue`) without padding:
//! their tokens stand one after another, so that what an input gets never depends, to the bit, on what it is batched with.
//! [`config`] reads a folder into an [`EncoderSpec`], [`bert`] is the forward pass, [`model`] the heads.
pub mod bert;
pub mod config;
pub mod model;
pub mod plan;
mod queue;
pub mod service;

pub use config::{EncoderSpec, HeadSpec, is_encoder};
pub use model::{EncoderFiles, EncoderModel, open};
pub use plan::EncoderPlan;
pub use service::{EncodeFailure, EncodeRefusal, Encoded, EncoderHandle, EncoderInfo, EncoderLimits};

pub use crate::model::embedding::{EmbeddingSpec, Pooling, normalize_vector};

/// One text or pair of texts, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderInput {
    /// Special tokens included.
    pub ids: Vec<u32>,
    /// Where the second text begins; at the end where there is none.
    pub second: usize,
}

impl EncoderInput {
    /// A single text.
    #[must_use]
    pub fn text(ids: Vec<u32>) -> Self {
        Self { second: ids.len(), ids }
    }
}

/// Why a batch failed. Its requests fail with it; the service goes on.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("the encoder's forward pass failed: {0}")]
    Forward(#[from] candle_core::Error),
}

/// What computes batches. The service's thread owns it; tests use fakes.
pub trait EncoderRunner: Send {
    /// One result for each input: a vector, or a single number.
    ///
    /// # Errors
    /// The batch cannot be computed.
    fn run(&mut self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>, EncodeError>;
}

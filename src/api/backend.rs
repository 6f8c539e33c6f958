//! What computes the vectors or scores behind the endpoints of encoders: an encoder's own thread, or an engine around a decoder that
//! embeds.
//!
//! A decoder embeds through the same scheduler, paged cache and forward pass as it would generate, since that is what makes it right and
//! quick: long texts come in chunks beside short ones, beginnings that texts share (an instruction before every query) are computed once
//! and kept per tenant, and what a text gets never depends on its company. A text is a sequence that ends with its prompt.
use crate::encoder::{
    EmbeddingSpec, EncodeFailure, Encoded, EncoderHandle, EncoderInfo, EncoderInput, normalize_vector,
};
use crate::engine::{EngineHandle, GenerationRequest, GenerationStream, SeqEvent};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::error::ApiError;
use super::gate::RequestContext;
use super::notes::Notes;
use crate::telemetry::StepMetrics;

/// What an encoder's endpoint has its inputs computed by. Cheap to clone.
#[derive(Clone)]
pub enum Backend {
    /// A model whose tokens see each other.
    Encoder(EncoderHandle),
    /// A decoder.
    Decoder(DecoderBackend),
}

/// A decoder that embeds.
#[derive(Clone)]
pub struct DecoderBackend {
    /// Of a model that embeds.
    pub engine: EngineHandle,
    pub embedding: EmbeddingSpec,
    /// The observer that the engine was started with, for the metrics of its steps.
    pub steps: Option<Arc<StepMetrics>>,
}

impl From<EncoderHandle> for Backend {
    fn from(encoder: EncoderHandle) -> Self {
        Self::Encoder(encoder)
    }
}

/// Admitted inputs. Dropping it gives them up.
pub(crate) enum Computation {
    Encoder(oneshot::Receiver<Encoded>),
    Decoder { texts: Vec<(usize, GenerationStream)>, normalize: bool, notes: Notes },
}

impl Backend {
    pub(crate) fn info(&self) -> EncoderInfo {
        match self {
            Self::Encoder(encoder) => *encoder.info(),
            Self::Decoder(DecoderBackend { engine, embedding, .. }) => {
                let info = engine.info();
                EncoderInfo {
                    vocab: info.vocab,
                    tokens_max: info.context_max,
                    dimensions: info.dimensions,
                    pooling: Some(embedding.pooling),
                }
            }
        }
    }

    /// Whether so many tokens would not fit into the next step beside what waits.
    pub(crate) fn is_busy(&self, tokens: usize) -> bool {
        match self {
            Self::Encoder(encoder) => encoder.is_busy(tokens),
            Self::Decoder(DecoderBackend { engine, .. }) => {
                let waiting = engine.stats().queued_tokens;
                waiting > 0 && waiting + tokens > engine.info().scheduler.batched_tokens_max
            }
        }
    }

    pub(crate) fn is_healthy(&self) -> bool {
        match self {
            Self::Encoder(encoder) => encoder.is_healthy(),
            Self::Decoder(DecoderBackend { engine, .. }) => engine.is_healthy(),
        }
    }

    /// Resolves when the model has become unhealthy, never before.
    pub async fn failed(&self) {
        match self {
            Self::Encoder(encoder) => encoder.failed().await,
            Self::Decoder(DecoderBackend { engine, .. }) => engine.failed().await,
        }
    }

    /// Submits the inputs of one request, which are admitted together or not at all.
    pub(crate) fn submit(&self, context: &RequestContext, inputs: Vec<EncoderInput>) -> Result<Computation, ApiError> {
        let DecoderBackend { engine, embedding, .. } = match self {
            Self::Encoder(encoder) => return Ok(Computation::Encoder(encoder.submit(inputs)?)),
            Self::Decoder(decoder) => decoder,
        };
        let (salt, tenant) = (context.tenant.cache_salt(None), context.tenant.group());
        let mut lengths = Vec::with_capacity(inputs.len());
        let mut requests = Vec::with_capacity(inputs.len());
        for EncoderInput { ids, .. } in inputs {
            lengths.push(ids.len());
            requests.push(GenerationRequest::embedding(ids, embedding.pooling, salt, tenant));
        }
        if let Some(first) = requests.first_mut() {
            first.explain = context.notes.wants_explanation();
        }
        let texts = lengths.into_iter().zip(engine.submit(requests)?).collect();
        Ok(Computation::Decoder { texts, normalize: embedding.normalize, notes: context.notes.clone() })
    }
}

impl Computation {
    /// One vector, or number, for each input.
    pub(crate) async fn results(self) -> Result<Vec<Vec<f32>>, ApiError> {
        let (texts, normalize, notes) = match self {
            Self::Encoder(answer) => return Ok(answer.await.unwrap_or(Err(EncodeFailure::Stopped))?),
            Self::Decoder { texts, normalize, notes } => (texts, normalize, notes),
        };
        let mut vectors = Vec::with_capacity(texts.len());
        // In order: events of later texts wait in their streams.
        for (tokens, stream) in texts {
            let mut vector = vector_of(stream, tokens, &notes).await?;
            if normalize {
                normalize_vector(&mut vector);
            }
            vectors.push(vector);
        }
        Ok(vectors)
    }
}

async fn vector_of(mut stream: GenerationStream, tokens: usize, notes: &Notes) -> Result<Vec<f32>, ApiError> {
    while let Some(event) = stream.next().await {
        match event {
            SeqEvent::Started { cached_tokens, queued, closest } => {
                notes.queued(queued);
                if let Some(closest) = closest {
                    notes.explained(tokens, cached_tokens, closest);
                }
            }
            SeqEvent::Embedding(vector) => return Ok(vector),
            SeqEvent::Failed(failure) => return Err(failure.into()),
            SeqEvent::PromptLogprobs(_) | SeqEvent::Token(..) | SeqEvent::Finished { .. } => {}
        }
    }
    Err(ApiError::EngineStopped)
}

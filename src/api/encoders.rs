//! What the endpoints of encoder models share: which model is meant, tokens within its limit, and waiting for its results.
use std::sync::Arc;

use super::AppState;
use super::backend::Backend;
use super::error::ApiError;
use super::fields::Fields;
use super::gate::{RequestContext, Tokens};
use crate::encoder::EncoderInput;
use crate::telemetry::{Metrics, ModelMetrics};
use crate::text::TextTools;

/// Most texts of one request: OpenAI's limit.
pub(crate) const INPUTS_MAX: usize = 2048;

/// A model that encodes, or embeds, by the name that clients use.
#[derive(Clone)]
pub struct ServedEncoder {
    /// The name clients use; may contain slashes.
    pub alias: String,
    pub backend: Backend,
    pub text: Arc<TextTools>,
    /// Unix time in seconds, shown by `/v1/models`.
    pub created: u64,
    pub owned_by: String,
}

/// A served encoder with what the API keeps about it.
pub(crate) struct Encoder {
    pub(crate) served: ServedEncoder,
    metrics: Arc<ModelMetrics>,
}

/// What an endpoint wants of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Embed,
    Rerank,
}

impl Encoder {
    pub(crate) fn new(served: ServedEncoder, metrics: &Metrics) -> Self {
        Self { metrics: Arc::new(metrics.model(&served.alias)), served }
    }

    /// The same encoder by another name.
    pub(crate) fn named(&self, alias: &str) -> Self {
        let served = ServedEncoder { alias: alias.to_owned(), ..self.served.clone() };
        Self { metrics: Arc::clone(&self.metrics), served }
    }

    pub(crate) fn alias(&self) -> &str {
        &self.served.alias
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.served.backend.is_healthy()
    }

    pub(crate) fn purpose(&self) -> Purpose {
        if self.served.backend.info().dimensions.is_some() { Purpose::Embed } else { Purpose::Rerank }
    }

    /// Its endpoint, for messages.
    pub(crate) fn serves(&self) -> &'static str {
        match self.purpose() {
            Purpose::Embed => "/v1/embeddings",
            Purpose::Rerank => "/v1/rerank",
        }
    }

    /// Tokens of one input, special ones included.
    pub(crate) fn limit(&self) -> usize {
        self.served.backend.info().tokens_max
    }

    /// A text's tokens, without special ones: control tokens written in it are text. Unless it will be cut off, a text that is far too
    /// long is refused before the work of finding its tokens.
    pub(crate) fn plain_tokens(&self, text: &str, param: &str, cut: bool) -> Result<Vec<u32>, ApiError> {
        let tokenizer = &self.served.text.tokenizer;
        if !cut && tokenizer.is_far_longer_than(text, self.limit())? {
            let size = format!("far more tokens than that ({} bytes of text)", text.len());
            return Err(self.too_long(param, size));
        }
        Ok(tokenizer.encode(text, false)?)
    }

    pub(crate) fn too_long(&self, param: &str, size: String) -> ApiError {
        ApiError::InputTooLong { param: param.to_owned(), size, limit: self.limit() }
    }

    /// Refuses an input that is longer than the model reads.
    pub(crate) fn check(&self, tokens: usize, param: &str) -> Result<(), ApiError> {
        if tokens > self.limit() { Err(self.too_long(param, format!("{tokens} tokens"))) } else { Ok(()) }
    }
}

impl AppState {
    /// The encoder that a request's `model` field names; without one, the first that serves this purpose.
    pub(crate) fn encoder(&self, fields: &mut Fields, purpose: Purpose) -> Result<Arc<Encoder>, ApiError> {
        let Some(alias) = fields.string("model")? else {
            let fitting = self.encoders().iter().find(|encoder| encoder.purpose() == purpose);
            let example = match purpose {
                Purpose::Embed => "all-minilm-l6-v2",
                Purpose::Rerank => "hf:BAAI/bge-reranker-base",
            };
            return fitting.cloned().ok_or(ApiError::NoModel { example });
        };
        let Some(found) = self.every_encoder().find(|encoder| encoder.alias() == alias) else {
            let serves = "/v1/chat/completions and /v1/completions";
            return Err(self
                .find(&alias)
                .map_or_else(|error| error, |_| ApiError::WrongEndpoint { model: alias, serves }));
        };
        if found.purpose() == purpose {
            return Ok(Arc::clone(found));
        }
        Err(ApiError::WrongEndpoint { model: alias, serves: found.serves() })
    }
}

/// `truncate_prompt_tokens`, vLLM's: how many tokens of an input are kept, special ones included; -1 stands for the model's limit.
/// `special`: how many there are at least.
pub(crate) fn truncate(fields: &mut Fields, limit: usize, special: usize) -> Result<Option<usize>, ApiError> {
    const NAME: &str = "truncate_prompt_tokens";
    let Some(keep) = fields.integer(NAME, -1..=i64::try_from(limit).unwrap_or(i64::MAX))? else { return Ok(None) };
    match usize::try_from(keep) {
        Err(_) => Ok(Some(limit)),
        Ok(keep) if keep > special => Ok(Some(keep)),
        Ok(keep) => Err(ApiError::invalid(
            NAME,
            format!("`{NAME}` must be -1 or more than the model's {special} special tokens, but {keep} was given."),
        )),
    }
}

/// Takes the fields that say who asks: checked, then ignored. Gives the paths of those that were there.
pub(crate) fn take_harmless(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let mut ignored = Vec::new();
    for name in ["user", "request_id", "safety_identifier"] {
        if fields.string(name)?.is_some() {
            ignored.push(fields.path(name));
        }
    }
    Ok(ignored)
}

/// Submits the inputs and waits for their results. Whoever drops the future gives them up. `unless_busy`: refuses them where the
/// next batch would not take them.
pub(crate) async fn run(
    app: &AppState,
    context: &RequestContext,
    encoder: &Encoder,
    inputs: Vec<EncoderInput>,
    unless_busy: bool,
) -> Result<Vec<Vec<f32>>, ApiError> {
    let prompt = inputs.iter().map(|input| input.ids.len()).sum();
    let backend = &encoder.served.backend;
    if unless_busy && backend.is_busy(prompt) {
        return Err(ApiError::busy());
    }
    let computation = backend.submit(context, inputs)?;
    context.tokens.set(Tokens { prompt, ..Tokens::default() });
    let mut cut = app.shared.cut.subscribe();
    let encoded = tokio::select! {
        results = computation.results() => results,
        _ = cut.wait_for(|cut| *cut) => Err(ApiError::CutOff),
    };
    encoder.metrics.encoded(context.started, prompt, encoded.is_ok());
    encoded
}

/// Runs a large piece of JSON's making beside the async workers.
pub(crate) async fn beside<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(job).await.map_err(|error| {
        tracing::error!(panicked = error.is_panic(), "writing a response failed");
        ApiError::Internal
    })
}

//! `POST /v1/embeddings`.
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::AppState;
use super::body::{Claim, JsonBody};
use super::encoders::{self, Encoder, INPUTS_MAX, Purpose};
use super::error::ApiError;
use super::fields::{Fields, type_name};
use super::gate::RequestContext;
use super::params::{token_ids, unless_busy};
use crate::encoder::{EncoderInput, normalize_vector};

/// Values of a response that are written where they are; more are written beside the async workers.
const INLINE_VALUES_MAX: usize = 8 << 10;

enum Input {
    Text(String),
    /// Taken as they are: whoever sends ids has put the special ones there.
    Ids(Vec<u32>),
}

/// A validated request: what every dialect's comes down to.
pub(crate) struct EmbeddingRequest {
    pub(crate) model: Arc<Encoder>,
    /// Each with its path, for messages.
    inputs: Vec<(String, Input)>,
    truncate: Option<usize>,
    dimensions: Option<usize>,
    base64: bool,
    unless_busy: bool,
    /// Fields that have no effect.
    ignored: Vec<String>,
}

/// Vectors, one for each input, and the tokens of all inputs.
pub(crate) struct Embedded {
    pub(crate) vectors: Vec<Vec<f32>>,
    pub(crate) tokens: usize,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "EmbeddingVector")]
enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Embedding")]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "EmbeddingUsage")]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Embeddings")]
pub(crate) struct Body<'a> {
    object: &'static str,
    data: Vec<Item>,
    model: &'a str,
    usage: Usage,
}

/// The handler.
pub(crate) async fn create(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let (request, claim) = body.lower(&app, EmbeddingRequest::lower).await?;
    let (model, dimensions, base64) = (Arc::clone(&request.model), request.dimensions, request.base64);
    let embedded = embed(&app, &context, request, claim).await?;
    respond(embedded, move |embedded| write(&model, embedded, dimensions, base64)).await
}

/// Computes the vectors of a request.
pub(crate) async fn embed(
    app: &AppState,
    context: &RequestContext,
    request: EmbeddingRequest,
    claim: Claim,
) -> Result<Embedded, ApiError> {
    let EmbeddingRequest { model, inputs, truncate, unless_busy, ignored, .. } = request;
    context.notes.ignored(ignored);
    let of = Arc::clone(&model);
    let encode = move || inputs.into_iter().map(|(path, input)| tokens(&of, input, &path, truncate)).collect();
    let inputs: Vec<EncoderInput> = claim.work(app, encode).await?;
    let tokens = inputs.iter().map(|input| input.ids.len()).sum();
    let vectors = encoders::run(app, context, &model, inputs, unless_busy).await?;
    Ok(Embedded { vectors, tokens })
}

/// The response with what `write` makes of the vectors: beside the async workers, if they are many.
pub(crate) async fn respond(
    embedded: Embedded,
    write: impl FnOnce(Embedded) -> Result<Vec<u8>, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let values: usize = embedded.vectors.iter().map(Vec::len).sum();
    let json =
        if values > INLINE_VALUES_MAX { encoders::beside(move || write(embedded)).await? } else { write(embedded) }?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response())
}

/// An input's tokens, cut off at the end if that was asked for.
fn tokens(model: &Encoder, input: Input, path: &str, truncate: Option<usize>) -> Result<EncoderInput, ApiError> {
    let tokenizer = &model.served.text.tokenizer;
    let ids = match input {
        Input::Text(text) => {
            let mut ids = model.plain_tokens(&text, path, truncate.is_some())?;
            if let Some(keep) = truncate {
                ids.truncate(keep.saturating_sub(tokenizer.frame_len()));
            }
            tokenizer.frame(&ids)
        }
        Input::Ids(mut ids) => {
            ids.truncate(truncate.unwrap_or(usize::MAX));
            ids
        }
    };
    if ids.is_empty() {
        let message = format!("`{path}` has no tokens; give a text that has some.");
        return Err(ApiError::invalid(path, message));
    }
    model.check(ids.len(), path)?;
    Ok(EncoderInput::text(ids))
}

fn write(model: &Encoder, embedded: Embedded, dimensions: Option<usize>, base64: bool) -> Result<Vec<u8>, ApiError> {
    let Embedded { vectors, tokens } = embedded;
    let item = |(index, mut vector): (usize, Vec<f32>)| {
        if let Some(dimensions) = dimensions.filter(|dimensions| *dimensions < vector.len()) {
            vector.truncate(dimensions);
            normalize_vector(&mut vector);
        }
        let embedding = if base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            Vector::Base64(STANDARD.encode(bytes))
        } else {
            Vector::Floats(vector)
        };
        Item { object: "embedding", index, embedding }
    };
    let body = Body {
        object: "list",
        data: vectors.into_iter().enumerate().map(item).collect(),
        model: model.alias(),
        usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
    };
    serde_json::to_vec(&body).map_err(|_| ApiError::Internal)
}

impl EmbeddingRequest {
    pub(crate) fn lower(mut fields: Fields, app: &AppState) -> Result<Self, ApiError> {
        let model = app.encoder(&mut fields, Purpose::Embed)?;
        let ignored = encoders::take_harmless(&mut fields)?;
        let unless_busy = unless_busy(&mut fields)?;
        let info = model.served.backend.info();
        let inputs = inputs(&mut fields, info.vocab)?;
        let special = model.served.text.tokenizer.frame_len();
        let truncate = encoders::truncate(&mut fields, info.tokens_max, special)?;
        let base64 = fields.choice("encoding_format", &["float", "base64"])? == Some("base64");
        let own = info.dimensions.unwrap_or_default();
        let dimensions = fields.count("dimensions", 1..=u32::MAX)?;
        if let Some(asked) = dimensions.filter(|asked| *asked > own) {
            let message = format!("`dimensions` must be between 1 and the model's {own}, but {asked} was given.");
            return Err(ApiError::invalid("dimensions", message));
        }
        fields.finish()?;
        Ok(Self { model, inputs, truncate, dimensions, base64, unless_busy, ignored })
    }
}

/// A string, several, token ids, or several lists of token ids. None of them empty.
fn inputs(fields: &mut Fields, vocab: usize) -> Result<Vec<(String, Input)>, ApiError> {
    let param = fields.path("input");
    let expected = "a string, an array of strings, an array of token ids, or an array of such arrays";
    let items = match fields.require("input")? {
        Value::String(text) => return Ok(vec![text_at(param, text)?]),
        Value::Array(items) => items,
        other => return Err(ApiError::WrongType { param, expected, found: type_name(&other) }),
    };
    if items.is_empty() {
        let message = format!("`{param}` is empty; give at least one text.");
        return Err(ApiError::InvalidValue { param, message });
    }
    if let Some(Value::Number(_)) = items.first() {
        let ids = token_ids(&param, &items, vocab)?;
        return Ok(vec![(param, Input::Ids(ids))]);
    }
    if items.len() > INPUTS_MAX {
        let message = format!(
            "`{param}` has {} texts, but one request may have at most {INPUTS_MAX}: send several requests.",
            items.len()
        );
        return Err(ApiError::InvalidValue { param, message });
    }
    let input = |(index, item)| {
        let path = format!("{param}[{index}]");
        match item {
            Value::String(text) => text_at(path, text),
            Value::Array(ids) if ids.is_empty() => Err(empty(path)),
            Value::Array(ids) => {
                let ids = token_ids(&path, &ids, vocab)?;
                Ok((path, Input::Ids(ids)))
            }
            other => Err(ApiError::WrongType { param: path, expected, found: type_name(&other) }),
        }
    };
    items.into_iter().enumerate().map(input).collect()
}

fn text_at(path: String, text: String) -> Result<(String, Input), ApiError> {
    if text.is_empty() { Err(empty(path)) } else { Ok((path, Input::Text(text))) }
}

fn empty(path: String) -> ApiError {
    let message = format!("`{path}` is empty; give a text.");
    ApiError::InvalidValue { param: path, message }
}

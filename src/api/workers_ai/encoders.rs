//! Embeddings and reranking as Workers AI has them.
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{Envelope, enveloped, take_model};
use crate::api::AppState;
use crate::api::body::JsonBody;
use crate::api::embeddings::{self, EmbeddingRequest};
use crate::api::error::ApiError;
use crate::api::fields::{Fields, type_name};
use crate::api::gate::RequestContext;
use crate::api::rerank::{self, RerankRequest};

/// Fields of `/v1/embeddings` that have another name here, or no place in the answer.
pub(crate) const NO_EMBEDDING: &[(&str, &str)] = &[
    ("input", " here; use `text`"),
    ("encoding_format", " here; use …/ai/v1/embeddings"),
    ("dimensions", " here; use …/ai/v1/embeddings"),
];

/// The same of `/v1/rerank`.
pub(crate) const NO_RERANKING: &[(&str, &str)] = &[
    ("documents", " here; use `contexts`"),
    ("top_n", " here; use `top_k`"),
    ("return_documents", " here: the answer has the places of the contexts"),
];

/// `[texts, values of a vector]`, the vectors, and how rows became one.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "WorkersAiEmbeddings")]
pub(crate) struct Vectors {
    shape: [usize; 2],
    data: Vec<Vec<f32>>,
    pooling: &'static str,
    usage: Usage,
}

/// Documents' places in the request with their scores, best first.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "WorkersAiReranking")]
pub(crate) struct Ranking {
    response: Vec<Score>,
    usage: Usage,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "WorkersAiScore")]
struct Score {
    id: usize,
    score: f32,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "WorkersAiUsage")]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    fn of(tokens: usize) -> Self {
        Self { prompt_tokens: tokens, completion_tokens: 0, total_tokens: tokens }
    }
}

/// The vectors of `text`: a string, or several.
pub(super) async fn embed(
    app: &AppState,
    context: &RequestContext,
    name: String,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let (request, claim) = body.lower(app, move |fields, app| lower_embed(fields, &name, app)).await?;
    let model = Arc::clone(&request.model);
    let embedded = embeddings::embed(app, context, request, claim).await?;
    let write = move |embedded: embeddings::Embedded| {
        let info = model.served.backend.info();
        let vectors = Vectors {
            shape: [embedded.vectors.len(), info.dimensions.unwrap_or_default()],
            data: embedded.vectors,
            pooling: info.pooling.map_or("", |pooling| pooling.name()),
            usage: Usage::of(embedded.tokens),
        };
        serde_json::to_vec(&Envelope::of(vectors)).map_err(|_| ApiError::Internal)
    };
    embeddings::respond(embedded, write).await
}

/// Under the names that `/v1/embeddings` has for them.
fn lower_embed(mut fields: Fields, name: &str, app: &AppState) -> Result<EmbeddingRequest, ApiError> {
    take_model(&mut fields, name)?;
    // Of another dialect; the places of some are needed.
    fields.refuse(NO_EMBEDDING)?;
    let text = fields.require("text")?;
    let is_text = match &text {
        Value::String(_) => true,
        Value::Array(texts) => texts.iter().all(Value::is_string),
        _ => false,
    };
    if !is_text {
        let (param, found) = (fields.path("text"), type_name(&text));
        return Err(ApiError::WrongType { param, expected: "a string or an array of strings", found });
    }
    fields.put("input", text, "text".to_owned());
    let pooling = fields.choice("pooling", &["mean", "cls"])?;
    if fields.bool("truncate_inputs")?.unwrap_or(false) {
        fields.put("truncate_prompt_tokens", (-1).into(), "truncate_inputs".to_owned());
    }
    fields.put("model", name.into(), "model".to_owned());
    let request = EmbeddingRequest::lower(fields, app)?;
    let own = request.model.served.backend.info().pooling.map_or("", |own| own.name());
    if let Some(other) = pooling.filter(|pooling| *pooling != own) {
        let message = format!("`pooling` is `{other}`, but this model was made for `{own}`; leave it out.");
        return Err(ApiError::invalid("pooling", message));
    }
    Ok(request)
}

/// The scores of `contexts` for `query`, best first.
pub(super) async fn rerank(
    app: &AppState,
    context: &RequestContext,
    name: String,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let (request, claim) = body.lower(app, move |fields, app| lower_rerank(fields, &name, app)).await?;
    let ranked = rerank::rank(app, context, request, claim).await?;
    let response = ranked.order.iter().map(|(id, score)| Score { id: *id, score: *score }).collect();
    Ok(enveloped(Ranking { response, usage: Usage::of(ranked.tokens) }).into_response())
}

/// Under the names that `/v1/rerank` has for them.
fn lower_rerank(mut fields: Fields, name: &str, app: &AppState) -> Result<RerankRequest, ApiError> {
    take_model(&mut fields, name)?;
    fields.refuse(NO_RERANKING)?;
    for (given, own) in [("contexts", "documents"), ("top_k", "top_n")] {
        if let Some(value) = fields.take(given) {
            fields.put(own, value, given.to_owned());
        }
    }
    if fields.peek("documents").is_none() {
        return Err(ApiError::Missing { param: "contexts".to_owned() });
    }
    fields.put("model", name.into(), "model".to_owned());
    RerankRequest::lower(fields, app)
}

//! Embeddings and reranking as Workers AI has them.
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Envelope, enveloped, take_model};
use crate::api::AppState;
use crate::api::body::JsonBody;
use crate::api::embeddings::{self, EmbeddingRequest};
use crate::api::error::ApiError;
use crate::api::fields::{Fields, type_name};
use crate::api::gate::RequestContext;
use crate::api::notes::Notes;
use crate::api::rerank::{self, RerankRequest};

/// `[texts, values of a vector]`, the vectors, and how rows became one.
#[derive(Serialize)]
struct Vectors {
    shape: [usize; 2],
    data: Vec<Vec<f32>>,
    pooling: &'static str,
    usage: Usage,
}

#[derive(Serialize)]
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
    let notes = context.notes.clone();
    let (request, claim) = body.lower(app, move |fields, app| lower_embed(fields, &name, app, &notes)).await?;
    let model = Arc::clone(&request.model);
    let embedded = embeddings::embed(app, context, request, claim).await?;
    let write = move |embedded: embeddings::Embedded| {
        let info = model.served.encoder.info();
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
fn lower_embed(mut fields: Fields, name: &str, app: &AppState, notes: &Notes) -> Result<EmbeddingRequest, ApiError> {
    take_model(&mut fields, name)?;
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
    free(&mut fields, "input")?;
    fields.put("input", text, "text".to_owned());
    let pooling = fields.choice("pooling", &["mean", "cls"])?;
    if fields.bool("truncate_inputs")?.unwrap_or(false) {
        fields.put("truncate_prompt_tokens", (-1).into(), "truncate_inputs".to_owned());
    }
    fields.put("model", name.into(), "model".to_owned());
    let request = EmbeddingRequest::lower(fields, app, notes)?;
    let own = request.model.served.encoder.info().pooling.map_or("", |own| own.name());
    if let Some(other) = pooling.filter(|pooling| *pooling != own) {
        let message = format!("`pooling` is `{other}`, but this model was made for `{own}`; leave it out.");
        return Err(ApiError::invalid("pooling", message));
    }
    Ok(request)
}

/// Refuses a field of another dialect, whose place is needed.
fn free(fields: &mut Fields, name: &str) -> Result<(), ApiError> {
    fields.take(name).map_or(Ok(()), |_| Err(ApiError::UnknownParameter { param: fields.path(name) }))
}

/// The scores of `contexts` for `query`, best first.
pub(super) async fn rerank(
    app: &AppState,
    context: &RequestContext,
    name: String,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let notes = context.notes.clone();
    let (request, claim) = body.lower(app, move |fields, app| lower_rerank(fields, &name, app, &notes)).await?;
    let ranked = rerank::rank(app, context, request, claim).await?;
    let response: Vec<Value> = ranked.order.iter().map(|(id, score)| json!({"id": id, "score": score})).collect();
    Ok(enveloped(json!({"response": response, "usage": Usage::of(ranked.tokens)})).into_response())
}

/// Under the names that `/v1/rerank` has for them.
fn lower_rerank(mut fields: Fields, name: &str, app: &AppState, notes: &Notes) -> Result<RerankRequest, ApiError> {
    take_model(&mut fields, name)?;
    for (given, own) in [("contexts", "documents"), ("top_k", "top_n")] {
        free(&mut fields, own)?;
        if let Some(value) = fields.take(given) {
            fields.put(own, value, given.to_owned());
        }
    }
    if fields.peek("documents").is_none() {
        return Err(ApiError::Missing { param: "contexts".to_owned() });
    }
    fields.put("model", name.into(), "model".to_owned());
    RerankRequest::lower(fields, app, notes)
}

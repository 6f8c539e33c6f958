//! Anthropic's dialect: `POST /v1/messages` and `POST /v1/messages/count_tokens`. Translates, and nothing else.
mod answer;
mod errors;
mod request;
mod stream;

use std::pin::pin;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::StreamExt;
use serde_json::json;

use super::AppState;
use super::body::JsonBody;
use super::chat::start;
use super::error::ApiError;
use super::gate::RequestContext;
use super::pipeline::{Event, events};
use super::stream::tell;
use answer::Answer;

pub(crate) use errors::{body, reshape, status};
pub(crate) use request::{EFFORTS, KEEP_THOUGHTS, UNSUPPORTED};

/// Whether errors on this path are to be told in Anthropic's words.
pub(crate) fn speaks(path: &str) -> bool {
    path == "/v1/messages" || path.starts_with("/v1/messages/")
}

/// `POST /v1/messages`.
pub(crate) async fn create(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let (request, claim) = body.lower(&app, request::lower).await?;
    let model = request.model.served.alias.clone();
    let (streaming, max_tokens) = (request.common.stream.is_some(), request.max_tokens);
    let job = start(&app, &context, request, claim, "messages").await?;
    if streaming {
        return Ok(tell(job, stream::Story::new(&model, max_tokens), app.options().keep_alive));
    }
    let mut answer = Answer::new(&model, max_tokens);
    let mut events = pin!(events(job));
    while let Some(event) = events.next().await {
        if let Event::Failed(error) = event {
            return Err(error);
        }
        answer.take(event);
    }
    Ok(Json(answer.message()).into_response())
}

/// `POST /v1/messages/count_tokens`: of the prompt that `/v1/messages` would make of the same fields.
pub(crate) async fn count(State(app): State<AppState>, body: JsonBody) -> Result<Response, ApiError> {
    let (request, claim) = body.lower(&app, request::lower_count).await?;
    let count = move || Ok(request.model.served.text.encode_chat(&request.input)?.len());
    let input_tokens = claim.work(&app, count).await?;
    Ok(Json(json!({ "input_tokens": input_tokens })).into_response())
}

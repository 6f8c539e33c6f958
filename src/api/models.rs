//! `GET /v1/models` and `GET /v1/models/{id}`.
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::Serialize;

use super::encoders::Encoder;
use super::error::ApiError;
use super::{AppState, Model};

/// OpenAI's model object with vLLM's `max_model_len`.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Model")]
pub(crate) struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: String,
    max_model_len: usize,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

fn object(model: &Model) -> ModelObject {
    ModelObject {
        id: model.served.alias.clone(),
        object: "model",
        created: model.served.created,
        owned_by: model.served.owned_by.clone(),
        max_model_len: model.context_max,
    }
}

fn encoder_object(encoder: &Encoder) -> ModelObject {
    ModelObject {
        id: encoder.served.alias.clone(),
        object: "model",
        created: encoder.served.created,
        owned_by: encoder.served.owned_by.clone(),
        max_model_len: encoder.served.backend.info().tokens_max,
    }
}

/// Every model by every name; an error while an engine is down, since load balancers probe this route.
pub(crate) async fn list(State(app): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    if !app.is_healthy() {
        return Err(ApiError::EngineStopped);
    }
    let models = app.every_model().map(|model| object(model));
    let data = models.chain(app.every_encoder().map(|encoder| encoder_object(encoder))).collect();
    Ok(Json(ModelList { object: "list", data }))
}

/// One model; its id may contain slashes.
pub(crate) async fn get(
    State(app): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelObject>, ApiError> {
    // Bytes that are no text cannot be a model's name.
    let Path(id) = id.map_err(|_| ApiError::ModelNotFound { model: char::REPLACEMENT_CHARACTER.into() })?;
    if let Some(encoder) = app.every_encoder().find(|encoder| encoder.alias() == id) {
        return Ok(Json(encoder_object(encoder)));
    }
    Ok(Json(object(&*app.find(&id)?)))
}

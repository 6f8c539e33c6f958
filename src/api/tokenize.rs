//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::AppState;
use super::body::JsonBody;
use super::error::ApiError;
use super::fields::Fields;
use super::params::token_ids;
use super::{Model, chat};

#[derive(Serialize)]
pub(crate) struct Tokenized {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
pub(crate) struct Detokenized {
    prompt: String,
}

/// The tokens of a `prompt`, as `/v1/completions` would see it, or of `messages`, as `/v1/chat/completions` would.
pub(crate) async fn tokenize(
    State(app): State<AppState>,
    JsonBody(mut fields): JsonBody,
) -> Result<Json<Tokenized>, ApiError> {
    let model = app.named(&mut fields)?;
    let strings = fields.bool("return_token_strs")?.unwrap_or(false);
    let text = Arc::clone(&model.served.text);
    let tokens = if fields.peek("messages").is_some() {
        let input = chat::input(&mut fields)?;
        if fields.bool("add_special_tokens")? == Some(true) {
            let hint = " with `messages`: the chat template writes the special tokens";
            return Err(ApiError::Unsupported { param: "add_special_tokens".to_owned(), hint });
        }
        fields.finish()?;
        app.blocking(move || Ok(text.encode_chat(&input)?)).await?
    } else {
        let prompt = fields.string("prompt")?.ok_or_else(|| ApiError::Missing { param: "prompt".to_owned() })?;
        let add_special = fields.bool("add_special_tokens")?.unwrap_or(true);
        fields.finish()?;
        app.blocking(move || Ok(text.tokenizer.encode_with_special(&prompt, add_special)?)).await?
    };
    let token_strs = strings.then(|| tokens.iter().map(|id| token_text(&model, *id)).collect());
    Ok(Json(Tokenized { count: tokens.len(), max_model_len: model.context_max, tokens, token_strs }))
}

fn token_text(model: &Model, id: u32) -> String {
    String::from_utf8_lossy(model.served.text.tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
}

/// The text of `tokens`, control tokens included.
pub(crate) async fn detokenize(
    State(app): State<AppState>,
    JsonBody(mut fields): JsonBody,
) -> Result<Json<Detokenized>, ApiError> {
    let model = app.named(&mut fields)?;
    let tokens = tokens(&mut fields, &model)?;
    fields.finish()?;
    let text = Arc::clone(&model.served.text);
    let prompt = app.blocking(move || Ok(text.tokenizer.decode(&tokens, false))).await?;
    Ok(Json(Detokenized { prompt }))
}

fn tokens(fields: &mut Fields, model: &Model) -> Result<Vec<u32>, ApiError> {
    let items = fields.array("tokens")?.ok_or_else(|| ApiError::Missing { param: "tokens".to_owned() })?;
    token_ids("tokens", &items, model.served.engine.info().vocab)
}

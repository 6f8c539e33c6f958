//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, in vLLM's shapes.
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::body::JsonBody;
use super::error::ApiError;
use super::fields::Fields;
use super::params::token_ids;
use super::tools::Form;
use super::{Model, chat};
use crate::text::ChatInput;

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Tokens")]
pub(crate) struct Tokenized {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Text")]
pub(crate) struct Detokenized {
    prompt: String,
}

/// The tokens of a `prompt`, as `/v1/completions` would see it, or of `messages`, as `/v1/chat/completions` would.
pub(crate) async fn tokenize(State(app): State<AppState>, body: JsonBody) -> Result<Json<Tokenized>, ApiError> {
    let (request, claim) = body.lower(&app, lower).await?;
    let TokenizeRequest { model, strings, text } = request;
    let tokenize = move || {
        let tools = &model.served.text;
        let tokens = match &text {
            TokenizeText::Chat(input) => tools.encode_chat(input)?,
            TokenizeText::Prompt { prompt, add_special } => {
                tools.tokenizer.encode_with_special(prompt, *add_special)?
            }
        };
        let token_strs = strings.then(|| tokens.iter().map(|id| token_text(&model, *id)).collect());
        Ok(Json(Tokenized { count: tokens.len(), max_model_len: model.context_max, tokens, token_strs }))
    };
    claim.work(&app, tokenize).await
}

struct TokenizeRequest {
    model: Arc<Model>,
    strings: bool,
    text: TokenizeText,
}

enum TokenizeText {
    Chat(ChatInput),
    Prompt { prompt: String, add_special: bool },
}

fn lower(mut fields: Fields, app: &AppState) -> Result<TokenizeRequest, ApiError> {
    let model = app.named(&mut fields)?;
    let strings = fields.bool("return_token_strs")?.unwrap_or(false);
    let text = if fields.peek("messages").is_some() {
        let (input, _) = chat::input(&mut fields, Form::Nested)?;
        if fields.bool("add_special_tokens")? == Some(true) {
            let hint = " with `messages`: the chat template writes the special tokens";
            return Err(ApiError::Unsupported { param: "add_special_tokens".to_owned(), hint });
        }
        TokenizeText::Chat(input)
    } else {
        let prompt = fields.string("prompt")?.ok_or_else(|| ApiError::Missing { param: "prompt".to_owned() })?;
        let add_special = fields.bool("add_special_tokens")?.unwrap_or(true);
        TokenizeText::Prompt { prompt, add_special }
    };
    fields.finish()?;
    Ok(TokenizeRequest { model, strings, text })
}

fn token_text(model: &Model, id: u32) -> String {
    String::from_utf8_lossy(model.served.text.tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
}

/// The text of `tokens`, control tokens included.
pub(crate) async fn detokenize(State(app): State<AppState>, body: JsonBody) -> Result<Json<Detokenized>, ApiError> {
    let lower = |mut fields: Fields, app: &AppState| {
        let model = app.named(&mut fields)?;
        let tokens = tokens(&mut fields, &model)?;
        fields.finish()?;
        Ok((model, tokens))
    };
    let ((model, tokens), claim) = body.lower(&app, lower).await?;
    let detokenize = move || Ok(Json(Detokenized { prompt: model.served.text.tokenizer.decode(&tokens, false) }));
    claim.work(&app, detokenize).await
}

/// What clients that tokenize with the routes above (lm-eval) still need to know.
#[derive(Serialize, JsonSchema)]
pub(crate) struct TokenizerInfo {
    model: String,
    max_model_len: usize,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InfoQuery {
    model: Option<String>,
}

/// The special tokens of the model that `?model=` names, or of the first.
pub(crate) async fn info(
    State(app): State<AppState>,
    query: Result<Query<InfoQuery>, QueryRejection>,
) -> Result<Json<TokenizerInfo>, ApiError> {
    let Query(InfoQuery { model }) = query.map_err(|_| {
        ApiError::invalid("model", "The query may be `?model=NAME` or empty; see `GET /v1/models` for the names.")
    })?;
    let model = app.find_or_first(model.as_deref())?;
    let tokenizer = &model.served.text.tokenizer;
    let text = |id: u32| tokenizer.decode(&[id], false);
    Ok(Json(TokenizerInfo {
        model: model.served.alias.clone(),
        max_model_len: model.context_max,
        bos_token: tokenizer.bos_id().map(text),
        eos_token: tokenizer.stop_ids().first().copied().map(text),
    }))
}

fn tokens(fields: &mut Fields, model: &Model) -> Result<Vec<u32>, ApiError> {
    let items = fields.array("tokens")?.ok_or_else(|| ApiError::Missing { param: "tokens".to_owned() })?;
    token_ids("tokens", &items, model.served.engine.info().vocab)
}

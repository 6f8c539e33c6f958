//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, in vLLM's shapes, for every model.
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::body::JsonBody;
use super::chat;
use super::error::ApiError;
use super::fields::Fields;
use super::params::token_ids;
use super::tools::Form;
use crate::text::{ChatInput, TextTools};

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

/// A model whose tokenizer is asked.
struct Asked {
    alias: String,
    text: Arc<TextTools>,
    /// Tokens of one request, or input.
    tokens_max: usize,
    vocab: usize,
    /// Control tokens written in a text are read as such, and there are chats.
    generates: bool,
}

impl Asked {
    /// The model of this name; without one, the first that generates, or else the first.
    fn find(app: &AppState, alias: Option<&str>) -> Result<Self, ApiError> {
        let encoder = match alias {
            Some(alias) => app.every_encoder().find(|encoder| encoder.alias() == alias),
            None if app.models().is_empty() => app.every_encoder().next(),
            None => None,
        };
        if let Some(encoder) = encoder {
            let (served, info) = (&encoder.served, encoder.served.backend.info());
            let (alias, text) = (served.alias.clone(), Arc::clone(&served.text));
            return Ok(Self { alias, text, tokens_max: info.tokens_max, vocab: info.vocab, generates: false });
        }
        let model = app.find_or_first(alias)?;
        Ok(Self {
            alias: model.served.alias.clone(),
            text: Arc::clone(&model.served.text),
            tokens_max: model.context_max,
            vocab: model.served.engine.info().vocab,
            generates: true,
        })
    }

    fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.text.tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
    }
}

/// The tokens of a `prompt`, as `/v1/completions` or `/v1/embeddings` would see it, or of `messages`, as `/v1/chat/completions` would.
pub(crate) async fn tokenize(State(app): State<AppState>, body: JsonBody) -> Result<Json<Tokenized>, ApiError> {
    let (request, claim) = body.lower(&app, lower).await?;
    let TokenizeRequest { model, strings, text } = request;
    let tokenize = move || {
        let tokenizer = &model.text.tokenizer;
        let tokens = match &text {
            TokenizeText::Chat(input) => model.text.encode_chat(input)?,
            TokenizeText::Prompt { prompt, add_special } if model.generates => {
                tokenizer.encode_with_special(prompt, *add_special)?
            }
            TokenizeText::Prompt { prompt, add_special } => tokenizer.encode(prompt, *add_special)?,
        };
        let token_strs = strings.then(|| tokens.iter().map(|id| model.token_text(*id)).collect());
        Ok(Json(Tokenized { count: tokens.len(), max_model_len: model.tokens_max, tokens, token_strs }))
    };
    claim.work(&app, tokenize).await
}

struct TokenizeRequest {
    model: Asked,
    strings: bool,
    text: TokenizeText,
}

enum TokenizeText {
    Chat(ChatInput),
    Prompt { prompt: String, add_special: bool },
}

fn lower(mut fields: Fields, app: &AppState) -> Result<TokenizeRequest, ApiError> {
    let model = Asked::find(app, fields.string("model")?.as_deref())?;
    let strings = fields.bool("return_token_strs")?.unwrap_or(false);
    let text = if fields.peek("messages").is_some() {
        if !model.generates {
            let hint = " with a model for embeddings or reranking; give a `prompt`";
            return Err(ApiError::Unsupported { param: "messages".to_owned(), hint });
        }
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

/// The text of `tokens`, control tokens included.
pub(crate) async fn detokenize(State(app): State<AppState>, body: JsonBody) -> Result<Json<Detokenized>, ApiError> {
    let lower = |mut fields: Fields, app: &AppState| {
        let model = Asked::find(app, fields.string("model")?.as_deref())?;
        let tokens = tokens(&mut fields, &model)?;
        fields.finish()?;
        Ok((model, tokens))
    };
    let ((model, tokens), claim) = body.lower(&app, lower).await?;
    let detokenize = move || Ok(Json(Detokenized { prompt: model.text.tokenizer.decode(&tokens, false) }));
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

/// The special tokens of the model that `?model=` names, or of the first that generates.
pub(crate) async fn info(
    State(app): State<AppState>,
    query: Result<Query<InfoQuery>, QueryRejection>,
) -> Result<Json<TokenizerInfo>, ApiError> {
    let Query(InfoQuery { model }) = query.map_err(|_| {
        ApiError::invalid("model", "The query may be `?model=NAME` or empty; see `GET /v1/models` for the names.")
    })?;
    let Asked { alias, text, tokens_max, .. } = Asked::find(&app, model.as_deref())?;
    let tokenizer = &text.tokenizer;
    let text = |id: u32| tokenizer.decode(&[id], false);
    Ok(Json(TokenizerInfo {
        model: alias,
        max_model_len: tokens_max,
        bos_token: tokenizer.bos_id().map(text),
        eos_token: tokenizer.stop_ids().first().copied().map(text),
    }))
}

fn tokens(fields: &mut Fields, model: &Asked) -> Result<Vec<u32>, ApiError> {
    let items = fields.array("tokens")?.ok_or_else(|| ApiError::Missing { param: "tokens".to_owned() })?;
    token_ids("tokens", &items, model.vocab)
}

//! `POST /v1/chat/completions`.
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;

use super::body::JsonBody;
use super::choice::{Delta, Finish};
use super::error::ApiError;
use super::fields::Fields;
use super::fold::fold;
use super::gate::RequestContext;
use super::logprobs::{self, ChatLogprobs};
use super::params::{Common, small};
use super::pipeline::{self, Plan, admit, check_choices, check_length};
use super::stream::{self, Chunks, Streaming};
use super::types::Envelope;
use super::{AppState, Model, messages};
use crate::sampling::TokenLogprobs;
use crate::text::ChatInput;

/// Names that a template gets from the request itself.
const RESERVED_KWARGS: &[&str] = &["messages", "tools", "documents", "add_generation_prompt", "continue_final_message"];

/// The handler.
pub(crate) async fn create(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let (request, claim) = body.lower(&app, ChatRequest::lower).await?;
    let ChatRequest { model, input, mut common, max_tokens, logprobs } = request;
    let continuing = input.continue_final_message;
    let (of, truncates) = (Arc::clone(&model), common.truncate.is_some());
    let encode = move || {
        let text = &of.served.text;
        let rendered = text.render_chat(&input)?;
        if !truncates {
            check_length(&of, &rendered.text, "messages")?;
        }
        Ok(text.tokenizer.encode_prompt(&rendered)?)
    };
    let prompt = claim.work(&app, encode).await?;
    let grammar = pipeline::grammar(&model, &mut common).await?;
    let per_prompt = common.n;
    let streaming = common.stream;
    let prompt_logprobs = common.prompt_logprobs;
    let return_token_ids = common.return_token_ids;
    let plan = Plan {
        model: Arc::clone(&model),
        common,
        prompts: vec![prompt],
        prompt_field: "messages",
        max_tokens,
        per_prompt,
        logprobs,
        prompt_logprobs,
        hidden_logprobs: false,
        rank: false,
        // A continued message's text is in the prompt.
        continuing,
        grammar,
    };
    let job = admit(&app, &context, plan)?;
    let prompt_ids = return_token_ids.then(|| job.prompts[0].to_vec());
    let prompt_tokens = Arc::clone(&job.prompts[0]);
    if let Some(options) = streaming {
        let envelope = Envelope::new("chatcmpl", "chat.completion.chunk", &model);
        let chunks = ChatChunks { model, logprobs: logprobs.is_some(), prompt_ids };
        let streaming = Streaming { envelope, options, keep_alive: app.options().keep_alive };
        return Ok(stream::respond(job, chunks, streaming));
    }
    let envelope = Envelope::new("chatcmpl", "chat.completion", &model);
    let (mut choices, usage) = fold(job).await?;
    let tokenizer = &model.served.text.tokenizer;
    let prompt = choices.first_mut().and_then(|first| first.prompt.take());
    let choice = |(index, folded): (usize, super::fold::Folded)| ChatChoice {
        index,
        finish_reason: folded.finish_reason(),
        logprobs: logprobs.map(|_| logprobs::chat(tokenizer, &folded.logprobs)),
        token_ids: return_token_ids.then_some(folded.token_ids),
        message: ChatMessage { role: "assistant", content: folded.text, refusal: None },
    };
    let mut body = envelope.wrap(choices.into_iter().enumerate().map(choice).collect());
    body.usage = Some(Some(usage.into()));
    body.service_tier = Some("default");
    body.prompt_logprobs = prompt.map(|entries| logprobs::prompt(tokenizer, &prompt_tokens, &entries));
    body.prompt_token_ids = prompt_ids;
    Ok(Json(body).into_response())
}

/// A validated request.
pub(crate) struct ChatRequest {
    pub(crate) model: Arc<Model>,
    pub(crate) input: ChatInput,
    common: Common,
    max_tokens: Option<usize>,
    logprobs: Option<u8>,
}

impl ChatRequest {
    fn lower(mut fields: Fields, app: &AppState) -> Result<Self, ApiError> {
        let model = app.named(&mut fields)?;
        // Only a switch with a name in the template can make a model think less; other efforts are refused below.
        let no_reasoning = fields.peek("reasoning_effort").is_some_and(|effort| effort == "none");
        let common = Common::take(&mut fields, &model)?;
        let mut input = input(&mut fields)?;
        if no_reasoning {
            input.kwargs.entry("enable_thinking").or_insert(false.into());
        }
        let max_tokens = max_tokens(&mut fields)?;
        let logprobs = chat_logprobs(&mut fields)?;
        fields.finish()?;
        check_choices(&model, 1, common.n)?;
        Ok(Self { model, input, common, max_tokens, logprobs })
    }
}

/// Messages and what else the template sees; `/tokenize` takes the same.
pub(crate) fn input(fields: &mut Fields) -> Result<ChatInput, ApiError> {
    let messages = messages::lower(fields.require("messages")?)?;
    let continue_final_message = fields.bool("continue_final_message")?.unwrap_or(false);
    let add_generation_prompt = fields.bool("add_generation_prompt")?;
    if continue_final_message && add_generation_prompt == Some(true) {
        let message = "`continue_final_message` and `add_generation_prompt` cannot both be true.";
        return Err(ApiError::invalid("continue_final_message", message));
    }
    let path = fields.path("chat_template_kwargs");
    let kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    if let Some(name) = RESERVED_KWARGS.iter().find(|name| kwargs.contains_key(**name)) {
        let message = format!("`{path}.{name}` is set by the server; give it as a field of the request.");
        return Err(ApiError::invalid(format!("{path}.{name}"), message));
    }
    let add_generation_prompt = add_generation_prompt.unwrap_or(!continue_final_message);
    Ok(ChatInput { messages, tools: None, add_generation_prompt, continue_final_message, kwargs })
}

/// `max_completion_tokens`, or its old name. Some clients send both; then they must agree.
fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let new = fields.count("max_completion_tokens", 1..=u32::MAX)?;
    let old = fields.count("max_tokens", 1..=u32::MAX)?;
    match (new, old) {
        (Some(new), Some(old)) if new != old => Err(ApiError::invalid(
            "max_tokens",
            format!(
                "`max_tokens` ({old}) and `max_completion_tokens` ({new}) differ; give only `max_completion_tokens`."
            ),
        )),
        (new, old) => Ok(new.or(old)),
    }
}

fn chat_logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = small(fields, "top_logprobs", 0..=20)?;
    match (wanted, top) {
        (false, Some(1..)) => {
            Err(ApiError::invalid("top_logprobs", "`top_logprobs` is only allowed when `logprobs` is true."))
        }
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}

#[derive(Serialize)]
struct ChatChoice {
    index: usize,
    message: ChatMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct ChatMessage {
    role: &'static str,
    content: String,
    refusal: Option<()>,
}

struct ChatChunks {
    model: Arc<Model>,
    logprobs: bool,
    prompt_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: ChunkDelta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    token_ids: Vec<u32>,
}

#[derive(Default, Serialize)]
struct ChunkDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

impl Chunks for ChatChunks {
    type Choice = ChunkChoice;

    fn begin(&mut self, choice: usize, _: Option<Vec<TokenLogprobs>>) -> Option<ChunkChoice> {
        let delta = ChunkDelta { role: Some("assistant"), content: Some(String::new()) };
        Some(ChunkChoice { index: choice, delta, logprobs: None, finish_reason: None, token_ids: Vec::new() })
    }

    fn delta(&mut self, choice: usize, delta: Delta) -> ChunkChoice {
        let tokenizer = &self.model.served.text.tokenizer;
        ChunkChoice {
            index: choice,
            delta: ChunkDelta { role: None, content: Some(delta.text) },
            logprobs: self.logprobs.then(|| logprobs::chat(tokenizer, &delta.logprobs)),
            finish_reason: None,
            token_ids: delta.token_ids,
        }
    }

    fn finish(&mut self, choice: usize, reason: Finish) -> ChunkChoice {
        let delta = ChunkDelta::default();
        let finish_reason = Some(reason.name());
        ChunkChoice { index: choice, delta, logprobs: None, finish_reason, token_ids: Vec::new() }
    }

    fn prompt_token_ids(&self, choice: usize) -> Option<Vec<u32>> {
        self.prompt_ids.clone().filter(|_| choice == 0)
    }
}

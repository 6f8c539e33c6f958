//! `POST /v1/responses` and `/v1/responses/input_tokens`. A request has the whole conversation, or goes on from a response
//! that the server keeps (see `responses_kept`).
use std::pin::pin;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::StreamExt;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::body::JsonBody;
use super::chat::{ChatRequest, EFFORTS, set_effort, start, template_kwargs};
use super::error::ApiError;
use super::fields::{Fields, quoted, type_name};
use super::gate::RequestContext;
use super::params::{Common, Truncate, small};
use super::pipeline::{Event, events};
use super::responses_kept::{Earlier, Keep};
use super::responses_shape::Answer;
use super::stream::{Telling, tell};
use super::tools::{Form, ToolUse};
use super::{AppState, Model, responses_input, thoughts, turns};
use crate::text::ChatInput;

/// Fields of other endpoints: under another name here, or without a place in the answer.
pub(crate) const ELSEWHERE: &[(&str, &str)] = &[
    ("messages", " here; use `input`"),
    ("max_tokens", " here; use `max_output_tokens`"),
    ("max_completion_tokens", " here; use `max_output_tokens`"),
    ("response_format", " here; use `text.format`"),
    ("verbosity", " here; use `text.verbosity`"),
    ("reasoning_effort", " here; use `reasoning.effort`"),
    ("functions", " here; use `tools`"),
    ("function_call", " here; use `tool_choice`"),
    ("truncate_prompt_tokens", " here; use `truncation`"),
    ("logprobs", " here; use `include` with `message.output_text.logprobs`"),
    ("n", " here: a response has one answer"),
    ("prompt_logprobs", " here; use /v1/chat/completions"),
    ("return_token_ids", " here; use /v1/chat/completions"),
];

/// Fields of what wick does not have.
pub(crate) const ABSENT: &[(&str, &str)] = &[
    ("conversation", ": wick keeps no conversations; send the whole conversation in `input`"),
    ("prompt", ": wick keeps no prompts; send its text in `instructions` or `input`"),
    ("context_management", ": send the conversation as the model is to see it; `truncation` drops its oldest turns"),
    ("background_options", ": an answer ends with its connection"),
    ("image", ": models here write text only"),
    ("access_programs", ""),
];

/// Where the server keeps no responses.
const NOT_KEPT: &str =
    ": wick keeps no responses unless it is started with `--responses-store`; send the whole conversation in `input`";
const NOT_STORED: &str = " as true: wick keeps no responses unless it is started with `--responses-store`; send false or leave it out, and send the whole conversation in `input`";

const LOGPROBS: &str = "message.output_text.logprobs";

/// What `include` may ask for. All but the log-probabilities belong to tools that are refused, and to thoughts, which
/// wick sends in clear.
pub(crate) const INCLUDES: &[&str] = &[
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];

/// Bytes of JSON of what the answer repeats of one field.
const SETTING_MAX: usize = 1 << 20;

pub(crate) const SUMMARIES: &[&str] = &["auto", "concise", "detailed"];

/// The handler.
pub(crate) async fn create(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let (body, earlier) = Earlier::find(&app, &context, body).await?;
    let (request, claim) = body.lower(&app, |fields, app| ResponseRequest::lower(fields, app, earlier)).await?;
    let ResponseRequest { chat, settings, keep } = request;
    let (model, logprobs) = (Arc::clone(&chat.model), chat.logprobs.is_some());
    let namespaces = Arc::clone(&chat.tools.namespaces);
    let is_streamed = chat.common.stream.is_some();
    let job = start(&app, &context, chat, claim, "input").await?;
    let mut answer = Answer::new(model, settings, namespaces, logprobs, is_streamed, keep);
    if is_streamed {
        return Ok(tell(job, answer, app.options().keep_alive));
    }
    let mut events = pin!(events(job));
    while let Some(event) = events.next().await {
        match event {
            Event::Failed(error) => return Err(error),
            event => answer.event(event, &mut Vec::new()),
        }
    }
    Ok(Json(answer.into_response()).into_response())
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct InputTokens {
    object: &'static str,
    input_tokens: usize,
}

/// How many tokens the prompt of a response would have.
pub(crate) async fn input_tokens(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    body: JsonBody,
) -> Result<Json<InputTokens>, ApiError> {
    let (body, mut earlier) = Earlier::find(&app, &context, body).await?;
    let lower = move |mut fields: Fields, app: &AppState| {
        let model = app.named(&mut fields)?;
        refuse(&mut fields)?;
        stored(&mut fields, &mut earlier)?;
        earlier.keeps = false;
        let (input, ..) = prompt(&mut fields, &model, &mut earlier)?;
        text_format(&mut fields)?;
        // Any form of the answer has the same prompt.
        fields.take("response_format");
        let truncate = truncation(&mut fields)?;
        fields.finish()?;
        Ok((model, input, truncate))
    };
    let ((model, mut input, truncate), claim) = body.lower(&app, lower).await?;
    let count = move || {
        if truncate.is_some() {
            turns::fit(&mut input, &model, 1)?;
        }
        let tokens = model.served.text.encode_chat(&input)?;
        Ok(Json(InputTokens { object: "response.input_tokens", input_tokens: tokens.len() }))
    };
    claim.work(&app, count).await.map_err(|error| error.about_prompt("input"))
}

/// A validated request.
struct ResponseRequest {
    chat: ChatRequest,
    /// What the answer repeats of it.
    settings: Map<String, Value>,
    keep: Option<Keep>,
}

impl ResponseRequest {
    fn lower(mut fields: Fields, app: &AppState, mut earlier: Earlier) -> Result<Self, ApiError> {
        let model = app.named(&mut fields)?;
        refuse(&mut fields)?;
        let previous = stored(&mut fields, &mut earlier)?;
        let settings = settings(&fields, previous, earlier.keeps);
        check_size(&settings)?;
        let (input, tools, thinking_budget) = prompt(&mut fields, &model, &mut earlier)?;
        text_format(&mut fields)?;
        let truncate = truncation(&mut fields)?;
        let mut common = Common::take(&mut fields, &model)?;
        common.truncate = truncate;
        common.ignored.extend(tools.ignored.iter().cloned());
        let max_tokens = fields.count("max_output_tokens", 1..=u32::MAX)?;
        // Counts calls of OpenAI's own tools, which are refused.
        fields.count("max_tool_calls", 1..=u32::MAX)?;
        let logprobs = logprobs(&mut fields)?;
        fields.finish()?;
        let hide_reasoning = false;
        let chat = ChatRequest { model, input, tools, common, max_tokens, logprobs, thinking_budget, hide_reasoning };
        Ok(Self { chat, settings, keep: earlier.into_keep() })
    }
}

/// What the answer says about its request: each of the fields as the client gave it, or its default.
fn settings(fields: &Fields, previous: Option<String>, keeps: bool) -> Map<String, Value> {
    let nested = |name: &str, known: &[&str]| {
        let given =
            |field: &&str| (field.to_string(), fields.peek(name).map_or(Value::Null, |value| value[*field].clone()));
        known.iter().map(given).collect::<Map<String, Value>>()
    };
    let mut text = nested("text", &["format", "verbosity"]);
    for (name, default) in [("format", json!({"type": "text"})), ("verbosity", json!("medium"))] {
        if text[name].is_null() {
            text[name] = default;
        }
    }
    let defaults = [
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("max_tool_calls", Value::Null),
        ("metadata", json!({})),
        ("parallel_tool_calls", true.into()),
        ("prompt_cache_key", Value::Null),
        ("prompt_cache_retention", Value::Null),
        ("safety_identifier", Value::Null),
        ("temperature", 1.0.into()),
        ("tool_choice", "auto".into()),
        ("tools", json!([])),
        ("top_logprobs", 0.into()),
        ("top_p", 1.0.into()),
        ("truncation", "disabled".into()),
        ("user", Value::Null),
    ];
    let given = |(name, default): (&str, Value)| (name.to_owned(), fields.peek(name).cloned().unwrap_or(default));
    let mut settings: Map<String, Value> = defaults.into_iter().map(given).collect();
    settings.insert("text".into(), text.into());
    settings.insert("reasoning".into(), nested("reasoning", &["effort", "summary"]).into());
    settings.insert("previous_response_id".into(), previous.into());
    settings.insert("service_tier".into(), "default".into());
    settings.insert("store".into(), keeps.into());
    settings
}

/// The answer repeats its request's settings, in a stream three times, and holds them all the while.
fn check_size(settings: &Map<String, Value>) -> Result<(), ApiError> {
    let sizes = settings.iter().map(|(name, value)| (name, value.to_string().len()));
    match sizes.max_by_key(|(_, size)| *size) {
        Some((name, size)) if size > SETTING_MAX => {
            let message = format!("`{name}` must have at most {SETTING_MAX} bytes as JSON, but it has {size}.");
            Err(ApiError::invalid(name.clone(), message))
        }
        _ => Ok(()),
    }
}

/// Takes `previous_response_id` and `store`, as far as responses are kept. Gives the first, whose response was found.
fn stored(fields: &mut Fields, earlier: &mut Earlier) -> Result<Option<String>, ApiError> {
    if !earlier.is_possible() {
        fields.refuse(&[("previous_response_id", NOT_KEPT)])?;
        if fields.bool("store")?.unwrap_or(false) {
            return Err(ApiError::Unsupported { param: fields.path("store"), hint: NOT_STORED });
        }
        return Ok(None);
    }
    let previous = fields.string("previous_response_id")?;
    earlier.keeps = fields.bool("store")?.unwrap_or(true);
    Ok(previous)
}

/// Refuses fields of other endpoints, and what needs more to be kept than responses, or to go on without its client.
fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    fields.refuse(ELSEWHERE.iter().chain(ABSENT))?;
    if fields.bool("background")?.unwrap_or(false) {
        let hint = " as true: an answer ends with its connection; wait for it, or use `stream`";
        return Err(ApiError::Unsupported { param: fields.path("background"), hint });
    }
    Ok(())
}

/// What the model sees, and how many tokens it may think.
fn prompt(
    fields: &mut Fields,
    model: &Model,
    earlier: &mut Earlier,
) -> Result<(ChatInput, ToolUse, Option<usize>), ApiError> {
    let tools = ToolUse::take(fields, Form::Responses)?;
    let messages = responses_input::take(fields, earlier)?;
    let mut kwargs = template_kwargs(fields)?;
    let bound = reasoning(fields, model, &mut kwargs)?;
    let budget = thoughts::budget(fields, bound, &kwargs, model)?;
    let shown = tools.for_template();
    let input =
        ChatInput { messages, tools: shown, add_generation_prompt: true, continue_final_message: false, kwargs };
    Ok((input, tools, budget))
}

/// `reasoning`: its effort has an effect; a summary may be asked for, but the thoughts themselves are what there is. Gives
/// its `max_tokens` (not OpenAI's, but in use for chats), with the path.
fn reasoning(
    fields: &mut Fields,
    model: &Model,
    kwargs: &mut Map<String, Value>,
) -> Result<Option<(String, Value)>, ApiError> {
    let Some(reasoning) = fields.take("reasoning") else { return Ok(None) };
    let mut reasoning = Fields::at(fields.path("reasoning"), reasoning)?;
    reasoning.choice("summary", SUMMARIES)?;
    reasoning.choice("generate_summary", SUMMARIES)?;
    reasoning.choice("context", &["auto"])?;
    reasoning.choice("mode", &["standard"])?;
    let effort = reasoning.choice("effort", EFFORTS)?;
    let bound = reasoning.take("max_tokens").map(|tokens| (reasoning.path("max_tokens"), tokens));
    let param = reasoning.path("effort");
    reasoning.finish()?;
    effort.map_or(Ok(()), |effort| set_effort(param, effort, model, kwargs))?;
    Ok(bound)
}

/// `text`: its format goes where a chat has it.
fn text_format(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(text) = fields.take("text") else { return Ok(()) };
    let mut text = Fields::at(fields.path("text"), text)?;
    if text.choice("verbosity", &["low", "medium", "high"])?.is_some_and(|verbosity| verbosity != "medium") {
        return Err(ApiError::Unsupported { param: text.path("verbosity"), hint: ", except `medium`" });
    }
    if let Some(format) = text.take("format") {
        let path = text.path("format");
        let mut format = Fields::at(path.clone(), format)?;
        let kind = format.choice("type", &["text", "json_object", "json_schema"])?;
        let kind = kind.ok_or_else(|| ApiError::Missing { param: format.path("type") })?;
        let mut moved = json!({ "type": kind });
        if kind == "json_schema" {
            let missing = |name: &str| ApiError::Missing { param: format!("{path}.{name}") };
            let mut schema = Map::new();
            schema.insert("name".into(), format.string("name")?.ok_or_else(|| missing("name"))?.into());
            schema.insert("schema".into(), format.object("schema")?.ok_or_else(|| missing("schema"))?.into());
            schema.insert("description".into(), format.string("description")?.into());
            schema.insert("strict".into(), format.bool("strict")?.into());
            moved["json_schema"] = schema.into();
        }
        format.finish()?;
        fields.put("response_format", moved, path);
    }
    text.finish()
}

/// `truncation`: `auto` drops the oldest turns of what is too long.
fn truncation(fields: &mut Fields) -> Result<Option<Truncate>, ApiError> {
    let truncation = fields.choice("truncation", &["auto", "disabled"])?;
    Ok(truncation.filter(|truncation| *truncation == "auto").map(|_| Truncate::Turns))
}

/// `include` and `top_logprobs`.
fn logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let path = fields.path("include");
    let mut wanted = false;
    for (index, item) in fields.array("include")?.unwrap_or_default().into_iter().enumerate() {
        let param = format!("{path}[{index}]");
        let Value::String(name) = item else {
            return Err(ApiError::WrongType { param, expected: "a string", found: type_name(&item) });
        };
        if !INCLUDES.contains(&name.as_str()) {
            let message = format!("`{param}` must be one of {}.", quoted(INCLUDES));
            return Err(ApiError::InvalidValue { param, message });
        }
        wanted |= name == LOGPROBS;
    }
    match (wanted, small(fields, "top_logprobs", 0..=20)?) {
        (false, Some(1..)) => {
            let message = format!("`top_logprobs` is only allowed when `include` has `{LOGPROBS}`.");
            Err(ApiError::invalid("top_logprobs", message))
        }
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}
